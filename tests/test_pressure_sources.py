"""The plain sources of pressure, and all that is watched by default, against trees of files."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import system_tree as tree
from mempool import Account, BufferPool
from mempool.accounting import root_account
from mempool.pressure.levels import Level
from mempool.pressure.sources import (
    AccountUsage,
    CallableSource,
    EventSource,
    ProcessMemory,
    Reading,
    Rlimits,
    Source,
    SystemMemory,
    default_sources,
)
from mempool.pressure.sources.watching import Alarm
from pressure_kit import Clock
from support import Strange
from system_tree import GIB, MIB

resource = pytest.importorskip("resource")

PROC = "/proc/self/statm"
needs_proc = pytest.mark.skipif(not os.path.exists(PROC), reason="no /proc")


def test_the_process(tmp_path: Path) -> None:
    tree.process(tmp_path, rss=20 * MIB)
    assert ProcessMemory(root=tmp_path).read() == Reading(20 * MIB, None)
    assert ProcessMemory("1 GiB", root=str(tmp_path)).read() == Reading(20 * MIB, GIB)
    tree.process(tmp_path, rss=30 * MIB)
    assert ProcessMemory(root=tmp_path).read().used == 30 * MIB
    assert (ProcessMemory().name, ProcessMemory().scope) == ("process", "own")


@pytest.mark.parametrize(
    ("limit", "kind"), [(0, ValueError), (-1, ValueError), ("much", ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_a_limit_that_makes_no_sense(limit: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"limit|much"):
        ProcessMemory(limit)


def test_limits_of_the_process(tmp_path: Path) -> None:
    tree.process(tmp_path, space=64 * MIB, data=16 * MIB)
    for which, name, used in (("address_space", "RLIMIT_AS", 64 * MIB), ("data", "RLIMIT_DATA", 16 * MIB)):
        source = Rlimits(which, root=tmp_path)  # type: ignore[arg-type]
        soft, hard = resource.getrlimit(getattr(resource, name))
        expected = None if soft == resource.RLIM_INFINITY else soft
        assert source.read() == Reading(used, expected)
        assert (source.name, source.scope) == (f"rlimit:{which}", "shared")
        assert (soft, hard) == resource.getrlimit(getattr(resource, name))
    with pytest.raises(ValueError, match="'stack'"):
        Rlimits("stack")  # type: ignore[arg-type]


@pytest.mark.nosan
@needs_proc
def test_a_limit_that_is_set_while_running_is_seen(run_python: Callable[..., Any]) -> None:
    run_python(
        """
        import resource
        from mempool.pressure.sources import Rlimits
        for which, name in (("address_space", "RLIMIT_AS"), ("data", "RLIMIT_DATA")):
            source = Rlimits(which)
            assert source.read().limit is None, source.read()
            resource.setrlimit(getattr(resource, name), (8 << 30, 8 << 30))
            reading = source.read()
            assert reading.limit == 8 << 30
            assert 0 < reading.used < 8 << 30
        """
    )


def test_the_machine(tmp_path: Path) -> None:
    tree.machine(tmp_path, 16 * GIB, 12 * GIB)
    source = SystemMemory(root=tmp_path)
    assert source.read() == Reading(4 * GIB, 16 * GIB)
    assert (source.name, source.scope) == ("machine", "shared")


@pytest.mark.parametrize("content", [None, "", "MemTotal: lots kB\nMemAvailable: 1 kB\n", "MemTotal: 5 kB\n"])
def test_what_cannot_be_read_names_its_file(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        tree.plant(tmp_path, {"proc/meminfo": content, "proc/self/statm": content, "proc/self/status": content})
    for source in (SystemMemory(root=tmp_path), ProcessMemory(root=tmp_path), Rlimits("data", root=tmp_path)):
        with pytest.raises((OSError, ValueError), match=r"meminfo|statm|status"):
            source.read()


def test_accounts() -> None:
    account = Account("images", limit="4 MiB")
    source = AccountUsage(account)
    assert (source.name, source.scope) == ("account:images", "own")
    with BufferPool(account=account) as pool, pool.acquire(MIB):
        assert source.read() == Reading(account.used, 4 * MIB)
        assert account.used >= MIB
    account.limit = None
    assert source.read().limit is None
    assert AccountUsage().read().used == root_account().used
    with pytest.raises(TypeError, match="'images'"):
        AccountUsage("images")  # type: ignore[arg-type]


# ---- functions


def gauge() -> tuple[int, int]:
    return 3 * MIB, 4 * MIB


class Index:
    def __index__(self) -> int:
        return 7


def test_a_function() -> None:
    source = CallableSource(gauge)
    assert (source.name, source.scope, source.read()) == ("gauge", "own", Reading(3 * MIB, 4 * MIB))
    assert CallableSource(gauge, "graphics", scope="shared").scope == "shared"
    assert CallableSource(lambda: (None, None)).read() == Reading()
    assert CallableSource(lambda: (Index(), 9)).read() == Reading(7, 9)
    assert CallableSource(lambda: Reading(level=Level.HIGH)).read() == Reading(level=Level.HIGH)


@pytest.mark.parametrize(
    "answer",
    [None, 5, (1,), (1, 2, 3), [1, 2], (1.5, 2), (True, 2), ("1", 2), (-1, 2), (1, -2), Strange(), Reading(used=-1)],
    ids=repr,
)
def test_an_answer_that_makes_no_sense(answer: object) -> None:
    with pytest.raises(ValueError, match=r"bytes|negative|must return"):
        CallableSource(lambda: answer).read()


def test_what_a_function_raises() -> None:
    def fails(error: BaseException) -> Callable[[], object]:
        def function() -> object:
            raise error

        return function

    with pytest.raises(ValueError, match=r"card raised KeyError\('gone'\)") as caught:
        CallableSource(fails(KeyError("gone")), "card").read()
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(ConnectionResetError):
        CallableSource(fails(ConnectionResetError("away"))).read()
    with pytest.raises(KeyboardInterrupt):
        CallableSource(fails(KeyboardInterrupt())).read()


@pytest.mark.parametrize(("bad", "kind"), [(True, TypeError), ("HIGH", TypeError), (1.0, TypeError), (7, ValueError)])
def test_a_level_that_is_none(bad: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=repr(bad)):
        Reading(level=bad)
    assert Reading(level=2).level is Level.HIGH  # type: ignore[arg-type]


def test_no_function() -> None:
    with pytest.raises(TypeError, match="5"):
        CallableSource(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'mine'"):
        CallableSource(gauge, scope="mine")  # type: ignore[arg-type]


# ---- all together


def named(root: Path, environ: dict[str, str] | None = None) -> dict[str, Source]:
    sources = default_sources(root, environ=environ or {})
    assert len({source.name for source in sources}) == len(sources)
    assert all(isinstance(source, Source) for source in sources)
    assert all(source.scope in ("own", "shared") for source in sources)
    return {source.name: source for source in sources}


EVERYWHERE = [
    "rlimit:address_space",
    "rlimit:data",
    "machine",
    "process",
    "account:root",
]


def test_all_of_a_container(tmp_path: Path) -> None:
    tree.member_v2(tmp_path)
    tree.group_v2(tmp_path, limit=GIB)
    tree.machine(tmp_path)
    tree.process(tmp_path)
    tree.plant(tmp_path, {"proc/pressure/memory": "some avg10=11.00 avg60=0.00 avg300=0.00 total=0\n"})
    sources = named(tmp_path)
    assert list(sources) == ["systemd", "cgroup", "psi:cgroup", "psi:machine", *EVERYWHERE]
    assert sources["cgroup"].read() == Reading(80 * MIB, GIB)
    assert sources["psi:cgroup"].read().level is Level.NORMAL
    assert sources["psi:machine"].read().level is Level.ELEVATED
    assert [name for name, source in sources.items() if isinstance(source, EventSource)] == [
        "systemd",
        "cgroup",
        "psi:cgroup",
        "psi:machine",
    ]


def test_stalls_of_the_machine_ask_for_idle_memory_alone(tmp_path: Path) -> None:
    tree.member_v2(tmp_path)
    tree.group_v2(tmp_path)
    tree.plant(tmp_path, {"proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"})
    levels = []
    for name in ("psi:cgroup", "psi:machine"):
        source: Any = named(tmp_path)[name]
        file = Path(source.path)
        source.open()
        file.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=900000\n")
        assert source.handle(source.poll_events)
        levels.append(source.read().level)
        source.close()
    assert levels == [Level.HIGH, Level.ELEVATED]


def test_a_manager_that_turns_it_off(tmp_path: Path) -> None:
    assert list(named(tmp_path, {"MEMORY_PRESSURE_WATCH": "/dev/null"})) == ["systemd", "cgroup", *EVERYWHERE]


def test_an_empty_tree_is_explained(tmp_path: Path) -> None:
    """Whatever is not there says so; what needs no file goes on."""
    said = {}
    for name, source in named(tmp_path).items():
        try:
            source.read()
        except (OSError, ValueError) as error:
            said[name] = str(error)
    assert set(said) == {"systemd", "cgroup", "psi:machine", *EVERYWHERE} - {"account:root"}
    assert all(said.values())


def test_a_broken_group_does_not_hide_the_rest(tmp_path: Path) -> None:
    tree.plant(tmp_path, {"proc/self/cgroup": "nonsense\n", "proc/self/mountinfo": ""})
    assert list(named(tmp_path)) == ["systemd", "cgroup", "psi:machine", *EVERYWHERE]
    with pytest.raises(ValueError, match="nonsense"):
        named(tmp_path)["cgroup"].read()


@needs_proc
def test_here() -> None:
    read = {}
    for source in default_sources():
        with contextlib.suppress(OSError, ValueError):
            read[source.name] = source.read()
    assert read["process"].used is not None
    assert read["process"].used > MIB
    assert read["machine"].limit is not None
    assert read["machine"].limit > MIB


# ---- what an event means, for how long


@given(st.lists(st.tuples(st.sampled_from(Level), st.floats(0, 5)), max_size=30))
def test_an_alarm_holds_the_highest_of_what_still_counts(steps: list[tuple[Level, float]]) -> None:
    clock = Clock(0.0)
    alarm = Alarm(4.0, clock)
    level, since = Level.NORMAL, -100.0
    for ring, seconds in steps:
        counts = clock.now - since < 4.0
        news = not (counts and level >= ring and clock.now - since < 0.4)
        assert alarm.ring(ring) is news
        if news:
            level, since = max(ring, level) if counts else ring, clock.now
        assert alarm.level() is level
        clock.pass_(seconds)
        assert alarm.level() is (level if clock.now - since < 4.0 else Level.NORMAL)
