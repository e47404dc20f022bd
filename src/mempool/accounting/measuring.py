"""`measure`: what a piece of code did to memory."""

import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from mempool import _core
from mempool._system import process
from mempool.accounting import _lent

__all__ = ["MemoryDelta", "Reading", "measure", "read_memory"]

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Reading:
    """What the process holds at one moment.

    Attributes
    ----------
    time : float
        Seconds, of the clock that was asked for.
    rss : int
        Resident bytes, from all causes.
    external : int
        Native bytes that accounts hold, idle memory of pools included.
    idle : int
        Those that are ready to lend.
    heap : int or None
        Bytes of Python's heap and of what else is traced, without ours. None unless `tracemalloc` runs.
    blocks : int
        Small objects of Python.
    """

    time: float
    rss: int
    external: int
    idle: int
    heap: int | None
    blocks: int

    @property
    def lent(self) -> int:
        """Native bytes that somebody uses."""
        return self.external - self.idle


def read_memory(clock: Callable[[], float] = time.monotonic) -> Reading:
    """Read what the process holds now.

    Returns
    -------
    Reading

    Raises
    ------
    OSError, ValueError
        If the system does not tell.
    """
    external, idle = _external()
    heap = max(0, tracemalloc.get_traced_memory()[0] - (external - idle)) if tracemalloc.is_tracing() else None
    return Reading(clock(), process.rss(), external, idle, heap, sys.getallocatedblocks())


def _external() -> tuple[int, int]:
    found = getattr(_core, "_external", None)
    if found is not None:
        reserved, idle, _ = found()
        return reserved, idle
    return _core.root_account().used, sum(nbytes for _, nbytes in _lent.idle_bytes())
