"""The instruments of `detect_leaks`: readings between calls, without tracing and with it.

A reading is taken after full garbage collections, so that cycles are not taken for leaks. What was there before a run is
frozen for its length: the collections look at new objects alone, and cost a fraction.
"""

import gc
import os
import tracemalloc
from array import array
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mempool._core import TRACEMALLOC_DOMAIN
from mempool._system import heap, process
from mempool.accounting import _lent

__all__ = ["SMALL", "Lent", "Place", "Sizes", "Totals", "Traces", "call_many", "collect", "is_calling", "quiet"]

SMALL = 512  # Python's own allocator serves up to this
_FRAMES = 12
_PASSES = 2  # collections at a reading: finalizers may leave garbage again
_IMMORTAL = 1000  # a collection of 3.12 freezes some 400 immortal objects itself; a program freezes thousands

Place = tuple[bool, str, int]  # external (else heap), file, line
_RawStack = tuple[tuple[str, int], ...]
_RawTrace = tuple[int, int, _RawStack, int]


def call_many(func: Callable[[], object], count: int) -> None:
    """Call; what C code called from here allocates shows under this line."""
    for _ in range(count):
        func()


_CALLING = range(call_many.__code__.co_firstlineno, call_many.__code__.co_firstlineno + 4)
_PACKAGE = str(Path(_lent.__file__).parents[1]) + os.sep
_INSTRUMENTS = {
    *(
        _PACKAGE + os.path.join("accounting", name)
        for name in ("_sampling.py", "_lent.py", "_verdict.py", "leaks.py", "patterns.py")
    ),
    heap.__file__,
    process.__file__,
    tracemalloc.__file__,
}


def collect() -> None:
    """Collect all garbage, also what finalizers leave."""
    for _ in range(_PASSES):
        if gc.collect() == 0:
            return


@contextmanager
def quiet() -> Iterator[None]:
    """Set apart what is there already, unless somebody did so: it takes no part in collections meanwhile."""
    collect()
    ours = gc.get_freeze_count() < _IMMORTAL
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


class Lent:
    """What each account itself has lent, at each reading.

    Attributes
    ----------
    series : dict of tuple to array of int
        Bytes, by the path of the account from the root.
    """

    def __init__(self) -> None:
        self.series: dict[tuple[str, ...], array[int]] = {}
        self.taken = 0
        self._known: frozenset[tuple[str, ...]] = frozenset()

    def read(self) -> None:
        """Take one reading."""
        for path, nbytes in _lent.lent_by_account().items():
            if path not in self.series:
                self.series[path] = array("q", bytes(8 * self.taken))
            self.series[path].append(nbytes)
        if self.taken == 0:
            self._known = frozenset(self.series)
        self.taken += 1
        for row in self.series.values():
            if len(row) < self.taken:
                row.append(0)

    def total(self, without: Container[tuple[str, ...]] = ()) -> list[int]:
        """Return what all of them have lent, reading by reading, but for some."""
        rows = [row for path, row in self.series.items() if path not in without]
        return [sum(row) for row in zip(*rows, strict=True)] or [0] * self.taken

    def came(self) -> dict[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the paths of accounts that were not there at the first reading, by the account below which they came."""
        below: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for path in self.series:
            if path not in self._known:
                depth = next(depth for depth in range(1, len(path) + 1) if path[:depth] not in self._known)
                below.setdefault(path[: depth - 1], []).append(path)
        return below


class Totals:
    """Sums over the process, at each reading. They need no tracing, and know of memory that older objects gave back.

    Attributes
    ----------
    objects, malloc, resident : array of int
        Small objects of Python, bytes that malloc lent, bytes in RAM. Empty where that is not to be known.
    """

    def __init__(self) -> None:
        self.objects, self.malloc, self.resident = array("q"), array("q"), array("q")
        self._instruments: list[tuple[array[int], Callable[[], int] | None]] = [
            (self.malloc, heap.malloc_counter()),
            (self.objects, heap.object_counter()),
            (self.resident, process.rss),
        ]

    @property
    def counts_objects(self) -> bool:
        """Whether Python has an allocator of its own for small objects."""
        return any(row is self.objects and instrument is not None for row, instrument in self._instruments)

    def read(self) -> None:
        """Take one reading: nothing is kept but numbers."""
        for row, instrument in self._instruments:
            if instrument is not None:
                row.append(instrument())


class Sizes:
    """What one line holds, reading by reading, and how much of that in large objects at the last one.

    No dataclass: what a generated ``__init__`` makes is traced as made in a file ``<string>``, not here.
    """

    __slots__ = ("count", "large", "nbytes", "stack")

    def __init__(self) -> None:
        self.nbytes: list[int] = []
        self.count: list[int] = []
        self.large = 0
        self.stack: _RawStack = ()

    @classmethod
    def of(cls, parts: Sequence["Sizes"]) -> "Sizes":
        """Return the sum of some that have as many readings."""
        total = cls()
        total.nbytes = [sum(row) for row in zip(*(part.nbytes for part in parts), strict=True)]
        total.count = [sum(row) for row in zip(*(part.count for part in parts), strict=True)]
        total.large = sum(part.large for part in parts)
        return total

    def reach(self, readings: int) -> None:
        """Fill up with zeros: nothing was held when nothing was seen."""
        missing = readings - len(self.nbytes)
        self.nbytes += [0] * missing
        self.count += [0] * missing


class Traces:
    """What tracemalloc knows of each line, at each reading; tracing is on only while this is open.

    Attributes
    ----------
    places : dict of tuple to Sizes
        By domain, file and line.
    small, large, external : list of int
        Objects of Python that its own allocator serves, bytes of those that malloc serves, bytes lent by this package.
    """

    def __init__(self, small: int) -> None:
        self.places: dict[Place, Sizes] = {}
        self.small: list[int] = []
        self.large: list[int] = []
        self.external: list[int] = []
        self._largest_small = small
        self._started = False

    def __enter__(self) -> "Traces":
        self._started = not tracemalloc.is_tracing()
        if self._started:
            tracemalloc.start(_FRAMES)
        return self

    def __exit__(self, *error: object) -> None:
        if self._started:
            tracemalloc.stop()

    def read(self) -> None:
        """Take one reading.

        Raises
        ------
        RuntimeError
            If somebody stopped tracemalloc meanwhile.
        """
        if not tracemalloc.is_tracing():
            raise RuntimeError("tracemalloc was stopped while detect_leaks ran; the function must leave it alone")
        for row in (self.small, self.large, self.external):
            row.append(0)
        blamed: dict[tuple[int, int], Place | None] = {}  # one stack is one object within a snapshot
        counted = _counted()
        for (domain, size, stack, *_), count in counted.items():
            key = (domain, id(stack))
            if key not in blamed:
                blamed[key] = _blamed(domain, stack)
            place = blamed[key]
            if place is not None:
                small = (
                    domain == 0 and size <= self._largest_small
                )  # other domains are those of packages that call malloc
                self._add(place, stack, size, 0 if small else size * count, count)
        for sizes in self.places.values():
            sizes.reach(len(self.small))

    def _add(self, place: Place, stack: _RawStack, size: int, large: int, count: int) -> None:
        if place[0]:
            self.external[-1] += size * count
        else:
            self.large[-1] += large
            self.small[-1] += 0 if large else count
        sizes = self.places.get(place)
        if sizes is None:
            sizes = self.places[place] = Sizes()
        if len(sizes.nbytes) < len(self.small):
            sizes.reach(len(self.small))
            sizes.stack, sizes.large = stack, 0
        sizes.nbytes[-1] += size * count
        sizes.count[-1] += count
        sizes.large += large


def _counted() -> Counter[_RawTrace]:
    """Return how often each triple of domain, size and stack (innermost first) is held.

    The tuples that the public records wrap are counted by C code: whatever Python code would allocate here is traced as well, which
    makes a walk over the public records a hundred times as slow.
    """
    traces: Any = tracemalloc.take_snapshot().traces
    return Counter(traces._traces)


def _blamed(domain: int, stack: _RawStack) -> Place | None:
    """Return the innermost line outside this package; None for what the instruments took themselves."""
    if stack[0][0] in _INSTRUMENTS and not is_calling(*stack[0]):
        return None
    outside = (frame for frame in stack if not frame[0].startswith(_PACKAGE) or is_calling(*frame))
    return (domain == TRACEMALLOC_DOMAIN, *next(outside, stack[0]))


def is_calling(file: str, line: int) -> bool:
    """Return whether this is the line that calls the function under test: then no Python line of its own allocated."""
    return file == __file__ and line in _CALLING
