"""Refresh ahead: an entry that is nearly over is loaded anew in the background, while its old value is still returned.

    written ----------------- refresh_ahead * ttl ------------- ttl
       |  a hit returns the value  |  a hit also begins one load  |  a miss: waits for that load, or begins one

A plain loader runs in one of a few threads, which exist while there is something to do; a coroutine function in a task of the
loop that runs. What waits for a thread is not a load yet: so nobody waits for what nobody runs.
"""

import os
from collections import deque
from contextlib import suppress
from contextvars import copy_context
from threading import Thread
from typing import TYPE_CHECKING, Any

from mempool.cache._policies import end_load
from mempool.cache.loading import Keeper, Load, Loads, Maker, Options
from mempool.cache.records import log
from mempool.cache.waiting import RETRY, Outcome, is_lost, running_loop, step_out

if TYPE_CHECKING:
    import asyncio

__all__ = ["Refresher", "check_fraction"]

THREADS = 4


def check_fraction(refresh_ahead: Any) -> float:
    """Return the fraction of the ttl after which a hit begins a load; ValueError for what is none."""
    if isinstance(refresh_ahead, bool) or not isinstance(refresh_ahead, (int, float)):
        raise TypeError(f"refresh_ahead must be a fraction of the ttl, not {type(refresh_ahead).__name__}")
    if not 0 <= refresh_ahead <= 1:
        raise ValueError(f"refresh_ahead must be between 0 and 1, got {refresh_ahead!r}")
    return refresh_ahead


class _Job:
    """One load to be done in a thread, with the context variables of who asked for it."""

    __slots__ = ("_context", "_make", "_refresher", "_table", "_wanted")

    def __init__(self, refresher: "Refresher", table: Keeper, wanted: "_Wanted", make: Maker) -> None:
        self._refresher, self._table, self._wanted, self._make = refresher, table, wanted, make
        self._context = copy_context()

    def run(self) -> None:
        self._context.run(self._refresher.reload, self._table, self._wanted, self._make)


class _Threads:
    """Up to so many threads that work off a queue, and end when it is empty."""

    def __init__(self) -> None:
        self._begin_afresh()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin_afresh)

    def _begin_afresh(self) -> None:
        self._queue: deque[_Job] = deque()
        self._free = set(range(THREADS))  # of who gives a number back twice there is one

    def submit(self, job: _Job) -> None:
        """Have it run; a thread that cannot be started is the caller's error."""
        self._queue.append(job)
        try:
            self._start()
        except BaseException:
            with suppress(ValueError):  # somebody does it already
                self._queue.remove(job)
            raise

    def _start(self) -> None:
        try:
            number = self._free.pop()
        except KeyError:  # all are at work, and each looks at the queue again after it gave its number back
            return
        try:
            Thread(target=self._work, args=(number,), name=f"mempool-refresh-{number}", daemon=True).start()
        except BaseException:  # Ctrl-C while it starts, too: then the thread does so as well
            self._free.add(number)
            raise

    def _work(self, number: int) -> None:
        try:
            while self._queue:
                try:
                    job = self._queue.popleft()
                except IndexError:
                    break
                job.run()
                del job
        finally:
            self._free.add(number)
            if self._queue:
                self._start()


_threads = _Threads()


class _Wanted(Load):
    """A load that is to begin, when its entry is as old as this."""

    __slots__ = ("fraction",)

    fraction: float

    def is_due(self, table: Keeper) -> bool:
        age = table._age(self.key)
        return age is not None and age[0] >= self.fraction * age[1]


class Refresher:
    """The refreshing of one cache's entries."""

    __slots__ = ("_loads", "_process", "_tasks", "_wanted", "failures")

    def __init__(self, loads: Loads) -> None:
        self._loads = loads
        self._process = os.getpid()
        self._wanted: dict[Load, Load] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.failures = 0

    def look(self, table: Keeper, key: Any, make: Maker, options: Options, fraction: float, awaited: bool) -> None:
        """Begin a load in the background if the entry of this key is old enough and nobody loads it."""
        wanted = _Wanted(key, options, loop=running_loop() if awaited else None)
        wanted.fraction = check_fraction(fraction)
        if not wanted.is_due(table) or self._loads.has(wanted):
            return
        if self._process != os.getpid():  # what was wanted, the parent does
            self._process, self._wanted = os.getpid(), {}
        try:
            other = self._wanted.setdefault(wanted, wanted)
        except BaseException:  # a signal's handler, as that returns
            self._begun(wanted)
            raise
        if other is not wanted:
            if is_lost(other):  # its task never ran
                self._begun(other)
            return
        try:
            self._start(table, wanted, make, awaited)
        except Exception as error:
            self._begun(wanted)
            self._failed(error)
        except BaseException:  # a signal's handler
            self._begun(wanted)
            raise

    def _start(self, table: Keeper, wanted: _Wanted, make: Maker, awaited: bool) -> None:
        if not awaited:
            _threads.submit(_Job(self, table, wanted, make))
            return
        loop = running_loop()
        if loop is None:
            raise RuntimeError("a coroutine function refreshes in asyncio only")
        for task in list(self._tasks):
            if task.get_loop().is_closed():
                self._tasks.discard(task)
        task = loop.create_task(self.reload_async(table, wanted, make))
        self._tasks.add(task)  # a loop holds its tasks weakly
        task.add_done_callback(lambda task: self._done(task, wanted))

    def _done(self, task: "asyncio.Task[None]", wanted: _Wanted) -> None:
        self._tasks.discard(task)
        self._begun(wanted)  # one that was cancelled before it ran

    def _begun(self, wanted: Load) -> None:
        wanted.gone = True  # equal to nothing but itself: no foreign code runs to find it
        self._wanted.pop(wanted, None)

    def reload(self, table: Keeper, wanted: _Wanted, make: Maker) -> None:
        """Load, in a thread of its own, unless somebody does, or the entry has become new, or is gone."""
        step_out()
        mine = Load(wanted.key, wanted.options, refreshing=True)
        try:
            if self._begins(mine, wanted, table):
                self._loads.lead(table, mine, make)
        except BaseException as error:  # SystemExit ends no thread of ours, nor the program, but is not lost
            self._failed(error, mine.outcome)
        finally:
            end_load(mine, self._loads.active, RETRY)
            del mine  # what was raised names this frame

    async def reload_async(self, table: Keeper, wanted: _Wanted, make: Maker) -> None:
        """Do so in a task."""
        step_out()
        mine = Load(wanted.key, wanted.options, refreshing=True, loop=running_loop())
        try:
            if self._begins(mine, wanted, table):
                await self._loads.lead_async(table, mine, make)
        except Exception as error:
            self._failed(error, mine.outcome)
        finally:
            end_load(mine, self._loads.active, RETRY)
            del mine  # what was raised names this frame

    def _begins(self, mine: Load, wanted: _Wanted, table: Keeper) -> bool:
        try:
            first = self._loads.begin(mine) is mine
        finally:  # a key that cannot be compared now may be so at the next hit
            self._begun(wanted)
        return first and wanted.is_due(table)

    def _failed(self, error: BaseException, outcome: Outcome | None = None) -> None:
        """Tell of the first one; count all, but what the load counted. The old value stays until its time is over."""
        self.failures += 1
        if outcome is None or outcome.error is not error:
            self._loads.failed += 1
        if self.failures == 1:
            log.warning("refreshing an entry failed; further failures are counted only", exc_info=error)
