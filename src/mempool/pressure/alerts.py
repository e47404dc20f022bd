"""Alerts through `logging`, rate-limited."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mempool.accounting._locks import ProcessLock
from mempool.pressure.levels import Level, PressureEvent
from mempool.units import parse_duration

if TYPE_CHECKING:
    from mempool.pressure.health import Health

__all__ = ["Alerts", "alerts"]

_Severity = Literal["medium", "high", "critical"]

SEVERITIES: dict[Level, _Severity] = {Level.ELEVATED: "medium", Level.HIGH: "high", Level.CRITICAL: "critical"}
MOST_KINDS = 1000  # that are remembered: names of pools may be new for ever
LOGGING: dict[str, int] = {"medium": logging.WARNING, "high": logging.ERROR, "critical": logging.CRITICAL}


class _Registration(Protocol):
    def cancel(self) -> object: ...


class _Monitor(Protocol):
    """What alerts need of a `PressureMonitor`."""

    def on(self, level: Level, callback: Any, *, priority: int = ..., weak: bool = ...) -> _Registration: ...

    def on_relief(self, callback: Any, *, priority: int = ..., weak: bool = ...) -> _Registration: ...


class Alerts:
    """Logs levels of pressure and issues of health, each at most once in an interval. Made by `alerts`.

    Parameters
    ----------
    logger : logging.Logger, optional
        Where to; None: ``mempool.alerts``. Medium is logged as WARNING, high as ERROR, critical as CRITICAL, relief as INFO.
    interval : float or str
        Seconds between two alerts of the same kind and severity. What is left out is counted in the next. Of kinds (an issue's
        subject is part of it) the last thousand are remembered.
    clock : callable
        Returns seconds.

    Raises
    ------
    TypeError, ValueError
        For an interval that is no duration, and what is no logger.
    """

    def __init__(
        self,
        logger: logging.Logger | None = None,
        interval: float | str = 60.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if logger is not None and not callable(getattr(logger, "log", None)):
            raise TypeError(f"logger must be a logging.Logger or None, not {logger!r}")
        self._logger = logging.getLogger("mempool.alerts") if logger is None else logger
        self._interval = parse_duration(interval, "interval")
        self._clock = clock
        self._lock = ProcessLock()  # a signal handler that runs inside may report too
        self._last: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()
        self._alerted = False
        self._registrations: list[_Registration] = []

    def __call__(self, event: PressureEvent) -> None:
        """Log a level: a callback of a monitor."""
        severity = SEVERITIES.get(event.level)
        if severity is not None and self._log(
            "pressure", severity, "memory pressure is %s: %s", severity, _figures(event)
        ):
            self._alerted = True

    def relieved(self, event: PressureEvent) -> None:
        """Log that the level is normal again, if an alert said that it was not."""
        if event.level == Level.NORMAL and self._alerted:
            self._alerted = False
            self._logger.info("memory pressure is over: %s", _figures(event))

    def report(self, health: "Health") -> None:
        """Log the issues of a `health()`."""
        for issue in health.issues:
            kind = f"{issue.kind} {issue.subject}"
            self._log(kind, issue.severity, "%s: %s", issue.message, issue.advice)

    def cancel(self) -> None:
        """Hear no more of the monitor; idempotent."""
        registrations, self._registrations = self._registrations, []
        for registration in registrations:
            registration.cancel()

    def _log(self, kind: str, severity: str, text: str, *arguments: object) -> bool:
        left_out = self._allowed(kind, severity)
        if left_out is None:
            return False
        if left_out:
            text += " (and %d more since the last such alert)"
            arguments = (*arguments, left_out)
        extra = {"mempool_kind": kind, "mempool_severity": severity}
        self._logger.log(LOGGING[severity], text, *arguments, extra=extra)
        return True

    def _allowed(self, kind: str, severity: str) -> int | None:
        """Return how many were left out since the last that was logged, None if this one is to be left out too."""
        now = self._clock()
        with self._lock():
            last, left_out = self._last.get((kind, severity), (None, 0))
            if last is not None and 0 <= now - last < self._interval:
                self._last[kind, severity] = last, left_out + 1
                return None
            self._last.pop((kind, severity), None)
            self._last[kind, severity] = now, 0
            if len(self._last) > MOST_KINDS:
                self._last.popitem(last=False)
            return left_out


def alerts(
    monitor: _Monitor,
    *,
    logger: logging.Logger | None = None,
    interval: float | str = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> Alerts:
    """Log the levels of a monitor as they rise, last and fall, until `Alerts.cancel`.

    Parameters
    ----------
    monitor : PressureMonitor
        It keeps the alerts, which are the last of its callbacks to run.
    logger, interval, clock
        As for `Alerts`.

    Returns
    -------
    Alerts

    Raises
    ------
    TypeError, ValueError
        For an interval that is no duration, and what is no monitor or no logger.
    """
    if not callable(getattr(monitor, "on_relief", None)):
        raise TypeError(f"monitor must be a PressureMonitor, not {monitor!r}")
    made = Alerts(logger, interval, clock=clock)
    made._registrations.append(monitor.on(Level.ELEVATED, made, priority=_LAST, weak=False))
    made._registrations.append(monitor.on_relief(made.relieved, priority=_LAST, weak=False))
    return made


_LAST = -(1 << 30)  # what makes room goes before what tells of it


def _figures(event: PressureEvent) -> str:
    text = event.source
    if event.used is not None:
        text += f" has {event.used / 1e6:.1f} MB"
        if event.limit is not None:
            text += f" of {event.limit / 1e6:.1f} MB"
    if event.ratio is not None:
        text += f" ({event.ratio:.0%})"
    if event.forecast is not None:
        text += f", full in {event.forecast:.0f} s as memory grows now"
    return text
