"""Who is told of what leaves, and why; whatever it does then."""

import gc
import logging
import threading
from typing import Any

import pytest

from cache_kit import Clock, Told
from mempool.cache import Cache, Cause
from support import start


def heard(maxsize: int = 3, **options: Any) -> tuple[Cache[Any, Any], Told]:
    told = Told()
    return Cache(maxsize, on_evict=told, **options), told


def test_each_removal_has_its_cause() -> None:
    clock = Clock()
    cache, told = heard(3, policy="fifo", clock=clock)
    cache["a"] = 1
    cache["a"] = 2
    assert told.take() == [("a", 1, Cause.REPLACED)]
    del cache["a"]
    assert told.take() == [("a", 2, Cause.DELETED)]
    cache.update(b=1, c=2, d=3, e=4)
    assert told.take() == [("b", 1, Cause.EVICTED)]
    assert cache.pop("c") == 2
    assert cache.popitem() == ("d", 3)
    assert told.take() == [("c", 2, Cause.DELETED), ("d", 3, Cause.DELETED)]
    assert cache.invalidate("e")
    assert told.take() == [("e", 4, Cause.INVALIDATED)]
    cache.put("f", 5, ttl=1)
    clock.now = 1
    assert cache.get("f") is None
    assert told.take() == [("f", 5, Cause.EXPIRED)]
    cache.update(g=6, h=7)
    cache.clear()
    assert told.take() == [("g", 6, Cause.DELETED), ("h", 7, Cause.DELETED)]
    cache.get("x")
    cache.pop("x", None)
    cache.invalidate("x")
    assert told.all == []


def test_the_same_value_again_is_a_replacement() -> None:
    cache, told = heard()
    cache["a"] = cache["a"] = 1
    assert told.take() == [("a", 1, Cause.REPLACED)]


def test_the_key_that_was_there_is_told() -> None:
    cache, told = heard()
    cache[1] = "one"
    cache[True] = "true"
    ((key, value, cause),) = told.all
    assert (type(key), value, cause) == (int, "one", Cause.REPLACED)
    assert [type(key) for key in cache] == [int]


def test_nobody_is_told_of_what_was_not_put() -> None:
    cache, told = heard(policy="noeviction")
    cache.update(a=1, b=2, c=3)
    with pytest.raises(MemoryError):
        cache["d"] = 4
    assert told.all == []


def test_nobody_is_told_when_the_cache_itself_goes() -> None:
    cache, told = heard()
    cache["a"] = 1
    del cache
    gc.collect()
    assert told.all == []


def test_it_is_told_after_the_removal() -> None:
    def look(key: str, value: int, cause: Cause) -> None:
        seen.append((key in cache, len(cache), cache.currsize))

    seen: list[tuple[bool, int, int]] = []
    cache: Cache[str, int] = Cache(2, on_evict=look, policy="fifo")
    cache.update(a=1, b=2, c=3)
    cache.clear()
    assert seen == [(False, 2, 2), (False, 0, 0), (False, 0, 0)]


@pytest.mark.parametrize("cause", [Cause.EVICTED, Cause.DELETED, Cause.REPLACED])
def test_it_may_change_the_cache(cause: Cause) -> None:
    def change(key: int, value: int, why: Cause) -> None:
        seen.append(key)
        if len(seen) < 50:
            cache[key + 100] = value
            cache.pop(key + 99, None)
            cache.resize(3 + len(seen) % 3)

    seen: list[int] = []
    cache: Cache[int, int] = Cache(3, on_evict=change)
    cache.update((number, number) for number in range(3))
    if cause == Cause.EVICTED:
        cache[3] = 3
    elif cause == Cause.DELETED:
        cache.clear()
    else:
        cache[0] = 5
    assert seen
    assert len(cache) <= cache.maxsize
    assert len(list(cache)) == len(cache) == cache.currsize


def test_its_errors_are_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    def fail(key: str, value: int, cause: Cause) -> None:
        raise ZeroDivisionError(key)

    cache: Cache[str, int] = Cache(1, on_evict=fail)
    with caplog.at_level(logging.ERROR, "mempool.cache"):
        cache.update(a=1, b=2, c=3)
        cache.clear()
    (record,) = [record for record in caplog.records if record.name == "mempool.cache"]
    assert "ZeroDivisionError" in (record.exc_text or "")
    assert cache.stats().listener_errors == 3
    assert len(cache) == 0


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_what_ends_programs_goes_on_and_the_removals_are_made(ending: type[BaseException]) -> None:
    def end(key: str, value: int, cause: Cause) -> None:
        told.append(key)
        if key == "a":
            raise ending

    told: list[str] = []
    cache: Cache[str, int] = Cache(3, on_evict=end, policy="fifo")
    cache.update(a=1, b=2, c=3)
    with pytest.raises(ending):
        cache.put("d", 4, tags="t")
    assert sorted(cache) == ["b", "c", "d"]
    assert cache.invalidate_tag("t") == 1
    cache["a"] = 5
    with pytest.raises(ending):
        cache.clear()
    assert len(cache) == 0
    assert sorted(told) == ["a", "a", "b", "c", "d"]
    cache.update(e=1, f=2, g=3, h=4)
    assert len(cache) == 3


def test_it_is_called_in_the_thread_that_caused_it() -> None:
    def note(key: int, value: int, cause: Cause) -> None:
        threads.append(threading.get_ident())

    threads: list[int] = []
    cache: Cache[int, int] = Cache(1, on_evict=note)
    cache[0] = 0
    thread = start(cache.__setitem__, 1, 1)
    thread.result()
    assert threads == [thread.ident]


def test_a_value_that_writes_when_it_dies() -> None:
    class Dying:
        def __init__(self, number: int) -> None:
            self.number = number

        def __del__(self) -> None:
            died.append(self.number)
            if self.number < 20:
                cache[self.number + 100] = Dying(self.number + 1)

    died: list[int] = []
    cache: Cache[int, Any] = Cache(2)
    for number in range(0, 30, 10):
        cache[number] = Dying(number)
    assert died
    assert len(list(cache)) == len(cache) <= 2
    cache.clear()
    cache.clear()


def test_listeners_are_held_as_long_as_the_cache() -> None:
    class Listening:
        def told(self, key: str, value: int, cause: Cause) -> None:
            told.append(key)

    told: list[str] = []
    cache: Cache[str, int] = Cache(1, on_evict=Listening().told)
    gc.collect()
    cache["a"] = cache["b"] = 1
    assert told == ["a"]
