/* heap.c: a malloc-shaped face over pools: memory is named by its address alone, and outlives who made it.
 *
 *      caller ---- alloc ----> mp_heap ---- acquire ----> pool
 *                                 ^                          |
 *                                 +--- one reference ---+    |
 *                                                       |    v
 *      caller ---- address ----> map --> entry { address, heap, block }
 *
 *      address   63   48 47      37 36      26 25      15 14     0
 *                [ . . . | branch  | leaf    | entry   | . . . . ]      one entry for each 32 KiB of addresses
 *
 * The map says which addresses are ours, so that a caller may ask of any pointer. A block of a heap is a page and 32 KiB at least,
 * so no two begin in the same 32 KiB, and an address that is not at the start of a page is not even looked up.
 *
 * A heap lives until its last reference and its last block went; it holds the pool's structures, though not the pool: that may be
 * closed and destroyed while arrays live, and then lends no more.
 *
 * Invariant: an entry names an address exactly as long as its block is lent and neither took out nor freed; only who owns the
 * memory writes it then. So there is no lock, nothing for a fork to wait for, and readers of other entries are never disturbed.
 *
 * Branches and leaves are never freed: 48 KiB for each 64 MiB of addresses that were ever used, which the OS uses again.
 *
 * Rejected: a hash table (it grows, so it needs locks, which every fork has to take); a header in front of the memory (an overrun
 * corrupts it, the page alignment is lost, and nobody can ask of a pointer that is not ours). */
#include <string.h>

#include "internal.h"

enum { WINDOW_BITS = 15, LEVEL_BITS = 11, FANOUT = 1 << LEVEL_BITS, SMALLEST_PAGE = 4096, PATIENCE = 10000 };

struct mp_heap {
    atomic_size_t references; /* the owners' and one for each block */
    mp_pool *pool;
    void *owner;
};

typedef struct entry {
    atomic_uintptr_t address; /* 0: none; written last, cleared first */
    mp_block *block;
    mp_heap *heap;
} entry;

typedef struct leaf { entry entries[FANOUT]; } leaf;
typedef struct branch { _Atomic(leaf *) leaves[FANOUT]; } branch;

static _Atomic(branch *) root[FANOUT];

/* The heap of those who name none. Readers are counted, so that it does not go between their look and their reference. */
static _Atomic(mp_heap *) current;
static atomic_uint readers;

/* ---- the map ---- */

static size_t digit(const void *ptr, unsigned level) {
    return (size_t)((uint64_t)(uintptr_t)ptr >> (WINDOW_BITS + level * LEVEL_BITS)) % FANOUT;
}

static void *make_node(size_t size) {
    size_t rounded;
    return mp__align_up(size, MP_CACHE_LINE, &rounded) ? mp__os_alloc_aligned(rounded, MP_CACHE_LINE) : NULL;
}

static branch *branch_for(const void *ptr) {
    _Atomic(branch *) *link = &root[digit(ptr, 2)];
    branch *there = atomic_load_explicit(link, memory_order_acquire);
    if (there != NULL) return there;
    branch *fresh = make_node(sizeof *fresh);
    if (fresh == NULL || atomic_compare_exchange_strong(link, &there, fresh)) return fresh;
    mp__os_free_aligned(fresh); /* another thread was quicker */
    return there;
}

static leaf *leaf_for(const void *ptr) {
    branch *above = branch_for(ptr);
    if (above == NULL) return NULL;
    _Atomic(leaf *) *link = &above->leaves[digit(ptr, 1)];
    leaf *there = atomic_load_explicit(link, memory_order_acquire);
    if (there != NULL) return there;
    leaf *fresh = make_node(sizeof *fresh);
    if (fresh == NULL || atomic_compare_exchange_strong(link, &there, fresh)) return fresh;
    mp__os_free_aligned(fresh);
    return there;
}

static entry *find(const void *ptr) {
    if ((uintptr_t)ptr % SMALLEST_PAGE != 0) return NULL;
    branch *above = atomic_load_explicit(&root[digit(ptr, 2)], memory_order_acquire);
    if (above == NULL) return NULL;
    leaf *at = atomic_load_explicit(&above->leaves[digit(ptr, 1)], memory_order_acquire);
    if (at == NULL) return NULL;
    entry *found = &at->entries[digit(ptr, 0)];
    return atomic_load_explicit(&found->address, memory_order_acquire) == (uintptr_t)ptr && ptr != NULL ? found : NULL;
}

static mp_status enter(mp_heap *heap, mp_block *block) {
    leaf *at = leaf_for(block->data);
    if (at == NULL) return MP_ERR_NOMEM;
    entry *slot = &at->entries[digit(block->data, 0)];
    /* Addresses beyond 48 bits, which no OS gives unasked, could meet here. */
    if (atomic_load_explicit(&slot->address, memory_order_acquire) != 0) return MP_ERR_NOMEM;
    slot->block = block;
    slot->heap = heap;
    atomic_store_explicit(&slot->address, (uintptr_t)block->data, memory_order_release);
    return MP_OK;
}

static void remove_entry(entry *gone) { atomic_store_explicit(&gone->address, 0, memory_order_release); }

/* ---- the life of a heap ---- */

mp_status mp_heap_create(mp_pool *pool, void *owner, mp_heap **out) {
    mp_heap *heap = make_node(sizeof *heap);
    if (heap == NULL) return MP_ERR_NOMEM;
    atomic_init(&heap->references, 1);
    heap->pool = pool;
    heap->owner = owner;
    mp__pool_hold(pool);
    *out = heap;
    return MP_OK;
}

void mp_heap_retain(mp_heap *heap) { atomic_fetch_add_explicit(&heap->references, 1, memory_order_relaxed); }

void *mp_heap_release(mp_heap *heap) {
    if (atomic_fetch_sub_explicit(&heap->references, 1, memory_order_acq_rel) > 1) return NULL;
    void *owner = heap->owner;
    mp__pool_let_go(heap->pool);
    mp__os_free_aligned(heap);
    return owner;
}

void *mp_heap_owner(const mp_heap *heap) { return heap->owner; }

bool mp_heap_clears(const mp_heap *heap) { return heap->pool->config.zero_on_release; }

mp_heap *mp_heap_current(void) {
    if (atomic_load_explicit(&current, memory_order_relaxed) == NULL) return NULL;
    atomic_fetch_add(&readers, 1);
    mp_heap *heap = atomic_load(&current);
    if (heap != NULL) mp_heap_retain(heap);
    atomic_fetch_sub(&readers, 1);
    return heap;
}

mp_heap *mp_heap_set_current(mp_heap *heap) {
    mp_heap *before = atomic_exchange(&current, heap);
    unsigned tries = 0;
    if (before == NULL) return NULL;
    while (atomic_load(&readers) != 0 && tries++ < PATIENCE) mp__os_yield();
    /* A thread that a fork left behind in the middle will never be seen to leave: the reference stays with it. */
    if (tries > PATIENCE) mp_heap_retain(before);
    return before;
}

/* ---- memory ---- */

static mp_status lend(mp_heap *heap, size_t nbytes, bool zero, mp_block **out) {
    mp_shortage shortage;
    mp_status status = mp_pool_acquire(heap->pool, nbytes, out, &shortage);
    if (status == MP_ERR_LIMIT) mp_pool_note_exhausted(heap->pool);
    if (status == MP_OK && zero) status = mp__block_blank(*out, nbytes);
    return status;
}

mp_status mp_heap_alloc(mp_heap *heap, size_t nbytes, bool zero, void **out) {
    mp_block *block;
    if (nbytes < MP_HEAP_LEAST || nbytes < mp__os_page_size()) return MP_ERR_INVALID;
    mp_status status = lend(heap, nbytes, zero, &block);
    if (status != MP_OK) return status;
    status = enter(heap, block);
    if (status != MP_OK) {
        (void)mp_pool_release(block, MP_END_RELEASED);
        return status;
    }
    mp_heap_retain(heap);
    *out = block->data;
    return MP_OK;
}

bool mp_heap_has(const void *ptr, size_t *nbytes) {
    const entry *found = find(ptr);
    if (found != NULL) *nbytes = found->block->requested;
    return found != NULL;
}

mp_heap *mp_heap_take_out(void *ptr, mp_block **block) {
    entry *found = find(ptr);
    if (found == NULL) return NULL;
    mp_heap *heap = found->heap;
    *block = found->block;
    remove_entry(found);
    return heap;
}

/* More than half of a block that became too large would be kept from everybody. */
static bool fits(const mp_block *block, size_t nbytes) { return nbytes <= block->capacity && nbytes >= block->capacity / 2; }

mp_status mp_heap_realloc(void *ptr, size_t nbytes, void **out, mp_heap **waiting) {
    entry *found = find(ptr);
    mp_status status = MP_ERR_INVALID;
    *waiting = NULL;
    if (found == NULL) return MP_ERR_STALE;
    mp_block *block = found->block;
    mp_heap *heap = found->heap;
    if (!fits(block, nbytes)) status = mp_heap_alloc(heap, nbytes, false, out);
    if (status != MP_OK && nbytes <= block->capacity) {
        *out = ptr;
        return mp_pool_resize(block, nbytes);
    }
    if (status != MP_OK) return status;
    memcpy(*out, ptr, block->requested < nbytes ? block->requested : nbytes);
    remove_entry(found);
    if (mp_pool_release(block, MP_END_RELEASED)) *waiting = heap;
    (void)mp_heap_release(heap); /* never the last: the new block has one */
    return MP_OK;
}
