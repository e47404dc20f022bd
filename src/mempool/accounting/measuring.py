"""`measure`: what a piece of code did to memory."""

import logging
import sys
import time
import tracemalloc
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from mempool import _core
from mempool._system import process
from mempool.accounting.usage import python_heap

__all__ = ["MemoryDelta", "Snapshot", "measure", "take_snapshot"]

_log = logging.getLogger("mempool.accounting")
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the process held at one moment.

    Attributes
    ----------
    label : str or None
        What it was called.
    time : float
        Seconds, of the clock that was read.
    rss : int
        Resident bytes, from all causes.
    external : int
        Native bytes that accounts hold.
    idle : int
        Those of them that pools have ready to lend.
    traced : int or None
        Bytes that `tracemalloc` knows: Python's heap, and what this package lent since it runs. None unless it runs.
    blocks : int
        Small objects of Python (`sys.getallocatedblocks`).
    mapped : int
        Those bytes of `external` that are mapped files, read or not.
    shared : int
        Resident bytes that are pages of files, or of shared memory. Off Linux: those that may be, all.
    python_heap : int or None
        As `traced`, without what this package lent. None unless `tracemalloc` runs and `take_snapshot` was told to look.
    """

    label: str | None
    time: float
    rss: int
    external: int
    idle: int
    traced: int | None
    blocks: int
    mapped: int = 0
    shared: int = 0
    python_heap: int | None = None

    @property
    def lent(self) -> int:
        """Native bytes that programs hold: external, but neither idle nor mapped, as in `MemoryUsage.lent`."""
        return max(0, self.external - self.idle - self.mapped)


def take_snapshot(
    label: str | None = None, clock: Callable[[], float] = time.monotonic, *, heap: bool = False
) -> Snapshot:
    """Read what the process holds now; takes some ten microseconds.

    Parameters
    ----------
    label : str, optional
        Name of the snapshot.
    clock : callable
        Seconds.
    heap : bool
        Also tell what this package lent from Python's heap, while `tracemalloc` runs: it looks at every trace, some 0.3 s for a
        million of them.

    Raises
    ------
    OSError, ValueError
        If the system does not tell.
    """
    external, idle, mapped = _core._external()
    traced = tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else None
    known = python_heap() if heap else None
    resident, shared = process.rss_and_shared()
    blocks = sys.getallocatedblocks()
    return Snapshot(label, clock(), resident, external, idle, traced, blocks, mapped, shared, known)


@dataclass(frozen=True, slots=True)
class MemoryDelta:
    """What changed between two snapshots; everything but `before` and `after` is a difference, and may be negative.

    Attributes
    ----------
    label : str or None
        What was measured.
    before, after : Snapshot
        The two.
    """

    label: str | None
    before: Snapshot
    after: Snapshot

    @property
    def seconds(self) -> float:
        """Time between them."""
        return self.after.time - self.before.time

    @property
    def rss(self) -> int:
        """Resident bytes."""
        return self.after.rss - self.before.rss

    @property
    def external(self) -> int:
        """Native bytes that accounts hold."""
        return self.after.external - self.before.external

    @property
    def idle(self) -> int:
        """Bytes that pools have ready to lend."""
        return self.after.idle - self.before.idle

    @property
    def mapped(self) -> int:
        """Bytes of mapped files, read or not."""
        return self.after.mapped - self.before.mapped

    @property
    def lent(self) -> int:
        """Native bytes that programs hold, without mapped files."""
        return self.after.lent - self.before.lent

    @property
    def traced(self) -> int | None:
        """Bytes that `tracemalloc` knows; None unless it ran at both moments."""
        before, after = self.before.traced, self.after.traced
        return None if before is None or after is None else after - before

    @property
    def python_heap(self) -> int | None:
        """Bytes of Python's heap; None unless both snapshots know."""
        before, after = self.before.python_heap, self.after.python_heap
        return None if before is None or after is None else after - before

    @property
    def blocks(self) -> int:
        """Small objects of Python."""
        return self.after.blocks - self.before.blocks

    def __str__(self) -> str:
        traced = "" if self.traced is None else f", traced {self.traced:+,}"
        figures = f"resident {self.rss:+,}, lent {self.lent:+,}, idle {self.idle:+,}{traced} bytes"
        return f"{self.label or 'measured'}: {figures} in {self.seconds:.3g} s"


class measure:  # noqa: N801 - used as the functions of contextlib are
    """measure(label=None, report=None): what a block, or each call of a function, does to memory.

    Parameters
    ----------
    label : str, optional
        Name of what is measured; for a function its own by default.
    report : callable, optional
        Called with each `MemoryDelta`, in the thread that was measured.

    Notes
    -----
    The figures are those of the whole process: other threads count. A decorated generator is measured from its first value to its
    end, with whatever its consumer does in between, a coroutine with whatever runs while it waits. An exception ends a measurement
    like any other end; what `report` raises then is logged to ``mempool.accounting`` and does not take its place. Asynchronous
    generators are refused.

    Examples
    --------
    >>> from mempool import BufferPool
    >>> pool = BufferPool()
    >>> with measure("load") as load:
    ...     buffer = pool.acquire("1MiB")
    >>> load.delta.lent
    1048576
    >>> @measure()
    ... def again():
    ...     return pool.acquire("2MiB")
    >>> kept = again()
    >>> again.measured.delta.label, again.measured.delta.lent
    ('again', 2097152)
    """

    __slots__ = ("_before", "_report", "delta", "label")

    delta: MemoryDelta | None
    """The last finished measurement, None before the first."""

    def __init__(self, label: str | None = None, report: Callable[[MemoryDelta], object] | None = None) -> None:
        if label is not None and not isinstance(label, str):
            raise TypeError(f"label must be a str, not {label!r}; a function is decorated with @measure()")
        if report is not None and not callable(report):
            raise TypeError(f"report must be callable, not {report!r}")
        self.label, self._report = label, report
        self.delta = None
        self._before: Snapshot | None = None

    def __enter__(self) -> Self:
        if self._before is not None:
            raise RuntimeError(f"measure({self.label!r}) is measuring already; make one for each block")
        self._before = take_snapshot(self.label)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before, self._before = self._before, None
        if before is None:
            return
        try:
            self._finish(MemoryDelta(self.label, before, take_snapshot(self.label)))
        except Exception:
            if error is None:
                raise
            _log.exception("the end of measure(%r) raised, after the work itself had raised", self.label)

    def _finish(self, delta: MemoryDelta) -> None:
        self.delta = delta
        if self._report is not None:
            self._report(delta)

    def _each(self, name: str) -> "measure":
        """Return a measurement of one call, which reports here: calls may overlap."""
        return measure(self.label or name, self._finish)

    def __call__(self, func: _F) -> _F:
        """Decorate a function, a coroutine function or a generator function; it gets an attribute ``measured``."""
        if not callable(func):
            raise TypeError(f"measure() decorates functions, not {func!r}")
        if isasyncgenfunction(func):
            raise TypeError(
                f"{func!r} is an asynchronous generator: what it does cannot be told from what its consumers do"
            )
        wrapped = self._wrapped(func, getattr(func, "__name__", repr(func)))
        wrapped.measured = self  # type: ignore[attr-defined]
        return cast("_F", wrapped)

    def _wrapped(self, func: Callable[..., Any], name: str) -> Callable[..., Any]:
        if iscoroutinefunction(func):

            @wraps(func)
            async def coroutine(*args: Any, **kwargs: Any) -> Any:
                with self._each(name):
                    return await func(*args, **kwargs)

            return coroutine
        if isgeneratorfunction(func):

            @wraps(func)
            def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
                with self._each(name):
                    return (yield from func(*args, **kwargs))

            return generator

        @wraps(func)
        def function(*args: Any, **kwargs: Any) -> Any:
            with self._each(name):
                return func(*args, **kwargs)

        return function
