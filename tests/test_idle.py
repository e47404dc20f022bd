"""Idle memory leaves the process: in time and with no call made, at once where asked, and never where asked so."""

import ctypes
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import mempool
from support import until

MIB = 1 << 20
linux = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads and memory are read from /proc")


def idle(pool: mempool.BufferPool) -> int:
    return pool.stats().idle


def make_idle(pool: mempool.BufferPool, *sizes: int) -> None:
    leases = [pool.acquire(nbytes, zero=True) for nbytes in sizes]
    for lease in leases:
        lease.release()


@pytest.mark.parametrize("nbytes", [64, 5000, 300_000, 2 * MIB, 5 * MIB])
def test_idle_memory_goes_back_with_no_call_made(nbytes: int) -> None:
    account = mempool.Account("a")
    pool = mempool.BufferPool(idle_timeout=0.02, account=account)
    leases = [pool.acquire(nbytes, zero=True) for _ in range(5)]
    assert account.used > 0
    while leases:
        leases.pop().release()
    until(lambda: account.used == 0, "the purge")  # an account's figure; the pool itself is not touched
    assert (idle(pool), pool.stats().reserved) == (0, 0)


def test_pools_are_purged_each_in_its_time() -> None:
    quick, slow = mempool.BufferPool(idle_timeout=0.02), mempool.BufferPool(idle_timeout=3600)
    make_idle(slow, 5 * MIB)
    make_idle(quick, 5 * MIB)
    until(lambda: quick.stats().reserved == 0)
    assert idle(slow) == 5 * MIB


def test_a_pool_is_purged_again_and_again() -> None:
    pool = mempool.BufferPool(idle_timeout="5ms")
    for _ in range(5):
        make_idle(pool, MIB, 100)
        until(lambda: idle(pool) == 0)


def test_memory_in_use_stays() -> None:
    pool = mempool.BufferPool(idle_timeout=0.01)
    kept, view = pool.acquire(MIB), pool.acquire(MIB)[:]
    kept[:] = b"k" * MIB
    view[:] = b"v" * MIB
    make_idle(pool, MIB, MIB)
    until(lambda: idle(pool) == 0)
    assert (pool.stats().in_use, pool.stats().retired) == (MIB, MIB)
    assert kept == b"k" * MIB
    assert view == b"v" * MIB


def test_working_set_stays_while_it_is_used() -> None:
    """What is lent again and again between two looks, which are half the timeout apart, is not idle.

    A machine that stands still brings two looks without a use between them, so any time with several looks will do.
    """
    pool = mempool.BufferPool(idle_timeout=0.4)
    make_idle(pool, *[MIB] * 2)

    def none_missed() -> bool:
        misses, end = pool.stats().misses, time.monotonic() + 0.7
        while time.monotonic() < end:
            make_idle(pool, *[MIB] * 2)
        return pool.stats().misses == misses

    until(none_missed)


@pytest.mark.parametrize("never", [None, float("inf"), "100000d"])
def test_never(never: Any) -> None:
    other = mempool.BufferPool(idle_timeout=0.01)
    pool = mempool.BufferPool(idle_timeout=never)
    make_idle(pool, MIB)
    for _ in range(3):
        make_idle(other, MIB)
        until(lambda: idle(other) == 0)
    assert idle(pool) == MIB


@pytest.mark.parametrize("nbytes", [5000, MIB, 4 * MIB])
def test_timeout_of_zero_keeps_nothing(nbytes: int) -> None:
    pool = mempool.BufferPool(idle_timeout=0)
    make_idle(pool, nbytes)
    until(lambda: pool.stats().reserved == 0)
    with pool.acquire(nbytes):
        assert pool.stats().live == 1


def test_max_idle() -> None:
    pool = mempool.BufferPool(max_idle="3MiB", idle_timeout=None)
    make_idle(pool, *[MIB] * 8)
    assert idle(pool) == 3 * MIB
    make_idle(pool, 4 * MIB)
    assert idle(pool) <= 3 * MIB
    view = pool.acquire(MIB)[:]
    make_idle(pool, *[MIB] * 8)
    assert idle(pool) == 3 * MIB
    del view
    assert idle(pool) == 3 * MIB


def test_max_idle_of_zero() -> None:
    pool = mempool.BufferPool(max_idle=0)
    make_idle(pool, MIB, 5000, 4 * MIB)
    assert (idle(pool), pool.stats().reserved) == (0, 0)


def test_trim() -> None:
    account = mempool.Account("a")
    pool = mempool.BufferPool(idle_timeout=None, account=account)
    make_idle(pool, *[MIB] * 8)
    assert pool.trim(5 * MIB) == 3 * MIB
    assert (idle(pool), account.used) == (5 * MIB, 5 * MIB)
    assert pool.trim("5MiB") == 0
    assert pool.trim() == 5 * MIB
    assert (idle(pool), account.used, pool.trim()) == (0, 0, 0)


def test_reserved_memory_is_idle_and_purged() -> None:
    pool = mempool.BufferPool(idle_timeout=0.02)
    pool.reserve(MIB, 3)
    assert pool.stats().reserved == 3 * MIB
    until(lambda: pool.stats().reserved == 0)


def test_closing_gives_idle_memory_back() -> None:
    account = mempool.Account("a")
    pool = mempool.BufferPool(idle_timeout=None, account=account)
    make_idle(pool, MIB, 100)
    pool.close()
    assert account.used == 0


@pytest.mark.parametrize("nbytes", [64, 4096, 100_000, 3 * MIB])
def test_zero_on_release(nbytes: int) -> None:
    pool = mempool.BufferPool(zero_on_release=True, idle_timeout=None)
    buffer = pool.acquire(nbytes)
    buffer[:] = b"s" * nbytes
    address = buffer.address
    buffer.release()
    assert ctypes.string_at(address, nbytes) == bytes(nbytes)
    buffer = pool.acquire(nbytes)
    buffer[:] = b"s" * nbytes
    buffer.resize(1)
    del buffer
    assert ctypes.string_at(address, nbytes) == bytes(nbytes)


@pytest.mark.parametrize("nbytes", [64, 4096, 100_000, 3 * MIB])
def test_acquired_zero_is_zero_again(nbytes: int) -> None:
    pool = mempool.BufferPool(idle_timeout=None)
    for _ in range(3):
        with pool.acquire(nbytes, zero=True) as buffer:
            assert buffer == bytes(nbytes)
            buffer[:] = b"x" * nbytes


def test_purged_memory_can_be_lent_again() -> None:
    pool = mempool.BufferPool(idle_timeout=0.005)
    for i in range(1, 6):
        buffers = [pool.acquire(5000) for _ in range(20)]
        for buffer in buffers:
            buffer[:] = bytes([i]) * 5000
        kept = buffers.pop(7)
        while buffers:
            buffers.pop().release()
        until(lambda: idle(pool) == 0)
        assert kept == bytes([i]) * 5000


# ---- the process itself ----


@linux
def test_thread_exists_only_while_something_is_idle(run_python: Callable[..., Any]) -> None:
    run_python("""
        import os, time, mempool

        def tasks():
            return len(os.listdir("/proc/self/task"))

        def until(condition):
            end = time.monotonic() + 60
            while not condition():
                assert time.monotonic() < end
                time.sleep(0.001)

        pools = [mempool.BufferPool(idle_timeout=timeout) for timeout in (3600, None)]
        kept = [pool.acquire(5000) for pool in pools]
        assert tasks() == 1
        kept.pop().release()
        assert tasks() == 1, "of a pool that is never purged"
        kept.pop().release()
        assert tasks() == 2
        others = [mempool.BufferPool(idle_timeout=0.01) for _ in range(10)]
        for pool in others:
            pool.acquire(1 << 20).release()
        assert tasks() == 2, "one for all pools"
        until(lambda: not any(pool.stats().reserved for pool in others))
        assert tasks() == 2
        pools[0].trim()
        until(lambda: tasks() == 1)
        for pool in others:
            pool.acquire(1 << 20).release()
        until(lambda: tasks() == 1)
        assert not any(pool.stats().reserved for pool in others)
        pools[0].acquire(100).release()
        assert tasks() == 2
    """)


@linux
def test_thread_takes_no_signals_and_shows_nowhere(run_python: Callable[..., Any]) -> None:
    run_python("""
        import os, threading, mempool
        pool = mempool.BufferPool(idle_timeout=60)
        pool.acquire(5000).release()
        assert threading.active_count() == 1
        (ours,) = set(os.listdir("/proc/self/task")) - {str(os.getpid())}
        with open(f"/proc/self/task/{ours}/status") as file:
            blocked = next(int(line.split()[1], 16) for line in file if line.startswith("SigBlk"))
        assert blocked >> 1 & 1 and blocked >> 14 & 1, hex(blocked)  # SIGINT and SIGTERM are the main thread's
    """)


@linux
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("end", ["release", "drop", "view"])
def test_where_no_thread_can_start_nothing_stays(run_python: Callable[..., Any], end: str) -> None:
    """Nobody would purge it, so memory goes back at once."""
    run_python(
        """
        import os, resource, sys, threading, mempool
        pool = mempool.BufferPool(idle_timeout=0.2)
        buffers = [pool.acquire(n) for n in (5000, 1 << 20, 64 << 20)]  # nothing is idle beside them: there is no thread yet
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        os.setuid(65534)
        try:
            threading.Thread(target=int).start()
        except RuntimeError:
            pass
        else:
            raise SystemExit("a thread can start")
        views = [buffer[:] for buffer in buffers if sys.argv[1] == "view"]
        if sys.argv[1] == "drop":
            del buffers
        else:
            for buffer in buffers:
                buffer.release()
        views.clear()
        if sys.argv[1] != "reserve":
            assert pool.stats().idle == pool.stats().reserved == 0, pool.stats()
        else:
            pool.reserve(5000, 3)
            with pool.acquire(5000):
                pass
            assert pool.stats().idle == 0, pool.stats()
        """,
        end,
    )


@linux
def test_purge_needs_no_interpreter_lock(run_python: Callable[..., Any]) -> None:
    """A call that holds the lock for long does not keep memory from going back."""
    run_python("""
        import ctypes, sys, time, mempool
        usleep = ctypes.PyDLL(None).usleep  # with the lock
        account = mempool.Account("a")
        pool = mempool.BufferPool(idle_timeout=0.02, account=account)
        resident = lambda: int(open("/proc/self/statm").read().split()[1])
        sys.setswitchinterval(1000.0)  # nobody has it before this thread waits for something else
        with pool.acquire("8MiB") as buffer:
            buffer[:] = b"x" * (8 << 20)
            before = resident()
        end = time.monotonic() + 60
        while account.used and time.monotonic() < end:
            usleep(10_000)
        assert account.used == 0
        while resident() >= before - 1000:
            assert time.monotonic() < end
    """)


@linux
@pytest.mark.nosan
@pytest.mark.parametrize("how", ["idle", "trim", "close", "limit", "max_idle", "collected"])
def test_memory_leaves_the_process(run_python: Callable[..., Any], how: str) -> None:
    run_python(
        """
        import gc, sys, time, mempool

        def rss():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096

        how = sys.argv[1]
        options = {"idle": {"idle_timeout": 0.05}, "max_idle": {"max_idle": 0}}.get(how, {"idle_timeout": None})
        pool = mempool.BufferPool(**options)
        before = rss()
        leases = [pool.acquire(n, zero=True) for n in [40 << 20] + [1 << 20] * 20 + [100_000] * 100 + [4096] * 2000]
        for lease in leases:
            lease[::4096] = b"x" * len(lease[::4096])
        full = rss()
        assert full - before > 70 << 20, full - before
        for lease in leases:
            lease.release()
        del lease, leases
        if how == "trim":
            assert pool.trim() > 70 << 20
        elif how == "close":
            pool.close()
        elif how == "limit":
            pool.limit = 4096
        elif how == "collected":
            del pool
            gc.collect()
        end = time.monotonic() + 60
        while rss() - before > 8 << 20:
            assert time.monotonic() < end, (rss() - before) >> 20
            time.sleep(0.005)
        """,
        how,
    )


def test_purge_while_threads_lease() -> None:
    """Blocks that come and go while others are purged keep their content."""
    pool = mempool.BufferPool(idle_timeout=0.001)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for i in range(400):
            nbytes = (seed * 7919 + i * 104_729) % 200_000 + 1
            with pool.acquire(nbytes) as buffer:
                buffer[0], buffer[nbytes - 1] = seed, seed
                view = buffer[:]
            if view[0] != seed or view[nbytes - 1] != seed:
                wrong.append(i)
            del view

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    until(lambda: pool.stats().reserved == 0)
