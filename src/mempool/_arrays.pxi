# NumPy arrays over a lease. NumPy is imported when the first array is made: `cimport numpy` would import it with this module.
cdef extern from "numpy/arrayobject.h" nogil:
    ctypedef Py_ssize_t npy_intp
    ctypedef struct PyArray_Descr:
        pass
    int NPY_MAXDIMS
    int NPY_UINT8
    int NPY_ARRAY_CARRAY
    int NPY_ARRAY_FARRAY
    npy_intp PyDataType_ELSIZE(PyArray_Descr *)
    bint PyDataType_REFCHK(PyArray_Descr *)

cdef extern from "numpy/arrayobject.h":
    int _import_array() except -1
    object PyArray_NewFromDescr(
        PyTypeObject *subtype, PyArray_Descr *descr, int nd, npy_intp *dims, npy_intp *strides, void *data, int flags, PyObject *obj
    )
    ctypedef struct PyArrayObject:
        pass
    int PyArray_SetBaseObject(PyArrayObject *array, PyObject *base) except -1
    int PyArray_DescrConverter(object, PyArray_Descr **) except 0
    PyArray_Descr *PyArray_DescrFromType(int)
    PyTypeObject PyArray_Type
    int NPY_ARRAY_ALIGNED
    int NPY_ARRAY_CARRAY_RO
    int NPY_ARRAY_FORCECAST
    int NPY_ARRAY_WRITEABLE
    int NPY_ARRAY_F_CONTIGUOUS
    npy_intp PyDataType_ALIGNMENT(PyArray_Descr *)
    int NPY_INT64
    int NPY_INTP
    bint PyArray_Check(object)
    npy_intp PyArray_SIZE(PyArrayObject *)
    int PyArray_NDIM(PyArrayObject *)
    npy_intp *PyArray_DIMS(PyArrayObject *)
    void *PyArray_DATA(PyArrayObject *)
    object PyArray_SimpleNew(int nd, npy_intp *dims, int type)
    object PyArray_Empty(int nd, npy_intp *dims, PyArray_Descr *descr, int fortran)
    object PyArray_FROM_OTF(object, int type, int requirements)
    object PyArray_ToScalar(void *data, PyArrayObject *array)
    bint PyDataType_HASFIELDS(PyArray_Descr *)

cdef bint _numpy_ready = False
cdef object numpy_asarray = None, _numpy_dtype = None


cdef int need_numpy() except -1:
    global _numpy_ready, numpy_asarray, _numpy_dtype
    if not _numpy_ready:
        _import_array()
        import numpy
        numpy_asarray, _numpy_dtype = numpy.asarray, numpy.dtype
        _numpy_ready = True
    return 0


cdef PyArray_Descr *new_descr(object dtype) except NULL:
    """A reference for those who steal one. None: bytes."""
    if dtype is None:
        return PyArray_DescrFromType(NPY_UINT8)
    Py_INCREF(dtype)
    return <PyArray_Descr *><PyObject *>dtype


cdef object array_on(object holder, void *data, object dtype, int nd, npy_intp *dims, int flags):
    """A plain array over memory that lives as long as the holder."""
    need_numpy()
    array = PyArray_NewFromDescr(&PyArray_Type, new_descr(dtype), nd, dims, NULL, data, flags, NULL)
    Py_INCREF(holder)
    PyArray_SetBaseObject(<PyArrayObject *><PyObject *>array, <PyObject *>holder)
    return array


cdef object as_asked(object array, object dtype, object copy):
    """What `__array__` is to return: `copy` None says if needed, False says never."""
    if dtype is None and not copy:
        return array
    if copy is None or copy:
        return array.astype(array.dtype if dtype is None else dtype, copy=bool(copy))
    return numpy_asarray(array, dtype=dtype, copy=False)


cdef int fill_bytes(object holder, Py_buffer *view, int flags, void *data, Py_ssize_t *nbytes) except -1:
    """An export of writable bytes; `nbytes` lives in the holder."""
    view.buf = data
    view.len = nbytes[0]
    view.itemsize = 1
    view.readonly = 0
    view.ndim = 1
    view.format = BYTES_FORMAT if flags & PyBUF_FORMAT else NULL
    view.shape = nbytes if flags & PyBUF_ND else NULL
    view.strides = &view.itemsize if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
    view.suboffsets = NULL
    view.internal = NULL
    view.obj = holder
    return 0


cdef int pass_buffer(object exporter, Py_buffer *view, int flags) except -1:
    """The export of another object, which the view then keeps."""
    cdef Py_buffer inner
    PyObject_GetBuffer(exporter, &inner, flags)
    view.buf = inner.buf
    view.len = inner.len
    view.itemsize = inner.itemsize
    view.readonly = inner.readonly
    view.ndim = inner.ndim
    view.format = inner.format
    view.shape = inner.shape
    view.strides = inner.strides
    view.suboffsets = inner.suboffsets
    view.internal = inner.internal
    view.obj = exporter
    Py_DECREF(exporter)  # the reference that `inner` had
    return 0


cdef int check_plain(PyArray_Descr *descr) except -1:
    """Native memory takes no references, and items of no size have no place."""
    if PyDataType_REFCHK(descr):
        raise ValueError(f"dtype {<object>descr} holds objects, which cannot live in native memory")
    if PyDataType_ELSIZE(descr) == 0:
        raise ValueError(f"dtype {<object>descr} has no item size")
    return 0


cdef object array_over(Buffer buffer, object dtype, object shape, object offset, object order):
    """See `Buffer.array`. All that may run Python comes before the look at the block."""
    cdef npy_intp dims[64]
    cdef PyArray_Descr *descr = NULL
    cdef Py_ssize_t start = 0, length
    cdef int nd, flags
    need_numpy()
    flags = array_flags(order)
    if offset is not 0:
        start = to_extent(offset, "offset")
    if type(dtype) is str and dtype == "u1":
        descr = PyArray_DescrFromType(NPY_UINT8)
    else:
        PyArray_DescrConverter(dtype, &descr)
    try:
        nd = read_shape(shape, dims)
        with cython.critical_section(buffer):
            length = buffer._lent().requested
            fit(descr, nd, dims, start, length)
            holder = buffer._hold()
            data = <char *>buffer._block.data + start
    except:
        Py_DECREF(<object>descr)
        raise
    array = PyArray_NewFromDescr(&PyArray_Type, descr, nd if nd >= 0 else 1, dims, NULL, data, flags, NULL)
    Py_INCREF(holder)
    PyArray_SetBaseObject(<PyArrayObject *><PyObject *>array, <PyObject *>holder)
    return array


cdef int array_flags(object order) except -1:
    if order == "C":
        return NPY_ARRAY_CARRAY
    if order == "F":
        return NPY_ARRAY_FARRAY
    raise ValueError(f"order must be 'C' or 'F', not {order!r}")


cdef int read_shape(object shape, npy_intp *dims) except -2:
    """The number of dimensions; -1 if the array shall go up to the end."""
    cdef int i, nd
    if shape is None:
        return -1
    if PyIndex_Check(shape):
        shape = (shape,)
    shape = tuple(shape)
    nd = <int>len(shape)
    if nd > NPY_MAXDIMS:
        raise ValueError(f"an array has at most {NPY_MAXDIMS} dimensions, not {nd}")
    for i in range(nd):
        dims[i] = to_extent(shape[i], "shape")
    return nd


cdef Py_ssize_t to_extent(object value, str name) except -1:
    cdef Py_ssize_t extent
    try:
        extent = value
    except OverflowError:
        raise ValueError(f"{name} of {shown(value)} is beyond any buffer") from None
    if extent < 0:
        raise ValueError(f"{name} must not be negative, got {extent}")
    return extent


cdef int fit(PyArray_Descr *descr, int nd, npy_intp *dims, Py_ssize_t start, Py_ssize_t length) except -1:
    """Checks that the array lies within the buffer; sets the only dimension where none was given."""
    cdef Py_ssize_t itemsize = PyDataType_ELSIZE(descr), left = length - start, items
    cdef int i
    check_plain(descr)
    if left < 0:
        raise ValueError(f"offset {start} is beyond the end of a buffer of {length} bytes")
    items = left // itemsize
    if nd < 0:
        if items * itemsize != left:
            raise ValueError(f"{left} bytes are no multiple of the item size of {<object>descr}, {itemsize}")
        dims[0] = items
        return 0
    for i in range(nd):
        if dims[i] == 0:
            return 0
    for i in range(nd):
        if dims[i] > items:
            break
        items //= dims[i]
    else:
        if items > 0:
            return 0
    shape = []
    for i in range(nd):
        shape.append(dims[i])
    shape = tuple(shape)
    raise ValueError(
        f"shape {shape} of {itemsize} bytes an item does not fit, it goes beyond the end: {left} bytes are left from offset {start}"
    )
