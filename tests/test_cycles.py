"""Buffers that only the garbage collector can free, weak references with callbacks that touch the pool, and resurrection."""

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mempool
from lease_views import VIEWS, each_view, lend, lend_to_strangers, pattern

SIZE = 4096


class SubPool(mempool.BufferPool):
    """A pool that can be part of a cycle: a subclass has attributes."""


class Node:
    """Anything that can be part of a cycle."""


@pytest.fixture
def pool() -> mempool.BufferPool:
    return mempool.BufferPool(idle_timeout=None)


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Cycles are collected when the test says so."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


def lent(pool: mempool.BufferPool) -> int:
    return pool.stats().in_use + pool.stats().retired


def test_buffer_in_a_cycle(pool: mempool.BufferPool) -> None:
    node = Node()
    node.itself, node.buffer = node, pool.acquire(SIZE)
    del node
    assert lent(pool) == SIZE
    gc.collect()
    assert (lent(pool), pool.stats().dropped) == (0, 1)


@each_view
def test_buffer_and_view_in_a_cycle(pool: mempool.BufferPool, view: Any) -> None:
    node = Node()
    node.itself, node.buffer = node, pool.acquire(SIZE)
    node.view = view.make(node.buffer)
    del node
    gc.collect()
    assert lent(pool) == 0
    assert pool.stats().dropped + pool.stats().handed_over == 1


@each_view
def test_view_in_a_cycle_after_release(pool: mempool.BufferPool, view: Any) -> None:
    node = Node()
    with lend(pool, SIZE) as buffer:
        node.itself, node.view = node, view.make(buffer)
    del node, buffer
    lend_to_strangers(pool, SIZE)
    assert pool.stats().retired == SIZE
    gc.collect()
    assert pool.stats().retired == 0


def cyclic(make: Callable[[mempool.BufferPool], Any], account: mempool.Account) -> weakref.ref[SubPool]:
    pool = SubPool(account=account)
    pool.attribute = make(pool)
    return weakref.ref(pool)


@pytest.mark.parametrize(
    "make",
    [
        lambda pool: pool,
        lambda pool: pool.acquire(SIZE),
        lambda pool: pool.acquire(SIZE)[:5],
        lambda pool: [b := pool.acquire(SIZE), memoryview(b)],
        lambda pool: [b := pool.acquire(SIZE), b[:3].release()],
        lambda pool: pool.acquire(SIZE).array(),
        lambda pool: pool.acquire(SIZE).__dlpack__(),
        lambda pool: pool.acquire_async(SIZE),
        lambda pool: pool.account.track(pool, 100),
        lambda pool: weakref.finalize(pool, int),
    ],
    ids=[
        "itself", "buffer", "memoryview", "buffer and view", "buffer once viewed",
        "array", "capsule", "awaitable", "tracked", "finalizer",
    ],
)  # fmt: skip
def test_pool_in_a_cycle_with_its_own_memory(make: Callable[[mempool.BufferPool], Any]) -> None:
    account = mempool.Account("around")  # other pools' idle memory may leave the root account at any moment
    pool = cyclic(make, account)
    gc.collect()
    assert pool() is None
    assert (account.used, account.children) == (0, ())


def test_buffer_kept_by_its_own_waiter(run_python: Callable[..., Any]) -> None:
    """A task waits for memory that it holds itself; its loop goes away unclosed."""
    run_python("""
        import asyncio, gc, warnings, mempool

        warnings.simplefilter("ignore")
        account = mempool.Account("a")

        def start():
            pool = mempool.BufferPool(limit=4096, account=account)
            loop = asyncio.new_event_loop()

            async def wait():
                mine = pool.acquire(4096)
                view = memoryview(mine)
                await pool.acquire_async(4096)

            task = loop.create_task(wait())
            loop.call_later(0.01, loop.stop)
            loop.run_forever()
            loop.set_exception_handler(lambda loop, context: None)
            assert pool.stats().waits == 1
            loop.close()

        start()
        gc.collect()
        gc.collect()
        assert account.used == 0, account.tree()
    """)


def test_weak_reference_dies_with_the_buffer(pool: mempool.BufferPool) -> None:
    seen: list[tuple[bool, int]] = []
    buffer = pool.acquire(SIZE)
    ref = weakref.ref(buffer, lambda ref: seen.append((ref() is None, lent(pool))))
    del buffer
    assert len(seen) == 1
    assert seen[0][0]
    assert lent(pool) == 0
    assert ref() is None


def test_release_does_not_kill_weak_references(pool: mempool.BufferPool) -> None:
    buffer = pool.acquire(SIZE)
    ref = weakref.ref(buffer)
    buffer.release()
    assert ref() is buffer


def test_callback_that_uses_the_pool(pool: mempool.BufferPool) -> None:
    taken: list[mempool.Buffer] = []

    def use(ref: object) -> None:
        taken.append(lend(pool, SIZE))
        pool.trim()
        pool.stats()
        pool.close()

    buffer = pool.acquire(SIZE)
    ref = weakref.ref(buffer, use)
    del buffer
    assert ref() is None
    assert taken[0].tobytes() == pattern(SIZE)
    assert (pool.stats().live, pool.stats().dropped) == (1, 1)


def test_finalizer_that_waits_in_vain(pool: mempool.BufferPool) -> None:
    """The dying buffer still has the only block when its callbacks run."""
    pool.limit = SIZE
    errors: list[type] = []

    def take() -> None:
        try:
            pool.acquire(SIZE)
        except mempool.PoolExhausted as error:
            errors.append(type(error))

    buffer = pool.acquire(SIZE)
    weakref.finalize(buffer, take)
    del buffer
    assert len(errors) <= 1
    assert pool.acquire(SIZE) is not None


def test_pool_is_weakly_referenced() -> None:
    pool = mempool.BufferPool()
    gone, buffer = weakref.ref(pool), pool.acquire(SIZE)
    del pool
    assert gone() is buffer.pool
    del buffer
    assert gone() is None


def test_view_keeps_memory_when_pool_and_buffer_die_in_one_collection() -> None:
    node, pool = Node(), mempool.BufferPool()
    node.itself, node.pool, node.buffer = node, pool, lend(pool, SIZE)
    account, view = pool.account, node.buffer[:]
    del node, pool
    gc.collect()
    lend_to_strangers(mempool.BufferPool(), SIZE)
    assert bytes(view) == pattern(SIZE)
    assert account.used > 0
    del view
    assert account.used == 0


class Phoenix:
    """Its finalizer brings its buffer back to life."""

    nest: list[Any] = []  # noqa: RUF012

    def __init__(self, buffer: mempool.Buffer) -> None:
        self.buffer, self.itself = buffer, self

    def __del__(self) -> None:
        self.nest.append((self.buffer, memoryview(self.buffer)))


def test_resurrected_buffer_is_still_lent(pool: mempool.BufferPool) -> None:
    Phoenix(lend(pool, SIZE))
    gc.collect()
    buffer, view = Phoenix.nest.pop()
    lend_to_strangers(pool, SIZE)
    assert pool.stats().live == 1
    assert buffer.tobytes() == bytes(view) == pattern(SIZE)
    buffer.release()
    lend_to_strangers(pool, SIZE)
    assert bytes(view) == pattern(SIZE)
    del view
    assert lent(pool) == 0


def test_buffer_dies_in_a_finalizer(pool: mempool.BufferPool) -> None:
    class Holder:
        def __init__(self) -> None:
            self.buffers = [pool.acquire(SIZE), pool.acquire(SIZE)]
            self.view = self.buffers[0][:]

        def __del__(self) -> None:
            self.buffers.pop().release()
            self.buffers.pop()
            pool.acquire(SIZE).release()

    Holder()
    assert lent(pool) == 0
    assert (pool.stats().releases, pool.stats().handed_over) == (2, 1)


def test_buffer_in_an_abandoned_generator(pool: mempool.BufferPool) -> None:
    def chunks() -> Iterator[memoryview]:
        with lend(pool, SIZE) as buffer:
            yield buffer[:10]
            yield buffer[10:20]

    generator = chunks()
    view = next(generator)
    del generator
    assert (pool.stats().releases, pool.stats().retired) == (1, SIZE)
    lend_to_strangers(pool, SIZE)
    assert bytes(view) == pattern(10)
    del view
    assert lent(pool) == 0


def test_buffer_in_a_generator_that_catches_its_end(pool: mempool.BufferPool) -> None:
    def stubborn() -> Iterator[int]:
        buffer = pool.acquire(SIZE)
        try:
            yield 1
        finally:
            buffer[:] = bytes(SIZE)

    next(stubborn())
    assert (lent(pool), pool.stats().dropped) == (0, 1)


def test_traceback_keeps_the_lease(pool: mempool.BufferPool) -> None:
    def fail() -> None:
        buffer = pool.acquire(SIZE)
        raise KeyError(len(buffer))

    try:
        fail()
    except KeyError as error:
        kept = error
    assert pool.stats().live == 1
    kept.__traceback__ = None
    assert (lent(pool), pool.stats().dropped) == (0, 1)


def test_collector_runs_inside_acquire_and_release(pool: mempool.BufferPool) -> None:
    """With a collection at nearly every allocation nothing changes."""
    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    gc.enable()
    try:
        for _ in range(20):
            node = Node()
            node.itself, node.buffer = node, lend(pool, SIZE)
            node.view = node.buffer.array()
            del node
            with lend(pool, SIZE) as buffer:
                view = buffer[:]
            assert bytes(view) == pattern(SIZE)
    finally:
        gc.set_threshold(*thresholds)
    del view, buffer
    gc.collect()
    assert lent(pool) == 0


def test_reference_counts_stay_even(pool: mempool.BufferPool) -> None:
    buffer = pool.acquire(SIZE)
    before = sys.getrefcount(buffer), sys.getrefcount(pool)
    for _ in range(50):
        for view in VIEWS:
            view.make(buffer)
        assert buffer != b"x"
    assert sys.getrefcount(buffer) == before[0]
    assert sys.getrefcount(pool) - before[1] <= 1  # the holder of the views


@pytest.mark.parametrize("make", ["memoryview(b)", "b[:]", "b.array()", "numpy.frombuffer(b, 'u1')"])
def test_finalizer_views_the_buffer_that_is_being_viewed(run_python: Callable[..., Any], make: str) -> None:
    """The collector may run within the first export; both views must hold one and the same block, to the last of them."""
    run_python(
        f"""
        import ctypes, gc, mempool, numpy
        gc.disable()
        pool, found, others = mempool.BufferPool(idle_timeout=None), [], []

        class Node:
            def __init__(self, buffer):
                self.buffer, self.itself = buffer, self

            def __del__(self):
                found.append(memoryview(self.buffer))

        for threshold in range(1, 30):
            b = pool.acquire(4096)
            ctypes.memset(b.address, 0, 4096)
            gc.collect()
            others += [memoryview(pool.acquire(64)) for _ in range(70)]  # so that memory for what the view needs is allocated
            gc.collect(0)
            Node(b)
            gc.set_threshold(threshold)
            gc.enable()
            view = {make}
            gc.disable()
            gc.collect()
            (late,) = found
            found.clear()
            del view
            b.release()
            assert pool.stats().retired >= 4096, threshold
            with pool.acquire(4096) as other:
                other[:] = b"x" * 4096
                assert bytes(late) == bytes(4096), threshold
            retired = pool.stats().retired
            late.release()
            assert pool.stats().retired == retired - 4096, threshold
        """
    )
