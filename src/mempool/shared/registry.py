"""What this process owns: its pools' books, whose segment is whose, and what messages of closed pools still need."""

import os
import sys
import threading
import time
import weakref
from typing import NamedTuple

from mempool._core import _SharedMemory
from mempool.shared.layout import IN_FLIGHT, SENT_AT, word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mempool.shared.books import Books
    from mempool.shared.pool import SharedPool
    from mempool.shared.segment import Segment

__all__: list[str] = []


class Terms(NamedTuple):
    """How long a message may be on its way, in nanoseconds, and how long an exit waits for it, in seconds."""

    patience: float
    linger: float


class Parcel(NamedTuple):
    """A block of a closed pool that is on its way or elsewhere, kept as long as a message of it may still come."""

    memory: _SharedMemory
    block: int
    terms: Terms

    def on_its_way(self, now: int) -> bool:
        """Whether a message may still arrive."""
        sent = self.memory.get(word(self.block, SENT_AT))
        return self.memory.get(word(self.block, IN_FLIGHT)) > 0 and now - sent <= self.terms.patience

    def needed(self) -> bool:
        """Whether a message may still arrive, or another process may still send one."""
        now = time.monotonic_ns()
        if self.memory.inherited:  # by a child of fork, which owns nothing of it
            return False
        # The way is looked at again: who had the block until now may have sent it on.
        return self.on_its_way(now) or self.memory.taken(self.block) or self.on_its_way(now)


class Registry:
    """One per process; a child of fork begins with an empty one."""

    def __init__(self) -> None:
        self.begin(set())

    def begin(self, books: "set[Books]") -> None:
        """Own these pools and nothing else."""
        self.lock = threading.RLock()  # for who makes a pool or forks; who forks waits for no lock while having one
        self.books = books  # of pools that are not closed
        self.owned: dict[bytes, tuple[weakref.ref[SharedPool], Segment]] = {}
        self.closed: weakref.WeakKeyDictionary[_SharedMemory, Terms] = weakref.WeakKeyDictionary()
        # A dict, as its single steps need no lock.
        self.parcels: dict[tuple[int, int], Parcel] = {}
        self.exit_known = False

    def keep(self, memory: _SharedMemory, block: int, terms: Terms) -> None:
        """Keep a segment as long as messages of this block may arrive."""
        self.parcels[id(memory), block] = Parcel(memory, block, terms)

    def sweep(self) -> None:
        """Let go of what has arrived, and of what nobody elsewhere has any more."""
        if self.parcels:
            for key, parcel in list(self.parcels.items()):
                if not parcel.needed():
                    self.parcels.pop(key, None)
                    if parcel.needed():  # another thread has just sent it
                        self.parcels[key] = parcel

    def at_exit(self) -> None:
        """Have the exit of this process wait for messages; called with each lease, as a child of fork forgets.

        Not with each message: a queue that pickles while its process exits is too late to add to what an exit does.
        """
        if self.exit_known:
            return
        self.exit_known = True
        import atexit

        atexit.register(wait_for_messages)
        util = sys.modules.get("multiprocessing.util")
        if util is not None:  # its processes leave without `atexit`; after the queues' own, which send what they have
            util.Finalize(None, wait_for_messages, exitpriority=-100)


here = Registry()


def wait_for_messages() -> None:
    """Wait until what this process sent was received, as long as the pools' `linger` allows."""
    start = time.monotonic()
    while True:
        here.sweep()
        passed = time.monotonic() - start
        now = time.monotonic_ns()
        late = [parcel.terms.linger for parcel in list(here.parcels.values()) if parcel.on_its_way(now)]
        late += [books.terms.linger for books in list(here.books) if books.pid == os.getpid() and books.awaits()]
        if not any(linger > passed for linger in late):
            return
        time.sleep(0.001)
