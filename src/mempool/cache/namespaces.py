"""Namespaces: keys of their own within one cache, its bounds and its policy."""

from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, overload

from mempool.cache._policies import ITEMS, KEYS, MISSING, Name, Table, walk
from mempool.cache.arguments import LoadOptions, PutOptions
from mempool.cache.records import Cause
from mempool.cache.views import Items, Keys, Values

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from mempool.cache.cache import Cache

__all__ = ["Namespace", "NamespaceKey", "loader_key"]

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")


class NamespaceKey(tuple[Any, Any]):
    """The key that an entry of a namespace has in its cache: what iteration over the cache gives, and listeners are told."""

    __slots__ = ()

    @property
    def namespace(self) -> str:
        """The name of the namespace."""
        return self[0].name  # type: ignore[no-any-return]

    @property
    def key(self) -> Any:
        """The key within it."""
        return self[1]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.namespace!r}, {self.key!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _key_of, (self.namespace, self.key)


def loader_key(key: Any) -> Any:
    """Return the key that a loader is given."""
    return key[1] if type(key) is NamespaceKey else key


def _key_of(name: str, key: Any) -> NamespaceKey:
    return NamespaceKey((Name(name), key))


class Namespace(MutableMapping[K, V], Generic[K, V]):
    """The entries of a cache whose keys are of one name. Made by `Cache.namespace`.

    A mapping like its cache, with the bounds, the policy, the listener and the counts of that: what is evicted for a new entry
    may be of any namespace. `len`, iteration, `popitem` and `clear` walk over the whole cache.

    Examples
    --------
    >>> from mempool.cache import Cache
    >>> cache = Cache(100)
    >>> users, groups = cache.namespace("users"), cache.namespace("groups")
    >>> users[1] = "Ada"
    >>> groups[1] = "staff"
    >>> users[1], dict(groups), len(cache)
    ('Ada', {1: 'staff'}, 2)
    """

    __slots__ = ("_cache", "_name")

    def __init__(self, cache: "Cache[Any, V]", name: str) -> None:
        self._cache, self._name = cache, Name(name)

    def _full(self, key: Any) -> NamespaceKey:
        return NamespaceKey((self._name, key))

    @property
    def name(self) -> str:
        """The name that it was made with."""
        return self._name.name

    @property
    def cache(self) -> "Cache[Any, V]":
        """The cache that has the entries."""
        return self._cache

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self._cache!r}>"

    # ---- a mapping ----

    def __getitem__(self, key: K) -> V:
        found = self._cache._find(self._full(key))
        if found is MISSING:
            raise KeyError(key)
        return found  # type: ignore[no-any-return]

    @overload
    def get(self, key: K, default: None = None) -> V | None: ...
    @overload
    def get(self, key: K, default: V | T) -> V | T: ...
    def get(self, key: K, default: Any = None) -> Any:
        """Return the value of a key, or the default."""
        return self._cache.get(self._full(key), default)

    def __setitem__(self, key: K, value: V) -> None:
        self._cache[self._full(key)] = value

    def __delitem__(self, key: K) -> None:
        if not self._delete(self._full(key)):
            raise KeyError(key)

    def _delete(self, full: NamespaceKey) -> bool:
        """Remove an entry whose value nobody is given; whether it was there."""
        try:
            Table.__delitem__(self._cache, full)
        except KeyError as error:
            if error.args[:1] == (full,):
                return False
            raise
        return True

    def __contains__(self, key: object) -> bool:
        return self._full(key) in self._cache

    def __iter__(self) -> Iterator[K]:
        return self._walk(KEYS)

    def __len__(self) -> int:
        return sum(1 for _ in self._full_keys())

    def _full_keys(self) -> Iterator[NamespaceKey]:
        return filter(self._has, walk(self._cache, KEYS))

    def _walk(self, what: int, /) -> Iterator[Any]:
        if what == KEYS:
            return (full[1] for full in self._full_keys())
        entries = ((full[1], value) for full, value in walk(self._cache, ITEMS) if self._has(full))
        return entries if what == ITEMS else (value for _, value in entries)

    def _peek(self, key: Any, /) -> Any:
        return self._cache._peek(self._full(key))

    def keys(self) -> Keys[K]:
        """Return a live view of the keys. Looking through it counts no hit and is no use of an entry."""
        return Keys(self)

    def values(self) -> Values[V]:
        """Return a live view of the values, as `keys`."""
        return Values(self)

    def items(self) -> Items[K, V]:
        """Return a live view of the items, as `keys`."""
        return Items(self)

    def pop(self, key: K, default: Any = MISSING) -> Any:
        """Remove a key and return its value, or the default; `KeyError` without one."""
        value = self._cache._remove(self._full(key), MISSING, Cause.DELETED)
        if value is not MISSING:
            return value
        if default is MISSING:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[K, V]:
        """Remove some entry of this namespace and return its key and value; `KeyError` if there is none."""
        missed = True
        while missed:  # or somebody else took all that this one saw, and may have put others
            missed = False
            for full in self._full_keys():
                value = self._cache._remove(full, MISSING, Cause.DELETED)
                if value is not MISSING:
                    return full[1], value
                missed = True
        raise KeyError(f"{type(self).__name__} is empty")

    def setdefault(self, key: K, default: Any = None) -> Any:
        """Return the value of a key, put there now if there was none."""
        return self._cache.setdefault(self._full(key), default)

    def clear(self) -> None:
        """Remove the entries of this namespace."""
        self._cache._loads.forget_where(self._has)
        for full in list(self._full_keys()):
            self._delete(full)

    def _has(self, key: object) -> bool:
        return type(key) is NamespaceKey and key[0] == self._name

    # ---- a cache ----

    def put(self, key: K, value: V, **options: Unpack[PutOptions]) -> None:
        """Put an entry, with the options of `Cache.put`; tags are those of the cache."""
        self._cache.put(self._full(key), value, **options)

    if TYPE_CHECKING:

        @overload
        def get_or_load(
            self, key: K, loader: Callable[[K], Coroutine[Any, Any, V]], **options: Unpack[LoadOptions]
        ) -> Coroutine[Any, Any, V]: ...
        @overload
        def get_or_load(self, key: K, loader: Callable[[K], V], **options: Unpack[LoadOptions]) -> V: ...

    def get_or_load(self, key: K, loader: Callable[[K], Any], **options: Unpack[LoadOptions]) -> Any:
        """Return the value of a key, loaded if need be, as `Cache.get_or_load`; the loader is given the key as it is here."""
        return self._cache.get_or_load(self._full(key), loader, **options)

    def invalidate(self, key: K) -> bool:
        """Remove a key that is no longer true, as `Cache.invalidate`."""
        return self._cache.invalidate(self._full(key))
