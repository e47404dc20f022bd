# Arrays over files and anonymous memory.
#
#     MappedArray ----> mp_mapping <---- _MappingView <---- ndarray, memoryview
#
# Views name the mapping of csrc, never the MappedArray: it may be closed or collected while they live.
cdef object MappingError
from mempool.errors import MappingError

# Numbers of a higher kind do not become ones of a lower without being told to.
cdef dict KIND_RANK = {"b": 1, "i": 2, "u": 2, "f": 3, "c": 4}
cdef dict ADVICE = {
    "normal": MP_ADVICE_NORMAL,
    "sequential": MP_ADVICE_SEQUENTIAL,
    "random": MP_ADVICE_RANDOM,
    "willneed": MP_ADVICE_WILLNEED,
    "dontneed": MP_ADVICE_DONTNEED,
    "hugepage": MP_ADVICE_HUGEPAGE,
    "nohugepage": MP_ADVICE_NOHUGEPAGE,
}

# Charged for all arrays of a kind, from the first on: one account each would cost more than to open a file.
cdef dict _array_accounts = {}


cdef Account array_account(str name):
    account = _array_accounts.get(name)
    if account is None:
        account = _array_accounts.setdefault(name, Account(name))  # atomic: of two threads one wins
    return <Account>account


@cython.final
@cython.no_gc_clear
cdef class MappedArray:
    """An n-dimensional array in a file or in anonymous memory. Made by `open_array`, `create_array` and `anonymous_array`.

    `array` is a plain `numpy.ndarray` over the memory, without a copy. Arrays keep the memory mapped, also after `close`. Rows are
    what the first axis counts; arrays in C order grow in place by rows: nothing moves, and what was viewed stays valid.

    Using a closed array raises `ValueError`. Once the file under it was truncated, every use raises `MappingError`, and arrays read
    zeros where the file was lost; touching lost memory before that ends the process with a bus error, unless `guard_truncation` was
    called.

    Examples
    --------
    >>> import mempool, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "log.npy")
    >>> with mempool.create_array(path, (0, 3), "f8") as log:
    ...     log.append([[1, 2, 3], [4, 5, 6]])
    ...     log.flush()
    >>> with mempool.open_array(path) as log:
    ...     log.shape, float(log.array.sum())
    ((2, 3), 21.0)
    """

    cdef mp_mapping *_c
    cdef npy_intp _dims[64]     # the first counts only where there are no rows
    cdef int _ndim
    cdef int _layout            # array flags
    cdef bint _by_rows          # C order, at least one dimension
    cdef Py_ssize_t _row_bytes
    cdef bint _is_file
    cdef bint _header_inside    # the file's header is not its beginning: it cannot be written
    cdef object _kept           # the array that numpy.ndarray(buffer=...) was given: it keeps us, but not its export
    cdef object _folder         # whose entry of a new file no flush has brought to the disk yet
    cdef readonly object dtype
    """The dtype of an element."""
    cdef readonly object path
    """The path as it was given; None for anonymous memory."""
    cdef readonly str mode
    """"r", "r+", "w+" or "c"."""
    cdef object __weakref__

    def __init__(self):
        raise TypeError("a MappedArray is made by open_array(), create_array() or anonymous_array()")

    def __dealloc__(self):
        cdef int ignored = 0
        if self._c is not NULL:
            self._shut(False, &ignored)
            with nogil:
                mp_mapping_destroy(self._c)

    cdef mp_status _shut(self, bint revoke, int *error) noexcept:
        """Held meanwhile, so that the memory ends here, with its trace gone before the addresses can be anybody else's."""
        cdef mp_mapping_state state
        cdef mp_status status
        cdef bint held
        mp_mapping_look(self._c, &state)
        held = mp_mapping_hold(self._c)
        with nogil:
            status = mp_mapping_revoke(self._c, error) if revoke else mp_mapping_close(self._c, error)
        if not held:
            return status
        if revoke:
            PyTraceMalloc_Untrack(DOMAIN, <uintptr_t>state.data)
        if mp_mapping_leave(self._c):
            PyTraceMalloc_Untrack(DOMAIN, <uintptr_t>state.data)
            with nogil:
                mp_mapping_end(self._c)
        return status

    cdef _MappingView _hold(self):
        """Keeps the memory mapped while C works on it, so that its end is a view's; None if it is closed."""
        cdef mp_mapping_state state
        cdef _MappingView view = _MappingView.__new__(_MappingView)
        mp_mapping_look(self._c, &state)
        if not mp_mapping_hold(self._c):
            return None
        view.mapping = self._c
        view.data = state.data
        return view

    cdef mp_mapping *_ready(self) except NULL:
        if self._c is NULL:
            raise ValueError("array was never opened")
        return self._c

    # ---- what it is ----

    cdef npy_intp _rows(self) except -1:
        cdef mp_mapping_state state
        if not self._by_rows:
            return self._dims[0]
        mp_mapping_look(self._ready(), &state)
        return <npy_intp>state.rows

    @property
    def shape(self):
        """The shape, a tuple of int."""
        extents = []
        for i in range(self._ndim):
            extents.append(self._rows() if i == 0 else self._dims[i])
        return tuple(extents)

    @property
    def ndim(self):
        """The number of dimensions."""
        return self._ndim

    @property
    def itemsize(self):
        """Bytes of an element."""
        self._ready()
        return PyDataType_ELSIZE(<PyArray_Descr *><PyObject *>self.dtype)

    @property
    def nbytes(self):
        """Bytes of all elements."""
        return self._nbytes()

    cdef Py_ssize_t _nbytes(self) except -1:
        return (self._rows() if self._by_rows else 1) * self._row_bytes

    @property
    def strides(self):
        """Bytes from one element to the next, for each axis."""
        cdef Py_ssize_t step = self.itemsize
        cdef int i
        shape, strides = self.shape, [0] * self._ndim
        for i in range(self._ndim) if self._layout & NPY_ARRAY_F_CONTIGUOUS else reversed(range(self._ndim)):
            strides[i] = step
            step *= max(1, shape[i])
        return tuple(strides)

    @property
    def readonly(self):
        """True if the memory cannot be written."""
        return not self._layout & NPY_ARRAY_WRITEABLE

    @property
    def closed(self):
        """True after `close`."""
        cdef mp_mapping_state state
        mp_mapping_look(self._ready(), &state)
        return state.closed

    @property
    def truncated(self):
        """True once it was found that the file lost bytes that the array needs, by a call or by `guard_truncation`'s handler."""
        cdef mp_mapping_state state
        mp_mapping_look(self._ready(), &state)
        return state.lost

    @property
    def max_rows(self):
        """How many rows it can grow to in place: as many as addresses were reserved for. None for what cannot be resized."""
        cdef mp_mapping_state state
        mp_mapping_look(self._ready(), &state)
        return state.max_rows if self._why_fixed() is None else None

    def __len__(self):
        if self._ndim == 0:
            raise TypeError("len() of a 0-dimensional array")
        return self._rows()

    def __repr__(self):
        if self._c is NULL:
            return "<mempool.MappedArray, never opened>"
        where = "anonymous" if self.path is None else repr(self.path)
        closed = ", closed" if self.closed else ""
        return f"<mempool.MappedArray {where}{closed}: {self.dtype}, shape {self.shape}, mode {self.mode!r}>"

    # ---- views ----

    cdef _MappingView _view(self, mp_mapping_state *state):
        cdef _MappingView view = _MappingView.__new__(_MappingView)
        cdef mp_status status = mp_mapping_view(self._ready(), state)
        if status != MP_OK:
            self._check(status, 0)
        view.mapping = self._c
        view.data = state.data
        view.nbytes = (state.rows if self._by_rows else 1) * self._row_bytes
        view.readonly = not self._layout & NPY_ARRAY_WRITEABLE
        return view

    cdef object _block(self, Py_ssize_t start, Py_ssize_t stop):
        """An array over some rows, or over all that there are when `stop` is less than 0."""
        cdef npy_intp dims[64]
        cdef mp_mapping_state state
        cdef _MappingView view = self._view(&state)
        cdef int i
        for i in range(self._ndim):
            dims[i] = self._dims[i]
        if self._by_rows:
            if stop < 0 or <size_t>stop > state.rows:
                stop = state.rows
            dims[0] = stop - min(start, stop)
        return array_on(view, <char *>view.data + start * self._row_bytes, self.dtype, self._ndim, dims, self._layout)

    @property
    def array(self):
        """A plain `numpy.ndarray` over the whole, without a copy, writable unless `readonly`.

        Raises
        ------
        ValueError
            After `close`.
        MappingError
            If the file was truncated.
        """
        return self._block(0, -1)

    def __array__(self, dtype=None, *, copy=None):
        return as_asked(self._block(0, -1), dtype, copy)

    def __dlpack__(self, **asked):
        """Export as NumPy exports `.array`: to a consumer of DLPack 1.x a read-only array says so."""
        return self._block(0, -1).__dlpack__(**asked)

    def __dlpack_device__(self):
        """Return ``(1, 0)``: the CPU."""
        return self._block(0, -1).__dlpack_device__()

    def __getitem__(self, index):
        return self._block(0, -1)[index]

    def __setitem__(self, index, value):
        self._block(0, -1)[index] = value

    def __getbuffer__(self, Py_buffer *view, int flags):
        array = self._block(0, -1)
        if flags == ASKED_BY_NDARRAY or (self.readonly and flags | PyBUF_WRITABLE == ASKED_BY_NDARRAY):  # it asks again to read
            self._kept = array
        pass_buffer(array, view, flags)

    def __releasebuffer__(self, Py_buffer *view):
        pass

    def iter_blocks(self, rows, *, drop_behind=True):
        """Iterate over arrays of up to `rows` rows, in order.

        A file larger than memory streams through with little of it resident: what comes is mapped some MiB at a time, what is not
        in the file cache yet is read ahead, and with `drop_behind` the pages behind leave the process again (not the file cache,
        and no change is lost).

        Parameters
        ----------
        rows : int
            Rows a block, more than 0; the last may have fewer.
        drop_behind : bool
            Only for files in the modes "r", "r+" and "w+"; in private and anonymous memory it would lose what is there.

        Returns
        -------
        iterator of numpy.ndarray
            Views, each good as long as any other of this array.
        """
        if self._ndim == 0:
            raise ValueError("a 0-dimensional array has no rows to iterate over")
        cdef Py_ssize_t step = to_extent(rows, "rows")
        if step == 0:
            raise ValueError("rows must be more than 0")
        drop = check_bool(drop_behind, "drop_behind") and self._is_file and self.mode != "c"
        self._check(mp_mapping_check(self._ready()), 0)
        return _Blocks(self, step, drop)

    # ---- changes ----

    cdef str _why_fixed(self):
        if self.mode == "r":
            return "it is read-only, opened with mode 'r'"
        if self.mode == "c":
            return "it is a private copy, opened with mode 'c'"
        if self._ndim == 0:
            return "it has no dimension"
        if not self._by_rows:
            return "it is in Fortran order, where rows lie in no one place"
        if self._header_inside:
            return "its header lies within the file, where it is left alone"
        return None

    cdef mp_mapping *_growing(self, str what) except NULL:
        why = self._why_fixed()
        if why is not None:
            raise ValueError(f"cannot {what} {self._name()}: {why}")
        return self._ready()

    def append(self, rows):
        """Add rows behind the last.

        Rows go to the file, not through the mapping, so that a full disk is an error here. The file's header tells of them from the
        next `flush` or `close` on, never before the rows are there.

        Parameters
        ----------
        rows : array-like
            Shape ``(n, *shape[1:])``, or ``shape[1:]`` for one row, of a dtype that casts to this one's kind.

        Raises
        ------
        ValueError
            For another shape; for an array that is read-only, a private copy, or in Fortran order; above `max_rows`.
        OSError
            If the disk is full, or the file would become too large. Then nothing was added.
        """
        cdef mp_mapping *c = self._growing("append to")
        given = self._as_rows(rows)
        cdef size_t count = given.shape[0]
        cdef const void *data = PyArray_DATA(<PyArrayObject *><PyObject *>given)
        cdef mp_account *binding = NULL
        cdef mp_status status
        cdef int error = 0, tries = 0
        while True:
            with nogil:
                status = mp_mapping_append(c, data, count, &binding, &error)
            if not self._has_room_now(status, binding, count, &tries):
                break
        self._check_growth(status, error, binding, count, count)

    cdef object _as_rows(self, object rows):
        """A C-contiguous array of whole rows."""
        if rows is None:
            raise TypeError("rows must be an array or what makes one, not None")
        given = numpy_asarray(rows)
        if given.dtype != self.dtype:
            given = self._cast(rows, given)
        tail = self.shape[1:]
        if given.shape == tail:
            given = given.reshape(1, *tail)
        elif given.ndim != self._ndim or given.shape[1:] != tail:
            raise ValueError(f"rows of shape {tail} are needed, not {given.shape}")
        return numpy_asarray(given, order="C")

    cdef object _cast(self, object rows, object given):
        """Numbers become numbers of the same kind; what else there is becomes what NumPy makes of it."""
        if PyArray_Check(rows) or KIND_RANK.get(given.dtype.kind, 0) > KIND_RANK.get(self.dtype.kind, 9) and given.size:
            return given.astype(self.dtype, casting="same_kind")
        return numpy_asarray(rows, dtype=self.dtype)

    def resize(self, rows):
        """Have so many rows. New ones are zero; arrays over rows that went read zeros, or what comes there later.

        In memory shared with forked processes new rows are what those have put there, zeros if nothing.

        Raises
        ------
        ValueError
            Below 0 or above `max_rows`; for an array that is read-only, a private copy, or in Fortran order.
        OSError
            If the file cannot be so long. Then nothing has changed.
        """
        cdef mp_mapping *c = self._growing("resize")
        cdef size_t count = to_extent(rows, "rows")
        cdef npy_intp before = self._rows()
        cdef mp_account *binding = NULL
        cdef mp_status status
        cdef size_t more = count - <size_t>before if count > <size_t>before else 0
        cdef int error = 0, tries = 0
        while True:
            with nogil:
                status = mp_mapping_resize(c, count, &binding, &error)
            if not self._has_room_now(status, binding, more, &tries):
                break
        self._check_growth(status, error, binding, count, more)

    cdef bint _has_room_now(self, mp_status status, mp_account *binding, size_t more, int *tries) except -1:
        """An account refused `more` rows: whether somebody made room."""
        return status == MP_ERR_ACCOUNT and room_in_account(self._account(), binding, more * self._row_bytes, tries)

    cdef int _check_growth(self, mp_status status, int error, mp_account *binding, size_t rows, size_t more) except -1:
        if status == MP_OK:
            self._trace()
            grew(more * self._row_bytes)
            return 0
        if status == MP_ERR_ACCOUNT:
            raise _account_error(self._account(), binding, more * self._row_bytes)
        if status == MP_ERR_FULL:
            raise ValueError(f"{self._name()} has addresses for {self.max_rows} rows only, and {rows} more, or in all, do not fit")
        if status == MP_ERR_INVALID:
            raise ValueError(f"the header of {self._name()} has no room for the new number of rows")
        self._check(status, error)
        return 0

    cdef Account _account(self):
        return array_account("mapped files" if self._is_file else "anonymous arrays")

    cdef void _trace(self) noexcept:
        cdef mp_mapping_state state
        mp_mapping_look(self._c, &state)
        if state.closed:
            return
        if state.rows == 0 or self._row_bytes == 0:
            PyTraceMalloc_Untrack(DOMAIN, <uintptr_t>state.data)
        else:
            PyTraceMalloc_Track(DOMAIN, <uintptr_t>state.data, (state.rows if self._by_rows else 1) * self._row_bytes)

    # ---- the OS ----

    cdef int _span(self, object start, object stop, size_t *first, size_t *last) except -1:
        """Rows as slices count them; in Fortran order all there is."""
        cdef Py_ssize_t rows = self._rows() if self._ndim else 1
        begin, end, _ = slice(start, stop).indices(rows)
        first[0], last[0] = begin, max(begin, end)
        if not self._by_rows:
            first[0], last[0] = 0, 1
        return 0

    def flush(self, start=None, stop=None, *, wait=True):
        """Write changes to the file.

        Parameters
        ----------
        start, stop : int or None
            Rows, as in a slice. With rows appended since the last flush all rows are written.
        wait : bool
            True: when it returns the rows are on the disk, and then the header that tells of them. False: leave it to the OS when
            to write the rows, and leave the header.

        Raises
        ------
        OSError
            If the disk is full or failed.
        """
        cdef size_t first, last
        cdef bint waits = check_bool(wait, "wait")
        cdef mp_mapping *c = self._ready()
        cdef mp_status status
        cdef int error = 0
        self._span(start, stop, &first, &last)
        with nogil:
            status = mp_mapping_flush(c, first, last, waits, &error)
        self._check(status, error)
        if waits and self._folder is not None:
            folder, self._folder = self._folder, None  # once: it may be somewhere else by now
            need_npy().sync_folder(folder)

    def advise(self, hint, start=None, stop=None):
        """Tell the OS how rows will be used.

        Parameters
        ----------
        hint : {"normal", "sequential", "random", "willneed", "dontneed", "hugepage", "nohugepage"}
            "dontneed" only for files in the modes "r", "r+" and "w+": elsewhere it would lose what is there.
        start, stop : int or None
            Rows, as in a slice.

        Raises
        ------
        ValueError
            For an unknown hint, or one that would lose data.
        OSError
            If the OS does not know or take the hint.
        """
        cdef size_t first, last
        cdef mp_mapping *c = self._ready()
        cdef mp_advice advice
        cdef mp_status status
        cdef int error = 0
        if hint not in ADVICE:
            raise ValueError(f"hint must be one of {', '.join(ADVICE)}, not {hint!r}")
        advice = <mp_advice><int>ADVICE[hint]
        self._span(start, stop, &first, &last)
        held = self._hold()
        with nogil:
            status = mp_mapping_advise(c, first, last, advice, &error)
        if status == MP_ERR_INVALID and advice == MP_ADVICE_DONTNEED:
            raise ValueError(f"'dontneed' would lose what is in {self._name()}: the memory is not shared with a file")
        self._check(status, error)

    def prefetch(self, start=None, stop=None):
        """Have rows read ahead, or, in anonymous memory, backed by pages now. Raises `OSError` if the OS cannot."""
        cdef size_t first, last
        cdef mp_mapping *c = self._ready()
        cdef mp_status status
        cdef int error = 0
        self._span(start, stop, &first, &last)
        held = self._hold()
        with nogil:
            status = mp_mapping_prefetch(c, first, last, &error)
        self._check(status, error)

    def resident(self):
        """Return the share of the pages that are in memory, 0.0 to 1.0; for files those that the OS has cached.

        1.0 for an array without a byte. Raises `OSError` if the OS cannot tell.
        """
        cdef mp_mapping *c = self._ready()
        cdef size_t there = 0, pages = 0
        cdef mp_status status
        cdef int error = 0
        held = self._hold()
        with nogil:
            status = mp_mapping_resident(c, &there, &pages, &error)
        self._check(status, error)
        return there / <double>pages if pages else 1.0

    def lock(self):
        """Keep all pages in memory until `unlock`. Raises `OSError` if the process may not, see ``ulimit -l``."""
        self._lock_pages(True)

    def unlock(self):
        """Let pages leave memory again."""
        self._lock_pages(False)

    cdef int _lock_pages(self, bint lock) except -1:
        cdef mp_mapping *c = self._ready()
        cdef mp_status status
        cdef int error = 0
        held = self._hold()
        with nogil:
            status = mp_mapping_lock(c, lock, &error)
        self._check(status, error)
        return 0

    def close(self, *, revoke=False):
        """Let the file go. Idempotent; never fails because something views the array.

        The header learns of appended rows first. The memory stays mapped until the last view is gone.

        Parameters
        ----------
        revoke : bool
            True: file and memory go now, and views read zeros from here on.

        Raises
        ------
        OSError
            If the header of appended rows could not be written; the array is closed all the same.
        """
        cdef int error = 0
        cdef bint now = check_bool(revoke, "revoke")
        self._ready()
        self._check(self._shut(now, &error), error)

    def __enter__(self):
        if self.closed:
            raise ValueError(f"{self._name()} is closed")
        return self

    def __exit__(self, kind, error, traceback):
        self.close()

    # ---- errors ----

    cdef str _name(self):
        return "the anonymous array" if self.path is None else f"the array in {self.path!r}"

    cdef int _check(self, mp_status status, int error) except -1:
        if status == MP_OK:
            return 0
        if status == MP_ERR_CLOSED:
            raise ValueError(f"{self._name()} is closed")
        if status == MP_ERR_LOST:
            raise MappingError(
                f"{self._name()} lost some of its {self._nbytes()} bytes, which read as zeros now: the file was truncated, "
                "or the OS could not supply a page of it"
            )
        if status == MP_ERR_OS:
            raise os_error(error, self.path)
        if status == MP_ERR_INVALID:
            raise ValueError(f"{self._name()} has changed its rows meanwhile")
        raise MemoryError(f"the OS has no memory or no addresses for {self._name()}")
