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

/* ---- account.c ---- */

bool mp__account_is_under(const mp_account *account, const mp_account *ancestor);
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

#if defined(MP_DEBUG)
#define MP_CHECK(pool) \
    do { \
        if (!mp__pool_check(pool)) mp__os_abort("an invariant of a pool is broken"); \
    } while (0)
#else
#define MP_CHECK(pool) ((void)0)
#endif

#endif
