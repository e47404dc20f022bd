"""Making room: what a monitor asks to shrink, step by step, with a floor.

    ELEVATED   idle memory of pools and slabs, then malloc's         costs nobody anything
    HIGH       + reclaimers are asked for what is over,
               + caches in turn, five times 5 % of what each holds   costs misses
    CRITICAL   + caches in turn, 5 % of what each holds at a time    down to the floor

After each step a monitor is asked whether the pressure is over: then it is enough. The largest cache is asked first, and each gives
the same share before any gives another.

What a cache lets go of lands in malloc, or idle in a pool, and from there it does not leave the process by itself. So each step
ends with giving that back, and is judged by what the process then has less of, not by what was claimed: a step that brought nothing
is the last for this cache, or it would be emptied for nothing.

Rejected: to judge by what an item says it freed. Entries that others still hold, and blocks in half-used pages, stay
where they are. And a quarter at a time: most of it was given up after the pressure was over.
"""

import logging
import operator
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, TypeGuard, cast, runtime_checkable

from mempool import _core, _reclaim
from mempool._core import BufferPool, SlabAllocator, root_account
from mempool._system import process
from mempool.pressure.levels import Level, PressureEvent
from mempool.pressure.regrowth import is_relieved
from mempool.units import parse_size

if TYPE_CHECKING:
    from mempool.shared import SharedPool

__all__ = ["Item", "ItemStats", "Shrinkable", "Shrinker", "register", "unregister"]

_log = logging.getLogger("mempool.pressure")

_PARTS = 20  # a cache gives one of so many of what it has at a time
_ROUNDS = 5  # at HIGH
MOST_STEPS = 1000  # 2**60 bytes are gone after some 800
_FRUITLESS = 8  # what brings less than an eighth of what was asked brought nothing
# The resident figure of a process is late by up to some hundred KiB: so much is to be asked before it is judged.
_TOLD = 1 << 20
_RELIEVED = 0.7  # of the limit: below where the first level begins, less its hysteresis


@runtime_checkable
class Shrinkable(Protocol):
    """What can give up content, as a cache can: what is lost can be had again."""

    @property
    def name(self) -> str:
        """For logs and reports."""

    @property
    def nbytes(self) -> int:
        """Bytes that it holds now."""

    def shrink(self, nbytes: int, /) -> int:
        """Let go of this many bytes, the least useful first; how many they were. If they are fewer, it is asked again."""


class Trimmable(Protocol):
    """What keeps memory ready and can give it back, as slabs and shared pools do."""

    def trim(self) -> int:
        """Give it back to the OS; its bytes."""


Item: TypeAlias = BufferPool | Trimmable | Shrinkable | Callable[[int], int | None]


@dataclass(frozen=True, slots=True)
class ItemStats:
    """What one item was asked, and what it said.

    Attributes
    ----------
    name : str
        Of the item.
    kind : str
        ``"idle"`` for pools and slabs, ``"cache"`` for what has `shrink`, ``"asked"`` for a callable.
    asks, errors : int
        How often it was asked, and how often it raised.
    freed : int
        Bytes, as it said.
    seconds : float
        Time spent in it.
    """

    name: str
    kind: str
    asks: int
    errors: int
    freed: int
    seconds: float


class Entry:
    """An item, and the book about it. Errors stay here: one item's do not keep others from shrinking."""

    def __init__(self, item: Item, *, name: str | None = None, kind: str | None = None) -> None:
        self.kind = kind or kind_of(item)
        self.name = name or _name_of(item)
        self.item: Callable[[], Item | None] = lambda: item
        self.asks = self.errors = self.freed = 0
        self.excess = 0  # bytes that it last gave beyond what it was asked for: entries go whole
        self._wanted = self._brought = 0  # bytes asked for since it was last judged, that the process has less for it
        self.seconds = 0.0

    def ask(self, nbytes: int) -> int:
        """Ask for this many bytes; pools and slabs take them as what to keep idle. How many they say it were."""
        item = self.item()
        if item is None:  # a registered cache that has just gone
            return 0
        start = time.perf_counter()
        try:
            freed = counted(_asking(item, self.kind)(nbytes))
        except Exception:
            self.errors += 1
            if self.errors == 1:
                _log.exception("%s could not shrink; further errors are counted, not logged", self.name)
            return 0
        finally:
            self.asks += 1
            self.seconds += time.perf_counter() - start
        self.freed += freed
        return freed

    def size(self) -> int:
        """Bytes that a cache holds, 0 if it cannot tell."""
        item = self.item()
        try:
            return 0 if item is None else counted(cast(Shrinkable, item).nbytes)
        except Exception:
            self.errors += 1
            if self.errors == 1:
                _log.exception("%s could not tell its size; further errors are counted, not logged", self.name)
            return 0

    def is_worth(self, wanted: int, brought: int) -> bool:
        """Take in what a step brought; whether it is worth while to go on, as far as that can be told."""
        self._wanted += wanted
        self._brought += brought
        if self._wanted < _TOLD:
            return True
        wanted, brought, self._wanted, self._brought = self._wanted, self._brought, 0, 0
        return brought > wanted // _FRUITLESS

    def stats(self) -> ItemStats:
        """Return what it was asked so far, and what it said."""
        return ItemStats(self.name, self.kind, self.asks, self.errors, self.freed, self.seconds)


def kind_of(item: object) -> str:
    """Return what an item can give: ``"idle"``, ``"cache"`` or ``"asked"``. Our pools and slabs are never caches."""
    if not isinstance(item, type):
        if isinstance(item, BufferPool | SlabAllocator) or _is_shared(item):
            return "idle"
        if isinstance(item, Shrinkable):
            return "cache"
        if callable(getattr(item, "trim", None)):
            return "idle"
        if callable(item):
            return "asked"
    raise TypeError(f"only pools, slabs, callables, and what has name, nbytes and shrink can make room, not {item!r}")


def _name_of(item: Item) -> str:
    name = getattr(item, "name", None) or getattr(item, "__qualname__", None)
    return name if isinstance(name, str) else type(item).__qualname__


def _asking(item: Item, kind: str) -> Callable[[int], int | None]:
    if kind == "cache":
        return cast(Shrinkable, item).shrink
    if isinstance(item, BufferPool):
        return partial(_trim_above, item)
    if _is_shared(item):
        return item._trim
    if kind == "idle" and callable(getattr(item, "trim", None)):
        return lambda _: cast(Trimmable, item).trim()
    return cast(Callable[[int], int | None], item)


def _trim_above(pool: BufferPool, floor: int) -> int:
    """Trim a pool of which so much is to stay idle: blocks go whole, and the last one may be the largest."""
    largest = max((row.size for row in pool.stats().size_classes if row.idle), default=1) if floor else 1
    return pool.trim(floor + largest - 1)


def _is_shared(item: object) -> TypeGuard["SharedPool"]:
    """Tell a `SharedPool`; where there is one its module is loaded."""
    module = sys.modules.get("mempool.shared.pool")
    return module is not None and isinstance(item, module.SharedPool)


def counted(said: int | None) -> int:
    """Return bytes as an item reports them; None is for one that does not count."""
    freed = 0 if said is None else operator.index(said)
    if freed < 0:
        raise ValueError(f"bytes freed must not be negative, got {freed}")
    return freed


# ---- who registered by itself

_registered: dict[int, Entry] = {}  # by identity, as caches compare by content; single steps of a dict need no lock


def register(item: Shrinkable) -> None:
    """Have `Shrinker.of_process` shrink this too, as long as it lives: it is held weakly. Twice is as good as once.

    Pools and slabs need not be registered.

    Raises
    ------
    TypeError
        For what has not `name`, `nbytes` and `shrink`, or cannot be held weakly.
    """
    if kind_of(item) != "cache":
        raise TypeError(f"only what has name, nbytes and shrink can be registered, not {item!r}")
    key = id(item)
    if key not in _registered:
        entry = Entry(item)
        entry.item = weakref.ref(item, lambda _: _registered.pop(key, None))
        _registered[key] = entry


def unregister(item: Shrinkable) -> None:
    """Have it shrunk no more. What was not registered is fine."""
    _registered.pop(id(item), None)


def registered() -> list[tuple[str, Shrinkable]]:
    """Return what is registered and alive, with the name that it had then."""
    found = [(entry.name, entry.item()) for entry in list(_registered.values())]
    return [(name, cast(Shrinkable, item)) for name, item in found if item is not None]


# ---- what the process has


class Held(NamedTuple):
    """Bytes of this process at one moment: resident (None: cannot be read), and taken from the OS by this package."""

    resident: int | None
    external: int

    def less(self, later: "Held") -> int:
        """Bytes that were held then and are not later, as seen by whoever sees more."""
        resident = 0 if self.resident is None or later.resident is None else self.resident - later.resident
        return max(resident, self.external - later.external, 0)


def held(resident: Callable[[], int]) -> Held:
    """Read what the process holds."""
    try:
        return Held(resident(), root_account().used)
    except (OSError, ValueError):
        return Held(None, root_account().used)


# ---- shrinking


class Shrinker:
    """Makes room when a monitor calls it with an event. A monitor makes one of what it is given as ``reclaim=``.

    Parameters
    ----------
    items : iterable
        Pools and slabs, whose idle memory is trimmed; anything `Shrinkable`; callables, which are asked for a number of bytes
        and return how many they freed. They are kept alive.
    floor : int or str
        Bytes of idle memory that each pool keeps, and of content that each cache is not asked for, whatever the level. Slabs keep
        none.
    resident : callable
        Bytes that the process has in memory, by which each step is judged. Without it: as the OS has it.

    Raises
    ------
    TypeError, ValueError
        For an item that cannot make room, or a floor that is no size.

    Examples
    --------
    >>> pool = BufferPool(idle_timeout=None)
    >>> pool.acquire("8 MiB").release()
    >>> make_room = Shrinker([pool])
    >>> make_room(PressureEvent(Level.ELEVATED, Level.NORMAL, "test", 80, 100, 0.8, None, 0.0)) >= 8 << 20
    True
    >>> pool.stats().idle
    0
    """

    def __init__(
        self, items: Iterable[Item] = (), *, floor: int | str = 0, resident: Callable[[], int] = process.rss
    ) -> None:
        entries = [Entry(item) for item in items]
        self._find: Callable[[], Iterable[Entry]] = lambda: entries
        self._floor = parse_size(floor, "floor")
        self._resident = resident
        self._busy: dict[int, object] = {}  # by process id: a child of fork is not busy with what its parent does

    @classmethod
    def of_process(cls, *, floor: int | str = 0) -> "Shrinker":
        """Return one for all that this process has: pools, slabs, what was registered, and the reclaimers of accounts.

        What comes and goes later is looked for at each call.
        """
        shrinker = cls(floor=floor)
        shrinker._find = of_process
        return shrinker

    def __call__(self, event: PressureEvent) -> int:
        """Make room for an event; bytes that the process has less. 0 if it is already at it, in this thread or another."""
        if event.level == Level.NORMAL:
            return 0
        token = object()
        pid, mine = os.getpid(), True
        try:
            if self._busy.setdefault(pid, token) is not token:  # in here: Ctrl-C may raise as it returns
                mine = False
                return 0
            return self._make_room(event)
        finally:
            if mine:
                self._busy.pop(pid, None)

    def stats(self) -> tuple[ItemStats, ...]:
        """Return what each item that is there now was asked, and what it said."""
        return tuple(entry.stats() for entry in self._find())

    def _make_room(self, event: PressureEvent) -> int:
        entries = list(self._find())
        steps = _Steps([entry for entry in entries if entry.kind == "idle"], self._floor, self._resident)
        freed = steps.take(lambda: None)
        if event.level >= Level.HIGH:
            needed = self._needed(event)
            for entry in entries:
                if entry.kind == "asked":
                    freed += steps.take(lambda entry=entry: entry.ask(needed))  # type: ignore[misc]
            freed += self._shrink(_largest_first(entries), steps, _ROUNDS if event.level == Level.HIGH else MOST_STEPS)
        return freed

    def _needed(self, event: PressureEvent) -> int:
        """Bytes to ask for: what is over a relieved level, all at the worst, a tenth of memory where no figure is known."""
        used = event.used or held(self._resident).resident or 0
        if event.level == Level.CRITICAL:
            return used
        over = 0 if event.used is None or not event.limit else event.used - int(_RELIEVED * event.limit)
        return over if over > 0 else used // 10

    def _shrink(self, caches: list[Entry], steps: "_Steps", rounds: int) -> int:
        """Have caches give up a share of what they have, in turn, until that is enough or brings nothing."""
        freed = 0
        for _ in range(rounds):
            for cache in list(caches):
                if is_relieved():
                    return freed + steps.settle()
                brought, more = self._shrink_one(cache, steps)
                freed += brought
                if not more:
                    caches.remove(cache)
            if not caches:
                break
        return freed + steps.settle()

    def _shrink_one(self, cache: Entry, steps: "_Steps") -> tuple[int, bool]:
        """Have one give up a share of what it has; bytes that the process has less, and whether to ask it again.

        What holds less than can be seen in the process is taken at its word, for as much as its size fell.
        """
        size, said = cache.size(), cache.freed
        nbytes = min(-(-size // _PARTS), size - (self._floor + cache.excess if self._floor else 0))
        if nbytes <= 0:
            return 0, False
        freed = 0
        if size < _TOLD:
            steps.begin()
            cache.ask(nbytes)
        else:
            freed = steps.settle()
            brought = steps.take(lambda: cache.ask(nbytes))
        gave = max(0, min(cache.freed - said, size - cache.size()))
        cache.excess = max(0, gave - nbytes)
        if size < _TOLD:
            steps.claim(gave)
            return gave, gave > 0
        return freed + brought, cache.is_worth(nbytes, brought) and (gave > 0 or brought > 0)


def _largest_first(entries: Iterable[Entry]) -> list[Entry]:
    """Return the caches among them that hold anything, in the order in which they are asked."""
    sizes = [(entry, entry.size()) for entry in entries if entry.kind == "cache"]
    return [entry for entry, size in sorted(sizes, key=lambda one: -one[1]) if size]


class _Steps:
    """Runs the steps of one event, each of which gives back what it left idle, and tells what the process then has less.

    Steps that are too small to be seen are claimed, and give back together.
    """

    def __init__(self, idle: list[Entry], floor: int, resident: Callable[[], int]) -> None:
        self._idle, self._floor, self._resident = idle, floor, resident
        self._before: Held | None = None
        self._claimed = 0

    def take(self, act: Callable[[], object]) -> int:
        """Run one step; bytes that the process has less."""
        before = held(self._resident)
        act()
        trimmed = sum(entry.ask(self._floor) for entry in self._idle)
        trim_malloc()
        return max(before.less(held(self._resident)), trimmed)

    def begin(self) -> None:
        """Remember what there is: a small step follows."""
        self._before = self._before or held(self._resident)

    def claim(self, nbytes: int) -> None:
        """So much is said to be gone."""
        self._claimed += nbytes

    def settle(self) -> int:
        """Give back what small steps left; bytes beyond those that were claimed."""
        before, claimed, self._before, self._claimed = self._before, self._claimed, None, 0
        if before is None:
            return 0
        brought = self.take(lambda: None)
        return max(0, max(brought, before.less(held(self._resident))) - claimed)


# ---- all that there is


def trim_malloc() -> bool:
    """Have malloc give free memory back to the OS; whether it had some. False where there is no such call."""
    return _core._malloc_trim()


def pools() -> list[BufferPool]:
    """Return the pools of this process that are alive."""
    return _core._pools()


def slabs() -> list[SlabAllocator]:
    """Return the slabs of this process that are alive."""
    return _core._slabs()


def trim_shared(floor: int = 0) -> int:
    """Have shared pools give segments back that nobody uses; their bytes. Where nobody shares memory nothing is loaded."""
    registry = sys.modules.get("mempool.shared.registry")
    return 0 if registry is None else sum(books.trim(floor) for books in list(registry.here.books))


_OF_PROCESS = (
    Entry(lambda floor: sum(_trim_above(pool, floor) for pool in pools()), name="idle memory of pools", kind="idle"),
    Entry(lambda _: sum(slab.trim() for slab in slabs()), name="free slots of slabs", kind="idle"),
    Entry(trim_shared, name="idle shared memory", kind="idle"),
    Entry(_reclaim.relieve, name="reclaimers"),
)


def of_process() -> list[Entry]:
    """Return what can make room in this process now."""
    return [*_OF_PROCESS, *list(_registered.values())]
