"""`PressureMonitor.poll`: levels from sources, events, history, forecast, settings, simulation, suppression."""

import math
import os
import threading
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest

import mempool
from mempool.pressure import Forecast, Level, PressureEvent, PressureMonitor, Thresholds
from monitor_kit import BYTES, CRITICAL, ELEVATED, HIGH, NORMAL, Bench, Clock, Memory, frees, logged, records
from support import DEADLINE, Strange, start


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ---- levels ----


def test_a_monitor_begins_without_pressure(bench: Bench) -> None:
    assert bench.monitor.level == NORMAL
    assert bench.monitor.history() == ()
    assert bench.monitor.forecast() is None
    assert not bench.monitor.running
    assert bench.memory.reads == 0


def test_enter_at_once_leave_below_and_after_the_dwell(bench: Bench) -> None:
    assert bench.at(799) == NORMAL
    assert bench.at(1200) == CRITICAL
    assert bench.at(0, 0.99) == CRITICAL
    assert bench.at(1141, 0.01) == CRITICAL
    assert bench.at(1140, 0.01) == HIGH
    assert bench.at(0, 0.5) == HIGH
    assert bench.at(0, 0.5) == NORMAL


def test_every_poll_reads_every_source_once(bench: Bench) -> None:
    for _ in range(3):
        bench.monitor.poll()
    assert bench.memory.reads == bench.monitor.stats().polls == 3


def test_absolute_thresholds_leave_shared_sources_alone() -> None:
    machine = Memory(99, 100, "machine")
    machine.scope = "shared"
    monitor = PressureMonitor(BYTES, sources=[machine])
    assert monitor.poll() == NORMAL
    (status,) = monitor.sources
    assert (status.watched, status.why) == (False, "thresholds in bytes judge what this program took alone")
    machine.level = HIGH
    assert monitor.poll() == HIGH
    assert monitor.sources[0].watched


def test_fractions_judge_what_has_a_limit() -> None:
    own, shared, free = Memory(50, 100, "own"), Memory(96, 100, "shared"), Memory(10**9, None, "free")
    shared.scope = "shared"
    monitor = PressureMonitor(sources=[own, shared, free], thresholds=Thresholds.fractions())
    assert monitor.poll() == CRITICAL
    assert [(one.name, one.watched, one.why, one.level) for one in monitor.sources] == [
        ("own", True, "", NORMAL),
        ("shared", True, "", CRITICAL),
        ("free", False, "no limit", NORMAL),
    ]


def test_callables_are_sources() -> None:
    def graphics() -> tuple[int, int | None]:
        return 900, None

    monitor = PressureMonitor(BYTES, sources=[graphics])
    assert monitor.poll() == ELEVATED
    assert "graphics" in monitor.sources[0].name


def test_nothing_to_watch() -> None:
    monitor = PressureMonitor(BYTES, sources=[])
    assert monitor.poll() == NORMAL
    assert monitor.sources == ()


def test_all_that_there_is_is_watched_by_default() -> None:
    monitor = PressureMonitor()
    monitor.poll()
    assert len(monitor.sources) > 3
    assert all(one.watched != bool(one.why) for one in monitor.sources)


# ---- sources that fail ----


@pytest.mark.parametrize("error", [OSError(2, "gone"), ValueError("garbage")])
def test_a_source_that_vanishes_is_shown_and_logged(bench: Bench, error: Exception, caplog: Any) -> None:
    bench.at(1300)
    bench.memory.error = error
    assert bench.at(1300, 0.5) == CRITICAL  # for its dwell
    assert bench.at(1300, 0.5) == NORMAL
    (status,) = bench.monitor.sources
    assert (status.watched, status.errors, status.used) == (False, 2, None)
    assert str(error) in status.why
    assert len(logged(caplog)) == 1
    assert "memory can no longer be read" in logged(caplog)[0]
    bench.memory.error = None
    assert bench.at(1300) == CRITICAL
    assert bench.monitor.sources[0].watched


def test_a_source_that_was_never_there_is_shown_and_not_logged(bench: Bench, caplog: Any) -> None:
    bench.memory.error = FileNotFoundError(2, "no such file")
    bench.monitor.poll()
    assert "no such file" in bench.monitor.sources[0].why
    assert not records(caplog)


def test_a_source_that_breaks_is_logged_once_with_its_traceback(bench: Bench, caplog: Any) -> None:
    bench.memory.error = ZeroDivisionError("by zero")
    for _ in range(3):
        assert bench.monitor.poll() == NORMAL
    assert len(records(caplog)) == 1
    assert records(caplog)[0].exc_info[0] is ZeroDivisionError
    assert bench.monitor.sources[0].errors == 3


class Speechless(OSError):
    def __str__(self) -> str:
        raise ZeroDivisionError


def test_an_error_that_cannot_be_written_out_is_shown_all_the_same(bench: Bench) -> None:
    bench.memory.error = Speechless()
    assert bench.at(0) == NORMAL
    assert bench.monitor.sources[0].why == "Speechless: no text (ZeroDivisionError)"


def test_nothing_of_nothing_is_no_pressure() -> None:
    bench = Bench(Thresholds.fractions())
    bench.memory.limit = 0
    assert bench.at(0) == NORMAL
    assert bench.monitor.sources[0].why == "nothing of nothing is used"
    assert bench.at(1) == CRITICAL


def test_one_that_fails_does_not_stop_the_others() -> None:
    broken, well = Memory(name="broken"), Memory(1300, name="well")
    broken.error = OSError("gone")
    assert PressureMonitor(BYTES, sources=[broken, well]).poll() == CRITICAL


@pytest.mark.parametrize("value", [5, None, (1,), (1, 2, 3), ("1", 2), (-1, 5), (1.5, 2), (True, None), Strange()])
def test_a_callable_that_returns_nonsense_is_not_watched(value: Any) -> None:
    monitor = PressureMonitor(BYTES, sources=[lambda: value])
    assert monitor.poll() == NORMAL
    assert "ValueError" in monitor.sources[0].why


@pytest.mark.parametrize("figure", [-1, 1.5, "1", True, 10**400])
def test_a_source_that_returns_nonsense_is_not_watched(bench: Bench, figure: Any) -> None:
    bench.memory.used = figure
    assert bench.monitor.poll() == NORMAL
    assert "ValueError" in bench.monitor.sources[0].why


def test_a_source_that_tells_no_level_there_is(bench: Bench) -> None:
    bench.memory.level = 7  # type: ignore[assignment]
    assert bench.monitor.poll() == NORMAL
    assert "7 is not a valid Level" in bench.monitor.sources[0].why


# ---- events ----


def test_what_an_event_says(bench: Bench) -> None:
    bench.monitor.on(HIGH, bench.note)
    bench.memory.limit = 2000
    bench.at(100)
    bench.at(1000, 10.0)
    (event,) = bench.events
    assert event == PressureEvent(HIGH, NORMAL, "memory", 1000, 2000, 0.5, event.forecast, 110.0)
    assert event.forecast == pytest.approx(200 / 90)  # to the critical threshold, which comes before the limit
    with pytest.raises(AttributeError):
        event.level = NORMAL  # type: ignore[misc]


def test_an_event_names_the_source_that_decided() -> None:
    other = Memory(name="other")
    bench = Bench(BYTES, other)
    bench.monitor.on(ELEVATED, bench.note)
    bench.monitor.on_relief(bench.note)
    bench.at(900)
    other.used = 1300
    bench.at(900, 5.0)
    other.used = 0
    bench.at(900, 5.0)
    bench.at(0, 5.0)
    assert [(event.source, event.used) for event in bench.events] == [
        ("memory", 900),
        ("other", 1300),
        ("memory", 900),
        ("memory", 0),
    ]


def test_history_keeps_rounds_and_changes_longer(bench: Bench) -> None:
    bench.at(1300, 1.0)
    bench.at(0, 5.0)
    for _ in range(500):
        bench.at(1, 1.0)
    history = bench.monitor.history()
    assert len(history) < 200
    assert [(event.previous, event.level) for event in history[:3]] == [
        (NORMAL, CRITICAL),
        (CRITICAL, NORMAL),
        (NORMAL, NORMAL),
    ]
    assert [event.time for event in history] == sorted(event.time for event in history)
    assert history[-1].time == bench.clock.now


def test_history_is_in_order_whatever_the_clock_does() -> None:
    bench = Bench(min_dwell=0)
    for used, seconds in ((0, 0.0), (1100, 0.0), (1150, -50.0), (0, 0.0), (10, 0.0), (20, math.nan), (30, 1.0)):
        bench.at(used, seconds)
    assert [event.used for event in bench.monitor.history()] == [0, 1100, 1150, 0, 10, 20, 30]


def test_forecast(bench: Bench) -> None:
    bench.memory.limit = 1100
    for step in range(8):
        bench.at(100 + 10 * step, 1.0)
    forecast = bench.monitor.forecast()
    assert isinstance(forecast, Forecast)
    assert forecast == pytest.approx((1100 - 170) / 10)
    assert (forecast.confidence, forecast.source) == (1.0, "memory")
    assert forecast.rate == pytest.approx(10)
    for _ in range(12):
        bench.at(100, 1.0)
    assert bench.monitor.forecast() is None


# ---- clocks that jump ----


def test_a_clock_that_goes_back_ends_no_level_early_and_holds_none_for_ever(bench: Bench) -> None:
    bench.at(1300)
    assert bench.at(0, -1e6) == CRITICAL
    assert bench.at(0, 1.0) == NORMAL


def test_a_clock_that_leaps_forward_is_a_dwell(bench: Bench) -> None:
    bench.at(1300)
    assert bench.at(0, 1e9) == NORMAL


def test_a_clock_that_is_no_number_for_once(bench: Bench) -> None:
    bench.monitor.on(HIGH, bench.note)
    now, bench.clock.now = bench.clock.now, math.nan
    assert bench.at(1300) == CRITICAL
    bench.clock.now = now
    assert bench.at(1300) == CRITICAL
    assert bench.at(1300, 5.0) == CRITICAL
    assert len(bench.events) == 2  # with the reminder
    assert bench.at(0) == NORMAL


def test_a_clock_that_stands_still(bench: Bench) -> None:
    for used in range(0, 1400, 100):
        bench.at(used)
    assert bench.monitor.forecast() is None
    assert bench.at(0) == CRITICAL


def test_a_clock_that_raises_changes_nothing(bench: Bench) -> None:
    class Broken(Clock):
        def __call__(self) -> float:
            raise RuntimeError("no time")

    monitor = PressureMonitor(BYTES, sources=[bench.memory], clock=Broken())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no time"):
            monitor.poll()
    assert (monitor.level, bench.memory.reads) == (NORMAL, 0)


# ---- simulate ----


def test_simulate_tells_callbacks_at_once_and_ends_at_once(bench: Bench) -> None:
    bench.monitor.on(HIGH, bench.note)
    bench.monitor.on_relief(bench.note)
    simulation = bench.monitor.simulate(CRITICAL)
    assert bench.monitor.level == CRITICAL
    assert (bench.events[0].source, bench.events[0].used) == ("simulated", None)
    assert bench.at(0, 60.0) == CRITICAL  # until it is ended
    simulation.end()
    simulation.end()
    assert bench.monitor.level == NORMAL
    assert bench.levels() == [(NORMAL, CRITICAL), (CRITICAL, CRITICAL), (CRITICAL, NORMAL)]


def test_simulate_as_a_context_manager(bench: Bench) -> None:
    bench.at(900)
    with bench.monitor.simulate(HIGH) as simulation:
        assert simulation.level == bench.monitor.level == HIGH
    assert bench.monitor.level == ELEVATED


def test_simulated_levels_hide_no_real_ones(bench: Bench) -> None:
    bench.at(1300)
    bench.monitor.simulate(ELEVATED)
    assert bench.monitor.level == CRITICAL
    bench.monitor.simulate(NORMAL)
    assert bench.monitor.level == CRITICAL


def test_of_several_simulations_the_highest_counts(bench: Bench) -> None:
    with bench.monitor.simulate(CRITICAL) as outer:
        with bench.monitor.simulate(HIGH) as inner:
            assert bench.monitor.level == CRITICAL
            outer.end()
            assert bench.monitor.level == HIGH
        inner.end()
        assert bench.monitor.level == NORMAL
        with bench.monitor.simulate(HIGH):
            inner.end()
            outer.end()
            assert bench.monitor.level == HIGH
    bench.monitor.simulate(HIGH)
    bench.monitor.simulate(CRITICAL)
    bench.monitor.simulate(NORMAL)
    assert bench.monitor.level == NORMAL


@pytest.mark.parametrize("bad", [True, "HIGH", None, 1.0])
def test_what_is_no_level(bench: Bench, bad: Any) -> None:
    for call in (bench.monitor.simulate, lambda level: bench.monitor.on(level, print), bench.monitor.wait_for_relief):
        with pytest.raises(TypeError, match="level"):
            call(bad)


def test_levels_that_cannot_be_risen_to(bench: Bench) -> None:
    for level in (NORMAL, 4, -1):
        with pytest.raises(ValueError, match=r"NORMAL|Level"):
            bench.monitor.on(Level(level), print) if level == NORMAL else bench.monitor.simulate(level)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NORMAL"):
        bench.monitor.wait_for_relief(NORMAL)


# ---- suppressed ----


def test_suppressed_callbacks_are_told_afterwards_if_it_still_holds(bench: Bench) -> None:
    bench.monitor.on(HIGH, bench.note)
    with bench.monitor.suppressed():
        with bench.monitor.suppressed():
            assert bench.at(1000) == HIGH
        assert bench.at(1000) == HIGH
    assert bench.events == []
    bench.at(1000)
    bench.at(1000)
    assert bench.levels() == [(NORMAL, HIGH)]


def test_what_came_and_went_while_suppressed_is_never_told(bench: Bench) -> None:
    bench.monitor.on(HIGH, bench.note)
    bench.monitor.on_relief(bench.note)
    with bench.monitor.suppressed():
        bench.at(1000)
        bench.at(0, 5.0)
    bench.at(0)
    assert bench.events == []


def test_what_was_left_and_entered_again_while_suppressed_is_a_new_rise(bench: Bench) -> None:
    bench.monitor.on(HIGH, bench.note)
    bench.at(1000)
    with bench.monitor.suppressed():
        bench.at(0, 2.0)
    bench.at(1000, 2.0)
    assert bench.levels() == [(NORMAL, HIGH), (NORMAL, HIGH)]


def test_suppression_ends_with_its_block_whatever_is_raised(bench: Bench) -> None:
    bench.monitor.on(HIGH, bench.note)
    with pytest.raises(KeyError), bench.monitor.suppressed():
        raise KeyError
    bench.at(1000)
    assert len(bench.events) == 1


# ---- reminders ----


def test_reminders_while_a_level_lasts_ever_more_seldom() -> None:
    bench = Bench(reminder=5.0)
    bench.monitor.on(HIGH, bench.note)
    bench.at(1000)
    for _ in range(200):
        bench.at(1000, 1.0)
    times = [event.time - 100.0 for event in bench.events]
    assert times == [0.0, 5.0, 15.0, 35.0, 75.0, 155.0]
    assert all(event.previous == event.level == HIGH for event in bench.events[1:])
    assert bench.monitor.stats().reminders == 5


def test_a_new_level_begins_the_reminders_anew() -> None:
    bench = Bench(reminder=5.0)
    bench.monitor.on(HIGH, bench.note)
    for used in (1000, 1000, 1000, 1200, 1200):
        bench.at(used, 5.0)
    assert bench.levels()[-2:] == [(HIGH, CRITICAL), (CRITICAL, CRITICAL)]


def test_nobody_is_reminded_of_a_level_that_only_its_dwell_holds() -> None:
    bench = Bench(reminder=5.0, min_dwell=60.0)
    bench.monitor.on(HIGH, bench.note)
    bench.at(1000)
    bench.at(0, 30.0)
    assert len(bench.events) == 1


# ---- reclaim ----


def test_what_is_to_be_reclaimed_is_asked_first(bench: Bench) -> None:
    pool = mempool.BufferPool(idle_timeout=None)
    pool.acquire("4 MiB").release()
    memory = Memory(0)
    monitor = PressureMonitor(BYTES, sources=[memory], reclaim=[pool])
    seen: list[int] = []
    monitor.on(ELEVATED, lambda _: seen.append(pool.stats().idle), priority=10**9)
    memory.used = 800
    monitor.poll()
    assert seen == [0]
    assert monitor.stats().freed >= 4 << 20


def test_a_callback_may_be_what_reclaims(bench: Bench) -> None:
    memory = Memory(1000)
    monitor = PressureMonitor(BYTES, sources=[memory], reclaim=frees(memory, 500))
    monitor.poll()
    assert memory.used == 500


@pytest.mark.parametrize("bad", [5, [5], ["pool"], [Strange()]])
def test_what_cannot_be_reclaimed(bad: Any) -> None:
    with pytest.raises(TypeError):
        PressureMonitor(sources=[], reclaim=bad)


def test_a_monitor_shows_itself(bench: Bench) -> None:
    bench.at(1000)
    assert repr(bench.monitor) == "<PressureMonitor HIGH, 1 sources>"


# ---- suppressed, by others ----


@pytest.mark.parametrize("relief", [False, True])
def test_a_round_that_another_thread_began_stops_at_suppressed(bench: Bench, relief: bool) -> None:
    begun, go = threading.Event(), threading.Event()
    late: list[PressureEvent] = []
    on = bench.monitor.on_relief if relief else partial(bench.monitor.on, HIGH)
    if relief:
        bench.at(1000)

    def first(_: PressureEvent) -> None:
        begun.set()
        go.wait(DEADLINE)

    on(first, priority=1)
    on(late.append, weak=False)
    thread = start(bench.at, 0 if relief else 1000, 5.0)
    assert begun.wait(DEADLINE)
    with bench.monitor.suppressed():
        go.set()
        thread.result()
        assert late == []
    bench.monitor.poll()
    assert [(one.previous, one.level) for one in late] == [(HIGH, NORMAL) if relief else (NORMAL, HIGH)]
    bench.monitor.poll()
    assert len(late) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("own", [False, True])
def test_the_child_of_a_fork_is_muted_by_its_own_thread_only(bench: Bench, own: bool) -> None:
    entered, leave = threading.Event(), threading.Event()
    bench.monitor.on(HIGH, bench.note)

    def other() -> None:
        with bench.monitor.suppressed():
            entered.set()
            leave.wait(DEADLINE)

    thread = start(other)
    assert entered.wait(DEADLINE)
    with bench.monitor.suppressed() if own else nullcontext():
        pid = os.fork()
        if pid == 0:
            bench.at(1000)
            os._exit(len(bench.events))
    leave.set()
    thread.result()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (0 if own else 1)
