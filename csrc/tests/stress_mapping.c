/* Many threads on one mapping: rows that a view shows are there and stay; the header is never ahead; accounts come out even. */
#include "mapped.h"

enum { THREADS = 6, ROUNDS = 1500, KEPT = 64, MOST = 1 << 16 };

typedef struct scene {
    mp_mapping *mapping;
    int behind; /* another descriptor of the file; -1: anonymous */
    atomic_uint views;
} scene;

static void grow_a_little(scene *shared, dice *luck) {
    uint64_t rows[40];
    int error = 0;
    size_t count = roll_below(luck, 40) + 1;
    for (size_t i = 0; i < count; i++) rows[i] = 1;
    mp_status status = mp_mapping_append(shared->mapping, rows, count, NULL, &error);
    CHECK(status == MP_OK || status == MP_ERR_FULL || status == MP_ERR_ACCOUNT);
}

static void change_rows(scene *shared, dice *luck) {
    int error = 0;
    size_t rows = KEPT + roll_below(luck, 5000);
    mp_status status = mp_mapping_resize(shared->mapping, rows, NULL, &error);
    CHECK(status == MP_OK || status == MP_ERR_ACCOUNT);
}

/* The first rows never go; what is behind them may change or go at any moment, but must not fault. */
static void look_at_rows(scene *shared) {
    mp_mapping_state state;
    CHECK_EQ(mp_mapping_view(shared->mapping, &state), MP_OK);
    CHECK_LE(KEPT, state.rows);
    CHECK_LE(state.rows, state.max_rows);
    CHECK(is_marked(state.data, 0, KEPT));
    for (size_t at = 8 * KEPT; at < 8 * state.rows; at += 512) (void)peek((char *)state.data + at);
    atomic_fetch_add(&shared->views, 1);
    mp_mapping_unview(shared->mapping);
}

static void be_advised(scene *shared, dice *luck) {
    size_t resident = 0, pages = 0;
    int error = 0;
    mp_advice advice = (mp_advice)roll_below(luck, MP_ADVICE_WILLNEED + 1);
    CHECK_EQ(mp_mapping_advise(shared->mapping, 3, KEPT, advice, &error), MP_OK);
    CHECK_EQ(mp_mapping_resident(shared->mapping, &resident, &pages, &error), MP_OK);
    CHECK_LE(resident, pages);
    mp_mapping_populate(shared->mapping, 0, KEPT);
}

static void act(void *context, unsigned number) {
    scene *shared = context;
    dice luck = {.state = check_seed + number};
    int error = 0;
    mp_mapping_state state;
    for (unsigned i = 0; i < ROUNDS; i++) {
        switch (roll_below(&luck, 10)) {
        case 0:
        case 1: grow_a_little(shared, &luck); break;
        case 2: change_rows(shared, &luck); break;
        case 3:
        case 4:
        case 5: look_at_rows(shared); break;
        case 6: CHECK_EQ(mp_mapping_flush(shared->mapping, 0, KEPT, roll_below(&luck, 4) == 0, &error), MP_OK); break;
        case 7: be_advised(shared, &luck); break;
        case 8:
            mp_mapping_look(shared->mapping, &state);
            CHECK(!state.lost && !state.closed);
            CHECK_EQ(mp_mapping_check(shared->mapping), MP_OK);
            break;
        default: CHECK(mp_mapping_is_valid(shared->mapping)); break;
        }
    }
}

static void run(mp_mapping_config config, int behind, size_t limit) {
    mp_account *account = open_account(NULL, limit);
    config.account = account;
    scene shared = {.mapping = open_mapping(&config), .behind = behind};
    fill_marks(look(shared.mapping).data, 0, KEPT);
    crew_run(THREADS, act, &shared);
    CHECK_LT(0, atomic_load(&shared.views));
    CHECK(is_marked(look(shared.mapping).data, 0, KEPT));
    flush(shared.mapping);
    if (behind >= 0) CHECK_EQ(header_rows(behind), look(shared.mapping).rows);
    mp_mapping_destroy(shared.mapping);
    CHECK_EQ(mp_account_used(account), 0);
    mp_account_release(account);
}

static void all_at_once_on_a_file(void) {
    char header[HEADER];
    check_seed = 21;
    int file = fresh_file(NULL), behind = dup(file);
    run(npy_file(file, header, KEPT, 1, MOST), behind, MP_NO_LIMIT);
    CHECK_EQ(close(behind), 0);
}

static void all_at_once_in_memory(void) {
    check_seed = 22;
    run(no_file(8, KEPT, MOST), -1, 8 * mp_page_size());
}

/* ---- it ends while it is viewed ---- */

static void view_until_closed(void *context, unsigned number) {
    scene *shared = context;
    mp_mapping_state state;
    int error = 0;
    while (mp_mapping_view(shared->mapping, &state) == MP_OK) {
        for (size_t at = 0; at < 8 * state.rows; at += 1000) (void)peek((char *)state.data + at);
        mp_mapping_unview(shared->mapping);
        if (number == 0 && atomic_fetch_add(&shared->views, 1) > 20) {
            CHECK_EQ(mp_mapping_revoke(shared->mapping, &error), MP_OK);
        } else if (number == 1 && atomic_fetch_add(&shared->views, 1) > 20) {
            CHECK_EQ(mp_mapping_close(shared->mapping, &error), MP_OK);
        }
    }
}

static void close_and_revoke_among_views(void) {
    char header[HEADER];
    for (unsigned round = 0; round < 150; round++) {
        mp_mapping_config config = npy_file(fresh_file(NULL), header, 3000, 1, MOST);
        scene shared = {.mapping = open_mapping(&config), .behind = -1};
        crew_run(4, view_until_closed, &shared);
        mp_mapping_destroy(shared.mapping);
    }
}

static void drop_one(void *context, unsigned number) {
    if (number == 0) mp_mapping_destroy(context);
    else mp_mapping_unview(context);
}

/* Whoever is last frees it, and nobody twice. */
static void destroy_among_last_views(void) {
    for (unsigned round = 0; round < 500; round++) {
        mp_mapping_config config = no_file(8, 1000, 2000);
        mp_mapping *mapping = open_mapping(&config);
        for (unsigned i = 1; i < 4; i++) (void)view(mapping);
        crew_run(4, drop_one, mapping);
    }
}

/* ---- slots of the guard come and go ---- */

static void open_and_close(void *context, unsigned number) {
    (void)context;
    dice luck = {.state = number};
    for (unsigned i = 0; i < 300; i++) {
        int file = fresh_file(NULL), behind = dup(file);
        put_marks(file, 0, 0, 2000);
        mp_mapping_config config = raw_file(file, 0, 2000);
        mp_mapping *mapping = open_mapping(&config);
        const char *data = view(mapping);
        bool lose = roll_below(&luck, 2) == 0;
        if (lose) CHECK_EQ(ftruncate(behind, 0), 0);
        if (roll_below(&luck, 2) == 0) close_mapping(mapping);
        for (size_t at = 7; at < 16000; at += 1000) CHECK(peek(data + at) == 0 || !lose);
        CHECK_EQ(look(mapping).lost, lose);
        mp_mapping_unview(mapping);
        mp_mapping_destroy(mapping);
        CHECK_EQ(close(behind), 0);
    }
}

static void guarded_mappings_come_and_go(void) {
    int error;
    CHECK_EQ(mp_guard_truncation(&error), MP_OK);
    crew_run(4, open_and_close, NULL);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    folder_open();
    TEST(all_at_once_on_a_file);
    TEST(all_at_once_in_memory);
    TEST(close_and_revoke_among_views);
    TEST(destroy_among_last_views);
    TEST(guarded_mappings_come_and_go);
    folder_close();
    return check_end();
}
