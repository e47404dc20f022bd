# Eviction that goes on: what left frees nothing yet, so something else has to go.
#
#     entries  [viewed] [viewed] [ a ] [ b ] ... [just written]        policy's order, the next to go first
#     pinned   [  evicted, and somebody still looks at it  ]
#
# As long as entries and pinned bytes together are above the bound, entries go whose going frees memory: in the policy's order, but
# those are passed over that somebody else keeps. A cache all of whose values are viewed is not emptied for nothing. If it is the
# memory of a pinned one that an entry keeps, too, then it counts twice, and the entry goes: so pieces of one block that are cached
# one by one do not hold each other for ever.
#
# Who has many entries that are viewed would look at them all at each write. So each write pays for some looks, and what it does not
# use is saved for when there is nobody among the first: over many writes a look at everybody costs no more than a few each.

cdef enum:
    LOOKS = 64   # each write pays for
    HEAD = 32    # of them at the first in order, at least


cdef inline bint holds_too_much(Contents table) noexcept:
    return table.store.total + min(table.pins.total, UNBOUNDED) > table.bound


cdef int settle(Contents table, uint32_t keep, PyObject *kept) except -1:
    """Unlocked: have entries leave as long as that frees memory and there is too much; never `keep`, if it is still that value."""
    cdef Store *store = &table.store
    cdef uint32_t slot, grave
    if table.pins is None or table.pins.total == 0 or not holds_too_much(table):
        return 0
    table.looks = min(table.looks + LOOKS, 2 * <uint64_t>store.count + LOOKS)
    while True:
        grave = NIL
        table_lock(&table.mutex)
        if keep > store.fresh or store.entries is NULL or store.entries[keep].value is not kept:
            keep = NIL
        while holds_too_much(table):
            slot = next_unseen(table, keep)
            if slot == NIL:
                break
            table.unlink(slot, EVICTED, &grave)
        table_unlock(&table.mutex)
        if grave == NIL:
            return 0
        table.bury(grave)


cdef bint is_passed(Contents table, uint32_t slot) noexcept:
    """Whether its going would free nothing: somebody else is known to keep its memory, which is not counted as pinned yet."""
    cdef PyObject *value = table.store.entries[slot].value
    return exports(value) and values.seen(value, 1) == 1 and not (table.pins is not None and table.pins.has(value))


cdef uint32_t next_unseen(Contents table, uint32_t keep) noexcept:
    """Under the lock: who goes next of those whose memory nobody else is known to keep; NIL: none, as far as was looked."""
    cdef Order order = table.order
    cdef uint32_t slot
    cdef uint64_t looks = table.store.count
    if looks > table.looks:
        looks = HEAD
    if table.soonest:
        return soonest_unseen(table, keep)
    if order.others is None:
        return unseen_of(table, order.plain, keep, &looks)
    for policy in order.others:
        if policy is not None:
            slot = unseen_of(table, <Policy>policy, keep, &looks)
            if slot != NIL:
                return slot
    return NIL


cdef uint32_t unseen_of(Contents table, Policy policy, uint32_t keep, uint64_t *looks) noexcept:
    """The same among the entries of one policy."""
    cdef Store *store = &table.store
    cdef uint32_t following, slot = policy.victim(keep)
    while slot != NIL and (slot == keep or is_passed(table, slot)):
        if looks[0] == 0:
            return NIL
        looks[0] -= 1
        table.looks -= table.looks > 0
        following = policy.after(slot)
        if following == slot:
            return any_unseen_of(table, policy, keep)
        slot = following
    return slot


cdef uint32_t any_unseen_of(Contents table, Policy policy, uint32_t keep) noexcept:
    """For a policy that knows the next one only."""
    cdef Store *store = &table.store
    cdef uint32_t slot
    for slot in range(1, store.fresh + 1):
        if slot == keep or not is_entry(store, slot) or table.order.of(slot) is not policy:
            continue
        if store.extras is not NULL and store.extras[slot].untracked:
            continue
        if not is_passed(table, slot):
            return slot
    return NIL


cdef uint32_t soonest_unseen(Contents table, uint32_t keep) noexcept:
    """Of those with a deadline the one whose time is over first."""
    cdef Store *store = &table.store
    cdef uint32_t place, slot, found = NIL
    for place in range(1, store.timed + 1):
        slot = store.heap[place]
        if slot == keep or is_passed(table, slot):
            continue
        if found == NIL or store.extras[slot].deadline < store.extras[found].deadline:
            found = slot
    return found
