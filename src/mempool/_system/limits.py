"""The smallest limit that binds, and where it comes from.

Limits count different things, so each is judged with its own usage, and the one that will be hit first is the one that binds:

    source          used                        limit
    cgroup          working set of the group    memory.max of the group or an ancestor
    RLIMIT_AS       address space               of the process
    RLIMIT_DATA     private writable mappings   of the process
    machine         RAM that is not available   RAM
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mempool._system import cgroup, machine, process, rlimits

__all__ = ["Bound", "Survey", "binding", "survey"]

_Root = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Bound:
    """One limit.

    Attributes
    ----------
    limit, used : int
        Bytes, counted the way this limit counts.
    source : str
        ``"cgroup /sys/fs/cgroup/app"``, ``"RLIMIT_AS"``, ``"RLIMIT_DATA"`` or ``"machine"``.
    """

    limit: int
    source: str
    used: int

    @property
    def available(self) -> int:
        """Bytes until the limit."""
        return max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True)
class Survey:
    """All limits that could be read, and for the others why not.

    Attributes
    ----------
    bounds : tuple of Bound
    errors : tuple of Exception
    """

    bounds: tuple[Bound, ...]
    errors: tuple[Exception, ...]

    @property
    def binding(self) -> Bound | None:
        """The limit that will be hit first: the least bytes away, of equals the smaller."""
        return min(self.bounds, key=lambda bound: (bound.available, bound.limit), default=None)

    @property
    def smallest(self) -> Bound | None:
        """The smallest limit, however much of it is used: what settings should be made for."""
        return min(self.bounds, key=lambda bound: bound.limit, default=None)


def survey(root: _Root = "/") -> Survey:
    """Return every limit of this process; what cannot be read becomes an error in the result, and hides nothing else."""
    bounds, errors = [], []
    readers: Iterable[Callable[[_Root], Bound | None]] = (_cgroup, _address_space, _data, _machine)
    for reader in readers:
        try:
            bound = reader(root)
        except (OSError, ValueError) as error:
            errors.append(error)
        else:
            if bound is not None:
                bounds.append(bound)
    return Survey(tuple(bounds), tuple(errors))


def binding(root: _Root = "/") -> Bound:
    """Return the limit that will be hit first.

    Raises
    ------
    OSError, ValueError
        The first error of reading, if no limit at all can be read.

    Examples
    --------
    >>> bound = binding()
    >>> bound.limit > 0 and bool(bound.source)
    True
    """
    found = survey(root)
    if found.binding is not None:
        return found.binding
    raise found.errors[0] if found.errors else OSError("nothing tells how much memory there is")


def _cgroup(root: _Root) -> Bound | None:
    group = cgroup.find(root)
    tightest = group.tightest() if group is not None else None
    if tightest is None:
        return None
    return Bound(tightest.limit, f"cgroup {tightest.path}", tightest.used)


def _address_space(root: _Root) -> Bound | None:
    limit = rlimits.address_space()
    return None if limit is None else Bound(limit, "RLIMIT_AS", process.address_space(root))


def _data(root: _Root) -> Bound | None:
    limit = rlimits.data()
    return None if limit is None else Bound(limit, "RLIMIT_DATA", process.data(root))


def _machine(root: _Root) -> Bound | None:
    ram = machine.memory(root)
    return Bound(ram.total, "machine", ram.total - ram.available)
