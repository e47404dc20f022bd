"""Pinned bytes where listeners put back, where pressure took room away, and where values have several keys."""

from collections.abc import Callable
from typing import Any

import pytest

import mempool
from cache_kit import Clock
from mempool.cache import Cache, Cause
from mempool.cache.policies import POLICIES
from mempool.pressure import PressureMonitor, Thresholds

BLOCK = 4096
EVICTING = sorted(name for name, policy in POLICIES.items() if policy.fixing == 0)


def lent(pool: mempool.BufferPool) -> int:
    stats = pool.stats()
    return stats.in_use + stats.retired


# ---- listeners that put back ----


@pytest.mark.parametrize("make", [lambda buffer: buffer, lambda buffer: buffer[:100], lambda buffer: buffer.array()])
def test_what_a_listener_puts_back_is_not_pinned(make: Callable[[mempool.Buffer], Any]) -> None:
    pool, again = mempool.BufferPool(), set()

    def gone(key: int, value: Any, cause: Cause) -> None:
        if key not in again:
            again.add(key)
            cache[key] = make(value) if isinstance(value, mempool.Buffer) else value

    cache: Cache[int, Any] = Cache(max_bytes=4 * BLOCK, policy="fifo", on_evict=gone)
    for key in range(5):
        cache[key] = pool.acquire(BLOCK)
    assert sorted(cache) == [1, 2, 3, 4]
    assert (cache.currsize, cache.pinned, lent(pool)) == (4 * BLOCK, 0, 4 * BLOCK)


def test_what_expired_and_is_put_back_is_not_pinned() -> None:
    pool, clock = mempool.BufferPool(), Clock()
    cache: Cache[Any, Any] = Cache(
        max_bytes=4 * BLOCK, ttl=1, clock=clock, on_evict=lambda key, value, cause: cache.put("old", value, ttl=9)
    )
    cache["new"] = pool.acquire(BLOCK)
    clock.now = 2
    assert cache.get("new") is None
    assert (cache.currsize, cache.pinned) == (BLOCK, 0)


def test_what_is_put_back_and_leaves_again_is_pinned_once() -> None:
    pool, seen = mempool.BufferPool(), []

    def gone(key: int, value: Any, cause: Cause) -> None:
        if cause == Cause.EVICTED and key == 0 and not seen:
            seen.append(value)
            cache[0] = value
            cache.resize(max_bytes=BLOCK)

    cache: Cache[int, Any] = Cache(max_bytes=2 * BLOCK, policy="fifo", on_evict=gone)
    for key in range(3):
        cache[key] = pool.acquire(BLOCK)
    cache[3] = pool.acquire(BLOCK)
    assert 0 not in cache
    assert cache.pinned == BLOCK
    seen.clear()
    assert cache.pinned == 0


def test_a_listener_that_puts_all_back_comes_to_an_end() -> None:
    """Each put evicts the next, down to where Python ends it; what settles for pinned bytes does not do that all over."""
    pool, views, calls = mempool.BufferPool(), [], 0

    def gone(key: int, value: Any, cause: Cause) -> None:
        nonlocal calls
        calls += 1
        if cause == Cause.EVICTED and calls < 100_000:
            cache[key] = value

    cache: Cache[int, Any] = Cache(max_bytes=4 * BLOCK, policy="lru", on_evict=gone)
    for key in range(8):
        buffer = pool.acquire(BLOCK)
        if key < 6:
            views.append(buffer[:3])
        cache[key] = buffer
        del buffer
        assert cache.currsize <= 4 * BLOCK
    assert 0 < calls < 100_000
    assert cache.stats().listener_errors > 0
    views.clear()
    assert cache.pinned == 0


def test_what_a_listener_writes_is_settled_once_it_is_done() -> None:
    pool = mempool.BufferPool()
    inside: list[int] = []

    def gone(key: Any, value: Any, cause: Cause) -> None:
        if cause == Cause.DELETED:
            cache.update(a=pool.acquire(BLOCK), b=pool.acquire(BLOCK), c=pool.acquire(BLOCK))
            inside.append(cache.currsize + cache.pinned)

    cache: Cache[Any, Any] = Cache(max_bytes=4 * BLOCK, policy="fifo", on_evict=gone)
    for key in range(4):
        cache[key] = pool.acquire(BLOCK)
    views = [cache[0][:1], cache[1][:1]]
    cache["c"] = pool.acquire(BLOCK)
    cache["d"] = pool.acquire(2 * BLOCK)
    assert (sorted(cache, key=str), cache.pinned) == (["d"], len(views) * BLOCK)
    del cache["d"]
    assert inside == [5 * BLOCK]
    assert (sorted(cache), cache.pinned) == (["b", "c"], 2 * BLOCK)


# ---- an allowance ----


def pressed(cache: Cache[Any, Any]) -> PressureMonitor:
    """After one step under pressure; whoever has the monitor keeps it so."""
    monitor = PressureMonitor(
        Thresholds(main=1000, critical=1200), sources=[lambda: (1100, None)], reclaim=[cache], min_dwell=0
    )
    monitor.poll()
    return monitor


def test_an_allowance_holds_with_what_is_pinned() -> None:
    pool = mempool.BufferPool()
    cache: Cache[int, Any] = Cache(max_bytes=100 * BLOCK, policy="lru")
    for key in range(100):
        cache[key] = pool.acquire(BLOCK)
    monitor = pressed(cache)
    allowance = cache.stats().allowance
    assert allowance < 100 * BLOCK
    views = [memoryview(cache[key]) for key in sorted(cache)[:20]]
    for key in range(100, 200):
        cache[key] = pool.acquire(BLOCK)
        assert cache.currsize + cache.pinned <= allowance
    assert 0 < cache.pinned <= len(views) * BLOCK
    monitor.stop()


def test_an_allowance_is_of_what_is_pinned_too() -> None:
    """Bytes that were pinned before a step do not make the next write give up as many again."""
    pool = mempool.BufferPool()
    cache: Cache[int, Any] = Cache(max_bytes=100 * BLOCK, policy="fifo")
    for key in range(100):
        cache[key] = pool.acquire(BLOCK)
    views = [memoryview(cache[key]) for key in range(20)]
    cache.resize(max_bytes=80 * BLOCK)
    cache.resize(max_bytes=100 * BLOCK)
    for key in range(100, 120):
        cache[key] = pool.acquire(BLOCK)
    assert (len(cache), cache.pinned) == (80, len(views) * BLOCK)
    monitor = pressed(cache)
    left = len(cache)
    assert 0 < left < 80
    assert cache.stats().allowance == (left + 20) * BLOCK
    cache[200] = pool.acquire(BLOCK)
    assert len(cache) == left
    monitor.stop()


# ---- values under several keys ----


def shrunk(cache: Cache[Any, Any], steps: int = 100) -> int:
    return sum(cache.shrink(1 << 30) for _ in range(steps))


@pytest.mark.parametrize("policy", EVICTING)
def test_values_under_several_keys_go_under_pressure(policy: str) -> None:
    pool = mempool.BufferPool()
    cache: Cache[Any, Any] = Cache(max_bytes=100 * BLOCK, policy=policy)
    for key in range(8):
        buffer = pool.acquire(BLOCK)
        for name in range(1 + key % 3):
            cache.put((key, name), buffer, priority=name)
    held = cache[4, 0][:1]
    del buffer
    shrunk(cache)
    assert sorted(cache) == [(4, 0), (4, 1)]
    assert (cache.pinned, lent(pool)) == (0, BLOCK)
    del held
    shrunk(cache)
    assert (len(cache), cache.pinned, lent(pool)) == (0, 0, 0)


def test_a_value_under_several_keys_that_somebody_has_stays() -> None:
    pool = mempool.BufferPool()
    cache: Cache[Any, Any] = Cache(max_bytes=100 * BLOCK, policy="lru")
    buffer = cache["a"] = cache["b"] = pool.acquire(BLOCK)
    assert shrunk(cache) == 0
    del buffer
    assert shrunk(cache) == 2 * BLOCK
