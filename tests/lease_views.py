"""Every way to look at a buffer that the promises name: how it is made, and how its bytes are read without ending it."""

import ctypes
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import mempool

PATTERN = bytes(range(1, 250)) * 20  # no period in common with pages or items
STRANGER = 0xEE


@dataclass(frozen=True)
class View:
    """A kind of view. `keeps_buffer`: it refers to the `Buffer` itself, not to its memory."""

    name: str
    make: Callable[[mempool.Buffer], Any]
    read: Callable[[Any], bytes]
    keeps_buffer: bool = False


def from_arrow(make: Callable[[Any, mempool.Buffer], Any]) -> Callable[[mempool.Buffer], Any]:
    def with_library(buffer: mempool.Buffer) -> Any:
        return make(pytest.importorskip("pyarrow"), buffer)

    return with_library


def tensor_bytes(name: bytes, data_offset: int) -> Callable[[Any], bytes]:
    """Read through a capsule that nobody consumed: a DLTensor begins with its data pointer, and has its shape 24 bytes on."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]

    def read(capsule: Any) -> bytes:
        tensor = get(capsule, name) + data_offset
        data = ctypes.c_void_p.from_address(tensor).value
        shape = ctypes.c_void_p.from_address(tensor + 24).value
        return ctypes.string_at(data, ctypes.c_int64.from_address(shape).value)

    return read


class Pair(ctypes.Structure):
    _fields_ = (("first", ctypes.c_uint32), ("second", ctypes.c_double))


def to_bytes(view: Any) -> bytes:
    return bytes(view.tobytes())


def through_memoryview(view: Any) -> bytes:
    return bytes(memoryview(view))


RECORD = np.dtype([("key", "<u4"), ("value", "<f4")])

VIEWS = [
    View("memoryview", memoryview, to_bytes),
    View("memoryview slice", lambda b: memoryview(b)[7:53], to_bytes),
    View("slice of a slice", lambda b: memoryview(b)[7:][3:40], to_bytes),
    View("memoryview of a memoryview", lambda b: memoryview(memoryview(b)), to_bytes),
    View("memoryview cast", lambda b: memoryview(b).cast("I"), to_bytes),
    View("memoryview cast to 2-D", lambda b: memoryview(b).cast("B", (8, len(b) // 8)), to_bytes),
    View("memoryview obj", lambda b: memoryview(b).obj, through_memoryview),
    View("readonly()", lambda b: b.readonly(), to_bytes),
    View("slice of readonly()", lambda b: b.readonly()[5:50], to_bytes),
    View("b[i:j]", lambda b: b[9:60], to_bytes),
    View("b[::3]", lambda b: b[::3], to_bytes),
    View("b[::-1]", lambda b: b[::-1], to_bytes),
    View("empty b[i:i]", lambda b: b[4:4], to_bytes),
    View("array()", lambda b: b.array(), to_bytes),
    View("array('f8')", lambda b: b.array("f8"), to_bytes),
    View("array of records", lambda b: b.array(RECORD), to_bytes),
    View("array, 2-D", lambda b: b.array("u2", (4, 8)), to_bytes),
    View("array, Fortran", lambda b: b.array("i4", (4, 4), order="F"), to_bytes),
    View("array at an offset", lambda b: b.array("u1", 17, offset=11), to_bytes),
    View("array of no items", lambda b: b.array("u1", 0), to_bytes),
    View("view of an array", lambda b: b.array()[8:].view("u4")[1:5], to_bytes),
    View("transposed array", lambda b: b.array("u1", (8, 8)).T[2:], to_bytes),
    View("memoryview of an array", lambda b: memoryview(b.array()), to_bytes),
    View("numpy.frombuffer", lambda b: np.frombuffer(b, "u1"), to_bytes),
    View("numpy.frombuffer, offset", lambda b: np.frombuffer(b, "u2", 9, 6), to_bytes),
    View("numpy.ndarray(buffer=b)", lambda b: np.ndarray(40, "u1", buffer=b), to_bytes, keeps_buffer=True),
    View("slice of ndarray(buffer=b)", lambda b: np.ndarray(40, "u1", buffer=b)[3:9], to_bytes, keeps_buffer=True),
    View("numpy.ndarray(buffer=memoryview)", lambda b: np.ndarray(40, "u1", buffer=memoryview(b)), to_bytes),
    View("numpy.ndarray(buffer=b[i:j])", lambda b: np.ndarray(8, "u1", buffer=b[8:32]), to_bytes),
    View("numpy.asarray", np.asarray, to_bytes),
    View("numpy.array(copy=False)", lambda b: np.array(b, copy=False), to_bytes),
    View("numpy.from_dlpack", np.from_dlpack, to_bytes),
    View("DLPack capsule", lambda b: b.__dlpack__(), tensor_bytes(b"dltensor", 0)),
    View("DLPack capsule 1.0", lambda b: b.__dlpack__(max_version=(1, 0)), tensor_bytes(b"dltensor_versioned", 32)),
    View("pyarrow.py_buffer", from_arrow(lambda pa, b: pa.py_buffer(b)), lambda v: v.to_pybytes()),
    View("pyarrow slice", from_arrow(lambda pa, b: pa.py_buffer(b)[3:50]), lambda v: v.to_pybytes()),
    View(
        "pyarrow array",
        from_arrow(lambda pa, b: pa.Array.from_buffers(pa.uint8(), 64, [None, pa.py_buffer(b)])),
        lambda v: bytes(v.to_pylist()),
    ),
    View("pickle.PickleBuffer", pickle.PickleBuffer, lambda v: to_bytes(v.raw())),
    View("raw() of a PickleBuffer", lambda b: pickle.PickleBuffer(b).raw(), to_bytes),
    View("ctypes array", lambda b: (ctypes.c_char * 48).from_buffer(b), lambda v: v.raw),
    View("ctypes structure", lambda b: Pair.from_buffer(b, 8), through_memoryview),
    View("field of a ctypes structure", lambda b: (Pair * 3).from_buffer(b)[1], through_memoryview),
]

each_view = pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)


def pattern(nbytes: int) -> bytes:
    return (PATTERN * (nbytes // len(PATTERN) + 1))[:nbytes]


def lend(pool: mempool.BufferPool, nbytes: int) -> mempool.Buffer:
    """A lease that is filled with the pattern."""
    buffer = pool.acquire(nbytes)
    buffer[:] = pattern(nbytes)
    return buffer


def lend_to_strangers(pool: mempool.BufferPool, nbytes: int, count: int = 6) -> set[int]:
    """Lend as a busy program would, write over all of it, give it back; returns the addresses."""
    addresses = set()
    for _ in range(2):
        strangers = [pool.acquire(nbytes) for _ in range(count)]
        for stranger in strangers:
            stranger[:] = bytes([STRANGER]) * nbytes
            addresses.add(stranger.address)
        for stranger in strangers:
            stranger.release()
    return addresses
