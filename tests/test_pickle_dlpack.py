"""Pickling in and out of band, copies, and DLPack capsules of either kind."""

import copy
import ctypes
import gc
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mempool
from lease_views import lend, lend_to_strangers, pattern

SIZE = 4096


@pytest.fixture
def pool() -> mempool.BufferPool:
    return mempool.BufferPool(idle_timeout=None)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("nbytes", [0, 1, SIZE, 1 << 20])
def test_in_band(pool: mempool.BufferPool, protocol: int, nbytes: int) -> None:
    buffer = lend(pool, nbytes)
    again = pickle.loads(pickle.dumps(buffer, protocol))
    assert type(again) is mempool.Buffer
    assert again.pool is mempool.default_pool()
    assert again.tobytes() == pattern(nbytes)
    assert (len(again), again.released) == (nbytes, False)


@pytest.mark.parametrize("nbytes", [0, 1, SIZE, 1 << 20])
def test_out_of_band(pool: mempool.BufferPool, nbytes: int) -> None:
    buffer = lend(pool, nbytes)
    views: list[pickle.PickleBuffer] = []
    frame = pickle.dumps(buffer, 5, buffer_callback=views.append)
    assert len(frame) < 200
    assert len(views) == 1
    with views[0].raw() as raw:
        assert np.frombuffer(raw, "u1").ctypes.data == buffer.address or nbytes == 0
    buffer.release()
    lend_to_strangers(pool, max(nbytes, 1))
    again = pickle.loads(frame, buffers=views)
    assert type(again) is mempool.Buffer
    assert again.pool is mempool.default_pool()
    assert again.tobytes() == pattern(nbytes)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, "u1")])
def test_frames_from_elsewhere(pool: mempool.BufferPool, make: Callable[[bytes], Any]) -> None:
    """What came over a wire is some other bytes-like object."""
    views: list[pickle.PickleBuffer] = []
    frame = pickle.dumps(lend(pool, SIZE), 5, buffer_callback=views.append)
    assert pickle.loads(frame, buffers=[make(pattern(SIZE))]).tobytes() == pattern(SIZE)


def test_unpickled_memory_is_writable(pool: mempool.BufferPool) -> None:
    again = pickle.loads(pickle.dumps(lend(pool, SIZE)))
    again[0] = 77
    assert again[0] == 77


def test_frames_without_their_buffers(pool: mempool.BufferPool) -> None:
    frame = pickle.dumps(lend(pool, SIZE), 5, buffer_callback=lambda view: None)
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(frame)
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(frame, buffers=[])
    for wrong in (object(), 5, "text"):
        with pytest.raises((TypeError, pickle.UnpicklingError)):
            pickle.loads(frame, buffers=[wrong])
    gc.collect()
    assert pool.stats().live + pool.stats().retired == 0


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_released_buffers_do_not_pickle(pool: mempool.BufferPool, protocol: int) -> None:
    buffer = lend(pool, SIZE)
    buffer.release()
    with pytest.raises(ValueError, match="released"):
        pickle.dumps(buffer, protocol)


def test_one_buffer_twice_in_a_pickle(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    first, second = pickle.loads(pickle.dumps([buffer, buffer]))
    assert first is second


def test_pickling_gives_everything_back(pool: mempool.BufferPool) -> None:
    with lend(pool, SIZE) as buffer:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            pickle.dumps(buffer, protocol)
        pickle.dumps(buffer, 5, buffer_callback=lambda view: None)
    assert pool.stats().retired == 0


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda b: copy.deepcopy([b])[0]])
def test_copies_are_leases_of_their_own(pool: mempool.BufferPool, make: Callable[[mempool.Buffer], Any]) -> None:
    buffer = lend(pool, SIZE)
    made = make(buffer)
    assert made == buffer
    assert made.address != buffer.address
    buffer[:] = bytes(SIZE)
    buffer.release()
    assert made.tobytes() == pattern(SIZE)


def test_array_over_a_lease_pickles_out_of_band(pool: mempool.BufferPool) -> None:
    views: list[pickle.PickleBuffer] = []
    with lend(pool, SIZE) as buffer:
        frame = pickle.dumps(buffer.array("u2"), 5, buffer_callback=views.append)
    lend_to_strangers(pool, SIZE)
    again = pickle.loads(frame, buffers=views)
    assert again.tobytes() == pattern(SIZE)
    assert pool.stats().retired == SIZE
    del again
    views.clear()
    assert pool.stats().retired == 0


# ---- DLPack ----


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)))


class ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


KINDS = {b"dltensor": Managed, b"dltensor_versioned": ManagedVersioned}
api = ctypes.pythonapi
api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
api.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
api.PyCapsule_GetPointer.restype, api.PyCapsule_GetPointer.argtypes = (
    ctypes.c_void_p,
    [ctypes.py_object, ctypes.c_char_p],
)


def look_into(capsule: Any) -> Any:
    name = api.PyCapsule_GetName(capsule)
    return KINDS[name].from_address(api.PyCapsule_GetPointer(capsule, name))


CONSUMED = {b"dltensor": b"used_dltensor", b"dltensor_versioned": b"used_dltensor_versioned"}


def consume(capsule: Any) -> Callable[[], None]:
    """Take the tensor over as a consumer does; returns what calls its deleter."""
    managed = look_into(capsule)
    api.PyCapsule_SetName(capsule, CONSUMED[api.PyCapsule_GetName(capsule)])
    return lambda: managed.deleter(ctypes.addressof(managed))


@pytest.mark.parametrize(
    ("max_version", "name"),
    [
        (None, b"dltensor"),
        ((0, 8), b"dltensor"),
        ((1, 0), b"dltensor_versioned"),
        ((1, 1), b"dltensor_versioned"),
        ((2, 0), b"dltensor_versioned"),
    ],
)
@pytest.mark.parametrize("made_by_copy", [None, False, True])
def test_capsules_say_what_they_are(
    pool: mempool.BufferPool, max_version: Any, name: bytes, made_by_copy: bool | None
) -> None:
    buffer = lend(pool, SIZE)
    capsule = buffer.__dlpack__(max_version=max_version, copy=made_by_copy)
    assert api.PyCapsule_GetName(capsule) == name
    managed = look_into(capsule)
    tensor = managed.tensor
    assert (tensor.device_type, tensor.device_id, tensor.byte_offset) == (1, 0, 0)
    assert (tensor.code, tensor.bits, tensor.lanes) == (1, 8, 1)
    assert (tensor.ndim, tensor.shape[0], tensor.strides[0]) == (1, SIZE, 1)
    assert (tensor.data == buffer.address) is not bool(made_by_copy)
    assert ctypes.string_at(tensor.data, SIZE) == pattern(SIZE)
    if name == b"dltensor_versioned":
        assert managed.major == 1
        assert managed.flags == (2 if made_by_copy else 0)  # never read-only


@pytest.mark.parametrize("max_version", [None, (1, 0)])
def test_consumed_capsule_leaves_memory_to_the_consumer(pool: mempool.BufferPool, max_version: Any) -> None:
    buffer = lend(pool, SIZE)
    capsule = buffer.__dlpack__(max_version=max_version)
    delete = consume(capsule)
    buffer.release()
    del capsule
    gc.collect()
    assert pool.stats().retired == SIZE
    delete()
    assert (pool.stats().retired, pool.stats().idle) == (0, SIZE)


@pytest.mark.parametrize("max_version", [None, (1, 0)])
def test_deleter_in_another_thread(pool: mempool.BufferPool, max_version: Any) -> None:
    """ctypes gives the interpreter's lock away around the call, as a native thread of a consumer does."""
    buffer = lend(pool, SIZE)
    delete = consume(buffer.__dlpack__(max_version=max_version))
    del buffer
    thread = threading.Thread(target=delete)
    thread.start()
    thread.join()
    assert (pool.stats().retired, pool.stats().idle, pool.stats().handed_over) == (0, SIZE, 1)


def test_numpy_reads_both_kinds(pool: mempool.BufferPool) -> None:
    class Old:
        """A producer from before version 1.0."""

        def __init__(self, buffer: mempool.Buffer) -> None:
            self.buffer = buffer

        def __dlpack__(self, **options: Any) -> Any:
            return self.buffer.__dlpack__()

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.buffer.__dlpack_device__()

    buffer = lend(pool, SIZE)
    for array in (np.from_dlpack(buffer), np.from_dlpack(Old(buffer))):
        assert array.ctypes.data == buffer.address
        assert array.tobytes() == pattern(SIZE)
    assert np.from_dlpack(buffer).flags.writeable


@pytest.mark.parametrize("flag", [True, False, None])
def test_numpy_copies_on_demand(pool: mempool.BufferPool, flag: bool | None) -> None:
    buffer = lend(pool, SIZE)
    array = np.from_dlpack(buffer, copy=flag)
    assert (array.ctypes.data == buffer.address) is not bool(flag)
    assert array.tobytes() == pattern(SIZE)
    buffer.release()
    assert (pool.stats().retired > 0) is True
    del array
    assert pool.stats().in_use + pool.stats().retired == 0


def test_copy_is_a_lease_that_nobody_forgot(pool: mempool.BufferPool) -> None:
    pool.leak_detection = "full"
    buffer = lend(pool, SIZE)
    capsule = buffer.__dlpack__(copy=True)
    buffer.release()
    stats = pool.stats()
    assert (stats.acquires, stats.releases, stats.handed_over, stats.retired) == (2, 1, 1, SIZE)
    del capsule
    assert pool.stats().retired == 0


def test_copy_beyond_the_limit() -> None:
    pool = mempool.BufferPool(limit=SIZE)
    buffer = lend(pool, SIZE)
    with pytest.raises(mempool.PoolExhausted):
        buffer.__dlpack__(copy=True)
    buffer.resize(10)


def test_device(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    assert buffer.__dlpack_device__() == (1, 0)
    assert buffer.__dlpack__(dl_device=(1, 0)) is not None
    for device in ((2, 0), (1, 1), (1,), (1, 0, 0)):
        with pytest.raises(BufferError, match="CPU"):
            buffer.__dlpack__(dl_device=device)
    for stream in (0, 1, 2, -1, object()):
        with pytest.raises(BufferError, match="stream"):
            buffer.__dlpack__(stream=stream)
    with pytest.raises(TypeError):
        buffer.__dlpack__(1)
    buffer.resize(10)


def test_malformed_versions_are_refused(run_python: Callable[..., Any]) -> None:
    """In a process of its own: what is no pair of numbers must not be read as one."""
    run_python("""
        import mempool
        buffer = mempool.acquire(64)
        for version in ((), (1,), [], [1], (1, 0, 0), 5, "x", "", b"", None.__class__, (None, 0), ("1", 0), ((), ()), {}):
            try:
                buffer.__dlpack__(max_version=version)
            except (TypeError, ValueError):
                continue
            raise SystemExit(f"taken: {version!r}")
        buffer.resize(10)
        for version in (None, (0, 8), (1, 0), [1, 1], (2, 0), (10**100, 0)):
            assert buffer.__dlpack__(max_version=version) is not None
    """)


def test_released_buffers_are_not_exported(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    buffer.release()
    for options in ({}, {"max_version": (1, 0)}, {"copy": True}):
        with pytest.raises(ValueError, match="released"):
            buffer.__dlpack__(**options)
    with pytest.raises(ValueError, match="released"):
        buffer.__dlpack_device__()


def test_capsule_alive_at_exit(run_python: Callable[..., Any]) -> None:
    done = run_python("""
        import mempool, sys
        capsule = mempool.acquire(4096).__dlpack__()
        sys.modules["keep"] = capsule
        sys.keep = mempool.acquire(4096).__dlpack__(max_version=(1, 0), copy=True)
    """)
    assert done.stderr == ""
