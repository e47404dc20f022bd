"""Steady, spike, leak or thrashing: what a series of readings looks like, with the evidence."""

from collections.abc import Sequence
from itertools import combinations, pairwise
from statistics import median

__all__ = ["Pattern", "classify", "robust_slope"]

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
