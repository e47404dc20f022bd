"""Sixteen buffers of 1 to 8 MiB in flight, filled from a file: what a pipeline does.

Each rival meets mempool in a process of its own. Blocks of this size come from the heap of
``malloc`` as long as something beside them keeps that heap from shrinking, so that two rivals in
one process would decide each other's page faults.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import mempool
from benchmarks.harness import MIB, Plan, Report, Row, Samples, Side, compare, peer, progress, row, size_text
from benchmarks.rivals import PurePool, huge_buffer

NAME = "window"
FIGURE = "window: one operation"
IN_FLIGHT = 16
SMALLEST, LARGEST = MIB, 8 * MIB
# A slice is long, because what malloc does is lumpy: it trims its heap now and then.
ROUNDS, OPERATIONS = 17, 96
# Until every size class has seen about as many blocks as it ever needs.
WARMUP = 600
OPERATION = """\
{drop}
b = {acquire}
preadv(fd, ({view},), next(offsets))
window.append(b)
del b
"""
DROP, RELEASE = "window.popleft()", "window.popleft().release()"
# name: (how the oldest goes, how the next comes, what is filled)
WAYS = {
    "bytearray": (DROP, "bytearray(next(sizes))", "b"),
    "np.empty": (DROP, "empty(next(sizes), uint8)", "b"),
    "pyarrow.allocate_buffer": (DROP, "allocate_buffer(next(sizes))", "b"),
    "pure-Python pool": (RELEASE, "pure.acquire(next(sizes))", "b.array()"),
    "preallocated": (DROP, "kept[next(turns)][:next(sizes)]", "b"),
    "mempool": (DROP, "pool.acquire(next(sizes))", "b"),
}
TARGETS = {"bytearray": (2.0, 3.0), "np.empty": (1.3, 1.8)}


class Outcome(NamedTuple):
    """What one process found out."""

    samples: Samples
    held: str


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "16 buffers of 1-8 MiB in flight, filled by preadv")
    path = make_source(plan.scratch / "window.bin")
    everywhere = Samples(["mempool"])
    for rival in WAYS:
        problem = missing(rival)
        if rival == "mempool":
            continue
        if problem:
            must, aim = TARGETS.get(rival, (None, None))
            plain = rival == "bytearray"
            report.rows.append(Row(FIGURE, rival, plain, must=must, aim=aim, note=problem))
            continue
        outcome = in_own_process(plan, rival, path)
        collect(report, rival, outcome)
        everywhere.seconds["mempool"] += outcome.samples.seconds["mempool"]
        everywhere.faults["mempool"] += outcome.samples.faults["mempool"]
    if everywhere.seconds["mempool"]:
        add_bars(report, "mempool", everywhere)
    return report


def missing(rival: str) -> str:
    """Why a rival cannot be measured; empty if it can."""
    if not hasattr(os, "preadv"):
        return "this OS has no preadv"
    if rival.startswith("pyarrow") and peer("pyarrow") is None:
        return "not installed"
    return ""


def make_source(path: Path) -> Path:
    """Write the file that the buffers are filled from."""
    path.write_bytes(np.random.default_rng(16).bytes(2 * LARGEST))
    return path


def in_own_process(plan: Plan, rival: str, path: Path) -> Outcome:
    """Run one comparison in a fresh interpreter."""
    progress(f"{NAME}: {rival}")
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as executor:
        return executor.submit(against, plan, rival, path).result()


def against(plan: Plan, rival: str, path: Path) -> Outcome:
    """Compare one rival with mempool."""
    fd = os.open(path, os.O_RDONLY)
    with mempool.BufferPool(name="benchmark-window") as pool:
        sides = [side_of(rival, pool, fd), side_of("mempool", pool, fd)]
        label = f"{NAME}: {rival}"
        samples = compare(
            sides,
            rounds=plan.rounds(ROUNDS),
            number=OPERATIONS,
            warmup=WARMUP // 4 if plan.quick else WARMUP,
            budget=1.0 if plan.quick else 4.0,
            label=label,
        )
        # The sides still hold their windows here.
        held = memory_held(pool)
    os.close(fd)
    return Outcome(samples, held)


def side_of(name: str, pool: mempool.BufferPool, fd: int) -> Side:
    """Make the side that keeps a window of its own filled; all see the same sizes and offsets."""
    random = np.random.default_rng(8)
    sizes = random.integers(SMALLEST, LARGEST + 1, 4096).tolist()
    offsets = (random.integers(0, LARGEST // 4096, 4096) * 4096).tolist()
    drop, acquire, view = WAYS[name]
    names = {
        "fd": fd,
        "preadv": os.preadv,
        "window": deque(PurePool().acquire(1) for _ in range(IN_FLIGHT)),
        "sizes": itertools.cycle(sizes),
        "offsets": itertools.cycle(offsets),
        "turns": itertools.cycle(range(IN_FLIGHT)),
        **operands(name, pool),
    }
    return Side(name, OPERATION.format(drop=drop, acquire=acquire, view=view), names)


def operands(name: str, pool: mempool.BufferPool) -> dict[str, Any]:
    """What the statement of one side needs; others' memory would only be in its way."""
    if name == "pyarrow.allocate_buffer":
        arrow: Any = peer("pyarrow")
        return {"allocate_buffer": arrow.allocate_buffer}
    if name == "pure-Python pool":
        return {"pure": PurePool()}
    if name == "preallocated":
        return {"kept": [huge_buffer(LARGEST) or memoryview(bytearray(LARGEST)) for _ in range(IN_FLIGHT)]}
    return {"empty": np.empty, "uint8": np.uint8, "pool": pool}


def collect(report: Report, rival: str, outcome: Outcome) -> None:
    """Make a rival's row and bars; with np.empty come the page faults and the memory held."""
    samples = outcome.samples
    must, aim = TARGETS.get(rival, (None, None))
    plain = rival == "bytearray"
    report.rows.append(row(samples, FIGURE, rival, "mempool", plain=plain, must=must, aim=aim))
    add_bars(report, rival, samples)
    if rival == "np.empty":
        add_faults(report, samples)
        report.losses.append(outcome.held)


def add_bars(report: Report, name: str, samples: Samples) -> None:
    """Keep what the plot shows of one way."""
    report.point("time an operation", name, 0, samples.typical(name))
    faults = samples.typical_faults(name)
    if faults is not None:
        report.point("minor page faults an operation", name, 0, faults)


def add_faults(report: Report, samples: Samples) -> None:
    """Make the row of mempool's page faults, with np.empty's beside it."""
    own = samples.typical_faults("mempool")
    report.rows.append(
        Row(
            "window: page faults an operation",
            "np.empty",
            rival_value=samples.typical_faults("np.empty"),
            own_value=own,
            unit="faults",
            sense="below",
            must=1.0,
            note="" if own is not None else "this OS does not count page faults",
        )
    )


def memory_held(pool: mempool.BufferPool) -> str:
    """Say what the pool keeps beside what is lent: that is what reuse costs."""
    stats = pool.stats()
    return (
        f"memory: the window keeps {size_text(stats.reserved)} reserved for "
        f"{size_text(stats.requested)} asked for ({size_text(stats.idle)} idle until purged; peak "
        f"{size_text(stats.peak)}); np.empty and bytearray keep only what is asked for"
    )
