"""A file in memory against io.BytesIO: much written in pieces, its peak of memory, snapshots, small calls."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mempool
from benchmarks.harness import KIB, MIB, Plan, Report, Row, Side, Spread, compare, row, size_text
from benchmarks.worker import apart
from mempool.io import BytesStream

NAME = "stream"
RIVAL = "io.BytesIO"
PIECE = 4 * KIB
FULL, QUICK = 256 * MIB, 64 * MIB
SIZES = (64, KIB, 16 * KIB, 256 * KIB, 4 * MIB, 64 * MIB)

WRITE = """\
s = {stream}
write = s.write
for _ in range(n):
    write(piece)
s.close()
"""
FRESH = """\
pool = new_pool()
{body}pool.close()
"""
SNAPSHOT = """\
content = s.{call}()
s.write(piece)
del content
s.seek(-4096, 2)
s.truncate()
"""
# figure: (statement, setup of `s`). A line has eleven bytes.
LINES = "s = new(line * 100_000)"
SMALL = {
    "make one, write 11 bytes, getvalue": ("s = new()\ns.write(line)\ns.getvalue()", "pass"),
    "write 11 bytes": ("s.write(line)\nif s.tell() > 1_000_000: s.seek(0)", "s = new()"),
    "read 11 bytes": ("s.read(11) or s.seek(0)", LINES),
    "readline, 11 bytes": ("s.readline() or s.seek(0)", LINES),
    "iterate over 100 000 lines": ("s.seek(0)\nfor _ in s: pass", LINES),
    "getvalue of 110 bytes": ("s.getvalue()", "s = new(); s.write(line * 10)"),
    "getbuffer of 110 bytes": ("s.getbuffer().release()", "s = new(); s.write(line * 10)"),
    "make one of 10 KiB": ("new(data)", "data = bytes(10240)"),
}


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "A file in memory")
    size = QUICK if plan.quick else FULL
    check()
    written(plan, report, size)
    peak(plan, report, size)
    by_size(plan, report)
    snapshot(plan, report)
    small_calls(plan, report)
    report.notes.append(
        "The peak of memory is that of a fresh process. io.BytesIO shares its content with what getvalue() returns, and copies it "
        "when it is written to the next time; a BytesStream copies in getvalue(), and never for buffers()."
    )
    return report


def check() -> None:
    """The same program makes the same content."""
    real, stream = io.BytesIO(), BytesStream()
    for number in range(20_000):
        for file in (real, stream):
            file.write(b"%d\n" % (number * number))
    if not real.getvalue() == stream.getvalue() == b"".join(stream.buffers()):
        raise AssertionError("a BytesStream has another content than io.BytesIO")


def names(pool: mempool.BufferPool, count: int, piece: int = PIECE) -> dict[str, Any]:
    """What the statements may name."""
    return {
        "BytesIO": io.BytesIO,
        "BytesStream": BytesStream,
        "new_pool": mempool.BufferPool,
        "pool": pool,
        "n": count,
        "piece": b"\xa5" * piece,
    }


def written(plan: Plan, report: Report, size: int) -> None:
    """Much, in pieces of 4 KiB."""
    with mempool.BufferPool(name="benchmark-stream") as pool:
        there = names(pool, size // PIECE)
        ours = WRITE.format(stream="BytesStream(pool=pool)")
        sides = [
            Side(RIVAL, WRITE.format(stream="BytesIO()"), there),
            Side("mempool", FRESH.format(body=ours), there),
            Side("mempool, memory used before", ours, there),
        ]
        samples = compare(sides, rounds=plan.rounds(9), number=1, warmup=1, budget=6.0, label=NAME)
    figure = f"{size_text(size)} in pieces of 4 KiB"
    report.rows.append(row(samples, figure, RIVAL, "mempool", plain=True, must=1.0, aim=2.0))
    figure += ", memory used before"
    report.rows.append(row(samples, figure, RIVAL, "mempool, memory used before", plain=True, must=1.0, aim=4.0))


def peak_memory() -> int:
    """Most bytes that were ever resident. `getrusage` also counts what the parent had when it made this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * KIB


def grown(kind: str, size: int) -> int:
    """Bytes by which the peak of this process rises while so much is written. In a fresh process."""
    make: Callable[[], Any] = io.BytesIO if kind == RIVAL else BytesStream
    piece = b"\xa5" * PIECE
    make().write(piece)
    before = peak_memory()
    stream = make()
    for _ in range(size // PIECE):
        stream.write(piece)
    return peak_memory() - before


def peak(plan: Plan, report: Report, size: int) -> None:
    """The peak of memory over what was written."""
    figure = f"{size_text(size)} in pieces of 4 KiB: peak of RSS over content"
    if not Path("/proc/self/status").exists():
        report.rows.append(Row(figure, RIVAL, must=1.05, note="this OS does not tell"))
        return
    ratios = {kind: [apart(grown, kind, size) / size for _ in range(plan.rounds(3))] for kind in (RIVAL, "mempool")}
    rival, own = Spread.of(ratios[RIVAL]).median, Spread.of(ratios["mempool"]).median
    report.rows.append(Row(figure, RIVAL, True, rival, own, unit="x", sense="at most", must=1.05, aim=1.02))


def by_size(plan: Plan, report: Report) -> None:
    """Throughput of a whole file, written in pieces of 1 KiB at most."""
    pool = mempool.BufferPool(name="benchmark-stream")
    for size in SIZES:
        there = names(pool, max(1, size // KIB), min(KIB, size))
        sides = [Side(RIVAL, WRITE.format(stream="BytesIO()"), there)]
        sides.append(Side("mempool", WRITE.format(stream="BytesStream(pool=pool)"), there))
        samples = compare(sides, rounds=plan.rounds(9), seconds=plan.slice(0.006), budget=1.0, label=NAME)
        report.rows.append(row(samples, f"write {size_text(size)} by 1 KiB, close", RIVAL, "mempool", plain=True))
    pool.close()


def snapshot(plan: Plan, report: Report) -> None:
    """The whole content, to be sent; then the next write."""
    files: dict[str, Any] = {RIVAL: io.BytesIO(), "mempool": BytesStream()}
    for file in files.values():
        for _ in range(16 * KIB):
            file.write(bytes(PIECE))
    calls = {RIVAL: "getvalue", "mempool": "buffers"}
    for figure, code in (("snapshot of 64 MiB, then a write", SNAPSHOT), ("getvalue of 64 MiB", "s.getvalue()")):
        sides = [
            Side(name, code.format(call=calls[name]), {"s": file, "piece": bytes(PIECE)})
            for name, file in files.items()
        ]
        samples = compare(sides, rounds=plan.rounds(9), number=2, budget=2.0, label=NAME)
        report.rows.append(row(samples, figure, RIVAL, "mempool", plain=True))


def small_calls(plan: Plan, report: Report) -> None:
    """Calls that move a few bytes."""
    for figure, (statement, setup) in SMALL.items():
        sides = []
        for name, new in ((RIVAL, io.BytesIO), ("mempool", BytesStream)):
            there: dict[str, Any] = {"new": new, "line": b"0123456789\n"}
            exec(setup, there)
            del there["__builtins__"]
            sides.append(Side(name, statement, there))
        samples = compare(sides, rounds=plan.rounds(25), seconds=plan.slice(0.003), budget=1.0, label=NAME)
        report.rows.append(row(samples, figure, RIVAL, "mempool", plain=True))
