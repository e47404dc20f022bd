/* Statistics: every figure is what it says, in every snapshot, whoever is at work meanwhile. */
#include "kit.h"

static void figures_follow_each_move(void) {
    mp_pool_config config = plain(NULL);
    config.limit = 10 * MIB;
    mp_pool *pool = open_pool(&config);
    mp_pool_stats s = snapshot(pool);
    CHECK(s.acquires == 0 && s.reserved == 0 && s.peak == 0 && s.limit == 10 * MIB);
    mp_block *a = take(pool, 5000), *b = take(pool, 5001);
    s = snapshot(pool);
    CHECK(s.acquires == 2 && s.live == 2 && s.misses == 2 && s.hits == 0);
    CHECK(s.in_use == 2 * 8192 && s.requested == 10001 && s.retired == 0 && s.idle == 0);
    mp_pool_retire(a, MP_END_DROPPED);
    s = snapshot(pool);
    CHECK(s.live == 1 && s.dropped == 1 && s.in_use == 8192 && s.retired == 8192 && s.requested == 5001);
    give(b);
    s = snapshot(pool);
    CHECK(s.live == 0 && s.releases == 1 && s.in_use == 0 && s.idle == 8192 && s.reserved == 2 * 8192);
    b = take(pool, 6000);
    CHECK(snapshot(pool).hits == 1 && snapshot(pool).misses == 2);
    CHECK(!mp_pool_return(a));
    give(b);
    (void)mp_pool_trim(pool, 0);
    s = snapshot(pool);
    CHECK(s.reserved == 0 && s.peak == 2 * 8192 && s.acquires == 3 && s.releases == 2);
    mp_pool_destroy(pool);
}

static void waits_and_exhaustions_are_noted(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    for (unsigned i = 0; i < 3; i++) mp_pool_note_wait(pool);
    for (unsigned i = 0; i < 5; i++) mp_pool_note_exhausted(pool);
    CHECK(snapshot(pool).waits == 3 && snapshot(pool).exhausted == 5);
    mp_pool_destroy(pool);
}

static void the_peak_stays(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_block *large = take(pool, 3 * MIB), *small = take(pool, 4096);
    give(large);
    (void)mp_pool_trim(pool, 0);
    give(small);
    give(take(pool, MIB));
    CHECK_EQ(snapshot(pool).peak, 3 * MIB + 4096);
    CHECK_EQ(mp_pool_idle(pool), snapshot(pool).idle);
    CHECK_LT(0, mp_pool_idle(pool));
    mp_pool_destroy(pool);
}

static void classes_are_listed_smallest_first(void) {
    const size_t sizes[] = {3 * MIB, 64, 5000, 64, 100000, 5000, 5000};
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_class_stats rows[8];
    mp_pool_stats s;
    CHECK_EQ(mp_pool_stats_read(pool, &s, rows, 8), 0);
    for (size_t i = 0; i < 7; i++) (void)take(pool, sizes[i]);
    CHECK_EQ(mp_pool_stats_read(pool, &s, rows, 8), 4);
    CHECK(rows[0].size == 64 && rows[0].live == 2 && rows[0].acquires == 2 && rows[0].idle == mp_page_size() / 64 - 2);
    CHECK(rows[1].size == 8192 && rows[1].live == 3 && rows[1].acquires == 3 && rows[1].idle == 0);
    CHECK(rows[2].size == 102400 && rows[2].live == 1);
    CHECK(rows[3].size == 3 * MIB && rows[3].live == 1);
    memset(rows, 0xff, sizeof rows);
    CHECK_EQ(mp_pool_stats_read(pool, &s, rows, 2), 4); /* no more rows than there is room for */
    CHECK(rows[1].size == 8192 && rows[2].size == SIZE_MAX);
    mp_pool_close(pool);
}

static void rows_add_up(mp_pool *pool) {
    enum { ROWS = 600 };
    static _Thread_local mp_class_stats rows[ROWS];
    mp_pool_stats s;
    size_t count = mp_pool_stats_read(pool, &s, rows, ROWS), idle = 0;
    uint64_t live = 0, acquires = 0;
    CHECK_LE(count, ROWS);
    for (size_t i = 0; i < count; i++) {
        idle += rows[i].size * (size_t)rows[i].idle;
        live += rows[i].live;
        acquires += rows[i].acquires;
        CHECK(i == 0 || rows[i - 1].size < rows[i].size);
    }
    CHECK(idle == s.idle && live == s.live && acquires == s.acquires);
}

/* Two classes of one size are one row's worth of figures to whoever reads them. */
static void sizes_are_listed_once(void) {
    mp_pool_config config = plain(NULL);
    config.alignment = 4096;
    mp_pool *pool = open_pool(&config);
    mp_block *held[5];
    for (size_t i = 0; i < 5; i++) held[i] = take(pool, 100 + 700 * i);
    rows_add_up(pool);
    for (size_t i = 0; i < 5; i++) give(held[i]);
    mp_block *block = take(pool, 4096);
    CHECK_EQ(snapshot(pool).hits, 1); /* an idle block of this size is an idle block of this size */
    give(block);
    mp_pool_destroy(pool);
}

/* ---- while others work ---- */

typedef struct office {
    mp_pool *pool;
    atomic_uint at_work;
} office;

static void work(office *shared, dice *luck) {
    mp_block *held[4] = {0};
    for (unsigned i = 0; i < 5000; i++) {
        mp_block **slot = &held[roll_below(luck, 4)];
        if (*slot == NULL) {
            *slot = take(shared->pool, roll_below(luck, 20000));
        } else if (i % 3 == 0) {
            mp_pool_retire(*slot, (mp_end)(i % 2));
            CHECK(!mp_pool_return(*slot));
            *slot = NULL;
        } else {
            CHECK_EQ(mp_pool_resize(*slot, roll_below(luck, (*slot)->capacity + 1)), MP_OK);
            (void)mp_pool_release(*slot, (mp_end)(i % 3));
            *slot = NULL;
        }
    }
    for (size_t i = 0; i < 4; i++) {
        if (held[i] != NULL) give(held[i]);
    }
    atomic_fetch_sub(&shared->at_work, 1);
}

static void work_or_read(void *context, unsigned number) {
    office *shared = context;
    dice luck = {.state = number};
    if (number >= 2) {
        work(shared, &luck);
        return;
    }
    while (atomic_load(&shared->at_work) > 0) {
        (void)snapshot(shared->pool);
        rows_add_up(shared->pool);
        CHECK(mp_pool_is_valid(shared->pool));
        if (number == 1) (void)mp_pool_trim(shared->pool, 10000);
        sched_yield();
    }
}

static void every_snapshot_adds_up(void) {
    mp_pool_config config = plain(NULL);
    office shared = {.pool = open_pool(&config), .at_work = 4};
    crew_run(6, work_or_read, &shared);
    mp_pool_stats s = snapshot(shared.pool);
    CHECK(s.live == 0 && s.requested == 0 && s.in_use == 0 && s.retired == 0);
    mp_pool_destroy(shared.pool);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(figures_follow_each_move);
    TEST(waits_and_exhaustions_are_noted);
    TEST(the_peak_stays);
    TEST(classes_are_listed_smallest_first);
    TEST(sizes_are_listed_once);
    TEST(every_snapshot_adds_up);
    return check_end();
}
