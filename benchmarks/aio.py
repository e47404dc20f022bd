"""Receiving from a peer in another process: frames and lines, against asyncio's streams and a bare socket.

The sender is the same for all: a blocking socket in a process of its own, which sends as fast as it can. What differs is who
receives. On the wire's side of it stand two copies of the kernel; a bare `recv_into` into one buffer shows what they leave, and one
that has the kernel throw the bytes away how fast the sender is.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import multiprocessing
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.harness import KIB, MIB, Plan, Report, Row, Samples, progress, shuffled
from mempool import aio

NAME = "aio"
LINE = 64
PREFIX = struct.Struct("<I")
ASYNCIO, UVLOOP, BARE = "asyncio streams", "uvloop + asyncio streams", "bare socket, recv_into"
NOBODY = "bare socket, bytes thrown away"


class Work(NamedTuple):
    """What is sent: `messages` of `size` bytes."""

    figure: str
    size: int
    messages: int
    lines: bool


def send_for_ever(port: Any, work: Work) -> None:
    """Send the work to each who connects."""
    block, times = block_of(work)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port.send(server.getsockname()[1])
        while True:
            peer, _ = server.accept()
            with peer:
                for _ in range(times):
                    peer.sendall(block)


def block_of(work: Work) -> tuple[bytes, int]:
    """What is sent at once, and how often."""
    if not work.lines:
        return PREFIX.pack(work.size) + bytes(range(256)) * (work.size // 256), work.messages
    together = MIB // work.size
    return (b"x" * (work.size - 1) + b"\n") * together, work.messages // together


async def receive_frames(reader: Any, work: Work) -> int:
    """Length, payload, until the end."""
    count = 0
    try:
        while True:
            prefix = await reader.readexactly(PREFIX.size)
            frame = await reader.readexactly(PREFIX.unpack(prefix)[0])
            if len(frame) != work.size or frame[-1] != 255:
                raise SystemExit("a frame arrived changed")
            count += 1
    except asyncio.IncompleteReadError:
        return count


async def receive_lines(reader: Any, work: Work) -> int:
    """Line by line, until the end."""
    count = 0
    while line := await reader.readline():
        if len(line) != work.size:
            raise SystemExit("a line arrived changed")
        count += 1
    return count


class Taken(NamedTuple):
    """Seconds per message: on the clock, and of this process on its core."""

    elapsed: float
    busy: float


def receive_bare(flags: int, port: int, work: Work) -> Taken:
    """Into one buffer, again and again: nothing is kept and nothing told apart."""
    memory = memoryview(bytearray(256 * KIB))
    with socket.create_connection(("127.0.0.1", port)) as peer:
        start, busy = time.perf_counter(), time.process_time()
        while peer.recv_into(memory, 0, flags):
            pass
        return per_message(start, busy, work)


def receive_streams(connect: Callable[..., Any], factory: Any, port: int, work: Work) -> Taken:
    """With a reader of asyncio's kind, on a loop of the factory."""

    async def main() -> Taken:
        reader, writer = await connect("127.0.0.1", port)
        start, busy = time.perf_counter(), time.process_time()
        count = await (receive_lines if work.lines else receive_frames)(reader, work)
        taken = per_message(start, busy, work)
        if count != work.messages:
            raise SystemExit(f"{count} of {work.messages} messages arrived")
        writer.close()
        await writer.wait_closed()
        return taken

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


def per_message(start: float, busy: float, work: Work) -> Taken:
    """Since then, divided."""
    return Taken((time.perf_counter() - start) / work.messages, (time.process_time() - busy) / work.messages)


def receivers() -> dict[str, Callable[[int, Work], Taken]]:
    """By name; the pooled ones begin with "mempool"."""
    loops: dict[str, tuple[Any, str]] = {ASYNCIO: (None, "mempool")}
    if importlib.util.find_spec("uvloop") is not None:
        loops[UVLOOP] = (importlib.import_module("uvloop").new_event_loop, "mempool, uvloop")
    found: dict[str, Callable[[int, Work], Taken]] = {
        BARE: functools.partial(receive_bare, 0),
        NOBODY: functools.partial(receive_bare, socket.MSG_TRUNC),
    }
    for plain, (factory, pooled) in loops.items():
        found[plain] = functools.partial(receive_streams, asyncio.open_connection, factory)
        found[pooled] = functools.partial(receive_streams, aio.open_connection, factory)
    return found


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "Receiving from a peer over loopback")
    part = 8 if plan.quick else 1
    measure(plan, report, Work("receive frames of 1 MiB", MIB, 256 // part, False), must=2.0)
    measure(plan, report, Work("receive frames of 64 KiB", 64 * KIB, 4096 // part, False))
    measure(plan, report, Work("receive lines of 64 bytes", LINE, (1 << 18) // part, True), must=1.0)
    report.notes.append(
        "rows \"on its core\" count the receiver's CPU time only: on the clock a fast receiver waits for the sender's kernel,"
        " as the row shows in which all bytes are thrown away: nobody can receive faster than that"
    )
    return report


def measure(plan: Plan, report: Report, work: Work, must: float | None = None) -> None:
    """All receivers in turn, from one sender."""
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    sender = context.Process(target=send_for_ever, args=(there, work), daemon=True)
    sender.start()
    try:
        port = here.recv()
        elapsed, busy = rounds_of(plan.rounds(7), port, work)
    finally:
        sender.terminate()
        sender.join()
    for clock, suffix in ((elapsed, ""), (busy, ", on its core")):
        add_rows(report, clock, work, suffix, None if suffix else must)


def rounds_of(rounds: int, port: int, work: Work) -> tuple[Samples, Samples]:
    """Times on the clock and on the core, of each receiver in each round."""
    ways = receivers()
    elapsed, busy = Samples(list(ways)), Samples(list(ways))
    for turn in range(rounds):
        progress(f"{work.figure}: round {turn + 1} of {rounds}")
        for name in shuffled(list(ways), turn):
            taken = ways[name](port, work)
            elapsed.seconds[name].append(taken.elapsed)
            busy.seconds[name].append(taken.busy)
    return elapsed, busy


def add_rows(report: Report, samples: Samples, work: Work, suffix: str, must: float | None) -> None:
    """Asyncio on both loops; the bare sockets on the clock, as a ceiling."""
    rivals = [(ASYNCIO, "mempool"), (UVLOOP, "mempool, uvloop")]
    if not suffix and not work.lines:
        rivals += [(BARE, "mempool"), (NOBODY, "mempool")]
    for rival, own in rivals:
        if rival not in samples.seconds:
            report.rows.append(Row(work.figure + suffix, rival, note="uvloop is not installed"))
            continue
        report.rows.append(
            Row(
                work.figure + suffix,
                rival,
                rival == ASYNCIO,
                samples.typical(rival),
                samples.typical(own),
                ratio=samples.ratio(rival, own),
                must=must if rival == ASYNCIO else None,
            )
        )
