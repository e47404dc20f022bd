/* world.h: several pools under a tree of accounts, and a plain model of what they must be after each move.
 *
 *            root                     a hand of choices (random numbers, or a fuzzer's bytes)
 *           /    \                                 |
 *       branch  branch                   moves.h: acquire, retire, trim, ... and what each may answer
 *        /  \      |                               |
 *     leaf  leaf  leaf                   world_check: figures, accounts, marks, structures
 *       |    |     |
 *     pool  pool  pool --- ledger, which refuses now and then
 *
 * The model knows nothing of chunks, shards or classes: it keeps a list of leases and counts. Each lease is filled with a mark of its
 * own, which must still be there when it ends, so memory that is lent twice is found. */
#ifndef MP_TESTS_WORLD_H
#define MP_TESTS_WORLD_H

#include "kit.h"

enum { WORLD_POOLS = 4, WORLD_MODELS = 48, WORLD_LEASES = 64, WORLD_ROWS = 600, WORLD_BRANCHES = 2 };

static const size_t world_most = (size_t)1 << 47; /* larger sizes cannot be addressed */

/* ---- choices ---- */

typedef struct hand {
    dice luck;
    const uint8_t *bytes; /* NULL: from `luck` */
    size_t left;
} hand;

static inline size_t pick_byte(hand *from) {
    if (from->left == 0) return 0;
    from->left--;
    return *from->bytes++;
}

/* 0 <= result < n <= 2^32 */
static inline size_t pick(hand *from, size_t n) {
    if (from->bytes == NULL) return roll_below(&from->luck, n);
    size_t value = 0;
    for (size_t most = n - 1; most > 0; most >>= 8) value = value << 8 | pick_byte(from);
    return value % n;
}

static inline bool chance(hand *from, size_t one_in) { return pick(from, one_in) == 0; }

/* ---- the model ---- */

typedef struct model {
    mp_pool *pool; /* NULL once it was destroyed; leases may live on */
    mp_account *leaf;
    size_t branch;
    mp_pool_config config;
    size_t limit, in_use, requested, retired;
    uint64_t acquires, live, ended[3];
    size_t leases; /* live and retired */
    bool closed, waiters;
} model;

typedef struct lease {
    mp_block *block;
    model *of;
    size_t nbytes, capacity;
    uint64_t mark;
    bool retired;
} lease;

typedef struct world {
    ledger books;
    hand hand;
    mp_account *root, *branches[WORLD_BRANCHES];
    size_t by_hand[WORLD_BRANCHES]; /* charged by nobody's pool */
    model models[WORLD_MODELS];
    size_t n_models;
    lease leases[WORLD_LEASES];
    size_t n_leases;
    uint64_t marks;
    uint64_t refusals; /* before the move */
    mp_pool_stats before[WORLD_MODELS];
} world;

/* What the move was refused by the source: then it may fail where it need not. */
static inline bool was_refused(const world *w) { return ledger_refusals(&w->books) > w->refusals; }

/* ---- marks ---- */

/* Every line of small blocks, one in 64 KiB of large ones, and the last line of all. */
static inline size_t mark_step(size_t capacity) { return capacity <= 64 * KIB ? 64 : 64 * KIB; }

static inline void put_mark(const lease *of) {
    char *data = of->block->data;
    for (size_t at = 0; at < of->capacity; at += mark_step(of->capacity)) memcpy(data + at, &of->mark, sizeof of->mark);
    memcpy(data + of->capacity - 64, &of->mark, sizeof of->mark);
}

static inline bool has_mark(const lease *of) {
    const char *data = of->block->data;
    for (size_t at = 0; at < of->capacity; at += mark_step(of->capacity)) {
        if (memcmp(data + at, &of->mark, sizeof of->mark) != 0) return false;
    }
    return memcmp(data + of->capacity - 64, &of->mark, sizeof of->mark) == 0;
}

static inline bool is_zero(const lease *of) {
    const char *data = of->block->data;
    size_t step = mark_step(of->capacity);
    for (size_t at = 0; at < of->nbytes; at += step) {
        if (!is_filled(data + at, 0, of->nbytes - at < 64 ? of->nbytes - at : 64)) return false;
    }
    return true;
}

/* ---- what must hold after each move ---- */

static inline void check_model(const model *m) {
    mp_pool_stats s = snapshot(m->pool);
    CHECK_EQ(s.in_use, m->in_use);
    CHECK_EQ(s.requested, m->requested);
    CHECK_EQ(s.retired, m->retired);
    CHECK_EQ(s.limit, m->limit);
    CHECK_EQ(s.acquires, m->acquires);
    CHECK_EQ(s.live, m->live);
    CHECK(s.releases == m->ended[0] && s.dropped == m->ended[1] && s.handed_over == m->ended[2]);
    CHECK_EQ(mp_account_used(m->leaf), s.reserved);
}

/* A pool that is gone holds what is lent, and what shares a page with that; at the end nothing. */
static inline void check_orphan(const model *m) {
    size_t used = mp_account_used(m->leaf);
    CHECK_LE(m->in_use + m->retired, used);
    if (m->leases == 0) CHECK_EQ(used, 0);
}

static inline void check_accounts(const world *w) {
    size_t sums[WORLD_BRANCHES], all = 0;
    for (size_t b = 0; b < WORLD_BRANCHES; b++) sums[b] = w->by_hand[b];
    for (size_t i = 0; i < w->n_models; i++) sums[w->models[i].branch] += mp_account_used(w->models[i].leaf);
    for (size_t b = 0; b < WORLD_BRANCHES; b++) {
        CHECK_EQ(mp_account_used(w->branches[b]), sums[b]);
        CHECK_LE(sums[b], mp_account_limit(w->branches[b]));
        CHECK_LE(sums[b], mp_account_peak(w->branches[b]));
        all += sums[b];
    }
    CHECK_EQ(mp_account_used(w->root), all);
}

static inline void world_check(const world *w) {
    for (size_t i = 0; i < w->n_models; i++) {
        if (w->models[i].pool != NULL) check_model(&w->models[i]);
        else check_orphan(&w->models[i]);
    }
    check_accounts(w);
}

/* The same, deeper and slower. */
static inline void world_inspect(const world *w) {
    for (size_t i = 0; i < w->n_models; i++) {
        if (w->models[i].pool != NULL) CHECK(mp_pool_is_valid(w->models[i].pool));
    }
    for (size_t i = 0; i < w->n_leases; i++) CHECK(has_mark(&w->leases[i]));
}

/* A call that failed leaves all as it was; idle memory may have been given up for it. `exact`: not even that. */
static inline void check_unchanged(const world *w, bool exact) {
    for (size_t i = 0; i < w->n_models; i++) {
        const model *m = &w->models[i];
        if (m->pool == NULL || was_refused(w)) continue;
        size_t idle = snapshot(m->pool).idle;
        CHECK_LE(idle, w->before[i].idle);
        if (exact) CHECK_EQ(idle, w->before[i].idle);
    }
}

/* Idle bytes of the class, or (`size` 0) of all blocks that are smaller than a page: they leave a chunk at a time only. */
static inline size_t idle_of(const model *m, size_t size) {
    mp_class_stats rows[WORLD_ROWS];
    mp_pool_stats s;
    size_t count = mp_pool_stats_read(m->pool, &s, rows, WORLD_ROWS), bytes = 0;
    CHECK_LE(count, WORLD_ROWS);
    for (size_t i = 0; i < count; i++) {
        bool counts = size == 0 ? rows[i].size < mp_page_size() : rows[i].size == size;
        if (counts) bytes += (size_t)rows[i].idle * rows[i].size;
    }
    return bytes;
}

/* ---- leases of the model ---- */

static inline lease *enter_lease(world *w, model *m, mp_block *block) {
    lease *new = &w->leases[w->n_leases++];
    *new = (lease){.block = block, .of = m, .nbytes = block->requested, .capacity = block->capacity, .mark = ++w->marks};
    new->mark *= UINT64_C(0x9E3779B97F4A7C15);
    m->in_use += new->capacity;
    m->requested += new->nbytes;
    m->live++;
    m->acquires++;
    m->leases++;
    return new;
}

static inline void end_live(lease *old, mp_end end) {
    model *m = old->of;
    m->in_use -= old->capacity;
    m->requested -= old->nbytes;
    m->live--;
    m->ended[end]++;
}

static inline void forget_lease(world *w, lease *old) {
    old->of->leases--;
    *old = w->leases[--w->n_leases];
}

/* ---- the beginning and the end of a world ---- */

static inline void world_open(world *w, hand from) {
    memset(w, 0, sizeof *w);
    w->hand = from;
    ledger_open(&w->books);
    CHECK_EQ(mp_account_create(NULL, MP_NO_LIMIT, &w->books.source, &w->root), MP_OK);
    for (size_t b = 0; b < WORLD_BRANCHES; b++) {
        CHECK_EQ(mp_account_create(w->root, MP_NO_LIMIT, &w->books.source, &w->branches[b]), MP_OK);
    }
}

static inline void end_every_lease(world *w) {
    while (w->n_leases > 0) {
        lease *old = &w->leases[pick(&w->hand, w->n_leases)];
        CHECK(has_mark(old));
        if (old->retired) {
            (void)mp_pool_return(old->block);
            old->of->retired -= old->capacity;
        } else {
            (void)mp_pool_release(old->block, MP_END_RELEASED);
            end_live(old, MP_END_RELEASED);
        }
        forget_lease(w, old);
        world_check(w);
    }
}

static inline void destroy_pools(world *w) {
    for (size_t i = 0; i < w->n_models; i++) {
        if (w->models[i].pool != NULL) mp_pool_destroy(w->models[i].pool);
        w->models[i].pool = NULL;
    }
}

/* Everything ends, in either order, and everything must have come back. */
static inline void world_close(world *w, bool pools_first) {
    if (pools_first) destroy_pools(w);
    end_every_lease(w);
    destroy_pools(w);
    for (size_t b = 0; b < WORLD_BRANCHES; b++) mp_account_discharge(w->branches[b], w->by_hand[b]);
    CHECK_EQ(mp_account_used(w->root), 0);
    for (size_t i = 0; i < w->n_models; i++) mp_account_release(w->models[i].leaf);
    for (size_t b = 0; b < WORLD_BRANCHES; b++) mp_account_release(w->branches[b]);
    mp_account_release(w->root);
    ledger_close(&w->books);
}

#endif
