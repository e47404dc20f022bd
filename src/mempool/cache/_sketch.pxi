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
# Growing copies each block to those that take over its hashes: no estimate falls.
#
# Rejected, simulated, in points of the mean hit ratio over traces named in `_tinylfu.pxi`: a power of two of words, so 4 to 8 bytes
# a slot, -0.3; 16 bytes a slot +0.1; no least size for small caches -0.1; ageing by all hits, full counters or not, -0.1; a sample
# of twice the length, no worse in the mean, but then up to 1.6 points below exact LRU.


cdef enum:
    SKETCH_FULL = 15
    SKETCH_PERIOD = 10     # hits counted between two ageings, by slot
    SKETCH_LEAST = 16      # blocks beyond one for eight slots: a small cache forgets less, for 1 KiB

cdef struct Sketch:
    uint64_t *words        # [8 * blocks], from a cache line's beginning on
    void *memory           # that they lie in
    uint32_t blocks
    uint64_t sample        # hits until it ages
    uint64_t counted       # of these so far


cdef inline uint32_t sketch_blocks(uint64_t slots) noexcept nogil:
    return <uint32_t>((slots + 7) // 8 + SKETCH_LEAST)


cdef int sketch_reserve(Sketch *sketch, uint64_t slots) noexcept nogil:
    """Counters for so many slots, never less than before; -1 where there is no memory, and no harm done."""
    cdef uint32_t blocks = sketch_blocks(slots)
    cdef uint64_t *words
    cdef void *memory
    if blocks > sketch.blocks:
        memory = calloc(blocks + <size_t>1, 64)
        if memory is NULL:
            return -1
        words = <uint64_t *>((<size_t>memory + 63) & ~<size_t>63)
        if sketch.blocks:
            sketch_spread(words, blocks, sketch.words, sketch.blocks)
        free(sketch.memory)
        sketch.words, sketch.memory, sketch.blocks = words, memory, blocks
    sketch.sample = max(sketch.sample, SKETCH_PERIOD * slots, <uint64_t>32)
    return 0


cdef void sketch_spread(uint64_t *words, uint64_t blocks, uint64_t *old, uint64_t former) noexcept nogil:
    """Give each of more blocks the counters of the one or two whose hashes it takes over."""
    cdef uint64_t block, word, first, last
    for block in range(blocks):
        first, last = block * former // blocks, ((block + 1) * former - 1) // blocks
        for word in range(8):
            words[8 * block + word] = sketch_max(old[8 * first + word], old[8 * last + word])


cdef inline uint64_t sketch_max(uint64_t one, uint64_t other) noexcept nogil:
    """Of each of sixteen counters the larger."""
    cdef uint64_t lower = <uint64_t>0x0F0F0F0F0F0F0F0F
    return sketch_max_bytes(one & lower, other & lower) | sketch_max_bytes(one >> 4 & lower, other >> 4 & lower) << 4


cdef inline uint64_t sketch_max_bytes(uint64_t one, uint64_t other) noexcept nogil:
    """Of each of eight bytes below 128 the larger."""
    cdef uint64_t top = <uint64_t>0x8080808080808080
    cdef uint64_t not_less = (((one | top) - other) >> 7 & <uint64_t>0x0101010101010101) * 0xFF
    return one & not_less | other & ~not_less


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
