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
    MP_ERR_LIMIT,   /* the limit of the pool or slab would be passed */
    MP_ERR_ACCOUNT, /* an account's limit would be passed */
    MP_ERR_NOMEM,   /* the OS or the source has no more memory */
    MP_ERR_CLOSED,  /* the pool, slab or mapping is closed */
    MP_ERR_INVALID, /* an argument is out of its range */
    MP_ERR_FULL,    /* the address space that was reserved, or the number of items, is used up */
    MP_ERR_STALE,   /* no such item: freed, foreign or forged */
    MP_ERR_BUSY,    /* others have it */
    MP_ERR_OS,      /* the OS refused; its error number says why */
    MP_ERR_LOST,    /* the file under a mapping was truncated, or the OS could not supply a page of it; or a child of fork had no
                       memory for its copy of a ring */
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
    mp_status (*reserve)(void *context, size_t size, size_t alignment, bool shared, void **out); /* addresses, no memory yet */
    mp_status (*activate)(void *context, void *ptr, size_t size); /* make a reserved range usable; its bytes are zero */
    /* Zeroed memory, and the same pages behind it: `unmap` takes 2 * size. MP_ERR_OS: cannot. NULL: never can. */
    mp_status (*map_twice)(void *context, size_t size, void **out);
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
/* The same without giving anything back first: false if a limit stands in the way. */
MP_API bool mp_account_charge_ready(mp_account *account, size_t nbytes);
MP_API void mp_account_discharge(mp_account *account, size_t nbytes);
/* Whether `account` is `ancestor`, or below it. */
MP_API bool mp_account_is_under(const mp_account *account, const mp_account *ancestor);
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
/* Bytes that are ready to lend. */
MP_API size_t mp_pool_idle(mp_pool *pool);
/* A snapshot of one moment. Fills up to `capacity` classes that were ever used, smallest first; returns how many there are. */
MP_API size_t mp_pool_stats_read(mp_pool *pool, mp_pool_stats *out, mp_class_stats *classes, size_t capacity);
/* Size of the block that a lease of `nbytes` gets from the OS; 0 if it cannot be addressed. */
MP_API size_t mp_pool_block_size(const mp_pool *pool, size_t nbytes);

/* Walks every structure of the pool; false if any invariant is broken. For tests and debug builds. */
MP_API bool mp_pool_is_valid(mp_pool *pool);

/* ---- heaps: memory that is named by its address ------------------------------------------------------------------------------ */

/* A malloc-shaped face over a pool, for who has to free any pointer that comes along. It lives until its last reference and its last
 * block went, holds the structures of the pool, and lends no more once the pool is closed or destroyed. */
typedef struct mp_heap mp_heap;

/* Less, and less than a page, is refused with MP_ERR_INVALID. */
#define MP_HEAP_LEAST ((size_t)32 << 10)

/* `owner` is for the caller alone. The heap starts with one reference. */
MP_API mp_status mp_heap_create(mp_pool *pool, void *owner, mp_heap **out);
MP_API void mp_heap_retain(mp_heap *heap);
/* The owner if this was the last reference, else NULL. */
MP_API void *mp_heap_release(mp_heap *heap);
MP_API void *mp_heap_owner(const mp_heap *heap);
/* Whether memory is cleared when it comes back. */
MP_API bool mp_heap_clears(const mp_heap *heap);

/* One heap for all who name none: NULL, or a reference. Setting takes over the caller's reference and gives the one before back. */
MP_API mp_heap *mp_heap_current(void);
MP_API mp_heap *mp_heap_set_current(mp_heap *heap);

/* Page-aligned. Large zeroed memory is no more resident than memory that the OS has just given. */
MP_API mp_status mp_heap_alloc(mp_heap *heap, size_t nbytes, bool zero, void **out);
/* Any pointer may be asked for; true if a heap lent it, and how much is used of it. */
MP_API bool mp_heap_has(const void *ptr, size_t *nbytes);
/* In place if the block fits, else moved within its heap; what shrinks stays if it cannot move. MP_ERR_STALE: not from a heap.
 * `*waiting` (not NULL) is the heap if somebody waits for what came back; it lives as long as `*out`. */
MP_API mp_status mp_heap_realloc(void *ptr, size_t nbytes, void **out, mp_heap **waiting);
/* From now on the lease, which mp_pool_release ends, and the reference of the block are the caller's. NULL: not from a heap. */
MP_API mp_heap *mp_heap_take_out(void *ptr, mp_block **block);

/* ---- slabs: items of one size that never move ------------------------------------------------------------------------------- */

/* Names one life of one item: positive; a slot that is used again has another handle. */
typedef int64_t mp_handle;

typedef struct mp_slab mp_slab;

#define MP_SLAB_MAX_ITEM ((size_t)1 << 20)

typedef struct mp_slab_config {
    size_t item_size; /* bytes, 1 to MP_SLAB_MAX_ITEM */
    size_t max_items; /* MP_NO_LIMIT: as many as the reserved addresses hold */
    size_t limit;     /* most bytes taken from the OS, with the bookkeeping of each item; MP_NO_LIMIT for none */
    uint64_t seed;    /* random: a handle of another slab fits this one with the odds of 1 in 2^30 */
    mp_account *account;
    const mp_source *source;
} mp_slab_config;

typedef struct mp_slab_stats {
    size_t live, retired;                        /* items: allocated; freed, and something still sees them */
    size_t exhausted;                            /* slots whose handles are used up */
    size_t slots, max_items;                     /* slots ever used, and how many there can be */
    size_t reserved, peak, limit, address_space; /* bytes */
    uint64_t allocs, frees;
} mp_slab_stats;

/* Takes addresses for all items at once, or for as many as the OS grants. */
MP_API mp_status mp_slab_create(const mp_slab_config *config, mp_slab **out);
/* Where slot 0 lies, from creation on. */
MP_API void *mp_slab_base(const mp_slab *slab);
/* Refuse new items and views; the memory goes to the OS now, or with the last view. Idempotent. What ends a view, and this, is true
 * if the memory went. */
MP_API bool mp_slab_close(mp_slab *slab);
/* Close, and free the slab once nothing views it. The caller's pointer is dead; views may still end. */
MP_API void mp_slab_destroy(mp_slab *slab);

/* The same as mp_slab_alloc without asking the OS or waiting for who does; false if it takes that. */
MP_API bool mp_slab_alloc_ready(mp_slab *slab, mp_handle *out);
/* The lowest free slot. Its bytes are what the last item there left; zero if there was none. */
MP_API mp_status mp_slab_alloc(mp_slab *slab, mp_handle *out, mp_shortage *shortage);
MP_API mp_status mp_slab_free(mp_slab *slab, mp_handle handle);
/* All or none. On MP_ERR_STALE `*bad` is the position of the first handle that is no item, or that came before. */
MP_API mp_status mp_slab_alloc_many(mp_slab *slab, size_t count, mp_handle *out, mp_shortage *shortage);
MP_API mp_status mp_slab_free_many(mp_slab *slab, const mp_handle *handles, size_t count, size_t *bad);

MP_API bool mp_slab_has(mp_slab *slab, mp_handle handle);
/* Slot numbers of live items; all or none. */
MP_API mp_status mp_slab_find(mp_slab *slab, const mp_handle *handles, size_t count, ptrdiff_t *out, size_t *bad);
MP_API size_t mp_slab_length(mp_slab *slab);
/* Handles of the live items by slot, at most `capacity`; how many there were. */
MP_API size_t mp_slab_handles(mp_slab *slab, mp_handle *out, size_t capacity);
/* Copies of the live items by slot, at most `capacity`; how many there were. */
MP_API size_t mp_slab_copy_live(mp_slab *slab, void *out, size_t capacity);

/* While an item is pinned its slot is not used again, also after it was freed; each pin is ended by one unpin. */
MP_API mp_status mp_slab_pin(mp_slab *slab, mp_handle handle, void **item);
MP_API bool mp_slab_unpin(mp_slab *slab, void *item);
/* A view of the whole: the memory stays mapped until as many mp_slab_unview. */
MP_API mp_status mp_slab_view(mp_slab *slab, void **base, size_t *slots);
MP_API bool mp_slab_unview(mp_slab *slab);
/* The same in two steps, for who has to do something before the addresses can be anybody else's: `item` NULL ends a view of the whole;
 * mp_slab_end is due in any case, with what mp_slab_leave has returned. */
MP_API bool mp_slab_leave(mp_slab *slab, void *item);
MP_API void mp_slab_end(mp_slab *slab, bool last);

/* Give the memory behind the last item back; bytes. Slots given back read as zeros, also through views. */
MP_API size_t mp_slab_trim(mp_slab *slab);
MP_API void mp_slab_stats_read(mp_slab *slab, mp_slab_stats *out);
MP_API bool mp_slab_is_valid(mp_slab *slab);

/* ---- .npy headers ------------------------------------------------------------------------------------------------------------ */

#define MP_NPY_MAX_DIMS 64
#define MP_NPY_PREAMBLE 12 /* bytes that tell how long the header is */

/* What a header says; offsets count from the start of the file. */
typedef struct mp_npy {
    unsigned major, minor;
    size_t data_offset;             /* where the data begin: the length of the whole header */
    size_t descr_start, descr_stop; /* the literal of the dtype, with its quotes or brackets */
    size_t rows_start, rows_stop;   /* the digits of the first extent; equal if there is none */
    size_t dict_stop;               /* behind the closing brace: from there on spaces, and a newline at the end */
    bool fortran_order;
    unsigned ndim;
    uint64_t shape[MP_NPY_MAX_DIMS];
    const char *problem; /* after MP_ERR_INVALID: what is wrong, in words */
} mp_npy;

/* Length of the whole header, from its first `size` bytes, of which MP_NPY_PREAMBLE are enough; a shorter file may be tried too.
 * MP_ERR_INVALID if this is no .npy file of version 1.0, 2.0 or 3.0 (major and minor say which it is instead), or if the header is
 * longer than 1 MiB. */
MP_API mp_status mp_npy_measure(const char *bytes, size_t size, mp_npy *out);
/* Reads the whole header, `size` == data_offset. Nothing is evaluated. Long integers as Python 2 wrote them lose their L in place.
 * MP_ERR_INVALID if anything else stands there than a header; then only `problem` is set. */
MP_API mp_status mp_npy_parse(char *bytes, size_t size, mp_npy *out);
/* Puts another first extent in; the header keeps its length, and its newline at the end. MP_ERR_INVALID if there is no room, no
 * first extent, or no 64-bit number of elements; then only `problem` changed. */
MP_API mp_status mp_npy_set_rows(char *bytes, size_t size, mp_npy *header, uint64_t rows);

/* ---- files, before they are mapped -------------------------------------------------------------------------------------------- */

/* `file` is a descriptor. MP_ERR_INVALID if it is no regular file; MP_ERR_OS with its error number. */
MP_API mp_status mp_file_size(int file, uint64_t *size, int *error);
/* Up to `*size` bytes from there, or what the file has; as many as were read. */
MP_API mp_status mp_file_read(int file, uint64_t at, void *data, size_t *size, int *error);

/* ---- mappings: files and anonymous memory, by rows -------------------------------------------------------------------------- */

typedef struct mp_mapping mp_mapping;

typedef enum mp_access {
    MP_ACCESS_READ = 0,
    MP_ACCESS_WRITE, /* changes go to the file; others who map it see them */
    MP_ACCESS_COPY,  /* changes stay here */
} mp_access;

typedef enum mp_advice {
    MP_ADVICE_NORMAL = 0,
    MP_ADVICE_SEQUENTIAL,
    MP_ADVICE_RANDOM,
    MP_ADVICE_WILLNEED,
    MP_ADVICE_DONTNEED, /* only where nothing can be lost by it: file mappings that are not private */
    MP_ADVICE_HUGEPAGE,
    MP_ADVICE_NOHUGEPAGE,
} mp_advice;

typedef struct mp_mapping_config {
    int file;           /* a descriptor of a regular file, owned by the mapping once it is made; -1: anonymous memory */
    mp_access access;   /* anonymous memory: MP_ACCESS_WRITE */
    bool shared;        /* anonymous memory: also seen by children */
    bool fresh;         /* the file was just made: before the first flush a close need not wait for the disk */
    uint64_t offset;    /* of the first row in the file; any number */
    size_t row_bytes;   /* may be 0 */
    size_t rows;        /* to begin with */
    size_t max_rows;    /* addresses are reserved for so many, or for as many as the OS grants, but for `rows` at least */
    const char *header; /* .npy header of the file, copied; NULL: none. Used by append, resize, flush and close */
    size_t header_size;
    mp_account *account; /* charged with the bytes of the rows, in pages */
    const mp_source *source;
} mp_mapping_config;

typedef struct mp_mapping_state {
    void *data; /* never moves; also without a single byte it is an address */
    size_t rows;
    size_t max_rows; /* how far it can grow in place */
    bool closed, revoked, lost;
    bool mapped; /* there is memory, and it was not revoked */
} mp_mapping_state;

/* Functions that may return MP_ERR_OS give the OS' error number in `*error`. Each function that uses the file looks first whether
 * it is still long enough: if not, zero pages are laid over what was lost and it returns MP_ERR_LOST, as all later calls do. */

/* MP_ERR_LOST: the file is shorter than offset + rows * row_bytes. MP_ERR_INVALID: sizes overflow. On failure the file is still the
 * caller's. */
MP_API mp_status mp_mapping_create(const mp_mapping_config *config, mp_mapping **out, mp_account **binding, int *error);
/* The file goes now (a header that waits is written first), the memory with the last view. Idempotent. Errors are those of the
 * header; the file is closed all the same. */
MP_API mp_status mp_mapping_close(mp_mapping *mapping, int *error);
/* Close, and have all views read zeros: file and memory go now. */
MP_API mp_status mp_mapping_revoke(mp_mapping *mapping, int *error);
/* Close, and free the mapping once nothing views it. The caller's pointer is dead; views may still end. */
MP_API void mp_mapping_destroy(mp_mapping *mapping);

/* A look at the fields, without the OS. */
MP_API void mp_mapping_look(mp_mapping *mapping, mp_mapping_state *out);
/* MP_OK, MP_ERR_CLOSED or MP_ERR_LOST, after a look at the file. */
MP_API mp_status mp_mapping_check(mp_mapping *mapping);
/* The check, and the memory stays mapped until as many mp_mapping_unview. */
MP_API mp_status mp_mapping_view(mp_mapping *mapping, mp_mapping_state *out);
MP_API bool mp_mapping_unview(mp_mapping *mapping); /* true if it was the last of a closed mapping */
/* The same in two steps, for who has to do something before the addresses can be anybody else's: after mp_mapping_leave has returned
 * true, and only then, mp_mapping_end is due. A hold is a view without the look at the file; false if the mapping is closed. */
MP_API bool mp_mapping_hold(mp_mapping *mapping);
MP_API bool mp_mapping_leave(mp_mapping *mapping);
MP_API void mp_mapping_end(mp_mapping *mapping);

/* Rows go behind the last. Files: written to the file, so that a full disk is an error and not a fault; the header waits for flush
 * or close. MP_ERR_FULL above max_rows; MP_ERR_INVALID for what cannot grow (copies, read-only). */
MP_API mp_status mp_mapping_append(mp_mapping *mapping, const void *data, size_t rows, mp_account **binding, int *error);
/* New rows are zero. Views of rows that went read zeros. */
MP_API mp_status mp_mapping_resize(mp_mapping *mapping, size_t rows, mp_account **binding, int *error);
/* A file of nothing but zeros, exactly as long as its rows end. For a raw file that has just been mapped. */
MP_API mp_status mp_mapping_make_blank(mp_mapping *mapping, int *error);
/* Rows [start, stop) to the file; with `wait` they are on the disk when it returns, and so is the header: first the data, then the
 * header. Copies and anonymous memory have nothing to flush. */
MP_API mp_status mp_mapping_flush(mp_mapping *mapping, size_t start, size_t stop, bool wait, int *error);
/* MP_ERR_OS with ENOTSUP where the OS has no such advice. */
MP_API mp_status mp_mapping_advise(mp_mapping *mapping, size_t start, size_t stop, mp_advice advice, int *error);
/* Have rows in memory soon; anonymous memory: now. */
MP_API mp_status mp_mapping_prefetch(mp_mapping *mapping, size_t start, size_t stop, int *error);
/* Have rows mapped now, as far as that is quicker than touching them. Best effort. */
MP_API void mp_mapping_populate(mp_mapping *mapping, size_t start, size_t stop);
/* As prefetch, unless a sample of the pages is in memory already: then asking costs more than it can bring. Best effort. */
MP_API void mp_mapping_read_ahead(mp_mapping *mapping, size_t start, size_t stop);
/* Ask the OS to take the pages of a file's rows out of memory; they are read again when touched, and nothing is lost. Bytes asked for:
 * 0 for anonymous memory, private copies, closed mappings, and where the OS has no such advice. */
MP_API size_t mp_mapping_page_out(mp_mapping *mapping);
/* Pages in memory, of how many. */
MP_API mp_status mp_mapping_resident(mp_mapping *mapping, size_t *resident, size_t *pages, int *error);
MP_API mp_status mp_mapping_lock(mp_mapping *mapping, bool lock, int *error);
MP_API bool mp_mapping_is_valid(mp_mapping *mapping);

/* From now on a touch of a page that the file under a mapping lost reads zeros, and the mapping is marked as lost; other faults go
 * to whoever handled them before. Idempotent. MP_ERR_OS: not on this OS. */
MP_API mp_status mp_guard_truncation(int *error);

/* ---- rings: bytes between one producer and one consumer, always in one piece ---------------------------------------------------- */

/* The functions of a side may be called by one thread at a time; the two sides need no lock between them. */
typedef struct mp_ring mp_ring;

typedef struct mp_ring_config {
    size_t capacity;     /* more than 0; rounded up to whole pages, or more where the OS maps no less */
    bool copying;        /* as if the OS could not map pages twice: commits copy, and it takes twice the memory */
    mp_account *account; /* charged with what it takes, NULL: none */
    const mp_source *source;
} mp_ring_config;

typedef struct mp_ring_state {
    void *base;
    size_t capacity;
    size_t length; /* bytes committed and not consumed; what a third thread sees may be over before it returns */
    bool mirrored; /* pages are mapped twice; the memory at base is 2 * capacity long in any case */
    bool lost;     /* in a child of fork */
} mp_ring_state;

MP_API mp_status mp_ring_create(const mp_ring_config *config, mp_ring **out, mp_account **binding);
MP_API void mp_ring_destroy(mp_ring *ring);
MP_API void mp_ring_look(const mp_ring *ring, mp_ring_state *out);

/* In the child of a fork the ring has pages of its own and what was readable just before; if there was no memory for that, the calls
 * below return MP_ERR_LOST, and the memory reads zeros. */

/* The producer's: all the free space ... */
MP_API mp_status mp_ring_writable(mp_ring *ring, void **data, size_t *size);
/* ... of which the first `n` bytes become readable. MP_ERR_INVALID: only `*room` bytes are free. */
MP_API mp_status mp_ring_commit(mp_ring *ring, size_t n, size_t *room);
/* The consumer's: all that was committed ... */
MP_API mp_status mp_ring_readable(mp_ring *ring, void **data, size_t *size);
/* ... of which the first `n` bytes become free. MP_ERR_INVALID: only `*length` bytes are there. */
MP_API mp_status mp_ring_consume(mp_ring *ring, size_t n, size_t *length);
/* Looks for `n` bytes, more than 0, from offset `start` of what is readable. `*found`: they are at `*at`. Otherwise they begin nowhere
 * between `start` and `*at`, which is where to go on when more is there. */
MP_API mp_status mp_ring_find(mp_ring *ring, const void *sep, size_t n, size_t start, size_t *at, bool *found);
/* With both sides at rest. */
MP_API bool mp_ring_is_valid(const mp_ring *ring);

/* ---- files that several processes map ---------------------------------------------------------------------------------------- */

typedef enum mp_share_as {
    MP_SHARE_NONE = 0, /* take the mark away */
    MP_SHARE_MANY,     /* as one of many */
    MP_SHARE_ALONE,
} mp_share_as;

/* Whether the OS has marks that belong to an open file. */
MP_API bool mp_share_exists(void);
/* All of the file, to be written and to be seen by all. */
MP_API mp_status mp_share_map(int file, size_t size, void **out, int *error);
MP_API void mp_share_unmap(void *data, size_t size);
MP_API void mp_share_close(int file);
/* Mark a part, which is only a number, through this open file. MP_ERR_BUSY: marks of others stand in the way. The mark ends with the
 * open file. MP_ERR_OS also where marks do not exist. */
MP_API mp_status mp_share_mark(int file, uint64_t part, mp_share_as as, int *error);

/* Words of 64 bits, aligned, in memory that others change at the same time. */
MP_API uint64_t mp_word_get(const void *word);
MP_API void mp_word_set(void *word, uint64_t value);
MP_API void mp_word_add(void *word);  /* one more */
MP_API void mp_word_drop(void *word); /* one less, but not below zero */

/* ---- the process ------------------------------------------------------------------------------------------------------------- */

/* Bytes that the process has in memory now, and the most it ever had. MP_ERR_OS: the OS does not say. */
MP_API mp_status mp_process_memory(size_t *rss, size_t *peak);
/* Bytes of memory that the machine has, and how much more could be had without swapping. */
MP_API mp_status mp_machine_memory(size_t *total, size_t *available);
/* Have the C library give memory that was freed back to the OS; true if some went. Takes long if much is free. */
MP_API bool mp_malloc_trim(void);

/* Grows by one in the child of each fork. */
MP_API unsigned mp_fork_generation(void);
/* True while the thread that purges idle memory runs. */
MP_API bool mp_housekeeping_runs(void);

#ifdef __cplusplus
}
#endif
#endif
