"""What the system says of this process and of the machine, and what is made of it when it says nothing sensible."""

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mempool._core
import system_tree as tree
from mempool._system import machine, process, rlimits
from mempool._system.machine import MachineMemory
from mempool._system.process import ProcessMemory
from system_tree import GIB, KIB, MIB

linux = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")

READERS: list[Callable[[Path], object]] = [
    process.rss,
    process.peak_rss,
    process.uss,
    process.address_space,
    process.data,
    process.memory,
]


def test_figures_of_a_tree(tmp_path: Path) -> None:
    tree.process(tmp_path, rss=8 * MIB, peak=9 * MIB, space=64 * MIB, data=16 * MIB)
    assert [reader(tmp_path) for reader in READERS] == [
        8 * MIB,
        9 * MIB,
        152 * KIB,
        64 * MIB,
        16 * MIB,
        ProcessMemory(8 * MIB, 9 * MIB, 64 * MIB, 16 * MIB),
    ]


def test_older_kernels_list_each_mapping(tmp_path: Path) -> None:
    tree.process(tmp_path)
    (tmp_path / "proc/self/smaps_rollup").unlink()
    one = "7f00-7f01 rw-p 00000000 00:00 0\nSize: 8 kB\nPrivate_Clean: 1 kB\nPrivate_Dirty: 2 kB\nVmFlags: rd wr\n"
    tree.plant(tmp_path, {"proc/self/smaps": one * 3})
    assert process.uss(tmp_path) == 9 * KIB


@linux
@pytest.mark.nosan
def test_figures_of_a_real_process(run_python: Callable[..., object]) -> None:
    """Of its own, where nothing else comes and goes. The kernel counts per processor, so figures are late by a little."""
    code = """
        from mempool._system import process
        MIB = 1 << 20
        size, little = 64 * MIB, 8 * MIB
        before = process.memory()
        held = bytearray(size)
        held[::4096] = b"x" * len(held[::4096])
        after = process.memory()
        for name in ("rss", "address_space", "data"):
            assert getattr(after, name) - getattr(before, name) > size - little, (name, before, after)
        assert after.peak_rss >= after.rss, after
        assert abs(process.rss() - after.rss) < little, after
        assert process.uss() > size
        assert process.address_space() >= process.data() > size
        del held
        assert process.rss() < after.rss - size // 2, after
        assert process.peak_rss() > after.peak_rss - little, after
    """
    run_python(code)


@linux
@pytest.mark.nosan  # whose allocator keeps what is freed
def test_the_peak_is_not_inherited(run_python: Callable[..., object]) -> None:
    """As that of getrusage is."""
    code = """
        import os
        from mempool._system import process
        held = b"x" * (64 << 20)
        del held
        if (child := os.fork()) == 0:
            os._exit(process.peak_rss() > 64 << 20)
        assert os.waitpid(child, 0)[1] == 0
        assert process.peak_rss() > 64 << 20
    """
    run_python(code, options=["-W", "ignore"])


@pytest.mark.parametrize("reader", READERS)
def test_nothing_there_is_an_error_that_names_the_file(tmp_path: Path, reader: Callable[[Path], object]) -> None:
    with pytest.raises(FileNotFoundError, match="proc/self/"):
        reader(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "\n", "max\n", "1 2\n", "VmRSS: 1 MB\nVmHWM: x kB\n", b"\xff\x00 \n", "Private_Dirty: -1 kB\n"]
)
@pytest.mark.parametrize("reader", READERS)
def test_nonsense_is_an_error_that_names_the_file(
    tmp_path: Path, reader: Callable[[Path], object], content: str | bytes
) -> None:
    tree.plant(tmp_path, {f"proc/self/{name}": content for name in ("statm", "status", "smaps_rollup")})
    with pytest.raises(ValueError, match=r"proc/self/"):
        reader(tmp_path)


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("word", ["-1", "1_0", "x", "9" * 21])
def test_a_word_that_is_no_number(tmp_path: Path, column: int, word: str) -> None:
    words = ["1"] * 7
    words[column] = word
    tree.plant(tmp_path, {"proc/self/statm": " ".join(words)})
    with pytest.raises(ValueError, match=r"statm: expected a number"):
        (process.address_space, process.rss)[column](tmp_path)


@pytest.mark.parametrize("line", ["5 MB", "5", "5 kB more", "kB", ""])
def test_a_line_that_is_not_in_kilobytes(tmp_path: Path, line: str) -> None:
    tree.plant(tmp_path, {"proc/self/status": f"Name:\tx\nVmHWM:\t{line}\nThreads:\t1\n"})
    with pytest.raises(ValueError, match=r"status: expected kB, found b'VmHWM"):
        process.peak_rss(tmp_path)


def test_pages_of_files_are_told_from_others(tmp_path: Path) -> None:
    tree.plant(tmp_path, {"proc/self/statm": "9 5 2 0 0 0 0"})
    page = os.sysconf("SC_PAGE_SIZE")
    assert process.rss_and_shared(tmp_path) == (5 * page, 2 * page)
    tree.plant(tmp_path, {"proc/self/statm": "9 5 x 0 0 0 0"})
    with pytest.raises(ValueError, match="expected a number"):
        process.rss_and_shared(tmp_path)


def test_a_name_at_the_start_and_inside_another(tmp_path: Path) -> None:
    tree.plant(tmp_path, {"proc/self/status": "VmHWM: 1 kB\nXVmData: 5 kB\nVmDatax: 6 kB\nVmData:\t 7 kB"})
    assert (process.peak_rss(tmp_path), process.data(tmp_path)) == (KIB, 7 * KIB)


def test_where_there_is_no_proc_the_compiled_layer_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempool._core, "_process_memory", lambda: (5 * MIB, 4 * MIB))
    monkeypatch.setattr(mempool._core, "_machine_memory", lambda: (GIB, MIB))

    def missing(path: str) -> bytes:
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr(process, "read", missing)
    monkeypatch.setattr(machine, "read", missing)
    assert (process.rss(), process.peak_rss()) == (5 * MIB, 4 * MIB)
    assert process.rss_and_shared() == (5 * MIB, 5 * MIB)
    assert process.memory() == ProcessMemory(5 * MIB, 5 * MIB, None, None)
    assert machine.memory() == MachineMemory(GIB, MIB)
    for reader in (*READERS, machine.memory):
        with pytest.raises(FileNotFoundError):
            reader(tmp_path)
    for reader in (process.uss, process.address_space, process.data):
        with pytest.raises(FileNotFoundError):
            reader("/")


def test_the_machine(tmp_path: Path) -> None:
    assert machine.memory(tree.machine(tmp_path, 4 * GIB, GIB)) == MachineMemory(4 * GIB, GIB)
    assert machine.memory(tree.machine(tmp_path, GIB, 2 * GIB)) == MachineMemory(GIB, GIB)
    real = machine.memory()
    assert 0 < real.available <= real.total


@pytest.mark.parametrize(
    "content", ["", "MemTotal: 1 kB\n", "MemAvailable: 1 kB\n", "MemTotal: 0 kB\nMemAvailable: 0 kB\n", "x"]
)
def test_a_machine_that_says_nonsense(tmp_path: Path, content: str) -> None:
    with pytest.raises(ValueError, match="proc/meminfo"):
        machine.memory(tree.plant(tmp_path, {"proc/meminfo": content}))


def test_limits_of_the_process(run_python: Callable[..., object]) -> None:
    code = """
        import resource
        from mempool._system import rlimits
        for name, reader in ("RLIMIT_AS", rlimits.address_space), ("RLIMIT_DATA", rlimits.data):
            limit = getattr(resource, name)
            hard = resource.getrlimit(limit)[1]
            for soft in 1 << 46, hard:  # the first is more than any process has, under a sanitizer too
                if hard == resource.RLIM_INFINITY or soft == hard:
                    resource.setrlimit(limit, (soft, hard))
                    assert reader() == (None if soft == resource.RLIM_INFINITY else soft), (name, reader())
    """
    pytest.importorskip("resource")
    run_python(code)


def test_where_there_are_no_such_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert (rlimits.address_space(), rlimits.data()) == (None, None)


def test_unlimited_is_written_in_many_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    for soft in (resource.RLIM_INFINITY, -1, -2, (1 << 63) - 1, (1 << 64) - 1):
        monkeypatch.setattr(resource, "getrlimit", lambda which, soft=soft: (soft, soft))
        assert rlimits.address_space() is None
    monkeypatch.delattr(resource, "RLIMIT_DATA")
    assert rlimits.data() is None


@linux
def test_readings_leave_no_descriptor_open(tmp_path: Path) -> None:
    tree.plant(tmp_path, {"proc/self/statm": "x"})
    gc.collect()  # what other tests left goes before, not meanwhile
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        process.memory()
        with pytest.raises(ValueError, match="statm"):
            process.rss(tmp_path)
    assert os.listdir("/proc/self/fd") == before
