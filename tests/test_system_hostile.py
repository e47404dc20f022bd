"""Files of the system that change while they are read, that vanish, that hold whatever bytes: a figure is right, or an error."""

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import system_tree as tree
from mempool._system import cgroup, limits, machine, process, rlimits
from support import start, together, until
from system_tree import GIB, MIB

FILES = {
    1: ("memory.usage_in_bytes", "memory.limit_in_bytes", "memory.stat", "memory.use_hierarchy", "memory.failcnt"),
    2: ("memory.current", "memory.max", "memory.high", "memory.stat", "memory.events"),
}
PROC = ("self/cgroup", "self/mountinfo", "self/statm", "self/status", "self/smaps_rollup", "meminfo")


@pytest.fixture(autouse=True, scope="module")
def unlimited() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rlimits, "address_space", lambda: 1 << 40)
        patch.setattr(rlimits, "data", lambda: 1 << 40)
        yield


def planted(root: Path, version: int) -> Path:
    tree.machine(tree.process(root))
    if version == 1:
        tree.group_v1(tree.group_v1(root, "job", limit=GIB))
        return tree.member_v1(root, "/job")
    tree.group_v2(tree.group_v2(root, "job", limit=GIB, high=GIB))
    return tree.member_v2(root, "/job")


def read_all(root: Path) -> list[int]:
    """Every figure that can be read, errors apart."""
    figures = []
    survey = limits.survey(root)
    figures += [figure for bound in survey.bounds for figure in (bound.limit, bound.used, bound.available)]
    with suppress(OSError, ValueError):
        group = cgroup.find(root)
        if group is None:
            return figures
        for call in (group.raw_usage, group.usage, group.high):
            with suppress(OSError, ValueError):
                figures.append(call() or 0)
            figures += group.events().values()
    for reader in (process.rss, process.peak_rss, process.uss, process.address_space, process.data):
        with suppress(OSError, ValueError):
            figures.append(reader(root))
    with suppress(OSError, ValueError):
        figures.append(machine.memory(root).available)
    return figures


CONTENT = st.one_of(
    st.binary(max_size=40),
    st.from_regex(rb"[0-9]{0,25}\n?", fullmatch=True),
    st.from_regex(rb"(inactive_file|VmRSS:|VmHWM:|MemTotal:|Private_Dirty:) [0-9-]{0,25}( kB)?\n", fullmatch=True),
    st.from_regex(rb"(0::|3:memory:)/[a-z./\\:]{0,12}\n", fullmatch=True),
    st.from_regex(rb"3 2 0:2 /[a-z.]{0,5} /[a-z.\\0]{0,9} rw - cgroup2? x rw,memory\n", fullmatch=True),
)


@given(st.sampled_from([1, 2]), st.dictionaries(st.integers(0, 15), CONTENT, min_size=1))
def test_whatever_bytes_are_there(
    tmp_path_factory: pytest.TempPathFactory, version: int, changes: dict[int, bytes]
) -> None:
    root = planted(tmp_path_factory.mktemp("tree"), version)
    folder = "sys/fs/cgroup/memory" if version == 1 else "sys/fs/cgroup"
    names = [f"proc/{name}" for name in PROC]
    names += [f"{folder}/{group}{name}" for group in ("", "job/") for name in FILES[version]]
    for number, content in changes.items():
        tree.plant(root, {names[number % len(names)]: content})
    assert all(figure >= 0 for figure in read_all(root))


def test_files_that_are_replaced_while_they_are_read(tmp_path: Path) -> None:
    """A reading is of the one state or of the other, and never of neither."""
    root = planted(tmp_path, 2)
    folder = tmp_path / "sys/fs/cgroup/job"
    stop = threading.Event()
    counted = [0]

    def replace() -> None:
        while not stop.is_set():
            counted[0] += 1
            for name, words in {
                "memory.current": (b"90000000\n", b"7\n"),
                "memory.max": (b"max\n", b"100000000\n"),
            }.items():
                (tmp_path / name).write_bytes(words[counted[0] % 2])
                os.replace(tmp_path / name, folder / name)

    def read() -> None:
        for _ in range(60):
            group = cgroup.find(root)
            assert group is not None
            assert group.raw_usage() in {100 * MIB, 90_000_000, 7}
            limit = group.limit()
            assert limit is None or limit.limit in {GIB, 100_000_000}

    writer = start(replace)
    until(lambda: counted[0] > 1, "a change")
    try:
        together([read] * 4)
    finally:
        stop.set()
        writer.result()


def test_groups_that_come_and_go_while_they_are_read(tmp_path: Path) -> None:
    root = planted(tmp_path, 2)
    here, away = tmp_path / "sys/fs/cgroup/job", tmp_path / "away"
    stop = threading.Event()
    moves = [0]

    def move() -> None:
        while not stop.is_set():
            os.rename(here, away)
            os.rename(away, here)
            moves[0] += 1

    def read() -> None:
        for _ in range(60):
            survey = limits.survey(root)
            for bound in survey.bounds:
                if bound.source.startswith("cgroup"):
                    assert (bound.limit, bound.used) == (GIB, 80 * MIB)
            assert all(isinstance(error, FileNotFoundError) for error in survey.errors)

    mover = start(move)
    until(lambda: moves[0] > 1, "a move")
    try:
        together([read] * 4)
    finally:
        stop.set()
        mover.result()


def test_hundreds_of_threads_of_readings() -> None:
    def read() -> None:
        for _ in range(2):
            assert process.rss() > 0
            survey = limits.survey()
            assert survey.binding is not None
            assert survey.binding.limit > 0

    together([read] * 200)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_no_descriptor_left(run_python: Callable[..., object]) -> None:
    """The error names the file, and the next reading works."""
    code = """
        import os, resource
        import mempool.accounting
        from mempool._system import limits, process
        mempool.memory_usage()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        for call in (process.rss, process.memory, mempool.memory_usage, limits.binding):
            try:
                call()
            except OSError as error:
                assert error.errno == 24 and str(error.filename).startswith("/proc/"), repr(error)
            else:
                raise AssertionError(call)
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        assert mempool.memory_usage().rss > 0
    """
    run_python(code)


def test_names_with_other_line_ends(tmp_path: Path) -> None:
    root = tree.group_v2(tmp_path, "a\rb", limit=GIB)
    tree.plant(root, {"proc/self/cgroup": "0::/a\rb\n", "proc/self/mountinfo": tree.V2_MOUNT})
    group = cgroup.find(root)
    assert group is not None
    assert group.path.endswith("/a\rb")
