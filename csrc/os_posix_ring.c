/* os_posix_ring.c: pages that are mapped twice, and a search in them, on Linux, macOS and the BSDs. See os.h.
 *
 * Only a file can be mapped twice, so there is one for a moment: without a name (memfd), or with one that goes at once (shm_open). */
#if !defined(_WIN32)

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif

#include "os.h"

#if !defined(MAP_ANONYMOUS)
#define MAP_ANONYMOUS MAP_ANON
#endif
#if !defined(MAP_NORESERVE)
#define MAP_NORESERVE 0
#endif

#if defined(__linux__) && defined(SYS_memfd_create)
/* The wrapper is younger than the C libraries that we run on. */
static int open_nameless(void) { return (int)syscall(SYS_memfd_create, "mempool-ring", 1U /* MFD_CLOEXEC */); }
#elif defined(__linux__)
static int open_nameless(void) { return -1; }
#else
static int open_nameless(void) {
    static atomic_uint count;
    char name[32]; /* macOS takes no more */
    for (int i = 0; i < 16; i++) {
        unsigned number = atomic_fetch_add(&count, 1);
        (void)snprintf(name, sizeof name, "/mempool-%lx-%x", (unsigned long)getpid(), number);
        int file = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
        if (file >= 0) (void)shm_unlink(name);
        if (file >= 0 || errno != EEXIST) return file;
    }
    return -1;
}
#endif

static bool map_over(int file, void *ptr, size_t size) {
    return mmap(ptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) != MAP_FAILED;
}

mp_status mp__os_map_twice_over(void *ptr, size_t size) {
    int file = open_nameless();
    if (file < 0) return MP_ERR_OS;
    bool mapped = ftruncate(file, (off_t)size) == 0 && map_over(file, ptr, size) && map_over(file, (char *)ptr + size, size);
    (void)close(file); /* the mappings keep it */
    return mapped ? MP_OK : MP_ERR_OS;
}

mp_status mp__os_map_twice(size_t size, void **out) {
    void *ptr = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ptr == MAP_FAILED) return MP_ERR_NOMEM;
    mp_status status = mp__os_map_twice_over(ptr, size);
    if (status == MP_OK) *out = ptr;
    else (void)munmap(ptr, 2 * size);
    return status;
}

const void *mp__os_find(const void *data, size_t size, const void *what, size_t length) {
    if (length == 1) return memchr(data, *(const unsigned char *)what, size);
    return memmem(data, size, what, length);
}

#endif
