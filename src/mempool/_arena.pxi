# Many small pieces of memory that end together.
#
#     block, lent by a pool     [ a | b | c # d | e . . . . . . ]        # where the scope began
#                                               ^used
#     Arena ---> _Segment of the scope ---> _Segment of the arena ---> _Holder ---> block
#     memoryview of d ---^    memoryview of a ---^
#
# Views name the segment in which they were allocated, and a segment names the one below it. So the reference count of the segment
# that ends tells whether anything from there up is viewed: if not, the space is used again. If so it is retired, and stays as it is
# until its views are gone and nothing lies above it, or the segment below ends. Of the lowest segment that means the block: it goes
# back to its pool with the last view.
cdef object _arena_number = iter(range(1, 1 << 62))

cdef enum:
    MOST_SCOPES = 1000  # segments die one inside the other


cdef extern from "Python.h":
    PyObject *new_view "PyMemoryView_FromObject"(object) noexcept  # NULL with an exception set; the caller looks


@cython.final
@cython.no_gc
cdef class _Retired:
    """How many bytes an arena left to their views."""

    cdef size_t nbytes


@cython.final
@cython.freelist(16)
@cython.no_gc
cdef class _Segment:
    """What views of one scope keep alive."""

    cdef object below        # a segment, or the holder of the block
    cdef size_t mark         # what was used when it began
    cdef size_t stuck        # and what of that was retired
    cdef size_t end          # retired: what was used when it ended
    cdef _Segment older      # retired: the one that ended before it, if that is retired too
    cdef uint64_t number     # tells scopes from each other; 0 is the lowest
    cdef _Retired books      # with these bytes, once a reset left the block to its views
    cdef size_t nbytes

    def __dealloc__(self):
        if self.books is not None:
            with cython.critical_section(self.books):
                self.books.nbytes -= self.nbytes


@cython.final
cdef class _Scope:
    """What `Arena.scope` returns."""

    cdef Arena arena
    cdef uint64_t number  # 0: not entered

    cdef Arena _ready(self):
        if self.arena is None:
            raise ValueError("a scope is made by Arena.scope()")
        return self.arena

    def __enter__(self):
        self._ready()._begin(self)
        return self.arena

    def __exit__(self, kind, error, traceback):
        self._ready()._finish(self)


@cython.final
@cython.no_gc_clear
cdef class Arena:
    """Arena(size, *, pool=None, account=None, name=None)\n--\n
    Lends many small pieces of one block, and takes them back together.

    An allocation moves a mark. `reset` moves it back to the beginning, and the end of a ``with arena.scope():`` to where it was;
    what is still viewed then is retired, never lent again while the view lives.

    Parameters
    ----------
    size : int or str
        Bytes in all. An arena does not grow.
    pool : BufferPool or None
        Lends the block. None: the default pool, or with an `account` a pool of the arena's own.
    account : Account or None
        Charged with what the arena's own pool takes from the OS; not together with `pool`, which has an account already.
    name : str or None
        Shown in reports.

    Raises
    ------
    TypeError, ValueError
        For arguments that make no sense; the value is named.
    PoolExhausted, AccountLimitExceeded, MemoryError, OverflowError
        As `BufferPool.acquire`.

    Notes
    -----
    Every call is safe from any thread, but scopes are the arena's, not a thread's: an arena for each thread keeps them apart.

    Examples
    --------
    >>> import mempool
    >>> arena = mempool.Arena("1MiB")
    >>> header = arena.alloc(100)
    >>> with arena.scope():
    ...     for _ in range(10):
    ...         scratch = arena.alloc(1000)
    ...     arena.used
    10344
    >>> arena.retired  # the last one is still viewed
    10244
    >>> del scratch
    >>> arena.used, arena.retired
    (100, 0)
    """

    cdef Buffer _buffer       # None: no block now
    cdef _Segment _segment    # of the innermost scope
    cdef char *_data
    cdef size_t _size
    cdef size_t _used
    cdef size_t _stuck        # bytes below `_used` that ended scopes left to their views
    cdef _Segment _ended      # the last of those scopes
    cdef size_t _depth        # scopes that are open
    cdef uint64_t _numbers
    cdef bint _open
    cdef bint _owns_pool
    cdef _Retired _retired
    cdef readonly BufferPool pool
    """The pool that lends the block."""
    cdef readonly str name
    """Its name in reports."""
    cdef object __weakref__

    def __cinit__(self, size, *, pool=None, account=None, name=None):
        cdef size_t nbytes = _size_to_c(size, "size")
        if nbytes == 0:
            raise ValueError(f"size must be more than 0 bytes, got {size!r}")
        if pool is not None and not isinstance(pool, BufferPool):
            raise TypeError(f"pool must be a BufferPool or None, not {pool!r}")
        if account is not None and not isinstance(account, Account):
            raise TypeError(f"account must be an Account or None, not {account!r}")
        if account is not None and pool is not None:
            raise ValueError(f"pool {pool.name!r} has an account already: give one or the other")
        name = f"arena-{next(_arena_number)}" if name is None else plain_str(name)
        self._owns_pool = account is not None
        if pool is None:
            pool = the_pool() if account is None else BufferPool(account=account, name=name, leak_detection="off")
        self._retired = _Retired.__new__(_Retired)
        self._size, self.name, self.pool = nbytes, name, pool
        self._open = True
        self._renew()

    def __dealloc__(self):
        run_aside(self.pool, self._let_go(), NULL)

    cdef int _check_open(self) except -1:
        if not self._open:
            raise ValueError(f"arena {self.name!r} is closed")
        return 0

    cdef int _renew(self) except -1:
        """Have a block, whatever the collector runs meanwhile."""
        cdef Buffer buffer = self.pool._acquire_now(self._size)
        cdef _Segment segment = _Segment.__new__(_Segment)
        buffer._flags |= OURS
        segment.below = buffer._hold()
        with cython.critical_section(self):
            if self._open and self._segment is None:
                self._buffer, self._segment, self._data = buffer, segment, <char *>buffer._block.data
                self._used = self._stuck = self._depth = 0
        return 0

    # ---- allocations ----

    def alloc(self, nbytes, align=64):
        """Allocate bytes. They are uninitialised.

        Parameters
        ----------
        nbytes : int or str
            0 is fine.
        align : int
            The address is a multiple of this power of two, up to 2 MiB.

        Returns
        -------
        memoryview
            Writable. It keeps its bytes, also after `reset`, the end of the scope or `close`.

        Raises
        ------
        PoolExhausted
            If so much is not left; then nothing changed. Also if a reset left the block to its views and the pool cannot lend
            another.
        """
        cdef size_t size = to_step(nbytes, "nbytes"), boundary = 64 if align is 64 else check_alignment(align), before = 0
        cdef _Span span = self._lend(size, boundary, &before)
        cdef PyObject *view = new_view(span)
        if view is NULL:
            self._undo(span, before)
            fail()
        result = <object>view
        Py_DECREF(result)
        return result

    cdef int _undo(self, _Span span, size_t before) except -1:
        """Nobody was given the bytes."""
        with cython.critical_section(self):
            if self._segment is span.keeper and self._used == <size_t>(<char *>span.data - self._data) + <size_t>span.nbytes:
                self._used = before
        return 0

    cdef _Span _lend(self, size_t size, size_t boundary, size_t *before):
        cdef _Span span = _Span.__new__(_Span)
        cdef size_t start
        cdef bint done = False
        while not done:
            with cython.critical_section(self):
                self._check_open()
                if self._segment is not None:
                    done = True
                    self._settle()
                    start = self._used + (-<size_t>(<uintptr_t>self._data + self._used) & (boundary - 1))
                    if start > self._size or size > self._size - start:
                        raise self._exhausted(size, boundary)
                    span.keeper, span.data, span.nbytes = self._segment, self._data + start, size
                    before[0], self._used = self._used, start + size
            if not done:
                self._renew()
        return span

    cdef object _exhausted(self, size_t size, size_t boundary):
        books = f"{self._used} of {self._size} are used, {self._stuck} of them by ended scopes of which views live"
        text = f"arena {self.name!r} cannot lend {size} bytes at a multiple of {boundary}: {books}"
        return PoolExhausted(text, size, self._used, self._size)

    def array(self, shape, dtype="f8", *, order="C"):
        """Allocate a NumPy array. Its items are uninitialised.

        Parameters
        ----------
        shape : int or tuple of int
        dtype : dtype-like
            Anything but object types.
        order : {"C", "F"}
            Row-major or column-major.

        Returns
        -------
        numpy.ndarray
            Writable, at a multiple of 64. It keeps its bytes as what `alloc` returns does.

        Raises
        ------
        PoolExhausted
            As `alloc`.
        """
        cdef npy_intp dims[64]
        cdef PyArray_Descr *descr = NULL
        cdef size_t nbytes, before = 0
        cdef int nd, flags
        cdef _Span span
        need_numpy()
        flags = array_flags(order)
        if shape is None:
            raise TypeError("shape must be an int or a tuple of int, not None")
        nd = read_shape(shape, dims)
        PyArray_DescrConverter(dtype, &descr)
        made = <object>descr
        Py_DECREF(made)
        check_plain(descr)
        if made.subdtype is not None:
            raise ValueError(f"dtype {made} is a sub-array: give its base, and a shape")
        nbytes = bytes_of_array(descr, nd, dims)
        span = self._lend(nbytes, 64, &before)
        try:
            return array_on(span, span.data, made, nd, dims, flags)
        except:
            self._undo(span, before)
            raise

    # ---- ends ----

    def scope(self):
        """Return a context manager: at its end everything that was allocated inside goes at once.

        What is viewed then keeps its bytes, and its space stays occupied: until its views are gone and nothing was allocated above
        it, or the scope around it ends, or `reset`. Names live on behind a ``with``: ``del`` them inside, or work in a function.

        Scopes may be nested, up to 1000; the inner one must end first, or `RuntimeError` is raised and both go on.
        """
        cdef _Scope scope = _Scope.__new__(_Scope)
        scope.arena = self
        return scope

    cdef int _begin(self, _Scope scope) except -1:
        cdef _Segment segment = _Segment.__new__(_Segment)
        cdef bint done = False
        while not done:
            with cython.critical_section(self):
                self._check_open()
                if scope.number != 0:
                    raise RuntimeError(f"this scope of arena {self.name!r} was entered already")
                if self._depth == MOST_SCOPES:
                    raise RuntimeError(f"arena {self.name!r} has {MOST_SCOPES} scopes open, one inside the other")
                if self._segment is not None:
                    done = True
                    self._settle()
                    self._numbers += 1
                    self._depth += 1
                    scope.number = segment.number = self._numbers
                    segment.mark, segment.stuck, segment.below = self._used, self._stuck, self._segment
                    self._segment = segment
            if not done:
                self._renew()
        return 0

    cdef int _finish(self, _Scope scope) except -1:
        with cython.critical_section(self):
            if not self._open:
                return 0
            if scope.number == 0 or self._segment is None or self._segment.number != scope.number:
                raise RuntimeError(f"a scope of arena {self.name!r} ends that is not the innermost open one")
            self._settle()
            self._forget_ended(self._segment.mark)
            if self._used > self._segment.mark and is_shared(<PyObject *>self._segment):
                self._stuck = self._segment.stuck + self._used - self._segment.mark
                self._segment.end, self._segment.older = self._used, self._ended
                self._ended = self._segment
            else:
                self._used, self._stuck = self._segment.mark, self._segment.stuck
            self._depth -= 1
            self._segment = <_Segment>self._segment.below
        return 0

    cdef void _settle(self) noexcept:
        """Use the space of scopes again that ended in this one and whose views are gone, as far as nothing lies above."""
        while (
            self._ended is not None
            and self._ended.end == self._used
            and self._ended.mark >= self._segment.mark
            and not is_shared(<PyObject *>self._ended)
        ):
            self._used, self._stuck = self._ended.mark, self._ended.stuck
            self._drop_ended()

    cdef void _drop_ended(self) noexcept:
        cdef _Segment older = self._ended.older
        self._ended.older = None  # a view may keep the one that goes, and it must not keep others
        self._ended = older

    cdef void _forget_ended(self, size_t mark) noexcept:
        """What scopes that ended from here up left is up to the one around them; they must not look like views of it."""
        while self._ended is not None and self._ended.mark >= mark:
            self._drop_ended()

    def reset(self):
        """Take everything back.

        If anything is still viewed, the whole block is retired: it goes back to its pool with the last view, and the next
        allocation takes another.

        Raises
        ------
        RuntimeError
            Inside a scope.
        """
        cdef bint waited = False
        with cython.critical_section(self):
            self._check_open()
            if self._depth > 0:
                raise RuntimeError(f"arena {self.name!r} cannot be reset inside a scope")
            self._forget_ended(0)
            self._used = self._stuck = 0
            if is_shared(<PyObject *>self._segment):
                waited = self._let_go()
        if waited:
            wake(self.pool)

    cdef bint _let_go(self) noexcept:
        """The block goes back, now or with the last view; true if somebody waits for memory."""
        cdef Buffer buffer = self._buffer
        cdef _Segment segment
        if buffer is None:
            return False
        self._forget_ended(0)
        while self._segment.number != 0:  # scopes that are open
            self._segment = <_Segment>self._segment.below
        if is_shared(<PyObject *>self._segment):
            segment = self._segment
            segment.books, segment.nbytes = self._retired, self._size
            self._retired.nbytes += self._size
            segment = None
        self._segment, self._buffer, self._data = None, None, NULL
        self._used = self._stuck = self._depth = 0
        return buffer._end()

    def close(self):
        """Give the block back to its pool; if something still views it, as soon as nothing does. Idempotent, inside scopes too."""
        cdef bint waited
        with cython.critical_section(self):
            self._open = False
            waited = self._let_go()
        if waited:
            wake(self.pool)
        if self._owns_pool:
            self.pool.close()

    def __enter__(self):
        self._check_open()
        return self

    def __exit__(self, kind, error, traceback):
        self.close()

    # ---- what it is ----

    @property
    def size(self):
        """Bytes in all."""
        return self._size

    @property
    def used(self):
        """Bytes from the beginning to where the next allocation goes, with what lies between for alignment's sake."""
        with cython.critical_section(self):
            self._settle()
            return self._used

    @property
    def free(self):
        """Bytes that are left."""
        return self._size - self.used

    @property
    def retired(self):
        """Bytes left to their views: by ended scopes, which `used` still counts, and whole blocks by `reset` and `close`."""
        with cython.critical_section(self, self._retired):
            self._settle()
            return self._stuck + self._retired.nbytes

    @property
    def closed(self):
        """True after `close`."""
        return not self._open

    def __repr__(self):
        if not self._open:
            return f"<mempool.Arena {self.name!r}, closed>"
        return f"<mempool.Arena {self.name!r}: {self.used} of {self._size} bytes used>"


cdef size_t bytes_of_array(PyArray_Descr *descr, int nd, npy_intp *dims) except? 0:
    cdef size_t nbytes = PyDataType_ELSIZE(descr)
    cdef int i
    for i in range(nd):
        if dims[i] == 0:
            return 0
    for i in range(nd):
        if nbytes > <size_t>TOO_MANY // <size_t>dims[i]:
            raise ValueError(f"an array of so many items of {<object>descr} cannot be addressed")
        nbytes *= <size_t>dims[i]
    return nbytes
