/* os_posix.c: Linux, macOS and the BSDs. See os.h for what each function promises. */
#if !defined(_WIN32)

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
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

enum { HUGE_PAGE = 2 << 20, THREAD_STACK = 256 << 10, JOIN_TRIES = 100000 };

size_t mp__os_page_size(void) {
    static atomic_size_t cached;
    size_t size = atomic_load_explicit(&cached, memory_order_relaxed);
    if (size == 0) {
        long answer = sysconf(_SC_PAGESIZE);
        size = answer > 0 ? (size_t)answer : 4096;
        atomic_store_explicit(&cached, size, memory_order_relaxed);
    }
    return size;
}

/* The alignment that lets the OS use huge pages. Where it has none this only costs address space. */
size_t mp__os_huge_size(void) { return HUGE_PAGE; }

size_t mp__os_physical_memory(void) {
    long pages = sysconf(_SC_PHYS_PAGES);
    return pages > 0 ? (size_t)pages * mp__os_page_size() : (size_t)8 << 30;
}

/* 0 where the OS does not say. */
static size_t addresses_in_use(void) {
    unsigned long long pages = 0;
#if defined(__linux__)
    FILE *file = fopen("/proc/self/statm", "re");
    if (file == NULL) return 0;
    if (fscanf(file, "%llu", &pages) != 1) pages = 0;
    (void)fclose(file);
#endif
    return (size_t)pages * mp__os_page_size();
}

size_t mp__os_address_room(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur > SIZE_MAX) return SIZE_MAX;
    size_t used = addresses_in_use();
    return limit.rlim_cur > used ? (size_t)limit.rlim_cur - used : 0;
}

static mp_status map_raw(size_t size, int protection, int flags, void **out) {
    int kind = flags & MAP_SHARED ? 0 : MAP_PRIVATE;
    void *ptr = mmap(NULL, size, protection, kind | MAP_ANONYMOUS | flags, -1, 0);
    if (ptr == MAP_FAILED) return MP_ERR_NOMEM;
    *out = ptr;
    return MP_OK;
}

enum { KEPT_APART = 32 << 20 }; /* bytes */

/* Maps too much and cuts both ends off. What is left lies at the front, with `gap` bytes free behind it. */
static mp_status map_oversized(size_t size, size_t gap, size_t alignment, int protection, int flags, void **out) {
    size_t span;
    void *raw;
    if (!mp__add(size, alignment + gap, &span)) return MP_ERR_NOMEM;
    if (map_raw(span, protection, flags, &raw) != MP_OK) return MP_ERR_NOMEM;
    size_t head = (alignment - ((uintptr_t)raw & (alignment - 1))) & (alignment - 1);
    char *start = (char *)raw + head;
    if (head && munmap(raw, head) != 0) {
        (void)munmap(raw, span);
        return MP_ERR_NOMEM;
    }
    size_t tail = span - head - size;
    if (tail && munmap(start + size, tail) != 0) {
        (void)munmap(start, span - head);
        return MP_ERR_NOMEM;
    }
    *out = start;
    return MP_OK;
}

static mp_status map_aligned(size_t size, size_t alignment, int protection, int flags, void **out) {
    if (map_raw(size, protection, flags, out) != MP_OK) return MP_ERR_NOMEM;
    if (((uintptr_t)*out & (alignment - 1)) == 0) return MP_OK;
    if (munmap(*out, size) != 0) return MP_ERR_NOMEM;
    return map_oversized(size, 0, alignment, protection, flags, out);
}

/* Addresses that differ by a large power of two are one to the predictors of a processor's caches: four arrays of 256 MiB side by side
 * were worked on at two thirds of the speed. So large mappings keep a little apart. */
static mp_status map_apart(size_t size, size_t alignment, void **out) {
    return map_oversized(size, alignment, alignment, PROT_READ | PROT_WRITE, 0, out);
}

mp_status mp__os_map(size_t size, size_t alignment, bool huge, void **out) {
    mp_status status = MP_ERR_NOMEM;
    if (size >= KEPT_APART && alignment >= mp__os_huge_size()) status = map_apart(size, alignment, out);
    if (status != MP_OK) status = map_aligned(size, alignment, PROT_READ | PROT_WRITE, 0, out);
    if (status == MP_OK && huge) mp__os_advise_huge(*out, size);
    return status;
}

void mp__os_advise_huge(void *ptr, size_t size) {
#if defined(MADV_HUGEPAGE)
    (void)madvise(ptr, size, MADV_HUGEPAGE); /* advice: refused where huge pages are off */
#else
    (void)ptr;
    (void)size;
#endif
}

mp_status mp__os_unmap(void *ptr, size_t size) { return munmap(ptr, size) == 0 ? MP_OK : MP_ERR_NOMEM; }

mp_status mp__os_reserve(size_t size, size_t alignment, bool shared, void **out) {
    return map_aligned(size, alignment, PROT_NONE, MAP_NORESERVE | (shared ? MAP_SHARED : 0), out);
}

mp_status mp__os_protect_rw(void *ptr, size_t size) {
    return mprotect(ptr, size, PROT_READ | PROT_WRITE) == 0 ? MP_OK : MP_ERR_NOMEM;
}

mp_status mp__os_decommit(void *ptr, size_t size) {
#if defined(__linux__)
    return madvise(ptr, size, MADV_DONTNEED) == 0 ? MP_OK : MP_ERR_NOMEM;
#else
    /* Elsewhere MADV_DONTNEED may keep the contents; a fresh mapping over the range does not. */
    void *again = mmap(ptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return again == MAP_FAILED ? MP_ERR_NOMEM : MP_OK;
#endif
}

mp_status mp__os_commit(void *ptr, size_t size) {
    (void)ptr;
    (void)size;
    return MP_OK; /* a decommitted range is still mapped */
}

void mp__os_prefault(void *ptr, size_t size) {
#if defined(MADV_POPULATE_WRITE)
    if (madvise(ptr, size, MADV_POPULATE_WRITE) == 0) return;
#endif
    volatile char *bytes = ptr;
    for (size_t at = 0; at < size; at += mp__os_page_size()) bytes[at] = bytes[at];
}

void *mp__os_alloc_aligned(size_t size, size_t alignment) {
    void *ptr = aligned_alloc(alignment, size);
    return ptr == NULL ? NULL : memset(ptr, 0, size);
}

void mp__os_free_aligned(void *ptr) { free(ptr); }

uint64_t mp__os_now(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

void mp__os_yield(void) { (void)sched_yield(); }

_Noreturn void mp__os_abort(const char *message) {
    (void)fprintf(stderr, "mempool: memory is corrupt: %s\n", message);
    abort();
}

void mp__mutex_init(mp__mutex *mutex) { (void)pthread_mutex_init(&mutex->impl, NULL); }
void mp__mutex_destroy(mp__mutex *mutex) { (void)pthread_mutex_destroy(&mutex->impl); }
void mp__mutex_lock(mp__mutex *mutex) { (void)pthread_mutex_lock(&mutex->impl); }
void mp__mutex_unlock(mp__mutex *mutex) { (void)pthread_mutex_unlock(&mutex->impl); }

void mp__cond_init(mp__cond *cond) {
#if defined(__APPLE__)
    (void)pthread_cond_init(&cond->impl, NULL);
#else
    pthread_condattr_t attributes;
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&cond->impl, &attributes);
    (void)pthread_condattr_destroy(&attributes);
#endif
}

void mp__cond_signal(mp__cond *cond) { (void)pthread_cond_signal(&cond->impl); }

void mp__cond_wait_until(mp__cond *cond, mp__mutex *mutex, uint64_t deadline) {
    if (deadline == MP_NEVER) {
        (void)pthread_cond_wait(&cond->impl, &mutex->impl);
        return;
    }
#if defined(__APPLE__)
    uint64_t now = mp__os_now();
    uint64_t left = deadline > now ? deadline - now : 0;
    struct timespec at = {.tv_sec = (time_t)(left / 1000000000U), .tv_nsec = (long)(left % 1000000000U)};
    (void)pthread_cond_timedwait_relative_np(&cond->impl, &mutex->impl, &at);
#else
    struct timespec at = {.tv_sec = (time_t)(deadline / 1000000000U), .tv_nsec = (long)(deadline % 1000000000U)};
    (void)pthread_cond_timedwait(&cond->impl, &mutex->impl, &at);
#endif
}

static void *thread_main(void *opaque) {
    mp__thread *thread = opaque;
#if defined(__linux__)
    thread->id = syscall(SYS_gettid);
#endif
    thread->run();
    return NULL;
}

mp_status mp__thread_start(mp__thread *thread, void (*run)(void)) {
    pthread_attr_t attributes;
    sigset_t all, before;
    if (pthread_attr_init(&attributes) != 0) return MP_ERR_NOMEM;
    (void)pthread_attr_setstacksize(&attributes, THREAD_STACK);
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the threads of the program */
    thread->run = run;
    int failed = pthread_create(&thread->impl, &attributes, thread_main, thread);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attributes);
    return failed ? MP_ERR_NOMEM : MP_OK;
}

void mp__thread_join(mp__thread *thread) {
    (void)pthread_join(thread->impl, NULL);
#if defined(__linux__)
    /* The kernel wakes the joiner a moment before it stops counting the thread, and Python counts threads when it forks. A
     * processor that is taken away meanwhile makes that seconds. */
    struct timespec moment = {.tv_nsec = 20000};
    for (int i = 0; i < JOIN_TRIES; i++) {
        if (syscall(SYS_tgkill, getpid(), thread->id, 0) != 0) return; /* no such thread, or nobody may ask */
        (void)nanosleep(&moment, NULL);
    }
#endif
}

mp_status mp__os_at_fork(void (*prepare)(void), void (*parent)(void), void (*child)(void)) {
    return pthread_atfork(prepare, parent, child) == 0 ? MP_OK : MP_ERR_NOMEM;
}

#endif
