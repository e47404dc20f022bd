"""`get_or_load` among several event loops and threads; which loaders are awaited."""

import asyncio
import gc
import inspect
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from loading_kit import (
    AsyncGate,
    Gate,
    Oops,
    doubled,
    doubled_at_once,
    left_idle,
    until_waiting,
    wait_for_waiters,
)
from mempool.cache import Cache
from mempool.cache.loading import is_async
from support import DEADLINE, start, together

cache = pytest.fixture(left_idle)


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
        await until_waiting(cache, 6)
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
        await until_waiting(cache, 1)
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


def mark(loader: Any) -> Any:
    if hasattr(inspect, "markcoroutinefunction"):
        return inspect.markcoroutinefunction(loader)
    loader._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
    return loader


mark(marked)


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


def test_two_objects_of_one_type_may_differ(cache: Cache[Any, Any]) -> None:
    """As compiled functions do, and the wrappers of a library: what one is says nothing of the next."""

    class Wrapper:
        def __init__(self, function: Any) -> None:
            self.function = function

        def __call__(self, key: Any) -> Any:
            return self.function(key)

    plain, awaited = Wrapper(doubled_at_once), mark(Wrapper(doubled))
    for number in range(2):
        assert cache.get_or_load(2 * number, plain) == 4 * number
        assert asyncio.run(cache.get_or_load(2 * number + 1, awaited)) == 4 * number + 2
