# How often a hash was seen of late: counters of 4 bits, of which each hash has four.
#
#     blocks   [ 8 words of 16 counters: one cache line ] [ ... ] ...       the hash's upper bits choose the block
#                 |  |        |     |
#                 0..1   2..3   4..5   6..7                                 and lower ones a counter in each pair of words
#
# The estimate is the least of the four; only those that equal it are counted up. When as many were counted as the sample is long,
# all counters are halved: what was popular once fades. What halving rounds away is taken off the sample too, or many keys seen
# once would age it too early. Hits on counters that are full age nothing.
#
# Invariant: an estimate is never less than the true count since the last ageing, 15 at most.
#
# Growing copies each block to those that take over its hashes: estimates stay as they were.
#
# Rejected, by mean hit ratio over 16 traces at five sizes each (this: .491): a power of two of words, rounded down .475, as then
# half of the sizes have 4 bytes an entry only; no least size for small caches .489; ageing by all hits .489; a sample of twice
# the length .492, but then 1.6 points below exact LRU at its worst (this: .4).


cdef enum:
    SKETCH_FULL = 15
    SKETCH_PERIOD = 10     # hits counted between two ageings, by slot
    SKETCH_LEAST = 16      # blocks beyond one for eight slots: a small cache forgets less, for 1 KiB

cdef struct Sketch:
    uint64_t *words        # [8 * blocks]
    uint32_t blocks
    uint64_t sample        # hits until it ages
    uint64_t counted       # of these so far


cdef inline uint32_t sketch_blocks(uint64_t slots) noexcept nogil:
    return <uint32_t>((slots + 7) // 8 + SKETCH_LEAST)


cdef int sketch_reserve(Sketch *sketch, uint64_t slots) noexcept nogil:
    """Counters for so many slots, never less than before; -1 where there is no memory, and no harm done."""
    cdef uint32_t blocks = sketch_blocks(slots)
    cdef uint64_t block
    cdef uint64_t *words
    if blocks <= sketch.blocks:
        return 0
    words = <uint64_t *>calloc(blocks, 64)
    if words is NULL:
        return -1
    for block in range(<uint64_t>(blocks if sketch.blocks else 0)):
        memcpy(words + 8 * block, sketch.words + 8 * (block * sketch.blocks // blocks), 64)
    free(sketch.words)
    sketch.words, sketch.blocks = words, blocks
    sketch.sample = SKETCH_PERIOD * slots if SKETCH_PERIOD * slots > 32 else 32
    return 0


cdef inline uint64_t *sketch_block(Sketch *sketch, uint32_t hash) noexcept nogil:
    return sketch.words + 8 * (<uint64_t>hash * sketch.blocks >> 32)


cdef inline uint64_t *sketch_word(uint64_t *block, uint32_t bits, uint32_t pair) noexcept nogil:
    return block + 2 * pair + (bits >> 8 * pair & 1)


cdef inline uint32_t sketch_shift(uint32_t bits, uint32_t pair) noexcept nogil:
    """Where the counter lies in its word: one of sixteen."""
    return (bits >> 8 * pair & 30) << 1


cdef inline uint32_t sketch_count(uint64_t *block, uint32_t bits, uint32_t pair) noexcept nogil:
    return <uint32_t>(sketch_word(block, bits, pair)[0] >> sketch_shift(bits, pair)) & SKETCH_FULL


cdef inline void sketch_count_up(uint64_t *block, uint32_t bits, uint32_t pair, uint32_t least) noexcept nogil:
    """One more, if it is the least: without a branch, as nobody could foresee it."""
    cdef uint64_t *word = sketch_word(block, bits, pair)
    word[0] += <uint64_t>(sketch_count(block, bits, pair) == least) << sketch_shift(bits, pair)


cdef inline uint32_t sketch_least(uint64_t *block, uint32_t bits) noexcept nogil:
    return min(
        min(sketch_count(block, bits, 0), sketch_count(block, bits, 1)),
        min(sketch_count(block, bits, 2), sketch_count(block, bits, 3)),
    )


cdef inline uint32_t sketch_bits(uint32_t hash) noexcept nogil:
    """Which counters of its block: the lower bits of four bytes."""
    return hash * <uint32_t>0x9E3779B1


cdef inline uint32_t sketch_estimate(Sketch *sketch, uint32_t hash) noexcept nogil:
    """How often it was seen, 0 to 15."""
    return sketch_least(sketch_block(sketch, hash), sketch_bits(hash))


cdef inline void sketch_add(Sketch *sketch, uint32_t hash) noexcept nogil:
    """It was seen once more."""
    cdef uint64_t *block = sketch_block(sketch, hash)
    cdef uint32_t bits = sketch_bits(hash)
    cdef uint32_t least = sketch_least(block, bits)
    if least == SKETCH_FULL:
        return
    sketch_count_up(block, bits, 0, least)
    sketch_count_up(block, bits, 1, least)
    sketch_count_up(block, bits, 2, least)
    sketch_count_up(block, bits, 3, least)
    sketch.counted += 1
    if sketch.counted >= sketch.sample:
        sketch_age(sketch)


cdef void sketch_age(Sketch *sketch) noexcept nogil:
    """Halve all counters."""
    cdef uint64_t at, odd, lost = 0
    for at in range(8 * <uint64_t>sketch.blocks):
        odd = sketch.words[at] & <uint64_t>0x1111111111111111
        lost += odd * <uint64_t>0x1111111111111111 >> 60 if odd != <uint64_t>0x1111111111111111 else 16
        sketch.words[at] = sketch.words[at] >> 1 & <uint64_t>0x7777777777777777
    sketch.counted = (sketch.counted - min(lost // 4, sketch.counted)) // 2


cdef void sketch_clear(Sketch *sketch) noexcept nogil:
    if sketch.words is not NULL:
        memset(sketch.words, 0, 64 * <size_t>sketch.blocks)
    sketch.counted = 0
