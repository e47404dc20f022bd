"""Who waits for relief: threads and tasks.

A waiter is woken when the level fell below its own, and when the monitor stops, for then it must look itself. Being woken
promises nothing: whoever wakes looks again.
"""

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from mempool.pressure.levels import Level

if TYPE_CHECKING:
    import asyncio

__all__ = ["TaskWaiter", "ThreadWaiter", "Waiters"]


class ThreadWaiter:
    """A thread that sleeps on a lock."""

    def __init__(self, level: Level) -> None:
        self.level = level
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self) -> None:
        """Let it look again."""
        with suppress(RuntimeError):  # woken before, and not yet gone back to sleep
            self._lock.release()

    def sleep(self, seconds: float | None) -> None:
        """Sleep until woken, or so long; Ctrl-C interrupts."""
        self._lock.acquire(timeout=-1 if seconds is None else min(max(seconds, 0.0), threading.TIMEOUT_MAX))


class TaskWaiter:
    """A task that sleeps on an event of its loop."""

    def __init__(self, level: Level, loop: "asyncio.AbstractEventLoop") -> None:
        import asyncio

        self.level = level
        self._loop = loop
        self._event = asyncio.Event()

    def wake(self) -> None:
        """Let it look again, if its loop still runs."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits there
            self._loop.call_soon_threadsafe(self._event.set)

    async def sleep(self, seconds: float | None) -> None:
        """Sleep until woken, or so long."""
        import asyncio

        with suppress(TimeoutError):
            async with asyncio.timeout(None if seconds is None else max(seconds, 0.0)):
                await self._event.wait()
        self._event.clear()


class Waiters:
    """All who wait at one monitor; copied before it is walked, so that no lock is held while they are woken."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._all: set[ThreadWaiter | TaskWaiter] = set()

    def add(self, waiter: ThreadWaiter | TaskWaiter) -> None:
        """From now on it is woken."""
        with self._lock:
            self._all.add(waiter)

    def remove(self, waiter: ThreadWaiter | TaskWaiter) -> None:
        """From now on it is not; idempotent."""
        with self._lock:
            self._all.discard(waiter)

    def wake(self, level: Level | None = None) -> None:
        """Wake those who wait for less than their level, or (None) all."""
        with self._lock:
            chosen = [waiter for waiter in list(self._all) if level is None or level < waiter.level]
        for waiter in chosen:
            waiter.wake()

    def __len__(self) -> int:
        return len(self._all)

    def after_fork(self) -> None:
        """Who waited was a thread of the parent."""
        self._lock = threading.RLock()
        self._all = set()
