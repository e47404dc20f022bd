"""What every table shares: timing sides against each other, and the rows that come of it.

Two things are compared in *one* run, in short interleaved slices (A, B, C, then B, C, A, ...), so
that a machine that slows down or speeds up does so for all of them. A ratio is taken within each
round; what is reported is the median of these ratios and their quartiles. Every side is a
statement that :mod:`timeit` compiles into the same loop, with its operands as local variables, so
that what the harness itself costs is the same for each; the garbage collector stays on for all.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import random
import statistics
import sys
import time
import timeit
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

Sense = Literal["cost", "faster", "at least", "below", "at most"]
Unit = Literal["s", "B", "faults", "x", "hits", "points"]

Item = TypeVar("Item")

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

RETRIES = 4
LONG_SLICE = 0.02
FEWEST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """How much a table may spend, and where it may put files.

    Parameters
    ----------
    quick
        A fast check: fewer rounds, shorter slices, smaller files.
    scratch
        A directory for the files that a table makes; its owner removes it.
    """

    quick: bool
    scratch: Path

    def rounds(self, full: int) -> int:
        """Rounds to run where a full run takes `full` of them."""
        return max(3, full // 3) if self.quick else full

    def slice(self, full: float) -> float:
        """Seconds per side and round where a full run takes `full`."""
        return full / 3 if self.quick else full


class Spread(NamedTuple):
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and quartiles of `values`; one value is its own spread."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True, slots=True)
class Side:
    """One way of doing a thing.

    Parameters
    ----------
    name
        What the table calls it.
    statement
        The code of one operation.
    given
        Names that the statement uses; they become local variables of its loop.
    """

    name: str
    statement: str
    given: Mapping[str, Any] = field(default_factory=dict)

    def timer(self) -> timeit.Timer:
        """Compile the statement into a loop that runs with the garbage collector on."""
        setup = ["_gc_enable()", *(f"{name} = _given[{name!r}]" for name in self.given)]
        names = {"_gc_enable": gc.enable, "_given": self.given}
        return timeit.Timer(self.statement, "\n".join(setup), globals=names)


class Samples:
    """Seconds and minor page faults per operation, of each side in each round."""

    def __init__(self, names: Sequence[str]) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self.faults: dict[str, list[float]] = {name: [] for name in names}

    def typical(self, name: str) -> float:
        """Median seconds per operation of one side."""
        return statistics.median(self.seconds[name])

    def typical_faults(self, name: str) -> float | None:
        """Median minor page faults per operation; None where the OS does not count them."""
        return statistics.median(self.faults[name]) if self.faults[name] else None

    def ratio(self, over: str, under: str) -> Spread:
        """Median and quartiles of the rounds' ratios of one side to another."""
        pairs = zip(self.seconds[over], self.seconds[under], strict=True)
        return Spread.of([a / b for a, b in pairs])


class Counters(NamedTuple):
    """What the OS counts of this process, where it does."""

    minor_faults: int
    preempted: int

    @classmethod
    def now(cls) -> Counters | None:
        """The counts so far; None where the OS does not count."""
        try:
            import resource
        except ImportError:
            return None
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(usage.ru_minflt, usage.ru_nivcsw)


class Slice(NamedTuple):
    """What one slice of one side took, per operation."""

    seconds: float
    faults: float | None


def time_slice(timer: timeit.Timer, count: int) -> Slice:
    """Time `count` operations; again, if the OS gave the core to others meanwhile.

    Long slices are not repeated: on a busy machine none of them would ever be left alone.
    """
    faults: float | None = None
    for _ in range(RETRIES):
        # The side before left caches and branch predictors to its own liking.
        timer.timeit(count // 16)
        before = Counters.now()
        elapsed = timer.timeit(count)
        after = Counters.now()
        if before is None or after is None:
            break
        faults = (after.minor_faults - before.minor_faults) / count
        if elapsed > LONG_SLICE or after.preempted == before.preempted:
            break
    return Slice(elapsed / count, faults)


def shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    """The items in an order that depends on the seed alone."""
    return random.Random(seed).sample(items, len(items))


def calibrate(timer: timeit.Timer, seconds: float) -> int:
    """Find how many operations fill about `seconds`."""
    number = 1
    timer.timeit(1)
    while True:
        elapsed = timer.timeit(number)
        if elapsed >= seconds / 8:
            return max(1, round(number * seconds / elapsed))
        number *= 10


def compare(
    sides: Sequence[Side],
    *,
    rounds: int,
    seconds: float = 0.004,
    number: int | None = None,
    warmup: int = 0,
    budget: float = 3.0,
    label: str = "",
) -> Samples:
    """Time `sides` against each other in interleaved rounds.

    Parameters
    ----------
    sides
        What to compare; each has a name of its own.
    rounds
        How often each side gets a slice.
    seconds
        Length of a slice, where `number` does not fix it.
    number
        Operations per slice; by default each side gets as many as fill `seconds`.
    warmup
        Operations of each side before the first round.
    budget
        Seconds after which no further round begins, once there were `FEWEST_ROUNDS`: on a busy
        machine a run becomes less precise rather than longer.
    label
        What the progress line says.
    """
    gc.collect()
    timers = [side.timer() for side in sides]
    for timer in timers:
        timer.timeit(warmup)
    numbers = [number or calibrate(timer, seconds) for timer in timers]
    samples = Samples([side.name for side in sides])
    jobs = list(zip(sides, timers, numbers, strict=True))
    start = time.perf_counter()
    for turn in range(rounds):
        if turn >= FEWEST_ROUNDS and time.perf_counter() - start > budget:
            break
        progress(f"{label}: round {turn + 1} of {rounds}")
        for side, timer, count in shuffled(jobs, turn):
            taken = time_slice(timer, count)
            samples.seconds[side.name].append(taken.seconds)
            if taken.faults is not None:
                samples.faults[side.name].append(taken.faults)
    return samples


def progress(text: str) -> None:
    """Show what is being done, where someone watches; silent without a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K      {text}")
        sys.stderr.flush()


def peer(name: str) -> Any | None:
    """Return the module of a peer; None where it is not installed."""
    if importlib.util.find_spec(name) is None:
        return None
    return importlib.import_module(name)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: mempool against one rival.

    Parameters
    ----------
    figure
        What was done.
    rival, plain
        Against what; and whether that is plain Python or a peer.
    rival_value, own_value, unit
        Medians of both.
    ratio, sense
        ``cost``: mempool's cost over the rival's. ``faster``: the rival's over mempool's.
        ``at least``: a ratio that was measured as such. ``below`` and ``at most``: `own_value`
        itself is judged.
    must, aim
        What it has to reach, and what it hopes to.
    note
        Why there is no value, or a short remark.
    """

    figure: str
    rival: str
    plain: bool = False
    rival_value: float | None = None
    own_value: float | None = None
    unit: Unit = "s"
    ratio: Spread | None = None
    sense: Sense = "faster"
    must: float | None = None
    aim: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """``aim``, ``must`` or ``MISS``; ``-`` where nothing was asked, ``n/a`` if not measured."""
        judged = self.judged
        if judged is None:
            return "n/a"
        if self.must is None:
            return "-"
        if self.aim is not None and self._reaches(judged, self.aim):
            return "aim"
        return "must" if self._reaches(judged, self.must) else "MISS"

    @property
    def judged(self) -> float | None:
        """The number that is held against `must` and `aim`."""
        if self.sense in ("below", "at most"):
            return self.own_value
        return None if self.ratio is None else self.ratio.median

    @property
    def loses(self) -> bool:
        """Whether mempool is the slower one, by more than the noise of a good run."""
        return self.sense == "faster" and self.ratio is not None and self.ratio.median < 0.98

    def _reaches(self, value: float, target: float) -> bool:
        if self.sense in ("faster", "at least"):
            return value >= target
        return value < target if self.sense == "below" else value <= target


@dataclass(slots=True)
class Report:
    """What one table's module hands back.

    Parameters
    ----------
    name, title
        Its short name, and the heading of its rows.
    rows
        What goes into the table.
    curves
        What is drawn: panel, then label, then points.
    notes
        Remarks under the rows.
    losses
        Measured sentences for 'where mempool loses' that are no rows.
    """

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    curves: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def point(self, panel: str, label: str, x: float, y: float) -> None:
        """Add one point to a curve."""
        self.curves.setdefault(panel, {}).setdefault(label, []).append((x, y))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """Rebuild a report from what :func:`dataclasses.asdict` and JSON made of it."""
        rows = []
        for item in data["rows"]:
            ratio = item["ratio"]
            rows.append(Row(**{**item, "ratio": None if ratio is None else Spread(*ratio)}))
        return cls(**{**data, "rows": rows})


def row(
    samples: Samples,
    figure: str,
    rival: str,
    own: str,
    *,
    sense: Literal["cost", "faster"] = "faster",
    plain: bool = False,
    must: float | None = None,
    aim: float | None = None,
    note: str = "",
) -> Row:
    """Make the row of two sides of one comparison."""
    over, under = (own, rival) if sense == "cost" else (rival, own)
    return Row(
        figure,
        rival,
        plain,
        samples.typical(rival),
        samples.typical(own),
        ratio=samples.ratio(over, under),
        sense=sense,
        must=must,
        aim=aim,
        note=note,
    )


def size_text(nbytes: float, digits: int = 4) -> str:
    """Write a size with a binary unit, as short as it can be."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.{digits}g} {unit}"
        value /= 1024
    return f"{value:.{digits}g} GiB"


def time_text(seconds: float) -> str:
    """Write a duration with three digits and a fitting unit."""
    for factor, unit in ((1e9, "ns"), (1e6, "us"), (1e3, "ms")):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def cheaper_text(curves: Mapping[str, Sequence[tuple[float, float]]], rival: str) -> str:
    """Say from which measured size on mempool costs no more than a rival, but for noise."""
    own = dict(curves["mempool"])
    dearer = [size for size, seconds in curves[rival] if own[size] > seconds * 1.05]
    later = [size for size in own if not dearer or size > max(dearer)]
    return f"from {size_text(min(later))} on" if later else "at no size"
