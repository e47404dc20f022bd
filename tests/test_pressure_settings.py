"""What a monitor is made with and may be given while it runs: thresholds, times, sources; and what it refuses."""

import math
from typing import Any

import pytest

import mempool
from mempool.pressure import PressureMonitor, Thresholds
from mempool.pressure.sources import Reading
from monitor_kit import BYTES, CRITICAL, HIGH, NORMAL, Bench, Clock, Memory
from support import Strange


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("thresholds", 5, TypeError),
        ("thresholds", "1 GB", TypeError),
        ("interval", 0, ValueError),
        ("interval", -1, ValueError),
        ("interval", math.nan, ValueError),
        ("interval", True, TypeError),
        ("hysteresis", 1.0, ValueError),
        ("hysteresis", -0.1, ValueError),
        ("hysteresis", math.nan, ValueError),
        ("hysteresis", "5 %", TypeError),
        ("hysteresis", None, TypeError),
        ("min_dwell", -1, ValueError),
        ("min_dwell", None, TypeError),
    ],
)
def test_settings_are_checked_also_while_it_runs(option: str, value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=option):
        PressureMonitor(sources=[], **{option: value})
    monitor = PressureMonitor(sources=[])
    before = getattr(monitor, option)
    with pytest.raises(kind, match=option):
        setattr(monitor, option, value)
    assert getattr(monitor, option) == before


@pytest.mark.parametrize("bad", [5, [5], ["machine"], Strange()])
def test_what_is_no_source(bad: Any) -> None:
    with pytest.raises(TypeError):
        PressureMonitor(sources=bad)


class OfAnotherScope:
    name, scope = "own", "Own"

    def read(self) -> Reading:
        return Reading(5000)


def test_a_class_is_no_source() -> None:
    with pytest.raises(TypeError, match="class Memory"):
        PressureMonitor(sources=[Memory])


def test_a_scope_that_is_none() -> None:
    with pytest.raises(ValueError, match="'Own'"):
        PressureMonitor(sources=[OfAnotherScope()])


@pytest.mark.parametrize("bad", [5, "now", Clock])
def test_what_is_no_clock(bad: Any) -> None:
    with pytest.raises(TypeError, match="clock"):
        PressureMonitor(sources=[], clock=bad)


@pytest.mark.parametrize(("bad", "kind"), [(0, ValueError), ("0ms", ValueError), (-1, ValueError), (None, TypeError)])
def test_what_reminds_of_nothing(bad: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="reminder"):
        PressureMonitor(sources=[], reminder=bad)


def test_a_level_may_be_told_by_its_number(bench: Bench) -> None:
    bench.memory.level = 2  # type: ignore[assignment]
    assert bench.at(0) is HIGH
    assert bench.monitor.level is HIGH
    assert "HIGH" in repr(bench.monitor)


def test_settings_may_change_while_it_runs(bench: Bench) -> None:
    bench.at(700)
    bench.monitor.thresholds = Thresholds(500, 600)
    assert bench.at(700) == CRITICAL
    bench.monitor.min_dwell = "10s"
    assert bench.at(0, 9.0) == CRITICAL
    bench.monitor.min_dwell = 0
    assert bench.at(0) == NORMAL
    bench.monitor.hysteresis = 0.5
    bench.at(500)
    assert bench.at(251, 1.0) == HIGH
    bench.monitor.interval = "250ms"
    assert bench.monitor.interval == bench.monitor.stats().interval == 0.25


def test_thresholds_of_the_settings_are_followed(monkeypatch: Any) -> None:
    monkeypatch.setattr("mempool.settings._configured", {})
    memory = Memory(1_500_000)
    monitor = PressureMonitor(sources=[memory], min_dwell=0)
    assert monitor.thresholds == Thresholds.fractions()
    assert monitor.poll() == NORMAL
    mempool.configure(threshold_mb=1)
    assert monitor.thresholds == Thresholds("1 MB", "1.25 MB")
    assert monitor.poll() == CRITICAL
    mempool.configure(critical_threshold_mb=2)
    assert monitor.poll() == HIGH
    mempool.configure(threshold_mb=None)
    assert monitor.thresholds == Thresholds("1.6 MB", "2 MB")
    monitor.thresholds = BYTES
    assert monitor.thresholds == BYTES


def test_a_wrong_variable_is_named_when_a_monitor_is_made(monkeypatch: Any) -> None:
    monkeypatch.setattr("mempool.settings._configured", {})
    monkeypatch.setenv("MEMPOOL_THRESHOLD_MB", "a lot")
    with pytest.raises(ValueError, match="MEMPOOL_THRESHOLD_MB"):
        PressureMonitor(sources=[])
