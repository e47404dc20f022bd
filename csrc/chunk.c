/* chunk.c: mappings, and the blocks that are cut from them. Everything here runs under the pool's lock.
 *
 *   base                                                     base + mapped
 *    | live | idle | cold | live | not carved . . . . . . . . |
 *    |<-------- carved ---------->|
 *
 * Blocks are carved a page's worth at a time, so that `reserved` counts no page that nobody has touched. A block of whole pages can
 * go back to the OS alone (it turns cold and keeps its addresses); smaller ones go when their whole chunk is idle. A chunk whose
 * every carved block is cold is unmapped.
 *
 * To give memory back, the idle lists are first detached from the shards and sorted by chunk (mp__chunk_sort), because the hot path
 * keeps no count of idle blocks per chunk: that would cost it a cache line for each release. */
#include "internal.h"

static bool is_paged(const mp__class *cls) { return cls->size >= mp__os_page_size(); }

static void link_chunk(mp__chunk **list, mp__chunk *chunk) {
    chunk->prev = NULL;
    chunk->next = *list;
    if (*list != NULL) (*list)->prev = chunk;
    *list = chunk;
}

static void unlink_chunk(mp__chunk **list, mp__chunk *chunk) {
    if (chunk->prev != NULL) chunk->prev->next = chunk->next;
    else *list = chunk->next;
    if (chunk->next != NULL) chunk->next->prev = chunk->prev;
}

static bool is_open(const mp__chunk *chunk) { return chunk->n_cold > 0 || chunk->carved < chunk->capacity; }

/* Puts the chunk into the list where it now belongs. */
static void relink(mp__class *cls, mp__chunk *chunk, bool was_open) {
    if (was_open == is_open(chunk)) return;
    unlink_chunk(was_open ? &cls->open : &cls->full, chunk);
    link_chunk(was_open ? &cls->full : &cls->open, chunk);
}

/* Touching any block of a huge page takes all of it, so all of it is booked. */
static size_t huge_batch(const mp__class *cls) {
    if (cls->pool->config.huge != MP_HUGE_ALWAYS || cls->size >= mp__os_huge_size()) return 0;
    return mp__os_huge_size() / cls->size;
}

size_t mp__chunk_batch(const mp__class *cls, size_t room) {
    size_t page = mp__os_page_size();
    size_t batch = cls->size < page ? page / cls->size : 1, huge = huge_batch(cls);
    if (huge > 0 && cls->open == NULL && huge <= room / cls->size) return huge;
    return batch < room / cls->size ? batch : room / cls->size;
}

/* How many blocks a new mapping is for, given the room that the limit leaves. */
static size_t chunk_capacity(const mp__class *cls, size_t count) {
    const mp_pool *pool = cls->pool;
    size_t huge = mp__os_huge_size(), target = MP__SMALL_CHUNK;
    if (cls->size >= huge) return 1;
    if (huge_batch(cls) > 0 && count >= huge_batch(cls)) return huge_batch(cls);
    if (is_paged(cls) && cls->size * 16 > target) target = cls->size * 16 < huge ? cls->size * 16 : huge;
    size_t capacity = target / cls->size, most = (pool->limit - pool->reserved) / cls->size;
    size_t page = mp__os_page_size(), least = is_paged(cls) ? 1 : page / cls->size; /* a page is taken in any case */
    if (capacity > most) capacity = most;
    return capacity > least ? capacity : least;
}

static mp_status map_chunk(mp__class *cls, size_t capacity, mp__chunk **out) {
    const mp_pool_config *config = &cls->pool->config;
    const mp_source *source = config->source;
    size_t mapped, huge = mp__os_huge_size(), alignment = mp__os_page_size();
    bool full_huge = capacity == huge_batch(cls), large = full_huge || cls->size >= huge;
    bool advise = large && config->huge != MP_HUGE_NEVER;
    if (!mp__align_up(capacity * cls->size, full_huge ? huge : alignment, &mapped)) return MP_ERR_NOMEM;
    if (large) alignment = huge;
    if (alignment < config->alignment) alignment = config->alignment;
    mp__chunk *chunk = source->alloc(source->context, sizeof *chunk + capacity * sizeof(mp__block));
    if (chunk == NULL) return MP_ERR_NOMEM;
    void *base;
    if (source->map(source->context, mapped, alignment, advise, &base) != MP_OK) {
        source->free(source->context, chunk);
        return MP_ERR_NOMEM;
    }
    chunk->base = base;
    chunk->mapped = mapped;
    chunk->capacity = capacity;
    link_chunk(&cls->open, chunk);
    *out = chunk;
    return MP_OK;
}

static mp_status open_chunk(mp__class *cls, size_t count, mp__chunk **out) {
    if (cls->open != NULL) {
        *out = cls->open;
        return MP_OK;
    }
    size_t capacity = chunk_capacity(cls, count);
    mp_status status = map_chunk(cls, capacity, out);
    return status != MP_OK && capacity > 1 ? map_chunk(cls, 1, out) : status;
}

/* The pages of `count` blocks from `data` on; blocks under a page lie anywhere in theirs. */
static mp_status commit_pages(const mp__class *cls, void *data, size_t count) {
    const mp_source *source = cls->pool->config.source;
    size_t grain = mp__os_page_size() - 1;
    char *start = (char *)((uintptr_t)data & ~(uintptr_t)grain);
    size_t span = ((size_t)((char *)data - start) + count * cls->size + grain) & ~grain;
    return source->commit(source->context, start, span);
}

static mp_status warm_one(mp__class *cls, mp__chunk *chunk, mp__block **out) {
    mp__block *block = chunk->cold;
    if (commit_pages(cls, block->lease.data, 1) != MP_OK) return MP_ERR_NOMEM;
    chunk->cold = block->next;
    chunk->n_cold--;
    cls->warm++;
    block->next = NULL;
    block->state = MP__IDLE;
    block->clean = true;
    *out = block;
    return MP_OK;
}

static mp__block *carve(mp__class *cls, mp__chunk *chunk, size_t count) {
    mp__block *list = NULL;
    for (size_t i = chunk->carved + count; i-- > chunk->carved;) {
        mp__block *block = &chunk->blocks[i];
        block->lease.data = chunk->base + i * cls->size;
        block->lease.capacity = cls->size;
        block->cls = cls;
        block->chunk = chunk;
        block->state = MP__IDLE;
        block->clean = true;
        block->next = list;
        list = block;
    }
    chunk->carved += count;
    cls->warm += count;
    return list;
}

mp_status mp__chunk_take(mp__class *cls, size_t *count, mp__block **out) {
    mp__chunk *chunk;
    mp_status status = open_chunk(cls, *count, &chunk);
    if (status != MP_OK) return status;
    if (chunk->n_cold > 0) {
        status = warm_one(cls, chunk, out);
        if (status != MP_OK) return status;
        *count = 1;
    } else {
        size_t left = chunk->capacity - chunk->carved;
        if (*count > left) *count = left;
        if (chunk->torn && commit_pages(cls, chunk->base + chunk->carved * cls->size, *count) != MP_OK) return MP_ERR_NOMEM;
        *out = carve(cls, chunk, *count);
    }
    relink(cls, chunk, true);
    return MP_OK;
}

void mp__chunk_sort(mp__class *cls, mp__block *detached) {
    while (detached != NULL) {
        mp__block *block = detached;
        mp__chunk *chunk = block->chunk;
        detached = block->next;
        if (chunk->n_idle == 0) {
            chunk->next_sorted = cls->sorted;
            cls->sorted = chunk;
        }
        block->next = chunk->idle;
        chunk->idle = block;
        chunk->n_idle++;
    }
}

static bool is_all_idle(const mp__chunk *chunk) { return chunk->n_idle + chunk->n_cold == chunk->carved; }

size_t mp__chunk_releasable(const mp__class *cls) {
    size_t bytes = 0;
    for (const mp__chunk *chunk = cls->sorted; chunk != NULL; chunk = chunk->next_sorted) {
        if (is_paged(cls) || is_all_idle(chunk)) bytes += chunk->n_idle * cls->size;
    }
    return bytes;
}

static void make_cold(mp__chunk *chunk, mp__block *block) {
    block->state = MP__COLD;
    block->next = chunk->cold;
    chunk->cold = block;
    chunk->n_cold++;
    block->cls->warm--;
}

static bool unmap_chunk(mp__class *cls, mp__chunk *chunk, bool was_open) {
    const mp_source *source = cls->pool->config.source;
    if (source->unmap(source->context, chunk->base, chunk->mapped) != MP_OK) return false;
    unlink_chunk(was_open ? &cls->open : &cls->full, chunk);
    cls->warm -= chunk->carved - chunk->n_cold;
    source->free(source->context, chunk);
    return true;
}

/* Idle blocks one by one, where each is whole pages; or the first of many, where only all of them together are. */
static size_t decommit_blocks(mp__class *cls, mp__chunk *chunk, size_t wanted) {
    const mp_source *source = cls->pool->config.source;
    size_t freed = 0;
    while (freed < wanted && chunk->idle != NULL) {
        mp__block *block = chunk->idle;
        if (source->decommit(source->context, block->lease.data, cls->size) != MP_OK) break;
        chunk->idle = block->next;
        chunk->n_idle--;
        make_cold(chunk, block);
        freed += cls->size;
    }
    return freed;
}

static size_t decommit_chunk(mp__class *cls, mp__chunk *chunk) {
    const mp_source *source = cls->pool->config.source;
    if (source->decommit(source->context, chunk->base, chunk->mapped) != MP_OK) return 0;
    chunk->torn = true;
    size_t freed = chunk->n_idle * cls->size;
    for (mp__block *block = chunk->idle, *next; block != NULL; block = next) {
        next = block->next;
        make_cold(chunk, block);
    }
    chunk->idle = NULL;
    chunk->n_idle = 0;
    return freed;
}

/* Gives back what it can of one chunk, and unmaps the chunk if that was all. */
static size_t settle_one(mp__class *cls, mp__chunk *chunk, size_t wanted, bool *gone) {
    bool was_open = is_open(chunk);
    size_t idle = chunk->n_idle * cls->size, freed;
    *gone = false;
    if (is_all_idle(chunk) && (idle <= wanted || !is_paged(cls))) {
        if (unmap_chunk(cls, chunk, was_open)) {
            *gone = true;
            return idle;
        }
        freed = decommit_chunk(cls, chunk);
    } else {
        freed = is_paged(cls) ? decommit_blocks(cls, chunk, wanted) : 0;
    }
    relink(cls, chunk, was_open);
    if (freed > 0 && chunk->n_cold == chunk->carved) *gone = unmap_chunk(cls, chunk, true); /* only the addresses are left */
    return freed;
}

static void move_list(mp__block **from, mp__block **to) {
    while (*from != NULL) {
        mp__block *block = *from;
        *from = block->next;
        block->next = *to;
        *to = block;
    }
}

mp__block *mp__chunk_settle(mp__class *cls, size_t wanted, size_t *freed) {
    mp__block *kept = NULL;
    mp__chunk *next;
    for (mp__chunk *chunk = cls->sorted; chunk != NULL; chunk = next) {
        bool gone = false;
        next = chunk->next_sorted;
        if (*freed < wanted) *freed += settle_one(cls, chunk, wanted - *freed, &gone);
        if (gone) continue;
        move_list(&chunk->idle, &kept);
        chunk->n_idle = 0;
    }
    cls->sorted = NULL;
    return kept;
}

static void free_list(const mp_source *source, mp__chunk *chunk) {
    while (chunk != NULL) {
        mp__chunk *next = chunk->next;
        (void)source->unmap(source->context, chunk->base, chunk->mapped); /* refused again: nothing more can be done */
        source->free(source->context, chunk);
        chunk = next;
    }
}

/* What failed calls to the OS left behind. Nothing is lent any more. */
void mp__chunk_free_all(mp__class *cls) {
    free_list(cls->pool->config.source, cls->open);
    free_list(cls->pool->config.source, cls->full);
}
