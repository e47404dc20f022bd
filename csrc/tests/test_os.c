/* The lowest layers: checked arithmetic, and what os.h promises of the operating system. */
#include "kit.h"

#include "os.h"

static void arithmetic_is_checked(void) {
    size_t out;
    CHECK(mp__add(SIZE_MAX - 1, 1, &out) && out == SIZE_MAX);
    CHECK(!mp__add(SIZE_MAX, 1, &out));
    CHECK(!mp__add(SIZE_MAX / 2 + 1, SIZE_MAX / 2 + 1, &out));
    CHECK(mp__mul(SIZE_MAX, 1, &out) && out == SIZE_MAX);
    CHECK(mp__mul(0, SIZE_MAX, &out) && out == 0);
    CHECK(!mp__mul(SIZE_MAX / 2 + 1, 2, &out));
    CHECK(!mp__mul((size_t)1 << 32, (size_t)1 << 32, &out));
    CHECK(mp__align_up(4097, 4096, &out) && out == 8192);
    CHECK(mp__align_up(0, 4096, &out) && out == 0);
    CHECK(!mp__align_up(SIZE_MAX, 2, &out));
    CHECK(mp__is_power_of_two(1) && mp__is_power_of_two((size_t)1 << 63));
    CHECK(!mp__is_power_of_two(0) && !mp__is_power_of_two(6));
    CHECK(mp__log2(1) == 0 && mp__log2(2) == 1 && mp__log2(3) == 1 && mp__log2(UINT64_MAX) == 63);
}

static void mappings_are_zero_and_aligned(void) {
    for (size_t alignment = mp_page_size(); alignment <= 8 * MIB; alignment *= 2) {
        char *base = NULL;
        size_t size = 3 * mp_page_size();
        CHECK_EQ(mp__os_map(size, alignment, false, (void **)&base), MP_OK);
        CHECK_EQ((uintptr_t)base % alignment, 0);
        CHECK(is_filled(base, 0, size));
        memset(base, 1, size);
        CHECK_EQ(mp__os_unmap(base, size), MP_OK);
    }
}

/* Whole multiples of 64 MiB between large mappings would slow down those who work on several. */
static void large_mappings_keep_apart(void) {
    char *base[8] = {NULL};
    size_t size = 64 * MIB;
    for (int i = 0; i < 8; i++) CHECK_EQ(mp__os_map(size, mp_huge_page_size(), true, (void **)&base[i]), MP_OK);
    for (int i = 1; i < 8; i++) {
        CHECK_EQ((uintptr_t)base[i] % mp_huge_page_size(), 0);
        CHECK((uintptr_t)base[i] % size != (uintptr_t)base[i - 1] % size);
    }
    for (int i = 0; i < 8; i++) CHECK_EQ(mp__os_unmap(base[i], size), MP_OK);
}

static void what_cannot_be_mapped_is_refused(void) {
    void *base = NULL;
    size_t most = SIZE_MAX & ~(mp_page_size() - 1);
    CHECK_EQ(mp__os_map(most, mp_page_size(), false, &base), MP_ERR_NOMEM);
    CHECK_EQ(mp__os_map(most, 2 * MIB, true, &base), MP_ERR_NOMEM);
    CHECK(base == NULL);
}

static void decommitted_pages_come_back_zero(void) {
    char *base = NULL;
    size_t page = mp_page_size();
    CHECK_EQ(mp__os_map(4 * page, page, false, (void **)&base), MP_OK);
    memset(base, 7, 4 * page);
    CHECK_EQ(mp__os_decommit(base + page, 2 * page), MP_OK);
    CHECK_EQ(mp__os_commit(base + page, 2 * page), MP_OK);
    CHECK(is_filled(base, 7, page) && is_filled(base + page, 0, 2 * page) && is_filled(base + 3 * page, 7, page));
    CHECK_EQ(mp__os_unmap(base, 4 * page), MP_OK);
}

static void reserved_addresses_become_memory(void) {
    char *base = NULL;
    size_t page = mp_page_size();
    CHECK_EQ(mp__os_reserve((size_t)1 << 36, 2 * MIB, false, (void **)&base), MP_OK);
    CHECK_EQ(mp__os_protect_rw(base + page, page), MP_OK);
    CHECK(is_filled(base + page, 0, page));
    base[page] = 1;
    CHECK_EQ(mp__os_unmap(base, (size_t)1 << 36), MP_OK);
}

static void prefault_keeps_what_is_there(void) {
    ledger books;
    char *base = NULL;
    size_t page = mp_page_size(), size = 16 * page;
    ledger_open(&books);
    CHECK_EQ(books.source.map(&books, size, page, false, (void **)&base), MP_OK);
    base[page] = 5;
    CHECK_EQ(ledger_resident(&books), page);
    mp__os_prefault(base, size);
    CHECK_EQ(ledger_resident(&books), size);
    CHECK(base[0] == 0 && base[page] == 5);
    CHECK_EQ(books.source.unmap(&books, base, size), MP_OK);
    ledger_close(&books);
}

static void the_source_gives_zeroed_aligned_memory(void) {
    const mp_source *source = mp_source_os();
    for (size_t size = 1; size < 5000; size += 37) {
        void *ptr = source->alloc(source->context, size);
        CHECK(ptr != NULL && (uintptr_t)ptr % 128 == 0);
        CHECK(is_filled(ptr, 0, size));
        memset(ptr, 255, size);
        source->free(source->context, ptr);
    }
    CHECK(source->alloc(source->context, SIZE_MAX) == NULL);
    CHECK(source->alloc(source->context, SIZE_MAX - 200) == NULL);
}

static atomic_uint threads_ran;

static void note_run(void) { atomic_fetch_add(&threads_ran, 1); }

static void threads_start_and_are_joined(void) {
    for (unsigned i = 1; i <= 50; i++) {
        mp__thread thread;
        CHECK_EQ(mp__thread_start(&thread, note_run), MP_OK);
        mp__thread_join(&thread);
        CHECK_EQ(atomic_load(&threads_ran), i);
    }
}

static void a_wait_ends_at_its_deadline(void) {
    mp__mutex mutex;
    mp__cond cond;
    mp__mutex_init(&mutex);
    mp__cond_init(&cond);
    uint64_t before = mp__os_now(), deadline = before + 2000000;
    mp__mutex_lock(&mutex);
    while (mp__os_now() < deadline) mp__cond_wait_until(&cond, &mutex, deadline);
    mp__cond_wait_until(&cond, &mutex, before); /* has passed: returns at once */
    mp__mutex_unlock(&mutex);
    mp__mutex_destroy(&mutex);
}

static void the_process_and_the_machine_are_measured(void) {
    size_t rss = 0, peak = 0, total = 0, available = 0, before;
    if (mp_process_memory(&rss, &peak) != MP_OK || mp_machine_memory(&total, &available) != MP_OK) return; /* not on this OS */
    CHECK_LT(0, rss);
    CHECK_LE(rss, peak);
    CHECK_LT(0, available);
    CHECK_LE(available, total);
    CHECK_LT(rss, total);
    before = rss;
    char *base = NULL;
    CHECK_EQ(mp__os_map(32 * MIB, mp_page_size(), false, (void **)&base), MP_OK);
    memset(base, 1, 32 * MIB);
    CHECK_EQ(mp_process_memory(&rss, &peak), MP_OK);
    CHECK_LT(before + 24 * MIB, rss);
    CHECK_EQ(mp__os_unmap(base, 32 * MIB), MP_OK);
    CHECK_EQ(mp_process_memory(&rss, &peak), MP_OK);
    CHECK_LT(rss, before + 24 * MIB);
    CHECK_LE(before + 24 * MIB, peak);
    (void)mp_malloc_trim(); /* whether anything went is its own affair */
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(arithmetic_is_checked);
    TEST(mappings_are_zero_and_aligned);
    TEST(large_mappings_keep_apart);
    TEST(what_cannot_be_mapped_is_refused);
    TEST(decommitted_pages_come_back_zero);
    TEST(reserved_addresses_become_memory);
    TEST(prefault_keeps_what_is_there);
    TEST(the_source_gives_zeroed_aligned_memory);
    TEST(threads_start_and_are_joined);
    TEST(a_wait_ends_at_its_deadline);
    TEST(the_process_and_the_machine_are_measured);
    return check_end();
}
