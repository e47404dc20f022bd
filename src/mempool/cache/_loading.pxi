# What loads ask of the table: claims on keys, and whether a loader is plain, which every hit asks.

cdef extern from *:
    """
    #ifndef CO_COROUTINE
    #define CO_COROUTINE 0x0080
    #endif

    /* 1: surely no coroutine function; 0: it is one, or Python must be asked */
    static int loader_is_plain(PyObject *loader, PyObject *mark, PyObject *old_mark)
    {
        PyFunctionObject *function;
        if (PyMethod_Check(loader))
            loader = PyMethod_GET_FUNCTION(loader);
        if (!PyFunction_Check(loader))
            return PyCFunction_Check(loader) || PyType_Check(loader);
        function = (PyFunctionObject *)loader;
        if (((PyCodeObject *)function->func_code)->co_flags & CO_COROUTINE)
            return 0;
        return function->func_dict == NULL ||
               (PyDict_Contains(function->func_dict, mark) == 0 && PyDict_Contains(function->func_dict, old_mark) == 0);
    }
    """
    int loader_is_plain(object loader, object mark, object old_mark) noexcept

cdef object mark = "_is_coroutine_marker"  # inspect.markcoroutinefunction; asyncio's own before there was that
cdef object old_mark = "_is_coroutine"

cdef object partial
from functools import partial


cdef inline bint is_plain(loader):
    """Whether a loader is surely no coroutine function; if not, Python must be asked."""
    while type(loader) is partial:
        loader = loader.func
    return loader_is_plain(loader, mark, old_mark)


@cython.final
cdef class Claim:
    """What a load has on its key. It lapses when somebody writes, removes or invalidates the key; what was loaded is not put then.

    The table looks at it in the same step in which it would put.
    """

    cdef readonly bint lapsed
    cdef readonly bint replaces   # an entry that is there already

    def __init__(self, replaces=False):
        self.replaces = replaces

    def lapse(self):
        """Let it lapse."""
        self.lapsed = True
