"""A stream whose pool is short of memory, closed or watched, and a Python that is: the content stays what it was."""

import gc
import io
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import mempool
from mempool.io import BytesStream
from tests.support import KIB, MIB, check_identities


@pytest.mark.parametrize("call", ["write", "memoryview", "gap", "overwrite", "getbuffer", "init", "large"])
def test_a_refused_call_changes_nothing(call: str) -> None:
    pool = mempool.BufferPool(limit="1MiB", idle_timeout=None)
    stream = BytesStream(pool=pool)
    for _ in range(5):
        stream.write(bytes(range(256)) * 400)
    stream.seek(700)
    content, views = stream.getvalue(), stream.buffers()
    lent = pool.acquire(pool.limit - pool.stats().reserved + pool.stats().idle - 64 * KIB)  # type: ignore[operator]
    hog = [pool.acquire(4 * KIB) for _ in range(pool_room(pool) // (4 * KIB))]
    calls: dict[str, Callable[[], object]] = {
        "write": lambda: (stream.seek(0, 2), stream.write(bytes(600 * KIB))),
        "memoryview": lambda: (stream.seek(0, 2), stream.write(memoryview(bytes(600 * KIB)))),
        "gap": lambda: (stream.seek(10 * MIB), stream.write(b"x")),
        "overwrite": lambda: (stream.seek(0), stream.write(bytes(len(content)))),
        "getbuffer": stream.getbuffer,
        "init": lambda: BytesStream(bytes(900 * KIB), pool=pool),
        "large": lambda: (stream.seek(0), stream.write(bytes(2 * MIB))),
    }
    with pytest.raises(mempool.PoolExhausted):
        calls[call]()
    assert stream.getvalue() == content == b"".join(views)
    del lent, hog, views
    stream.seek(0, 2)
    assert stream.write(b"more") == 4


def pool_room(pool: mempool.BufferPool) -> int:
    stats = pool.stats()
    assert stats.limit is not None
    return stats.limit - stats.in_use - stats.retired


def test_it_fills_a_pool_to_the_limit() -> None:
    """Near the limit the blocks become smaller."""
    pool = mempool.BufferPool(limit="1000KiB", idle_timeout=None)
    stream = BytesStream(pool=pool)
    with pytest.raises(mempool.PoolExhausted):
        while True:
            stream.write(bytes(4 * KIB))
    assert stream.tell() == len(stream.getvalue()) > 990 * KIB


def test_a_position_that_no_memory_reaches() -> None:
    stream = BytesStream(b"content")
    for position in (1 << 62, (1 << 63) - 1):
        stream.seek(position)
        with pytest.raises((MemoryError, OverflowError)):
            stream.write(b"x")
        assert (stream.tell(), stream.getvalue()) == (position, b"content")


def test_a_closed_pool() -> None:
    pool = mempool.BufferPool(name="shut")
    stream = BytesStream(b"content", pool=pool)
    views = stream.buffers()
    pool.close()
    with pytest.raises(ValueError, match="'shut' is closed"):
        stream.write(b"C")  # a snapshot sees it
    with pytest.raises(ValueError, match="'shut' is closed"):
        stream.write(bytes(KIB))
    del views
    stream.write(b"C")
    assert stream.getvalue() == b"Content"
    stream.close()
    assert pool.stats().in_use == 0


def test_a_pool_that_is_dropped() -> None:
    stream = BytesStream(b"content", pool=mempool.BufferPool())
    views = stream.buffers()
    gc.collect()
    assert bytes(views[0]) == stream.getvalue() == b"content"
    del stream
    gc.collect()
    assert bytes(views[0]) == b"content"


@pytest.mark.parametrize("pool", ["default", 1, object(), b""])
def test_what_is_no_pool(pool: Any) -> None:
    with pytest.raises(TypeError, match="pool must be a BufferPool"):
        BytesStream(pool=pool)


def test_a_pool_that_was_never_made() -> None:
    pool = mempool.BufferPool.__new__(mempool.BufferPool)
    with pytest.raises(ValueError, match="never initialised"):
        BytesStream(b"x", pool=pool)


def test_the_pool_is_known() -> None:
    pool = mempool.BufferPool()
    assert BytesStream(pool=pool).pool is pool
    assert BytesStream().pool is mempool.default_pool()


def test_memory_returns() -> None:
    pool = mempool.BufferPool(idle_timeout=None)
    stream = BytesStream(pool=pool)
    for _ in range(1000):
        stream.write(bytes(KIB))
    stream.truncate(10 * KIB)
    assert pool.stats().in_use < 20 * KIB
    stream.seek(0)
    stream.truncate()
    stream.close()
    stats = pool.stats()
    assert (stats.in_use, stats.live, stats.dropped, stats.handed_over) == (0, 0, 0, 0)
    check_identities(stats)


@pytest.mark.parametrize("nbytes", [100, 5000, 100_000, 1_000_000, 10_000_000])
def test_little_is_wasted(nbytes: int) -> None:
    pool = mempool.BufferPool(idle_timeout=None)
    stream = BytesStream(pool=pool)
    for start in range(0, nbytes, 500):
        stream.write(bytes(min(500, nbytes - start)))
    most = {100: 256, 5000: 8192, 100_000: 120_000}.get(nbytes, nbytes * 1.05 if nbytes > 9_000_000 else nbytes * 1.13)
    assert pool.stats().in_use <= most
    once = mempool.BufferPool(idle_timeout=None)
    kept = BytesStream(bytes(nbytes), pool=once)
    assert once.stats().in_use <= max(256, nbytes * 1.125 + 4096), kept
    assert len(stream.buffers()) <= 100


def test_its_size_counts_its_memory() -> None:
    stream = BytesStream()
    empty = stream.__sizeof__()
    stream.write(bytes(10_000))
    assert empty + 10_000 <= stream.__sizeof__() <= empty + 20_000


def test_no_leak_is_reported() -> None:
    pool = mempool.BufferPool(leak_detection="full")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = BytesStream(bytes(10 * KIB), pool=pool)
        views = stream.buffers()
        stream.write(b"x")
        stream.getbuffer().release()
        del stream, views
        gc.collect()


def test_cleared_when_it_comes_back() -> None:
    pool = mempool.BufferPool(zero_on_release=True, idle_timeout=None)
    stream = BytesStream(b"secret" * 400_000, pool=pool)
    stream.close()
    assert not any(pool.acquire(2_400_000).tobytes())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the OS has no fork")
def test_fork(run_python: Callable[..., Any]) -> None:
    run_python("""
        import os, mempool
        pool = mempool.BufferPool()
        stream = mempool.io.BytesStream(b"content", pool=pool)
        views = stream.buffers()
        for _ in range(1000):
            stream.write(bytes(100))
        pid = os.fork()
        stream.seek(0)
        stream.write(b"PARENT!" if pid else b"CHILD!!")
        stream.seek(0)
        right = stream.read(7) == (b"PARENT!" if pid else b"CHILD!!") and bytes(views[0]) == b"content"
        stream.close()
        del views
        right = right and pool.stats().in_use == pool.stats().retired == 0
        if not pid:
            os._exit(0 if right else 1)
        assert right and os.waitpid(pid, 0)[1] == 0
    """)


def test_exit_with_streams_alive(run_python: Callable[..., Any]) -> None:
    done = run_python(
        """
        import mempool
        class Late(mempool.io.BytesStream):
            def close(self):
                print("closed", len(self.getvalue()))
                super().close()
        late = Late(b"12345"); late.me = late
        views = mempool.io.BytesStream(bytes(10000)).buffers()
        stream = mempool.io.BytesStream(bytes(100)); view = stream.getbuffer()
        """,
        options=("-X", "dev"),
    )
    assert done.stderr == ""


NOMEMORY = """
    import _testcapi, gc, pickle, mempool
    from mempool.io import BytesStream
    pool = mempool.BufferPool(idle_timeout=None)
    gc.disable()

    def contents(stream):
        return stream.getvalue(), stream.tell()

    def each(prepare, call, most=300):
        nth = clean = 0
        while clean < 4:
            nth += 1
            stream = prepare()
            before, views = contents(stream), stream.buffers()
            shown = b"".join(views)
            failed = None
            _testcapi.set_nomemory(nth - 1, nth)
            try:
                call(stream)
            except MemoryError as error:
                failed = error
            finally:
                _testcapi.remove_mem_hooks()
            if failed is not None:
                assert contents(stream) == before, nth
            clean = 0 if failed is not None else clean + 1
            assert b"".join(views) == shown
            del views, failed, stream
            gc.collect()
            assert pool.stats().in_use == pool.stats().retired == 0, (nth, pool.stats())
            assert nth < most

    def made():
        stream = BytesStream(b"line\\n" * 100, pool=pool)
        stream.seek(0, 2)
        for _ in range(40):
            stream.write(b"0123456789" * 30)
        stream.seek(7)
        return stream

    def large():
        stream = BytesStream(bytes(3 << 20), pool=pool)
        stream.seek(1)
        return stream

    def at_end():
        stream = made()
        stream.seek(0, 2)
        return stream
"""


@pytest.mark.nosan
@pytest.mark.parametrize(
    "call",
    [
        "each(made, lambda s: s.write(b'x' * 9000))",
        "each(at_end, lambda s: s.write(b'x' * 90000))",
        "each(made, lambda s: s.write(memoryview(b'x' * 10)))",
        "each(made, lambda s: s.read())",
        "each(large, lambda s: s.read())",
        "each(large, lambda s: s.getvalue())",
        "each(made, lambda s: s.readline())",
        "each(made, lambda s: s.getbuffer())",
        "each(made, lambda s: s.buffers())",
        "each(made, lambda s: s.__getstate__())",
        "each(made, lambda s: BytesStream(b'x' * 5000, pool=pool))",
        "each(made, lambda s: s.truncate(3000))",
    ],
)
def test_no_memory_for_python(run_python: Callable[..., Any], call: str) -> None:
    testcapi = pytest.importorskip("_testcapi")
    if not hasattr(testcapi, "set_nomemory"):
        pytest.skip("this interpreter cannot fail allocations")
    import textwrap

    run_python(textwrap.dedent(NOMEMORY) + call + "\n")


def test_what_a_conversion_does_to_the_stream() -> None:
    """Python that runs in the middle of a call closes the stream: an error, no crash."""

    class Closing:
        def __init__(self, stream: BytesStream) -> None:
            self.stream = stream

        def __index__(self) -> int:
            self.stream.close()
            return 3

    for name in ("read", "readline", "truncate", "seek", "read1"):
        stream = BytesStream(b"content" * 100)
        with pytest.raises(ValueError, match="closed"):
            getattr(stream, name)(Closing(stream))
    stream = BytesStream(b"content")
    for file in (stream, io.BytesIO(b"content")):
        with pytest.raises(TypeError, match="integer argument expected, got 'Closing'"):
            file.readlines(Closing(stream))  # type: ignore[arg-type]
    assert not stream.closed

    def lines() -> Any:
        yield b"x"
        stream.close()
        yield b"y"

    with pytest.raises(ValueError, match="closed"):
        stream.writelines(lines())
    assert isinstance(stream, io.BufferedIOBase)
