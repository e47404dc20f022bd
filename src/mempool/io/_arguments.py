"""The types of arguments, and what several functions check alike."""

import errno
import os
from typing import Any, Protocol, SupportsIndex, TypeAlias

from mempool._core import BufferPool, default_pool
from mempool.units import parse_size, shown

__all__ = ["Path", "Readable", "Size", "lender", "parse_place", "refuse_place"]

_LAST_PLACE = (1 << 63) - 1  # of any file, for any OS

Size: TypeAlias = int | str | SupportsIndex
Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class _HasReadinto(Protocol):
    def readinto(self, buffer: Any, /) -> int | None: ...


class _HasRecvInto(Protocol):
    def recv_into(self, buffer: Any, /) -> int: ...


class _HasRead(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


class _HasWrite(Protocol):
    def write(self, content: Any, /) -> int | None: ...


class _HasSend(Protocol):
    def send(self, content: Any, /) -> int: ...


Readable: TypeAlias = Path | int | _HasReadinto | _HasRecvInto | _HasRead
Writable: TypeAlias = Path | int | _HasWrite | _HasSend


def parse_place(value: object) -> int:
    """Return an `offset`; `OverflowError` for what is behind all files."""
    place = parse_size(value, "offset")
    if place > _LAST_PLACE:
        raise OverflowError(f"offset of {shown(place)} is behind the end of any file")
    return place


def refuse_place(fd: int, place: int, name: object) -> None:
    """Raise `ValueError` for an `offset` in what has no places."""
    try:
        os.lseek(fd, 0, os.SEEK_CUR)
    except OSError as error:
        if error.errno != errno.ESPIPE:
            raise
        raise ValueError(f"offset is for what can seek, got {place} for {name!r}") from None


def lender(pool: BufferPool | None) -> BufferPool:
    """Return the pool to lend from; `TypeError` for what is none."""
    if pool is None:
        return default_pool()
    if not isinstance(pool, BufferPool):
        raise TypeError(f"pool must be a BufferPool or None, not {pool!r}")
    return pool
