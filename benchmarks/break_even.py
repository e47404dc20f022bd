"""From which size on pooling pays: acquiring alone, and acquiring to fill."""

from __future__ import annotations

import numpy as np

import mempool
from benchmarks.harness import (
    MIB,
    Plan,
    Report,
    Samples,
    Side,
    cheaper_text,
    compare,
    peer,
    row,
    size_text,
)
from benchmarks.lease import SIZES, allocators, largest_that_fits
from benchmarks.rivals import PurePool

NAME = "break_even"
ACQUIRE = "acquire and drop"
FILL = "acquire, fill once, drop"
LARGEST, LARGEST_FILL = 256 * MIB, 64 * MIB


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "Break-even")
    pool = mempool.BufferPool(name="benchmark-break-even")
    largest = largest_that_fits(64 * MIB if plan.quick else LARGEST)
    for size in (size for size in SIZES if size <= largest):
        sweep(plan, report, ACQUIRE, size, allocators(pool, size))
    for size in (size for size in SIZES if size <= min(largest, LARGEST_FILL)):
        samples = sweep(plan, report, FILL, size, fillers(pool, size))
        if size in (SIZES[0], 4096, MIB, 64 * MIB):
            add_rows(report, size, samples)
    report.notes.append(break_even_text(report))
    if peer("pyarrow") is None:
        report.notes.append("pyarrow is not installed: it has no curve.")
    return report


def fillers(pool: mempool.BufferPool, size: int) -> list[Side]:
    """Each way to get `size` bytes as an array, write them once and drop them."""
    names = {"np": np, "n": size, "dtype": np.uint8}
    released = "with pool.acquire(n) as b: b.array().fill(1)"
    return [
        Side("bytearray", "np.frombuffer(bytearray(n), dtype).fill(1)", names),
        Side("np.empty", "np.empty(n, dtype).fill(1)", names),
        Side("pure-Python pool", released, {"pool": PurePool(), "n": size}),
        Side("mempool", "pool.acquire(n).array().fill(1)", {"pool": pool, "n": size}),
    ]


def sweep(plan: Plan, report: Report, panel: str, size: int, sides: list[Side]) -> Samples:
    """Compare the sides at one size and keep their points."""
    rounds = plan.rounds(15 if size <= 4 * MIB else 5)
    label = f"{NAME} {size_text(size)}"
    samples = compare(sides, rounds=rounds, seconds=plan.slice(0.0025), budget=1, label=label)
    for side in sides:
        report.point(panel, side.name, size, samples.typical(side.name))
    return samples


def add_rows(report: Report, size: int, samples: Samples) -> None:
    """Make the rows of one size."""
    figure = f"acquire, fill once, drop: {size_text(size)}"
    for rival in ("bytearray", "np.empty"):
        plain = rival == "bytearray"
        report.rows.append(row(samples, figure, rival, "mempool", plain=plain))


def break_even_text(report: Report) -> str:
    """Say from which measured size on mempool is the cheaper one, for good."""
    parts = [
        f"{panel}: no dearer than {name} {cheaper_text(curves, name)}"
        for panel, curves in report.curves.items()
        for name in ("bytearray", "np.empty")
    ]
    return "; ".join(parts) + "."
