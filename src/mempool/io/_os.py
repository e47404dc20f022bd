"""The calls of the OS that move bytes, where each platform has them, and waiting for a descriptor."""

import os
import select
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer as BytesLike

__all__ = ["Owned", "preadv", "pwritev", "readv", "wait_as_told", "wait_readable", "wait_writable", "writev"]

POSITIONAL = hasattr(os, "preadv") and hasattr(os, "pwritev")


def _preadv_by_seek(fd: int, buffers: "Sequence[BytesLike]", offset: int) -> int:
    os.lseek(fd, offset, os.SEEK_SET)
    return _readv_by_one(fd, buffers)


def _pwritev_by_seek(fd: int, buffers: "Sequence[BytesLike]", offset: int) -> int:
    os.lseek(fd, offset, os.SEEK_SET)
    return os.write(fd, buffers[0])


def _readv_by_one(fd: int, buffers: "Sequence[BytesLike]") -> int:
    with open(fd, "rb", buffering=0, closefd=False) as file:
        return file.readinto(buffers[0]) or 0


def _writev_by_one(fd: int, buffers: "Sequence[BytesLike]") -> int:
    return os.write(fd, buffers[0])


preadv = os.preadv if POSITIONAL else _preadv_by_seek
pwritev = os.pwritev if POSITIONAL else _pwritev_by_seek
readv = getattr(os, "readv", _readv_by_one)
writev = getattr(os, "writev", _writev_by_one)


class Owned:
    """A descriptor that is closed with its last reference.

    A `FileIO` would warn that it was not closed where the collector comes to it before its owner.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """Close it. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _wait(fd: int, timeout: float | None, read: bool) -> bool:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fd, select.POLLIN if read else select.POLLOUT)
        return bool(poll.poll(None if timeout is None else timeout * 1000))
    reading, writing, _ = select.select([fd] if read else [], [] if read else [fd], [], timeout)
    return bool(reading or writing)


def wait_readable(fd: int, timeout: float | None = None) -> None:
    """Wait until a read does not block; `TimeoutError` after so many seconds."""
    if not _wait(fd, timeout, True):
        raise TimeoutError("timed out")


def wait_writable(fd: int, timeout: float | None = None) -> None:
    """Wait until a write does not block; `TimeoutError` after so many seconds."""
    if not _wait(fd, timeout, False):
        raise TimeoutError("timed out")


def wait_as_told(error: OSError, file: Any) -> None:
    """Wait for what a TLS socket that does not block needs, which may be to write before it can read; raises any other error."""
    ssl = sys.modules.get("ssl")
    if ssl is not None and isinstance(error, ssl.SSLWantReadError):
        wait_readable(file.fileno())
    elif ssl is not None and isinstance(error, ssl.SSLWantWriteError):
        wait_writable(file.fileno())
    else:
        raise error
