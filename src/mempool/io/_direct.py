"""Past the page cache: what the OS demands of offsets, lengths and addresses, and what is done where it refuses.

A part of a file lies between aligned offsets. It is read with what is around it, and moved to the beginning of its buffer:

    file     |.....[===== asked =====]...|      | aligned offsets
    buffer   |.....[=====       =====]...|  ->  [===== asked =====]

A descriptor that the caller gave is opened again: to set O_DIRECT on it would bind everybody who shares it.
"""

import errno
import os
import sys
import warnings

from mempool._core import Buffer
from mempool.io._os import Owned, preadv
from mempool.io._sources import Placed, Source

__all__ = ["Direct", "alignment_of", "directly", "open_again", "warn_of_cache"]

# A page: what Linux wanted for long, and a multiple of nearly every device's logical block.
LEAST = 4096

# errno of file systems that know no O_DIRECT, and of descriptors that cannot be opened again.
REFUSALS = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ETXTBSY}


def alignment_of(status: os.stat_result) -> int:
    """Bytes that offsets, lengths and addresses have to be a multiple of."""
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    for folder in ("queue", "../queue"):  # a disk, a partition of one
        try:
            with open(f"/sys/dev/block/{major}:{minor}/{folder}/logical_block_size", "rb") as file:
                return max(LEAST, int(file.read()))
        except (OSError, ValueError):
            continue
    return LEAST


def warn_of_cache(name: object, reason: str) -> None:
    """Say, to who called this package, that a file is moved through the page cache after all."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("mempool."):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"{name!r} goes through the page cache: {reason}", RuntimeWarning, stacklevel=level)


def open_again(name: object, fd: int, flags: int) -> Owned | None:
    """Open the file of a descriptor without the page cache; None, and a warning, where that cannot be."""
    flag = getattr(os, "O_DIRECT", 0)
    if not flag:
        warn_of_cache(name, f"{sys.platform} has no O_DIRECT")
        return None
    if _mode(fd) not in (flags, os.O_RDWR):  # what the caller may not do with his descriptor, we do not do for him
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), name)
    try:
        return Owned(os.open(f"/proc/self/fd/{fd}", flags | flag))
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        warn_of_cache(name, f"its file system refuses O_DIRECT ({os.strerror(error.errno)})")
        return None


def _mode(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE


class Direct(Placed):
    """A file that is read past the page cache, as far as that goes."""

    def __init__(self, plain: Placed, past: Owned) -> None:
        super().__init__(plain.name, plain.fd, plain.owned, plain.status, plain.offset, plain.seek)
        self._past: Owned | None = past
        self._align = alignment_of(plain.status)

    def room(self, size: int) -> int:
        return -(-size // self._align) * self._align + self._align

    def fill(self, buffer: Buffer, size: int) -> int:
        if self._past is None:
            return super().fill(buffer, size)
        start = self.offset - self.offset % self._align
        before = self.offset - start
        stop = -(-(before + size) // self._align) * self._align
        with memoryview(buffer) as whole:
            there = self._read_around(whole, start, stop)
            done = max(0, min(there - before, size))
            if before and done:
                whole[:done] = whole[before : before + done]
        self.offset += done
        return done

    def _read_around(self, whole: memoryview, start: int, stop: int) -> int:
        """Read whole blocks; what the end of the file, or a refusal, leaves goes through the page cache."""
        there = 0
        while self._past is not None and there < stop:
            with whole[there:stop] as part:
                try:
                    got = preadv(self._past.fileno(), (part,), start + there)
                except OSError as error:
                    if error.errno not in REFUSALS:
                        raise
                    self._give_up(os.strerror(error.errno))
                    break
            there += got
            if not got or there % self._align:
                break
        while there < stop:
            with whole[there:stop] as part:
                got = preadv(self.fd, (part,), start + there)
            if not got:
                break
            there += got
        return there

    def _give_up(self, reason: str) -> None:
        past, self._past = self._past, None
        if past is not None:
            past.close()
        warn_of_cache(self.name, f"it cannot be read with O_DIRECT ({reason})")

    def close(self) -> None:
        if self._past is not None:
            self._past.close()
        super().close()


def directly(source: Source) -> Source:
    """Return the source past the page cache; itself, with a warning, where that cannot be.

    Raises
    ------
    ValueError
        For a pipe, a socket, or an object: there is no page cache to pass.
    """
    if not isinstance(source, Placed):
        raise ValueError(f"direct=True needs a file, not {source.name!r}")
    past = open_again(source.name, source.fd, os.O_RDONLY)
    return source if past is None else Direct(source, past)
