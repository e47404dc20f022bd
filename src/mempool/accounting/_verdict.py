r"""Does a series of readings, taken over several rounds of calls, grow as leaks do: on and on, and not slower and slower.

::

    leak           cache that fills      cache, random keys     random walk          one big step
          /             ____                    ___--            /\    /                ________
        /              /                    _-                  /  \__/                |
      /               /                    /                                       ____|
    yes            no: last round flat   no: ever slower      no: as often down    no: the median slope is 0

A test of significance over one run (Mann-Kendall, say) was not taken: a random walk passes it often, and a cache always.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from mempool.accounting.patterns import robust_slope

__all__ = ["Plan", "contradicts", "grows", "in_steps", "may_grow", "rate", "slope_and_error"]

_UPWARD = 0.75  # of the steps that change anything, so many go up
_KEPT = 0.5  # of what came, so much stays: a queue that is emptied now and then mostly grows, too
_SLOWED = 0.5  # a last round that grew by less than this part of the first is that of a cache,
_SLOWING = 0.75  # or by less than this, if each round was slower than the one before
_BLOCKS = 12


@dataclass(frozen=True, slots=True)
class Plan:
    """How the calls of one round are cut into blocks; a reading follows each block.

    Attributes
    ----------
    blocks : tuple of int
        Calls in each.
    """

    blocks: tuple[int, ...]

    @classmethod
    def of(cls, iterations: int, blocks: int = _BLOCKS) -> "Plan":
        """Spread calls as evenly as can be."""
        blocks = min(blocks, iterations)
        return cls(tuple(iterations * (i + 1) // blocks - iterations * i // blocks for i in range(blocks)))

    @property
    def calls(self) -> int:
        """Calls of one round."""
        return sum(self.blocks)

    def times(self, readings: int) -> list[int]:
        """Return how many calls came before each reading, the first of which came before any."""
        at = [0]
        while len(at) < readings:
            at.append(at[-1] + self.blocks[(len(at) - 1) % len(self.blocks)])
        return at

    def rounds(self, values: Sequence[int]) -> list[Sequence[int]]:
        """Cut a series into rounds; the last reading of one is the first of the next."""
        size = len(self.blocks)
        return [values[start : start + size + 1] for start in range(0, len(values) - 1, size)]

    def rates(self, values: Sequence[int]) -> list[float]:
        """Return the growth per call in each round."""
        times = self.times(len(self.blocks) + 1)
        return [robust_slope(times[: len(part)], part) for part in self.rounds(values)]


def rate(plan: Plan, values: Sequence[int]) -> float:
    """Return the growth per call over all rounds."""
    return robust_slope(plan.times(len(values)), values)


def may_grow(plan: Plan, values: Sequence[int], tolerance: float) -> bool:
    """Return whether it is worth another round: each one grew so far."""
    return min(plan.rates(values)) > tolerance


def grows(plan: Plan, values: Sequence[int], tolerance: float) -> bool:
    """Return whether each round grew by more than the tolerance per call, steadily, and not ever slower."""
    rates = plan.rates(values)
    steps = [after - before for before, after in pairwise(values) if after != before]
    upward = sum(step > 0 for step in steps)
    gained = sum(step for step in steps if step > 0)
    return (
        min(rates) > tolerance
        and upward >= _UPWARD * len(steps)
        and values[-1] - values[0] >= _KEPT * gained
        and not _slows(rates)
        and _still(values, upward / (len(values) - 1), len(plan.blocks) // 4)
    )


def _slows(rates: Sequence[float]) -> bool:
    falling = all(after < before for before, after in pairwise(rates))
    return rates[-1] < rates[0] * (_SLOWING if falling and len(rates) > 2 else _SLOWED)


def _still(values: Sequence[int], density: float, tail: int) -> bool:
    """Return whether it grew in the last readings too, if it grew so often before that this can be asked."""
    return tail * density < 2 or values[-1] > values[-1 - tail]


def in_steps(nbytes: Sequence[int], count: Sequence[int]) -> int:
    """Return in how many steps it grew, if so few objects came that they were made larger in place. 0 if anything got smaller."""
    steps = [after - before for before, after in pairwise(nbytes) if after != before]
    return len(steps) if steps and min(steps) > 0 and count[-1] - count[0] <= 1 and max(count) <= count[-1] else 0


def contradicts(plan: Plan, totals: Sequence[int], traced: float) -> bool:
    """Return whether the total stayed where it was, although new memory was traced: then older memory was given back for it.

    Only a total that is quiet enough to tell is believed.
    """
    if len(totals) < 4 or traced <= 0:
        return False
    slope, error = slope_and_error(plan, totals)
    return slope + 3 * error < 0.2 * traced


def slope_and_error(plan: Plan, values: Sequence[int]) -> tuple[float, float]:
    """Return the growth per call, and how far off it may be, judged by how far the readings lie from the line."""
    times = plan.times(len(values))
    slope = robust_slope(times, values)
    base = [value - slope * time for value, time in zip(values, times, strict=True)]
    middle = median(base)
    noise = 1.5 * median(abs(value - middle) for value in base)
    return slope, 3.5 * noise / (
        times[-1] * len(values) ** 0.5
    )  # of a straight line through so many evenly spaced points
