"""`Tracker`: labelled snapshots in a ring, with deltas and statistics."""

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from statistics import fmean
from typing import Literal

from mempool.accounting._locks import ProcessLock
from mempool.accounting.measuring import MemoryDelta, Snapshot, take_snapshot
from mempool.accounting.patterns import Pattern, classify, robust_slope
from mempool.units import parse_size, shown

__all__ = ["Figures", "Tracker", "TrackerStats"]

Figure = Literal["rss", "external", "idle", "mapped", "lent", "traced", "python_heap", "blocks"]
_FIGURES = ("rss", "external", "idle", "mapped", "lent", "traced", "python_heap", "blocks")
_NOISE = "1MiB"
_NOISE_OF_BLOCKS = 10_000


@dataclass(frozen=True, slots=True)
class Figures:
    """One figure over the snapshots that are kept; bytes.

    Attributes
    ----------
    first, last, low, high : int
        Of the oldest and the newest snapshot; the smallest and the largest.
    mean : float
        Of all.
    per_second : float
        Growth, robust against outliers.
    """

    first: int
    last: int
    low: int
    high: int
    mean: float
    per_second: float


@dataclass(frozen=True, slots=True)
class TrackerStats:
    """What a tracker keeps.

    Attributes
    ----------
    taken, kept : int
        Snapshots so far, and those that the ring still holds.
    seconds : float
        From the oldest to the newest of these.
    rss, lent : Figures or None
        None without a snapshot.
    traced : Figures or None
        None unless `tracemalloc` ran at each of them.
    """

    taken: int
    kept: int
    seconds: float
    rss: Figures | None
    lent: Figures | None
    traced: Figures | None


class Tracker:
    """Keeps the last snapshots of what the process holds. Safe from any thread.

    Parameters
    ----------
    capacity : int
        Most snapshots that are kept; the oldest goes first.
    clock : callable
        Seconds.
    read : callable
        Makes a snapshot of a label and a clock.

    Examples
    --------
    >>> import mempool
    >>> tracker = Tracker()
    >>> before = tracker.snapshot("before")
    >>> with mempool.acquire("4MiB") as buffer:
    ...     during = tracker.snapshot("during")
    >>> tracker.delta("before", "during").lent
    4194304
    >>> tracker.pattern() == "steady"
    True
    """

    def __init__(
        self,
        capacity: int = 100,
        *,
        clock: Callable[[], float] = time.monotonic,
        read: Callable[[str | None, Callable[[], float]], Snapshot] = take_snapshot,
    ) -> None:
        if isinstance(capacity, bool) or not hasattr(type(capacity), "__index__"):
            raise TypeError(f"capacity must be an int, not {capacity!r}")
        if index(capacity) < 1:
            raise ValueError(f"capacity must be at least 1, got {shown(index(capacity))}")
        if index(capacity) > sys.maxsize:
            raise OverflowError(f"capacity of {shown(index(capacity))} snapshots cannot be addressed")
        self._ring: deque[Snapshot] = deque(maxlen=index(capacity))
        self._clock, self._read = clock, read
        self._taken = 0
        self._lock = ProcessLock()

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def capacity(self) -> int:
        """Most snapshots that are kept."""
        return self._ring.maxlen or 0

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """Those that are kept, oldest first."""
        with self._lock():
            return tuple(self._ring)

    def snapshot(self, label: str | None = None) -> Snapshot:
        """Take a snapshot, keep it and return it.

        Raises
        ------
        TypeError
            If the label is no str.
        OSError, ValueError
            If the system does not tell. Then nothing is kept.
        """
        if label is not None and not isinstance(label, str):
            raise TypeError(f"label must be a str or None, not {label!r}")
        with self._lock():  # snapshots stand in the order of their times
            taken = self._read(label, self._clock)
            self._ring.append(taken)
            self._taken += 1
        return taken

    def delta(self, a: str | int | Snapshot = 0, b: str | int | Snapshot = -1) -> MemoryDelta:
        """Return what changed from one snapshot to another.

        Parameters
        ----------
        a, b : str, int or Snapshot
            A label (of several, the newest counts), a position among those kept (negative: from the newest), or a snapshot
            itself. By default the oldest and the newest.

        Raises
        ------
        LookupError
            `KeyError` for a label, `IndexError` for a position that is not there, or not any more.
        """
        kept = self.snapshots
        before, after = _find(kept, a), _find(kept, b)
        return MemoryDelta(after.label, before, after)

    def stats(self) -> TrackerStats:
        """Return statistics over the snapshots that are kept."""
        with self._lock():
            kept, taken = tuple(self._ring), self._taken
        seconds = kept[-1].time - kept[0].time if kept else 0.0
        rss, lent, traced = (_figures(kept, name) for name in ("rss", "lent", "traced"))
        return TrackerStats(taken, len(kept), seconds, rss, lent, traced)

    def pattern(self, figure: Figure = "rss", *, noise: int | str | None = None) -> Pattern:
        """Return ``"steady"``, ``"spike"``, ``"leak"`` or ``"thrashing"``, with the `evidence`.

        Parameters
        ----------
        figure : {"rss", "external", "idle", "mapped", "lent", "traced", "python_heap", "blocks"}
            What is looked at. Snapshots without it are left out.
        noise : int, str or None
            Bytes of change that mean nothing, 1 MiB by default; for ``"blocks"`` a number of blocks, 10,000 by default.

        Raises
        ------
        TypeError, ValueError
            For a figure that there is not, and noise that makes no sense; the value is named.
        """
        if figure not in _FIGURES:
            raise ValueError(f"figure must be one of {', '.join(_FIGURES)}, not {figure!r}")
        counted = figure == "blocks"
        if counted and isinstance(noise, str):
            raise TypeError(f"noise of blocks must be a number of blocks, not {noise!r}")
        least = parse_size((_NOISE_OF_BLOCKS if counted else _NOISE) if noise is None else noise, "noise")
        points = [(kept.time, getattr(kept, figure)) for kept in self.snapshots]
        known = [(time, value) for time, value in points if value is not None]
        unit = "blocks" if counted else "bytes"
        return classify([time for time, _ in known], [value for _, value in known], noise=least, unit=unit)


def _find(kept: Sequence[Snapshot], wanted: object) -> Snapshot:
    if isinstance(wanted, Snapshot):
        return wanted
    if isinstance(wanted, str):
        for snapshot in reversed(kept):
            if snapshot.label == wanted:
                return snapshot
        raise KeyError(f"no snapshot labelled {wanted!r} is kept")
    if isinstance(wanted, bool) or not hasattr(type(wanted), "__index__"):
        raise TypeError(f"a snapshot is named by its label, its position or itself, not by {wanted!r}")
    place = index(wanted)  # type: ignore[arg-type]
    if not -len(kept) <= place < len(kept):
        raise IndexError(f"there is no snapshot {shown(place)} among the {len(kept)} that are kept")
    return kept[place]


def _figures(kept: Sequence[Snapshot], name: str) -> Figures | None:
    values = [getattr(snapshot, name) for snapshot in kept]
    if not values or None in values:
        return None
    slope = robust_slope([snapshot.time for snapshot in kept], values)
    return Figures(values[0], values[-1], min(values), max(values), fmean(values), slope)
