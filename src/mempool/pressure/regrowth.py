"""What a monitor and those who shrink for it tell each other: whether it is enough, and when they may grow back.

    rise --> callbacks --> Shrinker --> cache.shrink     "is it enough?" after each step: a fresh reading
                                           |
    poll <-- Regrowth <--------------------+             it holds less from now on than it may
      level NORMAL and nothing grows: a step back

What several monitors had shrunk grows back at the polls of one of them, the last that is calm: the others leave it to that one.
But who runs leaves nothing to a monitor that does not, which may never be polled again.

Who shrinks is told who asks by a variable of the thread: so a cache that is shrunk by hand, by a cleanup or by an account
keeps its bound, as nobody would give it back. Rejected: a context variable. Tasks that a callback creates copy it, and would ask
for the monitor as long as they live. And a thread that lets caches grow: a monitor polls as often as its readings change, and
what they say is what growing back depends on.
"""

import logging
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from mempool.pressure.levels import Level
from mempool.pressure.machine import judge

if TYPE_CHECKING:
    from mempool.pressure.monitor import PressureMonitor
    from mempool.pressure.watching import Watched

__all__ = ["Growing", "Regrowth", "asking", "fresh_level", "grow_later", "is_asked", "is_relieved"]

_log = logging.getLogger("mempool.pressure")
_T = TypeVar("_T")

_SURE = 0.5  # of a trend's confidence: three readings in a row that rise
_SHARE = 100  # growth by less than one of so many parts a minute is flat: all programs creep


class _Here(threading.local):
    """Who asks for room in this thread, and how often that monitor had been stopped when it began to."""

    monitor: "PressureMonitor | None" = None
    stops = 0


_here = _Here()


class Growing(Protocol):
    """What holds less than it may since a monitor had it shrink."""

    def _grow(self, whole: bool = False, /) -> bool:
        """Take a step back to its bound, or all of them; whether it is there."""


def asking(monitor: "PressureMonitor | None", work: Callable[[], _T]) -> _T:
    """Do work in which those who shrink know who asks; None: it is no monitor, whoever called.

    No context manager: Ctrl-C may come between its `__enter__` and the block, or before the first line of its `__exit__`.
    """
    before = _here.monitor, _here.stops
    try:
        _here.monitor, _here.stops = monitor, 0 if monitor is None else monitor._regrowth.stops
        return work()
    finally:
        _here.monitor, _here.stops = before


def is_relieved() -> bool:
    """Whether a monitor asks for room, and by a fresh reading has enough: below where caches give anything."""
    monitor = _here.monitor
    return monitor is not None and fresh_level(monitor) < Level.HIGH


def is_asked() -> bool:
    """Whether a monitor asks for room: it will let grow back what is lowered now."""
    return _here.monitor is not None


def grow_later(item: Growing) -> bool:
    """Have the monitor that asks for room let this grow back later; False if none asks, so that nobody would.

    To be called when it is lowered: by a monitor that was stopped meanwhile it is given all back at once.
    """
    monitor = _here.monitor
    if monitor is None:
        return False
    monitor._regrowth.add(item)
    if monitor._regrowth.stops != _here.stops:  # by a callback, or an entry that left: nobody may poll any more
        monitor._regrowth.give_back(item)
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
    """Those who hold less than they may since one monitor had them shrink. They are held weakly, as the monitor is.

    Single steps of a dict need no lock.
    """

    _everyone: ClassVar["dict[weakref.ref[Regrowth], None]"] = {}

    def __init__(self, monitor: "PressureMonitor | None" = None) -> None:
        self._monitor = None if monitor is None else weakref.ref(monitor)
        self._items: dict[int, weakref.ref[Growing]] = {}
        self.stops = 0
        everyone = self._everyone
        me = weakref.ref(self, lambda one: everyone.pop(one, None))
        everyone[me] = None

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
        self.stops += 1
        self._let_grow(whole=True)

    def give_back(self, item: Growing) -> None:
        """Give one of them back what it may hold."""
        self._let_one_grow(item, whole=True)

    def _let_grow(self, *, whole: bool) -> None:
        for reference in list(self._items.values()):
            item = reference()
            if item is not None:
                self._let_one_grow(item, whole=whole)

    def _let_one_grow(self, item: Growing, *, whole: bool) -> None:
        if self._leave(item):
            return
        done = False
        try:
            self._items.pop(id(item), None)  # before: another thread may have it shrink again meanwhile
            done = item._grow(whole)
        except Exception:
            _log.exception("%r could not grow back; it is left as it is", item)
            done = True
        finally:
            if not done:
                self.add(item)

    def _has(self, item: Growing) -> bool:
        reference = self._items.get(id(item))
        return reference is not None and reference() is item

    def _runs(self) -> bool:
        """Whether its monitor polls on its own."""
        monitor = None if self._monitor is None else self._monitor()
        runner = None if monitor is None else monitor._runner
        return runner is not None and runner.polls

    def _leave(self, item: Growing) -> bool:
        """Leave it to another monitor that has it, if there is one. Of two that do so at once one takes it again, or both."""
        found = [reference() for reference in list(self._everyone)]
        runs = self._runs()
        others = [one for one in found if one is not None and one is not self and (one._runs() or not runs)]
        if not any(one._has(item) for one in others):
            return False
        self._items.pop(id(item), None)
        if any(one._has(item) for one in others):
            return True
        self.add(item)
        return False

    def __del__(self) -> None:
        self.release()
