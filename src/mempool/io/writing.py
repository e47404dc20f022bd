"""Bytes, in one or many pieces, into a file, a pipe or a socket."""

import os
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mempool._core import Buffer, default_pool
from mempool.io._arguments import parse_place
from mempool.io._direct import REFUSALS, alignment_of, open_again, warn_of_cache
from mempool.io._os import pwritev
from mempool.io._sinks import PlacedSink, Sink, appends, open_sink, told, write_all

if TYPE_CHECKING:
    from typing_extensions import Buffer as BytesLike

    from mempool.io._arguments import Size, Writable

__all__ = ["write"]

_PIECE = 8 << 20  # of what is copied to aligned memory on its way


def write(
    path_or_fd: "Writable",
    data: "BytesLike | Iterable[BytesLike]",
    *,
    offset: "Size | None" = None,
    direct: bool = False,
) -> int:
    """Write all of some bytes.

    Parameters
    ----------
    path_or_fd : path, int, or binary file or socket
        A path is created, and loses what it had unless there is an `offset`; a descriptor is written where it stands; an object
        through its `write` or `send`. What does not block is waited for.
    data : bytes-like, or an iterable of such
        Pieces are gathered by the OS, not joined. What is not contiguous is copied first.
    offset : int, str or None
        Bytes from the beginning of the file: written there, the rest stays, and so does the position of a descriptor.
    direct : bool
        Go past the page cache (O_DIRECT) with all but the unaligned ends. Where the file system refuses, a `RuntimeWarning` says
        so.

    Returns
    -------
    int
        Bytes written: all.

    Raises
    ------
    OSError
        With the path, and how many bytes had been written when a disk was full, a limit reached or a pipe broken.
    PoolExhausted, AccountLimitExceeded, MemoryError
        For `direct`, if the default pool has no room for a block of 8 MiB, or for all if that is less. A note of the error says how
        many bytes had been written.
    TypeError, ValueError, OverflowError
        For text and other data that has no bytes; for `offset` with what cannot seek or appends, or of 2**63 and more; for `direct`
        with what is no file.

    Examples
    --------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "x")
    >>> write(path, [b"one ", b"two"]), write(path, b"TWO", offset=4)
    (7, 3)
    >>> with open(path, "rb") as file:
    ...     file.read()
    b'one TWO'
    """
    start = None if offset is None else parse_place(offset)
    views = views_of(data)
    try:
        return _write(path_or_fd, views, start, direct)
    finally:
        for view in views:
            view.release()


def views_of(data: Any) -> list[memoryview]:
    """Return flat views of all pieces; `TypeError` for what has no bytes."""
    try:
        return [flat(memoryview(data))]
    except TypeError:
        if isinstance(data, str) or not isinstance(data, Iterable):
            raise TypeError(f"data must be bytes-like, or an iterable of such, not {type(data).__name__}") from None
    views: list[memoryview] = []
    try:
        for piece in data:
            views.append(flat(memoryview(piece)))
    except BaseException as error:
        for view in views:
            view.release()
        if isinstance(error, TypeError):
            raise TypeError(f"each piece of data must be bytes-like: {error}") from None
        raise
    return views


def flat(view: memoryview) -> memoryview:
    """Return the bytes in C order; copied if they do not lie so."""
    if view.format == "B" and view.ndim == 1 and view.c_contiguous:
        return view
    if not view.c_contiguous or not view.nbytes:  # no view of nothing can be cast
        return memoryview(view.tobytes())
    return view.cast("B")


def _write(target: Any, views: list[memoryview], start: int | None, direct: bool) -> int:
    total, done = sum(map(len, views)), 0

    def count(taken: int) -> None:
        nonlocal done
        done += taken

    sink = open_sink(target, start)
    try:
        if direct:
            _write_past(sink, views, count)
        else:
            write_all(sink, views, count)
    except OSError as error:
        raise told(error, done, total, sink.name) from None
    except MemoryError as error:
        error.add_note(f"{done} of {total} bytes had been written")
        raise
    finally:
        sink.publish()
        sink.close()
    return done


# ---- past the page cache ----


def _write_past(sink: Sink, views: list[memoryview], count: Any) -> None:
    """Write the blocks that are whole past the page cache, what is before and behind through it."""
    status = os.fstat(sink.fd) if sink.fd >= 0 else None
    if status is None or not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        raise ValueError(f"direct=True needs a file, not {sink.name!r}")
    if appends(sink.fd):
        warn_of_cache(sink.name, "it appends")
        write_all(sink, views, count)
        return
    start = sink.offset if isinstance(sink, PlacedSink) else os.lseek(sink.fd, 0, os.SEEK_CUR)
    past = open_again(sink.name, sink.fd, os.O_WRONLY)
    if past is None:
        write_all(sink, views, count)
        return
    placed = PlacedSink(sink.name, sink.fd, None, start)
    try:
        align = alignment_of(status)
        pieces = _Pieces(views)
        write_all(placed, pieces.take(-start % align), count)
        _write_blocks(placed, past.fileno(), pieces, align, count)
        write_all(placed, pieces.take(pieces.left), count)
    finally:
        past.close()
        if not isinstance(sink, PlacedSink):
            os.lseek(sink.fd, placed.offset, os.SEEK_SET)


def _write_blocks(placed: PlacedSink, past: int, pieces: "_Pieces", align: int, count: Any) -> None:
    """Write whole blocks by way of aligned memory; what is refused is left to the page cache."""
    room = min(_PIECE, pieces.left // align * align)
    if not room:
        return
    with default_pool().acquire(room + align) as buffer:
        before = -buffer.address % align
        while pieces.left >= align:
            length = min(room, pieces.left // align * align)
            parts = pieces.take(length)
            _join(parts, buffer, before)
            with memoryview(buffer) as whole, whole[before : before + length] as part:
                if not _put(placed, past, part, count):
                    write_all(placed, [part], count)
                    return


def _put(placed: PlacedSink, past: int, part: memoryview, count: Any) -> bool:
    """Write aligned memory past the page cache; False if that is refused."""
    try:
        done = pwritev(past, (part,), placed.offset)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        warn_of_cache(placed.name, f"it cannot be written with O_DIRECT ({os.strerror(error.errno)})")
        return False
    placed.offset += done
    count(done)
    if done < len(part):  # a disk that is nearly full: what does not fit says so
        with part[done:] as rest:
            write_all(placed, [rest], count)
    return True


def _join(parts: list[memoryview], buffer: Buffer, at: int) -> None:
    for part in parts:
        buffer[at : at + len(part)] = part
        at += len(part)


class _Pieces:
    """Views that are taken from front to back, in lengths of any size."""

    def __init__(self, views: list[memoryview]) -> None:
        self._views = [view[:] for view in views]
        self.left = sum(map(len, views))

    def take(self, length: int) -> list[memoryview]:
        """Return views of the next `length` bytes, or of what is left."""
        taken: list[memoryview] = []
        length = min(length, self.left)
        self.left -= length
        while length:
            first = self._views[0]
            if len(first) <= length:
                taken.append(self._views.pop(0))
            else:
                taken.append(first[:length])
                self._views[0] = first[length:]
            length -= len(taken[-1])
        return taken
