"""`WeakCache`: weak values, of which the most recent are held strongly until memory is short.

    references   key -> weak reference ------------------> value      every value that is alive
                              |                              ^
    band         weak reference ----- strong ----------------+        the most recent of them, least recent first to go

Both are compiled tables, so each step is atomic, and no lock is held while keys are hashed or compared. The band knows values
by their references, not by their keys: whatever is done to a key meanwhile, a strong reference never stays for a value that the
cache no longer has. A reference that leaves says so itself (`left`) before it is taken out of the band, and who puts one into the
band looks at that afterwards: whichever comes last takes it out.

A value that dies has its reference removed if it is still that one which the key has. So nothing waits until an iteration is
over, `len` needs no correction, and a newer value is never removed for an older one.

Rejected: values in the table of the band alone and a dict of weak references with a lock beside it, as `weakref` has it: hashing
and comparing of keys would run under the lock, and the callback of a value that dies there would wait for it for ever.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

from mempool._core import Account
from mempool.cache._policies import ITEMS, MISSING, REAL, UNIT, VALUES, Collecting, Leaving, Table, real_bytes, walk
from mempool.cache.arguments import UNBOUNDED, as_callable, as_count, as_lifetime, as_name
from mempool.cache.cache import caches_account
from mempool.cache.records import Cause, log
from mempool.cache.weak_mapping import Listener, WeakMapping
from mempool.cache.yielding import Estimate, Yielding, as_bytes
from mempool.pressure.reclaim import register
from mempool.units import parse_size

__all__ = ["WeakCache", "WeakCacheStats"]

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class WeakCacheStats:
    """Counts of a weak cache since it was made, and what it holds now.

    Attributes
    ----------
    hits, misses : int
        Lookups that found a value that was alive, and that did not.
    collected : int
        Values that died while they were in it, as nobody held them any more.
    expired : int
        Those whose time was over.
    values, kept, kept_bytes : int
        Values that are alive, those of them that it holds strongly, and their bytes: estimated where the band counts items.
    allowance : float
        What pressure leaves at the moment of `keep_bytes`, or of `keep_items` if that alone was given; 0 without either.
    listener_errors : int
        Calls of ``on_evict`` that raised.
    """

    hits: int
    misses: int
    collected: int
    expired: int
    values: int
    kept: int
    kept_bytes: int
    allowance: float
    listener_errors: int


class _Reference(weakref.ref[Any]):
    """To a value, by key. Itself the key of its value in the band, so equal to itself alone."""

    __slots__ = ("key", "left", "popped")

    key: Any
    left: bool
    popped: bool  # it leaves to somebody who takes the value

    __hash__ = object.__hash__
    __eq__ = object.__eq__
    __ne__ = object.__ne__


class _Band(Yielding[Any, Any]):
    """References to their values, held strongly: the least recently used one goes first."""

    def __init__(self, nbytes: int | None, items: int | None, account: Account) -> None:
        if nbytes is None:
            bound, most, weighing = cast(int, items), UNBOUNDED, UNIT
            self._estimate = Estimate()
        else:
            bound, most, weighing = nbytes, UNBOUNDED if items is None else items, REAL
        self._begin("lru", bound, most, weighing, math.inf, None, None, account, None)

    def fits(self, value: object) -> bool:
        """Whether it may be held; raises what its ``__sizeof__`` does."""
        return self._estimate is not None or real_bytes(value) <= self._limits()[1]

    def hold(self, reference: _Reference, value: object) -> None:
        """Make it the most recent one, unless its entry has left."""
        self._insert(reference, value, math.inf, 0, None, True)
        if reference.left:
            self.let_go(reference)

    def let_go(self, reference: _Reference) -> None:
        """Hold it no more. Buffers end with that, and are no leak, unless somebody takes them."""
        self._remove(reference, MISSING, Cause.DELETED if reference.popped else Cause.INVALIDATED)


class WeakCache(WeakMapping[K, V]):
    """A mapping of keys to weak references to values; the most recently used values are held strongly until memory is short.

    An entry goes when nobody holds its value any more. It has the methods of `weakref.WeakValueDictionary`, and may be used by
    several threads, and changed while it is iterated over.

    Parameters
    ----------
    other : mapping or iterable of pairs
        What to begin with.
    keep_bytes : int or str, optional
        Bytes of values that are held strongly. A larger value is held weakly alone.
    keep_items : int or inf, optional
        How many values are held strongly. With both, both bound. With none, all are held weakly.
    ttl : float or str, optional
        Seconds until an entry goes, whoever holds its value, or a duration such as ``"5m"``.
    on_evict : callable, optional
        Called as ``on_evict(key, value, cause)`` for each entry that has left. The value is None where that had died
        (`Cause.COLLECTED`).
    name : str
        For its account and reports.
    clock : callable, optional
        Returns seconds; the monotonic clock if not given.

    Raises
    ------
    TypeError, ValueError
        For what is no size, count or duration.

    Notes
    -----
    What takes part in `mempool.cleanup` and is asked by a monitor are the values that are held strongly: those that are let go of
    stay in the cache as long as somebody else holds them, or until nobody does. How that goes on and back see `shrink`.

    Examples
    --------
    >>> class Page:
    ...     pass
    >>> cache = WeakCache(keep_items=1)
    >>> first = cache["first"] = Page()
    >>> cache["second"] = Page()
    >>> sorted(cache)
    ['first', 'second']
    >>> cache["third"] = Page()
    >>> sorted(cache)
    ['first', 'third']
    """

    def __init__(
        self,
        other: Mapping[K, V] | Iterable[tuple[K, V]] = (),
        /,
        *,
        keep_bytes: int | str | None = None,
        keep_items: float | None = None,
        ttl: float | str | None = None,
        on_evict: Listener | None = None,
        name: str | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        nbytes = None if keep_bytes is None else parse_size(keep_bytes, "keep_bytes")
        items = None if keep_items is None else as_count(keep_items, "keep_items", "keep_bytes")
        seconds = math.inf if ttl is None else as_lifetime(ttl)
        self.name = "weak cache" if name is None else as_name(name)
        as_callable(on_evict, "on_evict"), as_callable(clock, "clock")
        self._options: dict[str, Any] = {
            "keep_bytes": nbytes,
            "keep_items": keep_items,
            "ttl": ttl,
            "on_evict": on_evict,
            "name": name,
            "clock": clock,
        }
        account = Account(self.name, parent=caches_account)
        banded = (nbytes is not None or items is not None) and nbytes != 0 and items != 0
        band = self._band = _Band(nbytes, items, account) if banded else None
        references: Table[Any, Any] = Table()
        self._references = references
        leaving = Leaving(band, on_evict) if band is not None or on_evict is not None else None
        references._begin("none", UNBOUNDED, UNBOUNDED, UNIT, seconds, clock, leaving, account, None)
        self._collect = Collecting(references, True)
        self._popping = walk(
            references, ITEMS
        )  # goes on, or each `popitem` would begin with slots that are free by now
        self._found_dead = self._unheld = 0
        register(self)
        self.update(other)

    # ---- lookup ----

    def _known(self, key: object) -> tuple[_Reference, Any] | None:
        """Return the reference and the value of a key, whose recency stays as it is; None if there is none that is alive."""
        found = self._references._peek(key)
        if found is MISSING:
            return None
        reference = found[0]
        value = reference()
        return None if value is None else (reference, value)

    def _look(self, key: object) -> Any:
        known = self._known(key)
        return MISSING if known is None else known[1]

    def _find(self, key: object) -> Any:
        """Return the value of a key, from now on the most recent one, or MISSING."""
        reference = self._references.get(key)
        if reference is None:
            return MISSING
        value = reference()
        if value is None:  # it has just died
            self._found_dead += 1
            return MISSING
        band = self._band
        if band is not None and band.get(reference) is None:
            self._hold(band, reference, value)
        return value

    def _hold(self, band: _Band, reference: _Reference, value: object, *, fits: bool = False) -> None:
        """Hold what is used. It is there, so nothing fails for want of memory, or as it cannot be weighed any more."""
        try:
            if fits or band.fits(value):
                band.hold(reference, value)
        except Exception:
            self._unheld += 1
            if self._unheld == 1:
                log.exception("a weak cache cannot hold a value strongly; further errors are counted, not logged")

    def __len__(self) -> int:
        return len(self._references)

    # ---- change ----

    def _refer(self, key: K, value: V) -> _Reference:
        try:
            made = _Reference(value, self._collect)
        except TypeError:
            raise TypeError(
                f"a WeakCache holds what can be referred to weakly, not {type(value).__qualname__}"
            ) from None
        made.key, made.left, made.popped = key, False, False
        return made

    def __setitem__(self, key: K, value: V) -> None:
        reference, band = self._refer(key, value), self._band
        held = band is not None and band.fits(value)
        self._references[key] = reference
        if band is not None and held:
            self._hold(band, reference, value, fits=True)

    def setdefault(self, key: K, default: Any = None) -> Any:
        """Return the value of a key; if there is none, put the default and return that."""
        made: _Reference | None = None
        band = self._band
        while True:
            value = self._find(key)
            if value is not MISSING:
                return value
            made = made or self._refer(key, default)
            held = band is not None and band.fits(default)
            if self._references._insert(key, made, None, 0, None, False):
                if band is not None and held:
                    self._hold(band, made, default, fits=True)
                return default
            self._drop_dead(key)

    def _drop_dead(self, key: object) -> None:
        """Remove an entry whose value has died if its callback has not run yet."""
        found = self._references._peek(key)
        if found is not MISSING and found[0]() is None:
            self._references._remove(key, found[0], Cause.COLLECTED)

    def _take(self, key: object, *, popped: bool = True) -> Any:
        """Remove a key and return its value, or MISSING. The value is held before the reference leaves, or it might die of that."""
        while True:
            known = self._known(key)
            if known is None:
                self._drop_dead(key)
                return MISSING
            reference, value = known
            reference.popped = popped
            if self._references._remove(key, reference, Cause.DELETED) is not MISSING:
                return value

    def _discard(self, key: object) -> bool:
        return self._take(key, popped=False) is not MISSING

    def popitem(self) -> tuple[K, V]:
        """Remove some entry and return its key and value; `KeyError` if there is none."""
        for _ in range(2):
            for key, reference in self._popping:
                value = reference()
                if value is None:
                    continue
                reference.popped = True
                if self._references._remove(key, reference, Cause.DELETED) is not MISSING:
                    return key, value
            self._popping = walk(self._references, ITEMS)
        raise KeyError(f"{type(self).__name__} is empty")

    def clear(self) -> None:
        """Remove all entries."""
        self._references.clear()
        band = self._band
        if band is not None and not len(band):
            band.clear()  # gives its own memory back

    def expire(self) -> int:
        """Remove what is past its time; how many entries."""
        return self._references.expire()

    # ---- all of it ----

    def _alive(self) -> Iterator[tuple[K, V]]:
        for key, reference in walk(self._references, ITEMS):
            value = reference()
            if value is not None:
                yield key, value

    def itervaluerefs(self) -> Iterator[weakref.ref[Any]]:
        """Return an iterator over the weak references to the values; what they refer to may have died when it is asked for."""
        return walk(self._references, VALUES)

    def valuerefs(self) -> list[weakref.ref[Any]]:
        """Return a list of the weak references to the values."""
        return list(self.itervaluerefs())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return another one with copies of the keys: the values are the same, a copy would have nobody who holds it."""
        return self._like((deepcopy(key, memo), value) for key, value in self._alive())

    # ---- memory ----

    @property
    def nbytes(self) -> int:
        """Bytes of the values that it holds strongly: real ones under `keep_bytes`, else estimated from a sample of them."""
        self.expire()
        return 0 if self._band is None else self._band.nbytes

    def shrink(self, nbytes: int, /) -> int:
        """Hold values of so many bytes weakly from now on, the least recent first, but of 5 % of what is held strongly at most.

        What is past its time goes before that, and does not count.

        Returns
        -------
        int
            Their bytes. Those that nobody else holds are gone.

        Notes
        -----
        A value that is used becomes a strong one again, in the place of others. While a monitor asks, the band stays as small as
        it is then, and grows back as a `Cache` does. It raises what `Cache.shrink` does.
        """
        self.expire()
        if self._band is None:
            as_bytes(nbytes)
            return 0
        return self._band.shrink(nbytes)

    def stats(self) -> WeakCacheStats:
        """Return counts since it was made, and what it holds now."""
        values = len(self)
        hits, misses, _, _, errors, left, *_ = self._references._counts()
        band = self._band
        allowed = 0 if band is None else band._limits()[1]
        return WeakCacheStats(
            hits=hits - self._found_dead,
            misses=misses + self._found_dead,
            collected=left[Cause.COLLECTED],
            expired=left[Cause.EXPIRED],
            values=values,
            kept=0 if band is None else len(band),
            kept_bytes=self.nbytes,
            allowance=math.inf if allowed >= UNBOUNDED else allowed,
            listener_errors=errors,
        )

    def __repr__(self) -> str:
        kept = 0 if self._band is None else len(self._band)
        return f"<{type(self).__name__} {self.name!r} of {len(self)} values, {kept} of them held strongly>"
