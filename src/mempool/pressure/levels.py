"""The words of this package: levels, the thresholds between them, and the event that says one was crossed."""

from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Level", "PressureEvent", "Thresholds"]


class Level(IntEnum):
    """How near memory is to its limit."""

    NORMAL = 0
    ELEVATED = 1
    HIGH = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True)
class PressureEvent:
    """A level was entered or left, or still lasts.

    Attributes
    ----------
    level, previous : Level
        Now, and before.
    source : str
        Name of the source that decided.
    used, limit : int or None
        Bytes, as that source read them. None where it tells a level alone.
    ratio : float or None
        Used over limit.
    forecast : float or None
        Seconds to the limit as memory grows now, None if it does not grow.
    time : float
        Of the monitor's clock, in seconds.
    """

    level: Level
    previous: Level
    source: str
    used: int | None
    limit: int | None
    ratio: float | None
    forecast: float | None
    time: float


class Thresholds:
    """Where levels begin."""
