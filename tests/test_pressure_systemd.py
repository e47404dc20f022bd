"""The service manager's protocol, spoken by real files, FIFOs and sockets."""

import base64
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mempool.pressure.levels import Level
from mempool.pressure.sources import EventSource, Reading, SystemdPressure
from pressure_kit import Clock, waiting_events
from support import DEADLINE, until

POLLIN, POLLPRI, POLLERR, POLLHUP = 1, 2, 8, 16

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs")


def manager(path: object, write: bytes | None = None) -> dict[str, str]:
    """What a service finds in its environment."""
    found = {"MEMORY_PRESSURE_WATCH": str(path)}
    if write is not None:
        found["MEMORY_PRESSURE_WRITE"] = base64.b64encode(write).decode()
    return found


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        yield listener


def put(path: Path, data: bytes) -> None:
    """Write as a manager would, and leave."""
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.write(fd, data)
    os.close(fd)


def reason(environ: dict[str, str]) -> str:
    """Why there is nothing to watch: `read` and `open` say the same."""
    source = SystemdPressure(environ=environ)
    said = set()
    for call in (source.read, source.open):
        with pytest.raises(OSError) as caught:  # noqa: PT011  # what it says is looked at by whoever asks
            call()
        said.add(str(caught.value))
    assert source.fileno() == -1
    assert not source.handle(POLLIN)
    (words,) = said
    return words


def test_what_cannot_be_watched(tmp_path: Path) -> None:
    assert "MEMORY_PRESSURE_WATCH is not set" in reason({})
    assert "MEMORY_PRESSURE_WATCH is not set" in reason({"MEMORY_PRESSURE_WATCH": ""})
    assert "turned off" in reason(manager("/dev/null"))
    assert "no absolute path" in reason(manager("memory.pressure"))
    assert "neither file, FIFO nor socket" in reason(manager("/dev/zero"))
    assert "neither file, FIFO nor socket" in reason(manager(tmp_path))
    assert "No such file" in reason(manager(tmp_path / "none"))
    assert "is not base64: '?'" in reason(manager(tmp_path) | {"MEMORY_PRESSURE_WRITE": "?"})


def test_the_environment_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY_PRESSURE_WATCH", "/dev/null")
    with pytest.raises(OSError, match="turned off"):
        SystemdPressure().read()
    monkeypatch.delenv("MEMORY_PRESSURE_WATCH")
    with pytest.raises(OSError, match="is not set"):
        SystemdPressure().read()


def test_until_it_is_opened_it_tells_nothing_and_says_so(fifo: Path) -> None:
    source = SystemdPressure(environ=manager(fifo))
    assert isinstance(source, EventSource)
    assert (source.name, source.scope) == ("systemd", "shared")
    with pytest.raises(OSError, match="is not open"):
        source.read()
    source.open()
    assert source.read() == Reading(level=Level.NORMAL)


# ---- FIFO


def test_a_fifo(fifo: Path) -> None:
    clock = Clock()
    source = SystemdPressure(environ=manager(fifo), clock=clock, hold="4s")
    source.open()
    assert source.poll_events == POLLIN
    for _ in range(3):  # writers come and go
        assert waiting_events(source) == 0
        put(fifo, b"x" * 1000)
        assert source.handle(waiting_events(source))
        assert source.read() == Reading(level=Level.HIGH)
        clock.pass_(4)
        assert source.read() == Reading(level=Level.NORMAL)
    source.close()


def test_a_full_fifo_is_read_in_the_end(fifo: Path) -> None:
    source = SystemdPressure(environ=manager(fifo), clock=Clock())
    source.open()
    fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(fd, b"x" * 4096)
    except BlockingIOError:
        pass
    os.close(fd)
    told = 0
    for _ in range(100):
        if not waiting_events(source):
            break
        told += source.handle(POLLIN)
    assert waiting_events(source) == 0
    assert told == 1


def test_what_one_writes_into_a_fifo_is_no_event(fifo: Path) -> None:
    source = SystemdPressure(environ=manager(fifo, b"some 1 2\0"), clock=Clock())
    source.open()
    assert not source.handle(waiting_events(source))
    put(fifo, b"some 1 2\0")
    assert source.handle(waiting_events(source))


def test_own_words_beside_an_event(fifo: Path) -> None:
    source = SystemdPressure(environ=manager(fifo, b"hello"), clock=Clock())
    source.open()
    put(fifo, b"!")
    assert source.handle(waiting_events(source))
    assert source.read().level is Level.HIGH


def test_nothing_to_read_is_no_event(fifo: Path) -> None:
    source = SystemdPressure(environ=manager(fifo))
    source.open()
    assert not source.handle(POLLIN)
    assert source.fileno() >= 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anything")
def test_a_fifo_that_may_only_be_read(fifo: Path) -> None:
    fifo.chmod(0o400)
    source = SystemdPressure(environ=manager(fifo))
    source.open()
    source.close()


def test_a_fifo_whose_writers_all_left(fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it may only be read, its end hangs up with each writer that leaves; a new one waits for the next."""
    opening = os.open

    def refuse(path: str, flags: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", path)
        return opening(path, flags)

    clock = Clock()
    monkeypatch.setattr("mempool.pressure.sources.systemd.os.open", refuse)
    source = SystemdPressure(environ=manager(fifo), clock=clock)
    source.open()
    for _ in range(3):
        fd = opening(fifo, os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, b"x")
        os.close(fd)
        assert source.handle(waiting_events(source))
        assert not source.handle(waiting_events(source))  # the hang-up
        assert waiting_events(source) == 0
        assert source.fileno() >= 0
        clock.pass_(5)
    source = SystemdPressure(environ=manager(fifo, b"hello"))
    with pytest.raises(PermissionError):
        source.open()


# ---- socket


def test_a_socket(server: socket.socket) -> None:
    source = SystemdPressure(environ=manager(server.getsockname(), b"some 200000 2000000\0"), clock=Clock())
    source.open()
    peer, _ = server.accept()
    assert source.poll_events == POLLIN
    assert peer.recv(100) == b"some 200000 2000000\0"
    assert waiting_events(source) == 0
    peer.sendall(b"!")
    until(lambda: waiting_events(source), "an event")
    assert source.handle(POLLIN)
    assert source.read().level is Level.HIGH
    source.close()
    assert peer.recv(1) == b""
    peer.close()


def test_a_manager_that_goes(server: socket.socket) -> None:
    clock = Clock()
    source = SystemdPressure(environ=manager(server.getsockname()), clock=clock)
    source.open()
    peer, _ = server.accept()
    peer.sendall(b"!")
    peer.close()
    assert source.handle(waiting_events(source))
    with pytest.raises(OSError, match="the other side has gone"):
        source.handle(waiting_events(source))
    assert source.fileno() >= 0  # whoever polls takes it out of its epoll before it is closed
    source.close()
    assert source.fileno() == -1
    assert source.read().level is Level.HIGH  # what was told still counts
    clock.pass_(5)
    with pytest.raises(OSError, match="is not open"):
        source.read()
    source.open()
    server.accept()[0].close()
    with pytest.raises(OSError, match="the other side has gone"):
        source.handle(POLLHUP)
    source.close()


def test_a_socket_that_nobody_listens_to(server: socket.socket) -> None:
    environ = manager(server.getsockname())
    server.close()
    source = SystemdPressure(environ=environ)
    with pytest.raises(ConnectionRefusedError, match="socket"):
        source.open()


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        os.rename(tmp_path / "s", folder / "s")
    with pytest.raises(OSError, match="too long"):
        SystemdPressure(environ=manager(folder / "s")).open()


def test_opening_again_leaves_the_first_connection(server: socket.socket) -> None:
    source = SystemdPressure(environ=manager(server.getsockname()))
    source.open()
    first, _ = server.accept()
    source.open()
    second, _ = server.accept()
    assert first.recv(1) == b""
    second.sendall(b"!")
    until(lambda: waiting_events(source), "an event")
    assert source.handle(POLLIN)
    source.close()
    for peer in (first, second):
        peer.close()


def test_what_fails_to_open_leaves_the_watch_as_it_was(server: socket.socket) -> None:
    environ = manager(server.getsockname())
    source = SystemdPressure(environ=environ)
    source.open()
    before = source.fileno()
    environ["MEMORY_PRESSURE_WATCH"] = "/dev/null"
    with pytest.raises(OSError, match="turned off"):
        source.open()
    assert source.fileno() == before
    source.close()


# ---- file


def test_a_file_is_written_and_never_read(tmp_path: Path) -> None:
    file = tmp_path / "memory.pressure"
    file.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    source = SystemdPressure(environ=manager(file, b"some 200000 2000000\0"), clock=Clock())
    source.open()
    assert file.read_bytes().startswith(b"some 200000 2000000\0")
    assert source.poll_events == POLLPRI
    file.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=199999\n")
    assert not source.handle(POLLPRI)  # less was lost than it should tell of: false
    file.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=200000\n")
    assert source.handle(POLLPRI)
    assert os.lseek(source.fileno(), 0, os.SEEK_CUR) == len(b"some 200000 2000000\0")
    with pytest.raises(OSError, match="the trigger is dead"):
        source.handle(POLLERR)


@pytest.mark.parametrize("text", [None, b"", b"something new", b"some lots 2\0", b"\xff 1 2"])
def test_a_file_with_words_that_nobody_knows(tmp_path: Path, text: bytes | None) -> None:
    """What the manager writes is its own affair; its events are believed."""
    file = tmp_path / "memory.pressure"
    file.write_bytes(b"")
    source = SystemdPressure(environ=manager(file, text), clock=Clock())
    source.open()
    assert file.read_bytes() == (text or b"")
    assert source.handle(POLLPRI)
    source.close()


def test_the_file_of_this_machine() -> None:
    source = SystemdPressure(environ=manager("/proc/pressure/memory", b"some 200000 2000000\0"))
    try:
        source.open()
    except OSError as error:
        pytest.skip(f"no trigger here: {error}")
    assert not waiting_events(source) & POLLERR
    source.close()


# ---- fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_connects_for_itself(server: socket.socket) -> None:
    source = SystemdPressure(environ=manager(server.getsockname()))
    source.open()
    peer, _ = server.accept()
    pid = os.fork()
    if pid == 0:
        quiet = source.fileno() == -1 and not source.handle(POLLIN)
        source.open()
        os._exit(0 if quiet and source.fileno() >= 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    server.accept()[0].close()
    peer.sendall(b"!")
    assert select.select([source.fileno()], [], [], DEADLINE)[0]
    assert source.handle(POLLIN)
    peer.close()
