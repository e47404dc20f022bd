"""`adaptive_batches` over asynchronous iterables: the same promises, and what a cancelled task must not lose."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_kit import FakeMonitor, as_async, flat, interrupted, run, run_async
from mempool.pressure import AsyncBatches, Batches, Level, adaptive_batches

NORMAL, ELEVATED, HIGH, CRITICAL = Level


async def every(batches: AsyncBatches[Any]) -> list[list[Any]]:
    return [batch async for batch in batches]


def test_all_items_in_order() -> None:
    found = asyncio.run(every(run_async(as_async(range(25)))))
    assert [len(batch) for batch in found] == [10, 10, 5]
    assert flat(found) == list(range(25))


def test_the_kind_of_iterable_decides() -> None:
    class Both:
        def __iter__(self) -> Any:
            return iter([1, 2])

        def __aiter__(self) -> Any:
            return as_async([1, 2])

    monitor: Any = FakeMonitor()
    assert isinstance(adaptive_batches(as_async([]), monitor=monitor, cleanup=False), AsyncBatches)
    assert isinstance(adaptive_batches([], monitor=monitor, cleanup=False), Batches)
    assert isinstance(adaptive_batches(Both(), monitor=monitor, cleanup=False), Batches)


def test_the_size_follows_the_level() -> None:
    monitor = FakeMonitor([NORMAL, HIGH, CRITICAL, NORMAL])
    found = asyncio.run(every(run_async(as_async(range(40)), 20, monitor)))
    assert [len(batch) for batch in found] == [20, 10, 1, 2, 3, 4]


def test_waiting_is_bounded_over_the_whole_run() -> None:
    monitor = FakeMonitor([HIGH] * 100)
    batches = run_async(as_async(range(40)), 8, monitor, max_wait=1.5)
    assert flat(asyncio.run(every(batches))) == list(range(40))
    assert (monitor.timeouts, batches.waited) == ([1.5], 1.5)


@pytest.mark.parametrize("items", [0, 10, 20])
def test_where_no_batch_comes_nothing_waits_or_cleans_up(items: int) -> None:
    async def main() -> None:
        cleaned: list[str] = []
        monitor = FakeMonitor()
        batches = run_async(as_async(range(items)), 10, monitor, cleanup=cleaned.append, max_wait=1.5)
        for _ in range(items // 10):
            await anext(batches)
        monitor.level = CRITICAL
        monitor.running = True
        assert await every(batches) == []
        assert (monitor.timeouts, cleaned, batches.waited) == ([], [], 0.0)

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_ctrl_c_after_any_call_neither_loses_nor_stops_anything() -> None:
    class Counting:
        """Never suspends, so that no loop is needed."""

        def __init__(self) -> None:
            self.items = iter(range(25))

        def __aiter__(self) -> "Counting":
            return self

        async def __anext__(self) -> int:
            for item in self.items:
                return item
            raise StopAsyncIteration

    def produce(batches: AsyncBatches[Any]) -> list[Any]:
        step = batches.__anext__()
        try:
            step.send(None)  # type: ignore[attr-defined]
        except StopIteration as done:
            return cast("list[Any]", done.value)
        raise AssertionError("it waited")

    came, step = True, 0
    while came:
        batches = run_async(Counting(), 10, FakeMonitor([NORMAL, HIGH]), max_wait=1.0)
        found, came = interrupted(step, lambda batches=batches: produce(batches))
        assert found == list(range(25)), step
        step += 1
    assert step > 50


def test_a_cancelled_pull_keeps_what_was_pulled() -> None:
    class Slow:
        """Gives two items, then blocks until it is allowed to go on; it survives being cancelled."""

        def __init__(self) -> None:
            self.count, self.allowed, self.blocked = 0, asyncio.Event(), asyncio.Event()

        def __aiter__(self) -> "Slow":
            return self

        async def __anext__(self) -> int:
            if self.count == 2:
                self.blocked.set()
                await self.allowed.wait()
            if self.count == 15:
                raise StopAsyncIteration
            self.count += 1
            return self.count

    async def main() -> None:
        slow = Slow()
        batches = run_async(slow)
        for _ in range(3):
            slow.blocked.clear()
            task = asyncio.ensure_future(anext(batches))
            await slow.blocked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        slow.allowed.set()
        assert flat(await every(batches)) == list(range(1, 16))

    asyncio.run(main())


def test_a_cancelled_wait_loses_nothing_and_counts() -> None:
    async def main() -> None:
        waiting = asyncio.Event()

        class Never(FakeMonitor):
            async def relief(self, level: Level = HIGH, timeout: float | None = None) -> bool:
                waiting.set()
                self.clock.now += 0.4
                await asyncio.Event().wait()
                return True

        monitor = Never([HIGH])
        batches = run_async(as_async(range(5)), monitor=monitor, max_wait=1.0)
        task = asyncio.ensure_future(anext(batches))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert batches.waited == pytest.approx(0.4)
        monitor.level = NORMAL
        assert flat(await every(batches)) == list(range(5))

    asyncio.run(main())


@pytest.mark.parametrize("number", [0, 1, 9, 10, 11])
def test_what_a_source_raises_comes_after_its_items(number: int) -> None:
    async def source() -> AsyncIterator[int]:
        for item in range(number):
            yield item
        raise OSError("broken")

    async def main() -> None:
        batches = run_async(source())
        found: list[Any] = []
        with pytest.raises(OSError, match="broken"):
            async for batch in batches:
                found += batch
        assert found == list(range(number))
        assert await every(batches) == []

    asyncio.run(main())


def test_the_end_of_another_is_no_end() -> None:
    def weigher(item: int) -> int:
        raise StopAsyncIteration

    with pytest.raises(RuntimeError, match="StopAsyncIteration"):
        asyncio.run(every(run_async(as_async(range(5)), weigher=weigher)))


def test_one_at_a_time() -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def source() -> AsyncIterator[int]:
            yield 1
            await go_on.wait()
            yield 2

        batches = run_async(source())
        first = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already"):
            await anext(batches)
        with pytest.raises(RuntimeError, match="closed"):
            await batches.aclose()
        go_on.set()
        assert await first == [1, 2]
        assert await every(batches) == []

    asyncio.run(main())


def test_closing_closes_the_source() -> None:
    closed = []

    async def source() -> AsyncIterator[int]:
        try:
            for item in range(100):
                yield item
        finally:
            closed.append(True)

    async def main() -> None:
        batches = run_async(source(), weigher=int, max_bytes=20)
        assert await anext(batches) == [0, 1, 2, 3, 4, 5]
        await batches.aclose()
        assert closed == [True]
        assert await every(batches) == []
        await batches.aclose()
        await run_async(Bare()).aclose()

    class Bare:
        def __aiter__(self) -> "Bare":
            return self

        async def __anext__(self) -> int:
            raise StopAsyncIteration

    asyncio.run(main())


def test_what_takes_long_runs_beside_the_loop() -> None:
    threads: list[tuple[str, bool]] = []

    def cleanup(mode: str) -> None:
        threads.append((mode, threading.current_thread() is threading.main_thread()))

    asyncio.run(every(run_async(as_async(range(30)), 10, FakeMonitor([HIGH] * 4 + [CRITICAL]), cleanup=cleanup)))
    assert threads == [("light", True), ("standard", True), ("aggressive", False)]


@given(
    st.lists(st.integers(0, 50), max_size=80),
    st.lists(st.sampled_from(list(Level)), max_size=30),
    st.integers(1, 12),
    st.one_of(st.none(), st.integers(0, 100)),
    st.booleans(),
)
def test_it_cuts_as_the_other_does(
    items: list[int], levels: list[Level], size: int, max_bytes: int | None, relieves: bool
) -> None:
    weigher = None if max_bytes is None else int
    monitors = [FakeMonitor(levels, relieves=relieves) for _ in range(2)]
    options: dict[str, Any] = {"weigher": weigher, "max_bytes": max_bytes, "max_wait": 1.0}
    expected = list(run(iter(items), size, monitors[0], **options))
    assert asyncio.run(every(run_async(as_async(items), size, monitors[1], **options))) == expected
    assert flat(expected) == items
