# What a value keeps alive: how many bytes, whose death frees them, and whether somebody else keeps them too. For caches.
#
#     memoryview --> ndarray --> ndarray --> _Holder --> block        each step is what the one before keeps;
#     value                                   anchor                  the last that can be referenced weakly is the anchor
#
# Weights and anchors are asked with Python allowed. `is_seen` is asked while a cache looks for a victim, where none is: it follows
# plain pointers, and where it would have to ask an object it says that it does not know.
#
# The second extension, which is linked against nothing here, has these functions through the capsule `_weighing`.
from sys import getsizeof as _sys_getsizeof, modules as _modules

cdef object _getsizeof = _sys_getsizeof
cdef dict _loaded = _modules

cdef extern from *:
    """
    static int mp_weakly(PyObject *o) { return Py_TYPE(o)->tp_weaklistoffset != 0; }
    static PyObject *mp_view_obj(PyObject *o)
    {
        PyMemoryViewObject *view = (PyMemoryViewObject *)o;
        if (view->flags & _Py_MEMORYVIEW_RELEASED || view->mbuf->flags & _Py_MANAGED_BUFFER_RELEASED)
            return NULL;
        return view->view.obj;
    }
    static int mp_view_alone(PyObject *o) { return ((PyMemoryViewObject *)o)->mbuf->exports <= 1; }
    """
    bint is_weakly "mp_weakly"(PyObject *)
    PyObject *view_obj "mp_view_obj"(PyObject *)  # borrowed; NULL: released, or of memory that nothing keeps
    bint view_alone "mp_view_alone"(PyObject *)

cdef extern from "Python.h":
    PyTypeObject *kind_of "Py_TYPE"(PyObject *)
    bint is_kind "PyObject_TypeCheck"(PyObject *, PyTypeObject *)
    bint exports "PyObject_CheckBuffer"(PyObject *)
    bint is_view "PyMemoryView_Check"(PyObject *)
    bint is_bytes "PyBytes_CheckExact"(PyObject *)
    bint is_text "PyUnicode_CheckExact"(PyObject *)
    bint is_bytearray "PyByteArray_CheckExact"(PyObject *)
    bint is_ascii "PyUnicode_IS_COMPACT_ASCII"(PyObject *)
    Py_ssize_t bytes_length "PyBytes_GET_SIZE"(PyObject *)
    Py_ssize_t text_length "PyUnicode_GET_LENGTH"(PyObject *)
    int Py_TPFLAGS_HEAPTYPE
    int PyBUF_FULL_RO

cdef extern from "numpy/arrayobject.h":
    PyObject *PyArray_BASE(PyArrayObject *)

cdef enum:
    MOST_STEPS = 64  # more, and it is a circle that somebody made


cdef enum sighting:
    UNSEEN = 0
    SEEN = 1
    UNKNOWN = 2


cdef struct weighing_functions:
    Py_ssize_t (*weigh)(PyObject *value) except -1
    PyObject *(*anchor)(PyObject *value) except? NULL  # a new reference; NULL without an error: nothing to wait for
    PyObject *(*plain_anchor)(PyObject *value) noexcept
    int (*seen)(PyObject *value, Py_ssize_t own) noexcept
    void (*adopt)(PyObject *value) noexcept


cdef Py_ssize_t BYTES_HEAD = _sys_getsizeof(b"")
cdef Py_ssize_t TEXT_HEAD = _sys_getsizeof("")
cdef PyTypeObject *_array_type = NULL


cdef PyTypeObject *find_array_type() except? NULL:
    """numpy.ndarray, if NumPy is there: this is no reason to import it. The layout is relied upon, so an impostor is not taken."""
    global _array_type
    if _array_type is NULL:
        kind = getattr(_loaded.get("numpy"), "ndarray", None)
        if isinstance(kind, type) and not (<PyTypeObject *>kind).tp_flags & Py_TPFLAGS_HEAPTYPE:
            if (<PyTypeObject *>kind).tp_name == b"numpy.ndarray":
                Py_INCREF(kind)
                _array_type = <PyTypeObject *>kind
    return _array_type


cdef bint is_array(PyObject *value) noexcept:
    return _array_type is not NULL and is_kind(value, _array_type)


# ---- one step ----


cdef bint is_last(PyObject *value) noexcept:
    """Whether it is known to keep nothing else that could be weighed."""
    cdef PyTypeObject *kind = kind_of(value)
    return (
        kind is <PyTypeObject *>_Holder or kind is <PyTypeObject *>_SharedHold or kind is <PyTypeObject *>_MappingView
        or kind is <PyTypeObject *>_SlabView or kind is <PyTypeObject *>_ItemView or kind is <PyTypeObject *>_Span
        or kind is <PyTypeObject *>MappedArray or kind is <PyTypeObject *>SlabAllocator
        or is_bytes(value) or is_bytearray(value) or not exports(value)
    )


cdef PyObject *plain_step(PyObject *value, Py_ssize_t *own) noexcept:
    """What it keeps, borrowed, and how many references it has to that; NULL if nothing, or if Python would have to tell."""
    cdef _SharedHold hold
    own[0] = 1
    if kind_of(value) is <PyTypeObject *>Buffer:
        return NULL if (<Buffer>value)._holder is None else <PyObject *>(<Buffer>value)._holder
    if is_view(value):
        return view_obj(value)
    if is_array(value):
        return PyArray_BASE(<PyArrayObject *>value)
    if kind_of(value) is <PyTypeObject *>_Part:
        return <PyObject *>(<_Part>value).holder
    if kind_of(value) is <PyTypeObject *>_Export:
        return <PyObject *>(<_Export>value).stream
    if is_kind(value, <PyTypeObject *>_SharedBase):
        if (<_SharedBase>value)._hold is None:
            return NULL if (<_SharedBase>value)._kept is None else <PyObject *>(<_SharedBase>value)._kept
        own[0] += (<_SharedBase>value)._kept is not None
        return <PyObject *>(<_SharedBase>value)._hold
    return NULL


cdef object what_exports(object value):
    """What the views of an exporter name; None if that is itself, or is made for each view, or if it exports nothing now."""
    cdef Py_buffer view
    cdef object named = None
    if get_buffer(value, &view, PyBUF_FULL_RO) < 0:
        if PyErr_ExceptionMatches(TypeError) or PyErr_ExceptionMatches(BufferError) or PyErr_ExceptionMatches(ValueError):
            PyErr_Clear()
            return None
        fail()
    if <PyObject *>view.obj is not <PyObject *>value and <PyObject *>view.obj is not NULL:
        named = view.obj
    PyBuffer_Release(&view)
    return None if named is None or refcount(<PyObject *>named) == 1 else named


cdef object step(object value):
    """What it keeps; None at the end."""
    cdef Py_ssize_t own
    cdef PyObject *kept
    if is_last(<PyObject *>value):
        return None
    if type(value) is Buffer:
        return held_by(value)
    kept = plain_step(<PyObject *>value, &own)
    if kept is not NULL:
        if is_array(<PyObject *>value) and not exports(kept):
            return opaque_step(<object>kept)
        return <object>kept
    if is_view(<PyObject *>value) or is_array(<PyObject *>value) or is_kind(<PyObject *>value, <PyTypeObject *>_SharedBase):
        return None
    return what_exports(value)


cdef object opaque_step(object base):
    """The base of an array that is no exporter: what NumPy puts between names its own base, what others put tells nothing."""
    inner = getattr(base, "base", None)
    return inner if inner is not None and is_array(<PyObject *>inner) else None


cdef object held_by(Buffer buffer):
    """The holder of a lease that has not ended, made if need be."""
    with cython.critical_section(buffer):
        if buffer._block is NULL:
            return buffer._holder  # of a view that keeps the Buffer, or None
        return buffer._hold()


# ---- the three questions ----


cdef Py_ssize_t weigh(PyObject *value) except -1:
    """See `mempool.cache._policies.real_bytes`."""
    cdef mp_block *block
    if is_bytes(value):
        return BYTES_HEAD + bytes_length(value)
    if is_text(value) and is_ascii(value):
        return TEXT_HEAD + text_length(value)
    if kind_of(value) is <PyTypeObject *>Buffer:
        block = (<Buffer>value)._block
        if block is not NULL and block.capacity:
            return block.capacity
    if not exports(value):
        return weigh_last(<object>value)
    find_array_type()
    return weigh_exporter(<object>value)


cdef Py_ssize_t weigh_exporter(object value) except -1:
    """The end of the chain has the memory; what is between is small."""
    cdef Py_ssize_t steps
    cdef object array = None, at = value, following
    for steps in range(MOST_STEPS):
        if is_array(<PyObject *>at):
            array = at
        following = step(at)
        if following is None:
            break
        at = following
    cdef Py_ssize_t own = weigh_last(at)
    if at is array:  # over memory of which nobody knows anything, or its own
        own = max(own, (<object>_array_type).nbytes.__get__(at))
    return max(own, kind_of(<PyObject *>value).tp_basicsize)


cdef Py_ssize_t weigh_last(object value) except -1:
    cdef Py_ssize_t nbytes = weigh_keeper(<PyObject *>value)
    if nbytes > 0:
        return nbytes
    if type(value) is SlabAllocator or type(value) is RingBuffer or isinstance(value, _Chain) or type(value) is Arena:
        nbytes = weigh_structure(value)
    elif type(value) is MappedArray:
        nbytes = 0 if (<MappedArray>value)._c is NULL or value.closed else value.nbytes
    elif exports(<PyObject *>value) and not is_last(<PyObject *>value) and not is_array(<PyObject *>value):
        nbytes = weigh_export(value)
    return max(nbytes, size_of(value))


cdef Py_ssize_t weigh_structure(object value) except -1:
    cdef mp_slab_stats stats
    cdef mp_ring_state ring
    if isinstance(value, _Chain):
        return (<_Chain>value)._room
    if type(value) is SlabAllocator and (<SlabAllocator>value)._c is not NULL:
        mp_slab_stats_read((<SlabAllocator>value)._c, &stats)
        return stats.reserved
    if type(value) is RingBuffer and (<RingBuffer>value)._memory is not None:
        mp_ring_look((<RingBuffer>value)._memory.c, &ring)
        return ring.capacity
    if type(value) is Arena and (<Arena>value)._buffer is not None:
        return (<Arena>value)._size
    return 0


cdef Py_ssize_t weigh_export(object value) except -1:
    cdef Py_buffer view
    cdef Py_ssize_t nbytes
    if get_buffer(value, &view, PyBUF_FULL_RO) < 0:
        if PyErr_ExceptionMatches(TypeError) or PyErr_ExceptionMatches(BufferError) or PyErr_ExceptionMatches(ValueError):
            PyErr_Clear()
            return 0
        fail()
    nbytes = view.len
    PyBuffer_Release(&view)
    return nbytes


cdef Py_ssize_t weigh_keeper(PyObject *value) noexcept:
    """0 if it has no memory of ours."""
    cdef PyTypeObject *kind = kind_of(value)
    if kind is <PyTypeObject *>_Holder and (<_Holder>value).block is not NULL:
        return (<_Holder>value).block.capacity
    if kind is <PyTypeObject *>_SharedHold:
        return (<_SharedHold>value).capacity
    if kind is <PyTypeObject *>_MappingView:
        return (<_MappingView>value).nbytes
    if kind is <PyTypeObject *>_SlabView:
        return (<_SlabView>value).nbytes
    if kind is <PyTypeObject *>_ItemView:
        return (<_ItemView>value).nbytes
    if kind is <PyTypeObject *>_Span:
        return (<_Span>value).nbytes
    return 0


cdef Py_ssize_t size_of(object value) except -1:
    """As `sys.getsizeof`; what an object says of itself may be nonsense."""
    cdef str name
    cdef object said
    try:
        said = _getsizeof(value)
        return said
    except (TypeError, ValueError, OverflowError) as error:
        name = (<object>object).__repr__(value)
        if isinstance(error, TypeError):
            raise TypeError(f"cannot weigh {name}: {error}") from error
        raise ValueError(f"cannot weigh {name}: {error}") from error


cdef PyObject *anchor(PyObject *value) except? NULL:
    """See `mempool.cache._policies.anchor`. A new reference; NULL without an error: none."""
    cdef Py_ssize_t steps
    cdef object at = <object>value, found = None, following
    if not exports(value) and not is_kind(value, <PyTypeObject *>_Chain):
        return NULL
    find_array_type()
    for steps in range(MOST_STEPS):
        if is_weakly(<PyObject *>at):
            found = at
        following = step(at)
        if following is None:
            break
        at = following
    if type(at) is Buffer or isinstance(at, _SharedBase) or is_view(<PyObject *>at):
        return NULL  # it has ended: what it kept is no more its own
    if found is None:
        return NULL
    Py_INCREF(found)
    return <PyObject *>found


cdef PyObject *plain_anchor(PyObject *value) noexcept:
    """The anchor, borrowed, without Python; NULL: none, or there is no telling."""
    cdef Py_ssize_t steps, own
    cdef PyObject *found = NULL
    for steps in range(MOST_STEPS):
        if is_weakly(value):
            found = value
        if is_last(value) or (is_array(value) and PyArray_BASE(<PyArrayObject *>value) is NULL):
            return found
        value = plain_step(value, &own)
        if value is NULL:
            break
    return NULL


cdef int seen(PyObject *value, Py_ssize_t own) noexcept:
    """Whether somebody else keeps the memory of a value to which the caller has `own` references."""
    cdef Py_ssize_t steps
    cdef PyObject *kept
    for steps in range(MOST_STEPS):
        if refcount(value) > own:
            return SEEN
        if is_view(value) and not view_alone(value):
            return SEEN
        kept = plain_step(value, &own)
        if kept is NULL:
            break
        if is_array(value) and not exports(kept):
            return UNKNOWN
        value = kept
    if is_last(value) or is_view(value) or is_array(value) or is_kind(value, <PyTypeObject *>_SharedBase):
        return UNSEEN
    return UNSEEN if kind_of(value) is <PyTypeObject *>Buffer else UNKNOWN


cdef void adopt(PyObject *value) noexcept:
    """A cache has it: if it is a lease, then to drop it is how it is meant to end, and no leak."""
    if kind_of(value) is <PyTypeObject *>Buffer:
        with cython.critical_section(<Buffer>value):
            (<Buffer>value)._flags |= OURS


cdef weighing_functions _functions
_functions.weigh, _functions.anchor, _functions.plain_anchor = weigh, anchor, plain_anchor
_functions.seen, _functions.adopt = seen, adopt
_weighing = PyCapsule_New(&_functions, "mempool._core._weighing", NULL)
