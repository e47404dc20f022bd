"""Caches shrink in turn, step by step, and no further than the monitor that asks needs; then they grow back while nothing grows."""

import asyncio
import gc
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from mempool.pressure import Level, PressureMonitor, Shrinker, Thresholds
from mempool.pressure.regrowth import Regrowth, fresh_level, grow_later, is_asked, is_relieved
from monitor_kit import BYTES, CRITICAL, ELEVATED, HIGH, NORMAL, Bench, Memory
from support import MIB, start, together

NOTHING = Thresholds(main=1 << 60)


class Cache:
    """Holds bytes of a memory, and may hold less since it was shrunk for a monitor."""

    def __init__(self, memory: Memory, nbytes: int, asked: list[str], name: str = "cache") -> None:
        self.memory, self.nbytes, self.asked, self.name = memory, nbytes, asked, name
        self.bound = self.allowed = nbytes

    def shrink(self, nbytes: int) -> int:
        assert self.memory.used is not None
        assert nbytes <= -(-self.nbytes // 20)
        self.asked.append(self.name)
        self.nbytes -= nbytes
        self.memory.used -= nbytes
        if is_asked():
            self.allowed = self.nbytes
            grow_later(self)
        return nbytes

    def _grow(self, whole: bool = False) -> bool:
        self.allowed = self.bound if whole else min(self.bound, self.allowed + self.bound // 20)
        return self.allowed == self.bound


class Caches(Bench):
    """A monitor that shrinks caches of a memory that it watches."""

    def __init__(self, *sizes: int, thresholds: Thresholds = BYTES, **options: Any) -> None:
        self.asked: list[str] = []
        super().__init__(thresholds, **options)
        self.caches = [Cache(self.memory, size, self.asked, str(size)) for size in sizes]
        shrinker = Shrinker(self.caches, resident=lambda: self.memory.used or 0)
        self.shrinker = self.monitor.on(ELEVATED, shrinker)


# ---- shrinking


def test_it_stops_once_the_pressure_is_over() -> None:
    bench = Caches(500)
    assert bench.at(1010) == HIGH  # it lasts its dwell
    assert bench.memory.used is not None
    assert 950 - 25 < bench.memory.used <= 950  # where HIGH is left
    assert bench.asked == ["500"] * 3


def test_also_at_the_worst() -> None:
    bench = Caches(900)
    bench.at(1250)
    assert bench.memory.used is not None
    assert 950 - 45 < bench.memory.used <= 950
    assert len(bench.asked) > 5


def test_what_is_no_cache_may_be_enough() -> None:
    bench = Caches(500)

    def enough(needed: int) -> int:
        bench.memory.used = 100
        return 900

    shrinker = Shrinker([*bench.caches, enough], resident=lambda: bench.memory.used or 0)
    bench.shrinker.cancel()
    bench.monitor.on(HIGH, shrinker)
    bench.at(1300)
    assert bench.asked == []


@pytest.mark.parametrize(("level", "rounds"), [(HIGH, 5), (CRITICAL, None)])
def test_while_it_lasts_all_are_asked_in_turn(level: Level, rounds: int | None) -> None:
    bench = Caches(40, 100, 100, thresholds=NOTHING)
    bench.memory.used = 1000
    bench.monitor.simulate(level)
    assert bench.asked[:6] == ["100", "100", "40"] * 2
    if rounds is None:
        assert [cache.nbytes for cache in bench.caches] == [0, 0, 0]
    else:
        assert bench.asked == ["100", "100", "40"] * rounds


def test_the_largest_is_asked_first() -> None:
    bench = Caches(10, 400, 50)
    bench.at(1000)
    assert bench.asked == [*["400", "50", "10"] * 2, "400"]


def test_one_that_gives_nothing_is_left_out_of_the_turn() -> None:
    bench = Caches(500, 400)

    def refuse(nbytes: int) -> int:
        bench.asked.append("none")
        return 0

    bench.caches[0].shrink = refuse  # type: ignore[method-assign]
    bench.at(1030)
    assert bench.asked == ["none", *["400"] * 5]


def test_a_monitor_that_did_not_ask_is_not_looked_at() -> None:
    bench = Caches(500)
    bench.at(100)
    reads = bench.memory.reads
    bench.shrinker(bench.monitor.history()[-1].__class__(HIGH, NORMAL, "test", None, None, None, None, 0.0))
    assert bench.memory.reads == reads
    assert len(bench.asked) == 5
    assert not is_relieved()


# ---- a fresh reading


def test_a_fresh_reading_changes_nothing() -> None:
    bench = Bench()
    bench.at(900)
    before = bench.monitor.stats(), bench.monitor.history(), bench.monitor.sources
    bench.memory.used = 1100
    assert fresh_level(bench.monitor) == HIGH
    assert (bench.monitor.stats(), bench.monitor.history()) == before[:2]
    assert bench.monitor.sources == before[2]


@pytest.mark.parametrize(
    ("used", "level"), [(951, HIGH), (950, ELEVATED), (761, ELEVATED), (760, NORMAL), (1300, CRITICAL)]
)
def test_a_fresh_reading_knows_where_levels_are_left(used: int, level: Level) -> None:
    bench = Bench()
    bench.at(1000)
    bench.memory.used = used
    assert fresh_level(bench.monitor) == level


def test_the_worst_source_counts_and_one_that_fails_stands_where_it_stood() -> None:
    second = Memory(1000, name="second")
    bench = Bench(BYTES, second)
    bench.at(0)
    second.error = OSError("no more")
    assert fresh_level(bench.monitor) == HIGH
    second.error = None
    second.used = 0
    assert fresh_level(bench.monitor) == NORMAL
    second.level = CRITICAL
    assert fresh_level(bench.monitor) == CRITICAL


def test_what_is_simulated_is_not_over() -> None:
    bench = Bench()
    bench.monitor.simulate(CRITICAL)
    assert fresh_level(bench.monitor) == CRITICAL
    bench.monitor.simulate(NORMAL)
    assert fresh_level(bench.monitor) == NORMAL


# ---- growing back


def shrunk(unit: int = 1, **options: Any) -> tuple[Caches, Cache]:
    bench = Caches(500 * unit, **options)
    bench.at(1010 * unit)
    (cache,) = bench.caches
    assert cache.allowed == cache.nbytes < 500 * unit
    return bench, cache


def test_it_grows_back_by_a_twentieth_of_its_bound_at_a_poll() -> None:
    bench, cache = shrunk()
    before = cache.allowed
    assert bench.at(500, 2.0) == NORMAL
    assert cache.allowed == before + 25
    while cache.allowed < 500:
        before = cache.allowed
        bench.at(500, 1.0)
        assert cache.allowed == min(500, before + 25)
    assert len(bench.monitor._regrowth) == 0


@pytest.mark.parametrize("used", [1010, 980, 955, 810, 790])
def test_it_does_not_while_a_level_lasts(used: int) -> None:
    bench, cache = shrunk()
    cache.shrink = lambda nbytes: 0  # type: ignore[method-assign]
    before = cache.allowed
    for _ in range(20):
        bench.at(used, 1.0)
    assert bench.monitor.level > NORMAL
    assert cache.allowed == before


def test_it_does_not_while_memory_grows() -> None:
    bench, cache = shrunk()
    bench.at(100, 2.0)
    bench.monitor._watched[0].trend.clear()
    before = cache.allowed
    for used in range(200, 210, 2):
        bench.at(used, 1.0)
    assert before < cache.allowed <= before + 50  # until two readings are a trend
    before = cache.allowed
    for used in range(210, 300, 5):
        bench.at(used, 1.0)
    assert cache.allowed == before
    for _ in range(40):
        bench.at(290, 1.0)
    assert cache.allowed == 500


def test_growth_that_is_next_to_nothing_is_flat() -> None:
    bench, cache = shrunk(MIB, thresholds=Thresholds(main=1000 * MIB, critical=1200 * MIB))
    before = cache.allowed
    for step in range(30):
        bench.at(500 * MIB + step * 1000, 1.0)
    assert cache.allowed > before


def test_nothing_grows_back_that_no_monitor_had_shrunk() -> None:
    bench = Caches(500)
    (cache,) = bench.caches
    cache.memory.used = 500
    cache.shrink(25)
    assert cache.allowed == 500
    bench.at(100)
    assert len(bench.monitor._regrowth) == 0


@pytest.mark.parametrize("end", [lambda monitor: monitor.stop(), lambda monitor: monitor.__exit__(None, None, None)])
def test_a_monitor_that_is_stopped_gives_all_back(end: Callable[[PressureMonitor], object]) -> None:
    bench, cache = shrunk(interval=1000)
    bench.monitor.__enter__()
    end(bench.monitor)
    assert cache.allowed == 500


def test_so_does_one_that_is_gone() -> None:
    bench, cache = shrunk()
    del bench.monitor, bench.shrinker
    gc.collect()
    assert cache.allowed == 500


def test_a_cache_that_is_gone_is_forgotten() -> None:
    bench = Caches(500)
    monitor, memory = bench.monitor, bench.memory
    cache = Cache(memory, 500, [])
    bench.shrinker.cancel()
    monitor.on(HIGH, lambda event: cache.shrink(25))  # noqa: F821 - it goes below
    bench.at(1010)
    assert len(monitor._regrowth) == 1
    for one in monitor.stats().callbacks:
        assert one.errors == 0
    monitor._callbacks._all = ()
    del cache
    gc.collect()
    assert len(monitor._regrowth) == 0


def test_one_that_cannot_grow_does_not_keep_others_from_it(caplog: pytest.LogCaptureFixture) -> None:
    bench = Caches(500, 400)

    def fail(whole: bool = False) -> bool:
        raise MemoryError("no memory to grow")

    broken, other = bench.caches
    broken._grow = fail  # type: ignore[method-assign]
    bench.at(1100)
    before = other.allowed
    with caplog.at_level(logging.ERROR, "mempool.pressure"):
        bench.at(100, 2.0)
        bench.at(100, 2.0)
    assert other.allowed > before
    assert len([record for record in caplog.records if record.name == "mempool.pressure" and record.exc_info]) == 1


def test_who_asks_is_known_to_its_thread_alone() -> None:
    bench = Caches(500)
    seen: list[bool] = []

    def in_another_thread(_: object) -> None:
        (cache,) = bench.caches
        seen.append(start(lambda: grow_later(cache)).result())
        seen.append(grow_later(cache))

    bench.monitor.on(HIGH, in_another_thread, priority=9)
    bench.at(1300)
    assert seen == [False, True]
    assert grow_later(bench.caches[0]) is False


def test_tasks_that_a_callback_creates_do_not_ask() -> None:
    bench = Caches(500)
    (cache,) = bench.caches
    bench.shrinker.cancel()

    async def later() -> bool:
        return grow_later(cache)

    async def run() -> bool:
        tasks: list[asyncio.Task[bool]] = []
        bench.monitor.on(HIGH, lambda _: tasks.append(asyncio.ensure_future(later())))
        bench.at(1100)
        return await tasks[0]

    assert asyncio.run(run()) is False


# ---- several monitors, and those that are stopped meanwhile


def test_a_monitor_that_a_callback_stopped_keeps_nothing() -> None:
    bench = Caches(500)
    (cache,) = bench.caches
    bench.monitor.on(HIGH, lambda _: bench.monitor.stop(), priority=1)
    bench.at(1100)
    assert (cache.nbytes < 500, cache.allowed) == (True, 500)
    assert len(bench.monitor._regrowth) == 0
    cache.shrink(10)
    assert cache.allowed == 500


def two() -> tuple[Caches, Bench, Cache]:
    """Return two monitors that had one cache shrink."""
    bench, cache = shrunk()
    other = Bench()
    other.monitor.on(HIGH, lambda _: cache.shrink(1))
    other.at(1100)
    return bench, other, cache


@pytest.mark.parametrize("end", [lambda other: other.at(100, 2.0), lambda other: other.monitor.stop()])
def test_what_two_had_shrunk_grows_back_when_both_are_calm(end: Callable[[Bench], object]) -> None:
    bench, other, cache = two()
    low = cache.allowed
    end(other)
    assert cache.allowed == low
    bench.at(500, 2.0)
    other.at(100, 2.0)
    assert cache.allowed == low + 25
    bench.monitor.stop()
    assert cache.allowed == 500


def test_one_that_runs_leaves_nothing_to_one_that_does_not() -> None:
    bench, other, cache = two()
    low = cache.allowed

    async def run() -> None:
        async with bench.monitor:
            bench.at(500, 2.0)
            assert cache.allowed == low + 25
            other.at(100, 2.0)  # it leaves it to the one that runs
            assert cache.allowed == low + 25

    asyncio.run(run())
    assert cache.allowed == 500


def test_one_that_goes_leaves_it_to_the_other() -> None:
    bench, other, cache = two()
    low = cache.allowed
    del other
    gc.collect()
    assert cache.allowed == low
    bench.at(500, 2.0)
    assert cache.allowed == low + 25


def test_of_two_that_leave_it_to_each_other_one_keeps_it() -> None:
    item = Cache(Memory(0), 1000, [])
    for _ in range(200):
        both = [Regrowth(), Regrowth()]
        for one in both:
            one.add(item)
        item.allowed = 0
        together([partial(one._let_grow, whole=False) for one in both])
        assert sum(map(len, both)) >= 1


def test_what_shrinks_while_it_grows_back_is_not_forgotten() -> None:
    regrowth, item = Regrowth(), Cache(Memory(0), 1000, [])

    def grow(whole: bool = False) -> bool:
        regrowth.add(item)  # another thread has it shrink
        return True

    item._grow = grow  # type: ignore[method-assign]
    regrowth.add(item)
    regrowth._let_grow(whole=False)
    assert len(regrowth) == 1


def test_ctrl_c_as_something_grows_back_does_not_end_that() -> None:
    regrowth, item = Regrowth(), Cache(Memory(0), 1000, [])

    class Interrupted(dict[Any, Any]):
        def pop(self, *args: Any) -> Any:
            super().pop(*args)
            raise KeyboardInterrupt

    regrowth._items = Interrupted()
    regrowth.add(item)
    with pytest.raises(KeyboardInterrupt):
        regrowth._let_grow(whole=False)
    assert len(regrowth) == 1
    regrowth._items = {}  # it gives back as it goes, too


def test_ctrl_c_as_room_is_made_does_not_end_that() -> None:
    class Interrupted(dict[Any, Any]):
        def setdefault(self, *args: Any) -> Any:
            super().setdefault(*args)
            raise KeyboardInterrupt

    bench, cache = shrunk()
    shrinker = Shrinker([cache], resident=lambda: 0)
    shrinker._busy = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        shrinker(bench.monitor.history()[-1])
    assert shrinker._busy == {}
