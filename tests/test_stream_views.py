"""What `buffers()` and `getbuffer()` show: snapshots that never change, and a view that locks."""

import gc
import os
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mempool
from mempool.io import BytesStream
from tests.support import KIB


@pytest.fixture
def pool() -> mempool.BufferPool:
    return mempool.BufferPool(name="views")


def filled(pool: mempool.BufferPool, size: int = 100 * KIB) -> BytesStream:
    """A stream of several blocks, no byte like its neighbours."""
    stream = BytesStream(pool=pool)
    for start in range(0, size, 251):
        stream.write(bytes(range(min(251, size - start))))
    assert len(stream.buffers()) > 3
    return stream


# ---- snapshots ----


def test_a_snapshot_is_read_only_and_without_a_copy(pool: mempool.BufferPool) -> None:
    stream = filled(pool)
    before = pool.stats().in_use
    views = stream.buffers()
    assert b"".join(views) == stream.getvalue()
    assert pool.stats().in_use == before
    for view in views:
        assert (view.readonly, view.format, view.ndim, view.contiguous) == (True, "B", 1, True)
        with pytest.raises(TypeError):
            view[0] = 1
        assert memoryview(view.obj).readonly


def test_appending_takes_no_copy(pool: mempool.BufferPool) -> None:
    stream = BytesStream(b"before", pool=pool)
    views = stream.buffers()
    address = np.frombuffer(views[0], "u1").ctypes.data
    stream.seek(0, 2)
    stream.write(b"behind")
    assert np.frombuffer(stream.buffers()[0], "u1").ctypes.data == address
    assert bytes(views[0]) == b"before"
    assert stream.buffers()[0] == b"beforebehind"


@pytest.mark.parametrize("at", [0, 1, 255, 256, 5000, 99 * KIB])
def test_overwriting_replaces_what_is_seen(pool: mempool.BufferPool, at: int) -> None:
    stream = filled(pool)
    content = stream.getvalue()
    views = stream.buffers()
    stream.seek(at)
    stream.write(b"!" * 700)
    assert b"".join(views) == content
    assert stream.getvalue() == content[:at] + b"!" * 700 + content[at + 700 :]


def test_what_is_seen_no_more_is_overwritten_in_place(pool: mempool.BufferPool) -> None:
    stream = BytesStream(b"content", pool=pool)
    address = np.frombuffer(stream.buffers()[0], "u1").ctypes.data
    stream.write(b"C")
    assert np.frombuffer(stream.buffers()[0], "u1").ctypes.data == address
    assert pool.stats().acquires == 1


@pytest.mark.parametrize("end", ["truncate", "close", "del", "init", "setstate"])
def test_a_snapshot_outlives(pool: mempool.BufferPool, end: str) -> None:
    stream = filled(pool)
    content = stream.getvalue()
    views: list[Any] = stream.buffers()
    if end == "truncate":
        stream.truncate(0)
    elif end == "close":
        stream.close()
    elif end == "init":
        stream.__init__(b"x" * len(content), pool=pool)  # type: ignore[misc]
    elif end == "setstate":
        stream.__setstate__((b"y" * len(content), 0, None))
    else:
        del stream
    # Whoever gets memory now must not get what is seen.
    others = [pool.acquire(len(view)) for view in views for _ in range(2)]
    for other in others:
        other[:] = b"\xee" * len(other)
    assert b"".join(views) == content
    assert pool.stats().retired >= len(content)
    rest = np.frombuffer(views[1], "u1")
    piece = bytes(views[1])
    del views
    assert 0 < pool.stats().retired < len(content)
    assert rest.tobytes() == piece
    del rest
    assert pool.stats().retired == 0


def test_content_cut_off_and_written_again(pool: mempool.BufferPool) -> None:
    stream = BytesStream(b"0123456789", pool=pool)
    views = stream.buffers()
    stream.truncate(4)
    stream.seek(0, 2)
    stream.write(b"abc")
    assert bytes(views[0]) == b"0123456789"
    assert stream.getvalue() == b"0123abc"


def test_zeros_before_a_write_behind_the_end(pool: mempool.BufferPool) -> None:
    stream = BytesStream(b"0123456789", pool=pool)
    views = stream.buffers()
    stream.truncate(4)
    stream.seek(8)
    stream.write(b"x")
    assert bytes(views[0]) == b"0123456789"
    assert stream.getvalue() == b"0123\0\0\0\0x"


KEEPERS: dict[str, Callable[[memoryview], Any]] = {
    "ndarray": lambda view: np.ndarray(8, "u1", buffer=view.obj),
    "frombuffer": lambda view: np.frombuffer(view, "u1"),
    "obj": lambda view: view.obj,
    "slice": lambda view: view[2:5],
    "cast": lambda view: view.cast("I"),
}


@pytest.mark.parametrize("keeper", KEEPERS)
def test_whoever_keeps_a_view(pool: mempool.BufferPool, keeper: str) -> None:
    stream = BytesStream(b"content!", pool=pool)
    kept = KEEPERS[keeper](stream.buffers()[0])
    expected = bytes(memoryview(kept))
    stream.write(b"CHANGED!")
    stream.close()
    pool.acquire(8)[:] = b"another!"
    assert bytes(memoryview(kept)) == expected
    del kept
    assert pool.stats().retired == 0


def test_a_stream_may_be_written_from_its_own_snapshot(pool: mempool.BufferPool) -> None:
    stream = filled(pool)
    content = stream.getvalue()
    stream.writelines(stream.buffers())
    stream.seek(100)
    stream.writelines(stream.buffers())
    doubled = content * 2
    assert stream.getvalue() == doubled[:100] + doubled


def test_an_empty_stream_has_none() -> None:
    assert BytesStream().buffers() == []
    stream = BytesStream(b"x")
    stream.truncate(0)
    assert stream.buffers() == []
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.buffers()


def test_reading_into_a_snapshot_is_refused(pool: mempool.BufferPool) -> None:
    stream = BytesStream(b"content", pool=pool)
    view = stream.buffers()[0]
    for target in (view, view.obj):
        with pytest.raises(TypeError, match="read-write"):
            stream.readinto(target)


# ---- getbuffer ----


def test_a_view_locks_what_would_move(pool: mempool.BufferPool) -> None:
    stream = filled(pool)
    content = stream.getvalue()
    view = stream.getbuffer()
    calls = [lambda: stream.write(b"x"), lambda: stream.write(b""), lambda: stream.truncate(1), stream.close]
    calls += [lambda: stream.writelines([b"x"]), lambda: stream.__setstate__((b"", 0, None)), stream.__init__]
    for call in calls:
        with pytest.raises(BufferError, match="Existing exports"):
            call()
    assert bytes(view) == content == stream.getvalue()
    view[:3] = b"abc"
    stream.seek(0)
    assert stream.read(3) == b"abc"
    again = stream.getbuffer()
    assert np.shares_memory(np.frombuffer(again, "u1"), np.frombuffer(view, "u1"))
    del again
    view.release()
    stream.close()


def test_a_snapshot_does_not_see_what_a_view_writes(pool: mempool.BufferPool) -> None:
    stream = filled(pool)
    content = stream.getvalue()
    before = stream.buffers()
    view = stream.getbuffer()
    during = stream.buffers()
    view[:] = bytes(len(view))
    assert b"".join(before) == b"".join(during) == content
    view.release()
    assert b"".join(stream.buffers()) == bytes(len(content))


def test_a_snapshot_of_one_block_is_left_by_a_view(pool: mempool.BufferPool) -> None:
    stream = BytesStream(b"content", pool=pool)
    before = stream.buffers()
    with stream.getbuffer() as view:
        view[:] = b"CHANGED"
        assert bytes(before[0]) == b"content"


def test_the_stream_is_dropped_while_a_view_lives(pool: mempool.BufferPool) -> None:
    stream = BytesStream(b"content", pool=pool)
    view = stream.getbuffer()
    del stream
    gc.collect()
    assert bytes(view) == b"content"
    del view
    assert pool.stats().in_use == 0


def test_a_consumer_that_gives_its_view_back_but_keeps_the_memory(pool: mempool.BufferPool) -> None:
    stream = BytesStream(b"content", pool=pool)
    array = np.ndarray(7, "u1", buffer=stream.getbuffer().obj)
    stream.write(b"CHANGED")
    stream.close()
    pool.acquire(7)[:] = b"another"
    assert array.tobytes() in (b"content", b"CHANGED")
    del array
    assert pool.stats().retired == 0


def test_what_a_kept_view_writes_does_not_reach_a_snapshot(pool: mempool.BufferPool) -> None:
    stream = BytesStream(b"content", pool=pool)
    array = np.ndarray(7, "u1", buffer=stream.getbuffer().obj)
    views = stream.buffers()
    array[:] = 0
    assert bytes(views[0]) == b"content"


def test_the_empty_view(pool: mempool.BufferPool) -> None:
    stream = BytesStream(pool=pool)
    view = stream.getbuffer()
    assert (len(view), view.readonly) == (0, False)
    with pytest.raises(BufferError):
        stream.write(b"x")
    view.release()
    assert stream.write(b"x") == 1


def test_reading_into_the_own_view(pool: mempool.BufferPool) -> None:
    stream = BytesStream(b"0123456789", pool=pool)
    stream.seek(3)
    with stream.getbuffer() as view:
        assert stream.readinto(view) == 7
    assert stream.getvalue() == b"3456789789"


def test_a_cycle_through_the_attributes(pool: mempool.BufferPool) -> None:
    stream = filled(pool)
    stream.me, stream.view, stream.snapshot = stream, stream.getbuffer(), stream.buffers()  # type: ignore[attr-defined]
    gone = weakref.ref(stream)
    del stream
    gc.collect()
    assert gone() is None
    assert pool.stats().in_use == pool.stats().retired == 0


def test_a_cycle_through_a_pool() -> None:
    class Pool(mempool.BufferPool):
        stream: Any

    pool = Pool()
    pool.stream = BytesStream(bytes(100 * KIB), pool=pool)
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None


def test_memory_is_back_before_a_callback_runs(pool: mempool.BufferPool) -> None:
    stream = filled(pool)
    seen: list[int] = []
    reference = weakref.ref(stream, lambda _: seen.append(pool.stats().in_use))
    del stream
    assert seen == [0]
    assert reference() is None


@pytest.mark.skipif(not hasattr(os, "writev"), reason="no writev here")
def test_a_pipe_takes_a_snapshot(pool: mempool.BufferPool) -> None:
    stream = filled(pool, 20 * KIB)
    reader, writer = os.pipe()
    try:
        assert os.writev(writer, stream.buffers()) == 20 * KIB
        assert os.read(reader, 64 * KIB) == stream.getvalue()
    finally:
        os.close(reader)
        os.close(writer)
