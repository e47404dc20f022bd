"""From a file, pipe or socket to another: inside the OS where it can, else through pooled memory.

    copy_file_range ->  sendfile ->  blocks      each takes over where the one before stopped, refused, or found nothing

Only a read knows the end for sure: files of /proc say that they are empty, others grow. So every copy ends with one. A sparse file
goes to a new one extent by extent, each by these ways: given more, all but the first would write its holes as zeros.
"""

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

from mempool._core import Buffer, _lease_of_ours, default_pool
from mempool.io._sinks import Sink, open_sink, told, write_all
from mempool.io._sources import Placed, Source, is_path, open_source
from mempool.units import parse_size

if TYPE_CHECKING:
    from mempool.io._arguments import Readable, Size, Writable

__all__ = ["copy"]

_BLOCK = 1 << 20
_STEP = 64 << 20  # of one call inside the OS, between which signals are seen
# Not possible this way, for these two; whether it is at all, the next way tells.
_REFUSALS = {
    errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF, errno.EPERM, errno.ENOTSOCK,
}  # fmt: skip


def copy(src: "Readable", dst: "Writable", *, size: "Size | None" = None) -> int:
    """Copy bytes from one file, pipe, socket or object to another.

    Parameters
    ----------
    src, dst : path, int, or binary file or socket
        A path is read from its beginning, and written anew. Descriptors and file objects are read and written from where they
        stand, and stand behind what was copied. What does not block is waited for.
    size : int, str or None
        Most bytes to copy; None: to the end.

    Returns
    -------
    int
        Bytes copied; holes of a sparse file count, and stay holes in a file that is made here.

    Raises
    ------
    shutil.SameFileError
        If both are the same file. Then it is as it was.
    OSError
        With both names, and how many bytes had been copied. What was read from a pipe or socket and could not be written is lost.
    PoolExhausted, AccountLimitExceeded, MemoryError
        If the OS cannot copy between these two, and the default pool has no room for a block of 1 MiB. A note of the error says how
        many bytes had been copied.
    TypeError, ValueError
        For text files, or an argument that makes no sense.

    Examples
    --------
    >>> import io
    >>> target = io.BytesIO()
    >>> copy(io.BytesIO(b"0123456789"), target, size=4), target.getvalue()
    (4, b'0123')
    """
    wanted = None if size is None else parse_size(size, "size")
    source = open_source(src, "src")
    try:
        _refuse_same(src, dst)
        sink = open_sink(dst, None, "dst")
        try:
            return _Copy(source, sink, wanted).run()
        finally:
            sink.close()
    finally:
        source.close()


def _refuse_same(src: Any, dst: Any) -> None:
    """Raise before the target loses its content."""
    first, second = _status(src), _status(dst)
    if first is None or second is None or not stat.S_ISREG(first.st_mode):
        return
    if os.path.samestat(first, second):
        from shutil import SameFileError

        raise SameFileError(f"{src!r} and {dst!r} are the same file")


def _status(what: Any) -> os.stat_result | None:
    """Return what the OS says of the file; None where there is none, or not yet."""
    if isinstance(what, bool):
        return None
    try:
        return os.stat(what if is_path(what) or isinstance(what, int) else what.fileno())
    except (OSError, AttributeError, TypeError, ValueError):
        return None


class _Copy:
    """One copy: how far it is, and the ways to go on."""

    def __init__(self, source: Source, sink: Sink, wanted: int | None) -> None:
        self._source, self._sink, self._wanted = source, sink, wanted
        self._done = 0
        self._stop = _NO_END if wanted is None else wanted  # where what is copied now ends

    def run(self) -> int:
        source, sink = self._source, self._sink
        try:
            if isinstance(source, Placed) and sink.fresh and source.status.st_blocks * 512 < source.status.st_size:
                self._by_extents(source)
            self._by_all_ways()
        except OSError as error:
            raise told(error, self._done, self._wanted, source.name, sink.name) from None
        except MemoryError as error:
            error.add_note(f"{self._done} bytes had been copied")
            raise
        finally:
            source.publish()
            sink.publish()
        return self._done

    def _left(self, most: int) -> int:
        return min(most, self._stop - self._done)

    def _by_all_ways(self) -> None:
        """Copy to `_stop`, or to the end."""
        if isinstance(self._source, Placed) and self._sink.fd >= 0:
            self._by_range(self._source)
            self._by_sendfile(self._source)
        self._by_blocks()

    def _by_range(self, source: Placed) -> None:
        """Let the file system copy, which may mean to share."""
        if not hasattr(os, "copy_file_range"):
            return
        while self._left(1):
            try:
                got = os.copy_file_range(source.fd, self._sink.fd, self._left(_STEP), source.offset)
            except OSError as error:
                if error.errno in _REFUSALS:
                    return
                raise
            if not got:
                return
            source.offset += got
            self._done += got

    def _by_extents(self, source: Placed) -> None:
        """Copy what a sparse file has, and leave holes as they are."""
        if not hasattr(os, "SEEK_DATA"):
            return
        end = min(source.status.st_size, source.offset + self._left(_NO_END))
        while source.offset < end:
            try:
                data, hole = _next_extent(source.fd, source.offset, end)
            except OSError:  # this file system does not tell
                break
            skipped = data - source.offset
            os.lseek(self._sink.fd, skipped, os.SEEK_CUR)
            source.offset = data
            self._done += skipped
            self._by_one_extent(hole - data)
            if source.offset < hole:  # the file became shorter
                break
        place = os.lseek(self._sink.fd, 0, os.SEEK_CUR)
        if place > os.fstat(self._sink.fd).st_size:
            os.ftruncate(self._sink.fd, place)

    def _by_one_extent(self, length: int) -> None:
        stop, self._stop = self._stop, self._done + length
        try:
            self._by_all_ways()
        finally:
            self._stop = stop

    def _by_sendfile(self, source: Placed) -> None:
        """Let the OS move pages, which sockets and pipes take too."""
        if not hasattr(os, "sendfile"):
            return
        while self._left(1):
            try:
                got = os.sendfile(self._sink.fd, source.fd, source.offset, self._left(_STEP))
            except BlockingIOError:
                self._sink.wait()
                continue
            except OSError as error:
                if error.errno in _REFUSALS:
                    return
                raise
            if not got:
                return
            source.offset += got
            self._done += got

    def _by_blocks(self) -> None:
        if not self._left(1) or (isinstance(self._source, Placed) and not self._source.has_more()):
            return
        with _lease_of_ours(default_pool(), self._left(_BLOCK)) as buffer:
            while self._left(1):
                if self._left(_BLOCK) < len(buffer):
                    buffer.resize(self._left(_BLOCK))
                got = self._source.some(buffer)
                if not got:
                    return
                self._put(buffer, got)

    def _put(self, buffer: Buffer, length: int) -> None:
        """Write what was read; a source with places goes back to what was not taken."""
        before = self._done
        try:
            with memoryview(buffer) as whole, whole[:length] as part:
                write_all(self._sink, [part], self._count)
        finally:
            if isinstance(self._source, Placed):
                self._source.offset -= length - (self._done - before)

    def _count(self, taken: int) -> None:
        self._done += taken


_NO_END = 1 << 62


def _next_extent(fd: int, offset: int, end: int) -> tuple[int, int]:
    """Return where the next data begins and ends; twice `end` if only a hole is left."""
    try:
        data = os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return end, end
    if data >= end:
        return end, end
    return data, min(os.lseek(fd, data, os.SEEK_HOLE), end)
