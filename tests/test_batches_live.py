"""Batches with real monitors, cleanups, threads, forks and loops."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

import mempool
from batch_kit import flat
from mempool.pressure import Level, PressureEvent, PressureMonitor, Thresholds, adaptive_batches
from support import start, together

NORMAL, ELEVATED, HIGH, CRITICAL = Level

Run = Callable[..., subprocess.CompletedProcess[str]]


def monitor_of(memory: list[int]) -> PressureMonitor:
    return PressureMonitor(Thresholds(main=100, critical=120), sources=[lambda: (memory[0], 200)], min_dwell=0)


def test_a_monitor_that_does_not_run_is_polled_also_while_a_batch_is_pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["mempool.pressure.batches"], "LOOK_EVERY", 0.0)
    memory = [10]

    def source() -> Iterator[int]:
        for item in range(300):
            if item == 150:
                memory[0] = 130
            yield item

    batches = adaptive_batches(source(), monitor=monitor_of(memory), max_wait=0, cleanup=False)
    found = list(batches)
    assert flat(found) == list(range(300))
    assert [len(batch) for batch in found[:4]] == [100, 64, 1, 1]


def test_relief_by_another_thread_ends_the_wait() -> None:
    memory = [110]
    monitor = monitor_of(memory)
    with monitor:
        monitor.poll()
        batches = adaptive_batches(range(20), 10, monitor=monitor, max_wait=60, cleanup=False)
        taken = start(next, batches)
        memory[0] = 10
        monitor.poll()
        assert taken.result()[0] == 0
    assert batches.waited < 60
    assert monitor.level == NORMAL


def test_a_task_waits_without_holding_up_its_loop() -> None:
    memory = [110]
    monitor = monitor_of(memory)

    async def source() -> AsyncIterator[int]:
        for item in range(20):
            yield item

    async def main() -> list[list[int]]:
        batches = adaptive_batches(source(), 10, monitor=monitor, max_wait=30, cleanup=False)
        task = asyncio.ensure_future(anext(batches))
        while not monitor.stats().waiting:
            await asyncio.sleep(0)
        memory[0] = 10
        monitor.poll()
        return [await task] + [batch async for batch in batches]

    assert flat(asyncio.run(main())) == list(range(20))


def test_a_timeout_around_a_pull_loses_nothing_that_was_pulled() -> None:
    async def source() -> AsyncIterator[int]:
        for item in range(5):
            yield item
        await asyncio.Event().wait()

    async def main() -> list[int]:
        batches = adaptive_batches(source(), 10, monitor=PressureMonitor(sources=[]), cleanup=False)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(batches), 0.05)
        return flat([batch async for batch in batches])

    assert asyncio.run(main()) == list(range(5))


def test_levels_that_come_and_go_while_it_runs() -> None:
    monitor = PressureMonitor(sources=[])
    stop = threading.Event()

    def shake() -> None:
        while not stop.is_set():
            for level in (HIGH, NORMAL, CRITICAL, ELEVATED):
                with monitor.simulate(level):
                    pass

    def consume() -> list[int]:
        return flat(adaptive_batches(range(5000), 64, max_size=128, monitor=monitor, max_wait=0.05, weigher=int))

    shaking = start(shake)
    try:
        assert together([consume] * 3) == [list(range(5000))] * 3
    finally:
        stop.set()
        shaking.result()


def test_within_a_callback_of_its_own_monitor() -> None:
    memory = [110]
    monitor = monitor_of(memory)
    found: list[list[int]] = []

    def callback(event: PressureEvent) -> None:
        found.extend(adaptive_batches(range(30), 10, monitor=monitor, max_wait=30, cleanup=False))

    monitor.on(HIGH, callback)
    monitor.poll()
    assert flat(found) == list(range(30))
    assert monitor.stats().errors == 0


def test_real_cleanups_between_batches() -> None:
    pool = mempool.BufferPool(idle_timeout=None, name="between batches")
    monitor = PressureMonitor(sources=[])
    batches = adaptive_batches(range(40), 10, monitor=monitor, max_wait=0)
    found = [next(batches)]
    for level in (ELEVATED, CRITICAL):
        pool.reserve("1MiB", 4)
        with monitor.simulate(level):
            found.append(next(batches))
        assert pool.stats().idle == 0
    assert flat([*found, *batches]) == list(range(40))
    pool.close()


def test_batches_of_buffers_stay_within_a_pool() -> None:
    """What was pulled and handed over goes back as the consumer lets go: nothing in between keeps it."""
    pool = mempool.BufferPool("8MiB")
    source = (pool.acquire("1MiB") for _ in range(40))
    count = 0
    for batch in adaptive_batches(source, 4, monitor=PressureMonitor(sources=[]), cleanup=False):
        count += len(batch)
        for buffer in batch:
            buffer.release()
        del batch, buffer
    assert count == 40
    assert pool.stats().live == 0


def test_a_run_in_a_cycle_is_collected() -> None:
    class Source:
        def __iter__(self) -> "Source":
            return self

        def __next__(self) -> int:
            return 1

    source = Source()
    batches = adaptive_batches(source, 10, monitor=PressureMonitor(sources=[]), cleanup=False)
    next(batches)
    source.batches = batches  # type: ignore[attr-defined]
    gone = weakref.ref(source)
    del source, batches
    gc.collect()
    assert gone() is None


def test_the_default_monitor_and_the_settings(run_python: Run) -> None:
    """Whatever memory the machine has left: the default monitor is made without sources."""
    code = """
        import sys
        import mempool
        from mempool.pressure import Level, adaptive_batches, default_monitor
        sys.modules["mempool.pressure.monitor"].default_sources = lambda: []
        assert [len(batch) for batch in adaptive_batches(range(50))] == [20, 20, 10]
        with default_monitor().simulate(Level.CRITICAL):
            assert len(next(adaptive_batches(range(50), max_wait="10ms"))) == 1
        assert mempool.health().usage.rss > 0
        with default_monitor():
            assert [len(batch) for batch in adaptive_batches(range(50), weigher=lambda _: 8)] == [20, 20, 10]
    """
    run_python(code, env={"MEMPOOL_BATCH_SIZE": "20", "MEMPOOL_PROFILE": None, "MEMPOOL_THRESHOLD_MB": None})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_goes_on_with_its_copy(run_python: Run) -> None:
    code = """
        import os
        from mempool.pressure import PressureMonitor, adaptive_batches
        monitor = PressureMonitor(sources=[])

        def source():
            for item in range(100):
                if item == 55 and os.fork() == 0:
                    children.append(True)
                yield item

        children = []
        batches = adaptive_batches(source(), 10, monitor=monitor, max_wait=5)
        assert [item for batch in batches for item in batch] == list(range(100))
        if children:
            os._exit(0)
        assert os.wait()[1] == 0
    """
    run_python(code)


def test_the_interpreter_ends_in_the_middle(run_python: Run) -> None:
    code = """
        import logging
        import mempool
        from mempool.pressure import adaptive_batches, alerts, default_monitor
        logging.getLogger("mempool").addHandler(logging.NullHandler())  # the machine may really have no memory left
        monitor = default_monitor()
        told = alerts(monitor)
        monitor.start()
        batches = adaptive_batches((bytearray(10) for _ in range(1000)), weigher=len)
        kept = [next(batches), mempool.health()]
    """
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("", "")
