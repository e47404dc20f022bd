# Deadlines: a binary heap of slots, the soonest first. An entry knows its place, so that any can leave.


cdef inline void heap_put(Store *store, uint32_t place, uint32_t slot) noexcept nogil:
    store.heap[place] = slot
    store.extras[slot].place = place


cdef void heap_settle(Store *store, uint32_t place, uint32_t slot) noexcept nogil:
    """Find this slot's place, from here up or down."""
    cdef uint32_t *heap = store.heap
    cdef Extra *extras = store.extras
    cdef double deadline = extras[slot].deadline
    cdef uint32_t child
    while place > 1 and extras[heap[place // 2]].deadline > deadline:
        heap_put(store, place, heap[place // 2])
        place //= 2
    while 2 * <uint64_t>place <= store.timed:
        child = 2 * place
        if child < store.timed and extras[heap[child + 1]].deadline < extras[heap[child]].deadline:
            child += 1
        if extras[heap[child]].deadline >= deadline:
            break
        heap_put(store, place, heap[child])
        place = child
    heap_put(store, place, slot)


cdef void heap_remove(Store *store, uint32_t slot) noexcept nogil:
    """Out of the heap, if it is in it."""
    cdef uint32_t place = store.extras[slot].place
    if place == 0:
        return
    store.extras[slot].place = 0
    cdef uint32_t last = store.heap[store.timed]
    store.timed -= 1
    if last != slot:
        heap_settle(store, place, last)


cdef void heap_set(Store *store, uint32_t slot, double deadline) noexcept nogil:
    """Give an entry a deadline; INFINITY takes it out."""
    store.extras[slot].deadline = deadline
    if deadline == INFINITY:
        heap_remove(store, slot)
        return
    if store.extras[slot].place == 0:
        store.timed += 1
        store.extras[slot].place = store.timed
    heap_settle(store, store.extras[slot].place, slot)


cdef inline uint32_t heap_due(Store *store, double now) noexcept nogil:
    """An entry whose time is over, or NIL."""
    if store.timed == 0 or store.extras[store.heap[1]].deadline > now:
        return NIL
    return store.heap[1]


cdef uint32_t heap_soonest(Store *store, uint32_t keep) noexcept nogil:
    """The entry with the next deadline but this one, or NIL."""
    if store.timed == 0:
        return NIL
    if store.heap[1] != keep:
        return store.heap[1]
    if store.timed == 1:
        return NIL
    if store.timed == 2 or store.extras[store.heap[2]].deadline <= store.extras[store.heap[3]].deadline:
        return store.heap[2]
    return store.heap[3]
