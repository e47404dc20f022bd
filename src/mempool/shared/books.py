"""The books of a pool: which block is lent, on its way, held elsewhere, or idle.

    idle --lend--> lent here --last view here dies--> waiting --nobody has it--> idle
                       ^                                 |
                       +------ a message comes home -----+

`waiting` blocks are asked for when memory is wanted. Whether another process has one is the kernel's to say: see `Block.reclaim`.
Invariant: a block is in `idle`, in `waiting`, or has holds; `reserved` is the bytes of all `segments`.
"""

import functools
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, cast

from mempool._core import Account, _fork_depth, _SharedHold, _SharedMemory
from mempool.errors import AccountLimitExceeded, MempoolError, PoolExhausted
from mempool.shared.layout import GENERATION, HEADER, IN_FLIGHT, block_size, blocks_per_segment, word
from mempool.shared.registry import Terms, here
from mempool.shared.segment import Block, Ref, Segment
from mempool.shared.stats import SharedStats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mempool.shared.pool import SharedPool

__all__: list[str] = []

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _alone(method: _Method) -> _Method:
    """Run one call at a time; a finaliser or signal handler that calls within a call is refused, as files refuse it.

    A handler may fork within a call. The child finishes the call with books that are nobody's any more, and begins anew.
    """

    def once(books: "Books", *arguments: Any) -> Any:
        with books.lock:
            if books.busy:
                raise RuntimeError(f"pool {books.name!r} was called within one of its own calls")
            books.busy = True
            try:
                if books.torn:
                    books.mend()
                books.torn = True
                result = method(books, *arguments)
                books.torn = False
                return result
            finally:
                books.busy = False

    @functools.wraps(method)
    def run(books: "Books", *arguments: Any) -> Any:
        while True:
            books = books.current()
            try:
                result = once(books, *arguments)
            except (MempoolError, PermissionError):  # the latter: parent and child seal the same new segment
                if books.current() is books:
                    raise
            else:
                if books.current() is books:
                    return result
            books.forget()

    return cast(_Method, run)


class Books:
    """State of one pool. Its own object, so that it can be closed after the pool is gone."""

    def __init__(self, name: str, limit: int | None, account: Account, terms: Terms) -> None:
        self.name, self.limit, self.account, self.terms = name, limit, account, terms
        self.peak = self.acquires = self.hits = self.exhausted = 0
        self.pool: weakref.ref[SharedPool] | None = None
        self.closed = False
        self.depth = _fork_depth()
        self.heir: Books | None = None
        self.lock = threading.RLock()  # reentrant, as a signal handler may fork
        self.busy = False
        self.torn = False  # the last call ended early, by an error or a signal handler's: blocks may be in no list
        self.pid = os.getpid()
        self.idle: dict[int, list[Block]] = {}
        self.waiting: dict[Block, None] = {}
        self.segments: dict[bytes, Segment] = {}
        self.returned: deque[weakref.ref[_SharedHold]] = deque()
        self.refs: dict[int, Ref] = {}
        self.reserved = 0
        self.left: list[weakref.ref[_SharedMemory]] = []  # of a closed pool: what views may still keep

    # ---- after a fork

    def current(self) -> "Books":
        """Return these books, or those that a child of fork has instead: empty ones."""
        if self.depth == _fork_depth():
            return self
        if self.heir is None:
            self.heir = self._bequeath()
        return self.heir.current()

    def _bequeath(self) -> "Books":
        heir = Books(self.name, self.limit, self.account, self.terms)
        heir.peak, heir.acquires, heir.hits, heir.exhausted = self.peak, self.acquires, self.hits, self.exhausted
        heir.closed = self.closed
        pool = None if self.pool is None else self.pool()
        if pool is not None:
            heir.pool = weakref.ref(pool, heir.abandon)
            pool._books = heir
            if not heir.closed:
                here.books.add(heir)
        self.pool = None
        if not self.busy:
            self.forget()
        return heir

    def forget(self) -> None:
        """Let go of what is the parent's now, and not with the collector: views keep what they need."""
        for segment in list(self.segments.values()):
            segment.blocks = []
        self.idle, self.waiting, self.segments, self.refs = {}, {}, {}, {}

    # ---- lending

    @_alone
    def lend(self, nbytes: int) -> tuple[_SharedHold, bool, int]:
        """Return a hold of a free block, whether its bytes are zeros, and how many bytes more are reserved for it."""
        before = self.reserved
        if self.closed:
            raise ValueError(f"pool {self.name!r} is closed")
        block = self._free_block(nbytes)
        hold = self._hold(block, nbytes)
        fresh, block.fresh = block.fresh, False
        self.acquires += 1
        return hold, fresh, max(0, self.reserved - before)

    def _free_block(self, nbytes: int) -> Block:
        """Take a block out of `idle`; makes a segment if there is none."""
        capacity = block_size(nbytes)
        if not self.idle.get(capacity):
            self.gather()
        if self.idle.get(capacity):
            self.hits += 1
        else:
            self._grow(nbytes, capacity)
        block = self.idle[capacity].pop()
        block.segment.ready -= 1
        return block

    def _hold(self, block: Block, nbytes: int) -> _SharedHold:
        segment = block.segment
        hold = _SharedHold(segment.memory, block.index, segment.capacity, nbytes)
        ref = Ref(hold, self.returned.append)
        ref.block = block
        block.holds += 1  # first: a call that ends here leaves a block that looks used, and not one that looks free
        self.refs[id(ref)] = ref
        return hold

    @_alone
    def again(self, segment: Segment, index: int, generation: int, nbytes: int) -> _SharedHold | None:
        """Return one more hold of a block whose message came home; None if the message is too old."""
        if segment.nonce not in self.segments:
            return None
        block = segment.blocks[index] if index >= 0 else None
        if block is None or block.get(GENERATION) != generation or not (block.holds or block in self.waiting):
            return None
        hold = self._hold(block, nbytes)
        self.waiting.pop(block, None)
        segment.memory.drop(word(index, IN_FLIGHT))
        return hold

    # ---- growing

    def _grow(self, nbytes: int, capacity: int) -> None:
        if self._find_ended() and self.idle.get(capacity):
            return
        count = blocks_per_segment(capacity)
        size = capacity * count + HEADER
        if self.limit is not None and self.reserved + size > self.limit:
            self.drop_idle()
            room = (self.limit - self.reserved - HEADER) // capacity
            if room < 1:
                raise self._no_room(nbytes)
            count = min(count, room)
        self._add(self._charged(capacity, count))

    def _charged(self, capacity: int, count: int) -> Segment:
        """Make a segment, of fewer blocks where an account leaves less room."""
        while True:
            try:
                return Segment(capacity, count, self.account)
            except AccountLimitExceeded:
                if not self.drop_idle():
                    if count == 1:
                        raise
                    count //= 2

    def _add(self, segment: Segment) -> None:
        self.segments[segment.nonce] = segment
        if self.pool is not None:
            here.owned[segment.nonce] = (self.pool, segment)
        self.idle.setdefault(segment.capacity, []).extend(reversed(segment.blocks))
        segment.ready = len(segment.blocks)
        self.reserved += segment.memory.nbytes
        self.peak = max(self.peak, self.reserved)

    def _no_room(self, nbytes: int) -> PoolExhausted:
        self.exhausted += 1
        limit = self.limit or 0
        text = f"pool {self.name!r} cannot lend {nbytes} bytes, a block of {block_size(nbytes)}"
        return PoolExhausted(f"{text}: {self.reserved} in use, limit {limit}", nbytes, self.reserved, limit)

    # ---- taking back

    def drain(self) -> None:
        """Note which leases have ended in this process."""
        while self.returned:
            ref = self.refs.pop(id(self.returned.popleft()), None)
            if ref is not None:
                ref.block.holds -= 1
                if ref.block.holds == 0:
                    self.waiting[ref.block] = None

    def _find_ended(self) -> bool:
        """Look for leases whose end could not be noted, as there was no memory for it; whether there were any."""
        ended = [ref for ref in list(self.refs.values()) if ref() is None]
        self.returned.extend(ended)
        if ended:
            self.gather()
        return bool(ended)

    def gather(self) -> None:
        """Make idle what nobody has any more."""
        self.drain()
        now = time.monotonic_ns()
        for block in list(self.waiting):
            if block.reclaim(now, self.terms.patience):
                self.waiting.pop(block, None)
                self._make_idle(block)

    def mend(self) -> None:
        """Put right what a call left that ended early: a block that no lease has and that is not idle is to be asked for."""
        self.returned.extend([ref for ref in list(self.refs.values()) if ref() is None])
        uses: dict[Block, int] = {}
        for ref in list(self.refs.values()):
            uses[ref.block] = uses.get(ref.block, 0) + 1
        ready = {block for blocks in self.idle.values() for block in blocks if block not in self.waiting}
        idle: dict[int, list[Block]] = {}
        for segment in list(self.segments.values()):
            free = [block for block in segment.blocks if block in ready and block not in uses]
            idle.setdefault(segment.capacity, []).extend(free)
            segment.ready = len(free)
            for block in segment.blocks:
                block.holds = uses.get(block, 0)
                if block.holds == 0 and block not in ready:
                    self.waiting[block] = None
            if self.pool is not None:
                here.owned[segment.nonce] = (self.pool, segment)
        self.idle = idle
        self.reserved = sum(segment.memory.nbytes for segment in self.segments.values())

    def _make_idle(self, block: Block) -> None:
        block.segment.ready += 1
        if not block.spoiled:
            self.idle.setdefault(block.segment.capacity, []).append(block)
        elif block.segment.ready == len(block.segment.blocks):
            self._drop(block.segment)

    @_alone
    def trim(self, floor: int = 0) -> int:
        """Take back what nobody has, and give unused segments to the OS; returns their bytes. So much stays idle, if it was."""
        self.gather()
        return self.drop_idle(floor)

    def drop_idle(self, floor: int = 0) -> int:
        """Give segments back of which no block is used, as long as more than the floor stays idle; returns their bytes."""
        before = self.reserved
        idle = sum(capacity * len(blocks) for capacity, blocks in self.idle.items()) if floor else 0
        for segment in list(self.segments.values()):
            if segment.ready == len(segment.blocks):
                size = segment.capacity * segment.ready
                if floor and idle - size < floor:
                    continue
                idle -= size
                self._drop(segment)
        return before - self.reserved

    def _drop(self, segment: Segment) -> None:
        here.owned.pop(segment.nonce, None)
        if self.segments.pop(segment.nonce, None) is not None:
            self.reserved -= segment.memory.nbytes
            blocks = [block for block in self.idle.get(segment.capacity, []) if block.segment is not segment]
            self.idle[segment.capacity] = blocks
            segment.blocks = []  # they name the segment: no circle shall keep the memory until the collector comes

    @_alone
    def awaits(self) -> bool:
        """Whether a message of a block may still arrive."""
        now = time.monotonic_ns()
        blocks = [block for segment in self.segments.values() for block in segment.blocks]
        return any(block.in_flight(now, self.terms.patience) for block in blocks)

    @_alone
    def report(self) -> SharedStats:
        """Return the figures of this moment."""
        self.gather()
        uses, live = self._uses()
        now = time.monotonic_ns()
        flying = [block.in_flight(now, self.terms.patience) for block in self.waiting]
        sizes = [block.segment.capacity for block in self.waiting]
        left = [memory.nbytes for memory in (ref() for ref in self.left) if memory is not None]
        in_use = sum(block.segment.capacity for block, used in uses.items() if used)
        retired = sum(block.segment.capacity for block, used in uses.items() if not used)
        retired += sum(left) - HEADER * len(left)
        in_flight = sum(size for size, fly in zip(sizes, flying, strict=True) if fly)
        held = sum(sizes) - in_flight
        idle = sum(capacity * len(blocks) for capacity, blocks in self.idle.items())
        reserved = self.reserved + sum(left)
        return SharedStats(
            in_use=in_use,
            retired=retired,
            in_flight=in_flight,
            held=held,
            idle=idle,
            overhead=reserved - in_use - retired - in_flight - held - idle,
            reserved=reserved,
            peak=self.peak,
            limit=self.limit,
            segments=len(self.segments) + len(left),
            live=live,
            acquires=self.acquires,
            hits=self.hits,
            exhausted=self.exhausted,
        )

    def _uses(self) -> tuple[dict[Block, bool], int]:
        """Return whether each block with holds is lent or only viewed, and how many buffers are lent."""
        uses = {ref.block: False for ref in self.refs.values()}
        live = 0
        for ref in self.refs.values():
            hold = ref()
            if hold is not None and not hold.ended:
                uses[ref.block] = True
                live += 1
        return uses, live

    # ---- the end

    def abandon(self, pool: object, is_over: Callable[[], bool] = sys.is_finalizing) -> None:
        """Close, as the pool is gone. At the end of the process, when modules are empty already, the OS does it."""
        if not is_over():
            self.close()

    @_alone
    def close(self) -> None:
        """Drop what is idle and stop owning the rest: views, other processes and messages on their way keep it."""
        if self.closed and not self.segments:
            return
        self.closed = True
        self.gather()
        self.drop_idle()
        for segment in list(self.segments.values()):  # what is left is in use somewhere
            here.closed[segment.memory] = self.terms
            self.left.append(weakref.ref(segment.memory))
            for block in segment.blocks:
                if not block.private():  # who has it may send it on
                    here.keep(segment.memory, block.index, self.terms)
            self._drop(segment)
        self.idle, self.waiting, self.refs = {}, {}, {}
        here.books.discard(self)
        here.sweep()
