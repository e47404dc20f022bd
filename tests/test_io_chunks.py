"""`mempool.io.iter_chunks`: every byte in order, read ahead or not, and nothing left behind."""

import errno
import gc
import gzip
import io
import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mempool
from io_support import DATA, Alarm, alarms, all_back, feed, linux, make, pipe, posix
from mempool import BufferPool
from mempool.io import ChunkIterator, _ahead, _sources, iter_chunks
from support import DEADLINE, start, together, until

SIZE = 10_007
AHEAD = pytest.mark.parametrize("ahead", [False, pytest.param(True, marks=posix)])


@pytest.fixture
def pool() -> Iterator[BufferPool]:
    with BufferPool(leak_detection="full") as pool:
        yield pool


def chunks(what: Any, pool: BufferPool, ahead: bool, size: int = SIZE, depth: int = 2, **more: Any) -> ChunkIterator:
    """An iterator whose thread runs already, or never will; whether it pays is not judged."""
    iterator = iter_chunks(what, size, pool=pool, readahead=depth if ahead else 0, **more)
    if ahead:
        assert iterator._ahead.start()
    return iterator


@pytest.fixture(autouse=True)
def no_judgement(monkeypatch: pytest.MonkeyPatch) -> None:
    from mempool.io import chunks

    monkeypatch.setattr(chunks._Judge, "is_vain", lambda self, now: False)


def full(iterator: ChunkIterator) -> bool:
    """The thread has read as far as it may."""
    return iterator._ahead.full and len(iterator._ahead.ready) == iterator._ahead.depth


def wait_for_end(ahead: _ahead.Ahead) -> None:
    until(lambda: not ahead.running)


# ---- content and positions


@AHEAD
@pytest.mark.parametrize("direct", [False, pytest.param(True, marks=linux)])
@pytest.mark.parametrize("size", [1, SIZE, 4096, 333_334, 1_000_003, 5_000_000])
def test_every_byte_in_order(pool: BufferPool, tmp_path: Path, size: int, ahead: bool, direct: bool) -> None:
    data = DATA if size > 1 else DATA[:300]
    path = make(tmp_path, data)
    with all_back(pool):
        at = 0
        for chunk in chunks(path, pool, ahead, size, direct=direct):
            assert chunk == data[at : at + size]
            at += len(chunk)
        assert at == len(data)
        del chunk
    assert pool.stats().handed_over


@AHEAD
def test_nothing_in_nothing(pool: BufferPool, tmp_path: Path, ahead: bool) -> None:
    with all_back(pool):
        assert list(chunks(make(tmp_path, b""), pool, ahead)) == []


@AHEAD
def test_the_end_is_the_end(pool: BufferPool, tmp_path: Path, ahead: bool) -> None:
    path = make(tmp_path, DATA[: 2 * SIZE])
    with all_back(pool):
        iterator = chunks(path, pool, ahead)
        assert [len(chunk) for chunk in iterator] == [SIZE, SIZE]
        with path.open("ab") as file:
            file.write(b"more")
        assert list(iterator) == []


@AHEAD
@pytest.mark.parametrize("buffering", [-1, 0, None])
def test_positions_are_those_of_the_chunks_handed_out(
    pool: BufferPool, tmp_path: Path, buffering: int | None, ahead: bool
) -> None:
    with make(tmp_path).open("rb", buffering=buffering or 0) as file, all_back(pool):
        file.seek(5)
        iterator = chunks(file.fileno() if buffering is None else file, pool, ahead)
        for number in range(1, 8):
            assert next(iterator) == DATA[5 + (number - 1) * SIZE : 5 + number * SIZE]
            assert file.tell() == 5 + number * SIZE
        iterator.close()
        assert file.read(10) == DATA[5 + 7 * SIZE : 15 + 7 * SIZE]


@AHEAD
def test_a_descriptor_that_is_closed_meanwhile(pool: BufferPool, tmp_path: Path, ahead: bool) -> None:
    """And its number used again."""
    path, other = make(tmp_path), make(tmp_path, b"x" * 1_000_003, "other")
    with all_back(pool):
        fd = os.open(path, os.O_RDONLY)
        iterator = chunks(fd, pool, ahead)
        assert next(iterator) == DATA[:SIZE]
        os.close(fd)
        again = os.open(other, os.O_RDONLY)
        assert b"".join(map(bytes, iterator)) == DATA[SIZE:]
        os.close(again)


@AHEAD
def test_chunks_that_are_kept(pool: BufferPool, tmp_path: Path, ahead: bool) -> None:
    kept = list(chunks(make(tmp_path), pool, ahead))
    assert b"".join(kept) == DATA
    assert pool.stats().live == len(kept)
    with all_back(pool):
        kept.clear()


def test_a_loop_that_keeps_none_uses_few_blocks(pool: BufferPool, tmp_path: Path) -> None:
    for chunk in iter_chunks(make(tmp_path), SIZE, pool=pool, readahead=0):
        assert len(chunk) <= SIZE
    assert pool.stats().peak <= 3 * chunk.capacity


def test_objects(pool: BufferPool, tmp_path: Path) -> None:
    with gzip.open(make(tmp_path, gzip.compress(DATA))) as packed, all_back(pool):
        for file in (packed, io.BytesIO(DATA), io.BufferedReader(io.BytesIO(DATA))):  # type: ignore[type-var]
            iterator = iter_chunks(file, SIZE, pool=pool)
            assert not iterator._ahead.depth
            assert b"".join(map(bytes, iterator)) == DATA


@AHEAD
@pytest.mark.parametrize("kind", ["pipe", "file", "socket"])
@posix
def test_what_flows_comes_in_whole_chunks(pool: BufferPool, kind: str, ahead: bool) -> None:
    with all_back(pool), pipe() as (reader, writer):
        left, right = socket.socketpair()
        with left, right, open(reader, "rb", buffering=0, closefd=False) as file:
            if kind == "socket":
                writer = left.detach()
            thread = start(feed, writer, DATA, 777)
            what = {"pipe": reader, "file": file, "socket": right}[kind]
            got = [bytes(chunk) for chunk in chunks(what, pool, ahead)]
            thread.result()
    assert b"".join(got) == DATA
    assert {len(piece) for piece in got[:-1]} == {SIZE}


# ---- the thread


@posix
def test_who_works_gets_a_thread_and_who_does_not_gets_none(pool: BufferPool, tmp_path: Path) -> None:
    """The judge decides by what it is told."""
    from mempool.io.chunks import _Judge

    busy, idle = _Judge(), _Judge()
    assert [busy.wants_ahead(100_000, 100_000) for _ in range(4)] == [False, False, False, True]
    assert not any(idle.wants_ahead(500, 100_000) for _ in range(100))


def test_reading_ahead_that_is_vain_is_tried_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from mempool.io.chunks import _Judge

    judge, now, started = _Judge(), 0, []
    running = False
    for chunk in range(2000):
        now += 200_000
        if running:
            running = not judge.is_vain(now)
        elif judge.wants_ahead(100_000, 100_000):
            judge.begin(now)
            running = True
            started.append(chunk)
    assert 3 <= len(started) < 8
    gaps = [after - before for before, after in pairwise(started)]
    assert gaps == sorted(gaps)
    judge.begin(0)
    assert not any(judge.is_vain(110_000 * chunk) for chunk in range(100))


@posix
@pytest.mark.parametrize("depth", [1, 2, 7])
def test_no_more_is_ready_than_asked_for(pool: BufferPool, tmp_path: Path, depth: int) -> None:
    with all_back(pool), chunks(make(tmp_path), pool, True, depth=depth) as iterator:
        for _ in range(5):
            until(lambda: full(iterator))
            assert pool.stats().live == depth
            next(iterator)


@posix
def test_dropped_without_end(pool: BufferPool, tmp_path: Path) -> None:
    with all_back(pool):
        iterators = [chunks(make(tmp_path), pool, True)]
        until(lambda: full(iterators[0]))
        next(iterators[0])
        iterators.clear()
    with all_back(pool):  # in a cycle
        ring: list[Any] = [chunks(make(tmp_path), pool, True)]
        ring.append(ring)
        next(ring[0])
        del ring
        gc.collect()


@AHEAD
@pytest.mark.parametrize("buffering", [-1, 0])
def test_a_file_that_is_closed_meanwhile(pool: BufferPool, tmp_path: Path, ahead: bool, buffering: int) -> None:
    with all_back(pool):
        with make(tmp_path).open("rb", buffering) as file:
            iterator = chunks(file, pool, ahead)
            first = bytes(next(iterator))
            assert file.tell() == SIZE
        assert first + b"".join(map(bytes, iterator)) == DATA


@AHEAD
@pytest.mark.parametrize("direct", [False, pytest.param(True, marks=linux)])
@pytest.mark.parametrize("kind", ["path", "descriptor", "file"])
def test_garbage_in_a_cycle_is_no_unclosed_file(
    pool: BufferPool, tmp_path: Path, ahead: bool, kind: str, direct: bool
) -> None:
    with all_back(pool), make(tmp_path).open("rb") as file:
        what: Any = {"path": tmp_path / "file", "descriptor": file.fileno(), "file": file}[kind]
        ring: list[Any] = [chunks(what, pool, ahead, direct=direct)]
        next(ring[0]).release()
        ring += [ring, ring[0]._ahead.source]
        ring[2].ring = ring
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ResourceWarning)
            ring[0]._ahead.pause()
            ring[0]._ahead.join()
            del ring
            gc.collect()
        assert not caught


@posix
def test_closed_without_end(pool: BufferPool, tmp_path: Path) -> None:
    with all_back(pool):
        iterator = chunks(make(tmp_path), pool, True)
        kept = next(iterator)
        iterator.close()
        assert not iterator._ahead.running
        assert pool.stats().live == 1
        iterator.close()
        assert list(iterator) == []
        assert kept == DATA[:SIZE]
        del kept
    with all_back(pool), pytest.raises(KeyError), chunks(make(tmp_path), pool, True) as iterator:
        raise KeyError


@posix
@pytest.mark.parametrize("end", ["close", "drop", "fork"])
def test_a_thread_that_waits_for_a_pipe_is_called_off(pool: BufferPool, end: str) -> None:
    """What it had read of the next chunk is not lost while the iterator lives."""
    with all_back(pool), pipe() as (reader, writer):
        os.write(writer, DATA[: SIZE + 5])
        iterator = chunks(reader, pool, True)
        assert next(iterator) == DATA[:SIZE]
        state = iterator._ahead
        if end == "close":
            iterator.close()
        elif end == "drop":
            del iterator
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                child = os.fork()
            if not child:
                os._exit(state.running)
            assert os.waitpid(child, 0)[1] == 0
        assert end == "drop" or not state.running
        if end == "fork":
            thread = start(feed, writer, DATA[SIZE + 5 :])
            assert b"".join(map(bytes, iterator)) == DATA[SIZE:]
            thread.result()
        else:
            wait_for_end(state)
            os.write(writer, b"for others")
            assert os.read(reader, 100)[-10:] == b"for others"
        del state


@posix
@pytest.mark.parametrize("end", ["close", "fork"])
def test_bytes_that_another_reader_took(pool: BufferPool, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is told that there are some, finds none, and can be called off all the same."""
    wait, taken = _ahead.Waker.wait, threading.Event()

    def wait_and_lose(self: _ahead.Waker, fd: int, timeout: float | None) -> None:
        wait(self, fd, timeout)
        if not taken.is_set():
            assert os.read(fd, SIZE) == b"for others"
            taken.set()

    def fork() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the threads of this test
            child = os.fork()
        if not child:
            os._exit(0)
        return os.waitpid(child, 0)[1]

    monkeypatch.setattr(_ahead.Waker, "wait", wait_and_lose)
    with all_back(pool), pipe() as (reader, writer):
        iterator = chunks(reader, pool, True)
        os.write(writer, b"for others")
        assert taken.wait(DEADLINE)
        assert not start(iterator.close if end == "close" else fork).result()
        assert not iterator._ahead.running
        thread = start(feed, writer, DATA)
        assert b"".join(map(bytes, iterator)) == (b"" if end == "close" else DATA)
        while os.read(reader, 1 << 16):
            continue
        thread.result()


@posix
def test_what_may_block_is_not_read_ahead(pool: BufferPool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "not for this descriptor")

    monkeypatch.setattr(os, "preadv", refuse)
    with all_back(pool), pipe() as (reader, writer):
        iterator = chunks(reader, pool, True)
        thread = start(feed, writer, DATA)
        assert b"".join(map(bytes, iterator)) == DATA
        assert not iterator._ahead.depth
        thread.result()
    monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
    with pipe() as (reader, writer), iter_chunks(reader, SIZE, pool=pool) as iterator:
        assert not iterator._ahead.start()


@posix
@AHEAD
def test_a_fork_in_the_middle(pool: BufferPool, tmp_path: Path, ahead: bool) -> None:
    """Parent and child go on where they were, without a warning of threads of ours."""
    iterator = chunks(make(tmp_path), pool, ahead)
    got = bytes(next(iterator))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        child = os.fork()
    if not child:
        os._exit(0 if got + b"".join(map(bytes, iterator)) == DATA else 1)
    assert got + b"".join(map(bytes, iterator)) == DATA
    assert os.waitpid(child, 0)[1] == 0


@posix
def test_forks_while_others_read(pool: BufferPool, tmp_path: Path) -> None:
    path = make(tmp_path)

    def reader() -> bool:
        return all(b"".join(map(bytes, chunks(path, pool, True, 5000))) == DATA for _ in range(10))

    def forker() -> bool:
        for _ in range(10):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of the threads of this test
                child = os.fork()
            if not child:
                os._exit(0)
            os.waitpid(child, 0)
        return True

    with all_back(pool):
        assert together([reader, reader, forker]) == [True] * 3


@posix
def test_no_thread_to_be_had(pool: BufferPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_ahead._thread, "start_new_thread", refuse)
    iterator = iter_chunks(make(tmp_path), SIZE, pool=pool)
    assert not iterator._ahead.start()
    assert b"".join(map(bytes, iterator)) == DATA


@posix
def test_a_signal_while_the_thread_starts(pool: BufferPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it exists and after; neither leaves a thread that nobody knows of, or waits for one that is not there."""
    theirs = vars(_ahead._thread)  # a stand-in for this module alone: others start threads too
    for late in (False, True):

        def interrupted(*arguments: Any, late: bool = late) -> None:
            if late:
                theirs["start_new_thread"](*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(_ahead, "_thread", SimpleNamespace(**{**theirs, "start_new_thread": interrupted}))
        with all_back(pool):
            iterator = iter_chunks(make(tmp_path), SIZE, pool=pool)
            with pytest.raises(KeyboardInterrupt):
                iterator._ahead.start()
            monkeypatch.undo()  # a slow machine starts it again below
            assert b"".join(map(bytes, iterator)) == DATA


@pytest.mark.parametrize("how", ["end", "drop at exit", "blocked in a pipe"])
@posix
def test_exit(run_python: Callable[..., Any], how: str, tmp_path: Path) -> None:
    code = """
        import os, sys, mempool.io
        how, path = sys.argv[1:]
        ends = os.pipe()
        it = mempool.io.iter_chunks(ends[0] if "pipe" in how else path, 10007)
        assert it._ahead.start()
        if how == "end":
            sys.exit(sum(map(len, it)) != 1000003)
        if "drop" in how:
            next(it)
    """
    assert run_python(code, how, make(tmp_path), options=["-X", "dev", "-W", "error"]).stderr == ""


# ---- errors


@linux
@AHEAD
def test_an_error_comes_after_the_good_chunks(
    pool: BufferPool, tmp_path: Path, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int, buffers: Any, offset: int) -> int:
        if offset >= 5 * SIZE:
            raise OSError(5, "Input/output error")
        return os.preadv(fd, buffers, offset)

    monkeypatch.setattr(_sources, "preadv", broken)
    with all_back(pool):
        iterator = chunks(make(tmp_path), pool, ahead, depth=10)
        got = [bytes(next(iterator)) for _ in range(5)]
        assert b"".join(got) == DATA[: 5 * SIZE]
        with pytest.raises(OSError, match="Input/output"):
            next(iterator)
        assert list(iterator) == []


@AHEAD
@posix
def test_a_socket_that_times_out_gives_what_came(pool: BufferPool, ahead: bool) -> None:
    left, right = socket.socketpair()
    with left, right, all_back(pool):
        left.sendall(DATA[: SIZE + 5])
        right.settimeout(0.05)
        iterator = chunks(right, pool, ahead)
        assert (next(iterator), next(iterator)) == (DATA[:SIZE], DATA[SIZE : SIZE + 5])
        with pytest.raises(TimeoutError):
            next(iterator)
        assert list(iterator) == []


@linux
def test_a_timeout_that_nobody_waited_for(pool: BufferPool) -> None:
    """Who reads ahead of a caller that works is not the one whose patience counts."""
    left, right = socket.socketpair()
    with left, right, all_back(pool):
        right.settimeout(0.01)
        iterator = chunks(right, pool, True, 4)
        wait_for_end(iterator._ahead)
        left.sendall(b"here")
        assert next(iterator) == b"here"
        iterator.close()


@AHEAD
@pytest.mark.parametrize("fits", [1, 2, 3])
def test_a_pool_with_little_room(tmp_path: Path, ahead: bool, fits: int) -> None:
    """Fewer chunks are ready; none fails that has room."""
    path = make(tmp_path)
    with BufferPool(fits * 16384) as pool, all_back(pool):
        iterator, at, held = chunks(path, pool, ahead, 16384, depth=5), 0, []
        while True:
            held = held[1:] if len(held) == fits else held
            chunk = next(iterator, None)
            if chunk is None:
                break
            assert chunk == DATA[at : at + 16384]
            at += len(chunk)
            held.append(chunk)
            del chunk
        assert at == len(DATA)
        held.clear()


@AHEAD
def test_a_pool_without_room_for_one(tmp_path: Path, ahead: bool) -> None:
    """The iterator goes on where it was when there is."""
    with BufferPool(3 * 16384) as pool, all_back(pool):
        held = [pool.acquire(16384) for _ in range(3)]
        iterator = chunks(make(tmp_path), pool, ahead, 16384)
        with pytest.raises(mempool.PoolExhausted):
            next(iterator)
        held.pop().release()
        assert next(iterator) == DATA[:16384]
        for buffer in held:
            buffer.release()
        assert b"".join(map(bytes, iterator)) == DATA[16384:]


@AHEAD
def test_a_pool_that_is_closed(tmp_path: Path, ahead: bool) -> None:
    pool = BufferPool()
    iterator = chunks(make(tmp_path), pool, ahead)
    chunk = next(iterator)
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        while True:
            next(iterator)
    assert chunk == DATA[:SIZE]


@AHEAD
@posix
def test_a_signal_that_raises(pool: BufferPool, ahead: bool) -> None:
    with pipe() as (reader, writer), all_back(pool):
        os.write(writer, DATA[: SIZE + 5])
        iterator = chunks(reader, pool, ahead)
        next(iterator)
        with pytest.raises(Alarm), alarms():
            next(iterator)
        assert list(iterator) == []


@AHEAD
def test_a_file_that_shrinks_meanwhile(pool: BufferPool, tmp_path: Path, ahead: bool) -> None:
    path = make(tmp_path)
    with all_back(pool):
        iterator = chunks(path, pool, ahead, depth=1)
        first = bytes(next(iterator))
        os.truncate(path, 500_000)
        got = first + b"".join(map(bytes, iterator))
        assert got == DATA[: len(got)]
        assert len(got) == 500_000


def test_two_threads_at_once_are_refused(pool: BufferPool) -> None:
    class Slow:
        def readinto(self, buffer: Any) -> int:
            with pytest.raises(ValueError, match="already"):
                next(iterator)
            return 0

    with all_back(pool):
        iterator = iter_chunks(Slow(), SIZE, pool=pool)
        assert list(iterator) == []


def test_arguments_that_make_no_sense(pool: BufferPool, tmp_path: Path) -> None:
    path = make(tmp_path)
    cases: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"chunk_size": 0}, ValueError), ({"chunk_size": -1}, ValueError), ({"chunk_size": 1.5}, TypeError),
        ({"readahead": -1}, ValueError), ({"readahead": True}, TypeError), ({"readahead": "2"}, TypeError),
        ({"pool": 5}, TypeError), ({"readahead": None}, TypeError),
    ]  # fmt: skip
    with all_back(pool):
        for arguments, error in cases:
            with pytest.raises(error):
                iter_chunks(path, **arguments)
        for what, kind in [
            (True, TypeError),
            (None, TypeError),
            (-1, ValueError),
            (tmp_path, IsADirectoryError),
            (10**6, OSError),
        ]:
            with pytest.raises(kind):
                iter_chunks(what, pool=pool)  # type: ignore[arg-type]
        with path.open() as text, pytest.raises(TypeError, match="text"):
            iter_chunks(text, pool=pool)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="direct"):
            iter_chunks(io.BytesIO(), direct=True)
