"""What seeing a lease costs: arrays, memoryviews, slices, single bytes."""

from __future__ import annotations

import numpy as np

import mempool
from benchmarks.harness import KIB, MIB, Plan, Report, Side, compare, row, size_text

NAME = "views"
SMALL_OPERATIONS = (
    ("len(b)", "len(b)"),
    ("b[i]", "b[7]"),
    ("b[i] = x", "b[7] = 1"),
    ("memoryview(b)", "memoryview(b)"),
    ("memoryview(b)[i:j]", "memoryview(b)[64:128]"),
    ("b == other, 4 KiB", "b == other"),
    ("bytes(b), 4 KiB", "bytes(b)"),
)


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "Views")
    with mempool.BufferPool(name="benchmark-views") as pool:
        array_of_a_lease(plan, pool, report)
        acquired_as_array(plan, pool, report)
        small_operations(plan, pool, report)
    return report


def array_of_a_lease(plan: Plan, pool: mempool.BufferPool, report: Report) -> None:
    """``b.array()`` against the two spellings of ``np.frombuffer``."""
    lease = pool.acquire(MIB)
    plain = bytearray(MIB)
    names = {"np": np, "b": plain}
    sides = [
        Side("np.frombuffer(bytearray)", "np.frombuffer(b)", names),
        Side("np.frombuffer(bytearray, np.uint8)", "np.frombuffer(b, np.uint8)", names),
        Side("mempool", "b.array()", {"b": lease}),
    ]
    samples = compare(sides, rounds=plan.rounds(75), seconds=plan.slice(0.0015), label=NAME)
    report.rows.append(row(samples, "b.array()", sides[0].name, "mempool", sense="cost", must=0.5, aim=0.25))
    report.rows.append(row(samples, "b.array()", sides[1].name, "mempool", sense="cost"))


def acquired_as_array(plan: Plan, pool: mempool.BufferPool, report: Report) -> None:
    """A fresh lease and its array in one go, against a fresh array."""
    for size in (KIB, 64 * KIB, MIB):
        sides = [
            Side("np.empty", "np.empty(n, np.uint8)", {"np": np, "n": size}),
            Side("mempool", "pool.acquire(n).array()", {"pool": pool, "n": size}),
        ]
        samples = compare(sides, rounds=plan.rounds(45), seconds=plan.slice(0.0015), label=NAME)
        figure = f"acquire({size_text(size)}).array()"
        report.rows.append(row(samples, figure, "np.empty", "mempool"))


def small_operations(plan: Plan, pool: mempool.BufferPool, report: Report) -> None:
    """What one does with a buffer all day, against the same on a ``bytearray``."""
    lease = pool.acquire(4 * KIB, zero=True)
    plain = bytearray(4 * KIB)
    other = bytes(plain)
    for figure, code in SMALL_OPERATIONS:
        sides = [
            Side("bytearray", code, {"b": plain, "other": other}),
            Side("mempool", code, {"b": lease, "other": other}),
        ]
        samples = compare(sides, rounds=plan.rounds(45), seconds=plan.slice(0.001), label=NAME)
        report.rows.append(row(samples, figure, "bytearray", "mempool", plain=True))
