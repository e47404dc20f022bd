"""Eviction of what somebody views: what is pinned, what goes instead, and that memory comes back when the view dies."""

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mempool
from lease_views import View, each_view
from mempool.cache import Cache, Cause
from mempool.cache._policies import Pins
from mempool.cache.policies import POLICIES
from mempool.cache.records import log
from mempool.io import BytesStream
from mempool.shared import SharedPool

BLOCK = 4096
EVICTING = [name for name, policy in POLICIES.items() if policy.fixing == 0]
each_policy = pytest.mark.parametrize("policy", EVICTING)


@pytest.fixture
def pool() -> mempool.BufferPool:
    return mempool.BufferPool()


def filled(pool: mempool.BufferPool, blocks: int = 4, count: int | None = None, **options: Any) -> Cache[Any, Any]:
    """A cache of so many blocks, with so many in it: keys 0, 1, ..., the first one next to go."""
    options.setdefault("policy", "lru")
    cache: Cache[Any, Any] = Cache(max_bytes=blocks * BLOCK, **options)
    for key in range(blocks if count is None else count):
        cache[key] = pool.acquire(BLOCK)
    return cache


def blocks(cache: Cache[Any, Any]) -> tuple[int, int]:
    """What is in the cache and what is pinned."""
    return cache.currsize // BLOCK, cache.pinned // BLOCK


def pinned_first(pool: mempool.BufferPool) -> tuple[Cache[Any, Any], mempool.Buffer]:
    """A cache whose first value has left, and is pinned as somebody has it."""
    cache = filled(pool)
    held = cache[0]
    for key in (1, 2, 3):
        cache[key]
    cache["new"] = pool.acquire(BLOCK)
    assert blocks(cache) == (3, 1)
    return cache, held


def lent(pool: mempool.BufferPool) -> int:
    stats = pool.stats()
    return (stats.in_use + stats.retired) // BLOCK


# ---- one view ----


@each_view
def test_each_kind_of_view_pins_what_was_evicted_until_it_dies(pool: mempool.BufferPool, view: View) -> None:
    cache = filled(pool)
    made = view.make(cache.get(0))
    for key in (1, 2, 3):
        cache.get(key)
    cache["new"] = pool.acquire(BLOCK)
    assert set(cache) == {2, 3, "new"}  # 0 was next, and freed nothing; so 1 went too
    assert blocks(cache) == (3, 1)
    assert lent(pool) == 4
    before = view.read(made)
    cache["newer"] = pool.acquire(BLOCK)
    assert blocks(cache) == (3, 1)
    assert view.read(made) == before
    del made
    gc.collect()
    assert blocks(cache) == (3, 0)
    assert lent(pool) == 3
    cache["newest"] = pool.acquire(BLOCK)
    assert blocks(cache) == (4, 0)


@each_view
def test_each_kind_of_view_of_a_cached_value_is_passed_over(pool: mempool.BufferPool, view: View) -> None:
    cache = filled(pool, 5)
    pinning = view.make(cache[0])
    passed = view.make(cache[1])
    for key in (2, 3, 4):
        cache[key]
    cache["new"] = pool.acquire(BLOCK)
    assert set(cache) == {1, 3, 4, "new"}
    assert blocks(cache) == (4, 1)
    del pinning, passed
    gc.collect()
    assert blocks(cache) == (4, 0)


def test_the_buffer_itself_pins(pool: mempool.BufferPool) -> None:
    cache, held = pinned_first(pool)
    view = held[5:]
    held.release()
    assert blocks(cache) == (3, 1)
    view.release()
    assert blocks(cache) == (3, 0)
    assert lent(pool) == 3


def test_what_nobody_views_is_never_pinned(pool: mempool.BufferPool) -> None:
    cache = filled(pool)
    for key in range(100):
        cache[key] = pool.acquire(BLOCK)
        assert blocks(cache) == (4, 0)
        assert lent(pool) == 4


def test_two_values_of_one_block_count_once(pool: mempool.BufferPool) -> None:
    cache: Cache[Any, Any] = Cache(max_bytes=4 * BLOCK, policy="lru")
    buffer = pool.acquire(BLOCK)
    cache["a"], cache["b"], cache["c"] = buffer[:10], buffer[10:], buffer
    for key in range(3):
        cache[key] = pool.acquire(BLOCK)
    assert blocks(cache) == (3, 1)
    assert set(cache) == {0, 1, 2}
    for key in range(3, 9):
        cache[key] = pool.acquire(BLOCK)
    assert blocks(cache) == (3, 1)
    del buffer
    assert blocks(cache) == (3, 0)


def test_pieces_of_one_block_do_not_hold_each_other_for_ever(pool: mempool.BufferPool) -> None:
    cache: Cache[Any, Any] = Cache(max_bytes=10 * BLOCK, policy="lru")
    for key in range(5):
        block = pool.acquire(BLOCK)
        for piece in range(3):
            cache[key, piece] = block[piece * 10 :]
    del block
    for key in range(20):
        cache[key] = pool.acquire(BLOCK)
        assert cache.currsize + cache.pinned <= cache.maxsize
    assert not any(isinstance(key, tuple) for key in cache)
    assert blocks(cache) == (10, 0)


def test_a_value_under_two_keys_is_pinned_only_once_it_has_left(pool: mempool.BufferPool) -> None:
    cache = filled(pool, 4)
    cache["again"] = cache.get(0)
    assert blocks(cache) == (4, 0)
    assert 1 not in cache or 0 not in cache


def test_what_comes_back_is_not_pinned_any_more(pool: mempool.BufferPool) -> None:
    cache, held = pinned_first(pool)
    cache["back"] = held
    assert blocks(cache) == (4, 0)
    del held
    for key in range(9):
        cache[key] = pool.acquire(BLOCK)
    assert blocks(cache) == (4, 0)


def test_a_cache_whose_values_are_all_viewed_is_not_emptied_for_nothing(pool: mempool.BufferPool) -> None:
    cache = filled(pool, 40)
    held = list(cache.values())
    cache["one"] = pool.acquire(BLOCK)
    assert blocks(cache) == (40, 1)
    cache["two"] = pool.acquire(BLOCK)  # the one before it is nobody's: it goes, the viewed ones stay
    assert "one" not in cache
    assert blocks(cache)[0] == 39
    held.clear()
    assert blocks(cache)[1] == 0


def test_what_was_just_written_is_not_the_victim(pool: mempool.BufferPool) -> None:
    cache = filled(pool, 2)
    held = list(cache.values())
    for key in range(10, 20):
        cache[key] = pool.acquire(BLOCK)
        assert key in cache
    assert cache.pinned == 2 * BLOCK - len(set(cache) & {0, 1}) * BLOCK
    del held


def test_a_large_cache_of_viewed_values_is_not_searched_at_each_write(pool: mempool.BufferPool) -> None:
    cache: Cache[int, Any] = Cache(max_bytes=2000 * 64, policy="lru")
    backing = [memoryview(bytearray(64)) for _ in range(900)]
    for key, value in enumerate(backing):
        cache[key] = value
    count = len(cache)
    for key in range(5000):
        cache[-1 - key] = b"x" * 20
    assert cache.currsize <= cache.maxsize
    assert len(cache) >= count // 2 or cache.pinned == 0 or cache.currsize + cache.pinned <= cache.maxsize


@each_policy
def test_every_policy_passes_over_what_is_viewed(pool: mempool.BufferPool, policy: str) -> None:
    cache = filled(pool, 16, policy=policy)
    held = [cache.get(key) for key in range(0, 16, 2)]
    for key in range(100, 140):
        cache[key] = pool.acquire(BLOCK)
        now, pinned = blocks(cache)
        assert now <= 16
        viewed = sum(any(value is one for one in held) for value in cache.values())
        assert now + pinned <= 16 or now == viewed + 1
    held.clear()
    assert cache.pinned == 0
    assert lent(pool) == len(cache)


@each_policy
def test_levels_of_viewed_entries_are_passed_over_whole(pool: mempool.BufferPool, policy: str) -> None:
    cache: Cache[Any, Any] = Cache(max_bytes=30 * BLOCK, policy=policy)
    for key in range(29):
        cache._insert(key, pool.acquire(BLOCK), None, key // 10, None, True)
    held = [cache.get(key) for key in range(20)]
    for key in range(100, 105):
        cache._insert(key, pool.acquire(BLOCK), None, 3, None, True)
        assert cache.currsize + cache.pinned <= cache.maxsize
    assert sum(key in cache for key in range(20, 29)) < 9
    del held


def test_levels_are_emptied_in_order_also_around_what_is_viewed(pool: mempool.BufferPool) -> None:
    cache: Cache[Any, Any] = Cache(max_bytes=6 * BLOCK, policy="lru")
    for key in range(6):
        cache._insert(key, pool.acquire(BLOCK), None, key % 2, None, True)
    held = [cache[0], cache[2]]
    cache["new"] = pool.acquire(BLOCK)
    assert 4 not in cache
    assert {1, 3, 5, "new"} <= set(cache)
    cache["newer"] = pool.acquire(BLOCK)
    assert blocks(cache)[0] + blocks(cache)[1] <= 6
    del held
    assert cache.pinned == 0


def test_volatile_ttl_passes_over_what_is_viewed(pool: mempool.BufferPool) -> None:
    cache: Cache[Any, Any] = Cache(max_bytes=4 * BLOCK, policy="volatile-ttl")
    for key in range(4):
        cache._insert(key, pool.acquire(BLOCK), 100.0 + key, 0, None, True)
    held = [cache[0], cache[1]]
    cache._insert("new", pool.acquire(BLOCK), 1000.0, 0, None, True)
    assert set(cache) == {1, 3, "new"}
    assert blocks(cache) == (3, 1)
    del held


# ---- ways to leave ----


def leave_by_expiry(cache: Cache[Any, Any], clock: list[float], pool: mempool.BufferPool) -> None:
    clock[0] = 100.0
    cache.expire()


def leave_by_lookup(cache: Cache[Any, Any], clock: list[float], pool: mempool.BufferPool) -> None:
    clock[0] = 100.0
    for key in range(4):
        assert cache.get(key) is None


def leave_by_bound(cache: Cache[Any, Any], clock: list[float], pool: mempool.BufferPool) -> None:
    cache._bounds(0, 1 << 63)


def leave_by_replacing_what_is_over(cache: Cache[Any, Any], clock: list[float], pool: mempool.BufferPool) -> None:
    clock[0] = 100.0
    for key in range(4):
        cache[key] = None


def leave_by_deletion(cache: Cache[Any, Any], clock: list[float], pool: mempool.BufferPool) -> None:
    for key in range(4):
        del cache[key]


def leave_by_clear(cache: Cache[Any, Any], clock: list[float], pool: mempool.BufferPool) -> None:
    cache.clear()


def leave_by_pop(cache: Cache[Any, Any], clock: list[float], pool: mempool.BufferPool) -> None:
    for key in range(2):
        cache.pop(key)
    while cache:
        cache.popitem()


def leave_by_replacement(cache: Cache[Any, Any], clock: list[float], pool: mempool.BufferPool) -> None:
    for key in range(4):
        cache[key] = None


def leave_by_invalidation(cache: Cache[Any, Any], clock: list[float], pool: mempool.BufferPool) -> None:
    for key in range(4):
        cache.invalidate(key)


@pytest.mark.parametrize("listening", [False, True])
@pytest.mark.parametrize(
    ("leave", "pinned"),
    [
        (leave_by_expiry, True),
        (leave_by_lookup, True),
        (leave_by_bound, True),
        (leave_by_replacing_what_is_over, True),
        (leave_by_deletion, False),
        (leave_by_clear, False),
        (leave_by_pop, False),
        (leave_by_replacement, False),
        (leave_by_invalidation, False),
    ],
)
def test_what_the_cache_had_to_give_up_is_pinned_and_what_it_was_told_to_is_not(
    pool: mempool.BufferPool, leave: Callable[..., None], pinned: bool, listening: bool
) -> None:
    clock = [0.0]
    heard: list[Any] = []

    def hear(key: Any, value: Any, cause: Cause) -> None:
        heard.append((key, len(value), cause))

    cache = filled(pool, 4, ttl=50.0, clock=lambda: clock[0], on_evict=hear if listening else None)
    views = [value[1:] for value in cache.values()]
    leave(cache, clock, pool)
    assert cache.pinned == (4 * BLOCK if pinned else 0)
    assert lent(pool) == 4
    assert len(heard) == (4 if listening else 0)
    views.pop()
    assert cache.pinned == (3 * BLOCK if pinned else 0)
    views.clear()
    assert cache.pinned == lent(pool) == 0


def test_a_listener_that_keeps_the_value_pins_it(pool: mempool.BufferPool) -> None:
    kept: list[Any] = []
    cache = filled(pool, 4, on_evict=lambda key, value, cause: kept.append(value))
    cache["new"] = pool.acquire(BLOCK)
    assert blocks(cache)[0] + blocks(cache)[1] == len(kept) + len(cache)
    assert cache.pinned == len(kept) * BLOCK
    kept.clear()
    assert cache.pinned == 0


def test_a_listener_that_raises_changes_no_count(pool: mempool.BufferPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "disabled", True)  # or the test's record of it has the frames of the listener

    def fail(key: Any, value: Any, cause: Cause) -> None:
        raise RuntimeError("no")

    cache = filled(pool, 4, on_evict=fail)
    view = cache[0][:]
    for key in (1, 2, 3):
        cache[key]
    cache["new"] = pool.acquire(BLOCK)
    assert cache.pinned == BLOCK
    del view
    assert cache.pinned == 0


def test_a_listener_that_ends_the_program_loses_no_count(pool: mempool.BufferPool) -> None:
    def end(key: Any, value: Any, cause: Cause) -> None:
        raise KeyboardInterrupt

    cache = filled(pool, 4, on_evict=end)
    view = cache[0][:]
    for key in (1, 2, 3):
        cache[key]
    with pytest.raises(KeyboardInterrupt):
        cache["new"] = pool.acquire(BLOCK)
    assert cache.pinned == BLOCK
    del view
    assert cache.pinned == 0
    assert lent(pool) == len(cache)


# ---- other values ----


def arrays() -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "own data", lambda: np.zeros(BLOCK, "u1")
    yield "slice", lambda: np.zeros(BLOCK, "u1")[5:]
    yield "slice of a slice", lambda: np.zeros(BLOCK, "u1")[5:].view("u1")[::2][1:]
    yield "over a buffer", lambda: mempool.acquire(BLOCK).array("f8")
    yield "bytearray's", lambda: np.frombuffer(bytearray(BLOCK), "u1")
    yield "memoryview of an array", lambda: memoryview(np.zeros(BLOCK, "u1"))
    yield "shared", lambda: SHARED.acquire(BLOCK)
    yield "view of a shared one", lambda: SHARED.acquire(BLOCK)[7:]
    yield "mapped", lambda: mempool.anonymous_array(BLOCK, "u1").array
    yield "stream's", lambda: BytesStream(bytes(BLOCK)).getbuffer()
    yield "part of a stream", lambda: BytesStream(bytes(BLOCK)).buffers()[0]


SHARED = SharedPool()


@pytest.mark.parametrize("make", [make for _, make in arrays()], ids=[name for name, _ in arrays()])
def test_other_values_are_pinned_by_their_views(make: Callable[[], Any]) -> None:
    cache: Cache[Any, Any] = Cache(max_bytes=1 << 20, policy="lru")
    cache["value"] = make()
    size = cache.currsize
    assert size >= BLOCK
    view = memoryview(cache["value"])
    cache._bounds(0, 1 << 63)
    assert cache.pinned == size
    assert bytes(view[:9])
    view.release()
    del view
    assert cache.pinned == 0


def test_a_slice_of_a_slice_pins_the_whole_array() -> None:
    cache: Cache[Any, Any] = Cache(max_bytes=1 << 20, policy="lru")
    cache["a"] = np.zeros(100_000, "u1")
    part = cache["a"][5:][7:9].view("u1")[1:]
    cache._bounds(0, 1 << 63)
    assert cache.pinned >= 100_000
    del part
    assert cache.pinned == 0


def test_values_that_die_while_they_are_evicted(pool: mempool.BufferPool) -> None:
    """A listener lets the last view go: nothing is left to pin."""
    views: list[Any] = []
    cache = filled(pool, 4, on_evict=lambda key, value, cause: views.clear())
    views.append(cache[0][:])
    for key in (1, 2, 3):
        cache[key]
    cache["new"] = pool.acquire(BLOCK)
    assert blocks(cache) == (4, 0)


def test_buffers_that_are_released_in_the_cache(pool: mempool.BufferPool) -> None:
    cache = filled(pool)
    view = cache[0][:]
    for value in cache.values():
        value.release()
    assert blocks(cache) == (4, 0)
    assert lent(pool) == 1
    cache._bounds(0, 1 << 63)
    assert cache.pinned == 0  # who released them took charge of them
    del view
    assert lent(pool) == 0


def test_a_buffer_that_is_resized_in_the_cache_still_counts_its_block(pool: mempool.BufferPool) -> None:
    cache = filled(pool)
    cache[0].resize(10)
    view = cache[0][:]
    cache._bounds(0, 1 << 63)
    assert cache.pinned == BLOCK
    del view
    assert cache.pinned == 0


def test_an_array_that_keeps_the_buffer_pins_it_after_release(pool: mempool.BufferPool) -> None:
    cache = filled(pool, 4, 1)
    kept = np.ndarray(8, "u1", buffer=cache[0])
    cache[0].release()
    cache._bounds(0, 1 << 63)
    assert cache.pinned == BLOCK
    del kept
    assert cache.pinned == lent(pool) == 0


def test_a_cache_of_entries_pins_nothing(pool: mempool.BufferPool) -> None:
    cache: Cache[int, Any] = Cache(maxsize=2, policy="lru")
    views = []
    for key in range(5):
        cache[key] = pool.acquire(BLOCK)
        views.append(cache[key][:])
    assert cache.pinned == 0
    assert len(cache) == 2


def test_what_getsizeof_says_is_what_is_pinned(pool: mempool.BufferPool) -> None:
    cache: Cache[int, Any] = Cache(max_bytes=100, policy="lru", getsizeof=lambda value: 40)
    cache[0] = pool.acquire(BLOCK)
    view = cache[0][:]
    cache[1], cache[2] = pool.acquire(BLOCK), pool.acquire(BLOCK)
    assert (cache.currsize, cache.pinned) == (40, 40)
    del view
    assert cache.pinned == 0


def test_a_cache_that_dies_leaves_what_it_pinned(pool: mempool.BufferPool) -> None:
    cache = filled(pool)
    view = cache[0][:]
    cache._bounds(0, 1 << 63)
    watch = weakref.ref(cache)
    del cache
    gc.collect()
    assert watch() is None
    assert lent(pool) == 1
    del view
    assert lent(pool) == 0


def test_eviction_is_no_leak(pool: mempool.BufferPool, recwarn: pytest.WarningsRecorder) -> None:
    gc.collect()
    recwarn.clear()  # garbage of earlier tests may warn
    pool.leak_detection = "full"
    cache = filled(pool)
    held = [cache[0], cache[1]]
    for key in range(4, 20):
        cache[key] = pool.acquire(BLOCK)
    del cache[19]
    cache[18] = None
    cache.clear()
    held.clear()
    cache["last"] = pool.acquire(BLOCK)
    del cache
    gc.collect()
    assert not recwarn.list
    assert pool.stats().dropped == 0


def test_what_was_popped_can_leak(pool: mempool.BufferPool) -> None:
    pool.leak_detection = "full"
    cache = filled(pool)
    with pytest.warns(ResourceWarning, match="never released"):
        cache.pop(0)
    with pytest.warns(ResourceWarning, match="never released"):
        cache.popitem()
    assert pool.stats().dropped == 2


# ---- the books ----


def test_pins_by_hand(pool: mempool.BufferPool) -> None:
    pins = Pins()
    one, two = pool.acquire(BLOCK), pool.acquire(BLOCK)
    assert pins.add(one, 10)
    assert pins.add(one[3:], 30)  # the same memory: the larger figure
    assert pins.add(memoryview(one), 20)
    assert pins.add(two, 5)
    assert (pins.nbytes, pins.count) == (35, 2)
    assert not pins.add(b"bytes", 7)
    assert not pins.add(7, 7)
    assert pins.forget(one[9:])
    assert not pins.forget(one)
    assert not pins.forget("text")
    assert (pins.nbytes, pins.count) == (5, 1)
    del one, two
    assert (pins.nbytes, pins.count) == (0, 0)
    assert "0 bytes" in repr(pins)


def test_pins_refuse_what_is_no_size(pool: mempool.BufferPool) -> None:
    pins, buffer = Pins(), pool.acquire(BLOCK)
    for size in (None, "7", 1.5):
        with pytest.raises(TypeError):
            pins.add(buffer, size)  # type: ignore[arg-type]
    for size in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            pins.add(buffer, size)
    assert (pins.nbytes, pins.count) == (0, 0)


def test_pins_leave_no_garbage(pool: mempool.BufferPool) -> None:
    gc.collect()
    gc.disable()
    try:
        kept = [thing for thing in gc.get_objects() if type(thing).__name__ == "_Pin"]  # of caches that live
        others = {id(pin) for pin in kept}
        pins = Pins()
        for _ in range(10):
            buffer = pool.acquire(BLOCK)
            for _ in range(3):
                pins.add(buffer, 1)
            pins.forget(buffer)
            pins.add(buffer, 1)
            del buffer
        assert not [pin for pin in gc.get_objects() if type(pin).__name__ == "_Pin" and id(pin) not in others]
    finally:
        gc.enable()
