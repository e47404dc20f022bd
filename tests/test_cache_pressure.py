"""Caches under pressure: at most 5 % a step, until it is enough; back by 5 % of the bound a step, while nothing grows."""

import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mempool
from mempool.cache import Cache, Cause, WeakCache
from mempool.pressure import PressureMonitor, Shrinkable, Shrinker, Thresholds, unregister
from mempool.pressure.reclaim import registered
from mempool.pressure.regrowth import asking, is_asked
from monitor_kit import CRITICAL, ELEVATED, HIGH, NORMAL, Bench
from support import DEADLINE, KIB, MIB, Strange, together, until

AnyCache = Cache[Any, Any] | WeakCache[Any, Any]


class Value:
    """Of a size, and weakly held where a cache does."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def __sizeof__(self) -> int:
        return self.nbytes - HEAD


HEAD = 0
HEAD = sys.getsizeof(Value(0))  # what the collector puts before an object counts


def by_bytes(count: int = 1000) -> AnyCache:
    return filled(Cache(max_bytes=count * KIB), count)


def by_count(count: int = 1000) -> AnyCache:
    return filled(Cache(count), count)


def by_own_size(count: int = 1000) -> AnyCache:
    return filled(Cache(3 * count, getsizeof=lambda value: 3), count)


def weak(count: int = 1000) -> AnyCache:
    return filled(WeakCache(keep_items=count), count)


def weak_by_bytes(count: int = 1000) -> AnyCache:
    return filled(WeakCache(keep_bytes=count * KIB), count)


KINDS = [by_bytes, by_count, by_own_size, weak, weak_by_bytes]
every_kind = pytest.mark.parametrize("make", KINDS)


def filled(cache: AnyCache, count: int) -> AnyCache:
    for number in range(count):
        cache[number] = Value(KIB)
    assert len(cache) == count
    return cache


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """No caches of other tests are asked."""
    gc.collect()
    others = [item for _, item in registered()]
    for item in others:
        unregister(item)
    yield
    for item in others:
        mempool.pressure.register(item)


# ---- one step


@every_kind
@pytest.mark.parametrize("asked", [1 << 40, 200 * KIB, 50 * KIB])
def test_a_step_is_a_twentieth_at_most(make: Callable[..., AnyCache], asked: int) -> None:
    cache = make()
    assert cache.shrink(asked) == 50 * KIB
    assert (len(cache), cache.nbytes) == (950, 950 * KIB)
    assert cache.shrink(asked) == (48 if asked > 48 * KIB else 0) * KIB
    assert len(cache) == 902


@every_kind
def test_less_is_given_if_less_is_asked(make: Callable[..., AnyCache]) -> None:
    cache = make()
    assert cache.shrink(3 * KIB) == 3 * KIB
    assert cache.shrink(1) == KIB  # entries go whole
    assert cache.shrink(0) == 0
    assert len(cache) == 996


@every_kind
def test_the_last_ones_go_one_by_one(make: Callable[..., AnyCache]) -> None:
    cache = make(3)
    assert [cache.shrink(1 << 40) for _ in range(4)] == [KIB, KIB, KIB, 0]
    assert (len(cache), cache.nbytes) == (0, 0)


@every_kind
@pytest.mark.parametrize(
    ("nbytes", "kind"),
    [(-1, ValueError), (1.5, TypeError), ("1KiB", TypeError), (True, TypeError), (Strange(), TypeError)],
)
def test_what_is_no_number_of_bytes(make: Callable[..., AnyCache], nbytes: Any, kind: type[Exception]) -> None:
    cache = make(10)
    with pytest.raises(kind, match="nbytes must"):
        cache.shrink(nbytes)
    assert len(cache) == 10


@pytest.mark.parametrize("make", [by_bytes, by_count, weak, weak_by_bytes])
def test_the_least_recent_go_first(make: Callable[..., AnyCache]) -> None:
    cache = make(20)
    assert cache[0]
    cache.shrink(1)
    cache.shrink(1)
    assert sorted(cache) == [0, *range(3, 20)]


def test_listeners_are_told_why() -> None:
    told: list[tuple[int, Cause]] = []
    cache: Cache[int, Value] = Cache(40, policy="lru", on_evict=lambda key, _, cause: told.append((key, cause)))
    filled(cache, 40)
    cache.shrink(1 << 30)
    assert told == [(0, Cause.PRESSURE), (1, Cause.PRESSURE)]


def test_a_cache_that_gives_up_nobody_gives_nothing() -> None:
    cache: Cache[int, Value] = Cache(40, policy="noeviction")
    filled(cache, 40)
    assert (cache.shrink(1 << 30), len(cache)) == (0, 40)


def test_of_those_with_a_priority_the_lowest_go_first() -> None:
    cache: Cache[int, Value] = Cache(40, policy="lru")
    for number in range(40):
        cache._insert(number, Value(KIB), None, 1 if number < 10 else 0, None, True)
    cache.shrink(1 << 30)
    assert sorted(set(range(40)) - set(cache)) == [10, 11]


def test_what_expired_goes_before_and_does_not_count() -> None:
    now = [0.0]
    cache: Cache[int, Value] = Cache(40, policy="lru", clock=lambda: now[0])
    for number in range(40):
        cache._insert(number, Value(KIB), 10.0 if number % 2 else float("inf"), 0, None, True)
    now[0] = 11.0
    assert cache.shrink(1 << 30) == KIB
    assert len(cache) == 19


# ---- what is held


def test_bytes_of_a_cache_that_counts_items_are_estimated() -> None:
    cache: Cache[int, Value] = Cache(10_000)
    assert cache.nbytes == 0
    for number in range(5000):
        cache[number] = Value(KIB if number % 2 else 3 * KIB)
    assert 0.5 < cache.nbytes / (5000 * 2 * KIB) < 1.5
    assert isinstance(cache, Shrinkable)


def test_an_estimate_does_not_jump_between_steps() -> None:
    cache: Cache[int, Value] = Cache(10_000)
    for number in range(5000):
        cache[number] = Value(100 + number)
    sizes = [cache.nbytes]
    while cache.shrink(1 << 40):
        sizes.append(cache.nbytes)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 0


def test_a_value_that_has_no_size_keeps_nobody_from_shrinking() -> None:
    class Odd:
        def __sizeof__(self) -> int:
            raise LookupError("no size today")

    cache, other = Cache[int, Any](10), by_bytes(100)
    cache.update({1: Odd(), 2: Value(KIB)})
    assert cache.nbytes == 2 * KIB  # as the others
    shrinker = Shrinker([cache, other], resident=lambda: 0)
    shrinker(event())
    assert (len(cache), len(other)) == (0, 0)


def event(level: mempool.pressure.Level = CRITICAL) -> mempool.pressure.PressureEvent:
    return mempool.pressure.PressureEvent(level, NORMAL, "test", None, None, None, None, 0.0)


# ---- those who ask


@every_kind
def test_a_direct_call_leaves_the_bound(make: Callable[..., AnyCache]) -> None:
    cache = make(100)
    while cache.shrink(1 << 40):
        pass
    filled(cache, 100)


@every_kind
@pytest.mark.parametrize(("mode", "left"), [("light", 1000), ("standard", 750), ("aggressive", 0)])
def test_cleanups(make: Callable[..., AnyCache], mode: Any, left: int) -> None:
    cache = make()
    report = mempool.cleanup(mode, background=False)
    assert len(cache) == left
    if left < 1000:
        (step,) = [step for step in report.steps if step.name == cache.name]
        assert step.detail.startswith(f"{(1000 - left) * KIB} of {1000 * KIB} bytes")
    filled(cache, 1000)


class Watched(Bench):
    """A monitor that watches how much a cache holds, and has it shrink."""

    def __init__(self, cache: AnyCache, **options: Any) -> None:
        self.cache = cache
        super().__init__(Thresholds(main=1000 * KIB, critical=1200 * KIB), **options)
        self.monitor.on(ELEVATED, Shrinker([cache], resident=self.held))

    def held(self) -> int:
        return self.cache.nbytes

    def poll(self, others: int, seconds: float = 1.0) -> mempool.pressure.Level:
        """Others have so many KiB."""
        self.memory.read = lambda: mempool.pressure.sources.Reading(others * KIB + self.held(), None, None)  # type: ignore[method-assign]
        self.clock.now += seconds
        return self.monitor.poll()


@every_kind
@pytest.mark.parametrize("others", [10, 300])
def test_a_monitor_takes_what_it_needs(make: Callable[..., AnyCache], others: int) -> None:
    bench = Watched(make())
    bench.poll(others)
    held = others + bench.held() // KIB
    assert 950 - 50 < held <= 950  # where HIGH is left, less a step
    assert bench.monitor.stats().errors == 0


@every_kind
def test_what_is_left_is_all_that_is_allowed(make: Callable[..., AnyCache]) -> None:
    bench = Watched(make())
    bench.poll(300)
    left = len(bench.cache)
    for number in range(5000, 6000):
        bench.cache[number] = Value(KIB)
        assert len(bench.cache) == left
    assert set(range(6000 - left, 6000)) == set(bench.cache) or bench.cache


@every_kind
def test_it_grows_back_while_nothing_grows(make: Callable[..., AnyCache]) -> None:
    bench = Watched(make())
    bench.poll(300)
    bench.poll(300)
    left = len(bench.cache)
    bench.poll(-300, 2.0)
    assert bench.monitor.level == NORMAL
    sizes = []
    for _ in range(25):
        filled_again(bench.cache)
        sizes.append(len(bench.cache))
        bench.monitor._watched[0].trend.clear()  # what it was given back has made it grow
        bench.poll(-300)
    assert sizes[:3] == [left + 50, left + 100, left + 150]
    assert sizes[-1] == 1000


def filled_again(cache: AnyCache) -> None:
    for number in range(1000):
        cache[number] = Value(KIB)


@every_kind
def test_it_does_not_while_memory_grows(make: Callable[..., AnyCache]) -> None:
    bench = Watched(make())
    bench.poll(300)
    bench.monitor._watched[0].trend.clear()
    for others in range(-600, -300, 20):
        bench.poll(others, 2.0)
    assert bench.monitor.level == NORMAL
    before = len(bench.cache)
    filled_again(bench.cache)
    assert len(bench.cache) <= before + 150  # until three readings were a trend


def test_one_without_a_bound_grows_back_to_what_it_held() -> None:
    cache: Cache[int, Value] = Cache(float("inf"))
    bench = Watched(filled(cache, 1000))
    bench.poll(300)
    assert len(cache) < 700
    filled_again(cache)
    assert len(cache) < 700
    for _ in range(30):
        bench.monitor._watched[0].trend.clear()
        bench.poll(-300, 2.0)
    for number in range(5000):
        cache[number] = Value(0)
    assert len(cache) == 5000


def test_a_monitor_that_is_stopped_gives_all_back() -> None:
    bench = Watched(by_bytes())
    bench.poll(300)
    bench.monitor.stop()
    filled_again(bench.cache)
    assert len(bench.cache) == 1000


def test_a_cache_whose_bound_is_changed_meanwhile_keeps_to_that() -> None:
    cache: Cache[int, Value] = Cache(1000)
    bench = Watched(filled(cache, 1000))
    bench.poll(300)
    cache._bounds(500, 1 << 63)
    for _ in range(40):
        bench.monitor._watched[0].trend.clear()
        bench.poll(-300, 2.0)
        filled_again(cache)
        assert len(cache) <= 500
    assert len(cache) == 500
    assert len(bench.monitor._regrowth) == 0


def test_the_default_monitor_finds_every_cache() -> None:
    caches = [make(100) for make in KINDS]
    names = [name for name, _ in registered()]
    assert names == [cache.name for cache in caches]
    shrinker = Shrinker.of_process()
    shrinker(event(HIGH))
    assert all(70 < len(cache) < 80 for cache in caches)
    shrinker(event(CRITICAL))
    assert not any(map(len, caches))
    assert {row.errors for row in shrinker.stats()} == {0}
    del caches
    gc.collect()
    assert registered() == []


def test_health_counts_no_caches_as_trouble() -> None:
    cache = by_bytes()
    cache.shrink(1 << 40)
    assert all(cache.name not in issue.message for issue in mempool.health().issues)


# ---- threads


@every_kind
def test_many_threads(make: Callable[..., AnyCache]) -> None:
    cache = make()
    bench = Watched(cache)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def write() -> None:
        for number in range(5000):
            cache[number % 1500] = Value(KIB)
            cache.get(number * 7 % 1500)

    def shrink() -> None:
        for _ in range(200):
            assert 0 <= cache.shrink(1 << 40) <= 51 * KIB

    def press() -> None:
        for number in range(50):
            bench.poll(300 if number % 2 else -900)

    try:
        together([write, write, shrink, press])
    finally:
        sys.setswitchinterval(interval)
    bench.monitor.stop()
    filled_again(cache)
    assert len(list(cache)) == len(cache) == 1000
    assert cache.nbytes == 1000 * KIB


def test_monitors_of_threads() -> None:
    """A real one: a thread polls, and gives all back at its end."""
    cache = by_bytes()
    used = [2000 * MIB]
    with PressureMonitor(
        Thresholds(main=1000 * MIB, critical=1200 * MIB),
        sources=[lambda: (used[0], None)],
        interval=0.001,
        reminder=3600,  # which would have it shrink once more
        reclaim=[cache],
    ) as monitor:
        until(lambda: len(cache) == 0)
        polls = monitor.stats().polls
        until(lambda: monitor.stats().polls > polls + 1)  # the round that asked has ended
        cache[1] = cache[2] = Value(KIB)
        assert len(cache) == 1
        used[0] = 0
        assert monitor.wait_for_relief(ELEVATED, timeout=DEADLINE)
    filled_again(cache)
    assert len(cache) == 1000


# ---- what others look at


def leases(count: int) -> tuple[mempool.BufferPool, list[mempool.Buffer]]:
    pool = mempool.BufferPool(idle_timeout=None)
    return pool, [pool.acquire(64 * KIB) for _ in range(count)]


@pytest.mark.parametrize("policy", ["lru", "fifo", "random", "volatile-lru", "volatile-ttl"])
@pytest.mark.parametrize("bound", [{"max_bytes": "100MiB"}, {"maxsize": 1000}])
def test_entries_that_are_viewed_stay(bound: dict[str, Any], policy: str) -> None:
    cache: Cache[int, mempool.Buffer] = Cache(policy=policy, **bound)
    pool, made = leases(40)
    for number, lease in enumerate(made):
        cache._insert(number, lease, 1000.0 + number, 0, None, True)
    views = [memoryview(lease) for lease in made[:30]]
    del made, lease
    gone = 0
    while freed := cache.shrink(1 << 40):
        gone += freed
    assert sorted(cache) == list(range(30))
    assert gone >= 10 * 64 * KIB
    assert pool.stats().in_use == 30 * 64 * KIB  # all that left is back
    views.clear()
    assert cache.shrink(1 << 40) > 0


def test_of_each_priority_the_viewed_ones_stay() -> None:
    cache: Cache[int, mempool.Buffer] = Cache(1000, policy="lru")
    _, made = leases(40)
    for number, lease in enumerate(made):
        cache._insert(number, lease, None, number % 2, None, True)
    views = [memoryview(lease) for lease in made if lease is not made[1] and lease is not made[38]]
    del made, lease
    cache.shrink(1 << 40)
    assert sorted(set(range(40)) - set(cache)) == [1, 38]
    del views


def test_a_cache_all_of_which_is_viewed_is_not_emptied_for_nothing() -> None:
    cache: Cache[int, mempool.Buffer] = Cache(max_bytes="100MiB")
    _, made = leases(40)
    for number, lease in enumerate(made):
        cache[number] = lease
    views = [memoryview(lease) for lease in made]
    del made, lease
    assert cache.shrink(1 << 40) == 0
    Shrinker([cache], resident=lambda: 0)(event())
    assert len(cache) == len(views) == 40


@pytest.mark.parametrize("bounds", [(), (1000,), (900,), (2000,)])
def test_resize_gives_nothing_back_that_a_monitor_took(bounds: tuple[int, ...]) -> None:
    cache: Cache[int, bytes] = Cache(1000, policy="lru")
    for number in range(1000):
        cache[number] = bytes(100)
    monitor = PressureMonitor(
        Thresholds(main=1000, critical=1200), sources=[lambda: (1100, None)], reclaim=[cache], min_dwell=0
    )
    assert monitor.poll() == HIGH
    allowed = cache.stats().allowance
    assert allowed < 900
    cache.resize(*bounds)
    for number in range(2000):
        cache[number] = bytes(100)
    assert cache.stats().allowance == len(cache) == allowed
    cache.resize(100)
    assert cache.stats().allowance == len(cache) == 100
    cache.resize(1000)
    assert cache.stats().allowance == allowed
    monitor.stop()
    assert cache.stats().allowance == 1000


@pytest.mark.parametrize(("mode", "background"), [("aggressive", None), ("standard", False), ("standard", True)])
def test_a_cleanup_in_a_callback_leaves_the_allowance(mode: Any, background: bool | None) -> None:
    cache = filled(Cache(1000), 1000)
    bench = Bench()
    reports: list[mempool.pressure.CleanupReport] = []
    bench.monitor.on(HIGH, lambda _: reports.append(mempool.cleanup(mode, background=background)))
    bench.at(1010)
    assert reports[0].wait(DEADLINE)
    assert len(cache) == (0 if mode == "aggressive" else 750)
    assert cache.stats().allowance == 1000


def test_a_monitor_that_is_stopped_by_what_leaves_gives_all_back() -> None:
    cache: Cache[int, Value] = Cache(1000, on_evict=lambda *_: bench.monitor.stop())
    filled(cache, 1000)
    bench = Bench()
    bench.monitor.on(HIGH, lambda _: cache.shrink(1 << 40))
    bench.at(1010)
    assert (len(cache), cache.stats().allowance) == (950, 1000)


def test_a_bound_that_is_raised_while_it_grows_back_holds() -> None:
    class Raising(Cache[int, Value]):
        def _limits(self) -> tuple[int, int, int]:
            found = super()._limits()
            if raising:
                raising.clear()
                self.resize(2000)  # as another thread could
            return found

    raising: list[int] = []
    cache = Raising(1000)
    filled(cache, 1000)
    bench = Bench()
    bench.monitor.on(HIGH, lambda _: cache.shrink(1 << 40))
    bench.at(1010)
    raising.append(1)
    bench.monitor.stop()
    assert cache.stats().allowance == 2000


def test_ctrl_c_as_a_monitor_lowers_what_is_allowed_does_not_leave_it_so() -> None:
    class Interrupted(Cache[int, int]):
        def _allow(self, total: int) -> None:
            super()._allow(total)
            if is_asked():
                raise KeyboardInterrupt

    cache = Interrupted(1000)
    cache.update(zip(range(1000), range(1000), strict=True))
    monitor = PressureMonitor(sources=[lambda: (1, None)])
    with pytest.raises(KeyboardInterrupt):
        asking(monitor, lambda: cache.shrink(1 << 40))
    assert cache.stats().allowance == 950
    monitor.stop()
    assert cache.stats().allowance == 1000
