# What a table of weak references has for a listener.


@cython.final
cdef class Leaving:
    """Called with each weak reference that left: whoever held its value strongly for it does so no more, and is told of after that.

    It is compiled, as a signal's handler may raise wherever Python runs, and the stack may end there: what left would be held on.
    """

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
