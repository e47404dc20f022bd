# What keeps a mapping alive, and how its errors are told.
cdef object _strerror
from os import name as _os_name, strerror as _strerror

cdef bint ON_WINDOWS = _os_name == "nt"


@cython.final
@cython.freelist(16)
@cython.no_gc
cdef class _MappingView:
    """Keeps the memory mapped as long as it lives."""

    cdef mp_mapping *mapping
    cdef void *data
    cdef Py_ssize_t nbytes
    cdef bint readonly
    cdef object __weakref__

    def __dealloc__(self):
        if self.mapping is not NULL and mp_mapping_leave(self.mapping):
            PyTraceMalloc_Untrack(DOMAIN, <uintptr_t>self.data)  # before the addresses can be anybody else's
            with nogil:
                mp_mapping_end(self.mapping)

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.readonly and flags & PyBUF_WRITABLE:
            view.obj = None
            raise BufferError("array is read-only")
        fill_bytes(self, view, flags, self.data, &self.nbytes)
        view.readonly = self.readonly

    def __releasebuffer__(self, Py_buffer *view):
        pass


cdef object os_error(int number, object path):
    if ON_WINDOWS:
        return OSError(0, None, path, number)
    if path is None:
        return OSError(number, _strerror(number))
    return OSError(number, _strerror(number), path)
