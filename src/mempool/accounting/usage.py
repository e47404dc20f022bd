"""`memory_usage`: one record of what the process holds, and of how much it may.

::

    rss            [ python_heap | external, as far as it was touched and not paged out | everything else ]
    external       [ lent | idle | mapped ]                              what all accounts hold
    limit          [ used, counted as this limit counts | available ]    the one that will be hit first

The figures are read one after the other while other threads go on: each is right at its moment, their sums are not exact.
"""

import os
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mempool._core import TRACEMALLOC_DOMAIN, _external, root_account
from mempool._system import limits, process

if TYPE_CHECKING:
    from mempool._core import _Tree

__all__ = ["MemoryUsage", "memory_usage", "python_heap", "read_usage"]


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """What a process held at one moment, in bytes.

    Attributes
    ----------
    rss : int
        Resident: in RAM now, shared pages too. The kernel may be late by some hundred KiB.
    uss : int or None
        Resident and shared with nobody: what ending the process would free. None unless asked for.
    peak_rss : int
        The most that was ever resident.
    python_heap : int or None
        What Python's allocators gave since `tracemalloc` was started, NumPy's arrays too, without what is `external`. None if
        it is not running.
    external : int
        Native memory that accounts hold: pools, slabs, arrays, rings, arenas, caches, and what `Account.charge` was told of. The
        next two are parts of it; the rest is lent.
    mapped : int
        Mapped files, in pages, read or not.
    idle : int
        Ready in pools to be lent: ``trim`` gives it back.
    limit : int or None
        The limit that will be hit first. None: nothing tells of any.
    limit_source : str or None
        Where that limit comes from: ``"cgroup <directory>"``, ``"RLIMIT_AS"``, ``"RLIMIT_DATA"`` or ``"machine"``.
    available : int or None
        Bytes until that limit, counted as it counts.
    accounts : dict
        The tree of accounts, as `Account.tree` returns it.
    unread : tuple of str
        Limits that could not be read, and why.
    """

    rss: int
    uss: int | None
    peak_rss: int
    python_heap: int | None
    external: int
    mapped: int
    idle: int
    limit: int | None
    limit_source: str | None
    available: int | None
    accounts: "_Tree"
    unread: tuple[str, ...] = ()

    @property
    def lent(self) -> int:
        """Bytes of `external` that programs hold: neither `idle` nor `mapped`."""
        return max(0, self.external - self.idle - self.mapped)


def memory_usage(*, uss: bool = False) -> MemoryUsage:
    """Return what this process holds, and how much it may.

    Parameters
    ----------
    uss : bool
        Also find out what is shared with nobody. The kernel then walks all pages of the process: milliseconds for each GiB.

    Returns
    -------
    MemoryUsage

    Raises
    ------
    OSError, ValueError
        If the system does not say how much is resident.

    Examples
    --------
    >>> import mempool
    >>> usage = mempool.memory_usage()
    >>> 0 < usage.rss <= usage.peak_rss, usage.uss is None
    (True, True)
    """
    return read_usage("/", uss=uss)


def read_usage(root: str | os.PathLike[str], *, uss: bool = False) -> MemoryUsage:
    """Return `memory_usage` as the tree says that stands for ``/``."""
    resident = process.memory(root)
    survey = limits.survey(root)
    bound = survey.binding
    external, idle, mapped = _external()
    return MemoryUsage(
        rss=resident.rss,
        uss=process.uss(root) if uss else None,
        peak_rss=max(resident.peak_rss, resident.rss),
        python_heap=python_heap(),
        external=external,
        mapped=mapped,
        idle=idle,
        limit=bound.limit if bound else None,
        limit_source=bound.source if bound else None,
        available=bound.available if bound else None,
        accounts=root_account().tree(),
        unread=tuple(f"{type(error).__name__}: {error}" for error in survey.errors),
    )


def python_heap() -> int | None:
    """Return the bytes that `tracemalloc` knows, without those of our domain; None if it is not running.

    Where something of ours is lent, every trace is looked at: some 0.3 s for a million of them.
    """
    if not tracemalloc.is_tracing():
        return None
    traced = tracemalloc.get_traced_memory()[0]
    if root_account().used == 0:
        return traced
    # What a snapshot is made of, without an object for each trace.
    traces: Sequence[tuple[int, int]] = tracemalloc._get_traces()  # type: ignore[attr-defined]
    return max(0, traced - sum(trace[1] for trace in traces if trace[0] == TRACEMALLOC_DOMAIN))
