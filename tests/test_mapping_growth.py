"""Rows come and go in place: addresses stay, views of before stay valid, the header is never ahead of the rows."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mempool

MAKERS = ["npy", "raw", "offset", "anonymous", "shared"]
OF_MAKERS = pytest.mark.parametrize("kind", MAKERS)


def make(
    kind: str, folder: Path, rows: int = 0, dtype: Any = "<i4", tail: tuple[int, ...] = (3,)
) -> mempool.MappedArray:
    """An array of zeros that can grow, in each place where one can be."""
    path, shape = folder / f"{kind}.npy", (rows, *tail)
    if kind == "npy":
        return mempool.create_array(path, shape, dtype, overwrite=True)
    if kind in ("raw", "offset"):
        return mempool.open_array(path, "w+", dtype=dtype, shape=shape, offset=0 if kind == "raw" else 4099)
    return mempool.anonymous_array(shape, dtype, max_rows=1 << 20, shared=kind == "shared")


def counted(start: int, stop: int) -> np.ndarray[Any, Any]:
    return np.arange(start * 3, stop * 3, dtype="<i4").reshape(-1, 3) + 1


@OF_MAKERS
def test_append_moves_nothing(kind: str, tmp_path: Path) -> None:
    with make(kind, tmp_path, 1) as array:
        array[0] = counted(0, 1)[0]
        first, address = array.array, array.array.ctypes.data
        views = [first, memoryview(array), first[0, 1:]]
        early = views[1].tobytes()
        rows = 1
        for count in (1, 2, 3, 500, 5000, 100_000):
            array.append(counted(rows, rows + count))
            rows += count
            assert (array.array.ctypes.data, len(array), array.nbytes) == (address, rows, rows * 12)
            assert np.array_equal(array.array, counted(0, rows))
        assert (first.shape, first.tolist(), views[1].tobytes()) == ((1, 3), [[1, 2, 3]], early)
        first[0, 2] = 99
        assert array[0, 2] == views[2][1] == 99
        assert views[1].tobytes() == first.tobytes()


@OF_MAKERS
def test_resize_moves_nothing(kind: str, tmp_path: Path) -> None:
    with make(kind, tmp_path, 10) as array:
        array[:] = counted(0, 10)
        old, address = array.array, array.array.ctypes.data
        array.resize(50_000)
        assert array.array.ctypes.data == address
        assert np.array_equal(array[:10], counted(0, 10))
        assert not array[10:].any()
        array[-1] = 7
        old[9] = 5
        assert array[9].tolist() == [5, 5, 5]
        array.resize(50_000)
        assert array[-1].tolist() == [7, 7, 7]


@OF_MAKERS
def test_rows_that_went_read_zeros(kind: str, tmp_path: Path) -> None:
    """In views held over it, to the last byte of whole pages; writing there harms nobody."""
    with make(kind, tmp_path, 5000) as array:
        array[:] = counted(0, 5000)
        old = array.array
        for rows in (4999, 3000, 1365, 10, 1, 0):
            array.resize(rows)
            assert np.array_equal(old[:rows], counted(0, rows))
            end = -(-(old.ctypes.data + rows * 12) // 4096) * 4096
            gone = old.reshape(-1)[(end - old.ctypes.data + 3) // 4 :]
            assert not gone.any()
            gone[:] = -1
            assert np.array_equal(array.array, counted(0, rows))
            gone[:] = 0
        array.resize(5000)
        assert not array.array.any()
        assert not old.any()


@OF_MAKERS
def test_rows_that_come_again_are_zero(kind: str, tmp_path: Path) -> None:
    with make(kind, tmp_path, 4000) as array:
        array[:] = 9
        view = array.array
        for low, high in ((10, 20), (0, 1), (3999, 4000), (1000, 6000), (5, 5)):
            array.resize(low)
            assert not view[low:][400:].any()
            array.resize(high)
            assert not array[low:].any()
            array.resize(4000)
            assert not array[low:].any()
            array[:] = 9


@OF_MAKERS
def test_new_rows_are_zero_whoever_wrote_there(kind: str, tmp_path: Path) -> None:
    """Through a view of rows that had gone. What is shared may be another process' doing."""
    if kind == "shared":
        return
    with make(kind, tmp_path, 4000) as array:
        view = array.array
        for low in (3999, 1000, 0):
            array.resize(low)
            view[low:] = 8
            array.resize(4000)
            assert not array.array.any()


@OF_MAKERS
def test_views_show_what_comes_where_rows_went(kind: str, tmp_path: Path) -> None:
    with make(kind, tmp_path, 3000) as array:
        array[:] = 1
        view = array.array
        array.resize(100)
        array.append(counted(0, 2900))
        assert np.array_equal(view[100:], counted(0, 2900))
        array[2999] = 5
        assert view[2999].tolist() == [5, 5, 5]


@OF_MAKERS
def test_what_can_be_appended(kind: str, tmp_path: Path) -> None:
    with make(kind, tmp_path) as array:
        array.append([1, 2, 3])
        array.append([[4, 5, 6]])
        array.append(([7, 8, 9], [10, 11, 12]))
        array.append(np.array([[13, 14, 15]], ">i8"))
        array.append(np.asfortranarray(counted(0, 4))[::2])
        array.append(np.empty((0, 3), "<i4"))
        array.append(memoryview(counted(5, 6)))
        array.append(array.array[:2])
        array.append(np.ma.masked_array(counted(7, 8)))
        wanted = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12], [13, 14, 15], [1, 2, 3], [7, 8, 9], [16, 17, 18]]
        assert array.array.tolist() == [*wanted, [1, 2, 3], [4, 5, 6], [22, 23, 24]]


@OF_MAKERS
def test_appends_that_are_refused(kind: str, tmp_path: Path) -> None:
    with make(kind, tmp_path, 2) as array:
        array[:] = counted(0, 2)
        for rows in ([1, 2], [[1, 2, 3, 4]], 5, [[[1, 2, 3]]], np.zeros((3, 2)), np.zeros((0, 4)), []):
            with pytest.raises(ValueError, match=r"rows of shape \(3,\)"):
                array.append(np.asarray(rows, "<i4"))
        for rows in (["a", "b", "c"], [1, 2, None], object(), [[1, 2], [3]]):
            with pytest.raises((ValueError, TypeError)):
                array.append(rows)
        with pytest.raises(TypeError, match="same_kind"):
            array.append(np.array([1.5, 2, 3]))
        assert np.array_equal(array.array, counted(0, 2))


@pytest.mark.parametrize("given", [[1.5, 2.0, 3.0], (1.5, 2, 3), np.float64(1.5)])
def test_lists_cast_as_arrays_do(given: Any) -> None:
    """Of a dtype that casts to this one's kind: nothing is cut off unasked."""
    array = mempool.anonymous_array((0, 3) if np.ndim(given) else 0, "<i4", max_rows=9)
    with pytest.raises(TypeError, match="cast"):
        array.append(given)
    assert len(array) == 0


@pytest.mark.parametrize("kind", ["npy", "anonymous"])
def test_rows_of_all_kinds(kind: str, tmp_path: Path) -> None:
    record = np.dtype([("a", "<f8"), ("b", "S3")])
    for dtype, tail, rows in (
        ("?", (), True),
        ("<f4", (), [1.5, 2.5]),
        (record, (), [(1, b"x"), (2, b"y")]),
        ("S4", (2,), [b"a", b"b"]),
    ):
        with make(kind, tmp_path, 0, dtype, tail) as array:
            array.append(rows)
            array.append(np.asarray(rows, dtype))
            twice = np.asarray(rows, dtype).reshape(-1, *tail)
            assert np.array_equal(array.array, np.concatenate([twice, twice]))


@OF_MAKERS
def test_rows_without_a_byte(kind: str, tmp_path: Path) -> None:
    with make(kind, tmp_path, 2, tail=(0,)) as array:
        array.append(np.zeros((5, 0), "<i4"))
        array.append([])
        assert (array.shape, array.nbytes) == ((8, 0), 0)
        array.resize(1000)
        array.resize(3)
        assert array.array.tolist() == [[], [], []]
    if kind == "npy":
        assert np.load(tmp_path / "npy.npy").shape == (3, 0)


def test_header_is_never_ahead(tmp_path: Path) -> None:
    path = tmp_path / "npy.npy"
    with make("npy", tmp_path) as array:
        for rows in (1, 100, 5000):
            before = len(np.load(path))
            array.append(counted(len(array), rows))
            assert len(np.load(path)) == before
            array.flush(wait=False)
            assert len(np.load(path)) == before
            array.flush(0, 0)
            assert np.array_equal(np.load(path), counted(0, rows))
        array.resize(6000)
        assert len(np.load(path)) == 5000
        array.resize(20)  # the header first
        assert np.array_equal(np.load(path), counted(0, 20))
        array.append(counted(20, 30))
    assert np.array_equal(np.load(path), counted(0, 30))
    assert path.stat().st_size == 128 + 360


@pytest.mark.parametrize("end", ["close", "revoke", "drop", "with"])
def test_the_end_tells_the_header(tmp_path: Path, end: str) -> None:
    array: Any = make("npy", tmp_path)
    array.append(counted(0, 9))
    if end == "with":
        with array:
            pass
    elif end == "drop":
        del array
    else:
        array.close(revoke=end == "revoke")
    assert np.array_equal(np.load(tmp_path / "npy.npy"), counted(0, 9))


def test_grown_and_opened_again(tmp_path: Path) -> None:
    path, rows = tmp_path / "npy.npy", 0
    make("npy", tmp_path).close()
    for count in (1, 9, 90, 900, 9000):
        with mempool.open_array(path, "r+") as array:
            assert np.array_equal(array.array, counted(0, rows))
            array.append(counted(rows, rows + count))
        rows += count
    assert np.array_equal(np.load(path), counted(0, rows))


def test_raw_file_grows_and_shrinks(tmp_path: Path) -> None:
    with make("offset", tmp_path) as array:
        array.append(counted(0, 3000))
        array.resize(2000)
    path = tmp_path / "offset.npy"
    assert path.stat().st_size == 4099 + 24_000
    assert path.read_bytes()[:4099] == bytes(4099)
    with mempool.open_array(path, "r+", dtype="<i4", shape=(2000, 3), offset=4099) as array:
        array.append(counted(2000, 2001))
        assert np.array_equal(array.array, counted(0, 2001))


def refused() -> list[tuple[str, str, Callable[[Path], mempool.MappedArray]]]:
    def saved(path: Path, shape: Any = (2, 3), order: Any = "C") -> Path:
        np.save(path / "a.npy", np.array(np.ones(shape), order=order))
        return path / "a.npy"

    return [
        ("r", "read-only", lambda path: mempool.open_array(saved(path))),
        ("c", "private", lambda path: mempool.open_array(saved(path), "c")),
        ("0-d", "no dimension", lambda path: mempool.open_array(saved(path, ()), "r+")),
        ("F", "Fortran", lambda path: mempool.open_array(saved(path, order="F"), "r+")),
        ("created F", "Fortran", lambda path: mempool.create_array(path / "f.npy", (2, 3), "f8", order="F")),
        ("anonymous 0-d", "no dimension", lambda path: mempool.anonymous_array((), "f8")),
    ]


@pytest.mark.parametrize(
    ("kind", "why", "opened"), refused(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_cannot_grow(kind: str, why: str, opened: Callable[[Path], mempool.MappedArray], tmp_path: Path) -> None:
    with opened(tmp_path) as array:
        before, files = array.array.copy(), {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
        assert array.max_rows is None
        for grow in (lambda: array.append(np.ones(array.shape[1:])), lambda: array.resize(0), lambda: array.resize(5)):
            with pytest.raises(ValueError, match=why):
                grow()
        assert np.array_equal(array.array, before)
        assert files == {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}


@OF_MAKERS
def test_sizes_that_are_refused(kind: str, tmp_path: Path) -> None:
    with make(kind, tmp_path, 4) as array:
        array[:] = 3
        assert array.max_rows is not None
        for rows, error in (
            (-1, ValueError),
            (array.max_rows + 1, ValueError),
            (1 << 70, ValueError),
            (1.0, TypeError),
        ):
            with pytest.raises(error):
                array.resize(rows)  # type: ignore[arg-type]
        for wrong in (None, "5", [5]):
            with pytest.raises(TypeError):
                array.resize(wrong)  # type: ignore[arg-type]
        assert (array.shape, array.array.tolist()) == ((4, 3), [[3] * 3] * 4)


@pytest.mark.parametrize("shared", [False, True])
def test_anonymous_up_to_max_rows(shared: bool) -> None:
    with mempool.anonymous_array((2, 3), "<i4", max_rows=5000, shared=shared) as array:
        assert (array.max_rows, array.shape, array.path, array.mode, array.readonly) == (
            5000,
            (2, 3),
            None,
            "w+",
            False,
        )
        array.append(counted(0, 4998))
        with pytest.raises(ValueError, match="5000 rows"):
            array.append([1, 2, 3])
        with pytest.raises(ValueError, match="5000 rows"):
            array.resize(5001)
        assert np.array_equal(array[2:], counted(0, 4998))
        array.flush()
    with mempool.anonymous_array(7, "u1") as array:
        assert array.max_rows == 7
        with pytest.raises(ValueError, match="7 rows"):
            array.append(1)


def test_anonymous_room_costs_nothing() -> None:
    with mempool.anonymous_array((1, 1 << 20), "u1", max_rows=1 << 16) as array:
        array.append(np.ones((9, 1 << 20), "u1"))
        assert (array.max_rows, int(array.array[9].sum())) == (1 << 16, 1 << 20)
    with mempool.anonymous_array(1, "u1", max_rows=sys.maxsize) as array:
        assert array.max_rows is not None
        assert 1 << 30 < array.max_rows < sys.maxsize
        array.resize(1 << 20)
        assert not array.array.any()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the OS has no fork")
@pytest.mark.parametrize("shared", [False, True])
def test_shared_with_a_child(run_python: Callable[..., Any], shared: bool) -> None:
    run_python(
        """
        import mempool, os, sys
        shared = sys.argv[1] == "True"
        array = mempool.anonymous_array(5000, "u4", max_rows=10_000, shared=shared)
        array[:] = 1
        view, (ready, go) = array.array, os.pipe()
        if os.fork() == 0:
            view[4999] = array[0] = 7
            array.resize(100)
            os._exit(0)
        os.wait()
        assert view[0] == (7 if shared else 1)
        assert len(array) == 5000
        assert view[4999] == (0 if shared else 1)
        """,
        shared,
    )
