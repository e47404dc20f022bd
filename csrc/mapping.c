/* mapping.c: the life of a mapping: made, viewed, closed, revoked, freed. mapping_types.h draws it.
 *
 *                    close                       last view ends
 *      open ──────────────────> closed, viewed ──────────────────> unmapped ── destroy ──> freed
 *       |                            |                                ^
 *       |                            | revoke: zero pages             |
 *       '────── close, no views ─────┴────────────────────────────────'
 *
 * Views count what must stay mapped, `orphaned` that nobody else will come: whoever makes both true last frees the mapping, under no
 * lock of its own, since the registry takes them in the other order.
 *
 * Rejected: a count of references as accounts have it (close must unmap, not whoever lets go last). */
#include "internal.h"
#include "mapping_types.h"

/* ---- what is mapped ---- */

static mp_status map_once(mp_mapping *mapping, size_t size, int *error) {
    const mp_source *source = mapping->source;
    void *base = NULL;
    mp_status status = MP_OK;
    if (size > 0 && mapping->is_file) {
        status = mp__os_file_map(mapping->file, mapping->offset - mapping->skew, size, mapping->access, &base, error);
    } else if (size > 0) {
        size_t huge = mp__os_huge_size();
        status = source->reserve(source->context, size, size < huge ? mp__os_page_size() : huge, mapping->shared, &base);
    }
    if (status != MP_OK) return status;
    mapping->base = base;
    mapping->mapped = mapping->addresses = size;
    mp__registry_note_addresses(size);
    return MP_OK;
}

/* The OS may refuse addresses (RLIMIT_AS), or so large an offset in a file: what lies beyond `needed` is halved until it agrees. */
static mp_status map_most(mp_mapping *mapping, size_t needed, size_t wanted, int *error) {
    size_t page = mp__os_page_size();
    for (size_t size = wanted;; size = needed + (((size - needed) / 2) & ~(page - 1))) {
        mp_status status = map_once(mapping, size, error);
        if (status == MP_OK || size == needed) return status;
    }
}

/* With `lock` held, or by the last who knows of it. If the OS refuses, it is tried once more before the mapping is freed. */
static void unmap(mp_mapping *mapping) {
    const mp_source *source = mapping->source;
    if (mapping->base == NULL) return;
    mapping->lost = mapping->lost || mp__guard_is_lost(mapping->slot);
    mp__guard_give_back(mapping->slot);
    mapping->slot = NULL;
    mp_status status = mapping->is_file ? mp__os_file_unmap(mapping->base, mapping->mapped)
                                        : source->unmap(source->context, mapping->base, mapping->mapped);
    if (status != MP_OK) return;
    mapping->base = NULL;
    mp__registry_forget_addresses(mapping->addresses);
}

static void discharge(mp_mapping *mapping) {
    if (mapping->account != NULL) mp_account_discharge(mapping->account, mapping->charged);
    mapping->charged = 0;
}

/* ---- in the registry: only for the sake of fork ---- */

static uint64_t tenant_tick(mp__tenant *tenant, uint64_t now) {
    (void)tenant;
    (void)now;
    return MP_NEVER;
}

static size_t tenant_releasable(mp__tenant *tenant, const mp_account *under) {
    (void)tenant;
    (void)under;
    return 0;
}

static size_t tenant_reclaim(mp__tenant *tenant, const mp_account *under, size_t needed) {
    (void)needed;
    return tenant_releasable(tenant, under);
}

static void tenant_before_fork(mp__tenant *tenant) {
    mp_mapping *mapping = (mp_mapping *)tenant;
    mp__mutex_lock(&mapping->io);
    mp__mutex_lock(&mapping->lock);
}

/* A header that waits is the parent's to write: by the time the child closes, the file may have more rows than the child knows of. */
static void tenant_after_fork(mp__tenant *tenant, bool child) {
    mp_mapping *mapping = (mp_mapping *)tenant;
    if (child) mapping->pending = false;
    mp__mutex_unlock(&mapping->lock);
    mp__mutex_unlock(&mapping->io);
}

static const mp__tenant_ops mapping_ops = {
    .tick = tenant_tick,
    .releasable = tenant_releasable,
    .reclaim = tenant_reclaim,
    .before_fork = tenant_before_fork,
    .after_fork = tenant_after_fork,
};

/* ---- it begins ---- */

/* So large that sums with a few pages more still fit, and offsets in files too. */
static size_t most_bytes(const mp_mapping_config *config) {
    uint64_t most = (uint64_t)INT64_MAX - (config->file >= 0 ? config->offset : 0);
    size_t room = SIZE_MAX / 2 - 2 * mp__os_file_granularity();
    return most < room ? (size_t)most : room;
}

static bool is_sound(const mp_mapping_config *config) {
    size_t nbytes;
    if ((unsigned)config->access > MP_ACCESS_COPY) return false;
    if (config->file < 0 && (config->access != MP_ACCESS_WRITE || config->header != NULL)) return false;
    if (config->file >= 0 && config->offset > (uint64_t)INT64_MAX) return false;
    return mp__mul(config->rows, config->row_bytes, &nbytes) && nbytes <= most_bytes(config);
}

/* How many bytes to have addresses for. */
static size_t wanted_bytes(const mp_mapping_config *config) {
    size_t nbytes = config->rows * config->row_bytes, most = most_bytes(config), wanted;
    if (config->access != MP_ACCESS_WRITE || config->max_rows <= config->rows) return nbytes;
    if (most > MP__MAX_SIZE) most = (size_t)MP__MAX_SIZE;
    if (!mp__mul(config->max_rows, config->row_bytes, &wanted) || wanted > most) wanted = most;
    if (wanted < nbytes) wanted = nbytes;
    if (config->file < 0 || wanted == nbytes) return wanted;
    size_t share = mp__registry_address_share(); /* how far a file grows is a guess */
    return wanted - nbytes > share ? nbytes + share : wanted;
}

static size_t reachable_rows(const mp_mapping *mapping, const mp_mapping_config *config) {
    if (config->access != MP_ACCESS_WRITE || config->max_rows <= config->rows) return config->rows;
    if (config->row_bytes == 0) return config->max_rows;
    size_t room = mapping->mapped > mapping->skew ? mapping->mapped - mapping->skew : 0, most = most_bytes(config);
    size_t rows = (room < most ? room : most) / config->row_bytes;
    if (rows < config->rows) rows = config->rows;
    return rows < config->max_rows ? rows : config->max_rows;
}

static mp_status look_at_file(const mp_mapping_config *config, mp__file_stat *found, int *error) {
    if (config->file < 0) return MP_OK;
    mp_status status = mp__os_file_stat(config->file, found, error);
    if (status != MP_OK) return status;
    uint64_t end = config->offset + (uint64_t)(config->rows * config->row_bytes);
    return found->size < end ? MP_ERR_LOST : MP_OK;
}

static mp_status map_rows(mp_mapping *mapping, const mp_mapping_config *config, const mp__file_stat *found, int *error) {
    size_t nbytes = config->rows * config->row_bytes, wanted = wanted_bytes(config);
    size_t needed = nbytes > 0 ? mp__pages(mapping->skew + nbytes) : 0;
    mp_status status = map_most(mapping, needed, wanted > 0 ? mp__pages(mapping->skew + wanted) : 0, error);
    if (status != MP_OK || mapping->base == NULL) return status;
    if (!mapping->is_file && needed > 0) status = mapping->source->activate(mapping->source->context, mapping->base, needed);
    mapping->extent = needed;
    if (status != MP_OK || !mapping->is_file) return status;
    mp__guard_range range = {.base = mapping->base,
                             .extent = mapping->extent,
                             .offset = mapping->offset - mapping->skew,
                             .file = mapping->file,
                             .device = found->device,
                             .node = found->node,
                             .writable = mapping->access != MP_ACCESS_READ};
    mapping->slot = mp__guard_take(&range);
    return mapping->slot != NULL ? MP_OK : MP_ERR_NOMEM;
}

static mp_status charge(mp_mapping *mapping, mp_account **binding) {
    size_t nbytes = mp__pages(mapping->rows * mapping->row_bytes);
    mp_account *full = NULL;
    while (mp__account_try_charge(mapping->account, nbytes, &full) != MP_OK) {
        if (binding != NULL) *binding = full;
        if (!mp__account_relieve(full, nbytes)) return MP_ERR_ACCOUNT;
    }
    mapping->charged = nbytes;
    return MP_OK;
}

static mp_status set_up(mp_mapping *mapping, const mp_mapping_config *config, mp_account **binding, int *error) {
    mp__file_stat found = {0};
    mp_status status = look_at_file(config, &found, error);
    if (status == MP_OK && config->header != NULL) status = mp__header_open(mapping, config->header, config->header_size);
    if (status == MP_OK) status = charge(mapping, binding);
    if (status == MP_OK) status = map_rows(mapping, config, &found, error);
    mapping->max_rows = reachable_rows(mapping, config);
    return status == MP_OK ? mp__registry_add(&mapping->tenant, &mapping_ops) : status;
}

/* All but the registry and the file. */
static void take_down(mp_mapping *mapping) {
    const mp_source *source = mapping->source;
    unmap(mapping);
    discharge(mapping);
    mp__header_free(mapping);
    mp__mutex_destroy(&mapping->lock);
    mp__mutex_destroy(&mapping->io);
    source->free(source->context, mapping);
}

static void fill_in(mp_mapping *mapping, const mp_mapping_config *config, const mp_source *source) {
    mapping->source = source;
    mapping->account = config->account;
    mapping->access = config->access;
    mapping->is_file = config->file >= 0;
    mapping->shared = config->shared;
    mapping->offset = mapping->is_file ? config->offset : 0;
    mapping->skew = (size_t)(mapping->offset % mp__os_file_granularity());
    mapping->file = mapping->is_file ? config->file : -1;
    mapping->row_bytes = config->row_bytes;
    mapping->fresh = config->fresh;
    mapping->rows = config->rows;
    mp__mutex_init(&mapping->io);
    mp__mutex_init(&mapping->lock);
}

mp_status mp_mapping_create(const mp_mapping_config *config, mp_mapping **out, mp_account **binding, int *error) {
    const mp_source *source = config->source != NULL ? config->source : mp_source_os();
    if (!is_sound(config)) return MP_ERR_INVALID;
    mp_mapping *mapping = source->alloc(source->context, sizeof *mapping);
    if (mapping == NULL) return MP_ERR_NOMEM;
    fill_in(mapping, config, source);
    mp_status status = set_up(mapping, config, binding, error);
    if (status != MP_OK) {
        take_down(mapping);
        return status;
    }
    if (mapping->account != NULL) mp_account_retain(mapping->account);
    mp__account_note_peak(mapping->account);
    *out = mapping;
    return MP_OK;
}

/* ---- it ends ---- */

static void free_mapping(mp_mapping *mapping) {
    mp_account *account = mapping->account;
    mp__registry_remove(&mapping->tenant);
    take_down(mapping);
    if (account != NULL) mp_account_release(account);
}

/* With `lock` held. */
static void unmap_if_unseen(mp_mapping *mapping) {
    if (!mapping->closed || mapping->views > 0) return;
    unmap(mapping);
    if (mapping->base == NULL) discharge(mapping);
}

/* With `io` held. A file that lost rows gets no header that tells of them. */
static mp_status write_header(mp_mapping *mapping, int *error) {
    if (!mapping->pending) return MP_OK;
    mp__mutex_lock(&mapping->lock);
    bool known = mapping->lost, lost = mp__mapping_is_lost(mapping);
    mp__mutex_unlock(&mapping->lock);
    if (lost) return known ? MP_OK : MP_ERR_LOST;
    return mp__header_settle(mapping, error);
}

/* With `io` held. */
static mp_status close_locked(mp_mapping *mapping, int *error) {
    if (mapping->closed) return MP_OK;
    mp_status status = write_header(mapping, error), closed = MP_OK;
    int file = mapping->file, closing = 0;
    mp__mutex_lock(&mapping->lock);
    mp__guard_forget_file(mapping->slot);
    mapping->file = -1;
    mapping->closed = true;
    mapping->pending = false;
    unmap_if_unseen(mapping);
    mp__mutex_unlock(&mapping->lock);
    if (file >= 0) closed = mp__os_file_close(file, &closing);
    if (status != MP_OK || closed == MP_OK) return status;
    *error = closing;
    return closed;
}

mp_status mp_mapping_close(mp_mapping *mapping, int *error) {
    mp__mutex_lock(&mapping->io);
    mp_status status = close_locked(mapping, error);
    mp__mutex_unlock(&mapping->io);
    return status;
}

/* With both locks held. What no row used must go too, or it would keep the file. */
static mp_status blank_all(mp_mapping *mapping, int *error) {
    if (mapping->base == NULL || mapping->revoked) return MP_OK;
    size_t rest = mapping->mapped - mapping->extent;
    if (mapping->is_file && rest > 0 && mp__os_file_unmap(mapping->base + mapping->extent, rest) == MP_OK) {
        mapping->mapped = mapping->extent;
    }
    if (mapping->extent == 0) return MP_OK;
    mp_status status = mp__os_blank(mapping->base, mapping->extent, mapping->access != MP_ACCESS_READ, error);
    if (status == MP_OK) discharge(mapping);
    return status;
}

mp_status mp_mapping_revoke(mp_mapping *mapping, int *error) {
    mp__mutex_lock(&mapping->io);
    mp_status status = close_locked(mapping, error);
    int refused = 0;
    mp__mutex_lock(&mapping->lock);
    mp_status blank = blank_all(mapping, &refused);
    if (blank == MP_OK) mapping->revoked = true;
    mp__mutex_unlock(&mapping->lock);
    mp__mutex_unlock(&mapping->io);
    if (blank == MP_OK) return status;
    *error = refused;
    return blank;
}

/* The mark is set with `lock` alone held: a view that ends then may free the mapping, and `io` with it. */
void mp_mapping_destroy(mp_mapping *mapping) {
    int ignored;
    (void)mp_mapping_close(mapping, &ignored);
    mp__mutex_lock(&mapping->lock);
    mapping->orphaned = true;
    bool done = mapping->views == 0;
    mp__mutex_unlock(&mapping->lock);
    if (done) free_mapping(mapping);
}

/* ---- looks and views ---- */

/* With `lock` held. */
static void describe(mp_mapping *mapping, mp_mapping_state *out) {
    *out = (mp_mapping_state){.data = mapping->base != NULL ? mapping->base + mapping->skew : mapping->nothing,
                              .rows = mapping->rows,
                              .max_rows = mapping->max_rows,
                              .closed = mapping->closed,
                              .revoked = mapping->revoked,
                              .lost = mapping->lost || mp__guard_is_lost(mapping->slot),
                              .mapped = mapping->base != NULL && !mapping->revoked};
}

void mp_mapping_look(mp_mapping *mapping, mp_mapping_state *out) {
    mp__mutex_lock(&mapping->lock);
    describe(mapping, out);
    mp__mutex_unlock(&mapping->lock);
}

mp_status mp_mapping_check(mp_mapping *mapping) { return mp__mapping_usable(mapping); }

mp_status mp_mapping_view(mp_mapping *mapping, mp_mapping_state *out) {
    mp__mutex_lock(&mapping->lock);
    mp_status status = mp__mapping_state(mapping);
    if (status == MP_OK) {
        mapping->views++;
        describe(mapping, out);
    }
    mp__mutex_unlock(&mapping->lock);
    return status;
}

bool mp_mapping_hold(mp_mapping *mapping) {
    mp__mutex_lock(&mapping->lock);
    bool open = !mapping->closed;
    if (open) mapping->views++;
    mp__mutex_unlock(&mapping->lock);
    return open;
}

bool mp_mapping_leave(mp_mapping *mapping) {
    mp__mutex_lock(&mapping->lock);
    if (mapping->views == 0) mp__os_abort("a view of a mapping ended twice");
    bool last = mapping->closed && mapping->views == 1;
    if (!last) mapping->views--;
    mp__mutex_unlock(&mapping->lock);
    return last;
}

void mp_mapping_end(mp_mapping *mapping) {
    mp__mutex_lock(&mapping->lock);
    mapping->views--;
    unmap_if_unseen(mapping);
    bool done = mapping->orphaned && mapping->views == 0;
    mp__mutex_unlock(&mapping->lock);
    if (done) free_mapping(mapping);
}

bool mp_mapping_unview(mp_mapping *mapping) {
    bool last = mp_mapping_leave(mapping);
    if (last) mp_mapping_end(mapping);
    return last;
}
