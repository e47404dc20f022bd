"""What is raised while the package runs Python of its own, mostly by signal handlers, reaches the program."""

import asyncio
import ctypes
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mempool
from mempool import Account, BufferPool, _reclaim
from mempool.accounting import gc_pressure, register_reclaimer
from mempool.accounting.gc_bridge import Bridge
from support import MIB, start, start_waiter


class AlarmError(Exception):
    """What a signal handler raises."""


@pytest.fixture
def alarm() -> Iterator[Callable[[], None]]:
    def handler(number: int, frame: object) -> None:
        raise AlarmError("alarm")

    before = signal.signal(signal.SIGINT, handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def unraisable(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: seen.append(report.exc_value))
    yield seen
    gc_pressure(False)


def some_steps() -> None:
    for _ in range(10_000):
        pass


def on_growth(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> None:
    monkeypatch.setattr(Bridge, "on_growth", lambda self, grown: call())
    gc_pressure(threshold=MIB)


def test_a_signal_in_a_collection_arrives_when_the_charge_is_done(
    alarm: Callable[[], None], monkeypatch: pytest.MonkeyPatch, unraisable: list[Any]
) -> None:
    account = Account("a")
    on_growth(monkeypatch, alarm)
    with pytest.raises(AlarmError, match="alarm"):
        account.charge(4 * MIB)
        some_steps()
    assert account.used == 4 * MIB
    assert unraisable == []
    account.discharge(4 * MIB)


def test_exit_in_a_collection_leaves_through_finally(run_python: Callable[..., Any]) -> None:
    done = run_python(
        """
        import signal, sys
        from mempool.accounting import Account, gc_pressure
        from mempool.accounting.gc_bridge import Bridge

        signal.signal(signal.SIGINT, lambda *_: sys.exit(3))
        Bridge.on_growth = lambda self, grown: signal.raise_signal(signal.SIGINT)
        gc_pressure(threshold="1MiB")
        try:
            Account("a").charge("4MiB")
            for _ in range(10_000):
                pass
        finally:
            print("finally")
        """,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "finally\n", "")


def test_what_another_thread_was_sent_arrives_there(monkeypatch: pytest.MonkeyPatch, unraisable: list[Any]) -> None:
    account = Account("a")

    def send() -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.get_ident()), ctypes.py_object(AlarmError))
        some_steps()

    def work() -> None:
        with pytest.raises(AlarmError):
            account.charge(4 * MIB)
            some_steps()

    on_growth(monkeypatch, send)
    start(work).result()
    assert account.used == 4 * MIB
    assert unraisable == []
    account.discharge(4 * MIB)


def test_an_error_of_the_hook_itself_is_unraisable_in_other_threads(
    monkeypatch: pytest.MonkeyPatch, unraisable: list[Any]
) -> None:
    account = Account("a")

    def broken() -> None:
        raise ValueError("of the hook")

    def work() -> None:
        account.charge(4 * MIB)
        some_steps()

    on_growth(monkeypatch, broken)
    start(work).result()
    assert [str(error) for error in unraisable] == ["of the hook"]
    account.discharge(4 * MIB)


def exhaust(account: Account) -> None:
    pool = BufferPool(limit=MIB)
    with pool.acquire(MIB):
        pool.acquire(MIB)


TAKERS: dict[str, Callable[[Account], object]] = {
    "account": lambda account: account.charge(MIB),
    "pool": lambda account: BufferPool(account=account).acquire(MIB),
    "pool's own": exhaust,
    "slab": lambda account: mempool.SlabAllocator(MIB, account=account).alloc(),
    "ring": lambda account: mempool.RingBuffer(MIB, account=account),
}


@pytest.mark.parametrize("name", TAKERS)
def test_a_signal_before_a_limits_error_goes_first(
    name: str, alarm: Callable[[], None], monkeypatch: pytest.MonkeyPatch, unraisable: list[Any]
) -> None:
    account = Account("tight", limit=4 * MIB)
    account.charge(4 * MIB)
    monkeypatch.setattr(_reclaim.Collector, "collect", lambda *_: alarm())
    with pytest.raises(AlarmError, match="alarm"):
        TAKERS[name](account)
    assert unraisable == []
    assert account.used == 4 * MIB
    account.discharge(4 * MIB)


def test_a_signal_while_a_waiter_is_woken_wakes_it_and_arrives(unraisable: list[Any]) -> None:
    pool = BufferPool(limit=MIB)
    kept, calls = pool.acquire(MIB), []

    async def wait() -> None:
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe

        def interrupted(*args: Any) -> Any:
            calls.append(args)
            if len(calls) == 1:
                raise AlarmError("alarm")
            return wake(*args)

        loop.call_soon_threadsafe = interrupted  # type: ignore[method-assign]
        async with pool.acquire_async(MIB):
            pass

    waiter = start_waiter(pool, asyncio.run, wait())
    with pytest.raises(AlarmError, match="alarm"):
        kept.release()
        some_steps()
    waiter.result()
    assert len(calls) >= 2
    assert unraisable == []


class AwayError(Exception):
    """The log server is."""


def test_a_log_that_fails_does_not_end_the_asking(unraisable: list[Any]) -> None:
    class Away(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise AwayError

    def broken(needed: int) -> int:
        raise RuntimeError("no idea how")

    account = Account("a", limit=100)
    account.charge(100)

    def helpful(needed: int) -> int:
        account.discharge(needed)
        return needed

    handler, log = Away(), logging.getLogger("mempool.accounting")
    log.addHandler(handler)
    registrations = [register_reclaimer(broken, priority=1), register_reclaimer(helpful)]
    try:
        account.charge(50)
    finally:
        log.removeHandler(handler)
        for one in registrations:
            one.cancel()
    (error,) = unraisable
    assert isinstance(error, AwayError)
    assert registrations[0].errors == 1
    account.discharge(100)


def test_a_method_that_cannot_be_bound_does_not_end_the_asking() -> None:
    class Unbound:
        def __get__(self, instance: object, owner: object = None) -> Any:
            raise AwayError

    class Owner:
        def method(self, needed: int) -> int:
            return 0

    owner = Owner()
    account = Account("a", limit=100)
    account.charge(100)
    registrations = [
        register_reclaimer(owner.method, priority=1),
        register_reclaimer(lambda needed: account.discharge(needed) or needed),  # type: ignore[func-returns-value]
    ]
    registrations[0]._function = Unbound()
    account.charge(50)
    assert registrations[0].errors == 1
    for one in registrations:
        one.cancel()
    account.discharge(100)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork")
def test_a_thread_of_a_child_is_not_taken_for_one_of_the_parent(run_python: Callable[..., Any]) -> None:
    done = run_python(
        """
        import os, threading, warnings
        from mempool.accounting import Account, register_reclaimer

        warnings.simplefilter("ignore")
        a = Account("a", limit=100)
        a.charge(100)
        inside, go = threading.Event(), threading.Event()

        def free(needed):
            if threading.current_thread().name == "first":
                inside.set()
                go.wait(30)
            a.discharge(needed)
            return needed

        register_reclaimer(free)
        first = threading.Thread(target=a.charge, args=(5,), name="first")
        first.start()
        inside.wait(30)
        child = os.fork()
        if child == 0:
            same, done = [], []

            def work():
                same.append(threading.get_ident() == first.ident)
                a.charge(5)
                done.append(True)

            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
                thread.join()
            os._exit(0 if len(done) == 3 else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        go.set()
        first.join()
        """
    )
    assert done.stdout.split() == ["0"]
