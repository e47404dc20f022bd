# Bytes between one producer and one consumer, always in one piece.
#
#     RingBuffer ----> _RingMemory ----> mp_ring <- - - the same pages, twice
#     memoryview ----> _Span --^
#
# Views name the memory, never the RingBuffer: it may be closed or collected while they live. Each side has an object of its own
# whose critical section makes its calls atomic, so that the two sides never wait for each other, with or without the GIL.

from cpython.buffer cimport PyObject_CheckBuffer
from libc.string cimport memmove

cdef object _ring_number = iter(range(1, 1 << 62))

# More than any ring has.
cdef Py_ssize_t TOO_MANY = <Py_ssize_t>(SIZE_MAX // 2)


@cython.final
@cython.freelist(64)
@cython.no_gc
cdef class _Span:
    """Some bytes of a memory that something else keeps."""

    cdef object keeper
    cdef void *data
    cdef Py_ssize_t nbytes
    cdef bint readonly
    cdef object __weakref__

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.readonly and flags & PyBUF_WRITABLE:
            view.obj = None
            raise BufferError("these bytes are read-only")
        fill_bytes(self, view, flags, self.data, &self.nbytes)
        view.readonly = self.readonly

    def __releasebuffer__(self, Py_buffer *view):
        pass


@cython.final
@cython.no_gc
cdef class _RingMemory:
    """Keeps the memory of a ring as long as it lives."""

    cdef mp_ring *c
    cdef void *base

    cdef int _open(self, size_t capacity, Account account) except -1:
        cdef mp_ring_config config
        cdef mp_ring_state state
        cdef mp_account *binding = NULL
        cdef mp_status status
        cdef int tries = 0
        config.capacity = capacity
        config.copying = False
        config.account = account._ready()
        config.source = NULL
        while True:
            with nogil:
                status = mp_ring_create(&config, &self.c, &binding)
            if status != MP_ERR_ACCOUNT or not room_in_account(account, binding, capacity, &tries):
                break
        if status != MP_OK:
            raise MemoryError(f"no memory for a ring of {capacity} bytes")
        mp_ring_look(self.c, &state)
        self.base = state.base
        PyTraceMalloc_Track(DOMAIN, <uintptr_t>self.base, state.capacity * (1 if state.mirrored else 2))
        grew(state.capacity)
        return 0

    def __dealloc__(self):
        if self.c is not NULL:
            PyTraceMalloc_Untrack(DOMAIN, <uintptr_t>self.base)  # before the addresses can be anybody else's
            with nogil:
                mp_ring_destroy(self.c)


@cython.final
@cython.no_gc_clear
cdef class RingBuffer:
    """RingBuffer(capacity, *, account=None, name=None)\n--\n
    Bytes on their way from one producer to one consumer, each of whom sees them in one piece.

    The producer fills `writable()` and says with `commit` how much of it; the consumer looks at `readable()` and says with
    `consume` how much it has done with. The same pages are mapped twice, one behind the other, so that what wraps around the end is
    contiguous all the same and nothing is moved. One thread may produce while another consumes, with no lock.

    Parameters
    ----------
    capacity : int or str
        Bytes, rounded up to whole pages.
    account : Account or None
        Charged with what is taken from the OS, through an account of the ring's own below it. None: an account "ring buffers" below
        the root, which all such rings share.
    name : str or None
        Shown in reports.

    Raises
    ------
    TypeError, ValueError
        For arguments that make no sense; the value is named.
    AccountLimitExceeded
        If an account has no room.
    MemoryError, OverflowError
        If the OS has no memory, or no address can reach so far.

    Notes
    -----
    Views are views of a live structure: what `readable()` gave changes once it was consumed and the producer comes around. They
    keep the memory, also after `close`. ``len(ring)`` is how many bytes are readable.

    After `fork` the child has a ring of its own, with what was readable then; a view that it inherited sees that ring.

    Examples
    --------
    >>> import mempool
    >>> ring = mempool.RingBuffer("64KiB")
    >>> ring.writable()[:11] = b"one\\ntwo\\nthr"
    >>> ring.commit(11)
    >>> while (end := ring.find(b"\\n")) >= 0:
    ...     print(bytes(ring.readable()[:end]))
    ...     ring.consume(end + 1)
    b'one'
    b'two'
    >>> len(ring), ring.free
    (3, 65533)
    """

    cdef mp_ring *_c            # NULL once closed; `_memory` keeps it
    cdef _RingMemory _memory
    cdef object _producing      # whose critical section the producer's calls hold
    cdef object _consuming      # and the consumer's
    cdef size_t _capacity
    cdef bint _mirrored
    cdef uint64_t _consumed     # bytes since the beginning, to which the next two are relative
    cdef uint64_t _clean_from   # `_sep` begins nowhere from here ...
    cdef uint64_t _clean_to     # ... to here
    cdef bytes _sep             # what `find` last looked for
    cdef readonly str name
    """Its name in reports."""
    cdef readonly Account account
    """What it charges."""
    cdef object __weakref__

    def __cinit__(self, capacity, *, account=None, name=None):
        cdef size_t size = _size_to_c(capacity, "capacity")
        cdef _RingMemory memory = _RingMemory.__new__(_RingMemory)
        cdef mp_ring_state state
        if size == 0:
            raise ValueError(f"capacity must be more than 0 bytes, got {capacity!r}")
        if account is not None and not isinstance(account, Account):
            raise TypeError(f"account must be an Account or None, not {account!r}")
        name = f"ring-{next(_ring_number)}" if name is None else plain_str(name)
        own = array_account("ring buffers") if account is None else Account(name, parent=account)
        memory._open(size, own)
        mp_ring_look(memory.c, &state)
        self._capacity, self._mirrored = state.capacity, state.mirrored
        self.name, self.account = name, own
        self._producing, self._consuming = object(), object()
        self._memory, self._c = memory, memory.c

    def __dealloc__(self):
        self._c = NULL
        if self._memory is not None:
            self._memory = None
            linger(self.account)

    cdef mp_ring *_ready(self) except NULL:
        if self._c is NULL:
            raise ValueError(f"ring {self.name!r} is closed")
        return self._c

    cdef int _refuse(self, mp_status status, str what, object n, size_t most) except -1:
        """Raise what a failed call means."""
        if status == MP_ERR_LOST:
            raise MemoryError(f"ring {self.name!r} was lost at fork: there was no memory for the child's copy of it")
        given = shown(n.__index__()) if PyIndex_Check(n) else n
        where = "there" if what == "consume" else "free"
        raise ValueError(f"cannot {what} {given} bytes: {most} of {self._capacity} are {where} in ring {self.name!r}")

    # ---- the producer ----

    def writable(self):
        """Return all the free space as one writable memoryview; an empty one if the ring is full.

        Bytes that are written there become readable with `commit`. In an empty view `recv_into` would receive nothing, which looks
        like the end of the stream: see `free` first.
        """
        cdef void *data = NULL
        cdef size_t size = 0
        cdef _Span span = _Span.__new__(_Span)
        with cython.critical_section(self._producing):
            status = mp_ring_writable(self._ready(), &data, &size)
            if status != MP_OK:
                self._refuse(status, "write", 0, 0)
            span.keeper, span.data, span.nbytes = self._memory, data, size
        return PyMemoryView_FromObject(span)

    def commit(self, n):
        """Make the first `n` bytes of what `writable` last returned readable.

        Raises
        ------
        ValueError
            If fewer are free; then nothing was committed.
        """
        cdef Py_ssize_t size = to_step(n)
        cdef size_t most = 0
        with cython.critical_section(self._producing):
            status = mp_ring_commit(self._ready(), size, &most)
        if status != MP_OK:
            self._refuse(status, "commit", n, most)

    def write(self, data):
        """Copy as much as fits of any bytes-like object, and commit it.

        Returns
        -------
        int
            Bytes written: fewer than `data` has if the ring became full.
        """
        cdef Py_buffer source
        cdef size_t size = 0
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
        try:
            size = self._put(source.buf, source.len)
        finally:
            PyBuffer_Release(&source)
        return size

    cdef size_t _put(self, const void *source, size_t wanted) except? 0:
        cdef _RingMemory memory
        cdef void *data = NULL
        cdef size_t size = 0, most = 0
        with cython.critical_section(self._producing):
            status = mp_ring_writable(self._ready(), &data, &size)
            memory = self._memory  # it may be closed meanwhile
            size = min(size, wanted)
            if status == MP_OK and size > LONG_WORK:
                with nogil:
                    memmove(data, source, size)
            elif status == MP_OK:
                memmove(data, source, size)
            if status == MP_OK:
                status = mp_ring_commit(self._ready(), size, &most)
        if status != MP_OK:
            self._refuse(status, "commit", size, most)
        return size

    # ---- the consumer ----

    def readable(self):
        """Return all that was committed and not consumed, as one read-only memoryview."""
        cdef void *data = NULL
        cdef size_t size = 0
        cdef _Span span = _Span.__new__(_Span)
        with cython.critical_section(self._consuming):
            status = mp_ring_readable(self._ready(), &data, &size)
            if status != MP_OK:
                self._refuse(status, "read", 0, 0)
            span.keeper, span.data, span.nbytes, span.readonly = self._memory, data, size, True
        return PyMemoryView_FromObject(span)

    def consume(self, n):
        """Give the first `n` bytes of what is readable back to the producer.

        Raises
        ------
        ValueError
            If fewer are there; then nothing was consumed.
        """
        cdef Py_ssize_t size = to_step(n)
        cdef size_t most = 0
        with cython.critical_section(self._consuming):
            status = mp_ring_consume(self._ready(), size, &most)
            if status == MP_OK:
                self._consumed += <size_t>size
        if status != MP_OK:
            self._refuse(status, "consume", n, most)

    def read(self, n=-1):
        """Return up to `n` bytes as `bytes`, all that are there if `n` is None or negative, and consume them."""
        cdef void *data = NULL
        cdef size_t size = 0, most = 0
        cdef Py_ssize_t wanted = to_most(n)
        with cython.critical_section(self._consuming):
            status = mp_ring_readable(self._ready(), &data, &size)
            if status == MP_OK:
                size = min(size, <size_t>wanted)
                content = PyBytes_FromStringAndSize(<char *>data, size)
                status = mp_ring_consume(self._c, size, &most)
                self._consumed += size
        if status != MP_OK:
            self._refuse(status, "consume", size, most)
        return content

    def find(self, sep, start=0):
        """Look for `sep` in what is readable.

        Called again for the same `sep` after more came, it goes on where it stopped: no byte is looked at twice.

        Parameters
        ----------
        sep : bytes-like
            At least one byte.
        start : int
            Offset to begin at.

        Returns
        -------
        int
            The offset in `readable()` where `sep` begins, -1 if it is not there.
        """
        cdef size_t begin = 0, at = 0
        cdef mp_bool found = False
        cdef mp_status status
        if type(sep) is not bytes:
            sep = bytes_of(sep)
        if not sep:
            raise ValueError("sep must not be empty")
        if start is not 0:
            begin = to_step(start, "start")
        with cython.critical_section(self._consuming):
            status = self._search(<bytes>sep, begin, &at, &found)
        if status != MP_OK:
            self._refuse(status, "search", 0, 0)
        return <Py_ssize_t>at if found else -1

    cdef mp_status _search(self, bytes sep, size_t begin, size_t *at, mp_bool *found) except? MP_ERR_CLOSED:
        """Positions are noted as bytes since the beginning, so that they hold whatever is consumed meanwhile."""
        cdef mp_ring *c = self._ready()
        cdef _RingMemory memory
        cdef char *wanted = sep
        cdef size_t length = len(sep), skip = begin
        cdef uint64_t origin = self._consumed, clean = origin + begin
        cdef mp_status status
        if self._sep is not None and (sep is self._sep or sep == self._sep) and self._clean_from <= clean <= self._clean_to:
            skip = <size_t>(self._clean_to - origin)
            clean = self._clean_from
        if self._capacity <= LONG_WORK:
            status = mp_ring_find(c, wanted, length, skip, at, found)
        else:
            memory = self._memory  # it may be closed meanwhile
            with nogil:
                status = mp_ring_find(c, wanted, length, skip, at, found)
        if status == MP_OK:
            self._sep, self._clean_from, self._clean_to = sep, clean, origin + at[0]
        return status

    # ---- the ring itself ----

    def __len__(self):
        cdef mp_ring_state state
        with cython.critical_section(self._consuming):
            mp_ring_look(self._ready(), &state)
        return state.length

    @property
    def free(self):
        """Bytes that can be committed: as many as `writable()` has."""
        cdef mp_ring_state state
        with cython.critical_section(self._producing):
            mp_ring_look(self._ready(), &state)
        return state.capacity - state.length

    @property
    def capacity(self):
        """The most bytes that can be readable at once."""
        return self._capacity

    @property
    def mirrored(self):
        """True if pages are mapped twice. Where the OS cannot, commits copy their bytes, and it takes twice the memory."""
        return self._mirrored

    @property
    def closed(self):
        """True after `close`."""
        return self._c is NULL

    def close(self):
        """Let the memory go, once no view of it lives. Idempotent; never fails because of views."""
        cdef _RingMemory memory
        with cython.critical_section(self._producing, self._consuming):
            self._c = NULL
            memory, self._memory, self._sep = self._memory, None, None
        if memory is not None:
            memory = None
            linger(self.account)

    def __enter__(self):
        self._ready()
        return self

    def __exit__(self, kind, error, traceback):
        self.close()

    def __repr__(self):
        if self._c is NULL:
            return f"<mempool.RingBuffer {self.name!r}, closed>"
        return f"<mempool.RingBuffer {self.name!r}: {len(self)} of {self._capacity} bytes readable>"


cdef inline Py_ssize_t to_step(object n, str name="n") except -1:
    """A size, or TOO_MANY for what no address can reach."""
    cdef Py_ssize_t size
    if PyLong_CheckExact(n):
        size = as_ssize(n)
        if size >= 0:
            return size
        PyErr_Clear()
    return to_step_slowly(n, name)


cdef Py_ssize_t to_step_slowly(object n, str name) except -1:
    try:
        return <Py_ssize_t>_size_to_c(n, name)
    except OverflowError:
        return TOO_MANY


cdef Py_ssize_t to_most(object n) except -1:
    """As `read` of files has it: None or less than 0 is all."""
    if n is None:
        return TOO_MANY
    if isinstance(n, bool):
        raise TypeError(f"n must be an int or None, not {n!r}")
    if PyIndex_Check(n):
        n = n.__index__()
        return TOO_MANY if n < 0 else to_step(n)
    return to_step(n)


cdef bytes bytes_of(object sep):
    if not PyObject_CheckBuffer(sep):
        raise TypeError(f"sep must be bytes-like, not {sep!r}")
    return bytes(memoryview(sep))
