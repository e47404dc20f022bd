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
    """Why an entry left a cache."""

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
    """Counts of a cache, since it was made, and what it holds now.

    Attributes
    ----------
    hits, misses : int
        Lookups that found a value, and that did not.
    """

    hits: int
    misses: int
