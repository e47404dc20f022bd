"""A file, or what comes through a pipe or socket, as one buffer."""

import os
from typing import TYPE_CHECKING

from mempool._core import Buffer, BufferPool
from mempool.io._arguments import lender, parse_place, refuse_place
from mempool.io._direct import directly
from mempool.io._sources import Placed, Source, is_path, open_source
from mempool.units import parse_size

if TYPE_CHECKING:
    from mempool.io._arguments import Readable, Size

__all__ = ["read"]

# Where nobody says how much there is, blocks are taken as large as all before them, within these bounds, and joined at the end:
# each byte is copied once, however much comes.
_FIRST = 64 << 10
_LARGEST = 64 << 20


def read(
    path_or_fd: "Readable",
    *,
    pool: BufferPool | None = None,
    offset: "Size" = 0,
    size: "Size | None" = None,
    direct: bool = False,
) -> Buffer:
    """Read a file, or a part of it, into a buffer.

    Parameters
    ----------
    path_or_fd : path, int, or binary file or socket
        A path; a descriptor, which stays open; or an object with `readinto`, `recv_into` or `read`. A pipe or socket is read to its
        end, or until `size` bytes have come; one that does not block is waited for.
    pool : BufferPool or None
        Where the memory comes from; None: `default_pool()`.
    offset : int or str
        Bytes from the beginning of the file, for paths and descriptors, whose position neither matters nor changes. A file object
        is read from where it stands, and stands behind what was read.
    size : int, str or None
        Most bytes to read; None: to the end.
    direct : bool
        Go past the page cache (O_DIRECT). Where the file system refuses, a `RuntimeWarning` says so and the page cache is used.

    Returns
    -------
    Buffer
        What was there: shorter than `size` if the file ends before. The caller's to release.

    Raises
    ------
    OSError
        As `open` and `read` raise it, with the path or descriptor; `IsADirectoryError` for a directory.
    PoolExhausted, AccountLimitExceeded, MemoryError
        As `BufferPool.acquire`.
    TypeError, ValueError, OverflowError
        For a text file, a bool, or an argument that makes no sense; for `offset` with what cannot seek, or of 2**63 and more; for
        `direct` with what is no file.

    Notes
    -----
    After any error the pool has its memory back, and what can seek stands where it stood; what had come from a pipe or socket is
    lost.

    Examples
    --------
    >>> import os, tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b"0123456789")
    ...     file.flush()
    ...     with read(file.name, offset=3, size=4) as b:
    ...         b.tobytes()
    b'3456'
    """
    start = parse_place(offset)
    wanted = None if size is None else parse_size(size, "size")
    lend = lender(pool)
    source = open_source(path_or_fd)
    try:
        _set_place(source, start, is_path(path_or_fd) or isinstance(path_or_fd, int))
        if direct:
            source = directly(source)
        return _read(source, lend, wanted)
    except OSError as error:
        if error.errno is not None and error.filename is None and source.fd >= 0:
            error.filename = source.name
        raise
    finally:
        source.close()


def _set_place(source: Source, start: int, absolute: bool) -> None:
    if not absolute:
        if start:
            raise ValueError(f"offset counts in paths and descriptors: call seek({start}) of the file object instead")
    elif isinstance(source, Placed):
        source.offset, source.seek = start, None
    elif start:
        refuse_place(source.fd, start, source.name)
        os.lseek(source.fd, start, os.SEEK_SET)


def _read(source: Source, pool: BufferPool, wanted: int | None) -> Buffer:
    expected = source.expected(wanted)
    blocks: list[Buffer] = []
    try:
        if expected is not None:
            buffer = pool.acquire(source.room(expected))
            blocks.append(buffer)
            got = source.fill(buffer, expected)
            if got != len(buffer):
                buffer.resize(got)
            if got < expected or got == wanted or not source.has_more():
                source.publish()
                return buffer
        _read_on(source, pool, wanted, blocks)
        result = _joined(blocks, pool)
        source.publish()
        return result
    except BaseException:
        for buffer in blocks:
            buffer.release()
        source.put_back()
        raise


def _read_on(source: Source, pool: BufferPool, wanted: int | None, blocks: list[Buffer]) -> None:
    """Add blocks until the end, or until `wanted` bytes are there."""
    total = sum(map(len, blocks))
    while wanted is None or total < wanted:
        size = min(max(total, _FIRST), _LARGEST)
        if wanted is not None:
            size = min(size, wanted - total)
        buffer = pool.acquire(source.room(size))
        blocks.append(buffer)
        got = source.fill(buffer, size)
        buffer.resize(got)
        total += got
        if got < size:
            source.check()
            return


def _joined(blocks: list[Buffer], pool: BufferPool) -> Buffer:
    """Return the content of all in one; the blocks go back. One block stays where it is, unless most of it is empty."""
    total = sum(map(len, blocks))
    if len(blocks) == 1 and total * 2 > blocks[0].capacity:
        return blocks[0]
    result = pool.acquire(total)
    blocks.append(result)  # for who cleans up
    at = 0
    for block in blocks[:-1]:
        result[at : at + len(block)] = block
        at += len(block)
        block.release()
    return result
