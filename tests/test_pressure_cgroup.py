"""Pressure in control groups: which limit counts, what events mean, what becomes of groups that change or go."""

import math
import os
import select
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import system_tree as tree
from mempool.pressure.levels import Level
from mempool.pressure.sources import CgroupMemory, EventSource, Reading
from pressure_kit import Clock
from support import together, until
from system_tree import GIB, MIB

POLLPRI = 2
KERNEL_SAYS = POLLPRI | 8  # with POLLERR, as kernfs does


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    tree.member_v2(tmp_path, "/pod/job")
    tree.group_v2(tmp_path, "pod/job", limit=200 * MIB)
    tree.group_v2(tmp_path, "pod", current=900 * MIB)
    return tmp_path


def count(root: Path, group: str = "pod/job", **more: int) -> None:
    """Change what the kernel counted: 3 high, 7 max, 2 oom, 1 oom_kill at first."""
    counts = {"low": 0, "high": 3, "max": 7, "oom": 2, "oom_kill": 1} | more
    text = "".join(f"{name} {number}\n" for name, number in counts.items())
    tree.plant(root, {f"sys/fs/cgroup/{group}/memory.events": text})


def test_the_working_set_against_the_limit(v2: Path) -> None:
    source = CgroupMemory(root=v2)
    assert source.read() == Reading(80 * MIB, 200 * MIB)
    assert isinstance(source, EventSource)
    assert (source.name, source.scope) == ("cgroup", "shared")


def test_the_largest_share_counts_not_the_least_room(v2: Path) -> None:
    """120 MiB are left below, 144 above; but above it is 86 percent, and nearer to being killed."""
    tree.group_v2(v2, "pod", current=900 * MIB, inactive=0, limit=1044 * MIB)
    assert CgroupMemory(root=v2).read() == Reading(900 * MIB, 1044 * MIB)


def test_a_high_mark_is_a_limit(v2: Path) -> None:
    tree.group_v2(v2, "pod/job", limit=200 * MIB, high=100 * MIB)
    assert CgroupMemory(root=v2).read() == Reading(80 * MIB, 100 * MIB)


def test_no_limit(v2: Path) -> None:
    tree.group_v2(v2, "pod/job")
    assert CgroupMemory(root=v2).read() == Reading(80 * MIB, None)


def test_a_limit_of_nothing_is_the_nearest(v2: Path) -> None:
    tree.group_v2(v2, "pod", limit=0)
    assert CgroupMemory(root=v2).read().limit == 0


def test_version_1(tmp_path: Path) -> None:
    tree.member_v1(tmp_path, "/job")
    tree.group_v1(tmp_path, "job", limit=GIB)
    tree.group_v1(tmp_path)
    source = CgroupMemory(root=tmp_path, clock=Clock())
    assert source.read() == Reading(80 * MIB, GIB)
    with pytest.raises(OSError, match="version 1 tells no events"):
        source.open()
    control = tmp_path / "sys/fs/cgroup/memory/job/memory.oom_control"
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert source.read() == Reading(80 * MIB, GIB, Level.CRITICAL)


def test_no_group_says_so(tmp_path: Path) -> None:
    tree.process(tmp_path)
    source = CgroupMemory(root=tmp_path)
    with pytest.raises(OSError, match="no control group"):
        source.read()
    with pytest.raises(OSError, match="no control group"):
        source.open()


@pytest.mark.parametrize("name", ["memory.current", "memory.max", "memory.stat", "memory.events", "memory.high"])
@pytest.mark.parametrize("content", ["", "nonsense\n", "-1\n", "1 2 3 x\n"])
def test_nonsense_is_an_error_that_names_the_file(v2: Path, name: str, content: str) -> None:
    file = v2 / "sys/fs/cgroup/pod/job" / name
    if name == "memory.events" and not content:
        pytest.skip("an empty list of events is a list of none")
    file.write_text(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        CgroupMemory(root=v2).read()


@pytest.mark.parametrize("name", ["memory.high", "memory.max"])
def test_a_group_that_has_no_such_mark(v2: Path, name: str) -> None:
    (v2 / "sys/fs/cgroup/pod" / name).unlink()
    assert CgroupMemory(root=v2).read() == Reading(80 * MIB, 200 * MIB)


def test_a_file_that_is_missing(v2: Path) -> None:
    (v2 / "sys/fs/cgroup/pod/job/memory.events").unlink()
    source = CgroupMemory(root=v2)
    assert source.read() == Reading(80 * MIB, 200 * MIB)
    with pytest.raises(FileNotFoundError, match=r"memory\.events"):
        source.open()
    assert source.fileno() == -1


def test_the_process_is_moved(v2: Path) -> None:
    """The group that was left is gone at once; one that stays is noticed within ten seconds."""
    clock = Clock()
    source = CgroupMemory(root=v2, clock=clock)
    source.read()
    tree.group_v2(v2, "other", current=30 * MIB, limit=40 * MIB, inactive=0)
    tree.member_v2(v2, "/other")
    assert source.read().limit == 200 * MIB
    clock.pass_(10)
    assert source.read() == Reading(30 * MIB, 40 * MIB)
    tree.member_v2(v2, "/pod/job")
    for file in (v2 / "sys/fs/cgroup/other").iterdir():
        file.unlink()
    assert source.read() == Reading(80 * MIB, 200 * MIB)


def test_out_of_memory_is_critical_for_a_while(v2: Path) -> None:
    clock = Clock()
    source = CgroupMemory(root=v2, clock=clock, hold="10s")
    assert source.read().level is None  # what was counted before we looked is history
    count(v2, oom_kill=2)
    assert source.read().level is Level.CRITICAL
    clock.pass_(9.9)
    assert source.read().level is Level.CRITICAL
    clock.pass_(0.1)
    assert source.read().level is None


def test_a_limit_that_was_run_into_is_no_level_but_a_reason_to_look(v2: Path) -> None:
    clock = Clock()
    source = CgroupMemory(root=v2, clock=clock)
    source.open()
    assert source.fileno() >= 0
    assert source.poll_events == POLLPRI
    count(v2, max=8)
    assert source.handle(KERNEL_SAYS)
    count(v2, max=9)
    assert not source.handle(KERNEL_SAYS)  # a storm is not told event by event
    clock.pass_(0.1)
    count(v2, max=9, high=4)
    assert source.handle(KERNEL_SAYS)
    assert source.read().level is None
    count(v2, max=9, high=4, low=3)
    clock.pass_(1)
    assert not source.handle(KERNEL_SAYS)  # below `low` it is protected: that is no shortage
    count(v2, max=9, high=4, low=3, oom=3)
    assert source.handle(KERNEL_SAYS)
    assert source.read().level is Level.CRITICAL
    source.close()
    source.close()
    assert source.fileno() == -1
    assert not source.handle(KERNEL_SAYS)


def test_events_are_those_of_the_group_whose_limit_is_nearest(v2: Path) -> None:
    """The kernel counts running into a limit where the limit is, not below."""
    tree.group_v2(v2, "pod", current=900 * MIB, inactive=0, limit=GIB)
    source = CgroupMemory(root=v2, clock=Clock())
    source.open()
    count(v2, "pod/job", max=100)
    assert not source.handle(KERNEL_SAYS)
    count(v2, "pod", max=100)
    assert source.handle(KERNEL_SAYS)


def test_events_that_make_no_sense_end_the_watch(v2: Path) -> None:
    source = CgroupMemory(root=v2)
    source.open()
    tree.plant(v2, {"sys/fs/cgroup/pod/job/memory.events": "max lots\n"})
    with pytest.raises(OSError, match=r"cannot be watched.*max lots|cannot be watched.*lots"):
        source.handle(KERNEL_SAYS)
    source.close()
    with pytest.raises(OSError, match="cannot be watched"):
        source.open()
    tree.plant(v2, {"sys/fs/cgroup/pod/job/memory.max": "lots\n"})
    with pytest.raises(OSError, match=r"memory\.max"):
        source.open()


def test_opening_twice_watches_once(v2: Path) -> None:
    def watches() -> int:
        if not os.path.isdir("/proc/self/fd"):
            return int(source.fileno() >= 0)
        links = Path("/proc/self/fd").iterdir()
        return sum(os.path.islink(link) and os.readlink(link).startswith(str(v2.resolve())) for link in links)

    source = CgroupMemory(root=v2)
    assert watches() == 0
    for _ in range(3):
        source.open()
        assert watches() == 1
    source.close()
    assert watches() == 0


def test_many_threads_read_one_source(v2: Path) -> None:
    source = CgroupMemory(root=v2)

    def readings() -> set[Reading]:
        return {source.read() for _ in range(50)}

    assert set().union(*together([readings] * 20)) == {Reading(80 * MIB, 200 * MIB)}


def test_while_files_change_a_reading_is_one_of_the_figures(v2: Path) -> None:
    source = CgroupMemory(root=v2)
    file = v2 / "sys/fs/cgroup/pod/job/memory.max"

    def change() -> None:
        for number in range(200):
            other = file.with_suffix(".new")
            other.write_text(f"{(200 + number) * MIB}\n")
            other.replace(file)

    def look() -> set[int | None]:
        return {source.read().limit for _ in range(200)}

    _, limits = together([change, look])
    assert limits <= {(200 + number) * MIB for number in range(200)}


@pytest.mark.skipif(not os.path.exists("/sys/fs/cgroup/cgroup.controllers"), reason="no v2 hierarchy here")
def test_a_real_group_can_be_polled() -> None:
    source = CgroupMemory()
    try:
        source.open()
    except OSError as error:
        pytest.skip(str(error))
    poll = select.poll()
    poll.register(source.fileno(), source.poll_events)

    def silent() -> bool:
        """A group that is at its limit tells of it again and again: each event is gone once it was handled."""
        for _, events in poll.poll(0):
            assert events == KERNEL_SAYS
            source.handle(events)
        return poll.poll(0) == []

    until(silent, "silence")
    source.close()


SIZES = st.integers(0, 1000)
GROUP = st.tuples(SIZES, SIZES, st.none() | SIZES, st.none() | SIZES)


@given(st.lists(GROUP, min_size=1, max_size=4))
@settings(max_examples=50)
def test_the_nearest_limit_of_any_hierarchy(groups: list[tuple[int, int, int | None, int | None]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = ["/".join("abcd"[:depth]) for depth in range(1, len(groups) + 1)]
        tree.member_v2(root, "/" + names[-1])
        shares = []
        for name, (current, inactive, limit, high) in zip(names, groups, strict=True):
            marks = {"limit": "max" if limit is None else limit, "high": "max" if high is None else high}
            tree.group_v2(root, name, current=current, inactive=inactive, **marks)  # type: ignore[arg-type]
            used = max(0, current - inactive)
            shares += [used / mark if mark else math.inf for mark in (limit, high) if mark is not None]
        reading = CgroupMemory(root=root).read()
        assert reading.used is not None
        if not shares:
            assert reading == Reading(max(0, groups[-1][0] - groups[-1][1]), None)
        else:
            assert reading.limit is not None
            assert (reading.used / reading.limit if reading.limit else math.inf) == max(shares)
