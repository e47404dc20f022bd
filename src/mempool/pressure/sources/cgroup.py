"""`CgroupMemory`: the control group, v2 or v1, and its events.

Used is the working set: what is charged less the page cache that nobody touched lately, which the kernel drops first. The limit
is the one with the least room, of the group and all ancestors that can be seen; ``memory.high`` counts as one, for beyond it the
kernel makes every allocation wait.

A v2 group has ``memory.events``: its file is polled, so that running into a limit wakes the monitor at once. Such an event is no
level by itself (page cache alone runs into a limit all day), but a reason to look; that the kernel ran out (``oom``) or killed
(``oom_kill``) is ``CRITICAL``.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable
from typing import NamedTuple

from mempool._system import cgroup, files
from mempool.pressure.levels import Level
from mempool.pressure.sources.base import Reading, Scope
from mempool.pressure.sources.stall import POLLPRI
from mempool.pressure.sources.watching import READ_FLAGS, Alarm, Descriptor
from mempool.units import parse_duration

__all__ = ["CgroupMemory"]

SHORT = ("high", "max")
OUT = ("oom", "oom_kill", "under_oom")
SEARCH_EVERY = 10.0  # seconds: a process is hardly ever moved, and looking costs more than reading
QUIET = 0.1


class _Room(NamedTuple):
    left: int
    used: int
    limit: int
    path: str


def _tightest(group: cgroup.Cgroup) -> _Room | None:
    """Return the limit or high mark with the least room."""
    rooms = []
    tightest = group.tightest()
    if tightest is not None:
        rooms.append(_Room(tightest.limit - tightest.used, *tightest))
    for path in group.levels if group.version == 2 else ():
        high = _high(path)
        if high is not None:
            used = group.usage(path)
            rooms.append(_Room(high - used, used, high, path))
    return min(rooms, default=None)


def _high(path: str) -> int | None:
    mark = f"{path}/memory.high"
    try:
        word = files.read(mark).strip()
    except FileNotFoundError:  # the root of the hierarchy has none
        return None
    return None if word == b"max" else files.number(word, mark)


def _counts(content: bytes, path: str) -> dict[str, int]:
    found = {}
    for line in content.splitlines():
        name, _, digits = line.partition(b" ")
        found[name.decode("ascii", "replace")] = files.number(digits.strip(), path)
    return found


class CgroupMemory:
    """Memory of the control group that this process is in.

    Parameters
    ----------
    hold : float or str
        For how long an ``oom`` counts.
    root : str or path
        Directory that stands for ``/``.
    clock : callable
        Seconds.
    """

    def __init__(
        self,
        *,
        hold: float | str = "10s",
        root: str | os.PathLike[str] = "/",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._clock = root, clock
        self._critical = Alarm(parse_duration(hold, "hold"), clock)
        self._told = Alarm(QUIET * 10, clock)
        self._found: tuple[cgroup.Cgroup, float] | None = None
        self._seen: dict[str, dict[str, int]] = {}  # per file of events: what it counted last
        self._watched = ""
        self._descriptor = Descriptor()

    @property
    def name(self) -> str:
        """``"cgroup"``."""
        return "cgroup"

    @property
    def scope(self) -> Scope:
        """Other processes may be in the group: ``"shared"``."""
        return "shared"

    def read(self) -> Reading:
        """Working set, and limit or high mark with the least room; ``CRITICAL`` if the kernel ran out just now."""
        try:
            return self._read(self._group())
        except (OSError, ValueError):
            if self._found is None:
                raise
            self._found = None  # the process may have been moved, and the old group removed
            return self._read(self._group())

    def _read(self, group: cgroup.Cgroup) -> Reading:
        room = _tightest(group)
        path = room.path if room is not None else group.path
        with contextlib.suppress(FileNotFoundError):  # sandboxes count no events
            self._note(group.events_path(path), group.events(path))
        level = self._critical.level() or None
        return Reading(group.usage(), None, level) if room is None else Reading(room.used, room.limit, level)

    def _group(self) -> cgroup.Cgroup:
        found, now = self._found, self._clock()
        if found is not None and 0 <= now - found[1] < SEARCH_EVERY:
            return found[0]
        self._found = None
        group = cgroup.find(self._root)
        if group is None:
            raise OSError(errno.ENOENT, "no control group that can be seen counts the memory of this process")
        self._found = (group, now)
        return group

    def _note(self, path: str, counts: dict[str, int]) -> bool:
        """Compare with what was counted before. True: memory ran short since, and that is news."""
        before = self._seen.get(path)
        self._seen[path] = counts
        if before is None:
            return False
        grown = {name for name, count in counts.items() if count > before.get(name, 0)}
        if grown.intersection(OUT):
            return self._critical.ring(Level.CRITICAL)
        return bool(grown.intersection(SHORT)) and self._told.ring(Level.NORMAL)

    def open(self) -> None:
        """Watch the events of the group whose limit is the tightest; v1 has none that can be watched."""
        self._found = None
        group = self._group()
        if group.version == 1:
            raise OSError(errno.EOPNOTSUPP, "version 1 tells no events; it is read at each poll", group.path)
        room = _tightest(group)
        path = group.events_path(room.path if room is not None else None)
        fd = os.open(path, READ_FLAGS)
        self._descriptor.hold(fd)
        self._watched = path
        try:
            self._seen[path] = self._events(fd)  # what was counted before is no news; unread, it would be told at once
        except (OSError, ValueError):
            self.close()
            raise

    def _events(self, fd: int) -> dict[str, int]:
        return _counts(os.pread(fd, 4096, 0), self._watched)

    def close(self) -> None:
        """Stop watching; idempotent."""
        self._descriptor.close()

    def fileno(self) -> int:
        """Return the descriptor of ``memory.events``, -1 if there is none."""
        return self._descriptor.fileno()

    @property
    def poll_events(self) -> int:
        """``POLLPRI``; the kernel sets ``POLLERR`` with it, which means nothing here."""
        return POLLPRI

    def handle(self, events: int) -> bool:
        """Read what was counted. True: a limit or high mark was run into. `OSError`: the group is gone."""
        fd = self._descriptor.fileno()
        if fd < 0 or not events:
            return False
        try:
            counts = self._events(fd)
        except ValueError as error:
            self.close()
            raise OSError(errno.EIO, str(error), self._watched) from error
        except OSError as error:
            self.close()
            raise OSError(error.errno, error.strerror, self._watched) from error
        return self._note(self._watched, counts)

    def __repr__(self) -> str:
        return "CgroupMemory()"
