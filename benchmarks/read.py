"""Whole files into memory, from the page cache: 64 MiB, and throughput by size."""

from __future__ import annotations

import itertools
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

import mempool
from benchmarks.harness import (
    KIB,
    MIB,
    Plan,
    Report,
    Row,
    Side,
    compare,
    row,
    size_text,
)
from benchmarks.rivals import PurePool, huge_buffer

NAME = "read"
LARGE = 64 * MIB
SIZES = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB)
PREALLOCATED = "preallocated, huge pages"
REUSED = "one np.empty, reused"
READ = """\
with open(path, "rb", buffering=0) as f:
    b = {memory}
    f.readinto({view})
{end}
"""
PLAIN = """\
with open(path, "rb", buffering=0) as f:
    b = f.read()
del b
"""
WAYS = {
    "bytearray": READ.format(memory="bytearray(n)", view="b", end="del b"),
    "np.empty": READ.format(memory="np.empty(n, np.uint8)", view="b", end="del b"),
    "pure-Python pool": READ.format(memory="pure.acquire(n)", view="b.array()", end="b.release()"),
    "mempool": READ.format(memory="pool.acquire(n)", view="b", end="del b"),
}
SUMMED = {
    "f.read()": PLAIN.replace("del b", "np.frombuffer(b, np.uint64).sum()\ndel b"),
    "np.fromfile": "np.fromfile(path, np.uint64).sum()",
    "mmap": """\
with open(path, "rb", buffering=0) as f:
    b = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
np.frombuffer(b, np.uint64).sum()
del b
""",
    "mempool": READ.format(memory="pool.acquire(n)", view="b", end="b.array(np.uint64).sum()\ndel b"),
}


MIXED = {
    "os.pread": "b = os.pread(fd, next(sizes), next(offsets))\ndel b",
    "np.empty": "b = np.empty(next(sizes), np.uint8)\nos.preadv(fd, (b,), next(offsets))\ndel b",
    "mempool": "b = pool.acquire(next(sizes))\nos.preadv(fd, (b,), next(offsets))\ndel b",
}


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "A file into memory, from the page cache")
    with mempool.BufferPool(name="benchmark-read") as pool:
        large_file(plan, pool, report)
        summed(plan, pool, report)
        by_size(plan, pool, report)
        mixed_sizes(plan, pool, report)
    return report


def make_file(plan: Plan, size: int) -> Path:
    """Write a file of random bytes, once per size."""
    path = plan.scratch / f"read-{size}.bin"
    if not path.exists():
        path.write_bytes(np.random.default_rng(size).bytes(size))
    return path


def names_of(path: Path, size: int, pool: mempool.BufferPool, pure: PurePool) -> dict[str, Any]:
    """What the statements may name."""
    names = {"path": str(path), "n": size, "np": np, "mmap": mmap, "pool": pool, "pure": pure}
    return {"open": open, **names}


def large_file(plan: Plan, pool: mempool.BufferPool, report: Report) -> None:
    """64 MiB against ``f.read()``, fresh memory, and memory that was made ready by hand."""
    names = names_of(make_file(plan, LARGE), LARGE, pool, PurePool())
    sides = [Side("f.read()", PLAIN, names)]
    sides += [Side(name, code, names) for name, code in WAYS.items()]
    sides.append(Side("np.fromfile", "b = np.fromfile(path, np.uint8)\ndel b", names))
    for name, memory in ((REUSED, np.ones(LARGE, np.uint8)), (PREALLOCATED, huge_buffer(LARGE))):
        if memory is not None:
            code = READ.format(memory="kept", view="b", end="del b")
            sides.append(Side(name, code, names | {"kept": memory}))
    samples = compare(sides, rounds=plan.rounds(21), number=1, budget=8, label=f"{NAME} 64 MiB")
    targets: dict[str, tuple[float | None, float | None]] = {"f.read()": (3.5, 6.0), PREALLOCATED: (0.95, None)}
    for rival in ("f.read()", PREALLOCATED, "bytearray", *others(samples.seconds)):
        must, aim = targets.get(rival, (None, None))
        plain = rival in ("f.read()", "bytearray")
        figure = "read a 64 MiB file"
        if rival not in samples.seconds:
            note = "this OS has no huge-page advice"
            report.rows.append(Row(figure, rival, plain, must=must, aim=aim, note=note))
            continue
        report.rows.append(row(samples, figure, rival, "mempool", plain=plain, must=must, aim=aim))


def others(measured: dict[str, list[float]]) -> list[str]:
    """Rivals that have no target of their own."""
    return [name for name in measured if name not in ("f.read()", "bytearray", PREALLOCATED, "mempool")]


def summed(plan: Plan, pool: mempool.BufferPool, report: Report) -> None:
    """64 MiB read and summed: the only fair way to set ``mmap`` beside a read."""
    names = names_of(make_file(plan, LARGE), LARGE, pool, PurePool())
    sides = [Side(name, code, names) for name, code in SUMMED.items()]
    samples = compare(sides, rounds=plan.rounds(11), number=1, label=f"{NAME} and sum")
    for rival in ("f.read()", "np.fromfile", "mmap"):
        figure = "read 64 MiB and sum it"
        report.rows.append(row(samples, figure, rival, "mempool", plain=rival == "f.read()"))


def by_size(plan: Plan, pool: mempool.BufferPool, report: Report) -> None:
    """Throughput by size; the rows are the sizes where reuse can do least."""
    for size in SIZES[:-1] if plan.quick else SIZES:
        names = names_of(make_file(plan, size), size, pool, PurePool())
        sides = [Side("f.read()", PLAIN, names)]
        sides += [Side(name, code, names) for name, code in WAYS.items()]
        rounds = plan.rounds(25 if size < 16 * MIB else 7)
        label = f"{NAME} {size_text(size)}"
        samples = compare(sides, rounds=rounds, seconds=plan.slice(0.003), budget=2, label=label)
        for side in sides:
            report.point("throughput", side.name, size, size / samples.typical(side.name))
        if size in (4 * KIB, 64 * KIB, MIB, 4 * MIB):
            figure = f"read a {size_text(size)} file"
            report.rows.append(row(samples, figure, "f.read()", "mempool", plain=True))
            report.rows.append(row(samples, figure, "np.empty", "mempool"))


def mixed_sizes(plan: Plan, pool: mempool.BufferPool, report: Report) -> None:
    """Reads of ever other sizes, one at a time.

    Each size class has a block of its own, which the caches have forgotten when its turn comes
    again; ``malloc`` cuts every size from the same, warm end of its heap.
    """
    for low, high in ((4 * KIB, 64 * KIB), (64 * KIB, MIB), (MIB, 8 * MIB)):
        figure = f"preadv {size_text(low)}-{size_text(high)}, mixed"
        if not hasattr(os, "preadv"):
            report.rows.append(Row(figure, "os.pread", True, note="this OS has no preadv"))
            continue
        fd = os.open(make_file(plan, 16 * MIB), os.O_RDONLY)
        sides = [mixed_side(name, pool, fd, low, high) for name in MIXED]
        number = max(16, 64 * MIB // high // 4)
        samples = compare(sides, rounds=plan.rounds(41), number=number, warmup=400, label=figure)
        os.close(fd)
        for rival in ("os.pread", "np.empty"):
            plain = rival == "os.pread"
            report.rows.append(row(samples, figure, rival, "mempool", plain=plain))


def mixed_side(name: str, pool: mempool.BufferPool, fd: int, low: int, high: int) -> Side:
    """One way to read them; all see the same sizes and offsets."""
    random = np.random.default_rng(low)
    names = {
        "os": os,
        "np": np,
        "pool": pool,
        "fd": fd,
        "sizes": itertools.cycle(random.integers(low, high + 1, 1021).tolist()),
        "offsets": itertools.cycle((random.integers(0, 8 * MIB // 4096, 1024) * 4096).tolist()),
    }
    return Side(name, MIXED[name], names)
