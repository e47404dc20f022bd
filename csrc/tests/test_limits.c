/* Limits: exact, never passed, and nothing gives up before all that is idle was given up. */
#include "kit.h"

static mp_pool *limited(const ledger *books, size_t limit) {
    mp_pool_config config = plain(books);
    config.limit = limit;
    return open_pool(&config);
}

static void expect_shortage(mp_pool *pool, size_t nbytes, size_t lent, bool hopeless) {
    mp_block *block;
    mp_shortage shortage;
    mp_pool_stats before = snapshot(pool);
    memset(&shortage, 0xff, sizeof shortage);
    CHECK_EQ(mp_pool_acquire(pool, nbytes, &block, &shortage), MP_ERR_LIMIT);
    CHECK_EQ(shortage.in_use, lent);
    CHECK_EQ(shortage.limit, before.limit);
    CHECK_EQ(shortage.hopeless, hopeless);
    CHECK(shortage.binding == NULL);
    mp_pool_stats after = snapshot(pool);
    CHECK_EQ(memcmp(&before, &after, sizeof before), 0);
}

static void the_last_byte_can_be_had(void) {
    const size_t sizes[] = {64, 100, 1000, 4096, 12345, 70000, MIB, 2 * MIB, 3 * MIB};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        mp_block *held[10];
        mp_pool *pool = limited(NULL, MP_NO_LIMIT);
        size_t size = mp_pool_block_size(pool, sizes[i]);
        CHECK_EQ(mp_pool_set_limit(pool, 10 * size, NULL), MP_OK);
        for (size_t n = 0; n < 10; n++) held[n] = take(pool, sizes[i]);
        CHECK_EQ(snapshot(pool).reserved, 10 * size);
        expect_shortage(pool, sizes[i], 10 * size, false);
        give(held[3]);
        held[3] = take(pool, sizes[i]);
        for (size_t n = 0; n < 10; n++) give(held[n]);
        CHECK(mp_pool_is_valid(pool));
        mp_pool_destroy(pool);
    }
}

static void one_byte_short_is_short(void) {
    mp_pool *pool = limited(NULL, 2 * 8192 - 1);
    mp_block *block = take(pool, 8192);
    expect_shortage(pool, 8192, 8192, false);
    expect_shortage(pool, 16384, 8192, true);
    give(block);
    mp_pool_destroy(pool);
}

static void what_never_fits_is_hopeless(void) {
    mp_pool *pool = limited(NULL, 10000);
    expect_shortage(pool, 12289, 0, true);
    expect_shortage(pool, (size_t)1 << 40, 0, true);
    mp_block *block = take(pool, 8192);
    expect_shortage(pool, 8192, 8192, false);
    give(block);
    mp_pool_destroy(pool);
    pool = limited(NULL, 0);
    expect_shortage(pool, 1, 0, true);
    mp_pool_destroy(pool);
}

static void a_shortage_is_always_filled_in(void) {
    mp_block *block;
    mp_shortage shortage;
    mp_pool *pool = limited(NULL, 10000);
    memset(&shortage, 0xff, sizeof shortage);
    CHECK_EQ(mp_pool_acquire(pool, SIZE_MAX, &block, &shortage), MP_ERR_NOMEM);
    CHECK(shortage.binding == NULL && shortage.in_use == 0);
    memset(&shortage, 0xff, sizeof shortage);
    CHECK_EQ(mp_pool_reserve(pool, SIZE_MAX, 1, &shortage), MP_ERR_NOMEM);
    CHECK(shortage.binding == NULL && shortage.in_use == 0);
    memset(&shortage, 0xff, sizeof shortage);
    CHECK_EQ(mp_pool_reserve(pool, 8192, 2, &shortage), MP_ERR_LIMIT);
    CHECK(shortage.hopeless && shortage.limit == 10000 && shortage.binding == NULL);
    mp_pool_destroy(pool);
}

/* Retired memory counts, and comes back when its last view dies. */
static void retired_memory_counts(void) {
    mp_pool *pool = limited(NULL, 8192);
    mp_block *block = take(pool, 8192);
    mp_pool_retire(block, MP_END_RELEASED);
    expect_shortage(pool, 4096, 8192, false);
    CHECK(!mp_pool_return(block));
    give(take(pool, 4096));
    mp_pool_destroy(pool);
}

static void other_classes_are_given_up(void) {
    const size_t sizes[] = {64, 512, 3000, 4096, 50000, 300000, 2 * MIB};
    mp_pool *pool = limited(NULL, 2 * MIB);
    for (size_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < 7; i++) {
            for (size_t k = 0; k < 7; k++) give(take(pool, sizes[k]));
            give(take(pool, sizes[i]));
            mp_block *all = take(pool, 2 * MIB); /* nothing else may be left */
            mp_pool_stats s = snapshot(pool);
            CHECK(s.idle == 0 && s.in_use == 2 * MIB);
            give(all);
        }
    }
    CHECK(mp_pool_is_valid(pool));
    mp_pool_destroy(pool);
}

/* What is given up is no more than needed: the other idle blocks stay warm. */
static void no_more_is_given_up_than_needed(void) {
    mp_block *held[16];
    mp_pool *pool = limited(NULL, 16 * 65536);
    for (size_t i = 0; i < 16; i++) held[i] = take(pool, 65536);
    for (size_t i = 0; i < 16; i++) give(held[i]);
    mp_block *block = take(pool, 2 * 65536);
    mp_pool_stats s = snapshot(pool);
    CHECK(s.idle == 14 * 65536 && s.in_use == 2 * 65536);
    give(block);
    mp_pool_destroy(pool);
}

/* A failed call gives nothing up either: what is idle stays where it was. */
static void a_failure_gives_nothing_up(void) {
    mp_pool *pool = limited(NULL, MIB);
    mp_block *block = take(pool, 600 * KIB);
    give(take(pool, 200 * KIB));
    give(take(pool, 64));
    expect_shortage(pool, 500 * KIB, block->capacity, false);
    CHECK(mp_pool_acquire_idle(pool, 64) != NULL);
    CHECK(mp_pool_acquire_idle(pool, 200 * KIB) != NULL);
    CHECK(mp_pool_is_valid(pool));
    mp_pool_close(pool);
}

static void set_limit_gives_idle_memory_back(void) {
    mp_block *held[8];
    size_t lent = 0;
    mp_pool *pool = limited(NULL, MP_NO_LIMIT);
    for (size_t i = 0; i < 8; i++) held[i] = take(pool, 10000);
    for (size_t i = 2; i < 8; i++) give(held[i]);
    size_t size = held[0]->capacity;
    CHECK_EQ(mp_pool_set_limit(pool, 5 * size, &lent), MP_OK);
    CHECK(snapshot(pool).reserved == 5 * size && snapshot(pool).limit == 5 * size);
    CHECK_EQ(mp_pool_set_limit(pool, 2 * size, &lent), MP_OK);
    CHECK_EQ(snapshot(pool).reserved, 2 * size);
    mp_pool_stats before = snapshot(pool);
    CHECK_EQ(mp_pool_set_limit(pool, 2 * size - 1, &lent), MP_ERR_INVALID);
    CHECK_EQ(lent, 2 * size);
    mp_pool_stats after = snapshot(pool);
    CHECK_EQ(memcmp(&before, &after, sizeof before), 0);
    CHECK_EQ(mp_pool_set_limit(pool, MP_NO_LIMIT, &lent), MP_OK);
    give(take(pool, 10 * MIB));
    give(held[0]);
    give(held[1]);
    mp_pool_destroy(pool);
}

static void set_limit_below_what_is_lent_keeps_idle_memory(void) {
    size_t lent = 0;
    mp_pool *pool = limited(NULL, MP_NO_LIMIT);
    mp_block *live = take(pool, 100 * KIB), *seen = take(pool, 50 * KIB);
    give(take(pool, 4096));
    give(take(pool, 3 * MIB));
    mp_pool_retire(seen, MP_END_RELEASED);
    mp_pool_stats before = snapshot(pool);
    CHECK_EQ(mp_pool_set_limit(pool, live->capacity + seen->capacity - 1, &lent), MP_ERR_INVALID);
    CHECK_EQ(lent, live->capacity + seen->capacity);
    mp_pool_stats after = snapshot(pool);
    CHECK_EQ(memcmp(&before, &after, sizeof before), 0);
    give(live);
    CHECK(!mp_pool_return(seen));
    mp_pool_destroy(pool);
}

/* What the limit counts is what the kernel counts, whatever is lent, given up and lent again. */
static void memory_in_use_is_what_is_reserved(void) {
    ledger books;
    ledger_open(&books);
    mp_pool *pool = limited(&books, 4 * MIB);
    mp_block *held[32] = {0};
    dice luck = {.state = check_seed = 4};
    for (unsigned round = 0; round < 4000; round++) {
        mp_block **slot = &held[roll_below(&luck, 32)], *block;
        if (*slot != NULL) give(*slot);
        *slot = NULL;
        if (mp_pool_acquire(pool, 4096 + roll_below(&luck, 300 * KIB), &block, NULL) == MP_OK) {
            memset(block->data, 1, block->capacity);
            *slot = block;
        }
        if (round % 64 == 0) CHECK_LE(ledger_resident(&books), snapshot(pool).reserved);
    }
    for (size_t i = 0; i < 32; i++) {
        if (held[i] != NULL) give(held[i]);
    }
    mp_pool_destroy(pool);
    ledger_close(&books);
}

/* Small blocks taken one by one while the limit leaves room for few fill the page that they are in. */
static void tight_limits_do_not_spread_small_blocks(void) {
    enum { BLOCKS = 64 };
    ledger books;
    ledger_open(&books);
    mp_block *held[BLOCKS];
    mp_pool *pool = limited(&books, 64);
    for (size_t i = 0; i < BLOCKS; i++) {
        CHECK_EQ(mp_pool_set_limit(pool, 64 * (i + 1), NULL), MP_OK);
        memset((held[i] = take(pool, 64))->data, 1, 64);
    }
    CHECK_EQ(ledger_resident(&books), mp_page_size());
    for (size_t i = 0; i < BLOCKS; i++) give(held[i]);
    mp_pool_destroy(pool);
    ledger_close(&books);
}

/* ---- threads: the limit holds at every moment, and a block that is free for all to see is not missed ---- */

typedef struct contest {
    mp_pool *pool;
    size_t limit;
    atomic_uint missed;
} contest;

/* As many threads as the limit has blocks, of changing classes: there is always room for each. */
static void one_block_each(void *context, unsigned number) {
    contest *shared = context;
    dice luck = {.state = number};
    for (unsigned i = 0; i < 5000; i++) {
        mp_block *block;
        if (mp_pool_acquire(shared->pool, (size_t)4096 << roll_below(&luck, 3), &block, NULL) != MP_OK) {
            atomic_fetch_add(&shared->missed, 1);
            continue;
        }
        memset(block->data, (int)number, 64);
        if (i % 128 == 0) CHECK_LE(snapshot(shared->pool).reserved, shared->limit);
        CHECK(is_filled(block->data, (int)number, 64));
        give(block);
    }
}

static void there_is_room_for_all_who_fit(void) {
    contest shared = {.limit = 8 * 16384};
    shared.pool = limited(NULL, shared.limit);
    crew_run(8, one_block_each, &shared);
    CHECK_EQ(shared.missed, 0);
    CHECK_LE(snapshot(shared.pool).peak, shared.limit);
    CHECK(mp_pool_is_valid(shared.pool));
    mp_pool_destroy(shared.pool);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(the_last_byte_can_be_had);
    TEST(one_byte_short_is_short);
    TEST(what_never_fits_is_hopeless);
    TEST(a_shortage_is_always_filled_in);
    TEST(retired_memory_counts);
    TEST(other_classes_are_given_up);
    TEST(no_more_is_given_up_than_needed);
    TEST(a_failure_gives_nothing_up);
    TEST(set_limit_gives_idle_memory_back);
    TEST(set_limit_below_what_is_lent_keeps_idle_memory);
    TEST(memory_in_use_is_what_is_reserved);
    TEST(tight_limits_do_not_spread_small_blocks);
    TEST(there_is_room_for_all_who_fit);
    return check_end();
}
