"""What can be read from: places in files, descriptors that flow, objects of Python's.

    Source.fill(buffer, size)      until so many bytes are there, or the end
      Placed      regular files and block devices: an offset of our own, `preadv`, safe beside anybody else's reads
        Direct    the same past the page cache (_direct.py)
      Flowing     what comes once
        Descriptor   pipes, sockets, terminals: `readv`; one that does not block is waited for
        Object       `readinto`, `recv_into` or `read` of an object

A failed `fill` loses nothing: a place is not left before its bytes are there, and what had come from a flow comes first next time.
"""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from io import BufferedReader, FileIO, TextIOBase, UnsupportedOperation
from typing import Any

from mempool._core import Buffer
from mempool.io._os import Owned, preadv, readv, wait_as_told, wait_readable

__all__ = ["Descriptor", "Flowing", "Object", "Placed", "Source", "open_source"]


class Source:
    """Something that bytes come from.

    Attributes
    ----------
    name : object
        What errors call it.
    fd : int
        Its descriptor, or -1.
    """

    def __init__(self, name: object, fd: int = -1, owned: Owned | None = None) -> None:
        self.name, self.fd, self.owned = name, fd, owned

    def room(self, size: int) -> int:
        """Bytes that a buffer must have for `size` bytes to be read into it."""
        return size

    def expected(self, wanted: int | None) -> int | None:
        """How many bytes are left, at most `wanted`; None where only reading tells."""
        raise NotImplementedError

    def fill(self, buffer: Buffer, size: int) -> int:
        """Read until `size` bytes stand at the beginning of the buffer, or the end was reached: how many there are."""
        raise NotImplementedError

    def some(self, buffer: Buffer) -> int:
        """Read what one call gives; 0 at the end."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise the error that made the last `fill` end early, if it was one."""

    def has_more(self) -> bool:
        """Whether there is more, of what can be asked without taking it: files grow."""
        return False

    def publish(self) -> None:
        """Bring the position of what the caller gave to where reading is."""

    def put_back(self) -> None:
        """Bring the position of what the caller gave back to where reading began, if it can be."""

    def close(self) -> None:
        """Close what was opened here. Idempotent."""
        if self.owned is not None:
            self.owned.close()


class Placed(Source):
    """A file with places: read at an offset of our own."""

    def __init__(
        self,
        name: object,
        fd: int,
        owned: Owned | None,
        status: os.stat_result,
        offset: int,
        seek: Callable[[int], object] | None = None,
    ) -> None:
        super().__init__(name, fd, owned)
        self.status, self.offset, self.seek = status, offset, seek

    def expected(self, wanted: int | None) -> int | None:
        if not self.status.st_size:  # empty, or it does not say, as in /proc
            return None
        left = max(self.status.st_size - self.offset, 0)
        return left if wanted is None else min(left, wanted)

    def fill(self, buffer: Buffer, size: int) -> int:
        if len(buffer) == size:
            done = preadv(self.fd, (buffer,), self.offset)
            if done == size:
                self.offset += done
                return done
        else:
            done = 0
        with memoryview(buffer) as whole:
            while done < size:
                with whole[done:size] as part:
                    got = preadv(self.fd, (part,), self.offset + done)
                if not got:
                    break
                done += got
        self.offset += done
        return done

    def some(self, buffer: Buffer) -> int:
        got = preadv(self.fd, (buffer,), self.offset)
        self.offset += got
        return got

    def has_more(self) -> bool:
        return preadv(self.fd, (bytearray(1),), self.offset) > 0

    def publish(self) -> None:
        if self.seek is not None:
            self.seek(self.offset)


class Flowing(Source):
    """What comes once. An error after some bytes waits until they are taken; who is called off leaves them for the next call."""

    def __init__(self, name: object, fd: int = -1, owned: Owned | None = None) -> None:
        super().__init__(name, fd, owned)
        self._kept = b""
        self._error: OSError | None = None

    def expected(self, wanted: int | None) -> int | None:
        return None

    def read_into(self, part: memoryview) -> int:
        """Read once; 0 at the end."""
        raise NotImplementedError

    def fill(self, buffer: Buffer, size: int) -> int:
        done = self._begin(buffer, size)
        try:
            with memoryview(buffer) as whole:
                while done < size:
                    with whole[done:size] as part:
                        got = self.read_into(part)
                    if not got:
                        break
                    done += got
        except OSError as error:
            if not done:
                raise
            self._error = error.with_traceback(None)  # whose frames keep the buffer
        except BaseException:
            self._kept = bytes(buffer[:done]) + self._kept
            raise
        return done

    def some(self, buffer: Buffer) -> int:
        done = self._begin(buffer, len(buffer))
        if done:
            return done
        with memoryview(buffer) as whole:
            return self.read_into(whole)

    def check(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _begin(self, buffer: Buffer, size: int) -> int:
        """Raise the error, or give the bytes, that the last call kept."""
        self.check()
        done = min(len(self._kept), size)
        if done:
            buffer[:done], self._kept = self._kept[:done], self._kept[done:]
        return done


class Descriptor(Flowing):
    """A pipe, a socket, a terminal. `instead` reads in our place: who reads ahead must be able to be called off."""

    def __init__(self, name: object, fd: int, owned: Owned | None, timeout: float | None = None) -> None:
        super().__init__(name, fd, owned)
        self.timeout = timeout or None  # one that does not block is waited for
        self.instead: Callable[[memoryview], int] | None = None

    def read_into(self, part: memoryview) -> int:
        if self.instead is not None:
            return self.instead(part)
        while True:
            if self.timeout is not None:
                wait_readable(self.fd, self.timeout)
            try:
                return readv(self.fd, (part,))
            except BlockingIOError:
                wait_readable(self.fd, self.timeout)


class Object(Flowing):
    """Anything with `readinto`, `recv_into` or `read`; on the caller's thread only, as nobody knows who else uses it."""

    def __init__(self, file: Any) -> None:
        super().__init__(getattr(file, "name", file))
        self._file = file
        self._readinto = getattr(file, "readinto", None) or getattr(file, "recv_into", None)
        self._taken = 0

    def read_into(self, part: memoryview) -> int:
        while True:
            try:
                got = self._read(part) if self._readinto is None else self._readinto(part)
            except BlockingIOError:
                got = None
            except OSError as error:
                wait_as_told(error, self._file)
                continue
            if got is None:
                wait_readable(self._file.fileno())
                continue
            if isinstance(got, bool) or not isinstance(got, int):
                raise TypeError(f"reading from {self._file!r} gave {got!r} instead of a number of bytes")
            if not 0 <= got <= len(part):
                raise OSError(f"reading {len(part)} bytes from {self._file!r} gave {got}")
            self._taken += got
            return got

    def put_back(self) -> None:
        with suppress(Exception):  # the error that is on its way is the one to know
            if self._taken and self._file.seekable():
                self._file.seek(-self._taken, os.SEEK_CUR)

    def _read(self, part: memoryview) -> int | None:
        content = self._file.read(len(part))
        if content is None:
            return None
        if isinstance(content, str):
            raise TypeError(f"{self._file!r} reads text: open it in binary mode")
        if len(content) <= len(part):
            part[: len(content)] = content
        return len(content)


# ---- telling them apart ----

_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0)


def plain_fd(value: object, name: str) -> int | None:
    """Return a descriptor, or None for what is none; `TypeError` for bool, `ValueError` if negative."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a path, a descriptor or a binary file, not {value!r}")
    if not isinstance(value, int):
        return None
    if value < 0:
        raise ValueError(f"{name} must not be a negative descriptor, got {value}")
    return value


def is_path(value: object) -> bool:
    return isinstance(value, (str, bytes, os.PathLike))


def check_binary(file: object, name: str) -> None:
    """Refuse text files and closed ones."""
    if isinstance(file, TextIOBase):
        raise TypeError(f"{name} is a text file, {file!r}: open it in binary mode")
    if getattr(file, "closed", False) is True:
        raise ValueError(f"I/O operation on closed file {file!r}")


def is_placed(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)


def is_plain_socket(value: object) -> bool:
    """Whether it is a socket whose bytes are those of its descriptor: not one with TLS around it."""
    return (type(value).__module__, type(value).__qualname__) == ("socket", "socket") and hasattr(os, "readv")


def open_source(what: Any, name: str = "path_or_fd", *, own: bool = False) -> Source:
    """Return what a caller gave as a source.

    Parameters
    ----------
    what : path, int, or binary file or socket
        A path is opened here.
    name : str
        What the argument is called in errors.
    own : bool
        Duplicate descriptors: the caller may close his while ours is read.
    """
    fd = plain_fd(what, name)
    if fd is not None:
        return _from_descriptor(what, fd, own, None)
    if is_path(what):
        return _opened(os.fspath(what))
    check_binary(what, name)
    if type(what) is FileIO or (type(what) is BufferedReader and type(what.raw) is FileIO):
        return _from_file(what, own)
    if is_plain_socket(what):
        return _from_descriptor(what, what.fileno(), own, what.gettimeout())
    if not any(hasattr(what, method) for method in ("readinto", "recv_into", "read")):
        raise TypeError(f"{name} must be a path, a descriptor or a binary file, not {what!r}")
    return Object(what)


def _opened(path: str | bytes) -> Source:
    owned = Owned(os.open(path, _FLAGS))
    fd = owned.fileno()
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    return Placed(path, fd, owned, status, 0) if is_placed(status) else Descriptor(path, fd, owned)


def _from_descriptor(name: object, fd: int, own: bool, timeout: float | None) -> Source:
    status = os.fstat(fd)
    place = os.lseek(fd, 0, os.SEEK_CUR) if is_placed(status) else 0
    owned = Owned(os.dup(fd)) if own else None
    if owned is not None:
        fd = owned.fileno()
    if is_placed(status):
        return Placed(name, fd, owned, status, place, lambda offset: os.lseek(fd, offset, os.SEEK_SET))
    return Descriptor(name, fd, owned, timeout)


def _from_file(file: Any, own: bool) -> Source:
    """Read a plain file past its Python object, which then stands where reading is; others through it."""
    if not file.readable():
        raise UnsupportedOperation(f"{file!r} is not open for reading")
    status = os.fstat(file.fileno())
    if not is_placed(status):
        return Object(file) if type(file) is BufferedReader else _from_descriptor(file.name, file.fileno(), own, None)

    def seek(offset: int) -> None:
        if not file.closed:  # nobody sees where it stands, and the descriptor may be ours
            file.seek(offset)

    place = file.tell()
    owned = Owned(os.dup(file.fileno())) if own else None
    fd = file.fileno() if owned is None else owned.fileno()
    return Placed(file.name, fd, owned, status, place, seek)
