"""Weak keys: values live as long as their keys, within bounds."""

import copy
import gc
import weakref
from typing import Any

import pytest

import mempool
from mempool.cache import Cause, WeakKeyCache
from mempool.pressure import Shrinker
from monitor_kit import Clock
from support import KIB, together


class Name:
    """A key, equal to others of the same text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Name) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Name({self.text})"


def names(count: int) -> list[Name]:
    return [Name(str(number)) for number in range(count)]


def test_a_value_goes_with_its_key() -> None:
    keys = names(3)
    value = Name("value")
    cache = WeakKeyCache(dict.fromkeys(keys, value))
    alive = weakref.ref(value)
    del value, keys[1]
    assert (len(cache), sorted(key.text for key in cache)) == (2, ["0", "2"])
    keys.clear()
    assert (len(cache), alive()) == (0, None)


def test_keys_are_the_same_if_they_are_equal() -> None:
    first, second = Name("it"), Name("it")
    cache = WeakKeyCache({first: 1})
    assert (cache[second], second in cache) == (1, True)
    cache[second] = 2
    assert list(cache.items()) == [(first, 2)]
    del first  # the entry is that of the key that was put first, as in a WeakKeyDictionary
    assert second not in cache


def test_an_equal_key_that_comes_later_keeps_its_entry() -> None:
    """The callback of the one before runs late: after the collector found it, and after the new one came."""
    cache: WeakKeyCache[Any, int] = WeakKeyCache()
    newer = Name("it")

    class Circle(Name):
        def __init__(self) -> None:
            super().__init__("it")
            self.me = self

        def __del__(self) -> None:
            cache[newer] = 2

        __hash__ = Name.__hash__

    cache[Circle()] = 1
    gc.collect()
    assert cache[newer] == 2 or newer in cache


@pytest.mark.parametrize("value", [None, 0, "", [], Name("x")])
def test_any_value(value: Any) -> None:
    key = Name("it")
    cache: WeakKeyCache[Name, Any] = WeakKeyCache()
    assert cache.setdefault(key, value) is value
    assert cache.setdefault(key, 5) is value
    assert cache.get(key, 5) is value
    assert cache.pop(key) is value
    assert cache.get(key, 5) == 5
    with pytest.raises(KeyError):
        cache.pop(key)


@pytest.mark.parametrize("key", [None, 3, "text", ()])
def test_keys_that_cannot_be_held_weakly(key: Any) -> None:
    cache: WeakKeyCache[Any, int] = WeakKeyCache()
    for use in (cache.__getitem__, cache.get, cache.__delitem__, cache.pop, lambda key: cache.__setitem__(key, 1)):
        with pytest.raises(TypeError, match=type(key).__name__):
            use(key)
    assert key not in cache
    assert (key, 1) not in cache.items()
    assert len(cache) == 0


def test_a_missing_key_is_named() -> None:
    with pytest.raises(KeyError, match=r"Name\(it\)"):
        WeakKeyCache()[Name("it")]


def test_bounds_hold() -> None:
    keys = names(10)
    cache: WeakKeyCache[Name, Any] = WeakKeyCache(maxsize=3, policy="lru")
    for key in keys:
        cache[key] = key.text
    assert sorted(cache.values()) == ["7", "8", "9"]
    assert (cache.currsize, cache.maxsize) == (3, 3)
    assert cache.popitem() == (keys[7], "7")
    large: WeakKeyCache[Name, bytes] = WeakKeyCache(max_bytes="100KiB")
    for key in keys:
        large[key] = bytes(30 * KIB)
        assert large.currsize <= 100 * KIB
    assert len(large) == 3
    with pytest.raises(ValueError, match="too large"):
        large[keys[0]] = bytes(101 * KIB)


def test_entries_expire() -> None:
    clock, keys = Clock(), names(2)
    cache = WeakKeyCache({keys[0]: 1}, ttl=10, clock=clock)
    clock.now += 6
    cache[keys[1]] = 2
    clock.now += 5
    assert list(cache) == [keys[1]]
    clock.now += 5
    assert (cache.expire(), len(cache)) == (1, 0)


def test_an_entry_that_expired_keeps_no_key() -> None:
    clock = Clock()
    cache: WeakKeyCache[Name, int] = WeakKeyCache(ttl=10, clock=clock)
    former, key = names(1) + names(1)
    cache[former] = 1
    clock.now += 10
    cache[key] = 2
    del former
    gc.collect()
    assert cache[key] == 2
    assert cache.stats().expirations == 1
    del key
    gc.collect()
    assert not cache


def test_listeners() -> None:
    told: list[tuple[Name | None, int, Cause]] = []
    keys = names(4)
    cache: WeakKeyCache[Name, int] = WeakKeyCache(maxsize=3, policy="lru", on_evict=lambda *what: told.append(what))
    for number, key in enumerate(keys):
        cache[key] = number
    del key, cache[keys[1]], keys[2]
    assert told == [(keys[0], 0, Cause.EVICTED), (keys[1], 1, Cause.DELETED), (None, 2, Cause.COLLECTED)]


def test_it_shrinks_and_says_what_it_holds() -> None:
    keys = names(1000)
    cache: WeakKeyCache[Name, bytes] = WeakKeyCache({key: bytes(KIB) for key in keys}, name="by name")
    assert 1000 * KIB <= cache.nbytes <= 1100 * KIB
    assert cache.shrink(1 << 30) > 0
    assert len(cache) == 950
    assert "by name" in [row.name for row in Shrinker.of_process().stats()]
    mempool.cleanup("aggressive")
    assert len(cache) == 0


def test_it_is_merged_with_others() -> None:
    first, second = names(2)
    cache = WeakKeyCache({first: 1}, maxsize=5, name="few")
    for made in (cache | {second: 2}, {first: 1} | WeakKeyCache({second: 2}, maxsize=5, name="few")):
        assert isinstance(made, WeakKeyCache)
        assert (dict(made), made.maxsize, made.name) == ({first: 1, second: 2}, 5, "few")
    cache |= [(second, [])]  # type: ignore[list-item]
    deep = copy.deepcopy(cache)
    assert dict(deep) == dict(cache)
    assert deep[second] is not cache[second]
    assert [reference() for reference in cache.keyrefs()] == [first, second]
    assert repr(cache) == "<WeakKeyCache 'few' of 2 entries>"


def test_it_goes_without_the_collector() -> None:
    gc.disable()
    try:
        key, value = Name("key"), Name("value")
        cache = WeakKeyCache({key: value}, on_evict=lambda *what: None)
        alive = weakref.ref(value)
        del cache, value
        assert alive() is None
        del key  # its callback finds no cache
    finally:
        gc.enable()


def test_a_hash_that_raises_changes_nothing() -> None:
    class Mute(Name):
        def __hash__(self) -> int:
            raise LookupError("no hash today")

    mute, other = Mute("it"), Name("other")
    cache = WeakKeyCache({other: 1})
    for use in (cache.get, cache.__contains__, cache.pop, cache.setdefault, lambda key: cache.__setitem__(key, 2)):
        with pytest.raises(LookupError, match="no hash today"):
            use(mute)
    assert dict(cache) == {other: 1}


def test_many_threads() -> None:
    cache: WeakKeyCache[Name, int] = WeakKeyCache(maxsize=50)
    fixed = names(20)

    def work() -> None:
        for round_ in range(300):
            for key in [*names(30), *fixed]:
                cache.setdefault(key, int(key.text))
            for key, value in cache.items():
                assert int(key.text) == value
            assert len(cache) <= 50
            cache.pop(fixed[round_ % 20], None)

    together([work] * 4)
    gc.collect()
    assert {key.text for key in cache} <= {key.text for key in fixed}


def test_a_buffer_that_is_deleted_is_no_leak() -> None:
    pool = mempool.BufferPool(leak_detection="full")
    key = Name("it")
    cache = WeakKeyCache({key: pool.acquire(4096)})
    del cache[key]
    assert (pool.stats().live, pool.stats().dropped) == (0, 0)
    with pytest.raises(KeyError, match="it"):
        del cache[key]
