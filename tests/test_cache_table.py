"""The table of a cache and its keys: any hash, any equality, whatever they raise or change."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_attackers import Key, check
from mempool.cache import Cache, CacheFull
from support import DEADLINE, start


class Broken(Exception):
    pass


def broken() -> None:
    raise Broken


OPERATIONS: dict[str, Any] = {
    "[]": lambda cache, key: cache[key],
    "get": lambda cache, key: cache.get(key),
    "in": lambda cache, key: key in cache,
    "[]=": lambda cache, key: cache.__setitem__(key, 1),
    "del": lambda cache, key: cache.__delitem__(key),
    "pop": lambda cache, key: cache.pop(key, None),
    "setdefault": lambda cache, key: cache.setdefault(key, 1),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", ["hash", "stored eq", "unhashable"])
def test_errors_of_keys_go_on_and_change_nothing(operation: str, kind: str) -> None:
    cache: Cache[Any, Any] = Cache(10)
    stored = Key("stored")
    cache[stored] = value = object()
    cache["other"] = 2
    key: Any = Key("key", on_hash=broken if kind == "hash" else None)
    if kind == "unhashable":
        key = []
    if kind == "stored eq":
        stored.on_eq = broken
    counts = sys.getrefcount(stored), sys.getrefcount(value), sys.getrefcount(key)
    for _ in range(50):
        with pytest.raises(TypeError if kind == "unhashable" else Broken):
            OPERATIONS[operation](cache, key)
    assert (sys.getrefcount(stored), sys.getrefcount(value), sys.getrefcount(key)) == counts
    stored.on_eq = None
    assert check(cache) == {stored: value, "other": 2}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_equality_that_is_no_bool_is_asked_for_its_truth(operation: str) -> None:
    class Vague:
        def __bool__(self) -> bool:
            raise Broken

    class Odd(Key):
        def __eq__(self, other: object) -> Any:
            return Vague()

        __hash__ = Key.__hash__

    cache: Cache[Any, Any] = Cache(10)
    cache[Odd(1)] = 1
    with pytest.raises(Broken):
        OPERATIONS[operation](cache, Odd(2))
    assert len(cache) == 1


def test_equal_keys_are_one_key_whatever_their_types() -> None:
    class Text(str):
        __slots__ = ()

    class Whole(int):
        pass

    for one, *others in [
        (1, 1.0, True, Whole(1), 1 + 0j),
        (0, 0.0, -0.0, False),
        (2**70, float(2**70), Whole(2**70)),
        (-1, -1.0),
        (-(2**40), -(2.0**40)),
        ("word", Text("word")),
        ("\xe9", Text("\xe9")),
        ("\u20ac\U0001f600", "".join(["\u20ac", "\U0001f600"])),
        ((1, "a"), (1.0, Text("a"))),
        (b"bytes", b"".join([b"by", b"tes"])),
        (frozenset([1, 2]), frozenset([2.0, 1.0])),
    ]:
        cache: Cache[Any, Any] = Cache(5)
        cache[one] = "first"
        for other in others:
            assert other in cache
            cache[other] = other
            assert cache[one] is other
        assert len(cache) == 1
        assert next(iter(cache)) is one  # the key that was there first stays, as in a dict
        del cache[others[-1]]
        assert len(cache) == 0


def test_unequal_keys_of_one_hash_are_several() -> None:
    cache: Cache[Any, Any] = Cache(100)
    keys = [
        -1,
        -2,
        2**61 - 2 - 1,
        "a",
        "b",
        b"a",
        ("a",),
        None,
        float("inf"),
        float("-inf"),
        "é",
        "e",
        "€",
        "\U0001f600",
    ]
    for number, key in enumerate(keys):
        cache[key] = number
    assert [cache[key] for key in keys] == list(range(len(keys)))
    nan = float("nan")
    cache[nan] = 1
    assert cache[nan] == 1
    assert float("nan") not in cache


def test_integers_whose_mixed_hash_is_the_same_are_told_apart() -> None:
    prime = 2**61 - 1
    cache: Cache[int, int] = Cache(100)
    keys = [7 + prime * factor for factor in range(60)] + [-7 - prime * factor for factor in range(30)]
    for key in keys:
        assert hash(key) in (7, -7)
        cache[key] = key
    assert all(cache[key] == key for key in keys)
    assert len(cache) == 90


def test_thousands_of_collisions() -> None:
    cache: Cache[Key, int] = Cache(1_000)
    keys = [Key(number) for number in range(1_500)]
    for key in keys[:1_200]:
        cache[key] = key.name
    assert len(cache) == 1_000
    for key in list(cache)[::3]:
        assert cache.pop(key) == key.name
    assert sorted(key.name for key in cache) == sorted(key.name for key in check(cache))


# Hashes that meet in the same or in neighbouring cells of a small table, so that removals close gaps in long runs.
CHOSEN = st.builds(Key, st.integers(0, 40), hash=st.integers(0, 5))


@given(
    st.lists(st.tuples(st.sampled_from("pgdc"), st.integers(0, 60), st.integers(0, 9)), max_size=300), st.integers(1, 9)
)
@settings(max_examples=150)
def test_it_is_a_dict_whatever_the_hashes(steps: list[tuple[str, int, int]], spread: int) -> None:
    cache: Cache[Key, int] = Cache(float("inf"))
    model: dict[Key, int] = {}
    keys = [Key(name, hash=name % spread) for name in range(61)]
    for step, name, value in steps:
        key = keys[name]
        if step == "p":
            cache[key] = model[key] = value
        elif step == "g":
            assert cache.get(key) == model.get(key)
        elif step == "d":
            assert cache.pop(key, None) == model.pop(key, None)
        elif value == 0:
            cache.clear()
            model.clear()
        assert len(cache) == len(model)
    assert dict(cache.items()) == model
    assert all((key in cache) == (key in model) for key in keys)


@given(st.lists(st.integers(-(2**80), 2**80), max_size=400, unique=True), st.integers(1, 200))
@settings(max_examples=60)
def test_integers_of_all_lengths(keys: list[int], size: int) -> None:
    cache: Cache[int, int] = Cache(size, policy="fifo")
    for key in keys:
        cache[key] = key
        cache[key] = key
    assert sorted(cache) == sorted(keys[-size:])
    assert all((key in cache) == (place >= len(keys) - size) for place, key in enumerate(keys))


@given(st.lists(st.text(max_size=4), max_size=300), st.integers(1, 50))
@settings(max_examples=60)
def test_texts_of_all_kinds(keys: list[str], size: int) -> None:
    cache: Cache[str, str] = Cache(size, policy="lru")
    for key in keys:
        cache["".join(key)] = key
    assert set(cache) == set(list(dict.fromkeys(reversed(keys)))[:size])


def test_a_hash_that_changes_loses_its_entry_and_nothing_else() -> None:
    cache: Cache[Any, int] = Cache(3, policy="fifo")
    key = Key("moving", hash=1)
    cache[key] = 1
    cache["a"] = 2
    key.hash = 2
    assert key not in cache
    with pytest.raises(KeyError):
        del cache[key]
    cache[key] = 3
    assert list(cache) == [key, "a", key]
    cache["b"] = cache["c"] = cache["d"] = 4
    assert sorted(cache) == ["b", "c", "d"]


def fill(cache: Cache[Any, Any], *numbers: int) -> None:
    cache.update((number, number) for number in range(*numbers))


# What a comparison with a key of the cache may do to it, given that key and one equal to the other side.
CHANGES: dict[str, Any] = {
    "clear": lambda cache, stored, twin: cache.clear(),
    "delete": lambda cache, stored, twin: (cache.pop(stored), cache.pop(3)),
    "grow": lambda cache, stored, twin: (cache.resize(1_000), fill(cache, 100, 300)),
    "shrink": lambda cache, stored, twin: cache.resize(2),
    "evict": lambda cache, stored, twin: fill(cache, 100, 120),
    "overwrite": lambda cache, stored, twin: cache.update({stored: "new", 0: "new"}),
    "insert it": lambda cache, stored, twin: cache.update({twin: "twin"}),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("change", CHANGES)
def test_equality_that_changes_the_cache(operation: str, change: str) -> None:
    """The lookup goes on in the table as it is now, as if the change had been made before."""
    cache: Cache[Any, Any] = Cache(8, policy="fifo")
    stored, key, twin = Key("stored"), Key("key"), Key("key")
    fill(cache, 6)
    cache[stored] = "stored"

    def act() -> None:
        stored.on_eq = None
        CHANGES[change](cache, stored, twin)

    stored.on_eq = act
    if operation in ("[]", "del") and change != "insert it":
        with pytest.raises(KeyError):
            OPERATIONS[operation](cache, key)
    else:
        result = OPERATIONS[operation](cache, key)
        assert result == "twin" or change != "insert it" or operation in ("in", "[]=", "del")
    assert stored.on_eq is None
    items = check(cache)
    assert len([each for each in items if isinstance(each, Key) and each.name == "key"]) <= 1
    if operation in ("[]=", "setdefault") and change != "insert it":
        assert items[key] == 1


def test_a_key_that_always_changes_the_cache_is_found_at_once() -> None:
    cache: Cache[Any, int] = Cache(4, policy="fifo")
    count = 0

    def insert() -> None:
        nonlocal count
        count += 1
        cache[count] = count

    stored = Key("a", on_eq=insert)
    cache[stored] = 1
    assert Key("b") not in cache  # the answer counts, though entries moved
    assert cache.get(Key("a")) == 1
    for _ in range(10):
        cache.get(Key("a"))
    assert stored not in cache  # it was the oldest
    assert len(cache) == 4


@pytest.mark.parametrize("operation", OPERATIONS)
def test_keys_that_change_the_cache_at_every_comparison_are_given_up(operation: str) -> None:
    cache: Cache[Any, int] = Cache(50)

    def shift() -> None:
        cache["x"] = 1
        del cache["x"]

    keys = [Key(name) for name in "abc"]
    cache.update(dict.fromkeys(keys, 1))
    for key in keys:
        key.on_eq = shift
    with pytest.raises(RuntimeError, match="changed at each of 1000 comparisons"):
        OPERATIONS[operation](cache, Key("d"))
    assert len(cache) == 3


def test_a_comparison_that_blocks_holds_nobody_up() -> None:
    cache: Cache[Any, int] = Cache(50)
    began, go_on = threading.Event(), threading.Event()
    stored = Key("stored")
    cache[stored] = 1

    def block() -> None:
        stored.on_eq = None
        began.set()
        assert go_on.wait(DEADLINE)

    stored.on_eq = block
    thread = start(cache.get, Key("stored"))
    assert began.wait(DEADLINE)
    for number in range(100):
        cache[number] = number
        cache.get(number)
    assert stored not in cache
    go_on.set()
    assert thread.result() is None


def test_a_key_dies_in_the_comparison_that_removed_it() -> None:
    cache: Cache[Any, int] = Cache(5)
    deaths: list[int] = []

    class Dying(Key):
        def __del__(self) -> None:
            deaths.append(len(cache))
            cache["late"] = 1

    cache[Dying("a", on_eq=cache.clear)] = 1
    assert cache.get(Key("b")) is None
    assert deaths == [0]
    assert check(cache) == {"late": 1}


def references(*objects: object) -> list[int]:
    return [sys.getrefcount(each) for each in objects]


def test_references_are_counted_exactly() -> None:
    cache: Cache[Any, Any] = Cache(2, policy="fifo")
    key, twin, value, other = ("key", 1), ("key", 1.0), object(), object()
    none = references(key, twin, value, other)
    cache[key] = value
    assert references(key, twin, value, other) == [none[0] + 1, none[1], none[2] + 1, none[3]]
    for _ in range(20):
        assert cache[key] is cache.get(twin) is value
        assert twin in cache
        assert cache.get("absent") is None
        assert [*cache, *cache.values(), *cache.items()]
        assert cache.setdefault(twin, other) is value
    assert references(key, twin, value, other) == [none[0] + 1, none[1], none[2] + 1, none[3]]
    cache[twin] = other
    cache[twin] = other
    assert references(key, twin, value, other) == [none[0] + 1, none[1], none[2], none[3] + 1]
    cache["a"] = cache["b"] = 1
    assert references(key, twin, value, other) == none


def test_references_are_given_back_whichever_way_an_entry_goes() -> None:
    cache: Cache[Any, Any] = Cache(2, policy="fifo")
    key, twin, value = ("key", 1), ("key", 1.0), object()
    none = references(key, twin, value)
    cache[key] = value
    assert cache.pop(twin) is value
    cache[key] = value
    del cache[key]
    cache[key] = value
    while cache:
        cache.popitem()
    cache[key] = value
    cache.clear()
    cache.put(key, value, ttl=1e-9)
    while key in cache:
        pass
    assert cache.get(key) is None
    cache.put(key, value, priority=3)
    cache.resize(0)
    assert references(key, twin, value) == none


def test_references_are_counted_exactly_when_it_fails() -> None:
    class Weighed(Cache[Any, Any]):
        def getsizeof(self, value: Any) -> Any:
            if isinstance(value, type) and issubclass(value, Exception):
                raise value
            return value.size if isinstance(value, Sized) else 1

    class Sized:
        def __init__(self, size: Any) -> None:
            self.size = size

    cache = Weighed(10)
    full: Cache[Any, Any] = Cache(1, policy="noeviction")
    full["x"] = cache["x"] = 1
    key = ("key", 2)
    values = [Sized(11), Sized(-1), Sized(1.5), Sized(None), Sized("1"), Sized(2**80)]
    before = references(key, *values)
    for _ in range(20):
        for value in values:
            with pytest.raises((ValueError, TypeError)):
                cache[key] = value
            with pytest.raises((ValueError, TypeError)):
                cache["x"] = value
            with pytest.raises(CacheFull):
                full[key] = value
        with pytest.raises(Broken):
            cache[key] = Broken
    value = None
    assert references(key, *values) == before
    assert check(cache) == check(full) == {"x": 1}


def test_nothing_is_left_behind(run_python: Callable[..., Any]) -> None:
    """In a process of its own, where nobody else's objects come and go."""
    run_python(
        """
        import gc
        from cache_attackers import Key
        from mempool.cache import Cache

        def work():
            for policy in ("lru", "fifo", "random", "lfu", "sieve", "s3fifo", "tinylfu"):
                cache = Cache(20, policy=policy, on_evict=lambda *_: None)
                for number in range(60):
                    cache.put(Key(number, number % 7), [number], ttl=100, priority=number % 3)
                    cache.get(Key(number - 5, (number - 5) % 7))
                next(iter(cache.items()))
                cache[0] = cache

        work()
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(5):
            work()
        gc.collect()
        assert len(gc.get_objects()) <= before + 5
        """,
        cwd=Path(__file__).parent,
    )


def test_a_key_that_comes_when_the_one_it_was_compared_with_dies_is_no_second_one() -> None:
    cache: Cache[Any, Any] = Cache(100, policy="lru")
    key = Key("key")
    leaving: list[Any] = []

    class Last(Key):
        def __del__(self) -> None:
            cache[key] = "from __del__"

    leaving.append(Last("old", on_eq=lambda: leaving and cache.pop(leaving.pop())))
    cache[leaving[0]] = 1
    cache[key] = "mine"
    assert not leaving
    assert list(cache.items()) == [(key, "mine")]
    assert len(cache) == 1
