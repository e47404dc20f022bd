"""`Buffer.array`: dtypes, shapes, offsets, orders, and what is refused."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mempool
from lease_views import lend, pattern
from support import Strange

SIZE = 4096


@pytest.fixture
def buffer() -> mempool.Buffer:
    return lend(mempool.BufferPool(), SIZE)


DTYPES = [
    "u1", "i1", "?", "u2", ">u2", "i4", "u8", "f2", "f4", "f8", ">f8", "c8", "c16", "g", "S8", "U4", "V16", "M8[ns]", "m8[s]",
    np.uint8, np.float32, float, int, bool, complex, np.dtype("f4"), np.dtype([("a", "u1"), ("b", "<f4", (3,)), ("c", "S3")]),
    np.dtype([("x", "f8"), ("y", "i4")], align=True), {"names": ["a"], "formats": ["u4"], "offsets": [4], "itemsize": 16},
    "u1, f4, i2", [("nested", [("p", "u2"), ("q", "u2")])], ("f4", (2, 2)), None,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_seen_as_numpy_sees_it(buffer: mempool.Buffer, dtype: Any) -> None:
    itemsize = np.dtype(dtype).itemsize
    items = SIZE // itemsize - 2
    made = buffer.array(dtype, items, offset=itemsize)
    expected = np.frombuffer(bytearray(pattern(SIZE)), dtype, items, itemsize)
    assert (made.dtype, made.shape, made.strides) == (expected.dtype, expected.shape, expected.strides)
    assert made.tobytes() == expected.tobytes()
    assert made.ctypes.data == buffer.address + itemsize


SHAPES = [
    0,
    1,
    64,
    (),
    (64,),
    (8, 8),
    (2, 3, 4),
    (0, 5),
    (5, 0),
    (1,) * 32,
    [4, 4],
    range(2, 5),
    np.int64(7),
    (np.uint8(3), 2),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_shapes_and_orders(buffer: mempool.Buffer, shape: Any, order: str) -> None:
    made = buffer.array("u2", shape, offset=6, order=order)
    plain = shape if isinstance(shape, (int, np.integer)) else tuple(shape)
    expected: np.ndarray[Any, Any] = np.ndarray(plain, "u2", bytearray(pattern(SIZE)), 6, order=order)
    assert (made.shape, made.strides) == (expected.shape, expected.strides)
    np.testing.assert_array_equal(made, expected)
    assert made.flags[f"{order}_CONTIGUOUS"]


def test_default_is_all_bytes(buffer: mempool.Buffer) -> None:
    made = buffer.array()
    assert (made.dtype, made.shape, made.tobytes()) == (np.uint8, (SIZE,), pattern(SIZE))
    assert type(made) is np.ndarray
    assert made.flags.writeable
    assert made.flags.aligned
    assert not made.flags.owndata


def test_no_shape_goes_up_to_the_end(buffer: mempool.Buffer) -> None:
    assert buffer.array("f8").shape == (SIZE // 8,)
    assert buffer.array("f8", offset=8).shape == (SIZE // 8 - 1,)
    assert buffer.array("f8", offset=SIZE).shape == (0,)
    buffer.resize(30)
    assert buffer.array("u2").shape == (15,)


def test_writes_go_both_ways(buffer: mempool.Buffer) -> None:
    made = buffer.array("<u4")
    made[0] = 0x01020304
    assert bytes(buffer[:4]) == b"\x04\x03\x02\x01"
    buffer[4:8] = b"\xff\0\0\0"
    assert made[1] == 255


def test_unaligned_arrays_say_so(buffer: mempool.Buffer) -> None:
    made = buffer.array("f8", 3, offset=1)
    assert not made.flags.aligned
    made[:] = 1.5, 2.5, 3.5
    assert made.sum() == 7.5
    assert buffer.array("f8", 3, offset=8).flags.aligned


@pytest.mark.parametrize("shape", [SIZE + 1, (SIZE, 2), (2, SIZE), (1 << 62, 1 << 62), (1 << 32, 1 << 32), sys.maxsize])
@pytest.mark.parametrize("order", ["C", "F"])
def test_beyond_the_end(buffer: mempool.Buffer, shape: Any, order: str) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        buffer.array("u1", shape, order=order)


def test_edges_of_the_end(buffer: mempool.Buffer) -> None:
    assert buffer.array("u4", SIZE // 4).size == SIZE // 4
    assert buffer.array("u4", (SIZE // 8, 2)).size == SIZE // 4
    assert buffer.array("u4", 0, offset=SIZE).size == 0
    assert buffer.array("u4", (0, 1 << 60)).size == 0
    for shape, offset in ((SIZE // 4 + 1, 0), (SIZE // 4, 1), (1, SIZE - 3), (1, SIZE)):
        with pytest.raises(ValueError, match="does not fit"):
            buffer.array("u4", shape, offset=offset)


def test_array_of_an_empty_buffer() -> None:
    with mempool.acquire(0) as empty:
        assert empty.array().shape == (0,)
        assert empty.array("f8", (3, 0)).shape == (3, 0)
        with pytest.raises(ValueError, match="does not fit"):
            empty.array("u1", 1)


BAD_VALUES = [
    ({"offset": -1}, "-1"),
    ({"offset": SIZE + 1}, str(SIZE + 1)),
    ({"shape": -1}, "-1"),
    ({"shape": (4, -4)}, "-4"),
    ({"order": "A"}, "'A'"),
    ({"order": "K"}, "'K'"),
    ({"order": None}, "None"),
    ({"order": "c"}, "'c'"),
    ({"dtype": "u4", "offset": 1}, "multiple"),
    ({"dtype": "V0"}, "item size"),
    ({"dtype": "S"}, "item size"),
    ({"dtype": object}, "object"),
    ({"dtype": "O"}, "object"),
    ({"dtype": [("a", "u4"), ("b", "O")]}, "object"),
    ({"dtype": [("a", [("b", "O", (2,))])]}, "object"),
    ({"shape": (1,) * 65}, "65"),
    ({"shape": (1,) * 1000}, "1000"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD_VALUES, ids=str)
def test_values_that_make_no_sense(buffer: mempool.Buffer, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        buffer.array(**arguments)
    buffer.resize(5)  # nothing views it


BAD_TYPES: list[dict[str, Any]] = [
    {"offset": 1.0},
    {"offset": "8"},
    {"offset": None},
    {"shape": 2.0},
    {"shape": "8"},
    {"shape": (2.0,)},
    {"shape": (None,)},
    {"shape": [[2]]},
    {"dtype": "no such type"},
    {"dtype": 5},
    {"dtype": Strange()},
]


@pytest.mark.parametrize("arguments", BAD_TYPES, ids=str)
def test_wrong_types(buffer: mempool.Buffer, arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        buffer.array(**arguments)
    buffer.resize(5)


@pytest.mark.parametrize("arguments", [{"offset": 1 << 63}, {"shape": 1 << 63}, {"shape": (1, 1 << 70)}], ids=str)
def test_numbers_beyond_any_address(buffer: mempool.Buffer, arguments: dict[str, Any]) -> None:
    with pytest.raises((OverflowError, ValueError)):
        buffer.array(**arguments)
    buffer.resize(5)


def test_positional_and_keyword_arguments(buffer: mempool.Buffer) -> None:
    assert buffer.array("u2", (2, 2)).shape == buffer.array(dtype="u2", shape=(2, 2)).shape
    call: Callable[..., Any] = buffer.array
    with pytest.raises(TypeError):
        call("u2", (2, 2), 4)
    with pytest.raises(TypeError):
        call(order="C", strides=(1,))


def test_released_buffer_has_no_arrays(buffer: mempool.Buffer) -> None:
    buffer.release()
    for dtype in ("u1", "f8"):
        with pytest.raises(ValueError, match="released"):
            buffer.array(dtype)


def test_arrays_pickle_and_copy_as_plain_arrays(buffer: mempool.Buffer) -> None:
    import copy
    import pickle

    made = buffer.array("u2", (4, 4), order="F")
    for again in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made), made.copy()):
        np.testing.assert_array_equal(again, made)
        assert not np.shares_memory(again, made)


def test_array_cannot_be_resized_in_place(buffer: mempool.Buffer) -> None:
    with pytest.raises(ValueError, match="own"):
        buffer.array().resize(2 * SIZE, refcheck=False)


def test_dtypes_that_compare_oddly(buffer: mempool.Buffer) -> None:
    """A dtype-like is only asked to become a dtype."""

    class Odd:
        dtype = np.dtype("u4")

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("compared")

        __hash__ = object.__hash__

    assert buffer.array(Odd()).dtype == np.uint32


def test_numpy_is_imported_by_the_first_array_only(run_python: Callable[..., Any]) -> None:
    run_python("""
        import sys, mempool
        buffer = mempool.acquire(64)
        memoryview(buffer), buffer.__dlpack__(), buffer.tobytes(), buffer == b""
        assert "numpy" not in sys.modules
        buffer.array()
        assert "numpy" in sys.modules
    """)
