/* mapping_grow.c: append and resize, for files and for anonymous memory, and what they cost an account.
 *
 *      may it? ──> charge what is more ──> bytes (mapping_file.c, or activate) ──> the rows count ──> discharge what is less
 *         |            |                      |
 *         |            | refused: let `io` go, have idle memory given back, begin again
 *         '- refused --'- refused: ... -------'- refused: discharge; nothing has changed
 *
 * Rejected: mp_account_charge with `io` held. It locks the registry, which locks `io` when a thread forks. */
#include <string.h>

#include "internal.h"
#include "mapping_types.h"

typedef struct growth {
    size_t rows;   /* afterwards */
    size_t charge; /* bytes more */
    mp_account *full;
} growth;

static size_t bytes_of(const mp_mapping *mapping, size_t rows) { return rows * mapping->row_bytes; }

static mp_status charge(mp_mapping *mapping, growth *plan) {
    plan->charge = mp__pages(bytes_of(mapping, plan->rows)) - mapping->charged;
    mp_status status = mp__account_try_charge(mapping->account, plan->charge, &plan->full);
    if (status == MP_OK) mapping->charged += plan->charge;
    return status;
}

static void settle_charge(mp_mapping *mapping) {
    size_t less = mapping->charged - mp__pages(bytes_of(mapping, mapping->rows));
    mapping->charged -= less;
    if (mapping->account != NULL) mp_account_discharge(mapping->account, less);
}

/* ---- anonymous memory ---- */

static mp_status anonymous_grow(mp_mapping *mapping, size_t rows) {
    size_t wanted = mp__pages(bytes_of(mapping, rows));
    if (wanted <= mapping->extent) return MP_OK;
    const mp_source *source = mapping->source;
    mp_status status = source->activate(source->context, mapping->base + mapping->extent, wanted - mapping->extent);
    if (status == MP_OK) mapping->extent = wanted;
    return status;
}

/* What goes becomes zero at once: views read zeros, and so do the rows when they come again. */
static void anonymous_shrink(mp_mapping *mapping, size_t rows) {
    size_t end = bytes_of(mapping, rows), before = bytes_of(mapping, mapping->rows), page_end = mp__pages(end);
    mp__mapping_set_rows(mapping, rows);
    if (end == before) return;
    memset(mapping->base + end, 0, (page_end < before ? page_end : before) - end);
    if (page_end < before) mp__os_zero(mapping->base + page_end, mp__pages(before) - page_end, mapping->shared);
}

/* Rows that went and come again are zero, whatever a view wrote there meanwhile. Behind `used` nobody ever was. */
static void clear_again(mp_mapping *mapping, size_t rows, size_t used) {
    size_t start = bytes_of(mapping, mapping->rows), stop = bytes_of(mapping, rows), page_start = mp__pages(start);
    if (stop > used) stop = used;
    if (start < stop) memset(mapping->base + start, 0, (page_start < stop ? page_start : stop) - start);
    if (page_start < stop) mp__os_zero(mapping->base + page_start, mp__pages(stop) - page_start, false);
}

/* ---- both ---- */

static mp_status may_become(mp_mapping *mapping, size_t rows) {
    mp_status status = mp__mapping_usable(mapping);
    if (status != MP_OK) return status;
    if (mapping->access != MP_ACCESS_WRITE) return MP_ERR_INVALID;
    if (rows > mapping->max_rows) return MP_ERR_FULL;
    return mp__header_has_room(mapping, rows) ? MP_OK : MP_ERR_INVALID;
}

static mp_status extend(mp_mapping *mapping, const void *data, size_t rows, int *error) {
    size_t more = rows - mapping->rows;
    if (mapping->is_file) {
        return data != NULL ? mp__file_append(mapping, data, more, error) : mp__file_grow(mapping, rows, error);
    }
    size_t nbytes = bytes_of(mapping, more), used = mapping->extent;
    mp_status status = anonymous_grow(mapping, rows);
    if (status != MP_OK || nbytes == 0) return status;
    if (data != NULL) memcpy(mapping->base + bytes_of(mapping, mapping->rows), data, nbytes);
    else if (!mapping->shared) clear_again(mapping, rows, used); /* shared, another process may have rows there already */
    return MP_OK;
}

/* With `data`, these are the new rows; without, they are zero. */
static mp_status grow(mp_mapping *mapping, const void *data, growth *plan, int *error) {
    mp_status status = charge(mapping, plan);
    if (status != MP_OK) return status;
    status = extend(mapping, data, plan->rows, error);
    if (status == MP_OK) {
        mp__mapping_set_rows(mapping, plan->rows);
        mapping->pending = mapping->header.bytes != NULL;
        mp__account_note_peak(mapping->account);
    }
    settle_charge(mapping);
    return status;
}

static mp_status shrink(mp_mapping *mapping, size_t rows, int *error) {
    mp_status status = MP_OK;
    if (mapping->is_file) status = mp__file_shrink(mapping, rows, error);
    else anonymous_shrink(mapping, rows);
    settle_charge(mapping);
    return status;
}

static mp_status append_locked(mp_mapping *mapping, const void *data, size_t more, growth *plan, int *error) {
    static const char none[1];
    if (!mp__add(mapping->rows, more, &plan->rows)) plan->rows = SIZE_MAX;
    mp_status status = may_become(mapping, plan->rows);
    if (status != MP_OK || more == 0) return status;
    if (data == NULL && mapping->row_bytes > 0) return MP_ERR_INVALID;
    return grow(mapping, data != NULL ? data : none, plan, error);
}

static mp_status resize_locked(mp_mapping *mapping, growth *plan, int *error) {
    mp_status status = may_become(mapping, plan->rows);
    if (status != MP_OK || plan->rows == mapping->rows) return status;
    return plan->rows > mapping->rows ? grow(mapping, NULL, plan, error) : shrink(mapping, plan->rows, error);
}

/* True if it is worth to try again. */
static bool relieve(mp_status status, const growth *plan, mp_account **binding) {
    if (status != MP_ERR_ACCOUNT) return false;
    if (binding != NULL) *binding = plan->full;
    return mp__account_relieve(plan->full, plan->charge);
}

mp_status mp_mapping_append(mp_mapping *mapping, const void *data, size_t rows, mp_account **binding, int *error) {
    growth plan = {0};
    mp_status status;
    do {
        mp__mutex_lock(&mapping->io);
        status = append_locked(mapping, data, rows, &plan, error);
        MP_CHECK_MAPPING(mapping);
        mp__mutex_unlock(&mapping->io);
    } while (relieve(status, &plan, binding));
    return status;
}

mp_status mp_mapping_resize(mp_mapping *mapping, size_t rows, mp_account **binding, int *error) {
    growth plan = {.rows = rows};
    mp_status status;
    do {
        mp__mutex_lock(&mapping->io);
        status = resize_locked(mapping, &plan, error);
        MP_CHECK_MAPPING(mapping);
        mp__mutex_unlock(&mapping->io);
    } while (relieve(status, &plan, binding));
    return status;
}
