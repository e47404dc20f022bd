/* slab_check.c: walks a slab and tells whether all that slots.h promises holds. Debug builds do it after each slow step. */
#include "internal.h"
#include "slots.h"

typedef struct tally { size_t used, live, retired, exhausted; } tally;

static bool slot_is_valid(const mp_slab *slab, size_t slot, tally *sum) {
    mp__slot_state state = mp__slot_state_of(slab, slot);
    bool used = mp__slot_is_used(slab, slot);
    if (!used) return state == MP__SLOT_PLAIN && slab->pins[slot] == 0;
    sum->used++;
    sum->live += state <= MP__SLOT_PINNED;
    sum->retired += state == MP__SLOT_RETIRED;
    sum->exhausted += state == MP__SLOT_EXHAUSTED;
    if (state == MP__SLOT_EXHAUSTED) return true; /* viewed or not */
    return (slab->pins[slot] > 0) == (state != MP__SLOT_PLAIN) && slot < slab->ready;
}

static bool slots_are_valid(const mp_slab *slab, tally *sum) {
    for (size_t slot = 0; slot < slab->slots; slot++) {
        if (!slot_is_valid(slab, slot, sum)) return false;
    }
    size_t beyond = slab->slots % 64;
    return beyond == 0 || slab->levels[0][slab->slots / 64] >> beyond == 0;
}

/* Each bit above says whether the word below is full. */
static bool levels_are_valid(const mp_slab *slab) {
    size_t words = slab->slots / 64 + 1;
    for (size_t word = 0; word < slab->first; word++) {
        if (slab->levels[0][word] != UINT64_MAX) return false;
    }
    for (unsigned level = 1; level < slab->n_levels; level++, words = words / 64 + 1) {
        for (size_t word = 0; word < words; word++) {
            bool full = slab->levels[level - 1][word] == UINT64_MAX;
            if (full != (slab->levels[level][word / 64] >> word % 64 & 1)) return false;
        }
    }
    return true;
}

static bool memory_is_valid(const mp_slab *slab) {
    size_t sum = 0;
    for (unsigned part = 0; part < MP__PARTS; part++) {
        if (slab->held[part] > slab->active[part] || slab->active[part] > slab->offsets[part + 1] - slab->offsets[part])
            return false;
        sum += slab->held[part];
    }
    if (slab->ready > slab->capacity || slab->ready * slab->item_size > slab->held[MP__PART_ITEMS]) return false;
    if (slab->ready * sizeof *slab->generations > slab->held[MP__PART_GENERATIONS]) return false;
    if (slab->ready * sizeof *slab->pins > slab->held[MP__PART_PINS] || slab->ready > slab->held[MP__PART_LEVELS] * 8) return false;
    return sum == slab->reserved && slab->reserved <= slab->peak && slab->peak <= slab->limit;
}

bool mp__slab_check(mp_slab *slab) {
    tally sum = {0};
    if (slab->base == NULL) return slab->reserved == 0;
    mp__spin_lock(&slab->spin);
    bool valid = memory_is_valid(slab) && slab->slots <= slab->capacity;
    if (valid && slab->held[MP__PART_LEVELS] > 0) valid = slots_are_valid(slab, &sum) && levels_are_valid(slab);
    valid = valid && sum.live == slab->live && sum.retired == slab->retired && sum.exhausted == slab->exhausted;
    mp__spin_unlock(&slab->spin);
    return valid;
}
