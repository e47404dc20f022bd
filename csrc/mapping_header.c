/* mapping_header.c: the .npy header of a file that grows, and when it is written.
 *
 *      append ──> data in the file, header pending ──> flush or close: data on the disk, then the header
 *
 *      bytes   | ... 'shape': (100, 3), }   \n |   as in the file
 *      draft   | ... 'shape': (1250, 3), }  \n |   the next one; only what differs is written, then the two change places
 *
 * So a crash at any moment leaves a header that parses and tells of no more rows than are there; what lies behind them is a tail that
 * the next append overwrites. The bytes that differ are within some twenty, which no kill tears apart: a signal interrupts a write only
 * between pages.
 *
 * Rejected: a new file and a rename (views are of this file); writing the header with every append (a sync each). */
#include <string.h>

#include "internal.h"
#include "mapping_types.h"

static mp_status copy_header(mp_mapping *mapping, const char *bytes, size_t size) {
    mp__header *header = &mapping->header;
    const mp_source *source = mapping->source;
    header->size = size;
    header->bytes = source->alloc(source->context, size);
    header->draft = header->bytes != NULL ? source->alloc(source->context, size) : NULL;
    if (header->draft == NULL) return MP_ERR_NOMEM;
    memcpy(header->bytes, bytes, size);
    return MP_OK;
}

/* What the parser changed in our copy is not in the file, so that the first write is of the whole. */
mp_status mp__header_open(mp_mapping *mapping, const char *bytes, size_t size) {
    mp__header *header = &mapping->header;
    if (size == 0) return MP_ERR_INVALID;
    mp_status status = copy_header(mapping, bytes, size);
    if (status == MP_OK) status = mp_npy_parse(header->bytes, size, &header->parsed);
    if (status == MP_OK && header->parsed.ndim == 0) status = MP_ERR_INVALID;
    header->torn = true;
    return status;
}

void mp__header_free(mp_mapping *mapping) {
    const mp_source *source = mapping->source;
    if (mapping->header.bytes != NULL) source->free(source->context, mapping->header.bytes);
    if (mapping->header.draft != NULL) source->free(source->context, mapping->header.draft);
}

static mp_status draft_rows(mp__header *header, size_t rows, mp_npy *drafted) {
    memcpy(header->draft, header->bytes, header->size);
    *drafted = header->parsed;
    return mp_npy_set_rows(header->draft, header->size, drafted, rows);
}

bool mp__header_has_room(mp_mapping *mapping, size_t rows) {
    mp_npy drafted;
    return mapping->header.bytes == NULL || draft_rows(&mapping->header, rows, &drafted) == MP_OK;
}

size_t mp__header_rows(const mp_mapping *mapping) {
    return mapping->header.bytes != NULL ? (size_t)mapping->header.parsed.shape[0] : mapping->rows;
}

/* The range in which draft and file differ. */
static void compare(const mp__header *header, size_t *start, size_t *stop) {
    *start = 0;
    *stop = header->size;
    if (header->torn) return;
    while (*stop > 0 && header->bytes[*stop - 1] == header->draft[*stop - 1]) --*stop;
    while (*start < *stop && header->bytes[*start] == header->draft[*start]) ++*start;
}

mp_status mp__header_write(mp_mapping *mapping, size_t rows, int *error) {
    mp__header *header = &mapping->header;
    mp_npy drafted;
    size_t start, stop;
    mp_status status = draft_rows(header, rows, &drafted);
    if (status != MP_OK) return status;
    compare(header, &start, &stop);
    status = mp__os_file_write(mapping->file, start, header->draft + start, stop - start, error);
    header->torn = status != MP_OK;
    if (status != MP_OK) return status;
    char *written = header->draft;
    header->draft = header->bytes;
    header->bytes = written;
    header->parsed = drafted;
    return MP_OK;
}

/* Of a fresh file nobody was promised anything: a power failure may take it, and closing it need not wait for the disk. */
mp_status mp__header_settle(mp_mapping *mapping, int *error) {
    if (!mapping->pending) return MP_OK;
    mp_status status = mapping->fresh ? MP_OK : mp__os_file_sync(mapping->file, error);
    if (status == MP_OK) status = mp__header_write(mapping, mapping->rows, error);
    if (status == MP_OK) mapping->pending = false;
    return status;
}

/* Appended rows may lie anywhere, so that all must be there before the header tells of them. */
static mp_status flush_locked(mp_mapping *mapping, size_t start, size_t stop, bool wait, int *error) {
    mp_status status = mp__mapping_usable(mapping);
    if (status != MP_OK) return status;
    if (start > stop || stop > mapping->rows) return MP_ERR_INVALID;
    if (!mapping->is_file || mapping->access != MP_ACCESS_WRITE) return MP_OK;
    size_t page = mp__os_page_size();
    bool fresh = mapping->fresh, settle = wait && (mapping->pending || fresh); /* a new file has its header to settle, too */
    size_t from = settle ? 0 : (mapping->skew + start * mapping->row_bytes) & ~(page - 1);
    size_t to = mp__pages(mapping->skew + (settle ? mapping->rows : stop) * mapping->row_bytes);
    bool empty = mapping->base == NULL || mapping->row_bytes == 0 || (!settle && start == stop);
    if (!empty && to > from) status = mp__os_file_flush(mapping->file, mapping->base + from, to - from, wait, error);
    if (status != MP_OK || !settle) return status;
    mapping->fresh = false;
    status = mp__header_settle(mapping, error);
    if (status == MP_OK) status = mp__os_file_sync(mapping->file, error);
    if (status == MP_OK) return status;
    mapping->fresh = fresh; /* the next flush tries again */
    mapping->pending = mapping->header.bytes != NULL;
    return status;
}

mp_status mp_mapping_flush(mp_mapping *mapping, size_t start, size_t stop, bool wait, int *error) {
    mp__mutex_lock(&mapping->io);
    mp_status status = flush_locked(mapping, start, stop, wait, error);
    mp__mutex_unlock(&mapping->io);
    return status;
}
