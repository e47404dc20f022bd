/* reserve: idle memory ahead of use, all of it or none. */
#include "kit.h"

static mp_pool *limited(const ledger *books, size_t limit) {
    mp_pool_config config = plain(books);
    config.limit = limit;
    return open_pool(&config);
}

static void reserved_blocks_are_hits(void) {
    const size_t sizes[] = {64, 1000, 4096, 70000, 3 * MIB};
    for (size_t i = 0; i < 5; i++) {
        mp_block *held[100];
        mp_pool *pool = limited(NULL, MP_NO_LIMIT);
        size_t size = mp_pool_block_size(pool, sizes[i]);
        CHECK_EQ(mp_pool_reserve(pool, sizes[i], 100, NULL), MP_OK);
        CHECK_LE(100 * size, snapshot(pool).idle);
        CHECK_LT(snapshot(pool).idle, 100 * size + (size < mp_page_size() ? mp_page_size() : size));
        for (size_t k = 0; k < 100; k++) held[k] = take(pool, sizes[i]);
        CHECK(snapshot(pool).hits == 100 && snapshot(pool).misses == 0);
        for (size_t k = 0; k < 100; k++) give(held[k]);
        CHECK_EQ(mp_pool_reserve(pool, sizes[i], 100, NULL), MP_OK); /* they are there already */
        CHECK_LT(snapshot(pool).reserved, 100 * size + (size < mp_page_size() ? mp_page_size() : size));
        CHECK(mp_pool_is_valid(pool));
        mp_pool_destroy(pool);
    }
}

/* "Ahead of use" means that the first use faults no page in. */
static void reserved_memory_is_in_memory(void) {
    ledger books;
    ledger_open(&books);
    mp_pool *pool = limited(&books, MP_NO_LIMIT);
    CHECK_EQ(mp_pool_reserve(pool, 100000, 3, NULL), MP_OK);
    CHECK_EQ(ledger_resident(&books), snapshot(pool).reserved);
    mp_block *block = take(pool, 100000);
    mp_block_zero(block, 100000);
    CHECK(is_filled(block->data, 0, 100000));
    give(block);
    mp_pool_destroy(pool);
    ledger_close(&books);
}

static void none_is_none(void) {
    mp_pool *pool = limited(NULL, MP_NO_LIMIT);
    CHECK_EQ(mp_pool_reserve(pool, 4096, 0, NULL), MP_OK);
    CHECK_EQ(mp_pool_reserve(pool, 0, 1, NULL), MP_OK);
    CHECK(snapshot(pool).idle >= 64 && snapshot(pool).idle <= mp_page_size());
    mp_pool_destroy(pool);
}

static void what_does_not_fit_leaves_all_as_it_was(void) {
    ledger books;
    ledger_open(&books);
    mp_pool *pool = limited(&books, 10 * 8192);
    mp_block *live = take(pool, 8192);
    give(take(pool, 64));
    give(take(pool, 2 * 8192));
    mp_pool_stats before = snapshot(pool);
    CHECK_EQ(mp_pool_reserve(pool, 8192, 10, NULL), MP_ERR_LIMIT);
    CHECK_EQ(mp_pool_reserve(pool, 64, 10 * 8192 / 64, NULL), MP_ERR_LIMIT);
    CHECK_EQ(mp_pool_reserve(pool, 8192, ((size_t)1 << 47) / 8192, NULL), MP_ERR_LIMIT);
    mp_pool_stats after = snapshot(pool);
    CHECK_EQ(memcmp(&before, &after, sizeof before), 0);
    mp_shortage shortage;
    CHECK(mp_pool_reserve(pool, 8192, 10, &shortage) == MP_ERR_LIMIT && !shortage.hopeless);
    CHECK(mp_pool_reserve(pool, 8192, 11, &shortage) == MP_ERR_LIMIT && shortage.hopeless);
    CHECK_EQ(mp_pool_reserve(pool, 8192, 9, NULL), MP_OK); /* idle memory of other classes makes room */
    CHECK_EQ(snapshot(pool).reserved, 10 * 8192);
    give(live);
    mp_pool_destroy(pool);
    ledger_close(&books);
}

/* When the OS stops it half way, what it took goes back. */
static void the_os_may_stop_it_half_way(void) {
    for (uint64_t call = 1; call < 6; call++) {
        ledger books;
        ledger_open(&books);
        mp_pool *pool = limited(&books, MP_NO_LIMIT);
        mp_block *live = take(pool, 64), *none;
        books.may_refuse = 1 << LEDGER_MAP;
        books.refuse_at = call;
        books.from_then_on = true;
        CHECK_EQ(mp_pool_reserve(pool, 8192, 100, NULL), MP_ERR_NOMEM);
        CHECK_EQ(mp_pool_acquire(pool, 8192, &none, NULL), MP_ERR_NOMEM);
        mp_pool_stats s = snapshot(pool);
        CHECK(s.in_use == 64 && s.idle <= mp_page_size() && s.retired == 0);
        ledger_relent(&books);
        CHECK_EQ(mp_pool_reserve(pool, 8192, 100, NULL), MP_OK);
        give(live);
        mp_pool_destroy(pool);
        ledger_close(&books);
    }
}

static void an_account_may_stop_it_half_way(void) {
    mp_account *account = open_account(NULL, MIB);
    mp_pool_config config = plain(NULL);
    config.account = account;
    mp_pool *pool = open_pool(&config);
    mp_block *live = take(pool, 512 * KIB);
    mp_shortage shortage;
    CHECK_EQ(mp_pool_reserve(pool, 8192, 65, &shortage), MP_ERR_ACCOUNT);
    CHECK(shortage.binding == account);
    CHECK(snapshot(pool).reserved == 512 * KIB && mp_account_used(account) == 512 * KIB);
    CHECK_EQ(mp_pool_reserve(pool, 8192, 64, &shortage), MP_OK);
    CHECK(snapshot(pool).reserved == MIB && mp_account_used(account) == MIB);
    give(live);
    mp_pool_destroy(pool);
    CHECK_EQ(mp_account_used(account), 0);
    mp_account_release(account);
}

/* Small blocks that share a page with a lent one cannot be given back: none may be taken before all are sure. */
static void none_of_many_small_blocks_either(void) {
    mp_account *account = open_account(NULL, 4 * mp_page_size());
    mp_pool_config config = plain(NULL);
    config.account = account;
    mp_pool *pool = open_pool(&config);
    mp_block *live = take(pool, 256);
    mp_pool_stats before = snapshot(pool);
    CHECK_EQ(mp_pool_reserve(pool, 256, 4 * mp_page_size() / 256, NULL), MP_ERR_ACCOUNT);
    mp_pool_stats after = snapshot(pool);
    CHECK_EQ(memcmp(&before, &after, sizeof before), 0);
    CHECK_EQ(mp_pool_reserve(pool, 256, 4 * mp_page_size() / 256 - 1, NULL), MP_OK);
    CHECK_EQ(snapshot(pool).reserved, 4 * mp_page_size());
    give(live);
    mp_pool_destroy(pool);
    mp_account_release(account);
}

/* More than can be addressed must not be tried page by page until the machine is full. */
static void a_nonsense_count_is_refused_at_once(void) {
    mp_pool *pool = limited(NULL, MP_NO_LIMIT);
    give(take(pool, 5000));
    mp_pool_stats before = snapshot(pool);
    CHECK_EQ(mp_pool_reserve(pool, 64, SIZE_MAX / 64, NULL), MP_ERR_NOMEM);
    CHECK_EQ(mp_pool_reserve(pool, 64, ((size_t)1 << 47) / 64 + 1, NULL), MP_ERR_NOMEM);
    CHECK_EQ(mp_pool_reserve(pool, 64, SIZE_MAX, NULL), MP_ERR_NOMEM);
    mp_pool_stats after = snapshot(pool);
    CHECK_EQ(memcmp(&before, &after, sizeof before), 0); /* idle memory was not given up for it */
    mp_pool_destroy(pool);
}

/* max_idle bounds what releases leave behind; what was reserved on purpose waits for its use. */
static void a_reserve_may_pass_max_idle(void) {
    mp_block *held[10];
    mp_pool_config config = plain(NULL);
    config.max_idle = 5 * 8192;
    mp_pool *pool = open_pool(&config);
    CHECK_EQ(mp_pool_reserve(pool, 8192, 10, NULL), MP_OK);
    for (size_t i = 0; i < 10; i++) held[i] = take(pool, 8192);
    CHECK_EQ(snapshot(pool).hits, 10);
    for (size_t i = 0; i < 10; i++) give(held[i]);
    CHECK_LE(snapshot(pool).idle, config.max_idle);
    CHECK(mp_pool_is_valid(pool));
    mp_pool_destroy(pool);
}

static void reserve_among_threads(void *context, unsigned number) {
    mp_pool *pool = context;
    for (unsigned i = 0; i < 300; i++) {
        mp_status status = mp_pool_reserve(pool, (size_t)4096 << (number % 3), 3, NULL);
        CHECK(status == MP_OK || status == MP_ERR_LIMIT);
        give(take(pool, (size_t)4096 << (i % 3)));
        CHECK_LE(snapshot(pool).reserved, 200 * KIB);
    }
}

static void threads_may_reserve(void) {
    mp_pool *pool = limited(NULL, 200 * KIB);
    crew_run(4, reserve_among_threads, pool);
    CHECK(mp_pool_is_valid(pool));
    mp_pool_destroy(pool);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(reserved_blocks_are_hits);
    TEST(reserved_memory_is_in_memory);
    TEST(none_is_none);
    TEST(what_does_not_fit_leaves_all_as_it_was);
    TEST(the_os_may_stop_it_half_way);
    TEST(an_account_may_stop_it_half_way);
    TEST(none_of_many_small_blocks_either);
    TEST(a_nonsense_count_is_refused_at_once);
    TEST(a_reserve_may_pass_max_idle);
    TEST(threads_may_reserve);
    return check_end();
}
