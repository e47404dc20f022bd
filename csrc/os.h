/* os.h: the operating system behind one thin layer. os_posix.c and os_windows.c implement it, and only they ask which one it is.
 *
 * Preconditions, stated once: sizes are multiples of the page size and not 0; alignments are powers of two and at least a page;
 * ranges lie within one mapping made here. */
#ifndef MP_OS_H
#define MP_OS_H

#include "include/mempool.h"
#include "port.h"

#if defined(_WIN32)
typedef struct mp__mutex { void *srw; } mp__mutex;
typedef struct mp__cond { void *cv; } mp__cond;
typedef struct mp__thread { void *handle; } mp__thread;
#else
#include <pthread.h>
typedef struct mp__mutex { pthread_mutex_t impl; } mp__mutex;
typedef struct mp__cond { pthread_cond_t impl; } mp__cond;
typedef struct mp__thread {
    pthread_t impl;
    void (*run)(void);
    long id;
} mp__thread;
#endif

size_t mp__os_page_size(void);
size_t mp__os_huge_size(void);
/* Bytes of memory that the machine has; a guess where it does not say. */
size_t mp__os_physical_memory(void);

/* Zeroed, readable and writable memory. `huge` asks for huge pages where the OS has them. */
mp_status mp__os_map(size_t size, size_t alignment, bool huge, void **out);
mp_status mp__os_unmap(void *ptr, size_t size);
/* Addresses only; mp__os_protect_rw makes them memory, which children of fork share if `shared`. */
mp_status mp__os_reserve(size_t size, size_t alignment, bool shared, void **out);
mp_status mp__os_protect_rw(void *ptr, size_t size);
/* Bytes of addresses that the process may still take; SIZE_MAX where nobody set a limit. */
size_t mp__os_address_room(void);
/* Ask for huge pages there, where the OS has them. */
void mp__os_advise_huge(void *ptr, size_t size);
/* Give pages back and keep the range; after mp__os_commit it reads as zeros. */
mp_status mp__os_decommit(void *ptr, size_t size);
mp_status mp__os_commit(void *ptr, size_t size);
/* Have pages in memory now. Best effort: contents do not change. */
void mp__os_prefault(void *ptr, size_t size);

/* ---- files and shared mappings: os_posix_file.c, os_windows_file.c. What fails puts the OS' error number into `*error` ---- */

typedef struct mp__file_stat {
    uint64_t size;
    uint64_t device, node; /* tell one file from another; both 0 where the OS does not say */
} mp__file_stat;

/* Files are mapped at multiples of this: the page, or more. */
size_t mp__os_file_granularity(void);
/* MP_ERR_INVALID if it is no regular file. Safe in a signal handler, as is mp__os_blank. */
mp_status mp__os_file_stat(int file, mp__file_stat *out, int *error);
/* As much as there is, up to `*size`. */
mp_status mp__os_file_read(int file, uint64_t at, void *data, size_t *size, int *error);
/* All of it, or an error after a part of it. */
mp_status mp__os_file_write(int file, uint64_t at, const void *data, size_t size, int *error);
/* Have the disk set room aside for what will be written there; the file becomes no longer. Best effort. */
void mp__os_file_set_aside(int file, uint64_t at, size_t size);
/* Make a hole of what is there, which reads as zeros and takes no room; false where that cannot be. */
bool mp__os_file_make_hole(int file, uint64_t at, uint64_t size);
mp_status mp__os_file_set_size(int file, uint64_t size, int *error);
/* What was written, and the length, are on the disk when it returns. */
mp_status mp__os_file_sync(int file, int *error);
mp_status mp__os_file_close(int file, int *error);

/* May reach beyond the end of the file where the OS lets it: those pages are there once the file is. */
mp_status mp__os_file_map(int file, uint64_t offset, size_t size, mp_access access, void **out, int *error);
/* The same in the place of what is mapped there, for MP_ACCESS_WRITE. */
mp_status mp__os_file_map_over(int file, uint64_t offset, size_t size, void *ptr, int *error);
mp_status mp__os_file_unmap(void *ptr, size_t size);
/* See mp_share_mark. */
bool mp__os_file_can_mark(void);
mp_status mp__os_file_mark(int file, uint64_t part, mp_share_as as, int *error);
/* Written back; with `wait` they are on the disk when it returns. */
mp_status mp__os_file_flush(int file, void *ptr, size_t size, bool wait, int *error);
/* Private zero pages in the place of what is mapped there, at once, so that others may be reading it. */
mp_status mp__os_blank(void *ptr, size_t size, bool writable, int *error);
/* Makes anonymous memory zero and gives its pages back if that can be had. */
void mp__os_zero(void *ptr, size_t size, bool shared);

mp_status mp__os_advise(void *ptr, size_t size, mp_advice advice, int *error);
/* Have pages of a file in memory soon ... */
mp_status mp__os_prefetch(void *ptr, size_t size, int *error);
/* ... or mapped now. */
void mp__os_populate(void *ptr, size_t size);
/* How many of the pages are in memory. */
mp_status mp__os_resident(void *ptr, size_t size, size_t *pages, int *error);
mp_status mp__os_lock_pages(void *ptr, size_t size, bool lock, int *error);

/* From now on `handler` is asked first when a page cannot be supplied. True: it can now, try again. It runs as a signal handler does. */
mp_status mp__os_guard_faults(bool (*handler)(void *address), int *error);

/* ---- the process and the machine: os_posix_process.c, os_windows_process.c ---- */

/* Bytes, asked of the OS anew each time; MP_ERR_OS where it does not say. */
mp_status mp__os_process_memory(size_t *rss, size_t *peak);
mp_status mp__os_machine_memory(size_t *total, size_t *available);
/* Have the C library give free memory back; true if some went. */
bool mp__os_malloc_trim(void);
/* Ask that the pages leave memory, their contents kept where they come from; false where the OS has no such advice. */
bool mp__os_page_out(void *ptr, size_t size);

/* ---- rings: os_posix_ring.c, os_windows_ring.c ---- */

/* `size` bytes of zeroed memory at `*out` and, the same pages, behind it. MP_ERR_OS where that cannot be had; `size` is a multiple of
 * the file granularity. Children of fork share the pages. */
mp_status mp__os_map_twice(size_t size, void **out);
/* The same in the place of what is mapped there: on failure that may have been replaced in part. */
mp_status mp__os_map_twice_over(void *ptr, size_t size);
/* Where in `data` the `length` bytes, more than 0, first occur, or NULL. */
const void *mp__os_find(const void *data, size_t size, const void *what, size_t length);

/* Zeroed bookkeeping memory from the C library, or NULL. `size` is a multiple of the alignment. */
void *mp__os_alloc_aligned(size_t size, size_t alignment);
void mp__os_free_aligned(void *ptr);

uint64_t mp__os_now(void); /* monotonic ns */
void mp__os_yield(void);
_Noreturn void mp__os_abort(const char *message);

void mp__mutex_init(mp__mutex *mutex);
void mp__mutex_destroy(mp__mutex *mutex);
void mp__mutex_lock(mp__mutex *mutex);
void mp__mutex_unlock(mp__mutex *mutex);
void mp__cond_init(mp__cond *cond);
void mp__cond_signal(mp__cond *cond);
/* Until signalled or monotonic time `deadline`; may also return early. */
void mp__cond_wait_until(mp__cond *cond, mp__mutex *mutex, uint64_t deadline);
/* Blocks all signals in the new thread. `thread` stays where it is until it is joined. */
mp_status mp__thread_start(mp__thread *thread, void (*run)(void));
/* Returns once the OS does not count the thread any more. */
void mp__thread_join(mp__thread *thread);
/* Registers the handlers that run around fork(). Once a process; does nothing where fork does not exist. */
mp_status mp__os_at_fork(void (*prepare)(void), void (*parent)(void), void (*child)(void));

/* A lock for a few instructions. Not fair; yields the processor when its holder seems to have lost it. */
typedef struct mp__spin { atomic_uint locked; } mp__spin;

static inline bool mp__spin_try(mp__spin *spin) { return atomic_exchange_explicit(&spin->locked, 1U, memory_order_acquire) == 0; }

static inline void mp__spin_unlock(mp__spin *spin) { atomic_store_explicit(&spin->locked, 0U, memory_order_release); }

static inline void mp__spin_lock(mp__spin *spin) {
    while (!mp__spin_try(spin)) {
        for (unsigned i = 0; i < 64 && atomic_load_explicit(&spin->locked, memory_order_relaxed); i++) mp__pause();
        if (atomic_load_explicit(&spin->locked, memory_order_relaxed)) mp__os_yield();
    }
}

#endif
