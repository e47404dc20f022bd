# What a table holds, and how it leaves: by a bound, a deadline, by hand.
#
#     unlink       out of index, heap and policy; the slot is a grave: linked to the next one, its mark says why     under the lock
#     bury         takes each out of its slot, frees that, tells whoever wants to know, drops key and value          unlocked
#
# So whatever runs when a value dies finds the table as it will be. A grave is no entry, but the collector still visits it.
#
# A listener may put what left back, and what it puts may have others leave. So each value that is being told of is known: put back,
# it is in use and not pinned. And what a write in a listener leaves to be evicted, for pinned bytes, is left to whoever called the
# listener, once it is done: so settling is never nested, however often a listener puts back.
#
# Rejected: to drop values as they leave, as cachetools does. A `__del__` or a listener that writes to the cache meets it half
# changed.

cpdef enum:  # what an entry counts: 1, its real bytes, what `getsizeof` says
    UNIT, REAL, OWN

cdef enum:  # who may not be evicted: nobody, those without a deadline, all
    FREE, LASTING, ALL

cdef enum:
    CAUSES = 7
    MOST_SLOTS = 0xFFFFFFF0
    MOST_TRIES = 1000

cdef uint64_t UNBOUNDED = (<uint64_t>1 << 63) - 1   # two of it can be added
cdef uint32_t FAILED = 0xFFFFFFFF

cdef struct Fresh:         # what is to be put; the objects are borrowed
    PyObject *key
    PyObject *value
    PyObject *note
    PyObject *claim        # of the load that it comes from, or NULL
    uint64_t size
    double now
    double lifetime
    uint32_t hash
    int16_t level
    bint untracked

cdef struct Asked:         # the last key of the table that was compared by its own code, and what that said
    PyObject *key          # owned, or NULL
    int same

cdef struct Gone:          # what left; the objects are owned
    PyObject *key
    PyObject *value
    PyObject *note
    uint64_t size
    int cause

cdef struct Telling:       # of what left, while its listener runs; or a settling
    PyObject *value        # NULL: a settling
    bint again             # the table has its memory again
    unsigned long thread
    Telling *outer         # of this table, of whatever thread

cdef extern from "Python.h":
    unsigned long this_thread "PyThread_get_thread_ident"() noexcept nogil

cdef enum:  # as `Cause`
    EVICTED, EXPIRED, DELETED, REPLACED, INVALIDATED, PRESSURE, COLLECTED

cdef uint32_t GRAVE = 0xFFFFFFFF   # what `prev` of a grave is

MISSING = object()
cdef object missing = MISSING


@cython.no_gc_clear
cdef class Contents:
    """Entries, the order in which they go, and the bounds that make them."""

    cdef Store store
    cdef Order order
    cdef table_mutex mutex
    cdef uint64_t bound        # of the sum of sizes, as asked for
    cdef uint64_t pressed      # what a monitor allows, whatever the bound; UNBOUNDED: all of it
    cdef uint64_t allowed      # what that leaves of it
    cdef uint64_t most         # entries
    cdef uint64_t fixed, fixed_count   # sizes and number of entries that no policy may choose
    cdef uint32_t changes      # entries moved in the index: a lookup that ran foreign code begins again
    cdef uint32_t burying      # slots that left and are not free yet
    cdef int weighing
    cdef bint ttls             # some entry has, or had, a deadline
    cdef int fixing            # who may not be evicted
    cdef double lifetime       # of an entry that is given none
    cdef object clock          # None: the monotonic one
    cdef object listener
    cdef object account        # charged for the table's own memory
    cdef object loads          # told of keys that are written or removed while some are loaded
    cdef dict loading          # its loads that go on
    cdef Pins pins             # None: it is not bytes that are bounded
    cdef Telling *tellings     # that go on
    cdef bint unsettled        # a listener wrote, and there may be too much
    cdef uint64_t looks        # at entries that may be viewed, which writes have paid for
    cdef uint64_t charged
    cdef uint64_t hits, misses, insertions, rejections, listener_errors
    cdef uint64_t left[CAUSES]
    cdef object __weakref__

    cdef double now(self) except? -1:
        """The clock's word; read before the lock is taken."""
        cdef double said
        if self.clock is None:
            return table_clock()
        told = self.clock()
        if not isinstance(told, (int, float)):
            raise TypeError(f"the clock of a cache must return seconds, not {told!r}")
        said = told
        if said - said != 0:
            raise ValueError(f"the clock of a cache said {said}")
        return said

    cdef inline bint is_over(self, uint32_t slot, double now) noexcept:
        return self.store.extras is not NULL and self.store.extras[slot].deadline <= now

    cdef void enrol(self, uint32_t slot) noexcept:
        """Have its policy know it, if one may choose it."""
        if self.store.extras[slot].untracked:
            self.fixed += size_of(&self.store, slot)
            self.fixed_count += 1
        else:
            self.order.of(slot).added(slot)

    cdef void dismiss(self, uint32_t slot, bint evicted) noexcept:
        """Have its policy forget it."""
        if self.store.extras is not NULL and self.store.extras[slot].untracked:
            self.fixed -= size_of(&self.store, slot)
            self.fixed_count -= 1
        else:
            self.order.of(slot).removed(slot, evicted)

    cdef inline bint is_loading(self) noexcept:
        return self.loading is not None and len(self.loading) > 0

    cdef inline int tell_loads(self, key) except -1:
        """Before a key is removed: what is being loaded for it is too old then."""
        if self.is_loading():
            self.loads.forget(key)
        return 0

    # ---- out of the table ----

    cdef void unlink(self, uint32_t slot, int cause, uint32_t *grave) noexcept:
        """Under the lock: no entry any more, but a grave before these."""
        cdef Store *store = &self.store
        cdef Entry *entry = &store.entries[slot]
        index_remove(store, slot)
        if store.extras is not NULL:
            heap_remove(store, slot)
        self.dismiss(slot, cause == EVICTED or cause == PRESSURE)
        store.total -= size_of(store, slot)
        store.count -= 1
        self.left[cause] += 1
        self.changes += 1
        self.burying += 1
        entry.mark, entry.prev, entry.next = cause, GRAVE, grave[0]
        grave[0] = slot

    cdef void evict(self, uint32_t keep, int cause, uint32_t *grave) noexcept:
        """Under the lock: down to the bounds, or to where nobody may go."""
        cdef uint32_t slot
        while self.store.total > self.allowed or self.store.count > self.most:
            slot = self.order.victim(keep)
            if slot == NIL:
                return
            self.unlink(slot, cause, grave)

    # ---- out of this world ----

    cdef int bury(self, uint32_t grave) except -1:
        """Unlocked: drop what left, the first one first. All of it, whatever is raised: of errors the first goes on."""
        cdef uint32_t next, first = NIL
        cdef Gone gone
        error = None
        table_lock(&self.mutex)
        while grave != NIL:
            next = self.store.entries[grave].next
            self.store.entries[grave].next = first
            first, grave = grave, next
        table_unlock(&self.mutex)
        while first != NIL:
            table_lock(&self.mutex)
            next = self.store.entries[first].next
            self.exhume(first, &gone)
            table_unlock(&self.mutex)
            first = next
            try:
                self.part(&gone)
            except BaseException as raised:
                error = error or raised
        if self.unsettled:
            try:
                settle(self, NIL, NULL)
            except BaseException as raised:
                error = error or raised
        if error is not None:
            raise error
        return 0

    cdef void exhume(self, uint32_t slot, Gone *gone) noexcept:
        """Under the lock: what is in a grave, whose slot is free now."""
        cdef Store *store = &self.store
        gone.key, gone.value = store.entries[slot].key, store.entries[slot].value
        gone.cause, gone.size = store.entries[slot].mark, size_of(store, slot)
        gone.note = NULL
        if store.extras is not NULL:
            gone.note = store.extras[slot].note
            store.extras[slot].note = NULL
        self.burying -= 1
        slot_free(store, slot)

    cdef int part(self, Gone *gone) except -1:
        """Tell who wants to know, then drop. Raises only what ends programs."""
        cdef Telling telling
        key = taken(gone.key)
        note = None if gone.note is NULL else taken(gone.note)
        self.begin_telling(&telling, gone.value)
        try:
            if note is not None:
                note.gone()
            if self.listener is not None:
                self.tell(key, <object>gone.value, gone.cause)
        finally:
            self.end_telling(&telling)
            self.let_go(gone, telling.again)
        return 0

    cdef int let_go(self, Gone *gone, bint again) except -1:
        """Drop the value. What an eviction did not free yet is counted, if the table has it not again."""
        if exports(gone.value):
            if gone.cause != DELETED or refcount(gone.value) == 1:  # else somebody popped it, whose it is now
                values.adopt(gone.value)
            if self.pins is not None and not again and (
                gone.cause == EVICTED or gone.cause == EXPIRED or gone.cause == PRESSURE
            ):
                return self.pins.drop(gone.value, gone.size)
        drop(gone.value)
        return 0

    # ---- what is being told ----

    cdef void begin_telling(self, Telling *telling, PyObject *value) noexcept:
        telling.value, telling.again, telling.thread = value, False, this_thread()
        table_lock(&self.mutex)
        telling.outer = self.tellings
        self.tellings = telling
        table_unlock(&self.mutex)

    cdef void end_telling(self, Telling *telling) noexcept:
        cdef Telling **at = &self.tellings
        table_lock(&self.mutex)
        while at[0] is not telling:  # another thread may have begun later
            at = &at[0].outer
        at[0] = telling.outer
        table_unlock(&self.mutex)

    cdef void recall(self, PyObject *value) noexcept:
        """Under the lock: it was put. If it is the memory of what left, and is being told of, then that is in use again."""
        cdef Telling *telling = self.tellings
        cdef PyObject *anchor = values.plain_anchor(value) if exports(value) else NULL
        while telling is not NULL:
            if telling.value is not NULL and exports(telling.value) and (
                telling.value is value or anchor is not NULL and values.plain_anchor(telling.value) is anchor
            ):
                telling.again = True
            telling = telling.outer

    cdef bint is_telling(self) noexcept:
        """Whether this thread is within a listener of this table, or settles it."""
        cdef Telling *telling
        cdef unsigned long thread
        if self.tellings is NULL:
            return False
        thread = this_thread()
        table_lock(&self.mutex)
        telling = self.tellings
        while telling is not NULL and telling.thread != thread:
            telling = telling.outer
        table_unlock(&self.mutex)
        return telling is not NULL

    cdef int tell(self, key, value, int cause) except -1:
        """Call the listener. Its errors are logged once, then counted; what ends programs goes on."""
        try:
            self.listener(key, value, CAUSES_BY_NUMBER[cause])
        except Exception:
            self.listener_errors += 1
            if self.listener_errors == 1:
                log.exception("on_evict of a cache raised; further errors are counted, not logged")
        return 0

    # ---- its own memory ----

    cdef int grow(self, bint extras) except -1:
        """Room for more slots, unlocked as accounts may ask others for room first. If the table changed by that: not yet."""
        cdef Store *store = &self.store
        cdef uint64_t capacity = store.capacity, wanted = capacity
        cdef int done = 0
        if is_full(store):
            wanted = min(max(2 * capacity, <uint64_t>8), max(self.most, capacity) + 1, <uint64_t>MOST_SLOTS)
            if wanted <= capacity:
                raise MemoryError(f"a cache has room for at most {MOST_SLOTS} entries")
        self.charge(wanted, extras, None)
        table_lock(&self.mutex)
        try:
            if store.capacity == capacity and self.is_paid(wanted, extras, None):
                done = -1
                self.order.ready(<uint32_t>wanted)
                done = store_reserve(store, <uint32_t>wanted, self.weighing != UNIT, extras or store.extras is not NULL)
        finally:
            self.changes += 1
            table_unlock(&self.mutex)
            self.charge(0, False, None)
        if done < 0:
            raise MemoryError(f"no memory for {wanted} entries")
        return 0

    cdef uint64_t nbytes_at(self, uint64_t capacity, bint extras, Policy made) noexcept:
        """Bytes of the table itself with so many slots, and one policy more, or None."""
        if capacity == 0:
            return 0
        cdef uint64_t total = bytes_for(capacity, self.weighing != UNIT, extras) + self.order.nbytes(capacity)
        return total if made is None else total + made.nbytes(capacity)

    cdef uint64_t own_bytes(self) noexcept:
        """Bytes of the table itself."""
        return self.nbytes_at(self.store.capacity, self.store.extras is not NULL, None)

    cdef int charge(self, uint64_t capacity, bint extras, Policy made) except -1:
        """Have the account know what the table takes, or what it would take with so many slots, extras, and one policy more.

        The account may have anybody make room, who may grow, clear or charge the table. So the books follow, and who wants more
        asks `is_paid` under the lock.
        """
        cdef uint64_t wanted, had
        if self.account is None:
            return 0
        table_lock(&self.mutex)
        wanted = self.nbytes_at(max(capacity, <uint64_t>self.store.capacity), extras or self.store.extras is not NULL, made)
        had = self.charged
        self.charged = min(had, wanted)
        table_unlock(&self.mutex)
        if had > wanted:
            self.account.discharge(had - wanted)
        elif had < wanted:
            self.account.charge(wanted - had)
            table_lock(&self.mutex)
            self.charged += wanted - had
            table_unlock(&self.mutex)
        return 0

    cdef bint is_paid(self, uint64_t capacity, bint extras, Policy made) noexcept:
        """Under the lock: whether that is charged."""
        return self.account is None or self.charged >= self.nbytes_at(capacity, extras or self.store.extras is not NULL, made)

    cdef int rest(self) except -1:
        """Give the table's memory back if it is empty."""
        cdef bint freed = False
        table_lock(&self.mutex)
        if self.store.count == 0 and self.burying == 0 and self.store.capacity:
            store_free(&self.store)
            self.order.release()
            self.changes += 1
            freed = True
        table_unlock(&self.mutex)
        if freed:
            self.charge(0, False, None)
        return 0


cdef inline bint is_entry(Store *store, uint32_t slot) noexcept nogil:
    return store.entries[slot].key is not NULL and store.entries[slot].prev != GRAVE


cdef uint32_t store_any(Store *store) noexcept nogil:
    """Any entry, or NIL."""
    cdef uint32_t slot
    for slot in range(1, store.fresh + 1):
        if is_entry(store, slot):
            return slot
    return NIL
