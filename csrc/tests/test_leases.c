/* The life of a lease: its states, its ends, what is counted, what stays zero, who is told. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kit.h"

static void a_block_comes_back_warm(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    const size_t sizes[] = {1, 100, 4096, 100000, 3 * MIB};
    for (size_t i = 0; i < 5; i++) {
        CHECK(mp_pool_acquire_idle(pool, sizes[i]) == NULL);
        mp_block *first = take(pool, sizes[i]), *second = take(pool, sizes[i]);
        CHECK(first->data != second->data);
        give(first);
        give(second);
        CHECK(mp_pool_acquire_idle(pool, sizes[i]) == second); /* the last one given back is the warmest */
        CHECK(mp_pool_acquire_idle(pool, sizes[i]) == first);
        give(first);
        give(second);
    }
    mp_pool_destroy(pool);
}

static void each_end_is_counted_apart(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    const unsigned times[] = {3, 5, 7};
    for (unsigned end = 0; end < 3; end++) {
        for (unsigned i = 0; i < times[end]; i++) CHECK(!mp_pool_release(take(pool, 1000), (mp_end)end));
    }
    mp_pool_stats s = snapshot(pool);
    CHECK(s.releases == 3 && s.dropped == 5 && s.handed_over == 7 && s.acquires == 15 && s.live == 0);
    mp_pool_destroy(pool);
}

static void a_retired_block_is_not_lent_again(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    for (unsigned end = 0; end < 3; end++) {
        mp_block *seen = take(pool, 5000);
        size_t size = seen->capacity;
        mp_pool_retire(seen, (mp_end)end);
        mp_pool_stats s = snapshot(pool);
        CHECK(s.live == 0 && s.in_use == 0 && s.requested == 0 && s.retired == size && s.idle == (end > 0 ? size : 0));
        mp_block *other = take(pool, 5000);
        CHECK(other != seen && other->data != seen->data);
        CHECK(!mp_pool_return(seen));
        CHECK(snapshot(pool).retired == 0 && snapshot(pool).idle == size);
        give(other);
        give(take(pool, 5000));
    }
    mp_pool_stats s = snapshot(pool);
    CHECK(s.releases == 7 && s.dropped == 1 && s.handed_over == 1);
    mp_pool_destroy(pool);
}

static void resize_stays_within_the_block(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_block *block = take(pool, 1000), *other = take(pool, 10);
    size_t capacity = block->capacity;
    CHECK_EQ(mp_pool_resize(block, capacity), MP_OK);
    CHECK_EQ(block->requested, capacity);
    CHECK_EQ(snapshot(pool).requested, capacity + 10);
    CHECK_EQ(mp_pool_resize(block, 0), MP_OK);
    CHECK_EQ(snapshot(pool).requested, 10);
    CHECK_EQ(mp_pool_resize(block, 17), MP_OK);
    CHECK_EQ(mp_pool_resize(block, capacity + 1), MP_ERR_INVALID);
    CHECK_EQ(mp_pool_resize(block, SIZE_MAX), MP_ERR_INVALID);
    CHECK(block->requested == 17 && block->capacity == capacity && snapshot(pool).requested == 27);
    give(block);
    give(other);
    CHECK_EQ(snapshot(pool).requested, 0);
    mp_pool_destroy(pool);
}

/* Fresh memory is zero for nothing, used memory is made so, and only as far as asked. */
static void zero_means_zero(void) {
    const size_t sizes[] = {64, 1000, 4096, 70000, 2 * MIB};
    for (size_t i = 0; i < 5; i++) {
        mp_pool_config config = plain(NULL);
        mp_pool *pool = open_pool(&config);
        mp_block *block = take(pool, sizes[i]);
        mp_block_zero(block, sizes[i]);
        CHECK(is_filled(block->data, 0, block->capacity));
        memset(block->data, 9, block->capacity);
        give(block);
        block = take(pool, sizes[i]);
        CHECK(is_filled(block->data, 9, block->capacity));
        mp_block_zero(block, sizes[i] - 3);
        CHECK(is_filled(block->data, 0, sizes[i] - 3));
        CHECK(is_filled((char *)block->data + sizes[i] - 3, 9, 3));
        give(block);
        mp_pool_destroy(pool);
    }
}

/* With zero_on_release nothing of one lease reaches the next, also not beyond what was asked for. */
static void secrets_do_not_survive_a_lease(void) {
    for (unsigned retire = 0; retire < 2; retire++) {
        mp_pool_config config = plain(NULL);
        config.zero_on_release = true;
        mp_pool *pool = open_pool(&config);
        mp_block *block = take(pool, 5000);
        memset(block->data, 9, block->capacity);
        if (retire) {
            mp_pool_retire(block, MP_END_RELEASED);
            CHECK(is_filled(block->data, 9, block->capacity)); /* something still sees it */
            CHECK(!mp_pool_return(block));
        } else {
            give(block);
        }
        CHECK(take(pool, 5000) == block);
        CHECK(is_filled(block->data, 0, block->capacity));
        give(block);
        mp_pool_destroy(pool);
    }
}

static void waiters_are_told(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_block *a = take(pool, 100), *b = take(pool, 100), *c = take(pool, 9000);
    mp_pool_set_waiters(pool, true);
    CHECK(mp_pool_release(a, MP_END_RELEASED));
    mp_pool_retire(b, MP_END_DROPPED);
    CHECK(mp_pool_return(b));
    mp_pool_set_waiters(pool, false);
    CHECK(!mp_pool_release(c, MP_END_RELEASED));
    mp_pool_close(pool);
    mp_pool_set_waiters(pool, true);
    mp_pool_set_waiters(pool, false);
    mp_pool_destroy(pool);
}

static void a_closed_pool_tells_waiters_too(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_block *a = take(pool, 100), *b = take(pool, 100);
    mp_pool_set_waiters(pool, true);
    mp_pool_close(pool);
    CHECK(mp_pool_release(a, MP_END_RELEASED));
    mp_pool_destroy(pool);
    CHECK(mp_pool_release(b, MP_END_RELEASED));
}

/* ---- one thread takes, another gives back ---- */

typedef struct handover {
    mp_pool *pool;
    mp_block *_Atomic slot;
    unsigned rounds;
} handover;

static void take_or_give(void *context, unsigned number) {
    handover *shared = context;
    for (unsigned i = 0; i < shared->rounds; i++) {
        mp_block *block;
        if (number == 0) {
            while (atomic_load(&shared->slot) != NULL) sched_yield();
            atomic_store(&shared->slot, take(shared->pool, 4096));
        } else {
            while ((block = atomic_exchange(&shared->slot, NULL)) == NULL) sched_yield();
            give(block);
        }
    }
}

static void threads_may_hand_blocks_on(void) {
    mp_pool_config config = plain(NULL);
    handover shared = {.pool = open_pool(&config), .rounds = 20000};
    crew_run(2, take_or_give, &shared);
    mp_pool_stats s = snapshot(shared.pool);
    CHECK(s.acquires == 20000 && s.live == 0 && s.reserved <= 4 * 4096);
    mp_pool_destroy(shared.pool);
}

/* "Ready to lend again when release returns": with a limit of one block, whoever is told of the release must get it. */
static void take_in_turn(void *context, unsigned number) {
    handover *shared = context;
    static atomic_uint turn;
    for (unsigned i = 0; i < shared->rounds; i++) {
        while (atomic_load(&turn) % 4 != number) sched_yield();
        mp_block *block = take(shared->pool, number % 2 ? 4096 : 8192);
        give(block);
        atomic_fetch_add(&turn, 1);
    }
}

static void memory_is_ready_when_release_returns(void) {
    mp_pool_config config = plain(NULL);
    config.limit = 8192;
    handover shared = {.pool = open_pool(&config), .rounds = 500};
    crew_run(4, take_in_turn, &shared);
    CHECK_EQ(snapshot(shared.pool).acquires, 2000);
    mp_pool_destroy(shared.pool);
}

/* ---- misuse ends the program before it corrupts anything ---- */

static void release_twice(mp_block *block) {
    give(block);
    (void)mp_pool_release(block, MP_END_RELEASED);
}

static void return_what_is_live(mp_block *block) { (void)mp_pool_return(block); }

static void retire_twice(mp_block *block) {
    mp_pool_retire(block, MP_END_RELEASED);
    mp_pool_retire(block, MP_END_RELEASED);
}

static void release_what_is_retired(mp_block *block) {
    mp_pool_retire(block, MP_END_RELEASED);
    (void)mp_pool_release(block, MP_END_RELEASED);
}

static void misuse_aborts(void) {
    void (*const wrong[])(mp_block *) = {release_twice, return_what_is_live, retire_twice, release_what_is_retired};
    for (size_t i = 0; i < 4; i++) {
        int status = 0;
        pid_t child = fork();
        if (child == 0) {
            mp_pool_config config = plain(NULL);
            CHECK(freopen("/dev/null", "w", stderr) != NULL);
            (void)signal(SIGABRT, SIG_DFL);
            wrong[i](take(open_pool(&config), 100));
            _exit(0);
        }
        CHECK_EQ(waitpid(child, &status, 0), child);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    }
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(a_block_comes_back_warm);
    TEST(each_end_is_counted_apart);
    TEST(a_retired_block_is_not_lent_again);
    TEST(resize_stays_within_the_block);
    TEST(zero_means_zero);
    TEST(secrets_do_not_survive_a_lease);
    TEST(waiters_are_told);
    TEST(a_closed_pool_tells_waiters_too);
    TEST(threads_may_hand_blocks_on);
    TEST(memory_is_ready_when_release_returns);
    TEST(misuse_aborts);
    return check_end();
}
