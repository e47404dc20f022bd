"""Weak values and several threads: what is held is found, what was removed is not, and nothing is counted twice."""

import gc
import itertools
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from mempool.cache import WeakCache
from mempool.cache._policies import walk
from support import together

ROUNDS = 2000


class Value:
    """Knows its key."""

    def __init__(self, key: object) -> None:
        self.key = key


class Garbage(Value):
    """Dies in a collection, in whichever thread that is."""

    def __init__(self, key: object) -> None:
        super().__init__(key)
        self.me = self


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Change threads and collect as often as can be."""
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(50, 2, 2)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)


def check(cache: WeakCache[Any, Any]) -> None:
    """What holds when nobody is at it: each strong reference is of an entry, and each entry is alive."""
    gc.collect()
    found = dict(walk(cache._references, 2))
    assert len(cache) == len(list(cache)) == len(found)
    assert all(reference() is not None and not reference.left for reference in found.values())
    if cache._band is not None:
        assert set(map(id, walk(cache._band, 0))) <= set(map(id, found.values()))


@pytest.mark.parametrize("keep", [{}, {"keep_items": 3}, {"keep_bytes": 200}])
@pytest.mark.parametrize("kind", [Value, Garbage])
def test_any_steps(kind: type[Value], keep: dict[str, Any]) -> None:
    cache: WeakCache[int, Value] = WeakCache(**keep)

    def work() -> None:
        mine = []
        for number in range(ROUNDS):
            key = number % 5
            value = cache[key] = kind(key)
            mine.append(value)
            found = cache.get(key)
            assert found is None or found.key == key
            found = cache.setdefault(key, value)
            assert found.key == key
            if number % 3 == 0:
                popped = cache.pop(key, None)
                assert popped is None or popped.key == key
            if number % 7 == 0:
                mine.clear()
                assert all(item.key == key for key, item in cache.items())
            if number % 50 == 0:
                cache.clear()
            if number % 11 == 0:
                cache.shrink(1 << 20)
            assert 0 <= len(cache) <= 5 + 40  # what the collector has found and not called back yet is counted

    together([work] * 4)
    check(cache)
    cache.clear()
    check(cache)
    assert cache.stats().kept == 0


def test_what_a_thread_holds_it_finds() -> None:
    cache: WeakCache[int, Garbage] = WeakCache()

    def work(first: int) -> None:
        for number in range(ROUNDS):
            key = first * ROUNDS + number % 3
            value = Garbage(key)
            cache[key] = value
            assert cache[key] is value
            assert cache.setdefault(key, Garbage(key)) is value
            assert key in cache
            assert cache.pop(key) is value
            assert cache.get(key) is None

    together([lambda first=first: work(first) for first in range(4)])  # type: ignore[misc]
    check(cache)
    assert len(cache) == 0


def test_one_wins_setdefault() -> None:
    cache: WeakCache[int, Value] = WeakCache()
    for key in range(200):
        made = together([lambda key=key: cache.setdefault(key, Value(key)) for _ in range(3)])  # type: ignore[misc]
        assert made[0] is made[1] is made[2]


def test_one_pops() -> None:
    cache: WeakCache[int, Value] = WeakCache(keep_items=1000)
    for key in range(1000):
        cache[key] = Value(key)

    def work() -> list[int]:
        mine = []
        while True:
            try:
                mine.append(cache.popitem()[0])
            except KeyError:
                return mine

    assert sorted(itertools.chain(*together([work] * 4))) == list(range(1000))


def test_iteration_while_values_die() -> None:
    cache: WeakCache[int, Value] = WeakCache()
    fixed = [Value(key) for key in range(100)]
    cache.update((value.key, value) for value in fixed)
    stop = threading.Event()

    def churn() -> None:
        try:
            for number in range(ROUNDS):
                mine = [Garbage(key) for key in range(1000, 1020)]
                cache.update((value.key, value) for value in mine)
                if number % 100 == 0:
                    gc.collect()
        finally:
            stop.set()

    def look() -> None:
        while not stop.is_set():
            keys = list(cache)
            assert sorted(key for key in keys if key < 100) == list(range(100))
            assert all(value.key == key for key, value in cache.items())
            assert len(cache) >= 100

    together([churn, look, look])


def test_a_key_whose_code_uses_the_cache() -> None:
    """No lock is held while keys are hashed and compared."""
    cache: WeakCache[Any, Value] = WeakCache(keep_items=10)

    class Key:
        def __init__(self, number: int) -> None:
            self.number = number

        def __hash__(self) -> int:
            len(cache), cache.get(-1)
            return self.number % 2

        def __eq__(self, other: object) -> bool:
            list(cache.items())
            return isinstance(other, Key) and self.number == other.number

    values = [Value(Key(number)) for number in range(10)]

    def work() -> None:
        for _ in range(20):
            for value in values:
                cache[value.key] = value
            for value in values:
                assert cache.get(value.key) in (value, None)
            cache.pop(values[3].key, None)

    together([work] * 3)
    check(cache)


def test_values_whose_death_uses_the_cache() -> None:
    cache: WeakCache[int, Any] = WeakCache(keep_items=5)
    deaths: list[int] = []

    class Loud(Value):
        def __del__(self) -> None:
            deaths.append(len(cache))
            cache[1000] = kept
            cache.pop(self.key, None)

    kept = Value(1000)

    def work() -> None:
        for number in range(500):
            cache[number % 20] = Loud(number % 20)

    together([work] * 3)
    cache.clear()
    gc.collect()
    assert len(deaths) == 1500
    check(cache)


def test_references_are_as_many_as_values() -> None:
    value = Value(1)
    cache = WeakCache({1: value}, keep_items=5)
    for _ in range(100):
        cache[1] = value
    assert weakref.getweakrefcount(value) == 1
