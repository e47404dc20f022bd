/* pool.c: leases begin and end here. The life of a pool, the hot path, the handlers that the registry calls.
 *
 * One flags word stands for all rare cases; it is read with the shard's lock held, and changed before the shards are visited
 * by whoever
 * relies on it. So a release either sees the flag, or its block is in a list before the other looks there: no wake-up is lost,
 * and no
 * block of a closed pool stays idle, without a fence on the hot path. */
#include <string.h>

#include "internal.h"
#include "shard.h"
#include "sizeclass.h"

/* From here on clearing costs more than new pages do, if not all of them are touched; glibc's calloc draws the same line. */
#define BLANK_FROM ((size_t)32 << 20)

_Thread_local unsigned mp__shard_hint MP_TLS_FAST;

/* ---- life ---- */

static uint64_t tenant_tick(mp__tenant *tenant, uint64_t now) {
    mp_pool *pool = (mp_pool *)tenant;
    mp__mutex_lock(&pool->lock);
    uint64_t due = mp__pool_tick(pool, now);
    mp__mutex_unlock(&pool->lock);
    return due;
}

static size_t tenant_reclaim(mp__tenant *tenant, const mp_account *under, size_t needed) {
    mp_pool *pool = (mp_pool *)tenant;
    if (under != NULL && !mp_account_is_under(pool->config.account, under)) return 0;
    mp__mutex_lock(&pool->lock);
    size_t freed = mp__pool_give_back(pool, needed, true);
    mp__mutex_unlock(&pool->lock);
    return freed;
}

static size_t tenant_releasable(mp__tenant *tenant, const mp_account *under) {
    mp_pool *pool = (mp_pool *)tenant;
    if (!mp_account_is_under(pool->config.account, under)) return 0;
    mp__mutex_lock(&pool->lock);
    size_t bytes = mp__pool_weigh_idle(pool);
    mp__mutex_unlock(&pool->lock);
    return bytes;
}

static void tenant_before_fork(mp__tenant *tenant) {
    mp_pool *pool = (mp_pool *)tenant;
    mp__mutex_lock(&pool->lock);
    /* The thread was stopped. The flag comes first: what another thread releases from here on waits for the lock, and wakes the thread then. */
    atomic_fetch_or_explicit(&pool->flags, MP__ASLEEP, memory_order_relaxed);
    pool->due = MP_NEVER;
    (void)mp__pool_give_back(pool, MP_NO_LIMIT, true);
    mp__pool_lock_shards(pool);
}

static void tenant_after_fork(mp__tenant *tenant, bool child) {
    mp_pool *pool = (mp_pool *)tenant;
    if (child) atomic_fetch_and_explicit(&pool->flags, ~(unsigned)MP__WAITERS, memory_order_relaxed);
    mp__pool_unlock_shards(pool);
    mp__mutex_unlock(&pool->lock);
}

static const mp__tenant_ops pool_ops = {
    .tick = tenant_tick,
    .releasable = tenant_releasable,
    .reclaim = tenant_reclaim,
    .before_fork = tenant_before_fork,
    .after_fork = tenant_after_fork,
};

static bool is_sound(const mp_pool_config *config) {
    return mp__is_power_of_two(config->alignment) && config->alignment <= mp__os_huge_size() && config->huge <= MP_HUGE_NEVER;
}

mp_status mp_pool_create(const mp_pool_config *config, mp_pool **out) {
    const mp_source *source = config->source != NULL ? config->source : mp_source_os();
    if (!is_sound(config)) return MP_ERR_INVALID;
    mp_pool *pool = source->alloc(source->context, sizeof *pool);
    if (pool == NULL) return MP_ERR_NOMEM;
    pool->config = *config;
    pool->config.source = source;
    if (config->idle_timeout == 0) {
        pool->config.max_idle = 0;
        pool->config.idle_timeout = MP_NEVER; /* nothing is left for the thread */
    }
    pool->limit = config->limit;
    pool->due = MP_NEVER;
    atomic_init(&pool->flags, MP__ASLEEP | (pool->config.max_idle != MP_NO_LIMIT ? MP__MAX_IDLE : 0));
    mp__mutex_init(&pool->lock);
    mp_status status = mp__registry_add(&pool->tenant, &pool_ops);
    if (status != MP_OK) {
        mp__mutex_destroy(&pool->lock);
        source->free(source->context, pool);
        return status;
    }
    if (config->account != NULL) mp_account_retain(config->account);
    *out = pool;
    return MP_OK;
}

static void close_locked(mp_pool *pool) {
    atomic_fetch_or_explicit(&pool->flags, MP__CLOSED, memory_order_relaxed);
    (void)mp__pool_give_back(pool, MP_NO_LIMIT, true);
}

static void free_pool(mp_pool *pool) {
    const mp_source *source = pool->config.source;
    mp__registry_remove(&pool->tenant);
    for (unsigned i = 0; i < MP__CLASSES; i++) {
        mp__class *cls = mp__pool_class(pool, i);
        if (cls == NULL) continue;
        mp__chunk_free_all(cls);
        source->free(source->context, cls);
    }
    /* What an unmap refused is idle for ever; the account must not remember it. */
    if (pool->config.account != NULL) {
        if (pool->reserved > 0) mp_account_discharge(pool->config.account, pool->reserved);
        mp_account_release(pool->config.account);
    }
    mp__mutex_destroy(&pool->lock);
    source->free(source->context, pool);
}

/* With the lock held: nobody will ever need it again. */
static bool is_done(mp_pool *pool) { return pool->orphaned && pool->holds == 0 && mp__pool_lent(pool) == 0; }

void mp_pool_close(mp_pool *pool) {
    mp__mutex_lock(&pool->lock);
    close_locked(pool);
    MP_CHECK(pool);
    mp__mutex_unlock(&pool->lock);
    mp__registry_nudge();
}

void mp_pool_destroy(mp_pool *pool) {
    mp__mutex_lock(&pool->lock);
    close_locked(pool);
    pool->orphaned = true;
    bool done = is_done(pool);
    mp__mutex_unlock(&pool->lock);
    if (done) free_pool(pool);
}

void mp__pool_hold(mp_pool *pool) {
    mp__mutex_lock(&pool->lock);
    pool->holds++;
    mp__mutex_unlock(&pool->lock);
}

void mp__pool_let_go(mp_pool *pool) {
    mp__mutex_lock(&pool->lock);
    pool->holds--;
    bool done = is_done(pool);
    mp__mutex_unlock(&pool->lock);
    if (done) free_pool(pool);
}

/* ---- a lease begins ---- */

mp_block *mp_pool_acquire_idle(mp_pool *pool, size_t nbytes) {
    if (MP_UNLIKELY(nbytes > MP__MAX_SIZE)) return NULL;
    mp__class *cls = mp__pool_class(pool, mp__class_for(pool, nbytes));
    if (MP_UNLIKELY(cls == NULL)) return NULL;
    mp__shard *shard = mp__shard_lock(cls);
    unsigned flags = mp__pool_flags(pool);
    /* A closed pool may keep idle blocks: small ones, beside a neighbour that is lent. */
    mp__block *block = MP_UNLIKELY(flags & MP__CLOSED) ? NULL : mp__shard_pop(shard, nbytes);
    mp__shard_unlock(shard);
    if (MP_UNLIKELY(block == NULL)) return NULL;
    if (MP_UNLIKELY(flags & MP__MAX_IDLE)) {
        atomic_fetch_sub_explicit(&pool->idle_bytes, cls->size, memory_order_relaxed);
    }
    return &block->lease;
}

mp_status mp_pool_acquire(mp_pool *pool, size_t nbytes, mp_block **out, mp_shortage *shortage) {
    *out = mp_pool_acquire_idle(pool, nbytes);
    return *out != NULL ? MP_OK : mp__pool_grow(pool, nbytes, out, shortage);
}

void mp_block_zero(mp_block *lease, size_t nbytes) {
    mp__block *block = (mp__block *)lease;
    if (!block->clean) memset(lease->data, 0, nbytes);
}

mp_status mp_pool_resize(mp_block *lease, size_t nbytes) {
    mp__block *block = (mp__block *)lease;
    if (nbytes > lease->capacity) return MP_ERR_INVALID;
    mp__shard *shard = mp__shard_lock(block->cls);
    shard->requested += nbytes - lease->requested;
    lease->requested = nbytes;
    mp__shard_unlock(shard);
    return MP_OK;
}

/* ---- a lease ends ---- */

static void push(mp__class *cls, mp__block *block, unsigned event) {
    mp__shard *shard = mp__shard_lock(cls);
    mp__shard_note(shard, block, event);
    mp__shard_push(shard, block);
    mp__shard_unlock(shard);
}

static void note(mp__class *cls, mp__block *block, unsigned event) {
    mp__shard *shard = mp__shard_lock(cls);
    mp__shard_note(shard, block, event);
    mp__shard_unlock(shard);
}

/* The bytes that should go to the OS because this block came back. */
static size_t too_much(mp_pool *pool, unsigned flags, size_t size) {
    size_t idle = 0;
    if (flags & MP__MAX_IDLE) idle = atomic_fetch_add_explicit(&pool->idle_bytes, size, memory_order_relaxed) + size;
    if (flags & MP__CLOSED) return MP_NO_LIMIT;
    return idle > pool->config.max_idle ? idle - pool->config.max_idle : 0;
}

/* What stays idle must be purged one day; if nobody will, it goes now. */
static void keep(mp_pool *pool, unsigned flags) {
    if (flags & MP__CLOSED || mp__pool_idle(pool) == 0 || mp__pool_has_idle(pool)) return;
    (void)mp__pool_give_back(pool, MP_NO_LIMIT, false);
}

/* Some flag is set. The pool cannot go away: until it is noted this block counts as lent. */
static MP_NOINLINE bool give_slowly(mp__class *cls, mp__block *block, unsigned event) {
    mp_pool *pool = cls->pool;
    mp__mutex_lock(&pool->lock);
    unsigned flags = mp__pool_flags(pool);
    size_t excess = too_much(pool, flags, cls->size);
    if (excess > 0 && cls->size >= mp__os_page_size()) {
        note(cls, block, event);
        mp__pool_give_one(block);
    } else {
        push(cls, block, event);
        if (excess > 0) (void)mp__pool_give_back(pool, excess, false);
        keep(pool, flags);
    }
    bool done = is_done(pool);
    MP_CHECK(pool);
    mp__mutex_unlock(&pool->lock);
    if (done) free_pool(pool);
    return (flags & MP__WAITERS) != 0;
}

/* Within `max_idle`, and no other flag is set: the block may be pushed. */
static bool fits_max_idle(mp_pool *pool, unsigned flags, size_t size) {
    if (flags != MP__MAX_IDLE) return false;
    size_t before = atomic_fetch_add_explicit(&pool->idle_bytes, size, memory_order_relaxed);
    if (before + size <= pool->config.max_idle) return true;
    atomic_fetch_sub_explicit(&pool->idle_bytes, size, memory_order_relaxed);
    return false;
}

static inline bool give(mp__block *block, unsigned event) {
    mp__class *cls = block->cls;
    mp_pool *pool = cls->pool;
    block->clean = false;
    if (MP_UNLIKELY(pool->config.zero_on_release)) {
        memset(block->lease.data, 0, block->lease.capacity);
        block->clean = true;
    }
    mp__shard *shard = mp__shard_lock(cls);
    unsigned flags = mp__pool_flags(pool);
    if (MP_UNLIKELY(flags != 0) && !fits_max_idle(pool, flags, cls->size)) {
        mp__shard_unlock(shard);
        return give_slowly(cls, block, event);
    }
    mp__shard_note(shard, block, event);
    mp__shard_push(shard, block);
    mp__shard_unlock(shard);
    return false;
}

/* The OS has the block's pages and gives none for them: the block goes to the OS as well. */
static void give_torn(mp__class *cls, mp__block *block) {
    mp_pool *pool = cls->pool;
    mp__mutex_lock(&pool->lock);
    unsigned flags = mp__pool_flags(pool);
    (void)too_much(pool, flags, cls->size);
    note(cls, block, MP_END_RELEASED);
    mp__pool_give_one(block);
    keep(pool, flags);
    MP_CHECK(pool);
    mp__mutex_unlock(&pool->lock);
}

mp_status mp__block_blank(mp_block *lease, size_t nbytes) {
    mp__block *block = (mp__block *)lease;
    const mp_source *source = block->cls->pool->config.source;
    if (block->clean) return MP_OK;
    if (nbytes < BLANK_FROM || source->decommit(source->context, lease->data, lease->capacity) != MP_OK) {
        memset(lease->data, 0, nbytes);
        return MP_OK;
    }
    if (source->commit(source->context, lease->data, lease->capacity) == MP_OK) return MP_OK;
    give_torn(block->cls, block);
    return MP_ERR_NOMEM;
}

bool mp_pool_release(mp_block *lease, mp_end end) {
    mp__block *block = (mp__block *)lease;
    if (MP_UNLIKELY(block->state != MP__LIVE)) mp__os_abort("a block was released that is not lent");
    return give(block, (unsigned)end);
}

void mp_pool_retire(mp_block *lease, mp_end end) {
    mp__block *block = (mp__block *)lease;
    if (block->state != MP__LIVE) mp__os_abort("a block was retired that is not lent");
    mp__shard *shard = mp__shard_lock(block->cls);
    mp__shard_note(shard, block, (unsigned)end);
    shard->events[MP__EVENT_RETIRED]++;
    block->state = MP__RETIRED;
    mp__shard_unlock(shard);
}

bool mp_pool_return(mp_block *lease) {
    mp__block *block = (mp__block *)lease;
    if (block->state != MP__RETIRED) mp__os_abort("a block was returned that is not retired");
    return give(block, MP__EVENT_RETURNED);
}

/* ---- requests of the owner ---- */

void mp_pool_set_waiters(mp_pool *pool, bool waiting) {
    if (waiting) atomic_fetch_or_explicit(&pool->flags, MP__WAITERS, memory_order_relaxed);
    else atomic_fetch_and_explicit(&pool->flags, ~(unsigned)MP__WAITERS, memory_order_relaxed);
}

size_t mp_pool_trim(mp_pool *pool, size_t target) {
    size_t freed = 0;
    mp__mutex_lock(&pool->lock);
    size_t idle = mp__pool_idle(pool);
    if (idle > target) freed = mp__pool_give_back(pool, idle - target, true);
    MP_CHECK(pool);
    mp__mutex_unlock(&pool->lock);
    if (freed > 0) mp__registry_nudge();
    return freed;
}

mp_status mp_pool_set_limit(mp_pool *pool, size_t limit, size_t *lent) {
    mp_status status = MP_OK;
    mp__mutex_lock(&pool->lock);
    if (pool->reserved > limit) {
        mp__pool_lock_shards(pool);
        mp__pool_detach(pool, NULL);
        mp__pool_unlock_shards(pool);
        size_t stuck = pool->reserved - mp__pool_releasable(pool);
        size_t wanted = stuck <= limit ? pool->reserved - limit : 0;
        if (lent != NULL) *lent = stuck;
        (void)mp__pool_settle(pool, wanted);
        if (pool->reserved > limit) status = MP_ERR_INVALID;
    }
    if (status == MP_OK) pool->limit = limit;
    MP_CHECK(pool);
    mp__mutex_unlock(&pool->lock);
    return status;
}

void mp_pool_note_wait(mp_pool *pool) { atomic_fetch_add_explicit(&pool->waits, 1, memory_order_relaxed); }
void mp_pool_note_exhausted(mp_pool *pool) { atomic_fetch_add_explicit(&pool->exhausted, 1, memory_order_relaxed); }
