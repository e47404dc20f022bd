"""What the tests of cleanups share: caches that are counted and that act, pools with idle memory."""

from collections.abc import Callable
from typing import Any

import mempool
from mempool.pressure import CleanupReport, register
from support import MIB


class Cache:
    """A cache of entries of one size, in Python's own memory."""

    def __init__(self, entries: int = 64, size: int = MIB, name: str = "entries") -> None:
        self.name, self.size = name, size
        self.entries = [bytearray(size) for _ in range(entries)]
        register(self)

    @property
    def nbytes(self) -> int:
        return len(self.entries) * self.size

    def shrink(self, nbytes: int) -> int:
        number = min(-(-nbytes // self.size), len(self.entries))
        del self.entries[:number]
        return number * self.size


class Acting(Cache):
    """Does something of its own when asked to shrink."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        super().__init__(4, 1000, "acting")

    def shrink(self, nbytes: int) -> int:
        self.act()
        return super().shrink(nbytes)


def idle_pool(*sizes: int) -> mempool.BufferPool:
    pool = mempool.BufferPool(idle_timeout=None)
    for lease in [pool.acquire(nbytes, zero=True) for nbytes in sizes]:
        lease.release()
    return pool


def by_name(report: CleanupReport) -> dict[str, Any]:
    return {step.name: step for step in report.steps}
