/* check.c: walks a pool and tells whether all that types.h promises holds. Debug builds do it after each slow step. */
#include "internal.h"

typedef struct tally {
    size_t carved, cold, idle, live, retired;
    size_t states[MP__RETIRED + 1]; /* what the blocks say of themselves */
} tally;

static bool chunk_is_valid(const mp__class *cls, const mp__chunk *chunk, bool open, tally *sum) {
    size_t cold = 0;
    if (chunk->carved > chunk->capacity || chunk->capacity * cls->size > chunk->mapped) return false;
    if (open != (chunk->n_cold > 0 || chunk->carved < chunk->capacity)) return false;
    if (chunk->next != NULL && chunk->next->prev != chunk) return false;
    if (chunk->idle != NULL || chunk->n_idle != 0) return false; /* nothing is detached now */
    for (const mp__block *block = chunk->cold; block != NULL; block = block->next) {
        if (block->state != MP__COLD || block->chunk != chunk || ++cold > chunk->n_cold) return false;
    }
    for (size_t i = 0; i < chunk->carved; i++) {
        const mp__block *block = &chunk->blocks[i];
        if (block->cls != cls || block->chunk != chunk || block->lease.data != chunk->base + i * cls->size) return false;
        if (block->lease.capacity != cls->size || block->state > MP__RETIRED) return false;
        sum->states[block->state]++;
    }
    sum->carved += chunk->carved;
    sum->cold += cold;
    return cold == chunk->n_cold;
}

static bool shard_is_valid(const mp__class *cls, const mp__shard *shard, size_t carved) {
    size_t length = 0;
    for (const mp__block *block = shard->head; block != NULL; block = block->next) {
        if (block->cls != cls || block->state != MP__IDLE || ++length > carved) return false;
    }
    return length == shard->idle && shard->low <= shard->idle;
}

static void add_shard(const mp__shard *shard, tally *sum) {
    const uint64_t *events = shard->events;
    sum->idle += shard->idle;
    sum->live += (size_t)(events[MP__EVENT_HIT] + events[MP__EVENT_MISS] - events[MP_END_RELEASED] - events[MP_END_DROPPED] -
                          events[MP_END_HANDED_OVER]);
    sum->retired += (size_t)(events[MP__EVENT_RETIRED] - events[MP__EVENT_RETURNED]);
}

static bool class_is_valid(const mp__class *cls, size_t *reserved) {
    tally sum = {0};
    for (const mp__chunk *chunk = cls->open; chunk != NULL; chunk = chunk->next) {
        if (!chunk_is_valid(cls, chunk, true, &sum)) return false;
    }
    for (const mp__chunk *chunk = cls->full; chunk != NULL; chunk = chunk->next) {
        if (!chunk_is_valid(cls, chunk, false, &sum)) return false;
    }
    for (unsigned k = 0; k < MP__SHARDS; k++) {
        if (!shard_is_valid(cls, &cls->shards[k], sum.carved)) return false;
        add_shard(&cls->shards[k], &sum);
    }
    *reserved += (sum.carved - sum.cold) * cls->size;
    if (cls->warm != sum.carved - sum.cold) return false;
    if (sum.states[MP__COLD] != sum.cold || sum.states[MP__IDLE] != sum.idle) return false;
    if (sum.states[MP__LIVE] != sum.live || sum.states[MP__RETIRED] != sum.retired) return false;
    return cls->detached == NULL && cls->sorted == NULL && sum.carved - sum.cold == sum.live + sum.retired + sum.idle;
}

bool mp__pool_check(mp_pool *pool) {
    size_t reserved = 0;
    bool valid = true;
    mp__pool_lock_shards(pool);
    for (unsigned i = 0; i < MP__CLASSES && valid; i++) {
        const mp__class *cls = mp__pool_class(pool, i);
        if (cls != NULL) valid = class_is_valid(cls, &reserved);
    }
    mp__pool_unlock_shards(pool);
    return valid && reserved == pool->reserved && pool->reserved <= pool->limit && pool->reserved <= pool->peak;
}

bool mp_pool_is_valid(mp_pool *pool) {
    mp__mutex_lock(&pool->lock);
    bool valid = mp__pool_check(pool);
    mp__mutex_unlock(&pool->lock);
    return valid;
}
