"""`get_or_load` among tasks of one and several event loops, and with threads beside them."""

import asyncio
import gc
import inspect
import random
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from loading_kit import Gate, Named, Oops, check_idle, wait_for_waiters, without_collector
from mempool.cache import Cache
from mempool.cache.loading import is_async
from support import DEADLINE, start, together, until


@pytest.fixture
def cache() -> Iterator[Cache[Any, Any]]:
    cache: Cache[Any, Any] = Cache(100)
    yield cache
    check_idle(cache)


class AsyncGate:
    """A coroutine function that waits until it is let go."""

    def __init__(self, *ends: Any) -> None:
        self._ends = list(ends)
        self.entered, self.go = asyncio.Event(), asyncio.Event()
        self.runs = self.now = self.most = 0

    async def __call__(self, key: Any) -> Any:
        run, self.runs, self.now = self.runs, self.runs + 1, self.now + 1
        self.most = max(self.most, self.now)
        self.entered.set()
        try:
            await self.go.wait()
            end = self._ends[run] if run < len(self._ends) else key * 2
            if isinstance(end, BaseException) or end is Oops:
                raise end
            return end
        finally:
            self.now -= 1


async def waiting(cache: Cache[Any, Any], count: int) -> None:
    """Let other tasks run until so many wait."""
    async with asyncio.timeout(DEADLINE):
        while sum(len(load.waiters) for load in list(cache._loads.active)) != count:
            await asyncio.sleep(0)


async def doubled(key: Any) -> Any:
    await asyncio.sleep(0)
    return key * 2


# ---- one loop ----


def test_tasks_load_once(cache: Cache[Any, Any]) -> None:
    async def main() -> None:
        gate = AsyncGate()
        tasks = [asyncio.create_task(cache.get_or_load(21, gate)) for _ in range(50)]
        await waiting(cache, 49)
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
        await waiting(cache, 4)
        gate.go.set()
        assert all(end is error for end in await asyncio.gather(*tasks, return_exceptions=True))
        assert gate.runs == 1
        assert 1 not in cache

    asyncio.run(main())


def test_a_cancelled_leader_hands_over(cache: Cache[Any, Any]) -> None:
    async def main() -> None:
        gate = AsyncGate()
        tasks = [asyncio.create_task(cache.get_or_load(4, gate)) for _ in range(5)]
        await waiting(cache, 4)
        for leader in tasks[:2]:
            leader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leader
            await waiting(cache, 4 - 1 - tasks.index(leader))
        gate.go.set()
        assert await asyncio.gather(*tasks[2:]) == [8] * 3
        assert (gate.runs, gate.most) == (3, 1)

    asyncio.run(main())


def test_a_cancelled_waiter_leaves(cache: Cache[Any, Any]) -> None:
    async def main() -> None:
        gate = AsyncGate()
        tasks = [asyncio.create_task(cache.get_or_load(4, gate)) for _ in range(3)]
        await waiting(cache, 2)
        tasks[1].cancel()
        await waiting(cache, 1)
        gate.go.set()
        assert [await tasks[0], await tasks[2]] == [8, 8]

    asyncio.run(main())


def test_all_are_cancelled(cache: Cache[Any, Any]) -> None:
    async def main() -> None:
        gate = AsyncGate()
        tasks = [asyncio.create_task(cache.get_or_load(4, gate)) for _ in range(100)]
        await waiting(cache, 99)
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
        await waiting(cache, 2)
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
        await waiting(cache, 1)
        gate.go.set()
        assert (await other, await left[0], gate.runs) == ("kk", "kk", 1)

    asyncio.run(main())


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
        await waiting(cache, 1)
        assert cache.get_or_load("b", lambda key: "at once") == "at once"
        gate.go.set()
        assert await task == "aa"
        assert await asyncio.to_thread(thread.result) == "aa"

    asyncio.run(main())


def doubled_at_once(key: Any) -> Any:
    return key * 2


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


# ---- several loops, and threads ----


def test_loops_and_threads_load_once(cache: Cache[Any, Any]) -> None:
    gate = Gate()

    async def waited(key: Any) -> Any:
        return await asyncio.to_thread(gate, key)

    async def main() -> list[Any]:
        return await asyncio.gather(*(cache.get_or_load(21, waited) for _ in range(5)))

    threads = [start(lambda: [cache.get_or_load(21, gate)]) for _ in range(3)]
    threads += [start(lambda: asyncio.run(main())) for _ in range(3)]
    wait_for_waiters(cache, 17)
    gate.go.set()
    assert [value for thread in threads for value in thread.result()] == [42] * 18
    assert gate.runs == 1


def test_threads_wait_for_a_task_and_tasks_for_a_thread(cache: Cache[Any, Any]) -> None:
    async def main() -> None:
        gate, plain = AsyncGate(), Gate()
        task = asyncio.create_task(cache.get_or_load("task", gate))
        await gate.entered.wait()
        threads = [start(cache.get_or_load, "task", plain) for _ in range(3)]
        threads.append(start(cache.get_or_load, "thread", plain))
        await asyncio.to_thread(plain.entered.wait, DEADLINE)
        tasks = [asyncio.create_task(cache.get_or_load("thread", gate)) for _ in range(3)]
        await waiting(cache, 6)
        gate.go.set()
        plain.go.set()
        assert await asyncio.gather(task, *tasks) == ["tasktask", *["threadthread"] * 3]
        results = [await asyncio.to_thread(thread.result) for thread in threads]
        assert results == [*["tasktask"] * 3, "threadthread"]
        assert (gate.runs, plain.runs) == (1, 1)

    asyncio.run(main())


def test_a_thread_takes_over_from_a_cancelled_task(cache: Cache[Any, Any]) -> None:
    async def main() -> None:
        gate = AsyncGate()
        task = asyncio.create_task(cache.get_or_load(4, gate))
        await gate.entered.wait()
        thread = start(cache.get_or_load, 4, lambda key: "thread's")
        await waiting(cache, 1)
        task.cancel()
        assert await asyncio.to_thread(thread.result) == "thread's"

    asyncio.run(main())


def test_a_loop_that_closed_while_its_task_waited(cache: Cache[Any, Any]) -> None:
    """Nobody is there to be woken; who loads does not mind."""
    plain = Gate()
    thread = start(cache.get_or_load, 4, plain)
    assert plain.entered.wait(DEADLINE)
    loop = asyncio.new_event_loop()
    task = loop.create_task(cache.get_or_load(4, doubled))
    loop.run_until_complete(asyncio.sleep(0))
    wait_for_waiters(cache, 1)
    loop.close()
    plain.go.set()
    assert thread.result() == 8
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task


def test_a_loop_that_was_thrown_away_with_a_load(cache: Cache[Any, Any]) -> None:
    """A thread that waits for it goes on when the task is collected."""
    loop = asyncio.new_event_loop()
    gate = AsyncGate()
    task = loop.create_task(cache.get_or_load(4, gate))
    loop.run_until_complete(gate.entered.wait())
    thread = start(cache.get_or_load, 4, doubled_at_once)
    wait_for_waiters(cache, 1)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    del task, loop, gate
    gc.collect()
    assert thread.result() == 8


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop has no Windows")
def test_another_kind_of_loop(cache: Cache[Any, Any]) -> None:
    uvloop = pytest.importorskip("uvloop")
    gate = Gate()

    async def main() -> Any:
        return await asyncio.gather(*(cache.get_or_load(4, partial(asyncio.to_thread, gate)) for _ in range(5)))

    def run() -> Any:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())

    threads = [start(run) for _ in range(2)]
    wait_for_waiters(cache, 9)
    gate.go.set()
    assert [thread.result() for thread in threads] == [[8] * 5] * 2
    assert gate.runs == 1


class Disorder:
    """Asks for random keys by loaders that ask for others, fail, and are cancelled."""

    def __init__(self, cache: Cache[Any, Any], seed: int) -> None:
        self.cache, self.dice = cache, random.Random(seed)

    def key(self) -> int:
        return self.dice.randrange(6)

    def deeper(self, depth: int) -> bool:
        return depth < 2 and self.dice.random() < 0.5

    def plain(self, key: int, depth: int = 0) -> int:
        if self.deeper(depth):
            self.cache.get_or_load(self.key(), partial(self.plain, depth=depth + 1))
        if self.dice.random() < 0.1:
            raise Oops
        return key

    async def awaited(self, key: int, depth: int = 0) -> int:
        await asyncio.sleep(0)
        if self.deeper(depth):
            await self.cache.get_or_load(self.key(), partial(self.awaited, depth=depth + 1))
        return self.plain(key, depth)

    def in_thread(self) -> None:
        for _ in range(300):
            key = self.key()
            with suppress(Oops):
                assert self.cache.get_or_load(key, self.plain) == key
            self.cache.pop(self.key(), None)

    async def in_loop(self) -> None:
        for _ in range(60):
            keys = [self.key() for _ in range(5)]
            asked = [asyncio.create_task(self.cache.get_or_load(key, self.awaited)) for key in keys]
            await asyncio.sleep(0)
            asked[0].cancel()
            ends = await asyncio.gather(*asked, return_exceptions=True)
            for key, end in zip(keys, ends, strict=True):
                assert end == key or isinstance(end, (Oops, asyncio.CancelledError)), end
            self.cache.invalidate(keys[0])


def test_loops_and_threads_without_order(cache: Cache[Any, Any]) -> None:
    """All end, and nothing is left."""
    works = [Disorder(cache, seed) for seed in range(6)]
    threads: list[Callable[[], Any]] = [work.in_thread for work in works[:3]]
    together(threads + [lambda work=work: asyncio.run(work.in_loop()) for work in works[3:]])  # type: ignore[misc]


# ---- which loaders are awaited ----


class Service:
    async def method(self, key: Any) -> Any:
        return key

    @classmethod
    async def of_class(cls, key: Any) -> Any:
        return key

    def plain(self, key: Any) -> Any:
        return key

    async def __call__(self, key: Any) -> Any:
        return key


class Plain:
    def __call__(self, key: Any) -> Any:
        return key


def marked(key: Any) -> Any:
    return doubled(key)


if hasattr(inspect, "markcoroutinefunction"):
    inspect.markcoroutinefunction(marked)
else:
    marked._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]


def test_coroutine_functions_of_all_kinds(cache: Cache[Any, Any]) -> None:
    from unittest.mock import AsyncMock

    service = Service()
    awaited: list[Any] = [doubled, service.method, Service.of_class, service, partial(doubled), partial(service.method)]
    awaited += [marked, AsyncMock(return_value=1), partial(partial(service))]
    for number, loader in enumerate(awaited):
        assert is_async(loader), loader
        for _ in range(2):
            found = cache.get_or_load(number, loader)
            assert inspect.iscoroutine(found), loader
            asyncio.run(found)
    plain: list[Any] = [service.plain, str, len, {}.get, partial(max, 1), Plain(), lambda key: key]
    for loader in plain:
        assert not is_async(loader), loader
    for loader in [service.plain, str, repr, {}.get, partial(max, 1), Plain(), lambda key: key]:
        cache.clear()
        for _ in range(2):
            assert cache.get_or_load(7, loader) == loader(7), loader
