# The table: lookup and insertion.
#
#     get, [], in      hash | lock | seek, policy.hit, take a reference | unlock
#     []=, insert      hash, weigh, clock | lock | seek, fill, policy.added, evict | unlock | drop what left
#
# Between lock and unlock no Python runs and nothing is allocated but raw memory. With a GIL the lock is nothing.


@cython.no_gc_clear
cdef class Table(Contents):
    """The compiled part of `Cache`: entries within bounds. All that has a leading underscore is for this package only."""

    def __cinit__(self, *args, **kwargs):
        self.order = Order()
        self.order.begin(&self.store, "none")

    def _begin(self, policy, bound, most, weighing, lifetime, clock, listener, account, pins, fixing=0, soonest=False):
        """Set up, once: an empty table."""
        if self.store.capacity:
            raise RuntimeError("a cache cannot be set up again")
        order = Order()
        self.bound = self.allowed = min(bound, UNBOUNDED)
        self.most = min(most, UNBOUNDED)
        (<Order>order).total = self.bound
        (<Order>order).begin(&self.store, policy)
        self.order = order
        self.weighing = weighing
        self.lifetime = lifetime
        self.clock, self.listener, self.account, self.pins = clock, listener, account, pins
        self.fixing, self.soonest = fixing, soonest

    # ---- lookup ----

    cdef uint32_t seek(self, PyObject *key, uint32_t hash) except? 0xFFFFFFFF:
        """The slot of a key, or NIL. The lock is held when this returns, and not when it raises."""
        cdef Store *store = &self.store
        cdef Cell *cell
        cdef uint32_t at
        cdef int same
        table_lock(&self.mutex)
        if store.cells is NULL:
            return NIL
        at = hash & store.mask
        while True:
            cell = &store.cells[at]
            if cell.slot == NIL:
                return NIL
            if cell.hash == hash:
                same = table_same(store.entries[cell.slot].key, key)
                if same > 0:
                    return cell.slot
                if same < 0:
                    break
            at = (at + 1) & store.mask
        table_unlock(&self.mutex)
        return self.seek_slowly(key, hash)

    cdef uint32_t seek_slowly(self, PyObject *key, uint32_t hash) except? 0xFFFFFFFF:
        """Where `__eq__` must be asked. It runs unlocked; if the table changed meanwhile, all begins again."""
        cdef Store *store = &self.store
        cdef uint32_t at, slot, changes
        cdef int same
        table_lock(&self.mutex)
        changes = self.changes
        at = hash & store.mask
        while store.cells is not NULL and store.cells[at].slot != NIL:
            slot = store.cells[at].slot
            same = 0
            if store.cells[at].hash == hash:
                same = table_same(store.entries[slot].key, key)
                if same < 0:
                    same = self.ask(store.entries[slot].key, key)
                if self.changes != changes:
                    changes = self.changes
                    at = hash & store.mask
                    continue
            if same:
                return slot
            at = (at + 1) & store.mask
        return NIL

    cdef int ask(self, PyObject *stored, PyObject *key) except -1:
        """Whether they are equal, by their own code."""
        cdef int same
        keep_alive(stored)
        table_unlock(&self.mutex)
        try:
            same = same_by_code(stored, key, 2)  # Py_EQ
        finally:
            drop(stored)
        table_lock(&self.mutex)
        return same

    cdef PyObject *find(self, PyObject *key, Py_hash_t full) except? NULL:
        """A new reference to the value; NULL without an error: there is none. Counts, and tells the policy."""
        cdef uint32_t hash = mixed(full)
        cdef double now = self.now() if self.ttls else 0
        cdef uint32_t slot = self.seek(key, hash)
        cdef uint32_t grave = NIL
        cdef PyObject *value
        if slot != NIL and not self.is_over(slot, now):
            value = self.store.entries[slot].value
            keep_alive(value)
            self.hits += 1
            self.tell_hit(slot)
            table_unlock(&self.mutex)
            return value
        self.misses += 1
        self.order.plain.missed(hash)
        if slot != NIL:
            self.unlink(slot, EXPIRED, &grave)
        table_unlock(&self.mutex)
        if grave != NIL:
            self.bury(grave)
        return NULL

    cdef inline void tell_hit(self, uint32_t slot) noexcept:
        if self.store.extras is NULL:
            self.order.plain.hit(slot)
        elif not self.store.extras[slot].untracked:
            self.order.of(slot).hit(slot)

    def __getitem__(self, key):
        cdef PyObject *value = self.find(<PyObject *>key, hash_of(key))
        if value is NULL:
            return self.__missing__(key)
        return taken(value)

    def get(self, key, default=None):
        """Return the value of a key, or the default. Counts as a use; `__missing__` is not asked."""
        cdef PyObject *value = self.find(<PyObject *>key, hash_of(key))
        return default if value is NULL else taken(value)

    def __contains__(self, key):
        cdef Py_hash_t full = hash_of(key)
        cdef double now = self.now() if self.ttls else 0
        cdef uint32_t slot = self.seek(<PyObject *>key, mixed(full))
        cdef bint found = slot != NIL and not self.is_over(slot, now)
        table_unlock(&self.mutex)
        return found

    def _peek(self, key):
        """Return the value and the note of a key, or MISSING; nobody is told."""
        cdef Py_hash_t full = hash_of(key)
        cdef double now = self.now() if self.ttls else 0
        cdef uint32_t slot = self.seek(<PyObject *>key, mixed(full))
        cdef PyObject *note = NULL
        cdef PyObject *value
        if slot == NIL or self.is_over(slot, now):
            table_unlock(&self.mutex)
            return missing
        value = self.store.entries[slot].value
        keep_alive(value)
        if self.store.extras is not NULL and self.store.extras[slot].note is not NULL:
            note = self.store.extras[slot].note
            keep_alive(note)
        table_unlock(&self.mutex)
        return taken(value), None if note is NULL else taken(note)

    # ---- insertion ----

    cdef uint64_t weigh(self, value) except? 0xFFFFFFFFFFFFFFFF:
        if self.weighing == UNIT:
            return 1
        size = real_bytes(value) if self.weighing == REAL else self.getsizeof(value)
        if not isinstance(size, int):
            raise TypeError(f"getsizeof must return an int, not {shown(size)}")
        if size < 0:
            raise ValueError(f"getsizeof must not return less than 0, got {shown(size)}")
        return UNBOUNDED if size > UNBOUNDED else size

    def __setitem__(self, key, value):
        self.insert(key, value, self.lifetime, 0, None, True)

    def _insert(self, key, value, lifetime, level, note, replace):
        """Put an entry: seconds until it expires, a priority, and a note, which goes with it. False: it must not replace one."""
        return self.insert(key, value, self.lifetime if lifetime is None else lifetime, level, note, replace)

    cdef bint insert(self, key, value, double lifetime, int level, note, bint replace) except -1:
        """Convert, make room, put; whether it was put. What had to leave is dropped at the end."""
        cdef Fresh fresh
        cdef Gone old
        cdef uint32_t slot, grave = NIL
        fresh.hash = mixed(hash_of(key))
        fresh.size = self.weigh(value)
        if fresh.size > self.bound or self.most == 0:
            raise ValueError(f"value too large: {fresh.size}, where the bound is {self.bound if self.most else 0}")
        fresh.key, fresh.value = <PyObject *>key, <PyObject *>value
        fresh.note = NULL if note is None else <PyObject *>note
        fresh.lifetime, fresh.level = lifetime, <int16_t>level
        fresh.untracked = self.fixing == ALL or self.fixing == LASTING and lifetime == INFINITY
        fresh.now = self.now() if self.ttls or lifetime != INFINITY else 0
        if not self.order.has(level):
            self.open(level)
        slot = self.seek_room(&fresh, &grave)
        old.value = old.note = NULL
        cdef int done = self.place(slot, &fresh, replace, &old, &grave)
        table_unlock(&self.mutex)
        try:
            if old.value is not NULL:
                self.part(&old)
        finally:
            if grave != NIL:
                self.bury(grave)
        if done < 0:
            raise CacheFull(f"the cache is full: nothing of its {len(self)} entries may be evicted for {shown(key)}")
        return done

    cdef int open(self, int level) except -1:
        """See that there is a policy of this priority."""
        made, others = self.order.another(), [None] * LEVELS
        table_lock(&self.mutex)
        try:
            self.order.adopt(level, made, others)
        finally:
            table_unlock(&self.mutex)
        return 0

    cdef int place(self, uint32_t slot, Fresh *fresh, bint replace, Gone *old, uint32_t *grave) noexcept:
        """Under the lock: 1 if it was put, 0 if it must not replace, -1 if nothing may go for it."""
        if slot != NIL and not replace and not self.is_over(slot, fresh.now):
            return 0
        if not self.fits(slot, fresh):
            return -1
        if slot == NIL:
            slot = self.fill(fresh)
        else:
            self.swap(slot, fresh, old)
        self.insertions += 1
        self.evict(slot, EVICTED, grave)
        return 1

    cdef uint32_t seek_room(self, Fresh *fresh, uint32_t *grave) except? 0xFFFFFFFF:
        """As `seek`, and there is a free slot, with the columns that the entry needs; what is over has left."""
        cdef bint extras = fresh.lifetime != INFINITY or fresh.level != 0 or fresh.note is not NULL or fresh.untracked
        cdef uint32_t slot, due
        while True:
            slot = self.seek(fresh.key, fresh.hash)
            if not is_full(&self.store) and not (extras and self.store.extras is NULL):
                break
            if slot != NIL and not (extras and self.store.extras is NULL):
                break
            table_unlock(&self.mutex)
            self.grow(extras)
        if self.ttls:
            due = heap_due(&self.store, fresh.now)
            while due != NIL and due != slot:
                self.unlink(due, EXPIRED, grave)
                due = heap_due(&self.store, fresh.now)
        return slot

    cdef bint fits(self, uint32_t slot, Fresh *fresh) noexcept:
        """Whether it goes in beside what nobody may evict."""
        cdef uint64_t size = self.fixed, count = self.fixed_count
        if slot != NIL and self.store.extras is not NULL and self.store.extras[slot].untracked:
            size -= size_of(&self.store, slot)
            count -= 1
        return size + fresh.size <= self.bound and count < self.most

    cdef uint32_t fill(self, Fresh *fresh) noexcept:
        """A new entry in a free slot."""
        cdef Store *store = &self.store
        cdef uint32_t slot = slot_take(store)
        cdef Entry *entry = &store.entries[slot]
        keep_alive(fresh.key)
        keep_alive(fresh.value)
        entry.key, entry.value, entry.hash = fresh.key, fresh.value, fresh.hash
        entry.prev = entry.next = entry.mark = 0
        if store.sizes is not NULL:
            store.sizes[slot] = fresh.size
        store.total += fresh.size
        store.count += 1
        self.changes += 1
        index_add(store, fresh.hash, slot)
        if store.extras is NULL:
            self.order.plain.added(slot)
        else:
            self.describe(slot, fresh)
            self.enrol(slot)
        return slot

    cdef void swap(self, uint32_t slot, Fresh *fresh, Gone *old) noexcept:
        """Another value in its slot; the key that was there first stays."""
        cdef Store *store = &self.store
        cdef Entry *entry = &store.entries[slot]
        cdef uint64_t before = size_of(store, slot)
        cdef bint moves = store.extras is not NULL and (
            store.extras[slot].untracked != fresh.untracked or store.extras[slot].level != fresh.level
        )
        old.cause = EXPIRED if self.is_over(slot, fresh.now) else REPLACED
        old.key, old.value, old.size = entry.key, entry.value, before
        keep_alive(old.key)
        keep_alive(fresh.value)
        if moves:
            self.dismiss(slot, False)
        entry.value = fresh.value
        if store.sizes is not NULL:
            store.sizes[slot] = fresh.size
        store.total += fresh.size - before
        if store.extras is not NULL:
            old.note = store.extras[slot].note
            if not moves and store.extras[slot].untracked:
                self.fixed += fresh.size - before
            self.describe(slot, fresh)
        if moves:
            entry.mark = 0
            self.enrol(slot)
        elif store.extras is NULL or not store.extras[slot].untracked:
            self.order.of(slot).written(slot, before)
        self.left[old.cause] += 1

    cdef void describe(self, uint32_t slot, Fresh *fresh) noexcept:
        """What only some entries have."""
        cdef Extra *extra = &self.store.extras[slot]
        extra.note = fresh.note
        if fresh.note is not NULL:
            keep_alive(fresh.note)
        extra.level, extra.untracked, extra.lifetime = fresh.level, fresh.untracked, fresh.lifetime
        if fresh.lifetime != INFINITY or extra.place:
            heap_set(&self.store, slot, fresh.now + fresh.lifetime)
            self.ttls = True
        else:
            extra.deadline = INFINITY

    # ---- removal ----

    def __delitem__(self, key):
        if self.remove(key, NULL, DELETED) is missing:
            raise KeyError(key)

    def pop(self, key, default=MISSING):
        """Remove a key and return its value, or the default; `KeyError` without one."""
        value = self.remove(key, NULL, DELETED)
        if value is not missing:
            return value
        if default is missing:
            raise KeyError(key)
        return default

    def _remove(self, key, expected, cause):
        """Remove a key if its value is that very object, or whatever it is for MISSING; the value, or MISSING."""
        return self.remove(key, NULL if expected is missing else <PyObject *>expected, cause)

    cdef object remove(self, key, PyObject *expected, int cause):
        cdef Py_hash_t full = hash_of(key)
        cdef double now = self.now() if self.ttls else 0
        cdef uint32_t slot = self.seek(<PyObject *>key, mixed(full))
        cdef uint32_t grave = NIL
        cdef PyObject *value = NULL
        if slot != NIL and self.is_over(slot, now):
            self.unlink(slot, EXPIRED, &grave)
        elif slot != NIL and (expected is NULL or self.store.entries[slot].value == expected):
            value = self.store.entries[slot].value
            keep_alive(value)
            self.unlink(slot, cause, &grave)
        table_unlock(&self.mutex)
        found = missing if value is NULL else taken(value)
        self.bury(grave)
        return found

    def popitem(self):
        """Remove the entry that would go next, and return its key and value; `KeyError` if there is none."""
        cdef uint32_t slot, grave = NIL
        self.expire()
        table_lock(&self.mutex)
        slot = self.victim(NIL)
        if slot == NIL:
            slot = store_any(&self.store)
        if slot == NIL:
            table_unlock(&self.mutex)
            raise KeyError(f"{type(self).__name__} is empty")
        key, value = <object>self.store.entries[slot].key, <object>self.store.entries[slot].value
        self.unlink(slot, DELETED, &grave)
        table_unlock(&self.mutex)
        self.bury(grave)
        return key, value

    def clear(self):
        """Remove all entries."""
        self._clear(DELETED)

    def _clear(self, cause):
        """Remove all entries for this reason; how many."""
        cdef uint32_t slot, grave = NIL
        cdef uint64_t count
        table_lock(&self.mutex)
        count = self.store.count
        for slot in range(1, self.store.fresh + 1):
            if is_entry(&self.store, slot):
                self.unlink(slot, cause, &grave)
        self.order.clear()
        table_unlock(&self.mutex)
        self.bury(grave)
        self.rest()
        return count

    def expire(self):
        """Remove what is past its time; how many entries."""
        cdef uint32_t slot, grave = NIL
        cdef uint64_t count = 0
        if not self.ttls:
            return 0
        cdef double now = self.now()
        table_lock(&self.mutex)
        slot = heap_due(&self.store, now)
        while slot != NIL:
            self.unlink(slot, EXPIRED, &grave)
            count += 1
            slot = heap_due(&self.store, now)
        table_unlock(&self.mutex)
        self.bury(grave)
        return count

    # ---- bounds ----

    def __len__(self):
        if self.ttls:
            self.expire()
        return self.store.count

    @property
    def currsize(self):
        """The sum of the sizes of all entries: bytes under `max_bytes`, entries otherwise, if `getsizeof` says nothing else."""
        if self.ttls:
            self.expire()
        return self.store.total

    def _bounds(self, bound, most):
        """Change the bounds; what is beyond them leaves."""
        cdef uint32_t grave = NIL
        cdef uint64_t total = min(bound, UNBOUNDED), count = min(most, UNBOUNDED)
        table_lock(&self.mutex)
        self.bound = self.allowed = total
        self.most = count
        self.order.limit(total)
        self.evict(NIL, EVICTED, &grave)
        table_unlock(&self.mutex)
        self.bury(grave)

    def __dealloc__(self):
        empty(self)
        self.charge(0)
