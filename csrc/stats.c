/* stats.c: what a pool can say of itself. A snapshot is taken with every lock held, so that its figures belong to one moment. */
#include "internal.h"

static void add_shard(const mp__shard *shard, uint64_t events[MP__EVENTS], size_t *idle, size_t *requested) {
    for (unsigned e = 0; e < MP__EVENTS; e++) events[e] += shard->events[e];
    *idle += shard->idle;
    *requested += shard->requested;
}

static void add_class(const mp__class *cls, mp_pool_stats *out, mp_class_stats *row) {
    uint64_t events[MP__EVENTS] = {0};
    size_t idle = 0;
    for (unsigned k = 0; k < MP__SHARDS; k++) add_shard(&cls->shards[k], events, &idle, &out->requested);
    uint64_t acquires = events[MP__EVENT_HIT] + events[MP__EVENT_MISS];
    uint64_t live = acquires - events[MP_END_RELEASED] - events[MP_END_DROPPED] - events[MP_END_HANDED_OVER];
    uint64_t retired = events[MP__EVENT_RETIRED] - events[MP__EVENT_RETURNED];
    *row = (mp_class_stats){.size = cls->size, .live = live, .idle = idle, .acquires = acquires};
    out->in_use += (size_t)live * cls->size;
    out->retired += (size_t)retired * cls->size;
    out->idle += idle * cls->size;
    out->acquires += acquires;
    out->live += live;
    out->releases += events[MP_END_RELEASED];
    out->dropped += events[MP_END_DROPPED];
    out->handed_over += events[MP_END_HANDED_OVER];
    out->hits += events[MP__EVENT_HIT];
    out->misses += events[MP__EVENT_MISS];
}

size_t mp_pool_stats_read(mp_pool *pool, mp_pool_stats *out, mp_class_stats *classes, size_t capacity) {
    size_t count = 0;
    *out = (mp_pool_stats){0};
    mp__mutex_lock(&pool->lock);
    mp__pool_lock_shards(pool);
    for (unsigned i = 0; i < MP__CLASSES; i++) {
        mp_class_stats row;
        const mp__class *cls = mp__pool_class(pool, i);
        if (cls == NULL) continue;
        add_class(cls, out, &row);
        if (row.acquires == 0 && row.idle == 0) continue;                            /* a request came to nothing */
        if (count > 0 && count <= capacity && classes[count - 1].size == row.size) { /* a large alignment makes two sizes one */
            classes[count - 1].live += row.live;
            classes[count - 1].idle += row.idle;
            classes[count - 1].acquires += row.acquires;
            continue;
        }
        if (count < capacity) classes[count] = row;
        count++;
    }
    out->reserved = pool->reserved;
    out->peak = pool->peak;
    out->limit = pool->limit;
    out->waits = atomic_load(&pool->waits);
    out->exhausted = atomic_load(&pool->exhausted);
    mp__pool_unlock_shards(pool);
    mp__mutex_unlock(&pool->lock);
    return count;
}

size_t mp_pool_idle(mp_pool *pool) {
    mp__mutex_lock(&pool->lock);
    size_t bytes = mp__pool_idle(pool);
    mp__mutex_unlock(&pool->lock);
    return bytes;
}
