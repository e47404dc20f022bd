# What values keep in memory, as the compiled core knows it: functions of its own, by a capsule, as nothing is linked.

cdef extern from "Python.h":
    bint exports "PyObject_CheckBuffer"(PyObject *)
    Py_ssize_t refcount "Py_REFCNT"(PyObject *)

cdef struct weighing_functions:  # as in _core's _weighing.pxi
    Py_ssize_t (*weigh)(PyObject *value) except -1
    PyObject *(*anchor)(PyObject *value) except? NULL
    PyObject *(*plain_anchor)(PyObject *value) noexcept
    int (*seen)(PyObject *value, Py_ssize_t own) noexcept
    void (*adopt)(PyObject *value) noexcept

cdef weighing_functions *values = <weighing_functions *>PyCapsule_GetPointer(_core_weighing, "mempool._core._weighing")


cdef inline object taken(PyObject *owned):
    """The object of a reference that is owned."""
    value = <object>owned
    drop(owned)
    return value


def seen(value, Py_ssize_t own, /):
    """Return whether anybody but the caller, who has `own` references to it, keeps the memory of a value: 0, 1, or 2 if unknown."""
    return values.seen(<PyObject *>value, own)


def real_bytes(value, /):
    """Return the bytes that a value keeps in memory.

    Parameters
    ----------
    value : object
        For a `mempool.Buffer` or `mempool.shared.SharedBuffer` the block that it has; for a view (a memoryview, a NumPy array
        without data of its own) all of what it keeps, be it one byte of a large block; for what exports a buffer at least that; for
        all else what `sys.getsizeof` says, so for a container not what is in it. NumPy is not imported.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    TypeError, ValueError
        If its ``__sizeof__`` says what is no number of bytes; what it raises itself comes through, too.

    Examples
    --------
    >>> import mempool
    >>> buffer = mempool.acquire(5000)
    >>> real_bytes(buffer), real_bytes(buffer[:10])
    (8192, 8192)
    """
    return values.weigh(<PyObject *>value)


def anchor(value, /):
    """Return the object whose death frees the memory of a value, to be watched with a weak reference.

    Parameters
    ----------
    value : object
        What exports a buffer, or a `mempool.io.BytesStream`.

    Returns
    -------
    object
        For a buffer of this package what all its views keep; for a view the owner of the memory, or the last object on the way to
        it that can be watched. None if there is none, if the value is no such thing, or if its lease has ended.

    Examples
    --------
    >>> import mempool, weakref
    >>> buffer = mempool.acquire(5000)
    >>> watch = weakref.ref(anchor(buffer))
    >>> view = buffer[:10]
    >>> del buffer
    >>> watch() is None
    False
    >>> del view
    >>> watch() is None
    True
    """
    cdef PyObject *found = values.anchor(<PyObject *>value)
    return None if found is NULL else taken(found)
