/* Slabs: handles, which slot they name, pins and views, items of every size. */
#include "slab_kit.h"

/* ---- handles ---- */

static void handles_are_unique_and_positive(void) {
    enum { EACH = 70, TIMES = 400 };
    mp_slab *slab = plain_one(8, 1000);
    mp_handle *all = room_for(EACH * TIMES);
    for (size_t i = 0; i < TIMES; i++) {
        new_items(slab, EACH, all + i * EACH);
        end_items(slab, all + i * EACH, EACH);
    }
    CHECK_EQ(figures(slab).slots, EACH);
    qsort(all, EACH * TIMES, sizeof *all, by_value);
    CHECK(all[0] > 0);
    for (size_t i = 1; i < EACH * TIMES; i++) CHECK(all[i - 1] < all[i]);
    for (size_t i = 0; i < EACH * TIMES; i++) CHECK(!mp_slab_has(slab, all[i]));
    mp_slab_destroy(slab);
    free(all);
}

static void forged_handles_are_stale(void) {
    mp_slab *slab = plain_one(24, 5000);
    mp_handle handles[300];
    new_items(slab, 300, handles);
    for (size_t i = 0; i < 300; i += 2) end_item(slab, handles[i]);
    uint64_t before = full_state(slab);
    const mp_handle never[] = {0, -1, INT64_MIN, INT64_MAX, 1, (mp_handle)1 << 33, INT64_MAX - 1};
    for (size_t i = 0; i < 7; i++) expect_stale(slab, never[i]);
    for (size_t i = 0; i < 300; i++) {
        for (unsigned bit = 0; bit < 64; bit++) expect_stale(slab, (mp_handle)((uint64_t)handles[i] ^ (uint64_t)1 << bit));
        expect_stale(slab,
                     (mp_handle)((uint64_t)handles[i] + ((uint64_t)1 << 33))); /* in free slots: the handle of the next life */
        expect_stale(slab, -handles[i]);
        if (i % 2 == 0) expect_stale(slab, handles[i]);
    }
    CHECK_EQ(full_state(slab), before);
    for (size_t i = 1; i < 300; i += 2) CHECK_EQ(slot_of(slab, handles[i]), i);
    mp_slab_destroy(slab);
}

static void foreign_handles_are_stale(void) {
    enum { COUNT = 50000 };
    mp_slab_config config = plain_slab(NULL, 8, COUNT);
    mp_slab *one = open_slab(&config), *other;
    config.seed = 12345;
    other = open_slab(&config);
    mp_handle *of_one = room_for(COUNT), *of_other = room_for(COUNT);
    new_items(one, COUNT, of_one);
    new_items(other, COUNT, of_other);
    for (size_t i = 0; i < COUNT; i++) CHECK(!mp_slab_has(one, of_other[i]) && !mp_slab_has(other, of_one[i]));
    for (size_t i = 0; i < COUNT; i += 5000) expect_stale(one, of_other[i]);
    CHECK_EQ(figures(one).live, COUNT);
    mp_slab_destroy(one);
    mp_slab_destroy(other);
    free(of_one);
    free(of_other);
}

static void what_is_freed_twice_is_stale(void) {
    mp_slab *slab = plain_one(8, 10);
    mp_handle first = new_item(slab);
    end_item(slab, first);
    expect_stale(slab, first);
    mp_handle second = new_item(slab);
    CHECK(second != first && slot_of(slab, second) == 0);
    expect_stale(slab, first);
    CHECK(mp_slab_has(slab, second));
    mp_slab_destroy(slab);
}

/* Live, pinned and last lives before the wrong one: all are as before, and can be freed then. */
static void many_are_freed_all_or_none(void) {
    mp_slab *slab = plain_one(16, 1000);
    mp_handle handles[200], list[201];
    size_t bad;
    new_items(slab, 200, handles);
    char *pinned = pin_item(slab, handles[3]), *both = pin_item(slab, handles[5]);
    handles[4] = poke_last_life(slab, handles[4]);
    handles[5] = poke_last_life(slab, handles[5]);
    for (size_t wrong = 0; wrong <= 200; wrong += 1 + wrong / 8) {
        const mp_handle strays[] = {handles[0], handles[wrong > 0 ? wrong - 1 : 0], handles[4], handles[5], handles[3], 0, -7};
        for (size_t k = wrong > 5 ? 0 : 5; k < 7; k++) {
            memcpy(list, handles, wrong * sizeof *list);
            memcpy(list + wrong + 1, handles + wrong, (200 - wrong) * sizeof *list);
            list[wrong] = strays[k];
            uint64_t before = full_state(slab);
            CHECK_EQ(mp_slab_free_many(slab, list, 201, &bad), MP_ERR_STALE);
            CHECK_EQ(bad, wrong);
            CHECK_EQ(full_state(slab), before);
        }
    }
    end_items(slab, handles, 200);
    CHECK(figures(slab).exhausted == 2 && figures(slab).retired == 1 && figures(slab).frees == 200);
    (void)mp_slab_unpin(slab, pinned);
    (void)mp_slab_unpin(slab, both);
    CHECK(figures(slab).exhausted == 2 && figures(slab).retired == 0);
    mp_slab_destroy(slab);
}

static void used_up_slots_are_never_used_again(void) {
    mp_slab *slab = plain_one(8, 4);
    mp_handle h[4], plain, extra = 0;
    new_items(slab, 4, h);
    plain = h[0] = poke_last_life(slab, h[0]);
    h[2] = poke_last_life(slab, h[2]);
    char *item = pin_item(slab, h[2]);
    memset(item, 9, 8);
    end_items(slab, (mp_handle[]){h[0], h[2]}, 2);
    CHECK(figures(slab).exhausted == 2 && figures(slab).retired == 0 && figures(slab).live == 2);
    expect_stale(slab, plain);
    expect_stale(slab, h[2]);
    CHECK_EQ(mp_slab_alloc(slab, &extra, NULL), MP_ERR_FULL);
    CHECK(is_filled(item, 9, 8));
    (void)mp_slab_unpin(slab, item);
    CHECK_EQ(mp_slab_alloc(slab, &extra, NULL), MP_ERR_FULL);
    for (size_t i = 0; i < 50; i++) {
        end_item(slab, h[1]);
        CHECK_EQ(slot_of(slab, h[1] = new_item(slab)), 1);
    }
    CHECK(figures(slab).exhausted == 2 && mp_slab_handles(slab, h, 4) == 2);
    mp_slab_destroy(slab);
}

/* The generation before the last still comes back, once. */
static void every_generation_is_used(void) {
    mp_slab *slab = plain_one(8, 1);
    mp_handle handle = new_item(slab), extra = 0;
    mp__slot_put(slab, 0, MP__GENERATIONS - 2, MP__SLOT_PLAIN);
    handle = mp__slot_name(slab, 0, MP__GENERATIONS - 2);
    end_item(slab, handle);
    CHECK_EQ(figures(slab).exhausted, 0);
    handle = new_item(slab);
    CHECK_EQ(mp__handle_generation(slab, handle, 0), MP__GENERATIONS - 1);
    end_item(slab, handle);
    CHECK_EQ(figures(slab).exhausted, 1);
    CHECK_EQ(mp_slab_alloc(slab, &extra, NULL), MP_ERR_FULL);
    mp_slab_destroy(slab);
}

/* ---- which slot ---- */

/* Around the sizes at which a level of the bits ends. */
static void the_lowest_free_slot_comes_first(void) {
    const size_t counts[] = {1, 63, 64, 65, 128, 4095, 4096, 4097, 8192, 262143, 262144, 262145, 600000};
    for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
        size_t n = counts[k], freed = 0;
        mp_slab *slab = plain_one(1, n);
        mp_handle *handles = room_for(n), extra = 0;
        dice luck = {.state = n};
        new_items(slab, n, handles);
        CHECK_EQ(mp_slab_alloc(slab, &extra, NULL), MP_ERR_FULL);
        for (size_t i = 0; i < n; i++) CHECK_EQ(((uint64_t)handles[i] & MP__SLOT_MASK) - 1, i);
        for (size_t i = n; i-- > 0;) {
            if (roll_below(&luck, n / 500 + 2) > 0 && i + 1 < n) continue;
            end_item(slab, handles[i]);
            handles[i] = 0;
            freed++;
        }
        if (n > 4096) CHECK(figures(slab).live == n - freed);
        for (size_t i = 0; i < n; i++) {
            if (handles[i] == 0) CHECK_EQ(slot_of(slab, new_item(slab)), i);
        }
        CHECK(figures(slab).live == n && mp_slab_alloc(slab, &extra, NULL) == MP_ERR_FULL);
        mp_slab_destroy(slab);
        free(handles);
    }
}

static void many_take_the_lowest_slots(void) {
    mp_slab *slab = plain_one(2, 20000);
    mp_handle *handles = room_for(20000), more[1000];
    new_items(slab, 10000, handles);
    for (size_t i = 0; i < 10000; i += 20) end_item(slab, handles[i]);
    new_items(slab, 1000, more);
    for (size_t i = 0; i < 1000; i++) CHECK_EQ(slot_of(slab, more[i]), i < 500 ? i * 20 : 10000 + i - 500);
    CHECK_EQ(figures(slab).live, 10500);
    mp_slab_destroy(slab);
    free(handles);
}

/* ---- views ---- */

static void a_pinned_item_outlives_its_end(void) {
    mp_slab *slab = plain_one(100, 10);
    mp_handle handle = new_item(slab);
    char *item = pin_item(slab, handle);
    void *again = NULL;
    CHECK(pin_item(slab, handle) == item);
    memset(item, 5, 100);
    end_item(slab, handle);
    CHECK(figures(slab).retired == 1 && figures(slab).live == 0);
    CHECK_EQ(mp_slab_pin(slab, handle, &again), MP_ERR_STALE);
    expect_stale(slab, handle);
    mp_handle next = new_item(slab);
    CHECK_EQ(slot_of(slab, next), 1);
    (void)mp_slab_unpin(slab, item);
    CHECK(is_filled(item, 5, 100) && figures(slab).retired == 1);
    CHECK_EQ(slot_of(slab, new_item(slab)), 2);
    (void)mp_slab_unpin(slab, item + 50); /* any byte of the item will do */
    CHECK_EQ(figures(slab).retired, 0);
    CHECK_EQ(slot_of(slab, next = new_item(slab)), 0);
    CHECK(next != handle && is_filled(item, 5, 100));
    expect_stale(slab, handle);
    mp_slab_destroy(slab);
}

static void unpinned_items_live_on(void) {
    mp_slab *slab = plain_one(4097, 10);
    mp_handle handle = new_item(slab);
    char *item = pin_item(slab, handle);
    (void)mp_slab_unpin(slab, item);
    CHECK(mp_slab_has(slab, handle) && pin_item(slab, handle) == item);
    (void)mp_slab_unpin(slab, item);
    end_item(slab, handle);
    CHECK(figures(slab).retired == 0 && slot_of(slab, new_item(slab)) == 0);
    mp_slab_destroy(slab);
}

/* Steps of an end: three views end, the slab is closed and destroyed. Destroying comes after closing. */
static void end_in_order(const unsigned *order) {
    ledger books;
    ledger_open(&books);
    mp_account *account = open_account(NULL, MP_NO_LIMIT);
    mp_slab_config config = plain_slab(&books, 5000, 10);
    config.account = account;
    mp_slab *slab = open_slab(&config);
    mp_handle live = new_item(slab), dead = new_item(slab), other;
    char *items[2] = {pin_item(slab, live), pin_item(slab, dead)};
    void *base;
    size_t slots, left = 3;
    bool closed = false, destroyed = false;
    CHECK_EQ(mp_slab_view(slab, &base, &slots), MP_OK);
    CHECK(slots == 2 && base == items[0]);
    memset(base, 4, 10000);
    end_item(slab, dead);
    for (unsigned i = 0; i < 5; i++) {
        bool mapped = left > 0 || !closed;
        CHECK(mapped ? is_filled(base, 4, 10000) && mp_account_used(account) > 0 : mp_account_used(account) == 0);
        left -= order[i] < 3;
        if (order[i] == 2) CHECK_EQ(mp_slab_unview(slab), closed && left == 0);
        else if (order[i] < 2) CHECK_EQ(mp_slab_unpin(slab, items[order[i]]), closed && left == 0);
        if (order[i] == 3) CHECK_EQ(mp_slab_close(slab), left == 0);
        if (order[i] == 4) mp_slab_destroy(slab);
        closed = closed || order[i] >= 3;
        destroyed = destroyed || order[i] == 4;
        if (closed && !destroyed) CHECK_EQ(mp_slab_alloc(slab, &other, NULL), MP_ERR_CLOSED);
    }
    CHECK_EQ(mp_account_used(account), 0);
    mp_account_release(account);
    ledger_close(&books);
}

static void views_end_in_every_order(void) {
    for (unsigned code = 0; code < 5 * 5 * 5 * 5 * 5; code++) {
        unsigned order[5], seen = 0, rest = code, at[5];
        for (unsigned i = 0; i < 5; i++, rest /= 5) seen |= 1U << (order[i] = rest % 5), at[order[i]] = i;
        if (seen == 31 && at[3] < at[4]) end_in_order(order);
    }
}

static void a_closed_slab_answers_so(void) {
    mp_slab *slab = plain_one(8, 10);
    mp_handle handle = new_item(slab), out = 0;
    void *item = NULL;
    size_t n, bad = 7;
    ptrdiff_t slot = -1;
    CHECK(mp_slab_close(slab) && !mp_slab_close(slab));
    CHECK_EQ(mp_slab_alloc(slab, &out, NULL), MP_ERR_CLOSED);
    CHECK_EQ(mp_slab_alloc_many(slab, 0, &out, NULL), MP_ERR_CLOSED);
    CHECK_EQ(mp_slab_free(slab, handle), MP_ERR_CLOSED);
    CHECK_EQ(mp_slab_free_many(slab, &handle, 1, &bad), MP_ERR_CLOSED);
    CHECK_EQ(mp_slab_find(slab, &handle, 1, &slot, &bad), MP_ERR_CLOSED);
    CHECK_EQ(mp_slab_pin(slab, handle, &item), MP_ERR_CLOSED);
    CHECK_EQ(mp_slab_view(slab, &item, &n), MP_ERR_CLOSED);
    CHECK(!mp_slab_has(slab, handle) && !mp_slab_alloc_ready(slab, &out) && mp_slab_trim(slab) == 0);
    CHECK(mp_slab_handles(slab, &out, 1) == 0 && mp_slab_copy_live(slab, &out, 1) == 0);
    CHECK(out == 0 && item == NULL && bad == 7 && figures(slab).reserved == 0 && figures(slab).address_space == 0);
    mp_slab_destroy(slab);
}

/* ---- items ---- */

/* Grown a few at a time: each item is aligned to its size, zero at first, never moves, and keeps what was written. */
static void items_are_zero_and_never_move(size_t size, size_t count) {
    mp_slab *slab = plain_one(size, 4 * count);
    mp_handle *handles = room_for(count);
    char *base = NULL;
    for (size_t i = 0; i < count; i++) {
        handles[i] = new_item(slab);
        char *item = peek_item(slab, handles[i]);
        if (i == 0) base = item;
        CHECK(item == base + i * size && is_filled(item, 0, size));
        memset(item, (int)(i % 251 + 1), size);
    }
    for (size_t i = 0; i < count; i++) CHECK(is_filled(peek_item(slab, handles[i]), (int)(i % 251 + 1), size));
    end_item(slab, handles[count / 2]);
    handles[count / 2] = new_item(slab);
    CHECK(is_filled(peek_item(slab, handles[count / 2]), (int)(count / 2 % 251 + 1), size)); /* as the last one left it */
    mp_slab_stats s = figures(slab);
    CHECK(s.slots == count && s.reserved >= count * size && s.reserved <= s.address_space && s.max_items == 4 * count);
    mp_slab_destroy(slab);
    free(handles);
}

static void items_of_every_size(void) {
    items_are_zero_and_never_move(1, 200000);
    items_are_zero_and_never_move(3, 50000);
    items_are_zero_and_never_move(4096, 600);
    items_are_zero_and_never_move(4097, 600);
    items_are_zero_and_never_move(MIB, 20);
}

/* In ten calls: each of them walks the slab in a debug build. */
static void a_hundred_million_items(size_t size) {
    enum { STEP = 10 * MILLION };
    mp_slab *slab = plain_one(size, 100 * MILLION + 1);
    mp_handle *handles = room_for(STEP), last = 0;
    for (size_t i = 0; i < 10; i++) {
        new_items(slab, STEP, handles);
        CHECK_EQ(slot_of(slab, handles[STEP - 1]), (i + 1) * STEP - 1);
    }
    CHECK_EQ(slot_of(slab, last = new_item(slab)), 100 * MILLION);
    *peek_item(slab, last) = 1;
    CHECK_EQ(mp_slab_length(slab), 100 * MILLION + 1);
    end_items(slab, handles, STEP);
    CHECK_EQ(slot_of(slab, new_item(slab)), 90 * MILLION);
    end_item(slab, last);
    CHECK_EQ(mp_slab_length(slab), 90 * MILLION + 1);
    CHECK_LT(9 * MILLION * size, mp_slab_trim(slab));
    mp_slab_destroy(slab);
    free(handles);
}

static void a_hundred_million_items_of_every_size(void) {
    a_hundred_million_items(1);
    a_hundred_million_items(8);
}

static void handles_and_copies_leave_gaps_out(void) {
    mp_slab *slab = plain_one(3, 1000);
    mp_handle h[300], seen[300], expected[300];
    char copies[900], items[900];
    size_t n = 0;
    new_items(slab, 300, h);
    for (size_t i = 0; i < 300; i++) memset(peek_item(slab, h[i]), (int)(i % 255 + 1), 3);
    char *item = pin_item(slab, h[64]);
    h[70] = poke_last_life(slab, h[70]);
    for (size_t i = 0; i < 300; i++) {
        if (i % 7 == 0 || i == 64 || (i > 127 && i < 192)) end_item(slab, h[i]);
        else expected[n] = h[i], memset(items + n++ * 3, (int)(i % 255 + 1), 3);
    }
    CHECK(figures(slab).retired == 1 && figures(slab).exhausted == 1 && figures(slab).live == n);
    for (size_t capacity = 0; capacity <= 300; capacity++) {
        size_t most = capacity < n ? capacity : n;
        memset(copies, 0, sizeof copies);
        memset(seen, 0, sizeof seen);
        CHECK(mp_slab_handles(slab, seen, capacity) == most && memcmp(seen, expected, most * sizeof *seen) == 0);
        CHECK(mp_slab_copy_live(slab, copies, capacity) == most && memcmp(copies, items, most * 3) == 0);
        CHECK(is_filled(copies + most * 3, 0, sizeof copies - most * 3) && (most == 300 || seen[most] == 0));
    }
    (void)mp_slab_unpin(slab, item);
    mp_slab_destroy(slab);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(handles_are_unique_and_positive);
    TEST(forged_handles_are_stale);
    TEST(foreign_handles_are_stale);
    TEST(what_is_freed_twice_is_stale);
    TEST(many_are_freed_all_or_none);
    TEST(used_up_slots_are_never_used_again);
    TEST(every_generation_is_used);
    TEST(the_lowest_free_slot_comes_first);
    TEST(many_take_the_lowest_slots);
    TEST(a_pinned_item_outlives_its_end);
    TEST(unpinned_items_live_on);
    TEST(views_end_in_every_order);
    TEST(a_closed_slab_answers_so);
    TEST(items_of_every_size);
    TEST(a_hundred_million_items_of_every_size);
    TEST(handles_and_copies_leave_gaps_out);
    return check_end();
}
