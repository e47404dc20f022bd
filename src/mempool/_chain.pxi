# The memory of a file in memory: a chain of leases that grows at its end and is never moved.
#
#     links    start 0       start 4096         start 12288
#              +----------+  +---------------+  +---------------------+
#     leases   | Buffer   |  | Buffer        |  | Buffer      ~~~~~~~ |     ~ room that is not content yet
#              +----------+  +---------------+  +---------------------+
#                 ^             ^      ^
#              _Holder       _Holder   shown: a snapshot sees the bytes before it
#                 ^             ^
#              _Part         _Part     <---- read-only memoryviews of buffers()
#
# Invariants: the links are without a gap, `_size <= _room`; while a holder is shared, no byte before `shown` changes. Who would
# change one puts a copy of the block into the chain first, and the block is the snapshot's alone.
#
# Whatever runs Python or lets the GIL go may be followed by a stream that another thread or a finaliser has changed. So all that
# is needed is acquired first, one thing at a time; `_version` tells whether the chain is still the one it was acquired for; and
# the change itself is made with no Python in between. Ending a block asks for no memory.
#
# Rejected: one block that grows, as io.BytesIO has, is copied as it grows (or its pages moved, where the OS can), and a snapshot
# would lock it or copy all; blocks of one size are many, or waste much.

cdef Py_ssize_t SSIZE_MAX = <Py_ssize_t>(SIZE_MAX >> 1)
cdef char NO_BYTES = 0

cdef enum:
    FIRST_BLOCK = 256        # bytes
    SMALL_STREAM = 4 << 10   # up to here the room doubles,
    MEDIUM_STREAM = 64 << 10  # up to here it grows by a half at most,
    LARGE_STREAM = 8 << 20   # up to here by an eighth, then by a 24th
    MOST_GROWTH = 16 << 20


cdef struct Link:
    char *data
    Py_ssize_t start  # offset of the first byte in the stream
    Py_ssize_t room   # bytes
    Py_ssize_t shown  # as long as the holder is shared, snapshots may see the bytes before this one


cdef struct Piece:
    PyObject *holder  # owned
    char *data
    Py_ssize_t size


@cython.final
@cython.freelist(16)
@cython.no_gc_clear
cdef class _Part:
    """Some bytes of a block, read-only: what the views of a snapshot name."""

    cdef _Holder holder
    cdef char *data
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer *view, int flags):
        if flags & PyBUF_WRITABLE:
            view.obj = None
            raise BufferError("a snapshot is read-only")
        fill_range(view, self, self.data, self.size, flags)
        view.readonly = 1

    def __releasebuffer__(self, Py_buffer *view):
        pass  # NumPy keeps a memoryview only of what has this method


cdef int fill_range(Py_buffer *view, object owner, char *data, Py_ssize_t size, int flags) except -1:
    view.buf = data
    view.len = size
    view.itemsize = 1
    view.readonly = 0
    view.ndim = 1
    view.format = BYTES_FORMAT if flags & PyBUF_FORMAT else NULL
    view.shape = &view.len if flags & PyBUF_ND else NULL
    view.strides = &view.itemsize if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
    view.suboffsets = NULL
    view.internal = NULL
    view.obj = owner
    return 0


cdef size_t growth(size_t room, size_t need) noexcept:
    """Bytes of the next block: few blocks, little unused, few sizes, so that streams can use each other's blocks."""
    cdef size_t most = room, size = FIRST_BLOCK
    if room >= SMALL_STREAM:
        most = room // 2 if room < MEDIUM_STREAM else room // 8 if room < LARGE_STREAM else room // 24
    while 2 * size <= most and size < MOST_GROWTH:
        size *= 2
    return max(size, need)


cdef mp_block *lend_slowly(BufferPool pool, size_t need) except NULL:
    """Others are asked for room."""
    cdef Buffer buffer = pool._try_acquire(need, True)
    cdef mp_block *block
    if buffer is None:
        raise pool._exhausted(need)
    block, buffer._block = buffer._block, NULL
    return block


cdef Buffer lend_ours(BufferPool pool, size_t size, size_t need):
    """A lease as long as its block, of `size` bytes; under a limit that leaves less, of `need` at least."""
    cdef Buffer buffer = Buffer.__new__(Buffer)
    cdef mp_pool *c = pool._ready()
    cdef mp_block *block = mp_pool_acquire_idle(c, size)
    cdef mp_shortage shortage
    cdef mp_status status = MP_OK
    if block is NULL:
        pool._check_open()
        with nogil:
            status = mp_pool_acquire(c, size, &block, &shortage)
            while status != MP_OK and size > need:
                size = max(need, size // 4)
                status = mp_pool_acquire(c, size, &block, &shortage)
        if status != MP_OK:
            block = lend_slowly(pool, need)
        grew(block.capacity)
    buffer._pool = pool
    buffer._block = block
    buffer._flags = OURS
    if block.requested != block.capacity:
        mp_pool_resize(block, block.capacity)
    if PyTraceMalloc_Track(DOMAIN, <uintptr_t>block.data, block.capacity) == 0:
        buffer._flags |= TRACED
    if pool._zeroes and block.capacity > LONG_WORK:
        buffer._flags |= LONG_END
    return buffer


cdef void give_back(Buffer lease) noexcept:
    """End a lease that is in no chain any more. May run Python."""
    if lease._end():
        wake(lease._pool)


cdef void drop_pieces(Piece *pieces, Py_ssize_t count) noexcept:
    cdef Py_ssize_t i
    for i in range(count):  # none if negative
        Py_DECREF(<object>pieces[i].holder)
    free(pieces)


@cython.no_gc_clear
cdef class _Chain:
    """Content, room and position of a stream."""

    cdef Link _one     # most streams need no more
    cdef Link *_links  # NULL until there is one
    cdef Py_ssize_t _count, _space  # links, and links that there is memory for
    cdef Py_ssize_t _at             # the link that was used last
    cdef Py_ssize_t _size, _pos, _room
    cdef Py_ssize_t _exports        # views of getbuffer() that live
    cdef Py_ssize_t _writers        # objects through which the content may be written by others
    cdef uint64_t _version          # of the links
    cdef bint _closed
    cdef BufferPool _pool           # None: the default pool, once one is needed
    cdef Buffer _first
    cdef list _more                 # the leases behind the first

    def __dealloc__(self):
        self._size = 0
        self._drop_from(0)
        if self._links != &self._one:
            free(self._links)

    # ---- the links ----

    cdef Buffer _lease(self, Py_ssize_t i):
        return self._first if i == 0 else <Buffer>self._more[i - 1]

    @cython.final
    cdef Py_ssize_t _find(self, Py_ssize_t offset) noexcept:
        """The link of a byte; the offset is below `_room`."""
        cdef Py_ssize_t i = self._at, low = 0, high = self._count - 1
        if i < self._count and self._links[i].start <= offset:
            if offset - self._links[i].start < self._links[i].room:
                return i
            low = i + 1
            if offset - self._links[low].start < self._links[low].room:
                high = low
        while low < high:
            i = (low + high + 1) >> 1
            if self._links[i].start <= offset:
                low = i
            else:
                high = i - 1
        self._at = low
        return low

    @cython.final
    cdef int _make_space(self) except -1:
        """Memory for one more link. May run Python."""
        cdef Link *links
        cdef Py_ssize_t space
        cdef list more
        if self._count and self._more is None:
            more = []
            if self._more is None:
                self._more = more
        if self._links is NULL:
            self._links = &self._one
            self._space = 1
        if self._count < self._space:
            return 0
        space = 2 * self._space + 6
        links = <Link *>malloc(space * sizeof(Link))
        if links is NULL:
            raise MemoryError(f"no memory for {space} links of a stream")
        if self._count:
            memcpy(links, self._links, self._count * sizeof(Link))
        if self._links != &self._one:
            free(self._links)
        self._links = links
        self._space = space
        return 0

    @cython.final
    cdef int _link(self, Buffer lease) except -1:
        """Put a lease at the end; there is space for it."""
        cdef Link *link = &self._links[self._count]
        if self._count == 0:
            self._first = lease
        elif self._count <= len(self._more):
            self._more[self._count - 1] = lease
        else:
            self._more.append(lease)
        link.data = <char *>lease._block.data
        link.start = self._room
        link.room = lease._block.capacity
        link.shown = 0
        self._room += link.room
        self._count += 1
        self._version += 1
        return 0

    @cython.final
    cdef void _drop_from(self, Py_ssize_t keep) noexcept:
        """Give back what is behind the content, but for so many links. Runs Python between two links."""
        cdef Buffer lease
        while self._count > keep and self._links[self._count - 1].start >= self._size:
            self._count -= 1
            self._version += 1
            self._room = self._links[self._count].start
            if self._count:
                # A list that becomes shorter may ask for memory.
                lease = <Buffer>self._more[self._count - 1]
                self._more[self._count - 1] = None
            else:
                lease = self._first
                self._first = None
            give_back(lease)

    cdef void _shed(self) noexcept:
        """After the content became shorter: keep one small block, unless something sees it."""
        self._drop_from(1)
        if self._count == 1 and self._size == 0:
            if self._links[0].room > MEDIUM_STREAM or is_shared(<PyObject *>self._first._holder):
                self._drop_from(0)

    # ---- room, and blocks that may be changed ----

    @cython.final
    cdef BufferPool _source(self):
        cdef BufferPool pool
        if self._pool is None:
            pool = the_pool()
            if self._pool is None:
                self._pool = pool
        return self._pool

    @cython.final
    cdef int _grow(self, Py_ssize_t end) except -1:
        """Add one block; if the chain has changed meanwhile, none."""
        cdef BufferPool pool = self._source()
        cdef Buffer lease
        cdef uint64_t version
        cdef size_t need
        self._make_space()
        if end <= self._room:
            return 0
        version, need = self._version, end - self._room
        lease = lend_ours(pool, growth(self._room, need), need)
        if version == self._version and not self._exports and not self._closed and self._count < self._space:
            return self._link(lease)
        give_back(lease)
        return 0

    cdef bint _is_seen(self, Py_ssize_t i, Py_ssize_t start) noexcept:
        """A snapshot sees a byte of the link from this offset of the stream on."""
        cdef Link *link = &self._links[i]
        if link.shown == 0 or link.start + link.shown <= start:
            return False
        if is_shared(<PyObject *>(self._first if i == 0 else <Buffer>self._more[i - 1])._holder):
            return True
        link.shown = 0
        return False

    cdef bint _own(self, Py_ssize_t start, Py_ssize_t stop) except -1:
        """Replace the first block of a range that a snapshot sees; false if there is none."""
        cdef Py_ssize_t i
        if start >= stop or start >= self._room:
            return False
        i = self._find(start)
        while i < self._count and self._links[i].start < stop:
            if self._is_seen(i, start):
                self._replace(i)
                return True
            i += 1
        return False

    cdef int _replace(self, Py_ssize_t i) except -1:
        """Put a copy in place of a block, unless the chain has changed meanwhile or is held by an export."""
        cdef uint64_t version = self._version
        cdef size_t room = self._links[i].room
        cdef Buffer lease = lend_ours(self._source(), room, room), old
        cdef Link *link
        if version != self._version or self._exports:
            give_back(lease)
            return 0
        link = &self._links[i]
        if link.start < self._size:
            memcpy(lease._block.data, link.data, min(self._size - link.start, link.room))
        old = self._lease(i)
        if i:
            self._more[i - 1] = lease
        else:
            self._first = lease
        link.data = <char *>lease._block.data
        link.shown = 0
        self._version += 1
        give_back(old)
        return 0

    # ---- content ----

    @cython.final
    cdef int _check_open(self) except -1:
        if self._closed:
            raise ValueError("I/O operation on closed file.")
        return 0

    @cython.final
    cdef int _check_changeable(self) except -1:
        if self._closed:
            raise ValueError("I/O operation on closed file.")
        if self._exports:
            raise BufferError("Existing exports of data: object cannot be re-sized")
        return 0

    @cython.final
    cdef Py_ssize_t _put(self, const char *data, Py_ssize_t n) except -1:
        """Write at the position."""
        cdef Py_ssize_t end
        while True:
            self._check_changeable()
            if n == 0:
                return 0
            if n > SSIZE_MAX - self._pos:
                raise OverflowError("new buffer size too large")
            end = self._pos + n
            if end > self._room:
                self._grow(end)
            elif not self._own(min(self._pos, self._size), end):
                break
        if self._pos > self._size:
            self._move(self._size, NULL, self._pos - self._size, True)
        self._move(self._pos, <char *>data, n, True)
        self._pos = end
        self._size = max(self._size, end)
        return n

    @cython.final
    cdef void _move(self, Py_ssize_t start, char *memory, Py_ssize_t n, bint inward) noexcept:
        """Copy between a range and memory; NULL: clear the range."""
        cdef Py_ssize_t i, offset, step
        cdef Link *link
        if n <= 0:
            return
        i = self._find(start)
        offset = start - self._links[i].start
        while True:
            link = &self._links[i]
            step = min(n, link.room - offset)
            if memory is NULL:
                memset(link.data + offset, 0, step)
            else:
                # A view of getbuffer() may be read into, so it may be the same memory.
                memmove(link.data + offset if inward else memory, memory if inward else link.data + offset, step)
                memory += step
            n -= step
            if n == 0:
                break
            i += 1
            offset = 0
        self._at = i

    cdef Piece *_seize(self, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t *count) except NULL:
        """The blocks of a range, kept as they are now for as long as the caller has them. `count` is -1 if the range is no more.

        May run Python; what is returned is of the moment of returning.
        """
        cdef Piece *pieces
        cdef Py_ssize_t i, first, last, number, offset
        cdef uint64_t version
        while True:
            if start >= stop or stop > self._size:
                number = 0
                break
            version, i = self._version, self._find(start)
            first, last = i, self._find(stop - 1)
            number = last - first + 1
            while i <= last and version == self._version:
                self._lease(i)._hold()
                i += 1
            if version == self._version and stop <= self._size:
                break
        pieces = <Piece *>malloc((number or 1) * sizeof(Piece))
        if pieces is NULL:
            raise MemoryError(f"no memory to see {number} blocks of a stream")
        for i in range(number):
            offset = max(0, start - self._links[first + i].start)
            self._fill_piece(&pieces[i], first + i, offset, min(stop - self._links[first + i].start, self._links[first + i].room))
        count[0] = -1 if stop > self._size else number
        return pieces

    cdef void _fill_piece(self, Piece *piece, Py_ssize_t i, Py_ssize_t offset, Py_ssize_t stop) noexcept:
        cdef Link *link = &self._links[i]
        cdef PyObject *holder = <PyObject *>(self._first if i == 0 else <Buffer>self._more[i - 1])._holder
        link.shown = max(link.shown, stop) if is_shared(holder) else stop
        Py_INCREF(<object>holder)
        piece.holder = holder
        piece.data = link.data + offset
        piece.size = stop - offset

    @cython.final
    cdef bytes _copy(self, Py_ssize_t start, Py_ssize_t n):
        """A range as bytes, copied at once."""
        cdef bytes out
        cdef Link *link
        if n <= 0:
            return b""
        link = &self._links[self._find(start)]
        if n <= link.room - (start - link.start):
            return PyBytes_FromStringAndSize(link.data + (start - link.start), n)
        out = PyBytes_FromStringAndSize(NULL, n)
        self._move(start, <char *>out, n, False)
        return out

    cdef bytes _copy_long(self, Py_ssize_t start, Py_ssize_t n, bint reads):
        """The same without the GIL, of what is there now. None if that is no such range, or `reads` and the position moved."""
        cdef bytes out = PyBytes_FromStringAndSize(NULL, n)
        cdef char *target = <char *>out
        cdef Py_ssize_t i, count = 0
        cdef Piece *pieces = self._seize(start, start + n, &count)
        if count < 0 or (reads and self._pos != start):
            drop_pieces(pieces, count)
            return None
        if reads:
            self._pos += n
        with nogil:
            for i in range(count):
                memcpy(target, pieces[i].data, pieces[i].size)
                target += pieces[i].size
        drop_pieces(pieces, count)
        return out

    @cython.final
    cdef bytes _take(self, Py_ssize_t n):
        """Read at the position, at most so many bytes; negative: to the end."""
        cdef bytes out = None
        cdef Py_ssize_t left
        while out is None:
            self._check_open()
            left = max(0, self._size - self._pos)
            left = left if n < 0 else min(n, left)
            if left > <Py_ssize_t>LONG_WORK:
                out = self._copy_long(self._pos, left, True)
                continue
            out = self._copy(self._pos, left)
            self._pos += left
        return out

    @cython.final
    cdef Py_ssize_t _line(self, Py_ssize_t most) noexcept:
        """Length of the line at the position, at most so much; negative: no bound."""
        cdef Py_ssize_t at = self._pos, stop = self._size, i, offset, step
        cdef char *found
        if at >= stop:
            return 0
        if 0 <= most < stop - at:
            stop = at + most
        i = self._find(at) if at < stop else 0
        while at < stop:
            offset = at - self._links[i].start
            step = min(stop - at, self._links[i].room - offset)
            found = <char *>memchr(self._links[i].data + offset, 10, step)
            if found is not NULL:
                return at + (found - self._links[i].data - offset) + 1 - self._pos
            at += step
            i += 1
        return stop - self._pos

    cdef int _join(self) except -1:
        """Have the content in the first block. Runs Python: the caller looks whether it holds."""
        cdef Buffer lease
        cdef Py_ssize_t size = self._size
        if self._links is NULL or self._links[0].room >= size:
            return 0
        lease = lend_ours(self._source(), size, size)
        if self._closed or self._exports or self._count == 0 or <Py_ssize_t>lease._block.capacity < self._size:
            give_back(lease)
            return 0
        self._move(0, <char *>lease._block.data, self._size, False)
        return self._relink(lease)

    cdef bint _is_joined(self) noexcept:
        return self._size == 0 or self._links[0].room >= self._size

    cdef int _relink(self, Buffer lease) except -1:
        """Put this lease, or none, in place of all."""
        cdef Buffer old = self._first
        cdef list more = self._more
        cdef Py_ssize_t i
        self._first, self._more = None, None
        self._count, self._room = 0, 0
        self._version += 1
        if self._links is NULL:
            self._links = &self._one
            self._space = 1
        if lease is not None:
            self._link(lease)
        if old is not None:
            give_back(old)
        for i in range(0 if more is None else len(more)):
            old = <Buffer>more[i]
            more[i] = None
            if old is not None:
                give_back(old)
        return 0

    cdef int _begin(self, BufferPool pool, const char *data, Py_ssize_t n, Py_ssize_t position) except -1:
        """Be open, with this content; what was there goes."""
        cdef Buffer lease = None
        if n:
            lease = lend_ours(the_pool() if pool is None else pool, growth(0, n), n)
            if n > <Py_ssize_t>LONG_WORK:
                with nogil:
                    memcpy(lease._block.data, data, n)
            else:
                memcpy(lease._block.data, data, n)
        with cython.critical_section(self):
            if self._exports:
                raise BufferError("Existing exports of data: object cannot be re-sized")
            self._closed = False
            self._size, self._pos, self._pool = n, position, pool
            return self._relink(lease)
