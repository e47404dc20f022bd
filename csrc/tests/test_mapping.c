/* Mappings: what they show, what they cost, and how they end. */
#include "mapped.h"

static int error;

/* ---- what is seen ---- */

static void each_access_keeps_its_promise(void) {
    for (unsigned access = MP_ACCESS_READ; access <= MP_ACCESS_COPY; access++) {
        int file = fresh_file(NULL), behind = dup(file);
        put_marks(file, 0, 0, 2000);
        mp_mapping_config config = raw_file(file, 0, 2000);
        config.access = (mp_access)access;
        mp_mapping *mapping = open_mapping(&config);
        char *data = view(mapping);
        CHECK(is_marked(data, 0, 2000));
        CHECK_EQ(look(mapping).max_rows, 2000);
        if (access != MP_ACCESS_READ) fill_marks(data, 7, 2000);
        flush(mapping);
        CHECK(file_is_marked(behind, 0, access == MP_ACCESS_WRITE ? 7 : 0, 2000));
        mp_mapping_unview(mapping);
        mp_mapping_destroy(mapping);
        CHECK(!is_open(file));
        CHECK_EQ(close(behind), 0);
    }
}

static void any_offset_will_do(void) {
    const uint64_t offsets[] = {0, 1, 80, 127, 4088, 4095, 4096, 4097, 8191, 65535, 65537};
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        int file = fresh_file(NULL), behind = dup(file);
        put_marks(file, offsets[i], 0, 1500);
        mp_mapping_config config = raw_file(file, offsets[i], 1500);
        config.max_rows = 5000;
        mp_mapping *mapping = open_mapping(&config);
        CHECK(is_marked(look(mapping).data, 0, 1500));
        append_marks(mapping, 1500, 700, 1);
        CHECK(is_marked(look(mapping).data, 0, 2200));
        resize(mapping, 3);
        resize(mapping, 1000);
        CHECK(is_marked(look(mapping).data, 0, 3) && is_filled((char *)look(mapping).data + 24, 0, 997 * 8));
        CHECK_EQ(file_size(behind), offsets[i] + 8000);
        mp_mapping_destroy(mapping);
        CHECK_EQ(close(behind), 0);
    }
}

static void beyond_four_gigabytes(void) {
    const uint64_t far = ((uint64_t)1 << 32) + 123;
    int file = fresh_file(NULL), behind = dup(file);
    CHECK_EQ(ftruncate(file, (off_t)(far + far)), 0);
    put_marks(file, far, 0, 10);
    mp_mapping_config config = raw_file(file, far, far / 8);
    config.max_rows = (size_t)1 << 40;
    mp_mapping *mapping = open_mapping(&config);
    char *data = view(mapping);
    CHECK(is_marked(data, 0, 10));
    size_t last = far / 8 - 10;
    fill_marks(data + 8 * last, last, 10);
    flush(mapping);
    CHECK(file_is_marked(behind, far + 8 * last, last, 10));
    append_marks(mapping, far / 8, 10, 1);
    CHECK(is_marked(data + 8 * last, last, 20));
    resize(mapping, (size_t)1 << 33);
    CHECK_EQ(file_size(behind), far + ((uint64_t)1 << 36));
    fill_marks(data + ((size_t)1 << 36) - 8, 5, 1);
    CHECK(file_is_marked(behind, far + ((uint64_t)1 << 36) - 8, 5, 1));
    resize(mapping, 10);
    CHECK(is_marked(data, 0, 10) && is_filled(data + 8 * last, 0, 160));
    mp_mapping_unview(mapping);
    mp_mapping_destroy(mapping);
    CHECK_EQ(close(behind), 0);
}

static void nothing_has_an_address_too(void) {
    for (unsigned kind = 0; kind < 8; kind++) {
        bool with_file = kind & 1, with_bytes = kind & 2, can_grow = kind & 4;
        mp_mapping_config config = no_file(with_bytes ? 8 : 0, with_bytes ? 0 : 5, can_grow ? 1000 : 0);
        if (with_file) config.file = fresh_file(NULL);
        mp_mapping *mapping = open_mapping(&config);
        void *data = view(mapping);
        if (can_grow) {
            append_marks(mapping, 0, 1, 1);
            CHECK_EQ(look(mapping).rows, config.rows + 1);
            if (with_bytes) CHECK(is_marked(data, 0, 1));
            resize(mapping, 1000);
            CHECK_EQ(mp_mapping_resize(mapping, 1001, NULL, &error), MP_ERR_FULL);
            CHECK(view(mapping) == data);
            mp_mapping_unview(mapping);
        } else {
            CHECK_EQ(mp_mapping_append(mapping, data, 1, NULL, &error), MP_ERR_FULL);
        }
        resize(mapping, 0);
        resize(mapping, config.rows);
        flush(mapping);
        CHECK(look(mapping).data == data);
        close_mapping(mapping);
        CHECK(look(mapping).data == data && look(mapping).mapped == (can_grow && with_bytes));
        CHECK(mp_mapping_unview(mapping));
        mp_mapping_destroy(mapping);
    }
}

static void what_cannot_be_is_refused(void) {
    mp_mapping *mapping = NULL;
    int file = fresh_file(NULL), ends[2];
    put_marks(file, 0, 0, 100);
    mp_mapping_config config = raw_file(file, 8, 100);
    CHECK_EQ(mp_mapping_create(&config, &mapping, NULL, &error), MP_ERR_LOST);
    config.offset = (uint64_t)1 << 62;
    CHECK_EQ(mp_mapping_create(&config, &mapping, NULL, &error), MP_ERR_LOST);
    config.offset = UINT64_MAX - 4;
    CHECK_EQ(mp_mapping_create(&config, &mapping, NULL, &error), MP_ERR_INVALID);
    config = raw_file(file, 0, SIZE_MAX / 8 + 2);
    CHECK_EQ(mp_mapping_create(&config, &mapping, NULL, &error), MP_ERR_INVALID);
    config = raw_file(file, 100, SIZE_MAX / 16);
    CHECK_EQ(mp_mapping_create(&config, &mapping, NULL, &error), MP_ERR_INVALID);
    config = raw_file(file, 0, 10);
    config.header = "no header";
    config.header_size = 9;
    CHECK_EQ(mp_mapping_create(&config, &mapping, NULL, &error), MP_ERR_INVALID);
    CHECK(is_open(file));
    CHECK_EQ(pipe(ends), 0);
    config = raw_file(ends[0], 0, 0);
    CHECK_EQ(mp_mapping_create(&config, &mapping, NULL, &error), MP_ERR_INVALID);
    config = no_file(8, 1, 1);
    config.access = MP_ACCESS_READ;
    CHECK_EQ(mp_mapping_create(&config, &mapping, NULL, &error), MP_ERR_INVALID);
    config = no_file((size_t)1 << 40, (size_t)1 << 20, 0);
    CHECK_EQ(mp_mapping_create(&config, &mapping, NULL, &error), MP_ERR_NOMEM);
    config = raw_file(file, 0, 10);
    CHECK_EQ(close(ends[0]) + close(ends[1]) + close(file), 0);
    CHECK_EQ(mp_mapping_create(&config, &mapping, NULL, &error), MP_ERR_OS);
    CHECK_EQ(error, EBADF);
    CHECK(mapping == NULL);
}

/* ---- anonymous memory ---- */

static void anonymous_memory_grows_in_place(void) {
    mp_mapping_config config = no_file(24, 10, 1 << 20);
    mp_mapping *mapping = open_mapping(&config);
    char *data = view(mapping);
    CHECK_EQ(look(mapping).max_rows, 1 << 20);
    CHECK(is_filled(data, 0, 240));
    fill_marks(data, 0, 30);
    append_marks(mapping, 30, 3000, 3);
    resize(mapping, 100000);
    CHECK(is_marked(data, 0, 3030) && is_filled(data + 24240, 0, 24 * 98990));
    fill_marks(data, 0, 300000);
    resize(mapping, 1000);
    CHECK(is_marked(data, 0, 3000) && is_filled(data + 24000, 0, 24 * 99000)); /* through the view that saw them */
    resize(mapping, 100000);
    CHECK(is_marked(data, 0, 3000) && is_filled(data + 24000, 0, 24 * 99000));
    CHECK_EQ(mp_mapping_resize(mapping, (1 << 20) + 1, NULL, &error), MP_ERR_FULL);
    CHECK_EQ(mp_mapping_append(mapping, data, SIZE_MAX, NULL, &error), MP_ERR_FULL);
    CHECK_EQ(mp_mapping_append(mapping, NULL, 1, NULL, &error), MP_ERR_INVALID);
    flush(mapping);
    mp_mapping_unview(mapping);
    mp_mapping_destroy(mapping);
}

static void shared_memory_is_seen_by_children(void) {
    for (unsigned shared = 0; shared < 2; shared++) {
        mp_mapping_config config = no_file(8, 1000, 100000);
        config.shared = shared != 0;
        mp_mapping *mapping = open_mapping(&config);
        char *data = view(mapping);
        pid_t child = fork_child();
        if (child == 0) {
            fill_marks(data, 0, 1000);
            append_marks(mapping, 1000, 1000, 1);
            _exit(0);
        }
        expect_success(child);
        CHECK(shared ? is_marked(data, 0, 1000) : is_filled(data, 0, 8000));
        if (shared) {
            resize(mapping, 2000);
            CHECK(is_marked(data, 0, 2000));
            resize(mapping, 10);
            CHECK(is_marked(data, 0, 10) && is_filled(data + 80, 0, 15920));
        }
        mp_mapping_unview(mapping);
        mp_mapping_destroy(mapping);
    }
}

static void in_few_addresses(void) {
    const struct rlimit narrow = {.rlim_cur = (rlim_t)1 << 30, .rlim_max = (rlim_t)1 << 30};
    CHECK_EQ(setrlimit(RLIMIT_AS, &narrow), 0);
    for (unsigned with_file = 0; with_file < 2; with_file++) {
        mp_mapping_config config = no_file(8, 0, (size_t)1 << 40);
        if (with_file) config.file = fresh_file(NULL);
        mp_mapping *mapping = open_mapping(&config);
        size_t most = look(mapping).max_rows;
        if (with_file) CHECK(most > ((size_t)1 << 20) && most < ((size_t)1 << 23)); /* its share */
        else CHECK(most > ((size_t)1 << 24) && most < ((size_t)1 << 27));
        resize(mapping, most);
        CHECK_EQ(mp_mapping_resize(mapping, most + 1, NULL, &error), MP_ERR_FULL);
        fill_marks((char *)look(mapping).data + 8 * (most - 1), 0, 1);
        mp_mapping_destroy(mapping);
    }
}

static void fewer_addresses_are_said(void) {
#if !defined(SANITIZED)
    run_apart(in_few_addresses);
#else
    (void)in_few_addresses;
#endif
}

/* ---- how it ends ---- */

static void close_leaves_views_alone(void) {
    int file = fresh_file(NULL);
    put_marks(file, 100, 0, 2000);
    mp_account *account = open_account(NULL, MP_NO_LIMIT);
    mp_mapping_config config = raw_file(file, 100, 2000);
    config.account = account;
    mp_mapping *mapping = open_mapping(&config);
    char *data = view(mapping), *again = view(mapping);
    close_mapping(mapping);
    CHECK(data == again && !is_open(file));
    mp_mapping_state state;
    CHECK_EQ(mp_mapping_view(mapping, &state), MP_ERR_CLOSED);
    CHECK_EQ(mp_mapping_check(mapping), MP_ERR_CLOSED);
    CHECK_EQ(mp_mapping_flush(mapping, 0, 0, true, &error), MP_ERR_CLOSED);
    CHECK_EQ(mp_mapping_append(mapping, data, 1, NULL, &error), MP_ERR_CLOSED);
    CHECK_EQ(mp_mapping_resize(mapping, 1, NULL, &error), MP_ERR_CLOSED);
    CHECK_EQ(mp_mapping_prefetch(mapping, 0, 1, &error), MP_ERR_CLOSED);
    close_mapping(mapping);
    CHECK(is_marked(data, 0, 2000));
    fill_marks(data, 0, 2000);
    CHECK(!mp_mapping_unview(mapping));
    CHECK(is_marked(data, 0, 2000) && look(mapping).mapped);
    CHECK_EQ(mp_account_used(account), 4 * mp_page_size());
    CHECK(mp_mapping_unview(mapping));
    CHECK(!look(mapping).mapped);
    CHECK(!is_mapped(data));
    CHECK_EQ(mp_account_used(account), 0);
    mp_mapping_destroy(mapping);
    mp_account_release(account);
}

static bool names_a_file(const char *text) {
    char line[512];
    bool found = false;
    FILE *maps = fopen("/proc/self/maps", "r");
    if (maps == NULL) return false;
    while (fgets(line, sizeof line, maps) != NULL) found = found || strstr(line, text) != NULL;
    CHECK_EQ(fclose(maps), 0);
    return found;
}

static void revoke_takes_all_at_once(void) {
    for (unsigned kind = 0; kind < 5; kind++) {
        mp_account *account = open_account(NULL, MP_NO_LIMIT);
        int file = kind < 3 ? fresh_file("revoked") : -1, behind = kind < 3 ? dup(file) : -1;
        if (file >= 0) put_marks(file, 50, 0, 3000);
        mp_mapping_config config = file >= 0 ? raw_file(file, 50, 3000) : no_file(8, 3000, 0);
        if (file >= 0) config.access = (mp_access)kind;
        config.max_rows = 1000000;
        config.shared = kind == 4;
        config.account = account;
        mp_mapping *mapping = open_mapping(&config);
        char *data = view(mapping);
        CHECK(mp_account_used(account) > 0);
        CHECK_EQ(mp_mapping_revoke(mapping, &error), MP_OK);
        CHECK(is_filled(data, 0, 24000));
        CHECK(look(mapping).revoked && look(mapping).closed && !look(mapping).mapped && !is_open(file));
        CHECK_EQ(mp_account_used(account), 0);
        CHECK(!names_a_file("revoked"));
        if (config.access != MP_ACCESS_READ) fill_marks(data, 9, 3000); /* harmless */
        CHECK_EQ(mp_mapping_revoke(mapping, &error), MP_OK);
        if (file >= 0) CHECK(file_is_marked(behind, 50, 0, 3000));
        mp_mapping_unview(mapping);
        CHECK(!is_mapped(data) && mp_mapping_is_valid(mapping));
        mp_mapping_destroy(mapping);
        if (behind >= 0) CHECK_EQ(close(behind), 0);
        mp_account_release(account);
    }
}

static void revoke_after_close_and_without_views(void) {
    mp_mapping_config config = no_file(8, 3000, 0);
    mp_mapping *mapping = open_mapping(&config);
    char *data = view(mapping);
    fill_marks(data, 0, 3000);
    close_mapping(mapping);
    CHECK_EQ(mp_mapping_revoke(mapping, &error), MP_OK);
    CHECK(is_filled(data, 0, 24000));
    mp_mapping_destroy(mapping);
    CHECK(is_filled(data, 0, 24000));
    mp_mapping_unview(mapping);
    mapping = open_mapping(&config);
    data = look(mapping).data;
    CHECK_EQ(mp_mapping_revoke(mapping, &error), MP_OK);
    CHECK(!is_mapped(data) && look(mapping).revoked);
    mp_mapping_destroy(mapping);
}

static void destroy_waits_for_views(void) {
    for (unsigned order = 0; order < 4; order++) {
        int file = fresh_file(NULL);
        put_marks(file, 0, 0, 600);
        mp_account *account = open_account(NULL, MP_NO_LIMIT);
        mp_mapping_config config = raw_file(file, 0, 600);
        config.account = account;
        mp_mapping *mapping = open_mapping(&config);
        mp_account_release(account); /* the mapping keeps it */
        char *data = view(mapping);
        if (order & 1) close_mapping(mapping);
        if (order & 2) mp_mapping_unview(mapping);
        mp_mapping_destroy(mapping);
        CHECK(!is_open(file));
        if (order & 2) continue;
        CHECK(is_marked(data, 0, 600));
        mp_mapping_unview(mapping);
        CHECK(!is_mapped(data));
    }
}

/* ---- accounts ---- */

static void accounts_are_exact(void) {
    size_t page = mp_page_size();
    for (unsigned with_file = 0; with_file < 2; with_file++) {
        mp_account *root = open_account(NULL, 10 * page), *account = open_account(root, MP_NO_LIMIT), *binding = NULL;
        mp_mapping_config config = no_file(page / 2, 0, 100), too_large = no_file(page, 11, 11);
        if (with_file) config.file = fresh_file(NULL);
        config.account = too_large.account = account;
        mp_mapping *mapping = open_mapping(&config), *other = NULL;
        char *rows = calloc(100, page);
        CHECK(rows != NULL);
        CHECK_EQ(mp_account_used(account), 0);
        append(mapping, rows, 1);
        CHECK_EQ(mp_account_used(account), page);
        append(mapping, rows, 1);
        CHECK_EQ(mp_account_used(account), page);
        append(mapping, rows, 3);
        CHECK_EQ(mp_account_used(account), 3 * page);
        resize(mapping, 20);
        CHECK_EQ(mp_account_used(root), 10 * page);
        CHECK_EQ(mp_mapping_append(mapping, rows, 1, &binding, &error), MP_ERR_ACCOUNT);
        CHECK(binding == root);
        binding = NULL;
        CHECK_EQ(mp_mapping_resize(mapping, 21, &binding, &error), MP_ERR_ACCOUNT);
        CHECK(binding == root && look(mapping).rows == 20);
        resize(mapping, 3);
        CHECK_EQ(mp_account_used(account), 2 * page);
        binding = NULL;
        CHECK_EQ(mp_mapping_create(&too_large, &other, &binding, &error), MP_ERR_ACCOUNT);
        CHECK(binding == root && other == NULL);
        CHECK_EQ(mp_account_used(account), 2 * page);
        CHECK_EQ(mp_account_peak(account), 10 * page);
        mp_mapping_destroy(mapping);
        CHECK_EQ(mp_account_used(root), 0);
        free(rows);
        mp_account_release(account);
        mp_account_release(root);
    }
}

static void idle_memory_makes_room(void) {
    mp_account *account = open_account(NULL, 4 * MIB);
    mp_pool_config plan = plain(NULL);
    plan.account = account;
    mp_pool *pool = open_pool(&plan);
    mp_mapping_config config = no_file(1, MIB, 4 * MIB);
    config.account = account;
    give(take(pool, 4 * MIB));
    mp_mapping *mapping = open_mapping(&config);
    give(take(pool, 2 * MIB));
    resize(mapping, 4 * MIB);
    CHECK_EQ(mp_account_used(account), 4 * MIB);
    mp_mapping_destroy(mapping);
    mp_pool_destroy(pool);
    mp_account_release(account);
}

/* ---- a source that refuses ---- */

/* True if it could be made. */
static bool live_with(ledger *books, mp_account *account, bool with_file) {
    char header[HEADER];
    mp_mapping *mapping = NULL;
    mp_mapping_config config = no_file(8, 1000, 1000);
    if (with_file) config = npy_file(fresh_file(NULL), header, 1000, 1, 100000);
    config.max_rows = 100000;
    config.source = &books->source;
    config.account = account;
    if (mp_mapping_create(&config, &mapping, NULL, &error) != MP_OK) {
        if (with_file) CHECK_EQ(close(config.file), 0); /* still ours */
        return false;
    }
    char *data = view(mapping);
    size_t rows = 1000;
    if (mp_mapping_resize(mapping, 5000, NULL, &error) == MP_OK) rows = 5000;
    CHECK_EQ(look(mapping).rows, rows);
    CHECK_EQ(mp_account_used(account), (rows * 8 + mp_page_size() - 1) / mp_page_size() * mp_page_size());
    memset(data, 1, 8 * rows);
    mp_mapping_unview(mapping);
    mp_mapping_destroy(mapping);
    return true;
}

static void refusals_leave_no_trace(void) {
    for (unsigned kind = 0; kind < 4; kind++) {
        mp_account *account = open_account(NULL, MP_NO_LIMIT);
        unsigned failed = 0;
        bool refused = true;
        for (unsigned at = 1; refused; at++) {
            ledger books;
            ledger_open(&books);
            books.refuse_at = at;
            books.from_then_on = kind & 2;
            failed += !live_with(&books, account, kind & 1);
            refused = ledger_refusals(&books) > 0;
            ledger_close(&books);
            CHECK_EQ(mp_account_used(account), 0);
        }
        CHECK_LT(1, failed);
        mp_account_release(account);
    }
}

/* ---- advice ---- */

static void advice_is_given_by_rows(void) {
    size_t resident = 0, pages = 0;
    for (unsigned kind = 0; kind < 4; kind++) {
        mp_mapping_config config = no_file(8, 100000, 0);
        if (kind < 3) {
            config = raw_file(fresh_file(NULL), 128, 100000);
            put_marks(config.file, 128, 0, 100000);
            config.access = (mp_access)kind;
        }
        mp_mapping *mapping = open_mapping(&config);
        for (unsigned advice = MP_ADVICE_NORMAL; advice <= MP_ADVICE_WILLNEED; advice++) {
            CHECK_EQ(mp_mapping_advise(mapping, 10, 90000, (mp_advice)advice, &error), MP_OK);
        }
        mp_status drop = mp_mapping_advise(mapping, 0, 100000, MP_ADVICE_DONTNEED, &error);
        CHECK_EQ(drop, kind < 2 ? MP_OK : MP_ERR_INVALID);
        CHECK_EQ(mp_mapping_prefetch(mapping, 0, 100000, &error), MP_OK);
        mp_mapping_populate(mapping, 0, 100000);
        CHECK_EQ(mp_mapping_resident(mapping, &resident, &pages, &error), MP_OK);
        CHECK_EQ(pages, (800000 + (kind < 3 ? 128U : 0U) + mp_page_size() - 1) / mp_page_size());
        CHECK_LE(resident, pages);
        if (kind == 3) CHECK_EQ(resident, pages);
        CHECK_EQ(mp_mapping_advise(mapping, 5, 4, MP_ADVICE_NORMAL, &error), MP_ERR_INVALID);
        CHECK_EQ(mp_mapping_advise(mapping, 0, 100001, MP_ADVICE_NORMAL, &error), MP_ERR_INVALID);
        CHECK_EQ(mp_mapping_advise(mapping, 0, 1, (mp_advice)99, &error), MP_ERR_INVALID);
        CHECK_EQ(mp_mapping_prefetch(mapping, 0, 100001, &error), MP_ERR_INVALID);
        CHECK_EQ(mp_mapping_flush(mapping, 0, 100001, true, &error), MP_ERR_INVALID);
        CHECK_EQ(mp_mapping_flush(mapping, 3, 2, true, &error), MP_ERR_INVALID);
        if (kind < 3) CHECK(is_marked(look(mapping).data, 0, 100000));
        mp_mapping_destroy(mapping);
    }
}

static size_t locked_kilobytes(void) {
    char line[256];
    size_t found = 0;
    FILE *status = fopen("/proc/self/status", "r");
    if (status == NULL) return 0;
    while (fgets(line, sizeof line, status) != NULL) (void)sscanf(line, "VmLck: %zu", &found);
    CHECK_EQ(fclose(status), 0);
    return found;
}

static void rows_can_be_locked(void) {
    mp_mapping_config config = no_file(8, 1000, 100000);
    mp_mapping *mapping = open_mapping(&config);
    size_t before = locked_kilobytes();
    if (mp_mapping_lock(mapping, true, &error) == MP_OK) {
#if defined(__linux__) && !defined(SANITIZED)
        CHECK_EQ(locked_kilobytes(), before + 2 * mp_page_size() / 1024);
#endif
        fill_marks(look(mapping).data, 0, 1000);
        resize(mapping, 10);
        resize(mapping, 1000);
        CHECK(is_filled((char *)look(mapping).data + 80, 0, 7920));
        CHECK_EQ(mp_mapping_lock(mapping, false, &error), MP_OK);
        CHECK_EQ(locked_kilobytes(), before);
    }
    mp_mapping_destroy(mapping);
}

static void pages_of_files_can_be_asked_to_leave(void) {
    int file = fresh_file("paged");
    put_marks(file, 0, 0, 4096);
    mp_mapping_config config = raw_file(file, 0, 4096);
    mp_mapping *mapping = open_mapping(&config);
    CHECK(is_marked(view(mapping), 0, 4096));
    fill_marks(look(mapping).data, 0, 4096);
    size_t asked = mp_mapping_page_out(mapping);
#if defined(__linux__)
    CHECK_EQ(asked, 4096 * config.row_bytes);
#endif
    CHECK_EQ(asked % mp_page_size(), 0);
    CHECK(is_marked(look(mapping).data, 0, 4096));
    close_mapping(mapping);
    CHECK_EQ(mp_mapping_page_out(mapping), 0);
    mp_mapping_unview(mapping);
    mp_mapping_destroy(mapping);

    mp_mapping_config blank = no_file(8, 1000, 1000);
    mapping = open_mapping(&blank);
    CHECK_EQ(mp_mapping_page_out(mapping), 0);
    mp_mapping_destroy(mapping);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    folder_open();
    TEST(each_access_keeps_its_promise);
    TEST(any_offset_will_do);
    TEST(beyond_four_gigabytes);
    TEST(nothing_has_an_address_too);
    TEST(what_cannot_be_is_refused);
    TEST(anonymous_memory_grows_in_place);
    TEST(shared_memory_is_seen_by_children);
    TEST(fewer_addresses_are_said);
    TEST(close_leaves_views_alone);
    TEST(revoke_takes_all_at_once);
    TEST(revoke_after_close_and_without_views);
    TEST(destroy_waits_for_views);
    TEST(accounts_are_exact);
    TEST(idle_memory_makes_room);
    TEST(refusals_leave_no_trace);
    TEST(advice_is_given_by_rows);
    TEST(rows_can_be_locked);
    TEST(pages_of_files_can_be_asked_to_leave);
    folder_close();
    return check_end();
}
