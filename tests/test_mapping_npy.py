"""Headers of .npy files: each version, by old writers and by us, and what stands in them as rows come and go."""

import ast
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

import mempool

MAGIC = b"\x93NUMPY"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.npy"


def raw_header(text: str, version: int = 1, align: int = 1) -> bytes:
    content = text.encode("utf8" if version == 3 else "latin1")
    width = 2 if version == 1 else 4
    length = -(-(8 + width + len(content) + 1) // align) * align - 8 - width
    return MAGIC + bytes([version, 0]) + length.to_bytes(width, "little") + content.ljust(length - 1) + b"\n"


def told(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """What the header says, as NumPy reads it."""
    with open(path, "rb") as file:
        version = npy.read_magic(file)
        if version != (3, 0):
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            return read(file, max_header_size=1 << 24)
        header = ast.literal_eval(file.read(int.from_bytes(file.read(4), "little")).decode("utf8"))
        return header["shape"], header["fortran_order"], npy.descr_to_dtype(header["descr"])


def wide(fields: int, letter: str = "f") -> np.dtype[Any]:
    return np.dtype([(f"{letter}{i:040}", "<u1") for i in range(fields)])


VERSIONS = {
    "1.0": ((1, 0), np.dtype([("a", "<f8"), ("b", ">i2")])),
    "2.0": ((2, 0), np.dtype([("a", "<f8"), ("b", ">i2")])),
    "2.0, more than 64 KiB": ((2, 0), wide(2000)),
    "3.0": ((3, 0), np.dtype([("数", "<f8"), ("größe", ">i2")])),
    "3.0, more than 64 KiB": ((3, 0), wide(2000, "数")),
}


@pytest.mark.parametrize(("version", "dtype"), VERSIONS.values(), ids=VERSIONS.keys())
@pytest.mark.filterwarnings("ignore:Stored array in format:UserWarning")
def test_versions(path: Path, version: tuple[int, int], dtype: np.dtype[Any]) -> None:
    wanted = np.zeros(5, dtype)
    wanted.view("u1")[:] = np.arange(wanted.nbytes) % 251
    with open(path, "wb") as file:
        npy.write_array(file, wanted, version)
    assert path.read_bytes()[6:8] == bytes(version)
    with mempool.open_array(path, "r+") as array:
        assert (array.dtype, array.shape) == (dtype, (5,))
        assert array.array.tobytes() == wanted.tobytes()
        array.append(wanted[:2])
    assert path.read_bytes()[6:8] == bytes(version)
    assert told(path) == ((7,), False, dtype)
    assert np.load(path, max_header_size=1 << 24).tobytes() == wanted.tobytes() + wanted[:2].tobytes()


@pytest.mark.parametrize(
    ("version", "dtype"),
    [
        ((1, 0), "<f8"),
        ((1, 0), [("größe", "<f8")]),
        ((2, 0), wide(2000)),
        ((3, 0), [("数", "<f8")]),
        ((3, 0), wide(2000, "数")),
    ],
)
def test_we_write_the_least_version(path: Path, version: tuple[int, int], dtype: Any) -> None:
    """As NumPy chooses it, on 64 bytes, and ended by a newline."""
    mempool.create_array(path, (4, 2), dtype).close()
    content = path.read_bytes()
    assert content[6:8] == bytes(version)
    width = 2 if version == (1, 0) else 4
    stop = 8 + width + int.from_bytes(content[8 : 8 + width], "little")
    assert stop % 64 == 0
    assert content[stop - 1 : stop] == b"\n"
    assert len(content) == stop + 8 * np.dtype(dtype).itemsize
    assert told(path) == ((4, 2), False, np.dtype(dtype))


def test_room_for_any_number_of_rows(path: Path) -> None:
    """Wherever the header happens to end before it is padded."""
    for letters in range(1, 66):
        mempool.create_array(path, (1,), [("x" * letters, "u1")], overwrite=True).close()
        header = path.read_bytes()[:-1]
        assert len(header.rstrip(b"\n")) - len(header.rstrip(b"\n ")) >= 19


@pytest.mark.parametrize("fields", range(1180, 1200))
def test_around_64_kib(path: Path, fields: int) -> None:
    """Where version 1.0 ends; the header takes any number of rows."""
    dtype = wide(fields)
    with mempool.create_array(path, (1,), dtype) as array:
        array.append(np.zeros(99_999, dtype)[:1])
    assert told(path) == ((2,), False, dtype)


@pytest.mark.parametrize(
    ("shape", "order"), [((), "C"), ((3,), "F"), ((0,), "C"), ((2, 3), "F"), ((1,) * 32, "C"), ((0, 5), "F")]
)
def test_created_headers(path: Path, shape: tuple[int, ...], order: str) -> None:
    mempool.create_array(path, shape, ">i4", order=order).close()
    assert told(path)[0] == shape
    assert np.load(path).shape == shape
    with mempool.open_array(path) as array:
        assert array.shape == shape


OLD = {
    "NumPy 1.0, 16 bytes": ("{'descr': '<i4', 'fortran_order': False, 'shape': (3,), }", 1, 16),
    "Python 2 longs": ("{'descr': '<i4', 'fortran_order': False, 'shape': (3L,), }", 1, 16),
    "Python 2 unicode": ("{u'descr': u'<i4', u'fortran_order': False, u'shape': (3L,)}", 1, 1),
    "other order, double quotes": ('{"shape":(3,),"fortran_order":False,"descr":"<i4"}', 1, 1),
    "spaces": ("  {  'descr'  :  '<i4' ,\t'fortran_order' : False , 'shape' : ( 3 , ) , }  ", 1, 1),
    "escapes": ("{'descr': '\\x3ci4', 'fortran_order': False, 'shape': (3,)}", 1, 1),
    "version 2": ("{'descr': '<i4', 'fortran_order': False, 'shape': (3L,), }", 2, 64),
    "version 3": ("{'descr': '<i4', 'fortran_order': False, 'shape': (3,), }", 3, 64),
}


@pytest.mark.parametrize(("text", "version", "align"), OLD.values(), ids=OLD.keys())
def test_old_writers(path: Path, text: str, version: int, align: int) -> None:
    path.write_bytes(raw_header(text, version, align) + np.array([1, 2, 3], "<i4").tobytes())
    with mempool.open_array(path, "r+") as array:
        assert (array.array.tolist(), array.dtype) == ([1, 2, 3], np.dtype("<i4"))
        array.append([4, 5])
    assert np.load(path).tolist() == [1, 2, 3, 4, 5]


def test_longs_within_descr(path: Path) -> None:
    text = "{'descr': [('aL', '<i4', (2L, 3L)), ('b', '|S5')], 'fortran_order': False, 'shape': (2L, 1L), }"
    dtype = np.dtype([("aL", "<i4", (2, 3)), ("b", "S5")])
    path.write_bytes(raw_header(text, 1, 16) + bytes(2 * dtype.itemsize))
    with mempool.open_array(path, "r+") as array:
        assert (array.dtype, array.shape) == (dtype, (2, 1))
        array.resize(12)
    assert told(path) == ((12, 1), False, dtype)


def test_no_room_for_more_digits(path: Path) -> None:
    """A header without a space to spare: as many rows as its digits can say, and nothing changes beyond."""
    text = "{'descr':'|u1','fortran_order':False,'shape':(7,)}"
    path.write_bytes(raw_header(text) + bytes(range(7)))
    with mempool.open_array(path, "r+") as array:
        array.append([7, 8])
        before = path.read_bytes()
        for grow in (lambda: array.append([9]), lambda: array.resize(10)):
            with pytest.raises(ValueError, match="no room"):
                grow()
        assert (array.array.tolist(), path.read_bytes()) == (list(range(9)), before)
        array.resize(2)
    assert np.load(path).tolist() == [0, 1]


def test_digits_come_and_go(path: Path) -> None:
    with mempool.create_array(path, (0, 2), "u1") as array:
        header = path.read_bytes()
        for rows in (9, 10, 99, 100, 12345, 7, 0, 1_000_000, 3):
            array.resize(rows)
            array.flush()
            assert told(path) == ((rows, 2), False, np.dtype("u1"))
        array.resize(0)
        array.flush()
    assert path.read_bytes() == header


def test_header_behind_an_offset(path: Path) -> None:
    wanted = np.arange(12.0).reshape(4, 3)
    with open(path, "wb") as file:
        file.write(b"x" * 101)
        np.save(file, wanted)
        file.write(b"tail")
    for mode in ("r", "r+", "c"):
        with mempool.open_array(path, mode, offset=101) as array:
            assert np.array_equal(array.array, wanted)
            with pytest.raises(ValueError, match=r"cannot append|addresses for 4 rows"):
                array.append([[1, 2, 3]])


def test_header_behind_an_offset_stays_true(path: Path) -> None:
    """Rows may go only if the header learns of it, wherever it stands."""
    with open(path, "wb") as file:
        file.write(b"x" * 100)
        np.save(file, np.arange(12.0).reshape(4, 3))
    with mempool.open_array(path, "r+", offset=100) as array:
        try:
            array.resize(2)
        except ValueError:
            rows = 4
        else:
            rows = 2
    with mempool.open_array(path, offset=100) as array:
        assert len(array) == rows


def test_header_is_read_even_so(path: Path) -> None:
    """With dtype and shape said, a header still counts, and has to agree."""
    np.save(path, np.arange(6, dtype="<i4").reshape(2, 3))
    for given in ({"dtype": "<i4"}, {"shape": (2, 3)}, {"dtype": "<i4", "shape": (2, 3)}):
        assert mempool.open_array(path, **given).array.tolist() == [[0, 1, 2], [3, 4, 5]]  # type: ignore[arg-type]
    refused: list[dict[str, Any]] = [
        {"dtype": "<u4"},
        {"dtype": ">i4"},
        {"shape": (3, 2)},
        {"shape": 6},
        {"shape": ()},
        {"dtype": "<i4", "shape": (1, 2)},
        {"order": "F"},
    ]
    before = path.read_bytes()
    for given in refused:
        for mode in ("r", "r+", "c"):
            with pytest.raises(ValueError, match="asked for"):
                mempool.open_array(path, mode, **given)  # type: ignore[arg-type]
    assert path.read_bytes() == before


def test_order_of_the_header_counts(path: Path) -> None:
    np.save(path, np.asfortranarray(np.arange(6).reshape(2, 3)))
    for order in ("C", "F"):
        assert mempool.open_array(path, order=order).strides == (8, 16)


def test_opening_changes_no_byte(path: Path) -> None:
    text = "{'descr': '<i4', 'fortran_order': False, 'shape': (3L,), }"
    path.write_bytes(raw_header(text, 1, 16) + bytes(12))
    before = path.read_bytes()
    for mode in ("r", "r+", "c"):
        array = mempool.open_array(path, mode)  # type: ignore[arg-type]
        array.flush()
        array.close()
    assert path.read_bytes() == before


def test_content_begins_anywhere(path: Path) -> None:
    for align in (1, 3, 16, 100, 5000):
        text = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000,), }"
        path.write_bytes(raw_header(text, 1, align) + np.arange(1000.0).tobytes())
        with mempool.open_array(path, "r+") as array:
            assert np.array_equal(array.array, np.arange(1000.0))
            assert array.array.flags.aligned == (array.array.ctypes.data % 8 == 0)
            array.append(np.arange(1000.0, 2000.0))
        assert np.array_equal(np.load(path), np.arange(2000.0))


def test_tail_of_a_crash_is_overwritten(path: Path) -> None:
    np.save(path, np.arange(5, dtype="<i4"))
    with open(path, "ab") as file:
        file.write(b"\xff" * 10_001)
    with mempool.open_array(path, "r+") as array:
        assert array.array.tolist() == [0, 1, 2, 3, 4]
        array.resize(3000)
        assert not array[5:].any()
        array.resize(5)
        array.append([5])
    assert np.load(path).tolist() == [0, 1, 2, 3, 4, 5]
    assert path.stat().st_size == 128 + 24


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be replaced there")
def test_overwrite_leaves_the_old_file_to_its_viewers(path: Path) -> None:
    with mempool.create_array(path, 3, "u1") as old:
        old[:] = 7
        with pytest.raises(FileExistsError, match=r"a\.npy"):
            mempool.create_array(path, 3, "u1")
        with mempool.create_array(path, 4, "u1", overwrite=True) as new:
            new[:] = 9
            assert old.array.tolist() == [7, 7, 7]
            old.append([8])
            assert new.array.tolist() == [9] * 4
    assert np.load(path).tolist() == [9] * 4
    assert os.listdir(path.parent) == ["a.npy"]


def test_created_files_are_sparse(path: Path) -> None:
    with mempool.create_array(path, (1 << 20, 1 << 10), "u1") as array:
        assert array.nbytes == 1 << 30
    assert path.stat().st_size > 1 << 30
    assert path.stat().st_blocks * 512 < 1 << 20
