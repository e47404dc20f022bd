/* mempool.h: memory that is lent, taken back and accounted for. The only public header.
 *
 *      caller            pool                                     OS
 *        |   acquire      |   idle block of the class?             |
 *        |--------------->|-- yes: pop (one lock, ~10 ns)          |
 *        |                |-- no: room under limit and account? -->| map a chunk, cut blocks from it
 *        |   mp_block *   |                                        |
 *        |<---------------|                                        |
 *        |   release      |                                        |
 *        |--------------->|-- push; idle ... purged after a while->| unmap or decommit
 *
 * A block is in one of five states, and only these moves exist:
 *
 *      (cold) --carve--> idle --acquire--> live --release--> idle
 *                                            |
 *                                            +--retire--> retired --return--> idle --purge--> (cold)
 *
 * Sizes are bytes. A function that can fail returns mp_status and gives its result through an out-parameter; when it fails nothing
 * has changed. Every function may be called from any thread, except that destroying an object must not race with using it.
 * Nothing here calls back into the caller, but for the mp_source that the caller supplied.
 */
#ifndef MEMPOOL_H
#define MEMPOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) || defined(__CYGWIN__)
#define MP_API
#elif defined(MP_SHARED)
#define MP_API __attribute__((visibility("default")))
#else
#define MP_API __attribute__((visibility("hidden")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mp_status {
    MP_OK = 0,
    MP_ERR_LIMIT,   /* the pool's limit would be passed */
    MP_ERR_ACCOUNT, /* an account's limit would be passed */
    MP_ERR_NOMEM,   /* the OS or the source has no more memory */
    MP_ERR_CLOSED,  /* the pool is closed */
    MP_ERR_INVALID, /* an argument is out of its range */
} mp_status;

#define MP_NO_LIMIT SIZE_MAX
#define MP_NEVER UINT64_MAX

/* ---- where memory comes from ------------------------------------------------------------------------------------------------- */

/* The source of all memory of a pool or account. Tests replace it to make any single call fail. `unmap` and `decommit` may fail
 * (Linux needs a VMA to split one); the pool then keeps the range and tries again later. */
typedef struct mp_source {
    void *context;
    void *(*alloc)(void *context, size_t size); /* zeroed bookkeeping memory, or NULL */
    void (*free)(void *context, void *ptr);
    mp_status (*map)(void *context, size_t size, size_t alignment, bool huge, void **out); /* zeroed, page-aligned at least */
    mp_status (*unmap)(void *context, void *ptr, size_t size);
    mp_status (*commit)(void *context, void *ptr, size_t size);   /* make a decommitted range usable; its bytes are zero */
    mp_status (*decommit)(void *context, void *ptr, size_t size); /* give the pages back, keep the addresses */
} mp_source;

/* The operating system and malloc. Lives as long as the process. */
MP_API const mp_source *mp_source_os(void);

MP_API size_t mp_page_size(void);
MP_API size_t mp_huge_page_size(void);

/* ---- accounts ---------------------------------------------------------------------------------------------------------------- */

/* A tree of counters. A charge counts for the account and every ancestor, or for none. */
typedef struct mp_account mp_account;

/* `parent` may be NULL (a root); it is kept alive by the child. The account starts with one reference. */
MP_API mp_status mp_account_create(mp_account *parent, size_t limit, const mp_source *source, mp_account **out);
MP_API void mp_account_retain(mp_account *account);
MP_API void mp_account_release(mp_account *account);

/* On MP_ERR_ACCOUNT `*binding` (may be NULL) names the account whose limit stands in the way; it lives as long as `account`.
 * mp_account_charge first has idle memory under that account given back. */
MP_API mp_status mp_account_charge(mp_account *account, size_t nbytes, mp_account **binding);
MP_API void mp_account_discharge(mp_account *account, size_t nbytes);
MP_API size_t mp_account_used(const mp_account *account);
MP_API size_t mp_account_peak(const mp_account *account);
MP_API size_t mp_account_limit(const mp_account *account);
/* MP_ERR_INVALID if more than `limit` is used, also after idle memory was given back. */
MP_API mp_status mp_account_set_limit(mp_account *account, size_t limit);

/* ---- pools ------------------------------------------------------------------------------------------------------------------- */

typedef struct mp_pool mp_pool;

/* A lent piece of memory. The caller may read the fields and write `requested` only through mp_pool_resize. */
typedef struct mp_block {
    void *data;
    size_t capacity;
    size_t requested;
} mp_block;

typedef enum mp_huge {
    MP_HUGE_AUTO = 0, /* blocks of a huge page and more */
    MP_HUGE_ALWAYS,   /* also chunks of small blocks */
    MP_HUGE_NEVER,
} mp_huge;

typedef struct mp_pool_config {
    size_t limit;          /* most bytes reserved, MP_NO_LIMIT for none */
    size_t max_idle;       /* most bytes idle, MP_NO_LIMIT for none */
    uint64_t idle_timeout; /* ns after which idle memory goes back to the OS; MP_NEVER: never */
    size_t alignment;      /* a power of two up to the huge page size */
    mp_huge huge;
    bool zero_on_release;
    mp_account *account;     /* NULL: none */
    const mp_source *source; /* NULL: mp_source_os() */
} mp_pool_config;

/* How a lease ended; each end is counted apart. */
typedef enum mp_end {
    MP_END_RELEASED = 0,
    MP_END_DROPPED,
    MP_END_HANDED_OVER,
} mp_end;

/* Why an acquire failed, as it was at that moment. */
typedef struct mp_shortage {
    size_t in_use; /* live and retired bytes */
    size_t limit;
    mp_account *binding;
    bool hopeless; /* no release can ever make the request fit */
} mp_shortage;

typedef struct mp_pool_stats {
    size_t in_use, requested, retired, idle, reserved, peak, limit;
    uint64_t acquires, live, releases, dropped, handed_over, hits, misses, waits, exhausted;
} mp_pool_stats;

typedef struct mp_class_stats {
    size_t size;
    uint64_t live, idle, acquires;
} mp_class_stats;

MP_API mp_status mp_pool_create(const mp_pool_config *config, mp_pool **out);
/* Refuse new leases and give idle memory back. What is lent stays valid and goes to the OS when it ends. Idempotent. */
MP_API void mp_pool_close(mp_pool *pool);
/* Close, and free the pool once nothing of it is lent. The caller's pointer is dead; blocks may still be released. */
MP_API void mp_pool_destroy(mp_pool *pool);

/* The hot path: an idle block of the class of `nbytes`, or NULL without having waited for anybody. */
MP_API mp_block *mp_pool_acquire_idle(mp_pool *pool, size_t nbytes);
/* The whole path: idle blocks, then room under limit and account, then idle memory of other classes given up. */
MP_API mp_status mp_pool_acquire(mp_pool *pool, size_t nbytes, mp_block **out, mp_shortage *shortage);
/* Make the first `nbytes` of a live block zero, at no cost where the OS has just done it. */
MP_API void mp_block_zero(mp_block *block, size_t nbytes);
/* MP_ERR_INVALID beyond the capacity. */
MP_API mp_status mp_pool_resize(mp_block *block, size_t nbytes);

/* The ends of a lease. What gives memory back returns true if somebody waits for it and should be woken (mp_pool_set_waiters). */
MP_API bool mp_pool_release(mp_block *block, mp_end end); /* live -> idle */
MP_API bool mp_pool_return(mp_block *block);              /* retired -> idle */
/* live -> retired: the lease ended, and something still sees the bytes. */
MP_API void mp_pool_retire(mp_block *block, mp_end end);

/* While set, each return of memory says so. Cleared in the child of a fork. */
MP_API void mp_pool_set_waiters(mp_pool *pool, bool waiting);

MP_API mp_status mp_pool_reserve(mp_pool *pool, size_t nbytes, size_t count, mp_shortage *shortage);
/* Give idle memory back until at most `target` bytes are idle; returns the bytes given back. */
MP_API size_t mp_pool_trim(mp_pool *pool, size_t target);
/* MP_ERR_INVALID if more is lent than that; nothing has changed then. */
MP_API mp_status mp_pool_set_limit(mp_pool *pool, size_t limit, size_t *lent);

MP_API void mp_pool_note_wait(mp_pool *pool);
MP_API void mp_pool_note_exhausted(mp_pool *pool);
/* A snapshot of one moment. Fills up to `capacity` classes that were ever used, smallest first; returns how many there are. */
MP_API size_t mp_pool_stats_read(mp_pool *pool, mp_pool_stats *out, mp_class_stats *classes, size_t capacity);
/* Size of the block that a lease of `nbytes` gets from the OS; 0 if it cannot be addressed. */
MP_API size_t mp_pool_block_size(const mp_pool *pool, size_t nbytes);

/* Walks every structure of the pool; false if any invariant is broken. For tests and debug builds. */
MP_API bool mp_pool_is_valid(mp_pool *pool);

/* ---- the process ------------------------------------------------------------------------------------------------------------- */

/* Grows by one in the child of each fork. */
MP_API unsigned mp_fork_generation(void);
/* True while the thread that purges idle memory runs. */
MP_API bool mp_housekeeping_runs(void);

#ifdef __cplusplus
}
#endif
#endif
