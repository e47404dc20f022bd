# Where leases come from.


cdef object _pool_number = iter(range(1, 1 << 62))
cdef object _pool_key = iter(range(1, 1 << 62))
cdef dict _alive_pools = {}  # weak references by age


@cython.no_gc_clear
cdef class BufferPool:
    """BufferPool(limit=None, *, max_idle=None, idle_timeout=10.0, alignment=64, huge_pages=None, zero_on_release=False, \
leak_detection=None, account=None, name=None)\n--\n
    Lends native memory and takes it back for the next lease.

    Parameters
    ----------
    limit : int, str or None
        Most bytes that the pool takes from the OS.
    max_idle : int, str or None
        Most bytes kept ready to lend; what comes back beyond that goes to the OS at once.
    idle_timeout : float, str or None
        Seconds after which idle memory goes back to the OS, within twice this time and with no call made. None: never.
    alignment : int
        Bytes, a power of two up to 2 MiB. Leases of a page (4 KiB) and more are page-aligned in any case.
    huge_pages : bool or None
        None: for blocks of 2 MiB and more, where the OS has them. True: also below; each size class then takes 2 MiB at once, which
        counts as reserved. False: never.
    zero_on_release : bool
        Clear memory when it comes back.
    leak_detection : {"off", "sampled", "full"} or None
        Warn with the acquiring stack when a buffer dies unreleased. None: "full" under ``python -X dev``, else "off".
    account : Account or None
        Charged with what is taken from the OS. None: the root account.
    name : str or None
        Shown in reports.

    Raises
    ------
    TypeError, ValueError
        For arguments that make no sense; the value is named.

    Notes
    -----
    Every call is safe from any thread. Memory is lent in size classes that waste at most 12.5 % between 1 and 4 KiB and above
    32 KiB.
    The pool outlives its last reference until its last lease ends.

    Examples
    --------
    >>> import mempool
    >>> pool = mempool.BufferPool(limit="64MiB", name="reader")
    >>> with pool.acquire("1MiB") as b:
    ...     pool.stats().in_use
    1048576
    >>> pool.stats().idle, pool.stats().releases
    (1048576, 1)
    """

    cdef mp_pool *_c
    cdef int _leaks
    cdef bint _zeroes
    cdef bint _plain  # neither: the hot path has nothing more to do
    cdef unsigned int _draw
    cdef bint _closed
    cdef unsigned int _generation  # of the fork that the queue belongs to
    cdef object _waiters
    cdef object _weak
    cdef readonly str name
    """Its name in reports."""
    cdef readonly Account account
    """The account of this pool alone, below the one it was given."""
    cdef object __weakref__

    def __init__(self, limit=None, *, max_idle=None, idle_timeout=10.0, alignment=64, huge_pages=None,
                 zero_on_release=False, leak_detection=None, account=None, name=None):
        cdef mp_pool_config config
        cdef mp_status status
        if self._c is not NULL:
            raise RuntimeError(f"BufferPool {self.name!r} was initialised already")
        if account is not None and not isinstance(account, Account):
            raise TypeError(f"account must be an Account or None, not {account!r}")
        name = f"pool-{next(_pool_number)}" if name is None else plain_str(name)
        config.limit = _limit_to_c(limit)
        config.max_idle = MP_NO_LIMIT if max_idle is None else _size_to_c(max_idle, "max_idle")
        config.idle_timeout = timeout_to_ns(idle_timeout)
        config.alignment = check_alignment(alignment)
        config.huge = huge_mode(huge_pages)
        config.zero_on_release = check_bool(zero_on_release, "zero_on_release")
        config.source = NULL
        leaks = leak_mode(leak_detection)
        key = next(_pool_key)
        own, weak, waiters = Account(name, parent=account), weak_reference(self, _Forget(_alive_pools, key)), _deque()
        config.account = (<Account>own)._c
        if self._c is not NULL:  # an argument's __index__, or the collector, may have initialised this very pool
            raise RuntimeError(f"BufferPool {self.name!r} was initialised already")
        _alive_pools[key] = weak  # now, as nothing may fail once there is a pool
        status = mp_pool_create(&config, &self._c)
        if status != MP_OK:
            self._c = NULL
            _alive_pools.pop(key, None)
            raise MemoryError(f"no memory for pool {name!r}")
        self._zeroes = config.zero_on_release
        self._set_leaks(leaks)
        self._generation = mp_fork_generation()
        self.name, self.account, self._weak, self._waiters = name, own, weak, waiters

    def __dealloc__(self):
        if self._c is not NULL:
            mp_pool_destroy(self._c)
            linger(self.account)

    cdef void _set_leaks(self, int mode) noexcept:
        self._leaks = mode
        self._plain = mode == LEAKS_OFF and not self._zeroes

    cdef int _check_open(self) except -1:
        if self._c is NULL:
            raise ValueError("pool was never initialised")
        if self._closed:
            raise ValueError(f"pool {self.name!r} is closed")
        return 0

    cdef mp_pool *_ready(self) except NULL:
        if self._c is NULL:
            raise ValueError("pool was never initialised")
        return self._c

    cdef object _queue(self):
        """The waiters; a child of fork starts with none."""
        if self._generation != mp_fork_generation():
            self._generation = mp_fork_generation()
            self._waiters = _deque()
        return self._waiters

    # ---- leases ----

    def acquire(self, nbytes, *, bint zero=False, timeout=0):
        """Lend memory.

        Parameters
        ----------
        nbytes : int or str
            Length of the buffer in bytes; 0 is fine.
        zero : bool
            Bytes are zero. Otherwise they are uninitialised.
        timeout : float, str or None
            How long to wait for memory under the limit: 0 not at all, None for ever, else seconds. Waiting calls are served in
            order of arrival.

        Returns
        -------
        Buffer
            To be released by the caller: ``with``, `release()`, or by dropping it and all its views.

        Raises
        ------
        PoolExhausted
            The limit leaves no room, also after idle memory was given up and the timeout has passed; or the request can never fit.
        AccountLimitExceeded
            An account's limit leaves no room, whatever the timeout.
        MemoryError, OverflowError
            The OS has no more memory, or no address can reach so far.
        ValueError
            The pool is closed, or an argument makes no sense.
        """
        cdef Buffer buffer
        cdef mp_block *block
        cdef Py_ssize_t size
        if PyLong_CheckExact(nbytes) and timeout is 0 and self._c is not NULL:
            size = as_ssize(nbytes)
            if size >= 0:
                buffer = Buffer.__new__(Buffer)
                buffer._pool = self
                block = mp_pool_acquire_idle(self._c, size)
                if block is not NULL:
                    buffer._block = block
                    if PyTraceMalloc_Track(DOMAIN, <uintptr_t>block.data, block.capacity) == 0:
                        buffer._flags = TRACED
                    if zero or not self._plain:
                        self._finish(buffer, zero)
                    return buffer
            else:
                PyErr_Clear()
        return self._acquire_slowly(_size_to_c(nbytes, "nbytes"), zero, seconds(timeout))

    def acquire_async(self, nbytes, *, bint zero=False, timeout=None):
        """Lend memory to a task: ``await pool.acquire_async(n)``, or ``async with pool.acquire_async(n) as b:``.

        Parameters and errors are those of `acquire`, but by default it waits for ever. Tasks and threads wait in one queue, in
        order of arrival. A cancelled task leaves it.
        """
        cdef size_t size = _size_to_c(nbytes, "nbytes")
        cdef double patience = seconds(timeout)
        cdef bint zeroed = zero
        self._check_open()
        return _AsyncLease(lambda: _acquire_in_task(self, size, zeroed, patience))

    cdef Buffer _acquire_slowly(self, size_t size, bint zero, double timeout):
        cdef Buffer buffer = self._first_try(size, timeout)
        if buffer is None:
            buffer = wait_in_thread(self, size, timeout)
        return self._ready_to_use(buffer, zero)

    cdef Buffer _acquire_now(self, size_t size):
        return self._acquire_slowly(size, False, 0)

    cdef Buffer _first_try(self, size_t size, double timeout):
        """A lease, or None if the caller should wait for one."""
        cdef Buffer buffer = None
        self._check_open()
        if timeout == 0 or not self._queue():
            buffer = self._try_acquire(size, True)
        else:
            self._refuse_hopeless(size)
        if buffer is None and timeout == 0:
            raise self._exhausted(size)
        return buffer

    cdef int _refuse_hopeless(self, size_t size) except -1:
        """Raise at once for what can never be granted: it must not queue."""
        cdef size_t block = mp_pool_block_size(self._c, size)
        cdef Account account = self.account
        cdef size_t limit
        if block == 0:
            self._fail(MP_ERR_NOMEM, size)
        if block > self._read_limit():
            raise self._exhausted(size)
        while account is not None:
            limit = mp_account_limit(account._c)
            if block > limit:
                raise account_error(account, size, mp_account_used(account._c), limit)
            account = account.parent
        return 0

    cdef Buffer _try_acquire(self, size_t size, bint ask, bint ahead=False):
        """A lease, or None if the limit leaves no room now but may later. `ask`: others may make some; `ahead`: never."""
        cdef Buffer buffer = Buffer.__new__(Buffer)
        cdef mp_block *block = NULL
        cdef mp_shortage shortage
        cdef mp_status status
        cdef size_t block_size
        cdef int tries = 0
        buffer._pool = self
        grows(size)
        while True:
            with nogil:
                status = mp_pool_acquire(self._c, size, &block, &shortage)
            if status == MP_OK:
                buffer._block = block
                return buffer
            if ahead:
                return None
            block_size = mp_pool_block_size(self._c, size)
            if (ask or status != MP_ERR_LIMIT) and self._has_room_now(status, size, block_size, &shortage, &tries):
                continue
            if status == MP_ERR_LIMIT and not shortage.hopeless:
                return None
            self._fail(status, size)

    cdef bint _has_room_now(self, mp_status status, size_t asked, size_t size, mp_shortage *shortage, int *tries) except -1:
        """A limit refused blocks of `size` bytes: whether somebody made room. Raises the error of an account."""
        cdef size_t room
        cdef mp_pool_stats stats
        if status == MP_ERR_ACCOUNT:
            return room_in_account(self.account, shortage.binding, size, tries, asked)
        if status == MP_ERR_NOMEM:
            return room_in_machine(size, tries)
        if status != MP_ERR_LIMIT or shortage.hopeless:
            return False
        room = shortage.limit - shortage.in_use if shortage.in_use < shortage.limit else 0
        if make_room(None, self, size - room if room < size else size, tries):
            return True
        if self._read_limit() > shortage.limit:  # it was raised without a word
            return True
        # Or something came back: the collector may have run by itself, after the refusal and before anybody looked.
        mp_pool_stats_read(self._c, &stats, NULL, 0)
        if stats.in_use + stats.retired < shortage.in_use and tries[0] < MOST_TRIES:
            tries[0] += 1
            return True
        return False

    cdef int _fail(self, mp_status status, size_t size) except -1:
        """Raise what a failed lease means."""
        if status == MP_ERR_LIMIT:
            raise self._exhausted(size)
        if status == MP_ERR_CLOSED:
            raise ValueError(f"pool {self.name!r} is closed")
        raise MemoryError(f"no memory for {size} bytes in pool {self.name!r}")

    cdef object _exhausted(self, size_t size):
        cdef mp_pool_stats stats
        mp_pool_stats_read(self._c, &stats, NULL, 0)
        mp_pool_note_exhausted(self._c)
        lent = stats.in_use + stats.retired
        block = mp_pool_block_size(self._c, size)
        books = f"{lent} of {stats.reserved} in use, limit {stats.limit}"
        text = f"pool {self.name!r} cannot lend {size} bytes, a block of {block}: {books}"
        return PoolExhausted(text, size, lent, stats.limit)

    cdef Buffer _ready_to_use(self, Buffer buffer, bint zero):
        cdef mp_block *block = buffer._block
        if PyTraceMalloc_Track(DOMAIN, <uintptr_t>block.data, block.capacity) == 0:
            buffer._flags |= TRACED
        self._finish(buffer, zero)
        return buffer

    cdef int _finish(self, Buffer buffer, bint zero) except -1:
        cdef mp_block *block = buffer._block
        if zero and block.requested > LONG_WORK:
            with nogil:
                mp_block_zero(block, block.requested)
        elif zero:
            mp_block_zero(block, block.requested)
        if self._zeroes and block.capacity > LONG_WORK:
            buffer._flags |= LONG_END
        if self._leaks:
            note_origin(buffer)
        return 0

    # ---- idle memory ----

    def reserve(self, nbytes, count=1):
        """Fill the pool ahead of use: afterwards `count` leases of `nbytes` need nothing from the OS.

        The memory is resident, and goes back after the idle timeout like all idle memory; `max_idle` does not hold it down. All or
        nothing.

        Raises
        ------
        PoolExhausted, AccountLimitExceeded, MemoryError
            As `acquire`.
        """
        cdef size_t size = _size_to_c(nbytes, "nbytes"), blocks = _count_to_c(count, "count")
        cdef size_t block = mp_pool_block_size(self._ready(), size), asked, all_of_it
        cdef mp_shortage shortage
        cdef mp_status status
        cdef int tries = 0
        self._check_open()
        asked = size if size > SIZE_MAX // (blocks or 1) else size * blocks
        all_of_it = SIZE_MAX if block > SIZE_MAX // (blocks or 1) else block * blocks
        while True:
            with nogil:
                status = mp_pool_reserve(self._c, size, blocks, &shortage)
            if status == MP_OK:
                break
            if not self._has_room_now(status, asked, all_of_it, &shortage, &tries):
                self._fail(status, asked)

    def trim(self, target=0):
        """Give idle memory back to the OS until at most `target` bytes are idle.

        Returns
        -------
        int
            Bytes given back. Blocks smaller than a page stay while a neighbour in their chunk is lent.
        """
        cdef size_t bound = _size_to_c(target, "target"), freed
        self._ready()
        with nogil:
            freed = mp_pool_trim(self._c, bound)
        return freed

    # ---- the pool itself ----

    def stats(self):
        """Return a `PoolStats`: figures that belong to one moment. Works after `close()` too."""
        cdef mp_pool_stats s
        cdef mp_class_stats rows[MAX_CLASSES]
        cdef size_t i, count
        count = mp_pool_stats_read(self._ready(), &s, rows, MAX_CLASSES)
        classes = []
        for i in range(count):
            classes.append(SizeClassStats(rows[i].size, rows[i].live, rows[i].idle, rows[i].acquires))
        limit = None if s.limit == MP_NO_LIMIT else s.limit
        return PoolStats(
            s.in_use, s.requested, s.retired, s.idle, s.reserved, s.peak, limit, s.acquires, s.live, s.releases, s.dropped,
            s.handed_over, s.hits, s.misses, s.waits, s.exhausted, tuple(classes),
        )

    cdef size_t _read_limit(self) except? 0:
        cdef mp_pool_stats stats
        mp_pool_stats_read(self._ready(), &stats, NULL, 0)
        return stats.limit

    @property
    def limit(self):
        """Most bytes that the pool may take from the OS, None for no limit.

        Setting it gives idle memory back as needed; below what is lent it raises `ValueError` and changes nothing.
        """
        cdef size_t limit = self._read_limit()
        return None if limit == MP_NO_LIMIT else limit

    @limit.setter
    def limit(self, value):
        cdef size_t limit = _limit_to_c(value), lent = 0
        cdef mp_status status
        self._ready()
        with nogil:
            status = mp_pool_set_limit(self._c, limit, &lent)
        if status != MP_OK:
            raise ValueError(f"limit {limit} is below the {lent} bytes that pool {self.name!r} has lent or cannot give back")
        wake_head(self)

    @property
    def leak_detection(self):
        """One of "off", "sampled" (1 lease in 128) and "full"; may be set while running."""
        return LEAK_MODES[self._leaks]

    @leak_detection.setter
    def leak_detection(self, value):
        self._set_leaks(leak_mode(value))

    @property
    def closed(self):
        """True after `close()`."""
        return self._closed

    def close(self):
        """Refuse new leases and give idle memory back. What is lent stays valid, and goes to the OS when it ends. Idempotent."""
        cdef _Waiter waiter
        self._ready()
        self._closed = True
        with nogil:
            mp_pool_close(self._c)
        for waiter in list(self._queue()):
            waiter.wake()

    def __enter__(self):
        self._check_open()
        return self

    def __exit__(self, kind, error, traceback):
        self.close()

    def __repr__(self):
        if self._c is NULL:
            return "<mempool.BufferPool, not initialised>"
        stats = self.stats()
        state = ", closed" if self._closed else ""
        return f"<mempool.BufferPool {self.name!r}: {stats.in_use} bytes in use, {stats.idle} idle, limit {stats.limit}{state}>"


cdef enum:
    MAX_CLASSES = 640


cdef double seconds(object timeout) except? -1:
    """None is for ever."""
    return float("inf") if timeout is None else parse_duration(timeout, "timeout")


cdef uint64_t timeout_to_ns(object value) except? 0:
    cdef double idle
    if value is None:
        return MP_NEVER
    idle = parse_duration(value, "idle_timeout")
    return MP_NEVER if idle >= 9e9 else <uint64_t>(idle * 1e9)


cdef size_t check_alignment(object value) except 0:
    if isinstance(value, bool) or not PyIndex_Check(value):
        raise TypeError(f"alignment must be an int, not {value!r}")
    alignment = value.__index__()
    if alignment < 1 or alignment & (alignment - 1) or alignment > mp_huge_page_size():
        raise ValueError(f"alignment must be a power of two up to {mp_huge_page_size()}, got {shown(alignment)}")
    return alignment


cdef mp_huge huge_mode(object value) except *:
    if value is None:
        return MP_HUGE_AUTO
    return MP_HUGE_ALWAYS if check_bool(value, "huge_pages (or None)") else MP_HUGE_NEVER


cdef bint check_bool(object value, str name) except -1:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


cdef size_t _count_to_c(object value, str name) except? 0:
    if isinstance(value, bool) or not PyIndex_Check(value):
        raise TypeError(f"{name} must be an int, not {value!r}")
    return _size_to_c(value, name)
