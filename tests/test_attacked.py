"""Slabs and mapped arrays under what was found when they were attacked: each of these went wrong once."""

import contextlib
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mempool import Account, MappingError, SlabAllocator, StaleHandle, anonymous_array, create_array, open_array


def test_a_new_raw_file_that_cannot_be_keeps_the_old(run_python: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("resource")
    run_python(
        """
        import mempool, os, resource, sys
        path = sys.argv[1]
        open(path, "wb").write(b"precious" * 100000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100000, -1))
        try:
            mempool.open_array(path, "w+", dtype="u1", shape=900000)
        except OSError:
            pass
        else:
            raise AssertionError("longer than files may be")
        assert open(path, "rb").read() == b"precious" * 100000
        """,
        tmp_path / "old",
    )


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="sealed files are Linux'")
def test_sealed_files_keep_their_content() -> None:
    fcntl = pytest.importorskip("fcntl")
    file = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.write(file, b"precious" * 1000)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with pytest.raises(OSError, match="not permitted"):
        open_array(f"/proc/self/fd/{file}", "w+", dtype="u1", shape=400)
    assert os.pread(file, 9000, 0) == b"precious" * 1000
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    with pytest.raises(OSError, match="not permitted"):
        open_array(f"/proc/self/fd/{file}", "w+", dtype="u1", shape=40000)
    assert os.pread(file, 9000, 0) == b"precious" * 1000
    os.close(file)


@pytest.mark.parametrize(
    ("before", "shape", "offset"), [(100_000, 5000, 3), (10, 5000, 0), (100_000, 0, 7000), (0, 9, 4)]
)
def test_a_new_raw_file_is_zeros(tmp_path: Path, before: int, shape: int, offset: int) -> None:
    path = tmp_path / "raw"
    path.write_bytes(b"x" * before)
    with open_array(path, "w+", dtype="u1", shape=shape, offset=offset) as array:
        assert not array.array.any()
    assert path.read_bytes() == bytes(offset + shape)


def test_a_slab_is_initialised_once_whoever_runs_meanwhile() -> None:
    slab = SlabAllocator.__new__(SlabAllocator)
    calls = []

    def callback(phase: str, info: object) -> None:
        calls.append(phase)
        with contextlib.suppress(RuntimeError):
            slab.__init__(1000)  # type: ignore[misc]

    class Most:
        def __index__(self) -> int:
            gc.callbacks.append(callback)
            gc.set_threshold(1)
            return 100

    before = gc.get_threshold()
    try:
        with contextlib.suppress(RuntimeError):  # only where the collector runs within calls, before 3.12
            slab.__init__(8, max_items=Most())  # type: ignore[misc]
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(callback)
    assert calls
    first, second = slab.alloc(), slab.alloc()
    size = slab.stats().item_size
    slab[first], slab[second] = b"1" * size, b"2" * size
    assert (bytes(slab[first]), bytes(slab[second])) == (b"1" * size, b"2" * size)


def test_slabs_leave_addresses_to_others(run_python: Callable[..., Any]) -> None:
    run_python("""
        import mempool
        slabs = [mempool.SlabAllocator(8) for _ in range(3000)]
        assert all(slab.alloc() in slab for slab in slabs[::100])
        assert mempool.anonymous_array(1, "u1", max_rows=1 << 40).max_rows == 1 << 40
    """)


@pytest.mark.nosan
def test_files_leave_scarce_addresses_to_others(run_python: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("resource")
    run_python(
        """
        import mempool, numpy, os, resource, sys
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, -1))
        arrays = [mempool.create_array(os.path.join(sys.argv[1], str(i)), (10,), "f8") for i in range(60)]
        numpy.zeros(20 << 20, "u1")
        assert all(array.max_rows > 10 for array in arrays)
        """,
        tmp_path,
        env={"OPENBLAS_NUM_THREADS": "1"},  # it takes addresses for each core
    )


def test_a_failed_append_leaves_the_bytes_behind_the_rows(run_python: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("resource")
    run_python(
        """
        import mempool, numpy, resource, sys
        path = sys.argv[1]
        open(path, "wb").write(b"T" * 1000)
        array = mempool.open_array(path, "r+", dtype="u1", shape=100)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, -1))
        for change in (lambda: array.append(numpy.zeros(3000, "u1")), lambda: array.resize(3000)):
            try:
                change()
            except OSError:
                pass
            else:
                raise AssertionError("longer than files may be")
            assert open(path, "rb").read() == b"T" * 1000 and len(array) == 100
        """,
        tmp_path / "tail",
    )


def test_grown_rows_are_zero_where_a_tail_was(tmp_path: Path) -> None:
    path = tmp_path / "tail"
    path.write_bytes(b"T" * 200_000)
    with open_array(path, "r+", dtype="u1", shape=100) as array:
        array.resize(100_000)
        assert not array[100:].any()
        array.resize(300_000)
        assert not array[100:].any()
    assert path.stat().st_size == 300_000


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "full")])
def test_a_draft_does_not_outlive_its_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Any) -> None:
    from mempool import _npy

    real = _npy.Draft._write

    def half(self: _npy.Draft, header: bytes, size: int) -> None:
        real(self, header, size)
        raise error

    monkeypatch.setattr(_npy.Draft, "_write", half)
    with pytest.raises(BaseException):  # noqa: B017, PT011
        create_array(tmp_path / "a.npy", 3, "f8")
    assert os.listdir(tmp_path) == []


def test_numpy_sees_the_items_of_a_slab_not_its_handles() -> None:
    for dtype in ("M8[s]", "f8", [("when", "M8[us]"), ("what", "i4")]):
        slab = SlabAllocator(dtype)
        slab.alloc_many(3)
        assert np.asarray(slab).dtype == slab.array.dtype
        assert np.asarray(slab).shape == (3,)
    assert np.array(slab, copy=True).ctypes.data != slab.array.ctypes.data


def test_traces_end_when_memory_is_closed_under_another_thread(run_python: Callable[..., Any]) -> None:
    """In a process of its own, where nobody else's memory is traced."""
    run_python("""
        import contextlib, gc, mempool, threading, tracemalloc

        def traced():
            only = tracemalloc.DomainFilter(True, mempool.TRACEMALLOC_DOMAIN)
            return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([only]).traces)

        def prefetch_unless_closed(array):
            with contextlib.suppress(ValueError):
                array.prefetch()

        tracemalloc.start(1)
        array = mempool.anonymous_array((64 << 20,), "u1")
        assert traced() == 64 << 20
        thread = threading.Thread(target=prefetch_unless_closed, args=(array,))
        thread.start()
        array.close()
        thread.join()
        del array, thread
        gc.collect()
        assert traced() == 0
    """)


@pytest.mark.nosan  # which locks nothing
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="locked memory is read from /proc")
def test_rows_that_go_are_not_locked_any_more(run_python: Callable[..., Any]) -> None:
    """In a process of its own: what is locked is counted for all of it."""
    done = run_python("""
        import mempool

        def locked():
            (line,) = [line for line in open("/proc/self/status") if line.startswith("VmLck")]
            return int(line.split()[1])

        before = locked()
        array = mempool.anonymous_array((1 << 16,), "u1")
        array[:] = 1
        try:
            array.lock()
        except OSError:
            print("may not lock memory here")
            raise SystemExit
        assert locked() > before
        array.resize(0)
        array.unlock()
        assert locked() == before
    """)
    if done.stdout:
        pytest.skip(done.stdout.strip())


def test_files_without_a_name_are_not_replaced(tmp_path: Path) -> None:
    if not hasattr(os, "memfd_create"):
        pytest.skip("needs memfd")
    file = os.memfd_create("nameless")
    with pytest.raises(FileNotFoundError):
        create_array(f"/proc/self/fd/{file}", 3, "f8", overwrite=True)
    os.close(file)
    with pytest.raises(IsADirectoryError):
        create_array(f"{tmp_path}/new/", 3, "f8")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(MappingError, match="no regular file"):
        create_array(tmp_path / "fifo", 3, "f8", overwrite=True)
    assert os.listdir(tmp_path) == ["fifo"]


def test_a_flush_fails_once_where_the_folder_went(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with create_array(tmp_path / "a" / "x.npy", 2, "f8") as array:
        (tmp_path / "a").rename(tmp_path / "b")
        with pytest.raises(FileNotFoundError):
            array.flush()
        array.flush()


def test_an_argument_is_asked_once() -> None:
    slab = SlabAllocator(8)

    class Once:
        asked = 0

        def __index__(self) -> int:
            Once.asked += 1
            assert Once.asked == 1
            return 12345

    with pytest.raises(StaleHandle, match="12345"):
        slab.free(Once())


def test_numbers_with_fields_are_viewed() -> None:
    slab = SlabAllocator(np.dtype(("i4", [("lo", "i2"), ("hi", "i2")])))
    handle = slab.alloc()
    view = slab[handle]
    slab.free(handle)
    assert slab.stats().retired == 1
    del view
    assert slab.stats().retired == 0


def test_blocks_that_ended_stay_ended() -> None:
    array = anonymous_array((10,), "u1", max_rows=20)
    blocks = array.iter_blocks(10)
    assert len(list(blocks)) == 1
    array.resize(20)
    assert list(blocks) == []


def test_accounts_of_closed_slabs_are_empty() -> None:
    above = Account("above")
    slab = SlabAllocator(8, account=above)
    view = slab.array
    slab.alloc()
    kept = slab.array
    slab.close()
    assert above.used > 0
    del view, kept
    assert above.used == 0


@pytest.mark.nosan
def test_an_array_is_closed_without_memory_too(run_python: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("_testcapi")
    run_python(
        """
        import _testcapi, mempool, os, sys
        array = mempool.open_array(sys.argv[1], "w+", dtype="u1", shape=10)
        kept = [array.array for _ in range(100)]  # no view object is left to be used again
        _testcapi.set_nomemory(0)
        try:
            array.close()
        finally:
            _testcapi.remove_mem_hooks()
        assert array.closed
        """,
        tmp_path / "raw",
    )
