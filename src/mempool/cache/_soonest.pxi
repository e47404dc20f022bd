# The one whose time is over first goes: volatile-ttl.
#
#     members   [soonest] [child] [child] ...      a binary heap by deadline; an entry's mark is its place in it
#
# The table's own heap says what is over, whatever its priority. This one has the entries of one priority, as every policy, so that
# a lower one goes first.
#
# Rejected: the table's heap ordered by priority first, which would no more tell what is over.


@cython.final
cdef class Soonest(Policy):
    """Those with a deadline, all of which have one."""

    cdef uint32_t *members   # [capacity + 1], from 1
    cdef uint32_t count, capacity

    def __dealloc__(self):
        free(self.members)

    cdef int ready(self, uint32_t capacity) except -1:
        if self.members is not NULL and capacity <= self.capacity:
            return 0
        cdef void *members = realloc(self.members, (<size_t>capacity + 1) * sizeof(uint32_t))
        if members is NULL:
            raise MemoryError
        self.members = <uint32_t *>members
        self.capacity = capacity
        return 0

    cdef inline double deadline(self, uint32_t place) noexcept nogil:
        return self.store.extras[self.members[place]].deadline

    cdef inline void put(self, uint32_t place, uint32_t slot) noexcept nogil:
        self.members[place] = slot
        self.store.entries[slot].mark = place

    cdef void sift(self, uint32_t place, uint32_t slot) noexcept nogil:
        """Find this one's place, from here up or down."""
        cdef double deadline = self.store.extras[slot].deadline
        cdef uint32_t child
        while place > 1 and self.deadline(place // 2) > deadline:
            self.put(place, self.members[place // 2])
            place //= 2
        while 2 * <uint64_t>place <= self.count:
            child = 2 * place
            if child < self.count and self.deadline(child + 1) < self.deadline(child):
                child += 1
            if self.deadline(child) >= deadline:
                break
            self.put(place, self.members[child])
            place = child
        self.put(place, slot)

    cdef void added(self, uint32_t slot) noexcept nogil:
        self.count += 1
        self.sift(self.count, slot)

    cdef void written(self, uint32_t slot, uint64_t before) noexcept nogil:
        self.sift(self.store.entries[slot].mark, slot)

    cdef void removed(self, uint32_t slot, bint evicted) noexcept nogil:
        cdef uint32_t last = self.members[self.count]
        self.count -= 1
        if last != slot:
            self.sift(self.store.entries[slot].mark, last)

    cdef uint32_t victim(self, uint32_t keep) noexcept nogil:
        if self.count == 0:
            return NIL
        if self.members[1] != keep:
            return self.members[1]
        if self.count == 1:
            return NIL
        return self.members[2 if self.count == 2 or self.deadline(2) <= self.deadline(3) else 3]

    cdef uint32_t after(self, uint32_t slot) noexcept nogil:
        """Those nearest to the soonest first; only roughly by deadline."""
        cdef uint32_t place = self.store.entries[slot].mark + 1
        return self.members[place if place <= self.count else 1]

    cdef void clear(self) noexcept nogil:
        self.count = 0

    cdef void release(self) noexcept nogil:
        free(self.members)
        self.members, self.capacity = NULL, 0
        self.clear()

    cdef uint64_t nbytes(self, uint64_t capacity) noexcept nogil:
        return (max(capacity, self.capacity) + 1) * sizeof(uint32_t)
