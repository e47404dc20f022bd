"""The words of this package: levels, the thresholds between them, and the event that says one was crossed."""

from dataclasses import dataclass
from enum import IntEnum
from math import ceil
from typing import Literal

from mempool.units import parse_size, shown

__all__ = ["Level", "PressureEvent", "Thresholds"]

# A product of decimal fractions may lie a rounding above or below the figure that was meant.
_ROUNDING = 1e-9

# Bytes that no memory has.
_TOO_MANY = 1 << 64

# Where CRITICAL begins if only `main` is given: as far above HIGH as 95 % is above 76 %.
CRITICAL_OVER_MAIN = 1.25


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
        Now, and before. A rise tells the level that was entered, also where a higher one still lasts its dwell.
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


def _share(value: object, name: str) -> float:
    """Return a share above 0 and up to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a share such as 0.8, not {value!r}")
    if not 0 < value <= 1:  # nor NaN
        raise ValueError(
            f"{name} must be above 0 and at most 1, got {shown(value) if isinstance(value, int) else value!r}"
        )
    return float(value)


def _bytes(value: object, name: str) -> int:
    """Return a size that memory can have."""
    size = parse_size(value, name)
    if size >= _TOO_MANY:
        raise OverflowError(f"{name} of {shown(size)} cannot be addressed")
    return size


class Thresholds:
    """Where levels begin: in bytes, or (`fractions`) in shares of the limit that a source names.

    Bytes judge what this program itself took (process, account and custom sources); shares judge every source that has a limit.

    Parameters
    ----------
    main : int or str
        HIGH begins here.
    critical : int or str, optional
        CRITICAL begins here; a quarter above `main` if not given.
    preventive : float
        ELEVATED begins at this share of `main`.

    Raises
    ------
    TypeError, ValueError
        For what is no size or no share, a size of zero, or thresholds that fall.
    OverflowError
        For a size that no memory has.

    Examples
    --------
    >>> from mempool.pressure import Thresholds
    >>> Thresholds(main="800MB", critical="1GB")
    Thresholds(main=800000000, critical=1000000000, preventive=0.8)
    >>> Thresholds.fractions(high=0.9)
    Thresholds.fractions(elevated=0.75, high=0.9, critical=0.95)
    """

    __slots__ = ("_shown", "absolute", "points")

    #: Whether the points are bytes.
    absolute: bool
    #: Where ELEVATED, HIGH and CRITICAL begin.
    points: tuple[float, float, float]

    def __init__(self, main: int | str, critical: int | str | None = None, preventive: float = 0.8) -> None:
        high = _bytes(main, "main")
        if high == 0:
            raise ValueError(f"main must be more than 0 bytes, got {main!r}")
        top = int(high * CRITICAL_OVER_MAIN) if critical is None else _bytes(critical, "critical")
        if top < high:
            raise ValueError(f"critical must not be below main, got {critical!r} and {main!r}")
        share = _share(preventive, "preventive")
        self.absolute = True
        self.points = (max(1, ceil(high * share - _ROUNDING * high)), high, top)
        self._shown = f"Thresholds(main={high}, critical={top}, preventive={share})"

    @classmethod
    def fractions(cls, elevated: float = 0.75, high: float = 0.85, critical: float = 0.95) -> "Thresholds":
        """Return thresholds in shares of the smallest limit that binds.

        Raises
        ------
        TypeError, ValueError
            For what is no number above 0 and up to 1, and for shares that fall.
        """
        points = (_share(elevated, "elevated"), _share(high, "high"), _share(critical, "critical"))
        if not points[0] <= points[1] <= points[2]:
            raise ValueError(f"elevated, high and critical must not fall, got {elevated!r}, {high!r}, {critical!r}")
        made = cls.__new__(cls)
        made.absolute, made.points = False, points
        made._shown = f"Thresholds.fractions(elevated={points[0]}, high={points[1]}, critical={points[2]})"
        return made

    def figure(self, used: int | None, limit: int | None, scope: Literal["own", "shared"]) -> float | None:
        """Return what is held against the points; None if a source of this scope, or without these figures, is not judged."""
        if used is None:
            return None
        if self.absolute:
            return used if scope == "own" else None
        if limit is None or used == limit == 0:
            return None
        return used / limit if limit > 0 else 1.0

    def bytes_at(self, level: Level, limit: int | None) -> float | None:
        """Return the bytes at which a level above NORMAL begins for a source with this limit; None if it never does."""
        point = self.points[level - 1]
        if self.absolute:
            return point
        return None if limit is None else point * limit

    def entered(self, figure: float) -> Level:
        """Return the highest level that begins at or below a figure."""
        return Level(sum(figure >= point for point in self.points))

    def kept(self, figure: float, hysteresis: float) -> Level:
        """Return the highest level that is not yet left at a figure: one is left at its point x (1 - hysteresis)."""
        share = (1 - hysteresis) * (1 + _ROUNDING)
        return Level(sum(figure >= point or figure > point * share for point in self.points))

    def __repr__(self) -> str:
        return self._shown

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Thresholds):
            return NotImplemented
        return (self.absolute, self.points) == (other.absolute, other.points)

    def __hash__(self) -> int:
        return hash((self.absolute, self.points))
