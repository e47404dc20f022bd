"""Real connections: TCP, TLS and Unix sockets, on each loop, to plain peers and to ourselves."""

import asyncio
import contextlib
import functools
import gc
import random
import socket
import struct
import warnings
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from aio_support import (
    KINDS,
    Line,
    closed,
    comes,
    connected,
    every_kind,
    every_loop,
    is_empty,
    run,
    serving,
    tls_contexts,
)
from mempool import BufferPool, PoolExhausted, aio
from support import MIB

pytestmark = [every_loop]


@every_kind
def test_frames_and_lines_there_and_back(loop: str, kind: str, tmp_path: Path) -> None:
    """Our client, our server; messages of all sizes, pipelined."""
    dice = random.Random(kind)
    frames = [dice.randbytes(size) for size in (0, 1, 1000, 65_536, 65_537, 300_000, 3 * MIB)]

    async def echo(reader: aio.PooledReader, writer: aio.PooledWriter) -> None:
        async for line in reader:
            frame = await reader.readexactly(int(line.tobytes()))
            writer.write(line)
            writer.write(frame)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main(pool: BufferPool) -> None:
        async with serving(kind, tmp_path, echo, own=True, pool=pool) as connect:
            reader, writer = await connect(aio, pool=pool)

            async def send() -> None:
                for frame in frames:
                    writer.writelines([b"%d\n" % len(frame), frame])
                    await writer.drain()

            sending = asyncio.create_task(send())
            for frame in frames:
                with await reader.readline() as line, await reader.readexactly(int(line.tobytes())) as back:
                    assert back == frame
            await sending
            writer.close()
            await writer.wait_closed()

    pool = BufferPool()
    run(loop, main(pool))
    is_empty(pool)


@every_kind
def test_a_pooled_frame_may_be_released_as_soon_as_it_is_written(loop: str, kind: str, tmp_path: Path) -> None:
    """What the loop keeps is a view: the memory is not lent again before it is sent."""
    rounds, size = 24, 300_000

    async def main(pool: BufferPool) -> None:
        async with connected(kind, tmp_path, pool=pool) as peers:
            for value in range(rounds):
                with pool.acquire(size) as frame:
                    frame.array()[:] = value
                    peers.writer.write(frame)
            with pool.acquire(size) as frame:
                frame.array()[:] = 255
                peers.writer.writelines([frame, b"end"])
            for value in [*range(rounds), 255]:
                assert await peers.peer_reader.readexactly(size) == bytes([value]) * size
            assert await peers.peer_reader.readexactly(3) == b"end"

    pool = BufferPool()
    run(loop, main(pool))
    is_empty(pool)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_half_close(loop: str, kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(kind, tmp_path) as peers:
            assert peers.writer.can_write_eof()
            peers.writer.write(b"question")
            peers.writer.write_eof()
            assert await peers.peer_reader.read() == b"question"
            peers.peer_writer.write(b"answer")
            assert await peers.reader.readexactly(6) == b"answer"
            peers.peer_writer.write_eof()
            assert await peers.reader.read() == b""
            assert peers.reader.at_eof()

    run(loop, main())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_peer_ends_and_we_still_write(loop: str, kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(kind, tmp_path) as peers:
            peers.peer_writer.write(b"that is all")
            peers.peer_writer.write_eof()
            assert await peers.reader.read() == b"that is all"
            peers.writer.write(b"not from here")
            await peers.writer.drain()
            assert await peers.peer_reader.readexactly(13) == b"not from here"

    run(loop, main())


@every_kind
def test_the_end_in_the_middle_of_a_message(loop: str, kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(kind, tmp_path) as peers:
            peers.peer_writer.write(b"half")
            peers.peer_writer.close()
            with pytest.raises(asyncio.IncompleteReadError) as caught:
                await peers.reader.readexactly(MIB)
            assert (caught.value.partial, caught.value.expected) == (b"half", MIB)
            assert len(await peers.reader.readline()) == 0

    run(loop, main())


def test_a_reset(loop: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with connected("tcp", tmp_path) as peers:
            waiting = asyncio.create_task(peers.reader.readexactly(MIB))
            raw = peers.peer_writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peers.peer_writer.transport.abort()
            with pytest.raises(ConnectionResetError):
                await waiting
            with pytest.raises(ConnectionResetError):
                await peers.writer.drain()

    run(loop, main())


async def pour(writer: asyncio.StreamWriter) -> None:
    """24 MiB, which no socket takes at once; in pieces, as TLS takes any one."""
    for _ in range(24):
        writer.write(bytes(MIB))
        await writer.drain()


@every_kind
def test_a_slow_reader_stops_the_sender(loop: str, kind: str, tmp_path: Path) -> None:
    total, limit = 24 * MIB, 4096

    async def main(pool: BufferPool) -> None:
        async with connected(kind, tmp_path, pool=pool, limit=limit) as peers:
            sent = asyncio.create_task(pour(peers.peer_writer))
            transport = peers.writer.transport
            await comes(lambda: not transport.is_reading())
            assert 2 * limit < len(peers.reader._inbox) <= 2 * limit + 256 * 1024
            for _ in range(20):
                await asyncio.sleep(0)
            assert not sent.done()
            assert len(peers.reader._inbox) <= 2 * limit + 256 * 1024
            seen = 0
            while seen < total:
                with await peers.reader.read(1000_000) as piece:
                    seen += len(piece)
            await sent
            assert transport.is_reading()

    run(loop, main(BufferPool(limit=2 * MIB)))


@every_kind
def test_a_slow_peer_makes_drain_wait(loop: str, kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(kind, tmp_path) as peers:
            sent = asyncio.create_task(pour(peers.writer))
            await comes(lambda: not peers.peer_writer.transport.is_reading() and peers.writer._protocol._drains)
            drains = [asyncio.create_task(peers.writer.drain()) for _ in range(3)]
            for _ in range(20):
                await asyncio.sleep(0)
            assert not sent.done()
            drains[0].cancel()
            assert len(await peers.peer_reader.readexactly(24 * MIB)) == 24 * MIB
            await asyncio.gather(sent, *drains[1:])
            assert drains[0].done()

    run(loop, main())


def test_drain_learns_of_a_lost_connection(loop: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with connected("tcp", tmp_path) as peers:
            peers.writer.write(bytes(24 * MIB))
            drain = asyncio.create_task(peers.writer.drain())
            await asyncio.sleep(0)
            peers.writer.transport.abort()
            await asyncio.wait([drain])
            with pytest.raises(ConnectionError):
                await peers.writer.drain()

    run(loop, main())


def test_many_clients(loop: str, tmp_path: Path) -> None:
    async def upper(reader: aio.PooledReader, writer: aio.PooledWriter) -> None:
        async for line in reader:
            writer.write(line.tobytes().upper())
            await writer.drain()
        writer.close()

    async def client(connect: Any, pool: BufferPool, number: int) -> None:
        reader, writer = await connect(aio, pool=pool)
        for turn in range(20):
            writer.write(b"client %d, line %d\n" % (number, turn))
            assert await reader.readline() == b"CLIENT %d, LINE %d\n" % (number, turn)
        writer.write_eof()
        assert len(await reader.read()) == 0
        writer.close()
        await writer.wait_closed()

    async def main(pool: BufferPool) -> None:
        async with serving("tcp", tmp_path, upper, own=True, pool=pool) as connect:
            await asyncio.gather(*(client(connect, pool, number) for number in range(60)))

    pool = BufferPool()
    run(loop, main(pool))
    is_empty(pool)


@every_kind
def test_start_tls_and_unread_bytes(loop: str, kind: str, tmp_path: Path) -> None:
    """Both ends of ours turn to TLS in the middle; what came before and was not read is refused."""
    if kind == "tls":
        pytest.skip("it is TLS already")
    server_context, client_context = tls_contexts(tmp_path)

    async def served(reader: aio.PooledReader, writer: aio.PooledWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.start_tls(server_context)
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    async def main() -> None:
        async with serving(kind, tmp_path, served, own=True) as connect:
            reader, writer = await connect(aio)
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"go\n"
            await writer.start_tls(client_context, server_hostname="localhost")
            assert writer.get_extra_info("ssl_object") is not None
            writer.write(b"secret\n")
            assert await reader.readline() == b"secret\n"
            await closed(writer)
        line = Line()
        line.arrive(b"injected")
        with pytest.raises(RuntimeError, match="8 bytes"):
            await aio.PooledWriter(line.transport, line.protocol, line.reader, line.protocol.loop).start_tls(
                client_context
            )

    run(loop, main())


def test_start_tls_refuses_what_comes_while_it_waits_to_begin(loop: str, tmp_path: Path) -> None:
    """The peer sends in clear while what was written before is on its way: read later it would pass for TLS."""
    server_context, client_context = tls_contexts(tmp_path)

    async def main() -> None:
        refused = asyncio.get_running_loop().create_future()

        async def served(reader: aio.PooledReader, writer: aio.PooledWriter) -> None:
            writer.write(bytes(24 * MIB))  # more than any socket takes, so that start_tls() has to wait
            try:
                await writer.start_tls(server_context)
            except RuntimeError as error:
                refused.set_result(str(error))
            else:
                refused.set_result(await reader.readline())
            writer.close()

        async with serving("tcp", tmp_path, served, own=True) as connect:
            reader, writer = await connect(asyncio)
            writer.write(b"INJECTED IN CLEAR\n")
            await reader.readexactly(24 * MIB)
            with contextlib.suppress(OSError, RuntimeError):  # the server hangs up
                await writer.start_tls(client_context, server_hostname="localhost")
            assert "18 bytes" in await refused
            await closed(writer)
        line = Line()
        waiting = asyncio.create_task(line.reader.readinto(bytearray(MIB)))
        await asyncio.sleep(0)
        line.arrive(b"injected")
        with pytest.raises(RuntimeError, match="8 bytes"):
            line.protocol.check_nothing_waits()
        assert await waiting == 8

    run(loop, main())


# ---- what a server does with its callback ----


def test_a_failing_callback_is_reported_and_closed(loop: str, tmp_path: Path) -> None:
    async def served(reader: aio.PooledReader, writer: aio.PooledWriter) -> None:
        raise LookupError("on purpose")

    async def main() -> None:
        async with serving("tcp", tmp_path, served, own=True) as connect:
            reader, writer = await connect(aio)
            assert len(await reader.read()) == 0
            writer.close()
            await writer.wait_closed()

    told: list[dict[str, Any]] = []
    run(loop, main(), complaints=told)
    assert [(context["message"], repr(context["exception"])) for context in told] == [
        ("Unhandled exception in client_connected_cb", "LookupError('on purpose')")
    ]


def test_a_cancelled_callback_closes(loop: str, tmp_path: Path) -> None:
    async def served(reader: aio.PooledReader, writer: aio.PooledWriter) -> None:
        raise asyncio.CancelledError

    async def main() -> None:
        async with serving("tcp", tmp_path, served, own=True) as connect:
            reader, writer = await connect(aio)
            assert len(await reader.read()) == 0
            writer.close()
            await writer.wait_closed()

    run(loop, main())


def test_a_plain_callback(loop: str, tmp_path: Path) -> None:
    kept: list[Any] = []

    def served(reader: aio.PooledReader, writer: aio.PooledWriter) -> None:
        kept.append((reader, writer))
        writer.write(b"hello\n")

    async def main() -> None:
        async with serving("tcp", tmp_path, served, own=True) as connect:
            reader, writer = await connect(aio)
            assert await reader.readline() == b"hello\n"
            writer.close()
            assert await kept[0][0].read() == b""
            kept[0][1].close()
            await kept[0][1].wait_closed()
            await writer.wait_closed()

    run(loop, main())


class Compiled(Coroutine[Any, Any, None]):
    """A coroutine as compiled functions return it: of no type of Python's own."""

    def __init__(self, inner: Coroutine[Any, Any, None]) -> None:
        self.send, self.throw, self.close = inner.send, inner.throw, inner.close  # type: ignore[method-assign]

    def send(self, value: Any) -> Any: ...

    def throw(self, *error: Any) -> Any: ...

    def __await__(self) -> Any:
        raise AssertionError("a task runs it")


def test_a_compiled_callback_runs_as_a_task(loop: str, tmp_path: Path) -> None:
    async def served(reader: aio.PooledReader, writer: aio.PooledWriter) -> None:
        writer.write(b"hello\n")
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        async with serving("tcp", tmp_path, lambda *halves: Compiled(served(*halves)), own=True) as connect:
            reader, writer = await connect(aio)
            assert await reader.readline() == b"hello\n"
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    run(loop, main())


def test_bad_arguments(loop: str) -> None:
    async def main() -> None:
        def served(reader: Any, writer: Any) -> None:
            raise AssertionError

        for options, kind in (
            ({"limit": 0}, ValueError),
            ({"limit": 1.5}, TypeError),
            ({"limit": None}, TypeError),
            ({"max_message": -1}, ValueError),
            ({"max_message": True}, TypeError),
            ({"pool": "big"}, TypeError),
        ):
            with pytest.raises(kind):
                await aio.start_server(served, "127.0.0.1", 0, **options)  # type: ignore[arg-type]
            with pytest.raises(kind):
                await aio.open_connection("127.0.0.1", 1, **options)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="callable"):
            await aio.start_server(None, "127.0.0.1", 0)  # type: ignore[arg-type]

    run(loop, main())


def test_refused_connections_leave_nothing(loop: str) -> None:
    async def main(pool: BufferPool) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            with pytest.raises(OSError, match=r"refused|onnect"):
                await aio.open_connection("127.0.0.1", taken.getsockname()[1], pool=pool)
        assert pool.stats().acquires == 0

    run(loop, main(BufferPool()))


def test_dropped_halves_close_the_connection(loop: str, tmp_path: Path) -> None:
    """As with asyncio: the writer warns, where it warns there, and nothing is left of the connection."""

    async def main(pool: BufferPool) -> None:
        arrived = asyncio.get_running_loop().create_future()
        async with serving("tcp", tmp_path, lambda *halves: arrived.set_result(halves), own=False) as connect:
            reader, writer = await connect(aio, pool=pool)
            peer_reader, peer_writer = await arrived
            peer_writer.write(b"unread")
            await comes(functools.partial(len, reader._inbox))
            del reader
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # from 3.12 on
                del writer
                gc.collect()
                with contextlib.suppress(ConnectionResetError):  # it had not read all
                    assert await peer_reader.read() == b""
            peer_writer.close()

    pool = BufferPool()
    run(loop, main(pool))
    is_empty(pool)


def test_exhaustion_of_the_pool_over_tls(loop: str, tmp_path: Path) -> None:
    """A pool without room for one block still carries a connection, as far as what is read fits."""

    async def main(pool: BufferPool) -> None:
        for kind in KINDS:
            async with connected(kind, tmp_path, pool=pool) as peers:
                peers.peer_writer.write(b"line\n" * 20_000 + bytes(MIB) + b"last\n")
                for _ in range(20_000):
                    assert await peers.reader.readline() == b"line\n"
                with pytest.raises(PoolExhausted):
                    await peers.reader.readexactly(MIB)
                memory = bytearray(MIB)
                at = 0
                while at < MIB:
                    at += await peers.reader.readinto(memoryview(memory)[at:])
                assert memory == bytes(MIB)
                assert await peers.reader.readline() == b"last\n"

    run(loop, main(BufferPool(limit="16KiB")))
