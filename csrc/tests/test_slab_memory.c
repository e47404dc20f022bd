/* Slabs: trims, limits and accounts, scarce addresses, fork; then random moves against a model and a source that refuses. MP_SEED=n and
 * MP_ROUNDS=n in the environment repeat or prolong those. */
#include "slab_kit.h"

/* ---- trims ---- */

static void a_trim_gives_the_tail_back(void) {
    ledger books;
    ledger_open(&books);
    mp_account *account = open_account(NULL, MP_NO_LIMIT);
    mp_slab_config config = plain_slab(&books, 1000, 4000);
    config.account = account;
    mp_slab *slab = open_slab(&config);
    mp_handle h[4000];
    void *base;
    size_t slots, keep = whole_pages(500 * 1000);
    new_items(slab, 4000, h);
    CHECK_EQ(mp_slab_view(slab, &base, &slots), MP_OK);
    memset(base, 7, 4000 * 1000);
    for (size_t i = 0; i < 4000; i++) {
        if (i >= 500 || i % 3 == 0) end_item(slab, h[i]); /* holes stay */
    }
    end_item(slab, h[499]);
    new_items(slab, 1, h);
    size_t reserved = figures(slab).reserved, resident = ledger_resident(&books), bytes;
    end_item(slab, h[0]);
    keep = whole_pages(499 * 1000);
    bytes = mp_slab_trim(slab);
    CHECK_EQ(bytes, whole_pages(4000 * 1000) - keep);
    CHECK(figures(slab).reserved == reserved - bytes && mp_account_used(account) == reserved - bytes);
    CHECK_LE(ledger_resident(&books), resident - bytes);
    CHECK(is_filled(base, 7, keep) && is_filled((char *)base + keep, 0, 4000 * 1000 - keep));
    CHECK_EQ(mp_slab_trim(slab), 0);
    CHECK_EQ(figures(slab).peak, reserved);
    (void)mp_slab_unview(slab);
    mp_slab_destroy(slab);
    CHECK_EQ(mp_account_used(account), 0);
    mp_account_release(account);
    ledger_close(&books);
}

static void slots_are_used_again_after_a_trim(void) {
    ledger books;
    ledger_open(&books);
    mp_slab_config config = plain_slab(&books, 4096, 300);
    mp_slab *slab = open_slab(&config);
    mp_handle h[300], again[300];
    for (size_t round = 0; round < 5; round++) {
        new_items(slab, 300, h);
        for (size_t i = 0; i < 300; i++) memset(peek_item(slab, h[i]), 3, 4096);
        end_items(slab, h + round, 300 - round);
        CHECK_EQ(mp_slab_trim(slab), (300 - round) * 4096);
        CHECK_EQ(figures(slab).slots, 300);
        new_items(slab, 300 - round, again);
        for (size_t i = 0; i < 300 - round; i++) {
            expect_stale(slab, h[i + round]);
            CHECK(is_filled(peek_item(slab, again[i]), 0, 4096));
        }
        if (round > 0) end_items(slab, h, round);
        end_items(slab, again, 300 - round);
    }
    CHECK_LT(0, mp_slab_trim(slab));
    mp_slab_destroy(slab);
    ledger_close(&books);
}

static void pinned_and_used_up_items_hold_the_tail(void) {
    mp_slab *slab = plain_one(4096, 100);
    mp_handle h[100];
    new_items(slab, 100, h);
    char *item = pin_item(slab, h[80]);
    memset(item, 6, 4096);
    h[40] = poke_last_life(slab, h[40]);
    end_items(slab, h, 100);
    CHECK_EQ(mp_slab_trim(slab), 19 * 4096);
    CHECK(is_filled(item, 6, 4096));
    (void)mp_slab_unpin(slab, item);
    CHECK_EQ(mp_slab_trim(slab), 40 * 4096);
    CHECK_EQ(mp_slab_trim(slab), 0);
    new_items(slab, 99, h);
    CHECK(slot_of(slab, h[98]) == 99 && figures(slab).exhausted == 1);
    mp_slab_destroy(slab);
}

/* Decommit refused: all is as before. Commit refused: the memory went, and comes again when it is needed. */
static void the_source_may_refuse_a_trim(void) {
    for (unsigned call = LEDGER_COMMIT; call <= LEDGER_DECOMMIT; call++) {
        ledger books;
        ledger_open(&books);
        mp_slab_config config = plain_slab(&books, 4096, 300);
        mp_slab *slab = open_slab(&config);
        mp_handle h[300];
        new_items(slab, 300, h);
        end_items(slab, h + 100, 200);
        size_t reserved = figures(slab).reserved;
        uint64_t before = full_state(slab);
        books.may_refuse = 1U << call;
        books.one_in = 1;
        CHECK_EQ(mp_slab_trim(slab), call == LEDGER_COMMIT ? 200 * 4096 : 0);
        if (call == LEDGER_DECOMMIT) CHECK_EQ(full_state(slab), before);
        CHECK_EQ(figures(slab).reserved, call == LEDGER_COMMIT ? reserved - 200 * 4096 : reserved);
        new_items(slab, 200, h);
        for (size_t i = 0; i < 200; i++) memset(peek_item(slab, h[i]), 1, 4096);
        CHECK_EQ(figures(slab).reserved, reserved);
        ledger_relent(&books);
        mp_slab_destroy(slab);
        ledger_close(&books);
    }
}

/* Addresses that the source does not take back hold no items any more. */
static void the_source_may_refuse_an_end(void) {
    ledger books;
    ledger_open(&books);
    mp_account *account = open_account(NULL, MP_NO_LIMIT);
    mp_slab_config config = plain_slab(&books, 4096, 300);
    mp_handle h[300];
    config.account = account;
    mp_slab *slab = open_slab(&config);
    new_items(slab, 300, h);
    memset(mp_slab_base(slab), 1, 300 * 4096);
    CHECK_LE(300 * 4096, ledger_resident(&books));
    books.may_refuse = 1U << LEDGER_UNMAP;
    books.one_in = 1;
    CHECK(mp_slab_close(slab) && ledger_refusals(&books) == 1);
    CHECK_LT(ledger_resident(&books), 10 * 4096);
    CHECK(figures(slab).reserved == 0 && mp_account_used(account) == 0);
    mp_slab_destroy(slab);
    mp_account_release(account);
    ledger_close(&books);
}

/* Items of a byte end in the middle of a page of generations: not all that the items' page has room for is ready. */
static void a_refused_trim_makes_no_more_ready(void) {
    ledger books;
    ledger_open(&books);
    mp_slab_config config = plain_slab(&books, 1, 100000);
    config.limit = 2 * 4096 + 2 * 5 * 4096 + 3 * 4096; /* 5120 generations and pins, but 8192 items */
    mp_slab *slab = open_slab(&config);
    mp_handle *h = room_for(5121), extra = 0;
    new_items(slab, 5120, h);
    CHECK(mp_slab_alloc(slab, &extra, NULL) == MP_ERR_LIMIT && figures(slab).reserved == config.limit);
    end_items(slab, h, 5120);
    books.may_refuse = 1U << LEDGER_DECOMMIT;
    books.one_in = 1;
    CHECK_EQ(mp_slab_trim(slab), 0);
    CHECK_EQ(mp_slab_alloc_many(slab, 5121, h, NULL), MP_ERR_LIMIT);
    new_items(slab, 5120, h);
    ledger_relent(&books);
    mp_slab_destroy(slab);
    ledger_close(&books);
    free(h);
}

/* ---- limits ---- */

/* Filled one by one; then one more item would not have fitted. */
static void fill_to_limit(size_t item_size, size_t limit) {
    mp_account *account = open_account(NULL, MP_NO_LIMIT);
    mp_slab_config config = plain_slab(NULL, item_size, MP_NO_LIMIT);
    mp_handle handle = 0;
    mp_shortage why = {0};
    size_t count = 0;
    config.limit = limit;
    config.account = account;
    mp_slab *slab = open_slab(&config);
    while (mp_slab_alloc(slab, &handle, &why) == MP_OK) CHECK(mp_account_used(account) <= limit && ++count > 0);
    CHECK_EQ(mp_slab_alloc(slab, &handle, &why), MP_ERR_LIMIT);
    mp_slab_stats s = figures(slab);
    CHECK(why.limit == limit && why.in_use == s.reserved && s.live == count && s.reserved == s.peak);
    CHECK(mp_account_used(account) == s.reserved && mp_account_peak(account) == s.reserved);
    size_t need = whole_pages((count + 1) * item_size) + 2 * whole_pages((count + 1) * 4) + slab->n_levels * mp_page_size();
    CHECK_LT(limit, need);
    mp_slab_destroy(slab);
    mp_account_release(account);
}

static void limits_are_exact(void) {
    for (size_t limit = 0; limit < 200 * KIB; limit += mp_page_size() / 2) {
        if (limit < 80 * KIB) fill_to_limit(1, limit);
        fill_to_limit(100, limit);
        fill_to_limit(5000, limit);
    }
}

/* A call for more than there is changes nothing, to the last bit. */
static void expect_none(mp_slab *slab, size_t count, mp_status expected) {
    mp_handle *handles = room_for(100000);
    uint64_t before = full_state(slab);
    CHECK_EQ(mp_slab_alloc_many(slab, count, handles, NULL), expected);
    for (size_t i = 0; i < 100000; i++) CHECK_EQ(handles[i], 0);
    CHECK_EQ(full_state(slab), before);
    free(handles);
}

static void refuse_to_activate(mp_slab *slab, ledger *books) {
    books->may_refuse = 1U << LEDGER_ACTIVATE;
    books->one_in = 1;
    expect_none(slab, 9000, MP_ERR_NOMEM);
    CHECK_LE(1, ledger_refusals(books));
    books->one_in = 0;
    for (uint64_t call = 1; call <= 3; call++) { /* items, generations, pins: what was made usable before stays so */
        books->refuse_at = books->total + call;
        books->from_then_on = true;
        expect_none(slab, 9000 + call * 2000, MP_ERR_NOMEM);
    }
    ledger_relent(books);
}

static void many_are_given_all_or_none(void) {
    ledger books;
    ledger_open(&books);
    mp_account *root = open_account(NULL, 500 * KIB), *leaf = open_account(root, MP_NO_LIMIT);
    mp_slab_config config = plain_slab(&books, 16, 90000);
    mp_handle first[10];
    mp_shortage why = {0};
    config.account = leaf;
    config.limit = 800 * KIB;
    mp_slab *slab = open_slab(&config);
    new_items(slab, 10, first);
    end_item(slab, first[3]);
    expect_none(slab, 40000, MP_ERR_LIMIT);
    expect_none(slab, 30000, MP_ERR_ACCOUNT);
    CHECK_EQ(mp_slab_alloc_many(slab, 30000, first, &why), MP_ERR_ACCOUNT);
    CHECK(why.binding == root && why.in_use == figures(slab).reserved && mp_account_used(root) == why.in_use);
    CHECK(mp_account_peak(root) == why.in_use);
    refuse_to_activate(slab, &books);
    CHECK_EQ(mp_account_peak(root), why.in_use);
    CHECK_EQ(slot_of(slab, new_item(slab)), 3);
    mp_slab_destroy(slab);
    mp_account_release(leaf);
    mp_account_release(root);
    ledger_close(&books);
}

static void huge_counts_fail(void) {
    const size_t counts[] = {SIZE_MAX, SIZE_MAX - 1, SIZE_MAX / 2 + 1, SIZE_MAX / 4 * 3, (size_t)1 << 33, 101};
    for (unsigned limited = 0; limited < 2; limited++) {
        mp_slab_config config = plain_slab(NULL, 8, 100);
        if (limited) config.limit = 100 * KIB;
        mp_slab *slab = open_slab(&config);
        mp_handle first = new_item(slab);
        for (size_t i = limited ? 0 : 4; i < 6; i++) expect_none(slab, counts[i], limited && i < 5 ? MP_ERR_LIMIT : MP_ERR_FULL);
        CHECK_EQ(mp_slab_alloc_many(slab, 0, &first, NULL), MP_OK);
        mp_slab_destroy(slab);
    }
}

/* Without a limit nothing fails for the limit, however much is asked for. */
static void no_limit_is_never_passed(void) {
    const size_t counts[] = {SIZE_MAX, SIZE_MAX - 1, SIZE_MAX / 2 + 1, SIZE_MAX / 8, SIZE_MAX / 16};
    mp_slab *slab = plain_one(8, 100);
    (void)new_item(slab);
    for (size_t i = 0; i < 5; i++) expect_none(slab, counts[i], MP_ERR_FULL);
    mp_slab_destroy(slab);
}

static void what_cannot_be_is_refused(void) {
    const size_t sizes[] = {0, MP_SLAB_MAX_ITEM + 1, SIZE_MAX};
    mp_slab *slab = NULL;
    for (size_t i = 0; i < 4; i++) {
        mp_slab_config config = plain_slab(NULL, i < 3 ? sizes[i] : 8, i < 3 ? 10 : 0);
        CHECK_EQ(mp_slab_create(&config, &slab), MP_ERR_INVALID);
    }
    CHECK(slab == NULL);
    mp_slab_config config = plain_slab(NULL, MIB, MP_NO_LIMIT - 1);
    slab = open_slab(&config);
    CHECK_LT(0, figures(slab).max_items);
    (void)new_item(slab);
    mp_slab_destroy(slab);
}

/* ---- accounts ---- */

static void idle_tails_relieve_an_account(void) {
    mp_account *root = open_account(NULL, MIB);
    mp_slab_config config = plain_slab(NULL, 4096, 1000);
    mp_pool_config pooled = plain(NULL);
    mp_handle h[150], late[200];
    config.account = pooled.account = root;
    mp_slab *one = open_slab(&config), *other = open_slab(&config);
    new_items(one, 150, h);
    CHECK_EQ(mp_slab_alloc_many(other, 150, late, NULL), MP_ERR_ACCOUNT);
    end_items(one, h + 1, 149);
    CHECK_EQ(mp_slab_alloc_many(other, 150, late, NULL), MP_OK); /* the tail of the one went */
    CHECK(figures(one).live == 1 && figures(one).reserved < 10 * 4096);
    end_items(other, late, 150);
    mp_pool *pool = open_pool(&pooled);
    mp_block *block = take(pool, 700 * KIB); /* the tail of a slab went to a pool */
    give(block);
    CHECK_EQ(mp_slab_alloc_many(other, 200, late, NULL), MP_OK); /* and back */
    CHECK(snapshot(pool).idle == 0 && mp_account_used(root) <= MIB);
    mp_pool_destroy(pool);
    mp_slab_destroy(one);
    mp_slab_destroy(other);
    CHECK_EQ(mp_account_used(root), 0);
    mp_account_release(root);
}

/* A slab of another tree, which is asked first, is neither counted nor touched. */
static void strangers_keep_their_tails(void) {
    mp_account *root = open_account(NULL, MIB), *strange = open_account(NULL, MIB);
    mp_slab_config config = plain_slab(NULL, 4096, 1000), foreign = config;
    mp_handle h[200], late[200];
    config.account = root;
    foreign.account = strange;
    mp_slab *one = open_slab(&config), *other = open_slab(&config), *third = open_slab(&foreign);
    new_items(one, 100, h);
    new_items(other, 120, late);
    end_items(one, h + 90, 10);
    new_items(third, 200, h);
    end_items(third, h, 200);
    size_t theirs = figures(third).reserved, ours = figures(one).reserved;
    CHECK_EQ(mp_slab_alloc_many(other, 80, late + 120, NULL), MP_ERR_ACCOUNT);
    CHECK(figures(third).reserved == theirs && figures(one).reserved == ours); /* too little to be of use: nothing goes */
    CHECK_EQ(mp_slab_handles(one, h, 200), 90);
    end_items(one, h, 90);
    CHECK_EQ(mp_slab_alloc_many(other, 80, late + 120, NULL), MP_OK);
    CHECK(figures(third).reserved == theirs && figures(one).reserved < ours && mp_account_used(strange) == theirs);
    mp_slab_destroy(one);
    mp_slab_destroy(other);
    mp_slab_destroy(third);
    mp_account_release(root);
    mp_account_release(strange);
}

/* The only idle memory is the slab's own: giving it back does not help, and the call must end. */
static void ones_own_tail_is_no_help(void) {
    for (size_t limit = 20; limit < 400; limit += 7) {
        mp_account *root = open_account(NULL, limit * 4096);
        mp_slab_config config = plain_slab(NULL, 4096, 1000);
        mp_handle h[1000];
        config.account = root;
        mp_slab *slab = open_slab(&config);
        new_items(slab, limit - 7, h);
        end_items(slab, h + 5, limit - 12);
        CHECK_EQ(mp_slab_alloc_many(slab, limit, h + 5, NULL), MP_ERR_ACCOUNT);
        CHECK_EQ(mp_slab_alloc_many(slab, limit - 12, h + 5, NULL), MP_OK);
        CHECK(figures(slab).reserved == mp_account_used(root) && mp_account_used(root) <= limit * 4096);
        mp_slab_destroy(slab);
        mp_account_release(root);
    }
}

/* The thread that purges a pool meets a slab and takes nothing: an idle tail stays until it is asked for. */
static bool is_purged(void *pool) { return snapshot(pool).idle == 0; }

static void housekeeping_leaves_slabs_alone(void) {
    mp_pool_config config = plain(NULL);
    config.idle_timeout = 0;
    mp_slab *slab = plain_one(4096, 100);
    mp_pool *pool = open_pool(&config);
    mp_handle h[100];
    new_items(slab, 100, h);
    end_items(slab, h, 100);
    size_t reserved = figures(slab).reserved;
    give(take(pool, 100000));
    CHECK(eventually(is_purged, pool) && figures(slab).reserved == reserved);
    mp_pool_destroy(pool);
    CHECK_EQ(mp_slab_trim(slab), 100 * 4096);
    mp_slab_destroy(slab);
}

/* ---- the process ---- */

static void run_in_child(void (*work)(void *), void *context) {
    int status = 0;
    (void)fflush(stdout);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        (void)alarm(60);
        work(context);
        _exit(0);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static size_t addresses_in_use(void) {
    unsigned long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL && fscanf(file, "%llu", &pages) == 1 && fclose(file) == 0);
    return (size_t)pages * mp_page_size();
}

static void fill_what_there_is(void *context) {
    const size_t room = 200 * MIB, used = addresses_in_use();
    mp_handle handle;
    mp_status status;
    (void)context;
    CHECK_EQ(setrlimit(RLIMIT_AS, &(struct rlimit){.rlim_cur = used + room, .rlim_max = used + room}), 0);
    mp_slab *slab = plain_one(64 * KIB, MP_NO_LIMIT);
    CHECK_LT(figures(slab).address_space, (used + room) / 8); /* no more than its share */
    mp_slab_destroy(slab);
    slab = plain_one(64 * KIB, MILLION);
    mp_slab_stats s = figures(slab);
    CHECK(s.address_space > room / 10 && s.address_space < room * 3 / 4); /* the program keeps some for itself */
    while ((status = mp_slab_alloc(slab, &handle, NULL)) == MP_OK) continue;
    CHECK_EQ(status, MP_ERR_FULL);
    CHECK_EQ(figures(slab).live, s.max_items);
    mp_slab_destroy(slab);
}

static void addresses_may_be_scarce(void) {
    if (!SANITIZED) run_in_child(fill_what_there_is, NULL); /* a sanitizer takes more than there would be */
}

typedef struct family {
    mp_slab *slab;
    mp_handle kept;
    char *item;
    atomic_bool over;
} family;

static void keep_on(void *context) {
    family *all = context;
    CHECK(is_filled(all->item, 8, 64) && mp_slab_is_valid(all->slab));
    memset(all->item, 9, 64);
    for (size_t i = 0; i < 5000; i++) (void)new_item(all->slab);
    end_item(all->slab, all->kept);
    mp_slab_destroy(all->slab);
    CHECK(is_filled(all->item, 9, 64));
    (void)mp_slab_unpin(all->slab, all->item);
}

static void *come_and_go(void *context) {
    family *all = context;
    mp_handle handles[40];
    while (!atomic_load(&all->over)) {
        new_items(all->slab, 40, handles);
        end_items(all->slab, handles, 40);
        (void)mp_slab_trim(all->slab);
    }
    return NULL;
}

static void items_live_on_in_both(void) {
    family all = {.slab = plain_one(64, 100000)};
    pthread_t thread;
    all.kept = new_item(all.slab);
    all.item = pin_item(all.slab, all.kept);
    memset(all.item, 8, 64);
    CHECK_EQ(pthread_create(&thread, NULL, come_and_go, &all), 0);
    for (unsigned i = 0; i < 50; i++) run_in_child(keep_on, &all);
    atomic_store(&all.over, true);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK(is_filled(all.item, 8, 64) && mp_slab_has(all.slab, all.kept) && figures(all.slab).live == 1);
    (void)mp_slab_unpin(all.slab, all.item);
    mp_slab_destroy(all.slab);
}

/* ---- random moves ---- */

static uint64_t from_environment(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text != NULL ? strtoull(text, NULL, 0) : otherwise;
}

static uint64_t live_once(uint64_t seed, unsigned rounds, unsigned one_in, uint64_t refuse_at, bool relent) {
    static slab_world w;
    check_seed = seed;
    slab_world_open(&w, (hand){.luck = {.state = seed}});
    w.books.luck.state = seed ^ 1;
    w.books.one_in = one_in;
    w.books.refuse_at = refuse_at;
    for (unsigned i = 0; i < rounds; i++) {
        slab_move(&w);
        if (i % 16 == 0) slab_world_inspect(&w);
    }
    if (relent) ledger_relent(&w.books);
    slab_world_inspect(&w);
    uint64_t calls = w.books.total;
    slab_world_close(&w, seed % 3 == 0);
    return calls;
}

static void nothing_fails(void) {
    for (uint64_t seed = 1; seed <= 20; seed++) (void)live_once(seed, ROUNDS_PER_WORLD, 0, 0, true);
}

static void each_call_fails_once(void) {
    for (uint64_t call = 2; call <= live_once(7, 300, 0, call, false); call++) continue;
}

static void most_calls_fail(void) {
    for (uint64_t seed = 1; seed <= 20; seed++) (void)live_once(seed, 500, 2, 0, seed % 2 == 0);
}

static void one_call_in_twenty_fails(void) {
    uint64_t seed = from_environment("MP_SEED", 1), rounds = from_environment("MP_ROUNDS", ROUNDS);
    for (uint64_t done = 0; done < rounds; done += ROUNDS_PER_WORLD) {
        (void)live_once(seed, ROUNDS_PER_WORLD, 20, 0, seed % 2 == 0);
        seed++;
    }
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(a_trim_gives_the_tail_back);
    TEST(slots_are_used_again_after_a_trim);
    TEST(pinned_and_used_up_items_hold_the_tail);
    TEST(the_source_may_refuse_a_trim);
    TEST(the_source_may_refuse_an_end);
    TEST(limits_are_exact);
    TEST(many_are_given_all_or_none);
    TEST(huge_counts_fail);
    TEST(what_cannot_be_is_refused);
    TEST(idle_tails_relieve_an_account);
    TEST(strangers_keep_their_tails);
    TEST(ones_own_tail_is_no_help);
    TEST(housekeeping_leaves_slabs_alone);
    TEST(addresses_may_be_scarce);
    TEST(items_live_on_in_both);
    TEST(nothing_fails);
    TEST(each_call_fails_once);
    TEST(most_calls_fail);
    TEST(one_call_in_twenty_fails);
    TEST(no_limit_is_never_passed);
    TEST(a_refused_trim_makes_no_more_ready);
    return check_end();
}
