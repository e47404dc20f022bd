"""The contract of a cache: a mapping within its bounds, with the conventions that users of cachetools know."""

import gc
import math
import sys
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any
from weakref import ref

import pytest

from cache_kit import Own, Told
from mempool import Account
from mempool.cache import Cache, CacheFull, Cause

POLICIES = ["lru", "fifo", "random", None]


def filled(count: int, **options: Any) -> Cache[int, int]:
    cache: Cache[int, int] = Cache(count, **options)
    cache.update((number, number * 10) for number in range(count))
    return cache


# ---- as a mapping


def test_it_is_a_mutable_mapping_of_any_kind_of_key() -> None:
    cache: Cache[Any, Any] = Cache(10)
    assert isinstance(cache, MutableMapping)
    keys = [1, "one", (1, 2), None, 1.5, frozenset({1}), Own(3)]
    for key in keys:
        cache[key] = key
    assert [cache[key] for key in keys] == keys
    assert cache[True] == 1
    assert cache[1.0] == 1
    assert cache[Own(3)] is keys[-1]
    assert len(cache) == 7
    assert bool(cache)


def test_none_is_a_value() -> None:
    cache: Cache[str, None] = Cache(2)
    cache["nothing"] = None
    assert "nothing" in cache
    assert cache["nothing"] is None
    assert cache.get("nothing", 7) is None
    assert cache.setdefault("nothing", 7) is None
    assert cache.pop("nothing", 7) is None


def test_what_is_not_there_is_a_key_error_with_the_key() -> None:
    cache: Cache[str, int] = Cache(2)
    calls = [lambda: cache["x"], lambda: cache.pop("x"), lambda: cache.__delitem__("x")]
    for call in calls:
        with pytest.raises(KeyError, match="'x'"):
            call()
    with pytest.raises(KeyError, match="Cache is empty"):
        cache.popitem()
    assert cache.get("x") is None
    assert cache.get("x", 5) == cache.pop("x", 5) == 5
    assert cache.pop("x", None) is None


def test_what_cannot_be_hashed_is_no_key() -> None:
    cache: Cache[Any, int] = Cache(2)
    key: Any = []
    for call in (
        lambda: cache[key],
        lambda: cache.get(key),
        lambda: key in cache,
        lambda: cache.__setitem__(key, 1),
        lambda: cache.put(key, 1, tags="t"),
        lambda: cache.pop(key, None),
        lambda: cache.setdefault(key, 1),
        lambda: cache.invalidate(key),
        lambda: cache._find(key, 1),
        lambda: cache._age(key),
    ):
        with pytest.raises(TypeError, match="unhashable"):
            call()
    assert len(cache) == 0
    assert len(cache._tags) == 0


def test_setdefault_puts_what_is_not_there() -> None:
    cache: Cache[str, int] = Cache(2)
    assert cache.setdefault("a", 1) == 1
    assert cache.setdefault("a", 2) == 1
    assert cache.setdefault("b") is None
    assert dict(cache.items()) == {"a": 1, "b": None}


def test_setdefault_returns_what_somebody_else_put_meanwhile() -> None:
    def getsizeof(value: int) -> int:
        if value == 1:
            cache["a"] = 2
        return 1

    cache: Cache[str, int] = Cache(5, getsizeof=getsizeof)
    assert cache.setdefault("a", 1) == 2
    assert cache == {"a": 2}


def test_update_and_clear() -> None:
    cache: Cache[str, int] = Cache(3)
    cache.update({"a": 1}, b=2)
    cache.update([("c", 3), ("a", 4)])
    assert cache == {"a": 4, "b": 2, "c": 3}
    cache.clear()
    assert len(cache) == cache.currsize == 0
    assert list(cache) == []
    assert not cache
    cache["d"] = 5
    assert cache == {"d": 5}


def test_equality_is_that_of_mappings() -> None:
    one, other = filled(3), filled(3, policy="fifo")
    assert one == other
    assert one == {0: 0, 1: 10, 2: 20}
    other[0] = 1
    assert one != other
    assert one != [0, 1, 2]
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


def test_views_are_live_and_count_nothing() -> None:
    cache = filled(3)
    keys, values, items = cache.keys(), cache.values(), cache.items()
    before = cache.stats()
    assert (sorted(keys), sorted(values), sorted(items)) == ([0, 1, 2], [0, 10, 20], [(0, 0), (1, 10), (2, 20)])
    assert 1 in keys
    assert 10 in values
    assert (1, 10) in items
    assert 3 not in keys
    assert 30 not in values
    assert (1, 20) not in items
    assert (9, 9) not in items
    assert not any(item in items for item in ((1, 10, 0), (1,), 1, "ab"))
    assert (len(keys), len(values), len(items)) == (3, 3, 3)
    assert keys & {1, 5} == {1}
    assert items ^ {(0, 0), (1, 10), (2, 20), (3, 30)} == {(3, 30)}
    assert list(cache) == list(keys)
    assert cache == {0: 0, 1: 10, 2: 20}
    assert cache.stats() == before
    del cache[1]
    assert sorted(values) == [0, 20]


def test_looking_through_a_view_is_no_use_of_an_entry() -> None:
    cache = filled(3, policy="lru")
    assert list(cache.items())
    assert (0, 0) in cache.items()
    assert 0 in cache
    cache[3] = 30
    assert sorted(cache) == [1, 2, 3]


def test_changes_during_iteration_raise_nothing() -> None:
    cache = filled(100)
    seen = []
    for key in cache:
        seen.append(key)
        cache.pop(key, None)
        cache[key + 1000] = 1
    assert len(seen) == len(set(seen))
    assert set(range(100)) <= set(seen)
    for _ in cache.items():
        cache.clear()
    assert len(cache) == 0


def test_repr_says_what_it_is() -> None:
    assert repr(Cache(3, name="pages")) == "<Cache 'pages': 0 entries, size 0 of 3>"
    assert repr(Cache(math.inf, name="pages")) == "<Cache 'pages': 0 entries, size 0 of inf>"
    assert repr(Cache(max_bytes="1 KiB", name="p")) == "<Cache 'p': 0 entries, size 0 of 1024 bytes>"


def test_caches_without_a_name_have_numbers() -> None:
    one, other = Cache[int, int](1), Cache[int, int](1)
    assert one.name != other.name
    assert one.name.startswith("cache-")
    assert one.account.name == one.name
    assert one.account.parent is not None
    assert one.account.parent.name == "caches"


# ---- within bounds


@pytest.mark.parametrize("policy", POLICIES)
def test_it_never_holds_more_than_maxsize(policy: str | None) -> None:
    cache: Cache[int, int] = Cache(5, policy=policy)
    for number in range(50):
        cache[number] = number
        assert number in cache
        assert len(cache) == cache.currsize == min(number + 1, 5)
    assert cache.stats().evictions == 45
    assert cache.maxsize == 5


def test_the_least_recently_used_goes_first() -> None:
    cache = filled(3, policy="lru")
    assert cache[0] == 0
    assert cache.get(1) == 10
    cache[3] = 30
    assert sorted(cache) == [0, 1, 3]
    cache[0] = 5
    cache[4] = 40
    assert sorted(cache) == [0, 3, 4]
    assert cache.popitem() == (3, 30)


def test_the_oldest_goes_first() -> None:
    cache = filled(3, policy="fifo")
    assert cache[0] == 0
    cache[3] = 30
    assert sorted(cache) == [1, 2, 3]
    assert cache.popitem() == (1, 10)


def test_a_bound_of_nothing_takes_nothing() -> None:
    cache: Cache[int, int] = Cache(0)
    with pytest.raises(ValueError, match="value too large: 1, where the bound is 0"):
        cache[1] = 1
    with pytest.raises(ValueError, match="value too large"):
        cache.setdefault(1, 1)
    assert len(cache) == 0
    weightless: Cache[int, int] = Cache(0, getsizeof=lambda value: 0)
    weightless[1] = 1
    assert (weightless[1], weightless.currsize, len(weightless)) == (1, 0, 1)


@pytest.mark.parametrize("maxsize", [math.inf, 1 << 63, 1 << 100])
def test_a_bound_beyond_all_measure(maxsize: float) -> None:
    cache: Cache[int, int] = Cache(maxsize)
    cache.update((number, number) for number in range(1000))
    assert len(cache) == cache.currsize == 1000
    assert cache.maxsize in (math.inf, maxsize)
    assert cache.stats().allowance == math.inf


def test_maxsize_is_read_only() -> None:
    cache: Any = Cache(3)
    for name in ("maxsize", "currsize", "max_bytes", "policy", "ttl", "name"):
        with pytest.raises(AttributeError):
            setattr(cache, name, 5)


def test_popitem_empties_it() -> None:
    cache = filled(5)
    found = {}
    while cache:
        key, value = cache.popitem()
        found[key] = value
    assert found == {0: 0, 1: 10, 2: 20, 3: 30, 4: 40}


# ---- sizes


def test_getsizeof_says_what_a_value_counts() -> None:
    cache: Cache[int, int] = Cache(10, getsizeof=lambda value: value)
    cache[1], cache[2], cache[3] = 3, 3, 4
    assert cache.currsize == 10
    assert cache.getsizeof(7) == 7
    cache[1] = 1
    assert (cache.currsize, len(cache)) == (8, 3)
    cache[4] = 9
    assert cache == {4: 9} or cache == {1: 1, 4: 9}
    assert cache.currsize <= 10


def test_getsizeof_of_a_subclass() -> None:
    class Long(Cache[str, str]):
        def getsizeof(self, value: str) -> int:
            return len(value)

    cache = Long(5, policy="lru")
    cache["a"], cache["b"] = "xx", "yy"
    assert cache.currsize == 4
    cache["c"] = "zz"
    assert sorted(cache) == ["b", "c"]
    assert Long(5, getsizeof=lambda value: 1).getsizeof("long") == 1


def test_getsizeof_of_a_plain_cache() -> None:
    assert Cache[int, str](3).getsizeof("x" * 100) == 1
    assert Cache[int, str](max_bytes=3).getsizeof("x" * 100) == sys.getsizeof("x" * 100)


def test_what_is_too_large_leaves_the_cache_as_it_was() -> None:
    told = Told()
    cache: Cache[str, str] = Cache(5, getsizeof=len, on_evict=told)
    cache["a"], cache["b"] = "xx", "yyy"
    for key in ("a", "c"):
        for put in (cache.__setitem__, cache.put):
            with pytest.raises(ValueError, match="value too large: 6, where the bound is 5"):
                put(key, "zzzzzz")
    with pytest.raises(ValueError, match="value too large"):
        cache.put("c", "zzzzzz", tags=("t",), version=1)
    assert cache == {"a": "xx", "b": "yyy"}
    assert told.all == []
    assert cache.stats().rejections == 5
    assert len(cache._tags) == 0


@pytest.mark.parametrize(
    ("size", "kind", "words"),
    [
        (1.5, TypeError, "getsizeof must return an int, not 1.5"),
        ("1", TypeError, "getsizeof must return an int, not '1'"),
        (None, TypeError, "getsizeof must return an int, not None"),
        (-1, ValueError, "getsizeof must not return less than 0, got -1"),
        (1 << 70, ValueError, "value too large"),
    ],
)
def test_sizes_that_are_none(size: Any, kind: type[Exception], words: str) -> None:
    cache: Cache[str, str] = Cache(5, getsizeof=lambda value: 1 if value == "good" else size)
    cache["a"] = "good"
    for key in ("a", "b"):
        with pytest.raises(kind, match=words):
            cache[key] = "bad"
    assert cache == {"a": "good"}


def test_getsizeof_that_raises() -> None:
    def raise_it(value: object) -> int:
        raise ZeroDivisionError

    cache: Cache[str, str] = Cache(5, getsizeof=raise_it)
    for put in (cache.__setitem__, cache.put, cache.setdefault):
        with pytest.raises(ZeroDivisionError):
            put("a", "b")
    assert len(cache) == 0


# ---- missing


def test_missing_makes_and_stores() -> None:
    class Squares(Cache[int, int]):
        made = 0

        def __missing__(self, key: int) -> int:
            self.made += 1
            self[key] = key * key
            return key * key

    cache = Squares(2, policy="lru")
    assert [cache[3], cache[3], cache[4]] == [9, 9, 16]
    assert cache.made == 2
    assert cache.get(5) is None
    assert 5 not in cache
    assert cache.pop(5, None) is None
    assert cache.setdefault(5, 1) == 1
    assert cache[3] == 9
    assert cache.made == 3
    assert len(cache) == 2


def test_missing_that_does_not_store() -> None:
    class Zero(Cache[str, int]):
        def __missing__(self, key: str) -> int:
            return 0

    cache = Zero(2)
    assert cache["a"] == 0
    assert len(cache) == 0


def test_missing_whose_value_is_too_large() -> None:
    class Big(Cache[str, str]):
        def __missing__(self, key: str) -> str:
            value = key * 10
            with suppress(ValueError):
                self[key] = value
            return value

    cache = Big(15, getsizeof=len)
    assert cache["ab"] == "ab" * 10
    assert cache["a"] == "a" * 10
    assert list(cache) == ["a"]


# ---- resize


def test_resize_evicts_what_is_beyond() -> None:
    told = Told()
    cache = filled(10, policy="fifo", on_evict=told)
    cache.resize(4)
    assert sorted(cache) == [6, 7, 8, 9]
    assert [cause for *_, cause in told.take()] == [Cause.EVICTED] * 6
    assert cache.maxsize == 4
    cache.resize(maxsize=math.inf)
    cache.update((number, 1) for number in range(100))
    assert len(cache) == 100
    cache.resize()
    assert len(cache) == 100
    cache.resize(0)
    assert len(cache) == 0


def test_resize_in_bytes() -> None:
    cache: Cache[int, bytes] = Cache(max_bytes="10 KiB", maxsize=100)
    for number in range(10):
        cache[number] = bytes(900)
    cache.resize(max_bytes="4 KiB")
    assert (cache.max_bytes, cache.maxsize) == (4096, 100)
    assert cache.currsize <= 4096
    assert len(cache) == 4
    cache.resize(2)
    assert len(cache) == 2


def test_resize_refuses_what_is_no_bound() -> None:
    cache = filled(3)
    with pytest.raises(ValueError, match="max_bytes of '1 KiB' cannot be given"):
        cache.resize(max_bytes="1 KiB")
    with pytest.raises(TypeError, match="maxsize must be an int or inf, not True"):
        cache.resize(True)
    sized: Cache[int, int] = Cache(max_bytes=100)
    with pytest.raises(ValueError, match="max_bytes must not be negative, got -1"):
        sized.resize(5, max_bytes=-1)
    assert (sized.maxsize, sized.max_bytes, cache.maxsize, len(cache)) == (100, 100, 3, 3)


# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({}, TypeError, "a cache needs a bound: maxsize, max_bytes or both"),
        ({"maxsize": True}, TypeError, "maxsize must be an int or inf, not True"),
        ({"maxsize": 1.5}, TypeError, "maxsize must be an int or inf, not 1.5"),
        ({"maxsize": "10"}, TypeError, "maxsize must be an int or inf, not '10'; a bound in bytes is max_bytes"),
        ({"maxsize": math.nan}, TypeError, "maxsize must be an int or inf, not nan"),
        ({"maxsize": -math.inf}, TypeError, "maxsize must be an int or inf, not -inf"),
        ({"maxsize": -1}, ValueError, "maxsize must not be negative, got -1"),
        ({"max_bytes": "1 XB"}, ValueError, "max_bytes must be a size such as 4096 or '64KiB', not '1 XB'"),
        ({"max_bytes": 1.5}, TypeError, "max_bytes must be an int of bytes"),
        ({"max_bytes": math.inf}, TypeError, "max_bytes must be an int of bytes .*, not inf"),
        ({"max_bytes": True}, TypeError, "max_bytes .* not True"),
        ({"max_bytes": -5}, ValueError, "max_bytes must not be negative, got -5"),
        ({"maxsize": 1, "policy": "lur"}, ValueError, "policy must be one of lru, .*volatile-ttl.*, not 'lur'"),
        ({"maxsize": 1, "policy": ""}, ValueError, "policy must be one of .*, not ''"),
        ({"maxsize": 1, "policy": 5}, TypeError, "policy must be a name or None, not 5"),
        ({"maxsize": 1, "ttl": 0}, ValueError, "ttl must be more than 0, got 0"),
        ({"maxsize": 1, "ttl": -1}, ValueError, "ttl must not be negative or NaN, got -1"),
        ({"maxsize": 1, "ttl": math.nan}, ValueError, "ttl must not be negative or NaN, got nan"),
        ({"maxsize": 1, "ttl": "soon"}, ValueError, "ttl must be a duration .* not 'soon'"),
        ({"maxsize": 1, "ttl": True}, TypeError, "ttl must be seconds .* not True"),
        ({"maxsize": 1, "ttl": []}, TypeError, r"ttl must be seconds .* not \[\]"),
        ({"maxsize": 1, "getsizeof": 5}, TypeError, "getsizeof must be callable or None, not 5"),
        ({"maxsize": 1, "on_evict": "x"}, TypeError, "on_evict must be callable or None, not 'x'"),
        ({"maxsize": 1, "clock": 5.0}, TypeError, "clock must be callable or None, not 5.0"),
        ({"maxsize": 1, "name": b"x"}, TypeError, "name must be a str, not b'x'"),
    ],
)
def test_arguments_that_make_no_sense_are_named(arguments: Any, kind: type[Exception], words: str) -> None:
    cache: Cache[int, int] = Cache.__new__(Cache)
    with pytest.raises(kind, match=words):
        Cache.__init__(cache, **arguments)
    Cache.__init__(cache, 3)  # nothing was begun
    cache[1] = 1
    assert repr(cache).endswith(": 1 entries, size 1 of 3>")


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"ttl": 0}, ValueError, "ttl must be more than 0, got 0"),
        ({"ttl": "later"}, ValueError, "ttl must be a duration .* not 'later'"),
        ({"priority": 101}, ValueError, "priority must be from -100 to 100, got 101"),
        ({"priority": -101}, ValueError, "priority must be from -100 to 100, got -101"),
        ({"priority": 1 << 70}, ValueError, "priority must be from -100 to 100"),
        ({"priority": 1.0}, TypeError, "priority must be an int, not 1.0"),
        ({"priority": True}, TypeError, "priority must be an int, not True"),
        ({"tags": 5}, TypeError, "tags must be a collection of tags, not 5"),
        ({"tags": None}, TypeError, "tags must be a collection of tags, not None"),
        ({"tags": [["a"]]}, TypeError, r"a tag must be hashable, not \['a'\]"),
    ],
)
def test_put_names_what_makes_no_sense(arguments: Any, kind: type[Exception], words: str) -> None:
    cache = filled(2)
    with pytest.raises(kind, match=words):
        cache.put(1, 5, **arguments)
    assert cache == {0: 0, 1: 10}


def test_what_has_index_is_a_bound_and_a_priority() -> None:
    class Index:
        def __index__(self) -> int:
            return 2

    cache: Cache[int, int] = Cache(Index())  # type: ignore[arg-type]
    cache.put(1, 1, priority=Index())  # type: ignore[arg-type]
    cache[2] = cache[3] = 3
    assert sorted(cache) == [1, 3]


# ---- priorities, and who may not go


def test_lower_priorities_go_first() -> None:
    cache: Cache[str, int] = Cache(3, policy="lru")
    cache.put("high", 1, priority=5)
    cache.put("low", 1, priority=-5)
    cache["plain"] = 1
    cache["new"] = 1
    assert sorted(cache) == ["high", "new", "plain"]
    cache["newer"] = 1
    assert sorted(cache) == ["high", "new", "newer"]
    cache.put("high", 2)
    assert cache.get("new") == 1
    assert cache.get("newer") == 1
    cache["newest"] = 1
    assert sorted(cache) == ["new", "newer", "newest"]


def test_what_may_not_be_evicted_fills_the_cache() -> None:
    cache = filled(2, policy="noeviction")
    with pytest.raises(CacheFull, match="the cache is full") as raised:
        cache[5] = 5
    assert isinstance(raised.value, MemoryError)
    assert cache == {0: 0, 1: 10}
    cache[1] = 11
    with pytest.raises(CacheFull):
        cache.put(5, 5, tags="t")
    assert cache.stats().rejections == 2
    assert len(cache._tags) == 0
    del cache[0]
    cache[5] = 5
    assert cache == {1: 11, 5: 5}


# ---- lifetime


def test_a_cache_goes_as_soon_as_nobody_has_it() -> None:
    class Value:
        def __init__(self, key: object = None) -> None:
            pass

    gc.collect()
    gc.disable()
    try:
        cache: Cache[Any, Any] = Cache(10, ttl=5, on_evict=Told())
        value = Value()
        cache.put("a", value, tags=("t", "u"), version=3)
        cache.namespace("n")[1] = value
        cache.get_or_load("b", Value)
        refs = ref(cache), ref(value)
        del cache, value
        assert [found() for found in refs] == [None, None]
    finally:
        gc.enable()


def test_own_memory_is_charged_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Account("caches of this test")
    monkeypatch.setattr(sys.modules["mempool.cache.cache"], "caches_account", parent)
    cache: Cache[int, int] = Cache(10_000)
    assert cache.account.used == 0
    cache.update((number, number) for number in range(10_000))
    used = cache.account.used
    assert used == cache.stats().own_bytes >= 10_000 * 32
    assert parent.used == used
    del cache
    assert parent.used == 0


def test_a_cache_is_a_mapping_to_those_who_copy_it() -> None:
    cache = filled(3)
    assert dict(cache) == {0: 0, 1: 10, 2: 20}
    assert {**cache} == dict(cache)
    match cache:
        case {0: zero}:
            assert zero == 0
        case _:
            raise AssertionError
    assert isinstance(cache, Mapping)


def test_importing_caches_is_light(run_python: Callable[..., Any]) -> None:
    code = """
        import sys
        import mempool
        assert "mempool.cache" not in sys.modules
        mempool.cache.Cache(5)["a"] = 1
        assert not {"numpy", "psutil", "asyncio", "socket", "ssl", "multiprocessing"} & set(sys.modules)
    """
    run_python(code)
