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
cdef extern from * nogil:
    """
    #include <errno.h>
    #include <stdatomic.h>
    #include <stdint.h>
    #if defined(__linux__)
    #include <fcntl.h>
    #include <sys/mman.h>
    #include <unistd.h>
    #endif
    #if defined(__linux__) && defined(F_OFD_SETLK) && defined(MFD_CLOEXEC)
    #define SHARED_MEMORY 1
    static void *shared_map(int fd, size_t nbytes) {
        void *data = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED) return NULL;
        if (nbytes >= (size_t)1 << 21) (void)madvise(data, nbytes, MADV_HUGEPAGE);
        return data;
    }
    static void shared_unmap(void *data, size_t nbytes) { (void)munmap(data, nbytes); }
    static void shared_close(int fd) { (void)close(fd); }
    /* kind: 'r' many may have it, 'w' one alone, 'u' nobody any more. 0 or errno. */
    static int shared_lock(int fd, char kind, long long index) {
        struct flock lock = {0};
        lock.l_type = kind == 'r' ? F_RDLCK : kind == 'w' ? F_WRLCK : F_UNLCK;
        lock.l_whence = SEEK_SET;
        lock.l_start = (off_t)index;
        lock.l_len = 1;
        return fcntl(fd, F_OFD_SETLK, &lock) == 0 ? 0 : errno;
    }
    #else
    #define SHARED_MEMORY 0
    static void *shared_map(int fd, size_t nbytes) { (void)fd; (void)nbytes; errno = ENOSYS; return NULL; }
    static void shared_unmap(void *data, size_t nbytes) { (void)data; (void)nbytes; }
    static void shared_close(int fd) { (void)fd; }
    static int shared_lock(int fd, char kind, long long index) {
        (void)fd; (void)kind; (void)index;
        return ENOSYS;
    }
    #endif
    static uint64_t word_get(void *at) { return atomic_load((_Atomic uint64_t *)at); }
    static void word_set(void *at, uint64_t value) { atomic_store((_Atomic uint64_t *)at, value); }
    static void word_add(void *at, uint64_t value) { (void)atomic_fetch_add((_Atomic uint64_t *)at, value); }
    /* One less, but never below zero. */
    static void word_drop(void *at) {
        uint64_t old = word_get(at);
        while (old > 0 && !atomic_compare_exchange_weak((_Atomic uint64_t *)at, &old, old - 1)) {}
    }
    """
    int SHARED_MEMORY
    int errno
    int EAGAIN
    int EACCES
    void *shared_map(int fd, size_t nbytes)
    void shared_unmap(void *data, size_t nbytes)
    void shared_close(int fd)
    int shared_lock(int fd, char kind, long long index)
    uint64_t word_get(void *at)
    void word_set(void *at, uint64_t value)
    void word_add(void *at, uint64_t value)
    void word_drop(void *at)

cdef enum:
    HEADER_BYTES = 4096  # the last bytes of a segment


cdef bint took(int error) except -1:
    """Whether a lock was had: others having it is no error."""
    if error and error != EAGAIN and error != EACCES:
        raise os_error(error, None)
    return error == 0


def _has_shared_memory():
    """Whether this build knows anonymous segments and locks that belong to a file description."""
    return SHARED_MEMORY == 1


@cython.final
@cython.no_gc
cdef class _SharedMemory:
    """A segment as this process has it: mapped, with a descriptor. It takes the descriptor over, unless it fails."""

    cdef char *data
    cdef readonly Py_ssize_t nbytes
    cdef readonly int fd
    cdef mp_account *account  # charged until the mapping is gone; NULL for memory of other processes
    cdef bint traced
    cdef object __weakref__

    def __cinit__(self, int fd, Py_ssize_t nbytes, Account account=None):
        cdef mp_account *charged = NULL
        self.fd = -1
        if nbytes <= HEADER_BYTES:
            raise ValueError(f"a segment of {nbytes} bytes has no room for a block")
        if account is not None:
            account._charge(nbytes)
            charged = account._c
        self.data = <char *>shared_map(fd, nbytes)
        if self.data is NULL:
            if charged is not NULL:
                mp_account_discharge(charged, nbytes)
            raise os_error(errno, None)
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
                shared_unmap(self.data, self.nbytes)
        else:
            shared_unmap(self.data, self.nbytes)
        shared_close(self.fd)
        if self.account is not NULL:
            mp_account_discharge(self.account, self.nbytes)
            mp_account_release(self.account)

    cdef char *_word(self, Py_ssize_t number) except NULL:
        if number < 0 or number >= HEADER_BYTES // 8:
            raise IndexError(f"a header has no word {number}")
        return self.data + self.nbytes - HEADER_BYTES + number * 8

    def get(self, Py_ssize_t number):
        """Return a word of the header."""
        return word_get(self._word(number))

    def set(self, Py_ssize_t number, uint64_t value):
        """Set a word of the header."""
        word_set(self._word(number), value)

    def add(self, Py_ssize_t number):
        """Add one to a word of the header."""
        word_add(self._word(number), 1)

    def drop(self, Py_ssize_t number):
        """Take one from a word of the header that is not zero."""
        word_drop(self._word(number))

    def share(self, Py_ssize_t index):
        """Lock a block as one of many, through this description; False while its owner has it."""
        return took(shared_lock(self.fd, b"r", index))

    def claim(self, Py_ssize_t index):
        """Lock a block for oneself; False if any other description has it locked."""
        return took(shared_lock(self.fd, b"w", index))

    def unlock(self, Py_ssize_t index):
        """Take the lock of this description away."""
        shared_lock(self.fd, b"u", index)


def _share_block(int fd, Py_ssize_t index):
    """Lock a block as one of many through a description that has no mapping; False while its owner has it."""
    return took(shared_lock(fd, b"r", index))


@cython.final
@cython.no_gc
cdef class _SharedHold:
    """What views of a shared buffer keep. Its death is the end of the block's use in this process."""

    cdef readonly _SharedMemory memory
    cdef char *data
    cdef readonly Py_ssize_t index
    cdef readonly Py_ssize_t capacity
    cdef Py_ssize_t nbytes
    cdef int guard         # after a fork: a descriptor whose lock tells the owner that this process has the block
    cdef readonly bint ended  # the buffer was released, a view lives
    cdef object __weakref__

    def __cinit__(self, _SharedMemory memory not None, Py_ssize_t index, Py_ssize_t capacity, Py_ssize_t nbytes):
        cdef Py_ssize_t room = memory.nbytes - HEADER_BYTES
        self.guard = -1
        if index < 0 or capacity <= 0 or capacity > room or index >= room // capacity or nbytes < 0 or nbytes > capacity:
            raise ValueError(f"{nbytes} bytes of block {index} of {capacity} bytes do not lie in a segment of {memory.nbytes}")
        self.memory = memory
        self.index = index
        self.capacity = capacity
        self.nbytes = nbytes
        self.data = memory.data + index * capacity

    def __dealloc__(self):
        if self.guard >= 0:
            shared_close(self.guard)

    def keep(self, int fd):
        """Close a descriptor when this dies."""
        self.guard = fd

    def clear(self):
        """Fill the block's bytes that are in use with zeros."""
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
        equal = memcmp(hold.data, view.buf, view.len) == 0
    PyBuffer_Release(&view)
    return equal
