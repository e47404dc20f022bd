# What the table asks of CPython: whether two keys are the same without running anybody's code; a lock where there is no GIL; the
# clock.

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    typedef PyMutex table_mutex;
    #define table_lock(mutex) PyMutex_Lock(mutex)
    #define table_unlock(mutex) PyMutex_Unlock(mutex)
    #else  /* the GIL is the lock: between lock and unlock nothing gives it up */
    typedef char table_mutex;
    #define table_lock(mutex) ((void)(mutex))
    #define table_unlock(mutex) ((void)(mutex))
    #endif

    static int table_same_long(PyObject *one, PyObject *other)
    {
    #if PY_VERSION_HEX >= 0x030C0000
        if (PyUnstable_Long_IsCompact((PyLongObject *)one) && PyUnstable_Long_IsCompact((PyLongObject *)other))
            return PyUnstable_Long_CompactValue((PyLongObject *)one) == PyUnstable_Long_CompactValue((PyLongObject *)other);
    #else
        Py_ssize_t digits = Py_SIZE(one);
        if (digits != Py_SIZE(other))
            return 0;
        if (digits == 1 || digits == -1)
            return ((PyLongObject *)one)->ob_digit[0] == ((PyLongObject *)other)->ob_digit[0];
    #endif
        return PyObject_RichCompareBool(one, other, Py_EQ);
    }

    static int table_same_str(PyObject *one, PyObject *other)
    {
        Py_ssize_t length = PyUnicode_GET_LENGTH(one);
        int kind = PyUnicode_KIND(one);
        return length == PyUnicode_GET_LENGTH(other) && kind == (int)PyUnicode_KIND(other) &&
               memcmp(PyUnicode_DATA(one), PyUnicode_DATA(other), (size_t)length * (size_t)kind) == 0;
    }

    /* 1 or 0; -1: only their own code can tell */
    static inline int table_same(PyObject *one, PyObject *other)
    {
        if (one == other)
            return 1;
        if (PyLong_CheckExact(one) && PyLong_CheckExact(other))
            return table_same_long(one, other);
        if (PyUnicode_CheckExact(one) && PyUnicode_CheckExact(other))
            return table_same_str(one, other);
        return -1;
    }

    #ifdef CLOCK_MONOTONIC
    static double table_clock(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    }
    #define TABLE_HAS_CLOCK 1
    #else
    #define table_clock() 0.0
    #define TABLE_HAS_CLOCK 0
    #endif
    """
    ctypedef struct table_mutex:
        pass
    void table_lock(table_mutex *) noexcept nogil
    void table_unlock(table_mutex *) noexcept nogil
    int table_same(PyObject *, PyObject *) noexcept
    double table_clock() noexcept nogil
    const bint TABLE_HAS_CLOCK

cdef extern from "Python.h":
    bint exports_buffer "PyObject_CheckBuffer"(PyObject *)
    bint is_bytes "PyBytes_CheckExact"(PyObject *)
    bint same_by_code "PyObject_RichCompareBool"(PyObject *, PyObject *, int) except -1
    Py_hash_t hash_of "PyObject_Hash"(object) except -1
    void drop "Py_DECREF"(PyObject *)
    void keep_alive "Py_INCREF"(PyObject *)
    void end_weak_references "PyObject_ClearWeakRefs"(PyObject *)
    void leave_collector "PyObject_GC_UnTrack"(void *)
