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
        return function->func_dict == NULL || PyDict_GET_SIZE(function->func_dict) == 0 ||
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


cdef class Ticket:
    """What a load is found by: equal to those of its key and version; once it is over, or alone, to nothing but itself.

    It is compiled, as `end_load` is, because a signal's handler may raise wherever Python runs: a load whose end is left out would
    have all who ask for its key wait for ever.
    """

    cdef Py_hash_t hash
    cdef readonly object key, version
    cdef readonly dict waiters
    cdef readonly bint every       # equal to all of its key, of whatever version
    cdef public bint alone, gone
    cdef public object outcome

    def __init__(self, key, version=None, every=False):
        self.hash = hash_of(key)
        self.key, self.version, self.every = key, version, every
        self.waiters = {}

    def __hash__(self):
        return self.hash

    def __eq__(self, other):
        if self is other:
            return True
        if not isinstance(other, Ticket) or self.gone or (<Ticket>other).gone:
            return False
        return meet(self, <Ticket>other) and (self.key is (<Ticket>other).key or bool(self.key == (<Ticket>other).key))


cdef bint meet(Ticket one, Ticket other) except -1:
    if one.every or other.every:
        return True
    if one.alone or other.alone:
        return False
    return one.version is other.version or bool(one.version == other.version)


def end_load(Ticket load not None, dict active not None, retry):
    """Take a load out of sight, and wake who waits: for its outcome or, if it has none, to try again. Once more does no harm.

    No Python runs but to wake tasks, and nothing is left out where that raises. It needs no deeper stack than the beginning did, so
    that it works where a recursion without end ended.
    """
    if load.outcome is None:
        load.outcome = retry
    load.gone = True
    try:
        active.pop(load, None)
    finally:
        interrupt = None
        for waiter in list(load.waiters):
            try:
                wake(waiter)
            except BaseException as error:
                interrupt = error
                wake(waiter)
        if interrupt is not None:
            raise interrupt


cdef int wake(waiter) except -1:
    try:
        waiter.wake()
    except RecursionError:  # a task is woken by Python, for which there is stack in another thread
        start_new_thread(wake_apart, (waiter,))
    except RuntimeError:  # it is awake, or its loop is closed: nobody waits there
        pass
    return 0


def wake_apart(waiter):
    wake(waiter)
