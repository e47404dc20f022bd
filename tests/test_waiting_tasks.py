"""Tasks that wait for memory, alone and in one queue with threads."""

import asyncio
import gc
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import pytest

from mempool import Buffer, BufferPool, PoolExhausted
from support import DEADLINE, KIB, MIB, check_identities, nothing_changes, start, start_waiter, together, until

T = TypeVar("T")
Loop = asyncio.AbstractEventLoop
RunLoop = Callable[[Coroutine[Any, Any, Any]], Any]
RunPython = Callable[..., Any]


def loop_factory(name: str) -> Callable[[], Loop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    factory: Callable[[], Loop] = pytest.importorskip("uvloop").new_event_loop
    return factory


@pytest.fixture(params=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> Callable[[], Loop]:
    return loop_factory(request.param)


@pytest.fixture
def run(new_loop: Callable[[], Loop]) -> RunLoop:
    def run_in_loop(main: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(asyncio.wait_for(main, DEADLINE))

    return run_in_loop


async def waiting(pool: BufferPool, count: int) -> None:
    """Let tasks run until so many have begun to wait."""
    for _ in range(10_000):
        if pool.stats().waits >= count:
            return
        await asyncio.sleep(0)
    raise AssertionError("no wait began")


def test_await(run: RunLoop) -> None:
    async def main() -> None:
        pool = BufferPool("64KiB")
        buffer = await pool.acquire_async("64KiB", zero=True)
        assert (len(buffer), any(buffer[:]), buffer.pool) == (64 * KIB, False, pool)
        buffer.release()
        assert pool.stats().waits == 0

    run(main())


def test_async_with(run: RunLoop) -> None:
    async def main() -> None:
        pool = BufferPool("64KiB")
        async with pool.acquire_async("64KiB") as buffer:
            assert pool.stats().live == 1
            buffer[0] = 1
        assert buffer.released
        with pytest.raises(KeyError):
            async with pool.acquire_async("64KiB"):
                raise KeyError
        async with pool.acquire_async(1) as buffer:
            buffer.release()
        assert (pool.stats().live, pool.stats().releases) == (0, 3)

    run(main())


def test_nothing_is_lent_before_it_is_awaited() -> None:
    pool = BufferPool("64KiB")
    with nothing_changes(pool):
        lease = pool.acquire_async("64KiB")
        lease.close()
        del lease


def test_a_lease_is_awaited_once(run: RunLoop) -> None:
    async def main() -> None:
        pool = BufferPool(idle_timeout=None)
        lease = pool.acquire_async(64)
        (await lease).release()
        with nothing_changes(pool), pytest.raises(RuntimeError):
            await lease

    run(main())


def test_errors_come_when_awaited(run: RunLoop) -> None:
    async def main() -> None:
        pool = BufferPool("64KiB", name="gone")
        with nothing_changes(pool), pytest.raises(PoolExhausted):
            await pool.acquire_async("1MiB")
        held = pool.acquire("64KiB")
        for timeout in (0, "1ms"):
            with nothing_changes(pool), pytest.raises(PoolExhausted):
                await pool.acquire_async("64KiB", timeout=timeout)
        lease = pool.acquire_async(1)
        pool.close()
        with pytest.raises(ValueError, match="gone"):
            await lease
        held.release()

    run(main())


def test_tasks_are_served_in_order_of_arrival(run: RunLoop) -> None:
    async def main() -> None:
        pool = BufferPool("1MiB")
        order: list[int] = []

        async def work(number: int, nbytes: int) -> None:
            async with pool.acquire_async(nbytes):
                order.append(number)
                await asyncio.sleep(0)

        held = pool.acquire("1MiB")
        tasks = [asyncio.create_task(work(number, (600 + 30 * (number % 5)) * KIB)) for number in range(12)]
        await waiting(pool, 12)
        held.release()
        await asyncio.gather(*tasks)
        assert order == list(range(12))

    run(main())


def test_a_lease_can_be_a_task_itself(run: RunLoop) -> None:
    async def main() -> None:
        pool = BufferPool("64KiB")
        held = pool.acquire("64KiB")
        task = asyncio.create_task(pool.acquire_async("64KiB"))
        gathered = asyncio.gather(pool.acquire_async("32KiB"), pool.acquire_async("32KiB"))
        await waiting(pool, 3)
        held.release()
        (await task).release()
        assert [len(buffer) for buffer in await gathered] == [32 * KIB] * 2

    run(main())


def test_a_cancelled_task_leaves_the_queue(run: RunLoop) -> None:
    async def main() -> None:
        pool = BufferPool("1MiB")
        held = [pool.acquire("512KiB"), pool.acquire("512KiB")]
        head = asyncio.create_task(pool.acquire_async("1MiB"))
        await waiting(pool, 1)
        behind = asyncio.create_task(pool.acquire_async("512KiB"))
        await waiting(pool, 2)
        held.pop().release()
        assert head.cancel()
        with pytest.raises(asyncio.CancelledError):
            await head
        assert len(await behind) == 512 * KIB

    run(main())


def test_cancelling_at_the_moment_of_waking_loses_nothing(run: RunLoop) -> None:
    async def main() -> None:
        pool = BufferPool("64KiB")
        for rounds in range(20):
            held = pool.acquire("64KiB")
            tasks = [asyncio.create_task(pool.acquire_async("64KiB")) for _ in range(3)]
            await waiting(pool, 3 * (rounds + 1))
            held.release()
            for _ in range(rounds % 4):
                await asyncio.sleep(0)
            tasks[0].cancel()
            with suppress(asyncio.CancelledError):
                (await tasks[0]).release()
            for task in tasks[1:]:
                (await task).release()
            del task, held
        stats = pool.stats()
        assert (stats.live, stats.retired) == (0, 0)

    run(main())


def test_wait_for(run: RunLoop) -> None:
    async def main() -> None:
        pool = BufferPool("64KiB")
        held = pool.acquire("64KiB")
        with nothing_changes(pool), pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(pool.acquire_async("64KiB"), 0.01)
        held.release()
        (await asyncio.wait_for(pool.acquire_async("64KiB"), DEADLINE)).release()
        assert pool.stats().live == 0

    run(main())


def test_close_wakes_tasks(run: RunLoop) -> None:
    async def main() -> None:
        pool = BufferPool("64KiB", name="gone")
        held = pool.acquire("64KiB")
        tasks = [asyncio.create_task(pool.acquire_async("64KiB")) for _ in range(4)]
        await waiting(pool, 4)
        pool.close()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, ValueError)
            assert "gone" in str(result)
        held.release()

    run(main())


def test_memory_that_comes_back_in_a_thread_wakes_a_task(run: RunLoop) -> None:
    async def main() -> None:
        pool = BufferPool("64KiB")
        for _ in range(20):
            held = pool.acquire("64KiB")
            task = asyncio.create_task(pool.acquire_async("64KiB"))
            await waiting(pool, pool.stats().waits + 1)
            thread = start(held.release)
            (await task).release()
            thread.result()

    run(main())


def test_a_release_near_the_recursion_limit_wakes_a_task(run_python: RunPython) -> None:
    """Waking calls Python, which may fail there, at once or by and by; the task is served all the same."""
    run_python("""
        import asyncio, inspect, sys, mempool
        sys.unraisablehook = lambda unraisable: None
        pool = mempool.BufferPool(limit=4096)

        def dig(depth, buffer):
            if depth > 0:
                dig(depth - 1, buffer)
            else:
                buffer.release()

        async def main():
            for headroom in range(40):
                buffer = pool.acquire(4096)
                task = asyncio.ensure_future(pool.acquire_async(4096))
                waits = pool.stats().waits
                while pool.stats().waits == waits:
                    await asyncio.sleep(0)
                try:
                    dig(sys.getrecursionlimit() - len(inspect.stack(0)) - headroom, buffer)
                except RecursionError:
                    pass
                buffer.release()
                (await asyncio.wait_for(task, 60)).release()
            assert pool.stats().live == 0

        asyncio.run(main())
    """)


@pytest.mark.parametrize("end", ["buffer.release()", "del buffer", "pool.close()", "pool.limit = 8192"])
def test_an_interrupt_that_comes_while_a_task_is_woken_is_raised(run_python: RunPython, end: str) -> None:
    run_python(
        f"""
        import asyncio, signal, mempool
        signal.signal(signal.SIGINT, signal.default_int_handler)
        pool = mempool.BufferPool(limit=4096)

        class Loop(asyncio.SelectorEventLoop):
            armed = False

            def call_soon_threadsafe(self, *args, **options):
                if self.armed:
                    self.armed = False
                    signal.raise_signal(signal.SIGINT)
                return super().call_soon_threadsafe(*args, **options)

        async def main():
            buffer = pool.acquire(4096)
            task = asyncio.ensure_future(pool.acquire_async(4096))
            while not pool.stats().waits:
                await asyncio.sleep(0)
            loop.armed = True
            try:
                {end}
                for _ in range(1000):
                    pass
            except KeyboardInterrupt:
                pass
            else:
                raise SystemExit("the interrupt is lost")
            assert not loop.armed
            try:
                (await asyncio.wait_for(task, 60)).release()
            except ValueError:
                assert pool.closed

        loop = Loop()
        loop.run_until_complete(main())
        loop.close()
        """
    )


# ---- threads and tasks in one queue


class LoopThread:
    """An event loop that runs in a thread of its own."""

    def __init__(self, new_loop: Callable[[], Loop]) -> None:
        self.loop = new_loop()
        self.thread = start(self.loop.run_forever)

    def submit(self, pool: BufferPool, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Start a task, and return once it waits."""
        before = pool.stats().waits
        future = asyncio.run_coroutine_threadsafe(work(), self.loop)
        until(lambda: pool.stats().waits > before, "a wait")
        return future

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.result()
        self.loop.close()


def test_threads_and_tasks_are_served_in_order_of_arrival(new_loop: Callable[[], Loop]) -> None:
    pool = BufferPool("1MiB")
    loops = [LoopThread(new_loop), LoopThread(new_loop)]
    order: list[int] = []
    held = pool.acquire("1MiB")

    async def in_task(number: int) -> None:
        async with pool.acquire_async("700KiB"):
            order.append(number)

    def in_thread(number: int) -> None:
        with pool.acquire("800KiB", timeout=None):
            order.append(number)

    waiters = [
        start_waiter(pool, in_thread, number)
        if number % 3 == 0
        else loops[number % 3 - 1].submit(pool, lambda number=number: in_task(number))  # type: ignore[misc]
        for number in range(15)
    ]
    held.release()
    for waiter in waiters:
        waiter.result()
    for loop in loops:
        loop.close()
    assert order == list(range(15))


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("woken", [False, True], ids=["while it waits", "after it was woken"])
def test_a_waiter_whose_loop_was_closed_loses_its_place(new_loop: Callable[[], Loop], woken: bool) -> None:
    pool = BufferPool("64KiB")
    held = pool.acquire("64KiB")
    loop = new_loop()

    async def begin() -> asyncio.Task[Buffer]:
        task = asyncio.create_task(pool.acquire_async("64KiB"))
        await waiting(pool, 1)
        return task

    task = loop.run_until_complete(begin())
    behind = start_waiter(pool, lambda: pool.acquire("64KiB", timeout=None))
    if woken:
        held.release()
    loop.close()
    held.release()
    assert len(behind.result()) == 64 * KIB
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task
    gc.collect()  # what is left of it warns here, not in another test


ROUNDS = 150


def some_sizes(seed: int) -> list[int]:
    dice = random.Random(seed)
    return [dice.choice([4, 16, 40, 64, 100]) * KIB for _ in range(ROUNDS)]


def work_in_thread(pool: BufferPool, seed: int) -> None:
    for size in some_sizes(seed):
        with pool.acquire(size, timeout=None) as buffer:
            buffer[0] = 1


async def work_in_task(pool: BufferPool, seed: int) -> None:
    for size in some_sizes(seed):
        async with pool.acquire_async(size) as buffer:
            buffer[0] = 1
            await asyncio.sleep(0)


async def work_impatiently(pool: BufferPool, seed: int) -> None:
    for size in some_sizes(seed):
        with suppress(asyncio.TimeoutError):
            (await asyncio.wait_for(pool.acquire_async(size), 0.001)).release()


def test_no_wake_up_is_lost_between_threads_and_tasks(new_loop: Callable[[], Loop]) -> None:
    """Each hand-over that nobody announces costs half a second, so that losing many of these runs into the deadline."""
    pool = BufferPool("192KiB")

    async def tasks() -> None:
        await asyncio.gather(
            *(work_in_task(pool, seed) for seed in range(6)), *(work_impatiently(pool, seed) for seed in range(2))
        )

    def loop_in_thread() -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(tasks())

    threads = [lambda seed=seed: work_in_thread(pool, seed) for seed in (100, 101, 102)]  # type: ignore[misc]
    together([*threads, loop_in_thread, loop_in_thread])
    stats = pool.stats()
    check_identities(stats)
    assert (stats.live, stats.retired, stats.exhausted) == (0, 0, 0)
    assert stats.peak <= 192 * KIB
    assert len(pool.acquire("192KiB")) == 192 * KIB


def test_a_raised_limit_wakes_tasks(run: RunLoop) -> None:
    async def main() -> None:
        pool = BufferPool("64KiB")
        held = pool.acquire("64KiB")
        task = asyncio.create_task(pool.acquire_async("64KiB"))
        await waiting(pool, 1)
        pool.limit = MIB
        assert len(await task) == 64 * KIB
        held.release()

    run(main())
