"""`mempool.io.read`, `write` and `copy` against what Python has, from and to the page cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import mempool
from benchmarks.harness import KIB, MIB, Plan, Report, Row, Side, compare, row, size_text
from benchmarks.rivals import huge_buffer
from mempool import io

NAME = "io"
PREALLOCATED = "preadv, preallocated, huge pages"
READ = "b = io.read(path, pool=pool)\ndel b"
READS = {
    "open().read()": 'with open(path, "rb") as f:\n    b = f.read()\ndel b',
    "np.fromfile": "b = np.fromfile(path, np.uint8)\ndel b",
    "mempool": READ,
}
INTO_KEPT = "fd = os.open(path, os.O_RDONLY)\nos.preadv(fd, (kept,), 0)\nos.close(fd)"
WRITES = {
    "open().write()": 'with open(path, "wb", buffering=0) as f:\n    f.write(data)\nos.unlink(path)',
    "mempool": "io.write(path, data)\nos.unlink(path)",
}
JOINED = {
    "b''.join": "with open(path, \"wb\", buffering=0) as f:\n    f.write(b''.join(pieces))\nos.unlink(path)",
    "f.writelines": 'with open(path, "wb") as f:\n    f.writelines(pieces)\nos.unlink(path)',
    "mempool": "io.write(path, pieces)\nos.unlink(path)",
}
COPIES = {
    "shutil.copyfile": "copyfile(source, path)\nos.unlink(path)",
    "readinto loop, 1 MiB": "plain_copy(source, path)\nos.unlink(path)",
    "mempool": "io.copy(source, path)\nos.unlink(path)",
}
MUSTS: dict[str, tuple[float | None, float | None]] = {"open().read()": (3.5, 6.0), PREALLOCATED: (0.95, None)}


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "mempool.io: read, write and copy, through the page cache")
    with mempool.BufferPool(name="benchmark-io") as pool:
        for size in (64 * MIB, 256 * MIB):
            large(plan, pool, size, report)
        for size in (4 * KIB, MIB):
            small(plan, pool, size, report)
    for size in (4 * KIB, 64 * MIB):
        writing(plan, size, WRITES, report)
    writing(plan, 64 * MIB, JOINED, report)
    for size in (64 * KIB, 64 * MIB):
        copying(plan, size, report)
    return report


def make_file(plan: Plan, size: int) -> Path:
    """Write a file of random bytes, once per size."""
    path = plan.scratch / f"io-{size}.bin"
    if not path.exists():
        path.write_bytes(np.random.default_rng(size).bytes(size))
    return path


def names_of(path: Path, pool: mempool.BufferPool | None = None) -> dict[str, Any]:
    """What the statements may name."""
    return {"path": str(path), "pool": pool, "io": io, "np": np, "os": os, "open": open}


def large(plan: Plan, pool: mempool.BufferPool, size: int, report: Report) -> None:
    """Large files against `read()`, and against memory that was made ready by hand."""
    path, kept = make_file(plan, size), huge_buffer(size)
    with io.read(path, pool=pool) as b:
        if b != path.read_bytes():
            raise AssertionError(f"io.read gave other bytes of {path}")
    sides = [Side(name, code, names_of(path, pool)) for name, code in READS.items()]
    if kept is not None and hasattr(os, "preadv"):
        sides.append(Side(PREALLOCATED, INTO_KEPT, {**names_of(path), "kept": kept}))
    figure = f"io.read of a {size_text(size)} file"
    samples = compare(sides, rounds=plan.rounds(15), number=1, budget=4, label=figure)
    for rival in ("open().read()", "np.fromfile", PREALLOCATED):
        must, aim = MUSTS.get(rival, (None, None))
        if rival in samples.seconds:
            plain = rival == "open().read()"
            report.rows.append(row(samples, figure, rival, "mempool", plain=plain, must=must, aim=aim))
        else:
            note = "this OS has no huge-page advice, or no preadv"
            report.rows.append(Row(figure, rival, must=must, aim=aim, note=note))


def small(plan: Plan, pool: mempool.BufferPool, size: int, report: Report) -> None:
    """Small files, where calls in Python are most of the cost."""
    sides = [Side(name, code, names_of(make_file(plan, size), pool)) for name, code in READS.items()]
    figure = f"io.read of a {size_text(size)} file"
    samples = compare(sides, rounds=plan.rounds(25), seconds=plan.slice(0.004), budget=2, label=figure)
    report.rows.append(row(samples, figure, "open().read()", "mempool", plain=True))


def writing(plan: Plan, size: int, ways: dict[str, str], report: Report) -> None:
    """Write a new file. It goes with each turn: what is written over, some file systems bring to the disk at once."""
    path, source = plan.scratch / "io-written.bin", make_file(plan, size)
    data = source.read_bytes()
    pieces = [data[start : start + 16 * KIB] for start in range(0, size, 16 * KIB)]
    io.write(path, pieces)
    if path.read_bytes() != data:
        raise AssertionError("io.write wrote other bytes")
    what = f"{size_text(size)} in one" if ways is WRITES else f"{size_text(size)} in {len(pieces):,} pieces"
    sides = [Side(name, code, {**names_of(path), "data": data, "pieces": pieces}) for name, code in ways.items()]
    compare_ways(plan, f"io.write of {what}", sides, size, report)


def copying(plan: Plan, size: int, report: Report) -> None:
    """Copy to a new file on the same file system; it goes with each turn."""
    path, source = plan.scratch / "io-copied.bin", make_file(plan, size)
    io.copy(source, path)
    if path.read_bytes() != source.read_bytes():
        raise AssertionError("io.copy wrote other bytes")
    helpers: dict[str, Callable[..., Any]] = {"copyfile": shutil.copyfile, "plain_copy": plain_copy}
    sides = [Side(name, code, {**names_of(path), **helpers, "source": str(source)}) for name, code in COPIES.items()]
    compare_ways(plan, f"io.copy of {size_text(size)}", sides, size, report)


def compare_ways(plan: Plan, figure: str, sides: list[Side], size: int, report: Report) -> None:
    """Add a row for each rival."""
    number = 1 if size > MIB else 50
    samples = compare(sides, rounds=plan.rounds(11), number=number, budget=2, label=figure)
    for side in sides:
        if side.name != "mempool":
            report.rows.append(row(samples, figure, side.name, "mempool", plain=True))


def plain_copy(source: str, target: str) -> None:
    """Copy as one would write it by hand."""
    block = bytearray(MIB)
    view = memoryview(block)
    with open(source, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
        while got := reader.readinto(block):
            writer.write(view[:got])
