"""Blocks that stream through, and what the OS is told of pages: advice, prefetching, residency, locks."""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mempool

ROWS = 10_000
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells and knows this")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", np.arange(ROWS * 3, dtype="<i4").reshape(ROWS, 3))
    return tmp_path / "a.npy"


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 341, 1000, 9999, 10_000, 10_001, sys.maxsize])
def test_blocks_are_the_whole(path: Path, mode: Any, drop: bool, rows: int) -> None:
    wanted = np.load(path)
    with mempool.open_array(path, mode) as array:
        blocks = list(array.iter_blocks(rows, drop_behind=drop))
        assert {len(block) for block in blocks[:-1]} <= {rows}
        assert 0 < len(blocks[-1]) <= rows
        assert all(type(block) is np.ndarray and block.flags.writeable == (mode != "r") for block in blocks)
        assert np.array_equal(np.concatenate(blocks), wanted)
        assert blocks[0].ctypes.data == array.array.ctypes.data
        assert np.array_equal(array.array, wanted)


@pytest.mark.parametrize("kind", ["anonymous", "shared", "F", "raw", "empty", "no bytes"])
def test_blocks_of_other_arrays(path: Path, tmp_path: Path, kind: str) -> None:
    made: dict[str, Callable[[], mempool.MappedArray]] = {
        "anonymous": lambda: mempool.anonymous_array((100, 3), "i4"),
        "shared": lambda: mempool.anonymous_array((100, 3), "i4", shared=True),
        "F": lambda: mempool.create_array(tmp_path / "f", (100, 3), "i4", order="F"),
        "raw": lambda: mempool.open_array(tmp_path / "w", "w+", dtype="i4", shape=(100, 3), offset=77),
        "empty": lambda: mempool.anonymous_array((0, 3), "i4", max_rows=9),
        "no bytes": lambda: mempool.anonymous_array((100, 0), "i4"),
    }
    with made[kind]() as array:
        array[...] = np.arange(array.nbytes // 4).reshape(array.shape)
        wanted = array.array.copy()
        for rows in (1, 9, 100, 1000):
            blocks = list(array.iter_blocks(rows))
            assert len(blocks) == -(-len(wanted) // rows)
            assert np.array_equal(np.concatenate([wanted[:0], *blocks]), wanted)


@pytest.mark.parametrize("mode", ["r+", "c"])
@pytest.mark.parametrize("drop", [False, True])
def test_changes_are_kept(path: Path, mode: Any, drop: bool) -> None:
    """Though the pages leave the process behind the current block."""
    wanted = np.load(path)
    with mempool.open_array(path, mode) as array:
        for block in array.iter_blocks(500, drop_behind=drop):
            block *= 2
        assert np.array_equal(array.array, wanted * 2)
    assert np.array_equal(np.load(path), wanted * 2 if mode == "r+" else wanted)


def test_blocks_kept_stay_good(path: Path) -> None:
    wanted = np.load(path)
    with mempool.open_array(path) as array:
        kept = list(array.iter_blocks(333))
    del array
    assert np.array_equal(np.concatenate(kept), wanted)


def test_rows_that_come_and_go_meanwhile(path: Path) -> None:
    with mempool.open_array(path, "r+") as array:
        blocks = array.iter_blocks(4000)
        assert iter(blocks) is blocks
        assert len(next(blocks)) == 4000
        array.append(np.ones((2000, 3), "<i4"))
        assert (len(next(blocks)), len(next(blocks))) == (4000, 4000)
        assert list(blocks) == []
        blocks = array.iter_blocks(4000)
        next(blocks)
        next(blocks)
        array.resize(8100)
        assert next(blocks).shape == (100, 3)
        array.resize(50)
        assert list(blocks) == []
        assert sum(len(block) for block in array.iter_blocks(9)) == 50


def test_block_sizes_that_are_refused(path: Path) -> None:
    with mempool.open_array(path) as array:
        for rows, error in (
            (0, ValueError),
            (-1, ValueError),
            (1 << 70, ValueError),
            (1.5, TypeError),
            (None, TypeError),
            ("5", TypeError),
        ):
            with pytest.raises(error):
                array.iter_blocks(rows)  # type: ignore[arg-type]
    with mempool.anonymous_array((), "i4") as array, pytest.raises(ValueError, match="0-dim"):
        array.iter_blocks(5)


STREAM = """
    import os, sys
    import numpy as np
    import mempool
    path, mode, drop, step = sys.argv[1], sys.argv[2], sys.argv[3] == "True", int(sys.argv[4]) << 20

    def rss():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmRSS"))

    with mempool.open_array(path, mode) as array:
        assert array.nbytes == 1 << 30
        start, most, seen = rss(), 0, 0
        for block in array.iter_blocks(step >> 13, drop_behind=drop):
            if mode == "r+":
                block[::100, 0] = 1
            seen += block.nbytes
            assert not block[:, 5].any()
            most = max(most, rss() - start)
        assert seen == array.nbytes
    print(most)
"""


@pytest.mark.nosan
@ON_LINUX
@pytest.mark.parametrize(("mode", "step"), [("r", 1), ("r", 64), ("r+", 16)])
def test_memory_stays_flat(run_python: Callable[..., Any], tmp_path: Path, mode: str, step: int) -> None:
    """Over a sparse GiB; not more than the block and 64 MiB."""
    mempool.create_array(tmp_path / "a", (1 << 17, 1 << 10), "f8").close()
    done = run_python(STREAM, tmp_path / "a", mode, True, step)
    assert int(done.stdout) < (step + 64) << 20


@pytest.mark.nosan
@ON_LINUX
def test_memory_is_kept_unless_dropped(run_python: Callable[..., Any], tmp_path: Path) -> None:
    mempool.create_array(tmp_path / "a", (1 << 17, 1 << 10), "f8").close()
    done = run_python(STREAM, tmp_path / "a", "r", False, 64)
    assert int(done.stdout) > 900 << 20


# ---- advice


HINTS = ["normal", "sequential", "random", "willneed", "dontneed", "hugepage", "nohugepage"]


@pytest.mark.parametrize("mode", ["r", "r+", "w+", "c", "anonymous", "shared"])
@pytest.mark.parametrize("hint", HINTS)
def test_advice_loses_nothing(path: Path, mode: Any, hint: Any) -> None:
    if mode in ("anonymous", "shared"):
        array = mempool.anonymous_array((ROWS, 3), "<i4", shared=mode == "shared")
    elif mode == "w+":
        array = mempool.create_array(path, (ROWS, 3), "<i4", overwrite=True)
    else:
        array = mempool.open_array(path, mode)
    wanted = np.arange(ROWS * 3).reshape(ROWS, 3)
    with array:
        if not array.readonly:
            array[:] = wanted
        for span in ((), (5,), (None, 100), (100, 9000), (-1,), (9000, 10), (0, 0), (5, 1 << 60)):
            if hint == "dontneed" and mode in ("c", "anonymous", "shared"):
                with pytest.raises(ValueError, match="would lose"):
                    array.advise(hint, *span)
                continue
            with suppress(OSError) if "huge" in hint else nullcontext():  # not every kernel has them
                array.advise(hint, *span)
        assert np.array_equal(array.array, wanted)


def test_advice_that_is_none(path: Path) -> None:
    with mempool.open_array(path) as array:
        for hint in ("", "WILLNEED", "free", b"normal", 3, None):
            with pytest.raises(ValueError, match=r"hint must be one of .*not"):
                array.advise(hint)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            array.advise([])  # type: ignore[arg-type]
        for call in (array.prefetch, array.flush, lambda *span: array.advise("normal", *span)):
            for span in ((1.5,), ("1",), (0, 2.0)):
                with pytest.raises(TypeError):
                    call(*span)


@ON_LINUX
@pytest.mark.nosan
def test_dontneed_takes_pages(run_python: Callable[..., Any], tmp_path: Path) -> None:
    run_python(
        """
        import sys
        import mempool
        rss = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
        with mempool.create_array(sys.argv[1], 64 << 20, "u1") as array:
            array[:] = 7
            before = rss()
            array.advise("dontneed", 32 << 20)
            assert before - rss() > 30 << 20
            array.advise("dontneed")
            assert before - rss() > 60 << 20
            assert array.array.min() == 7
        """,
        tmp_path / "a",
    )


@ON_LINUX
def test_residency(path: Path) -> None:
    with mempool.open_array(path) as array:
        array.array.sum()
        assert array.resident() == 1.0
    with mempool.anonymous_array(1 << 24, "u1") as array:
        assert array.resident() == 0.0
        array[: 1 << 23] = 1
        assert 0.5 <= array.resident() < 0.7
        array.prefetch(1 << 23)
        assert array.resident() == 1.0
        assert array[: 1 << 23].min() == 1
    for shape in (0, (5, 0)):
        with mempool.anonymous_array(shape, "u1") as array:
            assert array.resident() == 1.0
            array.prefetch()
            array.lock()
            array.unlock()
            array.advise("willneed")


def test_prefetch(path: Path) -> None:
    wanted = np.load(path)
    for mode in ("r", "r+", "c"):
        with mempool.open_array(path, mode) as array:  # type: ignore[arg-type]
            for span in ((), (10,), (10, 500), (-5,), (9, 3), (0, 1 << 40)):
                array.prefetch(*span)
            assert np.array_equal(array.array, wanted)
    with mempool.create_array(path, (5, 3), "u1", order="F", overwrite=True) as array:
        array.prefetch(1, 2)
        array.advise("random", 4)
        array.flush(2, 3)


@ON_LINUX
@pytest.mark.nosan
def test_locks(run_python: Callable[..., Any], path: Path) -> None:
    run_python(
        """
        import sys
        import mempool
        def locked():
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmLck"))
        with mempool.open_array(sys.argv[1]) as array:
            array.lock()
            array.lock()
            assert 120_000 <= locked() <= 140_000, locked()
            assert array.resident() == 1.0
            array.unlock()
            assert locked() == 0
            array.unlock()
            array.lock()
        assert locked() == 0
        with mempool.anonymous_array(50_000, "u1", max_rows=60_000) as array:
            array[:] = 7
            array.lock()
            array.resize(100)
            assert array.array.tolist() == [7] * 100
            array.resize(60_000)
            assert not array[100:].any()
        """,
        path,
    )


@ON_LINUX
@pytest.mark.nosan
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="must be root to become somebody else")
def test_locks_that_are_refused(run_python: Callable[..., Any], path: Path) -> None:
    run_python(
        """
        import errno, os, resource, sys
        import mempool
        array = mempool.open_array(sys.argv[1])
        memory = mempool.anonymous_array(1 << 20, "u1")
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 4096))
        os.setuid(65534)
        for one in (array, memory):
            try:
                one.lock()
            except OSError as error:
                assert error.errno in (errno.ENOMEM, errno.EPERM), error
                assert error.filename == one.path
            else:
                raise AssertionError("locked")
            one.unlock()
            assert len(one.array) == len(one)
        """,
        path,
    )
