# Slots, and the index that finds them by key.
#
#     cells   [hash|slot] [  empty  ] [hash|slot] ...      a power of two of them, at most two thirds in use; linear probing
#                   |                       |
#     entries  slot 1: key value links   slot 7: ...       32 bytes each; a free one has no key and links to the next free one
#     sizes    slot 1: 4096              slot 7: ...       only where entries are weighed
#     extras   slot 1: deadline, note    slot 7: ...       only where some entry has a deadline, a priority or a note
#
# The hash stands in the cell, so that a miss touches no entry, and again in the entry, so that an evicted one finds its cell.
# Hashes are mixed to 32 bits: two keys that share them are told apart by comparing. Slot 0 is nobody's: zeroed memory is empty
# memory.
#
# Rejected: a dict of link objects, 150 bytes an entry; one struct with everything, 80 bytes for what most caches never use.


cdef enum:
    NIL = 0

cdef struct Entry:
    PyObject *key      # NULL: a free slot
    PyObject *value
    uint32_t hash
    uint32_t prev      # links of the policy's list that it is in; of a free slot, and of a grave: the next one
    uint32_t next
    uint32_t mark      # the policy's own; of a grave: why it went

cdef struct Extra:
    double deadline    # INFINITY: none
    double lifetime    # the seconds it was given: deadline - lifetime is when it was written
    PyObject *note     # owned; NULL: none
    uint32_t place     # in the heap of deadlines; 0: not in it
    int16_t level      # its priority
    bint untracked     # no policy knows it: never a victim

cdef struct Cell:
    uint32_t hash
    uint32_t slot

cdef struct Store:
    Entry *entries     # [capacity + 1]
    uint64_t *sizes    # [capacity + 1]; NULL: each counts 1
    Extra *extras      # [capacity + 1]; NULL: nobody has any
    uint32_t *heap     # [capacity + 1] slots by deadline, from 1; with extras
    Cell *cells
    uint32_t mask      # cells less one
    uint32_t capacity
    uint32_t fresh     # slots that were never used begin after this one
    uint32_t free      # used once and free: the first of their chain
    uint32_t timed     # in the heap
    uint32_t count     # entries that can be returned
    uint64_t total     # their sizes


cdef inline uint64_t size_of(Store *store, uint32_t slot) noexcept nogil:
    return 1 if store.sizes is NULL else store.sizes[slot]


cdef inline uint32_t mixed(Py_hash_t hash) noexcept nogil:
    """32 well-mixed bits of a hash: small integers hash to themselves."""
    cdef uint64_t bits = <uint64_t>hash * <uint64_t>0x9E3779B97F4A7C15
    bits ^= bits >> 32
    bits *= <uint64_t>0xD6E8FEB86659FD93
    return <uint32_t>(bits >> 32)


# ---- memory ----

cdef uint64_t bytes_for(uint64_t capacity, bint sizes, bint extras) noexcept nogil:
    """Bytes of a store of so many slots."""
    cdef uint64_t each = sizeof(Entry) + (sizeof(uint64_t) if sizes else 0)
    if extras:
        each += sizeof(Extra) + sizeof(uint32_t)
    return (capacity + 1) * each + cells_for(capacity) * sizeof(Cell) if capacity else 0


cdef uint64_t cells_for(uint64_t capacity) noexcept nogil:
    cdef uint64_t cells = 16
    while 2 * cells < 3 * capacity:
        cells *= 2
    return cells


cdef int store_reserve(Store *store, uint32_t capacity, bint sizes, bint extras) noexcept nogil:
    """Room for so many slots, with these columns, never less than before; -1 where there is no memory, and no harm done.

    What lies beyond the slots in use stays untouched, so that it takes no memory yet.
    """
    cdef size_t slots = <size_t>max(capacity, store.capacity) + 1
    if slots > store.capacity + <size_t>1 or store.entries is NULL:
        if column_reserve(<void **>&store.entries, slots, sizeof(Entry)) < 0:
            return -1
        if cells_reserve(store, cells_for(slots - 1)) < 0:
            return -1
    if sizes and column_reserve(<void **>&store.sizes, slots, sizeof(uint64_t)) < 0:
        return -1
    if extras and extras_reserve(store, slots) < 0:
        return -1
    store.capacity = <uint32_t>(slots - 1)
    return 0


cdef inline int column_reserve(void **column, size_t slots, size_t width) noexcept nogil:
    cdef void *new = realloc(column[0], slots * width)
    if new is NULL:
        return -1
    column[0] = new
    return 0


cdef int extras_reserve(Store *store, size_t slots) noexcept nogil:
    cdef bint first = store.extras is NULL
    cdef uint32_t slot
    if column_reserve(<void **>&store.heap, slots, sizeof(uint32_t)) < 0:
        return -1
    if column_reserve(<void **>&store.extras, slots, sizeof(Extra)) < 0:
        return -1
    if first:
        for slot in range(1, store.fresh + 1):
            extra_begin(&store.extras[slot])
    return 0


cdef inline void extra_begin(Extra *extra) noexcept nogil:
    memset(extra, 0, sizeof(Extra))
    extra.deadline = extra.lifetime = INFINITY


cdef int cells_reserve(Store *store, uint64_t wanted) noexcept nogil:
    cdef Cell *cells
    cdef Cell *old = store.cells
    cdef uint64_t at, former = <uint64_t>store.mask + 1 if old is not NULL else 0
    if wanted <= former:
        return 0
    cells = <Cell *>calloc(wanted, sizeof(Cell))
    if cells is NULL:
        return -1
    store.cells = cells
    store.mask = <uint32_t>(wanted - 1)
    for at in range(former):
        if old[at].slot != NIL:
            index_add(store, old[at].hash, old[at].slot)
    free(old)
    return 0


cdef void store_free(Store *store) noexcept nogil:
    """Give all memory back; what the slots held is no more the store's."""
    free(store.entries)
    free(store.sizes)
    free(store.extras)
    free(store.heap)
    free(store.cells)
    memset(store, 0, sizeof(Store))


# ---- slots ----

cdef inline uint32_t slot_take(Store *store) noexcept nogil:
    """A free slot; there must be one."""
    cdef uint32_t slot = store.free
    if slot != NIL:
        store.free = store.entries[slot].next
        return slot
    store.fresh += 1
    if store.extras is not NULL:
        extra_begin(&store.extras[store.fresh])
    return store.fresh


cdef inline void slot_free(Store *store, uint32_t slot) noexcept nogil:
    cdef Entry *entry = &store.entries[slot]
    entry.key = entry.value = NULL
    entry.next = store.free
    store.free = slot


cdef inline bint is_full(Store *store) noexcept nogil:
    return store.free == NIL and store.fresh == store.capacity


# ---- index ----

cdef inline void index_add(Store *store, uint32_t hash, uint32_t slot) noexcept nogil:
    cdef uint32_t at = hash & store.mask
    while store.cells[at].slot != NIL:
        at = (at + 1) & store.mask
    store.cells[at].hash = hash
    store.cells[at].slot = slot


cdef void index_remove(Store *store, uint32_t slot) noexcept nogil:
    """Take an entry out, and close the gap: what was pushed beyond its place moves back."""
    cdef Cell *cells = store.cells
    cdef uint32_t mask = store.mask
    cdef uint32_t gap = store.entries[slot].hash & mask
    while cells[gap].slot != slot:
        gap = (gap + 1) & mask
    cdef uint32_t at = (gap + 1) & mask
    while cells[at].slot != NIL:
        if ((at - cells[at].hash) & mask) >= ((at - gap) & mask):  # it does not stand before its own place then
            cells[gap] = cells[at]
            gap = at
        at = (at + 1) & mask
    cells[gap].slot = NIL
