/* mapping_file.c: a mapped file becomes longer and shorter.
 *
 *      append   write behind the last row ──> take the zero pages off there ──> the rows count
 *      grow     make the file longer      ──> take the zero pages off there ──> the rows count
 *      shrink   header ──> zero pages over the rows that go, which count no more ──> make the file shorter
 *
 * Each step can be refused, and then what was done is undone. A page that counts is in the file at every moment, so that neither a
 * view nor a look at the file's length from another thread finds something missing.
 *
 * A file may be longer than its rows: a tail, left by a crash or by whoever made it. It is never shown: append overwrites it, grow and
 * shrink cut it off. */
#include <string.h>

#include "internal.h"
#include "mapping_types.h"

enum { WORTH_A_CALL = 64 << 10 };

static size_t row_end(const mp_mapping *mapping, size_t rows) { return mapping->skew + rows * mapping->row_bytes; }

static uint64_t file_end(const mp_mapping *mapping, size_t rows) { return mapping->offset + (uint64_t)rows * mapping->row_bytes; }

/* The file again where zero pages lie, up to what these rows need. */
static mp_status reveal(mp_mapping *mapping, size_t rows, int *error) {
    size_t start = mapping->blank_start, stop = mp__pages(row_end(mapping, rows));
    if (stop > mapping->blank_stop) stop = mapping->blank_stop;
    if (start >= stop) return MP_OK;
    uint64_t offset = mapping->offset - mapping->skew + start;
    mp_status status = mp__os_file_map_over(mapping->file, offset, stop - start, mapping->base + start, error);
    if (status == MP_OK) mapping->blank_start = stop;
    return status;
}

static mp_status cover(mp_mapping *mapping, size_t rows, int *error) {
    size_t start = mp__pages(row_end(mapping, rows)), stop = mp__pages(row_end(mapping, mapping->rows));
    if (mapping->base == NULL || start >= stop) return MP_OK;
    mp_status status = mp__os_blank(mapping->base + start, stop - start, true, error);
    if (status != MP_OK) return status;
    if (mapping->blank_start == mapping->blank_stop) mapping->blank_stop = stop;
    mapping->blank_start = start;
    return MP_OK;
}

/* Best effort, and its error is not the one to report. */
static void restore_size(mp_mapping *mapping, uint64_t size) {
    int ignored;
    (void)mp__os_file_set_size(mapping->file, size, &ignored);
}

mp_status mp__file_append(mp_mapping *mapping, const void *data, size_t rows, int *error) {
    mp__file_stat found;
    uint64_t end = file_end(mapping, mapping->rows);
    mp_status status = mp__os_file_stat(mapping->file, &found, error);
    if (status != MP_OK) return status;
    if (found.size < end) return mp__mapping_usable(mapping); /* since the look that this call began with */
    size_t nbytes = rows * mapping->row_bytes;
    bool tail = found.size > end;
    if (tail && end + nbytes > found.size) status = mp__os_file_set_size(mapping->file, end + nbytes, error);
    if (status != MP_OK) return status; /* the tail is as it was */
    if (nbytes >= WORTH_A_CALL) mp__os_file_set_aside(mapping->file, end, nbytes);
    status = mp__os_file_write(mapping->file, end, data, nbytes, error);
    if (status == MP_OK) status = reveal(mapping, mapping->rows + rows, error);
    if (status != MP_OK) restore_size(mapping, found.size);
    return status;
}

/* A tail, and bytes behind the last row that share its page: those may have been written through a view before they were anybody's. */
static mp_status clear(mp_mapping *mapping, uint64_t from, uint64_t stop, int *error) {
    static const char zeros[64 << 10];
    mp_status status = MP_OK;
    while (status == MP_OK && from < stop) {
        size_t piece = stop - from < sizeof zeros ? (size_t)(stop - from) : sizeof zeros;
        status = mp__os_file_write(mapping->file, from, zeros, piece, error);
        from += piece;
    }
    return status;
}

/* The length first: whether it can be is seen before a byte of a tail is lost. */
mp_status mp__file_grow(mp_mapping *mapping, size_t rows, int *error) {
    mp__file_stat found;
    uint64_t end = file_end(mapping, mapping->rows), wanted = file_end(mapping, rows), page = mp__os_page_size();
    mp_status status = mp__os_file_stat(mapping->file, &found, error);
    if (status != MP_OK || wanted == end) return status;
    if (found.size < end) return mp__mapping_usable(mapping);
    status = mp__os_file_set_size(mapping->file, wanted, error);
    if (status != MP_OK) return status;
    uint64_t stop = (end + page - 1) / page * page;
    if (stop < found.size) stop = found.size;
    status = clear(mapping, end, stop < wanted ? stop : wanted, error);
    if (status == MP_OK) status = reveal(mapping, rows, error);
    if (status != MP_OK) restore_size(mapping, found.size);
    return status;
}

/* The header that tells of rows which go must be on the disk before they do. */
static mp_status lower_header(mp_mapping *mapping, size_t rows, int *error) {
    if (mp__header_rows(mapping) <= rows || mapping->header.bytes == NULL) return MP_OK;
    mp_status status = mp__header_write(mapping, rows, error);
    return status == MP_OK ? mp__os_file_sync(mapping->file, error) : status;
}

static mp_status shorten(mp_mapping *mapping, size_t rows, int *error) {
    size_t before = mapping->rows;
    mp__mutex_lock(&mapping->lock);
    mp_status status = cover(mapping, rows, error);
    if (status == MP_OK) mapping->rows = rows;
    mp__mutex_unlock(&mapping->lock);
    if (status != MP_OK || mapping->row_bytes == 0) return status;
    status = mp__os_file_set_size(mapping->file, file_end(mapping, rows), error);
    if (status == MP_OK) return MP_OK;
    int ignored;
    bool back = reveal(mapping, before, &ignored) == MP_OK;
    mp__mutex_lock(&mapping->lock);
    if (back) mapping->rows = before;
    mp__mutex_unlock(&mapping->lock);
    return back ? status : MP_OK; /* rows that cannot be shown again are gone, and the file has a tail */
}

mp_status mp__file_shrink(mp_mapping *mapping, size_t rows, int *error) {
    mp_status status = lower_header(mapping, rows, error);
    if (status == MP_OK) status = shorten(mapping, rows, error);
    mapping->pending = mp__header_rows(mapping) != mapping->rows;
    return status;
}

/* With nobody viewing it. Pages go as a hole, so that a file of zeros is sparse again. */
static mp_status clear_all(mp_mapping *mapping, int *error) {
    size_t start = mapping->skew, stop = row_end(mapping, mapping->rows), first = mp__pages(start);
    mp_status status = MP_OK;
    if (mapping->offset > 0 && !mp__os_file_make_hole(mapping->file, 0, mapping->offset)) {
        status = clear(mapping, 0, mapping->offset, error);
    }
    if (status != MP_OK || mapping->base == NULL || start == stop) return status;
    memset(mapping->base + start, 0, (first < stop ? first : stop) - start);
    if (first < stop) mp__os_zero(mapping->base + first, mp__pages(stop) - first, true);
    return MP_OK;
}

mp_status mp_mapping_make_blank(mp_mapping *mapping, int *error) {
    mp__mutex_lock(&mapping->io);
    mp_status status = mp__mapping_usable(mapping);
    if (status == MP_OK && (!mapping->is_file || mapping->access != MP_ACCESS_WRITE)) status = MP_ERR_INVALID;
    if (status == MP_OK) status = mp__os_file_set_size(mapping->file, file_end(mapping, mapping->rows), error);
    if (status == MP_OK) status = clear_all(mapping, error);
    mp__mutex_unlock(&mapping->io);
    return status;
}
