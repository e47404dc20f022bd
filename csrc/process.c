/* process.c: what the process and the machine have in memory, for who must decide by it. The work is done by the os files. */
#include "internal.h"

mp_status mp_process_memory(size_t *rss, size_t *peak) {
    size_t now, most;
    mp_status status = mp__os_process_memory(&now, &most);
    if (status != MP_OK) return status;
    *rss = now;
    *peak = most < now ? now : most; /* the OS may bring the two up to date at different times */
    return MP_OK;
}

mp_status mp_machine_memory(size_t *total, size_t *available) {
    size_t all, free;
    mp_status status = mp__os_machine_memory(&all, &free);
    if (status != MP_OK) return status;
    *total = all;
    *available = free;
    return MP_OK;
}

bool mp_malloc_trim(void) { return mp__os_malloc_trim(); }
