"""Views of a cache: live, weakly consistent, and nobody's recency or count changes by looking through them."""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any, Protocol, TypeVar

from mempool.cache._policies import ITEMS, KEYS, MISSING, VALUES

__all__ = ["Items", "Keys", "Values"]

K = TypeVar("K")
V = TypeVar("V")


class Walked(Protocol):
    """What can be looked through: a cache, or a namespace of one."""

    def _walk(self, what: int, /) -> Iterator[Any]:
        """Iterate over KEYS, VALUES or ITEMS."""

    def _peek(self, key: Any, /) -> Any:
        """Return the value of a key and its note, or MISSING; nobody is told."""


class Keys(KeysView[K]):
    """The keys of a cache."""

    _mapping: Walked

    def __iter__(self) -> Iterator[K]:
        return self._mapping._walk(KEYS)


class Values(ValuesView[V]):
    """The values of a cache."""

    _mapping: Walked

    def __iter__(self) -> Iterator[V]:
        return self._mapping._walk(VALUES)

    def __contains__(self, value: object) -> bool:
        return any(other is value or other == value for other in self)


class Items(ItemsView[K, V]):
    """The items of a cache."""

    _mapping: Walked

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return self._mapping._walk(ITEMS)

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        key, value = item
        found = self._mapping._peek(key)
        return found is not MISSING and bool(found[0] is value or found[0] == value)
