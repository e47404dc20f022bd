"""`get_or_load` among tasks of an event loop, and with threads beside it."""

import asyncio
import inspect
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from loading_kit import (
    AsyncGate,
    Named,
    Oops,
    doubled,
    doubled_at_once,
    left_idle,
    until_waiting,
    wait_for_waiters,
    without_collector,
)
from mempool.cache import Cache, waiting
from support import DEADLINE, start, until

cache = pytest.fixture(left_idle)


# ---- one loop ----


def test_tasks_load_once(cache: Cache[Any, Any]) -> None:
    async def main() -> None:
        gate = AsyncGate()
        tasks = [asyncio.create_task(cache.get_or_load(21, gate)) for _ in range(50)]
        await until_waiting(cache, 49)
        gate.go.set()
        assert await asyncio.gather(*tasks) == [42] * 50
        assert gate.runs == 1
        assert await cache.get_or_load(21, gate) == 42
        assert gate.runs == 1

    asyncio.run(main())


def test_a_hit_is_awaited_too(cache: Cache[Any, Any]) -> None:
    cache["a"] = None
    found = cache.get_or_load("a", doubled)
    assert inspect.iscoroutine(found)
    assert asyncio.run(found) is None


def test_an_exception_reaches_all_tasks(cache: Cache[Any, Any]) -> None:
    async def main() -> None:
        error = Oops()
        gate = AsyncGate(error)
        tasks = [asyncio.create_task(cache.get_or_load(1, gate)) for _ in range(5)]
        await until_waiting(cache, 4)
        gate.go.set()
        assert all(end is error for end in await asyncio.gather(*tasks, return_exceptions=True))
        assert gate.runs == 1
        assert 1 not in cache

    asyncio.run(main())


def test_a_cancelled_leader_hands_over(cache: Cache[Any, Any]) -> None:
    async def main() -> None:
        gate = AsyncGate()
        tasks = [asyncio.create_task(cache.get_or_load(4, gate)) for _ in range(5)]
        await until_waiting(cache, 4)
        for leader in tasks[:2]:
            leader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leader
            await until_waiting(cache, 4 - 1 - tasks.index(leader))
        gate.go.set()
        assert await asyncio.gather(*tasks[2:]) == [8] * 3
        assert (gate.runs, gate.most) == (3, 1)

    asyncio.run(main())


def test_a_cancelled_waiter_leaves(cache: Cache[Any, Any]) -> None:
    async def main() -> None:
        gate = AsyncGate()
        tasks = [asyncio.create_task(cache.get_or_load(4, gate)) for _ in range(3)]
        await until_waiting(cache, 2)
        tasks[1].cancel()
        await until_waiting(cache, 1)
        gate.go.set()
        assert [await tasks[0], await tasks[2]] == [8, 8]

    asyncio.run(main())


def test_all_are_cancelled(cache: Cache[Any, Any]) -> None:
    async def main() -> None:
        gate = AsyncGate()
        tasks = [asyncio.create_task(cache.get_or_load(4, gate)) for _ in range(100)]
        await until_waiting(cache, 99)
        for task in tasks:
            task.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True)
        )
        assert gate.runs == 1

    asyncio.run(main())


def test_a_timeout_ends_a_load(cache: Cache[Any, Any]) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(cache.get_or_load(1, AsyncGate()), 0.001)
        assert await cache.get_or_load(1, doubled) == 2

    asyncio.run(main())


def test_nothing_of_a_failed_load_outlives_it(cache: Cache[Any, Any]) -> None:
    dead: list[weakref.ref[Any]] = []

    async def ask(gate: AsyncGate) -> None:
        key = Named("k")
        dead.append(weakref.ref(key))
        try:
            await cache.get_or_load(key, gate)
        except Oops as error:
            dead.append(weakref.ref(error))

    async def main() -> None:
        gate = AsyncGate(Oops)
        tasks = [asyncio.create_task(ask(gate)) for _ in range(3)]
        await until_waiting(cache, 2)
        gate.go.set()
        await asyncio.gather(*tasks)
        tasks.clear()
        await asyncio.sleep(0)
        assert [each() for each in dead] == [None] * 6

    with without_collector():
        asyncio.run(main())


def test_what_is_invalidated_during_a_load_is_not_kept(cache: Cache[Any, Any]) -> None:
    async def main() -> None:
        gate = AsyncGate("old")
        task = asyncio.create_task(cache.get_or_load("k", gate))
        await gate.entered.wait()
        cache.invalidate("k")
        gate.go.set()
        assert await task == "old"
        assert "k" not in cache

    asyncio.run(main())


# ---- who would wait for himself ----


def test_a_task_that_asks_for_the_key_that_it_loads(cache: Cache[Any, Any]) -> None:
    async def again(key: int) -> str:
        return str(await cache.get_or_load(key, doubled)) + " and outer"

    assert asyncio.run(cache.get_or_load(1, again)) == "2 and outer"
    assert cache[1] == 2


async def in_task(call: Callable[[], Awaitable[Any]]) -> Any:
    return await asyncio.ensure_future(call())


async def in_group(call: Callable[[], Any]) -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(call())
    return task.result()


async def in_thread(call: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(lambda: asyncio.run(call()))


@pytest.mark.parametrize("around", [in_task, in_group, in_thread])
def test_what_a_load_began_asks_for_its_key(cache: Cache[Any, Any], around: Callable[..., Any]) -> None:
    async def again(key: int) -> Any:
        return await around(lambda: cache.get_or_load(key, doubled))

    assert asyncio.run(cache.get_or_load(1, again)) == 2


def test_a_thread_that_a_load_began_asks_for_its_key(cache: Cache[Any, Any]) -> None:
    async def again(key: int) -> Any:
        return await asyncio.to_thread(cache.get_or_load, key, lambda key: key * 2)

    assert asyncio.run(cache.get_or_load(1, again)) == 2


def test_what_a_load_left_behind_waits_as_others_do(cache: Cache[Any, Any]) -> None:
    """A task that a load began and did not wait for is in no load any more once that has ended."""
    left: list[asyncio.Task[Any]] = []

    async def main() -> None:
        go, gate = asyncio.Event(), AsyncGate()

        async def later() -> Any:
            await go.wait()
            return await cache.get_or_load("k", gate)

        async def leaving(key: str) -> str:
            left.append(asyncio.create_task(later()))
            return "first"

        assert await cache.get_or_load("k", leaving) == "first"
        cache.invalidate("k")
        other = asyncio.create_task(cache.get_or_load("k", gate))
        await gate.entered.wait()
        go.set()
        await until_waiting(cache, 1)
        gate.go.set()
        assert (await other, await left[0], gate.runs) == ("kk", "kk", 1)

    asyncio.run(main())


def test_a_row_of_tasks_that_begin_each_other(cache: Cache[Any, Any]) -> None:
    """Each is begun by a load of the one before: none is in more than its own load, once those are over."""
    depths = []

    async def main() -> None:
        done = asyncio.Event()

        async def loader(key: int) -> int:
            if key:
                tasks.append(asyncio.create_task(later(key - 1)))
            else:
                done.set()
            depths.append(len(waiting._scopes.get()))
            return key

        async def later(key: int) -> None:
            await asyncio.sleep(0)
            await cache.get_or_load(key, loader)

        tasks = [asyncio.create_task(later(10))]
        await done.wait()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert depths == [1] * 11


@pytest.mark.parametrize("count", [2, 5])
def test_tasks_that_wait_in_a_circle(cache: Cache[Any, Any], count: int) -> None:
    async def main() -> None:
        loading = asyncio.Barrier(count)

        async def loader(key: int) -> Any:
            await loading.wait()
            return await asyncio.gather(cache.get_or_load((key + 1) % count, doubled))

        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*(cache.get_or_load(key, loader) for key in range(count)))

    asyncio.run(main())


def test_a_thread_and_a_task_in_a_circle(cache: Cache[Any, Any]) -> None:
    both = threading.Barrier(2)

    def plain(key: str) -> Any:
        both.wait(DEADLINE)
        return cache.get_or_load("task", lambda key: "made by the thread")

    async def loader(key: str) -> Any:
        await asyncio.to_thread(both.wait, DEADLINE)
        return await cache.get_or_load("thread", doubled)

    thread = start(cache.get_or_load, "thread", plain)
    task = start(asyncio.run, cache.get_or_load("task", loader))
    assert thread.result()
    assert task.result()


def test_a_loop_inside_a_load_in_a_circle(cache: Cache[Any, Any]) -> None:
    """A thread loads `a` in a loop of its own, a task of which waits for `b`, whose load in another thread asks for `a`."""
    asking = threading.Event()

    def first(key: str) -> Any:
        return asyncio.run(cache.get_or_load("b", doubled))

    def second(key: str) -> Any:
        assert asking.wait(DEADLINE)
        return cache.get_or_load("a", lambda key: "not waited for")

    loads = [start(cache.get_or_load, "b", second)]
    until(lambda: len(cache._loads.active) == 1)
    loads.append(start(cache.get_or_load, "a", first))
    wait_for_waiters(cache, 1)
    asking.set()
    assert [load.result() for load in loads] == ["not waited for"] * 2


def test_what_another_loop_is_asked_to_do_by_a_load(cache: Cache[Any, Any]) -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()

        def loader(key: str) -> Any:
            return asyncio.run_coroutine_threadsafe(cache.get_or_load(key, doubled), loop).result(DEADLINE)

        return await asyncio.to_thread(cache.get_or_load, "k", loader)

    assert asyncio.run(main()) == "kk"


# ---- a thread that sleeps stops its loop ----


def test_a_plain_call_in_a_loop_whose_task_loads_the_key(cache: Cache[Any, Any]) -> None:
    """To wait would stop the loop, and the load with it."""

    async def main() -> None:
        gate = AsyncGate("by the task")
        task = asyncio.create_task(cache.get_or_load("k", gate))
        await gate.entered.wait()
        assert cache.get_or_load("k", lambda key: "at once") == "at once"
        gate.go.set()
        assert await task == "by the task"
        assert cache["k"] == "at once"

    asyncio.run(main())


def test_a_plain_call_that_would_stop_the_loop_over_a_corner(cache: Cache[Any, Any]) -> None:
    """A thread loads `b`, for which it waits for `a`, which a task of this loop loads; this loop's thread asks for `b`."""

    async def main() -> None:
        gate = AsyncGate()
        task = asyncio.create_task(cache.get_or_load("a", gate))
        await gate.entered.wait()
        thread = start(cache.get_or_load, "b", lambda key: cache.get_or_load("a", doubled_at_once))
        await until_waiting(cache, 1)
        assert cache.get_or_load("b", lambda key: "at once") == "at once"
        gate.go.set()
        assert await task == "aa"
        assert await asyncio.to_thread(thread.result) == "aa"

    asyncio.run(main())


def test_a_thread_that_would_wait_for_a_loop_that_it_stopped(cache: Cache[Any, Any]) -> None:
    """The other way round: the loop's thread sleeps for `b` before the thread that loads `b` asks for `a`."""
    ask = threading.Event()

    def plain(key: str) -> Any:
        assert ask.wait(DEADLINE)
        return cache.get_or_load("a", lambda key: "not waited for")

    async def main() -> None:
        gate = AsyncGate()
        task = asyncio.create_task(cache.get_or_load("a", gate))
        await gate.entered.wait()
        thread = start(cache.get_or_load, "b", plain)
        until(lambda: len(cache._loads.active) == 2)
        watcher = start(lambda: (wait_for_waiters(cache, 1), ask.set()))
        assert cache.get_or_load("b", doubled_at_once) == "not waited for"
        gate.go.set()
        assert await task == "aa"
        assert thread.result() == "not waited for"
        watcher.result()

    asyncio.run(main())


def test_a_loop_inside_a_plain_load(cache: Cache[Any, Any]) -> None:
    """The load is below the loop, on the stack: it cannot go on before the loop has ended."""

    def plain(key: Any) -> Any:
        return asyncio.run(cache.get_or_load(key, doubled))

    assert cache.get_or_load(3, plain) == 6


def test_a_task_of_a_loop_that_stands_still(cache: Cache[Any, Any]) -> None:
    """Its load goes on if somebody runs that loop again; another loop of the same thread cannot wait for that."""
    first = asyncio.new_event_loop()
    gate = AsyncGate("first")
    task = first.create_task(cache.get_or_load("k", gate))
    first.run_until_complete(gate.entered.wait())
    assert asyncio.run(cache.get_or_load("k", doubled)) == "kk"
    assert cache.get_or_load("k", doubled_at_once) == "kk"
    cache.clear()
    assert cache.get_or_load("k", doubled_at_once) == "kk"
    gate.go.set()
    assert first.run_until_complete(task) == "first"
    first.close()
