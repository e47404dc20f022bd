/* .npy headers: another number of rows. */
#include "npy_kit.h"

static const char *const no_room = "the header has no room for so many digits";
/* ---- another number of rows ---- */

/* Reading again gives what it gave before, but for the rows and what moved by them. */
static void check_set_rows(file f, mp_npy *header, uint64_t rows) {
    mp_npy before = *header, again;
    file old = copy_of(f.bytes, f.size);
    size_t tail = before.dict_stop - before.rows_stop,
           rest = before.dict_stop > header->dict_stop ? before.dict_stop : header->dict_stop;
    CHECK_EQ(mp_npy_set_rows(f.bytes, f.size, header, rows), MP_OK);
    again = parse(f);
    CHECK(is_same(&again, header));
    CHECK(header->problem == NULL && header->shape[0] == rows && header->ndim == before.ndim);
    check_offsets(f, header);
    rest = rest > header->dict_stop ? rest : header->dict_stop;
    CHECK(memcmp(old.bytes, f.bytes, before.rows_start) == 0);
    CHECK(memcmp(old.bytes + before.rows_stop, f.bytes + header->rows_stop, tail) == 0);
    CHECK(memcmp(old.bytes + rest, f.bytes + rest, f.size - rest) == 0);
    for (size_t i = header->dict_stop; i < rest; i++) CHECK_EQ(f.bytes[i], ' ');
    CHECK_EQ(header->descr_stop - header->descr_start, before.descr_stop - before.descr_start);
    CHECK(memcmp(old.bytes + before.descr_start, f.bytes + header->descr_start, header->descr_stop - header->descr_start) == 0);
    CHECK(header->fortran_order == before.fortran_order && memcmp(&header->shape[1], &before.shape[1], 8 * (before.ndim - 1)) == 0);
    drop(old);
}

static void refuse_rows(file f, mp_npy *header, uint64_t rows, const char *why) {
    file old = copy_of(f.bytes, f.size);
    mp_npy before = *header;
    CHECK_EQ(mp_npy_set_rows(f.bytes, f.size, header, rows), MP_ERR_INVALID);
    CHECK(header->problem != NULL && strcmp(header->problem, why) == 0);
    CHECK(is_same(&before, header));
    CHECK(memcmp(old.bytes, f.bytes, f.size) == 0);
    drop(old);
}

static void rows_grow_and_shrink(void) {
    file f = make(1, usual);
    mp_npy header = parse(f);
    const uint64_t rows[] = {3, 0, 10, 9, 12345, 12346, 99999999, UINT64_MAX / 4, 1, 100};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) check_set_rows(f, &header, rows[i]);
    check_set_rows(f, &header, 3);
    file first = make(1, usual);
    CHECK(memcmp(first.bytes, f.bytes, f.size) == 0);
    drop(first);
    drop(f);
}

static void the_text_is_as_expected(void) {
    file f = make(3, "{'shape': (7,), 'fortran_order': True, 'descr': '<i4'}   \n");
    mp_npy header = parse(f);
    check_set_rows(f, &header, 4321);
    CHECK(reads(f, 12, f.size, "{'shape': (4321,), 'fortran_order': True, 'descr': '<i4'}\n"));
    check_set_rows(f, &header, 5);
    CHECK(reads(f, 12, f.size, "{'shape': (5,), 'fortran_order': True, 'descr': '<i4'}   \n"));
    CHECK(reads(f, header.descr_start, header.descr_stop, "'<i4'"));
    drop(f);
}

static void python_2_rows_change_too(void) {
    file f = make(2, python2);
    mp_npy header = parse(f);
    const uint64_t rows[] = {1, 10000, 20, 0};
    for (size_t i = 0; i < 4; i++) check_set_rows(f, &header, rows[i]);
    CHECK(reads(f, header.rows_start, header.dict_stop, "0 , 40 ), }"));
    drop(f);
}

/* `spaces` in front of the newline: so many digits more. */
static void the_room_ends_in_front_of_the_newline(void) {
    for (int spaces = 0; spaces < 25; spaces++) {
        char text[MOST_TEXT];
        uint64_t rows = 1;
        (void)snprintf(text, sizeof text, "{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}%*s\n", spaces, "");
        file f = make(1, text);
        for (int digits = 1; digits <= 20; digits++, rows *= digits <= 20 ? 10 : 1) {
            mp_npy header = parse(f);
            if (digits <= spaces + 1) check_set_rows(f, &header, rows);
            else refuse_rows(f, &header, rows, no_room);
            CHECK_EQ(f.bytes[f.size - 1], '\n');
        }
        drop(f);
    }
}

/* NumPy does not ask for it: without one the room ends where the header does, and what was shortened can be made longer again. */
static void a_newline_at_the_end_may_be_missing(void) {
    file f = make(1, "{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}\n\t \t");
    mp_npy header = parse(f);
    refuse_rows(f, &header, 100000, no_room);
    check_set_rows(f, &header, 1000);
    CHECK(reads(f, header.rows_start, f.size, "1000,)}\t"));
    check_set_rows(f, &header, 10000);
    CHECK(reads(f, header.rows_start, f.size, "10000,)}"));
    drop(f);
    f = make(1, "{'descr': '<f8', 'fortran_order': False, 'shape': (30,)}");
    header = parse(f);
    refuse_rows(f, &header, 100, no_room);
    check_set_rows(f, &header, 1);
    CHECK(reads(f, header.rows_start, f.size, "1,)} "));
    check_set_rows(f, &header, 99);
    refuse_rows(f, &header, 100, no_room);
    drop(f);
}

static void impossible_rows_are_refused(void) {
    file f = make(1, with_shape("()"));
    mp_npy header = parse(f);
    refuse_rows(f, &header, 1, "an array without dimensions has no rows");
    drop(f);
    f = make(1, usual);
    header = parse(f);
    refuse_rows(f, &header, UINT64_MAX / 4 + 1, too_many);
    refuse_rows(f, &header, UINT64_MAX, too_many);
    CHECK_EQ(mp_npy_set_rows(f.bytes, f.size - 1, &header, 3), MP_ERR_INVALID);
    CHECK(strcmp(header.problem, "these are not the bytes of the header") == 0);
    check_set_rows(f, &header, UINT64_MAX / 4);
    drop(f);
    f = make(1, "{'descr': '<f8', 'fortran_order': False, 'shape': (0, 3, 0)}                    \n");
    header = parse(f);
    check_set_rows(f, &header, UINT64_MAX);
    drop(f);
}

static unsigned set_many(const char *text, dice *luck) {
    file f = make(1, text);
    mp_npy header = parse(f);
    unsigned set = 0;
    for (unsigned round = 0; round < 5000; round++) {
        uint64_t rows = roll(luck) >> roll_below(luck, 64);
        mp_npy probe = header;
        file copy = copy_of(f.bytes, f.size);
        bool fits = mp_npy_set_rows(copy.bytes, copy.size, &probe, rows) == MP_OK;
        drop(copy);
        if (fits) check_set_rows(f, &header, rows);
        else refuse_rows(f, &header, rows, probe.problem);
        set += fits;
    }
    drop(f);
    return set;
}

static void any_rows_come_back(void) {
    dice luck = {.state = check_seed = 11};
    unsigned set = set_many(usual, &luck) + set_many(python2, &luck);
    set += set_many("{'shape':(1,2),'descr':'<f8','fortran_order':True}        \n", &luck);
    set += set_many("{'fortran_order':True,'shape':(0,),'descr':[('a','|S3',(2L,))],}\n", &luck);
    CHECK(set > 5000 && set < 20000);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(rows_grow_and_shrink);
    TEST(the_text_is_as_expected);
    TEST(python_2_rows_change_too);
    TEST(the_room_ends_in_front_of_the_newline);
    TEST(a_newline_at_the_end_may_be_missing);
    TEST(impossible_rows_are_refused);
    TEST(any_rows_come_back);
    return check_end();
}
