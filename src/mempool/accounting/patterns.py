"""Steady, spike, leak or thrashing: what a series of readings looks like, with the evidence."""

from collections.abc import Sequence
from itertools import combinations, pairwise
from statistics import median
from typing import Self

__all__ = ["Pattern", "classify", "robust_slope"]

_FEWEST = 5  # readings
_THRASHING = 4  # legs up and down
_TROUGHS = 3
_MOST_POINTS = 120  # pairs grow with the square


def robust_slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Return the growth per unit of time: the median over the slopes of all pairs.

    A quarter of the readings may be anything at all without moving it far (H. Theil, 1950; P. K. Sen, 1968).

    Parameters
    ----------
    times, values : sequence of float
        Readings, in order of time. Of very many, evenly spaced ones are taken.

    Returns
    -------
    float
        0.0 where there are not two moments.

    Examples
    --------
    >>> robust_slope([0, 1, 2, 3, 4], [10, 20, 900, 40, 50])
    10.0
    """
    step = -(-len(values) // _MOST_POINTS) or 1
    points = list(zip(times, values, strict=True))[::step]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if b[0] > a[0]]
    return float(median(slopes)) if slopes else 0.0


class Pattern(str):
    """What a series looks like: ``"steady"``, ``"spike"``, ``"leak"`` or ``"thrashing"``, equal to that word.

    Attributes
    ----------
    evidence : str
        The figures that decided.

    Examples
    --------
    >>> found = classify(range(6), [100, 110, 120, 130, 140, 150], noise=20)
    >>> found == "leak", found.evidence
    (True, 'grows by 10 bytes a second, 50 bytes over 6 readings')
    """

    __slots__ = ("evidence",)

    evidence: str

    def __new__(cls, name: str, evidence: str = "") -> Self:
        """Make one of a word."""
        made = super().__new__(cls, name)
        made.evidence = evidence
        return made

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (str(self), self.evidence)


def classify(times: Sequence[float], values: Sequence[float], *, noise: float, unit: str = "bytes") -> Pattern:
    """Tell what readings of memory look like.

    Parameters
    ----------
    times, values : sequence of float
        Seconds and bytes (or whatever is counted), in order of time.
    noise : float
        Change that means nothing.
    unit : str
        What is counted, for the evidence.

    Returns
    -------
    Pattern
        ``steady``
            All within the noise, or a step to another level that then lasts.
        ``leak``
            Grows all the way; or falls back again and again, but to a higher level each time.
        ``thrashing``
            Rises and falls at least twice, by a third of the whole range each time.
        ``spike``
            Rose once and came back.
    """
    if len(values) < _FEWEST:
        return Pattern("steady", f"{len(values)} readings are too few to tell")
    swing = max(noise, (max(values) - min(values)) / 3)
    turns = _turns(values, swing)
    heights = [values[at] for at in turns]
    legs = len(turns) - 1
    if legs <= 1 and _steady_growth(values, noise):
        slope = robust_slope(times, values)
        return Pattern(
            "leak",
            f"grows by {slope:,.0f} {unit} a second, {values[-1] - values[0]:,.0f} {unit} over {len(values)} readings",
        )
    troughs = heights[::2] if legs and heights[0] < heights[1] else heights[1::2]
    if len(troughs) >= _TROUGHS and _rise(troughs) and troughs[-1] - troughs[0] > noise:
        return Pattern(
            "leak",
            f"falls back {len(troughs) - 1} times, each time to a higher level: {troughs[-1] - troughs[0]:,.0f} {unit} in all",
        )
    if legs >= _THRASHING:
        return Pattern("thrashing", f"{legs} swings of {swing:,.0f} {unit} and more within {len(values)} readings")
    if legs >= 2 and max(heights[1:-1]) > heights[0]:
        return Pattern(
            "spike",
            f"rose by {max(heights) - heights[0]:,.0f} {unit} and fell by {max(heights) - min(heights[2:]):,.0f}",
        )
    return Pattern(
        "steady",
        f"ends {values[-1] - values[0]:+,.0f} {unit} from where it began, within {max(values) - min(values):,.0f} {unit}",
    )


def _rise(levels: Sequence[float]) -> bool:
    return all(after > before for before, after in pairwise(levels))


def _steady_growth(values: Sequence[float], noise: float) -> bool:
    """Return whether each third of the readings grew, and not one of them alone.

    By their number, not by the clock: a reading may be taken after each piece of work, however long that took.
    """
    if _growth(values) <= noise:
        return False
    cuts = [len(values) * part // 3 for part in range(4)]
    grown = [_growth(values[a:b]) for a, b in pairwise(cuts)]
    if min(grown) <= 0 or min(grown) * 6 <= max(grown):
        return False
    # Around a step between two thirds, the noise of level ones may grow as evenly; but not at half the pace of the whole.
    pace = sum(grown) / (len(values) - 3)
    rise = (median(values[cuts[2] :]) - median(values[: cuts[1]])) / (len(values) * 2 / 3)
    return pace * 2 > rise


def _growth(values: Sequence[float]) -> float:
    return robust_slope(range(len(values)), values) * (len(values) - 1)


def _turns(values: Sequence[float], swing: float) -> list[int]:
    """Return where the series begins, turns by at least `swing`, and ends its last leg; only the first if there is no leg."""
    turns, upward = _first_leg(values, swing)
    if not turns:
        return [0]
    extreme = turns[-1]
    for at in range(extreme, len(values)):
        beyond = (values[at] - values[extreme]) * (1 if upward else -1)
        if beyond >= 0:
            extreme = at
        elif -beyond >= swing:
            turns.append(extreme)
            extreme, upward = at, not upward
    return [*turns, extreme]


def _first_leg(values: Sequence[float], swing: float) -> tuple[list[int], bool]:
    """Return where the first leg begins, and whether it goes up."""
    low = high = 0
    for at, value in enumerate(values):
        low, high = (at if value < values[low] else low), (at if value > values[high] else high)
        if values[high] - values[low] >= swing:
            return [min(low, high)], low < high
    return [], False
