"""Snapshots in a ring, what changed between them, and what a block or a call did."""

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mempool
from mempool.accounting import MemoryDelta, Snapshot, Tracker, measure, take_snapshot
from support import DEADLINE, KIB, MIB, Strange, together


@pytest.fixture(autouse=True)
def nothing_else_goes() -> Iterator[None]:
    """Snapshots are of the whole process: garbage and idle memory that other tests left go before, not meanwhile."""
    mempool.cleanup("standard", background=False)
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def pool() -> mempool.BufferPool:
    return mempool.BufferPool(idle_timeout=None)


def scripted(rss: list[int]) -> Callable[[str | None, Callable[[], float]], Snapshot]:
    """Readings that were written down before; one a second."""
    feed = iter(enumerate(rss))

    def read(label: str | None, clock: Callable[[], float]) -> Snapshot:
        second, nbytes = next(feed)
        return Snapshot(label, float(second), nbytes, 0, 0, None, 0)

    return read


def filled(rss: list[int], **options: Any) -> Tracker:
    tracker = Tracker(read=scripted(rss), **options)
    for number in range(len(rss)):
        tracker.snapshot(str(number))
    return tracker


def test_a_snapshot_tells_external_from_idle(pool: mempool.BufferPool) -> None:
    before = take_snapshot("before")
    pool.reserve("1MiB", 2)
    kept = pool.acquire("1MiB")
    after = take_snapshot("after")
    assert (after.external - before.external, after.idle - before.idle, after.lent - before.lent) == (2 * MIB, MIB, MIB)
    assert after.rss > MIB
    assert after.time >= before.time
    kept.release()


def test_traced_is_none_unless_tracing() -> None:
    assert take_snapshot().traced is None
    tracemalloc.start()
    try:
        before = take_snapshot()
        kept = bytearray(MIB)
        after = take_snapshot()
    finally:
        tracemalloc.stop()
    delta = MemoryDelta(None, before, after)
    assert delta.traced is not None
    assert abs(delta.traced - MIB) < 64 * KIB
    assert MemoryDelta(None, before, take_snapshot()).traced is None
    del kept


def test_the_ring_drops_the_oldest() -> None:
    tracker = filled([1, 2, 3, 4, 5], capacity=3)
    assert [kept.label for kept in tracker.snapshots] == ["2", "3", "4"]
    assert (len(tracker), tracker.capacity, tracker.stats().taken, tracker.stats().kept) == (3, 3, 5, 3)
    with pytest.raises(KeyError, match="'0'"):
        tracker.delta("0")


def test_deltas_by_label_position_and_snapshot() -> None:
    tracker = filled([10, 20, 50])
    last = tracker.snapshots[-1]
    assert [delta.rss for delta in (tracker.delta(), tracker.delta("0", "2"), tracker.delta(0, 2))] == [40, 40, 40]
    assert (tracker.delta("1", last).rss, tracker.delta(-2).rss, tracker.delta("2", "0").rss) == (30, 30, -40)
    assert (tracker.delta().seconds, tracker.delta().label) == (2.0, "2")


def test_the_newest_of_a_label_counts() -> None:
    tracker = Tracker(read=scripted([1, 2, 4]))
    for label in ("a", "b", "a"):
        tracker.snapshot(label)
    assert tracker.delta("b", "a").rss == 2


@pytest.mark.parametrize(
    ("wanted", "error"), [("?", KeyError), (9, IndexError), (-4, IndexError), (1.5, TypeError), (True, TypeError)]
)
def test_what_is_not_there_is_named(wanted: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=str(wanted).replace("?", r"\?")):
        filled([1, 2, 3]).delta(wanted)


def test_statistics() -> None:
    stats = filled([10, 20, 30, 40, 500]).stats()
    assert stats.rss is not None
    assert (stats.rss.first, stats.rss.last, stats.rss.low, stats.rss.high, stats.rss.mean) == (10, 500, 10, 500, 120.0)
    assert stats.rss.per_second == pytest.approx(10.0, rel=0.6)
    assert (stats.seconds, stats.traced) == (4.0, None)
    empty = Tracker().stats()
    assert (empty.kept, empty.seconds, empty.rss) == (0, 0.0, None)


def test_patterns_of_what_is_kept() -> None:
    assert filled([at * MIB for at in range(30)]).pattern() == "leak"
    assert filled([at % 2 * 9 * MIB for at in range(30)]).pattern() == "thrashing"
    assert filled([at * MIB for at in range(30)]).pattern(noise="1GiB") == "steady"
    assert filled([at * MIB for at in range(30)]).pattern("lent") == "steady"
    assert filled([1, 2]).pattern("traced") == "steady"
    with pytest.raises(ValueError, match="'heap'"):
        Tracker().pattern("heap")  # type: ignore[arg-type]


def test_blocks_have_a_noise_and_a_unit_of_their_own() -> None:
    feed = iter(range(10))
    read = lambda label, clock: Snapshot(label, at := float(next(feed)), 0, 0, 0, None, int(at * 5000))  # noqa: E731
    tracker = Tracker(read=read)
    for _ in range(10):
        tracker.snapshot()
    found = tracker.pattern("blocks")
    assert (found, found.evidence) == ("leak", "grows by 5,000 blocks a second, 45,000 blocks over 10 readings")
    assert tracker.pattern("blocks", noise=50_000) == tracker.pattern("mapped") == "steady"
    with pytest.raises(TypeError, match="'1MiB'"):
        tracker.pattern("blocks", noise="1MiB")


def test_lent_means_the_same_everywhere(pool: mempool.BufferPool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(MIB))
    before = mempool.memory_usage().lent
    with measure() as measured:
        array = mempool.open_array(path, dtype="u1")
        kept = pool.acquire(MIB)
    assert measured.delta is not None
    delta = measured.delta
    assert (delta.lent, delta.mapped, delta.external) == (MIB, MIB, 2 * MIB)
    assert mempool.memory_usage().lent - before == MIB
    array.close()
    kept.release()


def test_the_heap_is_told_from_what_is_lent_if_asked_for() -> None:
    assert take_snapshot(heap=True).python_heap is None
    tracemalloc.start()
    try:
        before = take_snapshot(heap=True)
        lent, kept = mempool.acquire(MIB), bytearray(MIB)
        delta = MemoryDelta(None, before, take_snapshot(heap=True))
        assert take_snapshot().python_heap is None
    finally:
        tracemalloc.stop()
    assert delta.python_heap is not None
    assert delta.traced is not None
    assert abs(delta.python_heap - MIB) < 64 * KIB
    assert abs(delta.traced - 2 * MIB) < 64 * KIB
    lent.release()
    del kept


@pytest.mark.parametrize(
    ("capacity", "error"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError), (None, TypeError), (2**70, OverflowError)],
)
def test_capacities_that_make_no_sense(capacity: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=str(capacity)):
        Tracker(capacity)


def test_a_failed_reading_keeps_nothing() -> None:
    tracker = Tracker(read=scripted([]))
    with pytest.raises(StopIteration):
        tracker.snapshot()
    with pytest.raises(TypeError, match=r"Strange\(\)"):
        tracker.snapshot(Strange())  # type: ignore[arg-type]
    assert (len(tracker), tracker.stats().taken) == (0, 0)


def test_snapshots_of_many_threads_stand_in_order_of_time() -> None:
    tracker = Tracker(capacity=200)

    def take() -> None:
        for _ in range(50):
            tracker.snapshot()
            tracker.stats()

    together([take] * 8)
    times = [kept.time for kept in tracker.snapshots]
    assert times == sorted(times)
    assert (len(times), tracker.stats().taken) == (200, 400)


# ---- measure ----


def test_a_block(pool: mempool.BufferPool) -> None:
    with measure("load") as measured:
        assert measured.delta is None
        kept = pool.acquire(MIB)
    assert measured.delta is not None
    assert (measured.delta.label, measured.delta.lent, measured.delta.external) == ("load", MIB, MIB)
    assert "lent +1,048,576" in str(measured.delta)
    kept.release()


def test_a_block_that_raises_is_measured(pool: mempool.BufferPool) -> None:
    kept = []
    measured = measure("bad")
    with pytest.raises(ZeroDivisionError), measured:
        kept.append(pool.acquire(MIB))
        _ = 1 // 0
    assert measured.delta is not None
    assert measured.delta.lent == MIB


def raising(delta: MemoryDelta) -> None:
    raise ZeroDivisionError("report")


def test_the_error_of_the_work_goes_before_that_of_the_report(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyError, match="work"), measure("x", report=raising):
        raise KeyError("work")
    assert "ZeroDivisionError: report" in caplog.text
    with pytest.raises(ZeroDivisionError), measure("x", report=raising):
        pass


def test_one_measure_serves_blocks_one_after_another() -> None:
    measured = measure("x")
    with measured, pytest.raises(RuntimeError, match="measuring already"):
        measured.__enter__()
    with measured:
        pass


def test_functions_coroutines_and_generators(pool: mempool.BufferPool) -> None:
    deltas: list[MemoryDelta] = []
    kept: list[mempool.Buffer] = []

    @measure(report=deltas.append)
    def function(nbytes: int) -> int:
        kept.append(pool.acquire(nbytes))
        return nbytes

    @measure("named", report=deltas.append)
    async def coroutine(nbytes: int) -> int:
        await asyncio.sleep(0)
        return function(nbytes)

    @measure(report=deltas.append)
    def generator(nbytes: int) -> Iterator[int]:
        yield function(nbytes)

    assert function(MIB) == asyncio.run(coroutine(MIB)) == next(iter([*generator(MIB)])) == MIB
    assert [(delta.label, delta.lent) for delta in deltas] == [
        ("function", MIB),
        ("function", MIB),
        ("named", MIB),
        ("function", MIB),
        ("generator", MIB),
    ]
    assert function.__name__ == "function"
    assert function.measured.delta is deltas[3]  # type: ignore[attr-defined]


def test_calls_that_overlap_and_recursion(pool: mempool.BufferPool) -> None:
    deltas: list[MemoryDelta] = []
    barrier = threading.Barrier(4)

    @measure("deep", report=deltas.append)
    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        else:
            barrier.wait(DEADLINE)

    together([lambda: deep(3)] * 4)
    assert len(deltas) == 16


@pytest.mark.parametrize("arguments", [{"label": len}, {"label": 5}, {"report": 5}])
def test_what_cannot_be_measured(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        measure(**arguments)
    with pytest.raises(TypeError, match="decorates functions"):
        measure("x")(5)  # type: ignore[type-var]

    async def stream() -> Any:
        yield 1

    with pytest.raises(TypeError, match="asynchronous generator"):
        measure("x")(stream)
