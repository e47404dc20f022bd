# SIEVE (Zhang and others, NSDI 2024): first in, first out, but who was used since the hand last came by stays where it is.
#
#     head -> newest  ...  used  not used  used  ...  oldest <- tail
#                           ^ next    ^ hand: this one goes
#
# A hit sets a bit and moves nothing. The hand goes from the tail to the head, clears bits, takes the first without one, and stays
# there: newcomers are judged early, and old ones that are used stay.
#
# Invariant: the hand stands on an entry of the chain or nowhere (then it begins at the tail); who leaves under it moves it on. What
# was just written was not there when the hand chose, so the hand does not stop at it: it would be the next to go, unused so far.
# Rejected: CLOCK, which puts those it spares among the newest, where one-time visitors stay as long as they.

cdef enum:
    VISITED = 1


@cython.final
cdef class Sieve(Policy):
    """The oldest goes that was not used since the hand last passed it."""

    cdef Chain chain
    cdef uint32_t hand
    cdef uint32_t spared  # what was to be kept when it last chose

    cdef void added(self, uint32_t slot) noexcept nogil:
        chain_push(self.store, &self.chain, slot)

    cdef void hit(self, uint32_t slot) noexcept nogil:
        self.store.entries[slot].mark = VISITED

    cdef void written(self, uint32_t slot, uint64_t before) noexcept nogil:
        self.chain.size += size_of(self.store, slot) - before
        self.store.entries[slot].mark = VISITED

    cdef void removed(self, uint32_t slot, bint evicted) noexcept nogil:
        cdef Entry *entries = self.store.entries
        if self.hand == slot:
            self.hand = entries[slot].prev
            if evicted and self.hand == self.spared and self.hand != NIL:
                self.hand = entries[self.hand].prev
        chain_unlink(self.store, &self.chain, slot)

    cdef uint32_t victim(self, uint32_t keep) noexcept nogil:
        cdef Entry *entries = self.store.entries
        cdef uint32_t slot = self.hand
        if self.chain.count == 0 or (self.chain.count == 1 and self.chain.head == keep):
            return NIL
        while True:
            if slot == NIL:
                slot = self.chain.tail
            if slot != keep:
                if entries[slot].mark == 0:
                    break
                entries[slot].mark = 0
            slot = entries[slot].prev
        self.hand, self.spared = slot, keep
        return slot

    cdef uint32_t after(self, uint32_t slot) noexcept nogil:
        cdef uint32_t next = self.store.entries[slot].prev
        return next if next != NIL else self.chain.tail

    cdef void clear(self) noexcept nogil:
        memset(&self.chain, 0, sizeof(Chain))
        self.hand = NIL
