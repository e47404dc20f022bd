"""The types of arguments, and what several functions check alike."""

import os
from typing import Any, Protocol, SupportsIndex, TypeAlias

from mempool._core import BufferPool, default_pool

__all__ = ["Path", "Readable", "Size", "lender"]

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


def lender(pool: BufferPool | None) -> BufferPool:
    """Return the pool to lend from; `TypeError` for what is none."""
    if pool is None:
        return default_pool()
    if not isinstance(pool, BufferPool):
        raise TypeError(f"pool must be a BufferPool or None, not {pool!r}")
    return pool
