"""What sees the memory of a slab: items, records, and the array of all slots. None is moved, and none is lent while it is seen."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mempool import SlabAllocator, StaleHandle

PACKED = np.dtype([("a", "u1"), ("b", "f8"), ("c", "i2", (2, 3))])
ALIGNED = np.dtype([("a", "u1"), ("b", "f8"), ("c", "i2")], align=True)
NESTED = np.dtype([("at", [("x", "f4"), ("y", "f4")]), ("inner", [("deep", [("z", "i8")]), ("n", "u1")], (2,))])
GAPS = np.dtype({"names": ["p", "q"], "formats": ["i4", "f8"], "offsets": [5, 20], "itemsize": 33})
OVERLAPPING = np.dtype({"names": ["all", "low"], "formats": ["u4", "u2"], "offsets": [0, 0]})
WORDS = np.dtype([("name", "S6"), ("text", "U4"), ("raw", "V3"), ("when", "M8[us]"), ("long", "m8[s]"), ("ok", "?")])
SWAPPED = np.dtype([("big", ">i4"), ("little", "<i4"), ("c", ">c16")])
RECORD = np.dtype((np.record, [("x", "f8"), ("y", "i4")]))
TITLED = np.dtype([(("the title", "t"), "i4"), ("u", "f4")])

RECORDS: dict[str, tuple[Any, Any]] = {
    "packed": (PACKED, (1, 2.5, [[1, 2, 3], [4, 5, 6]])),
    "aligned": (ALIGNED, (1, 2.5, -3)),
    "nested": (NESTED, ((1, 2), [((3,), 4), ((5,), 6)])),
    "gaps": (GAPS, (-7, 1e300)),
    "overlapping": (OVERLAPPING, (0x10002, 2)),
    "words": (WORDS, (b"abc", "äöü€", b"xyz", np.datetime64("2024-05-06T07:08:09"), np.timedelta64(-5, "s"), True)),
    "swapped": (SWAPPED, (1, 2, 3 + 4j)),
    "np.record": (RECORD, (1.5, -2)),
    "titled": (TITLED, (5, 0.5)),
}
PLAIN: dict[str, tuple[Any, Any]] = {
    "f8": ("f8", 1.5),
    "big endian": (">i2", -300),
    "complex": ("c16", 1 - 2j),
    "bool": ("?", True),
    "half": ("f2", 0.5),
    "long double": ("g", 2.25),
    "bytes": ("S5", b"abc"),
    "text": ("U3", "äöü"),
    "void": ("V4", np.void(b"abcd")),
    "datetime": ("M8[ms]", np.datetime64("2024-05-06T07:08:09.123", "ms")),
    "timedelta": ("m8[D]", np.timedelta64(9, "D")),
    "sub-array": (("i4", (2, 3)), np.arange(6).reshape(2, 3)),
    "records in a sub-array": ((ALIGNED, (2,)), np.array([(1, 2, 3), (4, 5, 6)], ALIGNED)),
    "structured": (PACKED, np.array((1, 2.5, [[1, 2, 3], [4, 5, 6]]), PACKED)),
}


def one(item: Any, value: Any = None) -> tuple[SlabAllocator, int]:
    """A slab that has room for one item, and that item."""
    slab = SlabAllocator(item, max_items=1)
    handle = slab.alloc()
    if value is not None:
        slab[handle] = value
    return slab, handle


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


# ---- items of bytes


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100, 4096, 5000, 1 << 20])
def test_items_of_bytes(size: int) -> None:
    slab = SlabAllocator(size)
    handles = [slab.alloc() for _ in range(5)]
    for number, handle in enumerate(handles):
        assert bytes(slab[handle]) == bytes(size)
        slab[handle] = bytes([number + 1]) * size
    for number, handle in enumerate(handles):
        view = slab[handle]
        assert (type(view), view.nbytes, view.format, view.shape, view.readonly) == (
            memoryview,
            size,
            "B",
            (size,),
            False,
        )
        assert bytes(view) == bytes([number + 1]) * size
    assert slab.array.shape == (5, size)
    assert (slab.array == np.arange(1, 6, dtype="u1")[:, None]).all()
    assert (slab.compacted() == slab.array).all()


SOURCES: list[Any] = [
    b"12345678",
    bytearray(b"12345678"),
    memoryview(b"12345678"),
    memoryview(b"1.2.3.4.5.6.7.8.")[::2],
    np.frombuffer(b"12345678", "u8"),
    np.frombuffer(b"12345678", "u1").reshape(2, 4),
    np.asfortranarray(np.frombuffer(b"12345678", "u1").reshape(2, 4)),
]


@pytest.mark.parametrize("source", SOURCES, ids=range(len(SOURCES)))
def test_an_item_is_assigned_from_bytes_of_any_kind(source: Any) -> None:
    slab, handle = one(8, b"########")
    slab[handle] = source
    assert bytes(slab[handle]) == memoryview(source).tobytes() == b"12345678"


@pytest.mark.parametrize("value", [b"", b"1234567", b"123456789", np.zeros(2)])
def test_bytes_of_another_length_are_refused(value: Any) -> None:
    slab, handle = one(8, b"12345678")
    with pytest.raises(ValueError, match=f"{memoryview(value).nbytes} bytes.* 8"):
        slab[handle] = value
    assert bytes(slab[handle]) == b"12345678"


@pytest.mark.parametrize("value", [5, None, "12345678", [1, 2, 3, 4, 5, 6, 7, 8], 1.5])
def test_what_has_no_bytes_is_refused(value: Any) -> None:
    slab, handle = one(8, b"12345678")
    with pytest.raises(TypeError):
        slab[handle] = value
    assert bytes(slab[handle]) == b"12345678"


def test_an_item_is_assigned_from_another() -> None:
    slab = SlabAllocator(4)
    first, second = slab.alloc(), slab.alloc()
    slab[first] = b"abcd"
    slab[second] = slab[first]
    slab[second] = slab[second]
    assert bytes(slab[second]) == b"abcd"
    assert slab.array.tobytes() == b"abcdabcd"


# ---- items of a dtype


@pytest.mark.parametrize(("item", "value"), RECORDS.values(), ids=RECORDS.keys())
def test_records_are_read_and_written(item: np.dtype[Any], value: Any) -> None:
    slab = SlabAllocator(item)
    first, second = slab.alloc(), slab.alloc()
    slab[second] = value
    expected = np.zeros(2, item)
    expected[1] = value
    record = slab[second]
    assert isinstance(record, item.type)
    assert isinstance(record, np.void)
    assert record.dtype == item
    assert slab.array.dtype == slab.compacted().dtype == item
    assert str(slab.array.tolist()) == str(expected.tolist())
    slab[first] = record
    slab[second] = expected[0]
    assert str(slab.array.tolist()) == str(expected[::-1].tolist())


@pytest.mark.parametrize(("item", "value"), PLAIN.values(), ids=PLAIN.keys())
def test_items_of_other_dtypes(item: Any, value: Any) -> None:
    dtype = np.dtype(item)
    slab = SlabAllocator(item)
    first, second = slab.alloc(), slab.alloc()
    slab[second] = value
    expected = np.zeros(2, dtype)
    expected[1] = value
    assert (slab.array.shape, slab.array.dtype) == (expected.shape, expected.dtype)
    assert str(slab.array.tolist()) == str(expected.tolist())  # a long double has bytes that are nobody's
    seen = np.asarray(slab[second])
    assert (seen.shape, seen.dtype, str(seen.tolist())) == (dtype.shape, dtype.base, str(expected[1].tolist()))
    slab[first] = slab[second]
    for both in (slab.array, slab[[second, first]]):
        assert str(both.tolist()) == str(expected[[1, 1]].tolist())


def test_an_item_of_a_plain_dtype_is_an_array_without_dimensions() -> None:
    slab, handle = one("f8", 1.5)
    item = slab[handle]
    assert (type(item), item.shape, item.dtype, item.flags.writeable) == (np.ndarray, (), np.float64, True)
    item[...] = 2.5
    assert (slab[handle], slab.array[0]) == (2.5, 2.5)


def test_records_write_through() -> None:
    slab, handle = one(NESTED)
    record = slab[handle]
    record["at"]["x"] = 1.5
    record["inner"][1]["deep"]["z"] = -7
    record["inner"]["n"] = [8, 9]
    expected = np.array([((1.5, 0.0), [((0,), 8), ((-7,), 9)])], NESTED)
    assert slab.array.tobytes() == expected.tobytes()
    slab.array["at"]["y"] = 2.5
    assert record["at"]["y"] == 2.5


def test_np_records_have_attributes() -> None:
    slab, handle = one(RECORD, (1.5, 2))
    record = slab[handle]
    assert (type(record), record.x, record.y) == (np.record, 1.5, 2)
    record.y = 5
    assert slab.array["y"].tolist() == [5]


@pytest.mark.parametrize(
    ("item", "value"),
    [
        (PACKED, (1, 2)),
        (PACKED, "text"),
        ("f8", "text"),
        ("f8", [1, 2]),
        (("i4", (2, 3)), [1, 2]),
        ("f8", b"12345678x"),
    ],
)
def test_values_that_do_not_fit_are_refused(item: Any, value: Any) -> None:
    slab, handle = one(item)
    with pytest.raises((ValueError, TypeError)):
        slab[handle] = value
    assert (slab.array.tobytes(), slab.stats().retired) == (bytes(slab.stats().item_size), 0)


def test_values_as_numpy_takes_them() -> None:
    slab, handle = one(("i4", (2, 3)))
    slab[handle] = 7
    assert slab.array.tolist() == [[[7] * 3] * 2]
    slab[handle] = [1, 2, 3]
    assert slab[handle].tolist() == [[1, 2, 3], [1, 2, 3]]


# ---- many items


def test_many_items_are_read_and_written() -> None:
    slab = SlabAllocator([("x", "f8"), ("y", "i4")])
    handles = slab.alloc_many(1000)
    slab[handles] = np.rec.fromarrays([np.arange(1000.0), np.arange(1000)])
    dice = np.random.default_rng(1).permutation(1000)
    assert (slab[handles[dice]]["y"] == dice).all()
    slab[handles[:10]] = (5.0, 6)
    assert slab[handles[8:12]].tolist() == [(5.0, 6), (5.0, 6), (10.0, 10), (11.0, 11)]
    square = handles[:900].reshape(30, 30)
    assert (slab[square].shape, slab.indices(square).shape) == ((30, 30), (30, 30))
    assert slab[square[3:5, ::10].tolist()]["y"].tolist() == [[90, 100, 110], [120, 130, 140]]


def test_what_is_read_of_many_is_a_copy() -> None:
    slab = SlabAllocator("f8")
    handles = slab.alloc_many(10)
    read = slab[handles]
    slab[handles] = 5
    slab.free_many(handles)
    assert (read.tolist(), slab.stats().retired) == ([0.0] * 10, 0)


def test_many_items_of_bytes() -> None:
    slab = SlabAllocator(3)
    handles = slab.alloc_many(4)
    slab[handles] = np.arange(12, dtype="u1").reshape(4, 3)
    assert slab[handles[::-1]].tolist() == [[9, 10, 11], [6, 7, 8], [3, 4, 5], [0, 1, 2]]
    assert bytes(slab[handles[1]]) == bytes([3, 4, 5])
    assert slab[handles.reshape(2, 2)].shape == (2, 2, 3)


def test_a_wrong_shape_changes_nothing() -> None:
    slab = SlabAllocator("f8")
    handles = slab.alloc_many(5)
    with pytest.raises(ValueError, match="shape"):
        slab[handles] = [1, 2, 3]
    with pytest.raises(StaleHandle):
        slab[[*handles, 5]] = 1
    assert not slab.array.any()


# ---- the array of all slots


SHAPES: list[tuple[Any, tuple[int, ...], Any]] = [
    (1, (1,), "u1"),
    (24, (24,), "u1"),
    ("f8", (), "f8"),
    (PACKED, (), PACKED),
    (("f4", (2, 3)), (2, 3), "f4"),
    ((ALIGNED, (2,)), (2,), ALIGNED),
]


@pytest.mark.parametrize(("item", "tail", "dtype"), SHAPES)
def test_shape_of_the_array(item: Any, tail: tuple[int, ...], dtype: Any) -> None:
    slab = SlabAllocator(item)
    assert slab.array.shape == (0, *tail)
    slab.free(slab.alloc_many(100)[50])
    array = slab.array
    assert (array.shape, array.dtype) == ((100, *tail), np.dtype(dtype))
    assert (type(array), array.flags.c_contiguous, array.flags.writeable, array.flags.owndata) == (
        np.ndarray,
        True,
        True,
        False,
    )
    assert slab.compacted().shape == (99, *tail)
    assert slab[slab.handles().reshape(9, 11)].shape == (9, 11, *tail)


def test_slots_are_all_that_were_ever_used() -> None:
    slab = SlabAllocator("i4")
    handles = slab.alloc_many(100)
    slab.free_many(handles)
    assert (len(slab.array), slab.stats().slots) == (100, 100)
    slab.alloc_many(100)
    assert len(slab.array) == 100
    slab.alloc()
    assert (len(slab.array), slab.stats().slots) == (101, 101)


@pytest.mark.parametrize("item", [1, 24, "i4"])
def test_nothing_moves_as_the_slab_grows(item: Any) -> None:
    slab = SlabAllocator(item)
    handle = slab.alloc()
    old, view = slab.array, slab[handle]
    start = address(old)
    for power in range(3, 20):
        slab.alloc_many(1 << power)
        assert address(slab.array) == start == address(np.asarray(view))
    old[0] = 5
    assert slab.array[0].tolist() == old[0].tolist() == np.asarray(slab[handle]).tolist()
    assert len(old) == 1


def test_old_arrays_see_later_writes() -> None:
    slab = SlabAllocator("i8")
    handles = slab.alloc_many(10)
    old = slab.array
    more = slab.alloc_many(100_000)
    slab[handles] = np.arange(10)
    slab[more] = 7
    assert old.tolist() == list(range(10))
    assert slab.array[10:].sum() == 700_000


def test_arrays_do_not_pin_items() -> None:
    slab = SlabAllocator("i8")
    handle = slab.alloc()
    array = slab.array
    slab.free(handle)
    assert slab.stats().retired == 0
    slab[slab.alloc()] = 5
    assert array.tolist() == [5]


ENDS: dict[str, Callable[[SlabAllocator], None]] = {
    "close": lambda slab: slab.close(),
    "with": lambda slab: slab.__exit__(None, None, None),
    "del": lambda slab: None,
}
WHOLES: dict[str, Callable[[SlabAllocator], Any]] = {
    "array": lambda slab: slab.array,
    "slice": lambda slab: slab.array[:],
    "memoryview": lambda slab: memoryview(slab),
    "asarray": lambda slab: np.asarray(slab),
    "frombuffer": lambda slab: np.frombuffer(slab, "i8"),
    "ndarray": lambda slab: np.ndarray(1000, "i8", buffer=slab.array),
    "item": lambda slab: slab[int(slab.handles()[0])],
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("view", WHOLES.values(), ids=WHOLES.keys())
def test_views_outlive_the_slab(view: Callable[[SlabAllocator], Any], end: Callable[[SlabAllocator], None]) -> None:
    slab = SlabAllocator("i8")
    slab[slab.alloc_many(1000)] = 7
    account, gone, seen = slab.account, weakref.ref(slab), view(slab)
    end(slab)
    del slab
    gc.collect()
    assert gone() is None
    assert account.used >= 8000
    seen = np.asarray(seen)
    assert (seen == 7).all()
    seen[...] = 8
    del seen
    assert account.used == 0


@pytest.mark.parametrize("end", ["slab.close()", "del slab", "slab.close(); del slab; gc.collect()"])
def test_an_array_over_the_slab_itself(run_python: Callable[..., Any], end: str) -> None:
    """`numpy.ndarray(buffer=slab)` gives its export back at once, and keeps the slab."""
    run_python(f"""
        import gc, mempool, numpy
        slab = mempool.SlabAllocator(1000)
        account, handles = slab.account, slab.alloc_many(1000)
        array = numpy.ndarray((1000, 1000), "u1", buffer=slab)
        array[:] = 7
        {end}
        other = mempool.SlabAllocator(1000)
        other.alloc_many(1000)
        other.array[:] = 8
        assert (array == 7).all() and account.used >= 1_000_000
        del array
        slab = None
        assert account.used == 0
    """)


def test_the_buffer_protocol() -> None:
    slab = SlabAllocator([("x", "f8"), ("n", "i8")])
    slab.alloc_many(10)
    view = memoryview(slab)
    assert (view.format, view.shape, view.itemsize, view.readonly) == ("T{d:x:l:n:}", (10,), 16, False)
    plain = SlabAllocator(24)
    plain.alloc_many(10)
    view = memoryview(plain)
    assert (view.format, view.shape, view.strides) == ("B", (10, 24), (24, 1))
    view[3, 5] = 9
    assert plain.array[3, 5] == 9
    assert np.asarray(plain).shape == (10, 24)
    assert bytes(memoryview(SlabAllocator("f8"))) == b""
    numbers = SlabAllocator(("f4", (3,)))
    numbers.alloc_many(2)
    assert (memoryview(numbers).format, memoryview(numbers).shape) == ("f", (2, 3))


def test_a_memoryview_of_the_slab_shows_its_slots_of_then() -> None:
    slab = SlabAllocator(1)
    slab.alloc_many(10)
    view = memoryview(slab)
    slab.alloc_many(100_000)
    slab.array[:] = 3
    assert (bytes(view), len(memoryview(slab))) == (b"\3" * 10, 100_010)
    view.release()
    slab.close()
    assert slab.stats().reserved == 0
