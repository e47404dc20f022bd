"""What this process owns: its pools' books, whose segment is whose, and what messages of closed pools still need."""

import itertools
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
    """A block of a closed pool with messages in flight, kept until they arrive."""

    memory: _SharedMemory
    block: int
    terms: Terms

    def on_its_way(self, now: int) -> bool:
        """Whether a message may still arrive."""
        sent = self.memory.get(word(self.block, SENT_AT))
        return self.memory.get(word(self.block, IN_FLIGHT)) > 0 and now - sent <= self.terms.patience


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
        self.parcels: dict[int, Parcel] = {}
        self.numbers = itertools.count()
        self.exit_known = False

    def keep(self, memory: _SharedMemory, block: int, terms: Terms) -> None:
        """Keep a segment as long as messages of this block may arrive."""
        self.parcels[next(self.numbers)] = Parcel(memory, block, terms)

    def sweep(self) -> None:
        """Let go of what has arrived."""
        if self.parcels:
            now = time.monotonic_ns()
            for number, parcel in list(self.parcels.items()):
                if parcel.memory.inherited or not parcel.on_its_way(now):
                    self.parcels.pop(number, None)

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
        late = [parcel.terms.linger for parcel in list(here.parcels.values())]
        late += [books.terms.linger for books in list(here.books) if books.pid == os.getpid() and books.awaits()]
        if not any(linger > passed for linger in late):
            return
        time.sleep(0.001)
