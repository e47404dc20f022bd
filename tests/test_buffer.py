"""The surface of a lease: bytes, slices, arrays, equality, resizing, and use after release."""

import array
import copy
import operator
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mempool
from mempool import Buffer, BufferPool
from support import MIB, nothing_changes

Content = st.binary(max_size=200)


def filled(content: bytes, pool: BufferPool | None = None) -> Buffer:
    buffer = (pool or BufferPool()).acquire(len(content))
    buffer[:] = content
    return buffer


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 4095, 4096, 4097, 3 * MIB])
def test_what_a_lease_says(nbytes: int) -> None:
    pool = BufferPool()
    with pool.acquire(nbytes) as buffer:
        assert (len(buffer), buffer.nbytes, buffer.released) == (nbytes, nbytes, False)
        assert buffer.capacity >= nbytes
        assert buffer.address % 64 == 0
        assert buffer.pool is pool
        assert bool(buffer) is (nbytes > 0)


@pytest.mark.parametrize("nbytes", ["64KiB", np.int64(65536), 65536])
def test_sizes_may_be_written_in_any_way(nbytes: Any) -> None:
    pool = BufferPool()
    assert len(pool.acquire(nbytes)) == 65536
    assert len(pool.acquire(nbytes, timeout="1s")) == 65536
    pool.reserve(nbytes, np.int8(2))
    assert pool.trim(nbytes) == 65536


@pytest.mark.parametrize("attribute", ["nbytes", "capacity", "address", "released", "pool", "something"])
def test_attributes_are_read_only(attribute: str) -> None:
    with pytest.raises(AttributeError):
        setattr(filled(b"x"), attribute, 1)


def test_repr_tells_size_pool_and_state() -> None:
    pool = BufferPool(name="mine")
    buffer = pool.acquire(1234)
    for word in ("1234", "'mine'", f"{buffer.address:#x}"):
        assert word in repr(buffer)
    buffer.release()
    assert "released" in repr(buffer)
    assert "'mine'" in repr(buffer)


def test_leases_are_made_by_pools_only() -> None:
    with pytest.raises(TypeError, match="acquire"):
        Buffer()
    with pytest.raises(TypeError, match="acceptable base"):
        type("Mine", (Buffer,), {})


def test_leases_can_be_weakly_referenced() -> None:
    buffer = filled(b"x")
    ref = weakref.ref(buffer)
    assert ref() is buffer
    del buffer
    assert ref() is None


# ---- bytes


@given(Content, st.data())
def test_indexing_is_that_of_bytearray(content: bytes, data: st.DataObject) -> None:
    model, buffer = bytearray(content), filled(content)
    index = data.draw(st.integers(-len(content) - 2, len(content) + 2))
    byte = data.draw(st.integers(0, 255))
    if -len(content) <= index < len(content):
        assert buffer[index] == model[index]
        model[index] = buffer[index] = byte
    else:
        with pytest.raises(IndexError, match=str(index)):
            _ = buffer[index]
        with pytest.raises(IndexError, match=str(index)):
            buffer[index] = byte
    assert buffer.tobytes() == model


@pytest.mark.parametrize("index", [2**70, -(2**70), 2**63 - 1, -(2**63)])
def test_an_index_beyond_all_addresses(index: int) -> None:
    buffer = filled(b"abc")
    with pytest.raises(IndexError):
        _ = buffer[index]
    with pytest.raises(IndexError):
        buffer[index] = 0


@given(Content, st.data())
def test_slices_are_views(content: bytes, data: st.DataObject) -> None:
    model, buffer = bytearray(content), filled(content)
    cut = data.draw(st.slices(len(content)))
    view = buffer[cut]
    assert type(view) is memoryview
    assert (view.format, view.readonly, view.tobytes()) == ("B", False, model[cut])
    fresh = data.draw(st.binary(min_size=len(view), max_size=len(view)))
    buffer[cut] = fresh
    model[cut] = fresh
    assert view.tobytes() == fresh
    assert buffer.tobytes() == model


@given(st.binary(min_size=1, max_size=64), st.integers(0, 80), st.slices(64))
def test_a_slice_takes_its_own_length_only(content: bytes, length: int, cut: slice) -> None:
    buffer = filled(content)
    if length == len(content[cut]):
        buffer[cut] = bytes(length)
        return
    with pytest.raises(ValueError, match=str(length)):
        buffer[cut] = bytes(length)
    assert buffer.tobytes() == content


SOURCES: list[Callable[[], Any]] = [
    lambda: b"abcdefgh",
    lambda: bytearray(b"abcdefgh"),
    lambda: memoryview(b"hgfedcba")[::-1],
    lambda: memoryview(b"abcdefgh").cast("c"),
    lambda: memoryview(b"abcdefgh").cast("B", (2, 4)),
    lambda: array.array("i", np.frombuffer(b"abcdefgh", "i4").tolist()),
    lambda: np.frombuffer(b"abcdefgh", "u2").reshape(2, 2),
    lambda: np.frombuffer(b"abcdefgh", "f8"),
    lambda: np.frombuffer(b"a.b.c.d.e.f.g.h.", "u1")[::2],
    lambda: filled(b"abcdefgh"),
]


@pytest.mark.parametrize("make", SOURCES)
def test_a_slice_takes_anything_with_bytes(make: Callable[[], Any]) -> None:
    buffer = filled(bytes(10))
    buffer[1:9] = make()
    assert buffer.tobytes() == b"\0abcdefgh\0"


@pytest.mark.parametrize(
    "make", [lambda: np.empty(0, "f8"), lambda: np.empty((0, 3), "u1"), bytes, lambda: memoryview(b"")]
)
def test_an_empty_slice_takes_no_bytes_of_any_kind(make: Callable[[], Any]) -> None:
    buffer = filled(b"abc")
    for at in (0, 2, 3, 9):
        buffer[at:at] = make()
    assert buffer.tobytes() == b"abc"
    with pytest.raises(ValueError, match="0"):
        buffer[0:1] = make()


def test_overlapping_slices() -> None:
    buffer = filled(b"abcdefgh")
    buffer[2:8] = buffer[0:6]
    assert buffer.tobytes() == b"ababcdef"
    buffer[:] = buffer
    assert buffer.tobytes() == b"ababcdef"


@pytest.mark.parametrize(
    ("index", "value", "error"),
    [
        (0, 256, ValueError),
        (0, -1, ValueError),
        (0, 2**80, ValueError),
        (0, 1.0, TypeError),
        (0, b"a", TypeError),
        (0, None, TypeError),
        (slice(0, 2), 5, TypeError),
        (slice(0, 2), "ab", TypeError),
        (slice(0, 2), [1, 2], TypeError),
        (slice(0, 2), None, TypeError),
        (1.0, 1, TypeError),
        ("a", 1, TypeError),
        (None, 1, TypeError),
        ((0, 0), 1, TypeError),
    ],
)
def test_bad_assignments(index: Any, value: Any, error: type[Exception]) -> None:
    buffer = filled(b"abcd")
    with pytest.raises(error) as caught:
        buffer[index] = value
    assert type(caught.value) is error
    assert buffer.tobytes() == b"abcd"
    with pytest.raises(TypeError):
        del buffer[0]  # type: ignore[attr-defined]


def test_the_sequence_protocol() -> None:
    buffer = filled(b"hello")
    assert list(iter(buffer)) == list(b"hello")  # type: ignore[call-overload]
    assert bytes(reversed(buffer)) == b"olleh"  # type: ignore[call-overload]
    assert ord("e") in buffer  # type: ignore[operator]
    assert bytes(buffer) == bytearray(buffer) == b"hello"


# ---- equality


@given(Content, Content)
def test_equality_is_that_of_content(left: bytes, right: bytes) -> None:
    a, b = filled(left), filled(right)
    for other in (b, right, bytearray(right), memoryview(right), np.frombuffer(right, "u1") if right else right):
        assert operator.eq(a, other) is (left == right)
        assert operator.ne(a, other) is (left != right)


@pytest.mark.parametrize("other", [None, 0, "abcd", [97, 98, 99, 100], object()])
def test_nothing_else_is_equal(other: object) -> None:
    buffer = filled(b"abcd")
    assert buffer != other
    assert buffer.__eq__(other) is NotImplemented
    assert buffer.__ne__(other) is NotImplemented


def test_a_view_with_gaps_is_compared_by_content() -> None:
    assert filled(b"ace") == memoryview(b"abcdef")[::2]
    assert filled(b"ace") != memoryview(b"abcdefg")[::3]


@pytest.mark.parametrize("compare", [operator.lt, operator.le, operator.gt, operator.ge])
def test_leases_have_no_order(compare: Callable[[object, object], bool]) -> None:
    with pytest.raises(TypeError):
        compare(filled(b"a"), filled(b"b"))


def test_leases_have_no_hash() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(filled(b"a"))


def test_a_released_lease_equals_itself_only() -> None:
    gone, other, empty = filled(b""), filled(b""), filled(b"")
    gone.release()
    other.release()
    assert gone == gone
    assert not gone != gone  # noqa: SIM202
    for another in (other, empty, b"", memoryview(b"")):
        assert gone != another
        assert another != gone


# ---- views


def test_readonly() -> None:
    buffer = filled(b"abc")
    view = buffer.readonly()
    assert (view.readonly, view.tobytes()) == (True, b"abc")
    with pytest.raises(TypeError, match="read-only"):
        view[0] = 1
    buffer[0] = 0
    assert view[0] == 0


def test_tobytes_is_a_copy() -> None:
    buffer = filled(b"abc")
    copied = buffer.tobytes()
    buffer[0] = 0
    assert type(copied) is bytes
    assert copied == b"abc"


@pytest.mark.parametrize(
    ("dtype", "shape", "offset", "order"),
    [
        ("u1", None, 0, "C"),
        ("u1", None, 96, "C"),
        ("f8", None, 0, "C"),
        (np.float32, (4, 3), 8, "C"),
        (np.dtype(">i4"), (4, 3), 8, "F"),
        ("i2", 5, 1, "C"),
        ("u1", (), 95, "C"),
        ("u1", (0, 7), 96, "C"),
        ("u1", (2, 3, 4), 0, "F"),
        ([("a", "i4"), ("b", "f8")], 8, 0, "C"),
        ("S12", 8, 0, "C"),
        ("(2,3)u2", 8, 0, "C"),
        ("M8[s]", [3], 0, "C"),
        (None, 12, 0, "C"),
        ("?", np.int64(4), np.int64(3), "C"),
    ],
)
def test_arrays_are_those_of_numpy(dtype: Any, shape: Any, offset: Any, order: Any) -> None:
    content = bytes(range(96))
    buffer = filled(content)
    made = buffer.array(dtype, shape, offset=offset, order=order)
    size = shape if shape is not None else (96 - offset) // np.dtype(dtype).itemsize
    expected = np.ndarray(size, dtype, buffer=bytearray(content), offset=offset, order=order)
    assert type(made) is np.ndarray
    assert (made.shape, made.dtype, made.strides) == (expected.shape, expected.dtype, expected.strides)
    assert made.tobytes() == expected.tobytes()
    assert made.flags.aligned == (made.ctypes.data % max(made.dtype.alignment, 1) == 0)
    assert (made.flags.writeable, made.flags.owndata) == (True, False)
    if made.size:
        assert made.ctypes.data == buffer.address + offset


def test_arrays_write_through() -> None:
    buffer = filled(bytes(16))
    buffer.array("<u4", (2, 2))[1, 0] = 0x64636261
    assert buffer.tobytes() == bytes(8) + b"abcd" + bytes(4)


BAD_ARRAYS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"shape": 101}, ValueError),
    ({"shape": (10, 11)}, ValueError),
    ({"shape": (2**62, 4)}, ValueError),
    ({"shape": (2**40, 2**40, 2**40)}, ValueError),
    ({"shape": -1}, ValueError),
    ({"shape": (3, -2)}, ValueError),
    ({"shape": (1,) * 65}, ValueError),
    ({"shape": (), "dtype": "S101"}, ValueError),
    ({"shape": (), "offset": 100}, ValueError),
    ({"shape": (1, 1), "offset": 100}, ValueError),
    ({"shape": (), "dtype": "f8", "offset": 93}, ValueError),
    ({"shape": (0,), "offset": 101}, ValueError),
    ({"offset": 101}, ValueError),
    ({"offset": -1}, ValueError),
    ({"dtype": "f8", "offset": 1}, ValueError),
    ({"dtype": "f8"}, ValueError),
    ({"dtype": "f8", "shape": 13}, ValueError),
    ({"dtype": "O"}, ValueError),
    ({"dtype": [("a", "O"), ("b", "i4")]}, ValueError),
    ({"dtype": "V0"}, ValueError),
    ({"dtype": "S"}, ValueError),
    ({"order": "A"}, ValueError),
    ({"order": "K"}, ValueError),
    ({"order": None}, ValueError),
    ({"dtype": "nonsense"}, TypeError),
    ({"shape": 1.0}, TypeError),
    ({"shape": ("1",)}, TypeError),
    ({"shape": (1, None)}, TypeError),
    ({"offset": 1.0}, TypeError),
    ({"offset": None}, TypeError),
    ({"shape": (2**70,)}, ValueError),
    ({"offset": 2**70}, ValueError),
]


@pytest.mark.parametrize(("arguments", "error"), BAD_ARRAYS, ids=lambda value: str(value))
def test_bad_arrays(arguments: dict[str, Any], error: type[Exception]) -> None:
    pool = BufferPool()
    buffer = filled(bytes(100), pool)
    with nothing_changes(pool), pytest.raises(error) as caught:
        buffer.array(**arguments)
    assert type(caught.value) is error
    buffer.resize(64)  # so no view was left behind
    buffer.release()
    assert pool.stats().retired == 0


# ---- resizing


@given(st.integers(0, 9000), st.data())
def test_resize_within_capacity(nbytes: int, data: st.DataObject) -> None:
    pool = BufferPool()
    buffer = filled(bytes(nbytes), pool)
    fresh = data.draw(st.integers(0, buffer.capacity))
    buffer.resize(fresh)
    assert (len(buffer), buffer.nbytes, pool.stats().requested) == (fresh, fresh, fresh)
    assert buffer.tobytes()[:nbytes] == bytes(min(nbytes, fresh))
    assert buffer[:].nbytes == buffer.array().size == fresh
    with nothing_changes(pool), pytest.raises(ValueError, match=str(buffer.capacity + 1)):
        buffer.resize(buffer.capacity + 1)


@pytest.mark.parametrize(
    "view",
    [
        memoryview,
        lambda b: b[2:3],
        lambda b: b.array(),
        lambda b: np.frombuffer(b, "u1"),
        lambda b: b.readonly(),
        pickle.PickleBuffer,
    ],
)
def test_resize_only_while_nothing_views_it(view: Callable[[Buffer], Any]) -> None:
    buffer = filled(b"abcd")
    seen = view(buffer)
    for nbytes in (0, 4, buffer.capacity):
        with pytest.raises(BufferError):
            buffer.resize(nbytes)
    assert buffer.tobytes() == b"abcd"
    del seen
    buffer.resize(5)
    assert len(buffer) == 5


# ---- zeros


@pytest.mark.parametrize("nbytes", [1, 100, 4096, 100_000, 3 * MIB])
@pytest.mark.parametrize("back", ["idle", "trim", "half trim"])
def test_zero_is_zero_whatever_was_there(nbytes: int, back: str) -> None:
    pool = BufferPool()
    for _ in range(3):
        buffers = [pool.acquire(nbytes) for _ in range(3)]
        for buffer in buffers:
            buffer.array()[:] = 0xFF
            buffer.release()
        if back != "idle":
            pool.trim(0 if back == "trim" else buffers[0].pool.stats().idle // 2)
        again = [pool.acquire(nbytes, zero=True) for _ in range(3)]
        assert not any(buffer.array().any() for buffer in again)
        for buffer in again:
            buffer.array()[:] = 0xEE
            buffer.release()


@pytest.mark.parametrize("nbytes", [1, 5000, 3 * MIB])
def test_zero_on_release(nbytes: int) -> None:
    pool = BufferPool(zero_on_release=True)
    with pool.acquire(nbytes) as buffer:
        address = buffer.address
        buffer.resize(buffer.capacity)
        buffer.array()[:] = 0xFF
        buffer.resize(0)
    with pool.acquire(nbytes) as buffer:
        assert buffer.address == address
        buffer.resize(buffer.capacity)
        assert not buffer.array().any()
    with pool.acquire(nbytes, zero=True) as buffer:
        assert not buffer.array().any()


# ---- the end


USES: list[Callable[[Buffer], object]] = [
    len,
    bytes,
    bytearray,
    memoryview,
    np.frombuffer,
    lambda b: b.nbytes,
    lambda b: b.capacity,
    lambda b: b.address,
    lambda b: b[0],
    lambda b: b[0:1],
    lambda b: operator.setitem(b, 0, 1),
    lambda b: operator.setitem(b, slice(0, 1), b"x"),  # type: ignore[misc]
    lambda b: b.array(),
    lambda b: b.array("f8", 0),
    lambda b: b.resize(1),
    lambda b: b.readonly(),
    lambda b: b.tobytes(),
    lambda b: b.__enter__(),
    lambda b: b.__dlpack__(),
    lambda b: b.__dlpack__(copy=True),
    lambda b: b.__dlpack_device__(),
    np.from_dlpack,
    pickle.dumps,
    lambda b: pickle.dumps(b, 5),
    copy.copy,
    copy.deepcopy,
    lambda b: operator.setitem(bytearray(1), slice(0, 1), b),
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("never_lent", [False, True], ids=["released", "never lent"])
def test_use_after_release(use: Callable[[Buffer], object], never_lent: bool) -> None:
    pool = BufferPool()
    buffer = Buffer.__new__(Buffer) if never_lent else pool.acquire(8)
    buffer.release()
    with nothing_changes(pool), pytest.raises(ValueError, match="released"):
        use(buffer)
    assert buffer.released
    assert buffer.pool is (None if never_lent else pool)
    buffer.release()
    buffer.__exit__(None, None, None)


def test_releasing_twice_is_as_good_as_once() -> None:
    pool = BufferPool()
    with pool.acquire(100) as buffer:
        buffer.release()
        again = pool.acquire(100)
        buffer.release()
    assert again.tobytes() == again.tobytes()
    stats = pool.stats()
    assert (stats.acquires, stats.releases, stats.live) == (2, 1, 1)


def test_an_exception_leaves_the_with_block_and_the_lease() -> None:
    pool = BufferPool()
    with pytest.raises(KeyError, match="mine"), pool.acquire(100) as buffer:
        raise KeyError("mine")
    assert buffer.released
    assert pool.stats().idle == pool.stats().reserved


def test_a_lease_that_was_never_lent_is_harmless() -> None:
    buffer = Buffer.__new__(Buffer)
    assert "never lent" in repr(buffer)
    assert buffer.released
    assert buffer != b""
    assert weakref.ref(buffer)() is buffer
    del buffer


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b, 2))])
def test_copies_have_memory_of_their_own(clone: Callable[[Buffer], Buffer]) -> None:
    buffer = filled(b"abcd")
    with clone(buffer) as copied:
        assert type(copied) is Buffer
        assert copied.pool is mempool.default_pool()
        buffer[0] = 0
        assert copied.tobytes() == b"abcd"
