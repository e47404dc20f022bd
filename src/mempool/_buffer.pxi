# A lease and its views.
#
#     Buffer ----> block            never exported: the block goes back when the Buffer is released or dies
#
#     Buffer ----> _Holder ----> block
#     memoryview -----^             exported: views name the holder, never the Buffer. Releasing the Buffer drops its own reference
#     ndarray --------^             to the holder; the block goes back when the last reference does.
#
# So no count of exports is kept and none can be wrong: whatever a consumer keeps of what it was given (the Py_buffer, its
# `obj`, a memoryview of
# it) keeps the holder. The one consumer that keeps the Buffer itself is `numpy.ndarray(buffer=b)`, which gives its export back
# at once; it is
# the only one that asks for any contiguous layout, and a lease that was asked so keeps its holder until the Buffer dies.

# PyBUF_WRITABLE | PyBUF_ANY_CONTIGUOUS: how numpy.ndarray(buffer=...) asks.
cdef int ASKED_BY_NDARRAY = 0x99

cdef char *BYTES_FORMAT = "B"


cdef enum:
    TRACED = 1   # tracemalloc knows the block
    KEPT = 2     # numpy.ndarray(buffer=b) may keep this very object
    OURS = 4     # made by this package for its own use: dropping it is how it is meant to end
    WATCHED = 8  # leak detection noted where it was acquired
    LONG_END = 16  # it is cleared at the end, which takes so long that the GIL should go
    EMPTY = 32  # its block is `no_block`, of no pool


cdef inline bint is_shared(PyObject *holder) noexcept:
    """A view has the holder too. Takes a pointer, as an argument of a Python type might be counted."""
    return holder is not <PyObject *>None and refcount(holder) > 1


# What a lease of no byte has where it must not depend on memory: the end of a stream. One for all of them, as nothing can be
# written there, and no pool counts it.
cdef char no_bytes[128]
cdef mp_block no_block
no_block.data = <void *>((<uintptr_t>no_bytes + 63) & ~<uintptr_t>63)
no_block.capacity = no_block.requested = 0


cdef inline bint finish(mp_block *block, mp_end end, unsigned int flags) noexcept:
    """Nothing sees the block any more; true if somebody waits for memory."""
    if flags & EMPTY:
        return False
    if flags & TRACED:
        PyTraceMalloc_Untrack(DOMAIN, <uintptr_t>block.data)
    cdef bint waited
    if flags & LONG_END:
        with nogil:
            waited = mp_pool_release(block, end)
        return waited
    return mp_pool_release(block, end)


cdef inline void retire(mp_block *block, mp_end end, unsigned int flags) noexcept:
    """The lease is over, but something views the block."""
    if not flags & EMPTY:
        mp_pool_retire(block, end)


cdef inline bint finish_retired(mp_block *block, unsigned int flags) noexcept:
    """The last view of a retired block died."""
    if flags & EMPTY:
        return False
    cdef bint waited
    if flags & TRACED:
        PyTraceMalloc_Untrack(DOMAIN, <uintptr_t>block.data)
    if flags & LONG_END:
        with nogil:
            waited = mp_pool_return(block)
        return waited
    return mp_pool_return(block)


@cython.final
@cython.freelist(64)
@cython.no_gc
cdef class _Holder:
    """What views of a buffer keep alive. Its death gives the block back.

    The collector does not know it: so a weak reference to it dies with it, and never before, which is how others learn of its end.
    """

    cdef mp_block *block
    cdef Py_ssize_t nbytes
    cdef object pool  # weakly: arrays are no garbage to the collector, so a pool that reaches one must not be reached back
    cdef unsigned int flags
    cdef object __weakref__

    def __getbuffer__(self, Py_buffer *view, int flags):
        fill_view(self, view, flags)

    def __releasebuffer__(self, Py_buffer *view):
        pass


cdef int fill_view(_Holder holder, Py_buffer *view, int flags) except -1:
    if holder.block is NULL:
        view.obj = None
        raise BufferError("buffer is released")
    view.buf = holder.block.data
    view.len = holder.nbytes
    view.itemsize = 1
    view.readonly = 0
    view.ndim = 1
    view.format = BYTES_FORMAT if flags & PyBUF_FORMAT else NULL
    view.shape = &view.len if flags & PyBUF_ND else NULL
    view.strides = &view.itemsize if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
    view.suboffsets = NULL
    view.internal = NULL
    view.obj = holder
    return 0


@cython.final
@cython.freelist(64)
@cython.no_gc_clear
cdef class Buffer:
    """A lease of native memory: writable, contiguous bytes. Made by `BufferPool.acquire`.

    The memory goes back to its pool with `release()`, at the end of a ``with`` block, or when the buffer is garbage; if a view of
    it lives (a memoryview, an array), when the last view dies. A view never sees another lease's bytes. Bytes are uninitialised
    unless acquired with ``zero=True``.

    Using a released buffer raises `ValueError`.

    Examples
    --------
    >>> import mempool
    >>> with mempool.acquire("64KiB") as b:
    ...     b[:5] = b"hello"
    ...     bytes(b[:5]), len(b)
    (b'hello', 65536)
    """

    cdef mp_block *_block       # NULL once released
    cdef _Holder _holder        # made on the first export
    cdef PyObject *_origin      # with WATCHED: where it was acquired; owned
    cdef BufferPool _pool       # keeps the pool's C state alive as long as the block is ours
    cdef unsigned int _flags    # zero for a plain lease
    cdef object __weakref__

    def __init__(self):
        raise TypeError("a Buffer is made by BufferPool.acquire()")

    cdef bint _end(self) noexcept:
        """Release; true if somebody waits for memory."""
        cdef mp_block *block = self._block
        cdef _Holder holder
        if block is NULL:
            return False
        self._block = NULL
        if self._flags & WATCHED:
            self._forget_origin()
        if self._holder is None:
            return finish(block, MP_END_RELEASED, self._flags)
        if not self._flags & KEPT and not is_shared(<PyObject *>self._holder):
            holder = self._holder
            self._holder = None
            holder.block = NULL  # nobody else has the holder: it dies without giving the block back, and after that is back
            return finish(block, MP_END_RELEASED, self._flags)
        retire(block, MP_END_RELEASED, self._flags)
        if not self._flags & KEPT:
            self._holder = None
        return False

    cdef void _forget_origin(self) noexcept:
        Py_XDECREF(self._origin)
        self._origin = NULL
        self._flags &= ~<unsigned int>WATCHED

    cdef mp_block *_lent(self) except NULL:
        if self._block is NULL:
            raise ValueError("buffer is released")
        return self._block

    cdef _Holder _hold(self):
        """The holder, made on the first export."""
        cdef _Holder holder
        if self._holder is None:
            holder = _Holder.__new__(_Holder)
            if self._holder is not None:  # the allocation ran the collector, and that a finaliser which viewed this buffer
                return self._holder
            holder.nbytes = self._lent().requested
            holder.block = self._block
            holder.pool = self._pool._weak
            holder.flags = self._flags
            self._holder = holder
        return self._holder

    def release(self):
        """Give the memory back; if something still views it, as soon as nothing does. Never fails; twice is as good as once."""
        cdef bint waited
        with cython.critical_section(self):
            waited = self._end()
        if waited:
            wake(self._pool)

    def __enter__(self):
        self._lent()
        return self

    def __exit__(self, kind, error, traceback):
        cdef bint waited
        with cython.critical_section(self):
            waited = self._end()
        if waited:
            wake(self._pool)

    def __getbuffer__(self, Py_buffer *view, int flags):
        with cython.critical_section(self):
            if self._block is NULL:
                view.obj = None
                raise ValueError("buffer is released")
            holder = self._hold()
            if flags == ASKED_BY_NDARRAY:
                self._flags |= KEPT
        fill_view(holder, view, flags)

    def __releasebuffer__(self, Py_buffer *view):
        # Never called, as views name the holder; but NumPy keeps a memoryview only of what has this method.
        pass

    def __len__(self):
        with cython.critical_section(self):
            return self._lent().requested

    @property
    def nbytes(self):
        """Length in bytes."""
        with cython.critical_section(self):
            return self._lent().requested

    @property
    def capacity(self):
        """Bytes of the block: how far `resize` can go."""
        with cython.critical_section(self):
            return self._lent().capacity

    @property
    def address(self):
        """Address of the first byte."""
        with cython.critical_section(self):
            return <uintptr_t>self._lent().data

    @property
    def released(self):
        """True once the lease has ended."""
        return self._block is NULL

    @property
    def pool(self):
        """The pool it came from, also after release."""
        return self._pool

    def __getitem__(self, index):
        cdef Py_ssize_t at
        if not PyIndex_Check(index):
            return PyMemoryView_FromObject(self)[index]
        at = to_index(index)
        with cython.critical_section(self):
            return (<unsigned char *>self._lent().data)[self._offset(at)]

    def __setitem__(self, index, value):
        cdef Py_ssize_t at
        cdef unsigned char byte
        if not PyIndex_Check(index):
            set_slice(PyMemoryView_FromObject(self)[index], value)
            return
        at = to_index(index)
        byte = to_byte(value)
        with cython.critical_section(self):
            (<unsigned char *>self._lent().data)[self._offset(at)] = byte

    def __delitem__(self, index):
        raise TypeError("a Buffer has a fixed size: its bytes cannot be deleted")

    cdef Py_ssize_t _offset(self, Py_ssize_t index) except -1:
        cdef Py_ssize_t length = self._lent().requested
        if index < 0:
            index += length
        if index < 0 or index >= length:
            raise IndexError(f"index {index if index >= 0 else index - length} is out of range for a buffer of {length} bytes")
        return index

    def resize(self, nbytes):
        """Change the length within the block that the lease has.

        Parameters
        ----------
        nbytes : int or str
            The new length, at most `capacity`. Bytes beyond the old length are uninitialised.

        Raises
        ------
        ValueError
            Beyond the capacity.
        BufferError
            While something views the buffer.
        """
        cdef size_t size = _size_to_c(nbytes, "nbytes")
        with cython.critical_section(self):
            if size > self._lent().capacity:
                raise ValueError(f"cannot resize to {size} bytes: the capacity is {self._block.capacity}")
            if self._flags & KEPT or is_shared(<PyObject *>self._holder):
                raise BufferError("cannot resize while a view of the buffer is alive")
            if not self._flags & EMPTY:
                mp_pool_resize(self._block, size)
            if self._holder is not None:
                self._holder.nbytes = size

    def readonly(self):
        """Return a read-only memoryview, without a copy."""
        return PyMemoryView_FromObject(self).toreadonly()

    def tobytes(self):
        """Return a copy as `bytes`."""
        with cython.critical_section(self):
            return PyBytes_FromStringAndSize(<char *>self._lent().data, self._block.requested)

    def array(self, dtype="u1", shape=None, *, offset=0, order="C"):
        """Return a writable NumPy array over the memory, without a copy.

        Parameters
        ----------
        dtype : dtype-like
            Anything but object types.
        shape : int, tuple of int or None
            None: one dimension, up to the end.
        offset : int
            Bytes before the first item.
        order : {"C", "F"}
            Row-major or column-major.

        Returns
        -------
        numpy.ndarray
            It keeps the memory, not the buffer: after `release()` it still sees its own bytes.

        Raises
        ------
        ValueError
            Beyond the end, for a size that is no multiple of the item size, or for a dtype with objects.
        """
        return array_over(self, dtype, shape, offset, order)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """Export as a DLPack capsule: one dimension of uint8 on the CPU, version 1.x if the consumer knows it."""
        return dlpack_capsule(self, stream, max_version, dl_device, copy)

    def __dlpack_device__(self):
        """Return ``(1, 0)``: the CPU."""
        self._lent()
        return (1, 0)

    def __reduce_ex__(self, protocol):
        if protocol >= 5:
            return _rebuild_buffer, (PyPickleBuffer_FromObject(self),)
        return _rebuild_buffer, (self.tobytes(),)

    def __richcmp__(self, other, int op):
        if op != Py_EQ and op != Py_NE:
            return NotImplemented
        if self is other:
            return op == Py_EQ
        equal = same_bytes(self, other)
        if equal is NotImplemented:
            return equal
        return equal if op == Py_EQ else not equal

    __hash__ = None

    def __repr__(self):
        if self._pool is None:
            return "<mempool.Buffer, never lent>"
        if self._block is NULL:
            return f"<mempool.Buffer, released, of pool {self._pool.name!r}>"
        return f"<mempool.Buffer of {self._block.requested} bytes at {<uintptr_t>self._block.data:#x}, of pool {self._pool.name!r}>"


# ---- the death of a buffer, and of what its views keep ----
#
# Cython would call the callbacks of weak references before `__dealloc__`, and no Python shall run before the memory is back. So
# the types get a tp_dealloc that ends the lease first. It also saves what `__dealloc__` costs each lease: putting the current
# exception aside.

cdef destructor cython_dealloc = (<PyTypeObject *>Buffer).tp_dealloc
(<PyTypeObject *>Buffer).tp_dealloc = <destructor>dealloc_buffer
cdef destructor cython_dealloc_holder = (<PyTypeObject *>_Holder).tp_dealloc
(<PyTypeObject *>_Holder).tp_dealloc = <destructor>dealloc_holder


cdef void dealloc_holder(PyObject *dying) noexcept:
    # `<_Holder>dying` borrows, as below.
    cdef mp_block *block = (<_Holder>dying).block
    if block is not NULL and finish_retired(block, (<_Holder>dying).flags):
        wake_aside(<PyObject *>(<_Holder>dying).pool)
    cython_dealloc_holder(dying)


cdef void wake_aside(PyObject *weak) noexcept:
    """Serve who waits, with the exception that is on its way put aside."""
    cdef PyObject *kind
    cdef PyObject *error
    cdef PyObject *traceback
    PyErr_Fetch(&kind, &error, &traceback)
    pool = (<object>weak)()
    if pool is not None:
        wake(pool)
    PyErr_Restore(kind, error, traceback)


cdef void dealloc_buffer(PyObject *dying) noexcept:
    # `<Buffer>dying` borrows: nobody may take a reference to an object that has none left.
    cdef mp_block *block = (<Buffer>dying)._block
    if block is not NULL:
        if (<Buffer>dying)._flags == 0 and (<Buffer>dying)._holder is None:
            if mp_pool_release(block, MP_END_DROPPED):
                PyObject_GC_UnTrack(dying)
                run_aside((<Buffer>dying)._pool, True, NULL)
        else:
            PyObject_GC_UnTrack(dying)
            drop(dying, block)
    cython_dealloc(dying)


cdef void drop(PyObject *dying, mp_block *block) noexcept:
    """The end of a lease that has a view, or of which somebody wants to know."""
    cdef unsigned int flags = (<Buffer>dying)._flags
    cdef bint meant = (flags & (KEPT | OURS)) != 0, waited = False
    if is_shared(<PyObject *>(<Buffer>dying)._holder):
        retire(block, MP_END_HANDED_OVER, flags)
        meant = True
    else:
        if (<Buffer>dying)._holder is not None:
            (<Buffer>dying)._holder.block = NULL
        waited = finish(block, MP_END_HANDED_OVER if meant else MP_END_DROPPED, flags)
    run_aside((<Buffer>dying)._pool, waited, NULL if meant else (<Buffer>dying)._origin)
    Py_XDECREF((<Buffer>dying)._origin)


cdef void run_aside(BufferPool pool, bint waited, PyObject *origin) noexcept:
    """Run what a dying buffer has to say, with the exception that is on its way put aside."""
    cdef PyObject *kind
    cdef PyObject *error
    cdef PyObject *traceback
    if not waited and origin is NULL:
        return
    PyErr_Fetch(&kind, &error, &traceback)
    if waited:
        wake(pool)
    if origin is not NULL:
        warn_of_leak(<tuple>origin, pool)
    PyErr_Restore(kind, error, traceback)


cdef Buffer empty_lease(BufferPool pool):
    """A lease of no byte that needs nothing of the pool, be it exhausted or closed."""
    cdef Buffer buffer = Buffer.__new__(Buffer)
    buffer._pool = pool
    buffer._flags = EMPTY
    buffer._block = &no_block
    return buffer


cdef Py_ssize_t to_index(object index) except? -1:
    try:
        return index
    except OverflowError:
        raise IndexError(f"index {shown(index.__index__())} is out of range for any buffer") from None


cdef unsigned char to_byte(object value) except? 255:
    cdef Py_ssize_t byte
    if not PyIndex_Check(value):
        raise TypeError(f"a byte must be an int, not {value!r}")
    try:
        byte = value
    except OverflowError:
        byte = -1
    if byte < 0 or byte > 255:
        raise ValueError(f"a byte must be in range(0, 256), got {shown(value.__index__())}")
    return <unsigned char>byte


cdef int set_slice(object target, object value) except -1:
    """Copy any bytes-like object over a slice of the same length."""
    source = PyMemoryView_FromObject(value)
    if source.nbytes != target.nbytes:
        raise ValueError(f"cannot put {source.nbytes} bytes into a slice of {target.nbytes}")
    if not source.nbytes:
        return 0
    if source.format != "B" or source.ndim != 1:
        source = source.cast("B") if source.c_contiguous else memoryview(source.tobytes())
    target[:] = source
    return 0


cdef int fail() except -1:
    """An error is set: raise it."""
    return -1


cdef object same_bytes(Buffer buffer, object other):
    cdef Py_buffer view
    cdef bint equal = False
    if get_buffer(other, &view, PyBUF_SIMPLE) < 0:
        # Without try: what Cython makes of it crashes if the error was out of memory.
        if PyErr_ExceptionMatches(TypeError) or PyErr_ExceptionMatches(BufferError) or PyErr_ExceptionMatches(ValueError):
            PyErr_Clear()
            return NotImplemented
        fail()
    with cython.critical_section(buffer):
        if buffer._block is not NULL and <size_t>view.len == buffer._block.requested:
            equal = memcmp(buffer._block.data, view.buf, view.len) == 0
    PyBuffer_Release(&view)
    return equal
