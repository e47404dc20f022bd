/* Idle memory goes back: when asked, above max_idle, after idle_timeout, and the thread that sees to the last is there only for that. */
#include "kit.h"

#define MS UINT64_C(1000000)
#define HOUR (UINT64_C(3600000) * MS)

static bool thread_is_gone(void *unused) {
    (void)unused;
    return !mp_housekeeping_runs();
}

static bool all_is_lent(void *pool) { return snapshot(pool).idle == 0; }

/* ---- trim ---- */

static void trim_leaves_at_most_the_target(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_block *held[10], *live = take(pool, 65536);
    for (size_t i = 0; i < 10; i++) held[i] = take(pool, 65536);
    for (size_t i = 0; i < 10; i++) give(held[i]);
    CHECK_EQ(mp_pool_trim(pool, 10 * 65536), 0);
    CHECK_EQ(mp_pool_trim(pool, 7 * 65536), 3 * 65536);
    CHECK_EQ(mp_pool_trim(pool, 6 * 65536 + 1), 65536);
    CHECK_EQ(snapshot(pool).idle, 6 * 65536);
    CHECK_EQ(mp_pool_trim(pool, 0), 6 * 65536);
    CHECK_EQ(snapshot(pool).reserved, 65536);
    CHECK_EQ(mp_pool_trim(pool, 0), 0);
    give(live);
    mp_pool_destroy(pool);
}

static void trimmed_memory_leaves_the_process(void) {
    const size_t sizes[] = {64, 1500, 4096, 40000, 500000, 3 * MIB};
    for (size_t i = 0; i < 6; i++) {
        ledger books;
        mp_block *held[20];
        ledger_open(&books);
        mp_pool_config config = plain(&books);
        mp_pool *pool = open_pool(&config);
        for (size_t k = 0; k < 20; k++) memset((held[k] = take(pool, sizes[i]))->data, 1, sizes[i]);
        for (size_t k = 1; k < 20; k++) give(held[k]);
        (void)mp_pool_trim(pool, 0);
        mp_pool_stats s = snapshot(pool);
        if (sizes[i] >= mp_page_size()) CHECK_EQ(s.idle, 0);
        CHECK_LE(ledger_resident(&books), sizes[i] >= mp_page_size() ? held[0]->capacity : 20 * 2048);
        CHECK(is_filled(held[0]->data, 1, sizes[i]));
        give(held[0]);
        CHECK(mp_pool_trim(pool, 0) > 0);
        CHECK_EQ(snapshot(pool).reserved, 0);
        CHECK_EQ(ledger_resident(&books), 0);
        mp_pool_destroy(pool);
        ledger_close(&books);
    }
}

/* Memory that went and came again is zero, and known to be. */
static void cold_blocks_come_back_zero(void) {
    ledger books;
    mp_block *held[16];
    ledger_open(&books);
    mp_pool_config config = plain(&books);
    mp_pool *pool = open_pool(&config);
    for (unsigned round = 0; round < 20; round++) {
        for (size_t i = 0; i < 16; i++) {
            held[i] = take(pool, 20000);
            mp_block_zero(held[i], 20000);
            CHECK(is_filled(held[i]->data, 0, 20000));
            memset(held[i]->data, 7, held[i]->capacity);
        }
        for (size_t i = 0; i < 16; i++) give(held[(i * 7 + round) % 16]);
        (void)mp_pool_trim(pool, (round % 5) * 60000);
        CHECK(mp_pool_is_valid(pool));
    }
    mp_pool_destroy(pool);
    ledger_close(&books);
}

/* A chunk of which nothing is carved or all went is not kept. */
static void empty_chunks_are_unmapped(void) {
    ledger books;
    mp_block *held[16];
    ledger_open(&books);
    mp_pool_config config = plain(&books);
    mp_pool *pool = open_pool(&config);
    for (size_t i = 0; i < 16; i++) held[i] = take(pool, 20000);
    for (size_t i = 0; i < 16; i++) give(held[i]);
    for (size_t left = 15; left > 0; left--) (void)mp_pool_trim(pool, left * held[0]->capacity - 1);
    CHECK_EQ(mp_pool_trim(pool, 0) + snapshot(pool).idle, 0);
    CHECK_EQ(books.mapped, 0);
    mp_pool_destroy(pool);
    ledger_close(&books);
}

/* ---- max_idle ---- */

static void max_idle_bounds_what_lies_about(void) {
    mp_pool_config config = plain(NULL);
    config.max_idle = 3 * 65536;
    mp_pool *pool = open_pool(&config);
    mp_block *held[10];
    for (size_t i = 0; i < 10; i++) held[i] = take(pool, 65536);
    for (size_t i = 0; i < 10; i++) {
        give(held[i]);
        CHECK_EQ(snapshot(pool).idle, (i < 3 ? i + 1 : 3) * 65536);
    }
    mp_block *block = take(pool, 2 * 65536);
    give(block);
    CHECK_LE(snapshot(pool).idle, config.max_idle);
    give(take(pool, 4 * 65536));
    CHECK_LE(snapshot(pool).idle, config.max_idle);
    CHECK(mp_pool_is_valid(pool));
    mp_pool_destroy(pool);
}

static void max_idle_zero_keeps_nothing(void) {
    const size_t sizes[] = {64, 3000, 4096, 3 * MIB};
    for (unsigned by_timeout = 0; by_timeout < 2; by_timeout++) {
        mp_pool_config config = plain(NULL);
        if (by_timeout) config.idle_timeout = 0;
        else config.max_idle = 0;
        mp_pool *pool = open_pool(&config);
        for (size_t i = 0; i < 4; i++) {
            mp_block *block = take(pool, sizes[i]);
            mp_pool_retire(block, MP_END_DROPPED);
            CHECK(!mp_pool_return(block));
            CHECK_EQ(snapshot(pool).reserved, 0);
        }
        CHECK(!mp_housekeeping_runs());
        mp_pool_destroy(pool);
    }
}

/* Small blocks leave a chunk at a time only, and not every release looks for such chunks; in the end they all went. */
static void small_blocks_come_back_in_any_order(void) {
    enum { MANY = 4000 };
    static mp_block *held[MANY];
    for (unsigned how = 0; how < 3; how++) {
        mp_pool_config config = plain(NULL);
        if (how == 0) config.max_idle = 100000;
        if (how == 1) config.idle_timeout = 0;
        mp_pool *pool = open_pool(&config);
        dice luck = {.state = check_seed = 8};
        for (size_t i = 0; i < MANY; i++) {
            size_t place = roll_below(&luck, i + 1);
            held[i] = held[place];
            held[place] = take(pool, 64);
        }
        if (how == 2) mp_pool_close(pool);
        for (size_t i = 0; i < MANY; i++) (void)mp_pool_release(held[i], MP_END_RELEASED);
        CHECK_LE(snapshot(pool).idle, how == 0 ? config.max_idle : 0);
        mp_pool_destroy(pool);
    }
}

/* A pool that has all it may keep gives back what comes, and keeps what it has. */
static void a_full_pool_stays_full(void) {
    enum { MANY = 1000, FEW = 200 };
    static mp_block *held[MANY + FEW];
    mp_pool_config config = plain(NULL);
    config.max_idle = (size_t)MANY * 4096;
    mp_pool *pool = open_pool(&config);
    for (size_t i = 0; i < MANY + FEW; i++) held[i] = take(pool, 4096);
    for (size_t i = 0; i < MANY + FEW; i++) {
        give(held[i]);
        if (i % 100 == 0) CHECK_LE(snapshot(pool).idle, config.max_idle);
    }
    CHECK_EQ(snapshot(pool).idle, config.max_idle);
    mp_pool_destroy(pool);
}

/* No thread is started for what does not stay. */
static void what_goes_at_once_needs_no_thread(void) {
    mp_pool_config config = plain(NULL);
    config.max_idle = 0;
    config.idle_timeout = 1000 * MS;
    mp_pool *pool = open_pool(&config);
    for (unsigned i = 0; i < 10; i++) {
        give(take(pool, 5000));
        CHECK(!mp_housekeeping_runs());
    }
    mp_pool_destroy(pool);
}

/* Blocks come and go in many threads; the count of idle bytes that the hot path keeps must not drift. */
static void churn(void *context, unsigned number) {
    mp_pool *pool = context;
    dice luck = {.state = number};
    mp_block *held[4] = {0};
    for (unsigned i = 0; i < 4000; i++) {
        mp_block **slot = &held[roll_below(&luck, 4)];
        if (*slot != NULL) give(*slot);
        *slot = take(pool, (size_t)4096 << roll_below(&luck, 3));
        if (i % 256 == 0) CHECK_LE(snapshot(pool).idle, 8 * 16384);
    }
    for (size_t i = 0; i < 4; i++) give(held[i]);
}

static void max_idle_holds_among_threads(void) {
    mp_pool_config config = plain(NULL);
    config.max_idle = 8 * 16384;
    mp_pool *pool = open_pool(&config);
    crew_run(6, churn, pool);
    CHECK_LE(snapshot(pool).idle, config.max_idle);
    (void)mp_pool_trim(pool, 0);
    CHECK_EQ(snapshot(pool).reserved, 0);
    mp_block *held[8];
    for (size_t i = 0; i < 8; i++) held[i] = take(pool, 16384);
    for (size_t i = 0; i < 8; i++) give(held[i]);
    CHECK_EQ(snapshot(pool).idle, 8 * 16384); /* the whole allowance is there again */
    mp_pool_destroy(pool);
}

/* ---- idle_timeout, and the thread ---- */

static mp_pool *purging(const ledger *books, uint64_t timeout) {
    mp_pool_config config = plain(books);
    config.idle_timeout = timeout;
    return open_pool(&config);
}

/* The pool is patient: what is idle for a moment only may have gone before anybody looks. A trim may come before the thread's first
 * look, and after. */
static void the_thread_is_there_while_something_is_idle(void) {
    mp_pool *pool = purging(NULL, HOUR);
    for (unsigned round = 0; round < 50; round++) {
        mp_block *block = take(pool, 100000);
        CHECK(!mp_housekeeping_runs());
        give(block);
        CHECK(mp_housekeeping_runs());
        for (unsigned i = 0; i < round; i++) sched_yield();
        CHECK(mp_pool_trim(pool, 0) > 0);
        CHECK(eventually(thread_is_gone, NULL));
    }
    give(take(pool, 100000));
    CHECK(mp_housekeeping_runs());
    mp_pool_destroy(pool);
    CHECK(eventually(thread_is_gone, NULL));
}

static void idle_memory_is_purged_with_no_call_made(void) {
    ledger books;
    ledger_open(&books);
    mp_pool *pool = purging(&books, 40 * MS);
    mp_block *live = take(pool, 50000), *small = take(pool, 64);
    memset(live->data, 1, 50000);
    give(take(pool, 3 * MIB));
    give(take(pool, 100000));
    give(small);
    CHECK(eventually(all_is_lent, pool));
    CHECK_EQ(snapshot(pool).reserved, live->capacity);
    CHECK_LE(ledger_resident(&books), live->capacity);
    CHECK(eventually(thread_is_gone, NULL)); /* it is there only while something is idle */
    give(live);
    CHECK(eventually(all_is_lent, pool));
    CHECK(eventually(thread_is_gone, NULL));
    mp_pool_destroy(pool);
    ledger_close(&books);
}

static void nothing_goes_before_its_time(void) {
    mp_pool *pool = purging(NULL, 400 * MS);
    uint64_t before = now_ns();
    give(take(pool, 100000));
    CHECK(eventually(all_is_lent, pool));
    CHECK_LE(150 * MS, now_ns() - before); /* idle for a whole period of half the time */
    CHECK(eventually(thread_is_gone, NULL));
    mp_pool_destroy(pool);
}

/* What is used at each tick stays, what lay beside it all the time goes. */
typedef struct low_water {
    mp_pool *pool;
    size_t size;
} low_water;

static bool only_one_is_left(void *context) {
    const low_water *mark = context;
    give(take(mark->pool, mark->size));
    return snapshot(mark->pool).idle == mark->size;
}

static void what_is_in_use_stays_warm(void) {
    low_water mark = {.pool = purging(NULL, 20 * MS), .size = 65536};
    mp_block *held[5];
    for (size_t i = 0; i < 5; i++) held[i] = take(mark.pool, mark.size);
    for (size_t i = 0; i < 5; i++) give(held[i]);
    CHECK(eventually(only_one_is_left, &mark));
    uint64_t misses = snapshot(mark.pool).misses;
    for (unsigned i = 0; i < 1000; i++) give(take(mark.pool, mark.size));
    CHECK_LE(snapshot(mark.pool).misses, misses + 20);
    CHECK(eventually(all_is_lent, mark.pool));
    mp_pool_destroy(mark.pool);
    CHECK(eventually(thread_is_gone, NULL));
}

static void never_means_no_thread(void) {
    mp_pool *pool = purging(NULL, MP_NEVER);
    give(take(pool, 100000));
    CHECK(!mp_housekeeping_runs());
    CHECK(snapshot(pool).idle > 0);
    mp_pool_destroy(pool);
}

static void a_pool_that_goes_takes_its_thread_along(void) {
    mp_pool *pool = purging(NULL, 20 * MS);
    give(take(pool, 100000));
    mp_pool_destroy(pool);
    CHECK(eventually(thread_is_gone, NULL));
}

static void every_timeout_is_taken(void) {
    const uint64_t timeouts[] = {1, 2, MS, UINT64_MAX / 4, UINT64_MAX / 2, MP_NEVER - 1};
    for (size_t i = 0; i < 6; i++) {
        mp_pool *pool = purging(NULL, timeouts[i]);
        give(take(pool, 100000));
        if (timeouts[i] <= MS) CHECK(eventually(all_is_lent, pool));
        give(take(pool, 100000));
        mp_pool_destroy(pool);
        CHECK(eventually(thread_is_gone, NULL));
    }
}

/* Pools of their own time each, with and without something idle. */
static void many_pools_one_thread(void) {
    mp_pool *pools[20];
    for (uint64_t i = 0; i < 20; i++) pools[i] = purging(NULL, (5 + i) * MS);
    for (unsigned round = 0; round < 5; round++) {
        for (size_t i = 0; i < 20; i++) give(take(pools[i], 5000));
        for (size_t i = 0; i < 20; i++) CHECK(eventually(all_is_lent, pools[i]));
    }
    CHECK(eventually(thread_is_gone, NULL));
    for (size_t i = 0; i < 20; i++) mp_pool_destroy(pools[i]);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(trim_leaves_at_most_the_target);
    TEST(trimmed_memory_leaves_the_process);
    TEST(cold_blocks_come_back_zero);
    TEST(empty_chunks_are_unmapped);
    TEST(max_idle_bounds_what_lies_about);
    TEST(max_idle_zero_keeps_nothing);
    TEST(small_blocks_come_back_in_any_order);
    TEST(a_full_pool_stays_full);
    TEST(what_goes_at_once_needs_no_thread);
    TEST(max_idle_holds_among_threads);
    TEST(the_thread_is_there_while_something_is_idle);
    TEST(idle_memory_is_purged_with_no_call_made);
    TEST(nothing_goes_before_its_time);
    TEST(what_is_in_use_stays_warm);
    TEST(never_means_no_thread);
    TEST(a_pool_that_goes_takes_its_thread_along);
    TEST(every_timeout_is_taken);
    TEST(many_pools_one_thread);
    return check_end();
}
