/* shard.h: the idle lists of a class, on the hot path.
 *
 * A thread keeps to one shard and moves on when it finds it taken, so that two threads part ways once and then never meet.
 * With a GIL
 * nobody ever meets, and all threads share shard 0: one warm list. */
#ifndef MP_SHARD_H
#define MP_SHARD_H

#include "types.h"

extern _Thread_local unsigned mp__shard_hint MP_TLS_FAST;

/* The thread's shard of the class, locked. */
static inline mp__shard *mp__shard_lock(mp__class *cls) {
    mp__shard *shard = &cls->shards[mp__shard_hint];
    if (MP_LIKELY(mp__spin_try(&shard->lock))) return shard;
    for (;;) {
        for (unsigned i = 0; i < MP__SHARDS; i++) {
            mp__shard_hint = (mp__shard_hint + 1) % MP__SHARDS;
            shard = &cls->shards[mp__shard_hint];
            if (mp__spin_try(&shard->lock)) return shard;
        }
        mp__os_yield();
    }
}

static inline void mp__shard_unlock(mp__shard *shard) { mp__spin_unlock(&shard->lock); }

/* With the shard locked. NULL if nothing is idle there. */
static inline mp__block *mp__shard_pop(mp__shard *shard, size_t nbytes) {
    mp__block *block = shard->head;
    if (MP_UNLIKELY(block == NULL)) return NULL;
    shard->head = block->next;
    if (--shard->idle < shard->low) shard->low = shard->idle;
    shard->events[MP__EVENT_HIT]++;
    shard->requested += nbytes;
    block->lease.requested = nbytes;
    block->state = MP__LIVE;
    return block;
}

static inline void mp__shard_push(mp__shard *shard, mp__block *block) {
    block->state = MP__IDLE;
    block->next = shard->head;
    shard->head = block;
    shard->idle++;
}

/* With the shard locked: the lease ends here in the books. */
static inline void mp__shard_note(mp__shard *shard, mp__block *block, unsigned event) {
    shard->events[event]++;
    shard->requested -= block->lease.requested;
    block->lease.requested = 0;
}

#endif
