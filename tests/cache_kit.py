"""What the tests of caches share."""

from collections.abc import Iterable
from typing import Any

from mempool.cache import Cache, Cause


def hits(cache: Cache[int, int], trace: Iterable[int]) -> int:
    """Hits of a get-or-put loop."""
    found = 0
    for key in trace:
        if cache.get(key) is None:
            cache[key] = 1
        else:
            found += 1
    return found


class Clock:
    """Says what it is told to."""

    def __init__(self, now: float = 0.0) -> None:
        self.now: Any = now

    def __call__(self) -> Any:
        return self.now


class Told:
    """A listener that notes what it is told."""

    def __init__(self) -> None:
        self.all: list[tuple[Any, Any, Cause]] = []

    def __call__(self, key: Any, value: Any, cause: Cause) -> None:
        self.all.append((key, value, cause))

    def take(self) -> list[tuple[Any, Any, Cause]]:
        """Return what was told since the last time, sorted by key."""
        told, self.all = self.all, []
        return sorted(told, key=lambda entry: repr(entry[0]))


class Own:
    """A key whose hash and equality run Python."""

    def __init__(self, number: int, hashed: int = 0) -> None:
        self.number, self.hashed = number, hashed

    def __hash__(self) -> int:
        return self.hashed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and self.number == other.number

    def __repr__(self) -> str:
        return f"Own({self.number})"
