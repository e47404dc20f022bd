# A cache in small that holds no values: what the hit ratio would be with another window.
#
#     index    [slot] [ ] [slot] ...     a power of two of cells, at most 3/4 in use; linear probing; by hash alone
#     store    entries and sizes         with neither keys nor values
#     segments                           as the real ones, and with their sketch
#
# It sees one access in 2^n, chosen by hash, and holds as much less: the same keys always, so that it has their whole history.
#
# Invariant: the index has each entry of the segments, and nobody else; unused slots have mark 0 and are linked from `store.free`.


cdef struct Shadow:
    Store store
    Segments segments
    uint32_t *index
    uint32_t mask
    double score           # hits of late


cdef inline uint32_t shadow_slots(uint64_t held) noexcept nogil:
    """Slots of a shadow that is to hold so many: some more, as samples of sizes differ."""
    return <uint32_t>(held + held // 4 + 4)


cdef inline uint32_t shadow_cells(uint64_t slots) noexcept nogil:
    cdef uint32_t cells = 8
    while 3 * cells < 4 * slots:
        cells *= 2
    return cells


cdef uint64_t shadow_bytes(uint64_t slots) noexcept nogil:
    return (slots + 1) * (sizeof(Entry) + sizeof(uint64_t)) + shadow_cells(slots) * sizeof(uint32_t)


cdef int shadow_reserve(Shadow *shadow, uint32_t slots) noexcept nogil:
    """Room for so many, never less than before; -1 where there is no memory, and no harm done."""
    cdef Store *store = &shadow.store
    cdef uint32_t *index
    cdef uint32_t slot, cells = shadow_cells(slots)
    if slots <= store.capacity:
        return 0
    if column_reserve(<void **>&store.entries, slots + <size_t>1, sizeof(Entry)) < 0:
        return -1
    if column_reserve(<void **>&store.sizes, slots + <size_t>1, sizeof(uint64_t)) < 0:
        return -1
    index = <uint32_t *>calloc(cells, sizeof(uint32_t))
    if index is NULL:
        return -1
    free(shadow.index)
    shadow.index, shadow.mask = index, cells - 1
    for slot in range(1, store.capacity + 1):
        if store.entries[slot].mark:
            index[shadow_cell(shadow, store.entries[slot].hash)] = slot
    shadow_chain_free(store, store.capacity + 1, slots)
    store.capacity = slots
    return 0


cdef void shadow_chain_free(Store *store, uint32_t first, uint32_t last) noexcept nogil:
    cdef uint32_t slot
    for slot in range(first, last + 1):
        store.entries[slot].mark = 0
        store.entries[slot].next = store.free
        store.free = slot


cdef inline uint32_t shadow_place(Shadow *shadow, uint32_t hash) noexcept nogil:
    return (hash ^ hash >> 15) * <uint32_t>0x85EBCA6B >> 7 & shadow.mask


cdef inline uint32_t shadow_cell(Shadow *shadow, uint32_t hash) noexcept nogil:
    """The cell of a hash, or the empty one where it would be."""
    cdef uint32_t cell = shadow_place(shadow, hash)
    while shadow.index[cell] != NIL and shadow.store.entries[shadow.index[cell]].hash != hash:
        cell = (cell + 1) & shadow.mask
    return cell


cdef void shadow_unindex(Shadow *shadow, uint32_t slot) noexcept nogil:
    """Out of the index, and close the gap."""
    cdef uint32_t mask = shadow.mask
    cdef uint32_t gap = shadow_cell(shadow, shadow.store.entries[slot].hash)
    cdef uint32_t cell = (gap + 1) & mask
    cdef uint32_t other
    while shadow.index[cell] != NIL:
        other = shadow.index[cell]
        if ((cell - shadow_place(shadow, shadow.store.entries[other].hash)) & mask) >= ((cell - gap) & mask):
            shadow.index[gap] = other
            gap = cell
        cell = (cell + 1) & mask
    shadow.index[gap] = NIL


cdef void shadow_drop(Shadow *shadow, uint32_t slot) noexcept nogil:
    cdef Store *store = &shadow.store
    shadow_unindex(shadow, slot)
    segments_removed(&shadow.segments, slot)
    store.total -= store.sizes[slot]
    store.count -= 1
    store.entries[slot].mark = 0
    store.entries[slot].next = store.free
    store.free = slot


cdef void shadow_forget(Shadow *shadow, uint32_t hash) noexcept nogil:
    """It left by another's will."""
    cdef uint32_t slot = shadow.index[shadow_cell(shadow, hash)]
    if slot != NIL:
        shadow_drop(shadow, slot)


cdef void shadow_fit(Shadow *shadow, uint32_t keep) noexcept nogil:
    """Down to the limit."""
    cdef uint32_t slot
    while shadow.store.total > shadow.segments.limit:
        slot = segments_victim(&shadow.segments, keep)
        if slot == NIL:
            return
        shadow_drop(shadow, slot)


cdef bint shadow_access(Shadow *shadow, uint32_t hash, uint64_t size) noexcept nogil:
    """A get-or-put: whether it was a hit."""
    cdef Store *store = &shadow.store
    cdef uint32_t cell = shadow_cell(shadow, hash)
    cdef uint32_t slot = shadow.index[cell]
    if slot != NIL:
        segments_hit(&shadow.segments, slot)
        return True
    if size > shadow.segments.limit:
        return False
    if store.free == NIL:
        shadow_drop(shadow, segments_victim(&shadow.segments, NIL))
        cell = shadow_cell(shadow, hash)
    slot = store.free
    store.free = store.entries[slot].next
    store.entries[slot].hash, store.sizes[slot] = hash, size
    shadow.index[cell] = slot
    store.total += size
    store.count += 1
    segments_added(&shadow.segments, slot)
    shadow_fit(shadow, slot)
    return False


cdef void shadow_clear(Shadow *shadow) noexcept nogil:
    cdef Store *store = &shadow.store
    if shadow.index is not NULL:
        memset(shadow.index, 0, (<size_t>shadow.mask + 1) * sizeof(uint32_t))
    memset(&shadow.segments.window, 0, sizeof(Chain))
    memset(&shadow.segments.probation, 0, sizeof(Chain))
    memset(&shadow.segments.protected, 0, sizeof(Chain))
    store.free = NIL
    store.total = store.count = 0
    shadow.score = 0
    shadow_chain_free(store, 1, store.capacity)


cdef void shadow_free(Shadow *shadow) noexcept nogil:
    free(shadow.store.entries)
    free(shadow.store.sizes)
    free(shadow.index)
    memset(&shadow.store, 0, sizeof(Store))
    shadow.index, shadow.mask = NULL, 0
