/* The end of a pool, in any order: closed, destroyed, its leases ending before or after, here or in another thread. */
#include "kit.h"

enum { HELD = 200 };

static mp_pool *open_counted(ledger *books, mp_pool_config *config) {
    ledger_open(books);
    *config = plain(books);
    return open_pool(config);
}

static void a_closed_pool_lends_nothing(void) {
    ledger books;
    mp_pool_config config;
    mp_pool *pool = open_counted(&books, &config);
    mp_block *none = NULL;
    give(take(pool, 5000));
    mp_pool_close(pool);
    mp_pool_close(pool);
    CHECK_EQ(snapshot(pool).reserved, 0);
    CHECK_EQ(books.mapped, 0);
    CHECK(mp_pool_acquire_idle(pool, 5000) == NULL);
    CHECK_EQ(mp_pool_acquire(pool, 5000, &none, NULL), MP_ERR_CLOSED);
    CHECK_EQ(mp_pool_acquire(pool, 77, &none, NULL), MP_ERR_CLOSED);
    CHECK_EQ(mp_pool_reserve(pool, 5000, 1, NULL), MP_ERR_CLOSED);
    CHECK(none == NULL);
    CHECK_EQ(mp_pool_trim(pool, 0), 0);
    CHECK_EQ(mp_pool_set_limit(pool, 100, NULL), MP_OK);
    CHECK_EQ(snapshot(pool).acquires, 1);
    CHECK(mp_pool_is_valid(pool));
    mp_pool_destroy(pool);
    ledger_close(&books);
}

/* Blocks that share a page or a chunk with a lent one stay; they are not lent either. */
static void what_cannot_leave_yet_is_not_lent(void) {
    ledger books;
    mp_pool_config config;
    mp_pool *pool = open_counted(&books, &config);
    mp_block *held = take(pool, 64), *none = NULL;
    give(take(pool, 64));
    mp_pool_close(pool);
    CHECK(mp_pool_acquire_idle(pool, 64) == NULL);
    CHECK_EQ(mp_pool_acquire(pool, 64, &none, NULL), MP_ERR_CLOSED);
    CHECK(none == NULL);
    give(held);
    CHECK_EQ(snapshot(pool).reserved, 0);
    mp_pool_destroy(pool);
    ledger_close(&books);
}

/* `when`: whether the pool is closed or destroyed before or after the leases end. */
enum when { CLOSE_FIRST, DESTROY_FIRST, DESTROY_IN_BETWEEN, DESTROY_LAST };

static void end_lease(mp_block *block, size_t i) {
    CHECK(is_filled(block->data, (int)(i & 127), block->requested));
    if (i % 3 != 0) {
        CHECK(!mp_pool_release(block, (mp_end)(i % 2)));
        return;
    }
    mp_pool_retire(block, MP_END_HANDED_OVER);
    CHECK(!mp_pool_return(block));
}

static void live_and_die(enum when when, dice *luck) {
    ledger books;
    mp_pool_config config;
    mp_block *held[HELD];
    mp_pool *pool = open_counted(&books, &config);
    for (size_t i = 0; i < HELD; i++) {
        held[i] = take(pool, roll_below(luck, (size_t)1 << (4 + roll_below(luck, 16))));
        memset(held[i]->data, (int)(i & 127), held[i]->requested);
    }
    if (when == CLOSE_FIRST) mp_pool_close(pool);
    if (when == DESTROY_FIRST) mp_pool_destroy(pool);
    for (size_t i = 0; i < HELD; i++) {
        if (i == HELD / 2 && when == DESTROY_IN_BETWEEN) mp_pool_destroy(pool);
        end_lease(held[i * 7 % HELD], i * 7 % HELD);
    }
    if (when == CLOSE_FIRST) CHECK_EQ(books.mapped, 0);
    if (when == CLOSE_FIRST || when == DESTROY_LAST) mp_pool_destroy(pool);
    ledger_close(&books);
}

static void leases_and_pool_end_in_any_order(void) {
    dice luck = {.state = check_seed = 5};
    for (unsigned round = 0; round < 40; round++) live_and_die((enum when)(round % 4), &luck);
}

static void the_last_return_frees_the_pool(void) {
    ledger books;
    mp_pool_config config;
    mp_pool *pool = open_counted(&books, &config);
    mp_block *live = take(pool, 5000), *seen = take(pool, 64);
    mp_pool_retire(seen, MP_END_RELEASED);
    mp_pool_destroy(pool);
    CHECK(books.allocs > 0 && books.mapped > 0);
    give(live);
    CHECK(books.allocs > 0);
    memset(seen->data, 1, 64); /* whoever views it may still write */
    CHECK(!mp_pool_return(seen));
    CHECK(books.allocs == 0 && books.mapped == 0);
    ledger_close(&books);
}

static void the_account_gets_everything_back(void) {
    mp_account *account = open_account(NULL, MP_NO_LIMIT);
    mp_pool_config config = plain(NULL);
    config.account = account;
    mp_pool *pool = open_pool(&config);
    mp_block *a = take(pool, 64), *b = take(pool, 3 * MIB);
    mp_pool_destroy(pool);
    CHECK_EQ(mp_account_used(account), 4096 + 3 * MIB);
    give(b);
    CHECK_EQ(mp_account_used(account), 4096);
    give(a);
    CHECK_EQ(mp_account_used(account), 0);
    mp_account_release(account);
}

static void retire_works_after_the_end(void) {
    ledger books;
    mp_pool_config config;
    mp_pool *pool = open_counted(&books, &config);
    mp_block *block = take(pool, 5000);
    mp_pool_destroy(pool);
    CHECK_EQ(mp_pool_resize(block, 10), MP_OK);
    mp_block_zero(block, 10);
    mp_pool_retire(block, MP_END_RELEASED);
    CHECK(!mp_pool_return(block));
    ledger_close(&books);
}

/* ---- threads end the leases while the pool goes ---- */

typedef struct farewell {
    mp_pool *pool;
    mp_block *held[8][HELD];
} farewell;

static void end_all(void *context, unsigned number) {
    farewell *shared = context;
    if (number == 8) {
        mp_pool_destroy(shared->pool);
        return;
    }
    for (size_t i = 0; i < HELD; i++) end_lease(shared->held[number][i], i);
}

static void the_pool_may_go_while_leases_end(void) {
    static farewell shared;
    for (unsigned round = 0; round < 30; round++) {
        ledger books;
        mp_pool_config config;
        shared.pool = open_counted(&books, &config);
        for (size_t t = 0; t < 8; t++) {
            for (size_t i = 0; i < HELD; i++) {
                shared.held[t][i] = take(shared.pool, i % 5 ? 100 : 5000);
                memset(shared.held[t][i]->data, (int)(i & 127), shared.held[t][i]->requested);
            }
        }
        crew_run(9, end_all, &shared);
        ledger_close(&books);
    }
}

/* Threads that acquire while another closes: each acquire works or says closed, and nothing stays behind. */
static void acquire_until_closed(void *context, unsigned number) {
    mp_pool *pool = context;
    mp_block *block;
    if (number == 0) {
        while (snapshot(pool).acquires < 1000) sched_yield();
        mp_pool_close(pool);
        return;
    }
    for (;;) {
        mp_status status = mp_pool_acquire(pool, number % 2 ? 64 : 4096, &block, NULL);
        if (status == MP_ERR_CLOSED) break;
        CHECK_EQ(status, MP_OK);
        give(block);
    }
    CHECK(mp_pool_acquire_idle(pool, 64) == NULL);
}

static void closing_stops_every_thread(void) {
    for (unsigned round = 0; round < 20; round++) {
        ledger books;
        mp_pool_config config;
        mp_pool *pool = open_counted(&books, &config);
        crew_run(5, acquire_until_closed, pool);
        CHECK_EQ(snapshot(pool).reserved, 0);
        CHECK_EQ(books.mapped, 0);
        mp_pool_destroy(pool);
        ledger_close(&books);
    }
}

/* Pools come and go in many threads at once, while housekeeping looks at them. */
static void open_and_close(void *context, unsigned number) {
    ledger *books = context;
    for (unsigned i = 0; i < 100; i++) {
        mp_pool_config config = plain(books);
        config.idle_timeout = 1000000;
        mp_pool *pool = open_pool(&config);
        mp_block *block = take(pool, 100 * (number + 1));
        give(take(pool, 5000));
        mp_pool_destroy(pool);
        give(block);
    }
}

static void pools_come_and_go(void) {
    ledger books;
    ledger_open(&books);
    crew_run(6, open_and_close, &books);
    ledger_close(&books);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(a_closed_pool_lends_nothing);
    TEST(what_cannot_leave_yet_is_not_lent);
    TEST(leases_and_pool_end_in_any_order);
    TEST(the_last_return_frees_the_pool);
    TEST(the_account_gets_everything_back);
    TEST(retire_works_after_the_end);
    TEST(the_pool_may_go_while_leases_end);
    TEST(closing_stops_every_thread);
    TEST(pools_come_and_go);
    return check_end();
}
