"""TinyLfu: what its sketch counts, whom it admits, how its window adapts, and that its segments are the cache."""

import bisect
import itertools
import random
from collections import OrderedDict
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cache_kit import hits
from mempool.cache import Cache
from mempool.cache._policies import SketchProbe, probe_tinylfu

SEGMENTS = ("window", "probation", "protected")


def lru_hits(trace: Iterable[int], maxsize: int) -> int:
    """Hits of a get-or-put loop over an exact LRU."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in held:
            hits += 1
            held.move_to_end(key)
        else:
            held[key] = None
            if len(held) > maxsize:
                held.popitem(last=False)
    return hits


def zipf(keys: int, count: int, exponent: float, seed: int) -> list[int]:
    """Requests for key k as often as 1 / (k + 1) ** exponent."""
    drawn = random.Random(seed)
    sums = list(itertools.accumulate((key + 1) ** -exponent for key in range(keys)))
    return [bisect.bisect(sums, drawn.random() * sums[-1]) for _ in range(count)]


def with_scans(trace: list[int], every: int, length: int) -> list[int]:
    """The same with keys in between that are seen once."""
    fresh = itertools.count(10**6)
    mixed: list[int] = []
    for at in range(0, len(trace), every):
        mixed += trace[at : at + every]
        mixed += itertools.islice(fresh, length)
    return mixed


def share(cache: Cache[int, int]) -> float:
    """The window's."""
    found: float = probe_tinylfu(cache)["share"]
    return found


def check(cache: Cache[int, int]) -> None:
    """Its segments have each entry once, with its size, and its shadows are sound."""
    inside = probe_tinylfu(cache)
    keys = [key for name in SEGMENTS for key in inside[name][0]]
    assert sorted(keys) == sorted(cache)
    assert all(len(inside[name][0]) == inside[name][1] for name in SEGMENTS)
    assert sum(inside[name][2] for name in SEGMENTS) == cache.currsize
    assert inside["order"] == [key for name in SEGMENTS[1:] + SEGMENTS[:1] for key in reversed(inside[name][0])]
    assert all(sound for *_, sound in inside["shadows"])
    assert all(size <= limit for _, size, limit, _ in inside["shadows"])


# ---- the sketch ----


def test_a_sketch_counts_what_it_saw() -> None:
    sketch = SketchProbe(1000)
    for hash in range(0, 2**32, 2**23 + 12345):
        assert sketch.estimate(hash) == 0
    for times in range(1, 10):
        sketch.add(77)
        assert sketch.estimate(77) == times


def test_estimates_are_never_too_low_and_seldom_too_high() -> None:
    sketch = SketchProbe(1000)
    drawn = random.Random(1)
    seen = {drawn.randrange(2**32): drawn.randrange(1, 9) for _ in range(1500)}
    for hash, times in seen.items():
        for _ in range(times):
            sketch.add(hash)
    assert sketch.counted == sum(seen.values()) < sketch.sample
    wrong = [sketch.estimate(hash) - times for hash, times in seen.items()]
    assert min(wrong) == 0
    assert sum(map(bool, wrong)) < 5


def test_a_counter_that_is_full_stays_and_ages_nothing() -> None:
    sketch = SketchProbe(8)
    for _ in range(1000):
        sketch.add(5)
    assert sketch.estimate(5) == 15
    assert sketch.counted == 15


def test_counters_are_halved_when_the_sample_is_full() -> None:
    sketch = SketchProbe(100)
    for _ in range(12):
        sketch.add(1)
    hashes = iter(range(10**6, 2**32, 10**6 + 7))
    while sketch.counted + 1 < sketch.sample:
        sketch.add(next(hashes))
    assert sketch.estimate(1) >= 12
    before = sketch.estimate(1)
    sketch.add(next(hashes))
    assert sketch.estimate(1) == before // 2
    assert sketch.counted < sketch.sample // 2  # what was seen once is lost, and not of the next sample


def test_growing_keeps_estimates() -> None:
    sketch = SketchProbe(50)
    seen = {hash: 1 + hash % 5 for hash in range(1, 2**32, 2**27 + 991)}
    for hash, times in seen.items():
        for _ in range(times):
            sketch.add(hash)
    for slots in (60, 100, 101, 777, 5000):
        sketch.grow(slots)
        assert sketch.sample == 10 * slots
        assert all(sketch.estimate(hash) >= times for hash, times in seen.items())
    assert sum(sketch.estimate(hash) != times for hash, times in seen.items()) <= 3
    sketch.grow(8)
    assert sketch.sample == 50_000


# ---- hit ratios ----


@pytest.mark.parametrize("exponent", [0.7, 0.9, 1.1])
@pytest.mark.parametrize("size", [30, 300])
def test_frequency_beats_recency_on_zipf(exponent: float, size: int) -> None:
    trace = zipf(3000, 40_000, exponent, seed=1)
    assert hits(Cache(size), trace) > lru_hits(trace, size) * 1.04


def test_scans_do_not_wash_the_cache_out() -> None:
    trace = with_scans(zipf(2000, 40_000, 1.0, seed=2), 1000, 500)
    assert hits(Cache(200), trace) > lru_hits(trace, 200) * 1.15


@pytest.mark.parametrize("size", [100, 250, 500])
def test_of_a_loop_that_does_not_fit_a_part_stays(size: int) -> None:
    trace = list(range(1000)) * 40
    assert lru_hits(trace, size) == 0
    assert hits(Cache(size), trace) > 0.8 * size * 40


@pytest.mark.parametrize("size", [20, 100, 400, 1500])
def test_where_recency_is_all_it_is_lru(size: int) -> None:
    drawn = random.Random(3)
    trace = [at // 3 - int(drawn.expovariate(1 / size)) for at in range(40_000)]
    assert hits(Cache(size), trace) > lru_hits(trace, size) - 0.01 * len(trace)


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_tiny_caches_are_never_much_worse_than_lru(size: int) -> None:
    for trace in (
        zipf(100, 20_000, 1.0, seed=4),
        with_scans(zipf(50, 20_000, 1.2, seed=5), 100, 30),
        list(range(20)) * 500,
        [key for key in range(5000) for _ in range(3)],
    ):
        cache = Cache[int, int](size)
        assert hits(cache, trace) >= lru_hits(trace, size) - 0.01 * len(trace)
        assert len(cache) == size
        check(cache)


def test_before_it_is_full_nothing_leaves() -> None:
    cache = Cache[int, int](1000)
    for key in range(1000):
        cache[key] = key
        cache.get(key // 2)
    assert sorted(cache) == list(range(1000))


def test_the_same_requests_have_the_same_hits() -> None:
    trace = zipf(3000, 20_000, 0.8, seed=6)
    assert len({hits(Cache(250), trace) for _ in range(3)}) == 1


# ---- adaptation ----


def test_the_window_follows_the_load() -> None:
    cache = Cache[int, int](200)
    assert share(cache) == 1
    hits(cache, list(range(500)) * 40)
    assert share(cache) == 0.01
    hits(cache, [key // 4 - key % 4 * 40 for key in range(10**6, 10**6 + 60_000)])
    assert share(cache) == 1
    hits(cache, list(range(500)) * 40)
    assert share(cache) < 1
    check(cache)


def test_a_window_of_all_is_exact_lru() -> None:
    cache, trace = Cache[int, int](50), [key // 2 for key in range(5000)]
    hits(cache, trace)
    assert share(cache) == 1
    assert probe_tinylfu(cache)["window"][0] == list(range(2499, 2449, -1))


def test_what_is_deleted_leaves_the_shadows() -> None:
    cache = Cache[int, int](50)
    for key in range(60):
        cache[key] = 1
    assert [count for count, *_ in probe_tinylfu(cache)["shadows"]] == [50] * 4
    for key in list(cache):
        del cache[key]
    assert probe_tinylfu(cache)["shadows"][0][0] == 0
    hits(cache, range(60))
    cache.clear()
    assert [count for count, *_ in probe_tinylfu(cache)["shadows"]] == [0] * 4


# ---- sizes ----


def sized(max_bytes: int) -> Cache[int, int]:
    """A cache whose values are what they weigh."""
    return Cache(max_bytes=max_bytes, getsizeof=lambda value: value)


def in_small_window(max_bytes: int, size: int) -> Cache[int, int]:
    """A full cache of keys from 1000 on, each seen some 4 to 9 times of late, that found that a small window serves it best."""
    cache = sized(max_bytes)
    for key in list(range(1000, 1000 + 3 * max_bytes // size)) * 40:
        if cache.get(key) is None:
            cache[key] = size
    assert share(cache) == 0.01
    return cache


def after_twelve_requests(cache: Cache[int, int], key: int, size: int) -> int:
    """Have a key seen twelve times, with others seen once in between; how many of the old ones left."""
    before = sum(key >= 1000 for key in cache)
    for filler in range(100, 112):
        if cache.get(key) is None:
            cache[key] = size
        cache[filler] = 100
    check(cache)
    return before - sum(key >= 1000 for key in cache)


def test_a_small_candidate_must_be_worth_one_whose_place_it_takes() -> None:
    cache = in_small_window(10_000, 100)
    assert after_twelve_requests(cache, 7, 100) < 10
    assert 7 in cache


def test_a_large_candidate_must_be_worth_all_whose_place_it_takes() -> None:
    cache = in_small_window(10_000, 100)
    assert after_twelve_requests(cache, 7, 2000) <= 25  # while it was the newest it took some place, once
    assert 7 not in cache


def test_size_aware_admission_has_more_hits_than_lru() -> None:
    drawn = random.Random(8)
    size_of = [int(min(10 * drawn.paretovariate(0.7), 20_000)) for _ in range(2000)]
    trace = zipf(2000, 40_000, 0.9, seed=9)
    found = {}
    for policy in ("lru", "tinylfu"):
        cache: Cache[int, int] = Cache(max_bytes=sum(size_of) // 20, getsizeof=lambda value: value, policy=policy)
        found[policy] = 0
        for key in trace:
            if cache.get(key) is not None:
                found[policy] += 1
            elif size_of[key] <= cache.maxsize:
                cache[key] = size_of[key]
        assert cache.currsize <= cache.maxsize
    assert found["tinylfu"] > found["lru"] * 1.1


def test_one_value_may_take_the_whole_cache() -> None:
    cache = in_small_window(10_000, 100)
    cache[5] = 10_000
    assert list(cache) == [5]
    cache[6] = 1
    assert list(cache) == [6]
    check(cache)


def test_values_of_no_size_are_bounded_by_their_number() -> None:
    cache: Cache[int, int] = Cache(10, max_bytes=100, getsizeof=lambda value: value)
    for key in range(1000):
        cache[key] = 0
        assert cache.get(key) == 0
    assert len(cache) == 10
    check(cache)


def test_without_a_bound_nothing_leaves() -> None:
    cache = Cache[int, int](float("inf"))
    hits(cache, [key % 700 for key in range(5000)])
    assert len(cache) == 700
    check(cache)


def test_the_bound_may_change() -> None:
    cache, trace = Cache[int, int](1000), zipf(5000, 20_000, 0.9, seed=10)
    hits(cache, trace)
    for bound in (100, 5, 1, 3000, 200):
        cache._bounds(bound, bound)
        check(cache)
        assert all(limit <= bound for *_, limit, _ in probe_tinylfu(cache)["shadows"])
        found = hits(cache, trace)
        assert found >= lru_hits(trace, bound) - 0.01 * len(trace)
        check(cache)


def test_its_memory_is_small() -> None:
    for size in (100_000, 400_000):
        cache = Cache[int, int](size)
        for key in range(size):
            cache[key] = 0
        plain = Cache[int, int](size, policy="lru")
        for key in range(size):
            plain[key] = 0
        assert cache.stats().own_bytes - plain.stats().own_bytes < 11 * size


# ---- invariants ----


class Segments(RuleBasedStateMachine):
    """Whatever is done, the segments are the cache, and what was just written is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: Cache[int, int] = Cache(20, max_bytes=1000, getsizeof=lambda value: value)
        self.bound, self.most = 1000, 20

    @rule(key=st.integers(0, 60), size=st.sampled_from([0, 1, 7, 50, 51, 400, 999, 1000]))
    def put(self, key: int, size: int) -> None:
        if size <= self.bound:
            self.cache[key] = size
            assert self.cache.get(key) == size
        else:
            with pytest.raises(ValueError, match="too large"):
                self.cache[key] = size

    @rule(keys=st.lists(st.integers(0, 60), min_size=1, max_size=60), size=st.integers(1, 60))
    def load(self, keys: list[int], size: int) -> None:
        for key in keys:
            if self.cache.get(key) is None and size <= self.bound:
                self.cache[key] = size

    @rule(start=st.integers(0, 100), length=st.integers(1, 80), rounds=st.integers(1, 20))
    def loop(self, start: int, length: int, rounds: int) -> None:
        self.load(list(range(start, start + length)) * rounds, 10)

    @rule(key=st.integers(0, 60))
    def delete(self, key: int) -> None:
        self.cache.pop(key, None)
        assert key not in self.cache

    @precondition(lambda self: len(self.cache) > 0)
    @rule()
    def popitem(self) -> None:
        key, _ = self.cache.popitem()
        assert key not in self.cache

    @rule(bound=st.integers(1, 2000), most=st.integers(1, 40))
    def resize(self, bound: int, most: int) -> None:
        self.bound, self.most = bound, most
        self.cache._bounds(bound, most)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        assert not len(self.cache)

    @invariant()
    def is_sound(self) -> None:
        check(self.cache)
        assert self.cache.currsize <= self.bound
        assert len(self.cache) <= self.most


TestSegments = Segments.TestCase


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 1)), max_size=300), st.integers(1, 30))
def test_priorities_have_segments_each(requests: list[tuple[int, int]], size: int) -> None:
    cache = Cache[int, int](size)
    for key, level in requests:
        if cache.get(key) is None:
            cache._insert(key, 1, None, level, None, True)
    inside = probe_tinylfu(cache)
    assert all(len(inside[name][0]) == inside[name][1] for name in SEGMENTS)
    assert len(cache) <= size
    levels = dict(requests)
    once = {key for key, level in requests if {other for same, other in requests if same == key} == {level}}
    plain = {key for name in SEGMENTS for key in inside[name][0]}
    assert all((key in plain) == (levels[key] == 0) for key in cache if key in once)
