"""`mempool.io.read`: whole files and parts, pipes and sockets, whatever happens meanwhile."""

import bz2
import gzip
import io
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mempool
from io_support import DATA, Alarm, alarms, all_back, feed, linux, make, pipe, posix
from mempool import BufferPool
from mempool.io import _sources, read
from support import start


@pytest.fixture
def pool() -> Iterator[BufferPool]:
    with BufferPool(leak_detection="full") as pool:
        yield pool


def taken(*arguments: Any, **options: Any) -> bytes:
    with read(*arguments, **options) as b:
        return b.tobytes()


PARTS = [(0, None), (1, None), (4096, 4096), (777, 5000), (0, 0), (1_000_002, None), (1_000_003, None), (5 << 30, 7)]


@pytest.mark.parametrize("direct", [False, pytest.param(True, marks=linux)])
@pytest.mark.parametrize(("offset", "size"), PARTS)
def test_parts_of_a_file(pool: BufferPool, tmp_path: Path, offset: int, size: int | None, direct: bool) -> None:
    expected = DATA[offset:] if size is None else DATA[offset : offset + size]
    path = make(tmp_path)
    with all_back(pool):
        with read(path, pool=pool, offset=offset, size=size, direct=direct) as b:
            assert (b.nbytes, b.tobytes()) == (len(expected), expected)
        with path.open("rb") as file:
            file.seek(13)
            with read(file.fileno(), pool=pool, offset=offset, size=size, direct=direct) as b:
                assert b == expected
            assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 13


def test_paths_of_all_kinds(pool: BufferPool, tmp_path: Path) -> None:
    path = make(tmp_path, b"here")
    for name in (path, str(path), os.fsencode(path)):
        with read(name, pool=pool) as b:
            assert b == b"here"
    with read(path, offset="1B", size="1 KiB") as b:
        assert (b.pool, b.tobytes()) == (mempool.default_pool(), b"ere")


def test_it_is_the_callers(tmp_path: Path, pool: BufferPool) -> None:
    """A buffer that is dropped is a leak, blamed on the line that called."""
    path = make(tmp_path)
    with pytest.warns(ResourceWarning, match="never released") as caught:
        read(path, pool=pool)
    (warning,) = [one for one in caught if "never released" in str(one.message)]
    assert warning.filename == __file__
    assert pool.stats().dropped == 1


def test_file_objects_are_read_from_where_they_stand(pool: BufferPool, tmp_path: Path) -> None:
    path = make(tmp_path)
    for buffering in (-1, 0):
        with path.open("rb", buffering=buffering) as file, all_back(pool):
            assert file.read(10) == DATA[:10]
            with read(file, pool=pool, size=100) as b:
                assert b == DATA[10:110]
            assert (file.tell(), file.read(5)) == (110, DATA[110:115])
            with read(file, pool=pool) as b:
                assert b == DATA[115:]
            assert file.read() == b""


class OnlyRead:
    def __init__(self, content: bytes, most: int) -> None:
        self._file, self._most = io.BytesIO(content), most

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._most))


class Raw(io.RawIOBase):
    """Gives a few bytes at a time."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(memoryview(buffer)[:777])


def test_objects(pool: BufferPool, tmp_path: Path) -> None:
    packed, squeezed = make(tmp_path, gzip.compress(DATA), "gz"), make(tmp_path, bz2.compress(DATA), "bz")
    with gzip.open(packed) as first, bz2.open(squeezed) as second, all_back(pool):
        for file in (first, second, io.BytesIO(DATA), OnlyRead(DATA, 50_001), Raw(DATA), io.BufferedReader(Raw(DATA))):
            with read(file, pool=pool) as b:
                assert b == DATA


class Lying:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def readinto(self, buffer: Any) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "error"), [(1 << 40, OSError), (-1, OSError), ("x", TypeError), (True, TypeError), (1.0, TypeError)]
)
def test_objects_that_lie(pool: BufferPool, answer: Any, error: type[Exception]) -> None:
    with all_back(pool), pytest.raises(error):
        read(Lying(answer), pool=pool)


# ---- what flows


@posix
@pytest.mark.parametrize("size", [None, 0, 1, 65536, 70_000, 5_000_000, 1 << 50])
@pytest.mark.parametrize("blocking", [True, False])
def test_a_pipe_to_its_end(pool: BufferPool, size: int | None, blocking: bool) -> None:
    with all_back(pool), pipe() as (reader, writer):
        os.set_blocking(reader, blocking)
        thread = start(feed, writer, DATA)
        with read(reader, pool=pool, size=size) as b:
            assert b == DATA[:size]
            assert b.capacity <= max(2 * b.nbytes, 64)
        with read(reader, pool=pool):
            thread.result()


@posix
@pytest.mark.parametrize("timeout", [None, 0, 120])
def test_a_socket_to_its_end(pool: BufferPool, timeout: float | None) -> None:
    left, right = socket.socketpair()
    with left, right, all_back(pool):
        right.settimeout(timeout)
        thread = start(lambda: (left.sendall(DATA), left.shutdown(socket.SHUT_WR)))
        with read(right, pool=pool) as b:
            assert b == DATA
        thread.result()


@posix
def test_a_socket_that_times_out(pool: BufferPool) -> None:
    left, right = socket.socketpair()
    with left, right, all_back(pool):
        left.sendall(b"some")
        right.settimeout(0.01)
        with pytest.raises(TimeoutError):
            read(right, pool=pool, size=5)


@posix
def test_a_signal_that_raises(pool: BufferPool) -> None:
    with pipe() as (reader, writer), all_back(pool):
        os.write(writer, DATA[:60_000])
        with pytest.raises(Alarm), alarms():
            read(reader, pool=pool)


@posix
def test_signals_that_do_not(pool: BufferPool, tmp_path: Path) -> None:
    seen: list[int] = []
    with pipe() as (reader, writer), all_back(pool):
        with alarms(lambda: (seen.append(1), len(seen) == 5 and feed(writer, DATA[:50_000])), 0.002):
            b = read(reader, pool=pool)
        with b:
            assert b == DATA[:50_000]
        assert len(seen) >= 5


# ---- files that are not what they seem


@linux
@pytest.mark.parametrize("name", ["/proc/self/status", "/proc/cpuinfo", "/sys/kernel/mm/transparent_hugepage/enabled"])
def test_files_that_do_not_say_their_size(pool: BufferPool, name: str) -> None:
    if not os.path.exists(name):
        pytest.skip(f"no {name}")
    with all_back(pool), read(name, pool=pool) as b, open(name, "rb") as file:
        assert b.tobytes().split()[:3] == file.read().split()[:3]
        assert b.nbytes > 10


def test_devices(pool: BufferPool) -> None:
    with all_back(pool):
        with read(os.devnull, pool=pool) as b:
            assert b.nbytes == 0
        if os.path.exists("/dev/zero"):
            with read("/dev/zero", pool=pool, size=100_000) as b:
                assert b == bytes(100_000)


def test_a_file_that_grows_meanwhile(pool: BufferPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at its size and the read."""
    path = make(tmp_path, DATA[:1000])
    fill = _sources.Placed.fill
    more = iter([DATA[1000:5000], DATA[5000:200_000], DATA[200_000:]])

    def growing(self: Any, buffer: Any, size: int) -> int:
        done = fill(self, buffer, size)
        with path.open("ab") as file:
            file.write(next(more, b""))
        return done

    monkeypatch.setattr(_sources.Placed, "fill", growing)
    with all_back(pool), read(path, pool=pool) as b:
        assert len(b) > 1000
        assert b == DATA[: len(b)]
    with all_back(pool), read(path, pool=pool, size=10) as b:
        assert b == DATA[:10]


def test_a_file_that_shrinks_meanwhile(pool: BufferPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path)
    fill = _sources.Placed.fill

    def shrinking(self: Any, buffer: Any, size: int) -> int:
        os.truncate(path, 300_001)
        return fill(self, buffer, size)

    monkeypatch.setattr(_sources.Placed, "fill", shrinking)
    with all_back(pool), read(path, pool=pool) as b:
        assert b == DATA[:300_001]


def test_a_sparse_file(pool: BufferPool, tmp_path: Path) -> None:
    path = make(tmp_path, b"")
    os.truncate(path, 40 << 20)
    with all_back(pool), read(path, pool=pool, offset=30 << 20) as b:
        assert b == bytes(10 << 20)


@linux
def test_short_reads_go_on(pool: BufferPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one(fd: int, buffers: Any, offset: int) -> int:
        return os.preadv(fd, (memoryview(buffers[0])[:333_333],), offset)

    monkeypatch.setattr(_sources, "preadv", one)
    with all_back(pool), read(make(tmp_path), pool=pool) as b:
        assert b == DATA


# ---- refused


def test_what_is_no_file(pool: BufferPool, tmp_path: Path) -> None:
    path = make(tmp_path)
    closed = path.open("rb")
    closed.close()
    with path.open() as text, all_back(pool):
        for what, error in [
            (True, TypeError), (None, TypeError), (1.5, TypeError), ([], TypeError), (text, TypeError),
            (io.StringIO("x"), TypeError),
            (-1, ValueError), (closed, ValueError), (tmp_path, IsADirectoryError), (tmp_path / "none", FileNotFoundError),
            (10**6, OSError), ("a\0b", ValueError),
        ]:  # fmt: skip
            with pytest.raises(error):
                read(what, pool=pool)
        with path.open("ab") as writer, pytest.raises(OSError, match="read"):
            read(writer, pool=pool)


def test_arguments_that_make_no_sense(pool: BufferPool, tmp_path: Path) -> None:
    path = make(tmp_path)
    cases: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"offset": -1}, ValueError), ({"offset": True}, TypeError), ({"offset": None}, TypeError), ({"size": -1}, ValueError),
        ({"size": 1.5}, TypeError), ({"size": "many"}, ValueError), ({"pool": 5}, TypeError), ({"offset": 1 << 70}, OverflowError),
    ]  # fmt: skip
    with all_back(pool):
        for arguments, error in cases:
            with pytest.raises(error):
                read(path, **({"pool": pool} | arguments))
        with path.open("rb") as file, pytest.raises(ValueError, match="seek"):
            read(file, pool=pool, offset=1)


@posix
def test_what_cannot_seek_has_no_offset(pool: BufferPool) -> None:
    with pipe() as (reader, _), all_back(pool), pytest.raises(ValueError, match=f"seek, got 15 for {reader}"):
        read(reader, pool=pool, offset=15)
    with all_back(pool), pytest.raises(OSError, match="Bad file"):
        read(10**6, pool=pool, offset=15)


@linux
def test_places_behind_all_files(pool: BufferPool, tmp_path: Path) -> None:
    path = make(tmp_path)
    with all_back(pool):
        for offset in (1 << 63, 1 << 64):
            with pytest.raises(OverflowError, match=f"offset of {offset}"):
                read(path, pool=pool, offset=offset)
        with pytest.raises(OSError, match="Invalid argument") as caught:  # the OS adds the length to it
            read(path, pool=pool, offset=(1 << 63) - 1)
        assert caught.value.filename == str(path)


@pytest.mark.parametrize("kind", ["memory", "gzip"])
def test_an_error_leaves_objects_where_they_stood(tmp_path: Path, kind: str) -> None:
    """In the middle, and where the blocks are to be joined."""
    path = make(tmp_path, gzip.compress(DATA, 1))
    for limit in (300 << 10, 1500 << 10):
        opened: Any = io.BytesIO(DATA) if kind == "memory" else gzip.GzipFile(path)
        with BufferPool(limit) as pool, all_back(pool), opened as file:
            file.seek(7)
            with pytest.raises(mempool.PoolExhausted):
                read(file, pool=pool)
            assert file.tell() == 7
            assert file.read(10) == DATA[7:17]


def test_a_pool_without_room(tmp_path: Path) -> None:
    path = make(tmp_path)
    with BufferPool("64KiB") as pool, all_back(pool):
        with pytest.raises(mempool.PoolExhausted):
            read(path, pool=pool)
        with pytest.raises(mempool.PoolExhausted):
            read(io.BytesIO(DATA), pool=pool)
        with path.open("rb") as file:
            with pytest.raises(mempool.PoolExhausted):
                read(file, pool=pool)
            assert file.tell() == 0
    with pytest.raises(ValueError, match="closed"):
        read(path, pool=pool)


@linux
def test_an_error_of_the_disk(pool: BufferPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int, buffers: Any, offset: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(_sources, "preadv", broken)
    with all_back(pool), pytest.raises(OSError, match="Input/output"):
        read(make(tmp_path), pool=pool)


# ---- past the page cache


@linux
def test_direct_says_where_it_cannot(pool: BufferPool) -> None:
    with all_back(pool), pytest.warns(RuntimeWarning, match="/proc/cpuinfo.*page cache.*O_DIRECT") as caught:
        content = taken("/proc/cpuinfo", pool=pool, direct=True)
    assert len(content) > 10
    assert [warning.filename for warning in caught] == [__file__]


@linux
def test_direct_that_is_refused_by_the_read(pool: BufferPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mempool.io import _direct

    path, refused = make(tmp_path), []

    def refusing(fd: int, buffers: Any, offset: int) -> int:
        import fcntl

        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(offset)
            raise OSError(22, "Invalid argument")
        return os.preadv(fd, buffers, offset)

    monkeypatch.setattr(_direct, "preadv", refusing)
    with all_back(pool), pytest.warns(RuntimeWarning, match="O_DIRECT") as caught:
        content = taken(path, pool=pool, offset=5, direct=True)
    assert content == DATA[5:]
    assert (len(caught), len(refused)) == (1, 1)


@linux
def test_direct_is_for_files(pool: BufferPool, tmp_path: Path) -> None:
    with pipe() as (reader, _), all_back(pool):
        for what in (reader, io.BytesIO(DATA)):
            with pytest.raises(ValueError, match="direct"):
                read(what, pool=pool, direct=True)
        with open(tmp_path / "new", "wb") as file, pytest.raises(OSError, match="Bad file"):
            read(file.fileno(), pool=pool, direct=True)  # not what the descriptor allows


@linux
def test_direct_leaves_the_descriptor_as_it_was(pool: BufferPool, tmp_path: Path) -> None:
    import fcntl

    with open(make(tmp_path), "rb") as file:
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            with read(file.fileno(), pool=pool, direct=True, offset=3) as b:
                assert b == DATA[3:]
        assert fcntl.fcntl(file, fcntl.F_GETFL) == flags


def test_nothing_heavy_is_imported(run_python: Any) -> None:
    heavy = "numpy threading asyncio socket ssl shutil ctypes multiprocessing"
    run_python(f"""
        import mempool.io, sys
        found = [name for name in {heavy!r}.split() if name in sys.modules]
        assert not found, found
    """)
