"""Cleanups at an interval, in the background.

The one of the process follows the settings: it runs as long as ``gc_interval_seconds`` says so. A schedule has one daemon thread while it
runs, which sleeps until the next time comes. A child of fork goes on with the schedules of its parent, in threads of its own.
"""

import logging
import os
import threading
import weakref
from collections.abc import Mapping
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
