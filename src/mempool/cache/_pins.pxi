# Memory of values that left by eviction, while somebody else keeps it.
#
#     value --> ... --> anchor <~~ weak reference ~~ Pin <-- Pins[address of the anchor]
#
# What is evicted is counted before the cache's own reference is dropped, and the weak reference's callback takes it out again: at
# once, in the drop, if nobody else has it. So the count is right whenever anybody looks, and who lets go last need tell nobody.
#
# A callback runs wherever an object dies: within a collection, between two steps of this code. So between reading and writing the
# books no Python runs and no object that the collector knows is made: with a GIL that is all the lock they need. In a build without
# one, a critical section is let go whenever its thread waits, so that a callback can never wait for its own thread.
#
# As garbage, too, they stay whole until they die: what they watch may die in the same collection, after they would be cleared. The
# dict and the weak references can be cleared, which is enough.
#
# Rejected: a queue of dead references that is worked off at the next look, as it needs one; counting exports, as many consumers
# keep a view without one.

cdef extern from "Python.h":
    object new_reference "PyWeakref_NewRef"(object, object)
    PyObject *dict_find "PyDict_GetItemWithError"(dict, object)
    PyObject *new_number "PyLong_FromSize_t"(size_t) noexcept

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define MP_COUNTS_ARE_EXACT 0
    #else
    #define MP_COUNTS_ARE_EXACT 1
    #endif
    """
    bint MP_COUNTS_ARE_EXACT


@cython.final
@cython.no_gc_clear
cdef class _Pin:
    """One anchor, and the callback of the weak reference to it."""

    cdef Pins pins
    cdef object reference, address
    cdef uint64_t nbytes

    def __call__(self, reference):
        with cython.critical_section(self.pins):
            self.pins.strike(self)
        self.reference = None


@cython.final
@cython.no_gc_clear
cdef class Pins:
    """Pins()\n--\n
    Counts the memory of values that left, as long as somebody keeps it. Values of the same memory count once.

    Examples
    --------
    >>> import mempool
    >>> pins = Pins()
    >>> buffer = mempool.acquire(4096)
    >>> view = memoryview(buffer)
    >>> pins.add(buffer, buffer.capacity)
    True
    >>> del buffer
    >>> pins.nbytes, pins.count
    (4096, 1)
    >>> del view
    >>> pins.nbytes, pins.count
    (0, 0)
    """

    cdef dict by_address
    cdef uint64_t total

    def __cinit__(self):
        self.by_address = {}

    @property
    def nbytes(self):
        """Bytes that are kept."""
        return self.total

    @property
    def count(self):
        """How many pieces of memory."""
        return len(self.by_address)

    def add(self, value, nbytes):
        """Count what a value weighs until its memory is free; false if nobody can tell when that is, and it does not count."""
        if not isinstance(nbytes, int) or isinstance(nbytes, bool):
            raise TypeError(f"nbytes must be an int, not {nbytes!r}")
        return self.enter(value, nbytes)

    def forget(self, value):
        """Do not count the memory of a value any more: it is in use again."""
        return self.readmit(<PyObject *>value)

    def __repr__(self):
        return f"<mempool.cache.Pins: {self.total} bytes>"

    cdef bint enter(self, value, uint64_t nbytes) except -1:
        cdef PyObject *found = values.anchor(<PyObject *>value)
        cdef _Pin pin
        cdef bint new
        if found is NULL:
            return False
        anchor = taken(found)
        pin = _Pin.__new__(_Pin)
        pin.pins, pin.nbytes, pin.address = self, nbytes, <size_t>found
        pin.reference = new_reference(anchor, pin)
        with cython.critical_section(self):
            new = self.book(pin)
        if not new:
            pin.reference = None  # or the two would keep each other
        return True

    cdef bint book(self, _Pin pin) except -1:
        """Whether this anchor was not there yet. What is there is alive, as its callback would have struck it out."""
        cdef PyObject *there = dict_find(self.by_address, pin.address)
        cdef uint64_t more
        if there is NULL:
            self.by_address[pin.address] = pin
            self.total += pin.nbytes
            return True
        more = pin.nbytes - min(pin.nbytes, (<_Pin>there).nbytes)
        (<_Pin>there).nbytes += more
        self.total += more
        return False

    cdef bint has(self, PyObject *value) noexcept:
        """Whether the memory of a value counts already, as far as can be told without Python."""
        cdef PyObject *anchor = values.plain_anchor(value)
        cdef PyObject *address
        cdef bint found = False
        if anchor is not NULL:
            address = new_number(<size_t>anchor)
            if address is NULL:
                PyErr_Clear()
                return False
            with cython.critical_section(self):
                found = dict_find(self.by_address, <object>address) is not NULL
            drop(address)
        return found

    cdef int strike(self, _Pin pin) except -1:
        if dict_find(self.by_address, pin.address) is <PyObject *>pin:
            self.total -= pin.nbytes
            del self.by_address[pin.address]
        return 0

    cdef bint readmit(self, PyObject *value) except -1:
        cdef PyObject *there
        cdef PyObject *found
        if not self.by_address or not exports(value):
            return False
        found = values.anchor(value)
        if found is NULL:
            return False
        anchor, address, pin = taken(found), <size_t>found, None
        with cython.critical_section(self):
            there = dict_find(self.by_address, address)
            if there is not NULL:
                pin = <object>there
                self.strike(pin)
        if pin is not None:
            (<_Pin>pin).reference = None
        return pin is not None

    cdef int welcome(self, PyObject *value) except -1:
        """The cache has it again, or has it still in another place: it is counted there."""
        try:
            self.readmit(value)
        except Exception as error:
            report(error, self)  # it was put, and that much is certain
        return 0

    cdef int drop(self, PyObject *value, uint64_t nbytes) except -1:
        """Drop the only reference that the cache has to an evicted value, and count what stays."""
        if MP_COUNTS_ARE_EXACT and values.seen(value, 1) == 0:
            drop(value)
            return 0
        try:
            self.enter(<object>value, nbytes)
        except Exception as error:
            report(error, self)  # it left, and that much is certain
        finally:
            drop(value)
        return 0
