/* sizeclass.h: from a size to the index of its class, on the hot path. The table is drawn in sizeclass.c. */
#ifndef MP_SIZECLASS_H
#define MP_SIZECLASS_H

#include "port.h"
#include "types.h"

enum { MP__TINY_CLASSES = 32, MP__PAGED_AT = 48, MP__GEOMETRIC_AT = 63 };

/* nbytes <= MP__MAX_SIZE */
static inline unsigned mp__class_of(size_t nbytes) {
    size_t last = nbytes - (nbytes != 0); /* the last byte's offset decides */
    if (last < 2048) return (unsigned)(last >> 6);
    if (last < 4096) return MP__TINY_CLASSES + (unsigned)((last - 2048) >> 7);
    if (last < 65536) return MP__PAGED_AT + (unsigned)(last >> 12) - 1;
    unsigned e = mp__log2(last);
    return MP__GEOMETRIC_AT + (e - 16) * 16 + (unsigned)((last >> (e - 4)) & 15);
}

/* A pool whose blocks are aligned further lends what such an alignment rounds up to. */
static inline unsigned mp__class_for(const mp_pool *pool, size_t nbytes) {
    size_t alignment = pool->config.alignment;
    if (MP_UNLIKELY(alignment > 64)) nbytes = nbytes > 0 ? (nbytes + alignment - 1) & ~(alignment - 1) : alignment;
    return mp__class_of(nbytes);
}

#endif
