/* slab_kit.h: what the tests of slabs share: slabs and items in one line each, and all of a slab's state as one number. */
#ifndef MP_TESTS_SLAB_KIT_H
#define MP_TESTS_SLAB_KIT_H

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "slab_model.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif
#if !defined(SANITIZED)
#define SANITIZED 0
#endif

enum { ROUNDS = 100000, ROUNDS_PER_WORLD = 1000, MILLION = 1000000 };

static inline mp_slab_config plain_slab(const ledger *books, size_t item_size, size_t max_items) {
    return (mp_slab_config){.item_size = item_size,
                            .max_items = max_items,
                            .limit = MP_NO_LIMIT,
                            .seed = UINT64_C(0x8F3A91D25C77B64E),
                            .source = books != NULL ? &books->source : NULL};
}

static inline mp_slab *plain_one(size_t item_size, size_t max_items) {
    mp_slab_config config = plain_slab(NULL, item_size, max_items);
    return open_slab(&config);
}

static inline mp_slab_stats figures(mp_slab *slab) {
    mp_slab_stats s;
    mp_slab_stats_read(slab, &s);
    CHECK(mp_slab_is_valid(slab));
    CHECK_EQ(s.live, mp_slab_length(slab));
    CHECK_EQ(s.allocs - s.frees, s.live);
    return s;
}

static inline void new_items(mp_slab *slab, size_t count, mp_handle *out) {
    CHECK_EQ(mp_slab_alloc_many(slab, count, out, NULL), MP_OK);
}

static inline void end_items(mp_slab *slab, const mp_handle *handles, size_t count) {
    size_t bad;
    CHECK_EQ(mp_slab_free_many(slab, handles, count, &bad), MP_OK);
}

static inline mp_handle *room_for(size_t count) {
    mp_handle *handles = calloc(count, sizeof *handles);
    CHECK(handles != NULL);
    return handles;
}

static inline uint64_t hash(uint64_t sum, const void *data, size_t nbytes) {
    for (size_t i = 0; i < nbytes; i++) sum = (sum ^ ((const unsigned char *)data)[i]) * UINT64_C(0x100000001B3);
    return sum;
}

/* Everything that a failed call could have changed, to the last bit. */
static inline uint64_t full_state(mp_slab *slab) {
    mp_slab_stats s;
    mp_slab_stats_read(slab, &s);
    CHECK(mp_slab_is_valid(slab));
    uint64_t sum = hash(1, &s, sizeof s);
    sum = hash(sum, slab->generations, slab->slots * sizeof *slab->generations);
    sum = hash(sum, slab->pins, slab->slots * sizeof *slab->pins);
    sum = hash(sum, slab->levels[0], (slab->slots + 63) / 64 * 8);
    sum = hash(sum, slab->items, slab->slots * slab->item_size);
    return hash(sum, (size_t[]){slab->ready, slab->views}, 2 * sizeof(size_t));
}

static inline int by_value(const void *a, const void *b) {
    mp_handle x = *(const mp_handle *)a, y = *(const mp_handle *)b;
    return (x > y) - (x < y);
}

/* No call knows the handle, and none changes anything. */
static inline void expect_stale(mp_slab *slab, mp_handle handle) {
    void *item = NULL;
    ptrdiff_t slot = -1;
    size_t bad = 9;
    CHECK(!mp_slab_has(slab, handle));
    CHECK_EQ(mp_slab_free(slab, handle), MP_ERR_STALE);
    CHECK_EQ(mp_slab_pin(slab, handle, &item), MP_ERR_STALE);
    CHECK_EQ(mp_slab_find(slab, &handle, 1, &slot, &bad), MP_ERR_STALE);
    CHECK(item == NULL && slot == -1 && bad == 0);
    bad = 9;
    CHECK_EQ(mp_slab_free_many(slab, &handle, 1, &bad), MP_ERR_STALE);
    CHECK_EQ(bad, 0);
}

#endif
