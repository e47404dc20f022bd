"""Every library that takes bytes: content, copies where promised none, and when memory returns. See `docs/consumers.md`."""

import array
import base64
import binascii
import ctypes
import hashlib
import hmac
import io
import json
import os
import re
import socket
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mempool
from lease_views import lend, lend_to_strangers, pattern

SIZE = 4096


@pytest.fixture
def pool() -> mempool.BufferPool:
    return mempool.BufferPool(idle_timeout=None)


def held(pool: mempool.BufferPool) -> int:
    return pool.stats().in_use + pool.stats().retired


def check_holds_memory(make: Callable[[mempool.Buffer], Any], read: Callable[[Any], bytes], expected: bytes) -> None:
    """The consumer keeps the memory, not the Buffer: it returns when the consumer's object dies."""
    pool = mempool.BufferPool(idle_timeout=None)
    buffer = lend(pool, SIZE)
    made = make(buffer)
    buffer.release()
    assert (pool.stats().live, pool.stats().retired) == (0, SIZE)
    lend_to_strangers(pool, SIZE)
    assert read(made) == expected
    del made
    assert pool.stats().retired == 0


def check_holds_buffer(make: Callable[[mempool.Buffer], Any]) -> None:
    """The consumer keeps the Buffer: deleting the name ends nothing."""
    pool = mempool.BufferPool(idle_timeout=None)
    buffer = lend(pool, SIZE)
    made = make(buffer)
    del buffer
    assert (pool.stats().live, pool.stats().retired) == (1, 0)
    del made
    assert held(pool) == 0


def check_holds_nothing(use: Callable[[mempool.Buffer], object]) -> None:
    """What the call returned lives on, and the memory is back at once."""
    pool = mempool.BufferPool(limit=SIZE, idle_timeout=None)
    buffer = lend(pool, SIZE)
    address, result = buffer.address, use(buffer)
    buffer.release()
    assert pool.acquire(SIZE).address == address
    del result


# ---- arrays and tables ----


def test_numpy_frombuffer(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    made = np.frombuffer(buffer, "<u2")
    assert made.ctypes.data == buffer.address
    assert made.flags.writeable
    assert type(made.base) is memoryview
    check_holds_memory(lambda b: np.frombuffer(b, "<u2"), lambda v: v.tobytes(), pattern(SIZE))


def test_numpy_asarray(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    assert np.asarray(buffer).ctypes.data == buffer.address
    assert np.array(buffer).ctypes.data != buffer.address
    check_holds_memory(np.asarray, lambda v: v.tobytes(), pattern(SIZE))
    check_holds_nothing(np.array)


def test_numpy_ndarray_keeps_the_buffer(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    made: Any = np.ndarray(SIZE, "u1", buffer=buffer)
    assert made.base is buffer
    assert made.ctypes.data == buffer.address
    check_holds_buffer(lambda b: np.ndarray(SIZE, "u1", buffer=b))
    check_holds_memory(lambda b: np.ndarray(SIZE, "u1", buffer=memoryview(b)), lambda v: v.tobytes(), pattern(SIZE))


def test_numpy_array_whose_base_is_released_by_hand() -> None:
    """NumPy's own hole, shown with a bytearray: it looks at the memory, but its base no longer keeps it."""
    data = bytearray(b"abc")
    made: Any = np.frombuffer(data, "u1")
    with pytest.raises(BufferError):
        data.clear()
    made.base.release()
    data.clear()
    pool = mempool.BufferPool(idle_timeout=None)
    buffer = lend(pool, SIZE)
    made = np.frombuffer(buffer, "u1")
    made.base.release()
    buffer.release()
    assert pool.stats().retired == 0


def test_array_method_has_no_such_hole(pool: mempool.BufferPool) -> None:
    made: Any = lend(pool, SIZE).array()
    assert not hasattr(made.base, "release")
    assert memoryview(made.base) == pattern(SIZE)
    check_holds_memory(lambda b: b.array(), lambda v: v.tobytes(), pattern(SIZE))


def test_numpy_from_dlpack(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    assert np.from_dlpack(buffer).ctypes.data == buffer.address
    check_holds_memory(np.from_dlpack, lambda v: v.tobytes(), pattern(SIZE))


def test_numpy_writes_into_a_buffer(pool: mempool.BufferPool) -> None:
    buffer = pool.acquire(SIZE)
    np.copyto(buffer.array("f8"), 2.0)
    np.add(1.0, buffer.array("f8"), out=buffer.array("f8"))
    assert buffer.tobytes() == struct.pack("d", 3.0) * (SIZE // 8)


def test_numpy_tofile_and_save(pool: mempool.BufferPool, tmp_path: Path) -> None:
    with lend(pool, SIZE) as buffer:
        buffer.array().tofile(tmp_path / "raw")
        np.save(tmp_path / "saved.npy", buffer.array("<u4"))
    assert (tmp_path / "raw").read_bytes() == pattern(SIZE)
    assert np.load(tmp_path / "saved.npy").tobytes() == pattern(SIZE)
    assert held(pool) == 0


def test_pyarrow(pool: mempool.BufferPool) -> None:
    pa = pytest.importorskip("pyarrow")
    buffer = lend(pool, SIZE)
    made = pa.py_buffer(buffer)
    assert (made.address, made.size, made.is_mutable) == (buffer.address, SIZE, True)
    check_holds_memory(pa.py_buffer, lambda v: v.to_pybytes(), pattern(SIZE))


def test_pyarrow_arrays_and_streams(pool: mempool.BufferPool) -> None:
    pa = pytest.importorskip("pyarrow")

    def table(buffer: mempool.Buffer) -> Any:
        column = pa.Array.from_buffers(pa.uint8(), SIZE, [None, pa.py_buffer(buffer)])
        return pa.table({"column": column})

    check_holds_memory(table, lambda t: bytes(t["column"].to_pylist()), pattern(SIZE))
    check_holds_memory(lambda b: pa.BufferReader(b), lambda r: r.read(), pattern(SIZE))
    with lend(pool, SIZE) as buffer, pa.FixedSizeBufferWriter(pa.py_buffer(buffer)) as writer:
        writer.write(b"hello")
    assert held(pool) in (0, SIZE)  # the writer lives on as a name of this frame
    del writer
    assert held(pool) == 0


def test_pyarrow_ipc_from_a_buffer(pool: mempool.BufferPool) -> None:
    pa = pytest.importorskip("pyarrow")
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([("n", pa.int64())])) as writer:
        writer.write_batch(pa.record_batch({"n": list(range(100))}))
    data = sink.getvalue()
    buffer = pool.acquire(data.size)
    buffer[:] = data
    table = pa.ipc.open_stream(buffer).read_all()
    inside = table["n"].chunk(0).buffers()[1].address
    assert buffer.address <= inside < buffer.address + len(buffer)
    buffer.release()
    lend_to_strangers(pool, data.size)
    assert table["n"].to_pylist() == list(range(100))
    del table
    assert held(pool) == 0


def test_pandas_without_a_copy(pool: mempool.BufferPool) -> None:
    pd = pytest.importorskip("pandas")
    buffer = lend(pool, SIZE)
    frame = pd.DataFrame(buffer.array("<u4", (SIZE // 8, 2)), columns=["a", "b"], copy=False)
    assert np.shares_memory(frame.to_numpy(), buffer.array())
    series = pd.Series(buffer.array("<u4"), copy=False)
    assert series.to_numpy().ctypes.data == buffer.address
    del frame, series
    check_holds_memory(lambda b: pd.Series(b.array("<u4"), copy=False), lambda s: s.to_numpy().tobytes(), pattern(SIZE))


def test_h5py(pool: mempool.BufferPool, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "file.h5", "w") as file:
        with lend(pool, SIZE) as buffer:
            file.create_dataset("data", data=buffer.array("<u2"))
            file.create_dataset("bytes", data=np.asarray(buffer))
        assert held(pool) == 0
        with pool.acquire(SIZE) as buffer:
            file["data"].read_direct(buffer.array("<u2"))
            assert buffer.tobytes() == pattern(SIZE)
            file["bytes"].read_direct(buffer.array(), np.s_[10:20], np.s_[0:10])
            assert bytes(buffer[:10]) == pattern(SIZE)[10:20]
            file["data"].write_direct(buffer.array("<u2"))
    assert held(pool) == 0


def test_pillow(pool: mempool.BufferPool) -> None:
    image_module = pytest.importorskip("PIL.Image")
    pixels = 64 * 64

    def image(buffer: mempool.Buffer) -> Any:
        return image_module.frombuffer("L", (64, 64), buffer, "raw", "L", 0, 1)

    buffer = lend(pool, pixels)
    made = image(buffer)
    assert made.getpixel((5, 0)) == pattern(pixels)[5]
    buffer[5] = 200
    assert made.getpixel((5, 0)) == 200
    made.save(io.BytesIO(), "png")
    del made, buffer
    check_holds_memory(image, lambda i: i.tobytes(), pattern(SIZE))
    check_holds_nothing(lambda b: image_module.frombytes("L", (64, 64), b))


# ---- the standard library ----


@pytest.mark.parametrize("name", ["md5", "sha256", "blake2b", "sha3_256"])
@pytest.mark.parametrize("nbytes", [SIZE, 1 << 20])  # from 2047 bytes on they hash without the interpreter's lock
def test_hashlib(pool: mempool.BufferPool, name: str, nbytes: int) -> None:
    buffer = lend(pool, nbytes)
    assert hashlib.new(name, buffer).digest() == hashlib.new(name, pattern(nbytes)).digest()
    check_holds_nothing(lambda b: hashlib.new(name, b))


def test_hmac_and_checksums(pool: mempool.BufferPool) -> None:
    buffer, data = lend(pool, SIZE), pattern(SIZE)
    assert hmac.digest(b"key", buffer, "sha256") == hmac.digest(b"key", data, "sha256")
    assert zlib.crc32(buffer) == zlib.crc32(data) == binascii.crc32(buffer)
    check_holds_nothing(zlib.crc32)


def test_zlib(pool: mempool.BufferPool) -> None:
    buffer, data = lend(pool, SIZE), pattern(SIZE)
    packed = zlib.compress(buffer)
    assert zlib.decompress(packed) == data
    stream = zlib.compressobj()
    assert zlib.decompress(stream.compress(buffer) + stream.flush()) == data
    with pool.acquire(len(packed)) as other:
        other[:] = packed
        assert zlib.decompress(other) == data
    check_holds_nothing(zlib.compress)
    check_holds_nothing(lambda b: zlib.compressobj().compress(b))


def test_struct(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    assert struct.unpack_from("<IH", buffer, 8) == struct.unpack_from("<IH", pattern(SIZE), 8)
    struct.pack_into("<I", buffer, 0, 0xDEADBEEF)
    assert bytes(buffer[:4]) == b"\xef\xbe\xad\xde"
    check_holds_nothing(lambda b: struct.unpack_from("4s", b))
    check_holds_memory(
        lambda b: struct.iter_unpack("4s", b), lambda rest: b"".join(item for (item,) in rest), pattern(SIZE)
    )


def test_re(pool: mempool.BufferPool) -> None:
    buffer = pool.acquire(SIZE)
    buffer[:] = b"key=value;" + bytes(SIZE - 10)
    match = re.search(rb"(\w+)=(\w+);", buffer)
    assert match is not None
    assert match.groups() == (b"key", b"value")
    assert match.string is buffer
    assert re.findall(rb"\w+", buffer) == [b"key", b"value"]
    assert re.sub(rb"\0+", b"", buffer) == b"key=value;"
    buffer.release()
    assert held(pool) == 0
    with pytest.raises(TypeError, match="Buffer"):  # so `re` words it, for a released memoryview too
        match.group()
    del match
    check_holds_buffer(lambda b: re.search(rb".", b, re.DOTALL))
    check_holds_nothing(lambda b: re.findall(rb"..", b))
    check_holds_memory(  # it goes on searching the old bytes; to read a match, `re` asks the released Buffer
        lambda b: re.finditer(rb"\x05", b), lambda found: bytes([next(found).start()]), bytes([pattern(SIZE).index(5)])
    )


def test_ctypes(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    made = (ctypes.c_ubyte * SIZE).from_buffer(buffer)
    assert ctypes.addressof(made) == buffer.address
    made[0] = 200
    assert buffer[0] == 200
    ctypes.memset(ctypes.addressof(made), 7, 16)
    assert bytes(buffer[:16]) == bytes([7]) * 16
    with pytest.raises(ValueError, match="small"):
        (ctypes.c_ubyte * (SIZE + 1)).from_buffer(buffer)
    check_holds_memory((ctypes.c_ubyte * SIZE).from_buffer, bytes, pattern(SIZE))
    check_holds_nothing((ctypes.c_ubyte * SIZE).from_buffer_copy)


def test_bytes_and_bytearray(pool: mempool.BufferPool) -> None:
    buffer, data = lend(pool, SIZE), pattern(SIZE)
    assert bytes(buffer) == bytearray(buffer) == buffer == data
    assert b"".join([buffer, buffer]) == data * 2
    assert data + buffer[:] == data * 2  # type: ignore[operator]
    assert bytearray(b"x").join([buffer[:2], buffer[2:4]]) == data[:2] + b"x" + data[2:4]
    extended = bytearray()
    extended += buffer
    assert extended == data
    assert b"\x01\x02" in buffer.tobytes()
    assert data.startswith(bytes(buffer[:10]))
    assert int.from_bytes(buffer[:8], "little") == int.from_bytes(data[:8], "little")
    assert str(buffer[10:20], "latin-1") == data[10:20].decode("latin-1")
    assert list(buffer) == list(data)
    assert 77 in buffer
    for use in (bytes, bytearray, list):
        check_holds_nothing(use)


def test_array_module(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    made = array.array("I")
    made.frombytes(buffer)
    assert made.tobytes() == pattern(SIZE)
    buffer[:] = made
    check_holds_nothing(lambda b: array.array("B").frombytes(b))


def test_io(pool: mempool.BufferPool) -> None:
    buffer, data = lend(pool, SIZE), pattern(SIZE)
    assert io.BytesIO(buffer).getvalue() == data
    stream = io.BytesIO(data[::-1])
    assert stream.readinto(buffer) == SIZE
    assert buffer == data[::-1]
    stream.seek(0)
    stream.write(buffer)
    assert io.BufferedReader(io.BytesIO(data)).readinto(buffer) == SIZE  # type: ignore[arg-type]
    assert buffer == data
    check_holds_nothing(io.BytesIO)


def test_json_base64_binascii(pool: mempool.BufferPool) -> None:
    buffer, data = lend(pool, SIZE), pattern(SIZE)
    assert base64.b64encode(buffer) == base64.b64encode(data)
    assert binascii.hexlify(buffer) == data.hex().encode()
    text = json.dumps({"key": list(range(50))}).encode()
    with pool.acquire(len(text)) as document:
        document[:] = text
        assert json.loads(document.tobytes()) == {"key": list(range(50))}
        assert json.loads(str(document[:], "utf-8")) == {"key": list(range(50))}
    for use in (base64.b64encode, binascii.hexlify):
        check_holds_nothing(use)


def test_sqlite(pool: mempool.BufferPool) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table t (data blob)")

    def insert(buffer: mempool.Buffer) -> object:
        return connection.execute("insert into t values (?)", (buffer,))

    insert(lend(pool, SIZE))
    assert connection.execute("select data from t").fetchone() == (pattern(SIZE),)
    with connection.blobopen("t", "data", 1) as blob, pool.acquire(SIZE) as buffer:
        buffer[:] = blob.read()
        buffer[:5] = b"hello"
        blob.seek(0)
        blob.write(buffer)
        blob[5:10] = buffer[:5]
    assert connection.execute("select data from t").fetchone()[0][:10] == b"hellohello"
    connection.execute("delete from t")
    connection.close()
    assert held(pool) == 0


# ---- files and sockets ----


def test_files(pool: mempool.BufferPool, tmp_path: Path) -> None:
    path, data = tmp_path / "file", pattern(SIZE)
    with path.open("wb") as file, lend(pool, SIZE) as buffer:
        assert file.write(buffer) == SIZE
        assert file.write(buffer[10:20]) == 10
    assert path.read_bytes() == data + data[10:20]
    for buffering in (0, -1):
        with path.open("rb", buffering=buffering) as file, pool.acquire(SIZE) as buffer:
            assert file.readinto(buffer) == SIZE
            assert buffer == data
    assert held(pool) == 0


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="the OS has no preadv")
def test_scatter_and_gather(pool: mempool.BufferPool, tmp_path: Path) -> None:
    data = pattern(SIZE)
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        with lend(pool, SIZE) as first, lend(pool, SIZE) as second:
            assert os.writev(file, [first, second[:100]]) == SIZE + 100
            assert os.pwrite(file, first[:50], SIZE) == 50
            first[:], second[:] = bytes(SIZE), bytes(SIZE)
            assert os.preadv(file, [first, second[5:55]], 0) == SIZE + 50
            assert first == data
            assert bytes(second[5:55]) == data[:50]
            os.lseek(file, 0, os.SEEK_SET)
            assert os.readv(file, [second]) == SIZE
            assert second == data
    finally:
        os.close(file)
    assert held(pool) == 0


def socket_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


sockets = pytest.fixture(socket_pair)


def test_sockets(pool: mempool.BufferPool, sockets: tuple[socket.socket, socket.socket]) -> None:
    left, right = sockets
    data = pattern(SIZE)
    with lend(pool, SIZE) as outgoing, pool.acquire(SIZE) as incoming:
        left.sendall(outgoing)
        received = 0
        while received < SIZE:
            received += right.recv_into(incoming[received:])
        assert incoming == data
        assert left.send(outgoing[:100]) == 100
        assert right.recv_into(incoming, 100) == 100
        assert left.sendmsg([outgoing[:10], outgoing[20:30]]) == 20
        assert right.recvmsg_into([incoming[:5], incoming[5:20]])[0] == 20
        assert bytes(incoming[:20]) == data[:10] + data[20:30]
    assert held(pool) == 0


def test_buffer_released_while_a_receive_waits(
    pool: mempool.BufferPool, sockets: tuple[socket.socket, socket.socket]
) -> None:
    """The receiving thread holds a view, so its bytes land in the retired block and nowhere else."""
    import threading

    left, right = sockets
    buffer = lend(pool, SIZE)
    view, waiting, got = memoryview(buffer), threading.Event(), []

    def receive() -> None:
        waiting.set()
        got.append(right.recv_into(view))

    thread = threading.Thread(target=receive)
    thread.start()
    waiting.wait()
    buffer.release()
    strangers = [lend(pool, SIZE) for _ in range(4)]
    left.sendall(b"late")
    thread.join()
    assert got == [4]
    assert bytes(view[:4]) == b"late"
    assert all(stranger == pattern(SIZE) for stranger in strangers)


@pytest.mark.parametrize("loop_of", ["asyncio", "uvloop"])
def test_event_loops(pool: mempool.BufferPool, sockets: tuple[socket.socket, socket.socket], loop_of: str) -> None:
    import asyncio

    module = pytest.importorskip(loop_of)
    left, right = sockets
    left.setblocking(False)
    right.setblocking(False)

    async def talk() -> None:
        loop = asyncio.get_running_loop()
        async with pool.acquire_async(SIZE) as outgoing, pool.acquire_async(SIZE) as incoming:
            outgoing[:] = pattern(SIZE)
            await loop.sock_sendall(left, outgoing)
            received = 0
            while received < SIZE:
                received += await loop.sock_recv_into(right, incoming[received:])
            assert incoming == pattern(SIZE)

    with asyncio.Runner(loop_factory=module.new_event_loop) as runner:
        runner.run(talk())
    assert held(pool) == 0


def test_asyncio_transport_that_still_sends(pool: mempool.BufferPool) -> None:
    """A transport that cannot send at once keeps what it was given, by copy or by view; other leases are never sent."""
    import asyncio

    async def send() -> bytes:
        left, right = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=left)
        right.setblocking(False)
        nbytes = 1 << 22
        with lend(pool, nbytes) as buffer:
            writer.write(memoryview(buffer))
        lend_to_strangers(pool, nbytes, count=2)
        received = b""
        while len(received) < nbytes:
            received += await asyncio.get_running_loop().sock_recv(right, 1 << 20)
        writer.close()
        await writer.wait_closed()
        right.close()
        return received

    assert asyncio.run(send()) == pattern(1 << 22)


def test_memoryview_comparison_and_hash(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    assert memoryview(buffer) == pattern(SIZE)
    with pytest.raises(ValueError, match="hash"):
        hash(memoryview(buffer))
    with pytest.raises(TypeError, match="unhashable"):
        hash(buffer)
    assert memoryview(buffer).c_contiguous
    assert (memoryview(buffer).format, memoryview(buffer).ndim, memoryview(buffer).strides) == ("B", 1, (1,))
