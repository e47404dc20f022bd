"""What it costs to measure a piece of code, and how often a planted leak of 1 KiB a call is found."""

from __future__ import annotations

import time
from collections.abc import Callable

import mempool
from benchmarks.harness import KIB, Plan, Report, Row, Side, compare, peer, row
from mempool.accounting import detect_leaks, measure

NAME = "leaks"
RUNS = 20


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "Finding leaks")
    report.rows.append(measuring(plan))
    report.rows += detecting(plan, report)
    return report


def measuring(plan: Plan) -> Row:
    """A whole measurement, two snapshots, against one reading of psutil."""
    figure, rival = "measure, a block", "psutil.Process().memory_info()"
    psutil = peer("psutil")
    if psutil is None:
        return Row(figure, rival, note="psutil is not installed")
    sides = [
        Side(rival, "process.memory_info()", {"process": psutil.Process()}),
        Side("mempool", "with measure('x'): pass", {"measure": measure}),
    ]
    samples = compare(sides, rounds=plan.rounds(41), seconds=plan.slice(0.003), label=NAME)
    return row(samples, figure, rival, "mempool", sense="cost", must=2.0, aim=1.5)


def leaking(kept: list[object], pool: mempool.BufferPool) -> dict[str, Callable[[], object]]:
    """Return what leaks 1 KiB a call, by where."""
    return {
        "the heap": lambda: kept.append(bytearray(KIB)),
        "a pool": lambda: kept.append(pool.acquire(KIB)),
        "a mapping": lambda: kept.append(mempool.anonymous_array(KIB, "u1")),
    }


def garbage() -> None:
    """What leaves nothing behind: an object in a cycle."""
    cycle: list[object] = [bytearray(KIB)]
    cycle.append(cycle)


def detecting(plan: Plan, report: Report) -> list[Row]:
    """The part of runs in which a leak was not found, or its line not named, and in which one was seen where there is none."""
    runs = 3 if plan.quick else RUNS
    rows, start = [], time.perf_counter()
    for where in leaking([], mempool.BufferPool()):
        missed = sum(not named(where) for _ in range(runs))
        rows.append(part(f"1 KiB a call leaks in {where}: missed", missed, runs))
    raised = sum(detect_leaks(garbage, iterations=24).leaked for _ in range(runs))
    rows.append(part("nothing leaks: raised all the same", raised, runs))
    seconds = (time.perf_counter() - start) / (4 * runs)
    report.notes.append(f"detect_leaks: {runs} runs of each kind, {seconds:.2g} s a run of 24 calls a round.")
    return rows


def named(where: str) -> bool:
    """Return whether the line of one planted leak was named."""
    function = leaking([], mempool.BufferPool(name="benchmark-leak"))[where]
    line = f"{__file__}:{function.__code__.co_firstlineno}"
    return any(culprit.where == line for culprit in detect_leaks(function, iterations=24).culprits)


def part(figure: str, count: int, runs: int) -> Row:
    """Make the row of what may never happen."""
    return Row(figure, "-", own_value=count / runs, unit="x", sense="at most", must=0.0, note=f"{count} of {runs} runs")
