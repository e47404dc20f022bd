"""Which limit binds, and that one that cannot be read hides no other."""

from collections.abc import Callable
from pathlib import Path

import pytest

import system_tree as tree
from mempool._system import limits, rlimits
from mempool._system.limits import Bound
from system_tree import GIB, MIB


@pytest.fixture(autouse=True)
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests may be limited."""
    monkeypatch.setattr(rlimits, "address_space", lambda: None)
    monkeypatch.setattr(rlimits, "data", lambda: None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tree.process(tmp_path, space=64 * MIB, data=16 * MIB)
    tree.machine(tmp_path, 16 * GIB, 12 * GIB)
    return tmp_path


def test_the_machine_binds_where_nothing_else_does(root: Path) -> None:
    assert limits.binding(root) == Bound(16 * GIB, "machine", 4 * GIB)
    assert limits.binding(tree.member_v2(tree.group_v2(root))).source == "machine"


def test_the_group_binds(root: Path) -> None:
    tree.member_v2(tree.group_v2(root, limit=512 * MIB))
    bound = limits.binding(root)
    assert bound == Bound(512 * MIB, f"cgroup {root}/sys/fs/cgroup", 80 * MIB)
    assert bound.available == 432 * MIB


def test_what_will_be_hit_first_binds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small other limits are."""
    tree.member_v2(tree.group_v2(root, limit=512 * MIB))
    tree.machine(root, 16 * GIB, 100 * MIB)
    survey = limits.survey(root)
    assert survey.binding == Bound(16 * GIB, "machine", 16 * GIB - 100 * MIB)
    assert survey.smallest is not None
    assert survey.smallest.limit == 512 * MIB
    monkeypatch.setattr(rlimits, "address_space", lambda: 70 * MIB)
    monkeypatch.setattr(rlimits, "data", lambda: 17 * MIB)
    assert limits.binding(root) == Bound(17 * MIB, "RLIMIT_DATA", 16 * MIB)
    monkeypatch.setattr(rlimits, "address_space", lambda: 65 * MIB)
    assert [bound.source for bound in limits.survey(root).bounds][1:] == ["RLIMIT_AS", "RLIMIT_DATA", "machine"]
    assert limits.binding(root) == Bound(17 * MIB, "RLIMIT_DATA", 16 * MIB)
    monkeypatch.setattr(rlimits, "address_space", lambda: 60 * MIB)
    assert limits.binding(root) == Bound(60 * MIB, "RLIMIT_AS", 64 * MIB)
    assert limits.binding(root).available == 0


def test_what_cannot_be_read_hides_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.member_v2(tree.group_v2(root, limit=512 * MIB))
    tree.plant(root, {"sys/fs/cgroup/memory.current": "x\n"})
    survey = limits.survey(root)
    assert [bound.source for bound in survey.bounds] == ["machine"]
    assert "memory.current" in str(survey.errors[0])
    monkeypatch.setattr(rlimits, "data", lambda: GIB)
    (root / "proc/self/status").unlink()
    (root / "proc/meminfo").unlink()
    tree.group_v2(root, limit=512 * MIB)
    survey = limits.survey(root)
    assert [bound.limit for bound in survey.bounds] == [512 * MIB]
    assert [type(error) for error in survey.errors] == [FileNotFoundError] * 2


def test_nothing_to_read_at_all(tmp_path: Path) -> None:
    survey = limits.survey(tmp_path)
    assert (survey.bounds, survey.binding, survey.smallest) == ((), None, None)
    with pytest.raises(FileNotFoundError, match="meminfo"):
        limits.binding(tmp_path)


def test_a_real_limit_of_the_process(run_python: Callable[..., object]) -> None:
    pytest.importorskip("resource")
    code = """
        import resource
        from mempool._system import limits, process
        limit = process.address_space() + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        bound = limits.binding()
        assert (bound.limit, bound.source) == (limit, "RLIMIT_AS"), bound
        assert 0 < bound.available <= 64 << 20
    """
    run_python(code)
