"""Segments as their owner has them. Linux only: anonymous files, and locks that belong to a file description."""

import errno
import os
import weakref

from mempool._core import Account, _fork_depth, _has_shared_memory, _SharedHold, _SharedMemory
from mempool.shared.layout import (
    CAPACITY_WORD,
    COUNT_WORD,
    FD_WORD,
    GENERATION,
    HEADER,
    IN_FLIGHT,
    MAGIC,
    MAGIC_WORD,
    NONCE_WORD,
    PID_WORD,
    SENDS,
    SENT_AT,
    word,
)

__all__: list[str] = []

_NO_MEMORY = {errno.ENOMEM, errno.EFBIG, errno.ENOSPC, errno.EINVAL}


class Block:
    """One block of a segment, and how many holds of it live in this process."""

    __slots__ = ("forked", "fresh", "holds", "index", "segment", "spoiled")

    def __init__(self, segment: "Segment", index: int) -> None:
        self.segment, self.index = segment, index
        self.holds = 0
        self.fresh = True  # zeros, as the OS gave it
        self.forked = False  # a child may see it
        self.spoiled = False  # a child may see it and could not be given a lock: never lend it again

    def get(self, field: int) -> int:
        """Return a word of its record."""
        return self.segment.memory.get(word(self.index, field))

    def in_flight(self, now: int, patience: float) -> bool:
        """Whether a message names it that may still arrive; times are nanoseconds."""
        return self.get(IN_FLIGHT) > 0 and now - self.get(SENT_AT) <= patience

    def private(self) -> bool:
        """Whether no other process ever saw this lease."""
        return not self.forked and self.get(SENDS) == 0

    def reclaim(self, now: int, patience: float) -> bool:
        """Take it back for the next lease; False while another process holds it or a message is on its way."""
        memory, index = self.segment.memory, self.index
        if self.private():
            return True
        if self.in_flight(now, patience) or not memory.claim(index):
            return False
        try:
            # Again: who held it until now may have sent it on.
            if self.in_flight(now, patience):
                return False
            if not memory.renew(word(index, GENERATION)):  # a signal handler forked: the parent has it
                return False
        finally:
            memory.unlock(index)
        self.forked = False
        return True


class Segment:
    """Anonymous memory cut into blocks. The memory goes when nothing here and nobody elsewhere has it."""

    __slots__ = ("blocks", "capacity", "memory", "nonce", "ready")

    def __init__(self, capacity: int, count: int, account: Account) -> None:
        depth = _fork_depth()
        self.memory = _create(capacity * count + HEADER, account)
        self.capacity = capacity
        self.nonce = os.urandom(16)
        self.blocks = [Block(self, index) for index in range(count)]
        self.ready = 0  # blocks that are idle or spoiled
        self._write_header(count, depth)

    def _write_header(self, count: int, depth: int) -> None:
        memory = self.memory
        words = [
            (NONCE_WORD, int.from_bytes(self.nonce[:8], "little")),
            (NONCE_WORD + 1, int.from_bytes(self.nonce[8:], "little")),
            (COUNT_WORD, count),
            (CAPACITY_WORD, self.capacity),
            (PID_WORD, os.getpid()),
            (FD_WORD, memory.fd),
            *((word(index, GENERATION), 1) for index in range(count)),
            (MAGIC_WORD, MAGIC),
        ]
        memory.begin(depth, words)  # a signal handler may have forked: then there are two who make this segment


class Ref(weakref.ref[_SharedHold]):
    """Tells that the last view of a lease died. Its callback is `deque.append`: no Python runs, nothing can fail."""

    __slots__ = ("block",)
    block: Block


def check_platform() -> None:
    """Raise `OSError` where there are no anonymous segments."""
    if not (_has_shared_memory() and hasattr(os, "memfd_create")):
        raise OSError(errno.ENOSYS, "shared memory needs Linux: memfd_create and locks of open file descriptions")


def _create(nbytes: int, account: Account) -> _SharedMemory:
    """Make a segment that no other user can open and nobody can shrink under its readers."""
    import fcntl

    fd = os.memfd_create("mempool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, nbytes)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        except PermissionError:  # a fork just before: parent and child seal the same file, and one of them comes second
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & seals != seals:  # some kernels are told to seal more
                raise
        return _SharedMemory(fd, nbytes, account)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError) and error.errno in _NO_MEMORY:
            raise MemoryError(f"no memory for a shared segment of {nbytes} bytes") from error
        raise
