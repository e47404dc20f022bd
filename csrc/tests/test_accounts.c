/* Accounts: a charge counts everywhere or nowhere, a limit is never passed, idle memory goes before a limit is felt. */
#include "kit.h"

static void a_charge_counts_for_every_ancestor(void) {
    mp_account *root = open_account(NULL, MP_NO_LIMIT), *io = open_account(root, 64), *leaf = open_account(io, 40);
    mp_account *cache = open_account(root, MP_NO_LIMIT);
    CHECK_EQ(mp_account_charge(leaf, 30, NULL), MP_OK);
    CHECK_EQ(mp_account_charge(cache, 5, NULL), MP_OK);
    CHECK(mp_account_used(leaf) == 30 && mp_account_used(io) == 30 && mp_account_used(root) == 35 && mp_account_used(cache) == 5);
    mp_account_discharge(leaf, 10);
    CHECK(mp_account_used(leaf) == 20 && mp_account_used(io) == 20 && mp_account_used(root) == 25);
    CHECK(mp_account_peak(leaf) == 30 && mp_account_peak(root) == 35 && mp_account_limit(io) == 64);
    mp_account_discharge(leaf, 20);
    mp_account_discharge(cache, 5);
    CHECK_EQ(mp_account_used(root), 0);
    mp_account *all[] = {leaf, cache, io, root};
    for (size_t i = 0; i < 4; i++) mp_account_release(all[i]);
}

static void all_or_none(void) {
    mp_account *tree[3] = {open_account(NULL, 100)};
    for (size_t i = 1; i < 3; i++) tree[i] = open_account(tree[i - 1], MP_NO_LIMIT);
    for (size_t tight = 0; tight < 3; tight++) {
        mp_account *binding = NULL;
        for (size_t i = 0; i < 3; i++) CHECK_EQ(mp_account_set_limit(tree[i], i == tight ? 100 : MP_NO_LIMIT), MP_OK);
        CHECK_EQ(mp_account_charge(tree[2], 100, &binding), MP_OK);
        CHECK_EQ(mp_account_charge(tree[2], 1, &binding), MP_ERR_ACCOUNT);
        CHECK(binding == tree[tight]);
        binding = NULL;
        CHECK_EQ(mp_account_charge(tree[2], SIZE_MAX, &binding), MP_ERR_ACCOUNT);
        CHECK(binding != NULL);
        for (size_t i = 0; i < 3; i++) CHECK(mp_account_used(tree[i]) == 100 && mp_account_peak(tree[i]) == 100);
        CHECK_EQ(mp_account_charge(tree[2], 0, NULL), MP_OK);
        mp_account_discharge(tree[2], 100);
    }
    for (size_t i = 0; i < 3; i++) CHECK_EQ(mp_account_used(tree[i]), 0);
    for (size_t i = 3; i-- > 0;) mp_account_release(tree[i]);
}

static void nothing_overflows(void) {
    mp_account *root = open_account(NULL, MP_NO_LIMIT), *leaf = open_account(root, MP_NO_LIMIT), *binding = NULL;
    CHECK_EQ(mp_account_charge(leaf, SIZE_MAX - 10, NULL), MP_OK);
    CHECK_EQ(mp_account_charge(leaf, 11, &binding), MP_ERR_ACCOUNT);
    CHECK(binding == leaf);
    CHECK_EQ(mp_account_charge(leaf, 10, NULL), MP_OK);
    mp_account_discharge(leaf, SIZE_MAX);
    CHECK(mp_account_used(root) == 0 && mp_account_peak(root) == SIZE_MAX);
    mp_account_release(leaf);
    mp_account_release(root);
}

static void set_limit_below_what_is_used_changes_nothing(void) {
    mp_account *account = open_account(NULL, 100);
    CHECK_EQ(mp_account_charge(account, 60, NULL), MP_OK);
    CHECK_EQ(mp_account_set_limit(account, 59), MP_ERR_INVALID);
    CHECK_EQ(mp_account_limit(account), 100);
    CHECK_EQ(mp_account_charge(account, 40, NULL), MP_OK);
    mp_account_discharge(account, 40);
    CHECK_EQ(mp_account_set_limit(account, 60), MP_OK);
    CHECK_EQ(mp_account_charge(account, 1, NULL), MP_ERR_ACCOUNT);
    CHECK_EQ(mp_account_set_limit(account, MP_NO_LIMIT), MP_OK);
    CHECK_EQ(mp_account_charge(account, 1, NULL), MP_OK);
    mp_account_discharge(account, 61);
    mp_account_release(account);
}

static void accounts_live_as_long_as_they_are_needed(void) {
    ledger books;
    ledger_open(&books);
    mp_account *root, *leaf;
    CHECK_EQ(mp_account_create(NULL, MP_NO_LIMIT, &books.source, &root), MP_OK);
    CHECK_EQ(mp_account_create(root, MP_NO_LIMIT, &books.source, &leaf), MP_OK);
    mp_pool_config config = plain(&books);
    config.account = leaf;
    mp_pool *pool = open_pool(&config);
    mp_account_release(root);
    mp_account_release(leaf);
    mp_block *block = take(pool, 5000);
    CHECK(mp_account_used(leaf) == 8192 && mp_account_used(root) == 8192);
    mp_pool_destroy(pool);
    CHECK_EQ(mp_account_used(root), 8192); /* lent memory is still somebody's */
    give(block);
    ledger_close(&books);
}

static void an_account_that_cannot_be_made_is_an_error(void) {
    ledger books;
    ledger_open(&books);
    mp_account *account = NULL;
    books.refuse_at = 1;
    CHECK_EQ(mp_account_create(NULL, 1, &books.source, &account), MP_ERR_NOMEM);
    CHECK(account == NULL);
    ledger_close(&books);
}

/* ---- pools charge what they take ---- */

static mp_pool *pool_under(mp_account *account) {
    mp_pool_config config = plain(NULL);
    config.account = account;
    return open_pool(&config);
}

static void a_pool_charges_what_it_reserves(void) {
    mp_account *root = open_account(NULL, MP_NO_LIMIT), *leaf = open_account(root, MP_NO_LIMIT);
    mp_pool *pool = pool_under(leaf);
    mp_block *small = take(pool, 64), *large = take(pool, 3 * MIB);
    CHECK_EQ(mp_account_used(leaf), snapshot(pool).reserved);
    give(large);
    CHECK_EQ(mp_account_used(root), snapshot(pool).reserved);
    CHECK_EQ(mp_pool_trim(pool, 0), 3 * MIB);
    CHECK_EQ(mp_account_used(root), snapshot(pool).reserved);
    CHECK_EQ(mp_pool_reserve(pool, 5000, 7, NULL), MP_OK);
    CHECK_EQ(mp_account_used(root), snapshot(pool).reserved);
    give(small);
    mp_pool_close(pool);
    CHECK(mp_account_used(root) == 0 && mp_account_peak(leaf) > 3 * MIB);
    mp_pool_destroy(pool);
    mp_account_release(leaf);
    mp_account_release(root);
}

static void the_binding_account_is_named(void) {
    mp_account *root = open_account(NULL, 100 * KIB), *leaf = open_account(root, MP_NO_LIMIT);
    mp_pool *pool = pool_under(leaf);
    mp_block *block = take(pool, 50 * KIB), *none = NULL;
    mp_shortage shortage;
    mp_pool_stats before = snapshot(pool);
    CHECK_EQ(mp_pool_acquire(pool, 60 * KIB, &none, &shortage), MP_ERR_ACCOUNT);
    CHECK(shortage.binding == root && none == NULL);
    CHECK_EQ(mp_pool_acquire(pool, 600 * KIB, &none, &shortage), MP_ERR_ACCOUNT);
    CHECK_EQ(mp_pool_reserve(pool, 10 * KIB, 6, &shortage), MP_ERR_ACCOUNT);
    CHECK(shortage.binding == root);
    mp_pool_stats after = snapshot(pool);
    before.peak = after.peak; /* a reserve that fails on its way had taken something */
    CHECK_EQ(memcmp(&before, &after, sizeof before), 0);
    CHECK_EQ(mp_account_used(root), after.reserved);
    give(block);
    mp_pool_destroy(pool);
    mp_account_release(leaf);
    mp_account_release(root);
}

/* A page of small blocks is taken at once where there is room, one alone where there is not. */
static void the_last_byte_can_be_had(void) {
    mp_account *account = open_account(NULL, 4096 + 3 * 64);
    mp_pool *pool = pool_under(account);
    mp_block *held[4];
    mp_block *page = take(pool, 4096), *none;
    for (size_t i = 0; i < 3; i++) held[i] = take(pool, 64);
    CHECK_EQ(mp_pool_acquire(pool, 64, &none, NULL), MP_ERR_ACCOUNT);
    CHECK_EQ(mp_account_used(account), 4096 + 3 * 64);
    for (size_t i = 0; i < 3; i++) give(held[i]);
    give(page);
    mp_pool_destroy(pool);
    mp_account_release(account);
}

static void idle_memory_of_all_pools_goes_first(void) {
    mp_account *root = open_account(NULL, MP_NO_LIMIT), *io = open_account(root, 4 * MIB), *other = open_account(root, MP_NO_LIMIT);
    mp_account *leaves[3] = {open_account(io, MP_NO_LIMIT), open_account(io, MP_NO_LIMIT), other};
    mp_pool *pools[3];
    for (size_t i = 0; i < 3; i++) {
        pools[i] = pool_under(leaves[i]);
        give(take(pools[i], 2 * MIB));
    }
    mp_block *block = take(pools[0], 3 * MIB);
    CHECK_EQ(snapshot(pools[1]).idle, 0);
    CHECK_EQ(snapshot(pools[2]).idle, 2 * MIB); /* it is not under `io` */
    CHECK_EQ(mp_account_used(io), 3 * MIB);
    give(block);
    CHECK_EQ(mp_account_charge(io, 4 * MIB, NULL), MP_OK); /* also for a charge by hand */
    CHECK_EQ(snapshot(pools[0]).idle, 0);
    mp_account_discharge(io, 4 * MIB);
    give(take(pools[1], 3 * MIB));
    CHECK_EQ(mp_account_set_limit(io, 3 * MIB - 1), MP_OK); /* and for a limit that falls */
    CHECK_EQ(mp_account_used(io), 0);
    for (size_t i = 0; i < 3; i++) mp_pool_destroy(pools[i]);
    mp_account_release(leaves[0]);
    mp_account_release(leaves[1]);
    mp_account_release(other);
    mp_account_release(io);
    mp_account_release(root);
}

/* What can never fit under an account costs nobody the idle memory. */
static void what_can_never_fit_gives_nothing_up(void) {
    mp_account *account = open_account(NULL, 4 * MIB);
    mp_pool *pool = pool_under(account);
    mp_block *none;
    give(take(pool, MIB));
    CHECK_EQ(mp_pool_acquire(pool, 5 * MIB, &none, NULL), MP_ERR_ACCOUNT);
    CHECK_EQ(mp_account_charge(account, 5 * MIB, NULL), MP_ERR_ACCOUNT);
    CHECK_EQ(snapshot(pool).idle, MIB);
    mp_pool_destroy(pool);
    mp_account_release(account);
}

/* Nor does what does not fit at this moment: idle memory goes only where that is enough. */
static void what_does_not_fit_gives_nothing_up(void) {
    mp_account *account = open_account(NULL, 10 * MIB);
    mp_pool *pool = pool_under(account), *other = pool_under(account);
    mp_block *live = take(pool, 5 * MIB), *none;
    give(take(pool, MIB));
    give(take(other, MIB));
    CHECK_EQ(mp_account_charge(account, 6 * MIB, NULL), MP_ERR_ACCOUNT);
    CHECK_EQ(mp_pool_acquire(pool, 6 * MIB, &none, NULL), MP_ERR_ACCOUNT);
    CHECK_EQ(mp_account_set_limit(account, 4 * MIB), MP_ERR_INVALID);
    CHECK(snapshot(pool).idle == MIB && snapshot(other).idle == MIB);
    CHECK_EQ(mp_account_charge(account, 5 * MIB, NULL), MP_OK);
    mp_account_discharge(account, 5 * MIB);
    give(live);
    mp_pool_destroy(pool);
    mp_pool_destroy(other);
    mp_account_release(account);
}

/* ---- threads ---- */

enum { LIMIT = 1000, CHARGES = 20000 };

typedef struct contest {
    mp_account *root, *leaves[8];
    size_t limit, close;
} contest;

static void charge_and_look(void *context, unsigned number) {
    contest *shared = context;
    mp_account *mine = shared->leaves[number];
    dice luck = {.state = number};
    for (unsigned i = 0; i < CHARGES; i++) {
        size_t amount = roll_below(&luck, LIMIT / 2);
        bool charged = mp_account_charge(mine, amount, NULL) == MP_OK;
        CHECK_LE(mp_account_used(shared->root), LIMIT);
        CHECK_LE(mp_account_used(mine), LIMIT / 2);
        if (charged) mp_account_discharge(mine, amount);
    }
}

static void used_is_never_above_the_limit(void) {
    contest shared = {.root = open_account(NULL, LIMIT)};
    for (size_t i = 0; i < 8; i++) shared.leaves[i] = open_account(shared.root, LIMIT / 2);
    crew_run(8, charge_and_look, &shared);
    CHECK_EQ(mp_account_used(shared.root), 0);
    CHECK_LE(mp_account_peak(shared.root), LIMIT);
    for (size_t i = 0; i < 8; i++) mp_account_release(shared.leaves[i]);
    mp_account_release(shared.root);
}

/* A limit falls while others charge what it still allowed a moment ago: who comes second must see the other. */
static void charge_until_full(void *context, unsigned number) {
    contest *shared = context;
    if (number == 0) {
        while (mp_account_used(shared->root) < LIMIT / 4) sched_yield();
        size_t limit = mp_account_used(shared->root) + shared->close;
        if (limit < LIMIT && mp_account_set_limit(shared->root, limit) == MP_OK) shared->limit = limit;
        return;
    }
    while (mp_account_charge(shared->root, 1, NULL) == MP_OK) continue;
}

static void limits_may_fall_while_charges_come(void) {
    for (unsigned round = 0; round < 2000; round++) {
        contest shared = {.root = open_account(NULL, LIMIT), .limit = LIMIT, .close = round % 32};
        crew_run(3, charge_until_full, &shared);
        CHECK_EQ(mp_account_limit(shared.root), shared.limit);
        CHECK_EQ(mp_account_used(shared.root), shared.limit);
        mp_account_discharge(shared.root, shared.limit);
        mp_account_release(shared.root);
    }
}

/* Limits that cannot be set are taken back; several at once must not restore each other's. */
static void ask_too_little(void *context, unsigned number) {
    contest *shared = context;
    for (unsigned i = 0; i < CHARGES; i++) CHECK_EQ(mp_account_set_limit(shared->root, 100 + number), MP_ERR_INVALID);
}

static void limits_that_fail_leave_no_trace(void) {
    contest shared = {.root = open_account(NULL, LIMIT)};
    CHECK_EQ(mp_account_charge(shared.root, LIMIT / 2, NULL), MP_OK);
    crew_run(4, ask_too_little, &shared);
    CHECK_EQ(mp_account_limit(shared.root), LIMIT);
    mp_account_discharge(shared.root, LIMIT / 2);
    mp_account_release(shared.root);
}

/* Pools under one account that take idle memory from each other all the time. */
static void take_from_each_other(void *context, unsigned number) {
    contest *shared = context;
    mp_pool *pool = pool_under(shared->leaves[number]);
    dice luck = {.state = number};
    for (unsigned i = 0; i < 2000; i++) {
        mp_block *block;
        if (mp_pool_acquire(pool, 4096 * (1 + roll_below(&luck, 40)), &block, NULL) == MP_OK) give(block);
        CHECK_LE(mp_account_used(shared->root), 400 * KIB);
    }
    mp_pool_destroy(pool);
}

static void pools_share_an_account(void) {
    contest shared = {.root = open_account(NULL, 400 * KIB)};
    for (size_t i = 0; i < 4; i++) shared.leaves[i] = open_account(shared.root, MP_NO_LIMIT);
    crew_run(4, take_from_each_other, &shared);
    CHECK_EQ(mp_account_used(shared.root), 0);
    for (size_t i = 0; i < 4; i++) mp_account_release(shared.leaves[i]);
    mp_account_release(shared.root);
}

static void what_is_ready_is_charged_at_once(void) {
    mp_account *top = open_account(NULL, 100), *low = open_account(top, MP_NO_LIMIT);
    CHECK(mp_account_charge_ready(low, 60));
    CHECK(!mp_account_charge_ready(low, 41));
    CHECK_EQ(mp_account_used(low), 60);
    CHECK_EQ(mp_account_used(top), 60);
    CHECK(mp_account_charge_ready(low, 40));
    CHECK_EQ(mp_account_peak(top), 100);
    CHECK(mp_account_is_under(low, top));
    CHECK(mp_account_is_under(top, top));
    CHECK(!mp_account_is_under(top, low));
    mp_account_discharge(low, 100);
    mp_account_release(low);
    mp_account_release(top);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(a_charge_counts_for_every_ancestor);
    TEST(all_or_none);
    TEST(what_is_ready_is_charged_at_once);
    TEST(nothing_overflows);
    TEST(set_limit_below_what_is_used_changes_nothing);
    TEST(accounts_live_as_long_as_they_are_needed);
    TEST(an_account_that_cannot_be_made_is_an_error);
    TEST(a_pool_charges_what_it_reserves);
    TEST(the_binding_account_is_named);
    TEST(the_last_byte_can_be_had);
    TEST(idle_memory_of_all_pools_goes_first);
    TEST(what_can_never_fit_gives_nothing_up);
    TEST(what_does_not_fit_gives_nothing_up);
    TEST(used_is_never_above_the_limit);
    TEST(limits_may_fall_while_charges_come);
    TEST(limits_that_fail_leave_no_trace);
    TEST(pools_share_an_account);
    return check_end();
}
