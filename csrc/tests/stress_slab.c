/* Many threads on slabs, for some seconds: ./stress_slab [SECONDS]. Meant for the thread sanitizer, and worth running without.
 *
 *   workers   alloc and free, one and many; pin what they have, free it while it is pinned; every item bears the mark of its owner
 *   manager   meanwhile trims, reads figures that must add up, views the whole, walks the structures, moves the account's limit
 *   closer    ends the slab while all of that goes on; pins and views outlive it
 *
 * Nothing may be given out twice, no figure may disagree, and at the end everything must have come back. */
#include "slab_model.h"

enum { WORKERS = 5, HELD = 64, MANY = 16 };

typedef struct mill {
    mp_slab *slab;
    mp_account *account;
    size_t item_size;
    bool closes, trims;
    atomic_bool over;
    atomic_ullong moves;
} mill;

static uint64_t deadline;

/* ---- marks ---- */

static void put_name(const mill *all, char *item, mp_handle handle) {
    memcpy(item, &handle, sizeof handle);
    memcpy(item + all->item_size - sizeof handle, &handle, sizeof handle);
}

static void check_name(const mill *all, const char *item, mp_handle handle) {
    CHECK(memcmp(item, &handle, sizeof handle) == 0);
    CHECK(memcmp(item + all->item_size - sizeof handle, &handle, sizeof handle) == 0);
}

/* Who has the handle is alone with the item: NULL once the slab is closed. */
static char *try_pin(const mill *all, mp_handle handle) {
    void *item = NULL;
    mp_status status = mp_slab_pin(all->slab, handle, &item);
    CHECK(status == MP_OK || (status == MP_ERR_CLOSED && all->closes));
    return item;
}

static void mark_new(const mill *all, mp_handle handle) {
    char *item = try_pin(all, handle);
    if (item == NULL) return;
    put_name(all, item, handle);
    (void)mp_slab_unpin(all->slab, item);
}

/* ---- workers ---- */

static void check_short(const mill *all, mp_status status) {
    CHECK(status == MP_ERR_FULL || status == MP_ERR_ACCOUNT || (status == MP_ERR_CLOSED && all->closes));
}

static void take_one(const mill *all, mp_handle *place) {
    mp_status status = mp_slab_alloc(all->slab, place, NULL);
    if (status == MP_OK) mark_new(all, *place);
    else check_short(all, status);
}

/* Ends while it is looked at: the bytes stay to the last unpin, and nobody can find it. */
static void end_one(const mill *all, mp_handle *place, bool pinned) {
    char *item = try_pin(all, *place);
    mp_handle handle = *place;
    *place = 0;
    if (item == NULL) return;
    check_name(all, item, handle);
    if (!pinned) (void)mp_slab_unpin(all->slab, item);
    mp_status status = mp_slab_free(all->slab, handle);
    CHECK(status == MP_OK || (status == MP_ERR_CLOSED && all->closes));
    if (pinned) check_name(all, item, handle);
    CHECK(!mp_slab_has(all->slab, handle));
    if (pinned) (void)mp_slab_unpin(all->slab, item);
}

static void take_many(const mill *all, mp_handle *places) {
    mp_handle handles[MANY];
    mp_status status = mp_slab_alloc_many(all->slab, MANY, handles, NULL);
    if (status != MP_OK) {
        check_short(all, status);
        return;
    }
    for (size_t i = 0; i < MANY; i++) mark_new(all, places[i] = handles[i]);
}

static void end_many(const mill *all, mp_handle *places, dice *luck) {
    mp_handle handles[MANY + 1];
    size_t n = 0, bad = SIZE_MAX;
    for (size_t i = 0; i < MANY; i++) {
        if (places[i] != 0) handles[n++] = places[i];
    }
    bool twice = n > 0 && roll_below(luck, 3) == 0;
    if (twice) handles[n] = handles[n / 2];
    mp_status status = mp_slab_free_many(all->slab, handles, n + twice, &bad);
    if (status == MP_ERR_CLOSED) CHECK(all->closes);
    else CHECK(twice ? status == MP_ERR_STALE && bad == n : status == MP_OK);
    if (status == MP_OK) memset(places, 0, MANY * sizeof *places);
}

static bool are_empty(const mp_handle *places) {
    for (size_t i = 0; i < MANY; i++) {
        if (places[i] != 0) return false;
    }
    return true;
}

static void move(const mill *all, mp_handle *held, dice *luck) {
    mp_handle *one = &held[roll_below(luck, HELD)], *many = &held[roll_below(luck, HELD / MANY) * MANY];
    if (roll_below(luck, 8) == 0) {
        if (are_empty(many)) take_many(all, many);
        else end_many(all, many, luck);
    } else if (*one == 0) {
        take_one(all, one);
    } else {
        end_one(all, one, roll_below(luck, 3) == 0);
    }
}

static void work(mill *all, dice *luck) {
    mp_handle held[HELD] = {0};
    uint64_t moves = 0;
    for (; !atomic_load_explicit(&all->over, memory_order_relaxed); moves++) move(all, held, luck);
    for (size_t i = 0; i < HELD; i++) {
        if (held[i] != 0) end_one(all, &held[i], i % 2 == 0);
    }
    atomic_fetch_add(&all->moves, moves);
}

/* ---- the manager, and the end ---- */

static void look_around(const mill *all) {
    static mp_handle handles[WORKERS * HELD];
    mp_slab_stats s;
    void *base;
    size_t slots;
    mp_slab_stats_read(all->slab, &s);
    CHECK(s.allocs - s.frees == s.live && s.live <= WORKERS * HELD && s.retired <= WORKERS);
    CHECK(s.reserved <= s.peak && s.slots <= s.max_items && s.exhausted == 0);
    CHECK_LE(mp_slab_handles(all->slab, handles, WORKERS * HELD), WORKERS * HELD);
    if (mp_slab_view(all->slab, &base, &slots) != MP_OK) return;
    CHECK_LE(s.slots, slots);
    (void)mp_slab_unview(all->slab);
}

static void manage(mill *all, dice *luck) {
    while (all->trims && now_ns() < deadline) (void)mp_slab_trim(all->slab); /* who allocates there meanwhile must win */
    while (now_ns() < deadline) {
        switch (roll_below(luck, 4)) {
        case 0: (void)mp_slab_trim(all->slab); break;
        case 1: CHECK(mp_slab_is_valid(all->slab)); break;
        case 2: (void)mp_account_set_limit(all->account, roll_below(luck, 600 * KIB)); break;
        default: look_around(all);
        }
        sched_yield();
    }
    if (all->closes) (void)mp_slab_close(all->slab);
    for (unsigned i = 0; i < 100 && all->closes; i++) look_around(all);
    atomic_store(&all->over, true);
}

static void live(void *context, unsigned number) {
    mill *all = context;
    dice luck = {.state = number + 1};
    if (number == 0) manage(all, &luck);
    else work(all, &luck);
}

static uint64_t run(size_t item_size, double seconds, bool closes, bool trims) {
    ledger books;
    ledger_open(&books);
    mill all = {.item_size = item_size, .closes = closes, .trims = trims, .account = open_account(NULL, MP_NO_LIMIT)};
    mp_slab_config config = {.item_size = item_size, .max_items = 300, .limit = MP_NO_LIMIT, .seed = 77, .account = all.account};
    config.source = &books.source;
    all.slab = open_slab(&config);
    deadline = now_ns() + (uint64_t)(seconds * 1e9);
    crew_run(WORKERS + 1, live, &all);
    CHECK(mp_slab_is_valid(all.slab));
    if (!closes) CHECK_EQ(mp_slab_length(all.slab), 0);
    mp_slab_destroy(all.slab);
    CHECK_EQ(mp_account_used(all.account), 0);
    mp_account_release(all.account);
    ledger_close(&books);
    return all.moves;
}

static void tell(const char *name, uint64_t moves) {
    (void)printf("   %-28s %10" PRIu64 " moves\n", name, moves);
    (void)fflush(stdout);
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 4.0;
    uint64_t moves = 0;
    tell("small items", run(8, seconds / 4, false, false));
    tell("items of a page and more", run(5000, seconds / 4, false, false));
    tell("trimmed all the time", run(5000, seconds / 4, false, true));
    for (unsigned i = 0; i < 40; i++) moves += run(i % 2 ? 8 : 5000, seconds / 160, true, i % 3 == 0);
    tell("closed meanwhile, 40 times", moves);
    return 0;
}
