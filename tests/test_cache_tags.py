"""Entries that are taken back: by key, by tag, by version."""

import sys
import threading
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_kit import Clock, Own, Told
from mempool.cache import Cache, Cause
from mempool.cache._policies import MISSING, Note, Tagged
from mempool.cache.tags import Tags
from support import DEADLINE, start, together


def tagged(**options: Any) -> Cache[Any, Any]:
    cache: Cache[Any, Any] = Cache(100, **options)
    cache.put("a", 1, tags=("red",))
    cache.put("b", 2, tags=("red", "round"))
    cache.put("c", 3, tags=("round",))
    cache["d"] = 4
    return cache


def test_invalidate_takes_a_key_back() -> None:
    told = Told()
    cache = tagged(on_evict=told)
    assert cache.invalidate("a")
    assert told.take() == [("a", 1, Cause.INVALIDATED)]
    assert not cache.invalidate("a")
    assert cache.stats().invalidations == 1


def test_a_tag_takes_back_all_that_have_it() -> None:
    told = Told()
    cache = tagged(on_evict=told)
    assert cache.invalidate_tag("red") == 2
    assert told.take() == [("a", 1, Cause.INVALIDATED), ("b", 2, Cause.INVALIDATED)]
    assert cache == {"c": 3, "d": 4}
    assert cache.invalidate_tag("red") == 0
    assert cache.invalidate_tag("round") == 1
    assert cache.invalidate_tag("never") == 0
    assert len(cache._tags) == 0


def test_any_hashable_value_is_a_tag_and_a_text_is_one() -> None:
    cache: Cache[str, int] = Cache(10)
    cache.put("a", 1, tags="red")
    cache.put("b", 1, tags=b"red")
    cache.put("c", 1, tags=[("user", 1), None, 5])
    cache.put("d", 1, tags={Own(1)})
    cache.put("e", 1, tags=iter(["x", "x"]))
    assert [cache.invalidate_tag(tag) for tag in ("r", 114, "red", b"red", None, Own(1), "x")] == [0, 0, 1, 1, 1, 1, 1]
    assert len(cache) == len(cache._tags) == 0


def test_a_tag_that_cannot_be_hashed_is_refused() -> None:
    cache = tagged()
    tag: Any = []
    with pytest.raises(TypeError, match="unhashable"):
        cache.invalidate_tag(tag)
    assert len(cache) == 4


@pytest.mark.parametrize(
    "remove",
    [
        lambda cache, clock: cache.pop("k"),
        lambda cache, clock: cache.__delitem__("k"),
        lambda cache, clock: cache.clear(),
        lambda cache, clock: cache.popitem(),
        lambda cache, clock: cache.invalidate("k"),
        lambda cache, clock: cache.invalidate_version(9),
        lambda cache, clock: cache.resize(0),
        lambda cache, clock: cache.__setitem__("k", 2),
        lambda cache, clock: cache.put("k", 2, tags="other"),
        lambda cache, clock: cache.put("new", 2),
        lambda cache, clock: setattr(clock, "now", 100) or cache.expire(),
        lambda cache, clock: setattr(clock, "now", 100) or cache.get("k"),
        lambda cache, clock: cache._find("k", 2),
    ],
)
def test_a_tag_goes_with_its_entry(remove: Any) -> None:
    clock = Clock()
    cache: Cache[str, int] = Cache(1, ttl=10, clock=clock)
    cache.put("k", 1, tags=("t", "u"), version=1)
    assert len(cache._tags) == 2
    remove(cache, clock)
    assert cache._tags.having("t") == cache._tags.having("u") == []
    assert cache.invalidate_tag("t") == 0
    cache.clear()
    assert len(cache._tags) == 0


def test_an_entry_has_the_tags_of_its_last_writing() -> None:
    cache: Cache[str, int] = Cache(10)
    cache.put("a", 1, tags="old")
    cache.put("a", 2, tags="new")
    assert cache.invalidate_tag("old") == 0
    assert cache["a"] == 2
    cache.put("a", 3, tags="new")
    assert cache.invalidate_tag("new") == 1


def test_what_is_over_is_not_counted() -> None:
    clock = Clock()
    cache: Cache[str, int] = Cache(10, clock=clock)
    cache.put("a", 1, tags="t", ttl=1)
    cache.put("b", 1, tags="t", ttl=2)
    clock.now = 1
    assert cache.invalidate_tag("t") == 1
    stats = cache.stats()
    assert (stats.expirations, stats.invalidations) == (1, 1)


def test_a_listener_may_tag_again() -> None:
    def put_back(key: str, value: int, cause: Cause) -> None:
        if value < 3:
            cache.put(key, value + 1, tags="t")

    cache: Cache[str, int] = Cache(10, on_evict=put_back)
    cache.put("a", 0, tags="t")
    assert cache.invalidate_tag("t") == 1
    assert cache == {"a": 1}
    assert [cache.invalidate_tag("t") for _ in range(4)] == [1, 1, 1, 0]
    assert len(cache._tags) == 0


def test_tags_that_cannot_be_compared_leave_nothing_behind() -> None:
    class Odd:
        sound = True

        def __hash__(self) -> int:
            return 5

        def __eq__(self, other: object) -> bool:
            if not self.sound:
                raise ZeroDivisionError
            return self is other

    cache: Cache[str, int] = Cache(10)
    odd, other = Odd(), Odd()
    cache.put("a", 1, tags=[odd])
    Odd.sound = False
    with pytest.raises(ZeroDivisionError):
        cache.put("b", 1, tags=["plain", other])
    Odd.sound = True
    assert cache == {"a": 1}
    assert cache.invalidate_tag("plain") == 0
    assert cache.invalidate_tag(odd) == 1
    assert len(cache._tags) == 0


# ---- versions


def test_another_version_is_stale() -> None:
    told = Told()
    cache: Cache[str, int] = Cache(10, on_evict=told)
    cache.put("a", 1, version=1)
    assert cache._find("a") == cache._find("a", 1) == cache["a"] == 1
    assert told.all == []
    assert cache._find("a", 2) is MISSING
    assert told.take() == [("a", 1, Cause.INVALIDATED)]
    stats = cache.stats()
    assert (stats.hits, stats.misses) == (3, 1)


def test_what_has_no_version_is_of_none() -> None:
    cache: Cache[str, int] = Cache(10)
    cache["a"] = 1
    cache.put("b", 1, tags="t")
    assert cache._find("a", 1) is MISSING
    assert cache._find("b", 1) is MISSING
    assert len(cache) == len(cache._tags) == 0


def test_get_or_load_loads_another_version_anew() -> None:
    cache: Cache[str, str] = Cache(10)

    def load(version: int) -> str:
        return cache.get_or_load("a", lambda key: f"{key}{version}", version=version)

    assert [load(1), load(1), load(2), load(2)] == ["a1", "a1", "a2", "a2"]
    stats = cache.stats()
    assert (stats.loads, stats.hits, stats.invalidations) == (2, 2, 1)


@pytest.mark.parametrize("versions", [(1, 2, 3), ("1.0", "1.1", "2.0"), ((1, 0), (1, 5), (2, 0)), (0.5, 1, 1.5)])
def test_old_versions_are_taken_back(versions: tuple[Any, ...]) -> None:
    told = Told()
    cache: Cache[Any, Any] = Cache(10, on_evict=told)
    for version in versions:
        cache.put(version, version, version=version)
    cache["none"] = 1
    assert cache.invalidate_version(versions[1]) == 1
    assert told.take() == [(versions[0], versions[0], Cause.INVALIDATED)]
    assert cache.invalidate_version(versions[2]) == 1
    assert set(cache) == {versions[2], "none"}


def test_versions_that_cannot_be_compared_change_nothing() -> None:
    cache: Cache[str, int] = Cache(10)
    cache.put("a", 1, version=1)
    cache.put("b", 1, version="one")
    with pytest.raises(TypeError, match="not supported"):
        cache.invalidate_version(2)
    with pytest.raises(TypeError, match="below must be a version, not None"):
        cache.invalidate_version(None)
    assert len(cache) == 2


def test_versions_whose_equality_runs_python() -> None:
    def change() -> None:
        cache.put("a", 2, version=Own(2))

    class Changing(Own):
        __hash__ = Own.__hash__

        def __eq__(self, other: object) -> bool:
            if self.number == 1:
                self.number = 3
                change()
            return super().__eq__(other)

    cache: Cache[str, int] = Cache(10)
    cache.put("a", 1, version=Changing(1))
    assert cache._find("a", Own(2)) == 2
    assert cache._find("a", Own(3)) is MISSING
    cache.put("a", 1, version=Changing(1))
    assert cache._find("a", Own(1)) is MISSING
    assert len(cache) == 0


def test_a_version_that_raises_when_compared_counts_nothing() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError

        __hash__ = object.__hash__

    cache: Cache[str, int] = Cache(10)
    cache.put("a", 1, version=Odd())
    before = cache.stats()
    with pytest.raises(ZeroDivisionError):
        cache._find("a", Odd())
    assert cache.stats() == before
    assert cache["a"] == 1


# ---- threads


def test_no_tag_is_lost_among_threads() -> None:
    cache: Cache[tuple[int, int], int] = Cache(100_000)
    gone = threading.Event()

    def put(number: int) -> None:
        for count in range(300):
            cache.put((number, count), count, tags=("all", count % 3))
            if count % 5 == 0:
                cache.pop((number, count - 5), None)

    def take() -> int:
        taken = 0
        while not gone.is_set():
            taken += cache.invalidate_tag("all") + cache.invalidate_tag(1)
        return taken

    taker = start(take)
    try:
        together([partial(put, number) for number in range(4)])
    finally:
        gone.set()
    taken = taker.result()
    taken += cache.invalidate_tag("all")
    assert len(cache) == 0
    assert taken == cache.stats().invalidations
    assert len(cache._tags) == 0


def test_a_tag_that_empties_and_fills_is_never_two() -> None:
    cache: Cache[int, int] = Cache(1000)

    def work(number: int) -> None:
        for _ in range(500):
            cache.put(number, 1, tags="t")
            if number:
                cache.pop(number, None)
            else:
                assert cache.invalidate_tag("t")
                assert 0 not in cache

    together([partial(work, number) for number in range(4)])
    assert len(cache) == len(cache._tags) == 0


def test_a_put_that_is_under_way_is_found_by_the_next() -> None:
    """The tag is taken back while the new entry is not in the table yet; it is there later, and has its tag."""

    class Slow(Own):
        __hash__ = Own.__hash__

        def __eq__(self, other: object) -> bool:
            if not inside.is_set():
                inside.set()
                assert go.wait(DEADLINE)
            return super().__eq__(other)

    inside, go = threading.Event(), threading.Event()
    cache: Cache[Any, int] = Cache(10)
    cache[Slow(1)] = 1
    putter = start(lambda: cache.put(Slow(2), 2, tags="t"))
    assert inside.wait(DEADLINE)
    assert cache.invalidate_tag("t") == 0
    go.set()
    putter.result()
    assert cache.invalidate_tag("t") == 1


def test_a_tag_that_has_just_emptied_is_made_anew() -> None:
    """As if another thread had taken the last entry from it, and not yet got to take it out of the index."""
    tags = Tags()
    tags.note("a", None, ("t",)).gone()
    over = Tagged("t", tags._reference)
    assert over.add(Note("b", None))
    note = Note("c", None)
    assert over.add(note)
    for gone in over.all():
        gone.gone()
    assert not over.add(note)
    tags._index["t"] = over
    new = tags.note("d", None, ("t",))
    assert tags.having("t") == [new]
    new.gone()
    assert len(tags) == 0


class Moody:
    """A tag that can be hashed as long as the test lets it."""

    hashes = True

    def __hash__(self) -> int:
        if not self.hashes:
            raise RuntimeError("moody")
        return 7


def test_a_tag_that_raises_keeps_no_entry_from_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: said.append(event.exc_value))
    told, tag = Told(), Moody()
    cache: Cache[Any, Any] = Cache(10, on_evict=told)
    cache.put("k", 1, tags=(tag, "t"))
    tag.hashes = False
    assert cache.pop("k") == 1
    assert told.take() == [("k", 1, Cause.DELETED)]
    assert [str(error) for error in said] == ["moody"]
    assert cache._tags.having("t") == []
    tag.hashes = True
    cache.put("k", 2, tags=(tag,))
    assert cache.invalidate_tag(tag) == 1
    assert len(cache._tags) == 0


def test_ctrl_c_as_a_tag_is_indexed_leaves_nothing() -> None:
    tags = Tags()
    index = tags._index

    class Interrupted:
        def __getattr__(self, name: str) -> Any:
            return getattr(index, name)

        def _insert(self, *args: Any) -> Any:
            index._insert(*args)
            raise KeyboardInterrupt

    tags._index = cast(Any, Interrupted())
    with pytest.raises(KeyboardInterrupt):
        tags.note("key", None, ("t", "u"))
    assert len(index) == tags.own_bytes == 0


# ---- loads


@pytest.mark.parametrize(
    "take",
    [
        lambda cache: cache.invalidate("a"),
        lambda cache: cache.invalidate_tag("t"),
        lambda cache: cache.invalidate_version(6),
    ],
)
def test_what_is_taken_back_while_it_is_loaded_is_not_kept(take: Any) -> None:
    def load(key: str) -> int:
        assert not take(cache)
        return 1

    cache: Cache[str, int] = Cache(10)
    assert cache.get_or_load("a", load, tags=("t",), version=5) == 1
    assert len(cache) == len(cache._tags) == 0
    assert cache.get_or_load("a", len, tags=("t",), version=6) == 1
    assert cache.invalidate_tag("t") == 1


# ---- against a plain model

programs = st.lists(
    st.tuples(st.sampled_from(["put", "pop", "tag", "version"]), st.integers(0, 5), st.sets(st.integers(0, 3))),
    max_size=50,
)


@given(programs)
def test_against_a_dict(program: list[tuple[str, int, set[int]]]) -> None:
    cache: Cache[int, int] = Cache(1000)
    model: dict[int, tuple[int, set[int]]] = {}
    for what, key, tags in program:
        if what == "put":
            cache.put(key, key, tags=tags, version=len(tags))
            model[key] = (len(tags), tags)
        elif what == "pop":
            assert (cache.pop(key, None) is None) == (model.pop(key, None) is None)
        elif what == "tag":
            gone = [other for other, (_, had) in model.items() if key in had]
            assert cache.invalidate_tag(key) == len(gone)
            model = {other: entry for other, entry in model.items() if other not in gone}
        else:
            gone = [other for other, (version, _) in model.items() if version < len(tags)]
            assert cache.invalidate_version(len(tags)) == len(gone)
            model = {other: entry for other, entry in model.items() if other not in gone}
        assert set(cache) == set(model)
        assert len(cache._tags) == len(set().union(*(had for _, had in model.values())))
