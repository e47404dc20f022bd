r"""`PressureStall`: the kernel's pressure stall information, and its triggers.

::

    some avg10=1.53 avg60=0.87 avg300=0.22 total=1238432     read at each poll: percent of the time that something waited for memory
                                           -------------     and microseconds of waiting so far

    "some 150000 2000000\0"  -- written to a descriptor of its own --> POLLPRI once something waited 150 ms within 2 s

What is easily got wrong: the kernel takes the last byte for the end of the text, so it needs its NUL. A program without
``CAP_SYS_RESOURCE`` may only have windows of whole multiples of 2 s; such a trigger can fire once without cause just after it was
armed, which is why ``total=`` is compared. A descriptor has one trigger. ``POLLERR`` means that the trigger is dead: its control
group is gone.
"""

import errno
import math
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mempool._system.files import read
from mempool.pressure.levels import Level
from mempool.pressure.sources.base import Reading, Scope
from mempool.pressure.sources.watching import READ_FLAGS, WRITE_FLAGS, Alarm, Descriptor
from mempool.units import parse_duration

__all__ = ["PressureStall", "Stall", "Trigger", "read_stalls"]

POLLPRI = getattr(select, "POLLPRI", 2)
DEAD = getattr(select, "POLLERR", 8) | getattr(select, "POLLHUP", 16) | getattr(select, "POLLNVAL", 32)
MICROSECONDS = 1_000_000

Kind = Literal["some", "full"]


@dataclass(frozen=True, slots=True)
class Stall:
    """One line of pressure stall information.

    Attributes
    ----------
    avg10, avg60, avg300 : float
        Percent of the last 10, 60 and 300 seconds.
    total : int
        Microseconds since the machine or the group began.
    """

    avg10: float
    avg60: float
    avg300: float
    total: int


def _parse_line(words: list[str]) -> Stall:
    fields = dict(word.split("=", 1) for word in words)
    stall = Stall(float(fields["avg10"]), float(fields["avg60"]), float(fields["avg300"]), int(fields["total"]))
    averages = (stall.avg10, stall.avg60, stall.avg300)
    if stall.total < 0 or not all(math.isfinite(average) and average >= 0 for average in averages):
        raise ValueError("negative, or no number")
    return stall


def read_stalls(path: str) -> dict[str, Stall]:
    """Read ``some`` and ``full`` of a file.

    Raises
    ------
    OSError
        If it cannot be read; where the kernel was told to keep no such figures, reading is "not supported".
    ValueError
        If it is not what the kernel writes.
    """
    text = read(path).decode("ascii", "replace")
    try:
        stalls = {words[0]: _parse_line(words[1:]) for words in map(str.split, text.splitlines()) if words}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is no pressure stall information: {text[:100]!r}") from error
    if "some" not in stalls:
        raise ValueError(f"{path} is no pressure stall information: {text[:100]!r}")
    return stalls


class Trigger:
    """A trigger in a file of the kernel: `happened` tells its events from false ones.

    Parameters
    ----------
    path : str
    text : bytes
        What arms it, with the NUL at its end.
    kind : {"some", "full"}
        The line that the trigger is about.
    stall : int
        Microseconds that must have been lost since it was armed, or the first event is false; 0: all are true.
    """

    def __init__(self, path: str, text: bytes, kind: str = "some", stall: int = 0) -> None:
        self.path = path
        self._text, self._kind, self._stall = text, kind, stall
        self._before: int | None = None
        self._needed = stall
        self._descriptor = Descriptor()

    def open(self) -> None:
        """Arm it, anew if it was."""
        before = self._total() if self._stall else None
        fd = os.open(self.path, WRITE_FLAGS if self._text else READ_FLAGS)
        try:
            if self._text:
                os.write(fd, self._text)
        except OSError as error:
            os.close(fd)
            raise OSError(error.errno, f"{error.strerror} (for the trigger {self._text!r})", self.path) from error
        except BaseException:
            os.close(fd)
            raise
        self._descriptor.hold(fd)
        self._before, self._needed = before, self._stall

    def close(self) -> None:
        """Disarm it; idempotent."""
        self._descriptor.close()

    def fileno(self) -> int:
        """Return the descriptor to poll for ``POLLPRI``."""
        return self._descriptor.fileno()

    def happened(self, events: int) -> bool:
        """Whether memory was waited for; `OSError` if the trigger is dead."""
        if events & DEAD:
            raise OSError(errno.ENODEV, "the trigger is dead, its control group may be gone", self.path)
        return bool(events & POLLPRI) and self._grew()

    def _grew(self) -> bool:
        if self._before is None:
            return True
        total = self._total()
        if total is None:
            return True
        if total - self._before < self._needed:
            return False
        self._before, self._needed = total, 1
        return True

    def _total(self) -> int | None:
        """Microseconds lost so far; None if nothing says so, then events are believed."""
        try:
            stall = read_stalls(self.path).get(self._kind)
        except (OSError, ValueError):
            return None
        return stall.total if stall is not None else None


class PressureStall:
    """Time lost waiting for memory, of the control group or of the machine.

    Parameters
    ----------
    path : str
        ``memory.pressure`` of a control group, or ``/proc/pressure/memory``.
    kind : {"some", "full"}
        Some tasks waited, or all of them at once.
    stall, window : float or str
        The trigger: an event once `stall` was lost within `window` (0.5 to 10 s).
    averages : tuple of three float
        Percent of the last ten seconds from which on `read` says ``ELEVATED``, ``HIGH`` and ``CRITICAL``.
    level : Level
        What an event means; it counts for twice the window.
    name : str, optional
    clock : callable
        Seconds.

    Examples
    --------
    >>> from mempool.pressure.sources import PressureStall
    >>> PressureStall("/proc/pressure/memory", stall="3s")
    Traceback (most recent call last):
    ...
    ValueError: a stall of 3.0 s does not fit into a window of 2.0 s
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = "/proc/pressure/memory",
        *,
        kind: Kind = "some",
        stall: float | str = "150ms",
        window: float | str = "2s",
        averages: tuple[float, float, float] = (10.0, 30.0, 60.0),
        level: Level = Level.HIGH,
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if kind not in ("some", "full"):
            raise ValueError(f"kind must be 'some' or 'full', not {kind!r}")
        stall, window = parse_duration(stall, "stall"), parse_duration(window, "window")
        if not 0.5 <= window <= 10:
            raise ValueError(f"window must be 0.5 to 10 s, got {window!r}")
        if not 0 < stall <= window:
            raise ValueError(f"a stall of {stall!r} s does not fit into a window of {window!r} s")
        elevated, high, critical = averages
        if not 0 < elevated <= high <= critical:
            raise ValueError(f"averages must be three percentages that do not fall, got {averages!r}")
        self.path = os.fspath(path)
        self._kind, self._averages, self._level = kind, (elevated, high, critical), Level(level)
        self._name = name or f"psi:{self.path}"
        self._alarm = Alarm(2 * window, clock)
        lost = round(stall * MICROSECONDS)
        text = f"{kind} {lost} {round(window * MICROSECONDS)}\0".encode()
        self._trigger = Trigger(self.path, text, kind, lost)

    @property
    def name(self) -> str:
        """``"psi:"`` and the path."""
        return self._name

    @property
    def scope(self) -> Scope:
        """Others wait for memory too: ``"shared"``."""
        return "shared"

    def read(self) -> Reading:
        """Return a level, from the last event and the average of ten seconds; no bytes."""
        stall = read_stalls(self.path).get(self._kind)
        if stall is None:
            raise ValueError(f"{self.path} has no line {self._kind!r}")
        averaged = Level(sum(stall.avg10 >= average for average in self._averages))
        return Reading(level=max(averaged, self._alarm.level()))

    def open(self) -> None:
        """Arm the trigger; `OSError` where the kernel, or the rights to the file, do not let us."""
        self._trigger.open()

    def close(self) -> None:
        """Disarm it; idempotent."""
        self._trigger.close()

    def fileno(self) -> int:
        """Return the descriptor that the trigger is in, -1 if there is none."""
        return self._trigger.fileno()

    @property
    def poll_events(self) -> int:
        """``POLLPRI``."""
        return POLLPRI

    def handle(self, events: int) -> bool:
        """Take in an event. True: time was lost indeed. `OSError`: the trigger is dead."""
        return self._trigger.happened(events) and self._alarm.ring(self._level)

    def __repr__(self) -> str:
        return f"PressureStall({self.path!r})"
