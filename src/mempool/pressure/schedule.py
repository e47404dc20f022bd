"""Cleanups at an interval, in the background.

The one of the process follows the settings: it runs as long as ``gc_interval_seconds`` says so. A schedule has one daemon thread
while it runs, which sleeps until the next time comes. A child of fork goes on with the schedules of its parent, in threads of its
own.

Caches and reclaimers are asked only while memory is short: time alone makes no entry useless, and a quarter at each interval would
empty every cache for nothing.
"""

import logging
import os
import threading
from types import TracebackType
from typing import Self

from mempool import settings
from mempool.pressure.cleanup import CleanupReport, Mode, checked_mode, run
from mempool.pressure.default import default_monitor
from mempool.pressure.levels import Level
from mempool.units import parse_duration

__all__ = ["CleanupSchedule", "process_schedule"]

_log = logging.getLogger("mempool.pressure")


class CleanupSchedule:
    """Runs a cleanup again and again, in a thread of its own. Caches and reclaimers give something up only while memory is short.

    Parameters
    ----------
    interval : float or str
        Seconds between the end of one and the start of the next, or a duration such as ``"5m"``.
    mode : {"light", "standard", "aggressive"}
        Of each cleanup.

    Notes
    -----
    Memory is short while the level of `default_monitor` is above NORMAL; one that does not run is polled for that.

    Raises
    ------
    TypeError, ValueError
        For an interval that is no duration, zero or endless, and for an unknown mode.

    Examples
    --------
    >>> with CleanupSchedule("10m") as schedule:
    ...     schedule.running
    True
    >>> schedule.running, schedule.runs
    (False, 0)
    """

    def __init__(self, interval: float | str, mode: Mode = "standard") -> None:
        self._interval = _checked_interval(interval)
        self.mode: Mode = checked_mode(mode)
        self.runs = 0
        self.last: CleanupReport | None = None
        self._wake: dict[str, threading.Event] = {}  # one at most: single steps of a dict need no lock

    @property
    def interval(self) -> float:
        """Seconds between two cleanups. Settable; a new one counts from now."""
        return self._interval

    @interval.setter
    def interval(self, value: float | str) -> None:
        self._interval = _checked_interval(value)
        wake = self._wake.get("now")
        if wake is not None:
            wake.set()

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return bool(self._wake)

    def start(self) -> None:
        """Start; the first cleanup comes after one interval. Does nothing if it runs."""
        made = threading.Event()
        if self._wake.setdefault("now", made) is made:
            _started[id(self)] = self
            self._begin(made)

    def stop(self) -> None:
        """Stop; a cleanup that is at it goes on to its end. Does nothing if it does not run."""
        wake = self._wake.pop("now", None)
        if wake is not None:
            _started.pop(id(self), None)
            wake.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _begin(self, wake: threading.Event) -> None:
        threading.Thread(target=self._run, args=(wake,), name="mempool schedule", daemon=True).start()

    def _run(self, wake: threading.Event) -> None:
        while self._wake.get("now") is wake:
            if wake.wait(self._interval):  # stopped, or another interval
                wake.clear()
                continue
            try:
                report = CleanupReport(self.mode)
                run(report, content=self.mode != "light" and _memory_is_short())
                self.last = report
            except Exception:
                _log.exception("a cleanup failed; the next comes in %s s", self._interval)
            self.runs += 1


def _memory_is_short() -> bool:
    try:
        monitor = default_monitor()
        return (monitor.level if monitor.running else monitor.poll()) > Level.NORMAL
    except Exception:
        _log.exception("whether memory is short cannot be told; caches are left alone")
        return False


def _checked_interval(value: float | str) -> float:
    seconds = parse_duration(value, "interval")
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise ValueError(f"interval must be more than 0 seconds and end some day, got {value!r}")
    return seconds


_started: dict[int, CleanupSchedule] = {}  # keeps them alive; single steps of a dict need no lock


def _begin_again() -> None:
    """Go on in a child of fork, which has none of its parent's threads."""
    global _following
    _following = threading.RLock()
    for schedule in [schedule for schedule in _started.values() if schedule.running]:
        wake = schedule._wake["now"] = threading.Event()
        try:
            schedule._begin(wake)
        except (RuntimeError, MemoryError):
            _log.exception("a child of fork could not start its schedule")
            schedule.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_again)


# ---- the one of the process

_of_process: list[CleanupSchedule] = []
_following = threading.RLock()


def process_schedule() -> CleanupSchedule | None:
    """Return the schedule that the settings ask for by ``gc_interval_seconds``; None if they ask for none."""
    return next(iter(_of_process), None)


def follow_settings() -> None:
    """Start, stop or change the schedule of the process as the settings say now.

    Raises
    ------
    TypeError, ValueError
        For a value in the environment that makes no sense.
    """
    with _following:
        interval = settings.lookup("gc_interval_seconds")
        if not isinstance(interval, int | float):
            while _of_process:
                _of_process.pop().stop()
        elif _of_process:
            _of_process[0].interval = interval
        else:
            _of_process.append(CleanupSchedule(interval))
            _of_process[0].start()
