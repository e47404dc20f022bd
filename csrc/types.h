/* types.h: the structures of a pool, and what holds between them.
 *
 *   mp_pool -- classes[ ] --> mp__class: blocks of one size
 *                               |
 *                               +-- shards[8]: idle blocks, LIFO, a spin lock and counters each
 *                               |     a thread stays with one shard until it meets another thread there
 *                               |
 *                               +-- chunks: mappings that blocks are cut from
 *                                     [ block | block | block | . . . not carved yet . . . ]
 *                                        |  \_ idle, live or retired: counted in `reserved`
 *                                        +---- cold: carved before, its pages are with the OS
 *
 * Blocks of a huge page and more have a chunk of their own. Headers (mp__block) lie beside the chunk, never in it, so that an
 * overrun
 * of a lease cannot reach them and a cold page stays cold.
 *
 * Locks, in the order in which they are taken: registry list > pool->lock > shards (by class, then by number) > registry thread.
 * pool->lock guards everything that grows or shrinks (chunks, limit, reserved, cold blocks); the hot path never takes it.
 *
 * Invariants (check.c walks them):
 *   reserved == sum over classes of (live + retired + idle) * size <= limit, and it is what the account was charged
 *   acquires == live + ended by release, drop, hand-over
 *
 * Rejected: caches per thread (they leak when threads come and go, and hide memory from a limit); headers in front of blocks (an
 * overrun corrupts them, page alignment is lost); a lock-free list (ABA needs wider atomics than all our platforms have).
 */
#ifndef MP_TYPES_H
#define MP_TYPES_H

#include "include/mempool.h"
#include "os.h"

enum {
    MP__SHARDS = 8,
    MP__CLASSES = 575,         /* see sizeclass.c */
    MP__SMALL_CHUNK = 64 << 10 /* what blocks under a page are cut from */
};

#define MP__MAX_SIZE ((uint64_t)1 << 47) /* no more can be addressed */

typedef struct mp__chunk mp__chunk;
typedef struct mp__class mp__class;

typedef enum mp__state { MP__COLD = 0, MP__IDLE, MP__LIVE, MP__RETIRED } mp__state;

typedef struct mp__block {
    mp_block lease; /* first: the two are cast into each other */
    struct mp__block *next;
    mp__class *cls;
    mp__chunk *chunk;
    uint8_t state;
    uint8_t shard;
    bool clean; /* nothing was written since the OS or we made it zero */
} mp__block;

struct mp__chunk {
    mp__chunk *prev, *next; /* in the class */
    mp__chunk *next_sorted; /* among the chunks that have idle blocks while idle memory is detached */
    mp__block *cold;
    mp__block *idle; /* only while detached */
    char *base;
    size_t mapped;
    size_t capacity; /* blocks */
    size_t carved;
    size_t n_cold, n_idle;
    bool torn; /* it was decommitted as a whole: what is carved later is not committed yet */
    mp__block blocks[];
};

/* Counted in shard->events; the first three are mp_end. */
enum { MP__EVENT_RETURNED = 3, MP__EVENT_RETIRED, MP__EVENT_HIT, MP__EVENT_MISS, MP__EVENTS };

typedef struct mp__shard {
    _Alignas(2 * MP_CACHE_LINE) mp__spin lock;
    mp__block *head;
    size_t idle;      /* length of the list */
    size_t low;       /* least `idle` since the last tick */
    size_t requested; /* sum over leases, modulo 2^N: a lease may end on another shard */
    uint64_t events[MP__EVENTS];
} mp__shard;

struct mp__class {
    mp__shard shards[MP__SHARDS];
    mp_pool *pool;
    size_t size;
    mp__chunk *open;   /* chunks with cold or uncarved blocks */
    mp__chunk *full;   /* the others */
    mp__chunk *sorted; /* only while detached */
    mp__block *detached;
    size_t warm;     /* blocks that are not cold */
    size_t retry_at; /* bytes idle before it is worth to look again for a chunk that could go */
};

typedef struct mp__tenant mp__tenant;

/* What the registry asks of a pool. All but `after_fork` take the tenant's locks; `before_fork` keeps them. */
typedef struct mp__tenant_ops {
    uint64_t (*tick)(mp__tenant *tenant, uint64_t now);
    size_t (*releasable)(mp__tenant *tenant, const mp_account *under);
    size_t (*reclaim)(mp__tenant *tenant, const mp_account *under, size_t needed);
    void (*before_fork)(mp__tenant *tenant);
    void (*after_fork)(mp__tenant *tenant, bool child);
} mp__tenant_ops;

struct mp__tenant {
    const mp__tenant_ops *ops;
    mp__tenant *prev, *next;
};

/* pool->flags: zero on the hot path of a plain pool. */
enum {
    MP__CLOSED = 1,   /* blocks go to the OS when they come back */
    MP__WAITERS = 2,  /* somebody waits: say so when memory comes back */
    MP__ASLEEP = 4,   /* the housekeeping thread does not know of idle memory here */
    MP__MAX_IDLE = 8, /* idle_bytes is kept */
};

struct mp_pool {
    mp__tenant tenant; /* first: the two are cast into each other */
    atomic_uint flags;
    atomic_size_t idle_bytes; /* only with MP__MAX_IDLE */
    mp_pool_config config;    /* but for the limit, it never changes */
    mp__mutex lock;
    size_t limit, reserved, peak;
    uint64_t due; /* next tick; MP_NEVER while asleep */
    atomic_ullong waits, exhausted;
    bool orphaned; /* its owner is gone: the last block that comes back, or the last heap, frees it */
    size_t holds;  /* heaps that need the structure */
    _Atomic(mp__class *) classes[MP__CLASSES];
};

static inline mp__class *mp__pool_class(mp_pool *pool, unsigned index) {
    return atomic_load_explicit(&pool->classes[index], memory_order_acquire);
}

static inline unsigned mp__pool_flags(mp_pool *pool) { return atomic_load_explicit(&pool->flags, memory_order_relaxed); }

#endif
