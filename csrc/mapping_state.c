/* mapping_state.c: what a mapping knows of itself: how many rows, whether the file still holds them, whether all invariants hold.
 *
 *      fstat ──> shorter than the rows? ──> zero pages over what went, lost for good ──> MP_ERR_LOST to this call and all later ones
 *
 * Rejected: to forgive a file that is long again. What came back need not be what went. */
#include "internal.h"
#include "mapping_types.h"

static size_t used_bytes(const mp_mapping *mapping) { return mapping->skew + mapping->rows * mapping->row_bytes; }

/* Zero pages over all that rows ever used behind the last page of the file. */
static void cover_loss(mp_mapping *mapping, uint64_t size) {
    uint64_t first = mapping->offset - mapping->skew, page = mp__os_page_size();
    uint64_t start = size > first ? (size - first + page - 1) / page * page : 0;
    int ignored;
    if (mapping->base == NULL || start >= mapping->extent) return;
    (void)mp__os_blank(mapping->base + start, mapping->extent - (size_t)start, mapping->access != MP_ACCESS_READ, &ignored);
}

bool mp__mapping_is_lost(mp_mapping *mapping) {
    mp__file_stat found;
    int ignored;
    if (mapping->lost) return true;
    if (mapping->file >= 0 && mp__os_file_stat(mapping->file, &found, &ignored) == MP_OK) {
        uint64_t end = mapping->offset + (uint64_t)mapping->rows * mapping->row_bytes;
        mapping->lost = found.size < end;
        if (mapping->lost) cover_loss(mapping, found.size);
    }
    if (mp__guard_is_lost(mapping->slot)) mapping->lost = true;
    return mapping->lost;
}

mp_status mp__mapping_state(mp_mapping *mapping) {
    if (mapping->closed) return MP_ERR_CLOSED;
    return mp__mapping_is_lost(mapping) ? MP_ERR_LOST : MP_OK;
}

mp_status mp__mapping_usable(mp_mapping *mapping) {
    mp__mutex_lock(&mapping->lock);
    mp_status status = mp__mapping_state(mapping);
    mp__mutex_unlock(&mapping->lock);
    return status;
}

void mp__mapping_set_rows(mp_mapping *mapping, size_t rows) {
    mp__mutex_lock(&mapping->lock);
    mapping->rows = rows;
    size_t extent = mp__pages(used_bytes(mapping));
    if (mapping->base != NULL && extent > mapping->extent) {
        mapping->extent = extent;
        mp__guard_extend(mapping->slot, extent);
    }
    mp__mutex_unlock(&mapping->lock);
}

bool mp__mapping_is_sound(const mp_mapping *mapping) {
    if (mapping->closed) return true; /* then the last view may be ending this moment */
    bool sound = mapping->rows <= mapping->max_rows && mapping->extent <= mapping->mapped;
    if (mapping->base != NULL && mapping->row_bytes > 0 && mapping->rows > 0)
        sound = sound && used_bytes(mapping) <= mapping->extent;
    if (mapping->base == NULL) sound = sound && mapping->mapped == 0 && mapping->rows * mapping->row_bytes == 0;
    sound = sound && mapping->charged == mp__pages(mapping->rows * mapping->row_bytes);
    sound = sound && mapping->blank_start <= mapping->blank_stop && mapping->blank_stop <= mapping->extent;
    if (mapping->blank_start < mapping->blank_stop) sound = sound && mp__pages(used_bytes(mapping)) <= mapping->blank_start;
    return sound && (mapping->is_file || mapping->blank_stop == 0);
}

bool mp_mapping_is_valid(mp_mapping *mapping) {
    mp__mutex_lock(&mapping->io);
    mp__mutex_lock(&mapping->lock);
    bool sound = mp__mapping_is_sound(mapping);
    bool gone = mapping->closed && mapping->views == 0;
    if (mapping->closed) sound = mapping->file < 0 && (!gone || mapping->base != NULL || mapping->charged == 0);
    mp__mutex_unlock(&mapping->lock);
    mp__mutex_unlock(&mapping->io);
    return sound;
}
