"""Alerts: which level is logged as what, how often, and who is heard."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

import mempool
from batch_kit import Clock
from mempool.pressure import Alerts, Health, Issue, Level, PressureEvent, PressureMonitor, Thresholds, alerts
from support import start, together

NORMAL, ELEVATED, HIGH, CRITICAL = Level


def event(level: Level, previous: Level = NORMAL, **options: Any) -> PressureEvent:
    values = {"used": 850_000_000, "limit": 1_000_000_000, "ratio": 0.85, "forecast": None, "time": 0.0} | options
    return PressureEvent(level, previous, "process", **values)


class Log(logging.Handler):
    """What one logger was told, and no other: anything of an earlier test may be logged as it is collected."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def log() -> Iterator[Log]:
    logger, kept = logging.getLogger("mempool.alerts"), Log()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(kept)
    yield kept
    logger.removeHandler(kept)
    logger.setLevel(level)


def levels(log: Log) -> list[str]:
    return [record.levelname for record in log.records]


def test_severities(log: Log) -> None:
    told = Alerts(clock=Clock())
    for level in Level:
        told(event(level))
    assert levels(log) == ["WARNING", "ERROR", "CRITICAL"]
    assert [record.mempool_severity for record in log.records] == ["medium", "high", "critical"]  # type: ignore[attr-defined]
    assert log.messages[1] == "memory pressure is high: process has 850.0 MB of 1000.0 MB (85%)"


def test_figures_that_are_missing_are_left_out(log: Log) -> None:
    told = Alerts(clock=Clock())
    told(event(HIGH, used=None, limit=None, ratio=None))
    told(event(CRITICAL, limit=None, ratio=None, forecast=12.4))
    assert log.messages == [
        "memory pressure is high: process",
        "memory pressure is critical: process has 850.0 MB, full in 12 s as memory grows now",
    ]


def test_each_severity_is_logged_once_in_an_interval(log: Log) -> None:
    clock = Clock()
    told = Alerts(interval="1min", clock=clock)
    for level in (HIGH, HIGH, ELEVATED, HIGH, CRITICAL):
        told(event(level))
    assert levels(log) == ["ERROR", "WARNING", "CRITICAL"]
    clock.now += 59.9
    told(event(HIGH))
    assert len(log.records) == 3
    clock.now += 0.1
    told(event(HIGH))
    told(event(ELEVATED))
    assert log.messages[3].endswith("(and 3 more since the last such alert)")
    assert "more since" not in log.messages[4]


def test_a_clock_that_is_set_back_silences_nothing(log: Log) -> None:
    clock = Clock()
    told = Alerts(clock=clock)
    told(event(HIGH))
    clock.now -= 500
    told(event(HIGH))
    assert levels(log) == ["ERROR", "ERROR"]


def test_relief_is_told_once_and_only_after_an_alert(log: Log) -> None:
    told = Alerts(clock=Clock())
    told.relieved(event(NORMAL, HIGH))
    told(event(HIGH))
    told.relieved(event(ELEVATED, HIGH))
    told.relieved(event(NORMAL, ELEVATED))
    told.relieved(event(NORMAL, ELEVATED))
    assert levels(log) == ["ERROR", "INFO"]


def test_issues_are_limited_each_for_itself(log: Log) -> None:
    issues = (
        Issue("leak", "high", 1, None, "it grows", "look"),
        Issue("fragmentation", "medium", 1, 2, "a has holes", "trim", "a"),
        Issue("fragmentation", "medium", 1, 2, "b has holes", "trim", "b"),
    )
    usage: Any = None
    told = Alerts(clock=Clock())
    for _ in range(2):
        told.report(Health(35, "degraded", usage, issues))
    assert log.messages == ["it grows: look", "a has holes: trim", "b has holes: trim"]
    assert levels(log) == ["ERROR", "WARNING", "WARNING"]


def test_a_monitor_is_heard_until_it_is_cancelled(log: Log) -> None:
    memory, clock = [10], Clock()
    monitor = PressureMonitor(
        Thresholds(main=100, critical=120), sources=[lambda: (memory[0], 200)], clock=clock, min_dwell=0
    )
    told = alerts(monitor, clock=clock)
    for memory[0] in (10, 110, 130, 10, 130):
        clock.now += 100.0
        monitor.poll()
    assert levels(log) == ["ERROR", "CRITICAL", "INFO", "CRITICAL"]
    told.cancel()
    told.cancel()
    for memory[0] in (10, 130):
        clock.now += 100.0
        monitor.poll()
    assert len(log.records) == 4


def test_the_monitor_keeps_them(log: Log) -> None:
    monitor = PressureMonitor(Thresholds(main=100), sources=[lambda: (110, 200)])
    alerts(monitor)
    monitor.poll()
    assert levels(log) == ["ERROR"]


def test_another_logger() -> None:
    logger, kept = logging.Logger("mine"), Log()
    logger.addHandler(kept)
    Alerts(logger)(event(HIGH))
    assert [record.name for record in kept.records] == ["mine"]


def test_threads_log_once_and_count_the_rest(log: Log) -> None:
    clock = Clock()
    told = Alerts(clock=clock)

    def work() -> None:
        for _ in range(50):
            told(event(HIGH))

    together([work] * 4)
    clock.now += 60
    told(event(HIGH))
    assert len(log.records) == 2
    assert "(and 199 more" in log.messages[1]


@pytest.mark.parametrize(("interval", "error"), [(-1, ValueError), (None, TypeError), ("soon", ValueError)])
def test_an_interval_that_is_none_is_named(interval: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="interval"):
        alerts(PressureMonitor(sources=[]), interval=interval)


@pytest.mark.parametrize("wrong", [{"logger": "log"}, {"monitor": 5}])
def test_what_is_no_logger_or_monitor_is_named(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(TypeError, match=f"{name} .*{value!r}"):
        alerts(**{"monitor": PressureMonitor(sources=[])} | wrong)


def issues(*subjects: str) -> Health:
    found = tuple(Issue("exhausted waits", "medium", 1, 0, "message", "advice", subject) for subject in subjects)
    return Health(85, "strained", mempool.memory_usage(), found)


def test_subjects_that_come_no_more_are_forgotten(log: Log) -> None:
    told = Alerts(clock=Clock())
    told.report(issues("first", *(f"pool-{number}" for number in range(2000))))
    assert len(told._last) == 1000
    told.report(issues("pool-1999", "first"))
    assert len(log.records) == 2001 + 1


def test_a_report_may_be_made_inside_a_report(log: Log) -> None:
    told = Alerts(clock=Clock())

    def work() -> None:
        with told._lock():  # as a signal handler finds it
            told.report(issues("pool"))

    start(work).result()
    assert len(log.records) == 1
