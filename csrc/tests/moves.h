/* moves.h: everything that can be done in a world (world.h), and what each may answer.
 *
 * A move that was refused nothing has exactly one right answer, but for what lies in pages that are shared: those idle bytes may or may
 * not be able to leave. A move that the source refused something may fail; what it must not do is leave anything half done. */
#ifndef MP_TESTS_MOVES_H
#define MP_TESTS_MOVES_H

#include "world.h"

/* ---- choices ---- */

static inline model *pick_pool(world *w) {
    size_t tries = w->n_models;
    for (size_t i = pick(&w->hand, WORLD_MODELS); tries-- > 0; i++) {
        if (w->models[i % w->n_models].pool != NULL) return &w->models[i % w->n_models];
    }
    return NULL;
}

static inline lease *pick_lease(world *w, bool retired) {
    size_t tries = w->n_leases;
    for (size_t i = pick(&w->hand, WORLD_LEASES); tries-- > 0; i++) {
        if (w->leases[i % w->n_leases].retired == retired) return &w->leases[i % w->n_leases];
    }
    return NULL;
}

static inline size_t pick_size(world *w) {
    switch (pick(&w->hand, 16)) {
    case 0: return SIZE_MAX - pick(&w->hand, 3);
    case 1: return world_most + 1 + pick(&w->hand, 3);
    case 2: return pick(&w->hand, 5 * MIB);
    case 3: return pick(&w->hand, 512 * KIB);
    case 4:
    case 5:
    case 6:
    case 7: return pick(&w->hand, 70 * KIB);
    default: return pick(&w->hand, 4200);
    }
}

static inline size_t pick_limit(world *w) {
    switch (pick(&w->hand, 4)) {
    case 0: return MP_NO_LIMIT;
    case 1: return pick(&w->hand, 100 * KIB);
    default: return pick(&w->hand, 8 * MIB);
    }
}

/* ---- pools come and go ---- */

static inline void enter_pool(world *w, mp_pool *pool, mp_account *leaf, size_t branch, const mp_pool_config *config) {
    model *m = &w->models[w->n_models++];
    *m = (model){.pool = pool, .leaf = leaf, .branch = branch, .config = *config, .limit = config->limit};
}

static inline void move_open_pool(world *w) {
    const size_t alignments[] = {1, 64, 64, 256, 4096, 2 * MIB};
    size_t branch = pick(&w->hand, WORLD_BRANCHES), open = 0;
    mp_account *leaf;
    mp_pool *pool = NULL;
    for (size_t i = 0; i < w->n_models; i++) open += w->models[i].pool != NULL;
    if (open == WORLD_POOLS || w->n_models == WORLD_MODELS) return;
    mp_pool_config config = plain(&w->books);
    config.limit = pick_limit(w);
    if (chance(&w->hand, 3)) config.max_idle = pick(&w->hand, 300 * KIB);
    if (chance(&w->hand, 6)) config.idle_timeout = 0;
    config.alignment = alignments[pick(&w->hand, 6)];
    config.huge = (mp_huge)pick(&w->hand, 3);
    config.zero_on_release = chance(&w->hand, 4);
    mp_status status = mp_account_create(w->branches[branch], MP_NO_LIMIT, &w->books.source, &leaf);
    if (status == MP_OK) {
        config.account = leaf;
        status = mp_pool_create(&config, &pool);
        if (status == MP_OK) enter_pool(w, pool, leaf, branch, &config);
        else mp_account_release(leaf);
    }
    if (status != MP_OK) CHECK(status == MP_ERR_NOMEM && was_refused(w));
}

static inline void move_close_pool(world *w) {
    model *m = pick_pool(w);
    if (m == NULL || !chance(&w->hand, 4)) return;
    mp_pool_close(m->pool);
    m->closed = true;
    if (!was_refused(w)) CHECK_EQ(snapshot(m->pool).idle, idle_of(m, 0));
}

static inline void move_destroy_pool(world *w) {
    model *m = pick_pool(w);
    if (m == NULL || !chance(&w->hand, 4)) return;
    mp_pool_destroy(m->pool);
    m->pool = NULL;
    m->closed = true;
}

/* ---- a lease begins ---- */

static inline void check_shortage(const world *w, const model *m, size_t size, mp_status status, const mp_shortage *why) {
    if (status == MP_ERR_LIMIT) {
        CHECK_EQ(why->in_use, m->in_use + m->retired);
        CHECK_EQ(why->limit, m->limit);
        CHECK_EQ(why->hopeless, size > m->limit);
        if (!was_refused(w)) CHECK_LT(m->limit, size + m->in_use + m->retired + idle_of(m, 0));
    } else if (status == MP_ERR_ACCOUNT) {
        CHECK(why->binding != NULL);
        CHECK_LT(mp_account_limit(why->binding), mp_account_used(why->binding) + size);
    } else {
        CHECK_EQ(status, MP_ERR_NOMEM);
        CHECK(size == 0 || was_refused(w));
    }
}

static inline void check_refusal(const world *w, const model *m, size_t nbytes, mp_status status, const mp_shortage *why) {
    size_t size = mp_pool_block_size(m->pool, nbytes);
    if (status == MP_ERR_CLOSED) {
        CHECK(m->closed);
    } else {
        CHECK(!m->closed || size == 0);
        check_shortage(w, m, size, status, why);
        if (size > 0 && !was_refused(w)) CHECK_EQ(idle_of(m, size), 0); /* it would have served */
    }
    check_unchanged(w, status != MP_ERR_ACCOUNT);
}

static inline void check_lease(const model *m, const lease *new, bool zero) {
    size_t own = mp_pool_block_size(m->pool, new->nbytes);
    CHECK(!m->closed);
    CHECK(own > 0 && own <= new->capacity);
    CHECK(new->capacity == own || new->capacity <= new->nbytes + new->nbytes / 8);
    CHECK_EQ((uintptr_t)new->block->data % m->config.alignment, 0);
    if (new->nbytes >= 4 * KIB) CHECK_EQ((uintptr_t)new->block->data % mp_page_size(), 0);
    if (new->nbytes >= 2 * MIB) CHECK_EQ((uintptr_t)new->block->data % mp_huge_page_size(), 0);
    if (zero) CHECK(is_zero(new));
    if (m->config.zero_on_release) CHECK(is_filled(new->block->data, 0, 64));
}

static inline void move_acquire(world *w) {
    model *m = pick_pool(w);
    size_t nbytes = pick_size(w);
    bool zero = chance(&w->hand, 3);
    mp_block *block = NULL;
    mp_shortage why;
    memset(&why, 0xff, sizeof why);
    if (m == NULL || w->n_leases == WORLD_LEASES) return;
    mp_status status = mp_pool_acquire(m->pool, nbytes, &block, &why);
    if (status != MP_OK) {
        CHECK(block == NULL);
        check_refusal(w, m, nbytes, status, &why);
        return;
    }
    CHECK_EQ(block->requested, nbytes);
    lease *new = enter_lease(w, m, block);
    if (zero) mp_block_zero(block, nbytes);
    check_lease(m, new, zero);
    put_mark(new);
}

static inline void move_resize(world *w) {
    lease *at = pick_lease(w, false);
    if (at == NULL) return;
    size_t nbytes = pick(&w->hand, at->capacity + 2);
    mp_status status = mp_pool_resize(at->block, nbytes);
    CHECK_EQ(status, nbytes <= at->capacity ? MP_OK : MP_ERR_INVALID);
    if (status != MP_OK) nbytes = at->nbytes;
    at->of->requested += nbytes - at->nbytes;
    at->nbytes = nbytes;
    CHECK_EQ(at->block->requested, nbytes);
}

/* ---- a lease ends ---- */

static inline void move_release(world *w) {
    lease *old = pick_lease(w, false);
    mp_end end = (mp_end)pick(&w->hand, 3);
    if (old == NULL) return;
    CHECK(has_mark(old));
    CHECK_EQ(mp_pool_release(old->block, end), old->of->waiters);
    end_live(old, end);
    forget_lease(w, old);
}

static inline void move_retire(world *w) {
    lease *old = pick_lease(w, false);
    mp_end end = (mp_end)pick(&w->hand, 3);
    if (old == NULL) return;
    mp_pool_retire(old->block, end);
    end_live(old, end);
    old->retired = true;
    old->of->retired += old->capacity;
}

static inline void move_return(world *w) {
    lease *old = pick_lease(w, true);
    if (old == NULL) return;
    CHECK(has_mark(old));
    CHECK_EQ(mp_pool_return(old->block), old->of->waiters);
    old->of->retired -= old->capacity;
    forget_lease(w, old);
}

/* ---- requests of the owner ---- */

static inline void move_reserve(world *w) {
    model *m = pick_pool(w);
    size_t nbytes = pick_size(w), count = chance(&w->hand, 16) ? SIZE_MAX / 64 : pick(&w->hand, 20);
    mp_shortage why;
    if (m == NULL || (nbytes > MIB && nbytes <= 5 * MIB)) return;
    mp_status status = mp_pool_reserve(m->pool, nbytes, count, &why);
    size_t size = mp_pool_block_size(m->pool, nbytes);
    if (status == MP_OK) {
        CHECK(!m->closed);
        CHECK_LE(count, idle_of(m, size) / size);
        return;
    }
    if (status == MP_ERR_CLOSED) CHECK(m->closed);
    else if (status == MP_ERR_NOMEM) CHECK(size == 0 || count > world_most / size || was_refused(w));
    else if (status == MP_ERR_LIMIT)
        CHECK(was_refused(w) || count > world_most / size || m->in_use + m->retired + idle_of(m, 0) + count * size > m->limit);
    else CHECK(status == MP_ERR_ACCOUNT && why.binding != NULL);
    if (status != MP_ERR_NOMEM || size == 0) check_unchanged(w, status != MP_ERR_ACCOUNT);
}

static inline void move_trim(world *w) {
    model *m = pick_pool(w);
    size_t target = chance(&w->hand, 2) ? 0 : pick(&w->hand, MIB);
    if (m == NULL) return;
    size_t before = snapshot(m->pool).idle, freed = mp_pool_trim(m->pool, target), after = snapshot(m->pool).idle;
    CHECK_EQ(before - after, freed);
    if (!was_refused(w)) CHECK(after <= target || after == idle_of(m, 0));
}

static inline void move_set_limit(world *w) {
    model *m = pick_pool(w);
    size_t limit = pick_limit(w), lent = 0;
    if (m == NULL) return;
    mp_status status = mp_pool_set_limit(m->pool, limit, &lent);
    if (status == MP_OK) {
        m->limit = limit;
        return;
    }
    CHECK_EQ(status, MP_ERR_INVALID);
    CHECK_LE(m->in_use + m->retired, lent);
    CHECK(limit < lent || was_refused(w));
    check_unchanged(w, true);
}

static inline void move_waiters(world *w) {
    model *m = pick_pool(w);
    if (m == NULL) return;
    m->waiters = !m->waiters;
    mp_pool_set_waiters(m->pool, m->waiters);
}

/* ---- accounts ---- */

static inline void move_account_limit(world *w) {
    mp_account *branch = w->branches[pick(&w->hand, WORLD_BRANCHES)];
    size_t limit = pick_limit(w), before = mp_account_limit(branch);
    mp_status status = mp_account_set_limit(branch, limit);
    CHECK_EQ(mp_account_limit(branch), status == MP_OK ? limit : before);
    if (status != MP_OK) CHECK(status == MP_ERR_INVALID && mp_account_used(branch) > limit);
}

static inline void move_charge(world *w) {
    size_t b = pick(&w->hand, WORLD_BRANCHES), amount = pick(&w->hand, 100 * KIB);
    mp_account *binding = NULL;
    if (chance(&w->hand, 2)) {
        mp_account_discharge(w->branches[b], w->by_hand[b]);
        w->by_hand[b] = 0;
    } else if (mp_account_charge(w->branches[b], amount, &binding) == MP_OK) {
        w->by_hand[b] += amount;
    } else {
        CHECK(binding == w->branches[b]);
        CHECK_LT(mp_account_limit(binding), mp_account_used(binding) + amount);
    }
}

/* ---- one move ---- */

static inline void make_move(world *w) {
    static void (*const moves[])(world *) = {
        move_acquire, move_acquire,   move_acquire,    move_acquire,      move_release,       move_release,   move_release,
        move_retire,  move_return,    move_resize,     move_reserve,      move_trim,          move_set_limit, move_waiters,
        move_charge,  move_open_pool, move_close_pool, move_destroy_pool, move_account_limit,
    };
    w->refusals = ledger_refusals(&w->books);
    for (size_t i = 0; i < w->n_models; i++) {
        if (w->models[i].pool != NULL) w->before[i] = snapshot(w->models[i].pool);
    }
    moves[pick(&w->hand, sizeof moves / sizeof moves[0])](w);
    world_check(w);
}

#endif
