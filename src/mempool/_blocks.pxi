# The blocks of `MappedArray.iter_blocks`.
#
#     rows    | dropped ...... | behind | block | mapped ........ | being read ...... |
#                              dropped  at      mapped, in steps  read, in steps
#
# Small blocks share a step: to map or drop a page costs less in company.

# Bytes. What a step holds beyond the blocks is small beside what a process has.
cdef enum:
    STREAM_STEP = 8 << 20
    STREAM_PAGE = 64 << 10  # no page of any OS is larger


@cython.final
cdef class _Blocks:
    """The iterator of `MappedArray.iter_blocks`."""

    cdef MappedArray array
    cdef Py_ssize_t step, window, margin  # rows
    cdef Py_ssize_t at, dropped, mapped
    cdef bint drop, ended

    def __init__(self, MappedArray array, Py_ssize_t step, bint drop):
        self.array = array
        self.step = step
        self.window = max(step, STREAM_STEP // max(1, array._row_bytes))
        self.margin = 1 + STREAM_PAGE // max(1, array._row_bytes)
        self.drop = drop

    def __iter__(self):
        return self

    def __next__(self):
        cdef MappedArray array = self.array
        cdef Py_ssize_t start, stop, rows = array._rows()
        with cython.critical_section(self):
            start = self.at
            stop = self.at = start + min(self.step, max(0, rows - start))
            if array._by_rows:
                self._drop(start, rows)
                self._map(stop, rows)
        if start >= stop or self.ended:
            self.ended = True  # also if rows come now
            raise StopIteration
        return array._block(start, stop) if array._by_rows else array._block(0, -1)[start:stop]

    cdef int _map(self, Py_ssize_t stop, Py_ssize_t rows) except -1:
        """Map what comes, and have what comes then read. What the OS refuses costs time only."""
        cdef mp_mapping *c = self.array._ready()
        cdef Py_ssize_t first = self.mapped, last, ahead
        if stop <= first:
            return 0
        last = first + min(self.window, rows - first)
        ahead = last + min(self.window, rows - last)
        self.mapped = last
        held = self.array._hold()
        with nogil:
            mp_mapping_populate(c, first, last)
            mp_mapping_read_ahead(c, last, ahead)
        return 0

    cdef int _drop(self, Py_ssize_t start, Py_ssize_t rows) except -1:
        """Let go what is behind. A page that two steps share goes with the second."""
        cdef mp_mapping *c = self.array._ready()
        cdef Py_ssize_t first = self.dropped
        cdef int ignored = 0
        if not self.drop or (start - first < self.window and start < rows):
            return 0
        self.dropped = max(0, start - self.margin)
        if first < start:
            held = self.array._hold()
            with nogil:
                mp_mapping_advise(c, first, start, MP_ADVICE_DONTNEED, &ignored)
        return 0
