"""What mempool is measured against: a careful pool in pure Python, memory kept by hand, a record as an object."""

from __future__ import annotations

import mmap
import sys
import threading

import numpy as np
import numpy.typing as npt

SMALL = 4096
HUGE_PAGE = 2 << 20


def references_of_one_name() -> int:
    """What ``sys.getrefcount`` says of an object that one local name holds (1 or 2, by version)."""
    block = np.empty(1, np.uint8)
    return sys.getrefcount(block)


SOLE_NAME = references_of_one_name()


class Lease:
    """A block of a :class:`PurePool` until it is released.

    One that is dropped instead is collected with its block: nothing is lost, only not reused.
    """

    __slots__ = ("_block", "_pool", "nbytes")

    def __init__(self, pool: PurePool, block: npt.NDArray[np.uint8], nbytes: int) -> None:
        self._pool = pool
        self._block: npt.NDArray[np.uint8] | None = block
        self.nbytes = nbytes

    def array(self) -> npt.NDArray[np.uint8]:
        """The lease's bytes."""
        if self._block is None:
            raise ValueError("lease is released")
        return self._block[: self.nbytes]

    def release(self) -> None:
        """Give the block back, unless something still views it: then leave it to that."""
        block, self._block = self._block, None
        # Whatever views a block holds a reference to it, directly or as its base.
        if block is not None and sys.getrefcount(block) == SOLE_NAME:
            self._pool.keep(block)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class PurePool:
    """A pool as a careful Python programmer writes it: size classes, a lock, a bound on idle.

    It never lends memory that is still viewed. It knows no limit on what is lent, no accounts,
    waiting, purging, statistics or leaks, and so has less to do than mempool.

    Parameters
    ----------
    max_idle
        The most bytes that it keeps for the next leases.
    """

    def __init__(self, max_idle: int = 1 << 62) -> None:
        self._lock = threading.Lock()
        self._idle: dict[int, list[npt.NDArray[np.uint8]]] = {}
        self._room = max_idle

    def acquire(self, nbytes: int) -> Lease:
        """Lend a block of at least `nbytes` bytes.

        Raises
        ------
        ValueError
            If `nbytes` is negative.
        """
        if nbytes > SMALL:
            # Written out here and not called, as calls are what pure Python pays for.
            step = 1 << (nbytes.bit_length() - 5)
            size = (nbytes + step - 1) & -step
        elif nbytes >= 0:
            size = (nbytes + 63) & -64 or 64
        else:
            raise ValueError(f"size must not be negative, got {nbytes}")
        with self._lock:
            idle = self._idle.get(size)
            if idle:
                self._room += size
                return Lease(self, idle.pop(), nbytes)
        return Lease(self, np.empty(size, np.uint8), nbytes)

    def keep(self, block: npt.NDArray[np.uint8]) -> None:
        """Put a block where the next lease of its class finds it, if there is room."""
        size = block.nbytes
        with self._lock:
            if size <= self._room:
                self._room -= size
                self._idle.setdefault(size, []).append(block)


def huge_buffer(nbytes: int) -> memoryview | None:
    """Memory as good as it gets: mapped once, huge pages where the OS has them, touched.

    Returns
    -------
    memoryview or None
        `nbytes` writable bytes that begin on a huge page; None where the OS has no such advice.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    mapping = mmap.mmap(-1, nbytes + HUGE_PAGE)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(mapping, np.uint8)
    start = -whole.ctypes.data % HUGE_PAGE
    part = whole[start : start + nbytes]
    part.fill(1)
    return part.data


class Record:
    """Four numbers as Python keeps them best: no ``__dict__``, no weak references."""

    __slots__ = ("key", "price", "amount", "stamp")

    def __init__(self, key: int, price: float, amount: float, stamp: int) -> None:
        self.key = key
        self.price = price
        self.amount = amount
        self.stamp = stamp
