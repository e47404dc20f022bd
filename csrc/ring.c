/* ring.c: bytes between one producer and one consumer, always in one piece.
 *
 *      base                  capacity                2 * capacity
 *       |                       |                       |
 *       [ . . . # # # # # . . . | . . . # # # # # . . . ]        the same pages, mapped twice
 *               ^head     ^tail         '- twins
 *               '- readable '- writable ------- '                whatever wraps around goes on behind the middle
 *
 * Positions run from 0 to 2 * capacity and around, so that full and empty differ; a position's place is where it is in the first
 * half. `tail` is written by the producer alone, `head` by the consumer alone, each with release and read by the other with acquire:
 * bytes are there before `tail` tells of them, and were read before `head` gives them up. Neither waits for the other. Each side
 * keeps what it last saw of the other, so that a commit or a consume mostly stays on its own cache line.
 *
 * Where the OS cannot map pages twice the two halves are memory of their own, and a commit copies its bytes to their twins before it
 * publishes them: until then both belong to the producer. A commit then takes the bytes from where the last view of the free space
 * showed them (`at`), which may be in either half.
 *
 * Around fork: pages that are mapped twice must be shared mappings, which a child would go on sharing with its parent. So the parent
 * copies what is readable just before, and the child gets other pages at the same addresses and these bytes in them. Without memory
 * for the copy the child's ring is lost; without pages of its own the child must not live.
 *
 * Invariants (mp_ring_is_valid): head, tail < 2 * capacity; at most `capacity` bytes lie between them.
 *
 * Rejected: indices that only grow, and their remainder (a division a call, or capacities that are powers of two); MADV_DONTFORK
 * (until the child's handler runs others may take the addresses); a lock (the two sides would wait for each other). */
#include "internal.h"

#include <string.h>

struct mp_ring {
    mp__tenant tenant; /* first: the two are cast into each other */
    const mp_source *source;
    mp_account *account;
    char *base;
    size_t capacity, charged;
    bool mirrored;
    bool lost;                           /* in a child: there was no memory to keep the bytes */
    void *kept;                          /* around a fork: what is readable */
    size_t kept_size, kept_map, kept_at; /* bytes, bytes mapped, position of the first */

    _Alignas(2 * MP_CACHE_LINE) atomic_size_t tail; /* the producer's */
    size_t head_seen;
    size_t at; /* where the next byte to commit lies: the place of `tail`, or its twin */

    _Alignas(2 * MP_CACHE_LINE) atomic_size_t head; /* the consumer's */
    size_t tail_seen;
};

/* ---- positions ---- */

static inline size_t distance(const mp_ring *ring, size_t from, size_t to) {
    return to >= from ? to - from : to + 2 * ring->capacity - from;
}

static inline size_t place(const mp_ring *ring, size_t position) {
    return position >= ring->capacity ? position - ring->capacity : position;
}

static inline size_t advance(const mp_ring *ring, size_t position, size_t n) {
    position += n;
    return position >= 2 * ring->capacity ? position - 2 * ring->capacity : position;
}

static inline size_t own(const atomic_size_t *position) { return atomic_load_explicit(position, memory_order_relaxed); }
static inline size_t other(const atomic_size_t *position) { return atomic_load_explicit(position, memory_order_acquire); }

/* The twins of bytes that begin in either half. */
static void copy_to_twins(mp_ring *ring, size_t at, size_t n) {
    size_t capacity = ring->capacity, low = at < capacity ? capacity - at : 0;
    if (low > n) low = n;
    if (low > 0) memcpy(ring->base + at + capacity, ring->base + at, low);
    if (n > low) memcpy(ring->base + at + low - capacity, ring->base + at + low, n - low);
}

/* ---- fork ---- */

static uint64_t tenant_tick(mp__tenant *tenant, uint64_t now) {
    (void)tenant;
    (void)now;
    return MP_NEVER;
}

static size_t tenant_releasable(mp__tenant *tenant, const mp_account *under) {
    (void)tenant;
    (void)under;
    return 0;
}

static size_t tenant_reclaim(mp__tenant *tenant, const mp_account *under, size_t needed) {
    (void)needed;
    return tenant_releasable(tenant, under);
}

/* Other threads go on meanwhile. What the consumer gave up while it was copied may have been written over, so it is left out. */
static void tenant_before_fork(mp__tenant *tenant) {
    mp_ring *ring = (mp_ring *)tenant;
    if (!ring->mirrored || ring->lost) return;
    size_t head = other(&ring->head), size = distance(ring, head, other(&ring->tail));
    ring->kept_map = size > 0 ? (size + mp__os_page_size() - 1) & ~(mp__os_page_size() - 1) : 0;
    if (size > 0 && ring->source->map(ring->source->context, ring->kept_map, mp__os_page_size(), false, &ring->kept) != MP_OK) {
        ring->kept = NULL;
    }
    if (ring->kept != NULL) memcpy(ring->kept, ring->base + place(ring, head), size);
    atomic_thread_fence(memory_order_acquire);
    size_t gone = distance(ring, head, other(&ring->head));
    if (gone > size) gone = size;
    if (ring->kept != NULL && gone > 0) memmove(ring->kept, (char *)ring->kept + gone, size - gone);
    ring->kept_at = advance(ring, head, gone);
    ring->kept_size = size - gone;
}

/* Other pages at the same addresses. */
static void part_from_parent(mp_ring *ring) {
    int error;
    if (mp__os_map_twice_over(ring->base, ring->capacity) == MP_OK) return;
    if (mp__os_blank(ring->base, 2 * ring->capacity, true, &error) != MP_OK) {
        mp__os_abort("a child of fork found no pages of its own for a ring");
    }
    ring->mirrored = false;
    if (mp__account_try_charge(ring->account, ring->capacity, NULL) == MP_OK) ring->charged += ring->capacity;
}

static void begin_anew(mp_ring *ring) {
    size_t size = ring->kept_size, tail = advance(ring, ring->kept_at, size);
    part_from_parent(ring);
    ring->lost = size > 0 && ring->kept == NULL;
    if (ring->kept != NULL) memcpy(ring->base + place(ring, ring->kept_at), ring->kept, size);
    if (ring->kept != NULL && !ring->mirrored) copy_to_twins(ring, place(ring, ring->kept_at), size);
    atomic_store(&ring->head, ring->kept_at);
    atomic_store(&ring->tail, tail);
    ring->head_seen = ring->kept_at;
    ring->tail_seen = tail;
    ring->at = place(ring, tail);
}

static void tenant_after_fork(mp__tenant *tenant, bool child) {
    mp_ring *ring = (mp_ring *)tenant;
    if (!ring->mirrored || ring->lost) return;
    if (child) begin_anew(ring);
    if (ring->kept != NULL) (void)ring->source->unmap(ring->source->context, ring->kept, ring->kept_map);
    ring->kept = NULL;
}

static const mp__tenant_ops ring_ops = {
    .tick = tenant_tick,
    .releasable = tenant_releasable,
    .reclaim = tenant_reclaim,
    .before_fork = tenant_before_fork,
    .after_fork = tenant_after_fork,
};

/* ---- the life of a ring ---- */

static mp_status charge(mp_ring *ring, size_t nbytes, mp_account **binding) {
    mp_account *full = NULL;
    while (mp__account_try_charge(ring->account, nbytes, &full) != MP_OK) {
        if (binding != NULL) *binding = full;
        if (!mp__account_relieve(full, nbytes)) return MP_ERR_ACCOUNT;
    }
    ring->charged = nbytes;
    return MP_OK;
}

static void discharge(mp_ring *ring) {
    if (ring->account != NULL) mp_account_discharge(ring->account, ring->charged);
    ring->charged = 0;
}

/* If the OS refuses, the pages at least go. */
static void unmap(mp_ring *ring) {
    const mp_source *source = ring->source;
    size_t size = 2 * ring->capacity;
    if (ring->base == NULL || source->unmap(source->context, ring->base, size) == MP_OK) return;
    if (!ring->mirrored) (void)source->decommit(source->context, ring->base, size);
}

static mp_status map_mirrored(mp_ring *ring, mp_account **binding) {
    const mp_source *source = ring->source;
    mp_status status = charge(ring, ring->capacity, binding);
    if (status != MP_OK) return status;
    status = source->map_twice(source->context, ring->capacity, (void **)&ring->base);
    if (status == MP_OK) ring->mirrored = true;
    else discharge(ring);
    return status;
}

static mp_status map_copying(mp_ring *ring, mp_account **binding) {
    const mp_source *source = ring->source;
    void *base = NULL;
    mp_status status = charge(ring, 2 * ring->capacity, binding);
    if (status != MP_OK) return status;
    status = source->map(source->context, 2 * ring->capacity, mp__os_page_size(), false, &base);
    if (status == MP_OK) ring->base = base;
    else discharge(ring);
    return status;
}

static mp_status set_up(mp_ring *ring, bool copying, mp_account **binding) {
    mp_status status = MP_ERR_OS;
    if (!copying && ring->source->map_twice != NULL) status = map_mirrored(ring, binding);
    if (status == MP_ERR_OS) status = map_copying(ring, binding);
    if (status != MP_OK) return status;
    status = mp__registry_add(&ring->tenant, &ring_ops);
    if (status == MP_OK) return MP_OK;
    unmap(ring);
    discharge(ring);
    return status;
}

mp_status mp_ring_create(const mp_ring_config *config, mp_ring **out, mp_account **binding) {
    const mp_source *source = config->source != NULL ? config->source : mp_source_os();
    size_t capacity;
    if (config->capacity == 0) return MP_ERR_INVALID;
    if (!mp__align_up(config->capacity, mp__os_file_granularity(), &capacity) || capacity > SIZE_MAX / 8) return MP_ERR_NOMEM;
    mp_ring *ring = source->alloc(source->context, sizeof *ring);
    if (ring == NULL) return MP_ERR_NOMEM;
    ring->source = source;
    ring->account = config->account;
    ring->capacity = capacity;
    mp_status status = set_up(ring, config->copying, binding);
    if (status != MP_OK) {
        source->free(source->context, ring);
        return status;
    }
    if (ring->account != NULL) mp_account_retain(ring->account);
    mp__account_note_peak(ring->account);
    *out = ring;
    return MP_OK;
}

void mp_ring_destroy(mp_ring *ring) {
    const mp_source *source = ring->source;
    mp_account *account = ring->account;
    mp__registry_remove(&ring->tenant);
    unmap(ring);
    discharge(ring);
    source->free(source->context, ring);
    if (account != NULL) mp_account_release(account);
}

void mp_ring_look(const mp_ring *ring, mp_ring_state *out) {
    size_t head = other(&ring->head), length = distance(ring, head, other(&ring->tail));
    /* For a third thread both may have moved between the two looks. */
    if (length > ring->capacity) length = ring->capacity;
    *out = (mp_ring_state){
        .base = ring->base, .capacity = ring->capacity, .length = length, .mirrored = ring->mirrored, .lost = ring->lost};
}

bool mp_ring_is_valid(const mp_ring *ring) {
    size_t head = other(&ring->head), tail = other(&ring->tail);
    if (head >= 2 * ring->capacity || tail >= 2 * ring->capacity) return false;
    return distance(ring, head, tail) <= ring->capacity &&
           (ring->at == place(ring, tail) || ring->at == place(ring, tail) + ring->capacity);
}

/* ---- the producer ---- */

mp_status mp_ring_writable(mp_ring *ring, void **data, size_t *size) {
    if (MP_UNLIKELY(ring->lost)) return MP_ERR_LOST;
    size_t tail = own(&ring->tail);
    ring->head_seen = other(&ring->head);
    ring->at = place(ring, tail);
    *data = ring->base + ring->at;
    *size = ring->capacity - distance(ring, ring->head_seen, tail);
    return MP_OK;
}

mp_status mp_ring_commit(mp_ring *ring, size_t n, size_t *room) {
    if (MP_UNLIKELY(ring->lost)) return MP_ERR_LOST;
    size_t capacity = ring->capacity, tail = own(&ring->tail);
    if (n > capacity - distance(ring, ring->head_seen, tail)) {
        ring->head_seen = other(&ring->head);
        *room = capacity - distance(ring, ring->head_seen, tail);
        if (n > *room) return MP_ERR_INVALID;
    }
    if (ring->at + n > 2 * capacity) ring->at -= capacity; /* no view showed that much from there */
    if (!ring->mirrored) copy_to_twins(ring, ring->at, n);
    ring->at += n;
    if (ring->at == 2 * capacity) ring->at = capacity;
    atomic_store_explicit(&ring->tail, advance(ring, tail, n), memory_order_release);
    return MP_OK;
}

/* ---- the consumer ---- */

mp_status mp_ring_readable(mp_ring *ring, void **data, size_t *size) {
    if (MP_UNLIKELY(ring->lost)) return MP_ERR_LOST;
    size_t head = own(&ring->head);
    ring->tail_seen = other(&ring->tail);
    *data = ring->base + place(ring, head);
    *size = distance(ring, head, ring->tail_seen);
    return MP_OK;
}

mp_status mp_ring_consume(mp_ring *ring, size_t n, size_t *length) {
    if (MP_UNLIKELY(ring->lost)) return MP_ERR_LOST;
    size_t head = own(&ring->head);
    if (n > distance(ring, head, ring->tail_seen)) {
        ring->tail_seen = other(&ring->tail);
        *length = distance(ring, head, ring->tail_seen);
        if (n > *length) return MP_ERR_INVALID;
    }
    atomic_store_explicit(&ring->head, advance(ring, head, n), memory_order_release);
    return MP_OK;
}

mp_status mp_ring_find(mp_ring *ring, const void *sep, size_t n, size_t start, size_t *at, bool *found) {
    void *data;
    size_t size;
    if (n == 0) return MP_ERR_INVALID;
    mp_status status = mp_ring_readable(ring, &data, &size);
    if (status != MP_OK) return status;
    *found = false;
    *at = start;
    if (n > size || start > size - n) return MP_OK;
    const char *first = mp__os_find((const char *)data + start, size - start, sep, n);
    *found = first != NULL;
    *at = first != NULL ? (size_t)(first - (const char *)data) : size - n + 1;
    return MP_OK;
}
