# What a policy is: who goes next.
#
# The table owns the slots, a policy orders them. The table inserts first and evicts afterwards, under one lock: `added(slot)`,
# then, while it is over its bound, `victim(keep=slot)` and `removed(victim, evicted=True)`. A policy allocates in `ready` only, and
# knows nothing of keys: hashes are enough to remember who was here.
#
#     head -> newest <-> ... <-> oldest <- tail            a Chain: linked through the entries, one chain an entry


cdef struct Chain:
    uint32_t head, tail
    uint32_t count
    uint64_t size


cdef inline void chain_push(Store *store, Chain *chain, uint32_t slot) noexcept nogil:
    """Make it the head."""
    cdef Entry *entry = &store.entries[slot]
    entry.prev = NIL
    entry.next = chain.head
    if chain.head != NIL:
        store.entries[chain.head].prev = slot
    else:
        chain.tail = slot
    chain.head = slot
    chain.count += 1
    chain.size += size_of(store, slot)


cdef inline void chain_unlink(Store *store, Chain *chain, uint32_t slot) noexcept nogil:
    cdef Entry *entry = &store.entries[slot]
    if entry.prev != NIL:
        store.entries[entry.prev].next = entry.next
    else:
        chain.head = entry.next
    if entry.next != NIL:
        store.entries[entry.next].prev = entry.prev
    else:
        chain.tail = entry.prev
    chain.count -= 1
    chain.size -= size_of(store, slot)


cdef inline void chain_to_head(Store *store, Chain *chain, uint32_t slot) noexcept nogil:
    """Move within its chain: neither count nor size changes."""
    cdef Entry *entries = store.entries
    cdef uint32_t prev = entries[slot].prev, next = entries[slot].next
    if prev == NIL:
        return
    entries[prev].next = next
    if next != NIL:
        entries[next].prev = prev
    else:
        chain.tail = prev
    entries[slot].prev = NIL
    entries[slot].next = chain.head
    entries[chain.head].prev = slot
    chain.head = slot


cdef inline void chain_append(Store *store, Chain *chain, uint32_t slot) noexcept nogil:
    """Make it the tail."""
    cdef Entry *entry = &store.entries[slot]
    entry.next = NIL
    entry.prev = chain.tail
    if chain.tail != NIL:
        store.entries[chain.tail].next = slot
    else:
        chain.head = slot
    chain.tail = slot
    chain.count += 1
    chain.size += size_of(store, slot)


cdef inline void chain_move(Store *store, Chain *chain, uint32_t slot, uint32_t other) noexcept nogil:
    """Move within its chain, to just before another one, which is nearer to the head."""
    cdef Entry *entries = store.entries
    cdef uint32_t prev = entries[slot].prev, next = entries[slot].next
    entries[prev].next = next
    if next != NIL:
        entries[next].prev = prev
    else:
        chain.tail = prev
    prev = entries[other].prev
    entries[slot].prev = prev
    entries[slot].next = other
    entries[other].prev = slot
    if prev != NIL:
        entries[prev].next = slot
    else:
        chain.head = slot


cdef inline uint32_t chain_last(Store *store, Chain *chain, uint32_t keep) noexcept nogil:
    """The tail, or the one before it if that is to be kept; NIL if there is nobody else."""
    return chain.tail if chain.tail != keep else store.entries[keep].prev if keep != NIL else NIL


cdef class Policy:
    """An order among the entries of a table. This one has none and gives up nobody: noeviction."""

    cdef Store *store

    cdef int ready(self, uint32_t capacity) except -1:
        """Slots up to `capacity` will be used."""
        return 0

    cdef void limit(self, uint64_t total) noexcept nogil:
        """The sum of sizes that is allowed from now on."""

    cdef void added(self, uint32_t slot) noexcept nogil:
        """A new entry, its hash and size set, its mark 0."""

    cdef void hit(self, uint32_t slot) noexcept nogil:
        """A lookup found it."""

    cdef void written(self, uint32_t slot, uint64_t before) noexcept nogil:
        """It has a new value, and perhaps another size than before."""

    cdef void missed(self, uint32_t hash) noexcept nogil:
        """A lookup found nothing."""

    cdef void removed(self, uint32_t slot, bint evicted) noexcept nogil:
        """It goes: by this policy's choice, or somebody else's."""

    cdef uint32_t victim(self, uint32_t keep) noexcept nogil:
        """Who goes next, never `keep`; NIL: nobody. It stays linked until `removed`."""
        return NIL

    cdef uint32_t after(self, uint32_t slot) noexcept nogil:
        """Who might go if that one did not: a look, it changes nothing. From the victim on it leads to all others, and goes on."""
        return NIL

    cdef void clear(self) noexcept nogil:
        """All are gone: forget them, and who was here before."""

    cdef void release(self) noexcept nogil:
        """The same, and give all memory back: it is ready for no slot any more."""
        self.clear()

    cdef uint64_t nbytes(self, uint64_t capacity) noexcept nogil:
        """Bytes that it has allocated once it is ready for so many slots."""
        return 0
