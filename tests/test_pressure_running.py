"""Monitors that run: threads and loops, events, how often they look, fork."""

import asyncio
import gc
import os
import select
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from mempool.pressure import Level, PressureEvent, PressureMonitor, Thresholds
from mempool.pressure.sources import Reading
from monitor_kit import BYTES, CRITICAL, HIGH, NORMAL, Memory, logged, records
from support import DEADLINE, start, together, until

HOURS = 3600.0


class Bell:
    """An event source over a pipe: what is written into it says that memory is short."""

    scope: Literal["own", "shared"] = "own"
    name = "bell"
    poll_events = getattr(select, "POLLIN", 1)

    def __init__(self) -> None:
        self.used = self.opened = self.closed = self.handled = 0
        self.ends: tuple[int, int] | None = None
        self.drains, self.error = True, False

    def read(self) -> Reading:
        return Reading(self.used)

    def open(self) -> None:
        self.opened += 1
        self.ends = os.pipe()

    def close(self) -> None:
        self.closed += 1
        for end in self.ends or ():
            os.close(end)
        self.ends = None

    def fileno(self) -> int:
        return -1 if self.ends is None else self.ends[0]

    def handle(self, events: int) -> bool:
        self.handled += 1
        if self.error:
            raise OSError("the watch is dead")
        assert self.ends is not None
        if self.drains:
            os.read(self.ends[0], 100)
        return self.used > 0

    def ring(self) -> None:
        until(lambda: self.ends is not None)
        assert self.ends is not None
        os.write(self.ends[1], b"x")


def descriptors() -> set[str]:
    """Numbers of those that are open; what other tests left goes before we look, and not in between."""
    gc.collect()
    return set(os.listdir("/proc/self/fd"))


def new_threads(before: set[threading.Thread]) -> int:
    """Those of other tests may end in between."""
    return len(set(threading.enumerate()) - before)


needs_poll = pytest.mark.skipif(not hasattr(select, "poll"), reason="descriptors cannot be polled here")
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors cannot be counted here")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


# ---- threads ----


def test_start_and_stop_are_idempotent() -> None:
    memory = Memory(1000)
    monitor = PressureMonitor(BYTES, sources=[memory], interval=0.001)
    threads = set(threading.enumerate())
    assert monitor.start() is monitor.start() is monitor
    assert monitor.running
    assert new_threads(threads) == 1
    until(lambda: monitor.level == HIGH)
    monitor.stop()
    monitor.stop()
    assert not monitor.running
    assert new_threads(threads) == 0
    reads = memory.reads
    monitor.poll()
    assert memory.reads == reads + 1


def test_start_and_stop_from_many_threads() -> None:
    monitor = PressureMonitor(BYTES, sources=[Memory()], interval=HOURS)
    threads = set(threading.enumerate())

    def work() -> None:
        for _ in range(20):
            monitor.start()
            monitor.stop()

    together([work] * 8)
    monitor.stop()
    assert new_threads(threads) == 0
    assert not monitor.running


def test_a_started_monitor_calls_back_by_itself() -> None:
    memory, seen = Memory(), threading.Event()
    monitor = PressureMonitor(BYTES, sources=[memory], interval=0.001, reminder=HOURS)
    names: list[str] = []

    @monitor.on(HIGH)
    def note(_: PressureEvent) -> None:
        names.append(threading.current_thread().name)
        seen.set()

    with monitor:
        memory.used = 1000
        assert seen.wait(DEADLINE)
    assert names == ["mempool-pressure"]


def test_stop_from_inside_a_callback() -> None:
    memory = Memory(1000)
    monitor = PressureMonitor(BYTES, sources=[memory], interval=0.001)
    inside: list[threading.Thread] = []

    @monitor.on(HIGH)
    def stop(_: PressureEvent) -> None:
        inside.append(threading.current_thread())
        monitor.stop()

    monitor.start()
    until(lambda: not monitor.running)
    inside[0].join(DEADLINE)
    assert not inside[0].is_alive()
    assert monitor.stats().errors == 0


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, MemoryError, RecursionError])
def test_nothing_that_a_callback_raises_ends_the_thread(error: type[BaseException], caplog: Any) -> None:
    memory = Memory(1000)
    monitor = PressureMonitor(BYTES, sources=[memory], interval=0.001)

    @monitor.on(HIGH)
    def broken(_: PressureEvent) -> None:
        raise error

    with monitor:
        until(lambda: broken.calls)
        before = memory.reads
        until(lambda: memory.reads > before + 3)
        assert monitor.running
    assert len(records(caplog)) == 1


def test_a_stopped_monitor_that_nobody_has_goes() -> None:
    monitor = PressureMonitor(BYTES, sources=[Memory()], interval=0.001).start()
    monitor.stop()
    gone = weakref.ref(monitor)
    del monitor
    gc.collect()
    assert gone() is None


@needs_proc
def test_starting_and_stopping_leaves_no_descriptors() -> None:
    bell = Bell()
    monitor = PressureMonitor(BYTES, sources=[bell], interval=HOURS)
    before = descriptors()
    for _ in range(50):
        with monitor:
            pass
    assert descriptors() <= before
    assert (bell.opened, bell.closed) == (50, 50)


@needs_proc
def test_a_start_that_fails_changes_nothing(monkeypatch: Any) -> None:
    bell = Bell()
    monitor = PressureMonitor(BYTES, sources=[bell])
    before = descriptors()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            monitor.start()
    assert descriptors() <= before
    assert not monitor.running
    with monitor:
        assert monitor.running


@needs_proc
def test_whoever_wakes_a_monitor_that_ends_writes_into_no_other_file(tmp_path: Path) -> None:
    """The number of a closed pipe is that of the next file that is opened."""
    monitor = PressureMonitor(BYTES, sources=[Memory()], interval=0.0001)
    done = threading.Event()

    def wake() -> None:
        while not done.is_set():
            monitor.interval = 0.0001

    def reopen() -> None:
        while not done.is_set():
            with open(tmp_path / f"{threading.get_ident()}", "wb", buffering=0):
                pass

    threads = [start(work) for work in (wake, wake, reopen)]
    until(lambda: list(tmp_path.iterdir()), "a file")
    for _ in range(30):
        with monitor:
            pass
    done.set()
    for thread in threads:
        thread.result()
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [0]


# ---- how often ----


def test_at_rest_seldom_in_a_hurry_often(monkeypatch: Any) -> None:
    monkeypatch.setattr(time, "thread_time", lambda: 1.0)  # polls cost nothing
    memory = Memory(100)
    clock = iter(range(10**6))
    monitor = PressureMonitor(BYTES, sources=[memory], clock=lambda: next(clock) / 10)
    for _ in range(3):
        monitor.poll()
    at_rest = monitor.stats().interval
    memory.used = 700
    monitor.poll()  # 600 in a tenth of a second, 100 to go
    assert monitor.stats().interval < 0.05 < at_rest <= 5.0


def test_a_poll_that_costs_much_is_made_less_often() -> None:
    def slow() -> tuple[int, None]:
        end = time.thread_time() + 0.002
        while time.thread_time() < end:
            pass
        return 0, None

    monitor = PressureMonitor(BYTES, sources=[slow])
    monitor.poll()
    assert monitor.stats().interval > 2.0


def test_what_is_set_is_followed_at_once() -> None:
    memory = Memory(900)
    with PressureMonitor(BYTES, sources=[memory], interval=HOURS) as monitor:
        until(lambda: memory.reads == 1)
        monitor.thresholds = Thresholds(500, 900)
        until(lambda: monitor.level == CRITICAL)
        monitor.interval = 0.001
        until(lambda: memory.reads > 5)


def test_an_error_that_repeats_is_logged_once(caplog: Any) -> None:
    times = 0

    def clock() -> float:
        nonlocal times
        times += 1
        raise ZeroDivisionError("no time" if times < 10 else "no time at all")

    with PressureMonitor(BYTES, sources=[Memory()], interval=0.001, clock=clock):
        until(lambda: times > 20)
    assert len(records(caplog)) == 2


# ---- events ----


@needs_poll
def test_an_event_is_a_poll_at_once() -> None:
    """The interval is hours: what calls back is the event."""
    bell, seen = Bell(), threading.Event()
    monitor = PressureMonitor(BYTES, sources=[bell], interval=HOURS)
    monitor.on(HIGH, lambda _: seen.set())
    with monitor:
        until(lambda: monitor.stats().polls == 1)
        assert monitor.sources[0].events == "watched"
        bell.used = 1000
        bell.ring()
        assert seen.wait(DEADLINE)
        assert monitor.stats().events == 1
    assert bell.ends is None
    assert monitor.sources[0].events == "not started"


@needs_poll
def test_an_event_that_says_nothing_is_no_poll() -> None:
    bell = Bell()
    with PressureMonitor(BYTES, sources=[bell], interval=HOURS) as monitor:
        until(lambda: monitor.stats().polls == 1)
        bell.ring()
        until(lambda: bell.handled)
        assert monitor.stats().polls == 1


@needs_poll
def test_a_source_that_cannot_be_opened_is_read_all_the_same() -> None:
    class Shut(Bell):
        def open(self) -> None:
            raise PermissionError(13, "not for you")

    shut = Shut()
    shut.used = 1000
    with PressureMonitor(BYTES, sources=[shut], interval=0.001) as monitor:
        until(lambda: monitor.level == HIGH)
        assert "not for you" in monitor.sources[0].events
        assert monitor.sources[0].watched


@needs_poll
def test_a_watch_that_dies_is_named_and_opened_again(monkeypatch: Any) -> None:
    monkeypatch.setattr("mempool.pressure.events._REOPEN", 0.05)
    seen = threading.Event()

    class Patient(Bell):
        def open(self) -> None:
            if self.opened:
                seen.wait(DEADLINE)
            super().open()

    bell = Patient()
    bell.error = True
    with PressureMonitor(BYTES, sources=[bell], interval=HOURS) as monitor:
        until(lambda: monitor.stats().polls == 1)
        bell.ring()
        until(lambda: "the watch is dead" in monitor.sources[0].events)
        until(lambda: monitor.stats().polls == 2)  # its death may mean much
        bell.error = False
        seen.set()
        until(lambda: monitor.sources[0].events == "watched")
        assert bell.opened == 2


@needs_poll
def test_a_source_that_never_falls_silent_does_not_take_the_core(monkeypatch: Any) -> None:
    monkeypatch.setattr("mempool.pressure.events._WINDOW", HOURS)
    monkeypatch.setattr("mempool.pressure.events._QUIET", HOURS)
    bell = Bell()
    bell.drains, bell.used = False, 1000
    with PressureMonitor(BYTES, sources=[bell], interval=HOURS) as monitor:
        until(lambda: monitor.stats().polls == 1)
        bell.ring()
        until(lambda: bell.handled >= 100)
        polls = monitor.stats().polls
        assert monitor._runner is not None
        monitor._runner.wake()
        until(lambda: monitor.stats().polls > polls)
        assert bell.handled == 100


@needs_poll
def test_a_regular_file_cannot_be_watched_and_says_so(tmp_path: Path) -> None:
    if not hasattr(select, "epoll"):
        pytest.skip("poll takes regular files")

    class File(Bell):
        def open(self) -> None:
            fd = os.open(tmp_path / "file", os.O_CREAT)
            self.ends = (fd, os.dup(fd))

    with PressureMonitor(BYTES, sources=[File()], interval=HOURS) as monitor:
        until(lambda: monitor.stats().polls == 1)
        assert "not permitted" in monitor.sources[0].events


# ---- event loops ----


def in_loop(body: Callable[[PressureMonitor, Bell], Any], **options: Any) -> None:
    async def main() -> None:
        bell = Bell()
        monitor = PressureMonitor(BYTES, sources=[bell], **({"interval": HOURS, "min_dwell": 0} | options))
        async with monitor as entered:
            assert entered is monitor
            assert monitor.running
            await body(monitor, bell)
        assert not monitor.running
        assert bell.ends is None

    asyncio.run(main())


def test_a_loop_polls_by_itself() -> None:
    async def body(monitor: PressureMonitor, bell: Bell) -> None:
        threads: list[int] = []
        monitor.on(HIGH, lambda _: threads.append(threading.get_ident()))
        bell.used = 1000
        while not threads:
            await asyncio.sleep(0.001)
        assert threads == [threading.get_ident()]

    in_loop(body, interval=0.001)


@needs_poll
def test_an_event_in_a_loop_is_a_poll_at_once() -> None:
    if not hasattr(select, "epoll"):
        pytest.skip("a loop needs epoll to watch pressure")

    async def body(monitor: PressureMonitor, bell: Bell) -> None:
        while not monitor.stats().polls:
            await asyncio.sleep(0)
        for level, used in ((HIGH, 1000), (CRITICAL, 1300)):
            bell.used = used
            bell.ring()
            while monitor.level < level:
                await asyncio.sleep(0)
        assert monitor.stats().events == 2

    in_loop(body)


def test_a_loop_that_is_closed_without_a_word() -> None:
    memory = Memory(1000)
    monitor = PressureMonitor(BYTES, sources=[memory], interval=0.001, min_dwell=0)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(monitor.__aenter__())
    assert monitor.running
    loop.close()
    assert not monitor.running
    monitor.start()
    until(lambda: monitor.level == HIGH)
    monitor.stop()


def test_a_loop_is_stopped_from_another_thread() -> None:
    async def body(monitor: PressureMonitor, bell: Bell) -> None:
        await asyncio.to_thread(monitor.stop)
        await asyncio.sleep(0)
        assert bell.ends is None

    in_loop(body)


def test_an_error_in_a_loop_is_logged_and_the_loop_polls_on(caplog: Any) -> None:
    async def main() -> None:
        times = iter([ZeroDivisionError(), *range(10**6)])

        def clock() -> float:
            now = next(times)
            if isinstance(now, Exception):
                raise now
            return float(now)

        async with PressureMonitor(BYTES, sources=[Memory(1000)], interval=0.001, clock=clock) as monitor:
            while monitor.level < HIGH:
                await asyncio.sleep(0.001)

    asyncio.run(main())
    assert len(logged(caplog)) == 1


# ---- fork ----


def forked(body: Callable[[], int]) -> int:
    """What `body` returned in a child; the fork of a program with threads is warned of, and it is right to be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = body()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@needs_fork
@needs_proc
def test_a_child_starts_its_own_thread_at_the_first_use() -> None:
    bell = Bell()
    monitor = PressureMonitor(BYTES, sources=[bell], interval=0.001, min_dwell=0)
    told: list[Level] = []
    monitor.on(HIGH, lambda event: told.append(event.level))

    def child() -> int:
        threads = threading.active_count()
        assert monitor.level == NORMAL
        assert monitor.running
        assert threading.active_count() == threads + 1
        bell.used = 1000
        until(lambda: told)
        assert set(told) == {HIGH}
        bell.used = 0
        assert monitor.wait_for_relief()
        monitor.stop()
        return 7

    with monitor:
        until(lambda: monitor.stats().polls > 0)
        assert forked(child) == 7
        before = monitor.stats().polls
        until(lambda: monitor.stats().polls > before + 3)
        assert told == []


@needs_fork
def test_a_child_of_a_monitor_that_does_not_run_runs_none() -> None:
    monitor = PressureMonitor(BYTES, sources=[Memory()])

    def child() -> int:
        return 7 if not monitor.running and monitor.poll() == NORMAL else 1

    assert forked(child) == 7


@needs_fork
def test_fork_in_a_callback() -> None:
    memory = Memory(1000)
    monitor = PressureMonitor(BYTES, sources=[memory])
    codes: list[int] = []
    after: list[int] = []
    monitor.on(HIGH, lambda _: codes.append(forked(lambda: 7 if monitor.poll() == HIGH else 1)), priority=1)
    monitor.on(HIGH, lambda _: after.append(1))
    monitor.poll()
    assert (codes, after) == ([7], [1])


@needs_fork
def test_fork_while_other_threads_poll_wait_and_register() -> None:
    """Every lock of the monitor may be held by a thread that the child has not."""
    memory = Memory(1000)
    monitor = PressureMonitor(BYTES, sources=[memory], min_dwell=0, interval=0.001)
    done = threading.Event()

    def busy() -> None:
        while not done.is_set():
            memory.used = 1300 - (memory.used or 0)
            monitor.poll()
            monitor.on(HIGH, lambda _: 1).cancel()
            monitor.wait_for_relief(timeout=0.001)
            monitor.stats()

    def child() -> int:
        memory.used = 0
        monitor.poll()
        monitor.on(HIGH, lambda _: 1).cancel()
        return 7 if monitor.wait_for_relief(timeout=5) and monitor.stats().waiting == 0 else 1

    threads = [start(busy) for _ in range(4)]
    try:
        assert [forked(child) for _ in range(25)] == [7] * 25
    finally:
        done.set()
        for thread in threads:
            thread.result()
