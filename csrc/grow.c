/* grow.c: what happens when no block is idle where a lease looked first.
 *
 *   1. the other shards of the class, and the next classes as far as they waste at most an eighth of the request
 *   2. room under the limit? idle memory of other classes is given up to make some
 *   3. a charge to the account; where it binds, all pools under it give idle memory back (with no lock held), and again from 1
 *   4. a chunk from the OS; where it has none, all pools give idle memory back, once
 *
 * Whether the limit really binds is decided with every shard locked: a block that moves from one shard to another while we
 * look must not
 * make a lease fail that could have had it. */
#include "internal.h"
#include "shard.h"
#include "sizeclass.h"

static mp_status make_class(mp_pool *pool, unsigned index, mp__class **out) {
    const mp_source *source = pool->config.source;
    mp__class *cls = mp__pool_class(pool, index);
    if (cls == NULL) {
        cls = source->alloc(source->context, sizeof *cls);
        if (cls == NULL) return MP_ERR_NOMEM;
        cls->pool = pool;
        cls->size = mp__class_stride(index, mp__os_page_size(), pool->config.alignment);
        atomic_store_explicit(&pool->classes[index], cls, memory_order_release);
    }
    *out = cls;
    return MP_OK;
}

/* The class `index` and those after it whose blocks may serve the request. */
static bool may_serve(const mp__class *cls, unsigned index, unsigned first, size_t nbytes) {
    return index == first || cls->size <= nbytes + nbytes / 8;
}

static void count_taken(mp_pool *pool, const mp__block *block) {
    if (mp__pool_flags(pool) & MP__MAX_IDLE) {
        atomic_fetch_sub_explicit(&pool->idle_bytes, block->lease.capacity, memory_order_relaxed);
    }
}

/* `locked`: the caller holds all shards' locks. */
static mp__block *find_idle(mp_pool *pool, size_t nbytes, bool locked) {
    unsigned first = mp__class_for(pool, nbytes);
    mp__block *block = NULL;
    for (unsigned i = first; i < MP__CLASSES && i <= first + 2 && block == NULL; i++) {
        mp__class *cls = mp__pool_class(pool, i);
        if (cls == NULL || !may_serve(cls, i, first, nbytes)) continue;
        for (unsigned k = 0; k < MP__SHARDS && block == NULL; k++) {
            mp__shard *shard = &cls->shards[k];
            if (!locked) mp__spin_lock(&shard->lock);
            block = mp__shard_pop(shard, nbytes);
            if (!locked) mp__spin_unlock(&shard->lock);
        }
    }
    if (block != NULL) count_taken(pool, block);
    return block;
}

static size_t room_of(const mp_pool *pool) { return pool->limit - pool->reserved; }

/* Makes room for `needed` bytes, or finds an idle block that came meanwhile, or MP_ERR_LIMIT. `nbytes` 0: look for no block. */
static mp_status make_room(mp_pool *pool, size_t needed, size_t nbytes, const mp__class *keep, mp__block **found) {
    *found = NULL;
    if (room_of(pool) >= needed) return MP_OK;
    mp__pool_lock_shards(pool);
    if (nbytes > 0) *found = find_idle(pool, nbytes, true);
    if (*found == NULL) mp__pool_detach(pool, keep);
    mp__pool_unlock_shards(pool);
    if (*found != NULL) return MP_OK;
    if (mp__pool_releasable(pool) + room_of(pool) < needed) {
        (void)mp__pool_settle(pool, 0);
        return MP_ERR_LIMIT;
    }
    (void)mp__pool_settle(pool, needed - room_of(pool));
    return room_of(pool) >= needed ? MP_OK : MP_ERR_LIMIT;
}

static void book_taken(mp_pool *pool, size_t taken) {
    pool->reserved += taken;
    if (pool->peak < pool->reserved) pool->peak = pool->reserved;
    mp__account_note_peak(pool->config.account);
}

/* Takes up to `count` blocks; charges first, so that nothing is mapped that an account forbids. */
static mp_status take(mp__class *cls, size_t *count, mp__block **out, mp_account **binding) {
    mp_account *account = cls->pool->config.account;
    size_t charged = *count;
    mp_status status = mp__account_try_charge(account, charged * cls->size, binding);
    if (status != MP_OK && charged > 1) {
        charged = *count = 1;
        status = mp__account_try_charge(account, cls->size, binding);
    }
    if (status != MP_OK) return status;
    status = mp__chunk_take(cls, count, out);
    size_t taken = status == MP_OK ? *count : 0;
    if (charged > taken && account != NULL) mp_account_discharge(account, (charged - taken) * cls->size);
    if (status == MP_OK) book_taken(cls->pool, taken * cls->size);
    return status;
}

bool mp__pool_has_idle(mp_pool *pool) {
    if (!(mp__pool_flags(pool) & MP__ASLEEP)) return true;
    if (pool->config.idle_timeout != MP_NEVER && !mp__registry_wake()) return false;
    atomic_fetch_and_explicit(&pool->flags, ~(unsigned)MP__ASLEEP, memory_order_relaxed);
    return true;
}

/* Blocks that were taken in excess become idle. */
static void push_spare(mp__class *cls, mp__block *spare, size_t count) {
    if (count == 0) return;
    (void)mp__pool_has_idle(cls->pool);
    mp__shard *shard = mp__shard_lock(cls);
    while (spare != NULL) {
        mp__block *next = spare->next;
        mp__shard_push(shard, spare);
        spare = next;
    }
    mp__shard_unlock(shard);
    if (mp__pool_flags(cls->pool) & MP__MAX_IDLE) {
        atomic_fetch_add_explicit(&cls->pool->idle_bytes, count * cls->size, memory_order_relaxed);
    }
}

static void lend_new(mp__class *cls, mp__block *block, size_t nbytes) {
    mp__shard *shard = mp__shard_lock(cls);
    shard->events[MP__EVENT_MISS]++;
    shard->requested += nbytes;
    mp__shard_unlock(shard);
    block->lease.requested = nbytes;
    block->state = MP__LIVE;
}

/* Steps 1 to 4 but for giving back in other pools, under the pool's lock. */
static mp_status grow_locked(mp_pool *pool, size_t nbytes, mp__block **out, mp_shortage *shortage) {
    mp__class *cls;
    mp_status status;
    if (mp__pool_flags(pool) & MP__CLOSED) return MP_ERR_CLOSED;
    *out = find_idle(pool, nbytes, false);
    if (*out != NULL) return MP_OK;
    status = make_class(pool, mp__class_for(pool, nbytes), &cls);
    if (status != MP_OK) return status;
    status = make_room(pool, cls->size, nbytes, cls, out);
    if (status != MP_OK) {
        shortage->hopeless = cls->size > pool->limit;
        return status;
    }
    if (*out != NULL) return MP_OK;
    mp__block *list;
    size_t count = mp__chunk_batch(cls, room_of(pool));
    status = take(cls, &count, &list, &shortage->binding);
    if (status != MP_OK) return status;
    *out = list;
    push_spare(cls, list->next, count - 1);
    lend_new(cls, list, nbytes);
    return MP_OK;
}

/* What other pools can do about a failure; the caller holds no lock. */
static bool relieved(mp_status status, const mp_shortage *shortage, size_t needed, bool *tried) {
    if (status == MP_ERR_ACCOUNT) return mp__account_relieve(shortage->binding, needed);
    if (status != MP_ERR_NOMEM || *tried || needed > MP__MAX_SIZE) return false;
    *tried = true;
    return mp__registry_reclaim_all() > 0;
}

mp_status mp__pool_grow(mp_pool *pool, size_t nbytes, mp_block **out, mp_shortage *shortage) {
    mp_shortage unused;
    bool tried = false;
    mp_status status;
    if (shortage == NULL) shortage = &unused;
    *shortage = (mp_shortage){0};
    if (nbytes > MP__MAX_SIZE) return MP_ERR_NOMEM;
    do {
        mp__block *block = NULL;
        *shortage = (mp_shortage){0};
        mp__mutex_lock(&pool->lock);
        status = grow_locked(pool, nbytes, &block, shortage);
        shortage->limit = pool->limit;
        if (status == MP_ERR_LIMIT) shortage->in_use = mp__pool_lent(pool);
        MP_CHECK(pool);
        mp__mutex_unlock(&pool->lock);
        if (status == MP_OK) *out = &block->lease;
    } while (status != MP_OK && relieved(status, shortage, mp_pool_block_size(pool, nbytes), &tried));
    return status;
}

static size_t count_idle_blocks(mp__class *cls) {
    size_t blocks = 0;
    for (unsigned k = 0; k < MP__SHARDS; k++) {
        mp__spin_lock(&cls->shards[k].lock);
        blocks += cls->shards[k].idle;
        mp__spin_unlock(&cls->shards[k].lock);
    }
    return blocks;
}

static void prefault(mp__class *cls, mp__block *list) {
    if (cls->size < mp__os_page_size()) return;
    for (; list != NULL; list = list->next) mp__os_prefault(list->lease.data, cls->size);
}

/* What the OS would refuse as a whole it must not grant bit by bit until it kills. */
static mp_status ask_for_all(const mp_source *source, size_t nbytes) {
    void *ptr;
    size_t rounded;
    if (!mp__align_up(nbytes, mp__os_page_size(), &rounded)) return MP_ERR_NOMEM;
    if (source->map(source->context, rounded, mp__os_page_size(), false, &ptr) != MP_OK) return MP_ERR_NOMEM;
    return source->unmap(source->context, ptr, rounded);
}

/* Up to `*count` new blocks, for which there is room and charge; says how many. */
static mp_status take_many(mp__class *cls, size_t *count, mp__block **out) {
    mp_status status = ask_for_all(cls->pool->config.source, *count * cls->size);
    size_t taken = 0;
    *out = NULL;
    while (status == MP_OK && taken < *count) {
        mp__block *list, *last;
        size_t batch = *count - taken;
        status = mp__chunk_take(cls, &batch, &list);
        if (status != MP_OK) break;
        for (last = list; last->next != NULL;) last = last->next;
        last->next = *out;
        *out = list;
        taken += batch;
    }
    *count = taken;
    return status;
}

/* Only part of what was charged came. It goes back, but for small blocks whose chunk is in use: those stay, idle. */
static void undo_take(mp__class *cls, mp__block *list, size_t taken, size_t charged) {
    mp_pool *pool = cls->pool;
    size_t kept = taken > 0 ? taken - mp__class_untake(cls, list) : 0;
    if (pool->config.account != NULL) mp_account_discharge(pool->config.account, charged - kept);
    if (kept == 0) return;
    book_taken(pool, kept);
    (void)mp__pool_has_idle(pool);
    if (mp__pool_flags(pool) & MP__MAX_IDLE) atomic_fetch_add_explicit(&pool->idle_bytes, kept, memory_order_relaxed);
}

/* Fills the class up to `count` idle blocks, or changes nothing. */
static mp_status fill(mp__class *cls, size_t count, size_t *needed, mp_shortage *shortage) {
    mp_pool *pool = cls->pool;
    size_t have = count_idle_blocks(cls);
    mp__block *list, *found;
    if (have >= count) return MP_OK;
    shortage->hopeless = count > pool->limit / cls->size;
    if (!mp__mul(count - have, cls->size, needed) || *needed > MP__MAX_SIZE) {
        *needed = MP_NO_LIMIT; /* beyond all addresses */
        return pool->limit != MP_NO_LIMIT ? MP_ERR_LIMIT : MP_ERR_NOMEM;
    }
    mp_status status = make_room(pool, *needed, 0, cls, &found);
    if (status == MP_OK) status = mp__account_try_charge(pool->config.account, *needed, &shortage->binding);
    if (status != MP_OK) return status;
    size_t taken = count - have;
    status = take_many(cls, &taken, &list);
    if (status != MP_OK) {
        undo_take(cls, list, taken * cls->size, *needed);
        return status;
    }
    prefault(cls, list);
    book_taken(pool, *needed);
    push_spare(cls, list, count - have);
    return MP_OK;
}

static mp_status reserve_locked(mp_pool *pool, size_t nbytes, size_t count, size_t *needed, mp_shortage *shortage) {
    mp__class *cls;
    if (mp__pool_flags(pool) & MP__CLOSED) return MP_ERR_CLOSED;
    mp_status status = make_class(pool, mp__class_for(pool, nbytes), &cls);
    return status == MP_OK ? fill(cls, count, needed, shortage) : status;
}

mp_status mp_pool_reserve(mp_pool *pool, size_t nbytes, size_t count, mp_shortage *shortage) {
    mp_shortage unused;
    bool tried = false;
    size_t needed = 0;
    mp_status status;
    if (shortage == NULL) shortage = &unused;
    *shortage = (mp_shortage){0};
    if (nbytes > MP__MAX_SIZE) return MP_ERR_NOMEM;
    do {
        *shortage = (mp_shortage){0};
        mp__mutex_lock(&pool->lock);
        status = reserve_locked(pool, nbytes, count, &needed, shortage);
        shortage->limit = pool->limit;
        if (status == MP_ERR_LIMIT) shortage->in_use = mp__pool_lent(pool);
        MP_CHECK(pool);
        mp__mutex_unlock(&pool->lock);
    } while (status != MP_OK && relieved(status, shortage, needed, &tried));
    return status;
}
