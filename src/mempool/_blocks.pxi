# The blocks of `MappedArray.iter_blocks`.


@cython.final
cdef class _Blocks:
    """The iterator of `MappedArray.iter_blocks`."""

    cdef MappedArray array
    cdef Py_ssize_t step, at, behind, margin
    cdef bint drop

    def __init__(self, MappedArray array, Py_ssize_t step, bint drop):
        self.array = array
        self.step = step
        self.drop = drop
        # Blocks share pages: the one on the border goes with the next block.
        self.margin = 1 + (1 << 16) // max(1, array._row_bytes)

    def __iter__(self):
        return self

    def __next__(self):
        cdef MappedArray array = self.array
        cdef Py_ssize_t start, stop, rows = array._rows(), behind
        with cython.critical_section(self):
            start = self.at
            stop = start + min(self.step, max(0, rows - start))
            behind = self.behind
            self.at, self.behind = stop, max(0, start - self.margin)
        if array._by_rows:
            self._move(behind, start, stop, stop + min(self.step, rows - stop) if array._is_file and stop < rows else stop)
        if start >= stop:
            raise StopIteration
        return array._block(start, stop) if array._by_rows else array._block(0, -1)[start:stop]

    cdef int _move(self, size_t behind, size_t start, size_t stop, size_t ahead) except -1:
        """Let go what was, map what is, read ahead what comes. Advice: what the OS refuses costs time only."""
        cdef mp_mapping *c = self.array._ready()
        cdef int ignored = 0
        cdef bint drop = self.drop
        with nogil:
            if drop and behind < start:
                mp_mapping_advise(c, behind, start, MP_ADVICE_DONTNEED, &ignored)
            if start < stop:
                mp_mapping_populate(c, start, stop)
            if stop < ahead:
                mp_mapping_prefetch(c, stop, ahead, &ignored)
        return 0
