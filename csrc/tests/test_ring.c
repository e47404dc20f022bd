/* Rings: what is committed is read, in one piece and in order, with pages mapped twice and with copies; what they cost; fork. */
#include "mapped.h"

typedef struct kind {
    const char *name;
    bool copying;
} kind;

static const kind KINDS[] = {{"mirrored", false}, {"copying", true}};

static mp_ring_state look_at(const mp_ring *ring) {
    mp_ring_state state;
    mp_ring_look(ring, &state);
    CHECK(mp_ring_is_valid(ring));
    return state;
}

static mp_ring *open_ring(size_t capacity, bool copying) {
    mp_ring_config config = {.capacity = capacity, .copying = copying};
    mp_ring *ring = NULL;
    CHECK_EQ(mp_ring_create(&config, &ring, NULL), MP_OK);
    CHECK_EQ(look_at(ring).length, 0);
    return ring;
}

static unsigned char *writable(mp_ring *ring, size_t *size) {
    void *data = NULL;
    CHECK_EQ(mp_ring_writable(ring, &data, size), MP_OK);
    return data;
}

static unsigned char *readable(mp_ring *ring, size_t *size) {
    void *data = NULL;
    CHECK_EQ(mp_ring_readable(ring, &data, size), MP_OK);
    return data;
}

static void commit(mp_ring *ring, size_t n) {
    size_t room;
    CHECK_EQ(mp_ring_commit(ring, n, &room), MP_OK);
}

static void consume(mp_ring *ring, size_t n) {
    size_t length;
    CHECK_EQ(mp_ring_consume(ring, n, &length), MP_OK);
}

/* Byte number i of all that ever went through. */
static unsigned char byte_at(uint64_t i) { return (unsigned char)(i * 167 + (i >> 8) * 13 + 5); }

static void produce(mp_ring *ring, uint64_t *sent, size_t n) {
    size_t size;
    unsigned char *data = writable(ring, &size);
    CHECK_LE(n, size);
    for (size_t i = 0; i < n; i++) data[i] = byte_at(*sent + i);
    commit(ring, n);
    *sent += n;
}

static void expect(mp_ring *ring, uint64_t *got, size_t n) {
    size_t size;
    const unsigned char *data = readable(ring, &size);
    CHECK_LE(n, size);
    for (size_t i = 0; i < size; i++) CHECK_EQ(data[i], byte_at(*got + i));
    consume(ring, n);
    *got += n;
}

static void each_kind(void (*test)(bool copying)) {
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++) test(KINDS[i].copying);
}

/* ---- bytes ---- */

static void all_that_fits(bool copying) {
    mp_ring *ring = open_ring(1, copying);
    size_t capacity = look_at(ring).capacity, size, most = 7;
    CHECK(capacity >= mp_page_size() && capacity % mp_page_size() == 0);
    CHECK_EQ(look_at(ring).mirrored, !copying);
    CHECK(is_filled(look_at(ring).base, 0, 2 * capacity));
    uint64_t sent = 0, got = 0;
    produce(ring, &sent, capacity);
    (void)writable(ring, &size);
    CHECK_EQ(size, 0);
    CHECK_EQ(mp_ring_commit(ring, 1, &most), MP_ERR_INVALID);
    CHECK_EQ(most, 0);
    CHECK_EQ(look_at(ring).length, capacity);
    expect(ring, &got, capacity);
    CHECK_EQ(mp_ring_consume(ring, 1, &most), MP_ERR_INVALID);
    CHECK_EQ(most, 0);
    (void)writable(ring, &size);
    CHECK_EQ(size, capacity);
    CHECK_EQ(mp_ring_commit(ring, capacity + 1, &most), MP_ERR_INVALID);
    CHECK_EQ(mp_ring_commit(ring, SIZE_MAX, &most), MP_ERR_INVALID);
    CHECK_EQ(most, capacity);
    CHECK_EQ(look_at(ring).length, 0);
    mp_ring_destroy(ring);
}

static void all_that_fits_and_no_more(void) { each_kind(all_that_fits); }

static void random_steps(bool copying) {
    check_seed = copying ? 31 : 32;
    dice luck = {.state = check_seed};
    mp_ring *ring = open_ring(2 * mp_page_size(), copying);
    size_t capacity = look_at(ring).capacity;
    uint64_t sent = 0, got = 0;
    for (unsigned i = 0; i < 4000; i++) {
        size_t length = (size_t)(sent - got);
        if (roll_below(&luck, 2) == 0) produce(ring, &sent, roll_below(&luck, capacity - length + 1));
        else expect(ring, &got, roll_below(&luck, length + 1));
        CHECK_EQ(look_at(ring).length, sent - got);
    }
    CHECK_LT(10 * capacity, sent);
    mp_ring_destroy(ring);
}

static void bytes_come_out_as_they_went_in(void) { each_kind(random_steps); }

/* One view, many commits: also where the end of the first half lies in the middle of them. */
static void committed_in_parts(bool copying) {
    mp_ring *ring = open_ring(1, copying);
    size_t capacity = look_at(ring).capacity, size;
    uint64_t sent = 0, got = 0;
    for (unsigned round = 0; round < 50; round++) {
        unsigned char *data = writable(ring, &size);
        CHECK_EQ(size, capacity);
        for (size_t i = 0; i < 3000; i++) data[i] = byte_at(sent + i);
        for (size_t part = 100; part <= 1000; part += 300) {
            commit(ring, part);
            sent += part;
            expect(ring, &got, part);
        }
        CHECK(mp_ring_is_valid(ring));
    }
    mp_ring_destroy(ring);
}

static void a_view_is_committed_in_parts(void) { each_kind(committed_in_parts); }

/* Nobody promised what the bytes are, but there must be bytes. */
static void committed_unseen(bool copying) {
    mp_ring *ring = open_ring(1, copying);
    size_t capacity = look_at(ring).capacity;
    for (unsigned i = 0; i < 40; i++) {
        commit(ring, capacity / 2 + 50 * i);
        CHECK(mp_ring_is_valid(ring));
        consume(ring, capacity / 2 + 50 * i);
        commit(ring, capacity);
        consume(ring, capacity);
        CHECK(mp_ring_is_valid(ring));
    }
    mp_ring_destroy(ring);
}

static void commits_without_a_view_stay_inside(void) { each_kind(committed_unseen); }

static void find_in(bool copying) {
    mp_ring *ring = open_ring(1, copying);
    size_t capacity = look_at(ring).capacity, size, at;
    bool found;
    for (size_t gap = 0; gap < 3 * capacity; gap += 501) {
        memcpy(writable(ring, &size), "one\r\ntwo\r", 9);
        commit(ring, 9);
        CHECK_EQ(mp_ring_find(ring, "\r\n", 2, 0, &at, &found), MP_OK);
        CHECK(found && at == 3);
        CHECK_EQ(mp_ring_find(ring, "\r\n", 2, 4, &at, &found), MP_OK);
        CHECK(!found && at == 8); /* the last byte may be a beginning */
        CHECK_EQ(mp_ring_find(ring, "o", 1, 3, &at, &found), MP_OK);
        CHECK(found && at == 7);
        CHECK_EQ(mp_ring_find(ring, "z", 1, 0, &at, &found), MP_OK);
        CHECK(!found && at == 9);
        CHECK_EQ(mp_ring_find(ring, "one\r\ntwo\r!", 10, 0, &at, &found), MP_OK);
        CHECK(!found && at == 0);
        CHECK_EQ(mp_ring_find(ring, "e", 1, SIZE_MAX, &at, &found), MP_OK);
        CHECK(!found);
        CHECK_EQ(mp_ring_find(ring, "", 0, 0, &at, &found), MP_ERR_INVALID);
        consume(ring, 9);
        commit(ring, 492);
        consume(ring, 492);
    }
    mp_ring_destroy(ring);
}

static void separators_are_found_wherever_they_lie(void) { each_kind(find_in); }

static void both_halves_are_the_same_pages(void) {
    mp_ring *ring = open_ring(1, false);
    mp_ring_state state = look_at(ring);
    char *low = state.base, *high = low + state.capacity;
    for (size_t i = 0; i < state.capacity; i += 97) {
        low[i] = (char)(i + 1);
        CHECK_EQ(high[i], (char)(i + 1));
        high[i] = (char)~i;
        CHECK_EQ(low[i], (char)~i);
    }
    mp_ring_destroy(ring);
}

/* ---- what it costs ---- */

static void charges_what_it_takes(void) {
    size_t page = mp_page_size();
    mp_account *account = open_account(NULL, 8 * page), *binding = NULL;
    mp_ring *ring = NULL, *other = NULL;
    mp_ring_config config = {.capacity = 3 * page - 1, .account = account};
    CHECK_EQ(mp_ring_create(&config, &ring, &binding), MP_OK);
    CHECK_EQ(mp_account_used(account), 3 * page);
    config.copying = true;
    CHECK_EQ(mp_ring_create(&config, &other, &binding), MP_ERR_ACCOUNT);
    CHECK(binding == account && other == NULL);
    CHECK_EQ(mp_account_used(account), 3 * page);
    config.capacity = page;
    CHECK_EQ(mp_ring_create(&config, &other, &binding), MP_OK);
    CHECK_EQ(mp_account_used(account), 5 * page);
    mp_ring_destroy(ring);
    mp_ring_destroy(other);
    CHECK_EQ(mp_account_used(account), 0);
    CHECK_EQ(mp_account_peak(account), 5 * page);
    mp_account_release(account);
}

static void refuses_nonsense(void) {
    mp_ring_config config = {.capacity = 0};
    mp_ring *ring = NULL;
    CHECK_EQ(mp_ring_create(&config, &ring, NULL), MP_ERR_INVALID);
    const size_t too_much[] = {SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 8 + 1, (size_t)1 << 60};
    for (size_t i = 0; i < 4; i++) {
        config.capacity = too_much[i];
        CHECK_EQ(mp_ring_create(&config, &ring, NULL), MP_ERR_NOMEM);
    }
    CHECK(ring == NULL);
}

/* A source that cannot map twice; each of its calls fails once. */
static void each_call_fails_once(void) {
    ledger books;
    ledger_open(&books);
    mp_account *account = open_account(NULL, MP_NO_LIMIT);
    mp_ring_config config = {.capacity = 1, .account = account, .source = &books.source};
    for (unsigned kinds = 0; kinds < 2; kinds++) {
        mp_ring *ring = NULL;
        books.may_refuse = 1U << (kinds == 0 ? LEDGER_ALLOC : LEDGER_MAP);
        books.refuse_at = books.total + 1;
        CHECK_EQ(mp_ring_create(&config, &ring, NULL), MP_ERR_NOMEM);
        CHECK(ring == NULL && mp_account_used(account) == 0);
        books.may_refuse = 0;
        CHECK_EQ(mp_ring_create(&config, &ring, NULL), MP_OK);
        CHECK(!look_at(ring).mirrored);
        CHECK_EQ(mp_account_used(account), 2 * mp_page_size());
        mp_ring_destroy(ring);
        CHECK_EQ(mp_account_used(account), 0);
    }
    mp_account_release(account);
    ledger_close(&books);
}

/* The OS has no descriptor for us: a ring is had all the same. */
static void without_descriptors(void) {
    struct rlimit none = {0, 0};
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    mp_account *account = open_account(NULL, MP_NO_LIMIT);
    mp_ring_config config = {.capacity = 1, .account = account};
    mp_ring *ring = NULL;
    CHECK_EQ(mp_ring_create(&config, &ring, NULL), MP_OK);
    CHECK(!look_at(ring).mirrored);
    CHECK_EQ(mp_account_used(account), 2 * look_at(ring).capacity);
    uint64_t sent = 0, got = 0;
    produce(ring, &sent, 4000);
    expect(ring, &got, 4000);
    produce(ring, &sent, 4000);
    expect(ring, &got, 4000);
    mp_ring_destroy(ring);
    mp_account_release(account);
}

static void copies_where_the_os_cannot_map_twice(void) { run_apart(without_descriptors); }

/* ---- fork ---- */

static void forked(bool copying) {
    mp_ring *ring = open_ring(1, copying);
    uint64_t sent = 0, got = 0;
    produce(ring, &sent, 3500);
    expect(ring, &got, 3000);
    produce(ring, &sent, 2000); /* around the end */
    size_t length;
    const void *inherited = readable(ring, &length);
    int pipes[2];
    char go;
    CHECK_EQ(pipe(pipes), 0);
    pid_t child = fork_child();
    if (child == 0) {
        CHECK_EQ(read(pipes[0], &go, 1), 1); /* the parent has gone on meanwhile */
        CHECK_EQ(look_at(ring).length, 2500);
        CHECK_EQ(look_at(ring).mirrored, !copying);
        CHECK(readable(ring, &length) == inherited && length == 2500);
        expect(ring, &got, 2400);
        for (unsigned i = 0; i < 10; i++) {
            produce(ring, &sent, 1700);
            expect(ring, &got, 1700);
        }
        mp_ring_destroy(ring);
        _exit(0);
    }
    expect(ring, &got, 2500);
    for (unsigned i = 0; i < 7; i++) {
        produce(ring, &sent, 3100);
        expect(ring, &got, 3100);
    }
    produce(ring, &sent, 4000);
    CHECK_EQ(write(pipes[1], "!", 1), 1);
    expect_success(child);
    expect(ring, &got, 4000);
    CHECK_EQ(close(pipes[0]) + close(pipes[1]), 0);
    mp_ring_destroy(ring);
}

static void a_child_has_a_ring_of_its_own(void) { each_kind(forked); }

/* The child cannot have pages twice: it copies, at the same addresses. */
static void a_child_may_have_to_copy(void) {
    mp_account *account = open_account(NULL, MP_NO_LIMIT);
    mp_ring_config config = {.capacity = 1, .account = account};
    mp_ring *ring = NULL;
    CHECK_EQ(mp_ring_create(&config, &ring, NULL), MP_OK);
    uint64_t sent = 0, got = 0;
    produce(ring, &sent, 3500);
    expect(ring, &got, 3000);
    produce(ring, &sent, 2000);
    struct rlimit before, none;
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 0;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    pid_t child = fork_child();
    if (child == 0) {
        CHECK(!look_at(ring).mirrored);
        CHECK_EQ(mp_account_used(account), 2 * look_at(ring).capacity);
        expect(ring, &got, 1500);
        expect(ring, &got, 1000); /* what went around, from where it goes around to */
        produce(ring, &sent, 4000);
        expect(ring, &got, 4000);
        produce(ring, &sent, 4000);
        expect(ring, &got, 4000);
        mp_ring_destroy(ring);
        CHECK_EQ(mp_account_used(account), 0);
        _exit(0);
    }
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
    expect_success(child);
    CHECK(look_at(ring).mirrored);
    expect(ring, &got, 2500);
    mp_ring_destroy(ring);
    mp_account_release(account);
}

static mp_source forgetful;
static bool refusing;

static mp_status map_or_not(void *context, size_t size, size_t alignment, bool huge, void **out) {
    return refusing ? MP_ERR_NOMEM : mp_source_os()->map(context, size, alignment, huge, out);
}

/* No memory to keep the bytes: the child's ring says so, and its memory is there. */
static void a_child_may_have_lost_its_bytes(void) {
    forgetful = *mp_source_os();
    forgetful.map = map_or_not;
    mp_ring_config config = {.capacity = 1, .source = &forgetful};
    mp_ring *ring = NULL;
    CHECK_EQ(mp_ring_create(&config, &ring, NULL), MP_OK);
    uint64_t sent = 0, got = 0;
    produce(ring, &sent, 10);
    refusing = true;
    pid_t child = fork_child();
    refusing = false;
    if (child == 0) {
        void *data;
        size_t size, at;
        bool found;
        CHECK(look_at(ring).lost);
        CHECK_EQ(mp_ring_writable(ring, &data, &size), MP_ERR_LOST);
        CHECK_EQ(mp_ring_readable(ring, &data, &size), MP_ERR_LOST);
        CHECK_EQ(mp_ring_commit(ring, 0, &size), MP_ERR_LOST);
        CHECK_EQ(mp_ring_consume(ring, 0, &size), MP_ERR_LOST);
        CHECK_EQ(mp_ring_find(ring, "x", 1, 0, &at, &found), MP_ERR_LOST);
        CHECK(is_filled(look_at(ring).base, 0, 2 * look_at(ring).capacity));
        mp_ring_destroy(ring);
        _exit(0);
    }
    expect_success(child);
    expect(ring, &got, 10);
    refusing = true; /* nothing to keep: nothing lost */
    child = fork_child();
    if (child == 0) {
        produce(ring, &sent, 100);
        expect(ring, &got, 100);
        _exit(0);
    }
    refusing = false;
    expect_success(child);
    mp_ring_destroy(ring);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(all_that_fits_and_no_more);
    TEST(bytes_come_out_as_they_went_in);
    TEST(a_view_is_committed_in_parts);
    TEST(commits_without_a_view_stay_inside);
    TEST(separators_are_found_wherever_they_lie);
    TEST(both_halves_are_the_same_pages);
    TEST(charges_what_it_takes);
    TEST(refuses_nonsense);
    TEST(each_call_fails_once);
    TEST(copies_where_the_os_cannot_map_twice);
    TEST(a_child_has_a_ring_of_its_own);
    TEST(a_child_may_have_to_copy);
    TEST(a_child_may_have_lost_its_bytes);
    return check_end();
}
