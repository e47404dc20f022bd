"""What a cache says of itself."""

import dataclasses
import math
from typing import Any

import pytest

from cache_kit import Clock
from mempool.cache import Cache, CacheStats


def counted(cache: Cache[Any, Any], *names: str) -> tuple[Any, ...]:
    stats = cache.stats()
    return tuple(getattr(stats, name) for name in names)


def test_a_new_cache_counted_nothing() -> None:
    stats = Cache[int, int](5).stats()
    zero = {name: value for name, value in dataclasses.asdict(stats).items() if value}
    assert zero.pop("own_bytes", 0) >= 0
    assert zero == {"maxsize": 5, "allowance": 5}
    assert stats.max_bytes is None
    assert stats.hit_ratio == 0


def test_a_record_does_not_change() -> None:
    cache: Cache[int, int] = Cache(5)
    stats: Any = cache.stats()
    cache[1] = 1
    assert stats.insertions == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.hits = 5


def test_what_is_a_hit_and_what_a_miss() -> None:
    cache: Cache[Any, int] = Cache(5)
    cache["a"] = 1
    uses: list[tuple[Any, tuple[int, int]]] = [
        (lambda: cache["a"], (1, 0)),
        (lambda: cache.get("a"), (1, 0)),
        (lambda: cache.setdefault("a", 2), (1, 0)),
        (lambda: cache.get_or_load("a", str), (1, 0)),
        (lambda: cache.get("x"), (0, 1)),
        (lambda: cache.get("x", 5), (0, 1)),
        (lambda: "a" in cache, (0, 0)),
        (lambda: "x" in cache, (0, 0)),
        (lambda: list(cache.items()), (0, 0)),
        (lambda: cache == {"a": 1}, (0, 0)),
        (lambda: cache.pop("x", None), (0, 0)),
        (lambda: cache.__setitem__("a", 1), (0, 0)),
        (lambda: cache.namespace("n").get(1), (0, 1)),
        (lambda: cache.setdefault("b", 2), (0, 1)),
        (lambda: cache.get_or_load("c", len), (0, 1)),
    ]
    for use, expected in uses:
        hits, misses = counted(cache, "hits", "misses")
        use()
        after = counted(cache, "hits", "misses")
        assert (after[0] - hits, after[1] - misses) == expected
    stats = cache.stats()
    assert stats.hit_ratio == stats.hits / (stats.hits + stats.misses) == 4 / 9


def test_what_left_is_counted_by_its_cause() -> None:
    clock = Clock()
    cache: Cache[Any, int] = Cache(10, clock=clock, policy="lru")
    for number in range(12):
        cache[number] = number
    cache[11] = 5
    del cache[11]
    cache.pop(10)
    cache.invalidate(9)
    cache.put("t", 1, ttl=1)
    clock.now = 1
    cache.expire()
    names = ("insertions", "evictions", "replacements", "deletions", "invalidations", "expirations", "entries")
    assert counted(cache, *names) == (14, 2, 1, 2, 1, 1, 7)
    cache.clear()
    assert counted(cache, "deletions", "entries", "currsize") == (9, 0, 0)


def test_insertions_less_what_left_is_what_is_there() -> None:
    cache: Cache[int, int] = Cache(5)
    for number in range(200):
        cache[number % 17] = number
        if number % 3 == 0:
            cache.pop(number % 5, None)
        if number % 7 == 0:
            cache.invalidate(number % 4)
        stats = cache.stats()
        left = stats.evictions + stats.replacements + stats.deletions + stats.invalidations
        assert stats.insertions - left == stats.entries == len(cache)


def test_refused_values_are_counted() -> None:
    cache: Cache[int, int] = Cache(5, getsizeof=lambda value: value)
    for _ in range(3):
        with pytest.raises(ValueError, match="too large"):
            cache[1] = 6
    assert cache.get_or_load(2, lambda key: 7) == 7
    assert counted(cache, "rejections", "insertions", "loads") == (4, 0, 1)


def test_loads_and_their_errors_are_counted() -> None:
    cache: Cache[str, int] = Cache(5)
    assert cache.get_or_load("abc", len) == 3
    with pytest.raises(ZeroDivisionError):
        cache.get_or_load("x", lambda key: 1 // 0)
    assert counted(cache, "loads", "load_errors", "hits", "misses") == (1, 1, 0, 2)
    assert 0 < cache.stats().load_seconds < 60


def test_reading_disturbs_nothing() -> None:
    clock = Clock()
    cache: Cache[str, int] = Cache(2, ttl=5, clock=clock, policy="lru")
    cache["a"], cache["b"] = 1, 2
    clock.now = 5
    first = cache.stats()
    assert first.entries == 2
    assert cache.stats() == first
    clock.now = 0
    cache["c"] = 3
    assert sorted(cache) == ["b", "c"]


def test_bounds_as_they_are() -> None:
    cache: Cache[int, bytes] = Cache(50, max_bytes="1 MiB")
    assert counted(cache, "maxsize", "max_bytes", "allowance") == (50, 1 << 20, 1 << 20)
    cache[1] = bytes(1000)
    assert cache.stats().currsize == cache.currsize >= 1000
    cache.resize(math.inf, max_bytes="2 MiB")
    assert counted(cache, "maxsize", "max_bytes", "allowance") == (math.inf, 2 << 20, 2 << 20)


def test_each_field_is_explained() -> None:
    text = (CacheStats.__doc__ or "").partition("Attributes")[2]
    assert {field.name for field in dataclasses.fields(CacheStats) if field.name not in text} == set()
