"""What `open_array` shows of a file is what NumPy shows of it: dtypes, shapes, orders, offsets and modes."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mempool

SIMPLE = ["?", "i1", "u1", "<i2", ">i2", "<u2", ">u2", "<i4", ">i4", "<u4", ">u4", "<i8", ">i8", "<u8", ">u8"]
SIMPLE += ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "g", "<c8", ">c8", "<c16", ">c16", "G"]
SIMPLE += ["S1", "S7", "<U1", ">U1", "<U9", ">U9", "V1", "V13"]

PLAIN: dict[str, Any] = {name: np.dtype(name) for name in SIMPLE} | {
    "packed": np.dtype([("a", "i1"), ("b", "<f8"), ("c", ">u2")]),
    "aligned": np.dtype([("a", "i1"), ("b", "<f8"), ("c", ">u2")], align=True),
    "nested": np.dtype([("a", [("x", "<i4"), ("y", "S3")]), ("b", "?")]),
    "sub-array": np.dtype([("a", ">f4", (2, 3)), ("b", [("c", "u1", 5)], (2,))]),
    "spaced": np.dtype({"names": ["a", "b"], "formats": ["<i2", "<f4"], "offsets": [1, 9], "itemsize": 20}),
    "unicode names": np.dtype([("gr\xf6\xdfe", "<f8"), ("数", "<i4")]),
    "titles": np.dtype([(("title", "a"), "<i4"), ("b", "u1")]),
}
UNNAMED: dict[str, Any] = {name: np.dtype(name) for name in ["<M8[s]", ">M8[ns]", "<m8[D]", ">m8[ms]", "<M8[25us]"]}
UNNAMED["swapped longdouble"] = np.dtype("g").newbyteorder()
OF_DTYPES = pytest.mark.parametrize("dtype", (PLAIN | UNNAMED).values(), ids=(PLAIN | UNNAMED).keys())
SHAPES = [(), (0,), (1,), (7,), (0, 3), (3, 0), (2, 3), (2, 3, 4), (2, 0, 4), (1,) * 20]
OF_SHAPES = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)) or "0-d")
OF_ORDERS = pytest.mark.parametrize("order", ["C", "F"])
MODES = ["r", "r+", "w+", "c"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.npy"


def filled(dtype: np.dtype[Any], shape: tuple[int, ...], order: Any = "C") -> np.ndarray[Any, Any]:
    """Values that no two items share where there is room; every bit pattern of them is a good one."""
    size = int(np.prod(shape, dtype=object))
    array = np.zeros(size, dtype)
    if dtype.kind in "SU":
        array[:] = [str(i) for i in range(size)]
    elif dtype.kind == "b":
        array[:] = np.arange(size) % 2
    elif dtype.kind in "iufcMm":
        array[:] = np.arange(size).astype(dtype)
    else:
        values = (np.arange(size * dtype.itemsize, dtype="u1") % 2).view(dtype)
        for field in dtype.names or [...]:  # what is between the fields stays zero
            array[field] = values[field]  # type: ignore[index]
    return np.array(array.reshape(shape), order=order)


def same(seen: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    assert type(seen) is np.ndarray
    assert (seen.dtype, seen.shape) == (wanted.dtype, wanted.shape)
    assert seen.strides == wanted.strides or not wanted.size  # NumPy has two ways to stride through nothing
    assert seen.flags.c_contiguous == wanted.flags.c_contiguous
    assert seen.flags.f_contiguous == wanted.flags.f_contiguous
    assert not seen.flags.owndata
    assert seen.tobytes("A") == wanted.tobytes("A")


def described(array: mempool.MappedArray, wanted: np.ndarray[Any, Any]) -> None:
    assert (array.dtype, array.shape, array.strides) == (wanted.dtype, wanted.shape, array.array.strides)
    assert (array.ndim, array.nbytes, array.itemsize) == (wanted.ndim, wanted.nbytes, wanted.itemsize)
    if wanted.ndim:
        assert len(array) == len(wanted)
    else:
        with pytest.raises(TypeError, match="0-dim"):
            len(array)


def same_buffer(seen: memoryview, wanted: memoryview) -> None:
    assert (seen.itemsize, seen.ndim, seen.shape, seen.nbytes) == (
        wanted.itemsize,
        wanted.ndim,
        wanted.shape,
        wanted.nbytes,
    )
    assert (seen.format, seen.strides) == (wanted.format, wanted.strides) or not wanted.nbytes
    assert (seen.c_contiguous, seen.f_contiguous) == (wanted.c_contiguous, wanted.f_contiguous)
    assert seen.tobytes("A") == wanted.tobytes("A")


@OF_DTYPES
@OF_ORDERS
@pytest.mark.filterwarnings("ignore:Stored array in format:UserWarning")
def test_saved_by_numpy(path: Path, dtype: np.dtype[Any], order: str) -> None:
    wanted = filled(dtype, (3, 4), order)
    np.save(path, wanted)
    read = np.load(path)
    with mempool.open_array(path) as array:
        described(array, read)
        same(array.array, read)
        assert array.array.flags.aligned == (array.array.ctypes.data % dtype.alignment == 0)
        assert np.array_equal(array.array, wanted)


@OF_DTYPES
@OF_ORDERS
@pytest.mark.filterwarnings("ignore:Stored array in format:UserWarning")
def test_created_for_numpy(path: Path, dtype: np.dtype[Any], order: str) -> None:
    wanted = filled(dtype, (3, 4), order)
    with mempool.create_array(path, (3, 4), dtype, order=order) as array:
        described(array, wanted)
        assert array.array.tobytes("A") == bytes(wanted.nbytes)
        array.array[...] = wanted
        assert np.array_equal(array.array, wanted)
        array.flush()
        assert np.array_equal(np.load(path), wanted)
    read = np.load(path)
    assert (read.dtype, read.shape, read.flags.f_contiguous) == (dtype, (3, 4), order == "F")
    assert np.array_equal(read, wanted)
    with mempool.open_array(path) as array:
        assert (array.dtype, array.shape, array.strides) == (wanted.dtype, wanted.shape, wanted.strides)


@pytest.mark.parametrize("dtype", PLAIN.values(), ids=PLAIN.keys())
@pytest.mark.parametrize(("shape", "order"), [((5,), "C"), ((2, 3), "C"), ((2, 3), "F"), ((), "C"), ((0, 3), "C")])
def test_buffers_are_numpys(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> None:
    wanted = filled(dtype, shape, order)
    wanted.tofile(path) if order == "C" else path.write_bytes(wanted.tobytes("A"))
    with mempool.open_array(path, "c", dtype=dtype, shape=shape, order=order) as array:
        seen = memoryview(array)
        same_buffer(seen, memoryview(wanted))
        assert not seen.readonly
        if dtype.names is None:  # NumPy asks for the buffer first, and warns of records in its own
            same(np.asarray(array), np.asarray(memoryview(wanted)))
    with mempool.open_array(path, dtype=dtype, shape=shape, order=order) as array:
        assert memoryview(array).readonly
        assert not array.array.flags.writeable


@pytest.mark.parametrize("dtype", UNNAMED.values(), ids=UNNAMED.keys())
def test_dtypes_without_a_format(path: Path, dtype: np.dtype[Any]) -> None:
    wanted = filled(dtype, (2, 3))
    np.save(path, wanted)
    with pytest.raises(ValueError, match="buffer") as theirs:
        memoryview(wanted)
    with mempool.open_array(path) as array:
        with pytest.raises(ValueError, match="buffer") as ours:
            memoryview(array)
        assert str(ours.value) == str(theirs.value)
        same(array.array, wanted)
        same(np.asarray(array), wanted)


@OF_SHAPES
@OF_ORDERS
def test_shapes(path: Path, shape: tuple[int, ...], order: Any) -> None:
    wanted = filled(np.dtype("<i4"), shape, order)
    np.save(path, wanted)
    for mode in ("r", "r+", "c"):
        with mempool.open_array(path, mode) as array:
            described(array, np.load(path))
            same(array.array, np.load(path))
            same_buffer(memoryview(array), memoryview(np.load(path)))
    os.unlink(path)
    with mempool.create_array(path, shape, "<i4", order=order) as array:
        described(array, wanted)
        array.array[...] = wanted
    assert np.array_equal(np.load(path), wanted)
    with mempool.anonymous_array(shape, "<i4") as array:
        described(array, np.zeros(shape, "<i4"))
        array.array[...] = wanted
        assert np.array_equal(array.array, wanted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("offset", [0, 1, 6, 4095, 4096, 4097, 70_001])
def test_raw_files(path: Path, mode: Any, offset: int) -> None:
    for shape in SHAPES:
        for order in ("C", "F"):
            check_raw(path, shape, order, mode, offset)


def check_raw(path: Path, shape: tuple[int, ...], order: Any, mode: Any, offset: int) -> None:
    wanted = filled(np.dtype("<f8"), shape, order)
    path.write_bytes(b"x" * offset + wanted.tobytes("A"))
    if mode == "w+":
        wanted = np.zeros_like(wanted)
    with mempool.open_array(path, mode, dtype="<f8", shape=shape, offset=offset, order=order) as array:
        described(array, wanted)
        same(array.array, wanted)
        assert not wanted.size or array.array.ctypes.data % 4096 == offset % 4096
        assert not wanted.size or array.array.flags.aligned == (array.array.ctypes.data % 8 == 0)
    size = offset + wanted.nbytes
    assert path.stat().st_size == size
    assert path.read_bytes()[:offset] == (bytes(offset) if mode == "w+" else b"x" * offset)


@pytest.mark.parametrize(("offset", "dtype", "rows"), [(0, "u1", 24), (4, "<i4", 5), (16, "<f8", 1), (24, "<f8", 0)])
def test_raw_up_to_the_end(path: Path, offset: int, dtype: str, rows: int) -> None:
    path.write_bytes(bytes(range(24)))
    with mempool.open_array(path, dtype=dtype, offset=offset) as array:
        same(array.array, np.fromfile(path, dtype, offset=offset))
        assert array.shape == (rows,)


def test_raw_tail_is_not_shown(path: Path) -> None:
    path.write_bytes(bytes(range(100)))
    with mempool.open_array(path, dtype="u1", shape=10) as array:
        assert array.array.tolist() == list(range(10))


def test_subarrays_become_axes(path: Path) -> None:
    with mempool.open_array(path, "w+", dtype=np.dtype(("<f4", (2, 3))), shape=4) as array:
        described(array, np.zeros((4, 2, 3), "<f4"))
    with mempool.create_array(path, (4,), ("<f4", (2, 3)), overwrite=True) as array:
        described(array, np.zeros((4, 2, 3), "<f4"))
    assert np.load(path).shape == (4, 2, 3)


@pytest.mark.parametrize("mode", MODES)
@OF_ORDERS
def test_modes_are_those_of_memmap(tmp_path: Path, mode: Any, order: Any) -> None:
    """Write by each where it may; what is read there and what is in the file afterwards is the same."""
    start = filled(np.dtype("<i4"), (40, 50), order)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for path in (ours, theirs):
        path.write_bytes(b"head" + start.tobytes("A"))
    mapped = np.memmap(theirs, "<i4", mode, 4, (40, 50), order)
    with mempool.open_array(ours, mode, dtype="<i4", shape=(40, 50), offset=4, order=order) as array:
        seen = array.array
        assert (seen.strides, seen.flags.writeable) == (mapped.strides, mapped.flags.writeable)
        assert array.readonly == (mode == "r")
        assert (array.mode, array.path) == (mode, ours.__fspath__())
        if mode == "r":
            for view in (seen, mapped):
                with pytest.raises(ValueError, match="read-only"):
                    view[3] = 5
        else:
            seen[3], mapped[3] = 5, 5
        assert np.array_equal(seen, mapped)
        array.flush()
        mapped.flush()
        assert ours.read_bytes() == theirs.read_bytes()
    assert ours.read_bytes() == theirs.read_bytes()


def test_private_copy_keeps_its_changes(path: Path) -> None:
    np.save(path, np.arange(5000))
    before = path.read_bytes()
    with mempool.open_array(path, "c") as array, mempool.open_array(path) as other:
        array[10:20] = -1
        array.flush()
        assert array[10:20].tolist() == [-1] * 10
        assert other[10:20].tolist() == list(range(10, 20))
    assert path.read_bytes() == before


def test_shared_mappings_see_each_other(path: Path) -> None:
    np.save(path, np.arange(5))
    with mempool.open_array(path, "r+") as array, mempool.open_array(path) as other:
        array[2] = 50
        assert other[2] == 50
        assert np.load(path)[2] == 50


def test_writes_that_are_refused(path: Path) -> None:
    """As NumPy refuses them; nothing makes a read-only array writable."""
    np.save(path, np.arange(5))
    theirs = np.arange(5)
    theirs.flags.writeable = False
    with mempool.open_array(path) as array:
        for write in (lambda a: a.__setitem__(0, 1), lambda a: memoryview(a).__setitem__(0, 1), lambda a: a.fill(1)):
            errors = []
            for view in (theirs, array.array):
                with pytest.raises((ValueError, TypeError)) as caught:
                    write(view)
                errors.append((caught.type, str(caught.value)))
            assert errors[0] == errors[1]
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.array.setflags(write=True)
        with pytest.raises(ValueError, match="WRITEABLE"):
            np.asarray(array).flags.writeable = True
        with pytest.raises(TypeError, match="read-only"):
            np.frombuffer(array.array.base, "u1").base[0] = 1
        assert array.array.tolist() == [0, 1, 2, 3, 4]


def test_slices_and_items_are_plain(path: Path) -> None:
    wanted = filled(np.dtype("<f4"), (5, 6))
    np.save(path, wanted)
    with mempool.open_array(path, "r+") as array:
        for index in (2, (1, 2), slice(1, 4), (slice(None), 3), ..., wanted[:, 0] > 8, [3, 1]):
            assert np.array_equal(array[index], wanted[index])
            assert type(array[index]) is type(wanted[index])
        assert array[1:3].base is not None
        array[1:3, 2] = 77
        assert np.load(path)[2, 2] == 77


def test_as_an_array_argument(path: Path) -> None:
    wanted = filled(np.dtype("<i4"), (3, 4))
    np.save(path, wanted)
    with mempool.open_array(path, "r+") as array:
        assert np.shares_memory(np.asarray(array), array.array)
        assert np.shares_memory(array.__array__(), array.array)
        assert not np.shares_memory(np.array(array), array.array)
        assert array.__array__(np.dtype("f8")).dtype == "f8"
        assert not np.shares_memory(array.__array__(copy=True), array.array)
        assert np.shares_memory(array.__array__(np.dtype("<i4"), copy=False), array.array)
        with pytest.raises(ValueError, match="copy"):
            array.__array__(np.dtype("f8"), copy=False)
        assert float(np.sum(array)) == wanted.sum()


@pytest.mark.parametrize("create", [False, True], ids=["raw", "npy"])
def test_beyond_four_gib(path: Path, create: bool) -> None:
    """Sparse: written and read at the far end."""
    rows = (5 << 30) // 8
    made = (
        mempool.create_array(path, rows, "<i8") if create else mempool.open_array(path, "w+", dtype="<i8", shape=rows)
    )
    with made as array:
        assert (array.nbytes, array.shape) == (5 << 30, (rows,))
        array[-1] = array[1 << 29] = 42
        array.flush(rows - 1)
        array.append([43])
    with mempool.open_array(path, dtype=None if create else "<i8") as array:
        assert (array[-2], array[-1], array[1 << 29], array[0], len(array)) == (42, 43, 42, 0, rows + 1)
    assert path.stat().st_blocks * 512 < 1 << 20
    if create:
        assert np.load(path, mmap_mode="r")[-1] == 43


def test_raw_far_away(path: Path) -> None:
    offset = (4 << 30) + 5
    with mempool.open_array(path, "w+", dtype="<i4", shape=3, offset=offset) as array:
        array[:] = [1, 2, 3]
    assert path.stat().st_size == offset + 12
    if sys.platform == "linux":
        assert path.stat().st_blocks * 512 < 1 << 20  # what lies before is a hole
    assert np.fromfile(path, "<i4", offset=offset).tolist() == [1, 2, 3]
    with mempool.open_array(path, "r+", dtype="<i4", offset=offset) as array:
        array.append([4])
        assert array.array.tolist() == [1, 2, 3, 4]


def test_what_lay_before_a_raw_array_is_gone(path: Path) -> None:
    path.write_bytes(b"x" * 100_000)
    with mempool.open_array(path, "w+", dtype="u1", shape=10, offset=50_001) as array:
        array[:] = 7
    assert path.read_bytes() == bytes(50_001) + b"\x07" * 10


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_kinds_of_paths(tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("here.npy", str(tmp_path / "there.npy")):
        with mempool.create_array(kind(name), 3, "u1") as array:
            assert array.path == os.fspath(kind(name))
        assert mempool.open_array(kind(name)).shape == (3,)
        assert mempool.open_array(kind(name), "w+", dtype="u1", shape=5).shape == (5,)


def test_hard_to_say_names(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    for name in (b"\xff\xfe", b"a\nb", b".hidden", "\U0001f600".encode() * 20, b"x" * 255):
        with mempool.create_array(os.path.join(folder, name), 3, "u1") as array:
            array[:] = 7
        assert mempool.open_array(os.path.join(folder, name))[1] == 7


def test_longest_name_of_wide_letters(tmp_path: Path) -> None:
    """A name of 252 bytes, as NumPy takes it."""
    path = tmp_path / ("\U0001f600" * 63)
    path.write_bytes(b"")
    mempool.create_array(path, 3, "u1", overwrite=True).close()
    assert os.listdir(tmp_path) == [path.name]


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.symlink(tmp_path / "folder" / "real", tmp_path / "link")
    mempool.create_array(tmp_path / "link", 3, "u1").close()
    mempool.create_array(tmp_path / "link", 5, "u1", overwrite=True).close()
    assert (tmp_path / "link").is_symlink()
    assert np.load(tmp_path / "folder" / "real").shape == (5,)
    os.symlink(tmp_path / "folder" / "raw", tmp_path / "other")
    mempool.open_array(tmp_path / "other", "w+", dtype="u1", shape=3).close()
    assert (tmp_path / "folder" / "raw").stat().st_size == 3


@OF_SHAPES
@OF_ORDERS
def test_strides_are_those_of_the_array(shape: tuple[int, ...], order: Any, path: Path) -> None:
    with mempool.open_array(path, "w+", dtype="<i4", shape=shape, order=order) as array:
        assert array.strides == array.array.strides
