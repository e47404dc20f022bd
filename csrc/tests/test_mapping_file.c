/* Mapped files: how they grow and shrink under their views, what the header says and when, what a refusal or a crash leaves. */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "mapped.h"

#include <sched.h>

static int error;

/* ---- growth ---- */

static void growth_moves_nothing(void) {
    char header[HEADER];
    int file = fresh_file(NULL), behind = dup(file);
    mp_mapping_config config = npy_file(file, header, 5, 2, 1 << 20);
    mp_mapping *mapping = open_mapping(&config);
    char *data = view(mapping);
    CHECK_EQ(look(mapping).max_rows, 1 << 20);
    size_t rows = 5;
    for (size_t more = 1; rows < 200000; more = more * 2 + 1) {
        append_marks(mapping, rows * 2, more * 2, 2);
        rows += more;
        CHECK(look(mapping).data == data && look(mapping).rows == rows);
        CHECK_EQ(file_size(behind), HEADER + rows * 16);
    }
    CHECK(is_marked(data, 0, rows * 2));
    CHECK(file_is_marked(behind, HEADER, 0, rows * 2));
    resize(mapping, rows + 100000);
    CHECK(is_marked(data, 0, rows * 2) && is_filled(data + rows * 16, 0, 1600000));
    fill_marks(data + rows * 16, rows * 2, 200000);
    CHECK(file_is_marked(behind, HEADER, 0, rows * 2 + 200000));
    CHECK_EQ(mp_mapping_append(mapping, data, 1 << 20, NULL, &error), MP_ERR_FULL);
    mp_mapping_unview(mapping);
    mp_mapping_destroy(mapping);
    CHECK_EQ(header_rows(behind), rows + 100000);
    CHECK_EQ(close(behind), 0);
}

static void what_shall_not_grow_does_not(void) {
    for (unsigned access = MP_ACCESS_READ; access <= MP_ACCESS_COPY; access += MP_ACCESS_COPY) {
        int file = fresh_file(NULL), behind = dup(file);
        put_marks(file, 0, 0, 100);
        mp_mapping_config config = raw_file(file, 0, 50);
        config.access = (mp_access)access;
        config.max_rows = 1000;
        mp_mapping *mapping = open_mapping(&config);
        CHECK_EQ(look(mapping).max_rows, 50);
        CHECK_EQ(mp_mapping_append(mapping, look(mapping).data, 1, NULL, &error), MP_ERR_INVALID);
        CHECK_EQ(mp_mapping_resize(mapping, 10, NULL, &error), MP_ERR_INVALID);
        CHECK(look(mapping).rows == 50 && file_is_marked(behind, 0, 0, 100));
        mp_mapping_destroy(mapping);
        CHECK_EQ(close(behind), 0);
    }
}

/* ---- headers ---- */

static void the_header_waits_for_the_data(void) {
    char header[HEADER];
    int file = fresh_file(NULL), behind = dup(file);
    mp_mapping_config config = npy_file(file, header, 7, 3, 1 << 20);
    mp_mapping *mapping = open_mapping(&config);
    append_marks(mapping, 21, 3, 3);
    CHECK_EQ(header_rows(behind), 7);
    CHECK_EQ(mp_mapping_flush(mapping, 0, 8, false, &error), MP_OK);
    CHECK_EQ(header_rows(behind), 7);
    CHECK_EQ(mp_mapping_flush(mapping, 2, 3, true, &error), MP_OK);
    CHECK_EQ(header_rows(behind), 8);
    append_marks(mapping, 24, 3 * 5000, 3);
    resize(mapping, 6000);
    CHECK_EQ(header_rows(behind), 8);
    flush(mapping);
    CHECK_EQ(header_rows(behind), 6000);
    append_marks(mapping, 18000, 3, 3);
    resize(mapping, 6000); /* the row that goes was never told of */
    CHECK_EQ(header_rows(behind), 6000);
    append_marks(mapping, 18000, 3, 3);
    close_mapping(mapping);
    CHECK_EQ(header_rows(behind), 6001);
    mp_mapping_destroy(mapping);
    CHECK_EQ(header_rows(behind), 6001);
    make_header(header, 6001, 3);
    char found[HEADER];
    CHECK_EQ(pread(behind, found, HEADER, 0), HEADER);
    CHECK(found[HEADER - 1] == '\n' && memcmp(found, header, HEADER) == 0);
    CHECK_EQ(close(behind), 0);
}

static void a_full_header_stops_growth(void) {
    char header[HEADER];
    int file = fresh_file(NULL), behind = dup(file);
    mp_mapping_config config = npy_file(file, header, 9, 1, 1000);
    char *brace = memchr(header, '}', HEADER);
    CHECK(brace != NULL);
    memset(brace, ' ', (size_t)(header + HEADER - brace)); /* the closing brace moves to the end: no room for another digit */
    header[HEADER - 2] = '}';
    header[HEADER - 1] = '\n';
    CHECK_EQ(pwrite(file, header, HEADER, 0), HEADER);
    mp_mapping *mapping = open_mapping(&config);
    CHECK_EQ(mp_mapping_append(mapping, look(mapping).data, 1, NULL, &error), MP_ERR_INVALID);
    CHECK_EQ(mp_mapping_resize(mapping, 10, NULL, &error), MP_ERR_INVALID);
    CHECK(look(mapping).rows == 9 && file_size(behind) == HEADER + 72);
    resize(mapping, 8);
    append_marks(mapping, 8, 1, 1);
    close_mapping(mapping);
    CHECK(header_rows(behind) == 9 && file_is_marked(behind, HEADER, 0, 9));
    mp_mapping_destroy(mapping);
    CHECK_EQ(close(behind), 0);
}

/* ---- it shrinks ---- */

static void views_of_rows_that_went_read_zeros(void) {
    char header[HEADER];
    int file = fresh_file(NULL), behind = dup(file);
    mp_mapping_config config = npy_file(file, header, 20000, 1, 50000);
    mp_mapping *mapping = open_mapping(&config);
    char *data = view(mapping);
    const size_t stations[] = {15000, 700, 1, 0, 3, 9000, 12, 20000, 40000, 0};
    size_t rows = 20000, marked = 20000;
    for (size_t i = 0; i < sizeof stations / sizeof *stations; i++) {
        rows = stations[i];
        resize(mapping, rows);
        if (rows < marked) marked = rows;
        CHECK_EQ(file_size(behind), HEADER + rows * 8);
        CHECK_LE(header_rows(behind), rows);
        CHECK(is_marked(data, 0, marked) && is_filled(data + 8 * marked, 0, (20000 - marked) * 8));
        fill_marks(data, 0, rows); /* what came again is the file again */
        marked = rows;
        CHECK(file_is_marked(behind, HEADER, 0, rows));
        CHECK_EQ(mp_mapping_check(mapping), MP_OK);
    }
    append_marks(mapping, 0, 20000, 1);
    CHECK(is_marked(data, 0, 20000) && file_is_marked(behind, HEADER, 0, 20000));
    mp_mapping_unview(mapping);
    close_mapping(mapping);
    CHECK_EQ(header_rows(behind), 20000);
    mp_mapping_destroy(mapping);
    CHECK_EQ(close(behind), 0);
}

static void the_header_goes_before_the_rows(void) {
    char header[HEADER];
    int file = fresh_file(NULL), behind = dup(file);
    mp_mapping_config config = npy_file(file, header, 1000, 1, 5000);
    mp_mapping *mapping = open_mapping(&config);
    resize(mapping, 10);
    CHECK_EQ(header_rows(behind), 10);
    append_marks(mapping, 10, 90, 1);
    resize(mapping, 50);
    CHECK_EQ(header_rows(behind), 10);
    CHECK_EQ(ftruncate(behind, HEADER), 0); /* so a header that is written now would be ahead */
    CHECK_EQ(mp_mapping_flush(mapping, 0, 50, true, &error), MP_ERR_LOST);
    CHECK_EQ(mp_mapping_close(mapping, &error), MP_OK);
    CHECK_EQ(ftruncate(behind, HEADER + 80), 0);
    CHECK_EQ(header_rows(behind), 10);
    mp_mapping_destroy(mapping);
    CHECK_EQ(close(behind), 0);
}

/* ---- tails ---- */

static void tails_never_show(void) {
    for (unsigned how = 0; how < 3; how++) {
        int file = fresh_file(NULL), behind = dup(file);
        put_marks(file, 0, 0, 10000);
        mp_mapping_config config = raw_file(file, 0, 100);
        config.max_rows = 100000;
        mp_mapping *mapping = open_mapping(&config);
        char *data = view(mapping);
        if (how == 0) append_marks(mapping, 100, 50, 1);
        else resize(mapping, how == 1 ? 5000 : 50000);
        CHECK(is_marked(data, 0, how == 0 ? 150 : 100));
        if (how == 0) CHECK_EQ(file_size(behind), 80000);
        if (how > 0) CHECK(is_filled(data + 800, 0, (look(mapping).rows - 100) * 8));
        if (how > 0) CHECK_EQ(file_size(behind), look(mapping).rows * 8);
        mp_mapping_unview(mapping);
        mp_mapping_destroy(mapping);
        CHECK_EQ(close(behind), 0);
    }
}

/* ext4 clears the rest itself as the file grows, files in memory do not. */
static void the_rest_of_a_page_is_cleared(void) {
#if defined(__linux__)
    mp_mapping_config config = raw_file(memfd_create("grows", MFD_CLOEXEC), 0, 100);
#else
    mp_mapping_config config = raw_file(fresh_file(NULL), 0, 100);
#endif
    put_marks(config.file, 0, 0, 100);
    config.max_rows = 10000;
    mp_mapping *mapping = open_mapping(&config);
    char *data = view(mapping);
    fill_marks(data + 800, 0, 300); /* nobody's bytes yet, but they can be written */
    append_marks(mapping, 100, 10, 1);
    fill_marks(data + 880, 0, 300);
    resize(mapping, 1000);
    CHECK(is_marked(data, 0, 110) && is_filled(data + 880, 0, 890 * 8));
    resize(mapping, 110);
    fill_marks(data + 880, 0, 300);
    resize(mapping, 120);
    resize(mapping, 200);
    CHECK(is_marked(data, 0, 110) && is_filled(data + 880, 0, 90 * 8));
    mp_mapping_unview(mapping);
    mp_mapping_destroy(mapping);
}

/* ---- against a plain model ---- */

enum { MODEL_ROWS = 6000, MODEL_STEPS = 1500 };

typedef struct model {
    uint64_t rows[MODEL_ROWS];
    size_t count, flushed, most; /* rows now; in the file's header; ever */
    size_t offset;
} model;

static void step(model *plan, mp_mapping *mapping, char *data, dice *luck) {
    size_t target = roll_below(luck, 4) == 0 ? roll_below(luck, 40) : roll_below(luck, MODEL_ROWS);
    size_t more = roll_below(luck, 3) == 0 ? roll_below(luck, 2000) : roll_below(luck, 10);
    size_t at = plan->count > 0 ? roll_below(luck, plan->count) : 0;
    switch (roll_below(luck, 6)) {
    case 0:
        resize(mapping, target);
        if (target > plan->count) memset(plan->rows + plan->count, 0, (target - plan->count) * 8);
        plan->count = target;
        if (plan->flushed > target) plan->flushed = target;
        break;
    case 1:
        flush(mapping);
        plan->flushed = plan->count;
        break;
    case 2:
        if (plan->count == 0) break;
        plan->rows[at] = roll(luck);
        memcpy(data + 8 * at, &plan->rows[at], 8);
        break;
    default:
        if (more > MODEL_ROWS - plan->count) more = MODEL_ROWS - plan->count;
        for (size_t i = 0; i < more; i++) plan->rows[plan->count + i] = roll(luck);
        append(mapping, plan->rows + plan->count, more);
        plan->count += more;
    }
    if (plan->count > plan->most) plan->most = plan->count;
}

static void compare(const model *plan, const char *data, int behind) {
    static char bytes[8 * MODEL_ROWS];
    CHECK(memcmp(data, plan->rows, plan->count * 8) == 0);
    CHECK(is_filled(data + plan->count * 8, 0, (plan->most - plan->count) * 8));
    if (behind < 0) return;
    CHECK_EQ(file_size(behind), plan->offset + plan->count * 8);
    CHECK_EQ(pread(behind, bytes, plan->count * 8, (off_t)plan->offset), (ssize_t)plan->count * 8);
    CHECK(memcmp(bytes, plan->rows, plan->count * 8) == 0);
    if (plan->offset == HEADER) CHECK_EQ(header_rows(behind), plan->flushed);
}

static void as_a_model_says(void) {
    static model plan;
    for (unsigned kind = 0; kind < 5; kind++) {
        char header[HEADER];
        dice luck = {.state = check_seed = 31 + kind};
        plan = (model){.offset = kind == 0 ? HEADER : 4095 * (kind - 1)};
        int file = kind < 4 ? fresh_file(NULL) : -1, behind = kind < 4 ? dup(file) : -1;
        if (kind < 4) CHECK_EQ(ftruncate(file, (off_t)plan.offset), 0);
        mp_account *account = open_account(NULL, MP_NO_LIMIT);
        mp_mapping_config config = raw_file(file, plan.offset, 0);
        if (kind == 0) config = npy_file(file, header, 0, 1, 0);
        config.max_rows = MODEL_ROWS;
        config.account = account;
        mp_mapping *mapping = open_mapping(&config);
        char *data = view(mapping);
        for (unsigned i = 0; i < MODEL_STEPS; i++) {
            step(&plan, mapping, data, &luck);
            compare(&plan, data, behind);
            CHECK_EQ(mp_account_used(account), (plan.count * 8 + mp_page_size() - 1) / mp_page_size() * mp_page_size());
        }
        close_mapping(mapping);
        plan.flushed = plan.count;
        compare(&plan, data, behind);
        (void)mp_mapping_unview(mapping);
        mp_mapping_destroy(mapping);
        mp_account_release(account);
        if (behind >= 0) CHECK_EQ(close(behind), 0);
    }
}

/* ---- refusals ---- */

static void with_little_room(void) {
    char header[HEADER];
    struct rlimit room = {.rlim_cur = 10000, .rlim_max = RLIM_INFINITY};
    CHECK(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
    int file = fresh_file(NULL), behind = dup(file);
    mp_account *account = open_account(NULL, MP_NO_LIMIT);
    mp_mapping_config config = npy_file(file, header, 1000, 1, 100000);
    config.account = account;
    mp_mapping *mapping = open_mapping(&config);
    char *data = view(mapping), rows[8 * 2000];
    fill_marks(rows, 1000, 2000);
    size_t charged = mp_account_used(account);
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &room), 0);
    CHECK_EQ(mp_mapping_append(mapping, rows, 2000, NULL, &error), MP_ERR_OS);
    CHECK_EQ(error, EFBIG);
    CHECK_EQ(mp_mapping_resize(mapping, 3000, NULL, &error), MP_ERR_OS);
    CHECK_EQ(error, EFBIG);
    CHECK(look(mapping).rows == 1000 && file_size(behind) == HEADER + 8000 && header_rows(behind) == 1000);
    CHECK_EQ(mp_account_used(account), charged);
    CHECK(mp_mapping_is_valid(mapping) && mp_mapping_check(mapping) == MP_OK && is_marked(data, 0, 1000));
    append(mapping, rows, 100);
    flush(mapping);
    room.rlim_cur = RLIM_INFINITY;
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &room), 0);
    append(mapping, rows + 800, 1900);
    CHECK(is_marked(data, 0, 3000));
    mp_mapping_unview(mapping);
    close_mapping(mapping);
    CHECK(header_rows(behind) == 3000 && file_is_marked(behind, HEADER, 0, 3000));
    mp_mapping_destroy(mapping);
    mp_account_release(account);
}

static void a_full_disk_changes_nothing(void) { run_apart(with_little_room); }

static void a_file_that_keeps_its_length(void) {
#if defined(F_SEAL_SHRINK)
    char header[HEADER];
    int file = memfd_create("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    CHECK(file >= 0);
    int behind = dup(file);
    mp_account *account = open_account(NULL, MP_NO_LIMIT);
    mp_mapping_config config = npy_file(file, header, 10000, 1, 20000);
    config.account = account;
    mp_mapping *mapping = open_mapping(&config);
    char *data = view(mapping), row[8] = {0};
    append_marks(mapping, 10000, 2000, 1);
    size_t charged = mp_account_used(account);
    CHECK_EQ(fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    CHECK_EQ(mp_mapping_resize(mapping, 100, NULL, &error), MP_ERR_OS);
    CHECK_EQ(error, EPERM);
    CHECK_EQ(mp_mapping_resize(mapping, 15000, NULL, &error), MP_ERR_OS);
    CHECK_EQ(mp_mapping_append(mapping, row, 1, NULL, &error), MP_ERR_OS);
    CHECK_EQ(look(mapping).rows, 12000);
    CHECK(mp_mapping_is_valid(mapping) && is_marked(data, 0, 12000) && mp_account_used(account) == charged);
    fill_marks(data, 1, 12000);
    CHECK(file_is_marked(behind, HEADER, 1, 12000)); /* still the file */
    mp_mapping_unview(mapping);
    close_mapping(mapping);
    CHECK_EQ(header_rows(behind), 12000);
    mp_mapping_destroy(mapping);
    mp_account_release(account);
    CHECK_EQ(close(behind), 0);
#endif
}

/* ---- somebody else truncates the file ---- */

static void a_lost_file_is_told_and_harmless(void) {
    for (unsigned access = MP_ACCESS_READ; access <= MP_ACCESS_COPY; access++) {
        int file = fresh_file(NULL), behind = dup(file);
        put_marks(file, 100, 0, 5000);
        mp_mapping_config config = raw_file(file, 100, 5000);
        config.access = (mp_access)access;
        mp_mapping *mapping = open_mapping(&config);
        mp_mapping_state state;
        char *data = view(mapping);
        CHECK_EQ(mp_mapping_check(mapping), MP_OK);
        CHECK_EQ(ftruncate(behind, 100 + 8 * 1000), 0);
        CHECK(!look(mapping).lost);
        CHECK_EQ(access == MP_ACCESS_READ ? mp_mapping_view(mapping, &state) : mp_mapping_check(mapping), MP_ERR_LOST);
        CHECK(look(mapping).lost);
        CHECK(is_marked(data, 0, 1000) && is_filled(data + 8000, 0, 32000));
        if (access != MP_ACCESS_READ) memset(data + 8000, 1, 32000);
        CHECK_EQ(ftruncate(behind, 100 + 8 * 5000), 0); /* too late */
        CHECK_EQ(mp_mapping_check(mapping), MP_ERR_LOST);
        CHECK_EQ(mp_mapping_view(mapping, &state), MP_ERR_LOST);
        CHECK_EQ(mp_mapping_flush(mapping, 0, 1, true, &error), MP_ERR_LOST);
        CHECK_EQ(mp_mapping_append(mapping, data, 1, NULL, &error), MP_ERR_LOST);
        CHECK_EQ(mp_mapping_resize(mapping, 1, NULL, &error), MP_ERR_LOST);
        CHECK_EQ(mp_mapping_advise(mapping, 0, 1, MP_ADVICE_NORMAL, &error), MP_ERR_LOST);
        close_mapping(mapping);
        mp_mapping_unview(mapping);
        CHECK(look(mapping).lost && !is_mapped(data));
        mp_mapping_destroy(mapping);
        CHECK_EQ(close(behind), 0);
    }
}

static void no_header_for_rows_that_are_lost(void) {
    char header[HEADER];
    int file = fresh_file(NULL), behind = dup(file);
    mp_mapping_config config = npy_file(file, header, 100, 1, 1000);
    mp_mapping *mapping = open_mapping(&config);
    append_marks(mapping, 100, 100, 1);
    CHECK_EQ(ftruncate(behind, HEADER + 8 * 150), 0);
    CHECK_EQ(mp_mapping_close(mapping, &error), MP_ERR_LOST);
    CHECK_EQ(header_rows(behind), 100);
    mp_mapping_destroy(mapping);
    CHECK_EQ(close(behind), 0);
}

/* ---- other processes, and a kill at any moment ---- */

static void a_child_leaves_the_header_to_its_parent(void) {
    char header[HEADER];
    int file = fresh_file(NULL), behind = dup(file);
    mp_mapping_config config = npy_file(file, header, 100, 1, 100000);
    mp_mapping *mapping = open_mapping(&config);
    append_marks(mapping, 100, 100, 1);
    int go[2];
    CHECK_EQ(pipe(go), 0);
    pid_t child = fork_child();
    if (child == 0) {
        char token;
        CHECK_EQ(read(go[0], &token, 1), 1);
        CHECK(is_marked(look(mapping).data, 0, 200));
        mp_mapping_destroy(mapping);
        _exit(0);
    }
    append_marks(mapping, 200, 100, 1);
    flush(mapping);
    CHECK_EQ(write(go[1], "g", 1), 1);
    expect_success(child);
    CHECK_EQ(header_rows(behind), 300);
    mp_mapping_destroy(mapping);
    CHECK_EQ(close(go[0]) + close(go[1]) + close(behind), 0);
}

typedef struct bustle {
    mp_mapping *mapping;
    atomic_bool over;
} bustle;

static void write_or_fork(void *context, unsigned number) {
    bustle *shared = context;
    uint64_t row = 1;
    int failure;
    while (number > 0 && !atomic_load(&shared->over)) {
        if (number == 1) CHECK_EQ(mp_mapping_append(shared->mapping, &row, 1, NULL, &failure), MP_OK);
        else CHECK_EQ(mp_mapping_flush(shared->mapping, 0, 0, true, &failure), MP_OK);
    }
    for (unsigned i = 0; number == 0 && i < 60; i++) {
        pid_t child = fork_child();
        if (child == 0) {
            append(shared->mapping, &row, 1);
            flush(shared->mapping);
            close_mapping(shared->mapping);
            _exit(0);
        }
        expect_success(child);
    }
    if (number == 0) atomic_store(&shared->over, true);
}

static void fork_while_others_flush(void) {
    char header[HEADER];
    mp_mapping_config config = npy_file(fresh_file(NULL), header, 0, 1, 1 << 24);
    bustle shared = {.mapping = open_mapping(&config)};
    crew_run(4, write_or_fork, &shared);
    mp_mapping_destroy(shared.mapping);
}

_Noreturn static void append_until_killed(int file, int tell) {
    char header[HEADER];
    size_t rows = header_rows(file);
    make_header(header, rows, 1);
    mp_mapping_config config = raw_file(file, HEADER, rows);
    config.max_rows = 1 << 24;
    config.header = header;
    config.header_size = HEADER;
    mp_mapping *mapping = open_mapping(&config);
    for (size_t step = 1;; step = step % 7 + 1) {
        append_marks(mapping, rows, step, 1);
        rows += step;
        flush(mapping);
        CHECK_EQ(write(tell, &rows, sizeof rows), (ssize_t)sizeof rows);
        if (step != 5) continue;
        rows -= 2;
        CHECK_EQ(write(tell, &rows, sizeof rows), (ssize_t)sizeof rows); /* before: from now on they may go */
        resize(mapping, rows);
    }
}

static void a_kill_loses_nothing_that_was_flushed(void) {
    char header[HEADER];
    int file = fresh_file(NULL);
    dice luck = {.state = check_seed = 11};
    make_header(header, 0, 1);
    CHECK_EQ(pwrite(file, header, HEADER, 0), HEADER);
    for (unsigned round = 0; round < 50; round++) {
        int told[2];
        size_t rows = 0, acknowledged = header_rows(file);
        CHECK_EQ(pipe(told), 0);
        pid_t child = fork_child();
        if (child == 0) append_until_killed(file, told[1]);
        CHECK_EQ(close(told[1]), 0);
        /* Half of them at first work, however slow the disk is; the others may be killed before they do anything. */
        if (round % 2) CHECK_EQ(read(told[0], &acknowledged, sizeof rows), (ssize_t)sizeof rows);
        uint64_t until = now_ns() + roll_below(&luck, 15000000);
        while (now_ns() < until) sched_yield();
        CHECK_EQ(kill(child, SIGKILL), 0);
        expect_death(child, SIGKILL);
        while (read(told[0], &rows, sizeof rows) == (ssize_t)sizeof rows) acknowledged = rows;
        CHECK_EQ(close(told[0]), 0);
        rows = header_rows(file);
        CHECK_LE(acknowledged, rows);
        CHECK_LE(rows, acknowledged + 7);
        CHECK(file_is_marked(file, HEADER, 0, rows));
    }
    CHECK_LT(0, header_rows(file));
    CHECK_EQ(close(file), 0);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    folder_open();
    TEST(growth_moves_nothing);
    TEST(what_shall_not_grow_does_not);
    TEST(the_header_waits_for_the_data);
    TEST(a_full_header_stops_growth);
    TEST(views_of_rows_that_went_read_zeros);
    TEST(the_header_goes_before_the_rows);
    TEST(tails_never_show);
    TEST(the_rest_of_a_page_is_cleared);
    TEST(as_a_model_says);
    TEST(a_full_disk_changes_nothing);
    TEST(a_file_that_keeps_its_length);
    TEST(a_lost_file_is_told_and_harmless);
    TEST(no_header_for_rows_that_are_lost);
    TEST(a_child_leaves_the_header_to_its_parent);
    TEST(fork_while_others_flush);
    TEST(a_kill_loses_nothing_that_was_flushed);
    folder_close();
    return check_end();
}
