"""What the tests of reclaimers share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mempool import BufferPool, _reclaim


@contextmanager
def no_reclaimers() -> Iterator[None]:
    """Start with none, and leave none behind."""
    before = dict(_reclaim._registered)
    _reclaim._registered.clear()
    yield
    _reclaim._registered.clear()
    _reclaim._registered.update(before)


class Hoard:
    """Leases, or anything, that can be given up one at a time."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.kept: list[Any] = []
        self.asked: list[int] = []

    def give_up(self, needed: int) -> int:
        self.asked.append(needed)
        freed = 0
        while self.kept and freed < needed:
            self.kept.pop()
            freed += self.nbytes
        return freed


def full_pool(hoard: Hoard, count: int = 4, **options: Any) -> BufferPool:
    pool = BufferPool(limit=count * hoard.nbytes, **options)
    hoard.kept = [pool.acquire(hoard.nbytes) for _ in range(count)]
    return pool
