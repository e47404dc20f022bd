"""NumPy's own arrays over a pool: expressions, copies and concatenations, and zeros that nobody touches."""

from __future__ import annotations

from typing import Any

import numpy as np

import mempool
from benchmarks.harness import MIB, Plan, Report, Samples, Side, compare, row, size_text
from mempool.numpy import use_pool

NAME = "numpy"
LARGE, QUICK_LARGE = (40 * MIB, 64 * MIB, 256 * MIB), (40 * MIB, 64 * MIB)
MIDDLE = (MIB, 2 * MIB, 4 * MIB)
OWN, POOLED = "NumPy", "use_pool"

# Each of a whole array of `n` items; the memory of what they make is the difference.
WORK = {
    "(a*b+c).sum()": "(a * b + c).sum()",
    "a.copy()": "a.copy()",
    "concatenate two of": "np.concatenate((a, b))",
}
ZEROS = {
    "zeros, untouched": "np.zeros(n)",
    "zeros, touched": "np.zeros(n).fill(1.0)",
}


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "NumPy's own arrays, under mempool.numpy.use_pool")
    with mempool.BufferPool(name="benchmark-numpy") as pool:
        for size in QUICK_LARGE if plan.quick else LARGE:
            for figure, code in WORK.items():
                add(plan, pool, report, size, figure, code, must=1.3)
        for size in MIDDLE:
            for figure, code in WORK.items():
                add(plan, pool, report, size, figure, code, must=0.98)
        for size in (MIB, 64 * MIB):
            for figure, code in ZEROS.items():
                add(plan, pool, report, size, figure, code, must=None)
    return report


def add(
    plan: Plan, pool: mempool.BufferPool, report: Report, size: int, figure: str, code: str, *, must: float | None
) -> None:
    """One row: the same statement, in a block and out of it."""
    samples = measure(plan, pool, size, code, figure)
    report.rows.append(row(samples, f"{figure}, {size_text(size)}", OWN, POOLED, must=must))


def measure(plan: Plan, pool: mempool.BufferPool, size: int, code: str, figure: str) -> Samples:
    """Both sides in turns, each a program that makes all its arrays in one way; a slice enters its block once."""
    own = operands(size)
    with use_pool(pool):
        pooled = operands(size)
    check(pool, code, own)
    sides = [
        Side(OWN, f"for _ in repeated: {code}", own),
        Side(
            POOLED,
            f"with use_pool(pool):\n    for _ in repeated: {code}",
            pooled | {"use_pool": use_pool, "pool": pool},
        ),
    ]
    rounds = plan.rounds(9 if size > 16 * MIB else 31)
    return compare(sides, rounds=rounds, number=1, warmup=2, budget=1.2, label=f"{NAME} {figure} {size_text(size)}")


def repeats(size: int) -> int:
    """Some 32 MiB a slice, so that the block itself costs nothing."""
    return max(1, 32 * MIB // size)


def operands(size: int) -> dict[str, Any]:
    """Arrays of so many bytes, and how often the statement runs in a slice."""
    n = size // 8
    a, b, c = (np.random.default_rng(seed).random(n) for seed in range(3))
    return {"np": np, "n": n, "a": a, "b": b, "c": c, "repeated": range(repeats(size))}


def check(pool: mempool.BufferPool, code: str, names: dict[str, Any]) -> None:
    """The content is the same, and the memory is the pool's."""
    expected = eval(code, dict(names))
    before = pool.stats().acquires
    with use_pool(pool):
        got = eval(code, dict(names))
    same = expected is got if expected is None or got is None else np.array_equal(expected, got)
    if not same:
        raise AssertionError(f"{code} has another result under a pool")
    if pool.stats().acquires == before:
        raise AssertionError(f"{code} took nothing from the pool")
