# S3-FIFO (Yang and others, SOSP 2023): three queues, none of which a hit moves.
#
#     new -> small (a tenth) --used twice--> main <--used-- back to its head
#                |                             |
#                +--not--> ghosts --again-> main   +--not used--> gone
#
# Most of what comes is never asked for again: it passes through a small queue and leaves a hash behind. What comes back while that
# is remembered, and what was used twice in the small queue, goes to the main one, whose tail gets another round for each use, three
# at most. A hit adds to two bits of the mark, and that is all.
#
# The tenth is one of what this policy holds, by size, when something must go: then that is the bound, whichever bound it is
# (entries, bytes, what pressure or other priorities leave).
#
# Invariant: small and main share no entry and have all entries of this policy; the mark says which one.
# Rejected: a tenth of the limit that was set. Where the number of entries is what binds, a limit of bytes never fills.

cdef enum:
    USES = 3       # bits of the mark: uses since it came or was last spared, at most 3
    IN_MAIN = 4


@cython.final
cdef class S3Fifo(Policy):
    """What is used once passes through; the oldest that was not used goes."""

    cdef Chain small, main
    cdef Ghosts ghosts

    def __dealloc__(self):
        free(self.ghosts.hashes)

    cdef int ready(self, uint32_t capacity) except -1:
        if ghosts_reserve(&self.ghosts, capacity) < 0:
            raise MemoryError
        return 0

    cdef inline Chain *chain_of(self, uint32_t slot) noexcept nogil:
        return &self.main if self.store.entries[slot].mark & IN_MAIN else &self.small

    cdef void added(self, uint32_t slot) noexcept nogil:
        cdef Entry *entry = &self.store.entries[slot]
        if ghosts_take(&self.ghosts, entry.hash, self.small.count + self.main.count):
            entry.mark = IN_MAIN
            chain_push(self.store, &self.main, slot)
        else:
            chain_push(self.store, &self.small, slot)

    cdef void hit(self, uint32_t slot) noexcept nogil:
        cdef Entry *entry = &self.store.entries[slot]
        if entry.mark & USES != USES:
            entry.mark += 1

    cdef void written(self, uint32_t slot, uint64_t before) noexcept nogil:
        self.chain_of(slot).size += size_of(self.store, slot) - before
        self.hit(slot)

    cdef void removed(self, uint32_t slot, bint evicted) noexcept nogil:
        cdef Entry *entry = &self.store.entries[slot]
        if evicted and not entry.mark & IN_MAIN:
            ghosts_put(&self.ghosts, entry.hash)
        chain_unlink(self.store, self.chain_of(slot), slot)

    cdef uint32_t victim(self, uint32_t keep) noexcept nogil:
        cdef uint32_t young, old, slot
        while True:
            young = chain_last(self.store, &self.small, keep)
            old = chain_last(self.store, &self.main, keep)
            if young == NIL and old == NIL:
                return NIL
            if old == NIL or (young != NIL and self.small.size > (self.small.size + self.main.size) // 10):
                if self.store.entries[young].mark & USES < 2:
                    return young
                self.promote(young)
            elif self.spared(old) == 0:
                return old

    cdef uint32_t after(self, uint32_t slot) noexcept nogil:
        """Round: from the tail of either queue to its head, then the other one."""
        cdef Chain *other = &self.small if self.store.entries[slot].mark & IN_MAIN else &self.main
        cdef uint32_t next = self.store.entries[slot].prev
        if next == NIL:
            next = other.tail if other.tail != NIL else self.chain_of(slot).tail
        return next

    cdef inline void promote(self, uint32_t slot) noexcept nogil:
        """From the small queue to the main one, its uses forgotten."""
        chain_unlink(self.store, &self.small, slot)
        self.store.entries[slot].mark = IN_MAIN
        chain_push(self.store, &self.main, slot)

    cdef inline bint spared(self, uint32_t slot) noexcept nogil:
        """Whether it gets another round, for one of its uses."""
        if self.store.entries[slot].mark & USES == 0:
            return False
        self.store.entries[slot].mark -= 1
        chain_to_head(self.store, &self.main, slot)
        return True

    cdef void clear(self) noexcept nogil:
        memset(&self.small, 0, sizeof(Chain))
        memset(&self.main, 0, sizeof(Chain))
        ghosts_clear(&self.ghosts)

    cdef void release(self) noexcept nogil:
        free(self.ghosts.hashes)
        memset(&self.ghosts, 0, sizeof(Ghosts))
        self.clear()

    cdef uint64_t nbytes(self, uint64_t capacity) noexcept nogil:
        return max(ghosts_for(capacity), self.ghosts.buckets) * WAYS * sizeof(uint32_t)
