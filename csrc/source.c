/* source.c: the source of memory that pools have unless a test gives them another one: malloc for bookkeeping, the OS for
 * blocks. */
#include <stdlib.h>

#include "os.h"

static void *source_alloc(void *context, size_t size) {
    (void)context;
    /* Shards are aligned to two cache lines; aligned_alloc wants a multiple. */
    size_t rounded;
    if (!mp__align_up(size, 2 * MP_CACHE_LINE, &rounded)) return NULL;
    return mp__os_alloc_aligned(rounded, 2 * MP_CACHE_LINE);
}

static void source_free(void *context, void *ptr) {
    (void)context;
    mp__os_free_aligned(ptr);
}

static mp_status source_map(void *context, size_t size, size_t alignment, bool huge, void **out) {
    (void)context;
    return mp__os_map(size, alignment, huge, out);
}

static mp_status source_unmap(void *context, void *ptr, size_t size) {
    (void)context;
    return mp__os_unmap(ptr, size);
}

static mp_status source_commit(void *context, void *ptr, size_t size) {
    (void)context;
    return mp__os_commit(ptr, size);
}

static mp_status source_decommit(void *context, void *ptr, size_t size) {
    (void)context;
    return mp__os_decommit(ptr, size);
}

static mp_status source_reserve(void *context, size_t size, size_t alignment, bool shared, void **out) {
    (void)context;
    return mp__os_reserve(size, alignment, shared, out);
}

static mp_status source_activate(void *context, void *ptr, size_t size) {
    (void)context;
    return mp__os_protect_rw(ptr, size);
}

static mp_status source_map_twice(void *context, size_t size, void **out) {
    (void)context;
    return mp__os_map_twice(size, out);
}

const mp_source *mp_source_os(void) {
    static const mp_source source = {
        .alloc = source_alloc,
        .free = source_free,
        .map = source_map,
        .unmap = source_unmap,
        .commit = source_commit,
        .decommit = source_decommit,
        .reserve = source_reserve,
        .activate = source_activate,
        .map_twice = source_map_twice,
    };
    return &source;
}

size_t mp_page_size(void) { return mp__os_page_size(); }
size_t mp_huge_page_size(void) { return mp__os_huge_size(); }
