"""Mapped arrays in a process: what they cost an account, what tracemalloc shows, threads, fork, exit and leaks."""

import gc
import os
import sys
import textwrap
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mempool
from mempool.accounting import root_account
from support import together

PAGE = 4096
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def pages(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE


def account(name: str) -> mempool.Account:
    return next(child for child in root_account().children if child.name == name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.npy"


@pytest.fixture(autouse=True)
def accounts_of_both_kinds(tmp_path: Path) -> None:
    """They are made with the first array of their kind. And nothing of other tests makes room when a limit is met."""
    mempool.cleanup("aggressive")
    mempool.create_array(tmp_path / "first.npy", 1, "u1").close()
    mempool.anonymous_array(1, "u1").close()


@pytest.fixture
def limits() -> Iterator[Callable[[str | None, int], None]]:
    """Limit the root or one of the shared accounts to so much more than it holds."""
    limited = []

    def limit(name: str | None, more: int) -> None:
        limited.append(root_account() if name is None else account(name))
        limited[-1].limit = limited[-1].used + more

    yield limit
    for one in limited:
        one.limit = None


# ---- accounts


@pytest.mark.parametrize("kind", ["mapped files", "anonymous arrays"])
def test_each_step_is_charged(path: Path, kind: str) -> None:
    books, start, root = account(kind), account(kind).used, root_account().used
    if kind == "mapped files":
        array = mempool.create_array(path, (3, 1000), "f8")
    else:
        array = mempool.anonymous_array((3, 1000), "f8", max_rows=5000)

    def holds(nbytes: int) -> None:
        assert (books.used - start, root_account().used - root) == (pages(nbytes), pages(nbytes))

    holds(24_000)
    array.append(np.ones((7, 1000)))
    holds(80_000)
    array.resize(1000)
    holds(8_000_000)
    assert books.peak >= start + pages(8_000_000)
    view = array.array
    array.resize(1)
    holds(8000)
    for refused in (lambda: array.resize(-1), lambda: array.append([1, 2])):
        with pytest.raises(ValueError, match=r"negative|shape"):
            refused()
    holds(8000)
    array.close()
    holds(8000)
    del view
    holds(0)


def test_what_is_empty_costs_nothing(path: Path) -> None:
    used = root_account().used
    for shape in ((0,), (5, 0), (0, 5)):
        with mempool.anonymous_array(shape, "f8"), mempool.create_array(path, shape, "f8", overwrite=True):
            assert root_account().used == used
    with mempool.anonymous_array((), "f8"):
        assert root_account().used == used + PAGE


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_opened_files_are_charged(path: Path, mode: Any) -> None:
    np.save(path, np.arange(5000))
    used = root_account().used
    arrays = [mempool.open_array(path, mode) for _ in range(3)]
    assert root_account().used == used + 3 * pages(40_000)
    view = arrays[0].array
    arrays[0].close(revoke=True)
    assert root_account().used == used + 2 * pages(40_000)
    arrays.clear()
    del view
    assert root_account().used == used


@pytest.mark.parametrize("name", [None, "mapped files", "anonymous arrays"])
def test_limits_bind(path: Path, limits: Callable[[str | None, int], None], name: str | None) -> None:
    np.save(path, np.arange(5000))
    limits(name, 2 * PAGE)
    used, files = root_account().used, len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    calls = []
    if name != "anonymous arrays":
        calls += [lambda mode=mode: mempool.open_array(path, mode) for mode in ("r", "r+", "c")]
    if name != "mapped files":
        calls += [lambda: mempool.anonymous_array(5000, "i8")]
    for call in calls:
        with pytest.raises(mempool.AccountLimitExceeded, match=name or "root"):
            call()
    assert root_account().used == used
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.parametrize("kind", ["mapped files", "anonymous arrays"])
@pytest.mark.parametrize("by", ["root", "its own"])
def test_limits_bind_growth(path: Path, limits: Callable[[str | None, int], None], kind: str, by: str) -> None:
    array = (
        mempool.create_array(path, 0, "i8")
        if kind == "mapped files"
        else mempool.anonymous_array(0, "i8", max_rows=1 << 20)
    )
    with array:
        array.append(np.arange(512))
        limits(None if by == "root" else kind, PAGE)
        used, size = root_account().used, path.stat().st_size if path.exists() else 0
        for call in (lambda: array.append(np.zeros(513, "i8")), lambda: array.resize(1025)):
            with pytest.raises(mempool.AccountLimitExceeded):
                call()
        assert (root_account().used, path.stat().st_size if path.exists() else 0) == (used, size)
        assert array.array.tolist() == list(range(512))
        array.append(np.arange(512, 1024))
        assert root_account().used == used + PAGE
        array.resize(1)
        array.resize(2)
        assert array.array.tolist() == [0, 0]


def test_idle_memory_goes_first(limits: Callable[[str | None, int], None]) -> None:
    pool = mempool.BufferPool(idle_timeout=None)
    pool.acquire(1 << 20).release()
    limits(None, 0)
    with mempool.anonymous_array(1 << 19, "u1", max_rows=1 << 20) as array:
        array.resize(900_000)
    assert pool.stats().idle == 0


# ---- tracemalloc


@pytest.fixture
def traced() -> Iterator[Callable[[], list[int]]]:
    tracemalloc.start(3)
    ours = tracemalloc.DomainFilter(True, mempool.TRACEMALLOC_DOMAIN)
    yield lambda: [trace.size for trace in tracemalloc.take_snapshot().filter_traces([ours]).traces]
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["file", "anonymous"])
def test_traced_as_long_as_mapped(path: Path, traced: Callable[[], list[int]], kind: str) -> None:
    array = (
        mempool.create_array(path, (0, 3), "i4")
        if kind == "file"
        else mempool.anonymous_array((0, 3), "i4", max_rows=99)
    )
    assert traced() == []
    array.append([1, 2, 3])
    assert traced() == [12]
    array.resize(5)
    assert traced() == [60]
    array.resize(0)
    assert traced() == []
    array.append([1, 2, 3])
    view = array.array
    array.close()
    assert traced() == [12]
    del view
    assert traced() == []


@pytest.mark.parametrize("end", ["close", "revoke", "drop", "drop with a view"])
def test_traced_until_the_end(traced: Callable[[], list[int]], end: str) -> None:
    array: Any = mempool.anonymous_array(100, "u1")
    (trace,) = (
        tracemalloc.take_snapshot().filter_traces([tracemalloc.DomainFilter(True, mempool.TRACEMALLOC_DOMAIN)]).traces
    )
    assert (trace.size, trace.traceback[-1].filename) == (100, __file__)
    view = array.array if end in ("revoke", "drop with a view") else None
    if end == "close":
        array.close()
    elif end == "revoke":
        array.close(revoke=True)
    else:
        del array
        assert traced() == ([] if view is None else [100])
        del view
    assert traced() == []


def test_failures_are_not_traced(path: Path, traced: Callable[[], list[int]]) -> None:
    np.save(path, np.arange(5))
    for call in (lambda: mempool.open_array(path, shape=6), lambda: mempool.anonymous_array(-1, "u1")):
        with pytest.raises(ValueError, match=r"asked|negative"):
            call()
    assert traced() == []


# ---- threads


@pytest.mark.parametrize("kind", ["file", "anonymous"])
def test_threads_append_at_once(path: Path, kind: str) -> None:
    """Each row is there once and whole, whoever looks meanwhile."""
    array = (
        mempool.create_array(path, (0, 50), "i4")
        if kind == "file"
        else mempool.anonymous_array((0, 50), "i4", max_rows=1 << 20)
    )

    def append(number: int) -> None:
        for i in range(100):
            array.append(np.full((3, 50), number * 100 + i, "i4"))

    def look() -> None:
        for _ in range(100):
            seen = array.array
            assert (seen == seen[:, :1]).all()
            array.flush()
            assert len(seen) <= len(array)
            assert 0 <= array.resident() <= 1

    together([*(lambda number=number: append(number) for number in range(4)), look, look])
    assert array.shape == (1200, 50)
    assert sorted(array[::, 0].tolist()) == sorted([*range(400)] * 3)
    array.close()
    if kind == "file":
        assert np.load(path).shape == (1200, 50)


BUSY: list[Callable[[Any], object]] = [
    lambda a: a.append(np.zeros((9, 5), "i8")) if len(a) < 5000 else a.resize(10),
    lambda a: a.array.sum(),
    lambda a: a.flush(),
    lambda a: sum(block.size for block in a.iter_blocks(64)),
    lambda a: (a.resident(), a.advise("random"), a.prefetch(), a[0]),
]


def until_closed(array: mempool.MappedArray, call: Callable[[Any], object]) -> None:
    while True:
        try:
            call(array)
        except ValueError as error:
            if "closed" in str(error):
                return
            if "meanwhile" not in str(error):
                raise


@pytest.mark.parametrize("kind", ["file", "anonymous"])
@pytest.mark.parametrize("revoke", [False, True])
def test_threads_against_close(path: Path, kind: str, revoke: bool) -> None:
    """Whatever each is at: it works, or says that the array is closed, or that its rows changed."""
    gc.collect()  # what other tests left
    used = root_account().used
    for _ in range(15):
        if kind == "file":
            array = mempool.create_array(path, (100, 5), "i8", overwrite=True)
        else:
            array = mempool.anonymous_array((100, 5), "i8", max_rows=9000)
        together([*(partial(until_closed, array, call) for call in BUSY), partial(array.close, revoke=revoke)])
        assert array.closed
    del array
    gc.collect()
    assert root_account().used == used


def test_threads_open_and_close(path: Path) -> None:
    np.save(path, np.arange(100))

    def work() -> int:
        for _ in range(100):
            with mempool.open_array(path, "r+") as array:
                view = array.array
            assert view[99] == 99
        return 1

    used = root_account().used
    assert together([work] * 6) == [1] * 6
    assert root_account().used == used


# ---- fork and exit


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the OS has no fork")
@pytest.mark.parametrize("closed_first", ["parent", "child"])
def test_fork(run_python: Callable[..., Any], path: Path, closed_first: str) -> None:
    """Each has an array of its own on the same file; rows that wait for the header are the parent's to tell."""
    done = run_python(
        """
        import os, sys
        import numpy as np
        import mempool
        path, parent_first = sys.argv[1], sys.argv[2] == "parent"
        array = mempool.create_array(path, (0, 2), "i8")
        array.append([[1, 1], [2, 2]])
        view, (read, write) = array.array, os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if parent_first:
                    os.read(read, 1)
                    assert np.load(path).tolist() == [[1, 1], [2, 2]]
                    array.append([[3, 3]])
                    view[0] = 9
                array.close()
                assert view[1, 1] == 2
                code = 0
            finally:
                os._exit(code)
        if parent_first:
            array.close()
            os.write(write, b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        if parent_first:
            assert view[0, 0] == 9 and np.load(path).tolist() == [[9, 9], [2, 2], [3, 3]]
        else:
            assert np.load(path).tolist() == []
            array.append([[4, 4]])
            array.close()
            assert np.load(path).tolist() == [[1, 1], [2, 2], [4, 4]]
        """,
        path,
        closed_first,
    )
    assert done.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the OS has no fork")
def test_fork_while_threads_use_it(run_python: Callable[..., Any], path: Path) -> None:
    run_python(
        """
        import os, sys, threading, warnings
        import mempool
        warnings.simplefilter("ignore", DeprecationWarning)
        array, stop = mempool.create_array(sys.argv[1], (0, 2), "i8"), threading.Event()
        def work():
            while not stop.is_set():
                array.append([[1, 1]])
                array.flush()
                array.resize(0)
        threads = [threading.Thread(target=work) for _ in range(2)]
        [thread.start() for thread in threads]
        for _ in range(20):
            child = os.fork()
            if child == 0:
                other = mempool.anonymous_array(5, "u1")
                other[:] = 1
                array.close()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        [thread.join() for thread in threads]
        array.close()
        """,
        path,
    )


LEFTOVERS = {
    "arrays": "keep = [mempool.create_array(path, 5, 'u1'), mempool.anonymous_array(5, 'u1')]",
    "views": "keep = mempool.create_array(path, 5, 'u1').array, mempool.anonymous_array(5, 'u1')[1:]",
    "memoryviews": "keep = memoryview(mempool.create_array(path, 5, 'u1'))",
    "appended rows": "keep = mempool.create_array(path, 0, 'u1'); keep.append([1, 2]); sys.keep = keep",
    "iterators": "keep = mempool.anonymous_array(500, 'u1').iter_blocks(5); kept = next(keep)",
    "revoked": "a = mempool.create_array(path, 5, 'u1'); keep = a.array; a.close(revoke=True)",
    "closed": "a = mempool.create_array(path, 5, 'u1'); sys.keep = a.array; a.close()",
    "guarded": "mempool.guard_truncation(); sys.keep = mempool.create_array(path, 5, 'u1').array; os.truncate(path, 0)",
    "in the package": "mempool.keep = mempool.create_array(path, 5, 'u1')",
    "cycle": "keep = [mempool.create_array(path, 5, 'u1')]; keep.append(keep)",
    "finalizers": "import weakref; a = mempool.anonymous_array(5, 'u1'); weakref.finalize(a, mempool.anonymous_array, 9, 'u1')",
    "threads": "import threading; a = mempool.create_array(path, 0, 'u1')\n"
    "def run():\n    while True:\n        a.append([1]); a.flush()\nthreading.Thread(target=run, daemon=True).start()",
}


@pytest.mark.parametrize("name", LEFTOVERS)
def test_alive_at_exit(run_python: Callable[..., Any], path: Path, name: str) -> None:
    code = f"import os, sys, mempool\npath = sys.argv[1]\n{LEFTOVERS[name]}\n"
    done = run_python(code, path, options=("-X", "dev"))
    assert (done.stdout, done.stderr) == ("", "")
    if name == "appended rows":
        assert len(np.load(path)) in (0, 2)


# ---- leaks

LOOPS = {
    "open": "mempool.open_array(path).close()",
    "views": "a = mempool.open_array(path, 'r+'); v = a.array; m = memoryview(a); a[3:9]; a.close(); del v, m",
    "create": "mempool.create_array(path, 500, 'f8', overwrite=True).close()",
    "append": "a = mempool.open_array(path, 'r+'); a.append([1.0] * 50); a.resize(5); a.flush(); a.close()",
    "anonymous": "a = mempool.anonymous_array((5, 9), 'i4', max_rows=99); a.append([0] * 9); a.resize(0)",
    "blocks": "a = mempool.open_array(path); [b for b in a.iter_blocks(3)]; next(a.iter_blocks(2))",
    "refused": "for call in calls: attempt(call)",
    "properties": "a = mempool.open_array(path); a.shape, a.strides, a.nbytes, repr(a), a.max_rows, a.resident(), a.dtype",
    "revoke": "a = mempool.open_array(path, 'c'); v = a.array; v[:] = 1; a.close(revoke=True)",
}


@ON_LINUX
@pytest.mark.nosan
@pytest.mark.parametrize("name", LOOPS)
def test_loops_leak_nothing(run_python: Callable[..., Any], path: Path, name: str) -> None:
    np.save(path, np.arange(500.0))
    code = """
        import gc, sys
        import numpy as np
        import mempool
        path = sys.argv[1]

        def attempt(call):
            try:
                call()
            except (ValueError, TypeError, OSError):
                pass

        calls = [lambda: mempool.open_array(path, shape=3), lambda: mempool.open_array(path + "x"),
                 lambda: mempool.open_array(path, "q"),
                 lambda: mempool.open_array(path, dtype="u4"), lambda: mempool.create_array(path, 3, "u1"),
                 lambda: mempool.open_array(path, dtype="u1", shape=(1 << 40,), order="F", offset=3),
                 lambda: mempool.anonymous_array(3, object), lambda: mempool.anonymous_array(3, "u1").append([1, 2]),
                 lambda: mempool.open_array(path).append([1]), lambda: mempool.open_array(path, "r+").append("abc"),
                 lambda: mempool.anonymous_array(3, "u1").advise("dontneed"), lambda: mempool.open_array(path).resize(3)]

        def loop():
            LOOP

        def state():
            gc.collect()
            with open("/proc/self/statm") as file:
                rss = int(file.read().split()[1]) * 4096
            with open("/proc/self/maps") as file:
                return rss, len(gc.get_objects()), len(file.readlines()), sys.getrefcount(kind)

        kind = np.dtype("f8")
        for _ in range(300):
            loop()
        before = state()
        for _ in range(1500):
            loop()
        after = state()
        assert after[0] - before[0] < 1 << 20, (before, after)
        assert max(abs(a - b) for a, b in zip(after[1:], before[1:])) < 30, (before, after)
    """
    run_python(textwrap.dedent(code).replace("    LOOP", "    " + LOOPS[name]), path)
