"""Lines of some 64 bytes from a socket: a ring buffer against the readers of asyncio and of the io module."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mempool
from benchmarks.harness import KIB, Plan, Report, Row, Samples, Side, compare, row

NAME = "ring"
STREAM_READER = "asyncio StreamReader.readline"
MAKEFILE = "socket.makefile().readline"
BYTEARRAY = "bytearray, find and del"
ONE_VIEW = "mempool, a view for many lines"
UNDER_ASYNCIO = "mempool, asyncio BufferedProtocol"
SERVER = """\
import socket, sys
payload = sys.stdin.buffer.read()
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        peer, _ = server.accept()
        with peer:
            if peer.recv(1) == b"q":
                break
            peer.sendall(payload)
"""


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "Bytes on their way through")
    lines(plan, report)
    arenas(plan, report)
    calls(plan, report)
    return report


# ---- lines from a socket


def make_payload(count: int) -> bytes:
    """Lines of 32 to 96 bytes."""
    dice = random.Random(64)
    return b"".join(dice.randbytes(dice.randint(31, 95)).replace(b"\n", b"-") + b"\n" for _ in range(count))


@contextmanager
def serving(payload: bytes) -> Iterator[int]:
    """Another process that sends the payload to whoever connects to the port, and asks for it."""
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None
    assert server.stdout is not None
    with server:
        server.stdin.write(payload)
        server.stdin.close()
        port = int(server.stdout.readline())
        yield port
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(b"q")


class Readers:
    """Ways to read all lines. Each looks at every line: `take` gets it without its end."""

    def __init__(self, port: int) -> None:
        self.address = ("127.0.0.1", port)
        self.ring = mempool.RingBuffer(256 * KIB)
        self.loop = asyncio.new_event_loop()

    def connect(self) -> socket.socket:
        """Ask for the payload."""
        peer = socket.create_connection(self.address)
        peer.sendall(b"?")
        return peer

    def by_ring(self, take: Callable[[Any], object]) -> None:
        """Read with a ring buffer and a blocking socket."""
        ring = self.ring
        find, readable, consume = ring.find, ring.readable, ring.consume
        with self.connect() as peer:
            while n := peer.recv_into(ring.writable()):
                ring.commit(n)
                while (end := find(b"\n")) >= 0:
                    take(readable()[:end])
                    consume(end + 1)

    def by_one_view(self, take: Callable[[Any], object]) -> None:
        """Look once at all that came, and consume it together."""
        ring = self.ring
        find = ring.find
        with self.connect() as peer:
            while n := peer.recv_into(ring.writable()):
                ring.commit(n)
                view, start = ring.readable(), 0
                while (end := find(b"\n", start)) >= 0:
                    take(view[start:end])
                    start = end + 1
                ring.consume(start)

    def by_bytearray(self, take: Callable[[Any], object]) -> None:
        """Read with what one would write by hand."""
        kept = bytearray()
        with self.connect() as peer:
            while data := peer.recv(256 * KIB):
                kept += data
                while (end := kept.find(b"\n")) >= 0:
                    take(kept[:end])
                    del kept[: end + 1]

    def by_makefile(self, take: Callable[[Any], object]) -> None:
        """Read with a buffered file, which is C throughout."""
        with self.connect() as peer, peer.makefile("rb", buffering=256 * KIB) as file:
            while line := file.readline():
                take(line[:-1])

    def by_stream_reader(self, take: Callable[[Any], object]) -> None:
        """Read with asyncio's streams."""

        async def read() -> None:
            reader, writer = await asyncio.open_connection(sock=self.connect(), limit=256 * KIB)
            while line := await reader.readline():
                take(line[:-1])
            writer.close()

        self.loop.run_until_complete(read())

    def by_protocol(self, take: Callable[[Any], object]) -> None:
        """Read with a ring buffer under asyncio."""
        ring = self.ring

        class Lines(asyncio.BufferedProtocol):
            ended: asyncio.Future[None]

            def get_buffer(self, sizehint: int) -> memoryview:
                return ring.writable()

            def buffer_updated(self, nbytes: int) -> None:
                ring.commit(nbytes)
                while (end := ring.find(b"\n")) >= 0:
                    take(ring.readable()[:end])
                    ring.consume(end + 1)

            def connection_lost(self, error: Exception | None) -> None:
                self.ended.set_result(None)

        async def read() -> None:
            protocol = Lines()
            protocol.ended = self.loop.create_future()
            await self.loop.create_connection(lambda: protocol, sock=self.connect())
            await protocol.ended

        self.loop.run_until_complete(read())

    def all(self) -> dict[str, Callable[[Callable[[Any], object]], None]]:
        """Return the ways by name."""
        return {
            "mempool": self.by_ring,
            STREAM_READER: self.by_stream_reader,
            UNDER_ASYNCIO: self.by_protocol,
            ONE_VIEW: self.by_one_view,
            MAKEFILE: self.by_makefile,
            BYTEARRAY: self.by_bytearray,
        }


def check(ways: dict[str, Callable[[Callable[[Any], object]], None]], payload: bytes) -> None:
    """Every way gives every line as it was sent."""
    expected = payload.split(b"\n")[:-1]
    got: list[bytes] = []
    for name, way in ways.items():
        got.clear()
        way(lambda line: got.append(bytes(line)))
        if got != expected:
            raise AssertionError(f"{name} gave {len(got)} lines, or other ones")


def lines(plan: Plan, report: Report) -> None:
    """Read and split them all, from another process over loopback."""
    payload = make_payload(10_000 if plan.quick else 30_000)
    count = payload.count(b"\n")
    with serving(payload) as port:
        readers = Readers(port)
        ways = readers.all()
        check(ways, payload)
        sides = [Side(name, "way(len)", {"way": way, "len": len}) for name, way in ways.items()]
        samples = per_item(compare(sides, rounds=plan.rounds(21), number=1, budget=8, label=NAME), count)
        readers.loop.close()
    figure = "a line of 64 bytes from a socket"
    report.rows.append(row(samples, figure, STREAM_READER, "mempool", must=2.0, aim=4.0))
    report.rows.append(row(samples, figure, BYTEARRAY, "mempool", plain=True))
    report.rows.append(row(samples, figure, MAKEFILE, "mempool", plain=True))
    for rival in (BYTEARRAY, MAKEFILE):
        report.rows.append(row(samples, f"{figure}, one view for many", rival, ONE_VIEW, plain=True))
    report.rows.append(row(samples, f"{figure}, in asyncio", STREAM_READER, UNDER_ASYNCIO, must=2.0, aim=4.0))


def per_item(samples: Samples, count: int) -> Samples:
    """Seconds of one item where `count` were measured."""
    each = Samples(list(samples.seconds))
    each.seconds = {name: [value / count for value in values] for name, values in samples.seconds.items()}
    return each


# ---- an arena


ALLOCATIONS = {
    "bytearray": "kept = [bytearray(n) for n in sizes]\ndel kept",
    "mempool": "with arena.scope():\n    kept = [alloc(n) for n in sizes]\n    del kept",
    "BufferPool": "kept = [acquire(n) for n in sizes]\ndel kept",
    "memoryview(bytearray)": "kept = [view(data) for n in sizes]\ndel kept",
}


def arenas(plan: Plan, report: Report) -> None:
    """A hundred pieces that end together."""
    dice = random.Random(100)
    sizes = [dice.randint(1000, 20_000) for _ in range(100)]
    with mempool.BufferPool(name="benchmark-arena") as pool, mempool.Arena("4MiB", pool=pool) as arena:
        names = {"arena": arena, "alloc": arena.alloc, "acquire": pool.acquire, "sizes": sizes, "bytearray": bytearray}
        names |= {"view": memoryview, "data": bytearray(64)}
        with arena.scope():
            pieces = [arena.alloc(n) for n in sizes]
            for mark, piece in enumerate(pieces):
                piece[:] = bytes([mark]) * len(piece)
            if any(bytes(piece) != bytes([mark]) * len(piece) for mark, piece in enumerate(pieces)):
                raise AssertionError("pieces overlap")
            del pieces, piece
        sides = [Side(name, code, names) for name, code in ALLOCATIONS.items()]
        samples = per_item(compare(sides, rounds=plan.rounds(31), label="arena"), len(sizes))
    figure = "one of 100 pieces of 1-20 KB"
    cost = row(samples, figure, "memoryview(bytearray)", "mempool", sense="cost", plain=True, must=2.0, aim=1.5)
    report.rows.append(cost)
    report.rows.append(row(samples, figure, "bytearray", "mempool", plain=True))
    report.rows.append(row(samples, figure, "BufferPool", "mempool"))


# ---- what a call costs


def calls(plan: Plan, report: Report) -> None:
    """The calls of a ring that are made once a message."""
    ring = mempool.RingBuffer(64 * KIB)
    ring.write(b"x" * 63 + b"\n")
    names: dict[str, Any] = {
        "commit": ring.commit,
        "consume": ring.consume,
        "find": ring.find,
        "readable": ring.readable,
    }
    names |= {"view": memoryview, "data": bytearray(64), "writable": ring.writable}
    sides = [
        Side("commit and consume", "commit(64)\nconsume(64)", names),
        Side("find", 'find(b"\\n")', names),
        Side("memoryview(bytearray)", "view(data)", names),
        Side("readable()", "readable()", names),
        Side("writable()", "writable()", names),
    ]
    samples = compare(sides, rounds=plan.rounds(31), label="calls of a ring")
    for name, most in (("commit and consume", 120e-9), ("find", 60e-9)):
        own = samples.typical(name)
        report.rows.append(Row(f"ring: {name}", "", own_value=own, sense="below", must=most))
    for name in ("readable()", "writable()"):
        figure = f"ring: {name}"
        report.rows.append(
            row(samples, figure, "memoryview(bytearray)", name, sense="cost", plain=True, must=1.5, aim=1.0)
        )
