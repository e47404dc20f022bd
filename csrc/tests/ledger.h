/* ledger.h: a source that keeps books, insists on the rules and refuses on request.
 *
 *      pool --> ledger --> mp_source_os()
 *                 |
 *                 +-- every mapping, and which of its pages are away (decommitted)
 *                 +-- how many bookkeeping allocations live
 *                 +-- whether this call is to be refused
 *
 * A page that is away cannot be touched until it is committed. Linux alone would forgive that, Windows would not. */
#ifndef MP_TESTS_LEDGER_H
#define MP_TESTS_LEDGER_H

#include <pthread.h>
#include <sys/mman.h>

#include "check.h"
#include "include/mempool.h"

enum ledger_call {
    LEDGER_ALLOC,
    LEDGER_MAP,
    LEDGER_UNMAP,
    LEDGER_COMMIT,
    LEDGER_DECOMMIT,
    LEDGER_RESERVE,
    LEDGER_ACTIVATE,
    LEDGER_CALLS
};

enum { LEDGER_ALL = (1 << LEDGER_CALLS) - 1 };

typedef struct ledger_region {
    struct ledger_region *next;
    char *base;
    size_t size;
    bool kept;            /* the last attempt to unmap it was refused */
    unsigned char away[]; /* by page */
} ledger_region;

typedef struct ledger {
    mp_source source; /* give its address to a pool */
    pthread_mutex_t lock;
    ledger_region *regions;
    size_t mapped, away; /* bytes */
    size_t allocs;
    uint64_t calls[LEDGER_CALLS], refused[LEDGER_CALLS], total;
    dice luck;
    unsigned one_in;     /* refuse one call in so many; 0: none */
    uint64_t refuse_at;  /* refuse the call with this number, counting from 1 and those in `may_refuse` only; 0: none */
    bool from_then_on;   /* and all after it */
    unsigned may_refuse; /* bits of the calls that may be refused */
} ledger;

/* With the lock held. */
static inline bool ledger_refuses(ledger *books, enum ledger_call call) {
    books->calls[call]++;
    if (!(books->may_refuse & (1U << call))) return false;
    books->total++;
    bool unlucky = books->one_in != 0 && roll_below(&books->luck, books->one_in) == 0;
    bool due =
        books->refuse_at != 0 && (books->total == books->refuse_at || (books->from_then_on && books->total > books->refuse_at));
    if (!unlucky && !due) return false;
    books->refused[call]++;
    return true;
}

static inline uint64_t ledger_refusals(const ledger *books) {
    uint64_t sum = 0;
    for (unsigned i = 0; i < LEDGER_CALLS; i++) sum += books->refused[i];
    return sum;
}

static inline void *ledger_alloc(void *context, size_t size) {
    ledger *books = context;
    pthread_mutex_lock(&books->lock);
    void *ptr = ledger_refuses(books, LEDGER_ALLOC) ? NULL : mp_source_os()->alloc(NULL, size);
    if (ptr != NULL) books->allocs++;
    pthread_mutex_unlock(&books->lock);
    return ptr;
}

static inline void ledger_free(void *context, void *ptr) {
    ledger *books = context;
    pthread_mutex_lock(&books->lock);
    CHECK(ptr != NULL && books->allocs > 0);
    books->allocs--;
    mp_source_os()->free(NULL, ptr);
    pthread_mutex_unlock(&books->lock);
}

static inline void ledger_enter(ledger *books, char *base, size_t size) {
    ledger_region *region = calloc(1, sizeof *region + size / mp_page_size());
    CHECK(region != NULL);
    region->base = base;
    region->size = size;
    region->next = books->regions;
    books->regions = region;
    books->mapped += size;
}

static inline mp_status ledger_map(void *context, size_t size, size_t alignment, bool huge, void **out) {
    ledger *books = context;
    mp_status status = MP_ERR_NOMEM;
    pthread_mutex_lock(&books->lock);
    CHECK(size > 0 && size % mp_page_size() == 0);
    CHECK(alignment >= mp_page_size() && (alignment & (alignment - 1)) == 0);
    if (!ledger_refuses(books, LEDGER_MAP)) status = mp_source_os()->map(NULL, size, alignment, huge, out);
    if (status == MP_OK) {
        CHECK_EQ((uintptr_t)*out % alignment, 0);
        ledger_enter(books, *out, size);
    }
    pthread_mutex_unlock(&books->lock);
    return status;
}

static inline mp_status ledger_reserve(void *context, size_t size, size_t alignment, bool shared, void **out) {
    ledger *books = context;
    mp_status status = MP_ERR_NOMEM;
    pthread_mutex_lock(&books->lock);
    CHECK(size > 0 && size % mp_page_size() == 0);
    if (!ledger_refuses(books, LEDGER_RESERVE)) status = mp_source_os()->reserve(NULL, size, alignment, shared, out);
    if (status == MP_OK) {
        CHECK_EQ((uintptr_t)*out % alignment, 0);
        ledger_enter(books, *out, size);
        memset(books->regions->away, 1, size / mp_page_size());
        books->away += size;
    }
    pthread_mutex_unlock(&books->lock);
    return status;
}

/* Where the link to the region stands that holds the whole range. */
static inline ledger_region **ledger_find(ledger *books, const char *ptr, size_t size) {
    ledger_region **at = &books->regions;
    CHECK((uintptr_t)ptr % mp_page_size() == 0 && size > 0 && size % mp_page_size() == 0);
    while (*at != NULL && !(ptr >= (*at)->base && ptr < (*at)->base + (*at)->size)) at = &(*at)->next;
    CHECK(*at != NULL);
    CHECK(ptr + size <= (*at)->base + (*at)->size);
    return at;
}

static inline size_t ledger_turn(ledger_region *region, const char *ptr, size_t size, bool away) {
    size_t page = mp_page_size(), first = (size_t)(ptr - region->base) / page, turned = 0;
    for (size_t i = first; i < first + size / page; i++) {
        turned += (region->away[i] != 0) != away;
        region->away[i] = away;
    }
    return turned * page;
}

static inline mp_status ledger_unmap(void *context, void *ptr, size_t size) {
    ledger *books = context;
    pthread_mutex_lock(&books->lock);
    ledger_region **at = ledger_find(books, ptr, size), *region = *at;
    CHECK(ptr == region->base && size == region->size);
    bool refused = ledger_refuses(books, LEDGER_UNMAP);
    region->kept = refused;
    if (!refused) {
        CHECK_EQ(mp_source_os()->unmap(NULL, ptr, size), MP_OK);
        books->away -= ledger_turn(region, ptr, size, false);
        books->mapped -= size;
        *at = region->next;
        free(region);
    }
    pthread_mutex_unlock(&books->lock);
    return refused ? MP_ERR_NOMEM : MP_OK;
}

static inline mp_status ledger_commit(void *context, void *ptr, size_t size) {
    ledger *books = context;
    pthread_mutex_lock(&books->lock);
    ledger_region *region = *ledger_find(books, ptr, size);
    bool refused = ledger_refuses(books, LEDGER_COMMIT);
    if (!refused) {
        CHECK_EQ(mprotect(ptr, size, PROT_READ | PROT_WRITE), 0);
        CHECK_EQ(mp_source_os()->commit(NULL, ptr, size), MP_OK);
        books->away -= ledger_turn(region, ptr, size, false);
    }
    pthread_mutex_unlock(&books->lock);
    return refused ? MP_ERR_NOMEM : MP_OK;
}

static inline mp_status ledger_activate(void *context, void *ptr, size_t size) {
    ledger *books = context;
    pthread_mutex_lock(&books->lock);
    ledger_region *region = *ledger_find(books, ptr, size);
    bool refused = ledger_refuses(books, LEDGER_ACTIVATE);
    if (!refused) {
        CHECK_EQ(mp_source_os()->activate(NULL, ptr, size), MP_OK);
        books->away -= ledger_turn(region, ptr, size, false);
    }
    pthread_mutex_unlock(&books->lock);
    return refused ? MP_ERR_NOMEM : MP_OK;
}

static inline mp_status ledger_decommit(void *context, void *ptr, size_t size) {
    ledger *books = context;
    pthread_mutex_lock(&books->lock);
    ledger_region *region = *ledger_find(books, ptr, size);
    bool refused = ledger_refuses(books, LEDGER_DECOMMIT);
    if (!refused) {
        CHECK_EQ(mp_source_os()->decommit(NULL, ptr, size), MP_OK);
        CHECK_EQ(mprotect(ptr, size, PROT_NONE), 0);
        books->away += ledger_turn(region, ptr, size, true);
    }
    pthread_mutex_unlock(&books->lock);
    return refused ? MP_ERR_NOMEM : MP_OK;
}

static inline void ledger_open(ledger *books) {
    *books = (ledger){.may_refuse = LEDGER_ALL};
    books->source = (mp_source){.context = books,
                                .alloc = ledger_alloc,
                                .free = ledger_free,
                                .map = ledger_map,
                                .unmap = ledger_unmap,
                                .commit = ledger_commit,
                                .decommit = ledger_decommit,
                                .reserve = ledger_reserve,
                                .activate = ledger_activate};
    CHECK_EQ(pthread_mutex_init(&books->lock, NULL), 0);
}

/* From here on nothing is refused. */
static inline void ledger_relent(ledger *books) {
    books->one_in = 0;
    books->refuse_at = 0;
}

/* Every allocation and every mapping came back, but for those that the ledger itself would not take. */
static inline void ledger_close(ledger *books) {
    CHECK_EQ(books->allocs, 0);
    while (books->regions != NULL) {
        ledger_region *region = books->regions;
        CHECK(region->kept);
        ledger_relent(books);
        CHECK_EQ(ledger_unmap(books, region->base, region->size), MP_OK);
    }
    CHECK(books->mapped == 0 && books->away == 0);
    CHECK_EQ(pthread_mutex_destroy(&books->lock), 0);
}

/* Bytes that are in memory, as the kernel counts them. */
static inline size_t ledger_resident(ledger *books) {
    size_t pages = 0;
    pthread_mutex_lock(&books->lock);
    for (const ledger_region *region = books->regions; region != NULL; region = region->next) {
        size_t count = region->size / mp_page_size();
        unsigned char *in = calloc(count, 1);
        CHECK(in != NULL);
        CHECK_EQ(mincore(region->base, region->size, (void *)in), 0);
        for (size_t i = 0; i < count; i++) pages += in[i] & 1;
        free(in);
    }
    pthread_mutex_unlock(&books->lock);
    return pages * mp_page_size();
}

#endif
