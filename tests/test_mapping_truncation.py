"""Files that others cut short: an error at the next call, zeros where it was lost, and the handler that makes touching it safe."""

import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mempool
from mapping_kit import charged

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be cut there")

ROWS = 5000
MODES = ["r", "r+", "c"]
CALLS: dict[str, Callable[[Any], object]] = {
    "array": lambda a: a.array,
    "getitem": lambda a: a[0],
    "memoryview": memoryview,
    "flush": lambda a: a.flush(),
    "advise": lambda a: a.advise("normal"),
    "prefetch": lambda a: a.prefetch(),
    "resident": lambda a: a.resident(),
    "lock": lambda a: a.lock(),
    "unlock": lambda a: a.unlock(),
    "iter_blocks": lambda a: a.iter_blocks(5),
}
GROWING: dict[str, Callable[[Any], object]] = {
    "append": lambda a: a.append([1]),
    "grow": lambda a: a.resize(ROWS + 1),
    "shrink": lambda a: a.resize(1),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", np.arange(1, ROWS + 1))
    return tmp_path / "a.npy"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [*CALLS, *GROWING])
def test_the_next_call_tells(path: Path, mode: Any, name: str) -> None:
    if name in GROWING and mode != "r+":
        return
    with mempool.open_array(path, mode) as array:
        view = array.array
        os.truncate(path, 128 + 8 * 2000)
        with pytest.raises(mempool.MappingError, match=r"a\.npy.*40000 bytes"):
            (CALLS | GROWING)[name](array)
        assert array.truncated
        assert isinstance(view.tolist(), list)  # nothing dies
        assert view[:2000].tolist() == list(range(1, 2001))
        assert not view[2000:].any()
        for call in CALLS.values():
            with pytest.raises(mempool.MappingError):
                call(array)
    assert os.path.getsize(path) == 128 + 8 * 2000


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [0, 1, 128, 129, 4095, 4096, 4097, 40_000, 40_127])
def test_each_size(path: Path, mode: Any, size: int) -> None:
    with mempool.open_array(path, mode) as array:
        view = array.array
        content = np.frombuffer(path.read_bytes()[128:size].ljust(40_000, b"\0"), "i8")
        os.truncate(path, size)
        with pytest.raises(mempool.MappingError):
            array.flush()
        assert np.array_equal(view, content)
        if mode != "r":
            view[:] = 7
            assert (view == 7).all()
    assert os.path.getsize(path) == size


@pytest.mark.parametrize("size", [40_128, 40_129, 100_000])
def test_longer_is_no_loss(path: Path, size: int) -> None:
    with mempool.open_array(path) as array:
        os.truncate(path, size)
        assert array[-1] == ROWS
        assert not array.truncated


def test_lost_is_lost(path: Path) -> None:
    """Also when the file is long again."""
    gc.collect()  # what other tests left
    used = charged()
    with mempool.open_array(path, "r+") as array:
        os.truncate(path, 0)
        with pytest.raises(mempool.MappingError):
            array.flush()
        os.truncate(path, 50_000)
        with pytest.raises(mempool.MappingError):
            _ = array.array
        assert array.truncated
    assert array.closed
    with pytest.raises(ValueError, match="closed"):
        array.flush()
    assert charged() == used


def test_only_what_rows_need_counts(path: Path) -> None:
    with mempool.open_array(path, "r+") as array:
        array.resize(100)
        os.truncate(path, 128 + 800)
        assert array[99] == 100
        os.truncate(path, 128 + 799)
        with pytest.raises(mempool.MappingError):
            array.flush()


def test_header_of_a_cut_file_stays(path: Path) -> None:
    """Rows that were appended and lost are not promised."""
    array = mempool.open_array(path, "r+")
    array.append([1, 2, 3])
    os.truncate(path, 1000)
    before = path.read_bytes()
    with pytest.raises(mempool.MappingError):
        array.flush()
    array.close()
    assert path.read_bytes() == before
    array = mempool.create_array(path, 5, "u1", overwrite=True)
    array.append([1])
    os.truncate(path, 100)
    with pytest.raises(mempool.MappingError):
        array.close()
    assert array.closed


@pytest.mark.parametrize("revoke", [False, True])
def test_closing_a_cut_array(path: Path, revoke: bool) -> None:
    array = mempool.open_array(path, "r+")
    view = array.array
    os.truncate(path, 0)
    array.close(revoke=revoke)
    if revoke:
        assert not view.any()
    array.close(revoke=True)
    assert not view.any()


def test_cut_while_iterating(path: Path) -> None:
    with mempool.open_array(path) as array:
        blocks = array.iter_blocks(1000)
        first = next(blocks)
        os.truncate(path, 128)
        with pytest.raises(mempool.MappingError):
            next(blocks)
        assert first.shape == (1000,)


PRELUDE = """
    import os, signal, sys
    import numpy as np
    import mempool
    path = sys.argv[1]
    array = mempool.open_array(path, sys.argv[2] if len(sys.argv) > 2 else "r")
    view = array.array
"""


@pytest.fixture
def script(run_python: Callable[..., Any], path: Path) -> Callable[..., Any]:
    def run(code: str, *args: object, **options: Any) -> Any:
        import textwrap

        options.setdefault("env", {"PYTHONFAULTHANDLER": None})
        return run_python(textwrap.dedent(PRELUDE) + textwrap.dedent(code), path, *args, **options)

    return run


@pytest.mark.nosan
def test_unguarded_touch_is_a_bus_error(script: Callable[..., Any]) -> None:
    assert script("os.truncate(path, 0); view.sum()", check=False).returncode == -signal.SIGBUS


@pytest.mark.parametrize("mode", MODES)
def test_guarded_touch_reads_zeros(script: Callable[..., Any], mode: str) -> None:
    script(
        """
        mempool.guard_truncation()
        mempool.guard_truncation()
        assert view[-1] == 5000 and not array.truncated
        os.truncate(path, 128 + 8 * 1000)
        assert view[:1000].tolist() == list(range(1, 1001)) and not array.truncated
        assert view[1000:].sum() == 0
        assert array.truncated
        try:
            array.array
        except mempool.MappingError:
            pass
        else:
            raise AssertionError("it was not told")
        if array.mode != "r":
            view[:] = 7
            assert view.sum() == 35000
        array.close()
        assert array.truncated
        """,
        mode,
    )


def test_guard_covers_what_comes_and_grows(script: Callable[..., Any]) -> None:
    script(
        """
        mempool.guard_truncation()
        array.append(np.arange(100_000))
        grown = array.array
        others = [mempool.open_array(path, mode) for mode in ("r", "c") for _ in range(100)]
        views = [other.array for other in others]
        os.truncate(path, 128)
        assert grown[-1] == 0 and views[0][-1] == 0 and views[-1][-1] == 0
        assert array.truncated and others[0].truncated and others[-1].truncated
        for other in others:
            other.close()
            assert other.closed
        assert not any(view.any() for view in views)
        """,
        "r+",
    )


def test_guard_after_close(script: Callable[..., Any]) -> None:
    script("""
        mempool.guard_truncation()
        array.close()
        os.truncate(path, 0)
        assert view.sum() == 0 and array.truncated
        """)


def test_guard_writes(script: Callable[..., Any]) -> None:
    script(
        """
        mempool.guard_truncation()
        os.truncate(path, 0)
        view[3000] = 5
        assert view[3000] == 5 and view[2999] == 0 and array.truncated
        assert os.path.getsize(path) == 0
        """,
        "r+",
    )


FOREIGN = """
    import mmap
    def foreign():
        with open(path, "rb") as file:
            other = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        os.truncate(path, 0)
        return other[5000]
"""


@pytest.mark.nosan
def test_foreign_faults_end_the_process(script: Callable[..., Any]) -> None:
    done = script(f"{FOREIGN}\n    mempool.guard_truncation()\n    foreign()\n", check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGBUS, "")


@pytest.mark.nosan
def test_faulthandler_still_reports_foreign_faults(script: Callable[..., Any]) -> None:
    code = f"{FOREIGN}\n    import faulthandler\n    faulthandler.enable()\n    mempool.guard_truncation()\n"
    code += "    GUARDED\n    foreign()\n"
    guarded = "os.truncate(path, 200); assert view.sum() == sum(range(1, 10)); os.truncate(path, 9000)"
    done = script(code.replace("GUARDED", guarded), check=False)
    assert done.returncode == -signal.SIGBUS
    assert "Bus error" in done.stderr
    assert "foreign" in done.stderr


def test_handler_of_python_is_called_for_sent_signals(script: Callable[..., Any]) -> None:
    script("""
        seen = []
        signal.signal(signal.SIGBUS, lambda number, frame: seen.append(number))
        mempool.guard_truncation()
        os.kill(os.getpid(), signal.SIGBUS)
        assert seen == [signal.SIGBUS]
        os.truncate(path, 0)
        assert view.sum() == 0 and array.truncated
        os.kill(os.getpid(), signal.SIGBUS)
        assert len(seen) == 2
        """)


def test_ignored_stays_ignored(script: Callable[..., Any]) -> None:
    script("""
        signal.signal(signal.SIGBUS, signal.SIG_IGN)
        mempool.guard_truncation()
        os.kill(os.getpid(), signal.SIGBUS)
        os.truncate(path, 0)
        assert view.sum() == 0
        """)


@pytest.mark.nosan
def test_default_is_still_deadly(script: Callable[..., Any]) -> None:
    done = script("mempool.guard_truncation(); os.kill(os.getpid(), signal.SIGBUS); print('alive')", check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "")


def test_guard_after_a_new_handler(script: Callable[..., Any]) -> None:
    script("""
        mempool.guard_truncation()
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        mempool.guard_truncation()
        os.truncate(path, 0)
        assert view.sum() == 0
        """)


def test_guard_in_threads_and_children(script: Callable[..., Any]) -> None:
    script("""
        import threading
        mempool.guard_truncation()
        os.truncate(path, 0)
        sums = []
        threads = [threading.Thread(target=lambda: sums.append(int(view.sum()))) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert sums == [0] * 8
        if os.fork() == 0:
            os._exit(0 if view.sum() == 0 and array.truncated else 1)
        assert os.wait()[1] == 0
        """)
