"""Weak values: what dies goes at once and nothing else does; the most recent are held; what cannot be held weakly is refused."""

import copy
import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mempool
from mempool.cache import Cause, WeakCache
from mempool.pressure import register, unregister
from monitor_kit import Clock
from support import KIB, Strange, start


class Page:
    """A value that can be held weakly, of a size."""

    def __init__(self, number: int = 0, nbytes: int = 0) -> None:
        self.number, self.content = number, bytearray(nbytes)

    def __sizeof__(self) -> int:
        return len(self.content)

    def __repr__(self) -> str:
        return f"Page({self.number})"


class Node:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.me = self


def pages(count: int, nbytes: int = 0) -> list[Page]:
    return [Page(number, nbytes) for number in range(count)]


def filled(objects: list[Page], **options: Any) -> WeakCache[int, Page]:
    cache: WeakCache[int, Page] = WeakCache(**options)
    for page in objects:
        cache[page.number] = page
    return cache


# ---- what lives and what dies


def test_a_value_that_nobody_holds_goes_at_once() -> None:
    objects = pages(3)
    cache = filled(objects)
    del objects[1]
    assert (len(cache), sorted(cache), 1 in cache) == (2, [0, 2], False)
    assert cache.get(1) is None
    with pytest.raises(KeyError, match="1"):
        cache[1]


def test_of_garbage_when_it_is_collected() -> None:
    cache: WeakCache[str, Node] = WeakCache()
    cache["node"] = Node()
    gc.collect()
    assert len(cache) == 0
    assert cache.stats().collected == 1


@pytest.mark.parametrize("value", [None, 3, "text", b"bytes", (), [], {}, 1.5, object()])
def test_what_cannot_be_held_weakly_is_refused(value: Any) -> None:
    page = Page()
    cache: WeakCache[str, Any] = WeakCache({"a": page}, keep_items=5)
    for put in (cache.__setitem__, cache.setdefault):
        with pytest.raises(TypeError, match=rf"referred to weakly, not {type(value).__qualname__}$"):
            put("b", value)
        assert list(cache.items()) == [("a", page)]
    with pytest.raises(TypeError, match="referred to weakly"):
        cache["a"] = value
    assert cache["a"] is page


@pytest.mark.parametrize("key", [[], {}, set()])
def test_keys_must_be_hashable(key: Any) -> None:
    cache: WeakCache[Any, Page] = WeakCache(keep_items=3)
    page = Page()
    with pytest.raises(TypeError, match="unhashable"):
        cache[key] = page
    with pytest.raises(TypeError, match="unhashable"):
        cache.get(key)
    assert (len(cache), cache.stats().kept) == (0, 0)


@pytest.mark.parametrize("keep", [{}, {"keep_items": 5}])
def test_a_newer_value_outlives_the_older_one_of_its_key(keep: dict[str, Any]) -> None:
    cache: WeakCache[str, Page] = WeakCache(**keep)
    older, newer = Page(1), Page(2)
    cache["key"] = older
    cache["key"] = newer
    del older
    gc.collect()
    assert cache["key"] is newer
    assert len(cache) == 1


@pytest.mark.parametrize("put", ["set", "setdefault"])
def test_a_dead_reference_does_not_remove_what_came_after_it(put: str) -> None:
    """The collector first kills all references to what it found, then calls their callbacks: here one before the cache's."""
    cache: WeakCache[str, Any] = WeakCache()
    newer, found = Page(2), []

    def early(_: object) -> None:
        found.append((cache.get("key"), "key" in cache, cache.pop("key", None)))
        if put == "set":
            cache["key"] = newer
        else:
            assert cache.setdefault("key", newer) is newer

    before, value, after = Node(), Node(), Node()
    before.me = value.me = after.me = [before, value, after]  # type: ignore[assignment]
    cache["key"] = value
    others = [weakref.ref(before, early), weakref.ref(after, early)]
    del before, value, after
    gc.collect()
    assert found[0] == (None, False, None)
    assert cache.get("key") is newer
    assert len(others) == len(found) == 2


def test_late_callbacks_and_late_holders() -> None:
    """What another thread may do last, done last."""
    cache: WeakCache[int, Page] = WeakCache()
    older, newer = Page(1), Page(2)
    cache[1] = older
    (reference,) = cache.valuerefs()
    cache[1] = newer
    cache._collect(reference)
    assert cache[1] is newer
    band = filled([older], keep_items=5)
    (reference,) = band.valuerefs()
    del band[1]
    assert band._band is not None
    band._band.hold(reference, older)  # type: ignore[arg-type]
    assert band.stats().kept == 0


@pytest.mark.parametrize(
    "kind", [mempool.Buffer, np.ndarray, mempool.BufferPool, set, frozenset, type, weakref.WeakSet]
)
def test_values_of_many_kinds(kind: type) -> None:
    made: dict[type, Callable[[], Any]] = {
        mempool.Buffer: lambda: mempool.acquire(100),
        np.ndarray: lambda: np.zeros(100),
        type: lambda: type("Made", (), {}),
    }
    value = made.get(kind, kind)()
    cache: WeakCache[str, Any] = WeakCache(keep_bytes="1MiB")
    cache["it"] = value
    assert cache["it"] is value
    assert cache.stats().kept == 1


# ---- the band


def test_the_most_recent_are_held() -> None:
    cache = filled(pages(10), keep_items=3)
    assert sorted(cache) == [7, 8, 9]
    assert cache[7].number == 7  # from now on the most recent
    cache[10] = Page(10)
    assert sorted(cache) == [7, 9, 10]
    assert cache.stats().kept == 3


def test_what_others_hold_stays_and_is_held_again_when_used() -> None:
    objects = pages(10)
    cache = filled(objects, keep_items=3)
    assert sorted(cache) == list(range(10))
    assert cache[0] is objects[0]
    assert cache.get(1) is objects[1]
    assert cache.setdefault(2, Page()) is objects[2]
    objects.clear()
    assert sorted(cache) == [0, 1, 2]


def test_looking_is_no_use() -> None:
    objects = pages(4)
    cache = filled(objects, keep_items=2)
    assert 0 in cache
    assert list(cache.items()) == list(enumerate(objects))
    assert objects[0] in cache.values()
    assert (0, objects[0]) in cache.items()
    assert cache.keys() >= {0}
    objects.clear()
    assert sorted(cache) == [2, 3]


def test_the_band_counts_real_bytes() -> None:
    cache = filled(pages(10, 10 * KIB), keep_bytes="35KiB")
    kept = cache.stats()
    assert sorted(cache) == [7, 8, 9]
    assert (kept.kept, kept.kept_bytes) == (3, cache.nbytes)
    assert 30 * KIB <= cache.nbytes <= 35 * KIB


def test_with_both_bounds_both_hold() -> None:
    few, large = (filled(pages(10, size), keep_bytes="100KiB", keep_items=4) for size in (KIB, 30 * KIB))
    assert (sorted(few), sorted(large)) == ([6, 7, 8, 9], [7, 8, 9])


def test_what_is_larger_than_the_band_is_held_weakly() -> None:
    small, large = Page(1, 10), Page(2, 200 * KIB)
    cache = filled([small], keep_bytes="100KiB")
    cache[2] = large
    assert cache[2] is large
    del small, large
    assert sorted(cache) == [1]


@pytest.mark.parametrize("keep", [{}, {"keep_items": 0}, {"keep_bytes": 0}, {"keep_bytes": "1MiB", "keep_items": 0}])
def test_no_band(keep: dict[str, Any]) -> None:
    cache = filled(pages(3), **keep)
    assert (len(cache), cache.nbytes, cache.shrink(100)) == (0, 0, 0)


def test_an_endless_band_holds_all() -> None:
    assert len(filled(pages(100), keep_items=float("inf"))) == 100


@pytest.mark.parametrize("leave", ["pop", "del", "clear", "popitem", "replace"])
def test_what_leaves_is_held_no_longer(leave: str) -> None:
    cache = filled([Page(0)], keep_items=5)
    alive = weakref.ref(cache[0])
    {
        "pop": lambda: cache.pop(0),
        "del": lambda: cache.__delitem__(0),
        "clear": cache.clear,
        "popitem": cache.popitem,
        "replace": lambda: cache.__setitem__(0, Page(1)),
    }[leave]()
    assert alive() is None
    assert cache.stats().kept == len(cache) == (leave == "replace")


def test_a_popped_value_is_returned_alive() -> None:
    cache = filled(pages(3), keep_items=5)
    assert cache.pop(1).number == 1
    assert {cache.popitem()[1].number, cache.popitem()[1].number} == {0, 2}
    with pytest.raises(KeyError, match="empty"):
        cache.popitem()
    assert cache.pop(1, None) is None
    with pytest.raises(KeyError):
        cache.pop(1)
    with pytest.raises(KeyError):
        del cache[1]


def test_popitem_takes_no_longer_the_more_was_popped() -> None:
    cache = filled(pages(20_000), keep_items=float("inf"))
    assert len({cache.popitem()[0] for _ in range(20_000)}) == 20_000
    cache[5] = page = Page(5)
    assert cache.popitem() == (5, page)


# ---- time


def test_entries_expire_whoever_holds_them() -> None:
    clock, objects = Clock(), pages(2)
    left: list[tuple[int, Page, Cause]] = []
    cache = filled(objects[:1], ttl="10s", keep_items=5, clock=clock, on_evict=lambda *what: left.append(what))
    clock.now += 6
    cache[1] = objects[1]
    clock.now += 5
    assert (0 in cache, cache.get(0), list(cache), len(cache)) == (False, None, [1], 1)
    assert cache.stats().kept == 1
    clock.now += 5
    assert cache.expire() == 1
    assert [(key, cause) for key, _, cause in left] == [(0, Cause.EXPIRED), (1, Cause.EXPIRED)]
    assert cache.stats().expired == 2


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"keep_items": -1}, ValueError),
        ({"keep_items": 1.5}, TypeError),
        ({"keep_items": True}, TypeError),
        ({"keep_items": "3"}, TypeError),
        ({"keep_bytes": -1}, ValueError),
        ({"keep_bytes": 1.5}, TypeError),
        ({"keep_bytes": "3 apples"}, ValueError),
        ({"ttl": 0}, ValueError),
        ({"ttl": -1}, ValueError),
        ({"ttl": "soon"}, ValueError),
        ({"ttl": Strange()}, TypeError),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind, match=next(iter(options))):
        WeakCache(**options)


# ---- who wants to know


def test_listeners_are_told_of_each_entry_that_left() -> None:
    told: list[tuple[int, Page | None, Cause]] = []
    objects = pages(5)
    cache = filled(objects, on_evict=lambda *what: told.append(what))
    del cache[0], objects[1]
    other = cache[2] = Page(2)
    cache.pop(3)
    cache.clear()
    assert told == [
        (0, objects[0], Cause.DELETED),
        (1, None, Cause.COLLECTED),
        (2, objects[1], Cause.REPLACED),
        (3, objects[2], Cause.DELETED),
        (2, other, Cause.DELETED),
        (4, objects[3], Cause.DELETED),
    ]


def test_a_listener_may_put_the_value_back() -> None:
    cache: WeakCache[int, Page] = WeakCache(
        keep_items=5, on_evict=lambda key, value, cause: back.append(value) or cache.__setitem__(-key, value)
    )
    back: list[Page] = []
    cache[1] = Page(1)
    del cache[1]
    assert cache[-1] is back[0]
    back.clear()
    assert list(cache) == [-1]


def test_counts() -> None:
    objects = pages(4)
    cache = filled(objects, keep_items=2)
    cache.get(0), cache.get(9), cache[1]
    cache.setdefault(2, Page())
    with pytest.raises(KeyError):
        cache[8]
    objects.clear()
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.collected, stats.values, stats.kept) == (3, 2, 2, 2, 2)


# ---- mappings of other kinds


def test_it_is_made_from_others_and_merged_with_them() -> None:
    first, second = pages(2)
    options: dict[str, Any] = {"keep_items": 1, "name": "pages"}
    cache = WeakCache({0: first}, **options)
    for made in (cache | {1: second}, {0: first} | WeakCache({1: second}, **options), copy.copy(cache)):
        assert isinstance(made, WeakCache)
        assert (made.name, made._options) == ("pages", cache._options)
        assert made[0] is first
    cache |= {1: second}
    assert dict(cache) == {0: first, 1: second}
    assert cache == {0: first, 1: second}
    assert cache != {0: first}
    assert WeakCache([(0, first)]) == {0: first}
    with pytest.raises(TypeError):
        cache | 3  # type: ignore[operator]


def test_a_subclass_may_make_what_is_missing() -> None:
    class Pages(WeakCache[int, Page]):
        def __missing__(self, key: int) -> Page:
            made = self[key] = Page(key)
            return made

    cache = Pages(keep_items=2)
    assert cache[7] is cache[7]
    assert cache.get(8) is None


def test_views_are_iterators_too() -> None:
    objects = pages(3)
    cache = filled(objects)
    items = cache.items()
    assert next(items) == (0, objects[0])  # type: ignore[call-overload]
    assert next(items) == (1, objects[1])  # type: ignore[call-overload]
    assert len(items) == 3
    assert cache.keys() & {1, 7} == {1}
    assert [wr() for wr in cache.valuerefs()] == objects


def test_a_view_that_was_given_to_next_goes_on_from_there() -> None:
    objects = pages(3)
    cache = filled(objects)
    for view, all_of_it in (
        (cache.keys(), [0, 1, 2]),
        (cache.values(), objects),
        (cache.items(), list(enumerate(objects))),
    ):
        again: Any = view
        assert list(again) == list(again) == all_of_it
        assert next(again) == all_of_it[0]
        assert iter(again) is again
        assert list(again) == all_of_it[1:]
        assert list(again) == []
        assert all_of_it[0] in again


def test_changes_while_it_is_iterated_over() -> None:
    objects = pages(100)
    cache = filled(objects)
    seen = []
    for key in cache:
        seen.append(key)
        if key < 50:
            objects[99 - key] = objects[0]  # dies
            cache[1000 + key] = objects[0]
    assert [key for key in seen if key < 100] == list(range(50))
    cache.update(cache)
    assert len(cache) == 100


# ---- its own life


def test_it_goes_without_the_collector() -> None:
    gc.disable()
    try:
        page = Page()
        cache = WeakCache({0: page, 1: Page()}, keep_items=5, on_evict=lambda *what: None)
        list(cache.items()), cache.popitem()
        kept, alive = weakref.ref(cache[1]) if 1 in cache else None, weakref.ref(cache)
        del cache
        assert alive() is None
        assert kept is None or kept() is None
    finally:
        gc.enable()


def test_circles_through_its_values_are_garbage() -> None:
    cache: WeakCache[int, Any] = WeakCache(keep_items=5)
    page = Page()
    page.cache = cache  # type: ignore[attr-defined]
    cache[0] = page
    alive = weakref.ref(page)
    del cache, page
    gc.collect()
    assert alive() is None


def test_values_that_die_after_it() -> None:
    page = Page()
    cache = WeakCache({0: page})
    del cache
    del page  # its callback finds no cache


def test_one_that_dies_in_another_thread() -> None:
    objects = pages(100)
    cache = filled(objects)
    start(objects.clear).result()
    assert len(cache) == 0


def test_it_charges_an_account_of_its_own() -> None:
    cache: WeakCache[int, Page] = WeakCache(name="charged pages", keep_items=1000)
    (account,) = [child for child in itertools.chain(*map(_below, _tree())) if child.name == "charged pages"]
    assert account.used == 0
    objects = pages(1000)
    cache.update((page.number, page) for page in objects)
    assert account.used > 32_000
    cache.clear()
    assert account.used < 1000


def _tree() -> list[mempool.Account]:
    return list(mempool.accounting.root_account().children)


def _below(account: mempool.Account) -> list[mempool.Account]:
    return [account, *itertools.chain(*map(_below, account.children))]


def test_it_registers_itself() -> None:
    cache = filled(pages(1000, KIB), keep_items=1000, name="registered pages")
    report = mempool.cleanup("aggressive")
    assert "registered pages" in [step.name for step in report.steps]
    assert len(cache) == 0
    cache.update((page.number, page) for page in pages(10))
    unregister(cache)
    assert "registered pages" not in [step.name for step in mempool.cleanup("aggressive").steps]
    register(cache)


def test_what_it_says_of_itself() -> None:
    cache = filled(pages(3), keep_items=2, name="pages")
    assert repr(cache) == "<WeakCache 'pages' of 2 values, 2 of them held strongly>"
