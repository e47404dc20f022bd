/* slab_model.h: slabs under a tree of accounts, a plain model of what they must be, and random moves that keep both in step.
 *
 *            root (its limit moves)           a hand of choices (random numbers, or a fuzzer's bytes)
 *           /    |    \                              |
 *        leaf  leaf  leaf                     slab_move: alloc, free, pin, trim, close, ... and what each may answer
 *          |     |     |                             |
 *        slab  slab  slab --- ledger          slab_world_check: figures, accounts, marks, structures
 *
 * The model is an array of slots, each free, live, retired or exhausted, and searched from the front. Each item bears a mark of its
 * own at both ends, so that an item that is given out twice, moved or cleared is found. A move that was refused nothing has exactly
 * one right answer. What is read from the slab itself are only the bytes that each part holds, to tell which answer that is. */
#ifndef MP_TESTS_SLAB_MODEL_H
#define MP_TESTS_SLAB_MODEL_H

#include "slots.h"
#include "world.h"

enum { SLAB_MODELS = 4, SLAB_SLOTS = 700, SLAB_DEAD = 32, SLAB_MANY = 128 };

typedef enum slot_state { SLOT_FREE = 0, SLOT_LIVE, SLOT_RETIRED, SLOT_EXHAUSTED } slot_state;

typedef struct slot_model {
    slot_state state;
    unsigned pins;
    mp_handle handle;
    uint64_t mark; /* 0: nobody ever wrote there */
} slot_model;

typedef struct slab_model {
    mp_slab *slab; /* NULL: this place is free */
    mp_account *leaf;
    char *base;
    mp_slab_config config;
    bool closed, destroyed;
    size_t live, retired, exhausted, slots, pins, views;
    uint64_t allocs, frees;
    mp_handle dead[SLAB_DEAD];
    size_t n_dead;
    slot_model all[SLAB_SLOTS];
} slab_model;

typedef struct slab_world {
    ledger books;
    hand hand;
    mp_account *root;
    slab_model models[SLAB_MODELS];
    uint64_t marks, refusals;
    size_t before[SLAB_MODELS]; /* reserved */
} slab_world;

static inline bool slab_was_refused(const slab_world *w) { return ledger_refusals(&w->books) > w->refusals; }

/* ---- shortcuts for what must succeed ---- */

static inline mp_slab *open_slab(const mp_slab_config *config) {
    mp_slab *slab = NULL;
    CHECK_EQ(mp_slab_create(config, &slab), MP_OK);
    return slab;
}

static inline mp_handle new_item(mp_slab *slab) {
    mp_handle handle = 0;
    CHECK_EQ(mp_slab_alloc(slab, &handle, NULL), MP_OK);
    CHECK(handle > 0);
    return handle;
}

static inline void end_item(mp_slab *slab, mp_handle handle) { CHECK_EQ(mp_slab_free(slab, handle), MP_OK); }

static inline size_t slot_of(mp_slab *slab, mp_handle handle) {
    ptrdiff_t slot = -1;
    size_t bad;
    CHECK_EQ(mp_slab_find(slab, &handle, 1, &slot, &bad), MP_OK);
    CHECK(slot >= 0);
    return (size_t)slot;
}

static inline char *pin_item(mp_slab *slab, mp_handle handle) {
    void *item = NULL;
    CHECK_EQ(mp_slab_pin(slab, handle, &item), MP_OK);
    return item;
}

static inline char *peek_item(mp_slab *slab, mp_handle handle) {
    char *item = pin_item(slab, handle);
    CHECK(!mp_slab_unpin(slab, item));
    return item;
}

/* Half of 2^30 lives in a moment: the item gets the last handle of its slot. */
static inline mp_handle poke_last_life(mp_slab *slab, mp_handle handle) {
    size_t slot = slot_of(slab, handle);
    mp__slot_put(slab, slot, MP__GENERATIONS - 1, mp__slot_state_of(slab, slot));
    return mp__slot_name(slab, slot, MP__GENERATIONS - 1);
}

/* ---- marks ---- */

static inline unsigned char mark_byte(uint64_t mark, size_t i) { return (unsigned char)(mark >> (i % 8 * 8)); }

static inline void put_slot_mark(slab_model *m, size_t slot, uint64_t mark) {
    size_t size = m->config.item_size, ends = size < 16 ? size : 16;
    unsigned char *item = (unsigned char *)m->base + slot * size;
    for (size_t i = 0; i < ends; i++) item[i] = mark_byte(mark, i);
    for (size_t i = size - ends; i < size; i++) item[i] = mark_byte(mark, i);
    m->all[slot].mark = mark;
}

/* `or_zero`: a trim may have taken a part of it. */
static inline bool has_slot_mark(const slab_model *m, size_t slot, bool or_zero) {
    size_t size = m->config.item_size, ends = size < 16 ? size : 16;
    const unsigned char *item = (const unsigned char *)m->base + slot * size;
    for (size_t i = 0; i < size; i++) {
        if (i == ends && size - ends > i) i = size - ends;
        if (item[i] != mark_byte(m->all[slot].mark, i) && !(or_zero && item[i] == 0)) return false;
    }
    return true;
}

/* ---- the model ---- */

static inline size_t model_used(const slab_model *m) { return m->live + m->retired + m->exhausted; }
static inline bool model_is_mapped(const slab_model *m) { return m->slab != NULL && (!m->closed || m->pins + m->views > 0); }

static inline size_t model_first_free(const slab_model *m) {
    size_t slot = 0;
    while (slot < SLAB_SLOTS && m->all[slot].state != SLOT_FREE) slot++;
    return slot;
}

static inline slot_model *model_find(slab_model *m, mp_handle handle) {
    for (size_t slot = 0; slot < m->slots; slot++) {
        if (m->all[slot].state == SLOT_LIVE && m->all[slot].handle == handle) return &m->all[slot];
    }
    return NULL;
}

static inline void model_enter(slab_world *w, slab_model *m, mp_handle handle) {
    size_t slot = model_first_free(m);
    CHECK(slot < SLAB_SLOTS && handle > 0);
    for (size_t i = 0; i < SLAB_DEAD; i++) CHECK(m->dead[i] != handle);
    CHECK_EQ(slot_of(m->slab, handle), slot);
    CHECK(has_slot_mark(m, slot, true));
    m->all[slot].state = SLOT_LIVE;
    m->all[slot].handle = handle;
    put_slot_mark(m, slot, ++w->marks * UINT64_C(0x9E3779B97F4A7C15));
    if (slot >= m->slots) m->slots = slot + 1;
    m->live++;
    m->allocs++;
}

static inline bool is_last_life(const slab_model *m, const slot_model *at) {
    return mp__handle_generation(m->slab, at->handle, (size_t)(at - m->all)) == MP__GENERATIONS - 1;
}

static inline void model_free(slab_model *m, slot_model *at) {
    CHECK(at != NULL && has_slot_mark(m, (size_t)(at - m->all), false));
    m->dead[m->n_dead++ % SLAB_DEAD] = at->handle;
    m->live--;
    m->frees++;
    if (is_last_life(m, at)) {
        at->state = SLOT_EXHAUSTED;
        m->exhausted++;
    } else if (at->pins > 0) {
        at->state = SLOT_RETIRED;
        m->retired++;
    } else {
        at->state = SLOT_FREE;
    }
}

/* ---- what must hold ---- */

static inline void check_slab_figures(const slab_model *m) {
    mp_slab_stats s;
    mp_slab_stats_read(m->slab, &s);
    CHECK_EQ(s.live, m->live);
    CHECK_EQ(s.retired, m->retired);
    CHECK_EQ(s.exhausted, m->exhausted);
    CHECK_EQ(s.slots, m->slots);
    CHECK_EQ(s.max_items, m->config.max_items);
    CHECK_EQ(s.limit, m->config.limit);
    CHECK(s.allocs == m->allocs && s.frees == m->frees);
    CHECK_EQ(s.reserved, mp_account_used(m->leaf));
    CHECK_EQ(s.peak, mp_account_peak(m->leaf));
    CHECK(s.reserved <= s.peak && s.peak <= s.limit && s.reserved <= s.address_space);
    CHECK_EQ(s.address_space > 0, model_is_mapped(m));
    CHECK_EQ(mp_slab_length(m->slab), m->live);
    if (!model_is_mapped(m)) CHECK_EQ(s.reserved, 0);
}

static inline void slab_world_check(const slab_world *w) {
    size_t sum = 0;
    for (size_t i = 0; i < SLAB_MODELS; i++) {
        const slab_model *m = &w->models[i];
        if (m->slab == NULL) continue;
        if (!m->destroyed) check_slab_figures(m);
        if (!m->destroyed) CHECK(mp_slab_is_valid(m->slab));
        sum += mp_account_used(m->leaf);
    }
    CHECK_EQ(mp_account_used(w->root), sum);
    CHECK(sum <= mp_account_limit(w->root) && sum <= mp_account_peak(w->root));
}

/* Every mark; handles and copies against the model. */
static inline void slab_inspect(slab_model *m) {
    static mp_handle handles[SLAB_SLOTS];
    size_t n = m->destroyed ? 0 : mp_slab_handles(m->slab, handles, SLAB_SLOTS), at = 0;
    if (!model_is_mapped(m)) CHECK_EQ(n, 0);
    for (size_t slot = 0; slot < m->slots && model_is_mapped(m); slot++) {
        const slot_model *one = &m->all[slot];
        if (one->state == SLOT_LIVE || one->pins > 0) CHECK(has_slot_mark(m, slot, false));
        if (one->state == SLOT_LIVE && n > 0) CHECK_EQ(handles[at++], one->handle);
    }
    CHECK_EQ(at, n);
    if (!m->closed) CHECK_EQ(n, m->live);
}

static inline void slab_world_inspect(slab_world *w) {
    for (size_t i = 0; i < SLAB_MODELS; i++) {
        if (w->models[i].slab != NULL) slab_inspect(&w->models[i]);
    }
}

/* ---- what an allocation may answer ---- */

static inline size_t whole_pages(size_t bytes) { return (bytes + mp_page_size() - 1) / mp_page_size() * mp_page_size(); }

/* Bytes more to be taken for so many slots, told apart from the library: no level of so few slots takes more than a page. */
static inline size_t model_more(const slab_model *m, size_t slots) {
    const size_t need[MP__PARTS] = {whole_pages(slots * m->config.item_size), whole_pages(slots * 4), whole_pages(slots * 4),
                                    whole_pages((slots / 64 + 2) * 8), mp_page_size()};
    size_t more = 0;
    for (size_t part = 0; part < MP__PARTS; part++) {
        if (need[part] > m->slab->held[part]) more += need[part] - m->slab->held[part];
    }
    return more;
}

static inline void check_slab_refusal(const slab_world *w, const slab_model *m, size_t count, mp_status status, mp_shortage *why) {
    size_t slots = model_used(m) + count, reserved = mp_account_used(m->leaf);
    bool beyond = count > m->config.max_items - model_used(m), hopeless = m->config.limit / m->config.item_size < slots;
    CHECK_LE(reserved, w->before[m - w->models]);
    CHECK_EQ(m->closed, status == MP_ERR_CLOSED);
    if (m->closed) return;
    if (beyond) {
        if (m->config.limit == MP_NO_LIMIT)
            hopeless = status == MP_ERR_LIMIT && count > MP__MOST_SLOTS; /* test_slab.c looks closer */
        else if (slots < count) hopeless = true;
        CHECK_EQ(status, hopeless ? MP_ERR_LIMIT : MP_ERR_FULL);
        return;
    }
    size_t more = model_more(m, slots);
    CHECK(why->in_use == reserved || slab_was_refused(w) || status == MP_ERR_ACCOUNT);
    CHECK_EQ(why->limit, m->config.limit);
    if (status == MP_ERR_LIMIT) CHECK_LT(m->config.limit - reserved, more);
    else if (status == MP_ERR_ACCOUNT) CHECK_LT(mp_account_limit(why->binding), mp_account_used(why->binding) + more);
    else CHECK(status == MP_ERR_NOMEM && slab_was_refused(w));
}

/* ---- choices ---- */

static inline slab_model *pick_slab(slab_world *w, bool destroyed_too) {
    size_t first = pick(&w->hand, SLAB_MODELS);
    for (size_t i = 0; i < SLAB_MODELS; i++) {
        slab_model *m = &w->models[(first + i) % SLAB_MODELS];
        if (m->slab != NULL && (destroyed_too || !m->destroyed)) return m;
    }
    return NULL;
}

static inline slot_model *pick_slot(slab_world *w, slab_model *m, bool live) {
    size_t first = pick(&w->hand, SLAB_SLOTS);
    for (size_t i = 0; m != NULL && i < m->slots; i++) {
        slot_model *at = &m->all[(first + i) % m->slots];
        if (live ? at->state == SLOT_LIVE : at->pins > 0) return at;
    }
    return NULL;
}

static inline mp_handle pick_wrong(slab_world *w, slab_model *m) {
    slab_model *other = pick_slab(w, true);
    const slot_model *near = pick_slot(w, m, true), *far = pick_slot(w, other, true);
    mp_handle handle = near != NULL ? near->handle : 1;
    switch (pick(&w->hand, 8)) {
    case 0: return 0;
    case 1: return -handle;
    case 2: return INT64_MAX;
    case 3: return (mp_handle)((uint64_t)handle + ((uint64_t)1 << MP__SLOT_BITS));
    case 4: return far != NULL ? far->handle : INT64_MIN;
    case 5: return m->dead[pick(&w->hand, SLAB_DEAD)];
    default: return handle ^ (mp_handle)((uint64_t)1 << pick(&w->hand, 64));
    }
}

/* ---- moves: slabs come and go ---- */

static inline void enter_slab(slab_world *w, slab_model *m, const mp_slab_config *config, mp_slab *slab) {
    void *base = NULL;
    mp_slab_stats s;
    memset(m, 0, sizeof *m);
    mp_slab_stats_read(slab, &s);
    *m = (slab_model){.slab = slab, .leaf = config->account, .config = *config};
    CHECK(s.max_items == config->max_items || (slab_was_refused(w) && s.max_items < config->max_items));
    m->config.max_items = s.max_items;
    CHECK_EQ(mp_slab_view(slab, &base, &s.slots), MP_OK);
    m->base = base;
    CHECK(base == mp_slab_base(slab) && !mp_slab_unview(slab));
}

static inline mp_slab_config pick_config(slab_world *w) {
    const size_t sizes[] = {1, 3, 8, 24, 100, 1000, 4096, 4097, 70000, 1 << 20};
    mp_slab_config config = {.item_size = sizes[pick(&w->hand, 10)], .limit = MP_NO_LIMIT, .source = &w->books.source};
    size_t most = 16 * MIB / config.item_size < SLAB_SLOTS ? 16 * MIB / config.item_size : SLAB_SLOTS;
    config.max_items = chance(&w->hand, 2) ? most : 1 + pick(&w->hand, most);
    if (chance(&w->hand, 3)) config.limit = config.max_items * config.item_size + pick(&w->hand, 64 * KIB);
    dice seeds = {.state = pick(&w->hand, 65536)};
    config.seed = roll(&seeds);
    return config;
}

static inline void move_open_slab(slab_world *w) {
    slab_model *m = w->models;
    mp_slab *slab = NULL;
    while (m < w->models + SLAB_MODELS && m->slab != NULL) m++;
    if (m == w->models + SLAB_MODELS) return;
    mp_slab_config config = pick_config(w);
    mp_status status = mp_account_create(w->root, MP_NO_LIMIT, &w->books.source, &config.account);
    if (status == MP_OK) status = mp_slab_create(&config, &slab);
    else config.account = NULL;
    if (status == MP_OK) enter_slab(w, m, &config, slab);
    else if (config.account != NULL) mp_account_release(config.account);
    if (status != MP_OK) CHECK(status == MP_ERR_NOMEM && slab == NULL && slab_was_refused(w));
}

/* The last of a slab that was destroyed ended: all of it must have come back. */
static inline void forget_slab(slab_model *m) {
    if (!m->destroyed || m->pins + m->views > 0) return;
    CHECK_EQ(mp_account_used(m->leaf), 0);
    mp_account_release(m->leaf);
    m->slab = NULL;
    m->slots = 0;
}

static inline void end_slab(slab_model *m, bool destroy) {
    bool goes = model_is_mapped(m) && m->pins + m->views == 0;
    m->closed = true;
    m->destroyed = destroy;
    if (destroy) mp_slab_destroy(m->slab);
    else CHECK_EQ(mp_slab_close(m->slab), goes);
    forget_slab(m);
}

static inline void move_end_slab(slab_world *w) {
    slab_model *m = pick_slab(w, false);
    if (m != NULL && chance(&w->hand, 12)) end_slab(m, chance(&w->hand, 2));
    else if (m != NULL && m->closed) end_slab(m, true);
}

/* ---- moves: items begin and end ---- */

static inline void move_alloc(slab_world *w) {
    slab_model *m = pick_slab(w, false);
    mp_handle handle = 0;
    mp_shortage why = {0};
    if (m == NULL || model_used(m) == SLAB_SLOTS) return;
    bool ready = chance(&w->hand, 4) && mp_slab_alloc_ready(m->slab, &handle);
    mp_status status = ready ? MP_OK : mp_slab_alloc(m->slab, &handle, &why);
    if (status == MP_OK) model_enter(w, m, handle);
    else check_slab_refusal(w, m, 1, status, &why);
    if (status != MP_OK) CHECK_EQ(handle, 0);
}

static inline void move_alloc_many(slab_world *w) {
    slab_model *m = pick_slab(w, false);
    mp_handle handles[SLAB_MANY] = {0};
    mp_shortage why = {0};
    if (m == NULL || model_used(m) + SLAB_MANY > SLAB_SLOTS) return;
    size_t count = chance(&w->hand, 10) ? SIZE_MAX - pick(&w->hand, 3) * m->live : pick(&w->hand, SLAB_MANY);
    if (m->config.max_items - model_used(m) < count && count < SIZE_MAX / 2) count = m->config.max_items - model_used(m) + 1;
    mp_status status = mp_slab_alloc_many(m->slab, count, handles, &why);
    for (size_t i = 0; status == MP_OK && i < count; i++) model_enter(w, m, handles[i]);
    if (status == MP_OK) return;
    check_slab_refusal(w, m, count, status, &why);
    for (size_t i = 0; i < SLAB_MANY; i++) CHECK_EQ(handles[i], 0);
}

static inline void move_free(slab_world *w) {
    slab_model *m = pick_slab(w, false);
    slot_model *at = pick_slot(w, m, true);
    if (at == NULL) return;
    if (!m->closed && chance(&w->hand, 8)) at->handle = poke_last_life(m->slab, at->handle);
    mp_status status = mp_slab_free(m->slab, at->handle);
    CHECK_EQ(status, m->closed ? MP_ERR_CLOSED : MP_OK);
    if (status == MP_OK) model_free(m, at);
}

/* Some live items in a row; now and then a handle among them that is none, or one that came before. */
static inline void move_free_many(slab_world *w) {
    slab_model *m = pick_slab(w, false);
    mp_handle handles[SLAB_MANY + 1];
    size_t n = 0, bad = SIZE_MAX, wrong = SIZE_MAX, count = 1 + pick(&w->hand, SLAB_MANY - 1);
    const slot_model *first = pick_slot(w, m, true);
    for (const slot_model *at = first; at != NULL && at < m->all + m->slots && n < count; at++) {
        if (at->state == SLOT_LIVE) handles[n++] = at->handle;
    }
    if (n == 0) return;
    if (chance(&w->hand, 3)) {
        wrong = 1 + pick(&w->hand, n);
        mp_handle stray = chance(&w->hand, 2) ? handles[pick(&w->hand, wrong)] : pick_wrong(w, m);
        for (size_t i = 0; i < n; i++) wrong = handles[i] == stray && i >= wrong ? SIZE_MAX : wrong;
        if (wrong != SIZE_MAX) memmove(handles + wrong + 1, handles + wrong, (n++ - wrong) * sizeof *handles);
        if (wrong != SIZE_MAX) handles[wrong] = stray;
        if (wrong != SIZE_MAX && model_find(m, stray) != NULL && stray != handles[0]) {
            size_t earlier = 0;
            while (handles[earlier] != stray) earlier++;
            if (earlier == wrong) return; /* another live item: not wrong at all */
        }
    }
    mp_status status = mp_slab_free_many(m->slab, handles, n, &bad);
    CHECK_EQ(status, m->closed ? MP_ERR_CLOSED : wrong != SIZE_MAX ? MP_ERR_STALE : MP_OK);
    if (status == MP_ERR_STALE) CHECK_EQ(bad, wrong);
    for (size_t i = 0; status == MP_OK && i < n; i++) model_free(m, model_find(m, handles[i]));
    if (status == MP_ERR_STALE) slab_inspect(m);
}

static inline void move_wrong(slab_world *w) {
    slab_model *m = pick_slab(w, false);
    void *item = NULL;
    ptrdiff_t slot;
    size_t bad = 1;
    if (m == NULL) return;
    mp_handle handle = pick_wrong(w, m);
    const slot_model *at = model_find(m, handle);
    mp_status expected = m->closed ? MP_ERR_CLOSED : MP_ERR_STALE;
    CHECK_EQ(mp_slab_has(m->slab, handle), at != NULL && !m->closed);
    if (at != NULL) return;
    CHECK_EQ(mp_slab_free(m->slab, handle), expected);
    CHECK_EQ(mp_slab_pin(m->slab, handle, &item), expected);
    CHECK_EQ(mp_slab_find(m->slab, &handle, 1, &slot, &bad), expected);
    CHECK(item == NULL && bad == (m->closed ? 1 : 0));
}

/* ---- moves: views ---- */

static inline void move_pin(slab_world *w) {
    slab_model *m = pick_slab(w, false);
    slot_model *at = pick_slot(w, m, true);
    void *item = NULL;
    if (at == NULL) return;
    mp_status status = mp_slab_pin(m->slab, at->handle, &item);
    CHECK_EQ(status, m->closed ? MP_ERR_CLOSED : MP_OK);
    if (status != MP_OK) return;
    CHECK(item == m->base + (size_t)(at - m->all) * m->config.item_size); /* nothing ever moves */
    at->pins++;
    m->pins++;
}

static inline void end_pin(slab_model *m, slot_model *at) {
    CHECK(has_slot_mark(m, (size_t)(at - m->all), false));
    m->pins--;
    if (--at->pins == 0 && at->state == SLOT_RETIRED) {
        at->state = SLOT_FREE;
        m->retired--;
    }
    CHECK_EQ(mp_slab_unpin(m->slab, m->base + (size_t)(at - m->all) * m->config.item_size), m->closed && m->pins + m->views == 0);
    forget_slab(m);
}

static inline void move_unpin(slab_world *w) {
    slab_model *m = pick_slab(w, true);
    slot_model *at = pick_slot(w, m, false);
    if (at != NULL) end_pin(m, at);
}

static inline void end_whole_view(slab_model *m) {
    m->views--;
    CHECK_EQ(mp_slab_unview(m->slab), m->closed && m->pins + m->views == 0);
    forget_slab(m);
}

static inline void move_view(slab_world *w) {
    slab_model *m = pick_slab(w, true);
    void *base = NULL;
    size_t slots = SIZE_MAX;
    if (m == NULL) return;
    if (m->views > 0 && chance(&w->hand, 2)) {
        end_whole_view(m);
    } else if (!m->destroyed) {
        mp_status status = mp_slab_view(m->slab, &base, &slots);
        CHECK_EQ(status, m->closed ? MP_ERR_CLOSED : MP_OK);
        m->views += status == MP_OK;
        if (status == MP_OK) CHECK(base == m->base && slots == m->slots);
    }
}

/* ---- moves: the whole ---- */

static inline size_t model_tail(const slab_model *m) {
    size_t end = m->slots;
    while (end > 0 && m->all[end - 1].state == SLOT_FREE) end--;
    return m->slab->held[MP__PART_ITEMS] - whole_pages(end * m->config.item_size);
}

static inline void move_trim(slab_world *w) {
    slab_model *m = pick_slab(w, false);
    if (m == NULL) return;
    size_t tail = model_is_mapped(m) ? model_tail(m) : 0, used = mp_account_used(m->leaf), bytes = mp_slab_trim(m->slab);
    CHECK(bytes == tail || (bytes == 0 && slab_was_refused(w)));
    CHECK_EQ(mp_account_used(m->leaf), used - bytes);
}

/* Room for a little more, or for less than is there: then idle tails have to go. */
static inline void move_limit(slab_world *w) {
    size_t used = mp_account_used(w->root), limit = chance(&w->hand, 3) ? MP_NO_LIMIT : pick(&w->hand, used + 300 * KIB), tails = 0;
    mp_status status = mp_account_set_limit(w->root, limit);
    for (size_t i = 0; i < SLAB_MODELS; i++) {
        if (model_is_mapped(&w->models[i])) tails += model_tail(&w->models[i]);
    }
    if (status == MP_OK) CHECK_LE(mp_account_used(w->root), limit);
    else if (!slab_was_refused(w)) CHECK_LT(limit, used - tails);
}

static inline void move_copy(slab_world *w) {
    static char copies[16 * MIB];
    slab_model *m = pick_slab(w, false);
    size_t n = 0, capacity = pick(&w->hand, SLAB_SLOTS), size = m != NULL ? m->config.item_size : 0;
    if (m == NULL || m->closed) return;
    if (capacity > sizeof copies / size) capacity = sizeof copies / size;
    size_t copied = mp_slab_copy_live(m->slab, copies, capacity);
    CHECK_EQ(copied, m->live < capacity ? m->live : capacity);
    for (size_t slot = 0; slot < m->slots && n < copied; slot++) {
        if (m->all[slot].state == SLOT_LIVE) CHECK(memcmp(copies + n++ * size, m->base + slot * size, size) == 0);
    }
}

static inline void slab_move(slab_world *w) {
    static void (*const moves[])(slab_world *) = {
        move_alloc, move_alloc, move_alloc_many, move_alloc_many, move_free, move_free,  move_free_many, move_free_many,
        move_wrong, move_pin,   move_unpin,      move_view,       move_trim, move_limit, move_copy,      move_end_slab};
    w->refusals = ledger_refusals(&w->books);
    for (size_t i = 0; i < SLAB_MODELS; i++) w->before[i] = w->models[i].slab != NULL ? mp_account_used(w->models[i].leaf) : 0;
    move_open_slab(w);
    w->refusals = ledger_refusals(&w->books);
    for (size_t i = 0; i < SLAB_MODELS; i++) w->before[i] = w->models[i].slab != NULL ? mp_account_used(w->models[i].leaf) : 0;
    moves[pick(&w->hand, 16)](w);
    slab_world_check(w);
}

/* ---- the beginning and the end ---- */

static inline void slab_world_open(slab_world *w, hand from) {
    memset(w, 0, sizeof *w);
    w->hand = from;
    ledger_open(&w->books);
    CHECK_EQ(mp_account_create(NULL, MP_NO_LIMIT, &w->books.source, &w->root), MP_OK);
}

static inline void end_every_view(slab_world *w, slab_model *m) {
    for (slot_model *at; (at = pick_slot(w, m, false)) != NULL;) end_pin(m, at);
    while (m->views > 0) end_whole_view(m);
}

static inline void slab_world_close(slab_world *w, bool slabs_first) {
    for (size_t i = 0; i < SLAB_MODELS; i++) {
        slab_model *m = &w->models[i];
        if (m->slab != NULL && !m->destroyed && slabs_first) end_slab(m, true);
        if (m->slab != NULL) end_every_view(w, m);
        if (m->slab != NULL) end_slab(m, true);
        slab_world_check(w);
    }
    CHECK_EQ(mp_account_used(w->root), 0);
    mp_account_release(w->root);
    ledger_close(&w->books);
}

#endif
