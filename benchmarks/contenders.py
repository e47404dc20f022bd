"""Every cache whose hits are counted: mempool's policies, the exact references, and the rivals that are installed.

Each is asked as a program would ask: get, and put what was missing. All hits are counted here, the same way for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import reference
from benchmarks.harness import peer
from benchmarks.traces import Trace
from mempool.cache import Cache

POLICIES = ("lru", "lfu", "fifo", "random", "sieve", "s3fifo", "tinylfu")
DEFAULT = "default"
LRU, FIFO, OPTIMUM, THEINE, CACHETOOLS = "exact LRU", "exact FIFO", "optimum", "theine", "cachetools LRU"


class Job(NamedTuple):
    """One trace through caches of one size.

    Parameters
    ----------
    trace
        The requests.
    percent
        The size in percent of the keys, or of their bytes.
    by_bytes
        Whether the sizes of the trace count; else each entry counts one.
    """

    trace: Trace
    percent: float
    by_bytes: bool = False

    @property
    def bound(self) -> int:
        """The size as a number of entries, or of bytes."""
        return self.trace.bound(self.percent, by_bytes=self.by_bytes)

    @property
    def counted(self) -> Trace:
        """The trace with sizes only if they count."""
        return self.trace if self.by_bytes else self.trace._replace(sizes=None)


Count = Callable[[Job], int]


def own(policy: str | None) -> Count:
    """Count the hits of mempool's cache with one policy; None is the default."""

    def count(job: Job) -> int:
        if job.by_bytes:
            return mapping_hits(Cache(max_bytes=job.bound, getsizeof=int, policy=policy), job)
        return mapping_hits(Cache(job.bound, policy=policy), job)

    return count


def mapping_hits(cache: Any, job: Job) -> int:
    """Count the hits of a cache that is a mapping; what is larger than all of it is not offered."""
    hits, bound = 0, job.bound
    for key, size in job.counted.requests():
        if cache.get(key) is not None:
            hits += 1
        elif size <= bound:
            cache[key] = size
    return hits


def theine_hits(job: Job) -> int:
    """Count the hits of theine's cache, which knows entries and no sizes."""
    theine: Any = peer(THEINE)
    cache = theine.Cache(job.bound)
    hits = 0
    for key in job.trace.keys:
        if cache.get(key)[1]:
            hits += 1
        else:
            cache.set(key, key)
    cache.close()
    return hits


def cachetools_hits(job: Job) -> int:
    """Count the hits of cachetools' LRU."""
    cachetools: Any = peer("cachetools")
    return mapping_hits(cachetools.LRUCache(job.bound, getsizeof=int if job.by_bytes else None), job)


def contenders(*, by_bytes: bool) -> dict[str, Count]:
    """Name who can run: all of mempool's, the references, and of the rivals those installed."""
    found: dict[str, Count] = {policy: own(policy) for policy in POLICIES}
    found[DEFAULT] = own(None)
    found[LRU] = lambda job: reference.exact_lru(job.counted, job.bound)
    found[FIFO] = lambda job: reference.exact_fifo(job.counted, job.bound)
    if peer("cachetools") is not None:
        found[CACHETOOLS] = cachetools_hits
    if not by_bytes:
        found[OPTIMUM] = lambda job: reference.optimum(job.trace, job.bound)
        if peer(THEINE) is not None:
            found[THEINE] = theine_hits
    return found


class Score(NamedTuple):
    """The hits of every contender in one job."""

    trace: str
    percent: float
    by_bytes: bool
    bound: int
    requests: int
    hits: dict[str, int]

    def ratio(self, name: str) -> float:
        """The part of the requests that a contender answered."""
        return self.hits[name] / self.requests


def play(job: Job) -> Score:
    """Run every contender over one job; in a process of a pool, so that the jobs share the cores."""
    hits = {name: count(job) for name, count in contenders(by_bytes=job.by_bytes).items()}
    return Score(job.trace.name, job.percent, job.by_bytes, job.bound, len(job.trace.keys), hits)
