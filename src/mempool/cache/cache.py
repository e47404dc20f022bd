"""`Cache`: a mapping within bounds, of entries or of bytes."""

import math
import operator
from collections.abc import Callable, Iterator, MutableMapping
from typing import TypeVar

from mempool._core import Account
from mempool.cache._policies import Table, walk
from mempool.cache.policies import DEFAULT, POLICIES
from mempool.cache.records import Cause
from mempool.units import parse_size, shown

__all__ = ["Cache"]

K = TypeVar("K")
V = TypeVar("V")

_UNIT, _REAL, _OWN = 0, 1, 2
_UNBOUNDED = 1 << 63

_caches = Account("caches")


class Cache(Table, MutableMapping[K, V]):
    """A mapping that keeps within its bounds by letting go of what its policy can spare."""

    def __init__(
        self,
        maxsize: float | None = None,
        *,
        max_bytes: int | str | None = None,
        policy: str | None = None,
        ttl: float | None = None,
        getsizeof: Callable[[V], int] | None = None,
        on_evict: Callable[[K, V, Cause], object] | None = None,
        name: str | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if maxsize is None and max_bytes is None:
            raise TypeError("a cache needs a bound: maxsize, max_bytes or both")
        most = _UNBOUNDED if maxsize is None else _count(maxsize)
        chosen = POLICIES[policy or DEFAULT]
        self.name = name or "cache"
        self._maxsize, self._max_bytes = maxsize, None if max_bytes is None else parse_size(max_bytes, "max_bytes")
        if getsizeof is not None:
            self.getsizeof = getsizeof  # type: ignore[method-assign]
        weighed = getsizeof is not None or type(self).getsizeof is not Cache.getsizeof
        bytes_bound = self._max_bytes is not None
        self._begin(
            chosen.order,
            self._max_bytes if bytes_bound else most,
            most if bytes_bound or not weighed else _UNBOUNDED,
            _OWN if weighed else _REAL if bytes_bound else _UNIT,
            math.inf if ttl is None else ttl,
            clock,
            on_evict,
            Account(self.name, parent=_caches),
            None,
            chosen.fixing,
            chosen.soonest,
        )

    def __missing__(self, key: K) -> V:
        raise KeyError(key)

    def __iter__(self) -> Iterator[K]:
        return walk(self, 0)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {len(self)} entries, {self.currsize} of {self.maxsize}>"

    @property
    def maxsize(self) -> float:
        """The bound of `currsize`."""
        return self._max_bytes if self._maxsize is None else self._maxsize  # type: ignore[return-value]

    @property
    def max_bytes(self) -> int | None:
        """The bound in bytes; None: there is none."""
        return self._max_bytes

    def getsizeof(self, value: V) -> int:
        """Return what a value counts."""
        return 1


def _count(maxsize: float) -> int:
    if isinstance(maxsize, float) and maxsize == math.inf:
        return _UNBOUNDED
    try:
        count = operator.index(maxsize)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"maxsize must be an int or inf, not {shown(maxsize)}") from None
    if count < 0:
        raise ValueError(f"maxsize must not be negative, got {count}")
    return count
