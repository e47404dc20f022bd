"""`mempool.io.copy`: from anything to anything, each byte once, by whichever way the OS has."""

import errno
import io
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mempool
from io_support import DATA, Alarm, alarms, all_back, feed, linux, make, pipe, posix
from mempool.io import copy, copying
from support import start

WAYS = ["copy_file_range", "sendfile", "blocks"]


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    with all_back(mempool.default_pool()):
        yield


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Only this way is there, and those that every system has."""
    for name in WAYS[: WAYS.index(request.param)]:
        monkeypatch.delattr(copying.os, name, raising=False)
    return str(request.param)


@pytest.mark.parametrize("size", [None, 0, 1, 333_333, 1_000_003, 5_000_000])
def test_files(tmp_path: Path, way: str, size: int | None) -> None:
    path, new = make(tmp_path), make(tmp_path, b"x" * 3_000_000, "new")
    assert copy(path, new, size=size) == len(DATA[:size])
    assert new.read_bytes() == DATA[:size]


def test_descriptors_and_objects_stand_behind_what_was_copied(tmp_path: Path, way: str) -> None:
    path = make(tmp_path)
    for buffering in (-1, 0, None):
        with path.open("rb", buffering or -1) as source, (tmp_path / "new").open("wb", buffering or -1) as target:
            source.seek(10)
            target.write(b"ab")
            target.flush()
            ends: Any = (source, target) if buffering is not None else (source.fileno(), target.fileno())
            assert copy(*ends, size=1000) == 1000
            assert copy(*ends) == len(DATA) - 1010
            if buffering is None:
                assert os.lseek(source.fileno(), 0, os.SEEK_CUR) == len(DATA)
                continue
            assert (source.tell(), target.tell()) == (len(DATA), len(DATA) - 8)
            target.write(b"yz")
            assert source.read() == b""
        assert (tmp_path / "new").read_bytes() == b"ab" + DATA[10:] + b"yz"


def test_what_a_buffered_writer_has_goes_first(tmp_path: Path, way: str) -> None:
    with (tmp_path / "new").open("wb") as target:
        target.write(b"first")
        assert copy(make(tmp_path), target, size=9) == 9
        target.write(b"last")
    assert (tmp_path / "new").read_bytes() == b"first" + DATA[:9] + b"last"


def test_what_a_buffered_reader_has_is_copied(tmp_path: Path, way: str) -> None:
    with make(tmp_path).open("rb") as source:
        assert source.read(3) == DATA[:3]
        assert copy(source, tmp_path / "new", size=5) == 5
        assert source.read(3) == DATA[8:11]
    assert (tmp_path / "new").read_bytes() == DATA[3:8]


def test_appending(tmp_path: Path, way: str) -> None:
    new = make(tmp_path, b"old", "new")
    with new.open("ab") as target:
        assert copy(make(tmp_path), target) == len(DATA)
    assert new.read_bytes() == b"old" + DATA


def test_objects(tmp_path: Path) -> None:
    memory = io.BytesIO()
    assert copy(make(tmp_path), memory) == len(DATA)
    memory.seek(5)
    assert copy(memory, tmp_path / "new", size=1000) == 1000
    assert memory.tell() == 1005
    assert (tmp_path / "new").read_bytes() == DATA[5:1005]


# ---- what flows


@posix
@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("kind", ["pipe", "socket", "socket object"])
def test_to_and_from_what_flows(tmp_path: Path, way: str, kind: str, blocking: bool) -> None:
    path = make(tmp_path)
    left, right = socket.socketpair()
    with left, right, pipe() as ends:
        reader, writer = ends if kind == "pipe" else (right.fileno(), left.fileno())
        for fd in (reader, writer):
            os.set_blocking(fd, blocking)
        if not blocking:
            left.settimeout(0)
            right.settimeout(0)
        target: Any = left if kind == "socket object" else writer
        source: Any = right if kind == "socket object" else reader

        def send() -> int:
            done = copy(path, target)
            os.close(writer) if kind == "pipe" else left.shutdown(socket.SHUT_WR)
            return done

        thread = start(send)
        assert copy(source, tmp_path / "new", size=100) == 100
        assert copy(source, tmp_path / "rest") == len(DATA) - 100
        assert thread.result() == len(DATA)
    assert (tmp_path / "new").read_bytes() + (tmp_path / "rest").read_bytes() == DATA


@posix
def test_what_flows_is_handed_on_at_once(tmp_path: Path) -> None:
    """A pipe is not held up until a block is full."""
    with pipe() as (reader, writer), pipe() as (far, near):
        thread = start(lambda: copy(reader, near))
        for word in (b"one", b"two"):
            os.write(writer, word)
            assert os.read(far, 10) == word
        os.close(writer)
        assert thread.result() == 6


@posix
def test_a_broken_pipe(tmp_path: Path, way: str) -> None:
    with pipe() as (reader, writer), make(tmp_path).open("rb") as source:
        os.close(reader)
        with pytest.raises(BrokenPipeError, match="after 0 bytes"):
            copy(source, writer)
        assert source.tell() == 0


@posix
def test_a_signal_that_raises(tmp_path: Path, way: str) -> None:
    """The source stands where the last call that ended had brought it."""
    with pipe() as (reader, writer), make(tmp_path).open("rb") as source:
        with pytest.raises(Alarm), alarms():
            copy(source, writer)
        taken = source.tell()
        os.close(writer)
        with mempool.io.read(reader) as b:
            assert taken <= len(b) < len(DATA)
            assert b == DATA[: len(b)]


# ---- files that are not what they seem


@linux
def test_files_that_do_not_say_their_size(tmp_path: Path, way: str) -> None:
    assert copy("/proc/self/status", tmp_path / "new") == (tmp_path / "new").stat().st_size > 10


@posix
@pytest.mark.parametrize("size", [None, 5_000_000, 9_000_000])
def test_holes_stay_holes(tmp_path: Path, way: str, size: int | None) -> None:
    path, new = tmp_path / "sparse", tmp_path / "new"
    with path.open("wb") as file:
        file.truncate(20 << 20)
        for place in (4 << 20, (4 << 20) + 300_000, 10 << 20):
            file.seek(place)
            file.write(DATA[:100_001])
    expected = path.read_bytes()[:size]
    assert copy(path, new, size=size) == len(expected)
    assert new.read_bytes() == expected
    if path.stat().st_blocks * 512 < 2 << 20:
        assert new.stat().st_blocks * 512 < 2 << 20
    with new.open("r+b") as file:  # a file that had content gets the zeros
        file.write(b"x" * len(expected))
        file.seek(0)
        assert copy(path, file.fileno(), size=size) == len(expected)
    assert new.read_bytes() == expected


@linux
@pytest.mark.parametrize("refused", ["copy_file_range", "sendfile"])
def test_holes_stay_holes_where_the_os_refuses(tmp_path: Path, refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does between file systems."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    for name in WAYS[: WAYS.index(refused) + 1]:
        monkeypatch.setattr(copying.os, name, refuse)
    path, new = tmp_path / "sparse", tmp_path / "new"
    with path.open("wb") as file:
        file.write(DATA[:5000])
        file.seek(8 << 20)
        file.write(DATA[:5000])
        file.truncate(16 << 20)
    assert copy(path, new) == 16 << 20
    assert new.read_bytes() == path.read_bytes()
    assert new.stat().st_blocks * 512 < max(1 << 20, 2 * path.stat().st_blocks * 512)


# ---- memory


def lend_most(pool: mempool.BufferPool) -> mempool.Buffer:
    """Leave no room for a block."""
    pool.trim()
    pool.limit = pool.stats().in_use + (1 << 20)
    return pool.acquire(900 << 10)


@posix
def test_a_full_pool_does_not_matter_where_the_os_copies(tmp_path: Path) -> None:
    pool, path = mempool.default_pool(), make(tmp_path)
    old = pool.limit
    try:
        with lend_most(pool):
            assert copy(path, tmp_path / "new") == len(DATA)
            assert copy(path, io.BytesIO(), size=0) == 0
            with pytest.raises(mempool.PoolExhausted) as caught:
                copy(path, io.BytesIO())
    finally:
        pool.limit = old
    assert caught.value.__notes__ == ["0 bytes had been copied"]
    assert (tmp_path / "new").read_bytes() == DATA


@posix
def test_a_file_that_grows_meanwhile(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, DATA[:1000])
    if way != "blocks":
        call, more = getattr(os, way), iter([DATA[1000:5000], DATA[5000:]])

        def growing(*arguments: Any) -> Any:
            done = call(*arguments)
            with path.open("ab") as file:
                file.write(next(more, b""))
            return done

        monkeypatch.setattr(copying.os, way, growing)
        assert copy(path, tmp_path / "new") == len(DATA)
    else:
        assert copy(path, tmp_path / "new") == 1000
    assert (tmp_path / "new").read_bytes() == path.read_bytes()


REFUSED = [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF]


@linux
@pytest.mark.parametrize("number", REFUSED)
def test_each_way_takes_over_where_another_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Also in the middle: no byte is lost, none comes twice."""
    tries = []
    for name in ("copy_file_range", "sendfile"):
        calls = getattr(os, name)

        def partly(*arguments: Any, name: str = name, calls: Any = calls) -> Any:
            tries.append(name)
            if tries.count(name) == 3:
                raise OSError(number, os.strerror(number))
            at = 2 if name == "copy_file_range" else 3
            return calls(*arguments[:at], min(arguments[at], 77_777), *arguments[at + 1 :])

        monkeypatch.setattr(copying.os, name, partly)
    path = make(tmp_path)
    assert copy(path, tmp_path / "new") == len(DATA)
    assert (tmp_path / "new").read_bytes() == DATA
    assert (tries.count("copy_file_range"), tries.count("sendfile")) == (3, 3)


# ---- refused


def test_the_same_file(tmp_path: Path) -> None:
    path, link = make(tmp_path), tmp_path / "link"
    os.link(path, link)
    with path.open("r+b") as file:
        for source, target in [
            (path, path),
            (path, link),
            (path, file),
            (file, path),
            (file, file.fileno()),
            (str(path), file),
        ]:
            with pytest.raises(shutil.SameFileError, match="same file"):
                copy(source, target)
    assert path.read_bytes() == DATA


@linux
def test_a_full_device(tmp_path: Path, way: str) -> None:
    path = make(tmp_path)
    with pytest.raises(OSError, match="No space left on device after 0 bytes") as caught:
        copy(path, "/dev/full")
    assert (caught.value.errno, caught.value.filename, caught.value.filename2) == (errno.ENOSPC, str(path), "/dev/full")


@posix
def test_a_limit_on_files(tmp_path: Path, way: str) -> None:
    import resource

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with make(tmp_path).open("rb") as source:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, old[1]))
        try:
            with pytest.raises(OSError, match="after 300000 bytes") as caught:
                copy(source, tmp_path / "new")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert (caught.value.errno, source.tell()) == (errno.EFBIG, 300_000)
    assert (tmp_path / "new").read_bytes() == DATA[:300_000]


def test_what_is_no_file(tmp_path: Path) -> None:
    path = make(tmp_path)
    for bad, error in [
        (True, TypeError), (None, TypeError), (1.5, TypeError), (io.StringIO(), TypeError), (-1, ValueError),
        (tmp_path, IsADirectoryError), (10**6, OSError),
    ]:  # fmt: skip
        with pytest.raises(error):
            copy(bad, tmp_path / "new")
        with pytest.raises(error):
            copy(path, bad)
    assert not (tmp_path / "new").exists()
    for size in (-1, 1.5, True):
        with pytest.raises((TypeError, ValueError)):
            copy(path, tmp_path / "new", size=size)
    with pytest.raises(FileNotFoundError):
        copy(tmp_path / "none", path)
    assert path.read_bytes() == DATA


@posix
def test_a_pipe_fed_slowly_to_a_path(tmp_path: Path) -> None:
    with pipe() as (reader, writer):
        thread = start(feed, writer, DATA[:20_000], 100)
        assert copy(reader, tmp_path / "new") == 20_000
        thread.result()
    assert (tmp_path / "new").read_bytes() == DATA[:20_000]
