"""What goes wrong while a monitor watches: sources that fail, settings that make no sense, Ctrl-C at any moment."""

import asyncio
import errno
import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from mempool.pressure import PressureEvent, PressureMonitor
from mempool.pressure.sources import CallableSource
from mempool.pressure.watching import Watched
from monitor_kit import BYTES, CRITICAL, HIGH, NORMAL, Bench, Memory, logged
from support import DEADLINE, until

HOURS = 3600.0


# ---- sources ----


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "too many"),
        OSError(errno.ENFILE, "too many"),
        OSError(errno.ENOMEM, "none"),
        MemoryError(),
    ],
)
def test_to_be_out_of_descriptors_or_memory_is_no_relief(error: Exception, caplog: Any) -> None:
    bench = Bench()
    bench.monitor.on_relief(bench.note)
    assert bench.at(1300) == CRITICAL
    bench.memory.error = error
    for _ in range(3):
        assert bench.at(0, 60.0) == CRITICAL
    assert not bench.monitor.wait_for_relief(timeout=0)
    [status] = bench.monitor.sources
    assert type(error).__name__ in status.why
    assert (status.used, status.errors) == (1300, 4)
    assert len(logged(caplog)) == 1
    bench.memory.error = None
    assert bench.at(0, 60.0) == NORMAL
    assert bench.levels() == [(CRITICAL, NORMAL)]
    assert bench.monitor.sources[0].why == ""


def test_a_function_without_memory_is_no_relief() -> None:
    used = [1300]

    def read() -> tuple[int, None]:
        if not used:
            raise MemoryError
        return used[0], None

    clock = iter(range(0, 1000, 100))
    monitor = PressureMonitor(BYTES, sources=[CallableSource(read)], clock=lambda: next(clock))
    assert monitor.poll() == CRITICAL
    used.clear()
    assert monitor.poll() == monitor.poll() == CRITICAL


def test_a_source_that_goes_while_another_thread_reckons_is_nothing_to_it(monkeypatch: Any) -> None:
    """A poll elsewhere finds that it is gone, just as the runner reckons when to look again."""
    memory, reckons, gone = Memory(), threading.Event(), threading.Event()
    monitor = PressureMonitor(BYTES, sources=[memory])
    plain = Watched.limit

    def limit(self: Watched, thresholds: Any) -> float | None:
        if sys._getframe(2).f_code.co_name == "soon" and not gone.is_set():
            reckons.set()
            gone.wait(0.2)  # the other one is locked out meanwhile, or done
        return plain(self, thresholds)

    for used in range(1300, 3300, 100):
        memory.used = used
        monitor.poll()
    monkeypatch.setattr(Watched, "limit", limit)
    memory.used = 3300
    with monitor:
        assert reckons.wait(DEADLINE)
        memory.error = OSError("gone for a moment")
        monitor.poll()
        gone.set()
        memory.error = None
        reads = memory.reads
        until(lambda: memory.reads > reads + 2)
        assert monitor.running


# ---- what breaks the runner ----


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("MEMPOOL_THRESHOLD_MB", "1")
    return monkeypatch


def test_a_setting_that_makes_no_sense_leaves_the_thresholds_that_were(settings: Any, caplog: Any) -> None:
    memory = Memory()
    with PressureMonitor(sources=[memory], interval=0.001) as monitor:
        until(lambda: memory.reads)
        settings.setenv("MEMPOOL_THRESHOLD_MB", "lots")
        memory.used = 1_100_000
        until(lambda: monitor.level == HIGH)
        reads = memory.reads
        until(lambda: memory.reads > reads + 3)
        settings.setenv("MEMPOOL_THRESHOLD_MB", "0.5")
        until(lambda: monitor.level == CRITICAL)
    [line] = logged(caplog)
    assert "lots" in line


def test_a_loop_outlives_a_setting_that_makes_no_sense(settings: Any) -> None:
    memory = Memory()

    async def main() -> None:
        async with PressureMonitor(sources=[memory]) as monitor:
            while not memory.reads:
                await asyncio.sleep(0.001)
            settings.setenv("MEMPOOL_THRESHOLD_MB", "lots")
            reads = memory.reads
            async with asyncio.timeout(DEADLINE):
                while memory.reads < reads + 3:
                    await asyncio.sleep(0.001)
            assert monitor.running

    asyncio.run(main())


def test_an_error_of_the_wait_does_not_end_the_thread(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr("mempool.pressure.running._AFTER_ERROR", 0.001)
    memory = Memory()
    with PressureMonitor(BYTES, sources=[memory], interval=0.001) as monitor:
        runner: Any = monitor._runner
        until(lambda: memory.reads)
        plain = runner._events.wait

        def broken(seconds: float) -> bool:
            raise ZeroDivisionError("no wait")

        runner._events.wait = broken
        until(lambda: logged(caplog))
        reads = memory.reads
        until(lambda: memory.reads > reads + 3)
        runner._events.wait = plain
    assert len(logged(caplog)) == 1


# ---- Ctrl-C ----


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_an_interrupt_at_any_moment_mutes_nobody() -> None:
    """A program that goes on after Ctrl-C, as an interactive one does, still has its callbacks."""
    memory, calls = Memory(), list[PressureEvent]()
    monitor = PressureMonitor(BYTES, sources=[memory], min_dwell=0)
    monitor.on(HIGH, calls.append, weak=False)
    interrupted = 0

    def work() -> None:
        while not alarm.rang:
            memory.used = 1000 - (memory.used or 0)
            monitor.poll()
            with monitor.suppressed():
                pass

    alarm = Alarm(work)
    for step in alarm.steps(1500):
        try:
            signal.setitimer(signal.ITIMER_REAL, step)
            work()
        except KeyboardInterrupt:
            interrupted += 1
        assert not monitor._inside
        assert not monitor._telling
        assert not monitor._muted
    assert interrupted
    calls.clear()
    for used in (0, 1000):
        memory.used = used
        monitor.poll()
    assert len(calls) == 1


class Alarm:
    """Ctrl-C, once after each step, inside one function alone: who comes late must not hit the test itself."""

    def __init__(self, inside: Callable[[], None]) -> None:
        self.inside, self.rang = inside.__code__, False

    def ring(self, signum: int, frame: FrameType | None) -> None:
        self.rang = True
        while frame is not None:
            if frame.f_code is self.inside:
                raise KeyboardInterrupt
            frame = frame.f_back

    def steps(self, count: int) -> Iterator[float]:
        """Seconds to the next one."""
        before = signal.signal(signal.SIGALRM, self.ring)
        collected = gc.isenabled()
        gc.disable()  # what others have the collector call is not ours to interrupt
        end = time.monotonic() + 1.0
        try:
            for number in range(count):
                if number > 181 and time.monotonic() > end:
                    return
                self.rang = False
                yield 20e-6 + number % 181 * 1e-6
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            if collected:
                gc.enable()


def test_who_was_interrupted_while_it_told_holds_up_nobody() -> None:
    """As if nothing had been taken back: the one that tells is no longer there."""
    bench = Bench()
    bench.monitor.on(HIGH, bench.note)
    bench.monitor._telling = 12345
    bench.at(1000)
    assert len(bench.events) == 1
