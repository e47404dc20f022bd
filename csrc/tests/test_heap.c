/* test_heap.c: memory that is named by its address, and what it keeps alive. */
#include "kit.h"

#define BIG (64 * MIB)

static mp_heap *open_heap(mp_pool *pool) {
    mp_heap *heap = NULL;
    CHECK_EQ(mp_heap_create(pool, pool, &heap), MP_OK);
    CHECK(mp_heap_owner(heap) == pool);
    return heap;
}

static char *get(mp_heap *heap, size_t nbytes) {
    void *ptr = NULL;
    size_t used = 0;
    CHECK_EQ(mp_heap_alloc(heap, nbytes, false, &ptr), MP_OK);
    CHECK(mp_heap_has(ptr, &used));
    CHECK_EQ(used, nbytes);
    return ptr;
}

/* What the caller of a heap does to free. */
static bool put(void *ptr) {
    mp_block *block;
    size_t used;
    mp_heap *heap = mp_heap_take_out(ptr, &block);
    CHECK(heap != NULL && block->data == ptr);
    CHECK(!mp_heap_has(ptr, &used));
    bool waiting = mp_pool_release(block, MP_END_RELEASED);
    (void)mp_heap_release(heap);
    return waiting;
}

static char *move(char *ptr, size_t nbytes) {
    void *moved = NULL;
    mp_heap *waiting;
    CHECK_EQ(mp_heap_realloc(ptr, nbytes, &moved, &waiting), MP_OK);
    CHECK(waiting == NULL);
    return moved;
}

static void addresses_are_told_apart(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_heap *heap = open_heap(pool);
    size_t used;
    mp_block *block;
    void *out;
    mp_heap *waiting;
    char *first = get(heap, 40 * KIB), *second = get(heap, 3 * MIB), *foreign = malloc(40 * KIB);
    CHECK(foreign != NULL && !mp_heap_has(foreign, &used) && mp_heap_take_out(foreign, &block) == NULL);
    CHECK(!mp_heap_has(NULL, &used) && !mp_heap_has((void *)UINTPTR_MAX, &used));
    for (size_t at = 1; at < 40 * KIB; at++) CHECK(!mp_heap_has(first + at, &used));
    CHECK_EQ(mp_heap_realloc(foreign, 50, &out, &waiting), MP_ERR_STALE);
    mp_block *plain_lease = take(pool, MIB);
    CHECK(!mp_heap_has(plain_lease->data, &used)); /* of the pool, but not lent by a heap */
    give(plain_lease);
    CHECK(!put(first));
    CHECK(mp_heap_has(second, &used) && used == 3 * MIB);
    CHECK(!put(second));
    CHECK(mp_heap_release(heap) == pool);
    CHECK_EQ(snapshot(pool).live, 0);
    mp_pool_destroy(pool);
    free(foreign);
}

static void small_is_refused(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_heap *heap = open_heap(pool);
    void *out;
    CHECK_EQ(mp_heap_alloc(heap, MP_HEAP_LEAST - 1, false, &out), MP_ERR_INVALID);
    CHECK_EQ(mp_heap_alloc(heap, 0, true, &out), MP_ERR_INVALID);
    CHECK_EQ(snapshot(pool).acquires, 0);
    char *least = get(heap, MP_HEAP_LEAST > mp_page_size() ? MP_HEAP_LEAST : mp_page_size());
    CHECK_EQ((uintptr_t)least % mp_page_size(), 0);
    put(least);
    (void)mp_heap_release(heap);
    mp_pool_destroy(pool);
}

static void many_lie_side_by_side(void) {
    enum { COUNT = 3000 };
    static char *pointers[COUNT];
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_heap *heap = open_heap(pool);
    size_t used;
    for (size_t i = 0; i < COUNT; i++) *(size_t *)(void *)(pointers[i] = get(heap, 32 * KIB + i % 7 * 4096)) = i;
    for (size_t i = 0; i < COUNT; i += 2) put(pointers[i]);
    for (size_t i = 0; i < COUNT; i++) {
        CHECK_EQ(mp_heap_has(pointers[i], &used), i % 2 == 1);
        if (i % 2 == 0) continue;
        CHECK_EQ(used, 32 * KIB + i % 7 * 4096);
        CHECK_EQ(*(size_t *)(void *)pointers[i], i);
        put(pointers[i]);
    }
    (void)mp_heap_release(heap);
    mp_pool_destroy(pool);
}

static void zeros_are_zeros(void) {
    const size_t sizes[] = {32 * KIB, 100 * KIB + 3, 3 * MIB, BIG};
    mp_pool_config config = plain(NULL);
    for (int clears = 0; clears < 2; clears++) {
        config.zero_on_release = clears;
        mp_pool *pool = open_pool(&config);
        mp_heap *heap = open_heap(pool);
        CHECK_EQ(mp_heap_clears(heap), clears);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            void *ptr;
            put(memset(get(heap, sizes[i]), 0xAA, sizes[i]));
            CHECK_EQ(mp_heap_alloc(heap, sizes[i], true, &ptr), MP_OK);
            CHECK(is_filled(ptr, 0, sizes[i]));
            memset(ptr, 0xBB, sizes[i]);
            put(ptr);
            CHECK_EQ(mp_heap_alloc(heap, sizes[i], true, &ptr), MP_OK);
            CHECK(is_filled(ptr, 0, sizes[i]));
            put(ptr);
        }
        CHECK(mp_heap_release(heap) == pool);
        mp_pool_destroy(pool);
    }
}

static void large_zeros_take_no_pages(void) {
    ledger books;
    ledger_open(&books);
    mp_pool_config config = plain(&books);
    mp_pool *pool = open_pool(&config);
    mp_heap *heap = open_heap(pool);
    void *ptr;
    put(memset(get(heap, BIG), 1, BIG));
    uint64_t before = books.calls[LEDGER_DECOMMIT];
    CHECK_EQ(mp_heap_alloc(heap, BIG, true, &ptr), MP_OK);
    CHECK_EQ(books.calls[LEDGER_DECOMMIT], before + 1);
    CHECK_EQ(books.calls[LEDGER_MAP], 1);
    CHECK(is_filled(ptr, 0, BIG));
    put(ptr);
    (void)mp_heap_release(heap);
    mp_pool_destroy(pool);
    ledger_close(&books);
}

/* The OS takes the pages and gives none, or takes none. */
static void large_zeros_without_pages(void) {
    for (unsigned call = LEDGER_COMMIT; call <= LEDGER_DECOMMIT; call++) {
        for (int bounded = 0; bounded < 2; bounded++) {
            ledger books;
            ledger_open(&books);
            mp_account *account = open_account(NULL, MP_NO_LIMIT);
            mp_pool_config config = plain(&books);
            config.account = account;
            if (bounded) config.max_idle = 100 * MIB;
            mp_pool *pool = open_pool(&config);
            mp_heap *heap = open_heap(pool);
            void *ptr = NULL;
            put(memset(get(heap, BIG), 1, BIG));
            books.may_refuse = 1U << call;
            books.refuse_at = 1;
            books.total = 0;
            mp_status status = mp_heap_alloc(heap, BIG, true, &ptr);
            CHECK_EQ(status, call == LEDGER_COMMIT ? MP_ERR_NOMEM : MP_OK);
            if (status == MP_OK) {
                CHECK(is_filled(ptr, 0, BIG));
                put(ptr);
            }
            CHECK_EQ(snapshot(pool).live, 0);
            CHECK(mp_pool_is_valid(pool));
            CHECK_EQ(mp_account_used(account), snapshot(pool).reserved);
            CHECK_EQ(mp_heap_alloc(heap, BIG, true, &ptr), MP_OK);
            CHECK(is_filled(ptr, 0, BIG));
            put(ptr);
            (void)mp_heap_release(heap);
            mp_pool_destroy(pool);
            CHECK_EQ(mp_account_used(account), 0);
            mp_account_release(account);
            ledger_close(&books);
        }
    }
}

static void realloc_keeps_content(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_heap *heap = open_heap(pool);
    char *ptr = get(heap, 100 * KIB), *before = ptr;
    memset(ptr, 7, 100 * KIB);
    CHECK(move(ptr, 99 * KIB) == ptr); /* within the block */
    ptr = move(ptr, 5 * MIB);
    CHECK(ptr != before && is_filled(ptr, 7, 99 * KIB));
    memset(ptr, 8, 5 * MIB);
    CHECK(move(ptr, 3 * MIB) == ptr); /* more than half of it */
    before = ptr;
    ptr = move(ptr, 200 * KIB);
    CHECK(ptr != before && is_filled(ptr, 8, 200 * KIB));
    CHECK(move(ptr, 10) == ptr); /* a heap has nothing smaller */
    CHECK_EQ(snapshot(pool).requested, 10);
    put(ptr);
    CHECK_EQ(snapshot(pool).live, 0);
    (void)mp_heap_release(heap);
    mp_pool_destroy(pool);
}

static void failed_realloc_changes_nothing(void) {
    mp_pool_config config = plain(NULL);
    config.limit = 4 * MIB;
    mp_pool *pool = open_pool(&config);
    mp_heap *heap = open_heap(pool), *waiting;
    void *out = NULL;
    char *ptr = get(heap, 3 * MIB);
    memset(ptr, 9, 3 * MIB);
    CHECK_EQ(mp_heap_realloc(ptr, 4 * MIB, &out, &waiting), MP_ERR_LIMIT);
    CHECK(out == NULL && waiting == NULL);
    CHECK_EQ(snapshot(pool).requested, 3 * MIB);
    CHECK_EQ(snapshot(pool).exhausted, 1);
    char *other = get(heap, MIB);
    CHECK(move(ptr, MIB) == ptr); /* it cannot move: there is no room beside it */
    CHECK(is_filled(ptr, 9, MIB));
    mp_pool_close(pool);
    CHECK_EQ(mp_heap_realloc(ptr, 8 * MIB, &out, &waiting), MP_ERR_CLOSED);
    CHECK(move(ptr, 100 * KIB) == ptr);
    put(other);
    put(ptr);
    (void)mp_heap_release(heap);
    mp_pool_destroy(pool);
}

static void who_waits_is_told(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_heap *heap = open_heap(pool), *waiting = NULL;
    void *out;
    char *ptr = get(heap, MIB);
    mp_pool_set_waiters(pool, true);
    CHECK_EQ(mp_heap_realloc(ptr, 2 * MIB, &out, &waiting), MP_OK);
    CHECK(waiting == heap);
    CHECK(put(out));
    (void)mp_heap_release(heap);
    mp_pool_destroy(pool);
}

/* Whatever goes first. */
static void lives_end_in_any_order(void) {
    for (unsigned order = 0; order < 6; order++) {
        ledger books;
        ledger_open(&books);
        mp_pool_config config = plain(&books);
        mp_pool *pool = open_pool(&config);
        mp_heap *heap = open_heap(pool);
        void *owner = NULL;
        char *ptr = get(heap, MIB);
        for (unsigned step = 0; step < 3; step++) {
            unsigned what = (order / 2 + (order % 2 ? 3 - step : step)) % 3;
            if (what == 0) mp_pool_destroy(pool);
            if (what == 1) owner = owner != NULL ? owner : mp_heap_release(heap);
            if (what != 2) continue;
            mp_block *block;
            memset(ptr, 1, MIB);
            mp_heap *last = mp_heap_take_out(ptr, &block);
            (void)mp_pool_release(block, MP_END_RELEASED);
            void *freed = mp_heap_release(last);
            if (freed != NULL) owner = freed;
        }
        CHECK(owner == pool); /* told once, by whatever was last */
        ledger_close(&books);
    }
}

static void nothing_comes_from_a_pool_that_is_gone(void) {
    ledger books;
    ledger_open(&books);
    mp_pool_config config = plain(&books);
    mp_pool *pool = open_pool(&config);
    mp_heap *heap = open_heap(pool);
    void *out;
    mp_pool_destroy(pool);
    CHECK_EQ(mp_heap_alloc(heap, MIB, false, &out), MP_ERR_CLOSED);
    CHECK(mp_heap_release(heap) == pool);
    ledger_close(&books);
}

static void one_is_current(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_heap *first = open_heap(pool), *second = open_heap(pool);
    CHECK(mp_heap_current() == NULL);
    CHECK(mp_heap_set_current(first) == NULL);
    CHECK(mp_heap_current() == first);
    CHECK(mp_heap_release(first) == NULL);
    CHECK(mp_heap_set_current(second) == first);
    CHECK(mp_heap_release(first) == pool);
    CHECK(mp_heap_set_current(NULL) == second);
    CHECK(mp_heap_current() == NULL);
    CHECK(mp_heap_release(second) == pool);
    mp_pool_destroy(pool);
}

static void each_call_to_the_source_may_fail(void) {
    for (uint64_t at = 1;; at++) {
        ledger books;
        ledger_open(&books);
        mp_pool_config config = plain(&books);
        mp_pool *pool = open_pool(&config);
        mp_heap *heap = open_heap(pool), *waiting;
        void *ptr = NULL;
        books.may_refuse = LEDGER_ALL;
        books.refuse_at = at;
        mp_status status = mp_heap_alloc(heap, MIB, false, &ptr);
        if (status == MP_OK) {
            void *moved = ptr;
            memset(ptr, 3, MIB);
            status = mp_heap_realloc(ptr, 3 * MIB, &moved, &waiting);
            CHECK(is_filled(moved, 3, MIB));
            put(moved);
        }
        bool refused = ledger_refusals(&books) > 0;
        books.may_refuse = 0;
        CHECK_EQ(snapshot(pool).live, 0);
        (void)mp_heap_release(heap);
        mp_pool_destroy(pool);
        ledger_close(&books);
        if (!refused) break;
        CHECK_EQ(status, MP_ERR_NOMEM);
    }
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(addresses_are_told_apart);
    TEST(small_is_refused);
    TEST(many_lie_side_by_side);
    TEST(zeros_are_zeros);
    TEST(large_zeros_take_no_pages);
    TEST(large_zeros_without_pages);
    TEST(realloc_keeps_content);
    TEST(failed_realloc_changes_nothing);
    TEST(who_waits_is_told);
    TEST(lives_end_in_any_order);
    TEST(nothing_comes_from_a_pool_that_is_gone);
    TEST(one_is_current);
    TEST(each_call_to_the_source_may_fail);
    return check_end();
}
