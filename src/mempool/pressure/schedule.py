"""Cleanups at an interval, in the background.

The one of the process follows the settings: it runs as long as ``gc_interval_seconds`` says so. A schedule has one daemon thread
while it runs, which sleeps until the next time comes. A child of fork goes on with the schedules of its parent, in threads of its
own.
"""

import logging
import os
import threading
from types import TracebackType
from typing import Self

from mempool import settings
from mempool.pressure.cleanup import CleanupReport, Mode, checked_mode, cleanup
from mempool.units import parse_duration

__all__ = ["CleanupSchedule", "process_schedule"]

_log = logging.getLogger("mempool.pressure")


class CleanupSchedule:
    """Runs a cleanup again and again, in a thread of its own.

    Parameters
    ----------
    interval : float or str
        Seconds between the end of one and the start of the next, or a duration such as ``"5m"``.
    mode : {"light", "standard", "aggressive"}
        Of each cleanup.

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
        self._stopped: threading.Event | None = None

    @property
    def interval(self) -> float:
        """Seconds between two cleanups. Settable; a new one counts from now."""
        return self._interval

    @interval.setter
    def interval(self, value: float | str) -> None:
        self._interval = _checked_interval(value)
        if self.running:
            self.stop()
            self.start()

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._stopped is not None

    def start(self) -> None:
        """Start; the first cleanup comes after one interval. Does nothing if it runs."""
        if self._stopped is None:
            self._stopped = threading.Event()
            _started[id(self)] = self
            self._begin()

    def stop(self) -> None:
        """Stop; a cleanup that is at it goes on to its end. Does nothing if it does not run."""
        stopped, self._stopped = self._stopped, None
        _started.pop(id(self), None)
        if stopped is not None:
            stopped.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _begin(self) -> None:
        stopped = self._stopped
        if stopped is None:
            return
        threading.Thread(target=self._run, args=(stopped, self._interval), name="mempool schedule", daemon=True).start()

    def _run(self, stopped: threading.Event, interval: float) -> None:
        while not stopped.wait(interval):
            try:
                self.last = cleanup(self.mode, background=False)
            except Exception:
                _log.exception("a cleanup failed; the next comes in %s s", interval)
            self.runs += 1


def _checked_interval(value: float | str) -> float:
    seconds = parse_duration(value, "interval")
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise ValueError(f"interval must be more than 0 seconds and end some day, got {value!r}")
    return seconds


_started: dict[int, CleanupSchedule] = {}  # keeps them alive; single steps of a dict need no lock


def _begin_again() -> None:
    """Go on in a child of fork, which has none of its parent's threads."""
    for schedule in list(_started.values()):
        schedule._stopped = threading.Event()
        try:
            schedule._begin()
        except (RuntimeError, MemoryError):
            _log.exception("a child of fork could not start its schedule")
            schedule.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_again)


# ---- the one of the process

_of_process: list[CleanupSchedule] = []


def process_schedule() -> CleanupSchedule | None:
    """Return the schedule that the settings ask for by ``gc_interval_seconds``; None if they ask for none."""
    return _of_process[0] if _of_process else None


def follow_settings() -> None:
    """Start, stop or change the schedule of the process as the settings say now.

    Raises
    ------
    TypeError, ValueError
        For a value in the environment that makes no sense.
    """
    interval = settings.lookup("gc_interval_seconds")
    if not isinstance(interval, int | float):
        while _of_process:
            _of_process.pop().stop()
    elif _of_process:
        _of_process[0].interval = interval
    else:
        _of_process.append(CleanupSchedule(interval))
        _of_process[0].start()
