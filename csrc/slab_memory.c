/* slab_memory.c: the memory of a slab. It is reserved as addresses once, made usable from the front as the slab grows, and given back
 * from the end.
 *
 *   part:  [ in memory | given back by trim, reads zero | addresses only . . . . . ]
 *          0         held                              active                  offsets[part + 1]
 *
 * Only the items are given back: the generations tell an old handle from a new one for ever.
 *
 * Rejected: growing by mremap (it moves), or by a list of extents (then nobody can view all items as one array). */
#include "internal.h"
#include "slots.h"

enum { STEP = 64 << 10, BESIDE = sizeof(uint32_t) * 2 /* a generation and pins */, GROWTH = 8 };

/* Words of a level when there are so many below it. Two more than are needed, so that a search may look behind the end. */
static size_t words_above(size_t below) { return below / 64 + 2; }

static size_t in_pages(size_t bytes) {
    size_t page = mp__os_page_size();
    return (bytes + page - 1) / page * page;
}

/* Bytes of a part up to so many slots. The caller has checked that all items can be addressed. */
static size_t part_bytes(const mp_slab *slab, mp__part part, size_t slots) {
    switch (part) {
    case MP__PART_ITEMS: return in_pages(slots * slab->item_size);
    case MP__PART_GENERATIONS: return in_pages(slots * sizeof *slab->generations);
    case MP__PART_PINS: return in_pages(slots * sizeof *slab->pins);
    default: break;
    }
    unsigned level = (unsigned)part - MP__PART_LEVELS;
    if (level >= slab->n_levels) return 0;
    size_t words = words_above(slots);
    while (level-- > 0) words = words_above(words);
    return in_pages(words * sizeof(uint64_t));
}

/* ---- addresses ---- */

/* Levels up to one of a single word, in which a bit is left for what lies behind the end. */
static unsigned count_levels(size_t capacity) {
    unsigned n = 1;
    for (size_t words = words_above(capacity); n == 1 || words > 2; n++) words = words_above(words);
    return n;
}

static void lay_out(mp_slab *slab, size_t capacity) {
    slab->capacity = capacity;
    slab->n_levels = count_levels(capacity);
    slab->offsets[0] = 0;
    for (mp__part part = 0; part < MP__PARTS; part++) {
        slab->offsets[part + 1] = slab->offsets[part] + part_bytes(slab, part, capacity);
    }
    slab->address_space = slab->offsets[MP__PARTS];
}

static void set_parts(mp_slab *slab) {
    slab->items = slab->base;
    slab->generations = (uint32_t *)(void *)(slab->base + slab->offsets[MP__PART_GENERATIONS]);
    slab->pins = (uint32_t *)(void *)(slab->base + slab->offsets[MP__PART_PINS]);
    for (unsigned level = 0; level < slab->n_levels; level++) {
        slab->levels[level] = (uint64_t *)(void *)(slab->base + slab->offsets[MP__PART_LEVELS + level]);
    }
}

static mp_status try_capacity(mp_slab *slab, size_t capacity) {
    lay_out(slab, capacity);
    void *base = NULL;
    mp_status status = slab->source->reserve(slab->source->context, slab->address_space, mp__os_huge_size(), false, &base);
    if (status == MP_OK) slab->base = base;
    return status;
}

mp_status mp__slab_reserve(mp_slab *slab, size_t most) {
    size_t capacity = most;
    while (try_capacity(slab, capacity) != MP_OK) {
        if (capacity == 1) return MP_ERR_NOMEM;
        capacity /= 2;
    }
    if (capacity < most && capacity > 1) { /* addresses are scarce: leave the program as many as are taken */
        (void)slab->source->unmap(slab->source->context, slab->base, slab->address_space);
        slab->base = NULL;
        if (try_capacity(slab, capacity / 2) != MP_OK) return MP_ERR_NOMEM;
    }
    set_parts(slab);
    mp__registry_note_addresses(slab->address_space);
    if (slab->offsets[1] >= mp__os_huge_size()) mp__os_advise_huge(slab->base, slab->offsets[1]);
    return MP_OK;
}

void mp__slab_unmap(mp_slab *slab) {
    if (slab->base == NULL) return;
    bool refused = slab->source->unmap(slab->source->context, slab->base, slab->address_space) != MP_OK;
    for (mp__part part = 0; refused && part < MP__PARTS; part++) {
        char *start = slab->base + slab->offsets[part];
        if (slab->active[part] > 0) (void)slab->source->decommit(slab->source->context, start, slab->active[part]);
    }
    slab->base = NULL;
    mp__registry_forget_addresses(slab->address_space);
    if (slab->account != NULL) mp_account_discharge(slab->account, slab->reserved);
    slab->reserved = 0;
}

/* ---- growth ---- */

/* Parts that were made usable stay so if a later one fails: they are not held, and not asked for again. */
static mp_status activate(mp_slab *slab, size_t slots) {
    for (mp__part part = 0; part < MP__PARTS; part++) {
        size_t want = part_bytes(slab, part, slots), have = slab->active[part];
        if (want <= have) continue;
        mp_status status = slab->source->activate(slab->source->context, slab->base + slab->offsets[part] + have, want - have);
        if (status != MP_OK) return status;
        slab->active[part] = want;
    }
    return MP_OK;
}

/* Bytes that are to be taken from the OS for so many slots. After a trim some parts may reach further. */
static size_t bytes_more(const mp_slab *slab, size_t slots) {
    size_t more = 0;
    for (mp__part part = 0; part < MP__PARTS; part++) {
        size_t want = part_bytes(slab, part, slots);
        if (want > slab->held[part]) more += want - slab->held[part];
    }
    return more;
}

static void set_ready(mp_slab *slab, size_t slots) {
    mp__spin_lock(&slab->spin);
    slab->ready = slots;
    mp__spin_unlock(&slab->spin);
}

static void hold(mp_slab *slab, size_t slots, size_t more) {
    for (mp__part part = 0; part < MP__PARTS; part++) {
        size_t want = part_bytes(slab, part, slots);
        if (want > slab->held[part]) slab->held[part] = want;
    }
    slab->reserved += more;
    if (slab->peak < slab->reserved) slab->peak = slab->reserved;
    set_ready(slab, slots);
}

static mp_status grow_to(mp_slab *slab, size_t slots, mp_account **binding) {
    size_t more = bytes_more(slab, slots);
    if (more > slab->limit - slab->reserved) return MP_ERR_LIMIT;
    mp_status status = mp__account_try_charge(slab->account, more, binding);
    if (status != MP_OK) return status;
    status = activate(slab, slots);
    if (status != MP_OK) {
        if (slab->account != NULL) mp_account_discharge(slab->account, more);
        return status;
    }
    mp__account_note_peak(slab->account);
    hold(slab, slots, more);
    return MP_OK;
}

/* As many slots as the last page has room for. */
static size_t fill_page(const mp_slab *slab, size_t slots) {
    size_t room = part_bytes(slab, MP__PART_ITEMS, slots) / slab->item_size;
    return room < slab->capacity ? room : slab->capacity;
}

mp_status mp__slab_grow(mp_slab *slab, size_t slots, mp_account **binding, size_t *needed) {
    size_t wish = slab->ready + slab->ready / GROWTH, step = slab->ready + STEP / (slab->item_size + BESIDE);
    if (slots > slab->capacity)
        return slab->limit != MP_NO_LIMIT && slab->limit / slab->item_size < slots ? MP_ERR_LIMIT : MP_ERR_FULL;
    if (wish < step) wish = step;
    if (wish < slots) wish = slots;
    if (wish > slab->capacity) wish = slab->capacity;
    mp_status status = grow_to(slab, fill_page(slab, wish), binding);
    if (status != MP_OK && slots < wish) status = grow_to(slab, fill_page(slab, slots), binding);
    if (status != MP_OK) status = grow_to(slab, slots, binding);
    if (status != MP_OK) *needed = bytes_more(slab, slots);
    return status;
}

/* ---- giving back ---- */

/* Slots up to the last that is used. */
static size_t used_up_to(mp_slab *slab) {
    mp__spin_lock(&slab->spin);
    size_t word = (slab->slots + 63) / 64, end = 0;
    while (word > 0 && slab->levels[0][word - 1] == 0) word--;
    if (word > 0) end = (word - 1) * 64 + mp__log2(slab->levels[0][word - 1]) + 1;
    mp__spin_unlock(&slab->spin);
    return end;
}

size_t mp__slab_idle(mp_slab *slab) {
    return slab->base != NULL ? slab->held[MP__PART_ITEMS] - part_bytes(slab, MP__PART_ITEMS, used_up_to(slab)) : 0;
}

/* Nobody shall take a slot whose memory goes. False if somebody has meanwhile. `*before` is what was ready. */
static bool withdraw(mp_slab *slab, size_t keep, size_t *before) {
    mp__spin_lock(&slab->spin);
    size_t last = slab->slots < slab->ready ? slab->slots : slab->ready;
    bool empty = true;
    for (size_t slot = keep; slot < last && empty; slot = (slot / 64 + 1) * 64) {
        empty = slab->levels[0][slot / 64] >> slot % 64 == 0;
    }
    *before = slab->ready;
    if (empty && keep < slab->ready) slab->ready = keep;
    mp__spin_unlock(&slab->spin);
    return empty;
}

size_t mp__slab_trim(mp_slab *slab) {
    if (slab->base == NULL) return 0;
    const mp_source *source = slab->source;
    size_t keep = part_bytes(slab, MP__PART_ITEMS, used_up_to(slab)), bytes = slab->held[MP__PART_ITEMS] - keep;
    size_t before;
    if (bytes == 0 || !withdraw(slab, keep / slab->item_size, &before)) return 0;
    if (source->decommit(source->context, slab->items + keep, bytes) != MP_OK) {
        set_ready(slab, before);
        return 0;
    }
    /* Whoever views the slab may still read there. */
    if (source->commit(source->context, slab->items + keep, bytes) != MP_OK) slab->active[MP__PART_ITEMS] = keep;
    slab->held[MP__PART_ITEMS] = keep;
    slab->reserved -= bytes;
    if (slab->account != NULL) mp_account_discharge(slab->account, bytes);
    return bytes;
}
