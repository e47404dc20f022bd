"""What the sources with events share: a descriptor that is closed once, and a level that lasts for a while."""

import os
from collections.abc import Callable

from mempool.pressure.levels import Level

__all__ = ["READ_FLAGS", "WRITE_FLAGS", "Alarm", "Descriptor"]

_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
READ_FLAGS, WRITE_FLAGS = os.O_RDONLY | _FLAGS, os.O_RDWR | _FLAGS


class Alarm:
    """A level that an event gave, for as long as the event counts.

    An event says that memory *was* short just then. Nothing says when it no longer is, so the level ends by itself.

    Parameters
    ----------
    hold : float
        Seconds that an event counts for.
    clock : callable
        Seconds, from anywhere.
    """

    __slots__ = ("_clock", "_hold", "_rung")

    def __init__(self, hold: float, clock: Callable[[], float]) -> None:
        self._hold, self._clock = hold, clock
        self._rung: tuple[Level, float] | None = None

    def _held(self) -> tuple[Level, float] | None:
        """Level and age of the last event; None if it is over, or the clock went back behind it."""
        rung = self._rung
        if rung is None:
            return None
        age = self._clock() - rung[1]
        return (rung[0], age) if 0 <= age < self._hold else None

    def ring(self, level: Level) -> bool:
        """Take in an event. True if it is news: a storm of events is told ten times while the first one counts."""
        held = self._held()
        if held is not None:
            if held[0] >= level and held[1] < self._hold / 10:
                return False
            level = max(level, held[0])
        self._rung = (level, self._clock())
        return True

    def level(self) -> Level:
        """Return the level as long as it counts, then `Level.NORMAL`."""
        held = self._held()
        return held[0] if held is not None else Level.NORMAL


class Descriptor:
    """One descriptor, or none.

    After a fork the child has a copy that shares its state with the parent: events read from it are lost to the parent. So it is
    not shown there, only closed. One that was replaced stays open until the next change, so that who polls can take it out first.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: list[tuple[int, int]] = []  # `pop` hands each to one caller only, whatever the threads do

    def hold(self, fd: int) -> None:
        """Own a descriptor from now on, in place of the one before."""
        self.close()
        self._held.append((fd, os.getpid()))

    def fileno(self) -> int:
        """Return its number; -1 if there is none, or it is a parent's."""
        try:
            fd, pid = self._held[-1]
        except IndexError:
            return -1
        return fd if pid == os.getpid() else -1

    def replace(self, fd: int) -> None:
        """Own another from now on; the one before is closed at the next change."""
        self._close_all_but(1)
        self._held.append((fd, os.getpid()))

    def close(self) -> None:
        """Close it; idempotent."""
        self._close_all_but(0)

    def _close_all_but(self, newest: int) -> None:
        while len(self._held) > newest:
            try:
                fd, _ = self._held.pop(0)
            except IndexError:  # another thread closed it
                return
            os.close(fd)

    def __del__(self) -> None:
        self.close()
