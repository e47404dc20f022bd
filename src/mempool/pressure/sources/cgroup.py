"""`CgroupMemory`: the control group, v2 or v1, and its events.

Used is the working set: what is charged less the page cache that nobody touched lately, which the kernel drops first. The limit
is the one of which the largest share is used, of the group and all ancestors that can be seen; ``memory.high`` counts as one, for
beyond it the kernel makes every allocation wait.

A v2 group has ``memory.events``: its file is polled, so that running into a limit wakes the monitor at once. Such an event is no
level by itself (page cache alone runs into a limit all day), but a reason to look; that the kernel ran out (``oom``) or killed
(``oom_kill``) is ``CRITICAL``.
"""

import contextlib
import errno
import math
import os
import time
from collections.abc import Callable

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


def _nearest(group: cgroup.Cgroup) -> cgroup.Tightest | None:
    """Return the limit or high mark of which most is used, as a share: that is what thresholds are."""
    return max(group.judged(), key=lambda one: one.used / one.limit if one.limit else math.inf, default=None)


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
        """Working set, and the limit or high mark that it is nearest to; ``CRITICAL`` if the kernel ran out just now."""
        try:
            return self._read(self._group())
        except (OSError, ValueError):
            if self._found is None:
                raise
            self._found = None  # the process may have been moved, and the old group removed
            return self._read(self._group())

    def _read(self, group: cgroup.Cgroup) -> Reading:
        nearest = _nearest(group)
        path = nearest.path if nearest is not None else group.path
        with contextlib.suppress(FileNotFoundError):  # sandboxes count no events
            self._note(group.events_path(path), group.events(path))
        level = self._critical.level() or None
        return Reading(group.usage(), None, level) if nearest is None else Reading(nearest.used, nearest.limit, level)

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
        """Watch the events of the group whose limit is nearest; v1 has none that can be watched."""
        self._found = None
        try:
            group = self._group()
            nearest = _nearest(group)
        except ValueError as error:
            raise OSError(errno.EIO, str(error)) from error
        if group.version == 1:
            raise OSError(errno.EOPNOTSUPP, "version 1 tells no events; it is read at each poll", group.path)
        self._watched = group.events_path(nearest.path if nearest is not None else None)
        self._descriptor.hold(os.open(self._watched, READ_FLAGS))
        try:
            self._seen[self._watched] = self._events()  # what was counted before is no news
        except OSError:
            self.close()
            raise

    def _events(self) -> dict[str, int]:
        """Read what is counted through the descriptor: unread, it would be reported again at once."""
        fd = self._descriptor.fileno()
        try:
            os.lseek(fd, 0, os.SEEK_SET)
            return _counts(os.read(fd, 4096), self._watched)
        except (OSError, ValueError) as error:
            raise OSError(getattr(error, "errno", errno.EIO), f"cannot be watched: {error}", self._watched) from error

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
        if self.fileno() < 0 or not events:
            return False
        return self._note(self._watched, self._events())

    def __repr__(self) -> str:
        return "CgroupMemory()"
