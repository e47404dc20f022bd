# What weak references call as what they refer to dies, and what their table has for a listener.
#
# Both are compiled: a signal's handler may raise wherever Python runs, and the stack may end there. What died would stay in the
# table, Ctrl-C would be lost in a callback, and what left would be held on.


@cython.final
cdef class Collecting:
    """Called with a weak reference that died: its entry goes. It keeps no table alive, or that would be a circle."""

    cdef object table   # a weak one
    cdef bint keyed     # the references are values, and know their keys; else they are the keys

    def __init__(self, Table table not None, keyed):
        self.table, self.keyed = weak_reference(table), keyed

    def __call__(self, reference):
        table = self.table()
        if table is None:
            return
        if not self.keyed:
            (<Table>table).remove(reference, NULL, COLLECTED)
        elif not reference.left:
            (<Table>table).remove(reference.key, <PyObject *>reference, COLLECTED)


@cython.final
cdef class Leaving:
    """Called with each weak reference that left: the band holds its value no more, and the listener is told after that."""

    cdef Table band
    cdef object listener

    def __init__(self, Table band, listener):
        self.band, self.listener = band, listener

    def __call__(self, key, reference, cause):
        reference.left = True  # who is about to hold it looks at that
        value = None
        try:
            if self.listener is not None:
                value = reference()
        finally:
            if self.band is not None:
                self.band.remove(reference, NULL, DELETED if reference.popped else INVALIDATED)
        if self.listener is not None:
            self.listener(key, value, cause)
