"""What the tests of `mempool.aio` share: loops, connections of each kind to a plain peer, and arrivals made by hand."""

import asyncio
import contextlib
import functools
import gc
import inspect
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mempool import BufferPool, aio
from mempool.aio.protocol import PooledProtocol
from support import until

# A connection that gets stuck fails its test soon.
DEADLINE = 60.0

LOOPS = ("asyncio", "uvloop")
KINDS = ("tcp", "tls", "unix")

every_loop = pytest.mark.parametrize("loop", LOOPS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def run(loop: str, main: Coroutine[Any, Any, Any], *, complaints: list[dict[str, Any]] | None = None) -> Any:
    """Run to the end on a loop of this kind; what its exception handler is told goes to `complaints`, or fails the test."""
    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None
    told: list[dict[str, Any]] = [] if complaints is None else complaints

    async def bounded() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        return await asyncio.wait_for(main, DEADLINE)

    with asyncio.Runner(loop_factory=factory) as runner:
        result = runner.run(bounded())
    assert complaints is not None or told == []
    return result


async def comes(condition: Callable[[], object]) -> None:
    """Let the loop run until something has happened."""
    end = asyncio.get_running_loop().time() + DEADLINE
    while not condition():
        assert asyncio.get_running_loop().time() < end, "it never happened"
        await asyncio.sleep(0)


def is_empty(pool: BufferPool) -> None:
    """Nothing of the pool is lent any more, nor viewed."""
    gc.collect()
    until(lambda: pool.stats().live == 0, "the end of every lease")
    stats = pool.stats()
    assert (stats.live, stats.in_use, stats.retired) == (0, 0, 0)


# ---- arrivals made by hand ----


class Transport(asyncio.Transport):
    """Counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = False
        self.pauses = 0

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True
        self.pauses += 1

    def is_closing(self) -> bool:
        return True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False


class Line:
    """A connection of which the test is the event loop's side."""

    def __init__(self, pool: BufferPool | None = None, limit: int = 1 << 16, max_message: int | None = None) -> None:
        self.pool = pool or BufferPool(name="line")
        self.protocol = PooledProtocol(asyncio.get_running_loop(), self.pool, limit, max_message)
        self.transport = Transport()
        self.protocol.connection_made(self.transport)
        self.reader = aio.PooledReader(self.protocol)

    def arrive(self, data: bytes) -> None:
        """As a loop does it, in as many steps as the memory given for it makes necessary."""
        while data:
            room = self.protocol.get_buffer(-1)
            assert len(room) > 0
            size = min(len(data), len(room))
            room[:size] = data[:size]
            self.protocol.buffer_updated(size)
            data = data[size:]

    def end(self) -> None:
        self.protocol.eof_received()

    async def arrive_slowly(self, chunks: list[bytes]) -> None:
        """With time for a reader in between; then the end."""
        for chunk in chunks:
            self.arrive(chunk)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        self.end()


# ---- real peers ----


@functools.cache
def tls_contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a server and its client; the certificate is made here."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return server, ssl.create_default_context(cafile=str(folder / "cert.pem"))


class Peers(NamedTuple):
    reader: aio.PooledReader
    writer: aio.PooledWriter
    peer_reader: asyncio.StreamReader
    peer_writer: asyncio.StreamWriter


Served = Callable[[Any, Any], Any]


@asynccontextmanager
async def serving(kind: str, folder: Path, served: Served, *, own: bool, **options: Any) -> AsyncIterator[Served]:
    """A server of this kind, of ours or asyncio's; gives what connects to it: `connect(module, **options)`.

    It ends when the connections of a coroutine function are closed: a transport that is still open as its loop is closed complains
    when it is collected, in some other test.
    """
    module: Any = aio if own else asyncio
    writers: list[asyncio.StreamWriter] = []

    async def noted(reader: Any, writer: Any) -> None:
        writers.append(writer)
        await served(reader, writer)

    callback = noted if inspect.iscoroutinefunction(served) else served
    if kind == "unix":
        if not hasattr(asyncio, "open_unix_connection"):
            pytest.skip("no Unix sockets here")
        path = os.path.relpath(folder / "socket")  # the address of a socket is short
        server = await module.start_unix_server(callback, path, **options)
        connect = lambda side, **more: side.open_unix_connection(path, **more)  # noqa: E731
    else:
        contexts = tls_contexts(folder) if kind == "tls" else None
        tls = {"ssl": contexts[0]} if contexts else {}
        server = await module.start_server(callback, "127.0.0.1", 0, **tls, **options)
        port = server.sockets[0].getsockname()[1]
        tls = {"ssl": contexts[1], "server_hostname": "localhost"} if contexts else {}
        connect = lambda side, **more: side.open_connection("127.0.0.1", port, **tls, **more)  # noqa: E731
    try:
        yield connect
        for writer in writers:
            await ended(writer)
    finally:
        server.close()


@asynccontextmanager
async def connected(kind: str, folder: Path, **options: Any) -> AsyncIterator[Peers]:
    """A client of ours and a plain peer."""
    arrived: asyncio.Future[tuple[Any, Any]] = asyncio.get_running_loop().create_future()

    def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set_result((reader, writer))

    async with serving(kind, folder, served, own=False) as connect:
        reader, writer = await connect(aio, **options)
        peer_reader, peer_writer = await arrived
        try:
            yield Peers(reader, writer, peer_reader, peer_writer)
        finally:
            await closed(peer_writer, writer)


async def closed(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.close()
    for writer in writers:
        await ended(writer)


async def ended(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, ssl.SSLError):  # the tests break connections on purpose
        await writer.wait_closed()


def cancelled_reads(reader: aio.PooledReader) -> list[Callable[[], Awaitable[Any]]]:
    """One of every way to wait for more than there is."""
    return [
        lambda: reader.readexactly(1 << 20),
        lambda: reader.readexactly(1000),
        lambda: reader.readuntil(b"never"),
        lambda: reader.readuntil((b"never", b"neither")),
        lambda: reader.readline(),
        lambda: reader.read(),
        lambda: reader.__anext__(),
    ]
