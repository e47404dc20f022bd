"""Many threads and one cache."""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from cache_kit import Own, Told
from mempool.cache import Cache, Cause
from support import together

THREADS = 4
ROUNDS = 3000


@pytest.fixture(autouse=True)
def _often() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def check(cache: Cache[Any, Any]) -> None:
    """What holds at rest."""
    items = list(cache.items())
    stats = cache.stats()
    left = stats.evictions + stats.expirations + stats.deletions + stats.replacements + stats.invalidations
    assert len(items) == len(cache) == len({key for key, _ in items}) == stats.insertions - left
    assert all(cache._peek(key)[0] is value for key, value in items)
    assert cache.currsize <= (cache.max_bytes or cache.maxsize)


@pytest.mark.parametrize("policy", ["lru", "fifo", "random", None])
def test_everything_at_once(policy: str | None) -> None:
    def work(seed: int) -> None:
        for number in range(ROUNDS):
            key = (number * 7919 + seed * 104729) % 61
            uses[number % len(uses)](key, number)
            if number % 500 == 0:
                cache.resize(20 + seed)
                cache.expire()
                cache.stats()

    def look(key: int, number: int) -> None:
        found = cache.get(key)
        assert found is None or found[0] == key

    def walk(key: int, number: int) -> None:
        for other, value in cache.items():
            assert value[0] == other

    uses: list[Callable[[int, int], object]] = [
        lambda key, number: cache.update({key: (key, number)}),
        lambda key, number: cache.pop(key, None),
        lambda key, number: cache.put(key, (key, number), ttl=0.001 if number % 3 else 100, tags=(key % 5,)),
        lambda key, number: cache.invalidate_tag(key % 5),
        lambda key, number: cache.setdefault(key, (key, -1)),
        look,
        walk,
    ]
    cache: Cache[int, tuple[int, int]] = Cache(30, policy=policy)
    together([partial(work, seed) for seed in range(THREADS)])
    time.sleep(0.002)  # what is to expire has, and does not while it is counted
    check(cache)
    cache.clear()
    assert len(cache._tags) == 0


def test_keys_that_run_python() -> None:
    def work(seed: int) -> None:
        for number in range(600):
            key = Own((number + seed) % 13, hashed=number % 3)
            cache[key] = number
            assert cache.get(key, number) is not None
            if number % 3 == 0:
                cache.pop(Own(number % 13, hashed=number % 3), None)

    cache: Cache[Own, int] = Cache(20)
    together([partial(work, seed) for seed in range(THREADS)])
    check(cache)


def test_setdefault_has_one_winner() -> None:
    for _ in range(50):
        cache: Cache[str, object] = Cache(10)
        values = [object() for _ in range(THREADS)]
        found = together([partial(cache.setdefault, "a", value) for value in values])
        assert {id(value) for value in found} == {id(cache["a"])}
        assert cache.stats().insertions == 1


def test_each_removal_is_told_once() -> None:
    def remove(key: int) -> Any:
        return cache.pop(key, None)

    told = Told()
    cache: Cache[int, int] = Cache(1000, on_evict=told)
    for key in range(200):
        cache[key] = key + 1
        found = together([partial(remove, key)] * 2)
        assert sorted(value is None for value in found) == [False, True]
    assert told.take() == sorted(
        ((key, key + 1, Cause.DELETED) for key in range(200)), key=lambda entry: repr(entry[0])
    )


def test_popitem_gives_each_entry_to_one() -> None:
    def take() -> list[int]:
        taken = []
        while True:
            try:
                taken.append(cache.popitem()[0])
            except KeyError:
                return taken

    cache: Cache[int, int] = Cache(2000)
    cache.update((number, number) for number in range(2000))
    taken = together([take] * THREADS)
    assert sorted(key for keys in taken for key in keys) == list(range(2000))


def test_counts_are_complete() -> None:
    def look() -> None:
        for key in range(ROUNDS):
            cache.get(key % 20)

    cache: Cache[int, int] = Cache(10)
    cache.update((number, number) for number in range(10))
    together([look] * THREADS)
    stats = cache.stats()
    assert stats.hits + stats.misses == THREADS * ROUNDS
    assert stats.hits == stats.misses


def test_bounds_hold_at_every_moment() -> None:
    def put(seed: int) -> int:
        most = 0
        for number in range(ROUNDS):
            cache[number % 97, seed] = bytes(number % 300)
            most = max(most, cache.currsize)
        return most

    cache: Cache[Any, bytes] = Cache(max_bytes=5000)
    assert 4000 < max(together([partial(put, seed) for seed in range(THREADS)])) <= 5000
    check(cache)


def test_two_that_resize_and_one_that_reads() -> None:
    def resize(bound: int) -> None:
        for _ in range(300):
            cache.resize(bound)
            cache.update((number, number) for number in range(20))

    cache: Cache[int, int] = Cache(10)
    together([partial(resize, 5), partial(resize, 15), lambda: [len(cache) for _ in range(2000)]])
    assert len(cache) <= cache.maxsize in (5, 15)
    assert cache.stats().allowance == cache.maxsize
    check(cache)


def test_namespaces_of_one_name_made_at_once() -> None:
    def put(seed: int) -> None:
        space = cache.namespace("n")
        for number in range(200):
            space[number] = seed

    cache: Cache[Any, int] = Cache(1000)
    together([partial(put, seed) for seed in range(THREADS)])
    assert len(cache) == len(cache.namespace("n")) == 200
