"""What the tests of loads share: loaders that wait to be let go, and a look at what a cache would leak."""

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock
from typing import Any

from mempool.cache import Cache, waiting
from support import DEADLINE, until


class Oops(Exception):
    """What a loader raises."""


ERRORS = (Oops, KeyboardInterrupt, SystemExit)


class Gate:
    """A plain loader that waits until it is let go; how many runs there were, and how many at once."""

    def __init__(self, *ends: Any) -> None:
        self._ends = list(ends)  # of each run: a value, or an exception; then the key doubled
        self._lock = Lock()
        self.entered, self.go = Event(), Event()
        self.runs = self.now = self.most = 0

    def __call__(self, key: Any) -> Any:
        with self._lock:
            run = self.runs
            self.runs += 1
            self.now += 1
            self.most = max(self.most, self.now)
        self.entered.set()
        try:
            assert self.go.wait(DEADLINE)
            end = self._ends[run] if run < len(self._ends) else key * 2
            if isinstance(end, BaseException) or (isinstance(end, type) and end in ERRORS):
                raise end  # a class, where the frame that raises must not name what it raised
            return end
        finally:
            with self._lock:
                self.now -= 1


def waiters(cache: Cache[Any, Any]) -> int:
    """How many threads and tasks wait for loads of this cache."""
    return sum(len(load.waiters) for load in list(cache._loads.active))


def wait_for_waiters(cache: Cache[Any, Any], count: int) -> None:
    until(lambda: waiters(cache) == count, f"{count} waiters")


def check_idle(*caches: Cache[Any, Any]) -> None:
    """Nobody loads, nobody waits, nothing is kept of who did."""
    for cache in caches:
        assert cache._loads.active == {}
        assert cache._refresher._wanted == {}
    assert waiting._asleep == {}
    assert waiting._scopes.get() == ()


def left_idle() -> Iterator[Cache[Any, Any]]:
    """A cache, for a fixture: nobody is left behind in it."""
    cache: Cache[Any, Any] = Cache(100)
    yield cache
    check_idle(cache)


@contextmanager
def without_collector() -> Iterator[None]:
    """What dies in here dies by itself."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Named:
    """A key or a value that can be watched as it dies."""

    def __init__(self, name: object) -> None:
        self.name = name

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Named) and self.name == other.name

    def __mul__(self, by: int) -> "Named":
        return Named((self.name, by))


# ---- asyncio ----


class AsyncGate:
    """A coroutine function that waits until it is let go."""

    def __init__(self, *ends: Any) -> None:
        self._ends = list(ends)
        self.entered, self.go = asyncio.Event(), asyncio.Event()
        self.runs = self.now = self.most = 0

    async def __call__(self, key: Any) -> Any:
        run, self.runs, self.now = self.runs, self.runs + 1, self.now + 1
        self.most = max(self.most, self.now)
        self.entered.set()
        try:
            await self.go.wait()
            end = self._ends[run] if run < len(self._ends) else key * 2
            if isinstance(end, BaseException) or end is Oops:
                raise end
            return end
        finally:
            self.now -= 1


async def until_waiting(cache: Cache[Any, Any], count: int) -> None:
    """Let other tasks run until so many wait."""
    async with asyncio.timeout(DEADLINE):
        while sum(len(load.waiters) for load in list(cache._loads.active)) != count:
            await asyncio.sleep(0)


async def doubled(key: Any) -> Any:
    await asyncio.sleep(0)
    return key * 2


def doubled_at_once(key: Any) -> Any:
    return key * 2
