"""`BatchSizer`: how many items the next batch may have.

    size
     max |---.                          .--'        NORMAL    grows by an eighth for each batch
         |    '-.                  .--'             ELEVATED  three quarters, but not below half of where it began
         |       |            .--'                  HIGH      half, but not below an eighth of where it began
     min |       '-----.--'                         CRITICAL  the least
         +--------------------------------> batches

Pure: level, weights and room come in, a number comes out. A controller that aims at a level of use was rejected: what a batch costs
shows only after the batch, so that it would overshoot by one batch, the one that kills the process.
"""

import logging
import sys
from collections.abc import Callable
from operator import index

from mempool.pressure.levels import Level
from mempool.settings import lookup, parse_count
from mempool.units import parse_size, shown

__all__ = ["BatchSizer"]

DEFAULT_SIZE = 100
SHARE_OF_ROOM = 4  # one batch is being made while another is used, and each may be copied once

_log = logging.getLogger("mempool.pressure")


class BatchSizer:
    """Decides how many items the next batch may have. One for each run; not for several threads at once.

    Parameters
    ----------
    size : int or None
        Items to begin with. None: the setting ``batch_size``, also as it changes, else 100.
    min_size : int
        Never fewer.
    max_size : int or None
        Never more. None: `size`.
    max_bytes : int, str or None
        Most bytes of one batch, as far as `min_size` allows. None: what `room` says alone.
    room : callable or None
        Returns the bytes that are left, or None if nothing limits them; a batch may take a quarter. What raises `OSError` or
        `ValueError` is logged once, and counts as None that time.

    Raises
    ------
    TypeError, ValueError
        If a size is no whole number, below 1, or the three are out of order.

    Examples
    --------
    >>> from mempool.pressure import BatchSizer, Level
    >>> sizer = BatchSizer(100, max_size=200)
    >>> sizer.next(Level.NORMAL)
    100
    >>> sizer.record(100)
    >>> sizer.next(Level.NORMAL)
    112
    >>> sizer.next(Level.HIGH), sizer.next(Level.CRITICAL)
    (56, 1)
    """

    __slots__ = (
        "_begin",
        "_budget",
        "_calm",
        "_given",
        "_max",
        "_max_bytes",
        "_min",
        "_room",
        "_size",
        "_told",
        "_weight",
    )

    def __init__(
        self,
        size: int | None = None,
        *,
        min_size: int = 1,
        max_size: int | None = None,
        max_bytes: int | str | None = None,
        room: Callable[[], int | None] | None = None,
    ) -> None:
        self._min = _count(min_size, "min_size")
        self._max = parse_count(max_size, "max_size")
        self._given = parse_count(size, "size")
        if self._max is not None and self._max < self._min:
            raise ValueError(f"max_size of {self._max} is below min_size of {self._min}")
        if self._given is not None and not self._min <= self._given <= (self._max or self._given):
            raise ValueError(f"size of {self._given} is not from min_size {self._min} to max_size {self._max}")
        self._max_bytes = None if max_bytes is None else parse_size(max_bytes, "max_bytes")
        self._room, self._told = room, False
        self._budget: int | None = None
        self._weight: float | None = None
        self._calm = False
        self._begin = self._size = self._wanted()

    @property
    def size(self) -> int:
        """Items, as decided last."""
        return self._size

    @property
    def min_size(self) -> int:
        """Items that a batch may always have."""
        return self._min

    @property
    def bytes_per_item(self) -> float | None:
        """As recorded: rises at once, falls slowly. None before anything was weighed."""
        return self._weight

    @property
    def budget(self) -> int | None:
        """Bytes that the batch decided on last may weigh, None if nothing limits them."""
        return self._budget

    def next(self, level: Level) -> int:
        """Decide for the next batch, and return how many items it may have."""
        self._follow()
        size = self._by_level(level)
        self._budget = self._bound()
        if self._budget is not None and self._weight and self._weight * size > self._budget:
            size = int(self._budget // self._weight)
        self._size = max(self._min, size)
        self._calm = False
        return self._size

    def record(self, items: int, nbytes: int | None = None) -> None:
        """Tell what a batch had, and what it weighed: without it the size does not grow.

        Raises
        ------
        TypeError, ValueError
            For what is no whole number, or below zero. Then nothing has changed.
        """
        count = _whole(items, "items")
        weighed = None if nbytes is None else _whole(nbytes, "nbytes")
        self._calm = True
        if weighed is None or count == 0:
            return
        weight = min(weighed, sys.maxsize) / count
        if self._weight is None or weight > self._weight:
            self._weight = weight
        else:
            self._weight += (weight - self._weight) / 4

    def _bound(self) -> int | None:
        room = self._room_now()
        if room is None:
            return self._max_bytes
        share = room // SHARE_OF_ROOM
        return share if self._max_bytes is None else min(share, self._max_bytes)

    def _by_level(self, level: Level) -> int:
        size = self._size
        if level >= Level.CRITICAL:
            return self._min
        if level >= Level.HIGH:
            return min(size, max(self._begin // 8, size // 2))
        if level >= Level.ELEVATED:
            return min(size, max(self._begin // 2, size * 3 // 4))
        return min(self._ceiling(), size + max(1, size // 8)) if self._calm else size

    def _ceiling(self) -> int:
        return self._begin if self._max is None else self._max

    def _wanted(self) -> int:
        """Where sizes begin: as given, or as set, which is no error where it does not fit."""
        if self._given is not None:
            return self._given
        size = lookup("batch_size")
        wanted = max(self._min, size if isinstance(size, int) else DEFAULT_SIZE)
        return wanted if self._max is None else min(self._max, wanted)

    def _follow(self) -> None:
        """Take over a setting that changed: less at once, more slowly."""
        self._begin = self._wanted()
        self._size = min(self._size, self._ceiling())

    def _room_now(self) -> int | None:
        if self._room is None:
            return None
        try:
            return self._room()
        except (OSError, ValueError) as error:
            if not self._told:
                self._told = True
                _log.warning("batches do not follow the memory that is left as long as it cannot be read: %s", error)
            return None


def _count(value: object, name: str) -> int:
    count = parse_count(value, name)
    if count is None:
        raise TypeError(f"{name} must be a whole number, not None")
    return count


def _whole(value: object, name: str) -> int:
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    number = index(value)  # type: ignore[arg-type]
    if number < 0:
        raise ValueError(f"{name} must not be negative, got {shown(number)}")
    return number
