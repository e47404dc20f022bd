# The collector, which finds cycles through a table.
#
# Entries are no Python attributes, so Cython's own functions do not see them: these do.

ctypedef int (*visit_function)(PyObject *, void *) noexcept
ctypedef int (*traverse_function)(PyObject *, visit_function, void *) noexcept


cdef int visit_entries(PyObject *table, visit_function visit, void *arg) noexcept:
    cdef Store *store = &(<Contents>table).store
    cdef uint32_t slot
    cdef int said
    for slot in range(1, store.fresh + 1):
        if store.entries[slot].key is NULL:
            continue
        said = visit(store.entries[slot].key, arg)
        if said == 0:
            said = visit(store.entries[slot].value, arg)
        if said == 0 and store.extras is not NULL and store.extras[slot].note is not NULL:
            said = visit(store.extras[slot].note, arg)
        if said:
            return said
    return cython_traverse(table, visit, arg)


cdef void empty(Contents table) noexcept:
    """Drop all that is held, telling nobody: nobody has the table any more."""
    cdef Store store = table.store
    cdef uint32_t slot
    memset(&table.store, 0, sizeof(Store))
    if table.order is not None:  # there was no memory for it
        table.order.clear()
    for slot in range(1, store.fresh + 1):
        if store.entries[slot].key is not NULL:
            drop(store.entries[slot].key)
            values.adopt(store.entries[slot].value)
            drop(store.entries[slot].value)
            if store.extras is not NULL:
                Py_XDECREF(store.extras[slot].note)
    store_free(&store)


cdef int clear_entries(PyObject *table) noexcept:
    """Break cycles. The order stays: what is garbage with the table may still call it."""
    empty(<Contents>table)
    (<Contents>table).listener = (<Contents>table).clock = (<Contents>table).pins = None
    return 0


cdef void dealloc_entries(PyObject *table) noexcept:
    """Weak references end first: a value that dies with the table must not get hold of it.

    Their callbacks may be Python, and a collection in it must not take what is dying already for garbage.
    """
    leave_collector(table)
    end_weak_references(table)
    cython_dealloc(table)


cdef destructor cython_dealloc = (<PyTypeObject *>Table).tp_dealloc
cdef traverse_function cython_traverse = <traverse_function>(<PyTypeObject *>Table).tp_traverse
(<PyTypeObject *>Table).tp_traverse = <traverseproc>visit_entries
(<PyTypeObject *>Table).tp_clear = <inquiry>clear_entries
(<PyTypeObject *>Table).tp_dealloc = <destructor>dealloc_entries
