/* mapping_types.h: rows that lie in a file or in anonymous memory, mapped once and for all.
 *
 *      file    [ header | row 0 | row 1 | ... | row n-1 ]  end of file
 *                  :    ^ offset                         :
 *      base ──> [ skew  |          rows                  |  later rows: addresses of the file that is not that long yet      ]
 *               '- whole pages -----------------------------'- extent                                              mapped -'
 *                       ^ data
 *
 * The file is mapped further than it reaches, so that it grows by becoming longer: nothing is remapped, nothing moves. Anonymous
 * memory is reserved as far as it may grow, and becomes memory up to `extent`. Without a byte to map, `data` is the address of
 * `nothing`.
 *
 * After rows went, zero pages lie over where they were (`blank_start` to `blank_stop`, from base), because who still views them would
 * be killed by a page that the file has no more. They are taken off as the file grows again. Once a file lost rows that are not ours to
 * give up, zero pages lie there too, and the mapping is lost for good.
 *
 * Locks, in the order in which they are taken: registry list > io > lock. `io` is held by all that changes the file or needs it for
 * long; `lock` guards the fields, and the descriptor while somebody looks at the file's length. A field that is written with both held
 * may be read with either. What may give idle memory back (mp__account_relieve) is called with neither.
 *
 * Invariants (mp_mapping_is_valid):
 *   rows <= max_rows; skew + rows * row_bytes <= extent <= mapped
 *   charged == rows * row_bytes in whole pages while memory is mapped, 0 afterwards
 *   the rows in the file's header <= rows in the file: first the data, then the header; for shrinking the other way round
 *
 * Rejected: mremap (moves); a mapping for each growth (views would see a part); writing rows through the mapping when they are
 * appended (a full disk would be a SIGBUS). */
#ifndef MP_MAPPING_TYPES_H
#define MP_MAPPING_TYPES_H

#include "types.h"

typedef struct mp__guard_slot mp__guard_slot;

/* What the guard is told of a mapping. */
typedef struct mp__guard_range {
    void *base;
    size_t extent; /* bytes that are rows, in pages; touching what is behind is somebody's mistake */
    uint64_t offset;
    int file;
    uint64_t device, node; /* of the file */
    bool writable;
} mp__guard_range;

/* ---- the structure ---- */

typedef struct mp__header {
    char *bytes; /* as they are in the file; NULL: the file has none */
    char *draft; /* of the same size */
    size_t size;
    mp_npy parsed;
    bool torn; /* the bytes in the file are not known to be `bytes` */
} mp__header;

struct mp_mapping {
    mp__tenant tenant; /* first: the two are cast into each other */
    mp__mutex io, lock;
    const mp_source *source;
    mp_account *account;
    mp_access access;
    bool is_file, shared;
    bool fresh; /* nobody was promised yet that this file holds anything */
    uint64_t offset;
    size_t row_bytes, skew;
    mp__header header;

    int file; /* -1: anonymous, or closed */
    mp__guard_slot *slot;
    char *base; /* NULL: nothing is mapped */
    size_t mapped, extent, charged;
    size_t addresses; /* `mapped` when it was made */
    size_t blank_start, blank_stop;
    size_t rows, max_rows, views;
    bool pending; /* the header in the file tells of fewer rows */
    bool closed, revoked, lost;
    bool orphaned; /* its owner is gone: the last view that ends frees it */
    _Alignas(64) char nothing[64];
};

static inline size_t mp__pages(size_t nbytes) {
    size_t page = mp__os_page_size();
    return (nbytes + page - 1) & ~(page - 1); /* of sizes that were checked when they were made */
}

#endif
