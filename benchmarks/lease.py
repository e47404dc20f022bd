"""What a lease costs: acquire and drop, ``with``, and 1 MiB against those who also allocate."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped,unused-ignore]

import mempool
from benchmarks.harness import GIB, KIB, MIB, Plan, Report, Row, Side, compare, peer, row, size_text
from benchmarks.rivals import PurePool

NAME = "lease"
SIZES: tuple[int, ...] = tuple(64 * 4**step for step in range(13))
USE = "with pool.acquire(n): pass"
ONE_MIB_TARGETS = {
    "bytearray": (150, 250),
    "np.empty": (3, 5),
    "pyarrow.allocate_buffer": (8, 15),
    "pure-Python pool": (8, 12),
}


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "A lease")
    pool = mempool.BufferPool(name="benchmark-lease")
    against_object(plan, pool, report)
    against_lock(plan, pool, report)
    one_mebibyte(plan, pool, report)
    return report


def against_object(plan: Plan, pool: mempool.BufferPool, report: Report) -> None:
    """Acquire and drop, warm, at each size, against the cheapest object there is."""
    sizes = warm(pool, report)
    sides = [Side("object()", "object()")]
    sides += [Side(size_text(size), "pool.acquire(n)", {"pool": pool, "n": size}) for size in sizes]
    samples = compare(sides, rounds=plan.rounds(75), seconds=plan.slice(0.0015), label=NAME)
    rows = []
    for size in sizes:
        text = size_text(size)
        rows.append(row(samples, text, "object()", text, sense="cost", plain=True))
        report.point("acquire and drop", "mempool", size, samples.typical(text))
        report.point("acquire and drop", "object()", size, samples.typical("object()"))
    report.rows.append(worst(rows, "acquire and drop, worst size", 1.5, 1.1))
    ratios = [item.ratio.median for item in rows if item.ratio]
    report.notes.append(
        f"acquire and drop over all sizes: {min(ratios):.2f}x to {max(ratios):.2f}x of object(), "
        f"median {float(np.median(ratios)):.2f}x."
    )


def warm(pool: mempool.BufferPool, report: Report) -> list[int]:
    """Let the pool take each size once; sizes that the machine refuses are named."""
    sizes = []
    for size in SIZES:
        try:
            pool.acquire(size).release()
        except MemoryError as refusal:
            report.notes.append(f"{size_text(size)} was not measured: {refusal}")
        else:
            sizes.append(size)
    return sizes


def worst(rows: list[Row], figure: str, must: float, aim: float | None = None) -> Row:
    """Return the row with the highest cost, as the row that is judged."""
    chosen = max(rows, key=lambda item: item.ratio.median if item.ratio else 0.0)
    return Row(
        f"{figure}: {chosen.figure}",
        chosen.rival,
        chosen.plain,
        chosen.rival_value,
        chosen.own_value,
        ratio=chosen.ratio,
        sense=chosen.sense,
        must=must,
        aim=aim,
    )


def against_lock(plan: Plan, pool: mempool.BufferPool, report: Report) -> None:
    """``with pool.acquire(n):`` against ``with threading.Lock():``, both as written."""
    lock = Side("with Lock()", "with threading.Lock(): pass", {"threading": threading})
    sides = [lock]
    for size in (64, 4 * KIB, MIB):
        sides.append(Side(size_text(size), USE, {"pool": pool, "n": size}))
    samples = compare(sides, rounds=plan.rounds(75), seconds=plan.slice(0.0015), label=NAME)
    rows = [row(samples, side.name, lock.name, side.name, sense="cost", plain=True) for side in sides[1:]]
    report.rows.append(worst(rows, "with pool.acquire(n), worst size", 1.25, 1.0))


def allocators(pool: mempool.BufferPool, size: int) -> list[Side]:
    """Each way to get `size` bytes and drop them; mempool is the last."""
    sides = [
        Side("bytearray", "bytearray(n)", {"n": size}),
        Side("np.empty", "np.empty(n, dtype)", {"np": np, "n": size, "dtype": np.uint8}),
    ]
    arrow: Any = peer("pyarrow")
    if arrow is not None:
        code = "pyarrow.allocate_buffer(n)"
        sides.append(Side("pyarrow.allocate_buffer", code, {"pyarrow": arrow, "n": size}))
    sides.append(Side("pure-Python pool", USE, {"pool": PurePool(), "n": size}))
    sides.append(Side("mempool", "pool.acquire(n)", {"pool": pool, "n": size}))
    return sides


def one_mebibyte(plan: Plan, pool: mempool.BufferPool, report: Report) -> None:
    """1 MiB acquired and dropped, against everything else that hands out memory.

    A pure-Python lease has to be released, so that one is set against mempool's ``with``.
    """
    sides = [*allocators(pool, MIB), Side("with mempool", USE, {"pool": pool, "n": MIB})]
    samples = compare(sides, rounds=plan.rounds(75), seconds=plan.slice(0.0015), label=NAME)
    for rival, (must, aim) in ONE_MIB_TARGETS.items():
        plain = rival == "bytearray"
        if rival not in samples.seconds:
            note = "not installed"
            report.rows.append(Row("acquire 1 MiB", rival, plain, must=must, aim=aim, note=note))
            continue
        figure, own = "acquire 1 MiB", "mempool"
        if rival == "pure-Python pool":
            figure, own = "with pool.acquire(1 MiB)", "with mempool"
        report.rows.append(row(samples, figure, rival, own, plain=plain, must=must, aim=aim))


def largest_that_fits(limit: int = GIB) -> int:
    """Largest power-of-four size up to `limit` that leaves most of the memory alone."""
    available = psutil.virtual_memory().available
    return max(size for size in SIZES if size <= max(limit, 64) and size * 4 <= available)
