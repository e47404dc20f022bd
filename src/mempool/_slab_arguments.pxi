# What a slab is given: items, handles and arrays of handles.


cdef object item_dtype(object item):
    """None for a number of bytes."""
    cdef PyArray_Descr *descr = NULL
    if item is None:
        raise TypeError("item must be a number of bytes or a dtype, not None")
    if PyIndex_Check(item) and not isinstance(item, type):
        return None
    need_numpy()
    PyArray_DescrConverter(item, &descr)
    dtype = <object>descr
    Py_DECREF(dtype)
    check_plain(descr)
    if <size_t>PyDataType_ELSIZE(descr) > MP_SLAB_MAX_ITEM:
        raise ValueError(f"an item has at most {MP_SLAB_MAX_ITEM} bytes, dtype {dtype} has {PyDataType_ELSIZE(descr)}")
    return dtype


cdef size_t item_bytes(object item) except 0:
    cdef size_t size = _size_to_c(item, "item")
    if size == 0 or size > MP_SLAB_MAX_ITEM:
        raise ValueError(f"an item has 1 to {MP_SLAB_MAX_ITEM} bytes, not {size}")
    return size


cdef size_t most_items(object value) except 0:
    if value is None:
        return MP_NO_LIMIT
    cdef size_t most = _count_to_c(value, "max_items")
    if most == 0:
        raise ValueError("max_items must be more than 0")
    return most


cdef bint is_one_handle(object handle) except -1:
    """Arrays of integers have __index__ too; those without a dimension are one handle."""
    if PyLong_CheckExact(handle):
        return True
    if not PyIndex_Check(handle):
        return False
    need_numpy()
    return not PyArray_Check(handle) or PyArray_NDIM(<PyArrayObject *><PyObject *>handle) == 0


cdef object to_int(object handle):
    if PyLong_CheckExact(handle):
        return handle
    if not PyIndex_Check(handle):
        raise TypeError(f"a handle must be an int, not {handle!r}")
    return int(handle.__index__())


cdef mp_handle to_handle(object number) except? -1:
    """-1, which is nobody's, for what is no int64."""
    cdef int overflow = 0
    cdef mp_handle value = as_int64(number, &overflow)
    return value if overflow == 0 else -1


cdef object numpy_asarray_of(object handles):
    need_numpy()
    return numpy_asarray(handles)


cdef object as_handles(object handles):
    """An int64 array, C-contiguous."""
    cdef PyArrayObject *array = <PyArrayObject *><PyObject *>handles
    if PyArray_SIZE(array) > 0 and handles.dtype.kind not in "iu":
        raise TypeError(f"handles must be int64, not {handles.dtype}")
    return PyArray_FROM_OTF(handles, NPY_INT64, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST)
