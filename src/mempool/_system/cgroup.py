"""The control group that this process is in, v2 or v1: usage, limits, events.

::

    /proc/self/cgroup       0::/app.slice/job            where we are in the hierarchy
    /proc/self/mountinfo    /app.slice /sys/fs/cgroup    which part of it can be seen, and where
                            ------------------------
    own group               /sys/fs/cgroup/job           memory.current  memory.max  memory.high  memory.events  memory.pressure
    ancestors               /sys/fs/cgroup               memory.current  memory.max  memory.high

Where both versions are mounted (hybrid), memory is counted by the one that has the memory controller. A limit of any ancestor
binds all below it, so each is judged with its own usage. A group that lies outside what is mounted cannot be watched; to guess
that the mount point is ours, as is often done, would give the figures of somebody else.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

from mempool._system.files import below, fields, joined, lines, number, read

__all__ = ["Cgroup", "Limit", "Tightest", "find"]

_Root = str | os.PathLike[str]
_T = TypeVar("_T")

_UNLIMITED = 1 << 60  # v1 has no word for it: the largest number of pages, in bytes

_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")

# What some kernels and sandboxes do not have.
_OPTIONAL = {
    1: ("memory.limit_in_bytes", "memory.stat", "memory.oom_control", "memory.use_hierarchy"),
    2: ("memory.max", "memory.high", "memory.stat"),
}

_FILES: dict[int, dict[str, str]] = {
    1: {"usage": "memory.usage_in_bytes", "limit": "memory.limit_in_bytes", "inactive": "total_inactive_file"},
    2: {"usage": "memory.current", "limit": "memory.max", "inactive": "inactive_file"},
}


class Limit(NamedTuple):
    """A limit in bytes and the directory of the group that has it."""

    limit: int
    path: str


class Tightest(NamedTuple):
    """The limit with the least room: bytes used and limit of that group, and its directory."""

    used: int
    limit: int
    path: str


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A control group that counts memory. Each method reads afresh; `OSError` or `ValueError` name the file that fails.

    Attributes
    ----------
    version : int
        1 or 2.
    levels : tuple of str
        Directories of the group itself and of the ancestors whose limits bind it, nearest first.
    """

    version: Literal[1, 2]
    levels: tuple[str, ...]
    _stall: str | None = None
    _absent: frozenset[str] = (
        frozenset()
    )  # was not there when the group was found; what is not there later has gone away

    @property
    def path(self) -> str:
        """Directory of the group itself."""
        return self.levels[0]

    def raw_usage(self, level: str | None = None) -> int:
        """Return all bytes charged to the group, or to one of `levels`: page cache too."""
        return _figure(self._file("usage", level))

    def usage(self, level: str | None = None) -> int:
        """Return the working set: what is charged, less the page cache that nobody touched lately (``inactive_file``).

        This is what Kubernetes evicts by, and about what counts when the kernel looks for a victim: it drops that cache first.
        """
        charged = self.raw_usage(level)
        path = f"{level or self.path}/memory.stat"
        stat = self._optional(fields, path)
        if stat is None:  # a sandbox that does not tell cache from the rest
            return charged
        name = _FILES[self.version]["inactive"].encode()
        inactive = stat.get(name, stat.get(b"inactive_file"))
        if inactive is None:
            raise ValueError(f"{path}: there is no inactive_file")
        return max(0, charged - inactive)

    def limit(self) -> Limit | None:
        """Return the smallest limit of the group and its ancestors; None: not limited."""
        return min(self._limits(), default=None)

    def tightest(self) -> Tightest | None:
        """Return the limit with the least room left, each judged with the usage of its own group; None: not limited."""
        found = [Tightest(self.usage(path), limit, path) for limit, path in self._limits()]
        return min(found, key=lambda one: (one.limit - one.used, one.limit), default=None)

    def judged(self) -> list[Tightest]:
        """Return every limit and high mark (v2) of the group and its ancestors, each with the usage of its own group."""
        marks = list(self._limits())
        if self.version == 2:
            highs = [(self._optional(_bound, f"{level}/memory.high"), level) for level in self.levels]
            marks += [Limit(mark, level) for mark, level in highs if mark is not None]
        used = {path: self.usage(path) for _, path in marks}
        return [Tightest(used[path], limit, path) for limit, path in marks]

    def high(self) -> int | None:
        """Return the bytes from which the kernel slows the group down and reclaims (v2); None: it does not."""
        if self.version == 1:
            return None
        marks = [mark for level in self.levels if (mark := self._optional(_bound, f"{level}/memory.high")) is not None]
        return min(marks, default=None)

    def events(self, level: str | None = None) -> dict[str, int]:
        """Return how often things happened: low, high, max, oom, oom_kill (v2); failcnt, oom_kill, under_oom (v1).

        What the kernel does not count is left out. In v2 the figures of a group count all groups below it.
        """
        path = self.events_path(level)
        if self.version == 2:
            return {name.decode(): count for name, count in fields(path).items()}
        found = {"failcnt": _figure(path)}
        counted = self._optional(fields, f"{level or self.path}/memory.oom_control") or {}
        return found | {name.decode(): counted[name] for name in (b"oom_kill", b"under_oom") if name in counted}

    def events_path(self, level: str | None = None) -> str:
        """Return the file of `events`; a v2 one can be polled for POLLPRI."""
        return f"{level or self.path}/{'memory.events' if self.version == 2 else 'memory.failcnt'}"

    def pressure_path(self) -> str | None:
        """Return the file of stall information (PSI) of this process's v2 group; None: there is none."""
        return self._stall if self._stall and _is_there(self._stall) else None

    def _file(self, kind: str, level: str | None = None) -> str:
        return f"{level or self.path}/{_FILES[self.version][kind]}"

    def _limits(self) -> Iterator[Limit]:
        for level in self.levels:
            limit = self._optional(_bound, self._file("limit", level))
            if limit is not None:
                yield Limit(limit, level)
        if self.version == 1 and (hidden := self._hierarchical()) is not None:
            yield Limit(hidden, self.path)

    def _hierarchical(self) -> int | None:
        """Return the limit of ancestors that cannot be seen from here, which v1 tells."""
        stat = self._optional(fields, f"{self.path}/memory.stat") or {}
        limit = stat.get(b"hierarchical_memory_limit", _UNLIMITED)
        return limit if limit < _UNLIMITED else None

    def _optional(self, reader: Callable[[str], _T], path: str) -> _T | None:
        """Return what a file says, None if this group never had it."""
        try:
            return reader(path)
        except FileNotFoundError:
            if path not in self._absent:
                raise
            return None


def _is_there(path: str) -> bool:
    """Tell whether a file exists; what may not be looked at is an error, not an absence."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _figure(path: str) -> int:
    return number(read(path).strip(), path)


def _bound(path: str) -> int | None:
    """Return what a file of a limit says; None: there is no limit."""
    word = read(path).strip()
    limit = _UNLIMITED if word == b"max" else number(word, path)
    return limit if limit < _UNLIMITED else None


def find(root: _Root = "/") -> Cgroup | None:
    """Return the group that counts the memory of this process.

    Parameters
    ----------
    root : str or path
        Directory that stands for ``/``.

    Returns
    -------
    Cgroup or None
        None: there are no control groups, they do not count memory, or the group lies outside what is mounted here.

    Raises
    ------
    OSError, ValueError
        If what should tell cannot be read, or makes no sense.

    Examples
    --------
    >>> group = find()
    >>> group is None or group.usage() >= 0
    True
    """
    try:
        memberships = _memberships(joined(root, "/proc/self/cgroup"))
        mounts = _mounts(joined(root, "/proc/self/mountinfo"))
    except FileNotFoundError:
        return None
    unified = _directory(root, memberships.get(2), mounts[2])
    stall = f"{unified[0]}/memory.pressure" if unified else None
    if directories := _directory(root, memberships.get(1), mounts[1]):
        return _group(1, directories, stall)
    return _group(2, unified, stall) if unified else None


def _group(version: Literal[1, 2], directories: list[str], stall: str | None) -> Cgroup | None:
    levels: list[str] = []
    absent: set[str] = set()
    for directory in directories:
        names = set(os.listdir(directory))  # of one moment, whatever happens to the directory
        absent |= {f"{directory}/{name}" for name in _OPTIONAL[version] if name not in names}
        if levels and version == 1 and "memory.use_hierarchy" in names and not _counts_below(directory):
            break
        if _FILES[version]["usage"] in names:
            levels.append(directory)
    return Cgroup(version, tuple(levels), stall, frozenset(absent)) if levels else None


def _counts_below(parent: str) -> bool:
    """Tell whether a v1 group counts the groups below it, as all do since Linux 5.11."""
    return _figure(f"{parent}/memory.use_hierarchy") != 0


def _memberships(path: str) -> dict[int, bytes]:
    """Return where this process is in the v2 hierarchy, and in the v1 hierarchy that counts memory."""
    found = {}
    for line in lines(path):
        parts = line.split(b":", 2)
        if len(parts) != 3 or not parts[2].startswith(b"/"):
            raise ValueError(f"{path}: expected a control group, found {line[:60]!r}")
        if parts[:2] == [b"0", b""]:
            found[2] = parts[2]
        elif b"memory" in parts[1].split(b","):
            found[1] = parts[2]
    return found


def _mounts(path: str) -> dict[int, list[tuple[bytes, bytes]]]:
    """Return what is mounted of either version: (part of the hierarchy, mount point), the one on top first."""
    found: dict[int, list[tuple[bytes, bytes]]] = {1: [], 2: []}
    for line in lines(path):
        before, dash, after = line.partition(b" - ")
        place, kind = before.split(b" "), after.split(b" ")
        if not dash or len(place) < 6 or len(kind) < 3:
            raise ValueError(f"{path}: expected a mount, found {line[:60]!r}")
        if kind[0] == b"cgroup2":
            version = 2
        elif kind[0] == b"cgroup" and b"memory" in kind[2].split(b","):
            version = 1
        else:
            continue
        found[version].insert(0, (_plain(place[3]), _plain(place[4])))
    return found


def _plain(name: bytes) -> bytes:
    r"""Return a name of mountinfo without its escapes: ``\040`` is a space."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), name)


def _directory(root: _Root, member: bytes | None, mounts: list[tuple[bytes, bytes]]) -> list[str] | None:
    """Return the directories of a group and all its ancestors that can be seen, nearest first."""
    for top, point in mounts:
        names = None if member is None else below(member, top)
        if names is None:
            continue
        base = joined(root, os.fsdecode(point)).rstrip("/")
        steps = [os.fsdecode(name) for name in names]
        directories = ["/".join([base, *steps[:depth]]) for depth in range(len(steps), -1, -1)]
        if _is_there(directories[0]):
            return directories
    return None
