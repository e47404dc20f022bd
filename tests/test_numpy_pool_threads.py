"""Which thread, which task takes its arrays from which pool; who waits for what an array held; Python without memory."""

import asyncio
import contextvars
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pytest

from mempool import BufferPool
from mempool.numpy import install, uninstall, use_pool
from support import DEADLINE, KIB, MIB, check_identities, start, start_waiter, together

N = 40_000


@pytest.fixture
def pool() -> Iterator[BufferPool]:
    pool = BufferPool(name="arrays", idle_timeout=None)
    yield pool
    uninstall()
    gc.collect()
    check_identities(pool.stats())
    assert pool.stats().live == 0


def takes(pool: BufferPool) -> bool:
    """Whether an array made here takes its memory from the pool."""
    before = pool.stats().live
    array = np.zeros(N)
    return pool.stats().live == before + 1 and not array.any()


# ---- threads ----


def test_a_block_is_not_seen_by_other_threads(pool: BufferPool) -> None:
    with use_pool(pool):
        assert takes(pool)
        assert not start(takes, pool).result()
        context = contextvars.copy_context()
        assert start(context.run, takes, pool).result()
    assert not takes(pool)


def test_installed_for_threads_of_before_and_after(pool: BufferPool) -> None:
    go, done = threading.Event(), threading.Event()

    def earlier() -> list[bool]:
        seen = [takes(pool)]
        done.set()
        go.wait(DEADLINE)
        return [*seen, takes(pool)]

    with ThreadPoolExecutor(2) as executor:
        executor.submit(takes, pool).result()
        thread = start(earlier)
        done.wait(DEADLINE)
        install(pool)
        go.set()
        assert thread.result() == [False, True]
        assert start(takes, pool).result()
        assert executor.submit(takes, pool).result()
        assert contextvars.Context().run(takes, pool)
        uninstall()
        assert not executor.submit(takes, pool).result()
        assert not start(takes, pool).result()


def test_a_thread_that_python_did_not_start(pool: BufferPool) -> None:
    """Its arrays too, and no context of any other."""
    ctypes = pytest.importorskip("ctypes")
    try:
        pthread = ctypes.CDLL(None).pthread_create
    except (AttributeError, TypeError):
        pytest.skip("no pthread_create here")
    seen = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)  # type: ignore[untyped-decorator]
    def run(_: object) -> None:
        seen.append(takes(pool))

    install(pool)
    handle = ctypes.c_void_p()
    assert pthread(ctypes.byref(handle), None, run, None) == 0
    # pthread_join gives the GIL away meanwhile
    assert ctypes.CDLL(None).pthread_join(handle, None) == 0
    assert seen == [True]


def test_arrays_cross_threads(pool: BufferPool) -> None:
    """Made in one, resized in another, freed in a third, while pools are installed and taken away."""
    other = BufferPool(name="other", limit=16 * MIB)
    passed: list[Any] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(300):
            n = int(random.integers(1, N))
            passed.append(np.full(n, float(n)))
            with suppress(IndexError):
                change(passed.pop(int(random.integers(0, 3)) - 2), int(random.integers(1, 2 * N)))

    def change(array: Any, n: int) -> None:
        before, value = len(array), array[0]
        assert (array == value).all()
        array.resize(n, refcheck=False)
        assert (array[:before] == value).all()
        array.fill(n)

    def switch() -> None:
        for _ in range(100):
            install(pool)
            np.ones(N)
            install(other)
            np.ones(N)
            uninstall()

    together([partial(work, seed) for seed in range(4)] + [switch])
    passed.clear()
    gc.collect()
    assert pool.stats().live == other.stats().live == 0
    assert pool.stats().acquires > 0


def test_blocks_in_many_threads(pool: BufferPool) -> None:
    pools = [BufferPool(name=str(i)) for i in range(4)]

    def work(own: BufferPool) -> None:
        for _ in range(200):
            with use_pool(own):
                array = np.arange(N)
                with use_pool(pool):
                    copy = array + 1
                array += copy
            assert array[-1] == 2 * N - 1

    together([partial(work, own) for own in pools])
    for own in pools:
        assert own.stats().acquires == 200
        assert own.stats().live == 0
    assert pool.stats().acquires == 800


# ---- tasks ----


def test_a_block_in_one_task_is_not_seen_in_another(pool: BufferPool) -> None:
    other = BufferPool(name="other")

    async def work(own: BufferPool, foreign: BufferPool, entered: asyncio.Event, both: asyncio.Event) -> None:
        assert not takes(own)
        with use_pool(own):
            entered.set()
            await both.wait()
            for _ in range(20):
                assert takes(own)
                assert not takes(foreign)
                await asyncio.sleep(0)
        assert not takes(own)

    async def main() -> None:
        first, second = asyncio.Event(), asyncio.Event()
        tasks = [
            asyncio.create_task(work(pool, other, first, second)),
            asyncio.create_task(work(other, pool, second, first)),
        ]
        await asyncio.gather(*tasks)
        assert not takes(pool)
        assert not takes(other)

    asyncio.run(main())


def test_a_task_keeps_what_it_began_with(pool: BufferPool) -> None:
    async def main() -> None:
        left = asyncio.Event()

        async def work() -> bool:
            await left.wait()
            return takes(pool)

        with use_pool(pool):
            task = asyncio.create_task(work())
            inside = await asyncio.to_thread(takes, pool)
        left.set()
        assert inside
        assert await task
        assert not takes(pool)

    asyncio.run(main())


# ---- who waits ----


def test_an_array_that_dies_wakes_a_waiting_thread(pool: BufferPool) -> None:
    pool.limit = MIB
    with use_pool(pool):
        array = np.ones(MIB, "u1")
    waiter = start_waiter(pool, partial(pool.acquire, MIB, timeout=None))
    del array
    waiter.result().release()


def test_an_array_that_shrinks_wakes_a_waiting_thread(pool: BufferPool) -> None:
    pool.limit = MIB
    with use_pool(pool):
        array = np.ones(MIB, "u1")
    waiter = start_waiter(pool, partial(pool.acquire, MIB, timeout=None))
    array.resize(10, refcheck=False)
    waiter.result().release()


@pytest.mark.parametrize("resized", [False, True])
def test_an_array_wakes_a_waiting_task(pool: BufferPool, resized: bool) -> None:
    """Without the timer by which it would look up half a second later."""

    async def main() -> None:
        pool.limit = MIB
        with use_pool(pool):
            array = np.ones(MIB, "u1")
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(_lease(pool))
        deadline = loop.call_later(DEADLINE, task.cancel)
        loop.call_later = no_timer  # type: ignore[method-assign]
        while not pool.stats().waits:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        if resized:
            array.resize(10, refcheck=False)
        else:
            del array
        await task
        deadline.cancel()

    asyncio.run(main())  # in the main thread, which is the one that Python hands what an array that moves leaves to do


async def _lease(pool: BufferPool) -> None:
    (await pool.acquire_async(MIB)).release()


class NoTimer:
    def cancel(self) -> None:
        pass


def no_timer(*_: Any, **__: Any) -> Any:
    return NoTimer()


def test_the_exception_on_its_way_is_kept(pool: BufferPool) -> None:
    """Arrays die while one is raised, with somebody waiting for their memory."""
    pool.limit = MIB

    def fail(array: Any) -> None:
        raise KeyError("mine")

    with use_pool(pool):
        array: Any = np.ones(MIB, "u1")
    waiter = start_waiter(pool, partial(pool.acquire, MIB, timeout=None))
    with pytest.raises(KeyError, match="mine"):
        array = fail(array)
    del array
    waiter.result().release()


def test_arrays_do_not_wait(pool: BufferPool) -> None:
    pool.limit = MIB
    with pool.acquire(MIB), use_pool(pool), pytest.raises(MemoryError):
        np.ones(MIB, "u1")
    assert pool.stats().waits == 0


# ---- a collector that runs in the middle, and no memory ----


def test_arrays_die_in_the_collector(pool: BufferPool) -> None:
    install(pool)
    for _ in range(50):
        cycle: list[Any] = [np.ones(N), np.array([np.ones(N), None], dtype=object)]
        cycle.append(cycle)
        del cycle
    gc.collect()
    assert pool.stats().live == 0


def test_each_allocation_fails_in_turn(run_python: Callable[..., Any]) -> None:
    testcapi = pytest.importorskip("_testcapi")
    if not hasattr(testcapi, "set_nomemory"):
        pytest.skip("this interpreter cannot fail allocations")
    run_python("""
        import _testcapi, gc
        import numpy as np
        import mempool
        from mempool.numpy import install, uninstall, use_pool

        pool = mempool.BufferPool(limit="8MiB", idle_timeout=None)
        gc.disable()

        def block():
            with use_pool(pool):
                return np.zeros(100_000)

        def whole():
            install(pool)
            a = np.zeros(100_000)
            uninstall()
            return a

        def resize():
            a = block()
            a.resize(150_000, refcheck=False)
            a.resize(10, refcheck=False)

        def nested():
            with use_pool(pool):
                with use_pool(pool):
                    return np.zeros(100_000) + 1

        for function in (block, whole, resize, nested):
            function()
            nth, clean = 1, 0
            while clean < 3:
                _testcapi.set_nomemory(nth - 1, nth)
                try:
                    function()
                    clean += 1
                except (MemoryError, SystemError):
                    clean = 0
                finally:
                    _testcapi.remove_mem_hooks()
                gc.collect()
                assert pool.stats().live == 0, (function, nth)
                uninstall()
                acquires = pool.stats().acquires
                np.zeros(100_000)
                assert pool.stats().acquires == acquires, ("a block was not left", function, nth)
                nth += 1
                assert nth < 300
    """)


def test_a_large_array_of_a_pool_that_clears_lets_others_run(pool: BufferPool) -> None:
    clearing = BufferPool(zero_on_release=True)

    def work() -> None:
        for _ in range(10):
            with use_pool(clearing):
                array = np.full(3 * MIB, 255, "u1")
                array.resize(4 * MIB, refcheck=False)
                array.resize(100 * KIB, refcheck=False)
                assert not np.empty(3 * MIB, "u1").any()

    together([work] * 3)
    assert clearing.stats().live == 0
