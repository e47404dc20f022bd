# The C core as csrc/include/mempool.h declares it. Externs only.
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint64_t

cdef extern from "mempool.h" nogil:
    ctypedef enum mp_status:
        MP_OK
        MP_ERR_LIMIT
        MP_ERR_ACCOUNT
        MP_ERR_NOMEM
        MP_ERR_CLOSED
        MP_ERR_INVALID
        MP_ERR_FULL
        MP_ERR_STALE
        MP_ERR_BUSY
        MP_ERR_OS
        MP_ERR_LOST

    const size_t MP_NO_LIMIT
    const uint64_t MP_NEVER

    ctypedef struct mp_source:
        pass

    ctypedef struct mp_account:
        pass

    mp_status mp_account_create(mp_account *parent, size_t limit, const mp_source *source, mp_account **out)
    void mp_account_retain(mp_account *account)
    void mp_account_release(mp_account *account)
    mp_status mp_account_charge(mp_account *account, size_t nbytes, mp_account **binding)
    bint mp_account_charge_ready(mp_account *account, size_t nbytes)
    void mp_account_discharge(mp_account *account, size_t nbytes)
    bint mp_account_is_under(const mp_account *account, const mp_account *ancestor)
    size_t mp_account_used(const mp_account *account)
    size_t mp_account_peak(const mp_account *account)
    size_t mp_account_limit(const mp_account *account)
    mp_status mp_account_set_limit(mp_account *account, size_t limit)

    ctypedef struct mp_pool:
        pass

    ctypedef struct mp_block:
        void *data
        size_t capacity
        size_t requested

    ctypedef enum mp_huge:
        MP_HUGE_AUTO
        MP_HUGE_ALWAYS
        MP_HUGE_NEVER

    ctypedef struct mp_pool_config:
        size_t limit
        size_t max_idle
        uint64_t idle_timeout
        size_t alignment
        mp_huge huge
        bint zero_on_release
        mp_account *account
        const mp_source *source

    ctypedef enum mp_end:
        MP_END_RELEASED
        MP_END_DROPPED
        MP_END_HANDED_OVER

    ctypedef struct mp_shortage:
        size_t in_use
        size_t limit
        mp_account *binding
        bint hopeless

    ctypedef struct mp_pool_stats:
        size_t in_use
        size_t requested
        size_t retired
        size_t idle
        size_t reserved
        size_t peak
        size_t limit
        uint64_t acquires
        uint64_t live
        uint64_t releases
        uint64_t dropped
        uint64_t handed_over
        uint64_t hits
        uint64_t misses
        uint64_t waits
        uint64_t exhausted

    ctypedef struct mp_class_stats:
        size_t size
        uint64_t live
        uint64_t idle
        uint64_t acquires

    mp_status mp_pool_create(const mp_pool_config *config, mp_pool **out)
    void mp_pool_close(mp_pool *pool)
    void mp_pool_destroy(mp_pool *pool)
    mp_block *mp_pool_acquire_idle(mp_pool *pool, size_t nbytes)
    mp_status mp_pool_acquire(mp_pool *pool, size_t nbytes, mp_block **out, mp_shortage *shortage)
    void mp_block_zero(mp_block *block, size_t nbytes)
    mp_status mp_pool_resize(mp_block *block, size_t nbytes)
    bint mp_pool_release(mp_block *block, mp_end end)
    void mp_pool_retire(mp_block *block, mp_end end)
    bint mp_pool_return(mp_block *block)
    void mp_pool_set_waiters(mp_pool *pool, bint waiting)
    mp_status mp_pool_reserve(mp_pool *pool, size_t nbytes, size_t count, mp_shortage *shortage)
    size_t mp_pool_trim(mp_pool *pool, size_t target)
    mp_status mp_pool_set_limit(mp_pool *pool, size_t limit, size_t *lent)
    void mp_pool_note_wait(mp_pool *pool)
    void mp_pool_note_exhausted(mp_pool *pool)
    size_t mp_pool_idle(mp_pool *pool)
    size_t mp_pool_stats_read(mp_pool *pool, mp_pool_stats *out, mp_class_stats *classes, size_t capacity)
    size_t mp_pool_block_size(const mp_pool *pool, size_t nbytes)

    ctypedef enum mp_share_as:
        MP_SHARE_NONE
        MP_SHARE_MANY
        MP_SHARE_ALONE

    bint mp_share_exists()
    mp_status mp_share_map(int file, size_t size, void **out, int *error)
    void mp_share_unmap(void *data, size_t size)
    void mp_share_close(int file)
    mp_status mp_share_mark(int file, uint64_t part, mp_share_as share, int *error)
    uint64_t mp_word_get(const void *word)
    void mp_word_set(void *word, uint64_t value)
    void mp_word_add(void *word)
    void mp_word_drop(void *word)

    ctypedef struct mp_heap:
        pass

    const size_t MP_HEAP_LEAST

    mp_status mp_heap_create(mp_pool *pool, void *owner, mp_heap **out)
    void *mp_heap_release(mp_heap *heap)
    void mp_heap_retain(mp_heap *heap)
    void *mp_heap_owner(const mp_heap *heap)
    bint mp_heap_clears(const mp_heap *heap)
    mp_heap *mp_heap_current()
    mp_heap *mp_heap_set_current(mp_heap *heap)
    mp_status mp_heap_alloc(mp_heap *heap, size_t nbytes, bint zero, void **out)
    bint mp_heap_has(const void *ptr, size_t *nbytes)
    mp_status mp_heap_realloc(void *ptr, size_t nbytes, void **out, mp_heap **waiting)
    mp_heap *mp_heap_take_out(void *ptr, mp_block **block)

    ctypedef int64_t mp_handle

    ctypedef struct mp_slab:
        pass

    const size_t MP_SLAB_MAX_ITEM

    ctypedef struct mp_slab_config:
        size_t item_size
        size_t max_items
        size_t limit
        uint64_t seed
        mp_account *account
        const mp_source *source

    ctypedef struct mp_slab_stats:
        size_t live
        size_t retired
        size_t exhausted
        size_t slots
        size_t max_items
        size_t reserved
        size_t peak
        size_t limit
        size_t address_space
        uint64_t allocs
        uint64_t frees

    mp_status mp_slab_create(const mp_slab_config *config, mp_slab **out)
    void *mp_slab_base(const mp_slab *slab)
    bint mp_slab_close(mp_slab *slab)
    void mp_slab_destroy(mp_slab *slab)
    bint mp_slab_alloc_ready(mp_slab *slab, mp_handle *out)
    mp_status mp_slab_alloc(mp_slab *slab, mp_handle *out, mp_shortage *shortage)
    mp_status mp_slab_free(mp_slab *slab, mp_handle handle)
    mp_status mp_slab_alloc_many(mp_slab *slab, size_t count, mp_handle *out, mp_shortage *shortage)
    mp_status mp_slab_free_many(mp_slab *slab, const mp_handle *handles, size_t count, size_t *bad)
    bint mp_slab_has(mp_slab *slab, mp_handle handle)
    mp_status mp_slab_find(mp_slab *slab, const mp_handle *handles, size_t count, ptrdiff_t *out, size_t *bad)
    size_t mp_slab_length(mp_slab *slab)
    size_t mp_slab_handles(mp_slab *slab, mp_handle *out, size_t capacity)
    size_t mp_slab_copy_live(mp_slab *slab, void *out, size_t capacity)
    mp_status mp_slab_pin(mp_slab *slab, mp_handle handle, void **item)
    bint mp_slab_leave(mp_slab *slab, void *item)
    void mp_slab_end(mp_slab *slab, bint last)
    mp_status mp_slab_view(mp_slab *slab, void **base, size_t *slots)
    size_t mp_slab_trim(mp_slab *slab)
    void mp_slab_stats_read(mp_slab *slab, mp_slab_stats *out)

    ctypedef struct mp_npy:
        unsigned major
        size_t data_offset
        size_t descr_start
        size_t descr_stop
        bint fortran_order
        unsigned ndim
        uint64_t shape[64]
        const char *problem

    mp_status mp_npy_measure(const char *bytes, size_t size, mp_npy *out)
    mp_status mp_npy_parse(char *bytes, size_t size, mp_npy *out)

    mp_status mp_file_size(int file, uint64_t *size, int *error)
    mp_status mp_file_read(int file, uint64_t at, void *data, size_t *size, int *error)

    ctypedef struct mp_mapping:
        pass

    ctypedef enum mp_access:
        MP_ACCESS_READ
        MP_ACCESS_WRITE
        MP_ACCESS_COPY

    ctypedef enum mp_advice:
        MP_ADVICE_NORMAL
        MP_ADVICE_SEQUENTIAL
        MP_ADVICE_RANDOM
        MP_ADVICE_WILLNEED
        MP_ADVICE_DONTNEED
        MP_ADVICE_HUGEPAGE
        MP_ADVICE_NOHUGEPAGE

    ctypedef struct mp_mapping_config:
        int file
        mp_access access
        bint shared
        bint fresh
        uint64_t offset
        size_t row_bytes
        size_t rows
        size_t max_rows
        const char *header
        size_t header_size
        mp_account *account
        const mp_source *source

    ctypedef struct mp_mapping_state:
        void *data
        size_t rows
        size_t max_rows
        bint closed
        bint revoked
        bint lost
        bint mapped

    mp_status mp_mapping_create(const mp_mapping_config *config, mp_mapping **out, mp_account **binding, int *error)
    mp_status mp_mapping_close(mp_mapping *mapping, int *error)
    mp_status mp_mapping_revoke(mp_mapping *mapping, int *error)
    void mp_mapping_destroy(mp_mapping *mapping)
    void mp_mapping_look(mp_mapping *mapping, mp_mapping_state *out)
    mp_status mp_mapping_check(mp_mapping *mapping)
    mp_status mp_mapping_view(mp_mapping *mapping, mp_mapping_state *out)
    bint mp_mapping_hold(mp_mapping *mapping)
    bint mp_mapping_leave(mp_mapping *mapping)
    void mp_mapping_end(mp_mapping *mapping)
    mp_status mp_mapping_append(mp_mapping *mapping, const void *data, size_t rows, mp_account **binding, int *error)
    mp_status mp_mapping_resize(mp_mapping *mapping, size_t rows, mp_account **binding, int *error)
    mp_status mp_mapping_make_blank(mp_mapping *mapping, int *error)
    mp_status mp_mapping_flush(mp_mapping *mapping, size_t start, size_t stop, bint wait, int *error)
    mp_status mp_mapping_advise(mp_mapping *mapping, size_t start, size_t stop, mp_advice advice, int *error)
    mp_status mp_mapping_prefetch(mp_mapping *mapping, size_t start, size_t stop, int *error)
    void mp_mapping_populate(mp_mapping *mapping, size_t start, size_t stop)
    void mp_mapping_read_ahead(mp_mapping *mapping, size_t start, size_t stop)
    size_t mp_mapping_page_out(mp_mapping *mapping)
    mp_status mp_mapping_resident(mp_mapping *mapping, size_t *resident, size_t *pages, int *error)
    mp_status mp_mapping_lock(mp_mapping *mapping, bint lock, int *error)
    mp_status mp_guard_truncation(int *error)

    ctypedef unsigned char mp_bool "bool"  # for pointers, as bint is an int

    ctypedef struct mp_ring:
        pass

    ctypedef struct mp_ring_config:
        size_t capacity
        bint copying
        mp_account *account
        const mp_source *source

    ctypedef struct mp_ring_state:
        void *base
        size_t capacity
        size_t length
        bint mirrored
        bint lost

    mp_status mp_ring_create(const mp_ring_config *config, mp_ring **out, mp_account **binding)
    void mp_ring_destroy(mp_ring *ring)
    void mp_ring_look(const mp_ring *ring, mp_ring_state *out)
    mp_status mp_ring_writable(mp_ring *ring, void **data, size_t *size)
    mp_status mp_ring_commit(mp_ring *ring, size_t n, size_t *room)
    mp_status mp_ring_readable(mp_ring *ring, void **data, size_t *size)
    mp_status mp_ring_consume(mp_ring *ring, size_t n, size_t *length)
    mp_status mp_ring_find(mp_ring *ring, const void *sep, size_t n, size_t start, size_t *at, mp_bool *found)

    mp_status mp_process_memory(size_t *rss, size_t *peak)
    mp_status mp_machine_memory(size_t *total, size_t *available)
    bint mp_malloc_trim()

    size_t mp_huge_page_size()
    unsigned mp_fork_generation()
    bint mp_housekeeping_runs()
