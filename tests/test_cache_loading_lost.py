"""Loads that nobody ends any more: leaders interrupted at any step, loops closed under a task, the end of the interpreter."""

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from types import FrameType
from typing import Any, ClassVar

import pytest

from loading_kit import (
    AsyncGate,
    Gate,
    check_idle,
    doubled,
    doubled_at_once,
    left_idle,
    until_waiting,
    wait_for_waiters,
    without_collector,
)
from mempool.cache import Cache, waiting
from mempool.cache._policies import Ticket, end_load
from support import DEADLINE, start, until


@pytest.fixture
def cache() -> Iterator[Cache[Any, Any]]:
    yield from left_idle()


class Stop(BaseException):
    """What the handler of a signal raises."""


# ---- interrupted ----


def interrupt_at(count: int, function: Callable[[], Any]) -> bool:
    """Run it, and raise as one of the functions of loads is called: where handlers of signals run. Whether it came to that."""
    left = count

    def tracer(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal left
        if frame.f_code.co_filename.endswith(("loading.py", "waiting.py")):
            left -= 1
            if left == 0:
                raise Stop

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        copy_context().run(function)
    except Stop:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.fixture
def nothing_is_collected() -> Iterator[None]:
    """A load that an earlier test left would be interrupted as it is collected."""
    with without_collector():
        yield


@pytest.mark.usefixtures("nothing_is_collected")
def test_a_leader_interrupted_anywhere_leaves_nothing(cache: Cache[Any, Any]) -> None:
    count = 1
    while interrupt_at(count, lambda: cache.get_or_load("k", lambda key: "first")):
        assert cache._loads.active == {}
        cache.pop("k", None)
        assert cache.get_or_load("k", lambda key: "second") == "second"
        cache.clear()
        count += 1
    assert count > 5


@pytest.mark.usefixtures("nothing_is_collected")
def test_a_leader_interrupted_anywhere_wakes_who_waits(cache: Cache[Any, Any]) -> None:
    count, reached = 0, True
    while reached:
        count += 1
        gate = Gate("first", "first")
        leader = start(interrupt_at, count, lambda: cache.get_or_load("k", gate))  # noqa: B023
        until(lambda: gate.entered.is_set() or not leader.is_alive())  # noqa: B023
        waiter = start(cache.get_or_load, "k", gate)
        if leader.is_alive():
            wait_for_waiters(cache, 1)
        gate.go.set()
        reached = leader.result()
        assert waiter.result() == "first"
        cache.clear()
    assert count > 5


def test_an_end_that_is_interrupted_is_brought_to_its_end(cache: Cache[Any, Any]) -> None:
    """To wake a task runs code of its loop."""
    gate = Gate("value")
    leader = start(interrupted_as_it_wakes, lambda: cache.get_or_load("k", gate))
    assert gate.entered.wait(DEADLINE)

    async def main() -> list[Any]:
        tasks = [asyncio.ensure_future(cache.get_or_load("k", doubled)) for _ in range(3)]
        await until_waiting(cache, 3)
        gate.go.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == ["value"] * 3
    with pytest.raises(Stop):
        leader.result()


def interrupted_as_it_wakes(function: Callable[[], Any]) -> Any:
    def tracer(frame: FrameType, event: str, arg: Any) -> None:
        if frame.f_code is waiting.TaskWaiter.wake.__code__:
            raise Stop

    sys.settrace(tracer)
    try:
        return function()
    finally:
        sys.settrace(None)


# ---- loops that are closed ----


def closed_loop_with_a_load(cache: Cache[Any, Any], key: Any) -> "asyncio.Task[Any]":
    """Return the task, which somebody keeps, of a load that will never go on."""
    loop, gate = asyncio.new_event_loop(), AsyncGate()
    task = loop.create_task(cache.get_or_load(key, gate))
    loop.run_until_complete(gate.entered.wait())
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    return task


def test_who_comes_when_a_loop_was_closed_loads(cache: Cache[Any, Any]) -> None:
    task = closed_loop_with_a_load(cache, 4)
    assert start(cache.get_or_load, 4, doubled_at_once).result() == 8
    check_idle(cache)
    task.get_coro().close()  # type: ignore[union-attr]
    assert cache[4] == 8


@pytest.mark.parametrize("awaited", [False, True])
def test_who_waits_when_a_loop_is_closed_loads(cache: Cache[Any, Any], awaited: bool) -> None:
    loop, gate = asyncio.new_event_loop(), AsyncGate()
    task = loop.create_task(cache.get_or_load(4, gate))
    loop.run_until_complete(gate.entered.wait())
    if awaited:
        threads = [start(lambda: asyncio.run(cache.get_or_load(4, doubled))) for _ in range(3)]
    else:
        threads = [start(cache.get_or_load, 4, doubled_at_once) for _ in range(3)]
    wait_for_waiters(cache, 3)
    loop.close()
    assert [thread.result() for thread in threads] == [8] * 3
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    check_idle(cache)


def test_a_refresh_whose_loop_was_closed_is_begun_again() -> None:
    now = 0.0
    cache: Cache[Any, Any] = Cache(10, ttl=10, clock=lambda: now)
    cache["k"] = "old"
    now = 9

    def refresh(gate: AsyncGate) -> None:
        async def main() -> None:
            assert await cache.get_or_load("k", gate, refresh_ahead=0.5) == "old"
            await gate.entered.wait()

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()

    for _ in range(2):
        refresh(AsyncGate())
        (task,) = cache._refresher._tasks  # those of closed loops are not kept for ever
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    now = 20
    assert start(cache.get_or_load, "k", lambda key: "mine").result() == "mine"
    check_idle(cache)


# ---- the end ----


def test_nobody_waits_for_daemon_threads_at_the_end(run_python: Callable[..., Any]) -> None:
    done = run_python(
        """
        import os, threading, time
        from mempool.cache import Cache
        cache = Cache(10)
        threading.Thread(target=cache.get_or_load, args=(1000, time.sleep), daemon=True).start()
        while not cache._loads.active:
            time.sleep(0.001)

        class Last:
            def __init__(self):
                self.cache, self.write = cache, os.write

            def __del__(self):
                self.write(1, b"%d" % self.cache.get_or_load(1000, abs))

        last = Last()
        """
    )
    assert (done.stdout, done.stderr) == ("1000", "")


# ---- at the end of the stack ----


def test_a_task_is_woken_where_there_is_no_stack_left_to_wake_it() -> None:
    class Waiter:
        threads: ClassVar[list[int]] = []

        def wake(self) -> None:
            self.threads.append(threading.get_ident())
            if len(self.threads) == 1:
                raise RecursionError("no stack left")

    load = Ticket("key")
    load.waiters[Waiter()] = None
    end_load(load, {}, None)
    until(lambda: len(Waiter.threads) == 2)
    assert Waiter.threads[0] == threading.get_ident() != Waiter.threads[1]
