/* mapping_advice.c: where the rows' pages are, and where they should be.
 *
 *      rows      start         stop                 advice is for the pages that the rows touch, but for MP_ADVICE_DONTNEED,
 *                  |............|                   which spares pages that other rows share
 *      pages    |------|------|------|
 *
 * Some of this takes long, and nothing of it needs the file: the mapping is viewed meanwhile, so that it stays, and no lock is held. */
#include "internal.h"
#include "mapping_types.h"

typedef struct span {
    char *start;
    size_t size;
} span;

static span pages_of(mp_mapping *mapping, size_t start, size_t stop, bool inward) {
    size_t page = mp__os_page_size();
    size_t from = mapping->skew + start * mapping->row_bytes, to = mapping->skew + stop * mapping->row_bytes;
    if (mapping->base == NULL || from == to) return (span){0};
    from = inward ? mp__pages(from) : from & ~(page - 1);
    to = inward ? to & ~(page - 1) : mp__pages(to);
    return from < to ? (span){mapping->base + from, to - from} : (span){0};
}

/* The pages stay mapped until mp_mapping_unview, which is due if it says MP_OK. */
static mp_status pin(mp_mapping *mapping, size_t start, size_t stop, bool inward, span *out) {
    mp_mapping_state state;
    mp_status status = mp_mapping_view(mapping, &state);
    if (status != MP_OK) return status;
    if (start > stop || stop > state.rows) {
        mp_mapping_unview(mapping);
        return MP_ERR_INVALID;
    }
    *out = pages_of(mapping, start, stop, inward);
    return MP_OK;
}

/* The same for who asks nothing of the file, and so need not look at it. */
static bool pin_quietly(mp_mapping *mapping, size_t start, size_t stop, span *out) {
    mp_mapping_state state;
    if (!mp_mapping_hold(mapping)) return false;
    mp_mapping_look(mapping, &state);
    *out = start <= stop && stop <= state.rows ? pages_of(mapping, start, stop, false) : (span){0};
    return true;
}

static mp_status pin_all(mp_mapping *mapping, span *out) {
    mp_mapping_state state;
    mp_status status = mp_mapping_view(mapping, &state);
    if (status == MP_OK) *out = pages_of(mapping, 0, state.rows, false);
    return status;
}

mp_status mp_mapping_advise(mp_mapping *mapping, size_t start, size_t stop, mp_advice advice, int *error) {
    span pages;
    bool drop = advice == MP_ADVICE_DONTNEED;
    mp_status status = pin(mapping, start, stop, drop, &pages);
    if (status != MP_OK) return status;
    if ((unsigned)advice > MP_ADVICE_NOHUGEPAGE) status = MP_ERR_INVALID;
    if (drop && (!mapping->is_file || mapping->access == MP_ACCESS_COPY)) status = MP_ERR_INVALID;
    if (status == MP_OK && pages.size > 0) status = mp__os_advise(pages.start, pages.size, advice, error);
    mp_mapping_unview(mapping);
    return status;
}

mp_status mp_mapping_prefetch(mp_mapping *mapping, size_t start, size_t stop, int *error) {
    span pages;
    mp_status status = pin(mapping, start, stop, false, &pages);
    if (status != MP_OK) return status;
    if (pages.size > 0 && mapping->is_file) status = mp__os_prefetch(pages.start, pages.size, error);
    else if (pages.size > 0) mp__os_prefault(pages.start, pages.size);
    mp_mapping_unview(mapping);
    return status;
}

void mp_mapping_populate(mp_mapping *mapping, size_t start, size_t stop) {
    span pages;
    if (!pin_quietly(mapping, start, stop, &pages)) return;
    if (pages.size > 0) mp__os_populate(pages.start, pages.size);
    mp_mapping_unview(mapping);
}

/* The first, the middle and the last page. */
static bool is_cached(span pages) {
    size_t page = mp__os_page_size(), middle = pages.size / 2 & ~(page - 1), sample[] = {0, middle, pages.size - page};
    for (size_t i = 0; i < 3; i++) {
        size_t found = 0;
        int ignored;
        if (mp__os_resident(pages.start + sample[i], page, &found, &ignored) != MP_OK || found == 0) return false;
    }
    return true;
}

void mp_mapping_read_ahead(mp_mapping *mapping, size_t start, size_t stop) {
    span pages;
    int ignored;
    if (!pin_quietly(mapping, start, stop, &pages)) return;
    if (pages.size > 0 && mapping->is_file && !is_cached(pages)) (void)mp__os_prefetch(pages.start, pages.size, &ignored);
    mp_mapping_unview(mapping);
}

size_t mp_mapping_page_out(mp_mapping *mapping) {
    mp_mapping_state state;
    size_t asked = 0;
    if (!mapping->is_file || mapping->access == MP_ACCESS_COPY || !mp_mapping_hold(mapping)) return 0;
    mp_mapping_look(mapping, &state);
    span pages = pages_of(mapping, 0, state.rows, false);
    if (pages.size > 0 && !state.revoked && mp__os_page_out(pages.start, pages.size)) asked = pages.size;
    mp_mapping_unview(mapping);
    return asked;
}

mp_status mp_mapping_resident(mp_mapping *mapping, size_t *resident, size_t *pages, int *error) {
    span all;
    mp_status status = pin_all(mapping, &all);
    if (status != MP_OK) return status;
    size_t found = 0;
    if (all.size > 0) status = mp__os_resident(all.start, all.size, &found, error);
    mp_mapping_unview(mapping);
    if (status != MP_OK) return status;
    *resident = found;
    *pages = all.size / mp__os_page_size();
    return MP_OK;
}

/* All that rows ever used may still be locked. */
static span unlockable(mp_mapping *mapping, span all) {
    mp__mutex_lock(&mapping->lock);
    if (mapping->base != NULL && mapping->extent > 0) all = (span){mapping->base, mapping->extent};
    mp__mutex_unlock(&mapping->lock);
    return all;
}

mp_status mp_mapping_lock(mp_mapping *mapping, bool lock, int *error) {
    span all;
    mp_status status = pin_all(mapping, &all);
    if (status != MP_OK) return status;
    if (!lock) all = unlockable(mapping, all);
    if (all.size > 0) status = mp__os_lock_pages(all.start, all.size, lock, error);
    mp_mapping_unview(mapping);
    return status;
}
