"""What a monitor goes by, and what may be set while it runs; what it does not say, the settings of the process do."""

import time
from collections.abc import Callable

from mempool.pressure.levels import CRITICAL_OVER_MAIN, Thresholds
from mempool.settings import thresholds as configured_thresholds
from mempool.units import parse_duration

__all__ = ["Options", "clock_of", "positive"]

_DEFAULT = Thresholds.fractions()


def positive(value: object, name: str) -> float:
    """Return a duration that is more than nothing."""
    seconds = parse_duration(value, name)
    if seconds == 0:
        raise ValueError(f"{name} must be more than 0 seconds, got {value!r}")
    return seconds


def clock_of(given: object) -> Callable[[], float]:
    """Return a clock as it is, and the real one for None; `TypeError` for what cannot be called."""
    if given is None:
        return time.monotonic
    if not callable(given) or isinstance(given, type):
        raise TypeError(f"clock must return seconds when called, not {given!r}")
    return given


class Options:
    """Thresholds and durations of a `PressureMonitor`; each is checked when it is set."""

    def __init__(
        self,
        thresholds: Thresholds | None,
        interval: float | str | None,
        hysteresis: float,
        min_dwell: float | str,
    ) -> None:
        self._interval: float | None
        self.thresholds = thresholds
        self.interval = interval
        self.hysteresis = hysteresis
        self.min_dwell = min_dwell

    def _changed(self) -> None:
        """Do what is to be done when something was set that a sleeping monitor should know."""

    @property
    def thresholds(self) -> Thresholds:
        """Where levels begin; may be set, None for the default."""
        return self._thresholds or _default_thresholds()

    @thresholds.setter
    def thresholds(self, value: Thresholds | None) -> None:
        if value is not None and not isinstance(value, Thresholds):
            raise TypeError(f"thresholds must be Thresholds or None, not {value!r}")
        if value is None:
            _default_thresholds()  # what the settings say wrong is said here, not at each poll
        self._thresholds = value
        self._changed()

    @property
    def hysteresis(self) -> float:
        """Share of a threshold below which a level is left."""
        return self._hysteresis

    @hysteresis.setter
    def hysteresis(self, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"hysteresis must be a share such as 0.05, not {value!r}")
        if not 0 <= value < 1:
            raise ValueError(f"hysteresis must be at least 0 and below 1, got {value!r}")
        self._hysteresis = float(value)

    @property
    def min_dwell(self) -> float:
        """Seconds that a level lasts at least."""
        return self._min_dwell

    @min_dwell.setter
    def min_dwell(self, value: float | str) -> None:
        self._min_dwell = parse_duration(value, "min_dwell")

    @property
    def interval(self) -> float | None:
        """Seconds between polls; None: adaptive."""
        return self._interval

    @interval.setter
    def interval(self, value: float | str | None) -> None:
        self._interval = None if value is None else positive(value, "interval")
        self._changed()


def _default_thresholds() -> Thresholds:
    """Return what the settings say of thresholds; fractions if they say nothing."""
    main, critical = configured_thresholds()
    if main is None and critical is None:
        return _DEFAULT
    if main is None:
        assert critical is not None
        main = max(1, int(critical / CRITICAL_OVER_MAIN))
    return Thresholds(main, critical)
