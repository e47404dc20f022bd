"""`mempool.io.write`: all of it, in place or anew, and errors that say how far it came."""

import array
import errno
import io
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mempool
from aio_support import tls_contexts
from io_support import DATA, Alarm, alarms, all_back, feed, linux, make, pipe, posix
from mempool import BufferPool, PoolExhausted
from mempool.io import _direct, _sinks, copy, read, write, writing
from mempool.io._os import Owned
from support import start

DIRECT = pytest.mark.parametrize("direct", [False, pytest.param(True, marks=linux)])


def pieces(count: int) -> list[bytes]:
    step = -(-len(DATA) // count)
    return [DATA[start : start + step] for start in range(0, len(DATA), step)]


@DIRECT
@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 100_000, 1_000_003])
def test_anew(tmp_path: Path, length: int, direct: bool) -> None:
    path = make(tmp_path, b"x" * 200_000)
    with all_back(mempool.default_pool()):
        assert write(path, DATA[:length], direct=direct) == length
    assert path.read_bytes() == DATA[:length]


@DIRECT
@pytest.mark.parametrize("start", [0, 1, 4096, 5000, 300_000])
@pytest.mark.parametrize("length", [0, 1, 5000, 9000, 200_000])
def test_in_place(tmp_path: Path, start: int, length: int, direct: bool) -> None:
    old = b"x" * 250_000
    expected = old.ljust(start + length if length else 0, b"\0")
    expected = expected[:start] + DATA[:length] + expected[start + length :]
    path = make(tmp_path, old)
    assert write(path, DATA[:length], offset=start, direct=direct) == length
    assert path.read_bytes() == expected
    path.write_bytes(old)
    with path.open("r+b") as file:
        file.seek(7)
        assert write(file.fileno(), DATA[:length], offset=start, direct=direct) == length
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 7
    assert path.read_bytes() == expected


@DIRECT
def test_a_descriptor_where_it_stands(tmp_path: Path, direct: bool) -> None:
    with make(tmp_path, b"x" * 20).open("r+b") as file:
        os.lseek(file.fileno(), 5, os.SEEK_SET)
        for piece in (DATA[:50_000], DATA[50_000:]):
            assert write(file.fileno(), piece, direct=direct) == len(piece)
    assert (tmp_path / "file").read_bytes() == b"xxxxx" + DATA


@DIRECT
@pytest.mark.parametrize("count", [1, 2, 7, 3000])
def test_pieces(tmp_path: Path, count: int, direct: bool) -> None:
    path = tmp_path / "new"
    for data in (pieces(count), iter(pieces(count)), [b"", *pieces(count), bytearray()]):
        assert write(path, data, direct=direct) == len(DATA)
        assert path.read_bytes() == DATA


def test_pieces_larger_than_what_is_copied_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_PIECE", 65536)
    for count in (1, 3, 1000):
        assert write(tmp_path / "new", pieces(count), offset=5, direct=True) == len(DATA)
        assert (tmp_path / "new").read_bytes()[5:] == DATA


def test_data_of_all_kinds(tmp_path: Path) -> None:
    path, numbers = tmp_path / "new", np.arange(60, dtype="<i4").reshape(3, 4, 5)
    with mempool.acquire(10) as b:
        b[:] = b"0123456789"
        for data, expected in [
            (b, b"0123456789"), (b[::2], b"02468"), (b[::-1], b"9876543210"), (bytearray(b"ab"), b"ab"),
            (array.array("i", [1, 2]), None), (numbers, None), (numbers[:, 1:, ::2], None), (numbers.T, None),
            (np.zeros((0, 3)), b""), (np.float64(1), None), ([], b""), ([numbers, b[5:]], numbers.tobytes() + b"56789"),
        ]:  # fmt: skip
            expected = data.tobytes() if expected is None else expected
            assert write(path, data) == len(expected)
            assert path.read_bytes() == expected


def test_no_view_is_left(tmp_path: Path) -> None:
    with mempool.acquire(10) as b:
        write(tmp_path / "new", b)
        write(tmp_path / "new", [b, b], direct=True)
        with pytest.raises(TypeError) as kept:
            write(tmp_path / "new", [b, "x"])
        with pytest.raises(OSError, match="Bad file") as failed:
            write(10**6, [b, b])
        assert kept
        assert failed  # with the frames of the call
        b.resize(5)


def test_data_that_has_no_bytes(tmp_path: Path) -> None:
    """Refused before the file loses its content."""
    path = make(tmp_path, b"old")
    with mempool.acquire(1) as b:
        b.release()
    for data, error in [
        ("text", TypeError), (5, TypeError), (None, TypeError), ([b"x", "y"], TypeError), ([1, 2], TypeError), (b, ValueError),
    ]:  # fmt: skip
        with pytest.raises(error):
            write(path, data)
    for offset in (-1, True, 1.5):
        with pytest.raises((TypeError, ValueError)):
            write(path, b"new", offset=offset)
    assert path.read_bytes() == b"old"


def test_what_is_no_file(tmp_path: Path) -> None:
    path = make(tmp_path)
    closed = path.open("rb")
    closed.close()
    with path.open("a") as text, path.open("rb") as reader, path.open("rb", buffering=0) as raw:
        for what, error in [
            (True, TypeError), (None, TypeError), (1.5, TypeError), ([], TypeError), (text, TypeError), (io.StringIO(), TypeError),
            (-1, ValueError), (closed, ValueError), (tmp_path, IsADirectoryError), (10**6, OSError), (reader.fileno(), OSError),
            (reader, OSError), (raw, OSError),
        ]:  # fmt: skip
            for direct in (False, True):
                with pytest.raises((error, ValueError) if direct else error):
                    write(what, b"new", direct=direct)
    for extra in (b"", b"x"):
        with pytest.raises(OSError, match="Bad file"):
            write(10**6, extra)
    assert path.read_bytes() == DATA


def test_objects(tmp_path: Path) -> None:
    memory = io.BytesIO()
    assert write(memory, pieces(5)) == len(DATA) == len(memory.getvalue())
    with (tmp_path / "a").open("wb") as file, (tmp_path / "b").open("wb", buffering=0) as raw:
        for target in (file, raw):
            target.write(b"ab")
            assert write(target, pieces(5)) == len(DATA)
            assert target.tell() == len(DATA) + 2
            target.write(b"yz")
    for name in "ab":
        assert (tmp_path / name).read_bytes() == b"ab" + DATA + b"yz"
    with pytest.raises(ValueError, match="seek"):
        write(memory, b"x", offset=0)


@posix
def test_what_cannot_seek_has_no_offset(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with all_back(mempool.default_pool()), pipe() as (reader, writer):
        end = os.open(fifo, os.O_RDWR)  # for others to open it without a wait
        for data in (b"x", b""):
            with pytest.raises(ValueError, match=f"seek, got 15 for {writer}"):
                write(writer, data, offset=15)
            with pytest.raises(ValueError, match="seek, got 0 for"):
                write(fifo, data, offset=0)
        os.set_blocking(reader, False)
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
        os.close(end)


def test_places_behind_all_files(tmp_path: Path) -> None:
    path = make(tmp_path)
    for offset in (1 << 63, 1 << 64):
        for data in (b"x", b""):
            with pytest.raises(OverflowError, match=f"offset of {offset}"):
                write(path, data, offset=offset)
    assert path.read_bytes() == DATA


def test_appending(tmp_path: Path) -> None:
    with make(tmp_path, b"old").open("ab") as file:
        assert write(file, b"1") + write(file.fileno(), b"2") == 2
        with pytest.raises(ValueError, match="appends"):
            write(file.fileno(), b"x", offset=0)
        with pytest.warns(RuntimeWarning, match="appends"):
            write(file.fileno(), b"3", direct=True)
    assert (tmp_path / "file").read_bytes() == b"old123"


# ---- what flows


@posix
@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("count", [1, 2000])
def test_a_pipe(blocking: bool, count: int) -> None:
    with pipe() as (reader, writer):
        os.set_blocking(writer, blocking)
        thread = start(lambda: write(writer, pieces(count)))
        with read(reader, size=len(DATA)) as b:
            assert b == DATA
        assert thread.result() == len(DATA)


@posix
@pytest.mark.parametrize("timeout", [None, 0, 120])
def test_a_socket(timeout: float | None) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.settimeout(timeout)
        thread = start(lambda: write(left, pieces(50)))
        with read(right, size=len(DATA)) as b:
            assert b == DATA
        assert thread.result() == len(DATA)


@posix
def test_tls_that_does_not_block(tmp_path: Path) -> None:
    server, client = tls_contexts(tmp_path)
    left, right = socket.socketpair()
    thread = start(lambda: server.wrap_socket(left, server_side=True))
    with client.wrap_socket(right, server_hostname="localhost") as near, thread.result() as far:
        near.setblocking(False)
        far.setblocking(False)
        writing_all = start(lambda: write(near, DATA * 3))
        with read(far, size=3 * len(DATA)) as b:
            assert b == DATA * 3
        assert writing_all.result() == 3 * len(DATA)


@pytest.mark.parametrize("move", [write, lambda target, data: copy(io.BytesIO(data), target)])
def test_an_error_whose_number_is_no_errno_stays_what_it_is(move: Any) -> None:
    class Broken:
        def write(self, data: Any) -> int:
            raise error

    error = ssl.SSLError(1, "[SSL: BAD] on purpose")  # 1 is EPERM, elsewhere
    with pytest.raises(ssl.SSLError) as caught:
        move(Broken(), b"12345")
    assert caught.value is error
    assert error.__notes__[0].startswith("after 0")


@posix
def test_a_socket_that_times_out() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.settimeout(0.01)
        with pytest.raises(TimeoutError):
            write(left, DATA * 20)


@posix
def test_a_broken_pipe() -> None:
    with pipe() as (reader, writer):
        os.close(reader)
        with pytest.raises(BrokenPipeError, match="after 0 of 1000003 bytes"):
            write(writer, DATA)


@posix
def test_signals(tmp_path: Path) -> None:
    with pipe() as (reader, writer), mempool.acquire(1 << 20) as b:
        with pytest.raises(Alarm), alarms():
            write(writer, b)
        b.resize(5)  # no view was left
        feed(os.dup(writer), b"")
        seen: list[int] = []
        os.set_blocking(reader, False)

        def drain() -> None:
            seen.append(1)
            with suppress(BlockingIOError):
                os.read(reader, 1 << 20)

        with alarms(drain, 0.002):
            assert write(writer, DATA[:400_000]) == 400_000
        assert seen


# ---- full


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    import resource

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@linux
def test_a_full_device() -> None:
    with pytest.raises(OSError, match="No space left on device after 0 of 1000003 bytes: '/dev/full'") as caught:
        write("/dev/full", DATA)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")


@posix
@pytest.mark.parametrize("count", [1, 50])
def test_a_limit_on_files(tmp_path: Path, count: int) -> None:
    path = tmp_path / "new"
    with file_size_limit(300_000), pytest.raises(OSError, match="after 300000 of 1000003 bytes") as caught:
        write(path, pieces(count))
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == DATA[:300_000]


FULL = """
import errno, os, sys
import mempool, mempool.io
target, source = sys.argv[1], sys.argv[2]
for direct in (False, True):
    try:
        mempool.io.write(target, bytes(10**6), direct=direct)
    except OSError as error:
        size = os.path.getsize(target)
        assert error.errno == errno.ENOSPC and error.filename == target, error
        assert f"after {size} of 1000000 bytes" in str(error) and 0 < size < 10**6, (error, size)
    else:
        raise SystemExit("there was room")
    os.unlink(target)
try:
    mempool.io.copy(source, target)
except OSError as error:
    size = os.path.getsize(target)
    assert (error.errno, error.filename, error.filename2) == (errno.ENOSPC, source, target), error
    assert f"after {size} bytes" in str(error) and 0 < size < 10**6, (error, size)
else:
    raise SystemExit("there was room")
assert not mempool.default_pool().stats().live
print("ok")
"""


@linux
@pytest.mark.nosan
def test_a_full_disk(tmp_path: Path) -> None:
    """A real one, of 256 KiB, in a mount namespace of its own."""
    source, disk = make(tmp_path), tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=256k none {disk}"
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*unshare, mount], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace to be had")
    (tmp_path / "full.py").write_text(FULL)
    run = f"{mount} && exec {sys.executable} -W ignore {tmp_path / 'full.py'} {disk / 'new'} {source}"
    done = subprocess.run([*unshare, run], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


# ---- taken in parts, or refused


@posix
def test_parts_that_are_taken_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(fd: int, views: Any) -> int:
        return os.writev(fd, [b"".join(views)[:777]])

    monkeypatch.setattr(_sinks, "writev", few)
    assert write(tmp_path / "new", pieces(100)[:10]) == 100_010
    assert (tmp_path / "new").read_bytes() == DATA[:100_010]


@posix
def test_nothing_taken_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sinks, "writev", lambda fd, views: 0)
    with pytest.raises(OSError, match="after 0 of 5"):
        write(tmp_path / "new", b"12345")


@linux
def test_direct_that_is_refused_by_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, buffers: Any, offset: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(writing, "pwritev", refuse)
    with pytest.warns(RuntimeWarning, match="O_DIRECT") as caught:
        assert write(tmp_path / "new", DATA, direct=True) == len(DATA)
    assert (len(caught), caught[0].filename) == (1, __file__)
    assert (tmp_path / "new").read_bytes() == DATA


@linux
def test_direct_without_memory_says_how_far_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "default_pool", lambda: BufferPool(limit=4096))
    monkeypatch.setattr(writing, "open_again", lambda name, fd, flags: Owned(os.dup(fd)))  # some file systems refuse
    with open(tmp_path / "new", "wb") as file:
        file.seek(10)
        with pytest.raises(PoolExhausted) as caught:
            write(file, DATA, direct=True)
        assert caught.value.__notes__ == [f"4086 of {len(DATA)} bytes had been written"]
        assert file.tell() == 4096
    assert (tmp_path / "new").read_bytes() == bytes(10) + DATA[:4086]


@linux
def test_direct_is_for_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pipe() as (_, writer):
        for what in (writer, io.BytesIO()):
            with pytest.raises(ValueError, match="direct"):
                write(what, b"x", direct=True)
    monkeypatch.delattr(_direct.os, "O_DIRECT")
    with pytest.warns(RuntimeWarning, match="has no O_DIRECT"):
        assert write(tmp_path / "new", DATA, direct=True) == len(DATA)
