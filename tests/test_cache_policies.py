"""Every policy, and every alias of Redis, keeps to one contract."""

import random
from typing import Any

import pytest

from cache_attackers import check
from cache_kit import Clock, Told, hits
from mempool.cache import Cache, CacheFull, Cause
from mempool.cache.policies import POLICIES

LASTING = [name for name, policy in POLICIES.items() if policy.fixing]
VOLATILE = [name for name in LASTING if name != "noeviction"]
EVICTING = [name for name in POLICIES if name != "noeviction"]
REDIS = {f"{who}-{how}" for who in ("allkeys", "volatile") for how in ("lru", "lfu", "random")} | {
    "noeviction",
    "volatile-ttl",
}


def put(cache: Cache[Any, Any], key: Any, value: Any = None, **options: Any) -> None:
    """Put an entry that any policy may evict."""
    cache.put(key, value, **{"ttl": 1e9 if cache.policy in VOLATILE else None} | options)


def size_of(value: Any) -> int:
    return value if isinstance(value, int) else 1


def test_the_names_of_redis_are_there() -> None:
    assert set(POLICIES) >= REDIS | {"lru", "lfu", "fifo", "random", "sieve", "s3fifo"}


@pytest.mark.parametrize("name", POLICIES)
def test_a_cache_knows_its_policy(name: str) -> None:
    assert Cache(3, policy=name).policy == name


@pytest.mark.parametrize("name", EVICTING)
@pytest.mark.parametrize("bound", [1, 2, 3, 10, 64])
def test_bounds_hold_and_the_newest_stays(name: str, bound: int) -> None:
    rng = random.Random(bound)
    cache: Cache[int, Any] = Cache(bound, policy=name)
    for number in range(600):
        key = int(200 ** rng.random())
        if rng.random() < 0.5 and cache.get(key) is not None:
            continue
        put(cache, key, number)
        assert cache[key] == number
        assert len(cache) == cache.currsize <= bound
    assert len(check(cache)) == bound
    assert cache.stats().insertions == len(cache) + cache.stats().evictions + cache.stats().replacements


@pytest.mark.parametrize("name", EVICTING)
def test_sizes_of_all_kinds(name: str) -> None:
    rng = random.Random(name)
    cache: Cache[int, int] = Cache(1_000_000, policy=name, getsizeof=size_of)
    held: dict[int, int] = {}
    told = []
    for _ in range(3_000):
        key, size = rng.randrange(300), rng.choice([0, 1, 7, int(1_000_000 ** rng.random()), 1_000_000])
        put(cache, key, size)
        held[key] = size
        assert cache[key] == size
        assert cache.currsize <= 1_000_000
        told.append(len(cache))
    assert cache.currsize == sum(check(cache).values())
    assert all(held[key] == size for key, size in cache.items())
    assert max(told) > 10


@pytest.mark.parametrize("name", EVICTING)
def test_the_largest_bound(name: str) -> None:
    """Where only the number of entries binds, and sizes are as large as can be."""
    cache: Cache[int, int] = Cache(5, max_bytes=1 << 63, policy=name, getsizeof=size_of)
    for number in range(100):
        put(cache, number, (1 << 62) - 1 if number % 2 else 0)
        assert number in cache
        assert len(cache) <= 5
    assert cache.currsize < 1 << 63
    with pytest.raises(ValueError, match="too large"):
        put(cache, 1, 1 << 63)
    put(cache, 1000, (1 << 63) - 1)
    assert cache[1000] == (1 << 63) - 1
    assert cache.currsize == (1 << 63) - 1


@pytest.mark.parametrize("name", EVICTING)
def test_weightless_entries_go_when_their_number_is_too_large(name: str) -> None:
    cache: Cache[int, int] = Cache(7, max_bytes=100, policy=name, getsizeof=lambda value: 0)
    for number in range(50):
        put(cache, number)
        assert number in cache
    assert len(check(cache)) == 7


@pytest.mark.parametrize("name", EVICTING)
def test_a_bound_that_changes(name: str) -> None:
    rng = random.Random(name)
    cache: Cache[int, Any] = Cache(50, policy=name)
    for _ in range(100):
        bound = rng.choice([0, 1, 2, 3, 20, 200])
        cache.resize(bound)
        assert len(cache) <= bound
        for number in range(rng.randrange(60)):
            key = int(300 ** rng.random())
            if bound and cache.get(key) is None:
                put(cache, key, number)
    check(cache)


@pytest.mark.parametrize("name", EVICTING)
def test_removals_anywhere(name: str) -> None:
    rng = random.Random(name)
    cache: Cache[int, int] = Cache(40, policy=name)
    for number in range(2_000):
        put(cache, number, number)
        for _ in range(rng.randrange(3)):
            cache.get(rng.randrange(number + 1))
        if rng.random() < 0.6:
            key = rng.choice(list(cache))
            assert cache.pop(key) == key
            assert key not in cache
        if rng.random() < 0.05 and cache:
            assert cache.popitem()[0] not in cache
        if rng.random() < 0.005:
            cache.clear()
            assert len(cache) == 0
    assert sorted(check(cache)) == sorted(cache)


@pytest.mark.parametrize("name", POLICIES)
def test_popitem_gives_each_once(name: str) -> None:
    cache: Cache[int, int] = Cache(30, policy=name)
    for number in range(30):
        put(cache, number, -number, priority=number % 3)
    given = [cache.popitem() for _ in range(30)]
    assert sorted(given) == [(number, -number) for number in range(30)]
    if name != "noeviction" and name != "volatile-ttl":
        assert [key % 3 for key, _ in given] == sorted(key % 3 for key, _ in given)
    with pytest.raises(KeyError):
        cache.popitem()


@pytest.mark.parametrize("name", sorted(set(EVICTING) - {"volatile-ttl"}))
def test_lower_priorities_go_first(name: str) -> None:
    told = Told()
    cache: Cache[int, int] = Cache(30, policy=name, on_evict=told)
    for number in range(30):
        put(cache, number, priority=number % 3 - 1)
    for number in range(100, 120):
        put(cache, number, priority=100)
    assert [key % 3 for key, _, _ in told.all] == [0] * 10 + [1] * 10
    cache.resize(10)
    assert all(key >= 100 for key in cache)


@pytest.mark.parametrize("name", EVICTING)
def test_the_newest_stays_though_its_priority_is_the_lowest(name: str) -> None:
    cache: Cache[int, int] = Cache(3, policy=name)
    for number in range(20):
        put(cache, number, priority=-number)
        assert number in cache
    put(cache, 19, priority=5)
    put(cache, 20, priority=-100)
    assert 20 in cache
    assert len(check(cache)) == 3


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_over_goes_before_anybody(name: str) -> None:
    clock, told = Clock(), Told()
    cache: Cache[int, int] = Cache(10, policy=name, clock=clock, on_evict=told)
    for number in range(10):
        cache.put(number, number, ttl=5 if number % 2 else 50, priority=number)
    clock.now = 10
    for number in range(100, 105):
        cache.put(number, number)
        assert number in cache
    assert {key for key, _, cause in told.all if cause is Cause.EXPIRED} == {1, 3, 5, 7, 9}
    assert sorted(check(cache)) == [0, 2, 4, 6, 8, 100, 101, 102, 103, 104]


@pytest.mark.parametrize("name", POLICIES)
def test_iteration_sees_each_that_stays(name: str) -> None:
    cache: Cache[int, int] = Cache(100, policy=name)
    for number in range(100):
        put(cache, number)
    seen = []
    for key in cache:
        seen.append(key)
        if key % 10 == 0:
            cache.pop((key + 5) % 100, None)
    assert len(seen) == len(set(seen))
    assert set(seen) >= set(cache)


# ---- those that may not evict all


@pytest.mark.parametrize("name", LASTING)
def test_a_full_cache_says_so_and_is_as_it_was(name: str) -> None:
    told = Told()
    cache: Cache[str, int] = Cache(10, policy=name, getsizeof=size_of, on_evict=told)
    cache["a"], cache["b"] = 6, 3
    before, own = cache.stats(), check(cache)
    for key, size in (("c", 2), ("b", 5), ("c", 10)):
        with pytest.raises(CacheFull):
            cache[key] = size
        with pytest.raises(CacheFull):
            cache.put(key, size, ttl=5)
    with pytest.raises(ValueError, match="too large"):
        cache["a"] = 11
    assert check(cache) == own == {"a": 6, "b": 3}
    assert not told.all
    after = cache.stats()
    assert (after.insertions, after.evictions, after.currsize) == (before.insertions, 0, 9)
    cache["a"] = 7
    cache["b"] = 0
    assert check(cache) == {"a": 7, "b": 0}


@pytest.mark.parametrize("name", VOLATILE)
def test_only_those_with_an_end_go(name: str) -> None:
    told = Told()
    cache: Cache[Any, int] = Cache(20, policy=name, on_evict=told, clock=Clock())
    for number in range(10):
        cache[number] = number
    for number in range(100, 160):
        cache.put(number, number, ttl=1e6 - number)
        assert set(range(10)) | {number} <= set(cache)
    cache.put(5, 5, ttl=1)
    cache.put(150, 150, ttl=float("inf"))
    for number in range(200, 2_000):
        cache.put(number, number, ttl=1e6)
    assert 5 not in cache
    assert {*range(5), *range(6, 10), 150} <= set(check(cache))
    for number in range(300, 310):
        cache[number] = number  # one that lasts takes the place of one that does not
    with pytest.raises(CacheFull):
        cache[400] = 1
    assert {cause for _, _, cause in told.all} == {Cause.EVICTED, Cause.REPLACED}


def test_volatile_ttl_goes_by_the_next_end() -> None:
    told = Told()
    cache: Cache[int, int] = Cache(50, policy="volatile-ttl", on_evict=told, clock=Clock())
    ends = random.Random(3).sample(range(1, 1_000), 50)
    for key, end in enumerate(ends):
        cache.put(key, end, ttl=end, priority=key % 5)
        cache.get(0)
    cache.resize(10)
    assert [(key % 5, end) for key, end, _ in told.all] == sorted((key % 5, end) for key, end in enumerate(ends))[:40]
    cache.put(1_000, 0, ttl=0.5, priority=-1)  # it is the next to go, and stays: it was just put
    assert 1_000 in cache
    assert cache.popitem()[0] == 1_000


@pytest.mark.parametrize("name", VOLATILE)
def test_an_entry_may_begin_and_cease_to_last(name: str) -> None:
    rng = random.Random(name)
    cache: Cache[int, int] = Cache(10, policy=name)
    lasting: set[int] = set()
    for number in range(1_500):
        key, lasts = rng.randrange(25), rng.random() < 0.3
        try:
            cache.put(key, number, ttl=float("inf") if lasts else 1_000.0 + number, priority=rng.randrange(3))
        except CacheFull:
            assert len(lasting - {key}) == 10
        else:
            (lasting.add if lasts else lasting.discard)(key)
            assert key in cache
        if rng.random() < 0.1 and lasting:
            lasting.remove(gone := rng.choice(sorted(lasting)))
            del cache[gone]
        assert lasting <= set(cache)
        assert len(cache) <= 10


# ---- what each is for


def hit_ratio(name: str, keys: list[int], size: int) -> float:
    return hits(Cache(size, policy=name), keys) / len(keys)


def test_where_frequency_counts_others_beat_lru() -> None:
    draw = random.Random(1).random
    popular = [int(20_000 ** draw()) for _ in range(60_000)]
    ratios = {name: hit_ratio(name, popular, 200) for name in ("lru", "fifo", "lfu", "sieve", "s3fifo")}
    assert min(ratios["sieve"], ratios["s3fifo"], ratios["lfu"]) > ratios["lru"] + 0.01
    assert ratios["lru"] > ratios["fifo"]


def test_a_loop_longer_than_the_cache_starves_lru_alone() -> None:
    keys = [number % 120 for number in range(12_000)]
    assert hit_ratio("lru", keys, 100) == 0
    assert hit_ratio("random", keys, 100) > 0.4


def sieve_hits(trace: list[int], size: int) -> int:
    """As its paper has it: somebody goes first, then the new one comes."""
    queue: list[int] = []
    used: set[int] = set()
    hand = hits = 0
    for key in trace:
        if key in queue:
            hits += 1
            used.add(key)
            continue
        if len(queue) == size:
            while queue[hand] in used:
                used.remove(queue[hand])
                hand = (hand + 1) % size
            del queue[hand]
            hand %= size - 1 or 1
        queue.append(key)
    return hits


@pytest.mark.parametrize("size", [1, 2, 3, 10, 50])
def test_sieve_has_the_hits_of_its_paper(size: int) -> None:
    rng = random.Random(5)
    trace = [min(int(rng.paretovariate(0.7)), 2000) + number // 500 for number in range(20_000)]
    assert hits(Cache(size, policy="sieve"), trace) == sieve_hits(trace, size)


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"])
def test_resize_below_what_may_not_go_is_refused(policy: str) -> None:
    cache: Cache[int, int] = Cache(10, policy=policy, getsizeof=lambda value: value)
    for number in range(5):
        cache[number] = 2
    before = cache.stats()
    with pytest.raises(CacheFull, match="5 entries of size 10 that may not be evicted, where the bound would be 9"):
        cache.resize(9)
    assert cache.stats() == before
    cache[0] = 1
    cache.resize(9)
    assert (len(cache), cache.currsize, cache.maxsize) == (5, 9, 9)
    cache[1] = 1
    assert cache.currsize == 8


def test_resize_counts_entries_that_may_not_go() -> None:
    cache: Cache[int, bytes] = Cache(10, max_bytes="1MiB", policy="noeviction")
    for number in range(10):
        cache[number] = b""
    with pytest.raises(CacheFull):
        cache.resize(9)
    assert (cache.maxsize, cache.max_bytes, len(cache)) == (10, 1 << 20, 10)
    cache.resize(10, max_bytes="1KiB")
    assert (cache.maxsize, cache.max_bytes, len(cache)) == (10, 1 << 10, 10)


def test_resize_has_those_go_that_may() -> None:
    cache: Cache[int, int] = Cache(10, policy="volatile-lru")
    for number in range(5):
        cache.put(number, number, ttl=None if number % 2 else 100)
    cache.resize(2)
    assert sorted(cache) == [1, 3]
