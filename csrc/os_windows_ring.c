/* os_windows_ring.c: Windows does not map pages twice for us. See os.h.
 *
 * Rejected for now: placeholders (VirtualAlloc2, MapViewOfFile3), which older Windows lacks; rings copy there, and work. */
#if defined(_WIN32)

#include <string.h>

#include "os.h"

mp_status mp__os_map_twice(size_t size, void **out) {
    (void)size;
    (void)out;
    return MP_ERR_OS;
}

mp_status mp__os_map_twice_over(void *ptr, size_t size) {
    (void)ptr;
    (void)size;
    return MP_ERR_OS;
}

const void *mp__os_find(const void *data, size_t size, const void *what, size_t length) {
    const unsigned char *at = data, *end = at + size, *first = what;
    while ((size_t)(end - at) >= length) {
        at = memchr(at, *first, (size_t)(end - at) - length + 1);
        if (at == NULL || memcmp(at, what, length) == 0) return at;
        at++;
    }
    return NULL;
}

#endif
