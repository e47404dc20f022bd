# Ghosts: who was here lately, by hash alone.
#
#     bucket 0   [newest ...... oldest]      16 hashes of 32 bits: one cache line, first in first out; 0: nobody
#     bucket 1   [newest ...... oldest]      a hash's low bits say which bucket
#
# So it is a queue cut into many short ones: the last `limit` hashes, give or take what chance puts into one bucket. 4 to 8 bytes
# for each slot of the table, no pointers, and one line of memory to remember or to find.
#
# Rejected: a queue and an index of it: exact, at 12 bytes each and two lines; a Bloom filter for each generation: forgets all at
# once.

cdef enum:
    WAYS = 16

cdef struct Ghosts:
    uint32_t *hashes    # [buckets * WAYS]
    uint32_t buckets    # a power of two; 0: nothing is allocated


cdef uint64_t ghosts_for(uint64_t capacity) noexcept nogil:
    """How many buckets have room for as many."""
    cdef uint64_t buckets = 1
    while buckets * WAYS < capacity:
        buckets *= 2
    return buckets


cdef int ghosts_reserve(Ghosts *ghosts, uint32_t capacity) noexcept nogil:
    """Room for at least as many ghosts; -1 where there is no memory, and nothing changed."""
    cdef uint32_t bucket, buckets = <uint32_t>ghosts_for(capacity)
    cdef int way
    if buckets <= ghosts.buckets:
        return 0
    cdef Ghosts new
    new.buckets = buckets
    new.hashes = <uint32_t *>calloc(<size_t>buckets * WAYS, sizeof(uint32_t))
    if new.hashes is NULL:
        return -1
    for bucket in range(ghosts.buckets):
        for way in range(WAYS - 1, -1, -1):
            if ghosts.hashes[<size_t>bucket * WAYS + way]:
                ghosts_put(&new, ghosts.hashes[<size_t>bucket * WAYS + way])
    free(ghosts.hashes)
    ghosts[0] = new
    return 0


cdef inline uint32_t *ghosts_of(Ghosts *ghosts, uint32_t hash) noexcept nogil:
    return ghosts.hashes + <size_t>(hash & (ghosts.buckets - 1)) * WAYS


cdef inline void ghosts_put(Ghosts *ghosts, uint32_t hash) noexcept nogil:
    """Remember one; the oldest of its bucket is forgotten."""
    cdef uint32_t *bucket = ghosts_of(ghosts, hash)
    memmove(bucket + 1, bucket, (WAYS - 1) * sizeof(uint32_t))
    bucket[0] = hash or 1


cdef inline bint ghosts_take(Ghosts *ghosts, uint32_t hash, uint32_t limit) noexcept nogil:
    """Whether it is among the last so many; it is one no more."""
    cdef uint32_t *bucket = ghosts_of(ghosts, hash)
    cdef uint32_t ways = min(limit // ghosts.buckets + 1, <uint32_t>WAYS), way
    for way in range(ways):
        if bucket[way] == (hash or 1):
            memmove(bucket + way, bucket + way + 1, (WAYS - 1 - way) * sizeof(uint32_t))
            bucket[WAYS - 1] = 0
            return True
    return False


cdef inline void ghosts_clear(Ghosts *ghosts) noexcept nogil:
    if ghosts.buckets:
        memset(ghosts.hashes, 0, <size_t>ghosts.buckets * WAYS * sizeof(uint32_t))
