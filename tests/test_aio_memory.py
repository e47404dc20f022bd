"""What memory a connection holds, when, and who may see it: cancellation, exhaustion, idle connections, leases handed over."""

import asyncio
import contextlib
import gc
import pickle
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from aio_support import Line, cancelled_reads, comes, connected, every_kind, every_loop, is_empty, run
from mempool import Account, AccountLimitExceeded, Buffer, BufferPool, PoolExhausted
from mempool.aio import PooledReader
from support import KIB, MIB


@pytest.fixture
def pool() -> Iterator[BufferPool]:
    """Must be empty when the test is over."""
    pool = BufferPool()
    yield pool
    is_empty(pool)


# ---- cancellation ----


@pytest.mark.parametrize("way", range(7))
@pytest.mark.parametrize("arrived", [0, 1, 999, 70_000])
def test_a_cancelled_read_takes_nothing(pool: BufferPool, way: int, arrived: int) -> None:
    """Cancelled while nothing, something, and (in the moment of waking) everything has come."""
    content = bytes(range(255)) * 5000

    async def main() -> None:
        for before in (True, False):
            line = Line(pool, limit=2 * MIB)
            line.arrive(content[:arrived].replace(b"\n", b"."))
            reading = asyncio.create_task(cancelled_reads(line.reader)[way]())
            await asyncio.sleep(0)
            if reading.done():
                assert len(await reading) == 1000
                continue
            if not before:
                line.arrive(b"never\n" + bytes(MIB))  # it is woken, and cancelled before it runs
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            got = (await line.reader.readexactly(arrived)).tobytes()
            assert got == content[:arrived].replace(b"\n", b".")
            assert len(line.protocol) == (0 if before else MIB + 6)

    run("asyncio", main())


@pytest.mark.parametrize("into", [10, 100_000])
def test_a_cancelled_readinto_gives_back_what_it_had(pool: BufferPool, into: int) -> None:
    async def main() -> None:
        for size in (5, 200_000):
            line = Line(pool)
            content = bytes(range(200)) * (size // 200) or b"short"
            memory = bytearray(into)
            reading = asyncio.create_task(line.reader.readinto(memory))
            await asyncio.sleep(0)
            line.arrive(content)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            memory.append(1)  # nothing views it any more
            line.end()
            assert (await line.reader.read()).tobytes() == content

    run("asyncio", main())


async def send(writer: asyncio.StreamWriter, content: bytes) -> None:
    for at in range(0, len(content), 7001):
        writer.write(content[at : at + 7001])
        await writer.drain()
    writer.close()


@every_loop
@every_kind
def test_timeouts_lose_no_byte(loop: str, kind: str, tmp_path: Path) -> None:
    """A reader that gives up again and again, against a real peer."""
    content = b"".join(b"%d," % number for number in range(120_000))

    async def main(pool: BufferPool) -> None:
        async with connected(kind, tmp_path, pool=pool) as peers:
            reader = peers.reader

            sending = asyncio.create_task(send(peers.peer_writer, content))
            seen = bytearray()
            memory = bytearray(100_000)
            turn = 0
            while len(seen) < len(content):
                turn += 1
                reading = asyncio.create_task(
                    reader.readinto(memory) if turn % 2 else reader.readexactly(3000 * (turn % 50))
                )
                for _ in range(turn % 4):
                    await asyncio.sleep(0)
                reading.cancel()
                try:
                    got: Any = await reading
                except asyncio.CancelledError:
                    continue
                except asyncio.IncompleteReadError as error:
                    got = error.partial
                seen += memory[:got] if isinstance(got, int) else bytes(got)
            assert seen == content
            await sending

    pool = BufferPool()
    run(loop, main(pool))
    is_empty(pool)


# ---- idle connections ----


@every_loop
@every_kind
def test_an_idle_connection_holds_no_block(loop: str, kind: str, tmp_path: Path) -> None:
    async def main(pool: BufferPool) -> None:
        async with connected(kind, tmp_path, pool=pool) as peers:
            for read in [lambda: peers.reader.readline(), lambda: peers.reader.readexactly(MIB)]:
                waiting = asyncio.create_task(read())
                for _ in range(10):
                    await asyncio.sleep(0)
                assert pool.stats().live == 0
                peers.peer_writer.write(bytes(MIB - 1) + b"\n" if read is not None and waiting.done() else b"x" * 10)
                await comes(lambda: len(peers.reader._inbox))
                assert pool.stats().live == 1
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                with await peers.reader.read(10) as ten:
                    assert ten == b"x" * 10
                del ten
                await comes(lambda: pool.stats().live == 0)

    run(loop, main(BufferPool()))


def test_receiving_nothing_gives_the_block_back(pool: BufferPool) -> None:
    """Sockets that only seemed ready, TLS records without data."""

    async def main() -> None:
        line = Line(pool)
        for _ in range(3):
            assert len(line.protocol.get_buffer(-1)) > 0
            assert pool.stats().live == 1
            await asyncio.sleep(0)
            assert pool.stats().live == 0

    run("asyncio", main())


# ---- handed over ----


def test_a_long_message_stays_where_it_was_received(pool: BufferPool) -> None:
    async def main() -> None:
        line = Line(pool)
        line.arrive(b"head")
        waiting = asyncio.create_task(line.reader.readexactly(MIB))
        await asyncio.sleep(0)
        line.arrive(b"x" * 100)
        with memoryview(line.protocol.get_buffer(-1)) as room:
            assert len(room) == MIB - 104
            room[:] = b"y" * len(room)
            line.protocol.buffer_updated(len(room))
        del room
        buffer = await waiting
        assert buffer == b"head" + b"x" * 100 + b"y" * (MIB - 104)
        assert pool.stats().live == 1
        assert (buffer.nbytes, pool.stats().acquires) == (MIB, 2)  # the block of the head, and its own
        assert line.transport.paused is False

    run("asyncio", main())


@pytest.mark.parametrize("size", [1000, 64 * KIB, MIB])
def test_a_loop_that_keeps_its_view_never_writes_into_a_lease(pool: BufferPool, size: int) -> None:
    async def main() -> None:
        line = Line(pool)
        waiting = asyncio.create_task(line.reader.readexactly(size))
        await asyncio.sleep(0)
        kept = []
        left = size
        while left:
            room = line.protocol.get_buffer(-1)
            kept.append(room)
            step = min(left, len(room))
            room[:step] = b"a" * step
            line.protocol.buffer_updated(step)
            left -= step
        buffer = await waiting
        for room in kept:
            room[:] = b"z" * len(room)
        assert buffer == b"a" * size
        kept.clear()

    run("asyncio", main())


def test_more_than_there_was_room_for(pool: BufferPool) -> None:
    async def main() -> None:
        line = Line(pool)
        room = len(line.protocol.get_buffer(-1))
        with pytest.raises(RuntimeError):
            line.protocol.buffer_updated(room + 1)
        assert len(line.protocol) == 0

    run("asyncio", main())


def test_a_buffer_released_while_it_is_read_into(pool: BufferPool) -> None:
    async def main() -> None:
        line = Line(pool)
        buffer = pool.acquire(100 * KIB)
        waiting = asyncio.create_task(line.reader.readinto(buffer))
        await asyncio.sleep(0)
        buffer.release()
        other = pool.acquire(100 * KIB, zero=True)
        line.arrive(b"late")
        assert await waiting == 4
        assert other == bytes(100 * KIB)

    run("asyncio", main())


# ---- no memory ----


def pool_waits(pool: BufferPool) -> Callable[[], object]:
    return lambda: pool.stats().waits


def test_reads_wait_for_memory_and_lose_nothing() -> None:
    async def main() -> None:
        for read, expected in (
            (lambda reader: reader.readline(), b"first\n"),
            (lambda reader: reader.__anext__(), b"first\n"),
            (lambda reader: reader.readexactly(8), b"first\nse"),
            (lambda reader: reader.read(7), b"first\ns"),
            (lambda reader: reader.readuntil(b"co"), b"first\nseco"),
            (lambda reader: reader.readexactly(6000), b"first\nsecond\n" + b"x" * 5987),
        ):
            pool = BufferPool(limit="128KiB")
            line = Line(pool)
            hog = pool.acquire("128KiB")
            waiting = asyncio.create_task(read(line.reader))
            await asyncio.sleep(0)
            line.arrive(b"first\nsecond\n")
            assert line.transport.paused
            await comes(pool_waits(pool))
            line.arrive(b"x" * 10_000)
            assert not waiting.done()
            hog.release()
            assert (await waiting).tobytes() == expected
            line.end()
            rest = (await line.reader.read()).tobytes()
            assert expected + rest == b"first\nsecond\n" + b"x" * 10_000
            del line, waiting
            pools.append(pool)

    pools: list[BufferPool] = []
    run("asyncio", main())
    for pool in pools:
        is_empty(pool)


def test_a_cancelled_wait_for_memory() -> None:
    pool = BufferPool(limit="64KiB")

    async def main() -> None:
        line = Line(pool)
        with pool.acquire("64KiB"):
            line.arrive(b"line\n")
            waiting = asyncio.create_task(line.reader.readline())
            await comes(pool_waits(pool))
            with pytest.raises(RuntimeError, match="another"):
                await line.reader.readline()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert await line.reader.readline() == b"line\n"
        assert not line.transport.paused

    run("asyncio", main())
    is_empty(pool)


def test_what_can_never_fit_raises_at_once() -> None:
    async def main() -> None:
        tight = BufferPool(account=Account("tight", limit="16KiB"))
        closed = BufferPool()
        closed.close()
        cases: list[tuple[BufferPool, type[Exception]]] = [
            (BufferPool(limit="256KiB"), PoolExhausted),
            (tight, AccountLimitExceeded),
            (closed, ValueError),
        ]
        for pool, kind in cases:
            line = Line(pool)
            line.arrive(b"abc")
            with pytest.raises(kind):
                await line.reader.readexactly(MIB)
            memory = bytearray(3)
            assert await line.reader.readinto(memory) == 3
            assert memory == b"abc"

    run("asyncio", main())


@pytest.mark.parametrize(
    ("limit", "size"),
    [
        *[(MIB, size) for size in (540_000, 600_000, 900_000, 1_000_000)],
        (256 * KIB, 150_000),
        (64 * KIB, 40_000),
        (64 * KIB, 60_000),
        (32 * KIB, 20_000),
    ],
)
def test_a_message_that_fits_is_read(limit: int, size: int) -> None:
    """Of unknown length, into a pool that cannot hold twice as much; the loop goes on receiving while it is allowed to."""
    content = bytes(range(1, 251)) * (size // 250)

    async def main() -> None:
        reads: list[Callable[[PooledReader], Awaitable[Buffer]]] = [
            lambda reader: reader.read(),
            lambda reader: reader.readline(),
            lambda reader: reader.readuntil(b"\n" + bytes(3)),
        ]
        for read, end in zip(reads, (b"", b"\n", b"\n" + bytes(3)), strict=True):
            pool = BufferPool(limit=limit)
            line = Line(pool, limit=2 * MIB)
            reading = asyncio.create_task(read(line.reader))
            text = content.replace(b"\n", b".") + end
            for at in range(0, len(text), 3000):
                line.arrive(text[at : at + 3000])
                await comes(lambda line=line, reading=reading: not line.transport.paused or reading.done())
            line.end()
            with await reading as got:
                assert got == text
            del got, line, reading
            is_empty(pool)

    run("asyncio", main())


def test_a_message_grows_into_what_others_leave() -> None:
    """It does not wait for twice its size, which may never come."""

    async def main() -> None:
        pool = BufferPool(limit="1MiB")
        with pool.acquire("600KB"):
            line = Line(pool)
            reading = asyncio.create_task(line.reader.read())
            for _ in range(40):
                line.arrive(bytes(10_000))
                await comes(lambda: not line.transport.paused or reading.done())
            line.end()
            assert len(await reading) == 400_000

    run("asyncio", main())


EMPTY_READS: list[Callable[[PooledReader], Awaitable[Buffer]]] = [
    lambda reader: reader.read(),
    lambda reader: reader.read(1),
    lambda reader: reader.read(0),
    lambda reader: reader.readexactly(0),
    lambda reader: reader.readline(),
]


def full_pool() -> tuple[BufferPool, object]:
    pool = BufferPool(limit="64KiB")
    return pool, pool.acquire("64KiB")


def pool_of_a_full_account() -> tuple[BufferPool, object]:
    account = Account("full", limit="64KiB")
    pool = BufferPool(account=account)
    return pool, contextlib.ExitStack().enter_context(account.charged("64KiB"))


def closed_pool() -> tuple[BufferPool, object]:
    pool = BufferPool()
    pool.close()
    return pool, None


@pytest.mark.parametrize("made", [full_pool, pool_of_a_full_account, closed_pool])
def test_the_end_of_the_stream_needs_no_memory(made: Callable[[], tuple[BufferPool, object]]) -> None:
    async def main() -> None:
        pool, held = made()
        line = Line(pool)
        line.end()
        for read in EMPTY_READS:
            got = await read(line.reader)
            assert (len(got), got, got.pool) == (0, b"", pool)
        assert [text async for text in line.reader] == []
        del held

    run("asyncio", main())


def test_a_reader_that_keeps_all_learns_of_the_end() -> None:
    async def main() -> None:
        pool = BufferPool(limit="64KiB")
        line = Line(pool)
        line.arrive(bytes(64 * KIB))
        line.end()
        frames = []
        while frame := await line.reader.read("64KiB"):
            frames.append(frame)
        assert [len(frame) for frame in frames] == [64 * KIB]

    run("asyncio", main())


@pytest.mark.parametrize("ends", ["release", "drop", "drop the lease, then its views"])
def test_an_empty_result_is_a_buffer_like_any_other(ends: str) -> None:
    async def main() -> Buffer:
        line = Line(pool)
        line.end()
        return await line.reader.read()

    pool = BufferPool(leak_detection="full")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            empty = run("asyncio", main())
            assert (empty.nbytes, empty.capacity, empty.tobytes(), empty.address % 64) == (0, 0, b"", 0)
            empty.resize(0)
            assert pickle.loads(pickle.dumps(empty)) == b""
            view, array, keeper = memoryview(empty), empty.array("f4"), numpy.ndarray((0,), "u1", buffer=empty)
            assert (view.nbytes, array.shape, keeper.shape) == (0, (0,), (0,))
            if ends == "drop":
                del view, array, keeper
                del empty
            elif ends == "release":
                with empty:
                    pass
                empty.release()
                assert empty.released
            else:
                del empty
                assert view.tobytes() == b""
                del view, array, keeper
    gc.collect()
    stats = pool.stats()
    assert (stats.live, stats.retired, stats.acquires, stats.releases) == (0, 0, 0, 0)


def test_connections_share_a_small_pool(tmp_path: Path) -> None:
    """More connections than the pool has blocks for: all get on, none fails."""
    pool = BufferPool(limit="256KiB")
    count, lines = 12, 3000

    async def talk(kind: str) -> None:
        async with connected(kind, tmp_path, pool=pool) as peers:
            peers.peer_writer.write(b"".join(b"%d\n" % number for number in range(lines)))
            for number in range(lines):
                with await peers.reader.readline() as line:
                    assert line == b"%d\n" % number
                if number % 100 == 0:
                    await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(talk("tcp") for _ in range(count)))

    run("asyncio", main())
    is_empty(pool)


# ---- leak detection ----


def test_leak_detection_knows_whose_lease_it_is() -> None:
    """Ours never warn; a line of an iteration neither; what a read returned warns, with the reader's line."""
    pool = BufferPool(leak_detection="full")

    async def reads(line: Line) -> None:
        line.arrive(b"one\ntwo\nthree")
        await line.reader.__anext__()
        gc.collect()

    async def leaks(line: Line) -> None:
        await line.reader.readline()

    async def leaks_a_long_one(line: Line) -> None:
        long = asyncio.create_task(line.reader.readexactly(MIB))
        await asyncio.sleep(0)
        line.arrive(bytes(2 * MIB))
        await long
        del long
        await asyncio.sleep(0)
        gc.collect()

    async def main() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            line = Line(pool)
            await reads(line)
            line.protocol.get_buffer(-1)
        with pytest.warns(ResourceWarning, match="in leaks") as caught:
            await leaks(line)
        assert "4 bytes" in str(caught[0].message)
        with pytest.warns(ResourceWarning, match=f"{MIB} bytes"):
            await leaks_a_long_one(line)

    run("asyncio", main())
    is_empty(pool)
