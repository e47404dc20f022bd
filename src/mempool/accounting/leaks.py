"""`detect_leaks`: does each call of a function leave something behind, and where.

::

    warmup   untraced round              traced rounds: more only while something grows     untraced rounds: only
    calls    |--block--|--block--| ...   |--block--|--block--| ... |--block--| ...          if malloc or RSS grew
                       ^ reading: malloc,           ^ reading: bytes and objects
                         objects, RSS, accounts       of each line, accounts

    a line leaks      if it grows in each round, and the totals without tracing do not deny it
    many lines leak   if none does, but their sum: code that is made anew has ever new lines
    an account leaks  if what it lends grows in each round, with tracing and without; so do new ones, and many, by their sum
    native memory     if malloc, or RSS, grows in each round by more than lines and accounts explain

The totals are asked because tracing that began a moment ago sees new entries of a full cache come, but not old ones go.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from inspect import iscoroutinefunction
from operator import index
from typing import Literal

from mempool.accounting._locks import ProcessLock
from mempool.accounting._sampling import (
    SMALL,
    Lent,
    Place,
    Sizes,
    Totals,
    Traces,
    call_many,
    collect,
    is_calling,
    quiet,
)
from mempool.accounting._verdict import Plan, contradicts, grows, in_steps, may_grow, rate, slope_and_error
from mempool.units import parse_size, shown

__all__ = ["Culprit", "LeakReport", "detect_leaks"]

_FEWEST = 8  # calls of a round, and as many readings: fewer tell no trend from noise
_MALLOC_RATE = 64.0  # bytes per call that allocators may take for themselves,
_MALLOC_FLOOR = 16 << 10  # and bytes of a round: what is held for a while is counted too
_RESIDENT_FLOOR = 256 << 10  # bytes of a round; RSS moves in pages, and the kernel counts it in batches
_RESIDENT_RATE = 2048.0
_RAREST = 0.02  # objects per call
_MOST_NOTES = 3
_UNEXPLAINED = 0.25  # part of what is explained that must be passed

Kind = Literal["heap", "lent", "account", "native"]
Instrument = Totals | Lent | Traces


@dataclass(frozen=True, slots=True)
class Culprit:
    """Something that grew with each call.

    Attributes
    ----------
    kind : {"heap", "lent", "account", "native"}
        What a line made in Python's heap, and what other packages trace for it (NumPy does); native memory of this package that
        a line asked for; what an account lends; memory that neither Python nor this package knows.
    where : str
        ``file:line``, the path of the account from the root, or which figure showed it; ``many lines`` and ``(new accounts)`` or
        ``(many accounts)`` for what none leaks by itself.
    bytes_per_call, objects_per_call : float
        Growth. Objects are 0.0 where only bytes are counted.
    stack : tuple of str
        ``file:line`` of the calls that led there, innermost last; empty where there is none.
    """

    kind: Kind
    where: str
    bytes_per_call: float
    objects_per_call: float = 0.0
    stack: tuple[str, ...] = ()

    def __str__(self) -> str:
        counted = f", {self.objects_per_call:.2g} objects" if self.objects_per_call else ""
        return f"{self.kind}: {self.where}: {self.bytes_per_call:,.0f} bytes{counted} a call"


@dataclass(frozen=True, slots=True)
class LeakReport:
    """What `detect_leaks` found.

    Attributes
    ----------
    leaked : bool
        Whether anything is left behind by each call.
    bytes_per_call : float
        How much: heap, plus what accounts lend, plus native memory of others. 0.0 without a leak.
    culprits : tuple of Culprit
        What grew, most bytes first. One leaked lease shows more than once: its line, its account, and its Python object.
    calls : int
        How often the function was called.
    notes : tuple of str
        What limits the verdict on this machine or in this run.
    """

    leaked: bool
    bytes_per_call: float
    culprits: tuple[Culprit, ...]
    calls: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"leaks {self.bytes_per_call:,.0f} bytes a call" if self.leaked else "no leak"
        return "\n".join([f"{head} ({self.calls} calls)", *(f"  {line}" for line in (*self.culprits, *self.notes))])


_lock = ProcessLock()  # tracing and freezing are of the process


def detect_leaks(
    func: Callable[[], object],
    *,
    warmup: int = 3,
    iterations: int = 100,
    rounds: int = 4,
    tolerance: int | str = 16,
) -> LeakReport:
    """Call a function again and again, and tell whether, how fast and where memory grows with the calls.

    Counted is what is *lent*, not what is reserved: memory that lies idle in a pool has not leaked.

    Parameters
    ----------
    func : callable
        Called without arguments; what it returns is dropped.
    warmup : int
        Calls before anything is measured.
    iterations : int
        Calls of a round, at least 8. There are two rounds, and more while something grows.
    rounds : int
        Most rounds that are traced, at least 2: growth has to last through all of them. A cache that fills within them is no leak.
    tolerance : int or str
        Bytes per call that do not count.

    Returns
    -------
    LeakReport

    Raises
    ------
    TypeError, ValueError
        For a function that cannot be called so, a coroutine function, and numbers that make no sense.
    RuntimeError
        If the function stops `tracemalloc`.

    Notes
    -----
    Whatever the function raises ends the run and is raised. Tracing is on for a part of the run only, unless it was on before.
    Garbage is collected at each reading, so cycles are no leaks. One run at a time: other threads wait, and what they do
    meanwhile is noise.

    Examples
    --------
    >>> kept = []
    >>> report = detect_leaks(lambda: kept.append(bytearray(5000)))
    >>> report.leaked, 5000 < report.bytes_per_call < 6000
    (True, True)
    >>> detect_leaks(lambda: bytearray(5000)).leaked
    False
    """
    _check_callable(func)
    warmup = _number("warmup", warmup, 0)
    plan = Plan.of(_number("iterations", iterations, _FEWEST))
    most = _number("rounds", rounds, 2)
    allowed = parse_size(tolerance, "tolerance")
    with _lock():
        call_many(func, warmup)
        with quiet():
            run = _Run(func, plan, most, allowed)
            run.measure()
    return run.report(warmup)


def _check_callable(func: object) -> None:
    if not callable(func):
        raise TypeError(f"func must be callable, not {func!r}")
    if iscoroutinefunction(func):
        raise TypeError(f"{func!r} is a coroutine function; pass a function that runs it, say with asyncio.run")


def _number(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be an int, not {value!r}")
    number = index(value)  # type: ignore[arg-type]
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {shown(number)}")
    return number


class _Run:
    """One run: the rounds, and what they showed."""

    def __init__(self, func: Callable[[], object], plan: Plan, most: int, allowed: int) -> None:
        self._func, self._plan, self._most, self._allowed = func, plan, most, allowed
        self._totals = [Totals()]
        self._lent = Lent()
        self._traces = Traces(SMALL if self._totals[0].counts_objects else 0)
        self._quiet: dict[Place, Sizes] = {}  # lines of the heap that do not grow steadily
        self.calls = 0

    def measure(self) -> None:
        """Run rounds until nothing is suspected or all are done."""
        self._lent.read()
        self._round(self._totals[0], self._lent)
        with self._traces:
            self._traces.read()
            self._round(self._traces, self._lent)
            while self.calls < self._plan.calls * (1 + self._most) and self._suspected():
                self._round(self._traces, self._lent)
        while len(self._totals) < self._most and self.native():
            self._totals.append(Totals())
            self._round(self._totals[-1])

    def _round(self, *instruments: Instrument) -> None:
        """Call in blocks, with a reading after each."""
        collect()
        if isinstance(instruments[0], Totals):
            instruments[0].read()
        for count in self._plan.blocks:
            call_many(self._func, count)
            collect()
            for instrument in instruments:
                instrument.read()
        self.calls += self._plan.calls

    def _suspected(self) -> bool:
        """Return whether something grew in each round so far."""
        rows: list[Sequence[int]] = [sizes.nbytes for sizes in self._traces.places.values()]
        rows += [
            *self._lent.series.values(),
            self._lent.total(),
            self._traces.external,
            [sum(row) for row in zip(self._traces.small, self._traces.large, strict=True)],
        ]
        places = self._traces.places.values()
        return (
            any(may_grow(self._plan, row, self._allowed) for row in rows)
            or any(may_grow(self._plan, sizes.count, _RAREST) for sizes in places)
            or any(self._steps(sizes) for sizes in places)
        )

    def _steps(self, sizes: Sizes) -> int:
        """Return in how many steps something got larger in place by more than the tolerance over all traced calls."""
        calls = self._plan.times(len(sizes.nbytes))[-1]
        return in_steps(sizes.nbytes, sizes.count) if sizes.nbytes[-1] - sizes.nbytes[0] > self._allowed * calls else 0

    # ---- lines ----

    def lines(self) -> list[Culprit]:
        """Return the lines that leak, unless the totals deny it."""
        denied = self._denied()
        found: list[Culprit | None] = []
        others: tuple[dict[Place, Sizes], dict[Place, Sizes]] = {}, {}
        for place, sizes in self._traces.places.items():
            if self._grows(sizes):
                found.append(self._line(place[0], self._where(place), sizes, denied))
            else:
                others[place[0]][place] = sizes
        self._quiet = others[False]
        found += [self._together(external, others[external], denied) for external in (False, True)]
        return [culprit for culprit in found if culprit is not None]

    def _grows(self, sizes: Sizes) -> bool:
        return grows(self._plan, sizes.nbytes, self._allowed) or grows(self._plan, sizes.count, _RAREST)

    def _line(self, external: bool, where: str, sizes: Sizes, denied: dict[str, bool]) -> Culprit | None:
        objects, each = rate(self._plan, sizes.count), sizes.nbytes[-1] / max(1, sizes.count[-1])
        by_size = grows(self._plan, sizes.nbytes, self._allowed)
        nbytes = rate(self._plan, sizes.nbytes) if by_size else objects * each
        kind = "lent" if external else "large" if 2 * sizes.large > sizes.nbytes[-1] else "small"
        if nbytes <= self._allowed or denied[kind]:
            return None
        stack = tuple(f"{name}:{number}" for name, number in reversed(sizes.stack))
        return Culprit("lent" if external else "heap", where, nbytes, objects, stack)

    def _together(self, external: bool, others: dict[Place, Sizes], denied: dict[str, bool]) -> Culprit | None:
        """Return what lines leak of which none grows by itself, as each of them was reached a few times at most."""
        total = Sizes.of(list(others.values()))
        if len(others) < 2 or not self._grows(total):
            return None
        gained: Counter[str] = Counter()
        for (_, file, _), sizes in others.items():
            gained[file] += sizes.nbytes[-1] - sizes.nbytes[0]
        return self._line(external, f"many lines, most of it in {gained.most_common(1)[0][0]}", total, denied)

    def _where(self, place: Place) -> str:
        _, file, line = place
        return f"{self._func!r}, from C code" if is_calling(file, line) else f"{file}:{line}"

    def _denied(self) -> dict[str, bool]:
        """Return for each kind of memory whether new memory came in the place of older."""
        plan, totals, traces = self._plan, self._totals[0], self._traces
        return {
            "small": contradicts(plan, totals.objects, rate(plan, traces.small)),
            "large": contradicts(plan, totals.malloc, rate(plan, traces.large)),
            "lent": contradicts(plan, self._lent.total(), rate(plan, traces.external)),
        }

    # ---- accounts and strangers ----

    def accounts(self) -> list[Culprit]:
        """Return the accounts that lend more with each call: by themselves, as new ones come, or many taken together."""
        series = self._lent.series
        grown: dict[tuple[str, ...], Sequence[int]] = {
            path: row for path, row in series.items() if grows(self._plan, row, self._allowed)
        }
        explained = set(grown)
        for above, paths in self._lent.came().items():
            new = [path for path in paths if path not in explained]
            row = [sum(values) for values in zip(*(series[path] for path in new), strict=True)]
            if new and grows(self._plan, row, self._allowed):
                grown[*above, "(new accounts)"] = row
                explained.update(new)
        rest = self._lent.total(without=explained)
        if grows(self._plan, rest, self._allowed):
            grown["root", "(many accounts)"] = rest
        return [Culprit("account", " > ".join(path), rate(self._plan, row)) for path, row in grown.items()]

    def native(self) -> list[Culprit]:
        """Return what malloc and RSS show in each round beyond lines and accounts."""
        plan, traces = self._plan, self._traces
        large = max(0.0, rate(plan, traces.large))
        malloc = self._beyond(
            [totals.malloc for totals in self._totals], large, max(_MALLOC_RATE, _MALLOC_FLOOR / plan.calls)
        )
        if malloc:
            return [Culprit("native", "malloc, beyond what Python traces", malloc)]
        known = large + max(0.0, rate(plan, traces.small)) * SMALL + max(0.0, rate(plan, self._lent.total()))
        resident = self._beyond(
            [totals.resident for totals in self._totals], known, max(_RESIDENT_RATE, _RESIDENT_FLOOR / plan.calls)
        )
        return (
            [Culprit("native", "resident memory, beyond what malloc, Python and accounts know", resident)]
            if resident
            else []
        )

    def _beyond(self, rounds: Sequence[Sequence[int]], known: float, floor: float) -> float:
        """Return the growth per call in all rounds beyond what is known, 0.0 if one of them did not grow so."""
        least = max(floor, known * _UNEXPLAINED)
        rates = []
        for values in rounds:
            if not values:  # where this is not to be known
                return 0.0
            times = self._plan.times(len(values))
            rest = [round(value - known * time) for value, time in zip(values, times, strict=True)]
            if not grows(self._plan, rest, least):
                return 0.0
            slope, error = slope_and_error(self._plan, rest)
            if slope < 3 * error:
                return 0.0
            rates.append(slope)
        return min(rates)

    # ---- the report ----

    def report(self, warmup: int) -> LeakReport:
        """Put together what was found."""
        lines, accounts, native = self.lines(), self.accounts(), self.native()
        heap = sum(line.bytes_per_call for line in lines if line.kind == "heap")
        lent = sum(line.bytes_per_call for line in lines if line.kind == "lent")
        charged = sum(account.bytes_per_call for account in accounts)
        culprits = sorted([*lines, *accounts, *native], key=lambda culprit: -round(culprit.bytes_per_call))
        nbytes = heap + max(lent, charged) + sum(stranger.bytes_per_call for stranger in native)
        return LeakReport(bool(culprits), nbytes, tuple(culprits), warmup + self.calls, tuple(self._notes()))

    def _notes(self) -> Iterable[str]:
        if not self._totals[0].malloc:
            least = max(_RESIDENT_RATE, _RESIDENT_FLOOR / self._plan.calls)
            yield f"malloc tells nothing here: leaks of other libraries are seen from {least:,.0f} bytes a call on, in RSS"
        stepped = [(place, sizes) for place, sizes in self._quiet.items() if self._steps(sizes)]
        for place, sizes in sorted(stepped, key=lambda line: -line[1].nbytes[-1])[:_MOST_NOTES]:
            yield (
                f"{self._where(place)}: something got larger in {self._steps(sizes)} steps and has {sizes.nbytes[-1]:,} bytes; "
                "if it was not full by then, it leaks, which more iterations may show"
            )
