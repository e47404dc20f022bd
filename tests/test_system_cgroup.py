"""Control groups as the kernel shows them, v1, v2 and both, and as it shows them when something is missing or wrong."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import system_tree as tree
from mempool._system import cgroup
from mempool._system.cgroup import Cgroup, Limit, Tightest
from system_tree import GIB, MIB, UNLIMITED_V1

needs_modes = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read anything")


def found(root: Path) -> Cgroup:
    group = cgroup.find(root)
    assert group is not None
    return group


def v2(root: Path, *, path: str = "/") -> Cgroup:
    return found(tree.member_v2(root, path))


def test_a_namespaced_group(tmp_path: Path) -> None:
    tree.group_v2(tmp_path, limit=GIB, high=800 * MIB)
    group = v2(tmp_path)
    folder = str(tmp_path / "sys/fs/cgroup")
    assert (group.version, group.path, group.levels) == (2, folder, (folder,))
    assert (group.raw_usage(), group.usage()) == (100 * MIB, 80 * MIB)
    assert group.limit() == Limit(GIB, folder)
    assert group.tightest() == Tightest(80 * MIB, GIB, folder)
    assert group.high() == 800 * MIB
    assert group.events() == {"low": 0, "high": 3, "max": 7, "oom": 2, "oom_kill": 1, "oom_group_kill": 0}
    assert group.events_path() == f"{folder}/memory.events"
    assert group.pressure_path() == f"{folder}/memory.pressure"


def test_each_ancestor_is_judged_with_its_own_usage(tmp_path: Path) -> None:
    tree.group_v2(tmp_path, "pod/job/step", current=50 * MIB, inactive=0, limit=200 * MIB, high=300 * MIB)
    tree.group_v2(tmp_path, "pod/job", current=60 * MIB, inactive=0)
    tree.group_v2(tmp_path, "pod", current=990 * MIB, inactive=0, limit=GIB, high=150 * MIB)
    tree.plant(tmp_path, {"sys/fs/cgroup/cgroup.procs": ""})
    group = v2(tmp_path, path="/pod/job/step")
    base = f"{tmp_path}/sys/fs/cgroup"
    assert group.levels == (f"{base}/pod/job/step", f"{base}/pod/job", f"{base}/pod")
    assert group.limit() == Limit(200 * MIB, f"{base}/pod/job/step")
    assert group.tightest() == Tightest(990 * MIB, GIB, f"{base}/pod")
    assert group.high() == 150 * MIB
    assert group.usage(f"{base}/pod") == 990 * MIB
    assert group.events_path(f"{base}/pod") == f"{base}/pod/memory.events"
    assert group.events(f"{base}/pod")["max"] == 7


def test_no_limit_anywhere(tmp_path: Path) -> None:
    tree.group_v2(tmp_path, "a")
    group = v2(tmp_path, path="/a")
    assert (group.limit(), group.tightest(), group.high()) == (None, None, None)


def test_each_call_reads_afresh(tmp_path: Path) -> None:
    tree.group_v2(tmp_path)
    group = v2(tmp_path)
    tree.group_v2(tmp_path, current=5 * MIB, inactive=MIB, limit=7 * MIB)
    assert group.tightest() == Tightest(4 * MIB, 7 * MIB, group.path)


def test_cache_larger_than_usage_leaves_nothing(tmp_path: Path) -> None:
    """The two files are read one after the other, and may change in between."""
    tree.group_v2(tmp_path, current=MIB, inactive=2 * MIB)
    assert v2(tmp_path).usage() == 0


def test_a_group_without_the_controller_is_counted_by_its_ancestor(tmp_path: Path) -> None:
    tree.group_v2(tmp_path, "user", limit=GIB)
    (tmp_path / "sys/fs/cgroup/user/session").mkdir()
    group = v2(tmp_path, path="/user/session")
    assert group.levels == (f"{tmp_path}/sys/fs/cgroup/user",)
    assert group.usage() == 80 * MIB


def test_the_pressure_file_may_be_missing(tmp_path: Path) -> None:
    tree.group_v2(tmp_path)
    (tmp_path / "sys/fs/cgroup/memory.pressure").unlink()
    assert v2(tmp_path).pressure_path() is None


def test_a_group_of_version_one(tmp_path: Path) -> None:
    tree.group_v1(tmp_path, "docker/abc", usage=300 * MIB, limit=512 * MIB, hierarchical=512 * MIB)
    tree.group_v1(tmp_path, "docker", usage=990 * MIB, inactive=0, limit=GIB)
    tree.group_v1(tmp_path)
    group = found(tree.member_v1(tmp_path, "/docker/abc"))
    base = f"{tmp_path}/sys/fs/cgroup/memory"
    assert (group.version, group.levels) == (1, (f"{base}/docker/abc", f"{base}/docker", base))
    assert (group.raw_usage(), group.usage()) == (300 * MIB, 280 * MIB)
    assert group.limit() == Limit(512 * MIB, f"{base}/docker/abc")
    assert group.tightest() == Tightest(990 * MIB, GIB, f"{base}/docker")
    assert group.high() is None
    assert group.events() == {"failcnt": 5, "oom_kill": 1, "under_oom": 0}
    assert group.events_path() == f"{base}/docker/abc/memory.failcnt"
    assert group.pressure_path() is None


def test_limits_of_hidden_ancestors_bind(tmp_path: Path) -> None:
    tree.group_v1(tmp_path, hierarchical=GIB)
    mount = tree.V1_MOUNT.replace(" / ", " /docker/abc ")
    group = found(tree.member_v1(tmp_path, "/docker/abc", mounts=mount))
    assert group.levels == (f"{tmp_path}/sys/fs/cgroup/memory",)
    assert group.limit() == Limit(GIB, group.path)
    assert group.tightest() == Tightest(80 * MIB, GIB, group.path)


def test_ancestors_that_do_not_count_their_children_do_not_bind(tmp_path: Path) -> None:
    tree.group_v1(tmp_path, "a/b/c")
    tree.group_v1(tmp_path, "a/b", limit=GIB)
    tree.group_v1(tmp_path, "a", limit=10, hierarchy=0)
    group = found(tree.member_v1(tmp_path, "/a/b/c"))
    assert [Path(level).name for level in group.levels] == ["c", "b"]
    assert group.limit() == Limit(GIB, group.levels[1])


def test_version_one_without_what_newer_kernels_tell(tmp_path: Path) -> None:
    tree.group_v1(tmp_path, limit=GIB)
    for name in ("memory.oom_control", "memory.use_hierarchy"):
        (tmp_path / "sys/fs/cgroup/memory" / name).unlink()
    tree.plant(tmp_path, {"sys/fs/cgroup/memory/memory.stat": f"inactive_file {MIB}\n"})
    group = found(tree.member_v1(tmp_path))
    assert group.events() == {"failcnt": 5}
    assert group.tightest() == Tightest(99 * MIB, GIB, group.path)


@pytest.mark.parametrize("number", [UNLIMITED_V1, (1 << 64) - 1, 1 << 60])
def test_what_is_no_limit_in_version_one(tmp_path: Path, number: int) -> None:
    tree.group_v1(tmp_path, limit=number)
    assert found(tree.member_v1(tmp_path)).limit() is None


def test_hybrid_counts_where_the_controller_is(tmp_path: Path) -> None:
    """The stall information comes from the v2 tree all the same."""
    tree.group_v1(tmp_path, "job", limit=GIB)
    tree.plant(tmp_path, {"sys/fs/cgroup/unified/job/memory.pressure": ""})
    unified = tree.V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    group = found(tree.member_v1(tmp_path, "/job", mounts=unified + tree.V1_MOUNT, more="0::/job\n"))
    assert (group.version, group.path) == (1, f"{tmp_path}/sys/fs/cgroup/memory/job")
    assert group.pressure_path() == f"{tmp_path}/sys/fs/cgroup/unified/job/memory.pressure"


def test_hybrid_with_the_controller_in_version_two(tmp_path: Path) -> None:
    tree.group_v2(tmp_path, "job", mount="/sys/fs/cgroup/unified")
    unified = tree.V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    tree.member_v2(tmp_path, mounts=unified)
    tree.plant(tmp_path, {"proc/self/cgroup": "9:name=systemd:/\n4:cpu,cpuacct:/elsewhere\n0::/job\n"})
    assert found(tmp_path).version == 2


@pytest.mark.parametrize(
    ("top", "member", "inside"),
    [("/pod/abc", "/pod/abc", ""), ("/pod/abc", "/pod/abc/job", "job"), ("/", "/", ""), ("/..", "/../x", "x")],
)
def test_what_part_of_the_hierarchy_is_mounted(tmp_path: Path, top: str, member: str, inside: str) -> None:
    tree.group_v2(tmp_path, inside, limit=GIB)
    tree.member_v2(tmp_path, member, mounts=tree.V2_MOUNT.replace(" / ", f" {top} "))
    assert found(tmp_path).path == f"{tmp_path}/sys/fs/cgroup/{inside}".rstrip("/")


@pytest.mark.parametrize(
    ("top", "member"), [("/pod/abc", "/pod/abcd"), ("/pod/abc", "/"), ("/", "/../other"), ("/pod", "/pod/../x")]
)
def test_figures_of_others_are_not_taken_for_ours(tmp_path: Path, top: str, member: str) -> None:
    tree.group_v2(tmp_path, limit=GIB)
    tree.group_v2(tmp_path, "other", limit=GIB)
    tree.group_v2(tmp_path, "../x", limit=GIB)
    tree.member_v2(tmp_path, member, mounts=tree.V2_MOUNT.replace(" / ", f" {top} "))
    assert cgroup.find(tmp_path) is None


def test_names_with_spaces_colons_and_bytes(tmp_path: Path) -> None:
    mount = tree.V2_MOUNT.replace("/sys/fs/cgroup", r"/sys/my\040cgroup\134")
    tree.group_v2(tmp_path, "a:b/c d", mount="/sys/my cgroup\\")
    assert found(tree.member_v2(tmp_path, "/a:b/c d", mounts=mount)).path == f"{tmp_path}/sys/my cgroup\\/a:b/c d"


def test_the_mount_on_top_is_the_one_that_is_seen(tmp_path: Path) -> None:
    tree.group_v2(tmp_path, "job", limit=GIB)
    tree.group_v2(tmp_path, mount="/mnt", limit=MIB)
    below = tree.V2_MOUNT.replace("/sys/fs/cgroup", "/mnt").replace(" / ", " /job ")
    assert found(tree.member_v2(tmp_path, "/job", mounts=below + tree.V2_MOUNT)).limit() == (
        GIB,
        f"{tmp_path}/sys/fs/cgroup/job",
    )
    assert found(tree.member_v2(tmp_path, "/job", mounts=tree.V2_MOUNT + below)).limit() == (MIB, f"{tmp_path}/mnt")


@pytest.mark.parametrize("missing", ["proc/self/cgroup", "proc/self/mountinfo", "sys/fs/cgroup/memory.current"])
def test_no_group_where_something_is_missing(tmp_path: Path, missing: str) -> None:
    tree.member_v2(tree.group_v2(tmp_path))
    (tmp_path / missing).unlink()
    assert cgroup.find(tmp_path) is None


def test_no_group_in_an_empty_tree(tmp_path: Path) -> None:
    assert cgroup.find(tmp_path) is None


def test_a_tree_may_be_named_by_text(tmp_path: Path) -> None:
    tree.member_v2(tree.group_v2(tmp_path))
    assert cgroup.find(str(tmp_path)) == cgroup.find(f"{tmp_path}/") == cgroup.find(tmp_path)


def test_sandboxes_without_stat_and_limit(tmp_path: Path) -> None:
    tree.group_v1(tmp_path)
    for name in ("memory.stat", "memory.limit_in_bytes"):
        (tmp_path / "sys/fs/cgroup/memory" / name).unlink()
    group = found(tree.member_v1(tmp_path))
    assert (group.usage(), group.limit(), group.tightest()) == (100 * MIB, None, None)


NONSENSE = [
    "",
    "\n",
    "max\n",
    "-1\n",
    "1_000\n",
    "12 13\n",
    "0x10\n",
    "1e9\n",
    "\u0663\n",
    "9" * 30,
    b"\xff\xfe\n",
    "1.5\n",
]


@pytest.mark.parametrize("content", NONSENSE)
def test_what_is_no_number_is_an_error_that_names_the_file(tmp_path: Path, content: str | bytes) -> None:
    group = v2(tree.group_v2(tmp_path, limit=GIB))
    tree.plant(tmp_path, {"sys/fs/cgroup/memory.current": content})
    for call in (group.raw_usage, group.usage, group.tightest):
        with pytest.raises(ValueError, match=r"cgroup/memory\.current: expected a number"):
            call()


@pytest.mark.parametrize("content", [text for text in NONSENSE if text != "max\n"])
@pytest.mark.parametrize("name", ["max", "high"])
def test_what_is_no_limit_is_an_error(tmp_path: Path, name: str, content: str | bytes) -> None:
    group = v2(tree.group_v2(tmp_path))
    tree.plant(tmp_path, {f"sys/fs/cgroup/memory.{name}": content})
    with pytest.raises(ValueError, match=rf"cgroup/memory\.{name}: expected a number"):
        group.limit() if name == "max" else group.high()


@pytest.mark.parametrize("content", ["inactive_file\n", "inactive_file x\n", "anon 3\n", "inactive_file  -4\n", ""])
def test_a_stat_without_the_figure_is_an_error(tmp_path: Path, content: str) -> None:
    group = v2(tree.group_v2(tmp_path))
    tree.plant(tmp_path, {"sys/fs/cgroup/memory.stat": content})
    with pytest.raises(ValueError, match=r"memory\.stat"):
        group.usage()


@pytest.mark.parametrize("content", ["low\n", "low x\n", "high 3\nmax many\n"])
def test_events_that_make_no_sense(tmp_path: Path, content: str) -> None:
    group = v2(tree.group_v2(tmp_path))
    tree.plant(tmp_path, {"sys/fs/cgroup/memory.events": content})
    with pytest.raises(ValueError, match=r"memory\.events"):
        group.events()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("proc/self/cgroup", "garbage\n"),
        ("proc/self/cgroup", "0::relative\n"),
        ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw\n"),
        ("proc/self/mountinfo", "30 - cgroup2\n"),
        ("proc/self/mountinfo", b"\x00\xff\n"),
    ],
)
def test_a_process_that_says_nonsense(tmp_path: Path, name: str, content: str | bytes) -> None:
    tree.plant(tree.member_v2(tree.group_v2(tmp_path)), {name: content})
    with pytest.raises(ValueError, match=name):
        cgroup.find(tmp_path)


def test_a_group_that_goes_away_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    group = v2(tree.group_v2(tmp_path, limit=GIB))
    os.rename(tmp_path / "sys", tmp_path / "gone")
    for call in (group.usage, group.raw_usage, group.events):
        with pytest.raises(FileNotFoundError, match=r"sys/fs/cgroup/memory"):
            call()


@pytest.mark.parametrize("name", ["memory.current", "memory.max", "memory.stat"])
def test_what_is_there_but_cannot_be_read_is_an_error(tmp_path: Path, name: str) -> None:
    group = v2(tree.group_v2(tmp_path, limit=GIB))
    (tmp_path / "sys/fs/cgroup" / name).unlink()
    (tmp_path / "sys/fs/cgroup" / name).mkdir()
    with pytest.raises(IsADirectoryError, match=name):
        group.tightest()


@pytest.mark.parametrize("name", ["memory.max", "memory.stat", "memory.high"])
def test_what_was_there_and_is_no_more_is_an_error(tmp_path: Path, name: str) -> None:
    """And not a group without limits."""
    group = v2(tree.group_v2(tmp_path, limit=GIB))
    (tmp_path / "sys/fs/cgroup" / name).unlink()
    calls = {"memory.max": group.limit, "memory.stat": group.usage, "memory.high": group.high}
    with pytest.raises(FileNotFoundError, match=name):
        calls[name]()
    assert v2(tmp_path) != group


@needs_modes
def test_what_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    group = v2(tree.group_v2(tmp_path, limit=GIB))
    (tmp_path / "sys/fs/cgroup/memory.max").chmod(0)
    with pytest.raises(PermissionError, match=r"memory\.max"):
        group.limit()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_in_the_place_of_a_file_does_not_block(tmp_path: Path) -> None:
    group = v2(tree.group_v2(tmp_path))
    (tmp_path / "sys/fs/cgroup/memory.current").unlink()
    os.mkfifo(tmp_path / "sys/fs/cgroup/memory.current")
    with pytest.raises(ValueError, match="expected a number"):
        group.usage()


def test_a_long_list_of_mounts_is_read_to_its_end(tmp_path: Path) -> None:
    many = "".join(f"{n} 23 0:99 / /mnt/{n} rw - tmpfs tmpfs rw\n" for n in range(5000))
    tree.member_v2(tree.group_v2(tmp_path), mounts=many + tree.V2_MOUNT)
    assert found(tmp_path).version == 2


@given(
    st.lists(
        st.tuples(st.integers(0, 1000), st.one_of(st.none(), st.integers(0, 1000)), st.integers(0, 1000)),
        min_size=1,
        max_size=5,
    )
)
def test_groups_against_a_plain_model(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int | None, int]]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    names = ["/".join("abcde"[: depth + 1]) for depth in range(len(rows))]
    for name, (current, limit, inactive) in zip(names, rows, strict=True):
        tree.group_v2(root, name, current=current, limit="max" if limit is None else limit, inactive=inactive)
    group = found(tree.member_v2(root, f"/{names[-1]}"))
    limited = [(limit, max(0, used - cache)) for used, limit, cache in rows if limit is not None]
    smallest, tightest = group.limit(), group.tightest()
    assert (smallest and smallest.limit) == min((limit for limit, _ in limited), default=None)
    assert (tightest and tightest.limit - tightest.used) == min((limit - used for limit, used in limited), default=None)
