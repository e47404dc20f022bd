"""What a monitor knows and what it has told: the part of `PressureMonitor` that decides, without reading, calling or waiting.

    figures --> update() --> level, entered, settled          what is
                next_event() --> a rise, a reminder, a relief  what is still to be told
                answered(), told                               what was

A rise is told while what is entered lies above what was answered. So a level that rose while callbacks were suppressed is told
later, and memory that callbacks made room for is a new rise when it is short again, also within the dwell that still holds its
level. Then the event says what is entered, not what is held.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from mempool.pressure.levels import Level, PressureEvent, Thresholds
from mempool.pressure.machine import Decision, Machine
from mempool.pressure.trend import Forecast
from mempool.pressure.watching import Watched

__all__ = ["Kind", "State"]

Kind = Literal["rise", "reminder", "relief"]

_ROUNDS_KEPT = 120
_CHANGES_KEPT = 64
_SLOWEST_REMINDER = 300.0


class State:
    """Level and events of one monitor; its owner holds a lock around every call."""

    def __init__(self, reminder: float) -> None:
        self.level = self.entered = self.settled = Level.NORMAL
        self.simulated = Level.NORMAL
        self.now = 0.0
        self.rises = self.reliefs = self.reminders = 0
        self._machine = Machine()
        self._real = Decision(Level.NORMAL, Level.NORMAL, Level.NORMAL, Level.NORMAL)
        self._told = self._answered = Level.NORMAL
        self._told_at = 0.0
        self._reminder = self._gap = reminder
        self._decider: Watched | None = None
        self._forecast: Forecast | None = None
        self._number = 0
        self._rounds: deque[tuple[int, PressureEvent]] = deque(maxlen=_ROUNDS_KEPT)
        self._changes: deque[tuple[int, PressureEvent]] = deque(maxlen=_CHANGES_KEPT)

    # ---- what is ----

    def update(
        self, watched: Sequence[Watched], thresholds: Thresholds, hysteresis: float, dwell: float, now: float
    ) -> None:
        """Take in what every source has read."""
        verdicts = [(one.latch, one.verdict(thresholds, hysteresis)) for one in watched]
        self._real = self._machine.step(verdicts, now, dwell)
        self._decide(watched, thresholds)
        self._now(now)
        self._settle()

    def simulate(self, level: Level, now: float) -> None:
        """From now on the level is at least this one; at once, also downwards."""
        self.simulated = level
        self._now(now)
        self._settle()

    def _now(self, now: float) -> None:
        self.now = now
        if not now >= self._told_at:  # nor after a NaN
            self._told_at = now

    def _decide(self, watched: Sequence[Watched], thresholds: Thresholds) -> None:
        """Find the source that stands highest; a relief is told of the one that stood so before."""
        forecasts = [found for one in watched if (found := one.forecast(thresholds)) is not None]
        self._forecast = min(forecasts, default=None)
        highest = max(watched, key=lambda one: one.rank(thresholds), default=None)
        if highest is not None and (self._decider not in watched or highest.latch.level or not self._real.previous):
            self._decider = highest

    def _settle(self) -> None:
        previous, self.level = self.level, max(self._real.level, self.simulated)
        self.entered = max(self._real.entered, self.simulated)
        self.settled = max(self._real.settled, self.simulated)
        self._answered = min(self._answered, self.level)
        self._number += 1  # a clock may stand still, or go back
        (self._rounds if self.level == previous else self._changes).append((self._number, self._event(previous)))

    # ---- what is to be told ----

    def next_event(self) -> tuple[Kind, PressureEvent] | None:
        """Return what is to be told now; None if callbacks know it all. What is returned counts as told."""
        previous = self._told
        if self.entered > self._answered:
            self.rises += 1
            self._gap = self._reminder
            return "rise", self._rise(previous if self.entered > previous else self._answered)
        if self.level < previous:
            self.reliefs += 1
            self._gap = self._reminder
            return "relief", self._tell(previous)
        if self.level and self.settled == self.level and self.now - self._told_at >= self._gap:
            self.reminders += 1
            self._gap = min(2 * self._gap, max(_SLOWEST_REMINDER, self._reminder))
            self._answered = self.level
            return "reminder", self._tell(previous)
        return None

    def _rise(self, previous: Level) -> PressureEvent:
        """Tell what is entered: a level above it that is only held asks nobody."""
        event = replace(self._tell(previous), level=self.entered)
        self._answered = self.entered
        return event

    def _tell(self, previous: Level) -> PressureEvent:
        self._told, self._told_at = self.level, self.now
        return self._event(previous)

    def answered(self, level: Level) -> None:
        """Callbacks freed memory, down to this level: what enters a higher one is a new rise."""
        self._answered = min(self._answered, level)

    def missed(self, event: PressureEvent) -> None:
        """Tell it again: some callbacks were not told of it."""
        self._told, self._answered = event.previous, min(self._answered, event.previous)

    # ---- what is shown ----

    @property
    def forecast(self) -> Forecast | None:
        """Of the source that reaches its limit first."""
        return self._forecast

    def history(self) -> tuple[PressureEvent, ...]:
        """Return the last rounds, and the last changes of the level, oldest first."""
        return tuple(event for _, event in sorted((*self._changes, *self._rounds), key=lambda kept: kept[0]))

    def _event(self, previous: Level) -> PressureEvent:
        decider = self._decider
        if self.simulated > self._real.level or decider is None:
            name = "simulated" if self.simulated else "none"
            return PressureEvent(self.level, previous, name, None, None, None, self._forecast, self.now)
        used, limit = (None, None) if decider.reading is None else (decider.reading.used, decider.reading.limit)
        ratio = used / limit if used is not None and limit else None
        return PressureEvent(self.level, previous, decider.name, used, limit, ratio, self._forecast, self.now)
