"""`adaptive_batches` over iterables: each item once and in order, whatever raises, weighs, waits or interrupts."""

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_kit import Clock, FakeMonitor, flat, interrupted, run
from mempool.pressure import Level, adaptive_batches
from mempool.pressure.batches import tally
from support import DEADLINE, together
from support import start as start_thread

NORMAL, ELEVATED, HIGH, CRITICAL = Level


def lengths(batches: Any) -> list[int]:
    return [len(batch) for batch in batches]


# ---- how many


def test_without_pressure() -> None:
    assert lengths(run(range(25))) == [10, 10, 5]
    assert lengths(run(range(20))) == [10, 10]
    assert list(run([])) == []
    assert list(run([1])) == [[1]]


def test_the_size_follows_the_level() -> None:
    monitor = FakeMonitor([NORMAL, HIGH, HIGH, CRITICAL, NORMAL])
    assert lengths(run(range(60), 20, monitor)) == [20, 10, 5, 1, 2, 3, 4, 5, 6, 4]


def test_it_begins_small_under_pressure() -> None:
    assert lengths(run(range(6), 20, FakeMonitor([CRITICAL]), min_size=3)) == [3, 3]


def test_pressure_that_comes_while_a_batch_is_pulled_cuts_it() -> None:
    monitor = FakeMonitor()

    def source() -> Iterator[int]:
        for item in range(1000):
            if item == 100:
                monitor.level = HIGH
            yield item

    batches = run(source(), 500, monitor)
    first = next(batches)
    assert 100 <= len(first) < 140
    assert first + flat(batches) == list(range(1000))


def test_a_monitor_that_runs_is_not_polled() -> None:
    monitor = FakeMonitor([CRITICAL])
    monitor.running = True
    assert lengths(run(range(20), 10, monitor)) == [10, 10]
    assert monitor.polls == 0


def test_a_monitor_that_does_not_run_is_polled_but_not_for_each_small_batch() -> None:
    monitor = FakeMonitor()
    monitor.clock = Clock()
    batches = run(range(100), 1, monitor)
    batches._clock = Clock()
    assert len(list(batches)) == 100
    assert monitor.polls == 1


# ---- weights


def test_a_batch_stays_within_its_bytes() -> None:
    batches = list(run([30, 30, 30, 10, 90, 200, 5, 5], weigher=int, max_bytes=100))
    assert flat(batches) == [30, 30, 30, 10, 90, 200, 5, 5]
    assert batches[0] == [30, 30, 30, 10]
    assert all(sum(batch) <= 100 or len(batch) == 1 for batch in batches)


def test_the_least_goes_before_the_bytes() -> None:
    assert list(run([90] * 4, weigher=int, max_bytes=100, min_size=2)) == [[90, 90], [90, 90]]


def test_no_room_gives_the_least() -> None:
    assert lengths(run(range(3), weigher=lambda _: 1, room=lambda: 0)) == [1, 1, 1]


@pytest.mark.parametrize(("weight", "error"), [(1.5, TypeError), ("1", TypeError), (None, TypeError), (-1, ValueError)])
def test_a_weigher_that_returns_nonsense_is_named(weight: Any, error: type[Exception]) -> None:
    batches = run([7, 8], weigher=lambda _: weight)
    with pytest.raises(error, match="weigher.*" + repr(weight).replace(".", r"\.")):
        next(batches)


def test_a_weigher_that_raises_loses_nothing() -> None:
    failing = [True]

    def weigher(item: int) -> int:
        if item == 3 and failing:
            raise LookupError(failing.pop())
        return item

    batches = run(range(6), weigher=weigher)
    with pytest.raises(LookupError):
        next(batches)
    assert flat(batches) == list(range(6))


def test_stop_iteration_of_a_weigher_is_no_end() -> None:
    def weigher(item: int) -> int:
        return next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"):
        list(run(range(6), weigher=weigher))


# ---- errors and interrupts


def failing_at(number: int, error: BaseException) -> Iterator[int]:
    for item in range(100):
        if item == number:
            raise error
        yield item


@pytest.mark.parametrize("number", [0, 1, 9, 10, 11, 31, 32, 33, 64])
@pytest.mark.parametrize("weigher", [None, lambda _: 1])
def test_what_a_source_raises_comes_after_its_items(number: int, weigher: Any) -> None:
    batches = run(failing_at(number, OSError("broken")), 50, weigher=weigher)
    found = []
    with pytest.raises(OSError, match="broken"):
        found.extend(batches)
    assert flat(found) == list(range(number))
    assert list(batches) == []


class Stumbling:
    """An iterator that raises now and then, and goes on."""

    def __init__(self, error: type[BaseException]) -> None:
        self.count, self.error = 0, error

    def __iter__(self) -> "Stumbling":
        return self

    def __next__(self) -> int:
        self.count += 1
        if self.count > 100:
            raise StopIteration
        if self.count % 7 == 0:
            raise self.error
        return self.count


@pytest.mark.parametrize("error", [OSError, MemoryError, KeyboardInterrupt, GeneratorExit, SystemExit])
@pytest.mark.parametrize("weigher", [None, int])
def test_a_source_that_goes_on_after_an_error_is_followed(error: type[BaseException], weigher: Any) -> None:
    batches = run(Stumbling(error), weigher=weigher)
    found: list[int] = []
    raised = 0
    while True:
        try:
            found += next(batches)
        except error:
            raised += 1
        except StopIteration:
            break
    assert found == [number for number in range(1, 101) if number % 7]
    assert raised == 14


def test_an_interrupted_wait_loses_nothing_and_counts() -> None:
    class Interrupted(FakeMonitor):
        def wait_for_relief(self, level: Level = HIGH, timeout: float | None = None) -> bool:
            super().wait_for_relief(level, 0.5)
            raise KeyboardInterrupt

    monitor = Interrupted([HIGH, HIGH, HIGH, HIGH])
    batches = run(range(5), monitor=monitor, max_wait=1.0)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            next(batches)
    assert batches.waited == 1.0
    assert flat(batches) == list(range(5))


@pytest.mark.parametrize("weigher", [None, int])
def test_ctrl_c_after_any_call_neither_loses_nor_stops_anything(weigher: Any) -> None:
    came, step = True, 0
    while came:
        batches = run(range(25), 10, FakeMonitor([NORMAL, HIGH]), weigher=weigher, max_wait=1.0)
        found, came = interrupted(step, lambda batches=batches: next(batches))
        assert found == list(range(25)), step
        assert batches.waited <= 1.0
        step += 1
    assert step > 50


def test_an_error_keeps_nothing_alive() -> None:
    class Item:
        pass

    item = Item()
    gone = weakref.ref(item)
    batches = run(iter([item]))
    for batch in batches:
        del item
        batch.clear()
        assert gone() is None


def test_a_batch_that_was_handed_over_is_not_kept() -> None:
    class Item:
        pass

    batches = run((Item() for _ in range(30)), weigher=lambda _: 1)
    kept = [weakref.ref(item) for item in next(batches)]
    gc.collect()
    assert [ref() for ref in kept] == [None] * 10
    assert len(next(batches)) == 10


def test_the_source_is_let_go_at_the_end() -> None:
    def source() -> Iterator[int]:
        yield 1

    generator = source()
    gone = weakref.ref(generator)
    batches = run(generator)
    del generator
    assert list(batches) == [[1]]
    gc.collect()
    assert gone() is None
    assert next(batches, None) is None


# ---- waiting


def test_waiting_is_bounded_over_the_whole_run() -> None:
    monitor = FakeMonitor([HIGH] * 100)
    before = tally.read()
    batches = run(range(40), 8, monitor, max_wait=1.5)
    assert flat(batches) == list(range(40))
    assert monitor.timeouts == [1.5]
    assert batches.waited == 1.5
    after = tally.read()
    assert (after.begun - before.begun, after.exhausted - before.exhausted) == (1, 1)
    assert after.seconds - before.seconds == pytest.approx(1.5)


def test_a_wait_that_was_relieved_takes_what_it_took() -> None:
    monitor = FakeMonitor([HIGH] * 100, relieves=True, takes=0.25)
    before = tally.read()
    batches = run(range(100), 10, monitor, max_wait=0.6)
    assert flat(batches) == list(range(100))
    assert monitor.timeouts == pytest.approx([0.6, 0.35, 0.1])
    assert set(monitor.waited_for) == {HIGH}
    assert batches.waited == pytest.approx(0.6)
    assert tally.read().exhausted == before.exhausted


def test_after_relief_the_size_is_that_of_the_level_now() -> None:
    monitor = FakeMonitor([HIGH], relieves=True)
    monitor.running = True
    monitor.level = HIGH
    assert lengths(run(range(40), 20, monitor, max_wait=1.0)) == [15, 11, 10, 4]


@pytest.mark.parametrize("level", [NORMAL, ELEVATED])
def test_below_high_nothing_waits(level: Level) -> None:
    monitor = FakeMonitor([level])
    assert flat(run(range(40), 10, monitor, max_wait=1.0)) == list(range(40))
    assert monitor.timeouts == []


def test_for_ever_is_for_ever() -> None:
    monitor = FakeMonitor([HIGH], relieves=True)
    list(run(range(5), monitor=monitor, max_wait=float("inf")))
    assert monitor.timeouts == [None]


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_jumps_neither_prolongs_nor_breaks_a_wait(jump: float) -> None:
    monitor = FakeMonitor([HIGH] * 50, relieves=True, takes=jump)
    batches = run(range(50), 10, monitor, max_wait=1.0)
    assert flat(batches) == list(range(50))
    assert all(timeout is not None and 0 < timeout <= 1.0 for timeout in monitor.timeouts)
    assert 0.0 <= batches.waited <= 1.0


@pytest.mark.parametrize("items", [0, 10, 20])
def test_where_no_batch_comes_nothing_waits_or_cleans_up(items: int) -> None:
    cleaned: list[str] = []
    monitor = FakeMonitor()
    batches = run(range(items), 10, monitor, cleanup=cleaned.append, max_wait=1.5)
    for _ in range(items // 10):
        next(batches)
    monitor.level = CRITICAL
    monitor.running = True
    assert list(batches) == []
    assert (monitor.timeouts, cleaned, batches.waited) == ([], [], 0.0)


def test_an_error_of_the_source_is_not_waited_for() -> None:
    monitor = FakeMonitor([HIGH] * 3)
    batches = run(failing_at(0, OSError("broken")), 10, monitor, max_wait=1.5)
    with pytest.raises(OSError, match="broken"):
        next(batches)
    assert monitor.timeouts == []


def test_waits_are_counted_inside_a_count() -> None:
    before = tally.read()

    def work() -> None:
        with tally._lock:  # as a signal handler finds it
            tally.add(True, 0.5)

    start_thread(work).result()
    begun, exhausted, seconds = tally.read().since(before)
    assert (begun, exhausted) == (1, 1)
    assert seconds == pytest.approx(0.5)  # what was counted before is of any length


# ---- cleanup between batches


def test_cleanup_comes_in_stages() -> None:
    modes: list[str] = []
    levels = [
        NORMAL,
        ELEVATED,
        ELEVATED,
        HIGH,
        HIGH,
        CRITICAL,
        CRITICAL,
        HIGH,
        CRITICAL,
        NORMAL,
        HIGH,
        HIGH,
        HIGH,
        NORMAL,
    ]
    steps = []

    def cleanup(mode: str) -> None:
        modes.append(mode)

    for level in levels:
        if not steps:
            monitor = FakeMonitor()
            monitor.running = True
            batches = run(range(1000), 10, monitor, cleanup=cleanup)
        monitor.level = level
        next(batches)
        steps.append(modes[:])
        modes.clear()
    light, standard, aggressive = ["light"], ["standard"], ["aggressive"]
    assert steps == [[], light, [], standard, [], aggressive, [], [], aggressive, [], light, standard, [], []]


def test_after_a_cleanup_the_monitor_looks_again() -> None:
    monitor = FakeMonitor([HIGH, NORMAL])
    batches = run(range(20), 10, monitor, cleanup=lambda _: None, max_wait=1.0)
    batches._clock = Clock()
    assert lengths(batches) == [10, 10]
    assert monitor.timeouts == []


def test_a_cleanup_that_raises_loses_nothing() -> None:
    def cleanup(mode: str) -> None:
        raise LookupError(mode)

    batches = run(range(30), 10, FakeMonitor([NORMAL, ELEVATED, ELEVATED]), cleanup=cleanup)
    found = next(batches)
    with pytest.raises(LookupError, match="light"):
        next(batches)
    assert found + flat(batches) == list(range(30))


# ---- who calls


def test_one_at_a_time() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        yield 1
        inside.set()
        assert go_on.wait(DEADLINE)
        yield 2

    batches = run(source())
    thread = start_thread(list, batches)
    assert inside.wait(DEADLINE)
    with pytest.raises(ValueError, match="already"):
        next(batches)
    go_on.set()
    assert thread.result() == [[1, 2]]


def test_a_source_that_asks_its_own_batches_is_refused() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield next(batches)[0]

    batches = run(source())
    assert next(batches) == [1]
    with pytest.raises(ValueError, match="already"):
        next(batches)


def test_many_threads_at_one_run_take_each_item_once() -> None:
    batches = run(iter(range(20_000)), 7)
    lock = threading.Lock()

    def work() -> list[list[int]]:
        found = []
        while True:
            with lock:
                batch = next(batches, None)
            if batch is None:
                return found
            found.append(batch)

    everything = sorted(batch for found in together([work] * 4) for batch in found)
    assert flat(everything) == list(range(20_000))


# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"iterable": 5}, TypeError, "int"),
        ({"size": 0}, ValueError, "0"),
        ({"size": 5, "max_size": 4}, ValueError, "4"),
        ({"max_wait": -1}, ValueError, "-1"),
        ({"max_wait": None}, TypeError, "None"),
        ({"max_wait": "soon"}, ValueError, "'soon'"),
        ({"max_bytes": 5}, ValueError, "weigher"),
        ({"weigher": 5}, TypeError, "weigher must be callable, not 5"),
        ({"monitor": 5}, TypeError, "not 5"),
        ({"max_bytes": 1.5, "weigher": len}, TypeError, "1.5"),
    ],
)
def test_nonsense_is_named(arguments: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error) as caught:
        adaptive_batches(**{"iterable": [], "monitor": FakeMonitor(), "cleanup": False} | arguments)
    assert named in str(caught.value)


# ---- against a plain model

SOURCES = st.lists(st.one_of(st.integers(0, 50), st.just("error")), max_size=120)


class Source:
    """Items, with errors in between that do not end it."""

    def __init__(self, items: list[Any]) -> None:
        self.items = iter(items)

    def __iter__(self) -> "Source":
        return self

    def __next__(self) -> Any:
        item = next(self.items)
        if item == "error":
            raise OSError("error")
        return item


@given(
    SOURCES,
    st.lists(st.sampled_from(list(Level)), max_size=40),
    st.integers(1, 5),
    st.integers(0, 20),
    st.one_of(st.none(), st.integers(0, 100)),
    st.floats(0, 2),
    st.booleans(),
)
def test_everything_once_and_in_order(
    items: list[Any],
    levels: list[Level],
    least: int,
    above: int,
    max_bytes: int | None,
    max_wait: float,
    relieves: bool,
) -> None:
    monitor = FakeMonitor(levels, relieves=relieves)
    weigher = None if max_bytes is None else int
    options: dict[str, Any] = {
        "min_size": least,
        "max_bytes": max_bytes,
        "max_wait": max_wait,
        "cleanup": lambda _: None,
    }
    batches = run(Source(items), least + above, monitor, weigher=weigher, **options)
    found: list[Any] = []
    while True:
        try:
            batch = next(batches)
        except OSError:
            found.append("error")
            continue
        except StopIteration:
            break
        assert 0 < len(batch) <= batches.size <= least + above
        assert max_bytes is None or len(batch) <= least or sum(batch) <= max_bytes
        found += batch
    assert found == items
    assert batches.waited <= max_wait
    if not relieves:
        assert len(monitor.timeouts) <= 1
