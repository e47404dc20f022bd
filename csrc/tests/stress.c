/* Many threads at once, for some seconds: ./stress [SECONDS]. Meant for the thread sanitizer, and worth running without.
 *
 *   workers   acquire, write, hand on through a queue, check what was written, release here what was acquired there
 *   manager   meanwhile trims, reserves, moves limits, reads statistics that must add up, walks the structures
 *   passers   threads that live for a handful of moves, hundreds of them a second
 *   and the housekeeping thread, with almost no patience
 *
 * No memory may be lent twice, no figure may disagree, and at the end everything must have come back. */
#include "kit.h"

enum { QUEUE = 32, HELD = 8, PASSERS = 100, PASSES = 12, HOMES = 6 };

typedef struct town {
    mp_pool *pool;
    mp_account *account;
    mp_block *_Atomic queue[QUEUE];
    size_t limit; /* the highest that it ever has */
    bool one_class;
    atomic_bool over;
    atomic_ullong moves;
    atomic_uint seeds;
} town;

static uint64_t deadline;

/* ---- marks: whoever has a lease is alone with it ---- */

static void mark(mp_block *block, uint64_t value) {
    memcpy(block->data, &value, sizeof value);
    memcpy((char *)block->data + block->capacity - sizeof value, &value, sizeof value);
}

static void check_mark(const mp_block *block) {
    uint64_t first, last;
    memcpy(&first, block->data, sizeof first);
    memcpy(&last, (const char *)block->data + block->capacity - sizeof last, sizeof last);
    CHECK_EQ(first, last);
}

/* ---- workers ---- */

static mp_block *try_take(town *shared, dice *luck) {
    size_t nbytes = shared->one_class ? 4096 : roll_below(luck, (size_t)1 << (8 + roll_below(luck, 9)));
    mp_block *block = NULL;
    mp_status status = mp_pool_acquire(shared->pool, nbytes, &block, NULL);
    if (status == MP_OK) mark(block, roll(luck));
    else CHECK(status == MP_ERR_LIMIT || status == MP_ERR_ACCOUNT);
    return block;
}

static void end(mp_block *block, dice *luck) {
    check_mark(block);
    if (roll_below(luck, 4) == 0) {
        mp_pool_retire(block, MP_END_HANDED_OVER);
        check_mark(block);
        (void)mp_pool_return(block);
    } else {
        (void)mp_pool_release(block, (mp_end)roll_below(luck, 3));
    }
}

/* One thing that a thread may do with one of its places for a lease. */
static void move(town *shared, mp_block **slot, dice *luck) {
    if (*slot == NULL) {
        *slot = try_take(shared, luck);
        return;
    }
    switch (roll_below(luck, 4)) {
    case 0: *slot = atomic_exchange(&shared->queue[roll_below(luck, QUEUE)], *slot); break;
    case 1: CHECK_EQ(mp_pool_resize(*slot, roll_below(luck, (*slot)->capacity + 1)), MP_OK); break;
    default: end(*slot, luck); *slot = NULL;
    }
}

static void work(town *shared, dice *luck) {
    mp_block *held[HELD] = {0};
    uint64_t moves = 0;
    while (!atomic_load_explicit(&shared->over, memory_order_relaxed)) {
        move(shared, &held[roll_below(luck, HELD)], luck);
        moves++;
    }
    for (size_t i = 0; i < HELD; i++) {
        if (held[i] != NULL) end(held[i], luck);
    }
    atomic_fetch_add(&shared->moves, moves);
}

/* ---- threads that pass by ---- */

static void *pass(void *context) {
    town *shared = context;
    dice luck = {.state = atomic_fetch_add(&shared->seeds, 1)};
    mp_block *mine = NULL;
    for (unsigned i = 0; i < PASSES; i++) move(shared, &mine, &luck);
    if (mine != NULL) mine = atomic_exchange(&shared->queue[roll_below(&luck, QUEUE)], mine); /* leaves it to somebody else */
    if (mine != NULL) end(mine, &luck);
    return NULL;
}

static void let_pass(town *shared) {
    pthread_t threads[PASSERS];
    for (unsigned i = 0; i < PASSERS; i++) CHECK_EQ(pthread_create(&threads[i], NULL, pass, shared), 0);
    for (unsigned i = 0; i < PASSERS; i++) CHECK_EQ(pthread_join(threads[i], NULL), 0);
}

/* ---- the manager ---- */

static void meddle(town *shared, dice *luck) {
    size_t some = shared->limit / 4 + roll_below(luck, shared->limit * 3 / 4), lent;
    switch (roll_below(luck, 7)) {
    case 0: (void)mp_pool_trim(shared->pool, some / 4); break;
    case 1: (void)mp_pool_set_limit(shared->pool, some, &lent); break;
    case 2: (void)mp_pool_reserve(shared->pool, 4096, 4, NULL); break;
    case 3: CHECK(mp_pool_is_valid(shared->pool)); break;
    case 4: mp_pool_set_waiters(shared->pool, roll_below(luck, 8) == 0); break;
    case 5:
        if (mp_account_charge(shared->account, some, NULL) == MP_OK) mp_account_discharge(shared->account, some);
        break;
    default: (void)mp_account_set_limit(shared->account, some); break;
    }
    mp_pool_stats s = snapshot(shared->pool);
    CHECK_LE(s.peak, shared->limit);
}

static void manage(town *shared, dice *luck, bool passers) {
    while (now_ns() < deadline) {
        meddle(shared, luck);
        if (passers) let_pass(shared);
        sched_yield();
    }
    atomic_store(&shared->over, true);
}

static void live(void *context, unsigned number) {
    dice luck = {.state = number + 1};
    if (number == 0) manage(context, &luck, false);
    else work(context, &luck);
}

static void live_with_passers(void *context, unsigned number) {
    dice luck = {.state = number + 1};
    if (number == 0) manage(context, &luck, true);
    else work(context, &luck);
}

/* ---- scenes ---- */

static void open_town(town *shared, bool one_class, size_t limit) {
    *shared = (town){.limit = limit, .one_class = one_class};
    shared->account = open_account(NULL, limit);
    mp_pool_config config = plain(NULL);
    config.account = shared->account;
    config.limit = limit;
    config.idle_timeout = 1000000;
    shared->pool = open_pool(&config);
}

static bool thread_is_gone(void *unused) {
    (void)unused;
    return !mp_housekeeping_runs();
}

static void close_town(town *shared, const char *name) {
    dice luck = {.state = 1};
    for (size_t i = 0; i < QUEUE; i++) {
        mp_block *block = atomic_load(&shared->queue[i]);
        if (block != NULL) end(block, &luck);
    }
    (void)mp_pool_trim(shared->pool, 0);
    mp_pool_stats s = snapshot(shared->pool);
    CHECK(s.live == 0 && s.requested == 0 && s.reserved == 0);
    CHECK_EQ(mp_account_used(shared->account), 0);
    mp_pool_destroy(shared->pool);
    CHECK_EQ(mp_account_used(shared->account), 0);
    mp_account_release(shared->account);
    CHECK(eventually(thread_is_gone, NULL)); /* there is no pool left to look after */
    (void)printf("   %-28s %10llu acquires, %llu misses\n", name, (unsigned long long)s.acquires, (unsigned long long)s.misses);
    (void)fflush(stdout);
}

static void one_class_for_all(void) {
    town shared;
    open_town(&shared, true, 2 * MIB);
    crew_run(7, live, &shared);
    close_town(&shared, "one_class_for_all");
}

static void many_classes(void) {
    town shared;
    open_town(&shared, false, 4 * MIB);
    crew_run(7, live, &shared);
    close_town(&shared, "many_classes");
}

static void threads_come_and_go(void) {
    town shared;
    open_town(&shared, false, 8 * MIB);
    crew_run(4, live_with_passers, &shared);
    close_town(&shared, "threads_come_and_go");
}

/* Pools under one account, opened and closed all the time, that take idle memory from each other. */
typedef struct village {
    mp_account *root;
    ledger books;
    atomic_ullong opened;
} village;

static void keep_house(village *shared, dice *luck) {
    mp_block *held[HOMES];
    size_t count = 0;
    mp_pool_config config = plain(&shared->books);
    config.account = shared->root;
    config.idle_timeout = roll_below(luck, 3) * 1000000;
    if (roll_below(luck, 2)) config.max_idle = 20000;
    mp_pool *pool = open_pool(&config);
    for (unsigned i = 0; i < 100; i++) {
        mp_block *block;
        if (count == HOMES) (void)mp_pool_release(held[--count], MP_END_RELEASED);
        mp_status status = mp_pool_acquire(pool, roll_below(luck, 30000), &block, NULL);
        if (status == MP_OK) held[count++] = block;
        else CHECK_EQ(status, MP_ERR_ACCOUNT);
    }
    mp_pool_destroy(pool);
    while (count > 0) (void)mp_pool_release(held[--count], MP_END_DROPPED);
}

static void inhabit(void *context, unsigned number) {
    village *shared = context;
    dice luck = {.state = number + 1};
    while (now_ns() < deadline) {
        keep_house(shared, &luck);
        CHECK_LE(mp_account_used(shared->root), 500 * KIB);
        atomic_fetch_add(&shared->opened, 1);
    }
}

static void pools_come_and_go(void) {
    village shared = {.root = open_account(NULL, 500 * KIB)};
    ledger_open(&shared.books);
    crew_run(6, inhabit, &shared);
    CHECK_EQ(mp_account_used(shared.root), 0);
    mp_account_release(shared.root);
    ledger_close(&shared.books);
    (void)printf("   %-28s %10llu pools\n", "pools_come_and_go", (unsigned long long)shared.opened);
}

int main(int argc, char **argv) {
    static void (*const scenes[])(void) = {one_class_for_all, many_classes, threads_come_and_go, pools_come_and_go};
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 5.0;
    uint64_t share = (uint64_t)(seconds * 1e9 / 4);
    for (size_t i = 0; i < 4; i++) {
        deadline = now_ns() + share;
        scenes[i]();
    }
    return 0;
}
