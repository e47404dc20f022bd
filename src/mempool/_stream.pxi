# io.BytesStream: the whole of io.BytesIO over a chain of leases (_chain.pxi).
#
#     memoryview --> _Export --> BytesStream     of getbuffer(): while it lives nothing may move; it keeps the holder of the block
#     memoryview --> _Part --> _Holder --> block     of buffers(): keeps the block, not the stream
#
# What has arguments to convert converts them first, as that may run Python which closes the stream, and looks at the stream then.
cdef object _io, UnsupportedOperation
import io as _io

UnsupportedOperation = _io.UnsupportedOperation

cdef extern from "Python.h":
    Py_ssize_t to_ssize "PyNumber_AsSsize_t"(object, object) except? -1
    long to_long "PyLong_AsLong"(object) except? -1
    bint PyBytes_CheckExact(object)
    int PyBUF_CONTIG_RO
    int INT_MAX
    PyObject *PyErr_Occurred()


@cython.final
@cython.no_gc_clear
cdef class _Export:
    """What the view of `getbuffer()` names. It keeps the block, also for who gave the view back, as numpy.ndarray does."""

    cdef BytesStream stream
    cdef _Holder holder

    def __dealloc__(self):
        if self.holder is not None:
            with cython.critical_section(self.stream):
                self.stream._writers -= 1

    def __getbuffer__(self, Py_buffer *view, int flags):
        view.obj = None
        with cython.critical_section(self.stream):
            self.stream._export(self, view, flags)

    def __releasebuffer__(self, Py_buffer *view):
        with cython.critical_section(self.stream):
            self.stream._exports -= 1


@cython.no_gc_clear
cdef class BytesStream(_Chain):
    """BytesStream(initial_bytes=b"", *, pool=None)\n--\n
    A binary file in memory, as `io.BytesIO`, over blocks of a pool.

    Appending never copies what is there, so that writing much takes no more memory than what is written. What the stream lets go
    is ready for the next lease.

    Parameters
    ----------
    initial_bytes : bytes-like or None
        The content to begin with; it is copied. The position is 0.
    pool : BufferPool or None
        Where the memory comes from. None: `default_pool()`.

    Raises
    ------
    PoolExhausted, AccountLimitExceeded, MemoryError
        The pool has no memory for the content. So does whatever writes; the stream is then unchanged.

    Notes
    -----
    It gives its memory back when it is closed or garbage; views of `buffers()` keep what they see. Every call is safe from any
    thread; the position is common to all.

    Examples
    --------
    >>> import mempool
    >>> with mempool.io.BytesStream() as stream:
    ...     stream.write(b"one\\ntwo\\n")
    ...     stream.seek(0)
    ...     stream.readlines()
    8
    0
    [b'one\\n', b'two\\n']
    """

    cdef dict __dict__
    cdef object __weakref__

    def __init__(self, initial_bytes=b"", *, pool=None):
        if pool is not None and not isinstance(pool, BufferPool):
            raise TypeError(f"pool must be a BufferPool or None, not {pool!r}")
        if initial_bytes is None or initial_bytes is b"":
            self._begin(pool, NULL, 0, 0)
        else:
            self._begin_with(pool, initial_bytes, 0)

    cdef int _begin_with(self, BufferPool pool, object content, Py_ssize_t position) except -1:
        cdef Py_buffer view
        PyObject_GetBuffer(content, &view, PyBUF_CONTIG_RO)
        try:
            self._begin(pool, <const char *>view.buf, view.len, position)
        finally:
            PyBuffer_Release(&view)
        return 0

    def __del__(self):
        # Only the collector calls it for a plain one, which then may have a view as garbage beside it.
        if type(self) is BytesStream:
            with cython.critical_section(self):
                self._end()
        elif not self.closed:  # as io.IOBase has it: a subclass may do more in its close()
            self._finalizing = True
            self.close()

    @cython.final
    cdef void _end(self) noexcept:
        if not self._exports:
            self._closed = True
            self._size = 0
            self._drop_from(0)

    # ---- reading ----

    def read(self, size=-1, /):
        """Read at most `size` bytes; None or negative: to the end. Returns ``b""`` at the end."""
        cdef Py_ssize_t n = optional_size(size, -1)
        with cython.critical_section(self):
            return self._take(n)

    def read1(self, size=-1, /):
        """The same as `read`."""
        cdef Py_ssize_t n = optional_size(size, -1)
        with cython.critical_section(self):
            return self._take(n)

    def readinto(self, buffer, /):
        """Read into a writable bytes-like object; returns how many bytes."""
        return self._read_into(buffer, "readinto")

    def readinto1(self, buffer, /):
        """The same as `readinto`."""
        return self._read_into(buffer, "readinto1")

    cdef object _read_into(self, object buffer, str function):
        cdef Py_buffer view
        cdef Py_ssize_t n
        cdef object count
        if get_buffer(buffer, &view, PyBUF_WRITABLE) < 0:
            if PyErr_ExceptionMatches(TypeError) or PyErr_ExceptionMatches(BufferError) or PyErr_ExceptionMatches(ValueError):
                PyErr_Clear()
                kind = "None" if buffer is None else type(buffer).__name__
                raise TypeError(f"{function}() argument must be read-write bytes-like object, not {kind}")
            fail()
        try:
            with cython.critical_section(self):
                self._check_open()
                n = min(view.len, max(0, self._size - self._pos))
                count = n
                self._move(self._pos, <char *>view.buf, n, False)
                self._pos += n
        finally:
            PyBuffer_Release(&view)
        return count

    def readline(self, size=-1, /):
        """Read to the end of a line, at most `size` bytes; None or negative: without a bound."""
        cdef Py_ssize_t n = optional_size(size, -1)
        with cython.critical_section(self):
            return self._take_line(n)

    @cython.final
    cdef bytes _take_line(self, Py_ssize_t most):
        cdef Link *link
        cdef char *start
        cdef char *found
        self._check_open()
        if most < 0 and self._at < self._count and self._pos < self._size:
            # The hot path: the line ends in the block that was used last.
            link = &self._links[self._at]
            if 0 <= self._pos - link.start < link.room:
                start = link.data + (self._pos - link.start)
                found = <char *>memchr(start, 10, min(link.room - (self._pos - link.start), self._size - self._pos))
                if found is not NULL:
                    line = PyBytes_FromStringAndSize(start, found - start + 1)
                    self._pos += found - start + 1
                    return line
        return self._take(self._line(most))

    def readlines(self, size=None, /):
        """Read lines to the end, or until they have `size` bytes; returns a list."""
        cdef Py_ssize_t bound = 0, total = 0
        cdef bytes line
        if size is not None:
            if not isinstance(size, int):  # as io.BytesIO: of its sizes this one alone takes no other index
                raise TypeError(f"integer argument expected, got '{type(size).__name__}'")
            bound = optional_size(size, 0)
        lines = []
        with cython.critical_section(self):
            line = self._take_line(-1)
            while line:
                lines.append(line)
                total += len(line)
                if 0 < bound <= total:
                    break
                line = self._take_line(-1)
        return lines

    def __iter__(self):
        return self

    def __next__(self):
        cdef bytes line
        with cython.critical_section(self):
            line = self._take_line(-1)
        if not line:
            raise StopIteration
        return line

    def getvalue(self):
        """Return a copy of the whole content, whatever the position."""
        cdef bytes out = None
        with cython.critical_section(self):
            while out is None:
                self._check_open()
                if self._size > <Py_ssize_t>LONG_WORK:
                    out = self._copy_long(0, self._size, False)
                else:
                    out = self._copy(0, self._size)
        return out

    # ---- writing ----

    def write(self, b, /):
        """Write a bytes-like object at the position, and zeros before it if that is behind the end; returns its length."""
        cdef Py_buffer view
        cdef object length
        if PyBytes_CheckExact(b):
            length = len(<bytes>b)  # made first, as all that is returned: there may be no memory for it
            with cython.critical_section(self):
                self._put_bytes(<bytes>b)
            return length
        with cython.critical_section(self):
            self._check_changeable()
        PyObject_GetBuffer(b, &view, PyBUF_CONTIG_RO)
        try:
            length = view.len
            with cython.critical_section(self):
                self._put(<const char *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        return length

    @cython.final
    cdef Py_ssize_t _put_bytes(self, bytes data) except -1:
        """The hot path: it goes to the end, and the block has room."""
        cdef Py_ssize_t n = len(data), offset
        cdef Link *link
        if self._at < self._count and self._pos == self._size and not self._exports:
            link = &self._links[self._at]
            offset = self._pos - link.start
            if link.shown <= offset and n <= link.room - offset:
                memcpy(link.data + offset, <char *>data, n)
                self._pos += n
                self._size = self._pos
                return n
        return self._put(<char *>data, n)

    def writelines(self, lines, /):
        """Write each of some bytes-like objects."""
        self._check_open()
        for line in lines:
            BytesStream.write(self, line)

    def truncate(self, size=None, /):
        """Cut the content to `size` bytes, None: at the position, which does not move. It is never extended. Returns `size`."""
        cdef Py_ssize_t n = optional_size(size, self._pos)
        cdef object result = n
        with cython.critical_section(self):
            self._check_changeable()
            if n < 0:
                raise ValueError(f"negative size value {n}")
            if n < self._size:
                self._size = n
                self._shed()
        return result

    # ---- position and state ----

    def seek(self, Py_ssize_t pos, whence=0, /):
        """Move the position: from the start (0), from where it is (1), from the end (2). Returns it. Behind the end is fine."""
        cdef int origin = to_whence(whence)
        cdef Py_ssize_t base = 0
        cdef object result
        with cython.critical_section(self):
            self._check_open()
            if pos < 0 and origin == 0:
                raise ValueError(f"negative seek value {pos}")
            if origin == 1:
                base = self._pos
            elif origin == 2:
                base = self._size
            elif origin != 0:
                raise ValueError(f"invalid whence ({origin}, should be 0, 1 or 2)")
            if pos > SSIZE_MAX - base:
                raise OverflowError("new position too large")
            base = max(0, base + pos)
            result = base
            self._pos = base
        return result

    def tell(self):
        """Return the position."""
        with cython.critical_section(self):
            self._check_open()
            return self._pos

    def readable(self):
        """Return True."""
        self._check_open()
        return True

    def writable(self):
        """Return True."""
        self._check_open()
        return True

    def seekable(self):
        """Return True."""
        self._check_open()
        return True

    def isatty(self):
        """Return False."""
        self._check_open()
        return False

    def flush(self):
        """Do nothing."""
        self._check_open()

    def fileno(self):
        """Raise `io.UnsupportedOperation`: there is no file."""
        raise UnsupportedOperation("fileno")

    def detach(self):
        """Raise `io.UnsupportedOperation`: there is nothing below."""
        raise UnsupportedOperation("detach")

    @property
    def closed(self):
        """True once it is closed."""
        return self._closed

    @property
    def pool(self):
        """Where the memory comes from."""
        return self._source()

    def close(self):
        """Give the memory back; what views of `buffers()` see, when they die. Twice is as good as once.

        Raises
        ------
        BufferError
            A view of `getbuffer()` lives.
        """
        with cython.critical_section(self):
            if self._exports:
                raise BufferError("Existing exports of data: object cannot be re-sized")
            self._end()

    def __enter__(self):
        self._check_open()
        return self

    def __exit__(self, kind, error, traceback):
        self.close()

    def __sizeof__(self):
        cdef Py_ssize_t links = 0 if self._links == &self._one else self._space * <Py_ssize_t>sizeof(Link)
        return object.__sizeof__(self) + links + self._room

    # ---- views ----

    def getbuffer(self):
        """Return a writable memoryview of the content, in one piece; it is joined if it is in several, which copies it.

        While it lives, what would move or resize the content raises `BufferError`: `write`, `truncate`, `close`.
        """
        cdef _Export export
        self._check_open()
        export = _Export.__new__(_Export)
        export.stream = self
        return PyMemoryView_FromObject(export)

    cdef int _export(self, _Export export, Py_buffer *view, int flags) except -1:
        """Fill a view of the content where it is."""
        cdef _Holder holder = None
        cdef uint64_t version
        while export.holder is None:
            self._check_open()
            if not self._exports and (not self._is_joined() or self._own(0, self._size)):
                self._join()
                continue
            if self._count == 0:
                break
            version, holder = self._version, self._first._hold()
            if version == self._version and self._is_joined() and not self._closed:
                export.holder = holder
                self._writers += 1
                self._links[0].shown = self._size
        self._check_open()
        if export.holder is not None and (self._count == 0 or self._first._holder is not export.holder or not self._is_joined()):
            raise BufferError("the content has moved since the view was made")
        fill_range(view, export, &NO_BYTES if export.holder is None else self._links[0].data, self._size, flags)
        self._exports += 1
        return 0

    def buffers(self):
        """Return the content as read-only memoryviews, in order and without a copy: for `os.writev`, `socket.sendmsg`, `hashlib`.

        They are a snapshot: what the stream writes, cuts off or closes later does not change them, and they do not lock it. What
        they see stays in memory while they live. An empty stream has none. While a view of `getbuffer()` lives, they are of a
        copy.

        Returns
        -------
        list of memoryview

        Examples
        --------
        >>> import mempool
        >>> stream = mempool.io.BytesStream(b"before")
        >>> snapshot = stream.buffers()
        >>> stream.write(b"behind")
        6
        >>> b"".join(snapshot), stream.getvalue()
        (b'before', b'behind')
        """
        cdef Piece *pieces = NULL
        cdef Py_ssize_t i, count = -1
        with cython.critical_section(self):
            while count < 0:
                self._check_open()
                if self._writers:
                    return self._copied_view()
                pieces = self._seize(0, self._size, &count)
                if self._writers or count < 0:
                    drop_pieces(pieces, count)
                    count = -1
        try:
            return views_of(pieces, count)
        finally:
            drop_pieces(pieces, count)

    cdef list _copied_view(self):
        """A snapshot of what others may write to."""
        cdef Piece piece
        cdef Buffer lease
        cdef Py_ssize_t size = self._size
        if size == 0:
            return []
        lease = lend_ours(self._source(), size, size)
        piece.size = min(size, self._size)
        holder = lease._hold()
        self._move(0, <char *>lease._block.data, piece.size, False)
        piece.holder, piece.data = <PyObject *>holder, <char *>lease._block.data
        return views_of(&piece, 1)

    # ---- copies ----

    def __getstate__(self):
        value = self.getvalue()
        state = dict(vars(self))
        return value, self._pos, state or None

    def __setstate__(self, state):
        if not isinstance(state, tuple) or len(state) < 3:
            kind = type(self).__name__, type(state).__name__
            raise TypeError("%.200s.__setstate__ argument should be 3-tuple, got %.200s" % kind)
        self._check_changeable()
        value, position, attributes = state[0], state[1], state[2]
        if not isinstance(position, int):
            raise TypeError(f"second item of state must be an integer, not {type(position).__name__}")
        if attributes is not None and not isinstance(attributes, dict):
            raise TypeError(f"third item of state should be a dict, got a {type(attributes).__name__}")
        at = to_ssize(position, OverflowError)
        if at < 0:
            raise ValueError("position value cannot be negative")
        self._begin_with(self._pool, value, at)
        if attributes is not None:
            vars(self).update(attributes)


cdef list views_of(Piece *pieces, Py_ssize_t count):
    cdef list views = []
    cdef _Part part
    cdef Py_ssize_t i
    for i in range(count):
        part = _Part.__new__(_Part)
        part.holder = <_Holder>pieces[i].holder
        part.data, part.size = pieces[i].data, pieces[i].size
        views.append(PyMemoryView_FromObject(part))
    return views


cdef Py_ssize_t optional_size(object value, Py_ssize_t default) except? -2:
    """A size as files take it."""
    cdef Py_ssize_t size
    if value is None:
        return default
    if PyLong_CheckExact(value):
        size = as_ssize(value)
        if size != -1 or PyErr_Occurred() is NULL:
            return size
        PyErr_Clear()
    if not PyIndex_Check(value):
        raise TypeError(f"argument should be integer or None, not '{type(value).__name__}'")
    return to_ssize(value, OverflowError)


cdef int to_whence(object value) except? -1:
    cdef long number = 0
    if PyLong_CheckExact(value):
        number = to_long(value)
    else:
        number = to_long(_operator_index(value))
    if number > INT_MAX or number < -INT_MAX - 1:
        raise OverflowError("Python int too large to convert to C int")
    return <int>number


cdef object _operator_index
from operator import index as _operator_index

# ---- the death of a stream ----
#
# The memory is back before a callback of a weak reference runs; and the attributes are let go, which somebody may still look at:
# Cython would clear them.

cdef destructor cython_dealloc_stream = (<PyTypeObject *>BytesStream).tp_dealloc
(<PyTypeObject *>BytesStream).tp_dealloc = <destructor>dealloc_stream


cdef void dealloc_stream(PyObject *dying) noexcept:
    # `<BytesStream>dying` borrows: nobody may take a reference to an object that has none left.
    cdef PyObject **attributes = <PyObject **>(<char *>dying + (<PyTypeObject *>BytesStream).tp_dictoffset)
    cdef PyObject *held
    PyObject_GC_UnTrack(dying)
    if (<BytesStream>dying)._count or attributes[0] is not NULL:
        held = attributes[0]
        attributes[0] = NULL
        end_aside(dying, held)
    cython_dealloc_stream(dying)


cdef void end_aside(PyObject *dying, PyObject *held) noexcept:
    """Let memory and attributes go, with the exception that is on its way put aside."""
    cdef PyObject *kind
    cdef PyObject *error
    cdef PyObject *traceback
    PyErr_Fetch(&kind, &error, &traceback)
    (<BytesStream>dying)._end()
    Py_XDECREF(held)
    PyErr_Restore(kind, error, traceback)


# Files are told by their type: this one is a file, and its name is where it is imported from.
_io.BufferedIOBase.register(BytesStream)
(<PyTypeObject *>BytesStream).tp_name = b"mempool.io.BytesStream"
