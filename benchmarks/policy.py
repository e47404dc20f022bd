"""What knowing costs: charges by hand, and what the bridge to the garbage collector saves."""

from __future__ import annotations

import time
from typing import Literal, NamedTuple

import mempool
from benchmarks.harness import MIB, Plan, Report, Row, Side, compare, progress, row
from benchmarks.worker import apart
from mempool import _core
from mempool.accounting import Account, gc_pressure

NAME = "policy"
PAIR = "account.charge(n); account.discharge(n)"
NBYTES = 4096

CYCLE = 8 * MIB
CYCLES = 320
MOST = 256 * MIB
Kind = Literal["bytearray", "pool", "bridge"]
KINDS: tuple[Kind, ...] = ("bytearray", "pool", "bridge")
RIVALS: dict[Kind, str] = {"bytearray": "bytearray", "pool": "a pool without it"}


class Loop(NamedTuple):
    """The most that a process had in memory, in bytes, the seconds that its loop took, and a sum over what it wrote."""

    peak: float
    seconds: float
    total: int


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "Accounting by hand, and the garbage collector")
    charges(plan, report)
    cyclic_garbage(report)
    return report


def charges(plan: Plan, report: Report) -> None:
    """A charge taken back, against the cheapest object there is."""
    held = Account("benchmark-held")
    held.charge(NBYTES)
    deep = Account("benchmark-deep", limit="1GiB", parent=Account("benchmark-top", limit="2GiB"))
    accounts = {"empty before": Account("benchmark-fresh"), "holds something": held, "two limits above": deep}
    sides = [Side("object()", "object()")]
    sides += [Side(name, PAIR, {"account": account, "n": NBYTES}) for name, account in accounts.items()]
    samples = compare(sides, rounds=plan.rounds(75), seconds=plan.slice(0.0015), label=NAME)
    for name in accounts:
        figure = f"charge and discharge, {name}"
        report.rows.append(row(samples, figure, "object()", name, sense="cost", plain=True, must=3.0, aim=1.5))
    held.discharge(NBYTES)


def leave_garbage(kind: Kind) -> Loop:
    """Make cycles that each hold 8 MiB, all written. Runs in a process of its own."""
    pool = mempool.BufferPool(name="benchmark-cycles")
    page = b"x" * CYCLE
    gc_pressure(kind == "bridge")
    total = 0
    start = time.perf_counter()
    for _ in range(CYCLES):
        held: list[object] = []
        if kind == "bytearray":
            block = bytearray(page)
            total += block[-1]
            held.append(block)
        else:
            buffer = pool.acquire(CYCLE)
            buffer[:] = page
            total += buffer[-1]
            held.append(buffer)
        held.append(held)
    return Loop(_core._process_memory()[1], time.perf_counter() - start, total)


def cyclic_garbage(report: Report) -> None:
    """The most memory that the loop takes: without the bridge, and with it."""
    found: dict[Kind, Loop] = {}
    for kind in KINDS:
        progress(f"{NAME} cycles: {kind}")
        found[kind] = apart(leave_garbage, kind)
    if any(loop.total != CYCLES * ord("x") for loop in found.values()):
        raise ValueError("a loop read something else than it wrote")
    for kind, rival in RIVALS.items():
        report.rows.append(
            Row(
                f"peak RSS of {CYCLES} cycles of 8 MiB, with gc_pressure()",
                rival,
                kind == "bytearray",
                found[kind].peak,
                found["bridge"].peak,
                unit="B",
                sense="at most",
                must=float(MOST),
            )
        )
    report.notes.append(
        "the loop of cycles takes "
        + ", ".join(f"{loop.seconds:.2g} s ({kind})" for kind, loop in found.items())
        + ": memory that comes back need not be zeroed by the OS again."
    )
