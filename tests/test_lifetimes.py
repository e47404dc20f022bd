"""Promise 1: memory is never lent twice. Every kind of view against every way in which a lease ends."""

import ctypes
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mempool
from lease_views import VIEWS, View, each_view, lend, lend_to_strangers, pattern

SIZE = 4096

Ended = tuple[Any, Any]  # the view, and what else lives on


def by_release(pool: mempool.BufferPool, view: View, nbytes: int) -> Ended:
    buffer = lend(pool, nbytes)
    seen = view.make(buffer)
    buffer.release()
    return seen, buffer


def by_releasing_twice(pool: mempool.BufferPool, view: View, nbytes: int) -> Ended:
    buffer = lend(pool, nbytes)
    seen = view.make(buffer)
    buffer.release()
    buffer.release()
    return seen, None


def by_with(pool: mempool.BufferPool, view: View, nbytes: int) -> Ended:
    with lend(pool, nbytes) as buffer:
        seen = view.make(buffer)
    return seen, buffer


def by_exception_in_with(pool: mempool.BufferPool, view: View, nbytes: int) -> Ended:
    def fail() -> None:
        with lend(pool, nbytes) as buffer:
            seen.append(view.make(buffer))
            raise KeyError

    seen: list[Any] = []
    with pytest.raises(KeyError):
        fail()
    return seen.pop(), None


def by_del_inside_with(pool: mempool.BufferPool, view: View, nbytes: int) -> Ended:
    with lend(pool, nbytes) as buffer:
        seen = view.make(buffer)
        del buffer
    return seen, None


def by_release_inside_with(pool: mempool.BufferPool, view: View, nbytes: int) -> Ended:
    with lend(pool, nbytes) as buffer:
        seen = view.make(buffer)
        buffer.release()
    return seen, None


def by_release_in_a_list(pool: mempool.BufferPool, view: View, nbytes: int) -> Ended:
    buffers = [lend(pool, nbytes)]
    seen = view.make(buffers[0])
    for buffer in buffers:
        buffer.release()
    return seen, buffers


RELEASES = [
    by_release,
    by_releasing_twice,
    by_with,
    by_exception_in_with,
    by_del_inside_with,
    by_release_inside_with,
    by_release_in_a_list,
]


def by_del(pool: mempool.BufferPool, view: View, nbytes: int) -> Any:
    buffer = lend(pool, nbytes)
    return view.make(buffer)


@pytest.fixture
def pool() -> mempool.BufferPool:
    return mempool.BufferPool(idle_timeout=None)


def expected(view: View, nbytes: int) -> bytes:
    """What the view must show for ever."""
    with lend(mempool.BufferPool(), nbytes) as buffer:
        return view.read(view.make(buffer))


@each_view
@pytest.mark.parametrize("end", RELEASES)
def test_released_memory_stays_with_its_view(pool: mempool.BufferPool, view: View, end: Callable[..., Ended]) -> None:
    seen, rest = end(pool, view, SIZE)
    stats = pool.stats()
    assert (stats.live, stats.in_use, stats.retired) == (0, 0, SIZE)
    assert (stats.releases, stats.dropped, stats.handed_over) == (1, 0, 0)
    lend_to_strangers(pool, SIZE)
    assert view.read(seen) == expected(view, SIZE)
    assert pool.stats().retired == SIZE
    if view.keeps_buffer:
        rest = None
    before = pool.stats().idle
    del seen
    assert pool.stats().retired == 0
    assert pool.stats().idle == before + SIZE
    del rest


@each_view
def test_view_takes_over_from_a_dead_buffer(pool: mempool.BufferPool, view: View) -> None:
    seen = by_del(pool, view, SIZE)
    stats = pool.stats()
    if view.keeps_buffer:
        assert (stats.live, stats.in_use, stats.retired, stats.handed_over) == (1, SIZE, 0, 0)
    else:
        assert (stats.live, stats.in_use, stats.retired, stats.handed_over) == (0, 0, SIZE, 1)
    lend_to_strangers(pool, SIZE)
    assert view.read(seen) == expected(view, SIZE)
    before = pool.stats().idle
    del seen
    stats = pool.stats()
    assert (stats.live, stats.retired, stats.idle) == (0, 0, before + SIZE)
    assert (stats.dropped, stats.handed_over) == (0, 1)


@each_view
@pytest.mark.parametrize("nbytes", [64, 4 << 20], ids=["64 B", "4 MiB"])
def test_other_kinds_of_blocks(pool: mempool.BufferPool, view: View, nbytes: int) -> None:
    """A block that shares its page with others, and one that is a mapping of its own."""
    nbytes = max(nbytes, 128) if view.name != "array()" else nbytes
    seen, rest = by_release(pool, view, nbytes)
    address = rest if view.keeps_buffer else None
    lend_to_strangers(pool, nbytes, count=3)
    pool.trim()
    assert view.read(seen) == expected(view, nbytes)
    del seen, rest, address
    assert pool.stats().retired == 0


@each_view
def test_closed_pool_leaves_views_alone(pool: mempool.BufferPool, view: View) -> None:
    buffer = lend(pool, SIZE)
    seen = view.make(buffer)
    pool.close()
    assert view.read(seen) == expected(view, SIZE)
    buffer.release()
    assert pool.stats().retired == SIZE
    lend_to_strangers(mempool.BufferPool(), SIZE)
    assert view.read(seen) == expected(view, SIZE)
    del seen, buffer
    assert pool.stats().reserved == 0


@pytest.mark.parametrize("nbytes", [10, "1KiB", 0])
def test_closed_pool_lends_nothing_that_is_left(pool: mempool.BufferPool, nbytes: Any) -> None:
    """A small block of it is lent still, so its neighbours in the page are not with the OS yet."""
    kept = [pool.acquire(nbytes), memoryview(pool.acquire(nbytes))]
    pool.close()
    for options in ({}, {"zero": True}, {"timeout": 1}):
        with pytest.raises(ValueError, match="closed"):
            pool.acquire(nbytes, **options)
    assert pool.stats().live == 1
    del kept
    assert pool.stats().reserved == 0


@each_view
@pytest.mark.parametrize("released", [True, False])
def test_collected_pool_leaves_views_alone(view: View, released: bool) -> None:
    pool = mempool.BufferPool()
    account, buffer = pool.account, lend(pool, SIZE)
    seen = view.make(buffer)
    if released:
        buffer.release()
    del pool, buffer
    gc.collect()
    lend_to_strangers(mempool.BufferPool(), SIZE)
    assert view.read(seen) == expected(view, SIZE)
    del seen
    gc.collect()
    assert account.used == 0


@each_view
def test_block_is_ready_when_release_returns(view: View) -> None:
    """Nothing views it any more, so the only block under the limit can be lent again at once."""
    pool = mempool.BufferPool(limit=SIZE)
    buffer = lend(pool, SIZE)
    address = buffer.address
    view.make(buffer)
    buffer.release()
    if view.keeps_buffer:
        with pytest.raises(mempool.PoolExhausted):
            pool.acquire(SIZE)
        del buffer
    assert pool.stats().idle == SIZE
    assert pool.acquire(SIZE).address == address


@each_view
def test_last_of_many_views_decides(pool: mempool.BufferPool, view: View) -> None:
    buffer = lend(pool, SIZE)
    views = [view.make(buffer) for _ in range(3)] + [memoryview(buffer)]
    buffer.release()
    del buffer
    while views:
        assert pool.stats().retired == SIZE
        views.pop(0)
    assert pool.stats().retired == 0
    assert pool.stats().idle == SIZE


@each_view
def test_resize_is_refused_while_viewed(pool: mempool.BufferPool, view: View) -> None:
    buffer = lend(pool, SIZE)
    seen = view.make(buffer)
    for nbytes in (SIZE // 2, SIZE):
        with pytest.raises(BufferError, match="view"):
            buffer.resize(nbytes)
    assert (len(buffer), pool.stats().requested) == (SIZE, SIZE)
    assert view.read(seen) == expected(view, SIZE)
    del seen
    if not view.keeps_buffer:
        buffer.resize(SIZE // 2)
        assert len(memoryview(buffer)) == len(buffer.array()) == SIZE // 2


@each_view
def test_views_share_memory(pool: mempool.BufferPool, view: View) -> None:
    buffer = lend(pool, SIZE)
    seen = view.make(buffer)
    before = view.read(seen)
    buffer[:] = bytes(SIZE)
    assert view.read(seen) == bytes(len(before))


@pytest.mark.parametrize("nbytes", [0, 1, 64, 2048, 4097, 1 << 20, 5 << 20])
def test_lease_without_views(pool: mempool.BufferPool, nbytes: int) -> None:
    buffer = pool.acquire(nbytes)
    address, idle = buffer.address, pool.stats().idle
    buffer.release()
    assert pool.stats().idle > idle
    assert pool.acquire(nbytes).address == address
    assert pool.stats().releases == pool.stats().dropped == 1


def test_ends_are_counted_apart(pool: mempool.BufferPool) -> None:
    pool.acquire(SIZE).release()
    with pool.acquire(SIZE):
        pass
    pool.acquire(SIZE)
    viewed_once = pool.acquire(SIZE)
    viewed_once[:1].release()
    del viewed_once
    taken = memoryview(pool.acquire(SIZE))
    kept = pool.acquire(SIZE)
    stats = pool.stats()
    assert (stats.acquires, stats.live) == (6, 1)
    assert (stats.releases, stats.dropped, stats.handed_over) == (2, 2, 1)
    del taken, kept
    assert pool.stats().dropped == 3


def test_writes_of_a_late_view_hit_nobody(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    late = buffer.array()
    buffer.release()
    strangers = [lend(pool, SIZE) for _ in range(4)]
    late[:] = 0xFF
    assert all(stranger.tobytes() == pattern(SIZE) for stranger in strangers)


def test_retired_memory_counts_for_the_limit() -> None:
    pool = mempool.BufferPool(limit=2 * SIZE)
    buffer = pool.acquire(2 * SIZE)
    view = buffer[:1]
    buffer.release()
    with pytest.raises(mempool.PoolExhausted):
        pool.acquire(SIZE)
    with pytest.raises(ValueError, match=str(SIZE)):
        pool.limit = SIZE
    assert pool.trim() == 0
    del view
    assert pool.acquire(SIZE) is not None


def test_view_of_a_retired_block_wakes_a_waiter_when_it_dies(run_python: Callable[..., Any]) -> None:
    run_python("""
        import mempool, threading
        pool = mempool.BufferPool(limit=4096)
        buffer = pool.acquire(4096)
        view = buffer[:]
        buffer.release()
        got = []
        thread = threading.Thread(target=lambda: got.append(pool.acquire(4096, timeout=120)))
        thread.start()
        while not pool.stats().waits:
            pass
        assert not got
        del view
        thread.join()
        assert len(got) == 1 and pool.stats().live == 1
    """)


def test_new_views_after_release_are_refused(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    kept = np.ndarray(SIZE, "u1", buffer=buffer)
    buffer.release()
    # These two take any object: of a released memoryview, too, NumPy makes an array of one object.
    loose = ("numpy.asarray", "numpy.array(copy=False)")
    attempts: list[Callable[[], Any]] = [lambda v=view: v.make(buffer) for view in VIEWS if view.name not in loose]
    attempts += [lambda: buffer[0], lambda: len(buffer), lambda: buffer.tobytes(), lambda: buffer.resize(1)]
    for attempt in attempts:
        with pytest.raises(ValueError, match="released"):
            attempt()
    assert kept.tobytes() == pattern(SIZE)


def test_memoryview_released_by_hand(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    view = memoryview(buffer)
    array = np.asarray(view[:10])
    view.release()
    buffer.release()
    lend_to_strangers(pool, SIZE)
    assert array.tobytes() == pattern(10)
    del array
    assert pool.stats().retired == 0


def test_ndarray_that_kept_the_buffer_returns_it_at_death(pool: mempool.BufferPool) -> None:
    """It gave its export back, so nothing tells when it dies: the memory is the Buffer's until that dies."""
    buffer = lend(pool, SIZE)
    np.ndarray(SIZE, "u1", buffer=buffer)
    buffer.release()
    assert pool.stats().retired == SIZE
    del buffer
    assert (pool.stats().retired, pool.stats().idle, pool.stats().releases) == (0, SIZE, 1)


def test_buffer_that_an_ndarray_kept_is_never_resized(pool: mempool.BufferPool) -> None:
    """Nothing tells that the array died. What was viewed in other ways can be resized once the views are dead."""
    buffer, other = lend(pool, SIZE), lend(pool, SIZE)
    np.ndarray(SIZE, "u1", buffer=buffer)
    with pytest.raises(BufferError):
        buffer.resize(10)
    assert (len(buffer), buffer.tobytes()) == (SIZE, pattern(SIZE))
    np.frombuffer(other, "u1")
    other.array()
    other.resize(10)
    assert len(other) == 10


def test_buffer_kept_by_an_ndarray_and_by_a_view(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    array, view = np.ndarray(SIZE, "u1", buffer=buffer), buffer[:5]
    buffer.release()
    del buffer, array
    assert pool.stats().retired == SIZE
    lend_to_strangers(pool, SIZE)
    assert bytes(view) == pattern(5)
    del view
    assert pool.stats().retired == 0


def test_address_of_a_retired_block_is_not_lent(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    address, view = buffer.address, memoryview(buffer)
    buffer.release()
    assert address not in lend_to_strangers(pool, SIZE, count=20)
    del view
    assert address in lend_to_strangers(pool, SIZE, count=20)


def test_zero_on_release_waits_for_the_last_view() -> None:
    pool = mempool.BufferPool(zero_on_release=True, idle_timeout=None)
    buffer = lend(pool, SIZE)
    address, view = buffer.address, memoryview(buffer)
    buffer.release()
    assert bytes(view) == pattern(SIZE)
    del view
    assert ctypes.string_at(address, SIZE) == bytes(SIZE)


def test_buffer_is_weakly_referenced_not_kept_by_views(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    gone = weakref.ref(buffer)
    view = memoryview(buffer)
    del buffer
    assert gone() is None
    assert view.nbytes == SIZE
