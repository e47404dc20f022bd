"""What weak values and weak keys share: mappings whose entries may go at any moment, with the face of those of `weakref`."""

from abc import abstractmethod
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from typing import Any, Generic, NoReturn, Self, SupportsIndex, TypeVar, cast

from mempool.cache._policies import MISSING
from mempool.cache.records import Cause

__all__ = ["Listener", "WeakMapping"]

K = TypeVar("K")
V = TypeVar("V")

Listener = Callable[[Any, Any, Cause], object]


class WeakMapping(MutableMapping[K, V]):
    """A mapping that is iterated over without a lock: an entry that stays is given once, none is given that has gone."""

    _options: dict[str, Any]  # what it was made with

    @abstractmethod
    def _alive(self) -> Iterator[tuple[K, V]]:
        """Iterate over keys and values that are alive; both are held while they are given."""

    @abstractmethod
    def _look(self, key: object) -> Any:
        """Return the value of a key, or MISSING; nobody is told."""

    @abstractmethod
    def _find(self, key: object) -> Any:
        """Return the value of a key, or MISSING. Counts as a use."""

    @abstractmethod
    def _take(self, key: object) -> Any:
        """Remove a key and return its value, or MISSING."""

    @abstractmethod
    def _discard(self, key: object) -> bool:
        """Remove a key whose value nobody wants; whether it was there."""

    def _like(self, other: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> Self:
        """Return another one with the same bounds, and these entries."""
        return type(self)(other, **self._options)  # type: ignore[call-arg]

    def __getitem__(self, key: K) -> V:
        value = self._find(key)
        return self.__missing__(key) if value is MISSING else cast(V, value)

    def __missing__(self, key: K) -> V:
        raise KeyError(key)

    def get(self, key: K, default: Any = None) -> Any:
        """Return the value of a key, or the default."""
        value = self._find(key)
        return default if value is MISSING else value

    def __contains__(self, key: object) -> bool:
        return self._look(key) is not MISSING

    def __delitem__(self, key: K) -> None:
        if not self._discard(key):
            raise KeyError(key)

    def pop(self, key: K, default: Any = MISSING) -> Any:
        """Remove a key and return its value, or the default; `KeyError` without one."""
        value = self._take(key)
        if value is not MISSING:
            return value
        if default is MISSING:
            raise KeyError(key)
        return default

    def update(self, other: Any = (), /, **named: Any) -> None:
        """Put all entries of a mapping or of an iterable of pairs; one that is no mapping is read to its end before."""
        pairs = other.items() if hasattr(other, "items") else dict(() if other is None else other).items()
        for key, value in pairs:
            self[key] = value
        for name, value in named.items():
            self[cast(K, name)] = value

    def __iter__(self) -> Iterator[K]:
        return (key for key, _ in self._alive())

    def keys(self) -> KeysView[K]:
        """Return a view of the keys; once `next` was asked of it, an iterator."""
        return _Keys(self)

    def values(self) -> ValuesView[V]:
        """Return a view of the values, as `keys`."""
        return _Values(self)

    def items(self) -> ItemsView[K, V]:
        """Return a view of keys and values, as `keys`."""
        return _Items(self)

    def copy(self) -> Self:
        """Return another one with the same bounds and entries, which are new there."""
        return self._like(self)

    __copy__ = copy

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        raise TypeError(
            f"cannot pickle a {type(self).__name__}: what it refers to weakly would have nobody who holds it"
        )

    def __or__(self, other: Mapping[K, V]) -> Self:
        if not isinstance(other, Mapping):
            return NotImplemented
        made = self._like(self)
        made.update(other)
        return made

    def __ror__(self, other: Mapping[K, V]) -> Self:
        if not isinstance(other, Mapping):
            return NotImplemented
        made = self._like(other)
        made.update(self)
        return made

    def __ior__(self, other: Mapping[K, V] | Iterable[tuple[K, V]]) -> Self:
        self.update(other)
        return self


class _View(Generic[K, V]):
    """A view, of which `next` makes an iterator, as what the mappings of `weakref` return: it goes on where that left it."""

    _mapping: WeakMapping[K, V]
    _begun: Iterator[Any] | None = None

    @abstractmethod
    def _each(self) -> Iterator[Any]:
        """Iterate from the beginning."""

    def __iter__(self) -> Iterator[Any]:
        return self._each() if self._begun is None else cast(Iterator[Any], self)

    def __next__(self) -> Any:
        if self._begun is None:
            self._begun = self._each()
        return next(self._begun)


class _Keys(_View[K, V], KeysView[K]):
    def _each(self) -> Iterator[K]:
        return iter(self._mapping)


class _Values(_View[K, V], ValuesView[V]):
    def _each(self) -> Iterator[V]:
        return (value for _, value in self._mapping._alive())

    def __contains__(self, wanted: object) -> bool:
        return any(value is wanted or value == wanted for value in self._each())


class _Items(_View[K, V], ItemsView[K, V]):
    def _each(self) -> Iterator[tuple[K, V]]:
        return self._mapping._alive()

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        found = self._mapping._look(item[0])
        return found is not MISSING and bool(found is item[1] or found == item[1])
