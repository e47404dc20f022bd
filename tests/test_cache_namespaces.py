"""Namespaces: mappings with keys of their own in one cache."""

import asyncio
import copy
import pickle
from collections.abc import Callable, MutableMapping
from itertools import count
from typing import Any

import pytest

import mempool
from cache_kit import Told
from mempool.cache import Cache, Cause, NamespaceKey


@pytest.fixture
def cache() -> Cache[Any, Any]:
    return Cache(100, name="all")


def test_names_keep_keys_apart(cache: Cache[Any, Any]) -> None:
    users, groups = cache.namespace("users"), cache.namespace("groups")
    users[1], groups[1], cache[1] = "Ada", "staff", "plain"
    assert (users[1], groups[1], cache[1]) == ("Ada", "staff", "plain")
    assert (len(users), len(groups), len(cache)) == (1, 1, 3)
    del users[1]
    assert (1 in users, 1 in groups, 1 in cache) == (False, True, True)


def test_it_is_a_mutable_mapping(cache: Cache[Any, Any]) -> None:
    users: Any = cache.namespace("users")
    assert isinstance(users, MutableMapping)
    users.update({1: "a"}, b="b")
    cache["c"] = "c"
    assert dict(users) == {1: "a", "b": "b"}
    assert users == {1: "a", "b": "b"}
    assert sorted(users.values()) == ["a", "b"]
    assert (1, "a") in users.items()
    assert users.get(1) == "a"
    assert users.get("c") is None
    assert users.get("c", 5) == users.get("c", default=5) == 5
    assert users.setdefault("d", 4) == 4
    assert users.setdefault("d", 5) == 4
    assert users.pop("d") == 4
    assert users.pop("d", 6) == 6
    key, value = users.popitem()
    assert cache.get(key) is None
    assert value in ("a", "b")
    users.clear()
    assert dict(users) == {}
    assert dict(cache) == {"c": "c"}
    assert not users
    with pytest.raises(KeyError):
        users.popitem()


def test_views_are_live_and_count_nothing() -> None:
    cache: Cache[Any, Any] = Cache(3, policy="lru")
    users, groups = cache.namespace("users"), cache.namespace("groups")
    keys, values, items = users.keys(), users.values(), users.items()
    users[1], users[2], groups[3] = "a", "b", "c"
    before = cache.stats()
    assert (sorted(keys), sorted(values), sorted(items)) == ([1, 2], ["a", "b"], [(1, "a"), (2, "b")])
    assert (1 in keys, 3 in keys, "b" in values, "c" in values) == (True, False, True, False)
    assert ((2, "b") in items, (2, "a") in items, (3, "c") in items) == (True, False, False)
    assert (len(keys), len(values), len(items)) == (2, 2, 2)
    assert keys & {1, 5} == {1}
    assert users == {1: "a", 2: "b"}
    assert cache.stats() == before
    cache["new"] = "d"
    assert dict(items) == {2: "b"}


def test_what_leaves_during_a_look_raises_nothing() -> None:
    ticks = count()
    cache: Cache[Any, int] = Cache(100, ttl=50, clock=lambda: next(ticks))
    users = cache.namespace("users")
    for number in range(40):
        users[number] = number
    assert len(list(users.values())) < 40
    for number in range(40):
        users[number] = number
    seen = []
    for key, _ in users.items():
        seen.append(key)
        users.clear()
    assert len(seen) == 1


class Interrupting:
    """A key that does something when it is hashed, as another thread might then."""

    def __init__(self, then: Callable[[], object]) -> None:
        self.then: Callable[[], object] | None = None
        self.later = then

    def arm(self) -> None:
        self.then = self.later

    def __hash__(self) -> int:
        then, self.then = self.then, None
        if then is not None:
            then()
        return 1


def test_popitem_is_one_step(cache: Cache[Any, Any]) -> None:
    def between() -> None:
        users.clear()
        users["still"] = "here"

    users = cache.namespace("users")
    key = Interrupting(between)
    users[key] = "first"
    before = cache.stats().hits
    key.arm()
    assert users.popitem() == ("still", "here")
    assert cache.stats().hits == before
    with pytest.raises(KeyError, match="Namespace is empty"):
        users.popitem()


def test_popitem_takes_of_its_own_alone(cache: Cache[Any, Any]) -> None:
    users = cache.namespace("users")
    cache["plain"], users[1], users[2] = "p", "a", "b"
    assert sorted(users.popitem() for _ in range(2)) == [(1, "a"), (2, "b")]
    assert dict(cache.items()) == {"plain": "p"}


def test_buffers_that_are_removed_are_no_leak(cache: Cache[Any, Any]) -> None:
    with mempool.BufferPool(name="namespaces") as pool:
        users = cache.namespace("users")
        for key in range(3):
            users[key] = pool.acquire("4KiB")
        del users[0]
        assert users.invalidate(1)
        users.clear()
        assert (pool.stats().live, pool.stats().dropped) == (0, 0)


@pytest.mark.parametrize("call", ["__getitem__", "__delitem__", "pop"])
def test_what_is_not_there_is_said_by_its_own_key(cache: Cache[Any, Any], call: str) -> None:
    with pytest.raises(KeyError) as raised:
        getattr(cache.namespace("users"), call)("x")
    assert raised.value.args == ("x",)


def test_two_of_one_name_are_one(cache: Cache[Any, Any]) -> None:
    one, other = cache.namespace("users"), cache.namespace("users")
    one[1] = "a"
    assert other[1] == "a"
    other[1] = "b"
    assert one[1] == "b"
    assert len(cache) == 1
    assert (one.name, one.cache) == ("users", cache)
    assert repr(one) == "<Namespace 'users' of <Cache 'all': 1 entries, size 1 of 100>>"


def test_no_plain_key_is_taken_for_one_of_a_namespace(cache: Cache[Any, Any]) -> None:
    users = cache.namespace("users")
    users[1] = "a"
    cache["users", 1] = "plain"
    assert users[1] == "a"
    assert cache["users", 1] == "plain"
    assert len(cache) == 2
    assert list(users) == [1]


def test_keys_of_the_cache_say_where_they_belong(cache: Cache[Any, Any]) -> None:
    told = Told()
    cache = Cache(10, on_evict=told)
    users = cache.namespace("users")
    users[1] = "a"
    (key,) = cache
    assert isinstance(key, NamespaceKey)
    assert (key.namespace, key.key, repr(key)) == ("users", 1, "NamespaceKey('users', 1)")
    assert cache[key] == "a"
    for copied in (copy.copy(key), pickle.loads(pickle.dumps(key))):
        assert copied == key
        assert hash(copied) == hash(key)
        assert cache[copied] == "a"
    assert key != ("users", 1)
    assert users.invalidate(1)
    assert not users.invalidate(1)
    assert told.all == [(key, "a", Cause.INVALIDATED)]


def test_put_has_all_that_the_cache_has(cache: Cache[Any, Any]) -> None:
    users = cache.namespace("users")
    users.put(1, "a", ttl=1e-9)
    users.put(2, "b", tags="t", priority=5, version=1)
    assert dict(users) == {2: "b"}
    assert cache.invalidate_tag("t") == 1
    assert dict(users) == {}


def test_a_loader_is_given_the_key_as_it_is_in_the_namespace(cache: Cache[Any, Any]) -> None:
    def double(key: int) -> int:
        keys.append(key)
        return 2 * key

    async def triple(key: int) -> int:
        keys.append(key)
        return 3 * key

    async def run() -> None:
        assert await users.get_or_load(2, triple) == 6
        assert await users.get_or_load(2, triple) == 6

    keys: list[int] = []
    users = cache.namespace("users")
    assert users.get_or_load(1, double) == users.get_or_load(1, double) == 2
    asyncio.run(run())
    assert users.get_or_load(3, double, version=1) == 6
    assert keys == [1, 2, 3]
    assert dict(users) == {1: 2, 2: 6, 3: 6}


def test_what_is_loaded_while_a_namespace_is_cleared_is_not_kept(cache: Cache[Any, Any]) -> None:
    def load(key: int) -> int:
        users.clear()
        return key

    users = cache.namespace("users")
    assert users.get_or_load(1, load) == 1
    assert 1 not in users
    groups = cache.namespace("groups")
    assert groups.get_or_load(1, load) == 1
    assert 1 in groups


@pytest.mark.parametrize("name", [None, 5, b"x"])
def test_a_name_is_a_text(cache: Cache[Any, Any], name: Any) -> None:
    with pytest.raises(TypeError, match="name must be a str, not"):
        cache.namespace(name)


def test_bounds_are_those_of_the_cache() -> None:
    cache: Cache[Any, int] = Cache(3, policy="lru")
    a, b = cache.namespace("a"), cache.namespace("b")
    a[1] = a[2] = a[3] = 1
    b[1] = 1
    assert (len(a), len(b)) == (2, 1)
    assert 1 not in a
