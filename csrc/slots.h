/* slots.h: the structures of a slab, and what holds between them.
 *
 *   one reservation of addresses, made once; each part is usable up to `ready` slots and grows in place
 *
 *     items        [ 0 | 1 | 2 | 3 | . . .        what the caller sees, one after the other
 *     generations  [ w | w | w | w | . . .        32 bits a slot: 30 of generation, 2 of state
 *     pins         [ n | n | n | n | . . .        how many views of the item live
 *     used         [ 1 1 0 1 ... ] [ ... ] . .    a bit a slot: not to be given out
 *     full         [ 1 0 0 ...   ]                a bit a word of the level below: no zero in it; level upon level, to one word
 *
 *   handle = [ 0 | generation + salt of the slot: 30 bits | slot + 1: 33 bits ]
 *
 * An allocation takes the lowest free slot, which keeps the items together, so that a trim finds an empty tail. Fresh slots cost no
 * page but that of their bit: a generation of zero is what untouched memory reads.
 *
 * Invariants (slab_check.c walks them):
 *   live + retired + exhausted == bits set in `used`, all below `slots` and below `ready`; both are at most `capacity`
 *   no word below `first` has a zero; a bit of a `full` level is set if and only if the word below has no zero
 *   a slot that is pinned, retired or exhausted is used; pins are zero otherwise
 *   reserved == sum of `held`, whole pages; it is what the account was charged
 *
 * Locks: registry list > lock (growth, trim, reserved) > spin (slots). Both are never held while the OS is asked for more than pages.
 *
 * Rejected: a free list through the items (whoever views the whole slab could overwrite it, and items of one byte have no room), or
 * beside them (eight bytes a slot, and it scatters what is allocated); a hash table of pins (it can fail to grow). */
#ifndef MP_SLOTS_H
#define MP_SLOTS_H

#include "types.h"

enum { MP__GENERATION_BITS = 30, MP__SLOT_BITS = 33, MP__LEVELS = 6, MP__STATE_BITS = 2 };

#define MP__GENERATIONS ((uint32_t)1 << MP__GENERATION_BITS)
#define MP__SLOT_MASK (((uint64_t)1 << MP__SLOT_BITS) - 1)
#define MP__MOST_SLOTS ((size_t)MP__SLOT_MASK - 1)

/* In the low bits of a generation word. Which of the first a slot is, says its bit: used and plain is live. */
typedef enum mp__slot_state { MP__SLOT_PLAIN = 0, MP__SLOT_PINNED, MP__SLOT_RETIRED, MP__SLOT_EXHAUSTED } mp__slot_state;

/* The parts of the reservation, in order: each level is one. */
typedef enum mp__part {
    MP__PART_ITEMS = 0,
    MP__PART_GENERATIONS,
    MP__PART_PINS,
    MP__PART_LEVELS,
    MP__PARTS = MP__PART_LEVELS + MP__LEVELS
} mp__part;

struct mp_slab {
    mp__tenant tenant; /* first: the two are cast into each other */
    mp__spin spin;
    mp__mutex lock;
    size_t item_size, capacity, limit;
    uint64_t multiplier, addend; /* the salt */
    mp_account *account;
    const mp_source *source;
    char *base; /* NULL once the memory is gone */
    size_t address_space;
    size_t offsets[MP__PARTS + 1]; /* of the parts */
    size_t active[MP__PARTS];      /* bytes that were made usable */
    size_t held[MP__PARTS];        /* of these, bytes that count as taken from the OS: fewer items after a trim */

    /* under `spin` */
    char *items;
    uint32_t *generations, *pins;
    uint64_t *levels[MP__LEVELS]; /* [0] is `used`, the others `full` */
    unsigned n_levels;
    size_t first; /* word of `used` */
    size_t ready, slots;
    size_t live, retired, exhausted, views;
    uint64_t allocs, frees;
    bool closed;

    size_t reserved, peak; /* under `lock` */
    atomic_size_t references;
};

/* ---- handles ---- */

static inline uint32_t mp__slot_salt(const mp_slab *slab, size_t slot) {
    return (uint32_t)((slot * slab->multiplier + slab->addend) >> (64 - MP__GENERATION_BITS));
}

static inline mp_handle mp__slot_name(const mp_slab *slab, size_t slot, uint32_t generation) {
    uint64_t tag = (generation + mp__slot_salt(slab, slot)) & (MP__GENERATIONS - 1);
    return (mp_handle)(tag << MP__SLOT_BITS | (slot + 1));
}

/* SIZE_MAX for what cannot be a handle of any slab. */
static inline size_t mp__handle_slot(mp_handle handle) {
    return handle > 0 ? (size_t)((uint64_t)handle & MP__SLOT_MASK) - 1 : SIZE_MAX;
}

static inline uint32_t mp__handle_generation(const mp_slab *slab, mp_handle handle, size_t slot) {
    return ((uint32_t)((uint64_t)handle >> MP__SLOT_BITS) - mp__slot_salt(slab, slot)) & (MP__GENERATIONS - 1);
}

/* ---- slots, with `spin` held ---- */

static inline mp__slot_state mp__slot_state_of(const mp_slab *slab, size_t slot) {
    return (mp__slot_state)(slab->generations[slot] & ((1U << MP__STATE_BITS) - 1));
}

static inline uint32_t mp__slot_generation(const mp_slab *slab, size_t slot) { return slab->generations[slot] >> MP__STATE_BITS; }

static inline void mp__slot_put(mp_slab *slab, size_t slot, uint32_t generation, mp__slot_state state) {
    slab->generations[slot] = generation << MP__STATE_BITS | (uint32_t)state;
}

static inline bool mp__slot_is_used(const mp_slab *slab, size_t slot) { return slab->levels[0][slot / 64] >> slot % 64 & 1; }

/* The slot of a live item; false for every other handle. */
static inline bool mp__slot_find(const mp_slab *slab, mp_handle handle, size_t *out) {
    size_t slot = mp__handle_slot(handle);
    if (slot >= slab->slots || mp__slot_generation(slab, slot) != mp__handle_generation(slab, handle, slot)) return false;
    *out = slot;
    return mp__slot_state_of(slab, slot) <= MP__SLOT_PINNED && mp__slot_is_used(slab, slot);
}

/* A word of `used` has become full, or has no longer been: the levels above learn of it. */
static inline void mp__levels_fill(mp_slab *slab, size_t word) {
    for (unsigned level = 1; level < slab->n_levels; level++, word /= 64) {
        uint64_t *above = &slab->levels[level][word / 64];
        *above |= (uint64_t)1 << word % 64;
        if (*above != UINT64_MAX) return;
    }
}

static inline void mp__levels_open(mp_slab *slab, size_t word) {
    for (unsigned level = 1; level < slab->n_levels; level++, word /= 64) {
        uint64_t *above = &slab->levels[level][word / 64], before = *above;
        *above &= ~((uint64_t)1 << word % 64);
        if (before != UINT64_MAX) return;
    }
}

/* The first word of `used` that has a zero. It may lie at the end of what is ready. */
static inline size_t mp__levels_search(mp_slab *slab) {
    size_t word = slab->first;
    if (MP_LIKELY(slab->levels[0][word] != UINT64_MAX)) return word;
    unsigned level = 1;
    for (word++;; level++, word = word / 64 + 1) {
        uint64_t open = ~slab->levels[level][word / 64] & UINT64_MAX << word % 64;
        if (open == 0) continue;
        for (word = word / 64 * 64 + mp__lowest(open); --level > 0;) word = word * 64 + mp__lowest(~slab->levels[level][word]);
        return slab->first = word;
    }
}

static inline void mp__slot_take(mp_slab *slab, size_t word, uint64_t bits) {
    if ((slab->levels[0][word] |= bits) == UINT64_MAX) mp__levels_fill(slab, word);
}

static inline void mp__slot_return(mp_slab *slab, size_t slot) {
    uint64_t *word = &slab->levels[0][slot / 64], before = *word;
    *word &= ~((uint64_t)1 << slot % 64);
    if (before == UINT64_MAX) mp__levels_open(slab, slot / 64);
    if (slot / 64 < slab->first) slab->first = slot / 64;
}

#endif
