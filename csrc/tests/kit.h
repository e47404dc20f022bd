/* kit.h: what most tests need: shortcuts for what must succeed, the identities of a snapshot, a crew of threads. */
#ifndef MP_TESTS_KIT_H
#define MP_TESTS_KIT_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "check.h"
#include "include/mempool.h"
#include "ledger.h"

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

/* ---- pools ---- */

/* No limit, no purge, no huge pages: what a test asks for is all that happens. */
static inline mp_pool_config plain(const ledger *books) {
    return (mp_pool_config){.limit = MP_NO_LIMIT,
                            .max_idle = MP_NO_LIMIT,
                            .idle_timeout = MP_NEVER,
                            .alignment = 64,
                            .huge = MP_HUGE_NEVER,
                            .source = books != NULL ? &books->source : NULL};
}

static inline mp_pool *open_pool(const mp_pool_config *config) {
    mp_pool *pool = NULL;
    CHECK_EQ(mp_pool_create(config, &pool), MP_OK);
    return pool;
}

static inline mp_block *take(mp_pool *pool, size_t nbytes) {
    mp_block *block = NULL;
    CHECK_EQ(mp_pool_acquire(pool, nbytes, &block, NULL), MP_OK);
    CHECK(block != NULL && block->data != NULL);
    CHECK(block->requested == nbytes && block->capacity >= nbytes);
    return block;
}

static inline void give(mp_block *block) { CHECK(!mp_pool_release(block, MP_END_RELEASED)); }

/* A snapshot, and what must hold in every one. */
static inline mp_pool_stats snapshot(mp_pool *pool) {
    mp_pool_stats s;
    (void)mp_pool_stats_read(pool, &s, NULL, 0);
    CHECK_EQ(s.reserved, s.in_use + s.retired + s.idle);
    CHECK_EQ(s.acquires, s.live + s.releases + s.dropped + s.handed_over);
    CHECK_EQ(s.acquires, s.hits + s.misses);
    CHECK_LE(s.requested, s.in_use);
    CHECK_LE(s.reserved, s.peak);
    CHECK_LE(s.reserved, s.limit);
    return s;
}

static inline mp_account *open_account(mp_account *parent, size_t limit) {
    mp_account *account = NULL;
    CHECK_EQ(mp_account_create(parent, limit, NULL, &account), MP_OK);
    return account;
}

static inline bool is_filled(const void *data, int byte, size_t nbytes) {
    const unsigned char *bytes = data;
    for (size_t i = 0; i < nbytes; i++) {
        if (bytes[i] != (unsigned char)byte) return false;
    }
    return true;
}

/* ---- threads ---- */

typedef struct crew {
    void (*work)(void *context, unsigned number);
    void *context;
    unsigned size;
    atomic_uint arrived, numbers;
} crew;

/* Nobody starts before everybody is there. A barrier of spinning, because not every POSIX has pthread_barrier_t. */
static inline void *crew_main(void *opaque) {
    crew *all = opaque;
    unsigned number = atomic_fetch_add(&all->numbers, 1);
    atomic_fetch_add(&all->arrived, 1);
    while (atomic_load(&all->arrived) < all->size) sched_yield();
    all->work(all->context, number);
    return NULL;
}

static inline void crew_run(unsigned size, void (*work)(void *context, unsigned number), void *context) {
    crew all = {.work = work, .context = context, .size = size};
    pthread_t *threads = calloc(size, sizeof *threads);
    CHECK(threads != NULL);
    for (unsigned i = 0; i < size; i++) CHECK_EQ(pthread_create(&threads[i], NULL, crew_main, &all), 0);
    for (unsigned i = 0; i < size; i++) CHECK_EQ(pthread_join(threads[i], NULL), 0);
    free(threads);
}

#endif
