/* mp_pool_is_valid is only worth something if it can say no: each promise of types.h is broken once, seen, and mended. */
#include "kit.h"

#include "types.h"

typedef struct patient {
    mp_pool *pool;
    mp__block *live, *idle, *cold;
    mp__class *cls;
    mp__shard *shard;
} patient;

static patient admit(void) {
    mp_pool_config config = plain(NULL);
    mp_block *held[4];
    patient p = {.pool = open_pool(&config)};
    for (size_t i = 0; i < 4; i++) held[i] = take(p.pool, 10000);
    for (size_t i = 1; i < 4; i++) give(held[i]);
    (void)mp_pool_trim(p.pool, 2 * held[0]->capacity);
    p.live = (mp__block *)held[0];
    p.cls = p.live->cls;
    p.cold = p.live->chunk->cold;
    for (size_t k = 0; k < MP__SHARDS; k++) {
        if (p.cls->shards[k].head != NULL) p.shard = &p.cls->shards[k];
    }
    p.idle = p.shard->head;
    CHECK(p.cold != NULL && p.idle != NULL && p.idle->next != NULL);
    CHECK(mp_pool_is_valid(p.pool));
    return p;
}

static void discharge(patient *p) {
    CHECK(mp_pool_is_valid(p->pool));
    give(&p->live->lease);
    mp_pool_destroy(p->pool);
}

#define BREAK(p, place, wrong) \
    do { \
        __typeof__(place) right = (place); \
        (place) = (wrong); \
        CHECK(!mp_pool_is_valid((p).pool)); \
        (place) = right; \
    } while (0)

static void wrong_books_are_seen(void) {
    patient p = admit();
    BREAK(p, p.pool->reserved, p.pool->reserved + 1);
    BREAK(p, p.pool->reserved, 0);
    BREAK(p, p.pool->limit, p.pool->reserved - 1);
    BREAK(p, p.pool->peak, p.pool->reserved - 1);
    for (unsigned event = 0; event < MP__EVENTS; event++) BREAK(p, p.shard->events[event], p.shard->events[event] + 1);
    discharge(&p);
}

static void wrong_lists_are_seen(void) {
    patient p = admit();
    BREAK(p, p.shard->idle, p.shard->idle + 1);
    BREAK(p, p.shard->head, p.idle->next);
    BREAK(p, p.shard->low, p.shard->idle + 1);
    BREAK(p, p.idle->next, p.idle); /* a circle */
    BREAK(p, p.idle->next, p.live); /* lent and idle */
    BREAK(p, p.idle->state, MP__LIVE);
    BREAK(p, p.cls->detached, p.idle);
    discharge(&p);
}

static void wrong_chunks_are_seen(void) {
    patient p = admit();
    mp__chunk *chunk = p.live->chunk;
    BREAK(p, chunk->carved, chunk->carved - 1);
    BREAK(p, chunk->carved, chunk->capacity + 1);
    BREAK(p, chunk->n_cold, chunk->n_cold + 1);
    BREAK(p, chunk->cold, NULL);
    BREAK(p, chunk->cold, p.idle);
    BREAK(p, chunk->n_idle, 1);
    BREAK(p, chunk->idle, p.idle);
    BREAK(p, chunk->mapped, chunk->capacity * p.cls->size - 1);
    BREAK(p, p.cls->open, NULL);
    BREAK(p, p.cls->full, chunk);
    discharge(&p);
}

static void wrong_blocks_are_seen(void) {
    patient p = admit();
    BREAK(p, p.live->lease.capacity, p.cls->size + 64);
    BREAK(p, p.live->lease.data, (char *)p.live->lease.data + 64);
    BREAK(p, p.live->cls, NULL);
    BREAK(p, p.cold->chunk, NULL);
    BREAK(p, p.cold->state, MP__IDLE);
    discharge(&p);
}

/* A lease that was given back behind the books' back, or whose state nobody can be in. */
static void wrong_states_are_seen(void) {
    patient p = admit();
    BREAK(p, p.live->state, MP__IDLE);
    BREAK(p, p.live->state, MP__RETIRED);
    BREAK(p, p.live->state, MP__COLD);
    BREAK(p, p.live->state, 77);
    discharge(&p);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(wrong_books_are_seen);
    TEST(wrong_lists_are_seen);
    TEST(wrong_chunks_are_seen);
    TEST(wrong_blocks_are_seen);
    TEST(wrong_states_are_seen);
    return check_end();
}
