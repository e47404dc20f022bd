"""`mempool.pickle`: what goes out of band, what it keeps, and what a pool has to do with it."""

import gc
import pickle
import socket
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import mempool
from support import start

KIB = 1 << 10


@pytest.fixture
def pool() -> mempool.BufferPool:
    return mempool.BufferPool(idle_timeout=None, leak_detection="full")


def held(pool: mempool.BufferPool) -> int:
    stats = pool.stats()
    return stats.in_use + stats.retired


def address(array: np.ndarray[Any, Any]) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


OBJECTS: dict[str, Callable[[], Any]] = {
    "array": lambda: np.arange(1000.0),
    "fortran": lambda: np.asfortranarray(np.arange(1200.0).reshape(30, 40)),
    "strided": lambda: np.arange(1000)[::3],
    "empty": lambda: np.zeros((0, 3), "f4"),
    "structured": lambda: np.ones(50, [("a", "i4"), ("b", "f8")]),
    "objects": lambda: np.array([1, "two", None], object),
    "several": lambda: {"x": np.arange(10), "y": [np.ones((3, 4)), b"bytes", bytearray(b"more")]},
    "plain": lambda: {"a": [1, 2.5, "three"], "b": Fraction(3, 4)},
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("carry", [lambda frame: frame, bytes, bytearray], ids=["same", "bytes", "bytearray"])
@pytest.mark.parametrize("pooled", [False, True])
def test_there_and_back(pool: mempool.BufferPool, name: str, carry: Callable[[Any], Any], pooled: bool) -> None:
    obj = OBJECTS[name]()
    frames = [carry(frame) for frame in mempool.pickle.dumps(obj)]
    again = mempool.pickle.loads(frames, pool=pool if pooled else None)
    assert same(obj, again)
    del again, frames
    gc.collect()
    assert held(pool) == 0


def test_the_first_frame_is_small_and_the_others_are_the_memory_itself() -> None:
    arrays = [np.arange(1 << 17, dtype=np.int64), np.ones(1 << 16)]
    head, *views = mempool.pickle.dumps(arrays)
    assert isinstance(head, bytes)
    assert len(head) < KIB
    assert [type(view) for view in views] == [memoryview, memoryview]
    assert [address(np.frombuffer(view, "u1")) for view in views] == [address(array) for array in arrays]
    assert [(view.format, view.ndim) for view in views] == [("B", 1)] * 2


def test_without_a_pool_nothing_is_copied() -> None:
    array = np.arange(1 << 16)
    again = mempool.pickle.loads(mempool.pickle.dumps(array))
    assert address(again) == address(array)
    frames = [bytes(frame) for frame in mempool.pickle.dumps(array)]
    over_bytes = mempool.pickle.loads(frames)
    assert address(over_bytes) == address(np.frombuffer(frames[1], "u1"))
    assert not over_bytes.flags.writeable


def test_frames_that_are_leases_stay_where_they_are(pool: mempool.BufferPool) -> None:
    head, view = mempool.pickle.dumps(np.arange(1 << 12))
    lease = pool.acquire(memoryview(view).nbytes)
    lease[:] = view
    again = mempool.pickle.loads([head, lease])
    assert address(again) == lease.address
    lease.release()
    assert held(pool) > 0
    assert (again == np.arange(1 << 12)).all()
    del again
    assert held(pool) == 0


def test_with_a_pool_arrays_lie_in_it_and_can_be_written(pool: mempool.BufferPool) -> None:
    frames = [bytes(frame) for frame in mempool.pickle.dumps([np.arange(1000), np.ones(10)])]
    again = mempool.pickle.loads(frames, pool=pool)
    assert all(array.flags.writeable for array in again)
    assert held(pool) >= 8000 + 80
    again[0][:] = 7
    assert np.frombuffer(frames[1], np.int64)[5] == 5
    again.pop(0)
    assert 80 <= held(pool) < 8000
    again.clear()
    assert held(pool) == 0
    assert pool.stats().dropped == 0  # the memory went as it was meant to


def test_read_only_stays_read_only(pool: mempool.BufferPool) -> None:
    array = np.arange(100)
    array.flags.writeable = False
    frames = mempool.pickle.dumps(array)
    assert not mempool.pickle.loads(frames, pool=pool).flags.writeable


def test_a_buffer_comes_back_as_a_buffer(pool: mempool.BufferPool) -> None:
    with mempool.acquire(5000, zero=True) as buffer:
        buffer[:5] = b"hello"
        frames = [bytes(frame) for frame in mempool.pickle.dumps(buffer)]
    again = mempool.pickle.loads(frames, pool=pool)
    assert isinstance(again, mempool.Buffer)
    assert again.pool is pool
    assert bytes(again[:5]) == b"hello"
    there = mempool.pickle.loads(frames)
    assert there.pool is mempool.default_pool()


def test_frames_keep_the_memory_of_a_lease(pool: mempool.BufferPool) -> None:
    buffer = pool.acquire(5000, zero=True)
    frames = mempool.pickle.dumps(buffer)
    buffer.release()
    assert held(pool) > 0
    with pool.acquire(5000) as stranger:
        stranger[:] = b"x" * 5000
        assert bytes(frames[1]) == bytes(5000)
    del frames
    assert held(pool) == 0


def test_over_a_socket(pool: mempool.BufferPool) -> None:
    """Lengths first, then the frames straight from the arrays into leases."""
    obj = {"a": np.arange(100_000), "b": np.random.default_rng(1).random((300, 200))}
    frames = mempool.pickle.dumps(obj)
    near, far = socket.socketpair()
    with near, far:

        def send() -> None:
            sizes = np.array([memoryview(frame).nbytes for frame in frames], "<u8")
            near.sendall(len(sizes).to_bytes(8, "little") + sizes.tobytes())
            for frame in frames:
                near.sendall(frame)

        sender = start(send)
        with far.makefile("rb") as stream:
            count = int.from_bytes(stream.read(8), "little")
            sizes = np.frombuffer(stream.read(8 * count), "<u8")
            arrived = [pool.acquire(int(size)) for size in sizes]
            for buffer in arrived:
                assert stream.readinto(buffer) == len(buffer)
        sender.result()
    again = mempool.pickle.loads(arrived)
    arrived[0].release()
    for buffer in arrived[1:]:
        buffer.release()
    assert same(obj, again)
    assert held(pool) > 0
    del again
    assert held(pool) == 0


# ---- bad input


def test_no_frames() -> None:
    with pytest.raises(ValueError, match="no frames"):
        mempool.pickle.loads([])


def test_too_few_and_too_many(pool: mempool.BufferPool) -> None:
    frames = mempool.pickle.dumps([np.arange(10), np.arange(20)])
    for given in (None, pool):
        with pytest.raises(pickle.UnpicklingError):
            mempool.pickle.loads(frames[:2], pool=given)
        with pytest.raises(ValueError, match="more frames than the pickle asks for: one of 3 bytes"):
            mempool.pickle.loads([*frames, b"one", b"three"], pool=given)
    gc.collect()
    assert held(pool) == 0


@pytest.mark.parametrize("frame", ["text", 5, None])
def test_frames_that_are_no_bytes(pool: mempool.BufferPool, frame: Any) -> None:
    head = mempool.pickle.dumps(np.arange(10))[0]
    with pytest.raises(TypeError):
        mempool.pickle.loads([frame])
    with pytest.raises(TypeError):
        mempool.pickle.loads([head, frame], pool=pool)
    assert held(pool) == 0


def test_a_frame_with_gaps(pool: mempool.BufferPool) -> None:
    head = mempool.pickle.dumps(np.arange(10))[0]
    with pytest.raises(BufferError):
        mempool.pickle.loads([head, np.arange(20)[::2]], pool=pool)
    assert held(pool) == 0


@pytest.mark.parametrize("wrong", [5, "pool", object()])
def test_a_pool_that_is_none(wrong: Any) -> None:
    with pytest.raises(TypeError, match="pool must be a BufferPool or None"):
        mempool.pickle.loads(mempool.pickle.dumps(1), pool=wrong)


def test_no_pickle(pool: mempool.BufferPool) -> None:
    with pytest.raises(pickle.UnpicklingError):
        mempool.pickle.loads([b"nonsense"], pool=pool)


def test_what_cannot_be_pickled() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        mempool.pickle.dumps(lambda: None)


def test_a_limit_leaves_nothing_lent() -> None:
    pool = mempool.BufferPool(64 * KIB, idle_timeout=None, leak_detection="full")
    frames = mempool.pickle.dumps([np.zeros(5000, "u1"), np.zeros(500_000, "u1")])
    with pytest.raises(mempool.PoolExhausted) as caught:
        mempool.pickle.loads(frames, pool=pool)
    gc.collect()
    assert held(pool) == 0, caught.value  # the handler of the error may have to wait for memory


def test_a_closed_pool(pool: mempool.BufferPool) -> None:
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        mempool.pickle.loads(mempool.pickle.dumps(np.arange(10)), pool=pool)
