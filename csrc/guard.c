/* guard.c: which addresses belong to which file, kept so that a signal handler can read it.
 *
 *      first ──> [ slot slot slot ... ] ──> [ slot slot ... ]      chunks are linked once and never freed
 *                   |
 *                   +-- turn: odd while the slot describes a mapping; base, extent, offset, file: what it describes
 *
 * The handler interrupts anything, so there is no lock. Who takes a slot makes it his own by a compare-and-swap, fills it in and then
 * makes the turn odd; who gives it back makes the turn even first. A reader that finds the same odd turn before and after has read one
 * description. The mapping whose page is missing is being viewed, so its own slot stays as it is; the others only must not be taken
 * for it.
 *
 * All file mappings are in the table, for the guard may be switched on later. Rejected: a tree (readers would need a lock), a list of
 * the mappings themselves (they are freed while a handler walks). */
#include "internal.h"
#include "mapping_types.h"

enum { SLOTS = 62 /* a chunk of about 5 KB */ };

struct mp__guard_slot {
    atomic_bool owned;
    atomic_uint turn;
    atomic_uintptr_t base;
    atomic_size_t extent;
    atomic_ullong offset, device, node;
    atomic_int file;
    atomic_bool writable, lost;
};

typedef struct chunk {
    struct mp__guard_slot slots[SLOTS];
    _Atomic(struct chunk *) next;
} chunk;

static chunk first;

static mp__guard_slot *take_in(chunk *in) {
    for (size_t i = 0; i < SLOTS; i++) {
        mp__guard_slot *slot = &in->slots[i];
        if (!atomic_load_explicit(&slot->owned, memory_order_relaxed) && !atomic_exchange(&slot->owned, true)) return slot;
    }
    return NULL;
}

/* The chunk after this one; made if there is none. */
static chunk *follow(chunk *at) {
    chunk *next = atomic_load(&at->next);
    if (next != NULL) return next;
    size_t size;
    if (!mp__align_up(sizeof *next, MP_CACHE_LINE, &size)) return NULL;
    chunk *fresh = mp__os_alloc_aligned(size, MP_CACHE_LINE);
    if (fresh == NULL) return NULL;
    if (atomic_compare_exchange_strong(&at->next, &next, fresh)) return fresh;
    mp__os_free_aligned(fresh); /* another thread was quicker */
    return next;
}

static mp__guard_slot *find_free(void) {
    mp__guard_slot *slot = NULL;
    for (chunk *at = &first; at != NULL && slot == NULL; at = slot == NULL ? follow(at) : NULL) slot = take_in(at);
    return slot;
}

mp__guard_slot *mp__guard_take(const mp__guard_range *range) {
    mp__guard_slot *slot = find_free();
    if (slot == NULL) return NULL;
    atomic_store(&slot->base, (uintptr_t)range->base);
    atomic_store(&slot->extent, range->extent);
    atomic_store(&slot->offset, range->offset);
    atomic_store(&slot->device, range->device);
    atomic_store(&slot->node, range->node);
    atomic_store(&slot->file, range->file);
    atomic_store(&slot->writable, range->writable);
    atomic_store(&slot->lost, false);
    atomic_fetch_add(&slot->turn, 1);
    return slot;
}

void mp__guard_give_back(mp__guard_slot *slot) {
    if (slot == NULL) return;
    atomic_fetch_add(&slot->turn, 1);
    atomic_store(&slot->owned, false);
}

void mp__guard_extend(mp__guard_slot *slot, size_t extent) {
    if (slot != NULL) atomic_store(&slot->extent, extent);
}

void mp__guard_forget_file(mp__guard_slot *slot) {
    if (slot != NULL) atomic_store(&slot->file, -1);
}

bool mp__guard_is_lost(const mp__guard_slot *slot) { return slot != NULL && atomic_load(&slot->lost); }

/* ---- in the signal handler ---- */

static bool holds(mp__guard_slot *slot, uintptr_t address) {
    unsigned turn = atomic_load(&slot->turn);
    uintptr_t base = atomic_load(&slot->base);
    size_t extent = atomic_load(&slot->extent);
    return turn % 2 == 1 && address >= base && address - base < extent && atomic_load(&slot->turn) == turn;
}

static mp__guard_slot *find(uintptr_t address) {
    for (chunk *at = &first; at != NULL; at = atomic_load(&at->next)) {
        for (size_t i = 0; i < SLOTS; i++) {
            if (holds(&at->slots[i], address)) return &at->slots[i];
        }
    }
    return NULL;
}

/* Where the file's last page ends, from the base; `unknown` if nobody can say. The descriptor may have been closed this moment, and
 * its number may already name another file. */
static uint64_t find_end(mp__guard_slot *slot, uint64_t unknown) {
    mp__file_stat found;
    int error, file = atomic_load(&slot->file);
    if (file < 0 || mp__os_file_stat(file, &found, &error) != MP_OK) return unknown;
    if (found.device != atomic_load(&slot->device) || found.node != atomic_load(&slot->node)) return unknown;
    uint64_t page = mp__os_page_size(), offset = atomic_load(&slot->offset);
    uint64_t end = (found.size + page - 1) / page * page;
    return end > offset ? end - offset : 0;
}

/* Behind the end of the file all is lost; else the disk has no room for a page of it, or cannot read it, and the others may be fine. */
static bool make_readable(void *address) {
    mp__guard_slot *slot = find((uintptr_t)address);
    if (slot == NULL) return false;
    uintptr_t base = atomic_load(&slot->base);
    size_t page = mp__os_page_size(), extent = atomic_load(&slot->extent);
    size_t start = ((uintptr_t)address - base) & ~(page - 1), stop = start + page;
    uint64_t end = find_end(slot, UINT64_MAX);
    if (end <= start) {
        start = (size_t)end;
        stop = extent;
    }
    int error;
    atomic_store(&slot->lost, true);
    return mp__os_blank((void *)(base + start), stop - start, atomic_load(&slot->writable), &error) == MP_OK;
}

mp_status mp_guard_truncation(int *error) { return mp__os_guard_faults(make_readable, error); }
