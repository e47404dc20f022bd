"""`WeakKeyCache`: values that live as long as their keys.

    Cache    weak reference to the key -> value

A weak reference hashes as its key does, and equals that of an equal key while both are alive, itself alone once its key has
died. So the table of a `Cache` finds by it what it would find by the key; and the reference of a key that died finds its own entry,
not that of an equal key which came after it.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any, Self, TypeVar

from mempool.cache._policies import ITEMS, KEYS, MISSING, Collecting, walk
from mempool.cache.cache import Cache
from mempool.cache.records import CacheStats, Cause
from mempool.cache.weak_mapping import Listener, WeakMapping

__all__ = ["WeakKeyCache"]

K = TypeVar("K")
V = TypeVar("V")


def _telling(on_evict: Listener) -> Listener:
    return lambda reference, value, cause: on_evict(reference(), value, cause)


class WeakKeyCache(WeakMapping[K, V]):
    """A mapping whose entries go with their keys, within the bounds of a `Cache`, if it is given any.

    It has the methods of `weakref.WeakKeyDictionary`, and may be used by several threads, and changed while it is iterated over.
    Keys are the same if they are equal; an entry goes with the key that was put first.

    Parameters
    ----------
    other : mapping or iterable of pairs
        What to begin with.
    maxsize, max_bytes, policy, ttl, getsizeof, name, clock
        As of `Cache`. Without a bound it holds all whose keys are alive, and if memory is short lets go of the least recently used.
    on_evict : callable, optional
        Called as ``on_evict(key, value, cause)`` for each entry that has left. The key is None where that had died
        (`Cause.COLLECTED`).

    Raises
    ------
    TypeError, ValueError
        As of `Cache`.

    Notes
    -----
    A value that refers to its key keeps it alive: the entry stays until something else removes it. Under pressure it
    shrinks and grows back as any `Cache`.

    Examples
    --------
    >>> class Page:
    ...     pass
    >>> page = Page()
    >>> rendered = WeakKeyCache(max_bytes="64MiB")
    >>> rendered[page] = bytes(1000)
    >>> len(rendered)
    1
    >>> del page
    >>> len(rendered)
    0
    """

    def __init__(
        self,
        other: Mapping[K, V] | Iterable[tuple[K, V]] = (),
        /,
        *,
        maxsize: float | None = None,
        max_bytes: int | str | None = None,
        policy: str | None = None,
        ttl: float | str | None = None,
        getsizeof: Callable[[V], int] | None = None,
        on_evict: Listener | None = None,
        name: str | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        bounded = maxsize is not None or max_bytes is not None
        self._options: dict[str, Any] = {
            "maxsize": maxsize if bounded else math.inf,
            "max_bytes": max_bytes,
            "policy": policy if bounded or policy is not None else "lru",
            "ttl": ttl,
            "getsizeof": getsizeof,
            "on_evict": on_evict,
            "name": "weak key cache" if name is None else name,
            "clock": clock,
        }
        telling = None if on_evict is None else _telling(on_evict)
        self._entries: Cache[weakref.ref[Any], V] = Cache(**self._options | {"on_evict": telling})
        self._collect = Collecting(self._entries, False)
        self.update(other)

    @property
    def name(self) -> str:
        """For its account and reports."""
        return self._entries.name

    @property
    def currsize(self) -> int:
        """The sum of the sizes of all entries, as of `Cache`."""
        return self._entries.currsize

    @property
    def maxsize(self) -> float:
        """The bound of `currsize`."""
        return self._entries.maxsize

    # ---- lookup ----

    def _look(self, key: object) -> Any:
        try:
            reference = weakref.ref(key)
        except TypeError:  # it cannot be a key
            return MISSING
        found = self._entries._peek(reference)
        return found if found is MISSING else found[0]

    def _find(self, key: object) -> Any:
        return self._entries.get(weakref.ref(key), MISSING)

    def __len__(self) -> int:
        return len(self._entries)

    # ---- change ----

    def __setitem__(self, key: K, value: V) -> None:
        self._entries[weakref.ref(key, self._collect)] = value

    def setdefault(self, key: K, default: Any = None) -> Any:
        """Return the value of a key; if there is none, put the default and return that."""
        reference = weakref.ref(key, self._collect)
        while True:
            value = self._entries.get(reference, MISSING)
            if value is not MISSING:
                return value
            if self._entries._insert(reference, default, None, 0, None, False):
                return default

    def _take(self, key: object) -> Any:
        return self._entries._remove(weakref.ref(key), MISSING, Cause.DELETED)

    def _discard(self, key: object) -> bool:
        try:
            del self._entries[weakref.ref(key)]
        except KeyError:
            return False
        return True

    def popitem(self) -> tuple[K, V]:
        """Remove the entry that would go next, and return its key and value; `KeyError` if there is none."""
        while True:
            reference, value = self._entries.popitem()
            key = reference()
            if key is not None:
                return key, value

    def clear(self) -> None:
        """Remove all entries."""
        self._entries.clear()

    def expire(self) -> int:
        """Remove what is past its time; how many entries."""
        return self._entries.expire()

    # ---- all of it ----

    def _alive(self) -> Iterator[tuple[K, V]]:
        for reference, value in walk(self._entries, ITEMS):
            key = reference()
            if key is not None:
                yield key, value

    def keyrefs(self) -> list[weakref.ref[K]]:
        """Return a list of the weak references to the keys; what they refer to may have died when it is asked for."""
        return list(walk(self._entries, KEYS))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return another one with copies of the values, for the same keys."""
        return self._like((key, deepcopy(value, memo)) for key, value in self._alive())

    # ---- memory ----

    @property
    def nbytes(self) -> int:
        """Bytes of the values, as of `Cache`."""
        return self._entries.nbytes

    def shrink(self, nbytes: int, /) -> int:
        """Let go of so many bytes, as `Cache.shrink`."""
        return self._entries.shrink(nbytes)

    def stats(self) -> CacheStats:
        """Return what `Cache.stats` does."""
        return self._entries.stats()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {len(self)} entries>"
