# The simple ones: least recently used, first in first out, random.


@cython.final
cdef class Lru(Policy):
    """The least recently used goes: one chain, to whose head each hit moves."""

    cdef Chain chain

    cdef void added(self, uint32_t slot) noexcept nogil:
        chain_push(self.store, &self.chain, slot)

    cdef void hit(self, uint32_t slot) noexcept nogil:
        chain_to_head(self.store, &self.chain, slot)

    cdef void written(self, uint32_t slot, uint64_t before) noexcept nogil:
        self.chain.size += size_of(self.store, slot) - before
        chain_to_head(self.store, &self.chain, slot)

    cdef void removed(self, uint32_t slot, bint evicted) noexcept nogil:
        chain_unlink(self.store, &self.chain, slot)

    cdef uint32_t victim(self, uint32_t keep) noexcept nogil:
        return chain_last(self.store, &self.chain, keep)

    cdef uint32_t after(self, uint32_t slot) noexcept nogil:
        return self.store.entries[slot].prev

    cdef void clear(self) noexcept nogil:
        memset(&self.chain, 0, sizeof(Chain))


@cython.final
cdef class Fifo(Policy):
    """The oldest goes, however often it was used. A new value does not make a key younger."""

    cdef Chain chain

    cdef void added(self, uint32_t slot) noexcept nogil:
        chain_push(self.store, &self.chain, slot)

    cdef void written(self, uint32_t slot, uint64_t before) noexcept nogil:
        self.chain.size += size_of(self.store, slot) - before

    cdef void removed(self, uint32_t slot, bint evicted) noexcept nogil:
        chain_unlink(self.store, &self.chain, slot)

    cdef uint32_t victim(self, uint32_t keep) noexcept nogil:
        return chain_last(self.store, &self.chain, keep)

    cdef uint32_t after(self, uint32_t slot) noexcept nogil:
        return self.store.entries[slot].prev

    cdef void clear(self) noexcept nogil:
        memset(&self.chain, 0, sizeof(Chain))


@cython.final
cdef class Random(Policy):
    """Anybody goes. Members lie densely in an array, so that one draw finds one; an entry's mark is where it lies."""

    cdef uint32_t *members
    cdef uint32_t count, capacity
    cdef uint64_t state

    def __cinit__(self):
        self.state = int.from_bytes(urandom(8), "little") | 1

    def __dealloc__(self):
        free(self.members)

    cdef int ready(self, uint32_t capacity) except -1:
        if capacity <= self.capacity:
            return 0
        cdef void *members = realloc(self.members, (<size_t>capacity) * sizeof(uint32_t))
        if members is NULL:
            raise MemoryError
        self.members = <uint32_t *>members
        self.capacity = capacity
        return 0

    cdef inline bint has(self, uint32_t slot) noexcept nogil:
        cdef uint32_t place = self.store.entries[slot].mark
        return slot != NIL and place < self.count and self.members[place] == slot

    cdef void added(self, uint32_t slot) noexcept nogil:
        self.members[self.count] = slot
        self.store.entries[slot].mark = self.count
        self.count += 1

    cdef void removed(self, uint32_t slot, bint evicted) noexcept nogil:
        cdef uint32_t place = self.store.entries[slot].mark
        self.count -= 1
        cdef uint32_t last = self.members[self.count]
        self.members[place] = last
        self.store.entries[last].mark = place

    cdef uint32_t victim(self, uint32_t keep) noexcept nogil:
        if self.count == 0 or (self.count == 1 and self.members[0] == keep):
            return NIL
        self.state ^= self.state << 13
        self.state ^= self.state >> 7
        self.state ^= self.state << 17
        cdef uint32_t place = <uint32_t>((self.state >> 32) * (self.count - self.has(keep)) >> 32)
        if self.members[place] == keep:
            place = self.count - 1  # where it is among them, the last is not drawn
        return self.members[place]

    cdef uint32_t after(self, uint32_t slot) noexcept nogil:
        cdef uint32_t place = self.store.entries[slot].mark + 1
        return self.members[place if place < self.count else 0]

    cdef void clear(self) noexcept nogil:
        self.count = 0

    cdef void release(self) noexcept nogil:
        free(self.members)
        self.members, self.capacity = NULL, 0
        self.clear()

    cdef uint64_t nbytes(self, uint64_t capacity) noexcept nogil:
        return max(capacity, self.capacity) * sizeof(uint32_t)
