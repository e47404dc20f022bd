/* One producer and one consumer on one ring, with no lock: every byte comes out once, as it went in, in both ways to have it in one
 * piece; a third thread looks on, a fourth forks. */
#include "mapped.h"

enum { TOTAL = 12 << 20, FORKS = 8 };

typedef struct scene {
    mp_ring *ring;
    uint64_t seed;
    atomic_bool done;
    bool forks;
} scene;

static unsigned char byte_at(uint64_t i) { return (unsigned char)(i * 167 + (i >> 8) * 13 + 5); }

static void produce(scene *shared) {
    dice luck = {.state = shared->seed};
    for (uint64_t sent = 0; sent < TOTAL;) {
        void *data;
        size_t size, room;
        CHECK_EQ(mp_ring_writable(shared->ring, &data, &size), MP_OK);
        if (size == 0) {
            sched_yield();
            continue;
        }
        size_t n = roll_below(&luck, size) + 1, first;
        if (n > TOTAL - sent) n = TOTAL - sent;
        for (size_t i = 0; i < n; i++) ((unsigned char *)data)[i] = byte_at(sent + i);
        first = roll_below(&luck, n + 1);
        CHECK_EQ(mp_ring_commit(shared->ring, first, &room), MP_OK);
        CHECK_EQ(mp_ring_commit(shared->ring, n - first, &room), MP_OK);
        sent += n;
    }
}

static void consume(scene *shared) {
    dice luck = {.state = shared->seed + 1};
    for (uint64_t got = 0; got < TOTAL;) {
        void *data;
        size_t size, length, at;
        bool found;
        unsigned char wanted = byte_at(got);
        CHECK_EQ(mp_ring_readable(shared->ring, &data, &size), MP_OK);
        if (size == 0) {
            sched_yield();
            continue;
        }
        CHECK_EQ(mp_ring_find(shared->ring, &wanted, 1, 0, &at, &found), MP_OK);
        CHECK(found && at == 0);
        size_t n = roll_below(&luck, size) + 1;
        for (size_t i = 0; i < n; i++) CHECK_EQ(((unsigned char *)data)[i], byte_at(got + i));
        CHECK_EQ(mp_ring_consume(shared->ring, n, &length), MP_OK);
        got += n;
    }
    atomic_store(&shared->done, true);
}

static void look_on(scene *shared) {
    mp_ring_state state;
    while (!atomic_load(&shared->done)) {
        mp_ring_look(shared->ring, &state);
        CHECK_LE(state.length, state.capacity);
        sched_yield();
    }
}

/* Children begin with what was on its way in one piece: bytes that follow each other. */
static void fork_now_and_then(scene *shared) {
    for (unsigned i = 0; shared->forks && i < FORKS; i++) {
        pid_t child = fork_child();
        if (child == 0) {
            void *data;
            size_t size;
            CHECK_EQ(mp_ring_readable(shared->ring, &data, &size), MP_OK);
            CHECK(mp_ring_is_valid(shared->ring));
            _exit(0);
        }
        expect_success(child);
    }
}

static void act(void *context, unsigned number) {
    static void (*const parts[])(scene *) = {produce, consume, look_on, fork_now_and_then};
    parts[number](context);
}

static void run(size_t capacity, bool copying, bool forks, uint64_t seed) {
    mp_ring_config config = {.capacity = capacity, .copying = copying};
    scene shared = {.seed = seed, .forks = forks};
    check_seed = seed;
    CHECK_EQ(mp_ring_create(&config, &shared.ring, NULL), MP_OK);
    crew_run(4, act, &shared);
    CHECK(mp_ring_is_valid(shared.ring));
    mp_ring_destroy(shared.ring);
}

static void one_page_mapped_twice(void) { run(1, false, false, 41); }
static void one_page_and_copies(void) { run(1, true, false, 42); }
static void many_pages_mapped_twice(void) { run(37 * mp_page_size(), false, false, 43); }
static void many_pages_and_copies(void) { run(37 * mp_page_size(), true, false, 44); }

/* The copy that a fork takes races with the producer by design: what was overtaken is left out. For TSan it is a race. */
static void forks_meanwhile(void) {
#if !defined(SANITIZED)
    run(5 * mp_page_size(), false, true, 45);
    run(5 * mp_page_size(), true, true, 46);
#endif
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(one_page_mapped_twice);
    TEST(one_page_and_copies);
    TEST(many_pages_mapped_twice);
    TEST(many_pages_and_copies);
    TEST(forks_meanwhile);
    return check_end();
}
