"""What can be written to: a place in a file, a descriptor where it stands, an object of Python's."""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from io import BufferedWriter, FileIO, RawIOBase, UnsupportedOperation
from typing import Any

from mempool.io._arguments import refuse_place
from mempool.io._os import pwritev, wait_as_told, wait_writable, writev
from mempool.io._sources import check_binary, is_path, is_plain_socket, plain_fd

__all__ = ["Sink", "open_sink", "told", "write_all"]

_BATCH = min(os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16, 1024)


class Sink:
    """A descriptor, written where it stands.

    Attributes
    ----------
    name : object
        What errors call it.
    fd : int
        Its descriptor, -1 for an object.
    fresh : bool
        A regular file that was opened here and has no content.
    """

    def __init__(self, name: object, fd: int = -1, owned: FileIO | None = None, timeout: float | None = None) -> None:
        self.name, self.fd, self.owned, self.timeout = name, fd, owned, timeout or None
        self.fresh = False

    def write_some(self, views: Sequence[memoryview]) -> int:
        """Write what one call takes, waiting if it would block."""
        while True:
            if self.timeout is not None:
                wait_writable(self.fd, self.timeout)
            try:
                return self._write(views)
            except BlockingIOError as error:
                self.wait()
                if getattr(error, "characters_written", 0):
                    return error.characters_written

    def wait(self) -> None:
        """Wait until a write does not block."""
        wait_writable(self.fd, self.timeout)

    def _write(self, views: Sequence[memoryview]) -> int:
        return writev(self.fd, views)

    def publish(self) -> None:
        """Bring the position of what the caller gave to where writing is."""

    def close(self) -> None:
        """Close what was opened here; an error of the OS that comes only now is the caller's to know."""
        if self.owned is not None:
            self.owned.close()


class PlacedSink(Sink):
    """A file, written at an offset of our own; its position stays."""

    def __init__(self, name: object, fd: int, owned: FileIO | None, offset: int) -> None:
        super().__init__(name, fd, owned)
        self.offset = offset

    def _write(self, views: Sequence[memoryview]) -> int:
        done = pwritev(self.fd, views, self.offset)
        self.offset += done
        return done


class FileSink(Sink):
    """A plain file object, written past it; it has no bytes of its own that wait, and then stands where writing is."""

    def __init__(self, file: Any) -> None:
        super().__init__(file.name, file.fileno())
        self._file = file

    def publish(self) -> None:
        self._file.seek(os.lseek(self.fd, 0, os.SEEK_CUR))


class ObjectSink(Sink):
    """Anything with `write` or `send`."""

    def __init__(self, file: Any) -> None:
        super().__init__(getattr(file, "name", file))
        self._file = file
        self._take = getattr(file, "write", None) or file.send

    def wait(self) -> None:
        wait_writable(self._file.fileno())

    def _write(self, views: Sequence[memoryview]) -> int:
        try:
            with views[0][:] as whole:
                taken = self._take(whole)
        except BlockingIOError:
            raise
        except OSError as error:
            wait_as_told(error, self._file)
            raise BlockingIOError from None  # to be called again
        if taken is None:
            if isinstance(self._file, RawIOBase):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return len(views[0])
        if isinstance(taken, bool) or not isinstance(taken, int):
            raise TypeError(f"writing to {self._file!r} gave {taken!r} instead of a number of bytes")
        if not 0 <= taken <= len(views[0]):
            raise OSError(f"writing {len(views[0])} bytes to {self._file!r} gave {taken}")
        return taken


def told(error: OSError, done: int, total: int | None, *names: object) -> OSError:
    """Return the same error with the names and how far it came; what has no number is left as it is.

    One whose numbers are no errno, as those of TLS, would become another error: it has a note instead.
    """
    if error.errno is None:
        return error
    progress = f"after {done}{'' if total is None else f' of {total}'} bytes"
    again = OSError(
        error.errno, f"{error.strerror} {progress}", names[0], *((None, names[1]) if len(names) > 1 else ())
    )
    if type(again) is type(error):
        return again
    error.add_note(f"{progress}: {' -> '.join(map(repr, names))}")
    return error


def write_all(sink: Sink, views: Sequence[memoryview], told_of: Callable[[int], object]) -> None:
    """Write all views, however often the OS takes a part; after each part `told_of` hears how many bytes it was."""
    at, skip = 0, 0
    while at < len(views):
        if skip == len(views[at]):
            at, skip = at + 1, 0
            continue
        with views[at][skip:] as first:
            done = sink.write_some([first, *views[at + 1 : at + _BATCH]])
        if not done:
            raise OSError(errno.EIO, "nothing more was taken")
        told_of(done)
        while done:
            step = min(done, len(views[at]) - skip)
            done, skip = done - step, skip + step
            if skip == len(views[at]):
                at, skip = at + 1, 0


# ---- telling them apart ----


class _in_place:  # noqa: N801 - stands for a function
    """Opens for writing without losing the content."""

    def __call__(self, path: str, flags: int) -> int:
        return os.open(path, flags & ~os.O_TRUNC, 0o666)


def open_sink(what: Any, offset: int | None, name: str = "path_or_fd") -> Sink:
    """Return what a caller gave as a sink; a path is opened, and loses its content unless there is an offset."""
    fd = plain_fd(what, name)
    if fd is not None:
        return _from_descriptor(what, fd, offset)
    if is_path(what):
        return _opened(FileIO(os.fspath(what), "wb", opener=None if offset is None else _in_place()), offset)
    check_binary(what, name)
    if not any(hasattr(what, method) for method in ("write", "send")):
        raise TypeError(f"{name} must be a path, a descriptor or a binary file, not {what!r}")
    if offset is not None:
        raise ValueError(f"offset counts in paths and descriptors: call seek({offset}) of the file object instead")
    if is_plain_socket(what):
        return Sink(what, what.fileno(), timeout=what.gettimeout())
    if type(what) is FileIO:
        if not what.writable():
            raise UnsupportedOperation(f"{what!r} is not open for writing")
        return Sink(what.name, what.fileno())
    if type(what) is BufferedWriter and type(what.raw) is FileIO and stat.S_ISREG(os.fstat(what.fileno()).st_mode):
        what.flush()
        return FileSink(what)
    return ObjectSink(what)


def _opened(file: FileIO, offset: int | None) -> Sink:
    if offset is not None:
        try:
            refuse_place(file.fileno(), offset, file.name)
        except BaseException:
            file.close()
            raise
        return PlacedSink(file.name, file.fileno(), file, offset)
    sink = Sink(file.name, file.fileno(), file)
    sink.fresh = stat.S_ISREG(os.fstat(sink.fd).st_mode)
    return sink


def appends(fd: int) -> bool:
    """Whether whatever is written goes to the end, also what has an offset."""
    try:
        import fcntl
    except ImportError:
        return False
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)


def _from_descriptor(name: object, fd: int, offset: int | None) -> Sink:
    if offset is None:
        os.fstat(fd)  # a closed one is refused also if there is nothing to write
        return Sink(name, fd)
    if appends(fd):
        raise ValueError(f"descriptor {fd} appends: nothing can be written at an offset")
    refuse_place(fd, offset, name)
    return PlacedSink(name, fd, None, offset)
