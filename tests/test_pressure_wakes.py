"""Sources wake a monitor: from the event to the callback, without waiting for a poll that is due in an hour."""

import asyncio
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import system_tree as tree
from mempool.pressure import Level, PressureEvent, PressureMonitor
from mempool.pressure.events import Events
from mempool.pressure.sources import CgroupMemory, EventSource, PressureStall, SystemdPressure
from mempool.pressure.watching import Watched
from pressure_kit import Clock, armed_by_urgent_data
from support import DEADLINE, until

HOUR = 3600.0

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="events need epoll")

Fire = Callable[[], object]
Setting = AbstractContextManager[tuple[EventSource, Fire]]


@contextmanager
def fifo(folder: Path) -> Iterator[tuple[EventSource, Fire]]:
    path = folder / "fifo"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    yield SystemdPressure(environ={"MEMORY_PRESSURE_WATCH": str(path)}), lambda: os.write(fd, b"!")
    os.close(fd)


@contextmanager
def unix_socket(folder: Path) -> Iterator[tuple[EventSource, Fire]]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        listener.settimeout(DEADLINE)

        def fire() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"!")

        yield SystemdPressure(environ={"MEMORY_PRESSURE_WATCH": listener.getsockname()}), fire


@contextmanager
def stall(folder: Path) -> Iterator[tuple[EventSource, Fire]]:
    file = folder / "memory.pressure"
    file.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    source = PressureStall(file)
    with armed_by_urgent_data(source) as urgent:

        def fire() -> None:
            file.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=900000\n")
            urgent()

        yield source, fire


@pytest.mark.parametrize("setting", [fifo, unix_socket, stall])
def test_an_event_reaches_a_callback_in_a_thread(setting: Callable[[Path], Setting], tmp_path: Path) -> None:
    told = threading.Event()
    events: list[PressureEvent] = []
    with setting(tmp_path) as (source, fire):
        monitor = PressureMonitor(sources=[source], interval=HOUR)

        @monitor.on(Level.HIGH)
        def call(event: PressureEvent) -> None:
            events.append(event)
            told.set()

        with monitor:
            fire()
            assert told.wait(DEADLINE)
    assert (events[0].level, events[0].source) == (Level.HIGH, source.name)
    assert source.fileno() == -1


@pytest.mark.parametrize("setting", [fifo, unix_socket, stall])
def test_an_event_reaches_a_callback_in_a_loop(setting: Callable[[Path], Setting], tmp_path: Path) -> None:
    async def main() -> None:
        told = asyncio.Event()
        with setting(tmp_path) as (source, fire):
            monitor = PressureMonitor(sources=[source], interval=HOUR)
            monitor.on(Level.HIGH, lambda event: told.set(), weak=False)
            async with monitor:
                fire()
                await asyncio.wait_for(told.wait(), DEADLINE)

    asyncio.run(main())


def test_the_group_tells_of_events_that_the_kernel_has_not_got(tmp_path: Path) -> None:
    """A plain file cannot be in an epoll: the group is read at each poll, and the monitor says why."""
    tree.member_v2(tmp_path)
    tree.group_v2(tmp_path, limit=tree.GIB)
    with PressureMonitor(sources=[CgroupMemory(root=tmp_path)], interval=HOUR) as monitor:
        until(lambda: monitor.stats().polls, "a poll")
        [status] = monitor.sources
        assert status.watched
        assert "PermissionError" in status.events


def test_nothing_is_there_and_all_of_it_is_explained(tmp_path: Path) -> None:
    from mempool.pressure.sources import default_sources

    with PressureMonitor(sources=default_sources(tmp_path, environ={}), interval=HOUR) as monitor:
        until(lambda: monitor.stats().polls, "a poll")
        for status in monitor.sources:
            assert not status.watched  # the root account is there, but has no limit
            assert status.why
            assert status.events


@contextmanager
def a_child_with_copies() -> Iterator[None]:
    """A process that keeps all descriptors that were open, until the end of the block."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    os.close(ours)
    try:
        yield
    finally:
        os.close(theirs)
        os.waitpid(pid, 0)


def test_a_dead_watch_is_quiet_although_a_child_has_a_copy(tmp_path: Path) -> None:
    """Closed before it is taken out of the epoll, it would be reported for ever."""
    with unix_socket(tmp_path) as (source, fire):
        watched = Watched(source)
        events = Events([watched])
        assert watched.events == "watched"
        with a_child_with_copies():
            fire()
            assert events.wait(DEADLINE)  # the event
            assert events.wait(DEADLINE)  # the end
            assert "the other side has gone" in watched.events
            assert source.fileno() == -1
            assert select.select([events.fileno()], [], [], 0)[0] == []
        events.close()


def test_a_fifo_that_hung_up_is_quiet_although_a_child_has_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mempool.pressure.sources.systemd.WRITE_FLAGS", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    path = tmp_path / "fifo"
    os.mkfifo(path)
    source = SystemdPressure(environ={"MEMORY_PRESSURE_WATCH": str(path)})
    watched = Watched(source)
    events = Events([watched])
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with a_child_with_copies():
            fd = os.open(path, os.O_WRONLY)
            os.write(fd, b"!")
            os.close(fd)
            before = source.fileno()
            for _ in range(2):  # the event, and the end
                select.select([events.fileno()], [], [], DEADLINE)
                events.take()
            assert source.fileno() != before
            assert select.select([events.fileno()], [], [], 0)[0] == []
            assert watched.events == "watched"
    assert len(os.listdir("/proc/self/fd")) <= files + 5
    events.close()


def test_events_that_come_steadily_are_all_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are allowed at once, and never a poll that is due by time between them."""
    with fifo(tmp_path) as (source, fire), PressureMonitor(sources=[source], interval=HOUR) as monitor:
        plain = source.handle
        monkeypatch.setattr(source, "handle", lambda mask: plain(mask) or True)
        for count in range(1, 131):
            fire()
            until(lambda count=count: monitor.stats().events >= count, "an event")  # type: ignore[misc]
            time.sleep(0.006)
        assert monitor.sources[0].events == "watched"


def test_what_reports_without_end_is_left_out_for_a_while_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("mempool.pressure.events.time", SimpleNamespace(monotonic=clock))
    with fifo(tmp_path) as (source, fire):
        watched = Watched(source)
        events = Events([watched])
        monkeypatch.setattr(source, "handle", lambda mask: True, raising=False)
        fire()
        while watched.events == "watched":
            events.take()
        assert "left out" in watched.events
        assert events.nap(HOUR) == 5
        assert not events.take()
        clock.pass_(5)
        assert events.wait(DEADLINE)  # it is heard again, long before the wait is over
        assert watched.events == "watched"
        events.close()


def test_a_wait_opens_again_what_broke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mempool.pressure.events._REOPEN", 0.05)
    with fifo(tmp_path) as (source, _):
        watched = Watched(source)
        monkeypatch.setattr(source, "open", broken_once(source.open), raising=False)
        events = Events([watched])
        assert "not yet" in watched.events
        until(lambda: events.wait(0.2) or watched.events == "watched", "another try")
        events.close()


def broken_once(plain: Fire) -> Fire:
    tries: list[int] = []

    def open_() -> object:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("not yet")
        return plain()

    return open_


def test_the_interpreter_ends_in_silence(run_python: Callable[..., Any], tmp_path: Path) -> None:
    """Sources that are open, wherever they are kept, and a monitor that runs."""
    os.mkfifo(tmp_path / "fifo")
    done = run_python(
        """
        import builtins, sys
        from mempool.pressure import PressureMonitor
        from mempool.pressure.sources import PressureStall, SystemdPressure
        def opened():
            source = SystemdPressure(environ={"MEMORY_PRESSURE_WATCH": sys.argv[1]})
            source.open()
            return source
        class Cycle: pass
        kept, builtins.kept, sys.modules["kept"] = opened(), opened(), opened()
        cycle = Cycle()
        cycle.own, cycle.source = cycle, opened()
        monitor = PressureMonitor(sources=[opened(), PressureStall()]).start()
        """,
        tmp_path / "fifo",
        options=("-X", "dev"),
    )
    assert (done.stdout, done.stderr) == ("", "")
