# Bytes that arrived from a peer and were not asked for yet.
#
#     block   |  taken  |  waiting  |  where the event loop receives  |
#             base      start       end                               room
#
# There is one block, and only while bytes wait: it is acquired when the loop asks where to receive, and given back when all was
# taken. So what waits is contiguous: a separator is found with one scan, a cancelled read has nothing to put back, and a message
# that fills the block is handed over as it is, without a copy. For that, a reader that waits for a long message says so (`wish`):
# then the block is made for it, with room for no byte more, and the bytes come from the kernel to where they stay.
#
# `target` is the other way round: the memory of the caller of `readinto`, for what arrives first. It is set only while nothing
# waits.
#
# An exception from `get_buffer` would end the connection. Where the pool has no memory, the loop receives into a little memory of
# Python's heap, and reading is paused; it is for the reader to wait for memory or to learn that there is none. While it waits, what
# came before moves to the heap too (no more than the limits let wait): else the blocks of connections that wait for memory could be
# the memory they wait for.
#
# Invariant: start <= end <= room; without an owner all are 0. A lease that the loop may still write into (something views it) is
# never handed over: its content is copied.
#
# Rejected: a chain of blocks. It spares the copy when a block grows, and costs a search over seams for each line. So is a ring
# (`_ring.pxi`): an idle connection would hold its pages.
from cpython.bytearray cimport PyByteArray_AS_STRING

cdef extern from "<string.h>":
    const void *memchr(const void *, int, size_t) noexcept nogil
    void *memmove(void *, const void *, size_t) noexcept nogil

cdef enum:
    SPARE = 4096  # bytes of Python's heap for a connection whose pool has none
    LEAST_BLOCK = 64 << 10
    MOST_BLOCK = 256 << 10  # more is seldom ready at once
    PEEK = 4096  # after a long message: the begin of the next one, whose rest will have a block of its own


cdef Buffer quick_lease(BufferPool pool, size_t size):
    """`pool.acquire(size)` for what has a size already."""
    cdef Buffer buffer
    cdef mp_block *block
    if pool._c is not NULL:
        buffer = Buffer.__new__(Buffer)
        buffer._pool = pool
        block = mp_pool_acquire_idle(pool._c, size)
        if block is not NULL:
            buffer._block = block
            if PyTraceMalloc_Track(DOMAIN, <uintptr_t>block.data, block.capacity) == 0:
                buffer._flags = TRACED
            if not pool._plain:
                pool._finish(buffer, False)
            return buffer
    return pool._acquire_slowly(size, False, 0)


cdef Py_ssize_t find_bytes(const char *text, size_t length, const char *wanted, size_t size) noexcept nogil:
    """Where `wanted` begins, or -1."""
    cdef const char *at = text
    cdef const char *end
    if length < size:
        return -1
    end = text + length - size + 1  # no match begins here or later
    while at < end:
        at = <const char *>memchr(at, wanted[0], end - at)
        if at is NULL:
            return -1
        if memcmp(at, wanted, size) == 0:
            return at - text
        at += 1
    return -1


cdef class _Inbox:
    """What a connection received, between the event loop (`get_buffer`, `buffer_updated`) and one reader (the rest).

    Used by one thread, the loop's, like all of asyncio.
    """

    cdef readonly BufferPool pool
    cdef readonly object loop
    cdef readonly size_t limit
    cdef readonly size_t block_size   # of the next block: larger while the peer fills them
    cdef readonly object max_message  # int or None
    cdef size_t longest               # the same
    cdef object owner                 # of the block: a Buffer, or a bytearray where the pool had none
    cdef char *base
    cdef size_t start, end, room
    cdef size_t searched              # bytes after `start` in which no `searched_for` begins
    cdef object searched_for
    cdef object target                # a memoryview of the caller's memory
    cdef readonly size_t filled       # what arrived there and `readinto` has not seen yet
    cdef size_t target_size
    cdef object waiter                # future of the reader that waits, until it has run
    cdef size_t needed, wish
    cdef public bint busy             # the reader waits for memory
    cdef bint paused, tidying
    cdef public bint eof
    cdef public object error          # what reads raise
    cdef object transport             # None: nothing to pause

    def __init__(self, loop, BufferPool pool not None, size_t limit, max_message):
        self.loop, self.pool, self.limit, self.block_size = loop, pool, limit, LEAST_BLOCK
        self.max_message = max_message
        self.longest = SIZE_MAX if max_message is None else max_message

    def __len__(self):
        return self.end - self.start

    # ---- memory ----

    cdef int _give_back(self) except -1:
        """Let go of the block and what it holds."""
        owner = self.owner
        self.owner, self.base = None, NULL
        self.start = self.end = self.room = self.searched = 0
        if isinstance(owner, Buffer) and (<Buffer>owner)._end():
            wake((<Buffer>owner)._pool)
        return 0

    cdef int _install(self, object owner, char *base, size_t room) except -1:
        """Make this the block, and move what waits into it."""
        cdef size_t size = self.end - self.start
        old = self.owner
        if size:
            memcpy(base, self.base + self.start, size)
        self.owner, self.base, self.start, self.end, self.room = owner, base, 0, size, room
        if isinstance(old, Buffer) and (<Buffer>old)._end():
            wake((<Buffer>old)._pool)
        return 0

    cdef int _install_lease(self, Buffer buffer, size_t room) except -1:
        buffer._flags |= OURS
        return self._install(buffer, <char *>buffer._block.data, room)

    cdef int _make_room(self, size_t room) except -1:
        """Have a block of so many bytes, from Python's heap if the pool has none."""
        try:
            self._install_lease(quick_lease(self.pool, room), room)
        except (MemoryError, ValueError):  # exhausted, or closed
            self._to_heap(self.end - self.start + SPARE)
        return 0

    cdef int _to_heap(self, size_t room) except -1:
        spare = bytearray(room)
        return self._install(spare, PyByteArray_AS_STRING(spare), room)

    cdef int _prepare(self) except -1:
        """Have room after `end`."""
        cdef size_t size = self.end - self.start
        if self.owner is None:
            self._make_room(max(self.wish, self.block_size))
            if not self.tidying:
                self.loop.call_soon(self._tidy)
                self.tidying = True
        elif self.end == self.room and not self._compact():
            self._make_room(max(self.wish, 2 * size, self.block_size))
        return 0

    cdef bint _compact(self) noexcept:
        """Move what waits to the front, if that gains enough."""
        cdef size_t size = self.end - self.start
        if size > self.start:
            return False
        memmove(self.base, self.base + self.start, size)
        self.start, self.end = 0, size
        return True

    def _tidy(self):
        """After a callback of the loop that asked where to receive and received nothing."""
        self.tidying = False
        if self.start == self.end:
            self._give_back()

    # ---- the loop's side ----

    def get_buffer(self, hint):
        """Where to receive: never empty, whatever the state of the pool."""
        with cython.critical_section(self):
            if self._aims():
                return self.target
            self._prepare()
            return PyMemoryView_FromObject(self.owner)[self.end:self.room]

    def buffer_updated(self, size_t received):
        """So many bytes are where `get_buffer` said."""
        cdef bint woken
        with cython.critical_section(self):
            if received > (self.target_size if self._aims() else self.room - self.end):
                raise RuntimeError(f"{received} bytes received where there was no room for them")
            if self._aims():
                self.filled = received
                self._wake()
                return
            self._learn(received)
            self.end += received
            woken = False
            if self.waiter is not None:
                if self.end - self.start < self.needed and not self._starved():
                    return
                woken = self._wake()
            if self._is_full(woken):
                self._pause()

    cdef void _learn(self, size_t received) noexcept:
        """A peer that fills the block sends faster than we look; one that hardly uses it needs less."""
        if received == self.room - self.end:
            self.block_size = min(2 * self.block_size, <size_t>MOST_BLOCK)
        elif received < self.block_size // 8:
            self.block_size = max(self.block_size // 2, <size_t>LEAST_BLOCK)

    cdef bint _aims(self) noexcept:
        return self.target is not None and not self.filled

    cdef bint _starved(self) noexcept:
        return isinstance(self.owner, bytearray)

    cdef bint _is_full(self, bint woken) noexcept:
        """Enough waits: more than a reader should hold that does not run next, or a long message that ends with its block."""
        cdef size_t size = self.end - self.start
        if self._starved() or (size > 2 * self.limit and not woken):
            return True
        return self.end == self.room and self.room > <size_t>MOST_BLOCK

    cdef bint _wake(self) except -1:
        """True if somebody slept."""
        if self.waiter is None or self.waiter.done():
            return False
        self.waiter.set_result(None)
        return True

    cdef int _pause(self) except -1:
        if self.paused or self.transport is None:
            return 0
        try:
            self.transport.pause_reading()
        except NotImplementedError:
            self.transport = None  # it cannot: all will have to wait here
        else:
            self.paused = True
        return 0

    cdef int _resume(self) except -1:
        if self.paused:
            self.paused = False
            if self.transport is not None:
                self.transport.resume_reading()
        return 0

    def attach(self, transport):
        """Receive from this transport from now on; None: nothing comes any more."""
        self.transport = transport
        self.paused = False
        if transport is None and self.start == self.end:
            self._give_back()

    def end_of_stream(self, error):
        """Nothing follows: reads raise `error`, or if that is None end where the bytes do."""
        if error is not None:
            self.fail(error)
        else:
            self.eof = True
            self._wake()

    def fail(self, error not None):
        """Reads raise this from now on, also one that sleeps now, whatever comes before it runs."""
        self.error = error
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(error)

    # ---- the reader's side ----

    @property
    def starved(self):
        """What waits stands in Python's heap, as the pool had no memory."""
        return self._starved()

    def begin_wait(self, str who, size_t needed, size_t wish):
        """Return a future that is done when `needed` bytes wait, nothing more follows, or there is no memory for more.

        `wish` bytes of memory are to be acquired when the next byte arrives.
        """
        self.check_alone(who)
        self.needed, self.wish = needed, wish
        self.waiter = waiter = self.loop.create_future()
        self._resume()
        return waiter

    def end_wait(self, future):
        """The reader runs again."""
        if self.waiter is future:
            self.waiter = None
            self.needed = self.wish = 0

    def check_alone(self, str who):
        """Raise if another coroutine reads."""
        if self.waiter is not None or self.busy:
            raise RuntimeError(f"{who}() called while another coroutine is already waiting for incoming data")

    def take(self, n):
        """Return `n` bytes in a lease of their own; None if that many do not wait, or if the slow way has to tell why not."""
        cdef size_t size
        if PyLong_CheckExact(n):
            size = <size_t>as_ssize(n)
            if <Py_ssize_t>size < 0:
                PyErr_Clear()
                return None
        else:
            size = _size_to_c(n, "n")
        with cython.critical_section(self):
            if size > self.end - self.start or size > self.longest or self.error is not None:
                return None
            return self._try_take(size, False)

    def take_some(self, size_t most, bint ours):
        """Return up to `most` of the bytes that wait."""
        with cython.critical_section(self):
            return self._take(min(most, self.end - self.start), ours)

    cdef Buffer _try_take(self, size_t size, bint ours):
        """None if the pool has no memory now: the slow way waits for it."""
        try:
            return self._take(size, ours)
        except MemoryError:
            return None

    cdef Buffer _take(self, size_t size, bint ours):
        cdef Buffer buffer = self._handed_over(size)
        if buffer is None:
            buffer = quick_lease(self.pool, size) if size else empty_lease(self.pool)
            if size > self.end - self.start:  # the allocation ran the collector, and that another reader
                raise RuntimeError("another coroutine took what was waiting")
            if size:  # no byte has no address
                memcpy(buffer._block.data, self.base + self.start, size)
            self._drop(size)
        if ours:
            buffer._flags |= OURS
        return buffer

    cdef Buffer _handed_over(self, size_t size):
        """Return the block itself, if that is what was asked for and most of it is used; else None."""
        cdef Buffer buffer
        if self.start or size != self.end or not isinstance(self.owner, Buffer):
            return None
        buffer = <Buffer>self.owner
        if 2 * size < buffer._block.capacity or is_shared(<PyObject *>buffer._holder):
            return None
        if self.pool._leaks:
            if buffer._flags & WATCHED:
                buffer._forget_origin()
            note_origin(buffer)  # the reader acquires it, not the loop
        mp_pool_resize(buffer._block, size)
        if buffer._holder is not None:
            buffer._holder.nbytes = size
        buffer._flags &= ~<unsigned int>OURS
        if self.room > <size_t>MOST_BLOCK:
            self.block_size = PEEK
        self.owner = None
        self._drop(size)
        return buffer

    cdef int _drop(self, size_t size) except -1:
        """These bytes are taken."""
        self.start += size
        self.searched = self.searched - size if self.searched > size else 0
        if self.start == self.end:
            self._give_back()
        if self.paused and self.end - self.start <= self.limit:
            self._resume()
        return 0

    def take_bytes(self):
        """Return all that waits, as bytes."""
        with cython.critical_section(self):
            taken = PyBytes_FromStringAndSize(self.base + self.start, self.end - self.start)
            self._drop(self.end - self.start)
        return taken

    def take_into(self, view):
        """Copy as much as fits into the caller's memory; how much that was."""
        cdef Py_buffer into
        cdef size_t size
        PyObject_GetBuffer(view, &into, PyBUF_WRITABLE)
        try:
            with cython.critical_section(self):
                size = min(<size_t>into.len, self.end - self.start)
                if size:
                    memcpy(into.buf, self.base + self.start, size)
                    self._drop(size)
        finally:
            PyBuffer_Release(&into)
        return size

    def fill(self, Buffer buffer not None, bint ours):
        """`take_some` into a lease that was waited for."""
        cdef size_t size
        with cython.critical_section(self):
            size = buffer._lent().requested
            if size > self.end - self.start:
                raise RuntimeError("another coroutine took what was waiting")
            if size:  # no byte has no address
                memcpy(buffer._block.data, self.base + self.start, size)
            self._drop(size)
        if ours:
            buffer._flags |= OURS

    def discard(self, size_t size):
        """Forget bytes that wait."""
        self._drop(min(size, self.end - self.start))

    # ---- long messages ----

    def fits(self, size_t size):
        """Make room for a message of so many bytes whose begin is here; False if the pool has no memory for it now.

        A long one gets a block of its own length, so that the bytes that come stay where they are received.
        """
        with cython.critical_section(self):
            if self._starved():
                return False
            if self.owner is None or self.start + size <= self.room or (size <= self.room and self._compact()):
                return True
            self._make_room(max(size, self.block_size))
            return not self._starved()

    def step_back(self):
        """Give the block back, as the reader is about to wait for memory: whoever waits for it shall hold none."""
        with cython.critical_section(self):
            if isinstance(self.owner, Buffer):
                self._to_heap(self.end - self.start + SPARE)

    def grow(self):
        """Move what waits from Python's heap into a block with room for more, as much as the pool can lend now; False if none.

        Twice the size if it can be, else a step half as long, and so on: near the limit each takes half of what is left at least.
        """
        cdef Buffer buffer
        cdef size_t more
        with cython.critical_section(self):
            more = max(self.end - self.start, <size_t>SPARE)
            while True:
                try:
                    buffer = quick_lease(self.pool, self.end - self.start + more)
                except MemoryError:
                    if more == SPARE:
                        return False
                    more = max(more // 2, <size_t>SPARE)
                else:
                    self._install_lease(buffer, buffer._block.requested)
                    return True

    def widen(self, Buffer buffer not None):
        """Move what waits into this lease, which is the block from now on."""
        with cython.critical_section(self):
            if buffer._lent().requested > self.end - self.start:
                self._install_lease(buffer, buffer._block.requested)

    def aim(self, view):
        """Receive into this memory of the caller. Only while nothing waits."""
        self.check_alone("readinto")
        self.target, self.filled, self.target_size = view, 0, len(view)

    def end_aim(self, bint keep):
        """Receive as before; return what has arrived meanwhile. With `keep` it waits here as if it had never been elsewhere."""
        cdef Py_buffer into
        cdef size_t filled = self.filled
        target, self.target, self.filled = self.target, None, 0
        if keep and filled:
            PyObject_GetBuffer(target, &into, PyBUF_SIMPLE)
            try:
                self._keep(into.buf, filled)
            finally:
                PyBuffer_Release(&into)
        return filled

    cdef int _keep(self, const void *content, size_t size) except -1:
        """Put this before what waits."""
        cdef size_t behind = self.end - self.start
        try:
            self._install_lease(quick_lease(self.pool, size + behind), size + behind)
        except (MemoryError, ValueError):
            self._to_heap(size + behind)
        memmove(self.base + size, self.base, behind)
        memcpy(self.base, content, size)
        self.end = size + behind
        self.searched = 0
        return 0

    # ---- separators ----

    def take_until(self, bytes separator not None, bint ours=False):
        """Return what waits up to the first separator and with it; None if there is none within the limit.

        With `ours` the lease may be dropped without a warning.
        """
        cdef Py_ssize_t at
        cdef size_t size = len(separator)
        with cython.critical_section(self):
            if self.error is not None or self.start == self.end:
                return None
            at = self._find_one(separator, size)
            if at < 0 or <size_t>at > self.limit:
                return None
            return self._try_take(at + size, ours)

    cdef Py_ssize_t _find_one(self, bytes separator, size_t size) except -2:
        """Where it begins, from `start`, or -1. Remembers how far it looked."""
        cdef const char *wanted = separator
        cdef size_t length = self.end - self.start
        cdef Py_ssize_t at
        if separator is not self.searched_for:
            self.searched_for = separator
            self.searched = 0
        at = find_bytes(self.base + self.start + self.searched, length - self.searched, wanted, size)
        if at >= 0:
            at += self.searched
            self.searched = at
        elif length >= size:
            self.searched = max(self.searched, length + 1 - size)
        return at

    def find(self, tuple separators not None, size_t begin):
        """Return where the separator that ends first begins and ends, or None; no separator begins before `begin`."""
        cdef bytes separator
        cdef const char *wanted
        cdef size_t length = self.end - self.start, size
        cdef Py_ssize_t at, best = -1, best_end = -1
        if begin > length:
            return None
        for separator in separators:
            wanted, size = separator, len(separator)
            at = find_bytes(self.base + self.start + begin, length - begin, wanted, size)
            if at >= 0 and (best < 0 or at + <Py_ssize_t>size < best_end):
                best, best_end = at, at + size
        return None if best < 0 else (best + begin, best_end + begin)
