"""What is lent shows in tracemalloc, in a domain of its own, with the line that leased it."""

import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mempool
from lease_views import VIEWS, View, lend

SIZE = 100_000


@pytest.fixture(autouse=True)
def tracing() -> Iterator[None]:
    tracemalloc.start(5)
    yield
    tracemalloc.stop()


@pytest.fixture
def pool() -> mempool.BufferPool:
    return mempool.BufferPool(idle_timeout=None)


def traced() -> list[tracemalloc.Trace]:
    snapshot = tracemalloc.take_snapshot()
    only_ours = snapshot.filter_traces([tracemalloc.DomainFilter(True, mempool.TRACEMALLOC_DOMAIN)])
    return list(only_ours.traces)


def test_domain_is_a_constant() -> None:
    assert mempool.TRACEMALLOC_DOMAIN == 0x6D656D70


def test_lease_shows_with_its_line(pool: mempool.BufferPool) -> None:
    kept, line = pool.acquire(SIZE), sys._getframe().f_lineno
    (trace,) = traced()
    assert trace.domain == mempool.TRACEMALLOC_DOMAIN
    assert trace.size == kept.capacity
    assert (trace.traceback[-1].filename, trace.traceback[-1].lineno) == (__file__, line)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("nbytes", [0, 1, 5000, SIZE, 4 << 20])
def test_gone_after_release(pool: mempool.BufferPool, nbytes: int, warm: bool) -> None:
    if warm:
        pool.acquire(nbytes).release()
    buffer = pool.acquire(nbytes)
    assert [trace.size for trace in traced()] == [buffer.capacity]
    buffer.release()
    assert traced() == []


def test_gone_with_a_dropped_buffer(pool: mempool.BufferPool) -> None:
    pool.acquire(SIZE)
    cycle: list[Any] = [pool.acquire(SIZE)]
    assert len(traced()) == 1
    cycle.clear()
    assert traced() == []


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_stays_with_the_view(pool: mempool.BufferPool, view: View) -> None:
    buffer = lend(pool, 4096)
    seen = view.make(buffer)
    buffer.release()
    assert [trace.size for trace in traced()] == [4096]
    del seen, buffer
    assert traced() == []


def test_sizes_add_up(pool: mempool.BufferPool) -> None:
    kept = [pool.acquire(nbytes) for nbytes in (1, 100, 5000, SIZE, 1 << 20)]
    assert sum(trace.size for trace in traced()) == pool.stats().in_use
    kept.pop().release()
    assert sum(trace.size for trace in traced()) == pool.stats().in_use


def test_current_memory_counts_it(pool: mempool.BufferPool) -> None:
    before = tracemalloc.get_traced_memory()[0]
    kept = pool.acquire(16 << 20)
    assert tracemalloc.get_traced_memory()[0] - before >= kept.capacity - (1 << 20)  # garbage may go meanwhile
    kept.release()
    assert tracemalloc.get_traced_memory()[0] - before < 1 << 20


def test_idle_memory_is_not_traced(pool: mempool.BufferPool) -> None:
    pool.reserve(SIZE, 4)
    assert traced() == []


def test_waiting_and_async_leases_are_traced() -> None:
    import asyncio

    pool = mempool.BufferPool(limit=SIZE * 2)

    async def main() -> None:
        async with pool.acquire_async(SIZE) as buffer:
            assert [trace.size for trace in traced()] == [buffer.capacity]

    asyncio.run(main())
    assert traced() == []
    with pool.acquire(SIZE, timeout=5) as buffer:
        assert [trace.size for trace in traced()] == [buffer.capacity]


def test_copies_of_dlpack_and_pickle_are_traced(pool: mempool.BufferPool) -> None:
    import pickle

    buffer = lend(pool, 4096)
    capsule = buffer.__dlpack__(copy=True)
    again = pickle.loads(pickle.dumps(buffer))
    assert len(traced()) == 3
    del capsule, again
    assert len(traced()) == 1


def test_started_late_and_stopped_early(pool: mempool.BufferPool, run_python: Callable[..., Any]) -> None:
    run_python("""
        import tracemalloc, mempool
        early = mempool.acquire(5000)
        tracemalloc.start()
        late = mempool.acquire(5000)
        early.release()
        tracemalloc.stop()
        late.release()
        tracemalloc.start()
        mempool.acquire(5000).release()
        assert len(tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.DomainFilter(True, mempool.TRACEMALLOC_DOMAIN)]).traces) == 0
    """)


TAKERS: dict[str, Callable[[mempool.BufferPool], object]] = {
    "lease": lambda pool: pool.acquire(SIZE),
    "slab": lambda pool: one_of_a_slab(),
    "array": lambda pool: mempool.anonymous_array((SIZE,), "u1"),
    "ring": lambda pool: mempool.RingBuffer(SIZE),
    "arena": lambda pool: mempool.Arena(SIZE, pool=pool),
    "stream": lambda pool: mempool.io.BytesStream(bytes(SIZE), pool=pool),
}


def one_of_a_slab() -> mempool.SlabAllocator:
    slab = mempool.SlabAllocator(64)
    slab.alloc()
    return slab


@pytest.mark.parametrize("name", TAKERS)
def test_whoever_takes_memory_shows_the_line(pool: mempool.BufferPool, name: str) -> None:
    kept = TAKERS[name](pool)
    (trace,) = traced()
    assert trace.size >= 64
    assert trace.traceback[-1].filename == __file__
    del kept
    assert traced() == []
