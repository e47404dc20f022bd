# The least frequently used goes; of several, the one that was used longest ago. Frequencies are exact: nothing ages.
#
#     chain   head -> f e d | c b | a <- tail        one chain: by frequency, within one by recency
#     ranks           7       2     1                each frequency in use has a rank: its number, and its newest entry
#                     f       c     a
#
# An entry's mark is its rank. So a use is a step of one entry to just before the newest of its rank, or of the next rank if that is
# for the next number: O(1), and 8 bytes a rank. There are never more ranks than entries.
#
# Invariant: numbers fall from head to tail; `newest` is the entry of its rank next to the head; no rank is without an entry.
#
# Rejected: a chain for each frequency, with links between them: 28 bytes more a frequency, and a million entries may have as many;
# a heap: logarithmic, and a tie is nobody's turn.

cdef enum:
    MOST_USES = 0xFFFFFFFF

cdef struct Rank:
    uint32_t number   # uses, the insertion one of them, up to MOST_USES
    uint32_t newest   # of a free one: the next free one


@cython.final
cdef class Lfu(Policy):
    """The least frequently used goes, of several the least recently used."""

    cdef Chain chain
    cdef Rank *ranks          # [capacity + 1], from 1
    cdef uint32_t capacity
    cdef uint32_t fresh       # ranks that were never used begin after this one
    cdef uint32_t free

    def __dealloc__(self):
        free(self.ranks)

    cdef int ready(self, uint32_t capacity) except -1:
        if capacity <= self.capacity:
            return 0
        cdef void *ranks = realloc(self.ranks, (<size_t>capacity + 1) * sizeof(Rank))
        if ranks is NULL:
            raise MemoryError
        self.ranks = <Rank *>ranks
        self.capacity = capacity
        return 0

    cdef inline uint32_t rank_of(self, uint32_t slot) noexcept nogil:
        return self.store.entries[slot].mark

    cdef uint32_t rank_begin(self, uint32_t number, uint32_t slot) noexcept nogil:
        """A rank for this number, of this entry alone."""
        cdef uint32_t rank = self.free
        if rank != NIL:
            self.free = self.ranks[rank].newest
        else:
            self.fresh += 1
            rank = self.fresh
        self.ranks[rank].number = number
        self.ranks[rank].newest = slot
        self.store.entries[slot].mark = rank
        return rank

    cdef void rank_leave(self, uint32_t slot) noexcept nogil:
        """Its rank has it no more, and ends if it was the last."""
        cdef uint32_t rank = self.rank_of(slot), next = self.store.entries[slot].next
        if self.ranks[rank].newest != slot:
            return
        if next != NIL and self.rank_of(next) == rank:
            self.ranks[rank].newest = next
            return
        self.ranks[rank].newest = self.free
        self.free = rank

    cdef inline void join(self, uint32_t slot, uint32_t rank) noexcept nogil:
        """A linked entry becomes the newest of a rank."""
        self.rank_leave(slot)
        chain_move(self.store, &self.chain, slot, self.ranks[rank].newest)
        self.ranks[rank].newest = slot
        self.store.entries[slot].mark = rank

    cdef void added(self, uint32_t slot) noexcept nogil:
        cdef uint32_t last = self.chain.tail
        chain_append(self.store, &self.chain, slot)
        if last == NIL or self.ranks[self.rank_of(last)].number != 1:
            self.rank_begin(1, slot)
            return
        cdef uint32_t rank = self.rank_of(last)
        chain_move(self.store, &self.chain, slot, self.ranks[rank].newest)
        self.ranks[rank].newest = slot
        self.store.entries[slot].mark = rank

    cdef void hit(self, uint32_t slot) noexcept nogil:
        cdef uint32_t rank = self.rank_of(slot)
        cdef uint32_t newest = self.ranks[rank].newest, number = self.ranks[rank].number
        cdef uint32_t above = self.store.entries[newest].prev
        cdef uint32_t next = self.store.entries[slot].next
        if number == MOST_USES:
            if slot != newest:
                self.join(slot, rank)
        elif above != NIL and self.ranks[self.rank_of(above)].number == number + 1:
            self.join(slot, self.rank_of(above))
        elif slot == newest and (next == NIL or self.rank_of(next) != rank):
            self.ranks[rank].number = number + 1
        else:
            self.rank_leave(slot)
            if slot != newest:
                chain_move(self.store, &self.chain, slot, newest)
            self.rank_begin(number + 1, slot)

    cdef void written(self, uint32_t slot, uint64_t before) noexcept nogil:
        self.chain.size += size_of(self.store, slot) - before
        self.hit(slot)

    cdef void removed(self, uint32_t slot, bint evicted) noexcept nogil:
        self.rank_leave(slot)
        chain_unlink(self.store, &self.chain, slot)

    cdef uint32_t victim(self, uint32_t keep) noexcept nogil:
        return chain_last(self.store, &self.chain, keep)

    cdef uint32_t after(self, uint32_t slot) noexcept nogil:
        return self.store.entries[slot].prev

    cdef void clear(self) noexcept nogil:
        memset(&self.chain, 0, sizeof(Chain))
        self.fresh = self.free = 0

    cdef void release(self) noexcept nogil:
        free(self.ranks)
        self.ranks, self.capacity = NULL, 0
        self.clear()

    cdef uint64_t nbytes(self, uint64_t capacity) noexcept nogil:
        return (max(capacity, self.capacity) + 1) * sizeof(Rank)
