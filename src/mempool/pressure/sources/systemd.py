"""`SystemdPressure`: the protocol of ``MEMORY_PRESSURE_WATCH``.

A service manager names something to watch in the environment of a service:

=============  =====================================  ================================
it is          how it is opened                       an event
=============  =====================================  ================================
a file         open; write ``MEMORY_PRESSURE_WRITE``  ``POLLPRI``; it is never read
a FIFO         the same                               ``POLLIN``; read and thrown away
a socket       connect; send the same                 ``POLLIN``; read and thrown away
``/dev/null``  not at all: handling is to be off      none
=============  =====================================  ================================
"""

import base64
import binascii
import errno
import os
import select
import stat
import time
from collections.abc import Callable, Mapping

from mempool.pressure.levels import Level
from mempool.pressure.sources.base import Reading, Scope
from mempool.pressure.sources.stall import DEAD, POLLPRI, Trigger
from mempool.pressure.sources.watching import READ_FLAGS, WRITE_FLAGS, Alarm, Descriptor
from mempool.units import parse_duration

__all__ = ["SystemdPressure"]

WATCH, WRITE = "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE"
OFF = "/dev/null"
POLLIN = getattr(select, "POLLIN", 1)
POLLHUP = getattr(select, "POLLHUP", 16)
AT_ONCE = 1 << 16


class _Stream:
    """A FIFO or a connection: what arrives is an event."""

    def __init__(self, path: str, text: bytes) -> None:
        self.path, self._text = path, text
        self._echo = b""
        self._descriptor = Descriptor()

    def fileno(self) -> int:
        return self._descriptor.fileno()

    def close(self) -> None:
        self._descriptor.close()

    def happened(self, events: int) -> bool:
        if events & POLLIN:
            return self._drain()
        if events & DEAD:
            self._end("the other side has gone")
        return False

    def _drain(self) -> bool:
        fd = self._descriptor.fileno()
        if fd < 0:
            return False
        try:
            data = os.read(fd, AT_ONCE)
        except BlockingIOError:  # another thread read it
            return False
        if not data:
            self._end("the other side has gone")
        if self._echo:
            data, self._echo = data.replace(self._echo, b"", 1), b""
        return bool(data)

    def _end(self, why: str) -> None:
        raise OSError(errno.EPIPE, why, self.path)

    def _adopt(self, fd: int) -> None:
        """Write what the manager wants, and own the descriptor; closed if that fails."""
        try:
            if self._text and os.write(fd, self._text) != len(self._text):
                raise OSError(errno.EAGAIN, f"took only a part of {WRITE}", self.path)
        except BaseException:
            os.close(fd)
            raise
        self._descriptor.hold(fd)


class _Fifo(_Stream):
    def open(self) -> None:
        try:
            # Our own writing end keeps the FIFO from hanging up each time that a writer leaves.
            fd = os.open(self.path, WRITE_FLAGS)
        except PermissionError:
            if self._text:
                raise
            fd = os.open(self.path, READ_FLAGS)
        self._adopt(fd)
        self._echo = self._text  # what one writes into a FIFO one reads again

    def _end(self, why: str) -> None:
        # A reading end that was hung up stays so; a new one waits for the next writer.
        self._descriptor.replace(os.open(self.path, READ_FLAGS))


class _Connection(_Stream):
    def open(self) -> None:
        import socket

        family = getattr(socket, "AF_UNIX", None)
        if family is None:
            raise OSError(errno.EAFNOSUPPORT, "this system has no such sockets", self.path)
        connection = socket.socket(family, socket.SOCK_STREAM)
        with connection:
            connection.setblocking(False)
            try:
                connection.connect(self.path)
            except OSError as error:
                raise OSError(error.errno or errno.EINVAL, error.strerror or str(error), self.path) from error
            fd = connection.detach()
        self._adopt(fd)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise OSError(errno.EINVAL, f"{WRITE} is not base64: {text!r}") from error


def _kernel_trigger(path: str, text: bytes) -> Trigger:
    """Return a trigger of the kernel with the manager's text; its events are checked if the text says what it is about."""
    words = text.rstrip(b"\0\n").split()
    if len(words) == 3 and words[0] in (b"some", b"full") and words[1].isdigit():
        return Trigger(path, text, words[0].decode(), int(words[1]))
    return Trigger(path, text)


def _watch(environ: Mapping[str, str]) -> "Trigger | _Fifo | _Connection":
    """Return what the environment names, not open yet; `OSError` says why there is nothing."""
    path = environ.get(WATCH)
    if not path:
        raise OSError(errno.ENOENT, f"{WATCH} is not set: no service manager asks for it")
    if path == OFF:
        raise OSError(errno.EHOSTDOWN, f"turned off by {WATCH}={OFF}")
    if not os.path.isabs(path):
        raise OSError(errno.EINVAL, f"{WATCH} is no absolute path", path)
    text = _decoded(environ.get(WRITE, ""))
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
        return _kernel_trigger(path, text)
    if stat.S_ISFIFO(mode):
        return _Fifo(path, text)
    if stat.S_ISSOCK(mode):
        return _Connection(path, text)
    raise OSError(errno.ENOTTY, f"{WATCH} is neither file, FIFO nor socket", path)


class SystemdPressure:
    """What the service manager says: systemd's, or one that speaks its protocol.

    Parameters
    ----------
    level : Level
        What an event means. The protocol knows one degree; it asks to give up what can be had again.
    hold : float or str
        For how long an event counts.
    environ : mapping, optional
        In place of `os.environ`; it is looked at by `open` and by each `read`.
    clock : callable
        Seconds.

    Examples
    --------
    >>> from mempool.pressure.sources import SystemdPressure
    >>> try:
    ...     SystemdPressure(environ={"MEMORY_PRESSURE_WATCH": "/dev/null"}).read()
    ... except OSError as error:
    ...     print(error.strerror)
    turned off by MEMORY_PRESSURE_WATCH=/dev/null
    """

    def __init__(
        self,
        *,
        level: Level = Level.HIGH,
        hold: float | str = "4s",
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._level = Level(level)
        self._alarm = Alarm(parse_duration(hold, "hold"), clock)
        self._watched: Trigger | _Fifo | _Connection | None = None

    @property
    def name(self) -> str:
        """``"systemd"``."""
        return "systemd"

    @property
    def scope(self) -> Scope:
        """Others may be the cause: ``"shared"``."""
        return "shared"

    def read(self) -> Reading:
        """Return a level while an event counts, no bytes; `OSError` says why nothing is watched, if only that it is not open."""
        level = self._alarm.level()
        if not level and self.fileno() < 0:
            _watch(self._environ)
            raise OSError(errno.ENOTCONN, "tells events alone, and is not open", self._environ[WATCH])
        return Reading(level=level)

    def open(self) -> None:
        """Open or connect, and write what is asked for."""
        watched = _watch(self._environ)
        watched.open()
        self.close()
        self._watched = watched

    def close(self) -> None:
        """Close it; idempotent."""
        watched, self._watched = self._watched, None
        if watched is not None:
            watched.close()

    def fileno(self) -> int:
        """Return the descriptor to poll, -1 if there is none."""
        watched = self._watched
        return watched.fileno() if watched is not None else -1

    @property
    def poll_events(self) -> int:
        """``POLLPRI`` for a file, ``POLLIN`` for a FIFO or a socket."""
        return POLLIN if isinstance(self._watched, _Stream) else POLLPRI

    def handle(self, events: int) -> bool:
        """Take in an event; what was sent is thrown away. `OSError`: the other side has gone."""
        watched = self._watched
        return watched is not None and watched.happened(events) and self._alarm.ring(self._level)

    def __repr__(self) -> str:
        return f"SystemdPressure({self._environ.get(WATCH)!r})"
