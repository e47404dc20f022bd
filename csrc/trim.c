/* trim.c: idle memory goes back to the OS, because somebody asked, a limit binds, or it was idle for long. Under the pool's lock.
 *
 *   detach: take every idle list off its shard (locks of the hot path held for a moment each)
 *   settle: sort by chunk, give back what is wanted, push the rest
 *
 * In between a lease that finds no idle block waits for the pool's lock, and then finds what was pushed back. */
#include "internal.h"
#include "shard.h"

#define SHORTEST_PERIOD UINT64_C(1000000) /* 1 ms: no timeout makes the thread spin */

static void count_idle(mp_pool *pool, size_t less) {
    if (mp__pool_flags(pool) & MP__MAX_IDLE) atomic_fetch_sub_explicit(&pool->idle_bytes, less, memory_order_relaxed);
}

void mp__pool_lock_shards(mp_pool *pool) {
    for (unsigned i = 0; i < MP__CLASSES; i++) {
        mp__class *cls = mp__pool_class(pool, i);
        for (unsigned k = 0; cls != NULL && k < MP__SHARDS; k++) mp__spin_lock(&cls->shards[k].lock);
    }
}

void mp__pool_unlock_shards(mp_pool *pool) {
    for (unsigned i = 0; i < MP__CLASSES; i++) {
        mp__class *cls = mp__pool_class(pool, i);
        for (unsigned k = 0; cls != NULL && k < MP__SHARDS; k++) mp__spin_unlock(&cls->shards[k].lock);
    }
}

/* With the shard's lock held. Each block remembers where it came from. */
static void detach_shard(mp__class *cls, unsigned number) {
    mp__shard *shard = &cls->shards[number];
    while (shard->head != NULL) {
        mp__block *block = shard->head;
        shard->head = block->next;
        block->shard = (uint8_t)number;
        block->next = cls->detached;
        cls->detached = block;
    }
    shard->idle = 0;
}

void mp__pool_detach(mp_pool *pool, const mp__class *keep) {
    for (unsigned i = 0; i < MP__CLASSES; i++) {
        mp__class *cls = mp__pool_class(pool, i);
        if (cls == NULL || cls == keep) continue;
        for (unsigned k = 0; k < MP__SHARDS; k++) detach_shard(cls, k);
    }
}

static void detach_class(mp__class *cls) {
    for (unsigned k = 0; k < MP__SHARDS; k++) {
        mp__spin_lock(&cls->shards[k].lock);
        detach_shard(cls, k);
        mp__spin_unlock(&cls->shards[k].lock);
    }
}

static void sort_detached(mp__class *cls) {
    mp__block *detached = cls->detached;
    cls->detached = NULL;
    mp__chunk_sort(cls, detached);
}

size_t mp__pool_releasable(mp_pool *pool) {
    size_t bytes = 0;
    for (unsigned i = 0; i < MP__CLASSES; i++) {
        mp__class *cls = mp__pool_class(pool, i);
        if (cls == NULL) continue;
        sort_detached(cls);
        bytes += mp__chunk_releasable(cls);
    }
    return bytes;
}

static void push_back(mp__class *cls, mp__block *kept) {
    while (kept != NULL) {
        mp__block *block = kept;
        mp__shard *shard = &cls->shards[block->shard];
        kept = block->next;
        mp__spin_lock(&shard->lock);
        mp__shard_push(shard, block);
        mp__spin_unlock(&shard->lock);
    }
}

/* A purge looks at how low the idle count went; memory taken away by force must not look like use. */
static void lower_marks(mp__class *cls) {
    for (unsigned k = 0; k < MP__SHARDS; k++) {
        mp__shard *shard = &cls->shards[k];
        mp__spin_lock(&shard->lock);
        if (shard->low > shard->idle) shard->low = shard->idle;
        mp__spin_unlock(&shard->lock);
    }
}

static size_t settle_class(mp__class *cls, size_t wanted) {
    size_t freed = 0;
    sort_detached(cls);
    push_back(cls, mp__chunk_settle(cls, wanted, &freed));
    lower_marks(cls);
    return freed;
}

/* Freed bytes leave the books: reserved, the account, the idle counter. */
static size_t book_freed(mp_pool *pool, size_t freed) {
    pool->reserved -= freed;
    if (pool->config.account != NULL && freed > 0) mp_account_discharge(pool->config.account, freed);
    count_idle(pool, freed);
    return freed;
}

size_t mp__pool_settle(mp_pool *pool, size_t wanted) {
    size_t freed = 0;
    for (unsigned i = MP__CLASSES; i-- > 0;) { /* large blocks first: fewest calls, and they cost the least to get again per byte */
        mp__class *cls = mp__pool_class(pool, i);
        if (cls != NULL && (cls->detached != NULL || cls->sorted != NULL)) {
            freed += settle_class(cls, freed < wanted ? wanted - freed : 0);
        }
    }
    return book_freed(pool, freed);
}

static size_t class_idle(mp__class *cls) {
    size_t blocks = 0;
    for (unsigned k = 0; k < MP__SHARDS; k++) {
        mp__spin_lock(&cls->shards[k].lock);
        blocks += cls->shards[k].idle;
        mp__spin_unlock(&cls->shards[k].lock);
    }
    return blocks * cls->size;
}

static bool is_worth_a_look(const mp__class *cls, size_t idle) {
    return cls->size >= mp__os_page_size() || idle >= cls->retry_at || idle == cls->warm * cls->size;
}

size_t mp__pool_give_back(mp_pool *pool, size_t wanted, bool thorough) {
    size_t freed = 0;
    for (unsigned i = MP__CLASSES; i-- > 0 && freed < wanted;) {
        mp__class *cls = mp__pool_class(pool, i);
        size_t idle = cls != NULL ? class_idle(cls) : 0;
        if (idle == 0 || !(thorough || is_worth_a_look(cls, idle))) continue;
        detach_class(cls);
        freed += settle_class(cls, wanted - freed);
        cls->retry_at = class_idle(cls) + MP__SMALL_CHUNK;
    }
    return book_freed(pool, freed);
}

void mp__pool_give_one(mp__block *block) {
    mp__class *cls = block->cls;
    block->state = MP__IDLE;
    block->shard = 0;
    block->next = NULL;
    (void)book_freed(cls->pool, mp__class_untake(cls, block));
}

size_t mp__pool_idle(mp_pool *pool) {
    size_t bytes = 0;
    for (unsigned i = 0; i < MP__CLASSES; i++) {
        mp__class *cls = mp__pool_class(pool, i);
        if (cls != NULL) bytes += class_idle(cls);
    }
    return bytes;
}

size_t mp__pool_weigh_idle(mp_pool *pool) {
    mp__pool_lock_shards(pool);
    mp__pool_detach(pool, NULL);
    mp__pool_unlock_shards(pool);
    size_t bytes = mp__pool_releasable(pool);
    (void)mp__pool_settle(pool, 0);
    return bytes;
}

size_t mp__class_untake(mp__class *cls, mp__block *list) {
    size_t freed = 0;
    mp__chunk_sort(cls, list);
    push_back(cls, mp__chunk_settle(cls, MP_NO_LIMIT, &freed));
    return freed;
}

size_t mp__pool_lent(mp_pool *pool) { return pool->reserved - mp__pool_idle(pool); }

/* Blocks of the class that were idle all the time since the last tick; a new period begins. */
static size_t class_unused(mp__class *cls) {
    size_t blocks = 0;
    for (unsigned k = 0; k < MP__SHARDS; k++) {
        mp__shard *shard = &cls->shards[k];
        mp__spin_lock(&shard->lock);
        blocks += shard->low;
        shard->low = shard->idle;
        mp__spin_unlock(&shard->lock);
    }
    return blocks * cls->size;
}

static void purge(mp_pool *pool) {
    size_t freed = 0;
    for (unsigned i = 0; i < MP__CLASSES; i++) {
        mp__class *cls = mp__pool_class(pool, i);
        size_t unused = cls != NULL ? class_unused(cls) : 0;
        if (unused == 0) continue;
        detach_class(cls);
        freed += settle_class(cls, unused);
    }
    (void)book_freed(pool, freed);
}

/* Nothing idle at one moment: from then on the pool itself says when there is something again. */
static bool fall_asleep(mp_pool *pool) {
    bool idle = false;
    mp__pool_lock_shards(pool);
    for (unsigned i = 0; i < MP__CLASSES && !idle; i++) {
        mp__class *cls = mp__pool_class(pool, i);
        for (unsigned k = 0; cls != NULL && k < MP__SHARDS; k++) idle |= cls->shards[k].head != NULL;
    }
    if (!idle) atomic_fetch_or_explicit(&pool->flags, MP__ASLEEP, memory_order_relaxed);
    mp__pool_unlock_shards(pool);
    return !idle;
}

uint64_t mp__pool_tick(mp_pool *pool, uint64_t now) {
    if (mp__pool_flags(pool) & MP__ASLEEP || pool->config.idle_timeout == MP_NEVER) return pool->due = MP_NEVER;
    uint64_t period = pool->config.idle_timeout / 2;
    if (period < SHORTEST_PERIOD) period = SHORTEST_PERIOD;
    if (period > MP_NEVER - now - 1) return MP_NEVER; /* centuries */
    if (pool->due == MP_NEVER) {                      /* it has just been woken, and what is lent now may be idle soon */
        pool->due = now + period;
        if (pool->reserved > 0) return pool->due; /* else it was trimmed before this first look, and nobody nudges again */
    }
    if (now >= pool->due) {
        purge(pool);
        pool->due = now + period;
        MP_CHECK(pool);
    }
    if (mp__pool_idle(pool) == 0 && fall_asleep(pool)) pool->due = MP_NEVER;
    return pool->due;
}
