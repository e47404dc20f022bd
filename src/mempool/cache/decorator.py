"""`cached`: a function whose results are kept."""

from collections.abc import Callable, Coroutine, Hashable, MutableMapping
from functools import partial, wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, Self, TypeVar, cast, overload

from mempool.cache._policies import MISSING
from mempool.cache.keys import hashkey
from mempool.cache.loading import Load, Loads, Maker, Options, is_async
from mempool.cache.namespaces import Namespace
from mempool.cache.read_through import ReadThrough
from mempool.cache.records import CacheFull

__all__ = ["CacheInfo", "Cached", "cached"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")


class CacheInfo(NamedTuple):
    """What `cache_info()` says, as that of `functools.lru_cache` does.

    Attributes
    ----------
    hits, misses : int
        Calls of this function that found a result, and that did not, since it was decorated or `cache_clear()`.
    maxsize, currsize : float or None
        Of the cache, which may hold what others put there too; None if it has no such thing.
    """

    hits: int
    misses: int
    maxsize: float | None
    currsize: float | None


class Cached(Protocol[P, R_co]):
    """A function decorated with `cached`."""

    __name__: str
    cache: MutableMapping[Any, Any]
    cache_key: Callable[..., Hashable]

    @property
    def __wrapped__(self) -> Callable[P, R_co]:
        """The function itself."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Return what is kept for these arguments, or call the function."""

    def cache_clear(self) -> None:
        """Clear the cache, all of it, and the counts of `cache_info`."""

    def cache_info(self) -> CacheInfo:
        """Return how often a result was found, and how full the cache is."""

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self: "Cached[Concatenate[S, Q], R]", instance: S, owner: type | None = None) -> Callable[Q, R]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Bind as a method."""


def cached(
    cache: MutableMapping[Any, Any],
    key: Callable[..., Hashable] | None = None,
    ttl: float | str | None = None,
) -> Callable[[Callable[P, R]], Cached[P, R]]:
    """Keep the results of a function, a method or a coroutine function in a cache.

    One call for the same arguments at a time runs; others wait for its result. An exception reaches all of them, and
    nothing is kept.
    A result that the cache refuses, because it is too large for it or nothing may be evicted, is returned all the same.

    Parameters
    ----------
    cache : Cache or another mutable mapping
        Where results are kept; it may be shared by several functions, if their keys differ.
    key : callable, optional
        Makes the key of the arguments: `hashkey` (default), `typedkey`, `methodkey` or your own. `hashkey` of a method contains
        `self`, which the cache keeps alive then; `methodkey` leaves it out, so that all objects share results.
    ttl : float or str, optional
        Seconds, or such as ``"5m"``, until a result is over; only with a `Cache`.

    Returns
    -------
    callable
        The decorator. What it makes has, besides what `functools.wraps` gives it, ``cache``, ``cache_key``, ``cache_clear()`` and
        ``cache_info()``.

    Raises
    ------
    TypeError
        `cache` is no mapping, or is given a ttl and has none; or `key` cannot be called.

    Examples
    --------
    >>> from mempool.cache import Cache
    >>> @cached(Cache(100))
    ... def square(number):
    ...     print("squaring", number)
    ...     return number * number
    >>> square(3), square(3)
    squaring 3
    (9, 9)
    >>> square.cache_info()
    CacheInfo(hits=1, misses=1, maxsize=100, currsize=1)
    """
    if not isinstance(cache, MutableMapping):
        raise TypeError(f"cached needs a cache, not {type(cache).__name__}")
    if isinstance(cache, Namespace):
        table: _Table = _OfNamespace(cache, ttl)
    elif isinstance(cache, ReadThrough):
        table = _OfCache(cache, ttl)
    elif ttl is None:
        table = _OfMapping(cache)
    else:
        raise TypeError(f"a ttl needs a Cache, not {type(cache).__name__}")

    make_key = hashkey if key is None else key
    if not callable(make_key):
        raise TypeError(f"key must be callable, not {key!r}")

    def decorate(function: Callable[P, R]) -> Cached[P, R]:
        return cast("Cached[P, R]", _wrapped(function, cache, make_key, table))

    return decorate


class _Table(Protocol):
    """Where results are looked up, and made if they are missing."""

    def find(self, key: Any) -> Any: ...
    def load(self, key: Any, make: Maker) -> Any: ...
    def load_async(self, key: Any, make: Maker) -> Coroutine[Any, Any, Any]: ...


class _OfCache:
    """A `Cache`."""

    def __init__(self, cache: ReadThrough[Any, Any], ttl: float | str | None) -> None:
        self.find = cache._find
        self.load = partial(cache._loads.load, cache, options=Options(ttl))
        self.load_async = partial(cache._loads.load_async, cache, options=Options(ttl))


class _OfNamespace:
    """A namespace of a `Cache`."""

    def __init__(self, namespace: Namespace[Any, Any], ttl: float | str | None) -> None:
        self._table, self._full = _OfCache(namespace.cache, ttl), namespace._full

    def find(self, key: Any) -> Any:
        return self._table.find(self._full(key))

    def load(self, key: Any, make: Maker) -> Any:
        return self._table.load(self._full(key), make)

    def load_async(self, key: Any, make: Maker) -> Coroutine[Any, Any, Any]:
        return self._table.load_async(self._full(key), make)


class _OfMapping:
    """Any other mapping, whose changes nobody tells us of."""

    def __init__(self, mapping: MutableMapping[Any, Any]) -> None:
        self._mapping, loads = mapping, Loads()
        self.load = partial(loads.load, self)
        self.load_async = partial(loads.load_async, self)

    def find(self, key: Any) -> Any:
        return self._mapping.get(key, MISSING)

    def _look(self, key: Any, version: Any) -> Any:
        return self.find(key)

    def _age(self, key: Any) -> None:
        return None

    def _keep(self, load: Load, value: Any) -> bool:
        try:
            self._mapping.setdefault(load.key, value)
        except CacheFull:
            return False
        except ValueError as error:  # as caches say it since cachetools does
            if "too large" not in str(error):
                raise
            return False
        return True


class _Counts:
    """What one function asked."""

    __slots__ = ("_cache", "hits", "misses")

    def __init__(self, cache: MutableMapping[Any, Any]) -> None:
        self._cache = cache
        self.hits = self.misses = 0

    def clear(self) -> None:
        self._cache.clear()
        self.hits = self.misses = 0

    def info(self) -> CacheInfo:
        sizes = (getattr(self._cache, "maxsize", None), getattr(self._cache, "currsize", None))
        return CacheInfo(self.hits, self.misses, *sizes)


def _wrapped(function: Callable[..., Any], cache: Any, key: Callable[..., Hashable], table: _Table) -> Any:
    counts, find, load, load_async = _Counts(cache), table.find, table.load, table.load_async
    by_equality = key is hashkey

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        name = args if by_equality and not kwargs else key(*args, **kwargs)
        value = find(name)
        if value is not MISSING:
            counts.hits += 1
            return value
        counts.misses += 1
        return load(name, partial(function, *args, **kwargs))

    async def wrapper_async(
        *args: Any, **kwargs: Any
    ) -> Any:  # the same lines: to share them is a call more at each hit
        name = args if by_equality and not kwargs else key(*args, **kwargs)
        value = find(name)
        if value is not MISSING:
            counts.hits += 1
            return value
        counts.misses += 1
        return await load_async(name, partial(function, *args, **kwargs))

    made: Any = wraps(function)(wrapper_async if is_async(function) else wrapper)
    made.cache, made.cache_key = cache, key
    made.cache_clear, made.cache_info = counts.clear, counts.info
    return made
