"""What makes a cache read through to a loader: `get_or_load` beyond a hit, which is compiled."""

from collections.abc import Callable, Coroutine, Hashable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, overload

from mempool.cache._policies import MISSING, Table
from mempool.cache.arguments import LoadOptions
from mempool.cache.loading import Load, Loader, Loads, Options, is_async
from mempool.cache.namespaces import loader_key
from mempool.cache.refreshing import Refresher, check_fraction

__all__ = ["ReadThrough"]

K = TypeVar("K")
V = TypeVar("V")


class ReadThrough(Table[K, V], Generic[K, V]):
    """Loads, refreshing and what a cache keeps of it."""

    _loads: Loads
    _refresher: Refresher

    if TYPE_CHECKING:

        @overload
        def get_or_load(
            self, key: K, loader: Callable[[K], Coroutine[Any, Any, V]], **options: Unpack[LoadOptions]
        ) -> Coroutine[Any, Any, V]: ...
        @overload
        def get_or_load(self, key: K, loader: Callable[[K], V], **options: Unpack[LoadOptions]) -> V: ...
        def get_or_load(self, key: K, loader: Loader, **options: Unpack[LoadOptions]) -> Any:
            """Return the value of a key, loaded if need be."""

    def _begin_loads(self) -> None:
        """Set up, once."""
        self._loads = Loads()
        self._refresher = Refresher(self._loads)
        self._watch(self._loads, self._loads.active)

    def _load(self, key: Any, loader: Loader, ttl: Any, priority: int, tags: Iterable[Hashable]) -> Any:
        """Have a plain loader load what was not found."""
        return self._loads.load(self, key, partial(loader, loader_key(key)), Options(ttl, priority, tags))

    def _load_through(
        self,
        key: Any,
        loader: Loader,
        ttl: Any,
        priority: int,
        tags: Iterable[Hashable],
        version: Any,
        refresh_ahead: float | None,
    ) -> Any:
        """Look, by version; load or refresh."""
        awaited = is_async(loader)
        if refresh_ahead is not None:
            check_fraction(refresh_ahead)
        found = self._find(key, version)
        if found is MISSING:
            begin = self._loads.load_async if awaited else self._loads.load
            return begin(self, key, partial(loader, loader_key(key)), Options(ttl, priority, tags, version))
        if refresh_ahead is None:
            return _ready(found) if awaited else found
        make, options = partial(loader, loader_key(key)), Options(ttl, priority, tags, version)
        look = partial(self._refresher.look, self, key, make, options, refresh_ahead, awaited)
        if awaited:
            return _ready(found, look)
        look()
        return found

    def _look(self, key: Any, version: Any) -> Any:
        """Look as `_find` does, but count nothing."""
        peeked = self._peek(key)
        if peeked is MISSING or version is None:
            return MISSING if peeked is MISSING else peeked[0]
        value, note = peeked
        return value if note is not None and note.version == version else MISSING

    def _put(self, key: Any, value: Any, *, ttl: Any, priority: Any, tags: Any, version: Any, replace: Any) -> bool:
        """Put an entry; whether it was put."""
        raise NotImplementedError

    def _keep(self, load: Load, value: Any) -> bool:
        """Put what was loaded. What the cache refuses, it counts: the caller has its value nevertheless."""
        how = load.options
        return self._put(
            load.key,
            value,
            ttl=how.ttl,
            priority=how.priority,
            tags=how.tags,
            version=how.version,
            replace=load.claim,
        )


async def _ready(value: Any, look: Callable[[], None] | None = None) -> Any:
    """Return what was found; a look at its age is for the loop in which this is awaited."""
    if look is not None:
        look()
    return value
