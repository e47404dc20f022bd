# The default: W-TinyLFU, size-aware, with a window that four small caches choose.
#
#     hit, added -> sketch (how often was it seen) ------------------.
#               `-> segments (window | probation | protected) <- who is admitted, who goes
#               `-> one access in 2^n -> four shadows: windows of 1, .4, .12, .01 -> whose hits are most: that is the window
#
# Some loads want recency, others frequency, and many change. The four shadows see the same accesses, so the noise of the load
# does not come between them: the real window takes the share of the shadow that had the most hits of late. The first of them is
# exact LRU, it is there at the start and wins ties, and who is followed next must lead by half a percent and two hits: so this
# stays near LRU where nothing beats it.
#
# Invariant: shadows hold sampled hashes only, and never more than their part of what the cache holds when it is full.
#
# Hit ratio over 16 traces (seven real: arc-oltp, four of the LIRS paper, web12, adapt-size; nine made: Zipf, Zipf with scans,
# loops, Zipf with a loop, popularity that drifts or jumps), each in caches for 1, 2, 5, 10 and 20 % of its keys:
#
#                     mean of 80    the most below exact LRU at any of them, points
#     this            .491          0.5
#     exact LRU       .425
#     theine 2.0      .468          29.7
#     the best fixed window of each single one, known beforehand    .491
#
# Rejected, simulated over most or all of these, in points of the mean, and the most below exact LRU: a fixed window of 1 % -2.5,
# 27; of 20 % -1.4, 8.7; of half -2.6, 4.5 | the smallest window wins ties +0.0, 0.9 | three shadows -0.0, 0.8 | five -0.0, 1.1 |
# shadows of 512 entries +0.0, 0.5, at a third more time | hits remembered for half as long -0.1, 1.3 | hits added up from change to
# change and compared with a bar (CUSUM) -0.2, 0.5 | climbing by the hit ratio itself, as theine does, takes changes of the load for
# its own doing.
#
# Memory: for each slot 8 bytes of the sketch, 1 KiB for it at least, and 40 to 56 for each entry of a shadow: 8.3 bytes a slot
# for a million, 12 for ten thousand, 2.3 KiB for a cache of one.


cdef enum:
    SHADOWS = 4
    SHADOW_LEAST = 64      # entries that a shadow holds at least, if the cache does
    SHADOW_SHIFT = 6       # it sees one access in 64 at least ...
    SHADOW_MOST = 1024     # ... unless it would hold more than these

cdef double SHARES[SHADOWS]
SHARES[0], SHARES[1], SHARES[2], SHARES[3] = 1, .4, .12, .01


cdef inline uint32_t shadow_shift(uint64_t capacity) noexcept nogil:
    """Binary logarithm of how much smaller shadows are than a cache of so many slots."""
    cdef uint32_t shift = 0
    while capacity >> shift > <uint64_t>(SHADOW_LEAST if shift < SHADOW_SHIFT else SHADOW_MOST):
        shift += 1
    return shift


cdef inline bint is_sampled(uint32_t hash, uint32_t shift) noexcept nogil:
    return hash * <uint32_t>0x2545F491 <= <uint32_t>0xFFFFFFFF >> shift


@cython.final
cdef class TinyLfu(Policy):
    """Who was seen least goes, within what is old enough: see the head of `_tinylfu.pxi`."""

    cdef Sketch sketch
    cdef Segments segments
    cdef Shadow shadows[SHADOWS]
    cdef uint32_t capacity     # what it is ready for
    cdef uint32_t shift
    cdef uint32_t chosen       # the shadow whose share the window has
    cdef uint32_t watched      # accesses that the shadows saw since they were last compared

    def __cinit__(self):
        cdef int at
        segments_begin(&self.segments, NULL, &self.sketch, SHARES[0])
        for at in range(SHADOWS):
            segments_begin(&self.shadows[at].segments, &self.shadows[at].store, &self.sketch, SHARES[at])

    def __dealloc__(self):
        cdef int at
        free(self.sketch.memory)
        for at in range(SHADOWS):
            shadow_free(&self.shadows[at])

    cdef int ready(self, uint32_t capacity) except -1:
        cdef uint32_t slots = shadow_slots(capacity >> shadow_shift(capacity))
        cdef int at, failed = 0
        self.segments.store = self.store
        if capacity <= self.capacity:
            return 0
        for at in range(SHADOWS):
            failed |= shadow_reserve(&self.shadows[at], slots)
        if failed or sketch_reserve(&self.sketch, capacity) < 0:
            raise MemoryError
        self.capacity = capacity
        self.sample()
        return 0

    cdef void sample(self) noexcept nogil:
        """Shadows of the size that goes with the capacity, and only of the keys that they are to see."""
        cdef uint32_t slot
        cdef Shadow *shadow
        cdef int at
        self.shift = shadow_shift(self.capacity)
        for at in range(SHADOWS):
            shadow = &self.shadows[at]
            for slot in range(1, shadow.store.capacity + 1):
                if shadow.store.entries[slot].mark and not is_sampled(shadow.store.entries[slot].hash, self.shift):
                    shadow_drop(shadow, slot)
        self.scale()

    cdef void scale(self) noexcept nogil:
        """Have the shadows hold their part of what the cache holds when it is full."""
        cdef int at
        for at in range(SHADOWS):
            self.shadows[at].segments.limit = max(self.segments.full >> self.shift, <uint64_t>1)
            shadow_fit(&self.shadows[at], NIL)

    cdef void limit(self, uint64_t total) noexcept nogil:
        self.segments.limit = self.segments.full = total
        self.scale()

    # ---- accesses ----

    cdef inline void seen(self, uint32_t slot) noexcept nogil:
        """It was added, found or written."""
        cdef uint32_t hash = self.store.entries[slot].hash
        sketch_add(&self.sketch, hash)
        if is_sampled(hash, self.shift):
            self.watch(hash, size_of(self.store, slot))

    cdef void watch(self, uint32_t hash, uint64_t size) noexcept nogil:
        """Let the shadows see it; from time to time the best of them is followed."""
        cdef int at
        for at in range(SHADOWS):
            self.shadows[at].score += shadow_access(&self.shadows[at], hash, size)
        self.watched += 1
        if self.watched >= max(self.capacity >> self.shift, <uint32_t>8):
            self.choose()

    cdef void choose(self) noexcept nogil:
        cdef int at, best = 0
        self.watched = 0
        for at in range(1, SHADOWS):
            if self.shadows[at].score > self.shadows[best].score:
                best = at
        if self.shadows[best].score > self.shadows[self.chosen].score * 1.005 + 2:
            self.chosen = best
            segments_follow(&self.segments, SHARES[best])
        for at in range(SHADOWS):
            self.shadows[at].score *= 11. / 12
        self.scale()

    cdef void added(self, uint32_t slot) noexcept nogil:
        segments_added(&self.segments, slot)
        self.seen(slot)

    cdef void hit(self, uint32_t slot) noexcept nogil:
        segments_hit(&self.segments, slot)
        self.seen(slot)

    cdef void written(self, uint32_t slot, uint64_t before) noexcept nogil:
        segment_of(&self.segments, slot).size += size_of(self.store, slot) - before
        self.hit(slot)

    # ---- leaving ----

    cdef void removed(self, uint32_t slot, bint evicted) noexcept nogil:
        cdef uint32_t hash = self.store.entries[slot].hash
        cdef int at
        segments_removed(&self.segments, slot)
        if not evicted and is_sampled(hash, self.shift):
            for at in range(SHADOWS):
                shadow_forget(&self.shadows[at], hash)

    cdef uint32_t victim(self, uint32_t keep) noexcept nogil:
        return segments_victim(&self.segments, keep)

    cdef uint32_t after(self, uint32_t slot) noexcept nogil:
        return segments_after(&self.segments, slot)

    cdef void clear(self) noexcept nogil:
        cdef int at
        memset(&self.segments.window, 0, sizeof(Chain))
        memset(&self.segments.probation, 0, sizeof(Chain))
        memset(&self.segments.protected, 0, sizeof(Chain))
        self.segments.full = self.segments.limit
        sketch_clear(&self.sketch)
        for at in range(SHADOWS):
            shadow_clear(&self.shadows[at])
        self.scale()

    cdef void release(self) noexcept nogil:
        cdef int at
        free(self.sketch.memory)
        memset(&self.sketch, 0, sizeof(Sketch))
        for at in range(SHADOWS):
            shadow_free(&self.shadows[at])
        self.capacity = 0
        self.clear()

    cdef uint64_t nbytes(self, uint64_t capacity) noexcept nogil:
        capacity = max(capacity, <uint64_t>self.capacity)
        cdef uint32_t slots = max(shadow_slots(capacity >> shadow_shift(capacity)), self.shadows[0].store.capacity)
        return 64 * (sketch_blocks(capacity) + <uint64_t>1) + SHADOWS * shadow_bytes(slots)
