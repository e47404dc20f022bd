"""Pressure stall information: what is read, when a trigger is believed, and what the kernel itself accepts."""

import os
import select
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mempool.pressure.levels import Level
from mempool.pressure.sources import EventSource, PressureStall, Reading
from mempool.pressure.sources.stall import Stall, read_stalls
from pressure_kit import Clock, armed_by_urgent_data
from support import DEADLINE, together

POLLPRI, POLLERR = 2, 8
REAL = "/proc/pressure/memory"

pytestmark = pytest.mark.skipif(not hasattr(select, "poll"), reason="no poll")


def write(path: Path, avg10: float = 0.0, total: int = 0, full: float = 0.0) -> Path:
    path.write_text(
        f"some avg10={avg10:.2f} avg60=1.50 avg300=0.25 total={total}\nfull avg10={full:.2f} avg60=0.00 avg300=0.00 total=7\n"
    )
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "memory.pressure")


def test_what_the_kernel_writes(file: Path) -> None:
    write(file, 12.34, 99)
    assert read_stalls(str(file)) == {"some": Stall(12.34, 1.5, 0.25, 99), "full": Stall(0.0, 0.0, 0.0, 7)}


@pytest.mark.parametrize(
    ("percent", "level"),
    [(0, 0), (9.99, 0), (10, 1), (29.99, 1), (30, 2), (59.99, 2), (60, 3), (100, 3)],
)
def test_levels_of_the_average(file: Path, percent: float, level: int) -> None:
    source = PressureStall(file)
    assert isinstance(source, EventSource)
    assert source.scope == "shared"
    assert PressureStall(write(file, percent)).read() == Reading(level=Level(level))
    assert PressureStall(write(file, 0, full=percent), kind="full").read().level == level
    assert PressureStall(file, averages=(200, 200, 300)).read().level is Level.NORMAL


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "some\n",
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        "some avg10=0.00 avg60=0.00 avg300=0.00\n",
        "some avg10=much avg60=0.00 avg300=0.00 total=0\n",
        "some avg10=nan avg60=0.00 avg300=0.00 total=0\n",
        "some avg10=-1 avg60=0.00 avg300=0.00 total=0\n",
        "some avg10=inf avg60=0.00 avg300=0.00 total=0\n",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=-5\n",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=max\n",
        "\udcff\udcfe",
    ],
)
def test_nonsense_is_an_error_that_names_the_file(file: Path, text: str) -> None:
    file.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"memory\.pressure is no pressure stall information"):
        PressureStall(file).read()


@given(st.binary(max_size=200) | st.text("some avg10=full.\n total-", max_size=200).map(str.encode))
def test_any_bytes_are_figures_or_an_error(content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        stalls, said = {}, ""
        try:
            stalls = read_stalls(file.name)
        except ValueError as error:
            said = str(error)
        assert stalls or file.name in said
        assert all(stall.total >= 0 and stall.avg10 >= 0 for stall in stalls.values())


def test_what_is_missing(tmp_path: Path, file: Path) -> None:
    source = PressureStall(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none"):
        source.read()
    with pytest.raises(FileNotFoundError, match="none"):
        source.open()
    assert source.fileno() == -1
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        PressureStall(tmp_path).read()
    file.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")  # before Linux 5.13 for CPUs, say
    with pytest.raises(ValueError, match="no line 'full'"):
        PressureStall(file, kind="full").read()


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"kind": "any"}, ValueError, "'any'"),
        ({"window": "100ms"}, ValueError, "0.1"),
        ({"window": 11}, ValueError, "11"),
        ({"stall": 3, "window": 2}, ValueError, "3"),
        ({"stall": 0}, ValueError, "0"),
        ({"stall": None}, TypeError, "None"),
        ({"window": True}, TypeError, "True"),
        ({"averages": (30, 20, 40)}, ValueError, "30"),
        ({"averages": (0, 20, 40)}, ValueError, "0"),
        ({"averages": (float("nan"), 20, 40)}, ValueError, "nan"),
        ({"averages": (20, 40)}, ValueError, "unpack"),
        ({"level": 9}, ValueError, "9"),
    ],
)
def test_bad_options(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        PressureStall(REAL, **options)


# ---- the trigger


def test_the_trigger_ends_with_its_nul(file: Path) -> None:
    """The kernel puts its own NUL over the last byte: without one, the window would lose a digit."""
    source = PressureStall(file, stall="150ms", window="2s")
    source.open()
    assert file.read_bytes().startswith(b"some 150000 2000000\0")
    source.close()
    source = PressureStall(file, kind="full", stall="70ms", window=10)
    source.open()
    assert file.read_bytes().startswith(b"full 70000 10000000\0")
    source.close()


def test_events_are_compared_with_the_time_lost(file: Path) -> None:
    write(file, total=1_000_000)
    clock = Clock()
    source = PressureStall(file, stall="150ms", window="2s", clock=clock)
    source.open()
    write(file, total=1_149_999)
    assert not source.handle(POLLPRI)  # just armed, and fired without cause
    assert source.read().level is Level.NORMAL
    write(file, total=1_150_000)
    assert source.handle(POLLPRI)
    assert source.read().level is Level.HIGH
    clock.pass_(2)
    assert not source.handle(POLLPRI)  # nothing was lost since
    write(file, total=1_150_001)
    assert source.handle(POLLPRI)
    clock.pass_(3.999)
    assert source.read().level is Level.HIGH
    clock.pass_(0.001)
    assert source.read().level is Level.NORMAL


def test_average_and_event_the_higher_counts(file: Path) -> None:
    clock = Clock()
    source = PressureStall(file, level=Level.ELEVATED, clock=clock)
    source.open()
    assert source.handle(0) is False
    write(file, 35, total=10**9)
    assert source.handle(POLLPRI)
    assert source.read().level is Level.HIGH
    write(file, 0, total=10**9)
    assert source.read().level is Level.ELEVATED


def test_a_clock_that_goes_back_ends_an_event(file: Path) -> None:
    clock = Clock()
    source = PressureStall(file, clock=clock)
    source.open()
    write(file, total=10**9)
    assert source.handle(POLLPRI)
    clock.pass_(-500)
    assert source.read().level is Level.NORMAL
    clock.pass_(5000)
    assert source.read().level is Level.NORMAL


def test_a_storm_is_told_now_and_then(file: Path) -> None:
    clock = Clock()
    source = PressureStall(file, clock=clock)
    source.open()
    told = 0
    for number in range(100):
        write(file, total=(number + 1) * 10**6)
        told += source.handle(POLLPRI)
        clock.pass_(0.04)
    assert 9 <= told <= 11


def test_a_dead_trigger_says_so(file: Path) -> None:
    source = PressureStall(file)
    source.open()
    with pytest.raises(OSError, match="the trigger is dead"):
        source.handle(POLLPRI | POLLERR)
    assert source.fileno() >= 0  # whoever polls takes it out of its epoll before it is closed
    source.close()
    assert source.fileno() == -1
    source.open()
    assert source.fileno() >= 0
    source.close()


def test_totals_that_cannot_be_read_do_not_hide_events(file: Path) -> None:
    source = PressureStall(file)
    source.open()
    file.unlink()
    assert source.handle(POLLPRI)


def test_an_event_wakes_a_poll(file: Path) -> None:
    """A socket with urgent data in the place of the kernel's file: the only other thing that raises POLLPRI."""
    source = PressureStall(file)
    with armed_by_urgent_data(source) as fire:
        poll = select.poll()
        poll.register(source.fileno(), source.poll_events)
        assert poll.poll(0) == []
        write(file, total=10**9)
        fire()
        [(_, events)] = poll.poll(DEADLINE * 1000)
        assert source.handle(events)
        assert source.read().level is Level.HIGH


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_does_not_take_the_events_of_its_parent(file: Path) -> None:
    source = PressureStall(file)
    source.open()
    mine = source.fileno()
    pid = os.fork()
    if pid == 0:
        hidden = source.fileno() == -1
        source.open()
        os._exit(0 if hidden and source.fileno() >= 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert source.fileno() == mine
    os.fstat(mine)
    source.close()


def test_many_threads_close_one_source(file: Path) -> None:
    """A descriptor that is closed twice may be somebody else's the second time."""
    source = PressureStall(file)
    for _ in range(50):
        source.open()
        together([source.close] * 8)
        assert source.fileno() == -1


def test_a_descriptor_goes_with_its_source(file: Path) -> None:
    source = PressureStall(file)
    source.open()
    fd = source.fileno()
    assert os.get_inheritable(fd) is False
    del source
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


# ---- the kernel of this machine


def real(**options: Any) -> PressureStall:
    source = PressureStall(REAL, **options)
    try:
        source.read()
        source.open()
    except OSError as error:
        pytest.skip(f"no trigger here: {error}")
    return source


def test_the_kernel_accepts_our_trigger() -> None:
    source = real()
    poll = select.poll()
    poll.register(source.fileno(), source.poll_events)
    for _, events in poll.poll(0):
        assert not events & POLLERR  # as it would say without a trigger
    assert source.read().level is not None
    source.close()


def test_the_kernel_refuses_and_says_what() -> None:
    real().close()
    source = PressureStall(REAL)
    source._trigger._text = b"some 150000 20000000\0"
    with pytest.raises(OSError, match="for the trigger b'some 150000 20000000"):
        source.open()
    assert source.fileno() == -1
