"""Programs and libraries that take an io.BytesIO take a BytesStream, and produce the same bytes."""

import csv
import gzip
import hashlib
import io
import json
import pickle
import shutil
import socket
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mempool.io import BytesStream
from tests.support import KIB, start

DATA = b"".join(b"%d,%d\n" % (i, i * i) for i in range(20_000))


def zipped(file: Any) -> object:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("a.csv"), DATA)
        with archive.open(zipfile.ZipInfo("b"), "w") as member:
            member.write(DATA)
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        return [archive.read(name) for name in archive.namelist()]


def tarred(file: Any) -> object:
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        info = tarfile.TarInfo("a.csv")
        info.size = len(DATA)
        archive.addfile(info, io.BytesIO(DATA))
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        member = archive.extractfile("a.csv")
        assert member is not None
        return member.read()


def gzipped(file: Any) -> object:
    with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
        packed.write(DATA)
    file.seek(0)
    with gzip.GzipFile(fileobj=file) as packed:
        return packed.read()


def csv_lines(file: Any) -> object:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    csv.writer(text).writerows([i, "ü" * (i % 7)] for i in range(3000))
    text.seek(0)
    rows = list(csv.reader(text))
    text.detach()
    return rows


def json_lines(file: Any) -> object:
    text = io.TextIOWrapper(file, encoding="utf-8", write_through=True)
    json.dump({"numbers": list(range(3000))}, text)
    text.detach()
    file.seek(0)
    return json.load(file)


def pickled(file: Any) -> object:
    pickle.Pickler(file).dump({"data": DATA, "n": list(range(1000))})
    pickle.dump("second", file)
    file.seek(0)
    reader = pickle.Unpickler(file)
    return reader.load(), reader.load()


def numpy_saved(file: Any) -> object:
    np.save(file, np.arange(5000.0).reshape(50, 100))
    np.savez(file, a=np.arange(10))
    file.seek(0)
    return np.load(file).tolist()


def read_buffered(file: Any) -> object:
    file.write(DATA)
    file.seek(0)
    reader = io.BufferedReader(file, 1000)
    first = reader.readline(), reader.peek(5)[:5], reader.read(3000)
    reader.seek(-10, 2)
    last = reader.readlines()
    reader.detach()
    return first, last


def random_buffered(file: Any) -> object:
    both = io.BufferedRandom(file, 512)
    both.write(DATA)
    both.seek(1000)
    middle = both.read(10)
    both.write(b"here")
    both.truncate(5000)
    both.detach()
    return middle


def copied(file: Any) -> object:
    shutil.copyfileobj(io.BytesIO(DATA), file, 1000)
    file.seek(0)
    target = io.BytesIO()
    shutil.copyfileobj(file, target)
    return target.getvalue()


def pictured(file: Any) -> object:
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.arange(64 * 64 * 3, dtype="u1").reshape(64, 64, 3)).save(file, "PNG")
    file.seek(0)
    with image.open(file) as picture:
        return np.asarray(picture).tobytes()


def tabled(file: Any) -> object:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": range(1000), "b": [f"x{i}" for i in range(1000)]})
    frame.to_csv(file, index=False)
    file.seek(0)
    assert pandas.read_csv(file).equals(frame)
    return None


def arrowed(file: Any) -> object:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"a": list(range(1000))})
    with arrow.ipc.new_file(arrow.PythonFile(file, mode="w"), table.schema) as writer:
        writer.write_table(table)
    file.seek(0)
    assert arrow.ipc.open_file(file).read_all().equals(table)
    return None


PROGRAMS = [
    zipped,
    tarred,
    gzipped,
    csv_lines,
    json_lines,
    pickled,
    numpy_saved,
    read_buffered,
    random_buffered,
    copied,
]
LIBRARIES = [pictured, tabled, arrowed]


@pytest.mark.parametrize("program", [*PROGRAMS, *LIBRARIES])
def test_a_program_does_the_same(program: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9)  # gzip notes the time
    real, stream = io.BytesIO(), BytesStream()
    assert program(stream) == program(real)
    if not real.closed:
        assert stream.getvalue() == real.getvalue()
    assert stream.closed == real.closed


def test_a_socket_sends_a_snapshot() -> None:
    stream = BytesStream()
    for start_at in range(0, len(DATA), KIB):
        stream.write(DATA[start_at : start_at + KIB])
    left, right = socket.socketpair()
    with left, right:

        def send() -> None:
            views = stream.buffers()
            while views:
                sent = left.sendmsg(views)
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if views:
                    views[0] = views[0][sent:]
            left.shutdown(socket.SHUT_WR)

        sender = start(send)
        assert b"".join(iter(lambda: right.recv(64 * KIB), b"")) == DATA
        sender.result()


def test_what_takes_bytes_takes_a_snapshot() -> None:
    stream = BytesStream()
    for start_at in range(0, len(DATA), KIB):
        stream.write(DATA[start_at : start_at + KIB])
    digest, crc, packer = hashlib.sha256(), 0, zlib.compressobj()
    packed = b""
    for view in stream.buffers():
        digest.update(view)
        crc = zlib.crc32(view, crc)
        packed += packer.compress(view)
    assert digest.digest() == hashlib.sha256(DATA).digest()
    assert crc == zlib.crc32(DATA)
    assert zlib.decompress(packed + packer.flush()) == DATA
