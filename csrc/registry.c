/* registry.c: what the process knows of all its pools, for the two things that concern them all: purging and fork.
 *
 *   tenants:  pool <-> pool <-> pool        under `list`
 *   thread:   sleeps until the earliest tick that a tenant asked for; exists only while some tenant has idle memory
 *
 * A tenant whose memory is all lent is "asleep": the thread does not know of it, and the tenant calls mp__registry_wake when memory
 * becomes idle. The thread counts those calls under `state`; it ends only if none came since it last looked at all tenants, so that
 * no call is lost.
 *
 * Around fork the thread is stopped and joined, idle memory goes back to the OS, and every lock is held, so that the child finds
 * everything in order. Nobody restarts the thread in the handlers (Python warns when a program with threads forks); the next memory
 * that becomes idle does. These are the only mutable globals. */
#include "internal.h"

enum { SHARE = 16, LEAST_SHARE = 1 << 30 };

/* Half of what a process has where addresses have 47 bits. */
#define MOST_ADDRESSES ((size_t)1 << (sizeof(size_t) > 4 ? 46 : 30))

static struct {
    mp__mutex list, state;
    mp__cond wake;
    mp__tenant *first;
    mp__thread thread;
    bool running, joinable, stop;
    unsigned forking; /* threads that fork: housekeeping must not start */
    unsigned requests;
    size_t tenants;
} registry;

static atomic_size_t addresses;
static atomic_uint generation;
static atomic_int ready; /* 0 not yet, 1 somebody is at it, 2 done */

static uint64_t tick_all(void) {
    uint64_t next = MP_NEVER;
    mp__mutex_lock(&registry.list);
    for (mp__tenant *tenant = registry.first; tenant != NULL; tenant = tenant->next) {
        uint64_t due = tenant->ops->tick(tenant, mp__os_now());
        if (due < next) next = due;
    }
    mp__mutex_unlock(&registry.list);
    return next;
}

static void housekeep(void) {
    mp__mutex_lock(&registry.state);
    while (!registry.stop) {
        unsigned seen = registry.requests;
        mp__mutex_unlock(&registry.state);
        uint64_t next = tick_all();
        mp__mutex_lock(&registry.state);
        if (registry.stop || seen != registry.requests) continue;
        if (next == MP_NEVER) break;
        mp__cond_wait_until(&registry.wake, &registry.state, next);
    }
    registry.running = false;
    mp__mutex_unlock(&registry.state);
}

/* With `state` held, and no thread running. */
static void join_ended(void) {
    if (registry.joinable) mp__thread_join(&registry.thread);
    registry.joinable = false;
}

bool mp__registry_wake(void) {
    bool awake = false;
    mp__mutex_lock(&registry.state);
    registry.requests++;
    if (registry.running) {
        mp__cond_signal(&registry.wake);
        awake = true;
    } else if (!registry.forking) {
        join_ended();
        registry.running = true;
        awake = mp__thread_start(&registry.thread, housekeep) == MP_OK;
        registry.running = registry.joinable = awake;
    }
    mp__mutex_unlock(&registry.state);
    return awake;
}

void mp__registry_nudge(void) {
    mp__mutex_lock(&registry.state);
    registry.requests++;
    if (registry.running) mp__cond_signal(&registry.wake);
    mp__mutex_unlock(&registry.state);
}

bool mp_housekeeping_runs(void) {
    if (atomic_load(&ready) != 2) return false;
    mp__mutex_lock(&registry.state);
    bool running = registry.running;
    mp__mutex_unlock(&registry.state);
    return running;
}

static void stop_thread(void) {
    mp__mutex_lock(&registry.state);
    registry.forking++;
    registry.stop = true;
    mp__cond_signal(&registry.wake);
    while (registry.running) {
        mp__mutex_unlock(&registry.state);
        mp__os_yield();
        mp__mutex_lock(&registry.state);
    }
    join_ended();
    registry.stop = false;
    mp__mutex_unlock(&registry.state);
}

static void before_fork(void) {
    stop_thread();
    mp__mutex_lock(&registry.list);
    for (mp__tenant *tenant = registry.first; tenant != NULL; tenant = tenant->next) tenant->ops->before_fork(tenant);
    mp__mutex_lock(&registry.state);
}

static void after_fork(bool child) {
    registry.forking = child ? 0 : registry.forking - 1;
    mp__mutex_unlock(&registry.state);
    for (mp__tenant *tenant = registry.first; tenant != NULL; tenant = tenant->next) tenant->ops->after_fork(tenant, child);
    mp__mutex_unlock(&registry.list);
}

static void after_fork_in_parent(void) { after_fork(false); }

static void after_fork_in_child(void) {
    atomic_fetch_add(&generation, 1);
    after_fork(true);
}

static mp_status get_ready(void) {
    int expected = 0;
    if (atomic_load(&ready) == 2) return MP_OK;
    if (!atomic_compare_exchange_strong(&ready, &expected, 1)) {
        while (atomic_load(&ready) == 1) mp__os_yield();
        return atomic_load(&ready) == 2 ? MP_OK : MP_ERR_NOMEM;
    }
    mp__mutex_init(&registry.list);
    mp__mutex_init(&registry.state);
    mp__cond_init(&registry.wake);
    mp_status status = mp__os_at_fork(before_fork, after_fork_in_parent, after_fork_in_child);
    atomic_store(&ready, status == MP_OK ? 2 : 0);
    return status;
}

mp_status mp__registry_add(mp__tenant *tenant, const mp__tenant_ops *ops) {
    mp_status status = get_ready();
    if (status != MP_OK) return status;
    tenant->ops = ops;
    mp__mutex_lock(&registry.list);
    tenant->prev = NULL;
    tenant->next = registry.first;
    if (registry.first != NULL) registry.first->prev = tenant;
    registry.first = tenant;
    mp__mutex_unlock(&registry.list);
    mp__mutex_lock(&registry.state);
    registry.tenants++;
    mp__mutex_unlock(&registry.state);
    return MP_OK;
}

/* With no pool left the thread ends by itself; wait for it, so that nothing of ours runs or lingers then. */
static void see_off(void) {
    mp__mutex_lock(&registry.state);
    registry.tenants--;
    while (registry.running && registry.tenants == 0) {
        mp__mutex_unlock(&registry.state);
        mp__os_yield();
        mp__mutex_lock(&registry.state);
    }
    if (!registry.running) join_ended();
    mp__mutex_unlock(&registry.state);
}

void mp__registry_remove(mp__tenant *tenant) {
    mp__mutex_lock(&registry.list);
    if (tenant->prev != NULL) tenant->prev->next = tenant->next;
    else registry.first = tenant->next;
    if (tenant->next != NULL) tenant->next->prev = tenant->prev;
    mp__mutex_unlock(&registry.list);
    mp__registry_nudge();
    see_off();
}

/* With the list locked. */
static bool has_releasable(const mp_account *under, size_t needed) {
    size_t bytes = 0;
    for (mp__tenant *tenant = registry.first; tenant != NULL && bytes < needed; tenant = tenant->next) {
        bytes += tenant->ops->releasable(tenant, under);
    }
    return bytes >= needed;
}

static size_t reclaim(const mp_account *under, size_t needed) {
    size_t freed = 0;
    for (mp__tenant *tenant = registry.first; tenant != NULL && freed < needed; tenant = tenant->next) {
        freed += tenant->ops->reclaim(tenant, under, needed - freed);
    }
    return freed;
}

size_t mp__registry_reclaim_locked(const mp_account *under, size_t needed) {
    return has_releasable(under, needed) ? reclaim(under, needed) : 0;
}

mp_status mp__registry_lock(void) {
    mp_status status = get_ready();
    if (status == MP_OK) mp__mutex_lock(&registry.list);
    return status;
}

void mp__registry_unlock(void) { mp__mutex_unlock(&registry.list); }

size_t mp__registry_reclaim(const mp_account *under, size_t needed) {
    if (mp__registry_lock() != MP_OK) return 0;
    size_t freed = mp__registry_reclaim_locked(under, needed);
    mp__registry_unlock();
    return freed;
}

size_t mp__registry_reclaim_all(void) {
    if (atomic_load(&ready) != 2) return 0;
    mp__mutex_lock(&registry.list);
    size_t freed = reclaim(NULL, MP_NO_LIMIT);
    mp__mutex_unlock(&registry.list);
    return freed;
}

void mp__registry_note_addresses(size_t taken) { atomic_fetch_add(&addresses, taken); }
void mp__registry_forget_addresses(size_t taken) { atomic_fetch_sub(&addresses, taken); }

/* However many there are, others find addresses too. */
size_t mp__registry_address_share(void) {
    size_t room = mp__os_address_room(), noted = atomic_load(&addresses);
    if (room != SIZE_MAX) return room / SHARE;
    size_t share = (noted < MOST_ADDRESSES ? MOST_ADDRESSES - noted : 0) / SHARE;
    return share > LEAST_SHARE ? share : LEAST_SHARE;
}

unsigned mp_fork_generation(void) { return atomic_load(&generation); }
