"""Entries that are over when their time is."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_kit import Clock, Told
from mempool.cache import Cache, Cause


def timed(ttl: Any = 10, maxsize: int = 100, **options: Any) -> tuple[Cache[Any, Any], Clock]:
    clock = Clock()
    return Cache(maxsize, ttl=ttl, clock=clock, **options), clock


def test_an_entry_is_over_when_its_time_is() -> None:
    told = Told()
    cache, clock = timed(on_evict=told)
    cache["a"] = 1
    clock.now = 9.999
    assert cache["a"] == 1
    assert "a" in cache
    clock.now = 10.0
    assert "a" not in cache
    assert told.all == []
    assert cache.get("a") is None
    assert told.take() == [("a", 1, Cause.EXPIRED)]
    assert len(cache) == 0


@pytest.mark.parametrize(
    "look",
    [
        lambda cache: cache["a"],
        lambda cache: cache.pop("a"),
        lambda cache: cache.__delitem__("a"),
        lambda cache: cache.popitem(),
    ],
)
def test_what_is_over_is_not_there(look: Any) -> None:
    cache, clock = timed()
    cache["a"] = 1
    clock.now = 10
    with pytest.raises(KeyError):
        look(cache)
    assert list(cache.items()) == list(cache) == list(cache.values()) == []
    assert cache == {}
    stats = cache.stats()
    assert (stats.expirations, stats.deletions, stats.entries) == (1, 0, 0)


def test_reading_is_not_writing() -> None:
    cache, clock = timed()
    cache["a"] = 1
    clock.now = 9
    assert cache["a"] == 1
    clock.now = 10
    assert "a" not in cache


def test_writing_begins_anew() -> None:
    cache, clock = timed()
    cache["a"] = 1
    clock.now = 9
    cache["a"] = 2
    clock.now = 18.9
    assert cache["a"] == 2
    clock.now = 19
    assert "a" not in cache


def test_setdefault_replaces_what_is_over() -> None:
    told = Told()
    cache, clock = timed(on_evict=told)
    cache["a"] = 1
    clock.now = 10
    assert cache.setdefault("a", 2) == 2
    assert cache["a"] == 2
    assert told.take() == [("a", 1, Cause.EXPIRED)]


def test_what_is_over_is_replaced_as_expired() -> None:
    told = Told()
    cache, clock = timed(on_evict=told)
    cache["a"] = 1
    clock.now = 10
    cache["a"] = 2
    assert told.take() == [("a", 1, Cause.EXPIRED)]
    cache["a"] = 3
    assert told.take() == [("a", 2, Cause.REPLACED)]


def test_each_may_have_its_own_time() -> None:
    cache, clock = timed(ttl=None)
    cache.put("short", 1, ttl=1)
    cache.put("text", 1, ttl="500ms")
    cache.put("ever", 1, ttl=math.inf)
    cache["plain"] = 1
    clock.now = 0.5
    assert sorted(cache) == ["ever", "plain", "short"]
    clock.now = 1
    assert sorted(cache) == ["ever", "plain"]
    clock.now = 1e300
    assert sorted(cache) == ["ever", "plain"]


def test_ttl_is_what_it_was_made_with() -> None:
    assert timed(ttl="5m")[0].ttl == 300.0
    assert timed(ttl=None)[0].ttl is None
    assert timed(ttl=math.inf)[0].ttl is None
    cache, clock = timed(ttl=10)
    cache.put("ever", 1, ttl=math.inf)
    clock.now = 1e9
    assert cache["ever"] == 1


def test_expire_removes_what_is_over_and_says_how_many() -> None:
    told = Told()
    cache, clock = timed(on_evict=told)
    for number in range(10):
        cache.put(number, number, ttl=number + 1)
    clock.now = 5
    assert cache.expire() == 5
    assert told.take() == [(number, number, Cause.EXPIRED) for number in range(5)]
    assert cache.expire() == 0
    assert sorted(cache) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("read", [len, lambda cache: cache.currsize, repr])
def test_sizes_count_what_can_be_returned(read: Any) -> None:
    cache, clock = timed(name="n")
    cache["a"] = 1
    cache.put("b", 1, ttl=20)
    clock.now = 10
    assert str(read(cache)) in ("1", "<Cache 'n': 1 entries, size 1 of 100>")
    assert cache.stats().expirations == 1


def test_what_is_over_goes_before_what_is_not() -> None:
    told = Told()
    cache, clock = timed(ttl=None, maxsize=3, policy="lru", on_evict=told)
    cache["old"] = 1
    cache.put("over", 1, ttl=1, priority=100)
    cache["new"] = 1
    clock.now = 1
    cache["newer"] = 1
    assert told.take() == [("over", 1, Cause.EXPIRED)]
    assert sorted(cache) == ["new", "newer", "old"]


def test_what_is_over_makes_room_for_another_value_of_what_is_over_before_it() -> None:
    cache, clock = timed(math.inf, 10, getsizeof=lambda value: value, policy="lru")
    cache["live"] = 3
    cache.put("first", 1, ttl=1)
    cache.put("second", 3, ttl=2)
    clock.now = 5
    cache["first"] = 6
    assert dict(cache.items()) == {"live": 3, "first": 6}
    stats = cache.stats()
    assert (stats.expirations, stats.evictions) == (2, 0)


def test_age_is_since_the_writing() -> None:
    cache, clock = timed(ttl=10)
    clock.now = 5
    cache["a"] = 1
    cache.put("ever", 1, ttl=math.inf)
    clock.now = 8
    assert cache._age("a") == (3, 10)
    assert cache._age("ever") is None
    assert cache._age("none") is None
    clock.now = 15
    assert cache._age("a") is None


def test_the_clock_that_a_cache_has_of_itself() -> None:
    cache: Cache[str, int] = Cache(10, ttl="1h")
    cache["a"] = 1
    cache.put("b", 1, ttl=1e-9)
    assert cache["a"] == 1
    assert "b" not in cache


# ---- clocks that cannot be trusted


def test_a_clock_that_jumps_back_lets_entries_live_longer() -> None:
    cache, clock = timed()
    clock.now = 1e6
    cache["a"] = 1
    clock.now = 0
    assert cache["a"] == 1
    cache["b"] = 2
    clock.now = 10
    assert sorted(cache) == ["a"]
    clock.now = 1e6 + 10
    assert len(cache) == 0


@pytest.mark.parametrize("jump", [1e308, math.inf])
def test_a_clock_that_jumps_far_ahead_ends_all(jump: float) -> None:
    cache, clock = timed()
    cache["a"] = 1
    clock.now = jump
    assert len(cache) == 0
    cache["b"] = 2
    clock.now = 0
    assert cache.get("b") in (None, 2)
    cache["b"] = 3
    assert cache["b"] == 3


@pytest.mark.parametrize("start", [-1e9, -1, -1e-300])
def test_clocks_below_nothing(start: float) -> None:
    cache, clock = timed()
    clock.now = start
    cache["a"] = 1
    assert cache["a"] == 1
    clock.now = 1e9
    assert "a" not in cache


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (math.nan, ValueError, "the clock of a cache said nan"),
        (math.inf, ValueError, "the clock of a cache said inf"),
        (-math.inf, ValueError, "the clock of a cache said -inf"),
        ("noon", TypeError, "the clock of a cache must return seconds, not 'noon'"),
        (None, TypeError, "the clock of a cache must return seconds, not None"),
        (1 << 2000, OverflowError, "too large"),
    ],
)
def test_a_clock_that_does_not_tell_the_time(said: Any, kind: type[Exception], words: str) -> None:
    cache, clock = timed()
    cache["a"] = 1
    clock.now = said
    for use in (
        lambda: cache["a"],
        lambda: "a" in cache,
        lambda: cache.__setitem__("a", 2),
        lambda: cache.put("b", 2, tags="t"),
        lambda: cache.pop("a"),
        lambda: cache.setdefault("a"),
        lambda: list(cache),
        lambda: len(cache),
        lambda: cache.expire(),
        lambda: cache.popitem(),
        lambda: cache.currsize,
        lambda: cache.invalidate("a"),
        lambda: cache._find("a", 1),
        lambda: cache._age("a"),
    ):
        with pytest.raises(kind, match=words):
            use()
    clock.now = 1
    assert cache == {"a": 1}
    assert len(cache._tags) == 0


def test_a_clock_that_raises_changes_nothing() -> None:
    class Stopped(Exception):
        pass

    def clock() -> float:
        if stopped:
            raise Stopped
        return 0.0

    stopped = False
    cache: Cache[str, int] = Cache(10, ttl=5, clock=clock)
    cache["a"] = 1
    stopped = True
    for use in (lambda: cache["a"], lambda: cache.__setitem__("a", 2), lambda: cache.pop("a")):
        with pytest.raises(Stopped):
            use()
    cache.stats()
    stopped = False
    assert cache == {"a": 1}


def test_a_clock_that_uses_the_cache() -> None:
    def clock() -> float:
        inside.append(1)
        if len(inside) % 2:
            len(cache)
        return 0.0

    inside: list[int] = []
    cache: Cache[str, int] = Cache(10, ttl=5, clock=clock)
    cache["a"] = 1
    assert cache["a"] == 1


# ---- against a plain model

steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "delete", "move"]),
        st.integers(0, 6),
        st.integers(1, 9),
    ),
    max_size=60,
)


@given(steps)
def test_what_is_returned_is_what_is_not_over(program: list[tuple[str, int, int]]) -> None:
    cache, clock = timed(ttl=None, maxsize=1000)
    model: dict[int, tuple[int, float]] = {}
    for number, (what, key, amount) in enumerate(program):
        if what == "put":
            cache.put(key, number, ttl=amount)
            model[key] = (number, clock.now + amount)
        elif what == "get":
            assert cache.get(key) == (model[key][0] if key in model and model[key][1] > clock.now else None)
        elif what == "delete":
            cache.pop(key, None)
            model.pop(key, None)
        else:
            clock.now += amount - 3
        alive = {key: value for key, (value, end) in model.items() if end > clock.now}
        if what == "move" and amount > 3:  # what was found to be over is gone, wherever the clock goes then
            model = {key: entry for key, entry in model.items() if key in alive}
            cache.expire()
        assert {key: value for key, value in cache.items() if key in alive} == alive


@pytest.mark.parametrize("leave", [lambda cache: cache.resize(3), lambda cache: cache.shrink(1)])
def test_volatile_ttl_gives_up_the_lowest_priority_first(leave: Any) -> None:
    cache: Cache[str, int] = Cache(4, policy="volatile-ttl", clock=Clock())
    cache.put("precious", 1, ttl=100, priority=5)
    cache.put("plain", 1, ttl=200)
    cache.put("next", 1, ttl=300, priority=-5)
    cache.put("cheap", 1, ttl=250, priority=-5)
    leave(cache)
    assert sorted(cache) == ["next", "plain", "precious"]
    cache.put("next", 1, ttl=500, priority=1)  # no more among them
    assert cache.popitem()[0] == "plain"
    assert cache.popitem()[0] == "next"
