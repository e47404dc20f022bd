"""History of readings, their trend, the forecast, and how often to look.

The trend is the median of the slopes between all pairs of the last readings (Theil-Sen): a single garbage collection or a single
large array does not turn it. How sure it is: the share by which rising pairs outnumber falling ones, less while there are few
readings.
"""

from collections import deque
from statistics import median

__all__ = ["IN_A_HURRY", "Forecast", "Trend", "next_interval"]

_KEPT = 12
_ENOUGH = 6  # readings from which on their number takes nothing from how sure a trend is

_MOMENT = 1e-9  # seconds; slopes between readings that are nearer would overflow

_FASTEST = 0.01
_SLOWEST = 5.0
_SLOWEST_RAISED = 0.5
_AT_REST = 2500  # at rest a poll may cost one part in so many of a core
IN_A_HURRY = 20  # and so many while memory runs out
_LOOKS_AHEAD = 4  # polls between now and the next threshold, if memory goes on growing as it does


class Forecast(float):
    """Seconds to the limit; an ordinary `float` that also says how sure it is.

    Attributes
    ----------
    confidence : float
        0 to 1: how steadily memory grew.
    rate : float
        Growth in bytes per second.
    source : str
        Which source it is about.
    """

    confidence: float
    rate: float
    source: str

    def __new__(cls, seconds: float, confidence: float = 1.0, rate: float = 0.0, source: str = "") -> "Forecast":
        """Make one of seconds."""
        made = super().__new__(cls, seconds)
        made.confidence, made.rate, made.source = confidence, rate, source
        return made

    def __repr__(self) -> str:
        return f"Forecast({float(self):.3g}, confidence={self.confidence:.2f}, rate={self.rate:.3g}, source={self.source!r})"


class Trend:
    """The last readings of one source."""

    __slots__ = ("_known", "_samples")

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=_KEPT)
        self._known: tuple[float, float] | None = None

    def add(self, now: float, used: int) -> None:
        """Take in a reading; a clock that went back makes the earlier ones worthless. One at the same moment replaces the last."""
        if self._samples and now - self._samples[-1][0] < _MOMENT:  # late times plus so little are themselves
            if now < self._samples[-1][0]:
                self._samples.clear()
            else:
                self._samples.pop()
        self._samples.append((now, used))
        self._known = None

    def clear(self) -> None:
        """Forget all."""
        self._samples.clear()
        self._known = None

    def quick(self) -> float:
        """Return bytes per second as the last two readings have it: nervous, where `slope` is calm."""
        if len(self._samples) < 2:
            return 0.0
        (then, before), (now, used) = self._samples[-2], self._samples[-1]
        return (used - before) / (now - then)

    def slope(self) -> tuple[float, float]:
        """Return bytes per second, and how sure that is, from 0 to 1."""
        if self._known is None:
            self._known = self._measure()
        return self._known

    def _measure(self) -> tuple[float, float]:
        points = list(self._samples)
        if len({used for _, used in points}) < 2:
            return 0.0, 0.0
        slopes = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(points) for b in points[i + 1 :]]
        rising, falling = sum(s > 0 for s in slopes), sum(s < 0 for s in slopes)
        agreed = abs(rising - falling) / len(slopes)
        return median(slopes), agreed * min(1.0, len(points) / _ENOUGH)

    def seconds_until(self, goal: float, used: int, source: str) -> Forecast | None:
        """Return when `goal` bytes are reached; None if the trend does not lead there."""
        rate, confidence = self.slope()
        if rate <= 0:
            return None
        return Forecast(max(0.0, goal - used) / rate, confidence, rate, source)


def next_interval(seconds: float | None, cost: float, *, raised: bool) -> float:
    """Return seconds until the next poll.

    Parameters
    ----------
    seconds : float or None
        Until the next threshold, as memory grows now; None if it does not grow.
    cost : float
        Seconds that a poll takes.
    raised : bool
        Whether the level is above NORMAL: then how long it lasts matters to those who wait.
    """
    slow = min(_SLOWEST_RAISED if raised else _SLOWEST, max(0.1, _AT_REST * cost))
    if seconds is None:
        return slow
    return min(slow, max(_FASTEST, IN_A_HURRY * cost, seconds / _LOOKS_AHEAD))
