"""A large file chunk by chunk, from the page cache: `iter_chunks` against the loop that reads into one bytearray."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np

import mempool
from benchmarks.harness import GIB, KIB, MIB, Plan, Report, Side, compare, row, size_text
from mempool.io import iter_chunks

NAME = "chunks"
CHUNK = MIB
PLAIN = """\
b = bytearray(n)
with open(path, "rb", buffering=0) as f:
    while f.readinto(b):
        {work}
"""
ALIGNED = PLAIN.replace("bytearray(n)", "mmap(-1, n)")
OURS = """\
for b in iter_chunks(path, n, pool=pool, readahead={readahead}):
    {work}
"""
RIVAL = "readinto loop"
PAGES = "readinto loop, page-aligned"
OWN = "iter_chunks"
INLINE = "iter_chunks, readahead=0"

# A copy of what was read takes a third of the time of its read: the first comes from memory, the rest from the caches.
COPY = "copyto(kept, frombuffer(b, uint8))"
WORKS = {
    "no work": "pass",
    "2 copies of each": f"{COPY}; {COPY}",
    "3 copies of each": f"{COPY}; {COPY}; {COPY}",
    "crc32 of each": "crc32(b)",
    "bytes counted with the GIL": "bytes(b).count(b'x')",
}
MUST = {"no work": 0.97, "2 copies of each": 1.3, "3 copies of each": 1.3}


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "A large file, chunk by chunk, from the page cache")
    path = make_file(plan, 256 * MIB if plan.quick else 2 * GIB)
    with mempool.BufferPool(name="benchmark-chunks") as pool:
        verify(path, pool)
        for work in WORKS:
            working(plan, pool, path, work, report)
        for size in (64 * KIB, 4 * MIB):
            by_size(plan, pool, path, size, report)
    path.unlink()
    report.notes.append(
        "where a bytearray lies decides how fast the kernel copies into it: 16 bytes behind a page boundary, as malloc places a"
        " first large one, it takes twice as long as on it, elsewhere up to a sixth less; blocks of a pool begin on a boundary"
    )
    return report


def make_file(plan: Plan, size: int) -> Path:
    """Write a file of random bytes that repeat."""
    path, block = plan.scratch / "chunks.bin", np.random.default_rng(0).bytes(32 * MIB)
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
    return path


def verify(path: Path, pool: mempool.BufferPool) -> None:
    """Compare a digest of all chunks, read ahead while it is made, with that of the plain loop."""
    plain, own = hashlib.blake2b(), hashlib.blake2b()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(CHUNK):
            plain.update(piece)
    for chunk in iter_chunks(path, CHUNK, pool=pool):
        own.update(chunk)
    if plain.digest() != own.digest():
        raise AssertionError("iter_chunks gave other bytes than read()")


def sides_of(path: Path, pool: mempool.BufferPool, size: int, work: str) -> list[Side]:
    """The plain loop and ours, with the same work on each chunk."""
    helpers: dict[str, Callable[..., Any]] = {"copyto": np.copyto, "frombuffer": np.frombuffer, "crc32": zlib.crc32}
    names = {"path": str(path), "n": size, "pool": pool, "kept": np.ones(size, np.uint8), "uint8": np.uint8}
    given = {**names, **helpers, "open": open, "iter_chunks": iter_chunks, "mmap": mmap}
    return [
        Side(RIVAL, PLAIN.format(work=work), given),
        Side(PAGES, ALIGNED.format(work=work), given),
        Side(OWN, OURS.format(work=work, readahead=2), given),
        Side(INLINE, OURS.format(work=work, readahead=0), given),
    ]


def working(plan: Plan, pool: mempool.BufferPool, path: Path, work: str, report: Report) -> None:
    """One kind of work on each chunk."""
    figure = f"{size_text(path.stat().st_size)} by {size_text(CHUNK)}, {work}"
    sides = sides_of(path, pool, CHUNK, WORKS[work])
    samples = compare(sides, rounds=plan.rounds(7), number=1, budget=4, label=figure)
    report.rows.append(row(samples, figure, RIVAL, OWN, plain=True, must=MUST.get(work)))
    report.rows.append(row(samples, figure, PAGES, OWN, plain=True))
    report.rows.append(row(samples, figure, INLINE, OWN))


def by_size(plan: Plan, pool: mempool.BufferPool, path: Path, size: int, report: Report) -> None:
    """Chunks of other sizes, without work."""
    figure = f"{size_text(path.stat().st_size)} by {size_text(size)}, no work"
    samples = compare(sides_of(path, pool, size, "pass")[:3], rounds=plan.rounds(7), number=1, budget=2, label=figure)
    report.rows.append(row(samples, figure, RIVAL, OWN, plain=True))
    report.rows.append(row(samples, figure, PAGES, OWN, plain=True))
