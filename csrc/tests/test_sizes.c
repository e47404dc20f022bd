/* Sizes: how much a block wastes, where it lies, what cannot be had. */
#include "kit.h"

enum { LARGEST_TRIED = 47, MANY = 2000, ROUNDS = 20000 };

static const size_t most = (size_t)1 << 47;

/* Not more than an eighth of the request, where that is promised. */
static void check_waste(size_t nbytes, size_t capacity) {
    bool promised = (nbytes >= KIB && nbytes <= 4 * KIB) || nbytes > 32 * KIB;
    CHECK_LE(nbytes, capacity);
    if (promised) CHECK_LE(capacity - nbytes, nbytes / 8);
}

static void check_size(const mp_pool *pool, size_t nbytes, size_t *before) {
    size_t size = mp_pool_block_size(pool, nbytes);
    check_waste(nbytes, size);
    CHECK_LE(*before, size);
    CHECK_EQ(size % 64, 0);
    if (nbytes >= 4 * KIB) CHECK_EQ(size % mp_page_size(), 0);
    *before = size;
}

static void every_size_wastes_little(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    size_t before = 0;
    for (size_t n = 0; n <= 300 * KIB; n++) check_size(pool, n, &before);
    for (unsigned e = 19; e < LARGEST_TRIED; e++) {
        for (size_t i = 0; i < 16; i++) {
            size_t edge = ((size_t)16 + i) << (e - 4);
            for (size_t n = edge - 2; n <= edge + 2; n++) check_size(pool, n, &before);
        }
    }
    mp_pool_destroy(pool);
}

static void sizes_end_where_addresses_do(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_block *block;
    const size_t beyond[] = {most + 1, SIZE_MAX / 2, SIZE_MAX - 1, SIZE_MAX};
    CHECK_EQ(mp_pool_block_size(pool, most), most);
    for (size_t i = 0; i < sizeof beyond / sizeof beyond[0]; i++) {
        CHECK_EQ(mp_pool_block_size(pool, beyond[i]), 0);
        CHECK(mp_pool_acquire_idle(pool, beyond[i]) == NULL);
        CHECK_EQ(mp_pool_acquire(pool, beyond[i], &block, NULL), MP_ERR_NOMEM);
        CHECK_EQ(mp_pool_reserve(pool, beyond[i], 1, NULL), MP_ERR_NOMEM);
    }
    CHECK_EQ(mp_pool_acquire(pool, most, &block, NULL), MP_ERR_NOMEM);
    CHECK_EQ(mp_pool_reserve(pool, 64, SIZE_MAX / 32, NULL), MP_ERR_NOMEM);
    CHECK_EQ(snapshot(pool).reserved, 0);
    CHECK(mp_pool_is_valid(pool));
    mp_pool_destroy(pool);
}

static void nothing_is_a_size_too(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_block *block = take(pool, 0);
    CHECK_EQ(block->capacity, 64);
    CHECK_EQ(snapshot(pool).requested, 0);
    give(block);
    mp_pool_destroy(pool);
}

static void an_idle_neighbour_serves(void) {
    const size_t sizes[] = {KIB, 4 * KIB, 33 * KIB, 100 * KIB, MIB, 3 * MIB + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        mp_pool_config config = plain(NULL);
        mp_pool *pool = open_pool(&config);
        size_t own = mp_pool_block_size(pool, sizes[i]), next = mp_pool_block_size(pool, own + 1);
        mp_block *block = take(pool, next);
        void *data = block->data;
        give(block);
        bool may = next <= sizes[i] + sizes[i] / 8;
        block = take(pool, sizes[i]);
        CHECK_EQ(block->data == data, may);
        CHECK_EQ(snapshot(pool).hits, may);
        give(block);
        mp_pool_destroy(pool);
    }
}

/* Idle blocks of all sizes lie about; whatever serves, the promise holds. */
static void neighbours_waste_little_either(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_block *held[64] = {0};
    dice luck = {.state = check_seed = 2};
    for (unsigned round = 0; round < ROUNDS; round++) {
        mp_block **slot = &held[roll_below(&luck, 64)];
        if (*slot != NULL) give(*slot);
        *slot = take(pool, 1 + roll_below(&luck, (size_t)1 << (6 + roll_below(&luck, 17))));
        check_waste((*slot)->requested, (*slot)->capacity);
    }
    CHECK(snapshot(pool).hits > ROUNDS / 2);
    for (size_t i = 0; i < 64; i++) {
        if (held[i] != NULL) give(held[i]);
    }
    CHECK(mp_pool_is_valid(pool));
    mp_pool_destroy(pool);
}

static void check_place(const mp_block *block, size_t alignment) {
    uintptr_t at = (uintptr_t)block->data;
    CHECK_EQ(at % alignment, 0);
    CHECK_EQ(block->capacity % alignment, 0);
    if (block->requested >= 4 * KIB) CHECK(at % mp_page_size() == 0 && block->capacity % mp_page_size() == 0);
    if (block->requested >= mp_huge_page_size()) CHECK_EQ(at % mp_huge_page_size(), 0);
}

static void blocks_are_aligned(void) {
    const size_t sizes[] = {0, 1, 64, 65, 1000, 4095, 4096, 4097, 12345, 70000, MIB + 1, 2 * MIB, 2 * MIB + 1, 5 * MIB};
    for (size_t alignment = 1; alignment <= 2 * MIB; alignment *= 2) {
        mp_pool_config config = plain(NULL);
        config.alignment = alignment;
        mp_pool *pool = open_pool(&config);
        mp_block *held[28];
        for (size_t i = 0; i < 28; i++) check_place(held[i] = take(pool, sizes[i / 2]), alignment > 64 ? alignment : 64);
        for (size_t i = 0; i < 28; i++) give(held[i]);
        CHECK(mp_pool_is_valid(pool));
        mp_pool_destroy(pool);
    }
}

static void odd_alignments_are_refused(void) {
    const size_t odd[] = {0, 3, 65, 96, 4 * MIB, SIZE_MAX / 2 + 1, SIZE_MAX};
    mp_pool *pool = NULL;
    for (size_t i = 0; i < sizeof odd / sizeof odd[0]; i++) {
        mp_pool_config config = plain(NULL);
        config.alignment = odd[i];
        CHECK_EQ(mp_pool_create(&config, &pool), MP_ERR_INVALID);
        CHECK(pool == NULL);
    }
}

static int by_address(const void *a, const void *b) {
    const mp_block *x = *(mp_block *const *)a, *y = *(mp_block *const *)b;
    return x->data < y->data ? -1 : x->data > y->data;
}

static void blocks_never_overlap(void) {
    const mp_huge modes[] = {MP_HUGE_AUTO, MP_HUGE_ALWAYS, MP_HUGE_NEVER};
    dice luck = {.state = check_seed = 3};
    for (size_t m = 0; m < 3; m++) {
        static mp_block *held[MANY];
        mp_pool_config config = plain(NULL);
        config.huge = modes[m];
        mp_pool *pool = open_pool(&config);
        for (size_t i = 0; i < MANY; i++) held[i] = take(pool, roll_below(&luck, (size_t)1 << (4 + roll_below(&luck, 18))));
        for (size_t i = 0; i < MANY; i++)
            memset(held[i]->data, (int)(i & 127), held[i]->capacity < 9000 ? held[i]->capacity : 9000);
        for (size_t i = 0; i < MANY; i++) {
            size_t seen = held[i]->capacity < 9000 ? held[i]->capacity : 9000;
            CHECK(is_filled(held[i]->data, (int)(i & 127), seen));
        }
        qsort(held, MANY, sizeof held[0], by_address);
        for (size_t i = 1; i < MANY; i++) {
            CHECK_LE((uintptr_t)held[i - 1]->data + held[i - 1]->capacity, (uintptr_t)held[i]->data);
        }
        for (size_t i = 0; i < MANY; i++) give(held[i]);
        mp_pool_destroy(pool);
    }
}

/* Small blocks share pages, and a page that nobody was lent is not touched. */
static void small_blocks_share_pages(void) {
    ledger books;
    ledger_open(&books);
    mp_pool_config config = plain(&books);
    mp_pool *pool = open_pool(&config);
    mp_block *held[64];
    for (size_t i = 0; i < 64; i++) memset((held[i] = take(pool, 64))->data, 1, 64);
    CHECK_EQ(snapshot(pool).reserved, 4096);
    CHECK_EQ(ledger_resident(&books), mp_page_size());
    for (size_t i = 0; i < 64; i++) give(held[i]);
    mp_pool_destroy(pool);
    ledger_close(&books);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(every_size_wastes_little);
    TEST(sizes_end_where_addresses_do);
    TEST(nothing_is_a_size_too);
    TEST(an_idle_neighbour_serves);
    TEST(neighbours_waste_little_either);
    TEST(blocks_are_aligned);
    TEST(odd_alignments_are_refused);
    TEST(blocks_never_overlap);
    TEST(small_blocks_share_pages);
    return check_end();
}
