"""What a cache says of itself: why entries left, counts, and its error."""

import logging
from dataclasses import dataclass
from enum import IntEnum

from mempool.errors import MempoolError

__all__ = ["CacheFull", "CacheStats", "Cause"]

log = logging.getLogger("mempool.cache")


class CacheFull(MempoolError, MemoryError):
    """Nothing may be evicted for a new entry: the policy is ``noeviction``, or ``volatile-...`` and no entry has a ttl."""


class Cause(IntEnum):
    """Why an entry left a cache.

    Attributes
    ----------
    EVICTED
        For the bound: the policy chose it.
    EXPIRED
        Its time was over.
    DELETED
        By ``del``, `pop`, `popitem` or `clear`.
    REPLACED
        By another value of its key.
    INVALIDATED
        By its key, a tag, or for its version.
    PRESSURE
        The cache was asked to shrink.
    COLLECTED
        The garbage collector had its value or key: weak caches only.
    """

    EVICTED = 0
    EXPIRED = 1
    DELETED = 2
    REPLACED = 3
    INVALIDATED = 4
    PRESSURE = 5
    COLLECTED = 6


CAUSES_BY_NUMBER = tuple(Cause)


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a cache counted since it was made, and what it holds now.

    `insertions` less what left, for whatever reason, is `entries`.

    Attributes
    ----------
    hits, misses : int
        Lookups that found a value, and that did not. Not counted: ``in``, iteration, views, what removes.
    insertions : int
        Values that were put, also over others.
    rejections : int
        Values that were refused: larger than the bound, or nothing could be evicted for them.
    loads, load_errors : int
        Loaders that returned, and that raised.
    load_seconds : float
        Spent in loaders, by all of them.
    evictions, expirations, deletions, replacements, invalidations, pressed, collected : int
        Entries that left, by `Cause`: `pressed` for ``PRESSURE``.
    listener_errors : int
        Calls of ``on_evict`` that raised.
    entries : int
        In the cache now, with those whose time is over and that were not removed yet.
    currsize : int
        Sum of their sizes.
    maxsize : float
        The bound of `currsize`, or of the number of entries beside `max_bytes`.
    max_bytes : int or None
        The bound in bytes.
    allowance : float
        What pressure leaves of the bound of `currsize` at the moment.
    pinned, pinned_values : int
        Bytes of values that left but are still viewed, as `Cache.pinned`, and how many those are.
    own_bytes : int
        Native memory of the table itself: slots, index, policies, index of tags. Keys and values are not in it.
    """

    hits: int
    misses: int
    insertions: int
    rejections: int
    loads: int
    load_errors: int
    load_seconds: float
    evictions: int
    expirations: int
    deletions: int
    replacements: int
    invalidations: int
    pressed: int
    collected: int
    listener_errors: int
    entries: int
    currsize: int
    maxsize: float
    max_bytes: int | None
    allowance: float
    pinned: int
    pinned_values: int
    own_bytes: int

    @property
    def hit_ratio(self) -> float:
        """Share of lookups that found a value; 0 before the first."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else 0.0
