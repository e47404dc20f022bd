"""Caches that yield: 5 % a step while memory is short, and back by 5 % of their bound a step while nothing grows.

    bound      |----------------------------------------|
    allowed    |---------------------------|  -> -> ->         what a monitor left of it; grows back at its polls
    holds      |-----------------------|

What is held counts in bytes, whatever the bound counts in: exactly under `max_bytes`, as an estimate from a sample of the values
under `maxsize`.

Only a monitor lowers what is allowed, as only a monitor gives it back: `shrink` that somebody else calls, a cleanup say, takes
content and no more.
"""

import time
from typing import Any, Generic, TypeVar

from mempool.cache._policies import Table, real_bytes
from mempool.cache.arguments import UNBOUNDED, as_int
from mempool.pressure.regrowth import grow_later, is_asked
from mempool.units import shown

__all__ = ["Estimate", "Yielding", "as_bytes"]

K = TypeVar("K")
V = TypeVar("V")

_PARTS = 20  # a step is one of so many

_SAMPLE = 32  # values that are weighed
_KEPT = 5.0  # seconds; within a row of steps the same bytes count the same


def _weighed(value: object) -> int | None:
    """Return its bytes, or None: nobody asked it for a size when it was put, so that it has none is no error."""
    try:
        return real_bytes(value)
    except Exception:
        return None


class Estimate:
    """Bytes of a table whose bound is no number of bytes, from a sample of its values: those that can be weighed."""

    __slots__ = ("_count", "_each", "_until")

    def __init__(self) -> None:
        self._each, self._until, self._count = 0.0, float("-inf"), 0

    def of(self, table: Table[Any, Any]) -> int:
        """Return the bytes of its values."""
        count = len(table)
        now = time.monotonic()
        if now >= self._until or count > 2 * self._count:
            weighed = [nbytes for value in table._sample(_SAMPLE) if (nbytes := _weighed(value)) is not None]
            self._each = sum(weighed) / len(weighed) if weighed else 0.0
            self._until, self._count = now + _KEPT, count
        return round(count * self._each)


def as_bytes(nbytes: object) -> int:
    """Return a number of bytes to let go of."""
    wanted = as_int(nbytes, "nbytes", "a number of bytes")
    if wanted < 0:
        raise ValueError(f"nbytes must not be negative, got {shown(wanted)}")
    return wanted


def _share(wanted: int, total: int, held: int) -> int:
    """Return how much of a total goes for so many bytes of those that it holds: a step at most."""
    return min(-(-total // _PARTS), -(-wanted * total // held)) if held else 0


class Yielding(Table[K, V], Generic[K, V]):
    """A table that gives memory back when it is asked, and is given its bound back by the monitor that asked."""

    _whole = UNBOUNDED  # what one without a bound held, to grow back to
    _estimate: Estimate | None = None  # None: sizes are bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the values that it holds: as they are counted under `max_bytes`, else estimated from a sample of them."""
        return self.currsize if self._estimate is None else self._estimate.of(self)

    def shrink(self, nbytes: int, /) -> int:
        """Let go of so many bytes, but of 5 % of what is held at most: whoever needs more asks again. Entries go whole.

        Returns
        -------
        int
            Bytes that were let go of.

        Raises
        ------
        TypeError, ValueError
            For what is no number of bytes.

        Notes
        -----
        While a monitor asks, what is left is all that is allowed from now on, until it grows back: 5 % of the bound at each poll
        of the monitor that finds the level NORMAL and memory not growing, all of it when the monitor is stopped.
        """
        wanted = as_bytes(nbytes)
        held, (total, allowed, bound) = self.nbytes, self._limits()
        goal = _share(wanted, total, held)
        if not goal:
            return 0
        gone = self._shrink(goal)
        if is_asked():
            if allowed == bound:
                self._whole = total
            try:
                self._allow(self._limits()[0] + self.pinned)
            finally:  # whatever Ctrl-C interrupts: nobody else would give it back
                grow_later(self)  # last, as it may be given back at once
        return gone * held // total

    def _grow(self, whole: bool = False, /) -> bool:
        _, allowed, bound = self._limits()
        goal = bound if bound < UNBOUNDED else self._whole
        more = allowed + -(-goal // _PARTS)
        done = whole or more >= goal
        self._allow(UNBOUNDED if done else more)  # no more than its bound: another thread may raise that now
        return done
