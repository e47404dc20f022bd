"""What accounts, limits and statistics cost a lease."""

from __future__ import annotations

import mempool
from benchmarks.harness import KIB, MIB, Plan, Report, Side, compare, row, size_text
from benchmarks.lease import worst

NAME = "accounting"
STATEMENTS = {
    "drop": "pool.acquire(n)",
    "with": "with pool.acquire(n): pass",
    "16 held": "[pool.acquire(n) for _ in range(16)]",
}


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "Accounting")
    plain = mempool.BufferPool(name="benchmark-plain")
    top = mempool.Account("benchmark", limit="1GiB")
    team = mempool.Account("benchmark-team", limit="512MiB", parent=top)
    watched = mempool.BufferPool("256MiB", max_idle="128MiB", account=team, name="benchmark-watched")
    rows = []
    for figure, code in STATEMENTS.items():
        for size in (4 * KIB, MIB):
            sides = [
                Side("without", code, {"pool": plain, "n": size}),
                Side("with all on", code, {"pool": watched, "n": size}),
            ]
            samples = compare(sides, rounds=plan.rounds(101), seconds=plan.slice(0.0015), label=NAME)
            text = f"{figure}, {size_text(size)}"
            rows.append(row(samples, text, "without", "with all on", sense="cost"))
    report.rows.append(worst(rows, "limit, max_idle, accounts, worst", 1.1))
    report.notes.append(
        "accounting by statement: "
        + "; ".join(f"{item.figure} {item.ratio.median:.3f}x" for item in rows if item.ratio)
        + "."
    )
    statistics_snapshot(plan, watched, report)
    return report


def statistics_snapshot(plan: Plan, pool: mempool.BufferPool, report: Report) -> None:
    """How long one consistent snapshot takes; nothing to compare it with."""
    samples = compare(
        [Side("stats", "pool.stats()", {"pool": pool})],
        rounds=plan.rounds(9),
        seconds=plan.slice(0.003),
        label=NAME,
    )
    report.notes.append(f"pool.stats() takes {samples.typical('stats') * 1e6:.2g} us.")
