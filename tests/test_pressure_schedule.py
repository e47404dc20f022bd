"""Cleanups at an interval. They take what costs nobody anything always, content of caches only while memory is short."""

import asyncio
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mempool
from mempool.accounting import register_reclaimer
from mempool.pressure import (
    CleanupReport,
    CleanupSchedule,
    Level,
    PressureMonitor,
    Thresholds,
    process_schedule,
    register,
    schedule,
)
from monitor_kit import quiet
from support import DEADLINE, KIB, MIB, Strange, together, until

RunPython = Callable[..., subprocess.CompletedProcess[str]]

MODES = ["standard", "aggressive"]


class Cache:
    """Entries of a kibibyte."""

    name = "entries"

    def __init__(self) -> None:
        self.nbytes, self.asked = 64 * KIB, 0
        register(self)

    def shrink(self, nbytes: int) -> int:
        self.asked += 1
        freed = min(nbytes, self.nbytes)
        self.nbytes -= freed
        return freed


class Default:
    """The default monitor of a test: it calls for nothing by itself."""

    def __init__(self) -> None:
        self.used = 10
        self.monitor = PressureMonitor(Thresholds(main=100), sources=[lambda: (self.used, 200)], min_dwell=0)


@pytest.fixture(autouse=True)
def nothing_under_way(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a schedule that was stopped is still at ends before anything that it uses does."""
    yield
    quiet("mempool schedule", "mempool cleanup")


@pytest.fixture
def default(monkeypatch: pytest.MonkeyPatch) -> Iterator[Default]:
    made = Default()
    monkeypatch.setattr(schedule, "default_monitor", lambda: made.monitor)
    yield made
    made.monitor.stop()


def rounds(mode: Any, count: int = 3) -> CleanupSchedule:
    """Run a schedule for some cleanups at least."""
    with CleanupSchedule("1ms", mode) as made:
        until(lambda: made.runs >= count)
    return made


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("running", [False, True])
def test_caches_keep_what_they_have_while_there_is_room(default: Default, mode: str, running: bool) -> None:
    if running:
        default.monitor.start()
    cache = Cache()
    asked: list[int] = []
    registration = register_reclaimer(lambda needed: asked.append(needed) or 0)
    pool = mempool.BufferPool(idle_timeout=None)
    pool.acquire(MIB).release()
    try:
        made = rounds(mode)
    finally:
        registration.cancel()
    assert (cache.asked, asked) == (0, [])
    assert pool.stats().idle == 0
    assert made.last is not None
    assert {"garbage", "pools", "slabs", "shared", "malloc"} <= {step.name for step in made.last.steps}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("running", [False, True])
def test_they_give_while_memory_is_short(default: Default, mode: str, running: bool) -> None:
    default.used = 90
    if running:
        default.monitor.start()
        until(lambda: default.monitor.level == Level.ELEVATED)
    cache = Cache()
    rounds(mode)
    assert cache.asked > 0
    assert cache.nbytes < 64 * KIB


def test_a_monitor_that_does_not_run_is_polled_for_each(default: Default) -> None:
    cache = Cache()
    with CleanupSchedule("1ms") as made:
        until(lambda: made.runs > 1)
        assert cache.asked == 0
        default.used = 110
        until(lambda: cache.asked > 0)
    assert default.monitor.stats().polls > 1


def test_a_light_one_asks_nobody(default: Default) -> None:
    rounds("light")
    assert default.monitor.stats().polls == 0


def test_where_the_level_cannot_be_told_the_rest_is_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> PressureMonitor:
        raise ValueError("no thresholds")

    monkeypatch.setattr(schedule, "default_monitor", broken)
    cache = Cache()
    pool = mempool.BufferPool(idle_timeout=None)
    pool.acquire(MIB).release()
    rounds("standard", 1)
    assert (cache.asked, pool.stats().idle) == (0, 0)
    assert "caches are left alone" in caplog.text


def test_a_cleanup_that_is_called_still_takes_its_quarter() -> None:
    cache = Cache()
    mempool.cleanup("standard", background=False)
    assert cache.nbytes == 48 * KIB


# ---- the thread, and the settings


def test_a_schedule_cleans_up_again_and_again() -> None:
    pool = mempool.BufferPool(idle_timeout=None)
    with CleanupSchedule("2ms") as schedule:
        for _ in range(3):
            pool.acquire(MIB).release()
            runs = schedule.runs
            until(lambda: schedule.runs > runs + 1)  # noqa: B023
            assert pool.stats().idle == 0
        assert schedule.running
        assert isinstance(schedule.last, CleanupReport)
        assert schedule.last.mode == "standard"
    assert not schedule.running
    schedule.stop()


def test_a_stopped_schedule_is_quiet_and_may_start_again() -> None:
    schedule = CleanupSchedule(0.001, "light")
    threads = set(threading.enumerate())
    schedule.start()
    schedule.start()
    (thread,) = set(threading.enumerate()) - threads
    until(lambda: schedule.runs)
    schedule.stop()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    runs = schedule.runs
    schedule.start()
    until(lambda: schedule.runs > runs)
    schedule.stop()


def test_the_interval_can_be_changed_while_it_runs() -> None:
    with CleanupSchedule("24h") as schedule:
        schedule.interval = 0.001
        until(lambda: schedule.runs)
        assert schedule.interval == 0.001


def test_threads_that_start_stop_and_change_it_leave_none_behind() -> None:
    before = set(threading.enumerate())
    schedule = CleanupSchedule("1h", "light")

    def work() -> None:
        for number in range(20):
            schedule.start()
            schedule.interval = 3600 + number
            mempool.configure(gc_interval_seconds=None if number % 3 else 3600)
            schedule.stop()

    together([work] * 6)
    mempool.configure(gc_interval_seconds=None)
    schedule.stop()
    until(lambda: set(threading.enumerate()) <= before, "the end of the threads")
    assert process_schedule() is None


@pytest.mark.parametrize("interval", [0, -1, "never", float("nan"), float("inf"), "0s"])
def test_an_interval_makes_sense(interval: Any) -> None:
    with pytest.raises(ValueError, match="interval"):
        CleanupSchedule(interval)


@pytest.mark.parametrize("interval", [None, [], True, Strange()])
def test_an_interval_is_a_duration(interval: Any) -> None:
    with pytest.raises(TypeError, match="interval"):
        CleanupSchedule(interval)
    with CleanupSchedule(5) as schedule, pytest.raises(TypeError, match="interval"):
        schedule.interval = interval
    assert schedule.interval == 5


def test_a_schedule_has_a_mode() -> None:
    with pytest.raises(ValueError, match="mode"):
        CleanupSchedule(1, "all")  # type: ignore[arg-type]


def test_the_settings_say_whether_there_is_one() -> None:
    assert process_schedule() is None
    try:
        mempool.configure(gc_interval_seconds=0.001)
        schedule = process_schedule()
        assert schedule is not None
        until(lambda: schedule.runs > 1)
        mempool.configure(gc_interval_seconds="1h", limit=None)
        assert process_schedule() is schedule
        assert (schedule.interval, schedule.running) == (3600, True)
    finally:
        mempool.configure(gc_interval_seconds=None)
    assert process_schedule() is None
    assert not schedule.running


@pytest.mark.parametrize(("value", "seconds"), [("600", 600.0), ("5m", 300.0), ("0", None), ("", None)])
def test_the_environment_says_so_too(run_python: RunPython, value: str, seconds: float | None) -> None:
    done = run_python(
        """
        import mempool, sys
        loaded = "mempool.pressure" in sys.modules
        schedule = mempool.pressure.process_schedule()
        print(loaded, schedule and schedule.interval)
        """,
        env={"MEMPOOL_GC_INTERVAL_SECONDS": value},
    )
    assert done.stdout.split() == [str(seconds is not None), str(seconds)]


def test_an_environment_that_makes_no_sense(run_python: RunPython) -> None:
    done = run_python("import mempool", env={"MEMPOOL_GC_INTERVAL_SECONDS": "soon"}, check=False)
    assert "ValueError: MEMPOOL_GC_INTERVAL_SECONDS must be" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_of_fork_goes_on(run_python: RunPython) -> None:
    run_python(
        """
        import mempool, os, time, warnings
        warnings.simplefilter("ignore")
        mempool.configure(gc_interval_seconds=0.001)
        schedule = mempool.pressure.process_schedule()
        def goes_on():
            runs, end = schedule.runs, time.monotonic() + 100
            while schedule.runs == runs and time.monotonic() < end:
                time.sleep(0.001)
            return schedule.runs > runs
        assert goes_on()
        child = os.fork()
        if not child:
            os._exit(0 if goes_on() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert goes_on()
        """
    )


# ---- what goes wrong


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """No thread can be had, until what is handed out is called."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield patch.undo


def test_where_no_thread_can_be_had_it_does_not_run(no_threads: Callable[[], None]) -> None:
    schedule = CleanupSchedule("1ms", "light")
    with pytest.raises(RuntimeError, match="new thread"):
        schedule.start()
    assert not schedule.running
    no_threads()
    with schedule:
        until(lambda: schedule.runs)


def test_the_setting_stands_where_no_thread_can_be_had(
    no_threads: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    try:
        mempool.configure(gc_interval_seconds=0.001)
        schedule = process_schedule()
        assert schedule is not None
        assert not schedule.running
        assert "no thread could be had" in caplog.text
        no_threads()
        mempool.configure(gc_interval_seconds=0.001)
        until(lambda: schedule.runs)
    finally:
        mempool.configure(gc_interval_seconds=None)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, ValueError])
@pytest.mark.parametrize("where", ["cache", "finding the level"])
def test_nothing_ends_a_schedule(
    default: Default,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
    where: str,
) -> None:
    calls: list[int] = []

    def fail(*_: object) -> int:
        calls.append(1)
        raise error

    default.used = 90
    cache = Cache()
    if where == "cache":
        monkeypatch.setattr(Cache, "shrink", fail)
    else:
        monkeypatch.setattr(schedule, "default_monitor", fail)
    with CleanupSchedule("1ms") as made:
        until(lambda: len(calls) > 2)
        until(lambda: made.runs > 2)
        assert made.running
    assert error.__name__ in caplog.text
    del cache


def test_none_starts_when_the_interpreter_ends(run_python: RunPython) -> None:
    done = run_python(
        """
        import mempool, sys
        from mempool.pressure import CleanupSchedule
        class Last:
            def __del__(self, schedule=CleanupSchedule(1), write=sys.stdout.write):
                try:
                    schedule.start()
                except RuntimeError as error:
                    write(f"{error} {schedule.running}")
        sys.modules["last"] = Last()
        """
    )
    assert done.stdout.endswith("while the interpreter ends False")
