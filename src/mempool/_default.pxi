# The pool of the process, for those who need no other.
from mempool import settings as _settings

cdef BufferPool _default_pool = None
cdef dict _only_one = {}  # setdefault is atomic: of two threads that make the pool one wins, without a lock


cdef BufferPool the_pool():
    global _default_pool
    cdef BufferPool made
    if _default_pool is None:
        made = BufferPool(lookup("limit"), name="default")
        _default_pool = _only_one.setdefault("pool", made)
        if _default_pool is made:
            # `configure` may have been called meanwhile.
            _follow_settings({"limit": lookup("limit"), "leak_detection": lookup("leak_detection")})
    return _default_pool


def default_pool():
    """Return the pool that is used where none is named; there is one in a process.

    Its limit comes from `configure` or ``MEMPOOL_LIMIT``.
    """
    return the_pool()


def _follow_settings(parsed):
    """`configure` was called. The limit comes first: it may be refused."""
    if _default_pool is None:
        return
    if "limit" in parsed:
        _default_pool.limit = parsed["limit"]
    if "leak_detection" in parsed:
        _default_pool.leak_detection = parsed["leak_detection"]


def acquire(nbytes, *, bint zero=False, timeout=0):
    """Lend memory from `default_pool()`. See `BufferPool.acquire`."""
    cdef BufferPool pool = the_pool()
    return pool.acquire(nbytes, zero=zero, timeout=timeout)


def _lease_of_ours(BufferPool pool not None, nbytes):
    """Lend what this package makes for others: to drop it is how it is meant to end, so it counts as handed over, not as a leak."""
    cdef Buffer buffer = pool.acquire(nbytes)
    buffer._flags |= OURS
    return buffer


def _lease_ahead(BufferPool pool not None, size_t nbytes):
    """The same in a thread of ours, for what nobody has asked for yet; None if there is no room.

    Nobody is asked to make some: reclaimers may want a lock that is held by who waits for this thread.
    """
    cdef Buffer buffer
    pool._check_open()
    buffer = pool._try_acquire(nbytes, False, True)
    if buffer is not None:
        pool._ready_to_use(buffer, False)
        buffer._flags |= OURS
    return buffer


def _rebuild_buffer(content):
    """Unpickle: content that is a lease already stays where it is, other content moves into one of the default pool."""
    cdef Py_buffer view
    cdef Buffer buffer
    if isinstance(content, Buffer):
        return content
    PyObject_GetBuffer(content, &view, PyBUF_SIMPLE)
    try:
        buffer = the_pool()._acquire_now(view.len)
        memcpy(buffer._block.data, view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    return buffer


_settings._listeners.append(_follow_settings)
