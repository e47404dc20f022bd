"""Every way to read, however the bytes arrive: against asyncio's own reader where it has the same words for it."""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aio_support import Line, every_loop, is_empty, run
from mempool import Buffer, BufferPool
from mempool.aio import PooledReader, open_connection

Read = Callable[[Any], Awaitable[Any]]

TEXT = b"one\r\ntwo\n\nthree||four\r\n" + b"x" * 40 + b"\nlast"

READS: dict[str, Read] = {
    "readexactly(0)": lambda reader: reader.readexactly(0),
    "readexactly(7)": lambda reader: reader.readexactly(7),
    "readexactly(33)": lambda reader: reader.readexactly(33),
    "readexactly(1000)": lambda reader: reader.readexactly(1000),
    "readline": lambda reader: reader.readline(),
    "readuntil": lambda reader: reader.readuntil(),
    "readuntil(crlf)": lambda reader: reader.readuntil(b"\r\n"),
    "readuntil(||)": lambda reader: reader.readuntil(b"||"),
    "readuntil(never)": lambda reader: reader.readuntil(b"never"),
    "read()": lambda reader: reader.read(),
    "read(0)": lambda reader: reader.read(0),
}


def plain(value: Any) -> Any:
    return value.tobytes() if isinstance(value, Buffer) else value


async def outcomes(reader: Any, reads: list[Read]) -> list[Any]:
    """What each read returned or raised, in a form to be compared."""
    found: list[Any] = []
    for read in reads:
        try:
            found.append(plain(await read(reader)))
        except asyncio.IncompleteReadError as error:
            found.append(("incomplete", error.partial, error.expected, type(error.partial)))
        except asyncio.LimitOverrunError as error:
            found.append(("overrun", str(error), error.consumed))
        except ValueError as error:
            found.append(("value", str(error)))
    return found


POOL = BufferPool(name="both")


async def both(
    reads: list[Read], chunks: list[bytes], limit: int, pool: BufferPool = POOL
) -> tuple[list[Any], list[Any]]:
    """The outcomes with asyncio's reader and with ours, for the same arrivals at the same moments."""
    theirs = asyncio.StreamReader(limit=limit)
    line = Line(pool, limit=limit)
    tasks = [asyncio.create_task(outcomes(reader, reads)) for reader in (theirs, line.reader)]
    await asyncio.sleep(0)
    for chunk in chunks:
        theirs.feed_data(chunk)
        line.arrive(chunk)
        for _ in range(3):
            await asyncio.sleep(0)
    theirs.feed_eof()
    line.end()
    expected, got = await asyncio.gather(*tasks)
    line.protocol.connection_lost(None)
    return expected, got


@every_loop
@pytest.mark.parametrize("name", READS)
def test_reads_byte_by_byte_and_in_one_piece(loop: str, name: str) -> None:
    async def main() -> None:
        for chunks in ([TEXT], [TEXT[i : i + 1] for i in range(len(TEXT))], []):
            expected, got = await both([READS[name]] * 8, chunks, 1000)
            assert got == expected

    run(loop, main())
    is_empty(POOL)


@pytest.mark.parametrize("name", ["readline", "readuntil(crlf)", "readuntil(||)", "readexactly(7)", "readexactly(33)"])
@pytest.mark.parametrize("limit", [3, 5, 10, 41, 1000])
def test_split_at_every_position(name: str, limit: int) -> None:
    async def main() -> None:
        for at in range(1, len(TEXT)):
            expected, got = await both([READS[name]] * 6, [TEXT[:at], TEXT[at:]], limit)
            assert got == expected, at

    run("asyncio", main())
    is_empty(POOL)


@settings(max_examples=150)
@given(
    text=st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"||", b"|", b"\r", b"x" * 9]), max_size=60),
    cuts=st.lists(st.integers(1, 30), max_size=40),
    names=st.lists(st.sampled_from(sorted(READS)), min_size=1, max_size=20),
    limit=st.integers(1, 60),
)
def test_any_reads_of_any_arrivals(text: list[bytes], cuts: list[int], names: list[str], limit: int) -> None:
    content = b"".join(text)
    chunks = []
    for cut in cuts:
        if content:
            chunks.append(content[:cut])
            content = content[cut:]
    chunks += [content] if content else []
    expected, got = run("asyncio", both([READS[name] for name in names], chunks, limit))
    assert got == expected


async def feed(line: Line, content: bytes, dice: random.Random) -> None:
    at = 0
    while at < len(content):
        step = dice.choice((1, 100, 5000, 60_000, 400_000))
        line.arrive(content[at : at + step])
        at += step
        while line.transport.paused or dice.random() < 0.5:
            await asyncio.sleep(0)
    line.end()


@pytest.mark.parametrize("seed", range(6))
def test_messages_of_all_sizes(seed: int) -> None:
    """Short ones from one block, long ones in blocks of their own, grown and compacted, against slices of the stream."""
    dice = random.Random(seed)
    sizes = [dice.choice((1, 10, 4096, 65536, 70_000, 300_000, 1 << 20)) + dice.randrange(3) for _ in range(25)]
    content = dice.randbytes(sum(sizes))

    async def main() -> None:
        pool = BufferPool()
        line = Line(pool)
        feeding = asyncio.create_task(feed(line, content, dice))
        at = 0
        for size in sizes:
            if dice.random() < 0.3:
                memory = bytearray(size)
                got = await line.reader.readinto(memory)
                assert memory[:got] == content[at : at + got]
                assert got > 0
                at += got
                size -= got
            with await line.reader.readexactly(size) as buffer:
                assert buffer == content[at : at + size]
            at += size
        await feeding
        assert len(await line.reader.read(1)) == 0
        assert line.reader.at_eof()
        line.protocol.connection_lost(None)
        del line, buffer
        is_empty(pool)

    run("asyncio", main())


@every_loop
def test_read_returns_what_is_there(loop: str) -> None:
    async def main() -> None:
        line = Line()
        waiting = asyncio.create_task(line.reader.read("1MiB"))
        await asyncio.sleep(0)
        line.arrive(b"abc")
        line.arrive(b"def")
        assert await waiting == b"abcdef"
        line.arrive(b"ghij")
        assert await line.reader.read(3) == b"ghi"
        line.end()
        assert not line.reader.at_eof()
        assert await line.reader.read(3) == b"j"
        assert await line.reader.read(3) == b""
        assert await line.reader.readline() == b""
        assert await line.reader.readinto(bytearray(3)) == 0

    run(loop, main())


def test_iteration_gives_lines() -> None:
    async def main() -> None:
        line = Line()
        feeding = asyncio.create_task(line.arrive_slowly([b"a", b"b\nc", b"\n\nd"]))
        assert [text.tobytes() async for text in line.reader] == [b"ab\n", b"c\n", b"\n", b"d"]
        await feeding

    run("asyncio", main())


def test_the_separator_that_ends_first() -> None:
    async def main() -> None:
        line = Line()
        line.arrive(b"a-b--c---d")
        assert await line.reader.readuntil((b"---", b"-b-")) == b"a-b-"
        assert await line.reader.readuntil((b"---", b"--", b"c")) == b"-c"
        waiting = asyncio.create_task(line.reader.readuntil((bytearray(b"ef"), memoryview(b"d|"))))
        await asyncio.sleep(0)
        line.arrive(b"e")
        await asyncio.sleep(0)
        line.arrive(b"f")
        assert await waiting == b"---def"

    run("asyncio", main())


def test_an_overrun_leaves_all_where_it_was() -> None:
    async def main() -> None:
        line = Line(limit=10)
        line.arrive(b"x" * 15 + b"\nrest")
        for _ in range(2):
            with pytest.raises(asyncio.LimitOverrunError):
                await line.reader.readuntil(b"\n")
        assert await line.reader.readexactly(15) == b"x" * 15
        assert await line.reader.readuntil(b"\n") == b"\n"

    run("asyncio", main())


def test_max_message_bounds_what_a_peer_can_ask_for() -> None:
    async def main() -> None:
        line = Line(max_message=100)
        line.arrive(b"x" * 101)
        for read in (lambda: line.reader.readexactly(101), lambda: line.reader.readexactly(1 << 62), line.reader.read):
            with pytest.raises(asyncio.LimitOverrunError, match="100"):
                await read()
        assert len(await line.reader.readexactly(100)) == 100
        line.end()
        assert await line.reader.read() == b"x"

    run("asyncio", main())


def test_to_the_end_exactly_at_the_bound() -> None:
    async def main() -> None:
        for size in (99, 100, 101):
            line = Line(max_message=100)
            await line.arrive_slowly([b"x" * size])
            if size > 100:
                with pytest.raises(asyncio.LimitOverrunError):
                    await line.reader.read()
            else:
                assert len(await line.reader.read()) == size

    run("asyncio", main())


@pytest.mark.parametrize("bad", [1.0, True, None, [], "x", -5, -(1 << 70)])
def test_bad_sizes(bad: Any) -> None:
    async def main() -> None:
        line = Line()
        line.arrive(b"abc")
        kind = ValueError if isinstance(bad, (str, int)) and bad is not True else TypeError
        for read in (line.reader.readexactly, line.reader.read):
            with pytest.raises(kind):
                await read(bad)
        assert len(line.protocol) == 3

    run("asyncio", main())


@pytest.mark.parametrize(("bad", "kind"), [("x", TypeError), (5, TypeError), (b"", ValueError), ((), ValueError)])
def test_bad_separators(bad: Any, kind: type[Exception]) -> None:
    async def main() -> None:
        line = Line()
        line.arrive(b"abc")
        with pytest.raises(kind):
            await line.reader.readuntil(bad)
        assert await line.reader.read(9) == b"abc"

    run("asyncio", main())


def test_errors_name_the_value() -> None:
    async def main() -> None:
        line = Line()
        line.arrive(b"abc")
        with pytest.raises(OverflowError, match=f"n of {1 << 70} bytes"):
            await line.reader.readexactly(1 << 70)
        for bad in ("a", None, 7, ["a"]):
            with pytest.raises(TypeError, match=re.escape(f"not {bad!r}")):
                await line.reader.readuntil(bad)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="not 'text'"):
            await line.reader.readuntil((b"a", "text"))  # type: ignore[arg-type]
        for name in ("limit", "max_message"):
            with pytest.raises(OverflowError, match=f"{name} of {1 << 70} bytes"):
                await open_connection("127.0.0.1", 1, **{name: 1 << 70})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="got 0"):
            await open_connection("127.0.0.1", 1, limit=0)
        assert await line.reader.read(1 << 70) == b"abc"

    run("asyncio", main())


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2)])
def test_no_memory_to_read_into(shape: tuple[int, ...]) -> None:
    async def main() -> None:
        line = Line()
        for arrived in (b"", b"abc"):
            line.arrive(arrived)
            assert await line.reader.readinto(numpy.zeros(shape, "f4")) == 0
            assert len(line.protocol) == len(arrived)

    run("asyncio", main())


@pytest.mark.parametrize("bad", [b"readonly", "text", 5, memoryview(bytearray(8))[::2]])
def test_bad_memory_to_read_into(bad: Any) -> None:
    async def main() -> None:
        line = Line()
        line.arrive(b"abc")
        with pytest.raises((TypeError, BufferError)):
            await line.reader.readinto(bad)
        assert await line.reader.read(9) == b"abc"

    run("asyncio", main())


def test_the_exception_of_a_broken_connection() -> None:
    async def main() -> None:
        line = Line()
        waiting = asyncio.create_task(line.reader.readline())
        await asyncio.sleep(0)
        line.protocol.connection_lost(ConnectionResetError("gone"))
        with pytest.raises(ConnectionResetError, match="gone"):
            await waiting
        assert isinstance(line.reader.exception(), ConnectionResetError)
        assert not line.reader.at_eof()
        for read in (line.reader.read, line.reader.readline, lambda: line.reader.readinto(bytearray(1))):
            with pytest.raises(ConnectionResetError):
                await read()

    run("asyncio", main())


WITH_DATA: list[tuple[Read, bytes]] = [
    (lambda reader: reader.read(100), b"line\n"),
    (lambda reader: reader.readexactly(5), b"line\n"),
    (lambda reader: reader.readline(), b"line\n"),
    (lambda reader: reader.readuntil(b"n"), b"lin"),
    (lambda reader: reader.readuntil(b"\n"), b"line\n"),
]


@pytest.mark.parametrize(("read", "expected"), WITH_DATA)
def test_an_error_does_not_overtake_what_was_waited_for(read: Read, expected: bytes) -> None:
    """It came before the error, and the reader did not run in between; as in asyncio."""

    async def main() -> None:
        line, theirs = Line(), asyncio.StreamReader()
        waiting = [asyncio.create_task(read(reader)) for reader in (theirs, line.reader)]
        await asyncio.sleep(0)
        theirs.feed_data(b"line\n")
        line.arrive(b"line\n")
        for reader in (theirs, line.reader):
            reader.set_exception(ConnectionResetError("gone"))
        assert [plain(await one) for one in waiting] == [expected, expected]
        with pytest.raises(ConnectionResetError):
            await read(line.reader)

    run("asyncio", main())


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_an_error_does_not_overtake_what_was_read_into_memory(size: int) -> None:
    async def main() -> None:
        line, memory = Line(), bytearray(size)
        waiting = asyncio.create_task(line.reader.readinto(memory))
        await asyncio.sleep(0)
        line.arrive(b"data")
        line.reader.set_exception(ConnectionResetError("gone"))
        assert (await waiting, memory[:4]) == (4, b"data")
        with pytest.raises(ConnectionResetError):
            await line.reader.readinto(memory)

    run("asyncio", main())


@pytest.mark.parametrize("read", [read for read, _ in WITH_DATA])
def test_data_does_not_overtake_an_error(read: Read) -> None:
    """Not even all of what was waited for."""

    async def main() -> None:
        line, theirs = Line(), asyncio.StreamReader()
        waiting = [asyncio.create_task(read(reader)) for reader in (theirs, line.reader)]
        await asyncio.sleep(0)
        for reader in (theirs, line.reader):
            reader.set_exception(ConnectionResetError("gone"))
        theirs.feed_data(b"line\n")
        line.arrive(b"line\n")
        for one in waiting:
            with pytest.raises(ConnectionResetError, match="gone"):
                await one
        assert len(line.protocol) == 5

    run("asyncio", main())


def test_an_error_does_not_overtake_the_end() -> None:
    """As in asyncio."""

    async def main() -> None:
        for read in (lambda reader: reader.readline(), lambda reader: reader.read()):
            line, theirs = Line(), asyncio.StreamReader()
            waiting = [asyncio.create_task(read(reader)) for reader in (theirs, line.reader)]
            await asyncio.sleep(0)
            theirs.feed_data(b"last")
            line.arrive(b"last")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            theirs.feed_eof()
            line.end()
            for reader in (theirs, line.reader):
                reader.set_exception(ConnectionResetError("gone"))
            outcome = await asyncio.gather(*waiting, return_exceptions=True)
            assert [plain(one) for one in outcome] == [b"last", b"last"]

    run("asyncio", main())


def test_an_error_after_less_than_was_waited_for() -> None:
    async def main() -> None:
        for read in (lambda reader: reader.readexactly(6), lambda reader: reader.readuntil(b"!"), PooledReader.read):
            line = Line()
            waiting = asyncio.create_task(read(line.reader))
            await asyncio.sleep(0)
            line.arrive(b"line\n")
            line.reader.set_exception(ConnectionResetError("gone"))
            with pytest.raises(ConnectionResetError):
                await waiting

    run("asyncio", main())


def test_one_reader_at_a_time() -> None:
    async def main() -> None:
        line = Line()
        memory = bytearray(1 << 20)
        for first in (line.reader.readline, lambda: line.reader.readinto(memory)):
            waiting = asyncio.create_task(first())
            await asyncio.sleep(0)
            for read in (line.reader.readline, lambda: line.reader.readinto(bytearray(1 << 20))):
                with pytest.raises(RuntimeError, match="another coroutine"):
                    await read()
            line.arrive(b"all of it\n")
            assert await waiting in (b"all of it\n", 10)
        assert memory[:10] == b"all of it\n"

    run("asyncio", main())
