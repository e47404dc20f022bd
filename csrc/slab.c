/* slab.c: items of one size are given out and taken back by handle. slots.h draws what a slab is made of.
 *
 *   alloc ──> lowest free slot ── below `ready`? its bit is set, a handle made        free ──> generation + 1, bit cleared
 *                                 else slab_memory.c makes more ready                          pinned: retired until the last unpin
 *
 * A call for many takes the lock of the slots once. It decides before it changes anything, or undoes what it did: all or nothing.
 *
 * Rejected: one lock per group of slots. The lowest free slot, which keeps the items together, is one place for all threads. */
#include <string.h>

#include "internal.h"
#include "slots.h"

enum { COPY_AT_ONCE = 1 << 20, BESIDE = 9 /* bytes of bookkeeping for a slot, about */ };

/* ---- life ---- */

static uint64_t tenant_tick(mp__tenant *tenant, uint64_t now) {
    (void)tenant;
    (void)now;
    return MP_NEVER; /* an empty tail goes when asked for, or when an account is short */
}

static size_t tenant_releasable(mp__tenant *tenant, const mp_account *under) {
    mp_slab *slab = (mp_slab *)tenant;
    if (!mp_account_is_under(slab->account, under)) return 0;
    mp__mutex_lock(&slab->lock);
    size_t bytes = mp__slab_idle(slab);
    mp__mutex_unlock(&slab->lock);
    return bytes;
}

static size_t tenant_reclaim(mp__tenant *tenant, const mp_account *under, size_t needed) {
    mp_slab *slab = (mp_slab *)tenant;
    (void)needed;
    if (under != NULL && !mp_account_is_under(slab->account, under)) return 0;
    return mp_slab_trim(slab);
}

static void tenant_before_fork(mp__tenant *tenant) {
    mp_slab *slab = (mp_slab *)tenant;
    mp__mutex_lock(&slab->lock);
    mp__spin_lock(&slab->spin);
}

static void tenant_after_fork(mp__tenant *tenant, bool child) {
    mp_slab *slab = (mp_slab *)tenant;
    (void)child;
    mp__spin_unlock(&slab->spin);
    mp__mutex_unlock(&slab->lock);
}

static const mp__tenant_ops slab_ops = {
    .tick = tenant_tick,
    .releasable = tenant_releasable,
    .reclaim = tenant_reclaim,
    .before_fork = tenant_before_fork,
    .after_fork = tenant_after_fork,
};

/* As much as could ever be in memory, but no more than a share. */
static size_t usual_addresses(void) {
    size_t most = 2 * mp__os_physical_memory(), share = mp__registry_address_share();
    return most < share ? most : share;
}

/* How many items to reserve addresses for. More than the limit lets in are of no use. */
static size_t most_items(const mp_slab_config *config) {
    size_t most = config->max_items, within = config->limit / config->item_size;
    if (most == MP_NO_LIMIT) most = usual_addresses() / (config->item_size + BESIDE);
    if (most > within) most = within;
    if (most > MP__MOST_SLOTS) most = MP__MOST_SLOTS;
    return most > 0 ? most : 1;
}

static void free_slab(mp_slab *slab) {
    const mp_source *source = slab->source;
    mp__mutex_destroy(&slab->lock);
    if (slab->account != NULL) mp_account_release(slab->account);
    source->free(source->context, slab);
}

static mp_status set_up(mp_slab *slab, const mp_slab_config *config) {
    slab->item_size = config->item_size;
    slab->limit = config->limit;
    slab->multiplier = config->seed | 1;
    slab->addend = config->seed * UINT64_C(0xD1342543DE82EF95) + 1;
    slab->account = config->account;
    atomic_init(&slab->references, 1);
    mp__mutex_init(&slab->lock);
    if (slab->account != NULL) mp_account_retain(slab->account);
    mp_status status = mp__slab_reserve(slab, most_items(config));
    if (status != MP_OK) return status;
    status = mp__registry_add(&slab->tenant, &slab_ops);
    if (status != MP_OK) mp__slab_unmap(slab);
    return status;
}

mp_status mp_slab_create(const mp_slab_config *config, mp_slab **out) {
    const mp_source *source = config->source != NULL ? config->source : mp_source_os();
    if (config->item_size == 0 || config->item_size > MP_SLAB_MAX_ITEM || config->max_items == 0) return MP_ERR_INVALID;
    mp_slab *slab = source->alloc(source->context, sizeof *slab);
    if (slab == NULL) return MP_ERR_NOMEM;
    slab->source = source;
    mp_status status = set_up(slab, config);
    if (status == MP_OK) *out = slab;
    else free_slab(slab);
    return status;
}

static void unmap(mp_slab *slab) {
    mp__mutex_lock(&slab->lock);
    mp__slab_unmap(slab);
    mp__mutex_unlock(&slab->lock);
}

static void drop_reference(mp_slab *slab) {
    if (atomic_fetch_sub_explicit(&slab->references, 1, memory_order_acq_rel) != 1) return;
    mp__registry_remove(&slab->tenant);
    free_slab(slab);
}

void *mp_slab_base(const mp_slab *slab) { return slab->items; }

bool mp_slab_close(mp_slab *slab) {
    mp__spin_lock(&slab->spin);
    bool last = slab->views == 0 && !slab->closed;
    slab->closed = true;
    mp__spin_unlock(&slab->spin);
    if (last) unmap(slab);
    return last;
}

void mp_slab_destroy(mp_slab *slab) {
    (void)mp_slab_close(slab);
    drop_reference(slab);
}

/* ---- items begin ---- */

static mp_handle take_first(mp_slab *slab) {
    size_t word = mp__levels_search(slab);
    unsigned bit = mp__lowest(~slab->levels[0][word]);
    size_t slot = word * 64 + bit;
    mp__slot_take(slab, word, (uint64_t)1 << bit);
    if (slot >= slab->slots) slab->slots = slot + 1;
    slab->live++;
    slab->allocs++;
    return mp__slot_name(slab, slot, mp__slot_generation(slab, slot));
}

static mp_handle name_now(const mp_slab *slab, size_t slot) {
    uint32_t generation = slot < slab->slots ? mp__slot_generation(slab, slot) : 0; /* untouched pages stay so */
    return mp__slot_name(slab, slot, generation);
}

/* The free slots of the next word, up to `count`. */
static size_t take_word(mp_slab *slab, size_t count, mp_handle *out) {
    size_t word = mp__levels_search(slab), n = 0;
    uint64_t bits = ~slab->levels[0][word], taken = 0;
    if (bits == UINT64_MAX && count >= 64) { /* the same as below, some times quicker */
        for (taken = bits; n < 64; n++) out[n] = name_now(slab, word * 64 + n);
    }
    for (; bits != taken && n < count; n++) {
        unsigned bit = mp__lowest(bits & ~taken);
        taken |= (uint64_t)1 << bit;
        out[n] = name_now(slab, word * 64 + bit);
    }
    size_t end = word * 64 + mp__log2(taken) + 1;
    mp__slot_take(slab, word, taken);
    if (end > slab->slots) slab->slots = end;
    return n;
}

static size_t used_slots(const mp_slab *slab) { return slab->live + slab->retired + slab->exhausted; }

/* With `spin` held: whether so many items can be given out. */
static bool has_room(const mp_slab *slab, size_t count) {
    return !slab->closed && used_slots(slab) <= slab->ready && count <= slab->ready - used_slots(slab);
}

static void tell_shortage(mp_slab *slab, mp_shortage *out, mp_account *binding) {
    if (out == NULL) return;
    *out = (mp_shortage){.in_use = slab->reserved, .limit = slab->limit, .binding = binding};
}

/* With `lock` held: room for `count` more, or why not; then `*needed` bytes would have to be taken. */
static mp_status make_room(mp_slab *slab, size_t count, mp_account **binding, size_t *needed) {
    mp__spin_lock(&slab->spin);
    size_t used = used_slots(slab), slots;
    bool closed = slab->closed, room = has_room(slab, count);
    mp__spin_unlock(&slab->spin);
    if (closed) return MP_ERR_CLOSED;
    if (room) return MP_OK;
    if (!mp__add(used, count, &slots)) return slab->limit != MP_NO_LIMIT ? MP_ERR_LIMIT : MP_ERR_FULL;
    return mp__slab_grow(slab, slots, binding, needed);
}

/* What the account refuses is tried again after others gave idle memory back, with no lock held. */
static mp_status find_room(mp_slab *slab, size_t count, mp_shortage *shortage) {
    mp_status status;
    mp_account *binding = NULL;
    size_t needed = 0;
    do {
        mp__mutex_lock(&slab->lock);
        status = make_room(slab, count, &binding, &needed);
        if (status != MP_OK) tell_shortage(slab, shortage, binding);
        MP_CHECK_SLAB(slab);
        mp__mutex_unlock(&slab->lock);
    } while (status == MP_ERR_ACCOUNT && mp__account_relieve(binding, needed));
    return status;
}

bool mp_slab_alloc_ready(mp_slab *slab, mp_handle *out) {
    mp__spin_lock(&slab->spin);
    bool room = has_room(slab, 1);
    if (MP_LIKELY(room)) *out = take_first(slab);
    mp__spin_unlock(&slab->spin);
    return room;
}

mp_status mp_slab_alloc(mp_slab *slab, mp_handle *out, mp_shortage *shortage) {
    while (!mp_slab_alloc_ready(slab, out)) {
        mp_status status = find_room(slab, 1, shortage);
        if (status != MP_OK) return status;
    }
    return MP_OK;
}

static bool alloc_many_ready(mp_slab *slab, size_t count, mp_handle *out) {
    mp__spin_lock(&slab->spin);
    bool room = has_room(slab, count);
    for (size_t n = 0; room && n < count;) n += take_word(slab, count - n, out + n);
    if (room) slab->live += count;
    if (room) slab->allocs += count;
    mp__spin_unlock(&slab->spin);
    return room;
}

mp_status mp_slab_alloc_many(mp_slab *slab, size_t count, mp_handle *out, mp_shortage *shortage) {
    while (!alloc_many_ready(slab, count, out)) {
        mp_status status = find_room(slab, count, shortage);
        if (status != MP_OK) return status;
    }
    return MP_OK;
}

/* ---- items end ---- */

/* With `spin` held. The handle is dead from here on; the slot is free, or waits for its last view, or has had all its lives. */
static bool free_one(mp_slab *slab, mp_handle handle) {
    size_t slot;
    if (!mp__slot_find(slab, handle, &slot)) return false;
    uint32_t generation = mp__slot_generation(slab, slot);
    slab->live--;
    if (MP_UNLIKELY(generation == MP__GENERATIONS - 1)) {
        mp__slot_put(slab, slot, generation, MP__SLOT_EXHAUSTED);
        slab->exhausted++;
    } else if (MP_UNLIKELY(mp__slot_state_of(slab, slot) == MP__SLOT_PINNED)) {
        mp__slot_put(slab, slot, generation + 1, MP__SLOT_RETIRED);
        slab->retired++;
    } else {
        mp__slot_put(slab, slot, generation + 1, MP__SLOT_PLAIN);
        mp__slot_return(slab, slot);
    }
    return true;
}

/* What the caller may change while we read it is read once. */
static mp_handle read_once(const mp_handle *handle) { return *(const volatile mp_handle *)handle; }

/* Takes back what free_one did a moment ago, under the same lock. If another thread has written other handles into the list since, that
 * may be nothing, and the item stays freed; false then. */
static bool restore_one(mp_slab *slab, mp_handle handle) {
    size_t slot = mp__handle_slot(handle);
    if (slot >= slab->slots) return false;
    uint32_t generation = mp__handle_generation(slab, handle, slot), now = mp__slot_generation(slab, slot);
    mp__slot_state state = mp__slot_state_of(slab, slot);
    bool waits = state == MP__SLOT_RETIRED || state == MP__SLOT_EXHAUSTED;
    if (now != generation + (state != MP__SLOT_EXHAUSTED) || waits != mp__slot_is_used(slab, slot)) return false;
    if (state == MP__SLOT_EXHAUSTED) slab->exhausted--;
    else if (state == MP__SLOT_RETIRED) slab->retired--;
    else mp__slot_take(slab, slot / 64, (uint64_t)1 << slot % 64);
    mp__slot_put(slab, slot, generation, slab->pins[slot] > 0 ? MP__SLOT_PINNED : MP__SLOT_PLAIN);
    slab->live++;
    return true;
}

mp_status mp_slab_free(mp_slab *slab, mp_handle handle) {
    mp__spin_lock(&slab->spin);
    mp_status status = slab->closed ? MP_ERR_CLOSED : free_one(slab, handle) ? MP_OK : MP_ERR_STALE;
    if (status == MP_OK) slab->frees++;
    mp__spin_unlock(&slab->spin);
    return status;
}

/* Live items at the front of the list that share a word of `used`, which is then written once. The first may need free_one. */
static size_t free_neighbours(mp_slab *slab, const mp_handle *handles, size_t count) {
    size_t word = mp__handle_slot(read_once(handles)) / 64, n = 0;
    if (word >= (slab->slots + 63) / 64) return 0;
    uint64_t before = slab->levels[0][word], bits = before;
    for (; n < count; n++) {
        mp_handle handle = read_once(handles + n);
        size_t slot = mp__handle_slot(handle);
        uint64_t bit = (uint64_t)1 << slot % 64;
        if (slot / 64 != word || !(bits & bit)) break;
        uint32_t generation = mp__handle_generation(slab, handle, slot);
        if (slab->generations[slot] != generation << MP__STATE_BITS || generation == MP__GENERATIONS - 1) break;
        mp__slot_put(slab, slot, generation + 1, MP__SLOT_PLAIN);
        bits ^= bit;
    }
    slab->levels[0][word] = bits;
    if (before == UINT64_MAX && n > 0) mp__levels_open(slab, word);
    if (word < slab->first && n > 0) slab->first = word;
    slab->live -= n;
    return n;
}

mp_status mp_slab_free_many(mp_slab *slab, const mp_handle *handles, size_t count, size_t *bad) {
    mp__spin_lock(&slab->spin);
    mp_status status = slab->closed ? MP_ERR_CLOSED : MP_OK;
    size_t n = 0;
    while (status == MP_OK && n < count) {
        size_t freed = free_neighbours(slab, handles + n, count - n);
        if (freed == 0 && !free_one(slab, read_once(handles + n))) break;
        n += freed > 0 ? freed : 1;
    }
    if (status == MP_OK && n < count) {
        *bad = n;
        status = MP_ERR_STALE;
        for (size_t i = 0; i < *bad; i++) n -= restore_one(slab, read_once(handles + i));
    }
    slab->frees += n; /* on failure 0 */
    mp__spin_unlock(&slab->spin);
    return status;
}

/* ---- items are looked at ---- */

bool mp_slab_has(mp_slab *slab, mp_handle handle) {
    size_t slot;
    mp__spin_lock(&slab->spin);
    bool found = !slab->closed && mp__slot_find(slab, handle, &slot);
    mp__spin_unlock(&slab->spin);
    return found;
}

mp_status mp_slab_find(mp_slab *slab, const mp_handle *handles, size_t count, ptrdiff_t *out, size_t *bad) {
    mp__spin_lock(&slab->spin);
    mp_status status = slab->closed ? MP_ERR_CLOSED : MP_OK;
    size_t slot = 0;
    for (size_t i = 0; status == MP_OK && i < count; i++) {
        if (mp__slot_find(slab, read_once(handles + i), &slot)) {
            out[i] = (ptrdiff_t)slot;
        } else {
            *bad = i;
            status = MP_ERR_STALE;
        }
    }
    mp__spin_unlock(&slab->spin);
    return status;
}

size_t mp_slab_length(mp_slab *slab) {
    mp__spin_lock(&slab->spin);
    size_t live = slab->live;
    mp__spin_unlock(&slab->spin);
    return live;
}

/* Bits of a word of `used` whose slots are live. */
static uint64_t live_bits(const mp_slab *slab, size_t word) {
    uint64_t used = slab->levels[0][word], live = used;
    if (slab->retired + slab->exhausted == 0) return live;
    for (; used != 0; used &= used - 1) {
        if (mp__slot_state_of(slab, word * 64 + mp__lowest(used)) > MP__SLOT_PINNED) live &= ~(used & (0 - used));
    }
    return live;
}

size_t mp_slab_handles(mp_slab *slab, mp_handle *out, size_t capacity) {
    size_t n = 0;
    mp__spin_lock(&slab->spin);
    for (size_t word = 0; !slab->closed && word * 64 < slab->slots && n < capacity; word++) {
        for (uint64_t bits = live_bits(slab, word); bits != 0 && n < capacity; bits &= bits - 1) {
            size_t slot = word * 64 + mp__lowest(bits);
            out[n++] = mp__slot_name(slab, slot, mp__slot_generation(slab, slot));
        }
    }
    mp__spin_unlock(&slab->spin);
    return n;
}

/* Neighbours go in one piece. */
static size_t copy_word(const mp_slab *slab, size_t word, uint64_t bits, char *out, size_t room) {
    size_t n = 0;
    while (bits != 0 && n < room) {
        unsigned first = mp__lowest(bits);
        uint64_t rest = ~(bits >> first);
        size_t run = rest == 0 ? 64 : mp__lowest(rest);
        if (run > room - n) run = room - n;
        memcpy(out + n * slab->item_size, slab->items + (word * 64 + first) * slab->item_size, run * slab->item_size);
        n += run;
        bits = first + run < 64 ? bits & UINT64_MAX << (first + run) : 0;
    }
    return n;
}

/* The lock is let go now and then: copying takes long, and others may hold more than this lock. */
size_t mp_slab_copy_live(mp_slab *slab, void *out, size_t capacity) {
    size_t n = 0, pause = 0;
    mp__spin_lock(&slab->spin);
    for (size_t word = 0; !slab->closed && word * 64 < slab->slots && n < capacity; word++) {
        n += copy_word(slab, word, live_bits(slab, word), (char *)out + n * slab->item_size, capacity - n);
        if ((n - pause) * slab->item_size < COPY_AT_ONCE) continue;
        pause = n;
        mp__spin_unlock(&slab->spin);
        mp__spin_lock(&slab->spin);
    }
    mp__spin_unlock(&slab->spin);
    return n;
}

/* ---- views ---- */

mp_status mp_slab_pin(mp_slab *slab, mp_handle handle, void **item) {
    size_t slot = 0;
    mp__spin_lock(&slab->spin);
    mp_status status = slab->closed ? MP_ERR_CLOSED : mp__slot_find(slab, handle, &slot) ? MP_OK : MP_ERR_STALE;
    if (status == MP_OK) {
        if (slab->pins[slot]++ == 0) mp__slot_put(slab, slot, mp__slot_generation(slab, slot), MP__SLOT_PINNED);
        slab->views++;
        atomic_fetch_add_explicit(&slab->references, 1, memory_order_relaxed);
        *item = slab->items + slot * slab->item_size;
    }
    mp__spin_unlock(&slab->spin);
    return status;
}

/* With `spin` held: the last view of the item ended. */
static void let_go(mp_slab *slab, size_t slot) {
    uint32_t generation = mp__slot_generation(slab, slot);
    if (mp__slot_state_of(slab, slot) == MP__SLOT_PINNED) {
        mp__slot_put(slab, slot, generation, MP__SLOT_PLAIN);
    } else if (mp__slot_state_of(slab, slot) == MP__SLOT_RETIRED) {
        mp__slot_put(slab, slot, generation, MP__SLOT_PLAIN);
        mp__slot_return(slab, slot);
        slab->retired--;
    }
}

bool mp_slab_leave(mp_slab *slab, void *item) {
    mp__spin_lock(&slab->spin);
    if (item != NULL) {
        size_t slot = (size_t)((char *)item - slab->items) / slab->item_size;
        if (slab->pins[slot] == 0) mp__os_abort("an item of a slab was unpinned once too often");
        if (--slab->pins[slot] == 0) let_go(slab, slot);
    }
    bool last = slab->closed && slab->views == 1;
    if (!last) slab->views--;
    mp__spin_unlock(&slab->spin);
    return last;
}

void mp_slab_end(mp_slab *slab, bool last) {
    if (last) {
        mp__spin_lock(&slab->spin);
        slab->views--;
        mp__spin_unlock(&slab->spin);
        unmap(slab);
    }
    drop_reference(slab);
}

bool mp_slab_unpin(mp_slab *slab, void *item) {
    bool last = mp_slab_leave(slab, item);
    mp_slab_end(slab, last);
    return last;
}

bool mp_slab_unview(mp_slab *slab) { return mp_slab_unpin(slab, NULL); }

mp_status mp_slab_view(mp_slab *slab, void **base, size_t *slots) {
    mp__spin_lock(&slab->spin);
    mp_status status = slab->closed ? MP_ERR_CLOSED : MP_OK;
    if (status == MP_OK) {
        slab->views++;
        atomic_fetch_add_explicit(&slab->references, 1, memory_order_relaxed);
        *base = slab->items;
        *slots = slab->slots;
    }
    mp__spin_unlock(&slab->spin);
    return status;
}

/* ---- the whole ---- */

size_t mp_slab_trim(mp_slab *slab) {
    mp__mutex_lock(&slab->lock);
    size_t bytes = mp__slab_trim(slab);
    MP_CHECK_SLAB(slab);
    mp__mutex_unlock(&slab->lock);
    return bytes;
}

void mp_slab_stats_read(mp_slab *slab, mp_slab_stats *out) {
    mp__mutex_lock(&slab->lock);
    mp__spin_lock(&slab->spin);
    *out = (mp_slab_stats){
        .live = slab->live,
        .retired = slab->retired,
        .exhausted = slab->exhausted,
        .slots = slab->slots,
        .max_items = slab->capacity,
        .reserved = slab->reserved,
        .peak = slab->peak,
        .limit = slab->limit,
        .address_space = slab->base != NULL ? slab->address_space : 0,
        .allocs = slab->allocs,
        .frees = slab->frees,
    };
    mp__spin_unlock(&slab->spin);
    mp__mutex_unlock(&slab->lock);
}

bool mp_slab_is_valid(mp_slab *slab) {
    mp__mutex_lock(&slab->lock);
    bool valid = mp__slab_check(slab);
    mp__mutex_unlock(&slab->lock);
    return valid;
}
