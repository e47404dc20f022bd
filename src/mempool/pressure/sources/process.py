"""`ProcessMemory`: what this process has resident. `Rlimits`: its address space and data, against the limits of the process."""

import os
from typing import Literal

from mempool._system import process, rlimits
from mempool.pressure.sources.base import Reading, Scope
from mempool.units import parse_size

__all__ = ["ProcessMemory", "Rlimits"]

Root = str | os.PathLike[str]


class ProcessMemory:
    """Resident bytes of this process.

    Parameters
    ----------
    limit : int or str, optional
        What counts as all of it, for thresholds that are fractions. None: absolute thresholds alone judge it.
    root : str or path
        Directory that stands for ``/``.

    Examples
    --------
    >>> from mempool.pressure.sources import ProcessMemory
    >>> reading = ProcessMemory("2 GiB").read()
    >>> reading.used > 1 << 20, reading.limit
    (True, 2147483648)
    """

    def __init__(self, limit: int | str | None = None, *, root: Root = "/") -> None:
        self._limit = None if limit is None else _positive(parse_size(limit, "limit"))
        self._root = root

    @property
    def name(self) -> str:
        """``"process"``."""
        return "process"

    @property
    def scope(self) -> Scope:
        """``"own"``."""
        return "own"

    def read(self) -> Reading:
        """Resident bytes, and the limit given."""
        return Reading(process.rss(self._root), self._limit)

    def __repr__(self) -> str:
        return f"ProcessMemory({self._limit!r})"


class Rlimits:
    """A limit of the process, as ``ulimit`` or `resource.setrlimit` set it: beyond it allocations fail.

    What it counts is taken, not resident: thresholds in bytes of memory do not judge it, so its scope is ``"shared"``.

    Parameters
    ----------
    which : {"address_space", "data"}
        ``RLIMIT_AS`` or ``RLIMIT_DATA``.
    root : str or path
        Directory that stands for ``/``.
    """

    def __init__(self, which: Literal["address_space", "data"] = "address_space", *, root: Root = "/") -> None:
        if which not in ("address_space", "data"):
            raise ValueError(f"which must be 'address_space' or 'data', not {which!r}")
        self._which, self._root = which, root

    @property
    def name(self) -> str:
        """``"rlimit:address_space"`` or ``"rlimit:data"``."""
        return f"rlimit:{self._which}"

    @property
    def scope(self) -> Scope:
        """``"shared"``: fractions alone judge it."""
        return "shared"

    def read(self) -> Reading:
        """Bytes taken, and the soft limit; None where there is none."""
        if self._which == "data":
            return Reading(process.data(self._root), rlimits.data())
        return Reading(process.address_space(self._root), rlimits.address_space())

    def __repr__(self) -> str:
        return f"Rlimits({self._which!r})"


def _positive(limit: int) -> int:
    if limit == 0:
        raise ValueError("limit must be more than 0 bytes, got 0")
    return limit
