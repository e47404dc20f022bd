# Items of one size, named by handles.
#
#     SlabAllocator ----> mp_slab <---- _ItemView      an item is viewed: its slot is not used again before the view dies
#                            ^--------- _SlabView      all slots are viewed: the memory stays until the view dies
#
# Views name the slab of csrc, never the SlabAllocator: it may be closed or collected while they live.
cdef object random_bytes
from os import urandom as random_bytes

cdef object _slab_number = iter(range(1, 1 << 62))
cdef object _slab_key = iter(range(1, 1 << 62))
cdef dict _alive_slabs = {}  # weak references by age

# Bytes; about what a slab takes at a time.
cdef enum:
    SLAB_STEP = 64 << 10


cdef inline void end_slab_view(mp_slab *slab, void *item) noexcept:
    cdef bint last = mp_slab_leave(slab, item)
    if not last:
        mp_slab_end(slab, False)
        return
    PyTraceMalloc_Untrack(DOMAIN, <uintptr_t>mp_slab_base(slab))  # before the addresses can be anybody else's
    with nogil:
        mp_slab_end(slab, True)


@cython.final
@cython.freelist(64)
@cython.no_gc
cdef class _ItemView:
    """Pins one item as long as it lives."""

    cdef mp_slab *slab
    cdef void *data
    cdef Py_ssize_t nbytes
    cdef object __weakref__

    def __dealloc__(self):
        if self.slab is not NULL:
            end_slab_view(self.slab, self.data)

    def __getbuffer__(self, Py_buffer *view, int flags):
        fill_bytes(self, view, flags, self.data, &self.nbytes)

    def __releasebuffer__(self, Py_buffer *view):
        pass


@cython.final
@cython.freelist(8)
@cython.no_gc
cdef class _SlabView:
    """Keeps the memory of a slab as long as it lives."""

    cdef mp_slab *slab
    cdef void *data
    cdef Py_ssize_t nbytes
    cdef object __weakref__

    def __dealloc__(self):
        if self.slab is not NULL:
            end_slab_view(self.slab, NULL)

    def __getbuffer__(self, Py_buffer *view, int flags):
        fill_bytes(self, view, flags, self.data, &self.nbytes)

    def __releasebuffer__(self, Py_buffer *view):
        pass


cdef class SlabAllocator:
    """SlabAllocator(item, *, max_items=None, limit=None, account=None, name=None)\n--\n
    Native memory for many items of one size, which never move, named by handles that tell a freed item from a new one.

    Parameters
    ----------
    item : int or dtype-like
        Bytes of an item, 1 to 1 MiB, or the NumPy dtype of one.
    max_items : int or None
        Most items at once. None: as many as the limit, or twice the memory of the machine, has room for.
    limit : int, str or None
        Most bytes that the slab takes from the OS: the items, and 8.2 bytes of bookkeeping for each.
    account : Account or None
        Charged with what is taken from the OS. None: the root account.
    name : str or None
        Shown in reports.

    Raises
    ------
    TypeError, ValueError
        For arguments that make no sense; the value is named.
    MemoryError
        If the OS grants no addresses.

    Notes
    -----
    Every call is safe from any thread. A new item has the bytes that the last one in its slot left, zeros if there was none.
    Iterating gives the handles of the items that live when it begins, by slot.

    Examples
    --------
    >>> import mempool
    >>> points = mempool.SlabAllocator([("x", "f8"), ("y", "f8")], name="points")
    >>> p = points.alloc()
    >>> points[p] = (3.0, 4.0)
    >>> float(points[p]["y"]), len(points), p in points
    (4.0, 1, True)
    >>> points.free(p)
    >>> p in points
    False
    """

    cdef mp_slab *_c
    cdef size_t _item_size
    cdef size_t _wanted  # max_items as given
    cdef uintptr_t _base
    cdef bint _closed
    cdef object _kept  # the array that numpy.ndarray(buffer=slab) was given: it keeps the slab, but not its export
    cdef readonly str name
    """Its name in reports."""
    cdef readonly Account account
    """The account of this slab alone, below the one it was given."""
    cdef readonly object dtype
    """The dtype of an item; None for items of plain bytes."""
    cdef object __weakref__

    def __init__(self, item, *, max_items=None, limit=None, account=None, name=None):
        cdef mp_slab_config config
        self._check_unused()
        if account is not None and not isinstance(account, Account):
            raise TypeError(f"account must be an Account or None, not {account!r}")
        name = f"slab-{next(_slab_number)}" if name is None else plain_str(name)
        dtype = item_dtype(item)
        config.item_size = <size_t>PyDataType_ELSIZE(<PyArray_Descr *><PyObject *>dtype) if dtype is not None else item_bytes(item)
        config.max_items = most_items(max_items)
        config.limit = _limit_to_c(limit)
        config.seed = int.from_bytes(random_bytes(8), "little")
        config.source = NULL
        own = Account(name, parent=account)
        key = next(_slab_key)
        weak = weak_reference(self, _Forget(_alive_slabs, key))
        config.account = (<Account>own)._c
        self._check_unused()  # an argument's __index__, or the collector, may have initialised this very slab
        _alive_slabs[key] = weak  # now, as nothing may fail once there is a slab
        if mp_slab_create(&config, &self._c) != MP_OK:
            self._c = NULL
            _alive_slabs.pop(key, None)
            raise MemoryError(f"no memory, or no addresses, for slab {name!r}")
        self._base = <uintptr_t>mp_slab_base(self._c)
        self._item_size = config.item_size
        self._wanted = config.max_items
        self.name, self.dtype, self.account = name, dtype, own

    def __dealloc__(self):
        if self._c is not NULL:
            self._end()
            mp_slab_destroy(self._c)
            linger(self.account)

    cdef int _check_unused(self) except -1:
        if self._c is not NULL:
            raise RuntimeError(f"SlabAllocator {self.name!r} was initialised already")
        return 0

    cdef mp_slab *_ready(self) except NULL:
        if self._c is NULL:
            raise ValueError("slab was never initialised")
        return self._c

    cdef void _end(self) noexcept:
        cdef void *base
        cdef size_t slots
        cdef bint held = mp_slab_view(self._c, &base, &slots) == MP_OK  # so that the end of the memory is a view's
        self._closed = True
        with nogil:
            mp_slab_close(self._c)
        if held:
            end_slab_view(self._c, NULL)

    # ---- items ----

    def alloc(self):
        """Allocate an item.

        Returns
        -------
        int
            Its handle: positive, below 2**63, never that of another life of the slot.

        Raises
        ------
        PoolExhausted
            The limit or `max_items` would be passed, or the reserved addresses are used up.
        AccountLimitExceeded
            An account's limit would be passed.
        """
        cdef mp_handle handle
        if self._c is not NULL and mp_slab_alloc_ready(self._c, &handle):
            return self._hand_out(handle)
        return self._alloc_slowly()

    cdef inline object _hand_out(self, mp_handle handle):
        """Without memory for the int nobody would have the item."""
        cdef PyObject *number = new_int(handle)
        if number is NULL:
            mp_slab_free(self._c, handle)
            fail()
        result = <object>number
        Py_DECREF(result)
        return result

    cdef object _alloc_slowly(self):
        cdef mp_slab *c = self._ready()
        cdef mp_handle handle
        cdef mp_shortage shortage
        cdef mp_status status
        cdef int tries = 0
        while True:
            with nogil:
                status = mp_slab_alloc(c, &handle, &shortage)
            if status == MP_OK or not self._has_room_now(status, 1, &shortage, &tries):
                break
        self._check(status, 1, &shortage)
        self._trace()
        grew(SLAB_STEP)
        return self._hand_out(handle)

    cdef bint _has_room_now(self, mp_status status, size_t count, mp_shortage *shortage, int *tries) except -1:
        """A limit refused `count` items: whether somebody made room. Raises the error of an account."""
        cdef size_t size = count * self._item_size
        cdef bint fits
        if count > SIZE_MAX // self._item_size:
            return False
        if status == MP_ERR_ACCOUNT:
            return room_in_account(self.account, shortage.binding, size, tries)
        if status == MP_ERR_LIMIT:
            fits = size <= shortage.limit
        else:
            fits = status == MP_ERR_FULL and count <= self._most()
        return fits and (make_room(None, self, size, tries) or self._freed_by_itself(count, tries))

    cdef bint _freed_by_itself(self, size_t count, int *tries) noexcept:
        """Whether there is room though nobody made any: the collector may have run after the refusal, before anybody looked."""
        cdef mp_slab_stats stats
        with nogil:
            mp_slab_stats_read(self._c, &stats)
        if tries[0] >= MOST_TRIES or count > stats.slots - (stats.live + stats.retired + stats.exhausted):
            return False
        tries[0] += 1
        return True

    cdef size_t _most(self) noexcept:
        cdef mp_slab_stats stats
        with nogil:
            mp_slab_stats_read(self._c, &stats)
        return stats.max_items

    cdef int _check(self, mp_status status, size_t count, mp_shortage *shortage) except -1:
        if status == MP_OK:
            return 0
        if status == MP_ERR_CLOSED:
            raise ValueError(f"slab {self.name!r} is closed")
        if status == MP_ERR_LIMIT:
            why = f"{shortage.in_use} bytes reserved, limit {shortage.limit}"
            raise self._exhausted(count, why, shortage.in_use, shortage.limit)
        if status == MP_ERR_FULL:
            raise self._full(count)
        raise MemoryError(f"the OS has no memory for {count} more items of slab {self.name!r}")

    cdef object _exhausted(self, object count, str why, object in_use, object limit):
        text = f"slab {self.name!r} cannot take {count} more items of {self._item_size} bytes: {why}"
        return PoolExhausted(text, count * self._item_size, in_use, limit)

    cdef object _full(self, object count):
        cdef mp_slab_stats stats
        with nogil:
            mp_slab_stats_read(self._c, &stats)
        used = stats.live + stats.retired + stats.exhausted
        why = "max_items is" if stats.max_items == self._wanted else "addresses are reserved for"
        return self._exhausted(
            count, f"{used} are used, {why} {stats.max_items}", used * self._item_size, stats.max_items * self._item_size
        )

    cdef void _trace(self) noexcept:
        """Tell tracemalloc how much memory there is now."""
        cdef mp_slab_stats stats
        with nogil:
            mp_slab_stats_read(self._c, &stats)
        if not self._closed:
            PyTraceMalloc_Track(DOMAIN, self._base, stats.reserved)

    def free(self, handle):
        """Free an item. What views it keeps its bytes; the slot is used again when the last view is gone.

        Raises
        ------
        StaleHandle
            The handle was freed, is of another slab, or was made up; of the latter two 1 in 2**30 may pass for one of a live item.
        """
        cdef mp_status status
        handle = to_int(handle)
        status = mp_slab_free(self._ready(), to_handle(handle))
        if status != MP_OK:
            raise self._stale(status, handle)

    cdef object _stale(self, mp_status status, object handle):
        if status == MP_ERR_CLOSED:
            return ValueError(f"slab {self.name!r} is closed")
        return StaleHandle(f"handle {shown(handle)} is no item of slab {self.name!r}: freed, foreign or made up")

    def alloc_many(self, n):
        """Allocate `n` items, or none.

        Returns
        -------
        numpy.ndarray
            int64, shape ``(n,)``: the handles.

        Raises
        ------
        PoolExhausted, AccountLimitExceeded
            As `alloc`; then nothing was allocated.
        """
        cdef npy_intp count = _count_to_c(n, "n")
        cdef mp_slab_stats stats
        cdef mp_shortage shortage
        cdef mp_status status
        cdef int tries = 0
        cdef mp_handle *out = NULL
        cdef mp_slab *c = self._ready()
        need_numpy()
        handles = None
        with nogil:
            mp_slab_stats_read(c, &stats)
        if <size_t>count <= stats.max_items:
            handles = PyArray_SimpleNew(1, &count, NPY_INT64)
            out = <mp_handle *>PyArray_DATA(<PyArrayObject *><PyObject *>handles)
        while True:
            with nogil:
                status = mp_slab_alloc_many(c, count, out, &shortage)
            if status == MP_OK or not self._has_room_now(status, count, &shortage, &tries):
                break
        self._check(status, count, &shortage)
        self._trace()
        grew(SLAB_STEP + <size_t>count * self._item_size)
        return handles

    def free_many(self, handles):
        """Free items, or none.

        Parameters
        ----------
        handles : array-like of int
            Each once.

        Raises
        ------
        StaleHandle
            As `free`, or for a handle that is there twice; then nothing was freed.
        """
        handles = numpy_asarray_of(handles)
        array = as_handles(handles)
        cdef size_t count = PyArray_SIZE(<PyArrayObject *><PyObject *>array), bad = 0
        cdef const mp_handle *data = <const mp_handle *>PyArray_DATA(<PyArrayObject *><PyObject *>array)
        cdef mp_slab *c = self._ready()
        cdef mp_status status
        with nogil:
            status = mp_slab_free_many(c, data, count, &bad)
        if status != MP_OK:
            raise self._stale_at(status, handles, bad)

    cdef object _stale_at(self, mp_status status, object handles, size_t bad):
        if status == MP_ERR_CLOSED:
            return self._stale(status, None)
        handle = handles.reshape(-1)[bad].item()  # as given: the int64 of a larger number is another one
        which = f"handle {handle}, number {bad} of {handles.size}"
        return StaleHandle(f"{which}, is no item of slab {self.name!r}: freed, foreign, made up, or there twice")

    def indices(self, handles):
        """Return where items lie in `array`.

        Parameters
        ----------
        handles : array-like of int
            Of any shape.

        Returns
        -------
        numpy.ndarray
            intp, of the shape of `handles`. Good until the items are freed.

        Raises
        ------
        StaleHandle
            As `free`.
        """
        handles = numpy_asarray_of(handles)
        array = as_handles(handles)
        cdef PyArrayObject *given = <PyArrayObject *><PyObject *>array
        out = PyArray_SimpleNew(PyArray_NDIM(given), PyArray_DIMS(given), NPY_INTP)
        cdef size_t count = PyArray_SIZE(given), bad = 0
        cdef const mp_handle *data = <const mp_handle *>PyArray_DATA(given)
        cdef ptrdiff_t *found = <ptrdiff_t *>PyArray_DATA(<PyArrayObject *><PyObject *>out)
        cdef mp_slab *c = self._ready()
        cdef mp_status status
        with nogil:
            status = mp_slab_find(c, data, count, found, &bad)
        if status != MP_OK:
            raise self._stale_at(status, handles, bad)
        return out

    cdef _ItemView _pin(self, object handle):
        cdef _ItemView view = _ItemView.__new__(_ItemView)
        cdef mp_status status
        handle = to_int(handle)
        status = mp_slab_pin(self._ready(), to_handle(handle), &view.data)
        if status != MP_OK:
            raise self._stale(status, handle)
        view.slab = self._c
        view.nbytes = self._item_size
        return view

    cdef object _item(self, object handle):
        """An array over one item, or a memoryview."""
        cdef _ItemView view = self._pin(handle)
        if self.dtype is None:
            return PyMemoryView_FromObject(view)
        return array_on(view, view.data, self.dtype, 0, NULL, NPY_ARRAY_CARRAY)

    def __getitem__(self, handle):
        if not is_one_handle(handle):
            return self.array[self.indices(handle)]
        item = self._item(handle)
        if self.dtype is not None and self.dtype.kind == "V" and PyDataType_HASFIELDS(<PyArray_Descr *><PyObject *>self.dtype):
            return PyArray_ToScalar(PyArray_DATA(<PyArrayObject *><PyObject *>item), <PyArrayObject *><PyObject *>item)
        return item

    def __setitem__(self, handle, value):
        if not is_one_handle(handle):
            values = self._as_items(value)  # may run Python, which may free items, so that comes first
            self.array[self.indices(handle)] = values
        elif self.dtype is None:
            set_slice(self._item(handle), value)
        else:
            self._item(handle)[...] = value

    cdef object _as_items(self, object value):
        array = numpy_asarray(value) if PyArray_Check(value) else numpy_asarray(value, dtype=self.dtype)
        return array.astype("u1" if self.dtype is None else self.dtype) if array.dtype.hasobject else array

    def __delitem__(self, handle):
        raise TypeError("items of a slab are freed with free()")

    def __contains__(self, handle):
        cdef mp_slab *c = self._open()
        return is_one_handle(handle) and mp_slab_has(c, to_handle(to_int(handle)))

    def __len__(self):
        return mp_slab_length(self._open())

    def __iter__(self):
        return map(int, self.handles())

    cdef mp_slab *_open(self) except NULL:
        self._ready()
        if self._closed:
            raise ValueError(f"slab {self.name!r} is closed")
        return self._c

    # ---- all items ----

    @property
    def array(self):
        """All slots ever used, as a NumPy array: ``array[i]`` is the item at index ``i``, see `indices`.

        Its shape is ``(slots,)`` of `dtype`, or ``(slots, item_size)`` of uint8. It stays valid, at the same address, as the slab
        grows, and after `close`; an array of later sees more slots. It is a view of a live structure: the content of a slot
        changes with its items. Slots that `trim` gave back read as zeros; what is written to slots that are not allocated is there
        for the next item, or lost with a trim.
        """
        cdef _SlabView view = _SlabView.__new__(_SlabView)
        cdef npy_intp dims[2]
        cdef size_t slots = 0
        cdef mp_status status = mp_slab_view(self._ready(), &view.data, &slots)
        if status != MP_OK:
            raise self._stale(status, None)
        view.slab = self._c
        view.nbytes = slots * self._item_size
        dims[0], dims[1] = slots, self._item_size
        if self.dtype is None:
            return array_on(view, view.data, None, 2, dims, NPY_ARRAY_CARRAY)
        return array_on(view, view.data, self.dtype, 1, dims, NPY_ARRAY_CARRAY)

    def __array__(self, dtype=None, *, copy=None):
        return as_asked(self.array, dtype, copy)

    def __getbuffer__(self, Py_buffer *view, int flags):
        array = self.array
        if flags == ASKED_BY_NDARRAY:
            self._kept = array
        pass_buffer(array, view, flags)

    def __releasebuffer__(self, Py_buffer *view):
        pass

    def handles(self):
        """Return the handles of all live items by slot, int64, shape ``(len(slab),)``."""
        need_numpy()
        cdef mp_slab *c = self._open()
        cdef npy_intp count = mp_slab_length(c)
        cdef size_t filled
        out = PyArray_SimpleNew(1, &count, NPY_INT64)
        cdef mp_handle *data = <mp_handle *>PyArray_DATA(<PyArrayObject *><PyObject *>out)
        with nogil:
            filled = mp_slab_handles(c, data, count)
        return out if filled == <size_t>count else out[:filled]

    def compacted(self):
        """Return a copy of all live items, one after the other in the order of `handles`.

        Returns
        -------
        numpy.ndarray
            Shape ``(len(slab),)`` of `dtype`, or ``(len(slab), item_size)`` of uint8; its own memory.
        """
        need_numpy()
        cdef mp_slab *c = self._open()
        cdef npy_intp dims[2]
        cdef size_t count = mp_slab_length(c), filled
        dims[0], dims[1] = count, self._item_size
        out = PyArray_Empty(2 if self.dtype is None else 1, dims, new_descr(self.dtype), 0)
        cdef void *data = PyArray_DATA(<PyArrayObject *><PyObject *>out)
        with nogil:
            filled = mp_slab_copy_live(c, data, count)
        return out if filled == count else out[:filled]

    def stats(self):
        """Return a consistent snapshot, a `SlabStats`. Works after `close` too."""
        cdef mp_slab_stats s
        cdef mp_slab *c = self._ready()
        with nogil:
            mp_slab_stats_read(c, &s)
        return SlabStats(
            self._item_size, s.live, s.retired, s.exhausted, s.slots, s.max_items, s.reserved, s.peak,
            None if s.limit == MP_NO_LIMIT else s.limit, s.address_space, s.allocs, s.frees,
        )

    def trim(self):
        """Give the memory behind the last live item back to the OS; returns the bytes given back."""
        cdef mp_slab *c = self._open()
        cdef size_t freed
        with nogil:
            freed = mp_slab_trim(c)
        if freed:
            self._trace()
        return freed

    def close(self):
        """Refuse further use. The memory goes to the OS when nothing views it. Idempotent."""
        self._ready()
        self._end()

    @property
    def closed(self):
        """True after `close`."""
        return self._closed

    def __enter__(self):
        self._open()
        return self

    def __exit__(self, kind, error, traceback):
        self.close()

    def __repr__(self):
        if self._c is NULL:
            return "<mempool.SlabAllocator, not initialised>"
        kind = f"{self._item_size} bytes" if self.dtype is None else f"{self.dtype}"
        if self._closed:
            return f"<mempool.SlabAllocator {self.name!r}, closed, of {kind}>"
        return f"<mempool.SlabAllocator {self.name!r}: {mp_slab_length(self._c)} items of {kind}>"
