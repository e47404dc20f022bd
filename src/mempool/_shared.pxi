# Memory that other processes see too: a mapping of a segment, what views keep of it, and the buffer that users have.
#
#     SharedBuffer ----> _SharedHold ----> _SharedMemory      pages, descriptor, lock
#     memoryview -----------^   ^
#     ndarray ------------------'
#
# A block is in use in this process as long as a hold of it lives. A hold is unknown to the collector (`no_gc`), so a weak reference
# to it dies with it and never before: no finaliser can bring a view back to life after its block was given to another.
#
# Who holds a block in *other* processes is the kernel's knowledge, not ours: each holder has an open file description of its own,
# with a shared lock on the byte that stands for the block. The lock goes with the last mapping or descriptor of that description,
# whether by release, exit or SIGKILL. The rejected alternative, counts in the segment, is wrong after the first SIGKILL.
#
#     [ block 0 | block 1 | ...        | header page ]        the whole segment is one mapping
#
# Words of the header change atomically: several processes write them.
cdef enum:
    HEADER_BYTES = 4096  # the last bytes of a segment


cdef uint64_t fork_depth = 0  # how many forks lie between the first process and this one


cdef bint marked(int fd, Py_ssize_t index, mp_share_as share) except -1:
    """Whether a mark was had: others having theirs is no error."""
    cdef int error = 0
    cdef mp_status status = mp_share_mark(fd, index, share, &error)
    if status == MP_ERR_OS:
        raise os_error(error, None)
    return status == MP_OK


def _has_shared_memory():
    """Whether this build knows anonymous segments and locks that belong to a file description."""
    return mp_share_exists()


def _fork_depth():
    """How many forks lie between the first process and this one."""
    return fork_depth


cdef int charge_in_silence(Account account, size_t size) except -1:
    """Charge, with nobody asked for room or told of growth: the caller has a lock, which they may wait for."""
    cdef mp_account *c = account._ready()
    cdef mp_account *binding = NULL
    cdef mp_status status
    with nogil:
        status = mp_account_charge(c, size, &binding)
    if status != MP_OK:
        account = account_at(account, binding)
        raise account_error(account, size, mp_account_used(binding), mp_account_limit(binding))
    return 0


@cython.final
@cython.no_gc
cdef class _SharedMemory:
    """A segment as this process has it: mapped, with a descriptor. It takes the descriptor over, unless it fails."""

    cdef char *data
    cdef readonly Py_ssize_t nbytes
    cdef readonly int fd
    cdef mp_account *account  # charged until the mapping is gone; NULL for memory of other processes
    cdef bint traced
    cdef uint64_t depth    # the process that made it
    cdef object __weakref__

    def __cinit__(self, int fd, Py_ssize_t nbytes, Account account=None):
        cdef mp_account *charged = NULL
        cdef void *data
        cdef int error = 0
        self.fd = -1
        self.depth = fork_depth
        if nbytes <= HEADER_BYTES:
            raise ValueError(f"a segment of {nbytes} bytes has no room for a block")
        if account is not None:
            charge_in_silence(account, nbytes)
            charged = account._c
        if mp_share_map(fd, nbytes, &data, &error) != MP_OK:
            if charged is not NULL:
                mp_account_discharge(charged, nbytes)
            raise os_error(error, None)
        self.data = <char *>data
        self.nbytes = nbytes
        self.fd = fd
        if charged is not NULL:
            mp_account_retain(charged)
            self.account = charged
            self.traced = PyTraceMalloc_Track(DOMAIN, <uintptr_t>self.data, nbytes) == 0

    def __dealloc__(self):
        if self.data is NULL:
            return
        if self.traced:
            PyTraceMalloc_Untrack(DOMAIN, <uintptr_t>self.data)
        if <size_t>self.nbytes > LONG_WORK:
            with nogil:
                mp_share_unmap(self.data, self.nbytes)
        else:
            mp_share_unmap(self.data, self.nbytes)
        mp_share_close(self.fd)
        if self.account is not NULL:
            mp_account_discharge(self.account, self.nbytes)
            mp_account_release(self.account)

    cdef char *_word(self, Py_ssize_t number) except NULL:
        if number < 0 or number >= HEADER_BYTES // 8:
            raise IndexError(f"a header has no word {number}")
        return self.data + self.nbytes - HEADER_BYTES + number * 8

    def get(self, Py_ssize_t number):
        """Return a word of the header."""
        return mp_word_get(self._word(number))

    def set(self, Py_ssize_t number, uint64_t value):
        """Set a word of the header."""
        mp_word_set(self._word(number), value)

    def begin(self, uint64_t depth, list words):
        """Set the first words of the header in one step; a child of a fork that came after `depth` leaves it to its parent."""
        cdef Py_ssize_t number
        cdef uint64_t value
        if depth == fork_depth:
            for number, value in words:
                mp_word_set(self._word(number), value)

    def add(self, Py_ssize_t number):
        """Add one to a word of the header."""
        mp_word_add(self._word(number))

    def drop(self, Py_ssize_t number):
        """Take one from a word of the header that is not zero; not in a child of fork, as its parent does it."""
        if self.depth == fork_depth:
            mp_word_drop(self._word(number))

    def renew(self, Py_ssize_t number):
        """Begin the next lease of the block whose record begins with this word: in one step, or a message could come in between.

        False in a child of fork, which leaves it to its parent.
        """
        cdef int field
        self._word(number + 3)
        if self.depth != fork_depth:
            return False
        mp_word_add(self._word(number))
        for field in range(1, 4):
            mp_word_set(self._word(number + field), 0)
        return True

    def share(self, Py_ssize_t index):
        """Lock a block as one of many, through this description; False while its owner has it."""
        return marked(self.fd, index, MP_SHARE_MANY)

    @property
    def inherited(self):
        """Whether a parent of this process made it: its description, and so its locks, are the parent's too."""
        return self.depth != fork_depth

    def claim(self, Py_ssize_t index):
        """Lock a block for oneself; False if any other description has it locked."""
        return self.depth == fork_depth and marked(self.fd, index, MP_SHARE_ALONE)

    def taken(self, Py_ssize_t index):
        """Whether another description has a lock on a block. One step, as nobody could receive the block in between."""
        if self.depth != fork_depth:
            return False
        if not marked(self.fd, index, MP_SHARE_ALONE):
            return True
        marked(self.fd, index, MP_SHARE_NONE)
        return False

    def unlock(self, Py_ssize_t index):
        """Take the lock of this description away."""
        if self.depth == fork_depth:
            marked(self.fd, index, MP_SHARE_NONE)


@cython.final
@cython.no_gc
cdef class _SharedGuard:
    """A lock on a block for a child of fork, through a description of its own. One step: no signal handler comes in between."""

    cdef int fd

    def __cinit__(self, _SharedMemory memory not None, Py_ssize_t index):
        self.fd = -1
        self.fd = _os.open(f"/proc/self/fd/{memory.fd}", _os.O_RDWR | _os.O_CLOEXEC)
        if not marked(self.fd, index, MP_SHARE_MANY):
            raise BlockingIOError("the owner has the block")

    def __dealloc__(self):
        if self.fd >= 0:
            mp_share_close(self.fd)


cdef int insist(object steps, tuple arguments) except -1:
    """Call until it comes through, as Python forks also if a signal handler raised; then raises what came first."""
    cdef object first = None
    cdef int tries
    for tries in range(1000):
        try:
            steps(*arguments)
            break
        except BaseException as error:
            if first is None:
                first = error
    if first is not None:
        raise first
    return 0


def _take_lock(object lock, list taken):
    """Acquire a lock and note it, in one step; False if another thread has it."""
    if not lock.acquire(False):
        return False
    taken.append(lock)
    return True


def _give_locks(list taken):
    """Release what was noted, in one step."""
    while taken:
        taken.pop().release()


def _before_fork(list forks, object steps):
    """Begin a fork: `steps` fills the locks and guards that `forks` has last of this thread."""
    forks.append((_get_ident(), [], {}))
    insist(steps, ())


cdef tuple latest_fork(list forks):
    cdef object me = _get_ident()
    cdef Py_ssize_t at
    for at in range(len(forks) - 1, -1, -1):
        if forks[at][0] == me:
            return forks.pop(at)
    return (me, [], {})


def _after_fork_in_parent(list forks):
    """End a fork: its guards go, other threads go on."""
    cdef tuple fork = latest_fork(forks)
    fork[2].clear()
    _give_locks(fork[1])


def _after_fork_in_child(list forks, object steps):
    """End a fork: what the parent made is the parent's. `steps` is called with the guards."""
    global fork_depth
    cdef tuple fork = latest_fork(forks)
    fork_depth += 1
    insist(steps, (fork[2],))


@cython.final
@cython.no_gc
cdef class _SharedHold:
    """What views of a shared buffer keep. Its death is the end of the block's use in this process."""

    cdef readonly _SharedMemory memory
    cdef char *data
    cdef readonly Py_ssize_t index
    cdef readonly Py_ssize_t capacity
    cdef Py_ssize_t nbytes
    cdef _SharedGuard guard   # after a fork: its lock tells the owner that this process has the block
    cdef readonly bint ended  # the buffer was released, a view lives
    cdef object __weakref__

    def __cinit__(self, _SharedMemory memory not None, Py_ssize_t index, Py_ssize_t capacity, Py_ssize_t nbytes):
        cdef Py_ssize_t room = memory.nbytes - HEADER_BYTES
        if index < 0 or capacity <= 0 or capacity > room or index >= room // capacity or nbytes < 0 or nbytes > capacity:
            raise ValueError(f"{nbytes} bytes of block {index} of {capacity} bytes do not lie in a segment of {memory.nbytes}")
        self.memory = memory
        self.index = index
        self.capacity = capacity
        self.nbytes = nbytes
        self.data = memory.data + index * capacity

    def keep(self, _SharedGuard guard):
        """Keep a guard as long as this lives."""
        self.guard = guard

    def clear(self):
        """Fill the block's bytes that are in use with zeros; not in a child of fork, where they are the parent's."""
        if self.memory.depth != fork_depth:
            return
        with nogil:
            memset(self.data, 0, self.nbytes)

    def __getbuffer__(self, Py_buffer *view, int flags):
        fill_bytes(self, view, flags, self.data, &self.nbytes)

    def __releasebuffer__(self, Py_buffer *view):
        pass


@cython.no_gc_clear
cdef class _SharedBase:
    """What `mempool.shared.SharedBuffer` is built on: bytes that several processes see."""

    cdef _SharedHold _hold  # None once released
    cdef _SharedHold _kept  # numpy.ndarray(buffer=b) may keep this very object, also after its release
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        pass

    def _attach(self, _SharedHold hold):
        """Give it its memory; once."""
        if self._hold is not None or self._kept is not None:
            raise RuntimeError("buffer has its memory already")
        self._hold = hold

    def _why_released(self):
        """Return the error that a use after the end raises."""
        return ValueError("buffer is released")

    def __dealloc__(self):
        if self._hold is not None:
            self._hold.ended = True

    cdef _SharedHold _lent(self):
        if self._hold is None:
            raise self._why_released()
        return self._hold

    def _held(self):
        """Return what its views keep; `ValueError` after its end."""
        with cython.critical_section(self):
            return self._lent()

    def release(self):
        """Drop it. The block returns to its pool when nothing in any process sees it. Never fails; twice is as good as once."""
        cdef _SharedHold hold = None
        with cython.critical_section(self):
            if self._hold is not None:
                hold = self._hold
                hold.ended = True
                self._hold = None

    def __enter__(self):
        self._held()
        return self

    def __exit__(self, kind, error, traceback):
        self.release()

    def __getbuffer__(self, Py_buffer *view, int flags):
        cdef _SharedHold hold
        with cython.critical_section(self):
            view.obj = None
            hold = self._lent()
            if flags == ASKED_BY_NDARRAY:
                self._kept = hold
        fill_bytes(hold, view, flags, hold.data, &hold.nbytes)

    def __releasebuffer__(self, Py_buffer *view):
        # Never called, as views name the hold; but NumPy keeps a memoryview only of what has this method.
        pass

    def __len__(self):
        with cython.critical_section(self):
            return self._lent().nbytes

    @property
    def nbytes(self):
        """Length in bytes."""
        with cython.critical_section(self):
            return self._lent().nbytes

    @property
    def capacity(self):
        """Bytes of the block."""
        with cython.critical_section(self):
            return self._lent().capacity

    @property
    def address(self):
        """Address of the first byte, in this process."""
        with cython.critical_section(self):
            return <uintptr_t>self._lent().data

    @property
    def released(self):
        """True once this process has given it back, or never got it."""
        return self._hold is None

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
        raise TypeError("a SharedBuffer has a fixed size: its bytes cannot be deleted")

    cdef Py_ssize_t _offset(self, Py_ssize_t index) except -1:
        cdef Py_ssize_t length = self._lent().nbytes, at = index + length if index < 0 else index
        if at < 0 or at >= length:
            raise IndexError(f"index {index} is out of range for a buffer of {length} bytes")
        return at

    def readonly(self):
        """Return a read-only memoryview, without a copy."""
        return PyMemoryView_FromObject(self).toreadonly()

    def tobytes(self):
        """Return a copy as `bytes`."""
        cdef _SharedHold hold = self._held()
        return PyBytes_FromStringAndSize(hold.data, hold.nbytes)

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
            It keeps the memory, not the buffer: after `release()` it still sees its own bytes, and so the block is not lent again.

        Raises
        ------
        ValueError
            Beyond the end, for a size that is no multiple of the item size, or for a dtype with objects.
        """
        return array_on_shared(self, dtype, shape, offset, order)

    def __richcmp__(self, other, int op):
        if op != Py_EQ and op != Py_NE:
            return NotImplemented
        if self is other:
            return op == Py_EQ
        equal = same_shared_bytes(self, other)
        if equal is NotImplemented:
            return equal
        return equal if op == Py_EQ else not equal

    __hash__ = None


cdef object array_on_shared(_SharedBase buffer, object dtype, object shape, object offset, object order):
    """See `SharedBuffer.array`. All that may run Python comes before the look at the memory."""
    cdef npy_intp dims[64]
    cdef PyArray_Descr *descr = NULL
    cdef Py_ssize_t start
    cdef int nd, flags
    cdef _SharedHold hold
    need_numpy()
    flags = array_flags(order)
    start = to_extent(offset, "offset")
    PyArray_DescrConverter(dtype, &descr)
    try:
        nd = read_shape(shape, dims)
        hold = buffer._held()
        fit(descr, nd, dims, start, hold.nbytes)
    except:
        Py_DECREF(<object>descr)
        raise
    array = PyArray_NewFromDescr(&PyArray_Type, descr, nd if nd >= 0 else 1, dims, NULL, hold.data + start, flags, NULL)
    Py_INCREF(hold)
    PyArray_SetBaseObject(<PyArrayObject *><PyObject *>array, <PyObject *>hold)
    return array


cdef object same_shared_bytes(_SharedBase buffer, object other):
    cdef Py_buffer view
    cdef bint equal = False
    cdef _SharedHold hold = buffer._hold
    if get_buffer(other, &view, PyBUF_SIMPLE) < 0:
        if PyErr_ExceptionMatches(TypeError) or PyErr_ExceptionMatches(BufferError) or PyErr_ExceptionMatches(ValueError):
            PyErr_Clear()
            return NotImplemented
        fail()
    if hold is not None and view.len == hold.nbytes:
        equal = view.len == 0 or memcmp(hold.data, view.buf, view.len) == 0
    PyBuffer_Release(&view)
    return equal
