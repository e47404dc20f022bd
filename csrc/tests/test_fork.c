/* fork: the child works, starts with no waiters and no threads, shares nothing; and the parent goes on. */
#include <dirent.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kit.h"

#define MS UINT64_C(1000000)
#define HOUR (UINT64_C(3600000) * MS)

/* A child that hangs is a failure, not a wait. */
static pid_t fork_child(void) {
    (void)fflush(stdout);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) (void)alarm(120);
    return child;
}

static void expect_success(pid_t child) {
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Threads as the kernel counts them, which is how Python counts. 1 where nobody can tell. */
static unsigned count_threads(void) {
    unsigned threads = 1;
#if defined(__linux__)
    DIR *tasks = opendir("/proc/self/task");
    CHECK(tasks != NULL);
    threads = 0;
    for (const struct dirent *entry; (entry = readdir(tasks)) != NULL;) threads += entry->d_name[0] != '.';
    CHECK_EQ(closedir(tasks), 0);
#endif
    return threads;
}

static bool all_is_lent(void *pool) { return snapshot(pool).idle == 0; }

static void use_every_size(mp_pool *pool) {
    const size_t sizes[] = {64, 3000, 4096, 100000, 3 * MIB};
    for (size_t i = 0; i < 5; i++) {
        mp_block *block = take(pool, sizes[i]);
        memset(block->data, 3, sizes[i]);
        (void)mp_pool_release(block, MP_END_RELEASED);
    }
    (void)snapshot(pool);
    CHECK(mp_pool_is_valid(pool));
}

static void leases_live_on_in_both(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_block *block = take(pool, 100000), *seen = take(pool, 64);
    memset(block->data, 1, 100000);
    mp_pool_retire(seen, MP_END_RELEASED);
    unsigned generation = mp_fork_generation();
    pid_t child = fork_child();
    if (child == 0) {
        CHECK_EQ(mp_fork_generation(), generation + 1);
        CHECK(is_filled(block->data, 1, 100000));
        memset(block->data, 2, 100000);
        use_every_size(pool);
        give(block);
        CHECK(!mp_pool_return(seen));
        mp_pool_destroy(pool);
        _exit(0);
    }
    expect_success(child);
    CHECK_EQ(mp_fork_generation(), generation);
    CHECK(is_filled(block->data, 1, 100000)); /* what the child wrote is its own */
    use_every_size(pool);
    give(block);
    CHECK(!mp_pool_return(seen));
    mp_pool_destroy(pool);
}

static void the_child_has_no_waiters(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_block *block = take(pool, 5000);
    mp_pool_set_waiters(pool, true);
    pid_t child = fork_child();
    if (child == 0) {
        CHECK(!mp_pool_release(block, MP_END_RELEASED));
        _exit(0);
    }
    expect_success(child);
    CHECK(mp_pool_release(block, MP_END_RELEASED));
    mp_pool_set_waiters(pool, false);
    mp_pool_destroy(pool);
}

static void idle_memory_goes_first(void) {
    ledger books;
    ledger_open(&books);
    mp_account *account = open_account(NULL, MP_NO_LIMIT);
    mp_pool_config config = plain(&books);
    config.account = account;
    mp_pool *pool = open_pool(&config);
    mp_block *block = take(pool, 5000);
    give(take(pool, 3 * MIB));
    give(take(pool, 100000));
    pid_t child = fork_child();
    CHECK(snapshot(pool).idle == 0 && mp_account_used(account) == block->capacity);
    CHECK_LE(ledger_resident(&books), block->capacity);
    if (child == 0) _exit(0);
    expect_success(child);
    give(block);
    mp_pool_destroy(pool);
    mp_account_release(account);
    ledger_close(&books);
}

static void no_thread_is_there_afterwards(void) {
    mp_pool_config config = plain(NULL), patient = plain(NULL);
    config.idle_timeout = 20 * MS;
    patient.idle_timeout = HOUR; /* else a thread that is looked for may have ended already */
    for (unsigned round = 0; round < 20; round++) {
        mp_pool *pool = open_pool(&config), *lasting = open_pool(&patient);
        give(take(lasting, 100000));
        CHECK(mp_housekeeping_runs());
        pid_t child = fork_child();
        CHECK_EQ(count_threads(), 1);
        CHECK(!mp_housekeeping_runs());
        give(take(pool, 100000)); /* what becomes idle now is purged again, here and there */
        CHECK(eventually(all_is_lent, pool));
        give(take(lasting, 100000));
        CHECK(mp_housekeeping_runs());
        mp_pool_destroy(pool);
        mp_pool_destroy(lasting);
        if (child == 0) _exit(0);
        expect_success(child);
    }
}

static void generations_count(unsigned depth, mp_pool *pool, unsigned first) {
    if (depth == 0) return;
    pid_t child = fork_child();
    if (child == 0) {
        CHECK_EQ(mp_fork_generation(), first + 1);
        use_every_size(pool);
        generations_count(depth - 1, pool, first + 1);
        _exit(0);
    }
    expect_success(child);
}

static void grandchildren_work_too(void) {
    mp_pool_config config = plain(NULL);
    config.idle_timeout = MS;
    mp_pool *pool = open_pool(&config);
    use_every_size(pool);
    generations_count(4, pool, mp_fork_generation());
    mp_pool_destroy(pool);
}

static void orphans_end_in_the_child(void) {
    mp_pool_config config = plain(NULL);
    mp_pool *pool = open_pool(&config);
    mp_block *a = take(pool, 100), *b = take(pool, 9000);
    mp_pool_destroy(pool);
    pid_t child = fork_child();
    give(a);
    give(b);
    if (child == 0) _exit(0);
    expect_success(child);
}

/* ---- while other threads are in the middle of everything ---- */

enum { POOLS = 3 };

typedef struct bustle {
    mp_pool *pools[POOLS];
    unsigned forks;
    atomic_bool over;
} bustle;

static void bustle_about(bustle *shared, dice *luck) {
    mp_block *held[4] = {0};
    while (!atomic_load(&shared->over)) {
        mp_block **slot = &held[roll_below(luck, 4)];
        if (*slot != NULL) (void)mp_pool_release(*slot, MP_END_RELEASED);
        *slot = take(shared->pools[roll_below(luck, POOLS)], roll_below(luck, 20000));
        if (roll_below(luck, 64) == 0) (void)mp_pool_trim(shared->pools[0], 10000);
        if (roll_below(luck, 64) == 0) (void)snapshot(shared->pools[1]);
    }
    for (size_t i = 0; i < 4; i++) {
        if (held[i] != NULL) (void)mp_pool_release(held[i], MP_END_RELEASED);
    }
}

static void fork_again_and_again(bustle *shared) {
    for (unsigned i = 0; i < shared->forks; i++) {
        pid_t child = fork_child();
        if (child == 0) {
            CHECK_EQ(count_threads(), 1);
            for (size_t p = 0; p < POOLS; p++) use_every_size(shared->pools[p]);
            for (size_t p = 0; p < POOLS; p++) mp_pool_close(shared->pools[p]);
            _exit(0);
        }
        expect_success(child);
    }
    atomic_store(&shared->over, true);
}

static void bustle_or_fork(void *context, unsigned number) {
    dice luck = {.state = number};
    if (number == 0) fork_again_and_again(context);
    else bustle_about(context, &luck);
}

static void open_bustle(bustle *shared, uint64_t idle_timeout) {
    mp_pool_config config = plain(NULL);
    config.idle_timeout = idle_timeout;
    for (size_t i = 0; i < POOLS; i++) {
        config.max_idle = i == 2 ? 50000 : MP_NO_LIMIT;
        shared->pools[i] = open_pool(&config);
    }
}

static void fork_among_busy_threads(void) {
    bustle shared = {.forks = 60};
    open_bustle(&shared, MS);
    crew_run(5, bustle_or_fork, &shared);
    for (size_t i = 0; i < POOLS; i++) use_every_size(shared.pools[i]);
    for (size_t i = 0; i < POOLS; i++) mp_pool_destroy(shared.pools[i]);
}

static void fork_and_bustle(void *context, unsigned number) {
    bustle shared = *(bustle *)context;
    (void)number;
    fork_again_and_again(&shared);
}

static void several_threads_may_fork_at_once(void) {
    bustle shared = {.forks = 40};
    open_bustle(&shared, MS);
    for (size_t i = 0; i < POOLS; i++) give(take(shared.pools[i], 5000));
    crew_run(4, fork_and_bustle, &shared);
    CHECK_EQ(mp_fork_generation(), 0);
    for (size_t i = 0; i < POOLS; i++) use_every_size(shared.pools[i]);
    for (size_t i = 0; i < POOLS; i++) mp_pool_destroy(shared.pools[i]);
}

/* Memory that becomes idle in the very moment of a fork is purged like any other, with no call made. */
typedef struct moment {
    mp_block *held[3];
    uint64_t delays[3];
} moment;

static void release_once_or_fork(void *context, unsigned number) {
    moment *shared = context;
    if (number == 0) {
        pid_t child = fork_child();
        if (child == 0) _exit(0);
        expect_success(child);
        return;
    }
    uint64_t start = now_ns();
    while (now_ns() - start < shared->delays[number - 1]) sched_yield();
    (void)mp_pool_release(shared->held[number - 1], MP_END_RELEASED);
}

static void nothing_stays_idle_for_ever(void) {
    mp_pool_config config = plain(NULL);
    config.idle_timeout = 2 * MS;
    mp_pool *pool = open_pool(&config);
    dice luck = {.state = check_seed = 6};
    for (unsigned round = 0; round < 300; round++) {
        moment shared;
        for (size_t i = 0; i < 3; i++) {
            shared.held[i] = take(pool, 5000 + 4096 * i);
            shared.delays[i] = roll_below(&luck, 400000);
        }
        give(take(pool, 100000)); /* the thread runs, and releases take the short way */
        crew_run(4, release_once_or_fork, &shared);
        CHECK(eventually(all_is_lent, pool));
    }
    mp_pool_destroy(pool);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(leases_live_on_in_both);
    TEST(the_child_has_no_waiters);
    TEST(idle_memory_goes_first);
    TEST(no_thread_is_there_afterwards);
    TEST(grandchildren_work_too);
    TEST(orphans_end_in_the_child);
    TEST(fork_among_busy_threads);
    TEST(several_threads_may_fork_at_once);
    TEST(nothing_stays_idle_for_ever);
    return check_end();
}
