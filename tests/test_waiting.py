"""Threads that wait for memory: order of arrival, ends of waiting, and no lost wake-up."""

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from mempool import BufferPool, PoolExhausted
from support import KIB, MIB, check_identities, nothing_changes, start, start_waiter, together, until

Run = Callable[..., subprocess.CompletedProcess[str]]


def hold_and_note(pool: BufferPool, nbytes: int, number: int, order: list[int]) -> None:
    with pool.acquire(nbytes, timeout=None):
        order.append(number)


def test_a_wait_ends_when_memory_comes_back() -> None:
    pool = BufferPool("64KiB")
    held = pool.acquire("64KiB")
    waiter = start_waiter(pool, lambda: pool.acquire("64KiB", timeout=None))
    assert pool.stats().live == 1
    held.release()
    assert len(waiter.result()) == 64 * KIB
    stats = pool.stats()
    assert (stats.waits, stats.exhausted, stats.live) == (1, 0, 1)


@pytest.mark.parametrize("end", ["release", "drop", "with", "last view", "handed over"])
def test_every_end_of_a_lease_wakes(end: str) -> None:
    pool = BufferPool("64KiB")
    held = [pool.acquire("64KiB")]
    views = [memoryview(held[0])] if end in {"last view", "handed over"} else []
    waiter = start_waiter(pool, lambda: pool.acquire("64KiB", timeout=None))
    if end == "with":
        with held[0]:
            pass
    elif end in {"release", "last view"}:
        held[0].release()
    else:
        held.clear()
    views.clear()
    assert waiter.result().pool is pool


def test_no_wait_where_there_is_room() -> None:
    pool = BufferPool("64KiB")
    with pool.acquire("32KiB", timeout=None), pool.acquire("32KiB", timeout="1h"):
        assert pool.stats().waits == 0


def test_idle_memory_of_other_classes_needs_no_wait() -> None:
    pool = BufferPool("64KiB")
    pool.reserve("4KiB", 16)
    with pool.acquire("64KiB", timeout=None):
        assert pool.stats().waits == 0


def test_threads_are_served_in_order_of_arrival() -> None:
    pool = BufferPool("1MiB")
    order: list[int] = []
    held = pool.acquire("1MiB")
    sizes = [random.Random(7).choice([600, 700, 800, 1000, 1024]) * KIB for _ in range(12)]  # only one fits at a time
    waiters = [start_waiter(pool, hold_and_note, pool, size, number, order) for number, size in enumerate(sizes)]
    held.release()
    for waiter in waiters:
        waiter.result()
    assert order == list(range(12))
    assert pool.stats().waits == 12


def test_a_small_request_does_not_overtake_a_large_one() -> None:
    pool = BufferPool("1MiB")
    first, second = pool.acquire("512KiB"), pool.acquire("512KiB")
    order: list[int] = []
    large = start_waiter(pool, hold_and_note, pool, MIB, 0, order)
    small = start_waiter(pool, hold_and_note, pool, 64 * KIB, 1, order)
    first.release()
    with pool.acquire("64KiB"):  # a call that does not wait takes what is free at that moment
        assert order == []
    second.release()
    large.result()
    small.result()
    assert order == [0, 1]


def test_those_behind_go_on_when_the_head_gives_up() -> None:
    pool = BufferPool("1MiB")
    held = [pool.acquire("512KiB"), pool.acquire("512KiB")]
    done = threading.Event()

    def give_up() -> None:
        with pytest.raises(PoolExhausted):
            pool.acquire("1MiB", timeout="300ms")
        done.set()

    head = start_waiter(pool, give_up)
    behind = start_waiter(pool, lambda: pool.acquire("512KiB", timeout=None))
    held.pop().release()
    head.result()
    assert done.is_set()
    assert len(behind.result()) == 512 * KIB


@pytest.mark.parametrize("timeout", [0.001, "20ms", 0.05])
def test_a_wait_that_runs_out(timeout: float | str) -> None:
    pool = BufferPool("64KiB", name="small")
    with pool.acquire("48KiB"), nothing_changes(pool), pytest.raises(PoolExhausted, match="'small'") as caught:
        pool.acquire("32KiB", timeout=timeout)
    error = caught.value
    assert (error.requested, error.in_use, error.limit) == (32 * KIB, 48 * KIB, 64 * KIB)
    stats = pool.stats()
    assert (stats.waits, stats.exhausted) == (1, 1)
    assert len(pool.acquire("64KiB", timeout=None)) == 64 * KIB


def test_the_last_look_is_after_the_timeout() -> None:
    pool = BufferPool("64KiB")
    held = pool.acquire("64KiB")
    waiter = start_waiter(pool, lambda: pool.acquire("64KiB", timeout=3600))
    held.release()
    waiter.result().release()
    assert pool.stats().exhausted == 0


def test_close_wakes_all_with_value_error() -> None:
    pool = BufferPool("64KiB", name="gone")
    held = pool.acquire("64KiB")
    waiters = [start_waiter(pool, lambda: pool.acquire("64KiB", timeout=None)) for _ in range(5)]
    pool.close()
    for waiter in waiters:
        with pytest.raises(ValueError, match="gone"):
            waiter.result()
    held.release()
    stats = pool.stats()
    assert (stats.waits, stats.exhausted, stats.reserved) == (5, 0, 0)


def test_a_raised_limit_wakes() -> None:
    pool = BufferPool("64KiB")
    held = pool.acquire("64KiB")
    waiters = [start_waiter(pool, lambda: pool.acquire("64KiB", timeout=None)) for _ in range(3)]
    pool.limit = "128KiB"
    until(lambda: pool.stats().live == 2, "the first lease")
    pool.limit = None
    assert [len(waiter.result()) for waiter in waiters] == [64 * KIB] * 3
    held.release()


def test_a_limit_lowered_below_a_waiting_request_ends_the_wait() -> None:
    pool = BufferPool("128KiB")
    held = pool.acquire("32KiB")
    waiter = start_waiter(pool, lambda: pool.acquire("128KiB", timeout=None))
    pool.limit = "64KiB"
    with pytest.raises(PoolExhausted) as caught:
        waiter.result()
    assert caught.value.limit == 64 * KIB
    held.release()


@pytest.mark.parametrize("nbytes", [64 * KIB + 1, 2**62])
def test_what_can_never_fit_does_not_queue(nbytes: int) -> None:
    pool = BufferPool("64KiB")
    held = pool.acquire("64KiB")
    waiter = start_waiter(pool, lambda: pool.acquire("64KiB", timeout=None))
    with pytest.raises(MemoryError):
        start(lambda: pool.acquire(nbytes, timeout=None)).result()
    assert pool.stats().waits == 1
    held.release()
    waiter.result().release()


INTERRUPTED = """
    import os, signal, sys, threading, time
    import mempool

    pool = mempool.BufferPool("64KiB")
    held = pool.acquire("64KiB")

    def interrupt(how):
        while not pool.stats().waits:
            time.sleep(0.001)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, args=sys.argv[1:], daemon=True).start()
    try:
        pool.acquire("64KiB", timeout=None)
    except KeyboardInterrupt:
        pass
    else:
        raise SystemExit("not interrupted")
    held.release()
    pool.acquire("64KiB", timeout=None).release()
    assert pool.stats().exhausted == 0
    print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to oneself")
@pytest.mark.parametrize("how", ["kill", "raise_signal in another thread"])
def test_ctrl_c_interrupts_a_wait(run_python: Run, how: str) -> None:
    assert run_python(INTERRUPTED, how.split()[0]).stdout == "done\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to oneself")
def test_a_signal_handler_runs_while_waiting_and_the_wait_goes_on() -> None:
    pool = BufferPool("64KiB")
    held = [pool.acquire("64KiB")]
    before = signal.signal(signal.SIGUSR1, lambda *_: held.clear())
    try:
        main = threading.main_thread().ident
        assert main is not None

        def send() -> None:
            until(lambda: pool.stats().waits, "a wait")
            signal.pthread_kill(main, signal.SIGUSR1)

        sender = start(send)
        assert len(pool.acquire("64KiB", timeout=60)) == 64 * KIB
        sender.result()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_leak_detection_and_zero_apply_to_leases_that_waited() -> None:
    pool = BufferPool("64KiB", leak_detection="full")
    held = pool.acquire("64KiB")
    held[:] = b"\xff" * (64 * KIB)
    waiter = start_waiter(pool, lambda: pool.acquire("64KiB", zero=True, timeout=None))
    held.release()
    with waiter.result() as buffer:
        assert not any(buffer[:])
    del buffer


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_no_wake_up_is_lost(blocks: int) -> None:
    """Each hand-over that nobody announces costs half a second, so that losing many of these runs into the deadline."""
    pool = BufferPool(blocks * 64 * KIB)
    lent = [0]

    def work(sizes: list[int]) -> None:
        for size in sizes:
            with pool.acquire(size, timeout=None) as buffer:
                lent[0] += 1
                buffer[0] = buffer[-1] = 1

    dice = random.Random(blocks)
    plans = [[dice.choice([4, 16, 40, 64]) * KIB for _ in range(400)] for _ in range(8)]
    together([lambda plan=plan: work(plan) for plan in plans])  # type: ignore[misc]
    stats = pool.stats()
    check_identities(stats)
    assert (stats.acquires, stats.releases, stats.exhausted) == (3200, 3200, 0)
    assert stats.peak <= blocks * 64 * KIB


def test_waiters_of_one_pool_do_not_wait_for_another() -> None:
    one, two = BufferPool("64KiB"), BufferPool("64KiB")
    held = one.acquire("64KiB")
    waiter = start_waiter(one, lambda: one.acquire("64KiB", timeout=None))
    assert len(two.acquire("64KiB", timeout=None)) == 64 * KIB
    held.release()
    waiter.result()
