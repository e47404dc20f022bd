# Iteration: by slot, so weakly consistent. Changes meanwhile raise nothing; an entry that stays is given once; one that comes or
# goes meanwhile may be given or not. Nobody's recency changes.

cpdef enum:
    KEYS, VALUES, ITEMS, NOTES


@cython.final
cdef class Walk:
    """An iterator over keys, values, both, or notes."""

    cdef Table table
    cdef int what
    cdef uint32_t slot

    def __iter__(self):
        return self

    def __next__(self):
        cdef Table table = self.table
        cdef Store *store
        cdef PyObject *key
        cdef PyObject *value
        if table is None:
            raise StopIteration
        cdef double now = table.now() if table.ttls else 0
        store = &table.store
        table_lock(&table.mutex)
        while self.slot < store.fresh:
            self.slot += 1
            if is_entry(store, self.slot) and not table.is_over(self.slot, now):
                key, value = store.entries[self.slot].key, store.entries[self.slot].value
                if self.what == NOTES:
                    value = table.note_at(self.slot)
                    if value is NULL:
                        continue
                keep_alive(key)
                keep_alive(value)
                table_unlock(&table.mutex)
                return self.given(taken(key), taken(value))
        table_unlock(&table.mutex)
        self.table = None
        raise StopIteration

    cdef given(self, key, value):
        return key if self.what == KEYS else (key, value) if self.what == ITEMS else value


def walk(Table table not None, int what):
    """Iterate over the KEYS, VALUES, ITEMS or NOTES of a table."""
    cdef Walk walk = Walk.__new__(Walk)
    walk.table, walk.what = table, what
    return walk
