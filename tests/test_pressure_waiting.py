"""`wait_for_relief` and `relief`: threads and tasks, monitors that run and that do not, timeouts, cancellation."""

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mempool.pressure import PressureMonitor
from mempool.pressure.sources import Reading
from monitor_kit import BYTES, CRITICAL, ELEVATED, HIGH, NORMAL, Bench, Memory
from support import start, until


@pytest.fixture
def bench() -> Bench:
    return Bench(interval=0.005)


@pytest.fixture(autouse=True)
def _no_second_look(monkeypatch: Any) -> None:
    """Who is not woken would look again after some seconds, and hide that."""
    monkeypatch.setattr("mempool.pressure.monitor._LONGEST_NAP", 3600.0)


def live(memory: Memory, **options: Any) -> PressureMonitor:
    return PressureMonitor(BYTES, sources=[memory], **({"min_dwell": 0, "interval": 0.005} | options))


def waiting(monitor: PressureMonitor, count: int = 1) -> None:
    until(lambda: monitor.stats().waiting == count, "a wait")


def test_nothing_to_wait_for(bench: Bench) -> None:
    assert bench.monitor.wait_for_relief()
    assert bench.monitor.wait_for_relief(ELEVATED, timeout=0)
    bench.at(900)
    assert bench.monitor.wait_for_relief(HIGH)
    assert not bench.monitor.wait_for_relief(ELEVATED, timeout=0)


def test_a_timeout_is_over_in_real_time(bench: Bench) -> None:
    bench.at(1000)
    assert not bench.monitor.wait_for_relief(timeout="10ms")
    assert bench.monitor.stats().waiting == 0


def test_a_wait_polls_a_monitor_that_does_not_run() -> None:
    memory = Memory(1000)
    monitor = live(memory)
    thread = start(monitor.wait_for_relief)
    waiting(monitor)
    before = memory.reads
    until(lambda: memory.reads > before + 2)
    memory.used = 0
    assert thread.result() is True
    assert monitor.stats().waiting == 0


def test_a_monitor_that_runs_wakes_who_waits() -> None:
    memory = Memory(1000)
    with live(memory) as monitor:
        until(lambda: monitor.level == HIGH)
        threads = [start(monitor.wait_for_relief) for _ in range(20)]
        waiting(monitor, 20)
        memory.used = 0
        assert all(thread.result() for thread in threads)


def test_only_those_whose_level_was_left_go_on() -> None:
    memory = Memory(1300)
    with live(memory) as monitor:
        until(lambda: monitor.level == CRITICAL)
        first, second = start(monitor.wait_for_relief, CRITICAL), start(monitor.wait_for_relief, ELEVATED)
        waiting(monitor, 2)
        memory.used = 1000
        assert first.result() is True
        assert monitor.stats().waiting == 1
        memory.used = 0
        assert second.result() is True


def test_who_waits_goes_on_when_the_monitor_stops() -> None:
    """It polls by itself from then on."""
    memory = Memory(1000)
    monitor = live(memory).start()
    until(lambda: monitor.level == HIGH)
    thread = start(monitor.wait_for_relief)
    waiting(monitor)
    monitor.stop()
    memory.used = 0
    assert thread.result() is True


def test_simulated_relief_wakes(bench: Bench) -> None:
    with bench.monitor.simulate(CRITICAL):
        thread = start(bench.monitor.wait_for_relief)
        waiting(bench.monitor)
    assert thread.result() is True


def test_a_wait_can_be_interrupted(bench: Bench) -> None:
    if not hasattr(signal, "pthread_kill"):
        pytest.skip("signals cannot be sent to a thread here")
    bench.at(1000)
    before = signal.signal(signal.SIGUSR1, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    main = threading.get_ident()

    def interrupt() -> None:
        waiting(bench.monitor)
        signal.pthread_kill(main, signal.SIGUSR1)

    thread = start(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            bench.monitor.wait_for_relief()
    finally:
        signal.signal(signal.SIGUSR1, before)
    thread.result()
    assert bench.monitor.stats().waiting == 0


@pytest.mark.parametrize("how", ["thread", "task"])
def test_an_interrupt_just_as_a_wait_begins_leaves_nothing(bench: Bench, monkeypatch: Any, how: str) -> None:
    bench.at(1000)
    plain = bench.monitor._waiters.add

    def add(waiter: Any) -> None:
        plain(waiter)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.monitor._waiters, "add", add)
    with pytest.raises(KeyboardInterrupt):
        if how == "thread":
            bench.monitor.wait_for_relief()
        else:
            asyncio.run(bench.monitor.relief())
    assert bench.monitor.stats().waiting == 0


@pytest.mark.parametrize("bad", [-1, "soon", float("nan")])
def test_nonsense_for_a_timeout(bench: Bench, bad: Any) -> None:
    with pytest.raises(ValueError, match="timeout"):
        bench.monitor.wait_for_relief(timeout=bad)
    with pytest.raises(ValueError, match="timeout"):
        asyncio.run(bench.monitor.relief(timeout=bad))
    assert bench.monitor.stats().waiting == 0


def test_a_level_from_before_the_start_is_not_trusted() -> None:
    """The runner has not looked yet: who asks looks itself."""
    memory = Memory(0)
    monitor = live(memory, interval=3600.0)
    with monitor:
        until(lambda: memory.reads)
    memory.used = 5000
    with held_reads(memory), monitor:
        assert not monitor.wait_for_relief(timeout=0)


@contextmanager
def held_reads(memory: Memory) -> Iterator[None]:
    """The first to read is held up until another one has."""
    plain, mutex, first = memory.read, threading.Lock(), [True]

    def read() -> Reading:
        with mutex:
            mine, first[0] = first[0], False
        if mine and threading.current_thread().name == "mempool-pressure":
            time.sleep(0.2)
        return plain()

    memory.read = read  # type: ignore[method-assign]
    yield
    del memory.read


def test_a_wait_while_the_loop_that_runs_the_monitor_stands() -> None:
    memory = Memory(5000)
    monitor = live(memory)
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        await monitor.__aenter__()
        while monitor.level < HIGH:
            await asyncio.sleep(0)

    loop.run_until_complete(begin())
    memory.used = 0
    assert start(monitor.wait_for_relief).result() is True
    monitor.stop()
    loop.close()


# ---- tasks ----


def test_a_task_that_asks_before_the_monitor_in_its_loop_has_looked() -> None:
    async def main() -> None:
        async with live(Memory(5000)) as monitor:
            assert not await monitor.relief(timeout=0)
            assert monitor.level == CRITICAL

    asyncio.run(main())


def test_tasks_wait_while_their_loop_goes_on() -> None:
    memory = Memory(1000)

    async def main() -> None:
        with live(memory) as monitor:
            while monitor.level < HIGH:
                await asyncio.sleep(0)
            tasks = [asyncio.create_task(monitor.relief()) for _ in range(20)]
            await asyncio.sleep(0)
            assert monitor.stats().waiting == 20
            assert not await monitor.relief(timeout=0.01)
            memory.used = 0
            assert all(await asyncio.gather(*tasks))
            assert monitor.stats().waiting == 0

    asyncio.run(main())


def test_a_task_polls_a_monitor_that_does_not_run() -> None:
    memory = Memory(1000)
    monitor = live(memory)

    async def main() -> None:
        task = asyncio.create_task(monitor.relief())
        await asyncio.sleep(0.01)
        assert not task.done()
        memory.used = 0
        assert await task

    asyncio.run(main())


def test_a_task_in_the_loop_that_runs_the_monitor() -> None:
    memory = Memory(1000)

    async def main() -> None:
        async with live(memory) as monitor:
            while monitor.level < HIGH:
                await asyncio.sleep(0)
            task = asyncio.create_task(monitor.relief())
            await asyncio.sleep(0)
            memory.used = 0
            assert await task

    asyncio.run(main())


def test_a_thread_that_waits_in_the_loop_that_runs_the_monitor_polls_by_itself() -> None:
    memory = Memory(1000)

    async def main() -> None:
        async with live(memory) as monitor:
            while monitor.level < HIGH:
                await asyncio.sleep(0)
            assert not monitor.wait_for_relief(timeout=0.01)
            memory.used = 0
            assert monitor.wait_for_relief()

    asyncio.run(main())


def test_a_cancelled_task_leaves_nothing(bench: Bench) -> None:
    async def main() -> None:
        task = asyncio.create_task(bench.monitor.relief())
        await asyncio.sleep(0)
        assert bench.monitor.stats().waiting == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    bench.at(1000)
    asyncio.run(main())
    assert bench.monitor.stats().waiting == 0


def test_a_loop_that_closed_under_a_waiting_task_holds_up_nobody() -> None:
    memory = Memory(1000)
    monitor = live(memory)
    monitor.poll()
    loop = asyncio.new_event_loop()
    task = loop.create_task(monitor.relief())
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert monitor.stats().waiting == 1
    memory.used = 0
    assert monitor.poll() == NORMAL
    task.get_coro().close()  # type: ignore[union-attr]
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    assert monitor.stats().waiting == 0


def test_waits_come_and_go_while_the_level_does(bench: Bench) -> None:
    """No wake-up is lost: each wait ends by itself once the level falls for the last time."""
    memory = Memory(1000)
    with live(memory, interval=0.001) as monitor:
        done = threading.Event()

        def wait() -> bool:
            while not done.is_set():
                monitor.wait_for_relief()
            return monitor.wait_for_relief()

        threads = [start(wait) for _ in range(3)]
        for number in range(60):
            memory.used = 1000 * (number % 2)
            before = memory.reads
            until(lambda before=before: memory.reads > before)  # type: ignore[misc]
        memory.used = 0
        done.set()
        assert all(thread.result() for thread in threads)
