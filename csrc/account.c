/* account.c: a tree of counters with limits.
 *
 *          root (used 70)
 *           /        \
 *     cache (20)    io (50, limit 64)
 *                     /        \
 *               pool-1 (30)   pool-2 (20)      a charge of 10 to pool-2 adds 10 to pool-2, io and root; one of 20 adds nothing
 * anywhere
 *
 * Lock-free: an account is charged under other locks and read by anyone. A charge first adds, then looks at the limit again;
 * setting a
 * limit first stores, then looks at what is used. Whichever comes second sees the other and takes its own step back, so `used`
 * never
 * stays above `limit`. Rejected: one lock for the tree, which fork would have to take. */
#include "internal.h"

struct mp_account {
    mp_account *parent;
    const mp_source *source;
    atomic_size_t references, used, peak, limit;
};

mp_status mp_account_create(mp_account *parent, size_t limit, const mp_source *source, mp_account **out) {
    if (source == NULL) source = mp_source_os();
    mp_account *account = source->alloc(source->context, sizeof *account);
    if (account == NULL) return MP_ERR_NOMEM;
    account->parent = parent;
    account->source = source;
    atomic_init(&account->references, 1);
    atomic_init(&account->used, 0);
    atomic_init(&account->peak, 0);
    atomic_init(&account->limit, limit);
    if (parent != NULL) mp_account_retain(parent);
    *out = account;
    return MP_OK;
}

void mp_account_retain(mp_account *account) { atomic_fetch_add_explicit(&account->references, 1, memory_order_relaxed); }

void mp_account_release(mp_account *account) {
    while (account != NULL && atomic_fetch_sub_explicit(&account->references, 1, memory_order_acq_rel) == 1) {
        mp_account *parent = account->parent;
        account->source->free(account->source->context, account);
        account = parent;
    }
}

static bool charge_one(mp_account *account, size_t nbytes) {
    size_t used = atomic_load(&account->used), after;
    do {
        if (!mp__add(used, nbytes, &after) || after > atomic_load(&account->limit)) return false;
    } while (!atomic_compare_exchange_weak(&account->used, &used, after));
    if (after <= atomic_load(&account->limit)) return true;
    atomic_fetch_sub(&account->used, nbytes); /* the limit fell meanwhile */
    return false;
}

static void discharge_up_to(mp_account *account, const mp_account *end, size_t nbytes) {
    for (; account != end; account = account->parent) {
        if (atomic_fetch_sub(&account->used, nbytes) < nbytes) mp__os_abort("an account was discharged below zero");
    }
}

void mp__account_note_peak(mp_account *account) {
    for (; account != NULL; account = account->parent) {
        size_t used = atomic_load(&account->used), peak = atomic_load(&account->peak);
        while (peak < used && !atomic_compare_exchange_weak(&account->peak, &peak, used)) continue;
    }
}

/* The account that refuses, or NULL: what must fail shall not add anything, or it would be in the way of others meanwhile. */
static mp_account *find_full(mp_account *account, size_t nbytes) {
    for (; account != NULL; account = account->parent) {
        size_t after;
        if (!mp__add(atomic_load(&account->used), nbytes, &after) || after > atomic_load(&account->limit)) break;
    }
    return account;
}

mp_status mp__account_try_charge(mp_account *account, size_t nbytes, mp_account **binding) {
    mp_account *full = find_full(account, nbytes);
    for (mp_account *at = account; full == NULL && at != NULL; at = at->parent) {
        if (charge_one(at, nbytes)) continue;
        discharge_up_to(account, at, nbytes);
        full = at;
    }
    if (full == NULL) return MP_OK;
    if (binding != NULL) *binding = full;
    return MP_ERR_ACCOUNT;
}

bool mp__account_relieve(mp_account *binding, size_t nbytes) {
    size_t used = atomic_load(&binding->used), limit = atomic_load(&binding->limit), after;
    if (nbytes > limit || !mp__add(used, nbytes, &after)) return false;
    if (after <= limit) return true; /* somebody else made room */
    return mp__registry_reclaim(binding, after - limit) > 0;
}

mp_status mp_account_charge(mp_account *account, size_t nbytes, mp_account **binding) {
    mp_account *full = NULL;
    while (mp__account_try_charge(account, nbytes, &full) != MP_OK) {
        if (binding != NULL) *binding = full;
        if (!mp__account_relieve(full, nbytes)) return MP_ERR_ACCOUNT;
    }
    mp__account_note_peak(account);
    return MP_OK;
}

bool mp_account_charge_ready(mp_account *account, size_t nbytes) {
    if (mp__account_try_charge(account, nbytes, NULL) != MP_OK) return false;
    mp__account_note_peak(account);
    return true;
}

void mp_account_discharge(mp_account *account, size_t nbytes) { discharge_up_to(account, NULL, nbytes); }

size_t mp_account_used(const mp_account *account) { return atomic_load(&account->used); }
size_t mp_account_peak(const mp_account *account) { return atomic_load(&account->peak); }
size_t mp_account_limit(const mp_account *account) { return atomic_load(&account->limit); }

/* True once the limit stands. A charge that is on its way may have looked at the limit before: then it shows in `used`. */
static bool try_limit(mp_account *account, size_t limit) {
    size_t before = atomic_load(&account->limit);
    if (atomic_load(&account->used) > limit) return false;
    atomic_store(&account->limit, limit);
    if (atomic_load(&account->used) <= limit) return true;
    atomic_store(&account->limit, before);
    return false;
}

mp_status mp_account_set_limit(mp_account *account, size_t limit) {
    mp_status status = mp__registry_lock();
    if (status != MP_OK) return status;
    while (!try_limit(account, limit)) {
        size_t used = atomic_load(&account->used);
        if (used > limit && mp__registry_reclaim_locked(account, used - limit) == 0) {
            status = MP_ERR_INVALID;
            break;
        }
    }
    mp__registry_unlock();
    return status;
}

bool mp_account_is_under(const mp_account *account, const mp_account *ancestor) {
    for (; account != NULL; account = account->parent) {
        if (account == ancestor) return true;
    }
    return false;
}
