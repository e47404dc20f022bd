"""Views of a cache: live, weakly consistent, and nobody's recency or count changes by looking through them."""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any, TypeVar, cast

from mempool.cache._policies import ITEMS, KEYS, MISSING, VALUES, Table, walk

__all__ = ["Items", "Keys", "Values"]

K = TypeVar("K")
V = TypeVar("V")


class Keys(KeysView[K]):
    """The keys of a cache."""

    _mapping: Table[Any, Any]

    def __iter__(self) -> Iterator[K]:
        return walk(self._mapping, KEYS)


class Values(ValuesView[V]):
    """The values of a cache."""

    _mapping: Table[Any, Any]

    def __iter__(self) -> Iterator[V]:
        return walk(self._mapping, VALUES)

    def __contains__(self, value: object) -> bool:
        return any(other is value or other == value for other in self)


class Items(ItemsView[K, V]):
    """The items of a cache."""

    _mapping: Table[Any, Any]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return walk(self._mapping, ITEMS)

    def __contains__(self, item: object) -> bool:
        key, value = cast(tuple[Any, Any], item)
        found = self._mapping._peek(key)
        return found is not MISSING and bool(found[0] is value or found[0] == value)
