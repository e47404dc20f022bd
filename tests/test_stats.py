"""What a pool says of itself: identities that hold in every state, and at every moment."""

import gc
import pickle
import threading
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mempool import Buffer, BufferPool, PoolExhausted, PoolStats, SizeClassStats
from support import KIB, MIB, check_identities, figures, start, together

lasting = partial(BufferPool, idle_timeout=None)  # what is idle stays, however slow the test is

FIELDS = {
    "in_use",
    "requested",
    "retired",
    "idle",
    "reserved",
    "peak",
    "limit",
    "acquires",
    "live",
    "releases",
    "dropped",
    "handed_over",
    "hits",
    "misses",
    "waits",
    "exhausted",
    "size_classes",
}


def counts(pool: BufferPool, *names: str) -> tuple[object, ...]:
    stats = pool.stats()
    check_identities(stats)
    assert stats.reserved == pool.account.used
    return tuple(figures(stats)[name] for name in names)


def test_a_fresh_pool() -> None:
    stats = lasting("1MiB").stats()
    assert set(figures(stats)) == FIELDS
    expected = dict.fromkeys(FIELDS, 0) | {"limit": MIB, "size_classes": ()}
    assert figures(stats) == expected
    assert (stats.hit_rate, stats.fragmentation) == (0.0, 0.0)


def test_live_released_idle() -> None:
    pool = lasting()
    buffer = pool.acquire(5000)
    assert counts(pool, "in_use", "requested", "idle", "live", "misses") == (8192, 5000, 0, 1, 1)
    buffer.release()
    assert counts(pool, "in_use", "requested", "idle", "live", "releases") == (0, 0, 8192, 0, 1)
    buffer = pool.acquire(6000)
    assert counts(pool, "requested", "hits", "misses", "acquires") == (6000, 1, 1, 2)
    buffer.resize(7000)
    assert counts(pool, "in_use", "requested") == (8192, 7000)


@pytest.mark.parametrize("how", ["release", "with", "with and release"])
def test_releases(how: str) -> None:
    pool = lasting()
    buffer = pool.acquire(100)
    if how == "release":
        buffer.release()
    else:
        with buffer:
            if how == "with and release":
                buffer.release()
    buffer.release()
    del buffer
    assert counts(pool, "releases", "dropped", "handed_over", "live", "retired") == (1, 0, 0, 0, 0)


def test_dropped() -> None:
    pool = lasting(leak_detection="off")
    buffer = pool.acquire(100)
    del buffer
    assert counts(pool, "releases", "dropped", "handed_over", "in_use", "retired") == (0, 1, 0, 0, 0)


def test_dropped_after_its_last_view() -> None:
    pool = lasting(leak_detection="off")
    buffer = pool.acquire(100)
    view = buffer[:]
    del view
    del buffer
    assert counts(pool, "dropped", "handed_over") == (1, 0)


@pytest.mark.parametrize("view", [memoryview, np.frombuffer, Buffer.array, Buffer.readonly, pickle.PickleBuffer])
def test_handed_over(view: type[memoryview]) -> None:
    pool = lasting(leak_detection="full")
    buffer = pool.acquire(5000)
    seen = view(buffer)
    del buffer
    assert counts(pool, "dropped", "handed_over", "live", "retired", "requested") == (0, 1, 0, 8192, 0)
    del seen
    assert counts(pool, "handed_over", "retired", "idle") == (1, 0, 8192)


def test_retired_by_release() -> None:
    pool = lasting()
    buffer = pool.acquire(5000)
    view = buffer[:10]
    buffer.release()
    assert counts(pool, "releases", "live", "in_use", "requested", "retired", "idle") == (1, 0, 0, 0, 8192, 0)
    del buffer
    assert counts(pool, "releases", "dropped", "handed_over", "retired") == (1, 0, 0, 8192)
    del view
    assert counts(pool, "retired", "idle") == (0, 8192)


def test_peak_is_the_most_ever_reserved() -> None:
    pool = lasting()
    buffers = [pool.acquire("64KiB") for _ in range(4)]
    for buffer in buffers:
        buffer.release()
    pool.trim()
    with pool.acquire("64KiB"):
        assert counts(pool, "reserved", "peak") == (64 * KIB, 256 * KIB)


def test_exhausted_and_waits() -> None:
    pool = lasting("64KiB")
    with pool.acquire("64KiB"):
        for timeout in (0, 0, 0.001):
            with pytest.raises(PoolExhausted):
                pool.acquire(1, timeout=timeout)
        with pytest.raises(PoolExhausted):
            pool.reserve(1)
    assert counts(pool, "exhausted", "waits", "acquires") == (4, 1, 1)


def test_hits_and_hit_rate() -> None:
    pool = lasting()
    pool.reserve(5000, 3)
    buffers = [pool.acquire(5000) for _ in range(4)]
    assert counts(pool, "hits", "misses") == (3, 1)
    assert pool.stats().hit_rate == 0.75
    assert len(buffers) == 4


def test_fragmentation() -> None:
    pool = lasting()
    with pool.acquire(6144):
        assert pool.stats().fragmentation == 0.25
    with pool.acquire(8192):
        assert pool.stats().fragmentation == 0.0
    with pool.acquire(0):
        assert pool.stats().fragmentation == 1.0


def test_size_classes() -> None:
    pool = lasting()
    held = [pool.acquire(nbytes) for nbytes in (MIB, 5000, 5000, 100_000)]
    held.pop(1).release()
    rows = pool.stats().size_classes
    assert all(type(row) is SizeClassStats for row in rows)
    assert [(row.size, row.live, row.idle, row.acquires) for row in rows] == [
        (8192, 1, 1, 2),
        (102400, 1, 0, 1),
        (MIB, 1, 0, 1),
    ]


def test_size_classes_of_an_aligned_pool() -> None:
    pool = lasting(alignment=4096)
    buffers = [pool.acquire(nbytes) for nbytes in (1, 100, 1000, 3000, 4096)]
    check_identities(pool.stats())
    assert {row.size for row in pool.stats().size_classes} == {4096}
    assert sum(row.live for row in pool.stats().size_classes) == len(buffers)


def test_after_close() -> None:
    pool = lasting("1MiB")
    held, view = pool.acquire(5000), memoryview(pool.acquire(10_000))
    pool.acquire(100_000).release()
    pool.close()
    assert counts(pool, "in_use", "retired", "idle", "reserved", "live") == (8192, 12288, 0, 20480, 1)
    assert counts(pool, "releases", "handed_over", "limit") == (1, 1, MIB)
    held.release()
    del view
    assert counts(pool, "in_use", "retired", "idle", "reserved", "releases") == (0, 0, 0, 0, 2)


def test_a_snapshot_stays_as_it_was() -> None:
    pool = lasting()
    before = pool.stats()
    again = pool.stats()
    assert before == again
    assert hash(before) == hash(again)
    assert pickle.loads(pickle.dumps(before)) == before
    with pool.acquire(100):
        assert before.live == 0
        assert pool.stats() != before
    with pytest.raises(AttributeError, match="live"):
        before.live = 5
    with pytest.raises(AttributeError, match="live"):
        del before.live
    assert "live=0" in repr(before)
    assert before != figures(before)


@given(st.lists(st.tuples(st.integers(0, 200_000), st.sampled_from(["hold", "release", "drop", "retire", "trim"]))))
def test_identities_in_all_states(steps: list[tuple[int, str]]) -> None:
    pool = lasting("2MiB", leak_detection="off")
    held: list[object] = []
    for nbytes, step in steps:
        try:
            buffer = pool.acquire(nbytes)
        except PoolExhausted:
            held.clear()
            continue
        if step == "hold":
            held.append(buffer)
        elif step == "retire":
            held.append(memoryview(buffer))
        elif step == "release":
            buffer.release()
        elif step == "trim":
            pool.trim(nbytes)
        del buffer
        check_identities(pool.stats())
        assert pool.stats().reserved == pool.account.used
    held.clear()
    stats = pool.stats()
    check_identities(stats)
    assert (stats.live, stats.retired, stats.requested) == (0, 0, 0)


def churn(pool: BufferPool, rounds: int) -> None:
    for number in range(rounds):
        try:
            buffer = pool.acquire((number * 7919) % 150_000)
        except PoolExhausted:
            continue
        view = buffer[:1]
        if number % 3:
            buffer.release()
        del buffer
        del view


def test_snapshots_are_consistent_while_threads_work() -> None:
    pool = lasting("1MiB", leak_detection="off")
    ended = threading.Event()

    def look() -> list[PoolStats]:
        seen = [pool.stats()]
        while not ended.is_set():
            seen.append(pool.stats())
        return seen

    looker = start(look)
    together([lambda: churn(pool, 600)] * 3)
    ended.set()
    snapshots = looker.result()
    for stats in snapshots:
        check_identities(stats)
    for name in ("acquires", "releases", "dropped", "handed_over", "hits", "misses", "peak", "exhausted"):
        series = [getattr(stats, name) for stats in snapshots]
        assert series == sorted(series), name
    gc.collect()
    assert (pool.stats().live, pool.stats().retired) == (0, 0)
