# A window before a segmented main part, with a door between them that only the more frequent pass: W-TinyLFU.
#
#     added -> | window: LRU | -- door --> | probation: LRU | -- hit --> | protected: LRU |
#                                              ^  <------------ over 4/5 of the main part --'
#
# The window takes what is new, so that bursts are served. Who falls out of it meets who would fall out of the main part, and the
# one that the sketch has seen more often stays. All counts are sums of sizes: a large candidate must be worth all those whose
# place it takes. A window of the whole cache is exact LRU.
#
# Shares are of what is held when somebody has to go, for then the cache is full, whatever filled it: a bound of entries, of
# bytes, of both, other priorities beside it, pressure.
#
# Invariant: an entry's mark is the chain that it is in.
#
# A tie is won by who is inside; and so is a lead of one where both are rare. A loop sees each key once a round, the candidate
# always just before the victim: if a lead of one sufficed they would swap for ever. One in 128 frequent losers gets in
# nevertheless, or who knows the hash could pin entries for good.
#
# Rejected, simulated, in points of the mean hit ratio over traces named in `_tinylfu.pxi`: a lead of one suffices -0.8 (of a loop
# over 1011 keys in a cache of 101: 3 % are hits rather than 10 %); a tie is won by the candidate -1.3; a lead of one in a draw
# -0.3; a protected part of three fifths -0.1.

cdef enum:  # marks
    WINDOW = 1, PROBATION = 2, PROTECTED = 3

cdef enum:
    RARE = 2          # where a lead of one does not count
    SUSPECT = 5       # who was seen more often than this may get in by luck
    MOST_MET = 32     # victims that one candidate is compared with; the rest is taken to be like them
    MOST_MOVES = 64   # from one segment to the next at once: a window that shrinks or grows does so in many small steps

cdef uint64_t UNMEASURED = <uint64_t>-1

cdef struct Segments:
    Store *store
    Sketch *sketch
    Chain window, probation, protected
    double share               # of the window
    uint64_t limit             # the sum of sizes that is allowed
    uint64_t full              # the sum when somebody last had to go, at most the limit
    uint64_t measured          # the sum of which these are shares
    uint64_t window_limit, protected_limit
    uint32_t luck              # of a small generator


cdef void segments_begin(Segments *segments, Store *store, Sketch *sketch, double share) noexcept nogil:
    memset(segments, 0, sizeof(Segments))
    segments.store, segments.sketch = store, sketch
    segments_follow(segments, share)
    segments.luck = 0x9E3779B9


cdef inline uint64_t segments_size(Segments *segments) noexcept nogil:
    return segments.window.size + segments.probation.size + segments.protected.size


cdef inline Chain *segment_of(Segments *segments, uint32_t slot) noexcept nogil:
    cdef uint32_t mark = segments.store.entries[slot].mark
    return &segments.window if mark == WINDOW else &segments.protected if mark == PROTECTED else &segments.probation


cdef inline void segments_move(Segments *segments, uint32_t slot, uint32_t mark) noexcept nogil:
    """To the head of another segment."""
    chain_unlink(segments.store, segment_of(segments, slot), slot)
    segments.store.entries[slot].mark = mark
    chain_push(segments.store, segment_of(segments, slot), slot)


cdef inline void segments_added(Segments *segments, uint32_t slot) noexcept nogil:
    segments.store.entries[slot].mark = WINDOW
    chain_push(segments.store, &segments.window, slot)


cdef inline void segments_hit(Segments *segments, uint32_t slot) noexcept nogil:
    if segments.store.entries[slot].mark != PROBATION:
        chain_to_head(segments.store, segment_of(segments, slot), slot)
        return
    cdef int moves
    segments_move(segments, slot, PROTECTED)
    for moves in range(MOST_MOVES):
        if segments.protected.size <= segments.protected_limit or segments.protected.tail == NIL:
            return
        segments_move(segments, segments.protected.tail, PROBATION)


cdef inline uint32_t segments_weakest(Segments *segments, uint32_t keep) noexcept nogil:
    """Who goes next of the main part; NIL if there is nobody else."""
    cdef uint32_t slot = chain_last(segments.store, &segments.probation, keep)
    return slot if slot != NIL else chain_last(segments.store, &segments.protected, keep)


cdef inline void segments_measure(Segments *segments) noexcept nogil:
    """Somebody has to go, so the cache is full: what the segments may hold of it."""
    segments.full = min(segments.limit, segments_size(segments))
    if segments.full != segments.measured:
        segments_divide(segments)


cdef void segments_divide(Segments *segments) noexcept nogil:
    cdef uint64_t full = segments.full, window = full
    if segments.share < 1:
        window = min(max(<uint64_t>(<double>full * segments.share), <uint64_t>1), full)
    segments.measured = full
    segments.window_limit = window
    segments.protected_limit = (full - window) // 5 * 4 + (full - window) % 5 * 4 // 5


cdef inline void segments_follow(Segments *segments, double share) noexcept nogil:
    """Another share for the window, from the next one who has to go on."""
    segments.share = share
    segments.measured = UNMEASURED


cdef uint32_t segments_victim(Segments *segments, uint32_t keep) noexcept nogil:
    """Who goes next, never `keep`; NIL if there is nobody else."""
    segments_measure(segments)
    cdef uint64_t room = segments.full - segments.window_limit
    cdef uint64_t size, main
    cdef uint32_t candidate = NIL, weakest
    cdef int moves
    for moves in range(MOST_MOVES):
        candidate = chain_last(segments.store, &segments.window, keep)
        weakest = segments_weakest(segments, keep)
        main = segments.probation.size + segments.protected.size
        if candidate == NIL or segments.window.size <= segments.window_limit or (main > room and weakest != NIL):
            return weakest if weakest != NIL else candidate
        size = size_of(segments.store, candidate)
        if size > room or main > room:
            return candidate
        if size > room - main:
            if weakest == NIL or not segments_admits(segments, candidate, weakest, size):
                return candidate
            segments_move(segments, candidate, PROBATION)
            return weakest
        segments_move(segments, candidate, PROBATION)
    weakest = segments_weakest(segments, keep)
    return weakest if weakest != NIL else candidate


cdef bint segments_admits(Segments *segments, uint32_t candidate, uint32_t weakest, uint64_t needed) noexcept nogil:
    """Whether a candidate was seen more often than all those together that fill as much room.

    All of its size counts, though some who made room for it when it was written are gone: they were not asked then.
    """
    cdef Entry *entries = segments.store.entries
    cdef uint32_t own = sketch_estimate(segments.sketch, entries[candidate].hash)
    cdef uint32_t victim = weakest, met = 0
    cdef uint64_t theirs = 0, got = 0
    while victim != NIL and got < needed and theirs <= own and met < MOST_MET:
        theirs += sketch_estimate(segments.sketch, entries[victim].hash)
        got += size_of(segments.store, victim)
        met += 1
        if entries[victim].prev == NIL and entries[victim].mark == PROBATION:
            victim = segments.protected.tail
        else:
            victim = entries[victim].prev
    if met == MOST_MET and got < needed:
        theirs = <uint64_t>(<double>theirs * (<double>needed / <double>max(got, <uint64_t>1)))
    if own > theirs + 1 or (own > theirs and theirs > RARE):
        return True
    if own <= SUSPECT:
        return False
    segments.luck ^= segments.luck << 13
    segments.luck ^= segments.luck >> 17
    segments.luck ^= segments.luck << 5
    return segments.luck & 127 == 0


cdef inline void segments_removed(Segments *segments, uint32_t slot) noexcept nogil:
    chain_unlink(segments.store, segment_of(segments, slot), slot)


cdef uint32_t segments_after(Segments *segments, uint32_t slot) noexcept nogil:
    """Who is next to go: through probation, the protected and the window, and round again."""
    cdef uint32_t prev = segments.store.entries[slot].prev
    cdef uint32_t mark = segments.store.entries[slot].mark
    if prev != NIL:
        return prev
    cdef uint32_t probation = segments.probation.tail, protected = segments.protected.tail, window = segments.window.tail
    if mark == PROBATION:
        return protected if protected != NIL else window if window != NIL else probation
    if mark == PROTECTED:
        return window if window != NIL else probation if probation != NIL else protected
    return probation if probation != NIL else protected if protected != NIL else window
