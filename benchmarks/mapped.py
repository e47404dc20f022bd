"""Arrays in files against ``np.memmap`` and ``np.save``: opening, slicing, streaming, appending.

Files are read from the page cache, as everywhere here. Those that stream are large: eight GiB of a
sparse file, two of a real one, in the run's temporary folder, and gone when their rows are made.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import psutil  # type: ignore[import-untyped,unused-ignore]

import mempool
from benchmarks.harness import (
    FEWEST_ROUNDS,
    GIB,
    KIB,
    MIB,
    Plan,
    Report,
    Row,
    Samples,
    Side,
    compare,
    progress,
    row,
    shuffled,
    size_text,
)
from benchmarks.worker import apart

Way = Literal["mempool", "np.memmap"]
Kind = Literal["sparse", "real", "pieces"]

NAME = "mapped"
ITEM = 8
SMALL = MIB
BLOCKS = (MIB, 16 * MIB, 64 * MIB)
# The block whose speed is judged; the others are beside it.
USUAL_BLOCK = 16 * MIB
SPARSE, REAL, IN_PIECES = 8 * GIB, 2 * GIB, 512 * MIB
# The page cache keeps a file in pieces about as large as those in which it was written: faults differ by that.
WRITTEN: dict[Kind, int] = {"real": 64 * MIB, "pieces": 128 * KIB}
ALLOWANCE = 64 * MIB
APPENDED, QUICK_APPENDED = 10_000_000, 1_000_000
APPENDS = (1_000, 100_000, 1_000_000)
USUAL_APPEND = 1_000_000

SUMS = {
    "np.memmap": """\
a = np.memmap(path, "f8", "r")
total = 0.0
for i in range(0, len(a), rows):
    total += a[i : i + rows].sum()
del a
""",
    "mempool": """\
total = 0.0
with mempool.open_array(path, dtype="f8") as a:
    for block in a.iter_blocks(rows):
        total += block.sum()
del a, block
""",
    "np.memmap, still mapped": """\
total = 0.0
for i in range(0, len(kept), rows):
    total += kept[i : i + rows].sum()
""",
}


class Streamed(NamedTuple):
    """What one pass over a file gave: the peak of resident memory over what was there before, and the sum."""

    growth: float
    total: float


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "Arrays in files")
    opening(plan, report)
    slicing(plan, report)
    with large_file(plan, "sparse", GIB if plan.quick else SPARSE) as (path, size, problem):
        peak_memory(report, f"sparse {size_text(size)}", path, problem)
    with large_file(plan, "real", 256 * MIB if plan.quick else REAL) as (path, size, problem):
        peak_memory(report, size_text(size), path, problem)
        for block in BLOCKS:
            streaming(plan, report, path, size, block, problem, must=1.0)
    with large_file(plan, "pieces", 256 * MIB if plan.quick else IN_PIECES) as (path, size, problem):
        streaming(plan, report, path, size, USUAL_BLOCK, problem, text=" written by 128 KiB")
    appending(plan, report)
    durable(plan, report)
    return report


# ---- opening and slicing ----


def opening(plan: Plan, report: Report) -> None:
    """Open a raw file and a .npy file, view the array, drop all of it."""
    values = np.random.default_rng(1).random(SMALL // ITEM)
    raw, npy = plan.scratch / "mapped.raw", plan.scratch / "mapped.npy"
    values.tofile(raw)
    np.save(npy, values)
    names = {"np": np, "mempool": mempool, "raw": str(raw), "npy": str(npy), "shape": values.shape}
    own_raw = 'mempool.open_array(raw, dtype="f8", shape=shape).array'
    own_npy = "mempool.open_array(npy).array"
    pairs = {
        "open a raw file, array, drop": ("np.memmap", 'np.memmap(raw, "f8", "r", shape=shape)', own_raw, 0.6, 0.5),
        "open a .npy file, array, drop": ("np.load", 'np.load(npy, mmap_mode="r")', own_npy, 0.2, 0.15),
    }
    for figure, (rival, code, own, must, aim) in pairs.items():
        check(values, eval(code, dict(names)), eval(own, dict(names)))
        sides = [Side(rival, code, names), Side("mempool", own, names)]
        samples = compare(sides, rounds=plan.rounds(75), seconds=plan.slice(0.003), label=NAME)
        report.rows.append(row(samples, figure, rival, "mempool", sense="cost", must=must, aim=aim))


def check(expected: npt.NDArray[Any], *others: npt.NDArray[Any]) -> None:
    """All sides see the same content; anything else is an error, not a figure."""
    for other in others:
        if other.dtype != expected.dtype or not np.array_equal(expected, other):
            raise ValueError(f"other content: {other.dtype} {other.shape} for {expected.dtype} {expected.shape}")


def slicing(plan: Plan, report: Report) -> None:
    """Slice what came back: a plain array here, a subclass with bookkeeping there."""
    path = str(plan.scratch / "mapped.raw")
    names = {"a": np.memmap(path, "f8", "r"), "b": mempool.open_array(path, dtype="f8").array}
    sides = [Side("np.memmap", "a[512:1024]", names), Side("mempool", "b[512:1024]", names)]
    samples = compare(sides, rounds=plan.rounds(75), seconds=plan.slice(0.0015), label=NAME)
    report.rows.append(row(samples, "slice what came back", "np.memmap", "mempool", must=8))


# ---- streaming ----


@contextmanager
def large_file(plan: Plan, kind: Kind, size: int) -> Iterator[tuple[Path, int, str]]:
    """Make a large file for a while; or say what there is too little of."""
    path = plan.scratch / f"mapped-{kind}.bin"
    problem = too_little(plan.scratch, size, kind)
    try:
        if not problem:
            progress(f"{NAME}: {size_text(size)}, {kind}")
            make_sparse(path, size) if kind == "sparse" else make_real(path, size, WRITTEN[kind])
        yield path, size, problem
    finally:
        path.unlink(missing_ok=True)


def too_little(folder: Path, size: int, kind: Kind) -> str:
    """Why a file of this size is not made; empty if it can be."""
    if kind != "sparse" and shutil.disk_usage(folder).free < 2 * size:
        return f"too little disk for a file of {size_text(size)}"
    # Else the disk is measured.
    if psutil.virtual_memory().available < size + 2 * GIB:
        return f"too little memory to keep {size_text(size)} in the page cache"
    return ""


def make_sparse(path: Path, size: int) -> None:
    """Make a file that is one hole."""
    with path.open("wb") as file:
        file.truncate(size)


def make_real(path: Path, size: int, piece: int) -> None:
    """Write numbers, the same again and again: how they come about is not what is measured."""
    pattern = np.random.default_rng(2).random(piece // ITEM)
    with path.open("wb", buffering=0) as file:
        for _ in range(size // piece):
            file.write(pattern.data)
        # What the OS still has to write would be written while others are measured.
        os.fsync(file.fileno())


def streamed(way: Way, path: str, rows: int) -> Streamed | None:
    """Sum a file in blocks; None where the OS does not tell the peak. Runs in a process of its own."""
    start_of_peak()
    before = status_bytes("VmRSS")
    names: dict[str, Any] = {"np": np, "mempool": mempool, "path": path, "rows": rows}
    exec(SUMS[way], names)
    peak = status_bytes("VmHWM")
    return None if before is None or peak is None else Streamed(peak - before, float(names["total"]))


def start_of_peak() -> None:
    """Forget the peak so far, where the OS can; else it can only be too high."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def status_bytes(field: str) -> int | None:
    """A size that Linux tells of this process; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * KIB for line in lines if line.startswith(field + ":")), None)


def peak_memory(report: Report, text: str, path: Path, problem: str) -> None:
    """Peak of resident memory by size of the block, each way in a fresh process; the file's own pages count."""
    sums = []
    rival = None if problem else apart(streamed, "np.memmap", str(path), USUAL_BLOCK // ITEM)
    for block in BLOCKS:
        progress(f"{NAME}: {text} in blocks of {size_text(block)}")
        own = None if problem else apart(streamed, "mempool", str(path), block // ITEM)
        report.rows.append(peak_row(f"sum {text} by {size_text(block)}: peak memory", block, own, rival, problem))
        if own is None or rival is None:
            continue
        sums += [own.total, rival.total]
        if text.startswith("sparse"):
            report.point(f"peak memory, {text}", "mempool", block, own.growth)
            report.point(f"peak memory, {text}", "np.memmap", block, rival.growth)
    if not np.allclose(sums, sums[:1] * len(sums)):
        raise ValueError(f"the same file has different sums: {sums}")


def peak_row(figure: str, block: int, own: Streamed | None, rival: Streamed | None, problem: str) -> Row:
    """Make the row of one size of blocks; what is allowed is the block and a little more."""
    return Row(
        figure,
        "np.memmap",
        rival_value=None if rival is None else rival.growth,
        own_value=None if own is None else own.growth,
        unit="B",
        sense="at most",
        must=block + ALLOWANCE,
        note=problem or "this OS does not tell the peak of resident memory",
    )


def streaming(
    plan: Plan,
    report: Report,
    path: Path,
    size: int,
    block: int,
    problem: str,
    *,
    text: str = "",
    must: float | None = None,
) -> None:
    """Speed of the same sums, each pass mapping the file anew; then against one that stays mapped."""
    figure = f"sum {size_text(size)}{text} by {size_text(block)}: time"
    if problem:
        report.rows.append(Row(figure, "np.memmap", must=must, note=problem))
        return
    names = {"np": np, "mempool": mempool, "path": str(path), "rows": block // ITEM}
    names["kept"] = np.memmap(path, "f8", "r")
    ways = list(SUMS) if block == USUAL_BLOCK else ["np.memmap", "mempool"]
    sides = [Side(name, SUMS[name], names) for name in ways]
    samples = compare(sides, rounds=plan.rounds(25), number=1, budget=5, label=f"{NAME} {figure}")
    for rival in (name for name in ways if name != "mempool"):
        report.rows.append(row(samples, figure, rival, "mempool", must=must if rival == "np.memmap" else None))
    for name in ways if must is not None else ():
        report.point(f"speed, {size_text(size)}", name, block, size / samples.typical(name))


# ---- appending ----


def append_all(path: Path, values: npt.NDArray[np.float64], rows: int, *, lasting: bool) -> None:
    """Make a file and append to it, block by block."""
    with mempool.create_array(path, (0,), "f8") as array:
        for start in range(0, len(values), rows):
            array.append(values[start : start + rows])
        if lasting:
            array.flush()


def save(path: Path, values: npt.NDArray[np.float64], *, lasting: bool) -> None:
    """Save all of it at once."""
    if not lasting:
        np.save(path, values)
        return
    with path.open("wb") as file:
        np.save(file, values)
        file.flush()
        os.fsync(file.fileno())


def writers(values: npt.NDArray[np.float64], *, lasting: bool) -> dict[str, Callable[[Path], None]]:
    """Each way to get the values into a new file."""

    def appender(rows: int) -> Callable[[Path], None]:
        return lambda path: append_all(path, values, rows, lasting=lasting)

    ways = {str(rows): appender(rows) for rows in APPENDS}
    rival = "np.save and os.fsync" if lasting else "np.save"
    return {rival: lambda path: save(path, values, lasting=lasting), **ways}


def compare_writers(
    plan: Plan,
    ways: Mapping[str, Callable[[Path], None]],
    expected: npt.NDArray[np.float64],
    rounds: int,
    budget: float,
) -> Samples:
    """Time ways to write a file in turns; that it goes afterwards is not timed."""
    samples = Samples(list(ways))
    start = time.perf_counter()
    for turn in range(-1, rounds):
        if turn >= FEWEST_ROUNDS and time.perf_counter() - start > budget:
            break
        progress(f"{NAME} append: round {turn + 1} of {rounds}")
        for name, write in shuffled(list(ways.items()), turn):
            # The round that warms up is the one that checks.
            elapsed = time_writer(plan.scratch / "mapped-written.npy", write, expected if turn < 0 else None)
            if turn >= 0:
                samples.seconds[name].append(elapsed)
    return samples


def time_writer(path: Path, write: Callable[[Path], None], expected: npt.NDArray[np.float64] | None) -> float:
    """Seconds to write a file; what is in it is compared with `expected`, then it goes."""
    begin = time.perf_counter()
    write(path)
    elapsed = time.perf_counter() - begin
    if expected is not None:
        check(expected, np.load(path))
    path.unlink()
    return elapsed


def appending(plan: Plan, report: Report) -> None:
    """Append many numbers to a file that grows, until `close`, against saving them at once."""
    values = np.random.default_rng(3).random(QUICK_APPENDED if plan.quick else APPENDED)
    samples = compare_writers(plan, writers(values, lasting=False), values, plan.rounds(21), 8)
    for rows in APPENDS:
        figure = f"append {len(values):,} float64 by {rows:,}, close"
        must = 0.8 if rows == USUAL_APPEND else None
        report.rows.append(row(samples, figure, "np.save", str(rows), must=must))
        report.point("append", "mempool", rows, values.nbytes / samples.typical(str(rows)))
        report.point("append", "np.save", rows, values.nbytes / samples.typical("np.save"))


def durable(plan: Plan, report: Report) -> None:
    """The same, but it is on the disk when the call returns: the disk decides, and its spread is in the quartiles."""
    values = np.random.default_rng(4).random(QUICK_APPENDED if plan.quick else APPENDED)
    samples = compare_writers(plan, writers(values, lasting=True), values, plan.rounds(15), 8)
    for rows in APPENDS:
        figure = f"append {len(values):,} float64 by {rows:,}, flush, close"
        must = 0.8 if rows == USUAL_APPEND else None
        report.rows.append(row(samples, figure, "np.save and os.fsync", str(rows), must=must))
