"""What caches have to agree with: exact LRU and FIFO in a few lines of Python, and the best that any cache could do."""

from __future__ import annotations

import heapq
from collections import OrderedDict

from benchmarks.traces import Trace


def exact_lru(trace: Trace, bound: int) -> int:
    """Count the hits of a cache that evicts what was not asked for the longest.

    Parameters
    ----------
    trace
        Its sizes count, where it has some; each key keeps the size with which it came in.
    bound
        The most that the sizes of what is held may add up to; what is larger alone is not held.
    """
    return replay(trace, bound, move=True)


def exact_fifo(trace: Trace, bound: int) -> int:
    """Count the hits of a cache that evicts what came in first; the rest as :func:`exact_lru`."""
    return replay(trace, bound, move=False)


def replay(trace: Trace, bound: int, *, move: bool) -> int:
    """Ask for each key, put what is missing, evict from the old end; with `move` a hit makes a key the newest."""
    held: OrderedDict[int, int] = OrderedDict()
    hits = total = 0
    for key, size in trace.requests():
        if key in held:
            hits += 1
            if move:
                held.move_to_end(key)
        elif size <= bound:
            held[key] = size
            total += size
            while total > bound:
                total -= held.popitem(last=False)[1]
    return hits


def optimum(trace: Trace, bound: int) -> int:
    """Count the hits of Belady's rule, which knows the future: of all keys, the one asked for last is not held.

    That is the most that any cache of `bound` entries can reach. It counts entries: with sizes there is no such rule.
    """
    upcoming = next_uses(trace.keys)
    held: set[int] = set()
    # Positions of next requests, negated. What was asked for meanwhile stays in: it lies behind all that is to come.
    farthest: list[tuple[int, int]] = []
    hits = 0
    for key, following in zip(trace.keys, upcoming, strict=True):
        hits += key in held
        held.add(key)
        heapq.heappush(farthest, (-following, key))
        if len(held) > bound:
            held.remove(heapq.heappop(farthest)[1])
    return hits


def next_uses(keys: list[int]) -> list[int]:
    """The position at which each request's key is asked for again; beyond the end where it is not."""
    seen: dict[int, int] = {}
    upcoming = [0] * len(keys)
    for position in range(len(keys) - 1, -1, -1):
        upcoming[position] = seen.get(keys[position], len(keys))
        seen[keys[position]] = position
    return upcoming
