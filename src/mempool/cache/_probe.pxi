# What tests look at and nobody else: the inside of TinyLfu.


cdef class SketchProbe:
    """A sketch by itself, by 32-bit hashes."""

    cdef Sketch sketch

    def __cinit__(self, slots):
        self.grow(slots)

    def __dealloc__(self):
        free(self.sketch.memory)

    def grow(self, slots):
        """Counters for so many slots."""
        if sketch_reserve(&self.sketch, slots) < 0:
            raise MemoryError

    def add(self, uint32_t hash):
        """It was seen once more."""
        sketch_add(&self.sketch, hash)

    def estimate(self, uint32_t hash):
        """How often it was seen."""
        return sketch_estimate(&self.sketch, hash)

    @property
    def sample(self):
        """Hits between two ageings."""
        return self.sketch.sample

    @property
    def counted(self):
        """Of these so far."""
        return self.sketch.counted


def probe_tinylfu(Table table):
    """Segments as (keys from the newest on, count, size), the order in which they go, the window's share, and each shadow's
    (count, size, limit, soundness)."""
    cdef TinyLfu policy = <TinyLfu?>table.order.plain
    cdef int at
    shadows = []
    for at in range(SHADOWS):
        shadow = &policy.shadows[at]
        shadows.append((shadow.store.count, shadow.store.total, shadow.segments.limit, shadow_is_sound(shadow)))
    segments = &policy.segments
    return {
        "window": probe_chain(table, &segments.window, WINDOW),
        "probation": probe_chain(table, &segments.probation, PROBATION),
        "protected": probe_chain(table, &segments.protected, PROTECTED),
        "order": probe_order(table, policy, segments.probation.tail or segments.protected.tail or segments.window.tail),
        "share": segments.share,
        "shadows": shadows,
    }


cdef object probe_chain(Table table, Chain *chain, uint32_t mark):
    cdef uint32_t slot = chain.head, last = NIL
    keys = []
    while slot != NIL:
        if table.store.entries[slot].mark != mark or table.store.entries[slot].prev != last:
            raise AssertionError(f"slot {slot} of segment {mark} is marked or linked wrongly")
        keys.append(<object>table.store.entries[slot].key)
        last, slot = slot, table.store.entries[slot].next
    if chain.tail != last:
        raise AssertionError(f"segment {mark} does not end at its tail")
    return keys, chain.count, chain.size


cdef object probe_order(Table table, TinyLfu policy, uint32_t first):
    """Keys from the first on that goes, until it comes round."""
    cdef uint32_t slot = first
    keys = []
    while slot != NIL and (slot != first or not keys):
        keys.append(<object>table.store.entries[slot].key)
        slot = policy.after(slot)
    return keys


cdef bint shadow_is_sound(Shadow *shadow):
    """Whether index and segments have the same entries, with the sums that are noted."""
    cdef Store *store = &shadow.store
    cdef uint32_t slot, used = 0, cells = 0, unused = 0
    cdef uint64_t at, total = 0
    for slot in range(1, store.capacity + 1):
        if store.entries[slot].mark:
            used += 1
            total += store.sizes[slot]
            if shadow.index[shadow_cell(shadow, store.entries[slot].hash)] != slot:
                return False
    for at in range(<uint64_t>shadow.mask + 1 if shadow.index is not NULL else 0):
        cells += shadow.index[at] != NIL
    slot = store.free
    while slot != NIL:
        unused += 1
        slot = store.entries[slot].next
    cdef Segments *segments = &shadow.segments
    return (
        used == store.count == cells
        and used + unused == store.capacity
        and used == segments.window.count + segments.probation.count + segments.protected.count
        and total == store.total == segments_size(segments)
    )
