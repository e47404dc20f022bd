"""What weak caches hold strongly: buffers, whose end is no leak, what is past its time, and what cannot be weighed."""

import copy
import gc
import logging
import math
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

import mempool
from mempool.cache import WeakCache, WeakKeyCache
from mempool.cache.cache import caches_account
from monitor_kit import HIGH, Bench, Clock
from support import KIB


class Page:
    """A value that can be held weakly, of a size."""

    def __init__(self, number: int = 0, nbytes: int = 0) -> None:
        self.number, self.nbytes = number, nbytes

    def __sizeof__(self) -> int:
        return self.nbytes


def pages(count: int, nbytes: int = 0) -> list[Page]:
    return [Page(number, nbytes) for number in range(count)]


def filled(objects: list[Page], **options: Any) -> WeakCache[int, Page]:
    return WeakCache(((page.number, page) for page in objects), **options)


def of_caches(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What caches logged: garbage of other tests may have something to say too."""
    return [record.getMessage() for record in caplog.records if record.name == "mempool.cache"]


# ---- buffers as values: an entry's end is no leak


def _replace(cache: Any) -> None:
    cache[0] = Page()


def _expire(cache: Any) -> None:
    cache.clock.now += 9
    cache.expire()


def _look_up_late(cache: Any) -> None:
    cache.clock.now += 9
    assert cache.get(0) is None


class Timed(WeakCache[Any, Any]):
    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(keep_items=2, ttl=5, clock=self.clock)


LEAVING: list[Callable[[Any], Any]] = [
    lambda cache: cache.__delitem__(0),
    _replace,
    lambda cache: cache.clear(),
    _expire,
    _look_up_late,
    lambda cache: cache.shrink(1 << 40),
]


@pytest.mark.parametrize("leave", LEAVING)
def test_a_buffer_that_leaves_the_band_is_no_leak(leave: Callable[[Any], Any]) -> None:
    pool = mempool.BufferPool(leak_detection="full")
    cache = Timed()
    cache[0] = pool.acquire(4096)
    leave(cache)
    assert (pool.stats().live, pool.stats().dropped) == (0, 0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("take", [lambda cache: cache.pop(0), lambda cache: cache.popitem()[1]])
def test_one_that_was_taken_out_can_leak(take: Callable[[Any], Any]) -> None:
    pool = mempool.BufferPool(leak_detection="full")
    cache = Timed()
    cache[0] = pool.acquire(4096)
    taken = take(cache)
    assert pool.stats().live == 1
    del taken
    assert pool.stats().dropped == 1


def test_what_is_past_its_time_goes_first_under_pressure() -> None:
    clock = Clock()
    cache: WeakCache[int, Page] = WeakCache(keep_items=100, ttl=10, clock=clock)
    cache.update((page.number, page) for page in pages(50, KIB))
    clock.now += 9
    cache.update((page.number, page) for page in pages(100, KIB)[50:])
    assert cache[0]  # the most recent now
    clock.now += 2
    assert cache.nbytes == 50 * sys.getsizeof(Page(0, KIB))
    cache.update((page.number, page) for page in pages(10, KIB))
    clock.now += 9
    assert cache.shrink(1) == sys.getsizeof(Page(0, KIB))
    assert sorted(cache) == list(range(1, 10))


@pytest.mark.parametrize(("nbytes", "kind"), [("1KiB", TypeError), (True, TypeError), (-1, ValueError)])
def test_without_a_band_nonsense_is_refused_too(nbytes: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="nbytes must"):
        WeakCache().shrink(nbytes)


class Odd(Page):
    """A value that cannot be weighed from some moment on."""

    odd = True

    def __sizeof__(self) -> int:
        if self.odd:
            raise RuntimeError("no size")
        return 10


@pytest.mark.parametrize(
    "put", [lambda cache, value: cache.__setitem__(0, value), lambda cache, value: cache.update({0: value})]
)
def test_what_cannot_be_weighed_is_refused(put: Callable[[Any, Any], None]) -> None:
    (page,) = objects = pages(1)
    cache = filled(objects, keep_bytes=KIB)
    odd = Odd()
    with pytest.raises(RuntimeError, match="no size"):
        put(cache, odd)
    assert cache[0] is page
    with pytest.raises(RuntimeError, match="no size"):
        cache.setdefault(1, odd)
    assert list(cache) == [0]


def test_what_cannot_be_weighed_any_more_is_found(caplog: pytest.LogCaptureFixture) -> None:
    cache: WeakCache[int, Page] = WeakCache(keep_bytes=KIB)
    odd = Odd()
    odd.odd = False
    cache[0] = odd
    while cache.shrink(1):
        pass
    odd.odd = True
    assert cache[0] is cache.get(0) is cache.setdefault(0, odd) is odd
    assert cache.stats().kept == 0
    assert len(of_caches(caplog)) == 1
    odd.odd = False
    assert cache[0] is odd
    assert cache.stats().kept == 1


def test_where_items_are_counted_nobody_is_weighed_in_vain() -> None:
    cache = filled([*pages(9, KIB), Odd(9)], keep_items=10)
    assert cache.stats().kept_bytes == cache.nbytes == 10 * sys.getsizeof(Page(0, KIB))
    assert cache.shrink(1) > 0
    alone = filled([Odd()], keep_items=10)
    assert alone.nbytes == 0


# ---- what it says of itself


def test_the_allowance_is_shown() -> None:
    cache = filled(held := pages(100), keep_items=100)
    bench = Bench()
    bench.monitor.on(HIGH, lambda _: cache.shrink(1 << 40))
    bench.at(1010)
    assert (len(held), cache.stats().kept, cache.stats().allowance) == (100, 95, 95)
    bench.monitor.stop()
    assert cache.stats().allowance == 100
    assert [
        WeakCache(**options).stats().allowance for options in ({}, {"keep_items": math.inf}, {"keep_bytes": 5})
    ] == [
        0,
        math.inf,
        5,
    ]


def test_errors_of_listeners_are_counted() -> None:
    def fail(*_: Any) -> None:
        raise LookupError("not today")

    cache = filled(pages(3), keep_items=3, on_evict=fail)
    cache.clear()
    assert cache.stats().listener_errors == 3


@pytest.mark.parametrize("kind", [WeakCache, WeakKeyCache])
def test_it_cannot_be_pickled(kind: Any) -> None:
    with pytest.raises(TypeError, match=f"cannot pickle a {kind.__name__}"):
        pickle.dumps(kind())
    assert dict(copy.copy(kind())) == dict(copy.deepcopy(kind())) == {}


@pytest.mark.parametrize("name", [0, [], b"x"])
@pytest.mark.parametrize("kind", [WeakCache, WeakKeyCache])
def test_a_name_is_a_text(kind: Any, name: Any) -> None:
    with pytest.raises(TypeError, match="name must be a str"):
        kind(name=name)


@pytest.mark.parametrize("kind", [WeakCache, WeakKeyCache])
def test_what_dies_goes_whatever_the_clock_says(kind: Any) -> None:
    def clock() -> float:
        if broken:
            raise OSError("no time")
        return 1.0

    broken = False
    page = Page()
    cache = kind({page: 1} if kind is WeakKeyCache else {1: page}, ttl=10, clock=clock)
    broken = True
    del page
    broken = False
    assert (len(cache), cache.stats().collected) == (0, 1)


@pytest.mark.parametrize("put", [WeakCache.__setitem__, WeakCache.setdefault])
def test_a_value_for_whose_holding_there_is_no_room_is_held_weakly(
    put: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    """It is put by then: no error tells that it was not."""
    cache: WeakCache[str, Page] = WeakCache(keep_items=100)
    value = Page()
    gc.collect()  # the account is that of all caches: none may go meanwhile
    caches_account.limit = caches_account.used + 600  # for references, and for none that is strong
    try:
        put(cache, "key", value)
    finally:
        caches_account.limit = None
    assert cache["key"] is value
    assert len(of_caches(caplog)) == 1


# ---- what left is held by nobody, whatever happens on its way


def test_what_leaves_at_the_end_of_the_stack_is_not_held() -> None:
    keys = iter(range(60))
    cache = filled(pages(100), keep_items=100)

    def descend() -> None:
        try:
            descend()
        except RecursionError:
            return
        with suppress(RecursionError, KeyError):
            del cache[next(keys, -1)]

    logger = logging.getLogger("mempool.cache")
    logger.disabled = True
    try:
        descend()
    finally:
        logger.disabled = False
    assert len(cache) < 60
    assert cache.stats().kept == len(cache)


@pytest.mark.parametrize("kind", [WeakCache, WeakKeyCache])
def test_ctrl_c_as_something_dies_finds_no_python_to_be_lost_in(kind: type[Any]) -> None:
    page = Page()
    cache = kind([(1, page)]) if kind is WeakCache else kind([(page, 1)])
    here = sys._getframe()

    def interrupt(frame: Any, *_: object) -> None:
        if frame.f_back is here:
            raise KeyboardInterrupt

    former = sys.gettrace()
    sys.settrace(interrupt)
    try:
        del page
    finally:
        sys.settrace(former)
    assert len(cache) == 0
