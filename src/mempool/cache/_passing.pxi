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
# A value under several keys is kept by the cache itself. Under pressure, once all others went, such entries count for what they
# are: how often the cache has each value is found out by sorting them, then and only then.
#
# Who has very many entries that are viewed would look at them all at each write. So each write pays for some looks, at the first in
# order, and what it does not use is saved for a look at everybody from time to time: over many writes that is a few looks each.

cdef enum:
    SMALL = 256  # entries that are always looked at
    LOOKS = 64   # each write pays for
    HEAD = 32    # of them at the first in order, at least

cdef struct Owned:          # values that somebody has more than one reference to, as often as the table has them
    PyObject **values      # by address
    size_t count


cdef inline bint holds_too_much(Contents table) noexcept:
    return table.store.total + min(table.pins.total, UNBOUNDED) > table.allowed


cdef int settle(Contents table, uint32_t keep, PyObject *kept) except -1:
    """Unlocked: have entries leave as long as that frees memory and there is too much; never `keep`, if it is still that value."""
    cdef Telling telling
    table.unsettled = False
    if table.pins is None or table.pins.total == 0 or not holds_too_much(table):
        return 0
    if table.is_telling():
        table.unsettled = True
        return 0
    table.looks = min(table.looks + LOOKS, 2 * <uint64_t>table.store.count + LOOKS)
    table.begin_telling(&telling, NULL)
    try:
        settle_once(table, keep, kept)
    finally:
        table.end_telling(&telling)
        table.unsettled = False
    return 0


cdef int settle_once(Contents table, uint32_t keep, PyObject *kept) except -1:
    """As many leave as there are, at most: a listener may put back each one."""
    cdef Store *store = &table.store
    cdef uint32_t slot, grave, left = store.count
    while True:
        grave = NIL
        table_lock(&table.mutex)
        if keep > store.fresh or store.entries is NULL or store.entries[keep].value is not kept:
            keep = NIL
        while left and holds_too_much(table):
            slot = next_unseen(table, keep)
            if slot == NIL:
                break
            left -= 1
            table.unlink(slot, EVICTED, &grave)
        table_unlock(&table.mutex)
        if grave == NIL:
            return 0
        table.bury(grave)


cdef bint is_passed(Contents table, uint32_t slot, Owned *owned = NULL) noexcept:
    """Whether its going would free nothing: somebody else is known to keep its memory, which is not counted as pinned yet."""
    cdef PyObject *value = table.store.entries[slot].value
    cdef Py_ssize_t own = 1 if owned is NULL else owned_times(owned, value)
    return exports(value) and values.seen(value, own) == 1 and not (table.pins is not None and table.pins.has(value))


cdef uint32_t next_unseen(Contents table, uint32_t keep) noexcept:
    """Under the lock: who goes next of those whose memory nobody else is known to keep; NIL: none, as far as was looked."""
    cdef Order order = table.order
    cdef uint32_t slot
    cdef uint64_t looks = table.store.count
    if looks > max(table.looks, <uint64_t>SMALL):
        looks = HEAD
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
    if type(policy) is Soonest:
        return soonest_unseen(table, <Soonest>policy, keep, looks)
    cdef uint32_t first = policy.victim(keep), slot = first
    while slot != NIL and (slot == keep or is_passed(table, slot)):
        if looks[0] == 0:
            return NIL
        looks[0] -= 1
        table.looks -= table.looks > 0
        slot = policy.after(slot)
        if slot == first:
            return NIL
    return slot


cdef uint32_t soonest_unseen(Contents table, Soonest policy, uint32_t keep, uint64_t *looks) noexcept:
    """Its order is no chain: of those looked at the one whose time is over first."""
    cdef uint32_t place, slot, found = NIL
    for place in range(1, policy.count + 1):
        if looks[0] == 0:
            break
        looks[0] -= 1
        table.looks -= table.looks > 0
        slot = policy.members[place]
        if slot == keep or is_passed(table, slot):
            continue
        if found == NIL or table.store.extras[slot].deadline < table.store.extras[found].deadline:
            found = slot
    return found


# ---- under pressure ----

cdef void shrink_unseen(Contents table, uint64_t goal, uint32_t *grave) noexcept:
    """Under the lock: down to this sum of sizes, in the policy's order, but for those whose memory somebody else keeps."""
    cdef Owned owned
    shrink_order(table, goal, grave, NULL)
    if table.store.total <= goal:
        return
    owned_gather(&owned, &table.store)
    if owned.count > 1:
        shrink_order(table, goal, grave, &owned)
    free(owned.values)


cdef void shrink_order(Contents table, uint64_t goal, uint32_t *grave, Owned *owned) noexcept:
    cdef Order order = table.order
    if order.others is None:
        shrink_policy(table, order.plain, goal, grave, owned)
    else:
        for policy in order.others:
            if policy is not None:
                shrink_policy(table, <Policy>policy, goal, grave, owned)


cdef void shrink_policy(Contents table, Policy policy, uint64_t goal, uint32_t *grave, Owned *owned) noexcept:
    cdef Store *store = &table.store
    cdef uint32_t following, slot = policy.victim(NIL)
    # an order may be a circle, and have the last one take the place of one that goes
    cdef uint64_t looks = 2 * <uint64_t>store.count
    while slot != NIL and store.total > goal and looks:
        looks -= 1
        following = policy.after(slot)
        if following == slot:
            shrink_slots(table, policy, goal, grave, owned)
            return
        if not is_passed(table, slot, owned):
            table.unlink(slot, PRESSURE, grave)
        slot = following


cdef void shrink_slots(Contents table, Policy policy, uint64_t goal, uint32_t *grave, Owned *owned) noexcept:
    """The same for a policy that knows the next one only."""
    cdef Store *store = &table.store
    cdef uint32_t slot
    for slot in range(1, store.fresh + 1):
        if store.total <= goal:
            return
        if not is_entry(store, slot) or is_passed(table, slot, owned):
            continue
        if store.extras is not NULL and store.extras[slot].untracked or table.order.of(slot) is not policy:
            continue
        table.unlink(slot, PRESSURE, grave)


# ---- values under several keys ----

cdef int by_address(const void *one, const void *other) noexcept nogil:
    cdef size_t first = (<size_t *>one)[0], second = (<size_t *>other)[0]
    return (first > second) - (first < second)


cdef void owned_gather(Owned *owned, Store *store) noexcept:
    """None where there is no memory for it."""
    cdef uint32_t slot
    cdef PyObject *value
    owned.count = 0
    owned.values = <PyObject **>malloc((<size_t>store.count + 1) * sizeof(PyObject *))
    if owned.values is NULL:
        return
    for slot in range(1, store.fresh + 1):
        if is_entry(store, slot):
            value = store.entries[slot].value
            if refcount(value) > 1 and exports(value):
                owned.values[owned.count] = value
                owned.count += 1
    qsort(owned.values, owned.count, sizeof(PyObject *), by_address)


cdef size_t owned_below(Owned *owned, size_t address) noexcept nogil:
    """How many have a lower address."""
    cdef size_t first = 0, last = owned.count, middle
    while first < last:
        middle = first + (last - first) // 2
        if <size_t>owned.values[middle] < address:
            first = middle + 1
        else:
            last = middle
    return first


cdef Py_ssize_t owned_times(Owned *owned, PyObject *value) noexcept nogil:
    """How often the table has it."""
    cdef size_t times = owned_below(owned, <size_t>value + 1) - owned_below(owned, <size_t>value)
    return <Py_ssize_t>times if times else 1
