"""Monitors that are stopped and started again: by callbacks, sources, other threads, `with` in `with`, closed loops, fork."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mempool.pressure import PressureEvent, PressureMonitor
from mempool.pressure.sources import Reading
from monitor_kit import BYTES, HIGH, Memory
from support import DEADLINE, start, until
from test_pressure_running import Bell, descriptors, needs_fork, needs_poll, needs_proc

HOURS = 3600.0


# ---- with ----


def test_with_around_a_running_monitor_leaves_it_running() -> None:
    monitor = PressureMonitor(BYTES, sources=[Memory()], interval=HOURS)
    with monitor:
        with monitor:
            pass
        assert monitor.running
    assert not monitor.running
    monitor.start()
    with monitor:
        pass
    assert monitor.running
    monitor.stop()
    assert not monitor.running


def test_with_in_two_threads_ends_with_the_last() -> None:
    monitor = PressureMonitor(BYTES, sources=[Memory()], interval=HOURS)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with monitor:
            inside.set()
            leave.wait(DEADLINE)

    with monitor:
        thread = start(other)
        assert inside.wait(DEADLINE)
    assert monitor.running
    leave.set()
    thread.result()
    assert not monitor.running


def test_stop_inside_with_stops_and_start_keeps() -> None:
    monitor = PressureMonitor(BYTES, sources=[Memory()], interval=HOURS)
    with monitor:
        monitor.stop()
        assert not monitor.running
        monitor.start()
    assert monitor.running
    monitor.stop()


def test_async_with_around_a_thread_leaves_it_running() -> None:
    monitor = PressureMonitor(BYTES, sources=[Memory()], interval=HOURS).start()

    async def main() -> None:
        async with monitor:
            pass

    asyncio.run(main())
    assert monitor.running
    monitor.stop()


# ---- who has the sources ----


@needs_poll
def test_a_restart_in_a_callback_keeps_the_sources_open() -> None:
    """The old thread ends later than the new one begins."""
    bell = Bell()
    monitor = PressureMonitor(BYTES, sources=[bell], interval=HOURS, min_dwell=0, reminder=HOURS)
    old: list[threading.Thread] = []

    @monitor.on(HIGH)
    def restart(_: PressureEvent) -> None:
        old.append(threading.current_thread())
        monitor.stop()
        monitor.start()

    with monitor:
        until(lambda: monitor.stats().polls)
        bell.used = 1000
        bell.ring()
        until(lambda: old)
        old[0].join(DEADLINE)
        assert not old[0].is_alive()
        assert monitor.sources[0].events == "watched"
        events = monitor.stats().events
        bell.ring()
        until(lambda: monitor.stats().events > events)
    monitor.stop()
    assert bell.ends is None
    assert monitor.sources[0].events == "not started"


@needs_poll
def test_the_source_of_another_monitor_is_read_and_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mempool.pressure.events._REOPEN", 0.05)
    bell = Bell()
    bell.used = 1000
    first = PressureMonitor(BYTES, sources=[bell, bell], interval=HOURS)
    second = PressureMonitor(BYTES, sources=[bell], interval=HOURS)
    with second:
        with first:
            assert "another monitor" in first.sources[0].events
            until(lambda: first.level == HIGH)
        assert second.sources[0].events == "watched"
        assert (bell.opened, bell.closed) == (1, 0)
        first.start()
        bell.ring()
        until(lambda: second.stats().events == 1)
    until(lambda: first.sources[0].events == "watched")  # it is free
    until(lambda: "already" in first.sources[1].events)
    first.stop()
    assert bell.ends is None


@needs_proc
def test_a_loop_closed_over_a_monitor_leaves_no_descriptors() -> None:
    monitor = PressureMonitor(BYTES, sources=[Memory()], interval=HOURS)
    before = descriptors()
    for _ in range(5):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(monitor.__aenter__())
        loop.close()
    with monitor:
        assert monitor.running
    assert not monitor.running
    assert descriptors() <= before


# ---- what stop waits for ----


def test_stop_waits_for_a_callback_in_a_loop() -> None:
    memory, order = Memory(), list[str]()
    begun, go = threading.Event(), threading.Event()
    monitor = PressureMonitor(BYTES, sources=[memory], interval=0.001)

    @monitor.on(HIGH)
    def slow(_: PressureEvent) -> None:
        begun.set()
        go.wait(0.2)  # as long as the other thread would need to return
        order.append("ended")

    def stop() -> None:
        assert begun.wait(DEADLINE)
        monitor.stop()
        order.append("stopped")

    async def main() -> None:
        async with monitor:
            thread = start(stop)
            memory.used = 1000
            while thread.is_alive():
                await asyncio.sleep(0.001)
            thread.result()

    asyncio.run(main())
    assert order == ["ended", "stopped"]


def test_stop_inside_a_source_waits_for_nothing() -> None:
    """The monitor's thread waits for that very source."""
    memory = Memory()
    me = threading.get_ident()
    waits = threading.Event()

    class Stops(Memory):
        def read(self) -> Reading:
            if threading.get_ident() == me:
                runner = monitor._runner
                assert runner is not None
                runner.wake()
                waits.wait(0.1)  # until the thread is at the lock
                monitor.stop()
            return memory.read()

    monitor = PressureMonitor(BYTES, sources=[Stops()], interval=0.001).start()
    until(lambda: memory.reads)
    monitor.poll()
    assert not monitor.running


def test_a_signal_handler_that_comes_while_figures_are_read_waits_for_nobody() -> None:
    """A round that another thread is in waits for the lock of the figures, and the handler would wait for it."""
    reading, go_on = threading.Event(), threading.Event()

    class Slow(Memory):
        def read(self) -> Reading:
            reading.set()
            go_on.wait()
            return super().read()

    monitor = PressureMonitor(BYTES, sources=[Slow()], interval=HOURS).start()
    runner: Any = monitor._runner

    def handled() -> None:
        with monitor._lock:  # as a signal handler finds it
            monitor.poll()
            monitor.stop()

    try:
        assert reading.wait(DEADLINE)
        start(handled).result()
        assert not monitor.running
    finally:
        go_on.set()
        runner._thread.join(DEADLINE)
    assert not runner._thread.is_alive()


# ---- fork ----


@needs_fork
def test_the_child_of_a_callback_of_the_thread_ends_in_silence(run_python: Callable[..., Any]) -> None:
    """Its only thread is a copy of the monitor's, with nothing left to wait for.

    In a process of its own: libraries that other tests loaded complain when it ends without its main thread.
    """
    done = run_python(
        """
        import os, time
        from mempool.pressure import Level, PressureMonitor, Thresholds

        used, ended = [0], []
        monitor = PressureMonitor(
            Thresholds(main=100, critical=200), sources=[lambda: (used[0], 1000)], interval=0.001, min_dwell=0
        )

        @monitor.on(Level.HIGH)
        def fork(event):
            pid = os.fork()
            if pid:
                ended.append(os.waitpid(pid, 0)[1])

        with monitor:
            used[0] = 1000
            while not ended:
                time.sleep(0.001)
        print(ended[0])
        """,
        options=("-W", "ignore::DeprecationWarning"),
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
