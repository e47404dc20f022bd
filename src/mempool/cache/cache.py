"""`Cache`: a mapping within bounds, of entries or of bytes."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, MutableMapping
from itertools import count
from typing import Any, TypeVar, cast

from mempool._core import Account
from mempool.cache._policies import KEYS, MISSING, NOTES, OWN, REAL, UNIT, Pins, real_bytes, walk
from mempool.cache.arguments import (
    UNBOUNDED,
    as_callable,
    as_count,
    as_lifetime,
    as_name,
    as_policy,
    as_priority,
)
from mempool.cache.namespaces import Namespace
from mempool.cache.read_through import ReadThrough
from mempool.cache.records import CacheFull, CacheStats, Cause
from mempool.cache.tags import Tags, as_tags
from mempool.cache.views import Items, Keys, Values
from mempool.cache.yielding import Estimate, Yielding
from mempool.pressure.reclaim import register
from mempool.units import parse_size

__all__ = ["Cache", "caches_account"]

K = TypeVar("K")
V = TypeVar("V")

_NO_TAGS: tuple[Hashable, ...] = ()

caches_account = Account("caches")
_numbers = count(1)


class Cache(ReadThrough[K, V], Yielding[K, V], MutableMapping[K, V]):
    """A mapping that keeps within its bounds by letting go of what its policy can spare.

    Conventions are those of cachetools. All calls are safe from any thread; each is atomic, or is
    so for each entry: `update`, `invalidate_tag`, `invalidate_version`.

    Parameters
    ----------
    maxsize : int or inf
        Most entries, or the largest sum of their sizes if `getsizeof` is given.
    max_bytes : int or str
        Largest sum of their sizes in bytes: real ones, if `getsizeof` is not given. With `maxsize` beside it, that bounds
        the number of entries. One of the two must be given.
    policy : str or None
        Who goes first: ``"lru"``, ``"lfu"``, ``"fifo"``, ``"random"``, ``"sieve"``, ``"s3fifo"``, ``"tinylfu"``, or one of
        Redis' names. None: the best one over all.
    ttl : float, str or None
        Seconds, or a text such as ``"5m"``, for which an entry is returned after it was put; None or infinity: as long as
        there is room.
    getsizeof : callable
        Says what a value counts: an int, 0 or more. A subclass may override the method of that name instead.
    on_evict : callable
        Called with key, value and `Cause` after an entry left for whatever reason, in the thread that caused it. It may use
        the cache. What it raises is logged once and counted.
    name : str or None
        Of the account that is charged for the table's own memory, and in reports; None: ``"cache-1"``, ``"cache-2"``, ...
    clock : callable
        Returns seconds, by which entries expire; None: the monotonic clock.

    Raises
    ------
    TypeError, ValueError
        For an argument that makes no sense. The message names it.

    Examples
    --------
    >>> cache = Cache(2, policy="lru")
    >>> cache["a"], cache["b"] = 1, 2
    >>> cache["a"]
    1
    >>> cache["c"] = 3
    >>> sorted(cache.items())
    [('a', 1), ('c', 3)]

    >>> pages = Cache(max_bytes="64 MiB", ttl="5m")
    >>> pages["/"] = b"<html>" + bytes(10_000)
    >>> pages.currsize > 10_000
    True
    """

    def __init__(
        self,
        maxsize: float | None = None,
        *,
        max_bytes: int | str | None = None,
        policy: str | None = None,
        ttl: float | str | None = None,
        getsizeof: Callable[[V], int] | None = None,
        on_evict: Callable[[K, V, Cause], object] | None = None,
        name: str | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if "_account" in vars(self):
            raise RuntimeError("a cache cannot be set up again")
        if maxsize is None and max_bytes is None:
            raise TypeError("a cache needs a bound: maxsize, max_bytes or both")
        self._maxsize = None if maxsize is None else as_count(maxsize, "maxsize")
        self._max_bytes = None if max_bytes is None else parse_size(max_bytes, "max_bytes")
        self._policy, chosen = as_policy(policy)
        self._ttl = math.inf if ttl is None else as_lifetime(ttl)
        as_callable(getsizeof, "getsizeof"), as_callable(clock, "clock"), as_callable(on_evict, "on_evict")
        self._name = f"cache-{next(_numbers)}" if name is None else as_name(name)
        if getsizeof is not None:
            self.getsizeof = getsizeof  # type: ignore[method-assign, assignment]
        self._weighed = getsizeof is not None or type(self).getsizeof is not Cache.getsizeof
        self._account = Account(self._name, parent=caches_account)
        self._pins = None if self._max_bytes is None else Pins()
        self._tags = Tags()
        self._begin(
            chosen.order,
            *self._bounds_wanted(),
            OWN if self._weighed else UNIT if max_bytes is None else REAL,
            self._ttl,
            clock,
            on_evict,
            self._account,
            self._pins,
            chosen.fixing,
        )
        self._begin_loads()
        self._estimate = None if self._max_bytes is not None else Estimate()
        register(self)

    def _bounds_wanted(self) -> tuple[int, int]:
        """Return what bounds sizes, and what the number of entries."""
        most = UNBOUNDED if self._maxsize is None else self._maxsize
        if self._max_bytes is not None:
            return self._max_bytes, most
        return most, UNBOUNDED if self._weighed else most

    # ---- a mapping ----

    def __missing__(self, key: K) -> V:
        """Return what `cache[key]` returns for a key that is not there; a subclass may make and store it."""
        raise KeyError(key)

    def __iter__(self) -> Iterator[K]:
        return walk(self, KEYS)

    def _walk(self, what: int, /) -> Iterator[Any]:
        return walk(self, what)

    def keys(self) -> Keys[K]:
        """Return a live view of the keys. Looking through it counts no hit and is no use of an entry."""
        return Keys(self)

    def values(self) -> Values[V]:
        """Return a live view of the values, as `keys`."""
        return Values(self)

    def items(self) -> Items[K, V]:
        """Return a live view of the items, as `keys`."""
        return Items(self)

    def setdefault(self, key: K, default: Any = None) -> Any:
        """Return the value of a key; where there is none, put the default, in one step."""
        while True:
            found = self._find(key)
            if found is not MISSING:
                return found
            if self._insert(key, default, None, 0, None, False):
                return default

    def __repr__(self) -> str:
        unit = "" if self._max_bytes is None else " bytes"
        bound = self.maxsize if self._max_bytes is None else self._max_bytes
        return f"<{type(self).__name__} {self._name!r}: {len(self)} entries, size {self.currsize} of {bound}{unit}>"

    # ---- putting ----

    def put(
        self,
        key: K,
        value: V,
        *,
        ttl: float | str | None = None,
        priority: int = 0,
        tags: Iterable[Hashable] = _NO_TAGS,
        version: Any = None,
    ) -> None:
        """Put an entry, with more to say than ``cache[key] = value`` has room for.

        Parameters
        ----------
        key : hashable
        value : object
        ttl : float, str or None
            For how long; None: as long as the cache says; infinity: as long as there is room.
        priority : int
            From -100 to 100. Entries of lower priority go first; among those of one the policy chooses.
        tags : iterable
            Any hashable values, by which `invalidate_tag` finds it. A single text is one tag.
        version : object
            By which `get_or_load` and `invalidate_version` tell old entries; None: it has none.

        Raises
        ------
        ValueError
            The value is larger than the bound ("value too large"); the cache is as it was. Or an argument makes no sense.
        CacheFull
            Nothing may be evicted for it; the cache is as it was.
        """
        if tags is _NO_TAGS and version is None:
            lifetime = None if ttl is None else as_lifetime(ttl)
            self._insert(key, value, lifetime, as_priority(priority), None, True)
        else:
            self._put(key, value, ttl=ttl, priority=priority, tags=tags, version=version, replace=True)

    def _put(self, key: Any, value: Any, *, ttl: Any, priority: Any, tags: Any, version: Any, replace: Any) -> bool:
        lifetime = None if ttl is None else as_lifetime(ttl)
        level = as_priority(priority)
        found = tags if tags is _NO_TAGS else as_tags(tags)
        if not found and version is None:
            return self._insert(key, value, lifetime, level, None, replace)
        note = self._tags.note(key, version, found)
        try:
            return self._insert(key, value, lifetime, level, note, replace)
        finally:
            if not note.placed:
                note.gone()

    # ---- taking back ----

    def invalidate(self, key: K) -> bool:
        """Remove a key that is no longer true; whether it was there. What is being loaded for it is not kept either."""
        return self._remove(key, MISSING, Cause.INVALIDATED) is not MISSING

    def invalidate_tag(self, tag: Hashable) -> int:
        """Remove all entries that have a tag; how many. What is being loaded with this tag is not kept either."""
        self._loads.forget_tag(tag)
        return sum(self._revoke(note, Cause.INVALIDATED) for note in self._tags.having(tag))

    def invalidate_version(self, below: Any) -> int:
        """Remove all entries of versions below this one; how many. Those without a version stay. Looks at each entry."""
        if below is None:
            raise TypeError("below must be a version, not None")
        self._loads.forget_version(below)
        notes = [note for note in walk(self, NOTES) if note.version is not None and note.version < below]
        return sum(self._revoke(note, Cause.INVALIDATED) for note in notes)

    # ---- parts, bounds, figures ----

    def namespace(self, name: str) -> Namespace[Any, V]:
        """Return the mapping of the entries that are of one name, with keys of its own."""
        return Namespace(self, as_name(name))

    def resize(self, maxsize: float | None = None, *, max_bytes: int | str | None = None) -> None:
        """Change the bounds; None: as it is. What is beyond them is evicted. What pressure took of them is not given back by it.

        Raises
        ------
        TypeError, ValueError
            For what is no bound, and for `max_bytes` where the cache has none: its entries were not weighed.
        CacheFull
            More than that may not be evicted; the cache is as it was.
        """
        if max_bytes is not None and self._max_bytes is None:
            raise ValueError(f"max_bytes of {max_bytes!r} cannot be given to a cache that was made without it")
        most = self._maxsize if maxsize is None else as_count(maxsize, "maxsize")
        bound = self._max_bytes if max_bytes is None else parse_size(max_bytes, "max_bytes")
        self.expire()
        former = self._maxsize, self._max_bytes
        self._maxsize, self._max_bytes = most, bound
        while True:  # another thread may resize it too: the last one counts
            limits = self._bounds_wanted()
            try:
                self._bounds(*limits)
            except CacheFull:
                self._maxsize, self._max_bytes = former
                raise
            if limits == self._bounds_wanted():
                return

    def getsizeof(self, value: V) -> int:
        """Return what a value counts: 1, or its real bytes under `max_bytes`. To be overridden."""
        return 1 if self._max_bytes is None else real_bytes(value)

    def stats(self) -> CacheStats:
        """Return what was counted, and what is there now; nothing is disturbed by it."""
        hits, misses, insertions, rejections, errors, left, entries, total, allowed, own = self._counts()
        return CacheStats(
            hits=hits,
            misses=misses,
            insertions=insertions,
            rejections=rejections,
            loads=self._loads.loaded,
            load_errors=self._loads.failed,
            load_seconds=self._loads.seconds,
            evictions=left[Cause.EVICTED],
            expirations=left[Cause.EXPIRED],
            deletions=left[Cause.DELETED],
            replacements=left[Cause.REPLACED],
            invalidations=left[Cause.INVALIDATED],
            pressed=left[Cause.PRESSURE],
            collected=left[Cause.COLLECTED],
            listener_errors=errors,
            entries=entries,
            currsize=total,
            maxsize=self.maxsize,
            max_bytes=self._max_bytes,
            allowance=_shown(allowed),
            pinned=self.pinned,
            pinned_values=0 if self._pins is None else self._pins.count,
            own_bytes=own,
        )

    @property
    def maxsize(self) -> float:
        """The bound of `currsize`; beside `max_bytes` that of the number of entries, if it was given."""
        return _shown(cast(int, self._max_bytes if self._maxsize is None else self._maxsize))

    @property
    def max_bytes(self) -> int | None:
        """The bound in bytes; None: there is none."""
        return self._max_bytes

    @property
    def policy(self) -> str:
        """The name of the policy."""
        return self._policy

    @property
    def ttl(self) -> float | None:
        """Seconds that an entry is given that is put without its own; None: no end."""
        return None if self._ttl == math.inf else self._ttl

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return self._name

    @property
    def account(self) -> Account:
        """What is charged for the table's own memory."""
        return self._account


def _shown(bound: int) -> float:
    return math.inf if bound >= UNBOUNDED else bound
