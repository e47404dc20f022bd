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

/* Zeroed, readable and writable memory. `huge` asks for huge pages where the OS has them. */
mp_status mp__os_map(size_t size, size_t alignment, bool huge, void **out);
mp_status mp__os_unmap(void *ptr, size_t size);
/* Addresses only; mp__os_protect_rw makes them memory. */
mp_status mp__os_reserve(size_t size, size_t alignment, void **out);
mp_status mp__os_protect_rw(void *ptr, size_t size);
/* Give pages back and keep the range; after mp__os_commit it reads as zeros. */
mp_status mp__os_decommit(void *ptr, size_t size);
mp_status mp__os_commit(void *ptr, size_t size);
/* Have pages in memory now. Best effort: contents do not change. */
void mp__os_prefault(void *ptr, size_t size);

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
