"""What a monitor and those who shrink for it tell each other: whether it is enough, and when they may grow back.

    rise --> callbacks --> Shrinker --> cache.shrink     "is it enough?" after each step: a fresh reading
                                           |
    poll <-- Regrowth <--------------------+             it holds less from now on than it may
      level NORMAL and nothing grows: a step back

Who shrinks is told who asks by a variable of the thread: so a cache that is shrunk by hand, by a cleanup or by an account
keeps its bound, as nobody would give it back. Rejected: a context variable. Tasks that a callback creates copy it, and would ask
for the monitor as long as they live. And a thread that lets caches grow: a monitor polls as often as its readings change, and
what they say is what growing back depends on.
"""

import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from mempool.pressure.levels import Level
from mempool.pressure.machine import judge

if TYPE_CHECKING:
    from mempool.pressure.monitor import PressureMonitor
    from mempool.pressure.watching import Watched

__all__ = ["Growing", "Regrowth", "asking", "fresh_level", "grow_later", "is_relieved"]

_log = logging.getLogger("mempool.pressure")

_SURE = 0.5  # of a trend's confidence: three readings in a row that rise
_SHARE = 100  # growth by less than one of so many parts a minute is flat: all programs creep


class _Here(threading.local):
    """Who asks for room in this thread."""

    monitor: "PressureMonitor | None" = None


_here = _Here()


class Growing(Protocol):
    """What holds less than it may since a monitor had it shrink."""

    def _grow(self, whole: bool = False, /) -> bool:
        """Take a step back to its bound, or all of them; whether it is there."""


@contextmanager
def asking(monitor: "PressureMonitor | None") -> Iterator[None]:
    """Have those who shrink inside know who asks; None: it is no monitor, whoever called."""
    before, _here.monitor = _here.monitor, monitor
    try:
        yield
    finally:
        _here.monitor = before


def is_relieved() -> bool:
    """Whether a monitor asks for room, and by a fresh reading has enough: below where caches give anything."""
    monitor = _here.monitor
    return monitor is not None and fresh_level(monitor) < Level.HIGH


def grow_later(item: Growing) -> bool:
    """Have the monitor that asks for room let this grow back later; False if none asks, so that nobody would."""
    monitor = _here.monitor
    if monitor is None:
        return False
    monitor._regrowth.add(item)
    return True


def fresh_level(monitor: "PressureMonitor") -> Level:
    """Read every source and say where the level would be, dwell aside; what the monitor knows and shows stays as it is.

    A source that cannot be read stands where it stood.
    """
    with monitor._reading:
        answers = [(one, one.read()) for one in monitor._watched]
    with monitor._lock:
        level = monitor._state.simulated
        for one, reading in answers:
            if isinstance(reading, Exception):
                level = max(level, one.latch.level)
                continue
            figure = monitor._good.figure(reading.used, reading.limit, one.source.scope)
            verdict = judge(monitor._good, monitor._hysteresis, figure, reading.level)
            level = max(level, one.latch.goal(verdict))
    return level


def _is_flat(watched: "Watched") -> bool:
    """Whether the readings of a source do not grow, as far as that is sure."""
    reading = watched.reading
    if reading is None or reading.used is None:
        return True
    rate, confidence = watched.trend.slope()
    return confidence < _SURE or rate * 60 * _SHARE <= reading.used


class Regrowth:
    """Those who hold less than they may since one monitor had them shrink. They are held weakly.

    Single steps of a dict need no lock.
    """

    def __init__(self) -> None:
        self._items: dict[int, weakref.ref[Growing]] = {}

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Growing) -> None:
        """From now on it grows back; twice is as good as once."""
        key, items = id(item), self._items

        def gone(one: weakref.ref[Growing]) -> None:
            if items.get(key) is one:  # not another one that lies where it lay
                del items[key]

        known = items.get(key)
        if known is None or known() is not item:
            items[key] = weakref.ref(item, gone)

    def step(self, monitor: "PressureMonitor") -> None:
        """Let all grow by a step, if nothing presses and nothing grows."""
        if not self._items:
            return
        with monitor._lock:
            calm = monitor._state.level == Level.NORMAL and all(map(_is_flat, monitor._watched))
        if calm:
            self._let_grow(whole=False)

    def release(self) -> None:
        """Give all of them back what they may hold: nobody polls any more."""
        self._let_grow(whole=True)

    def _let_grow(self, *, whole: bool) -> None:
        for key, reference in list(self._items.items()):
            item = reference()
            if item is None:
                continue
            try:
                done = item._grow(whole)
            except Exception:
                _log.exception("%r could not grow back; it is left as it is", item)
                done = True
            if done and self._items.get(key) is reference:
                del self._items[key]

    def __del__(self) -> None:
        self.release()
