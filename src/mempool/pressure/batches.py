"""`adaptive_batches`: an iterable in batches whose size follows memory.

    source --pull--> held --take--> batch --> consumer
                       ^
                       what was pulled and not yet handed over outlives errors, Ctrl-C and a cancelled task

Invariant: every item of the source is in exactly one batch, in order. A generator was rejected: what is thrown into it ends it,
with the items that it holds; and its frame would keep the batch that the consumer is done with.
"""

import os
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from itertools import islice
from operator import index
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast, overload

from mempool._system import limits
from mempool.pressure.cleanup import Mode
from mempool.pressure.cleanup import cleanup as clean_up
from mempool.pressure.levels import Level
from mempool.pressure.monitor import PressureMonitor
from mempool.pressure.sizing import BatchSizer
from mempool.units import parse_duration

__all__ = ["AsyncBatches", "Batches", "Monitor", "adaptive_batches"]

T = TypeVar("T")

PIECE = 32  # items pulled between two looks at the level
LOOK_EVERY = 0.01  # seconds between two polls of a monitor that does not run, and between two readings of the room
MODES: tuple[Mode, ...] = ("light", "standard", "aggressive")


class Monitor(Protocol):
    """What batches need of a `PressureMonitor`."""

    @property
    def level(self) -> Level:
        """The level now."""

    def wait_for_relief(self, level: Level = ..., timeout: float | None = ...) -> bool:
        """Wait until below the level; False if the time is over."""

    def relief(self, level: Level = ..., timeout: float | None = ...) -> Awaitable[bool]:
        """Wait as a task."""


class Waits(NamedTuple):
    """All waiting for relief that batches of this process did."""

    begun: int = 0
    exhausted: int = 0
    seconds: float = 0.0

    def since(self, before: "Waits") -> "Waits":
        """Return what was added to `before`."""
        return Waits(self.begun - before.begun, self.exhausted - before.exhausted, self.seconds - before.seconds)


class _Tally:
    """Waits of all runs, in all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits = Waits()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._start_over)

    def _start_over(self) -> None:
        self._lock = threading.Lock()
        self._waits = Waits()

    def add(self, exhausted: bool, seconds: float) -> None:
        with self._lock:
            before = self._waits
            self._waits = Waits(before.begun + 1, before.exhausted + exhausted, before.seconds + seconds)

    def read(self) -> Waits:
        return self._waits


tally = _Tally()


class _Run(Generic[T]):
    """What a run knows and decides; how it pulls and waits is for those below."""

    def __init__(
        self,
        sizer: BatchSizer,
        monitor: Monitor,
        weigher: Callable[[T], int] | None,
        max_wait: float,
        cleanup: Callable[[Mode], object] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sizer, self._monitor, self._weigher, self._cleanup, self._clock = sizer, monitor, weigher, cleanup, clock
        self._left, self._waited = max_wait, 0.0
        self._held: list[T] = []
        self._weights: list[int] = []
        self._error: Exception | None = None
        self._ended = False
        self._busy = threading.Lock()
        self._level = Level.NORMAL
        self._stage, self._looked = 0, float("-inf")
        self._size, self._budget, self._counted, self._total = 0, cast("int | None", None), 0, 0

    @property
    def size(self) -> int:
        """Items that the sizer decided on last."""
        return self._sizer.size

    @property
    def waited(self) -> float:
        """Seconds that this run has waited for relief."""
        return self._waited

    # ---- before a batch

    def _look(self, again: bool = False) -> Level:
        """Read the level; a monitor is asked to look first, if it did not just do so, and one that does not run also `again`.

        A running one knows of growth of native memory, but not that Python's own grows between two of its polls.
        """
        now = self._clock()
        old = not 0 <= now - self._looked < LOOK_EVERY
        if not getattr(self._monitor, "running", True):
            if again or old:
                self._looked = now
                cast("Any", self._monitor).poll()
        elif old and isinstance(self._monitor, PressureMonitor):
            self._looked = now
            self._monitor._catch_up(LOOK_EVERY)
        return self._monitor.level

    def _due(self, level: Level) -> Mode | None:
        """Return the cleanup that is due: the next stage that the level allows, again only after it was lower."""
        self._stage = min(self._stage, int(level))
        if self._cleanup is None or self._stage >= int(level):
            return None
        self._stage = len(MODES) if level >= Level.CRITICAL else self._stage + 1
        return MODES[self._stage - 1]

    def _timeout(self) -> float | None:
        return None if self._left == float("inf") else self._left

    def _account(self, relieved: bool, seconds: float, whole: bool) -> None:
        """Take a wait from the budget; one that was not relieved took all of it, whatever a clock says."""
        spent = max(0.0, min(seconds, self._left))
        self._waited += spent
        self._left = 0.0 if whole and not relieved else self._left - spent
        tally.add(not relieved and self._left <= 0, spent)

    def _begin(self, level: Level) -> None:
        self._level = level
        self._size = self._sizer.next(level)
        self._budget = self._sizer.budget
        self._counted = self._total = 0

    # ---- while it is pulled

    def _ready(self) -> int | None:
        """Return how many items go now, None if more must be pulled."""
        held = len(self._held)
        if self._weigher is not None and self._overweight(self._weigher):
            return self._counted
        if held >= self._size:
            return self._size
        if self._ended or self._error is not None:
            return held
        return held if held >= self._sizer.min_size and self._risen() else None

    def _risen(self) -> bool:
        """Say whether pressure came up while this batch was pulled."""
        level = self._look()
        return level > self._level and level >= Level.HIGH

    def _overweight(self, weigher: Callable[[T], int]) -> bool:
        """Weigh what was pulled since, until one item too many."""
        while self._counted < min(len(self._held), self._size):
            if self._counted == len(self._weights):
                self._weights.append(_weight(weigher, self._held[self._counted]))
            total = self._total + self._weights[self._counted]
            if self._budget is not None and total > self._budget and self._counted >= self._sizer.min_size:
                return True
            self._total = total
            self._counted += 1
        return False

    def _take(self, count: int) -> list[T]:
        nbytes = None if self._weigher is None else sum(self._weights[:count])
        self._sizer.record(count, nbytes)
        del self._weights[:count]
        batch = self._held[:count]
        del self._held[:count]
        return batch

    def _raise_held(self) -> None:
        """Raise what the source raised, once all that came before it is handed over."""
        if self._held or self._error is None:
            return
        error, self._error = self._error, None
        try:
            raise error
        finally:
            del error

    def _over(self) -> bool:
        return self._ended and not self._held


class Batches(_Run[T], Iterator[list[T]]):
    """An iterator of lists, made by `adaptive_batches`. It keeps nothing of a batch that it handed over."""

    _source: Iterator[T]

    def __iter__(self) -> "Batches[T]":
        return self

    def __next__(self) -> list[T]:
        if not self._busy.acquire(blocking=False):
            raise ValueError("batches are already being made, in another thread or by the source itself")
        try:
            batch = self._next()
        except StopIteration as error:
            raise RuntimeError("a weigher, monitor or cleanup raised StopIteration") from error
        finally:
            self._busy.release()
        if not batch:
            raise StopIteration
        return batch

    def _next(self) -> list[T]:
        """Return the next batch, an empty one at the end."""
        self._raise_held()
        if self._over():
            return []
        self._begin(self._make_room())
        while (count := self._ready()) is None:
            self._pull()
        self._raise_held()
        return self._take(count)

    def _make_room(self) -> Level:
        level = self._look()
        mode = self._due(level)
        if mode is not None and self._cleanup is not None:
            self._cleanup(mode)
            level = self._look(again=True)
        if level < Level.HIGH or self._left <= 0:
            return level
        began, relieved, whole = self._clock(), False, False
        try:
            relieved = self._monitor.wait_for_relief(Level.HIGH, timeout=self._timeout())
            whole = True
        finally:
            self._account(relieved, self._clock() - began, whole)
        return self._look(again=True)

    def _pull(self) -> None:
        """Pull in one step that Ctrl-C cannot cut between source and list."""
        wanted = len(self._held) + (1 if self._weigher is not None else min(PIECE, self._size - len(self._held)))
        try:
            self._held.extend(islice(self._source, wanted - len(self._held)))
        except Exception as error:
            self._error = error
            return
        if len(self._held) < wanted:
            self._ended = True
            self._source = iter(())


class AsyncBatches(_Run[T], AsyncIterator[list[T]]):
    """An asynchronous iterator of lists, made by `adaptive_batches`. A cancelled `anext` loses nothing that was pulled."""

    _source: AsyncIterator[T]

    def __aiter__(self) -> "AsyncBatches[T]":
        return self

    async def __anext__(self) -> list[T]:
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("batches are already being made, in another task or by the source itself")
        try:
            batch = await self._next()
        except StopAsyncIteration as error:
            raise RuntimeError("a weigher, monitor or cleanup raised StopAsyncIteration") from error
        finally:
            self._busy.release()
        if not batch:
            raise StopAsyncIteration
        return batch

    async def aclose(self) -> None:
        """End the run, and the source if it can be closed. What it held is dropped."""
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("batches cannot be closed while one is being made")
        try:
            self._ended, self._error = True, None
            self._held.clear()
            self._weights.clear()
            close = getattr(self._source, "aclose", None)
            if close is not None:
                await close()
        finally:
            self._busy.release()

    async def _next(self) -> list[T]:
        """Return the next batch, an empty one at the end."""
        self._raise_held()
        if self._over():
            return []
        self._begin(await self._make_room())
        while (count := self._ready()) is None:
            await self._pull()
        self._raise_held()
        return self._take(count)

    async def _make_room(self) -> Level:
        level = self._look()
        mode = self._due(level)
        if mode is not None and self._cleanup is not None:
            await self._clean(self._cleanup, mode)
            level = self._look(again=True)
        if level < Level.HIGH or self._left <= 0:
            return level
        began, relieved, whole = self._clock(), False, False
        try:
            relieved = await self._monitor.relief(Level.HIGH, timeout=self._timeout())
            whole = True
        finally:
            self._account(relieved, self._clock() - began, whole)
        return self._look(again=True)

    async def _clean(self, cleanup: Callable[[Mode], object], mode: Mode) -> None:
        """Run what takes long in a thread, so that other tasks go on."""
        if mode != MODES[-1]:
            cleanup(mode)
            return
        import asyncio

        await asyncio.to_thread(cleanup, mode)

    async def _pull(self) -> None:
        try:
            self._held.append(await anext(self._source))
        except StopAsyncIteration:
            self._ended = True
        except Exception as error:
            self._error = error


def _weight(weigher: Callable[[T], int], item: T) -> int:
    """Return the bytes of an item; the error names what the weigher said."""
    weight = weigher(item)
    try:
        nbytes = index(weight)
    except TypeError:
        raise TypeError(f"weigher must return an int of bytes, not {weight!r}") from None
    if nbytes < 0:
        raise ValueError(f"weigher must not return a negative number of bytes, got {nbytes}")
    return nbytes


class _RoomLeft:
    """Bytes until the limit that binds, read anew when they are older than `LOOK_EVERY`."""

    def __init__(self) -> None:
        self._read, self._room = float("-inf"), 0

    def __call__(self) -> int:
        now = time.monotonic()
        if now - self._read >= LOOK_EVERY:
            self._room, self._read = limits.binding().available, now
        return self._room


@overload
def adaptive_batches(
    iterable: Iterable[T],
    size: int | None = ...,
    *,
    min_size: int = ...,
    max_size: int | None = ...,
    monitor: Monitor | None = ...,
    weigher: Callable[[T], int] | None = ...,
    max_wait: float | str = ...,
    max_bytes: int | str | None = ...,
    cleanup: bool = ...,
) -> Batches[T]: ...


@overload
def adaptive_batches(
    iterable: AsyncIterable[T],
    size: int | None = ...,
    *,
    min_size: int = ...,
    max_size: int | None = ...,
    monitor: Monitor | None = ...,
    weigher: Callable[[T], int] | None = ...,
    max_wait: float | str = ...,
    max_bytes: int | str | None = ...,
    cleanup: bool = ...,
) -> AsyncBatches[T]: ...


def adaptive_batches(
    iterable: Iterable[T] | AsyncIterable[T],
    size: int | None = None,
    *,
    min_size: int = 1,
    max_size: int | None = None,
    monitor: Monitor | None = None,
    weigher: Callable[[T], int] | None = None,
    max_wait: float | str = 1.0,
    max_bytes: int | str | None = None,
    cleanup: bool = True,
) -> Batches[T] | AsyncBatches[T]:
    """Cut an iterable into lists whose length follows memory; every item comes once, in order.

    Parameters
    ----------
    iterable : iterable or asynchronous iterable
        The latter is iterated with ``async for``; what is both is taken as the former.
    size : int or None
        Items of the first batch. None: the setting ``batch_size``, else 100.
    min_size, max_size : int or None
        Bounds of what pressure makes of it; None: `size` is the most.
    monitor : PressureMonitor or None
        Whose level counts; None: `default_monitor`. One that does not run is polled before each batch.
    weigher : callable or None
        Bytes of an item. Then a batch of more than `min_size` items weighs at most a quarter of the memory that is left.
    max_wait : float or str
        Seconds that the whole run may wait, at a high or critical level before a batch, for relief.
    max_bytes : int, str or None
        Most bytes of a batch of more than `min_size` items. It needs a weigher.
    cleanup : bool
        Run `mempool.cleanup` between batches: light when the level is elevated, standard when it stays high, aggressive
        at once when it is critical; each once, until the level was lower.

    Returns
    -------
    Batches or AsyncBatches
        An iterator. What the source raises comes after the items before it. Dropping it drops what it holds.

    Raises
    ------
    TypeError, ValueError
        For sizes that are none or out of order, `max_bytes` without a weigher, and what cannot be iterated.

    Examples
    --------
    >>> from mempool.pressure import adaptive_batches
    >>> [len(batch) for batch in adaptive_batches(range(250), max_wait=0)]
    [100, 100, 50]
    """
    if max_bytes is not None and weigher is None:
        raise ValueError(f"max_bytes of {max_bytes!r} needs a weigher")
    room = None if weigher is None else _RoomLeft()
    sizer = BatchSizer(size, min_size=min_size, max_size=max_size, max_bytes=max_bytes, room=room)
    return start(iterable, sizer, monitor, weigher, parse_duration(max_wait, "max_wait"), clean_up if cleanup else None)


def start(
    iterable: Iterable[T] | AsyncIterable[T],
    sizer: BatchSizer,
    monitor: Monitor | None,
    weigher: Callable[[T], int] | None,
    max_wait: float,
    cleanup: Callable[[Mode], object] | None,
    clock: Callable[[], float] = time.monotonic,
) -> Batches[T] | AsyncBatches[T]:
    """Make the run for a kind of iterable, with all that it uses."""
    source: Any
    if isinstance(iterable, AsyncIterable) and not isinstance(iterable, Iterable):
        source, kind = aiter(iterable), cast("Any", AsyncBatches)
    else:
        source, kind = iter(cast("Iterable[T]", iterable)), cast("Any", Batches)
    run = kind(sizer, _default_monitor() if monitor is None else monitor, weigher, max_wait, cleanup, clock)
    run._source = source
    return cast("Batches[T] | AsyncBatches[T]", run)


def _default_monitor() -> Monitor:
    from mempool.pressure.default import default_monitor

    return default_monitor()
