/* internal.h: prototypes by owning file, lowest layer first. A file uses only what stands above its own section. */
#ifndef MP_INTERNAL_H
#define MP_INTERNAL_H

#include "os.h"
#include "types.h"

/* ---- registry.c: what the process knows of all its pools ---- */

mp_status mp__registry_add(mp__tenant *tenant, const mp__tenant_ops *ops);
void mp__registry_remove(mp__tenant *tenant);
/* Have the tenants under the account give `needed` bytes of idle memory back, or nothing if they have not so much; bytes that came
 * back. The caller holds no lock. */
size_t mp__registry_reclaim(const mp_account *under, size_t needed);
/* The same for who has locked the registry, and the lock, under which limits of accounts change one at a time. */
size_t mp__registry_reclaim_locked(const mp_account *under, size_t needed);
mp_status mp__registry_lock(void);
void mp__registry_unlock(void);
/* Have all tenants give back all idle memory. */
size_t mp__registry_reclaim_all(void);
/* There is idle memory to purge: see that the housekeeping thread runs. False if it could not be started. */
bool mp__registry_wake(void);
/* Idle memory went otherwise: if the thread runs, it looks whether it is still needed. The caller holds no lock. */
void mp__registry_nudge(void);

/* Slabs and mappings reserve addresses ahead of use and say so; what one more may take by guess: a share of what is left. */
void mp__registry_note_addresses(size_t taken);
void mp__registry_forget_addresses(size_t taken);
size_t mp__registry_address_share(void);

/* ---- account.c ---- */

/* As mp_account_charge, but gives nothing back first, so that it may be called with a pool's lock held, and leaves the peaks to
 * mp__account_note_peak, so that what does not come about leaves no trace. A NULL account has no limit. */
mp_status mp__account_try_charge(mp_account *account, size_t nbytes, mp_account **binding);
void mp__account_note_peak(mp_account *account);
/* After MP_ERR_ACCOUNT, with no lock held: true if idle memory came back, so that it is worth to try again. */
bool mp__account_relieve(mp_account *binding, size_t nbytes);

/* ---- sizeclass.c ---- */

size_t mp__class_stride(unsigned index, size_t page, size_t alignment);

/* ---- chunk.c: under the pool's lock ---- */

/* How many blocks to take at once when at most `room` bytes may be taken; 0 if not even one. */
size_t mp__chunk_batch(const mp__class *cls, size_t room);
/* Takes at least one and up to `*count` blocks from the OS, idle and linked through `next`. */
mp_status mp__chunk_take(mp__class *cls, size_t *count, mp__block **out);
/* Detached idle blocks go to their chunks ... */
void mp__chunk_sort(mp__class *cls, mp__block *detached);
/* ... so that it shows how many bytes could go back to the OS ... */
size_t mp__chunk_releasable(const mp__class *cls);
/* ... and some do, until `wanted` bytes went. The others come back as a list. */
mp__block *mp__chunk_settle(mp__class *cls, size_t wanted, size_t *freed);
void mp__chunk_free_all(mp__class *cls);

/* ---- trim.c: under the pool's lock ---- */

void mp__pool_lock_shards(mp_pool *pool);
void mp__pool_unlock_shards(mp_pool *pool);
/* Idle blocks of all classes but `keep` become invisible until they are settled. The caller holds all shards' locks. */
void mp__pool_detach(mp_pool *pool, const mp__class *keep);
size_t mp__pool_releasable(mp_pool *pool);
size_t mp__pool_settle(mp_pool *pool, size_t wanted);
/* All of that in one: bytes given back. Not `thorough`: blocks under a page are looked at only when a whole chunk more of them is
 * idle, or all are, or a release each would cost as much as there are idle blocks. */
size_t mp__pool_give_back(mp_pool *pool, size_t wanted, bool thorough);
/* One block of whole pages, which is in no list, goes back; it becomes idle if the OS refuses. */
void mp__pool_give_one(mp__block *block);
size_t mp__pool_idle(mp_pool *pool);
/* How many idle bytes could go. */
size_t mp__pool_weigh_idle(mp_pool *pool);
/* Blocks that were just taken and never lent go back; those that cannot become idle. Bytes given back. */
size_t mp__class_untake(mp__class *cls, mp__block *list);
/* Live and retired bytes. */
size_t mp__pool_lent(mp_pool *pool);
/* What was idle since the last tick goes; when to come again, MP_NEVER if nothing is idle. */
uint64_t mp__pool_tick(mp_pool *pool, uint64_t now);

/* ---- grow.c ---- */

mp_status mp__pool_grow(mp_pool *pool, size_t nbytes, mp_block **out, mp_shortage *shortage);
/* With the pool's lock held: idle memory exists, so that somebody must purge it one day. False if nobody will. */
bool mp__pool_has_idle(mp_pool *pool);

/* ---- check.c ---- */

bool mp__pool_check(mp_pool *pool);

/* ---- pool.c ---- */

/* While held the structure stays, also after mp_pool_destroy. */
void mp__pool_hold(mp_pool *pool);
void mp__pool_let_go(mp_pool *pool);
/* As mp_block_zero, but what is large gets fresh pages from the OS, so that what is not touched is not resident. On MP_ERR_NOMEM the
 * lease has ended. */
mp_status mp__block_blank(mp_block *block, size_t nbytes);

/* ---- slab_check.c: with the slab's lock ---- */

bool mp__slab_check(mp_slab *slab);

/* ---- slab_memory.c: with the slab's lock ---- */

/* Addresses for `most` slots, or for as many as the OS grants. */
mp_status mp__slab_reserve(mp_slab *slab, size_t most);
void mp__slab_unmap(mp_slab *slab);
/* Have memory for `slots` slots. Nothing has changed if that fails; `*needed` bytes more would have had to be taken. */
mp_status mp__slab_grow(mp_slab *slab, size_t slots, mp_account **binding, size_t *needed);
/* Bytes behind the last used item that are not needed; and back with them. */
size_t mp__slab_idle(mp_slab *slab);
size_t mp__slab_trim(mp_slab *slab);

/* ---- guard.c: which addresses belong to files, for the signal handler ---- */

typedef struct mp__guard_slot mp__guard_slot;
typedef struct mp__guard_range mp__guard_range;

/* NULL: no memory. */
mp__guard_slot *mp__guard_take(const mp__guard_range *range);
/* Before the addresses may belong to anybody else. NULL is let pass. */
void mp__guard_give_back(mp__guard_slot *slot);
void mp__guard_extend(mp__guard_slot *slot, size_t extent);
/* Before the descriptor is closed. */
void mp__guard_forget_file(mp__guard_slot *slot);
bool mp__guard_is_lost(const mp__guard_slot *slot);

/* ---- mapping_state.c ---- */

/* With `lock` held: looks at the file, lays zero pages over what it lost, and tells. */
bool mp__mapping_is_lost(mp_mapping *mapping);
/* With `lock` held: MP_OK, MP_ERR_CLOSED or MP_ERR_LOST; the same with `io` held. */
mp_status mp__mapping_state(mp_mapping *mapping);
mp_status mp__mapping_usable(mp_mapping *mapping);
/* With `io` held, once the memory or the file is ready for them. */
void mp__mapping_set_rows(mp_mapping *mapping, size_t rows);
/* With `io` held. */
bool mp__mapping_is_sound(const mp_mapping *mapping);

/* ---- mapping_header.c: under `io` ---- */

mp_status mp__header_open(mp_mapping *mapping, const char *bytes, size_t size);
void mp__header_free(mp_mapping *mapping);
/* Whether there is room for the digits. */
bool mp__header_has_room(mp_mapping *mapping, size_t rows);
/* How many rows the file's header tells of; what the mapping has if there is no header. */
size_t mp__header_rows(const mp_mapping *mapping);
mp_status mp__header_write(mp_mapping *mapping, size_t rows, int *error);
/* Data, then the header if it waits. */
mp_status mp__header_settle(mp_mapping *mapping, int *error);

/* ---- mapping_file.c: what changes the file's length, under `io` ---- */

mp_status mp__file_append(mp_mapping *mapping, const void *data, size_t rows, int *error);
mp_status mp__file_grow(mp_mapping *mapping, size_t rows, int *error);
mp_status mp__file_shrink(mp_mapping *mapping, size_t rows, int *error);

#if defined(MP_DEBUG)
#define MP_CHECK(pool) \
    do { \
        if (!mp__pool_check(pool)) mp__os_abort("an invariant of a pool is broken"); \
    } while (0)
#define MP_CHECK_SLAB(slab) \
    do { \
        if (!mp__slab_check(slab)) mp__os_abort("an invariant of a slab is broken"); \
    } while (0)
#define MP_CHECK_MAPPING(mapping) \
    do { \
        if (!mp__mapping_is_sound(mapping)) mp__os_abort("an invariant of a mapping is broken"); \
    } while (0)
#else
#define MP_CHECK(pool) ((void)0)
#define MP_CHECK_SLAB(slab) ((void)0)
#define MP_CHECK_MAPPING(mapping) ((void)0)
#endif

#endif
