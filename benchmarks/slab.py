"""Items in a slab against Python objects: time one by one and in bulk, memory, and work on a field of all."""

from __future__ import annotations

import math
import tracemalloc
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import psutil  # type: ignore[import-untyped,unused-ignore]

import mempool
from benchmarks.harness import Plan, Report, Row, Side, Spread, compare, progress, row, shuffled
from benchmarks.rivals import Record
from benchmarks.worker import apart

NAME = "slab"
DTYPE = np.dtype([("key", "i8"), ("price", "f8"), ("amount", "f8"), ("stamp", "i8")])
# Beyond the small integers that Python keeps, below 2**60, from where on an int takes 48 bytes and not 32.
FIRST_KEY, FIRST_STAMP = 10**9, 10**15
MILLION, QUICK_COUNT = 1_000_000, 200_000
COUNTS = (1, 10, 100, 1_000, 10_000, 100_000, MILLION)
# Filling in parts leaves no large temporary arrays in the memory that is measured.
PART = 4096

PAIR = "slab.free(slab.alloc())"
BULK = "slab.free_many(slab.alloc_many(n))"
HELD = """\
handles = [slab.alloc() for _ in range(n)]
for h in handles:
    slab.free(h)
del handles
"""
IN_TURN = """\
for _ in range(n):
    slab.free(slab.alloc())
"""
LOOP = """\
total = 0.0
for r in records:
    total += r.price
"""
HELD_LOOP, TURN_LOOP = "alloc() all, then free() all", "free(alloc()) in turn"
PLAIN_ARRAY = "structured ndarray"
SHUFFLED = "for loop, shuffled list"

Kind = Literal["objects", "slab", "used slab"]
SUMS = {
    "for loop": LOOP,
    PLAIN_ARRAY: 'plain["price"].sum()',
    "sum(map(attrgetter))": "sum(map(price, records))",
    SHUFFLED: LOOP.replace("records", "mixed"),
    "mempool": 'slab.array["price"].sum()',
}
FIELD_TARGETS = {"for loop": 50.0, PLAIN_ARRAY: 0.95}
# figure: (rival, its code, our code)
SINGLE = {
    "read a field of a record": ("an object's attribute", "r.price", 'slab[h]["price"]'),
    "read a field of a record, array": (PLAIN_ARRAY, 'plain[7]["price"]', 'slab[h]["price"]'),
    "view a record: pin and unpin": (PLAIN_ARRAY, "plain[7]", "slab[h]"),
    "view 32 bytes: pin and unpin": ("slice of a memoryview", "view[32:64]", "items[i]"),
    "write a record": (PLAIN_ARRAY, "plain[7] = value", "slab[h] = value"),
    "is it a live item": ("in a set of handles", "h in known", "h in slab"),
}
MEMORY_BARS: dict[str, Kind] = {
    "slotted objects in a list": "objects",
    "mempool, slots used before": "used slab",
    "mempool": "slab",
}


class Growth(NamedTuple):
    """Bytes by which a process grew for its records, and the sum of their prices."""

    uss: float
    rss: float
    total: float


class Heap(NamedTuple):
    """Bytes that tracemalloc knows of the records: in Python's own heap, and in NumPy's arrays."""

    python: float
    numpy: float


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "A slab of records")
    count = QUICK_COUNT if plan.quick else MILLION
    one_item(plan, report)
    in_bulk(plan, report, count)
    by_count(plan, report, count)
    process_memory(plan, report, count)
    python_heap(report, count)
    one_field(plan, report, count)
    one_record(plan, report)
    return report


def new_slab() -> mempool.SlabAllocator:
    """A slab of records; each side has its own, so that none shuffles the slots of another."""
    return mempool.SlabAllocator(DTYPE, name="benchmark-slab")


# ---- time of items ----


def one_item(plan: Plan, report: Report) -> None:
    """One item against the cheapest object there is, and against a record that is one."""
    sides = [
        Side("object()", "object()"),
        Side("Record(...)", "Record(k, 1.5, 2.5, t)", {"Record": Record, "k": FIRST_KEY, "t": FIRST_STAMP}),
        Side("mempool", PAIR, {"slab": new_slab()}),
    ]
    samples = compare(sides, rounds=plan.rounds(75), seconds=plan.slice(0.0015), label=NAME)
    figure = "alloc and free an item"
    report.rows.append(row(samples, figure, "object()", "mempool", sense="cost", plain=True, must=2.5, aim=1.5))
    report.rows.append(row(samples, figure, "Record(...)", "mempool", sense="cost", plain=True))


def in_bulk(plan: Plan, report: Report, count: int) -> None:
    """Many items in one call, against a loop that has as many at once, and one that has one at a time."""
    codes = {HELD_LOOP: HELD, TURN_LOOP: IN_TURN, "mempool": BULK}
    sides = [Side(name, code, {"slab": new_slab(), "n": count}) for name, code in codes.items()]
    samples = compare(sides, rounds=plan.rounds(21), seconds=plan.slice(0.03), budget=6, label=f"{NAME} in bulk")
    figure = f"{count:,} items: alloc_many, free_many"
    report.rows.append(row(samples, figure, HELD_LOOP, "mempool", must=10, aim=30))
    report.rows.append(row(samples, figure, TURN_LOOP, "mempool"))


def by_count(plan: Plan, report: Report, most: int) -> None:
    """Time of an item by how many there are at once: from which number on one call pays."""
    for count in (count for count in COUNTS if count <= most):
        codes = {HELD_LOOP: HELD, "mempool": BULK}
        sides = [Side(name, code, {"slab": new_slab(), "n": count}) for name, code in codes.items()]
        label = f"{NAME} {count} items"
        samples = compare(sides, rounds=plan.rounds(11), seconds=plan.slice(0.002), budget=1, label=label)
        for side in sides:
            report.point("time of an item", side.name, count, samples.typical(side.name) / count)


# ---- memory ----


def make_objects(count: int) -> list[Record]:
    """Records as Python objects, each with values of its own."""
    return [Record(FIRST_KEY + i, i * 0.25, i * 0.5, FIRST_STAMP + i) for i in range(count)]


def make_slab(count: int) -> tuple[mempool.SlabAllocator, npt.NDArray[np.int64]]:
    """The same records in a slab, and their handles."""
    slab = new_slab()
    handles = slab.alloc_many(count)
    fill(slab.array)
    return slab, handles


def make_used_slab(count: int) -> tuple[mempool.SlabAllocator, npt.NDArray[np.int64]]:
    """The same when each slot had an item before, and each item was viewed once: all bookkeeping is touched."""
    slab, handles = make_slab(count)
    slab.free_many(handles)
    handles = slab.alloc_many(count)
    fill(slab.array)
    for handle in handles:
        slab[handle]
    return slab, handles


def fill(records: npt.NDArray[Any]) -> None:
    """Write the same values as `make_objects` has."""
    for start in range(0, len(records), PART):
        part = records[start : start + PART]
        number = np.arange(start, start + len(part))
        part["key"], part["price"] = FIRST_KEY + number, number * 0.25
        part["amount"], part["stamp"] = number * 0.5, FIRST_STAMP + number


def grown(kind: Kind, count: int) -> Growth:
    """Make the records, and say by how much this process grew. Runs in a process of its own."""
    process = psutil.Process()
    # The first use of anything brings in code and caches that are no part of a record.
    kept: list[Any] = [make_slab(PART), make_objects(PART)]
    kept.clear()
    before = process.memory_full_info()
    if kind == "objects":
        objects = make_objects(count)
        after = process.memory_full_info()
        total = sum(record.price for record in objects)
    else:
        slab, _handles = make_slab(count) if kind == "slab" else make_used_slab(count)
        after = process.memory_full_info()
        total = float(slab.array["price"].sum())
    return Growth(after.uss - before.uss, after.rss - before.rss, total)


def process_memory(plan: Plan, report: Report, count: int) -> None:
    """Memory of the process, each side in fresh ones: pages of its own, and all that are resident."""
    found: dict[Kind, list[Growth]] = {"objects": [], "slab": [], "used slab": []}
    for turn in range(plan.rounds(3)):
        progress(f"{NAME} memory: round {turn + 1}")
        for kind, growths in found.items():
            growths.append(apart(grown, kind, count))
    check_totals([growth.total for growths in found.values() for growth in growths])
    uss = {kind: [growth.uss for growth in growths] for kind, growths in found.items()}
    rss = {kind: [growth.rss for growth in growths] for kind, growths in found.items()}
    figure = f"{count:,} records: process memory"
    report.rows.append(memory_row(f"{figure}, USS", uss["objects"], uss["slab"], 4.0))
    report.rows.append(memory_row(f"{figure}, RSS", rss["objects"], rss["slab"]))
    report.rows.append(memory_row(f"{figure}, USS, slots used before", uss["objects"], uss["used slab"]))
    for label, kind in MEMORY_BARS.items():
        report.point("memory of a record", label, 0, Spread.of(uss[kind]).median / count)


def check_totals(totals: list[float]) -> None:
    """All sides have the same records; anything else is an error, not a figure."""
    if not all(math.isclose(total, totals[0], rel_tol=1e-9) for total in totals):
        raise ValueError(f"the sides have different records: their prices sum up to {totals}")


def memory_row(figure: str, rival: list[float], own: list[float], must: float | None = None) -> Row:
    """Make the row of memory that objects take, over what the slab takes."""
    return Row(
        figure,
        "slotted objects",
        True,
        Spread.of(rival).median,
        Spread.of(own).median,
        unit="B",
        ratio=Spread.of([a / b for a, b in zip(rival, own, strict=True)]),
        sense="at least",
        must=must,
    )


def traced(kind: Kind, count: int) -> Heap:
    """Make the records while tracemalloc counts every byte. Runs in a process of its own."""
    make_slab(PART)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    if kind == "objects":
        objects = make_objects(count)
        # All of it is Python's: a snapshot of five million traces would say the same, in a minute.
        after, _ = tracemalloc.get_traced_memory()
        del objects
        return Heap(after - before, 0.0)
    kept = make_slab(count)
    snapshot = tracemalloc.take_snapshot()
    tracemalloc.stop()
    del kept
    python = traced_bytes(snapshot, tracemalloc.DomainFilter(True, 0))
    ours = tracemalloc.DomainFilter(False, mempool.TRACEMALLOC_DOMAIN)
    return Heap(python - before, traced_bytes(snapshot, ours) - python)


def traced_bytes(snapshot: tracemalloc.Snapshot, domains: tracemalloc.DomainFilter) -> float:
    """Bytes of a snapshot in some domains."""
    return float(sum(trace.size for trace in snapshot.filter_traces([domains]).traces))


def python_heap(report: Report, count: int) -> None:
    """Growth of Python's heap, which is tracemalloc's domain 0, counted to the byte; then with NumPy's arrays."""
    progress(f"{NAME} heap")
    objects, slab = (apart(traced, kind, count) for kind in ("objects", "slab"))
    figure = f"{count:,} records: Python heap"
    report.rows.append(memory_row(figure, [objects.python], [slab.python], 140.0))
    both = [slab.python + slab.numpy]
    report.rows.append(memory_row(f"{figure} and NumPy's handles", [objects.python], both))
    report.notes.append(
        "Python heap: growth in tracemalloc's domain 0 (objects and their memory). The items of a slab are in mempool's "
        "domain, the int64 array of its handles in NumPy's; process memory has all of them."
    )


# ---- use ----


def one_field(plan: Plan, report: Report, count: int) -> None:
    """Sum one field of all records.

    Objects just made lie in the order of their list, which no program keeps up: hence the shuffled one too.
    """
    names = fields(count)
    check_totals([float(eval(SUMS[name], names)) for name in ("sum(map(attrgetter))", PLAIN_ARRAY, "mempool")])
    sides = [Side(name, code, names) for name, code in SUMS.items()]
    samples = compare(sides, rounds=plan.rounds(31), seconds=plan.slice(0.012), budget=6, label=f"{NAME} sum")
    figure = f"sum a field of {count:,} records"
    for rival in (name for name in SUMS if name != "mempool"):
        must, plain = FIELD_TARGETS.get(rival), rival != PLAIN_ARRAY
        report.rows.append(row(samples, figure, rival, "mempool", plain=plain, must=must))


def fields(count: int) -> dict[str, Any]:
    """The same records four times, as the statements name them."""
    plain = np.empty(count, DTYPE)
    fill(plain)
    objects = make_objects(count)
    return {
        "records": objects,
        "mixed": shuffled(objects, seed=5),
        "price": attrgetter("price"),
        "plain": plain,
        "slab": make_slab(count)[0],
    }


def one_record(plan: Plan, report: Report) -> None:
    """What one record at a time costs: every view of an item pins it, and is an object of its own."""
    names = one_of_each()
    for figure, (rival, code, own) in SINGLE.items():
        sides = [Side(rival, code, names), Side("mempool", own, names)]
        samples = compare(sides, rounds=plan.rounds(45), seconds=plan.slice(0.001), label=NAME)
        report.rows.append(row(samples, figure, rival, "mempool", plain=rival != PLAIN_ARRAY))


def one_of_each() -> dict[str, Any]:
    """What the statements about one record name; it is always the eighth."""
    slab, handles = make_slab(PART)
    items = mempool.SlabAllocator(DTYPE.itemsize, name="benchmark-items")
    plain = np.empty(PART, DTYPE)
    fill(plain)
    return {
        "r": make_objects(8)[7],
        "slab": slab,
        "h": int(handles[7]),
        "known": set(handles.tolist()),
        "items": items,
        "i": items.alloc(),
        "plain": plain,
        "value": tuple(plain[7]),
        "view": memoryview(bytearray(PART)),
    }
