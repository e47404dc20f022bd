"""Keys and values that do to a cache what nobody should."""

from collections.abc import Callable
from typing import Any

from mempool.cache import Cache

__all__ = ["Key", "Mortal", "check"]


class Key:
    """Equal to keys of the same name; `on_eq` and `on_hash` run first, and may raise."""

    def __init__(
        self,
        name: Any,
        hash: int = 0,
        on_eq: Callable[[], object] | None = None,
        on_hash: Callable[[], object] | None = None,
    ) -> None:
        self.name, self.hash, self.on_eq, self.on_hash = name, hash, on_eq, on_hash
        self.asked = 0

    def __hash__(self) -> int:
        if self.on_hash is not None:
            self.on_hash()
        return self.hash

    def __eq__(self, other: object) -> bool:
        self.asked += 1
        if self.on_eq is not None:
            self.on_eq()
        return isinstance(other, Key) and self.name == other.name

    def __repr__(self) -> str:
        return f"Key({self.name!r})"


class Mortal:
    """Calls a function when it dies."""

    def __init__(self, on_death: Callable[[], object]) -> None:
        self.on_death = on_death

    def __del__(self) -> None:
        self.on_death()


def check(cache: Cache[Any, Any]) -> dict[Any, Any]:
    """What is there agrees with itself, by all ways to look."""
    items = dict(cache.items())
    assert list(cache) == list(items)
    assert list(cache.values()) == list(items.values())
    assert len(cache) == len(items)
    assert cache.currsize <= cache.maxsize
    for key, value in items.items():
        assert key in cache
        assert cache[key] is value
    return items
