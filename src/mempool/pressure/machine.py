"""From readings to levels: a pure state machine. Time and readings come in, a decision comes out.

    reading --> Latch (one per source) --+
    reading --> Latch -------------------+--> Machine: the highest of them
    reading --> Latch -------------------+

A latch enters a level at once at its threshold, and leaves it at threshold x (1 - hysteresis), never before `dwell` seconds in
it. The machine is as high as its highest latch, and also keeps each level for `dwell` seconds. Each source has a latch of its
own, so that a figure which stands between the two thresholds of a level never holds a level that another source entered.

Two levels are told apart: the *level*, which dwell and hysteresis hold, and what is *entered*, which the figures alone say at
this moment. A rise that must be answered is one of what is entered: memory that was made room for and is short again within the
dwell is a new rise.

A clock that goes backwards begins the dwell anew: no level is held longer than one dwell after the jump.
"""

from collections.abc import Iterable
from typing import NamedTuple

from mempool.pressure.levels import Level, Thresholds

__all__ = ["Decision", "Latch", "Machine", "Verdict"]


class Verdict(NamedTuple):
    """What one reading says: the level its figures enter, and the one they do not yet leave."""

    entered: Level
    kept: Level


SILENT = Verdict(Level.NORMAL, Level.NORMAL)


def judge(thresholds: Thresholds, hysteresis: float, figure: float | None, told: Level | None) -> Verdict:
    """Judge a figure, and the level that a source tells by itself; the higher one counts."""
    floor = told or Level.NORMAL
    if figure is None:
        return Verdict(floor, floor)
    return Verdict(max(floor, thresholds.entered(figure)), max(floor, thresholds.kept(figure, hysteresis)))


class Latch:
    """A level, and since when: rises at once, falls no lower than what is kept, and not before the dwell is over."""

    __slots__ = ("level", "since")

    def __init__(self) -> None:
        self.level = Level.NORMAL
        self.since = 0.0

    def goal(self, verdict: Verdict) -> Level:
        """Return where a verdict leads, were it not for the dwell."""
        return max(verdict.entered, min(verdict.kept, self.level))

    def step(self, verdict: Verdict, now: float, dwell: float) -> Level:
        """Take in a verdict; the level after it."""
        if not now >= self.since:  # nor after a NaN
            self.since = now
        goal = self.goal(verdict)
        if goal > self.level or (goal < self.level and now - self.since >= dwell):
            self.level, self.since = goal, now
        return self.level


class Decision(NamedTuple):
    """What the machine made of one round.

    Attributes
    ----------
    level, previous : Level
        After this round and before.
    entered : Level
        What the figures alone say, without dwell and hysteresis.
    settled : Level
        Where the level would be without the dwell.
    """

    level: Level
    previous: Level
    entered: Level
    settled: Level


class Machine:
    """The level of a monitor, of those of its sources."""

    __slots__ = ("_whole",)

    def __init__(self) -> None:
        self._whole = Latch()

    @property
    def level(self) -> Level:
        """The level after the last round."""
        return self._whole.level

    def step(self, rounds: Iterable[tuple[Latch, Verdict]], now: float, dwell: float) -> Decision:
        """Take in what every source said at one moment."""
        previous = self.level
        entered = settled = highest = Level.NORMAL
        for latch, verdict in rounds:
            entered = max(entered, verdict.entered)
            settled = max(settled, latch.goal(verdict))
            highest = max(highest, latch.step(verdict, now, dwell))
        level = self._whole.step(Verdict(highest, highest), now, dwell)
        return Decision(level, previous, entered, settled)
