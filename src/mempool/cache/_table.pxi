# The table: lookup and insertion.
#
#     get, [], in      hash | lock | seek, policy.hit, take a reference | unlock
#     []=, insert      hash, weigh, clock | lock | seek, fill, policy.added, evict | unlock | drop what left
#
# Between lock and unlock no Python runs and nothing is allocated but raw memory. With a GIL the lock is nothing.


@cython.no_gc_clear
cdef class Table(Lookup):
    """The compiled part of `Cache`: entries within bounds. All that has a leading underscore is for this package only."""

    @classmethod
    def __class_getitem__(cls, item):
        return GenericAlias(cls, item)

    def __cinit__(self, *args, **kwargs):
        order = Order()
        (<Order>order).begin(&self.store, "none")
        self.order = order

    def _begin(self, policy, bound, most, weighing, lifetime, clock, listener, account, pins, fixing=0):
        """Set up, once: an empty table."""
        if self.store.capacity:
            raise RuntimeError("a cache cannot be set up again")
        order = Order()
        self.bound = self.allowed = min(bound, UNBOUNDED)
        self.most, self.pressed = min(most, UNBOUNDED), UNBOUNDED
        (<Order>order).total = self.bound
        (<Order>order).begin(&self.store, policy)
        self.order = order
        self.weighing = weighing
        self.lifetime = lifetime
        self.clock, self.listener, self.account, self.pins = clock, listener, account, pins
        self.fixing = fixing

    def _watch(self, loads, loading):
        """Have loads know which keys are written or removed; the dict is empty while there are none."""
        self.loads, self.loading = loads, loading

    cdef int tell_of_write(self, Fresh *fresh, bint replace) except -1:
        """Before a key is written, the same. What refuses the write does so here: a load is not too old for that."""
        cdef uint32_t grave = NIL
        cdef uint32_t slot = self.seek_room(fresh, &grave)
        cdef bint stays = slot != NIL and not replace and not self.is_over(slot, fresh.now)
        cdef bint refused = not stays and not self.fits(slot, fresh)
        table_unlock(&self.mutex)
        if grave != NIL:
            self.bury(grave)
        if refused:
            self.refuse()
        if not stays:
            self.loads.forget(<object>fresh.key)
        return 0

    # ---- lookup ----

    def _find(self, key, version=None):
        """Return the value of a key, or MISSING; a use of it. An entry of another version than was asked is stale, and leaves."""
        cdef PyObject *value
        if version is not None:
            return self.find_version(key, version)
        value = self.find(<PyObject *>key, hash_of(key))
        return missing if value is NULL else taken(value)

    def __getitem__(self, key):
        cdef PyObject *value = self.find(<PyObject *>key, hash_of(key))
        if value is NULL:
            return self.__missing__(key)
        return taken(value)

    def get(self, key, default=None):
        """Return the value of a key, or the default. Counts as a use; `__missing__` is not asked."""
        cdef PyObject *value = self.find(<PyObject *>key, hash_of(key))
        return default if value is NULL else taken(value)

    def get_or_load(self, key, loader, *, ttl=None, priority=0, tags=(), version=None, refresh_ahead=None):
        """Return the value of a key; where there is none, have `loader(key)` make it, and keep it.

        Whoever asks for a key that is being loaded waits for that load: threads sleep, tasks await. Nothing that was written,
        removed or invalidated during a load is overwritten by it; who waited gets what was loaded nevertheless.

        Parameters
        ----------
        key : hashable
        loader : callable
            Called with the key. A coroutine function is awaited: this returns a coroutine then, also for a hit.
        ttl, priority, tags, version
            As for `put`, and looked at when something is loaded: a hit has no use for them, and does not check them. An entry of
            another version is loaded anew.
        refresh_ahead : float, optional
            Fraction of the ttl after which a hit returns the old value and begins one load in the background.

        Raises
        ------
        Exception
            What the loader raised, the same object for all who waited. Nothing is kept then.
        TypeError
            A plain loader returned an awaitable.

        Examples
        --------
        >>> from mempool.cache import Cache
        >>> cache = Cache(100)
        >>> cache.get_or_load(3, lambda key: key * key), cache[3]
        (9, 9)
        """
        cdef PyObject *found
        if version is None and refresh_ahead is None and is_plain(loader):
            found = self.find(<PyObject *>key, hash_of(key))
            if found is not NULL:
                return taken(found)
            return self._load(key, loader, ttl, priority, tags)
        return self._load_through(key, loader, ttl, priority, tags, version, refresh_ahead)

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

    def _age(self, key):
        """Return the seconds since an entry with a ttl was written, and its ttl; None: there is no such entry. Nobody is told."""
        cdef Py_hash_t full = hash_of(key)
        cdef double now = self.now() if self.ttls else 0
        cdef double left = -1, lifetime = INFINITY
        cdef uint32_t slot = self.seek(<PyObject *>key, mixed(full))
        if slot != NIL and self.store.extras is not NULL:
            lifetime, left = self.store.extras[slot].lifetime, self.store.extras[slot].deadline - now
        table_unlock(&self.mutex)
        return None if left <= 0 or lifetime == INFINITY else (lifetime - left, lifetime)

    # ---- insertion ----

    cdef uint64_t weigh(self, value) except? 0xFFFFFFFFFFFFFFFF:
        if self.weighing == UNIT:
            return 1
        if self.weighing == REAL:
            return values.weigh(<PyObject *>value)
        size = self.getsizeof(value)
        if not isinstance(size, int):
            raise TypeError(f"getsizeof must return an int, not {size!r}")
        if size < 0:
            raise ValueError(f"getsizeof must not return less than 0, got {shown(size)}")
        return UNBOUNDED + 1 if size > UNBOUNDED else size

    def __setitem__(self, key, value):
        self.insert(key, value, self.lifetime, 0, None, True, None)

    def _insert(self, key, value, lifetime, level, note, replace):
        """Put an entry: seconds until it expires, a priority, and a note, which goes with it. False: it must not replace one.

        A load gives its claim, which says that; what is refused for its size or for want of room raises nothing then.
        """
        cdef Claim claim = <Claim>replace if isinstance(replace, Claim) else None
        return self.insert(
            key,
            value,
            self.lifetime if lifetime is None else lifetime,
            level,
            note,
            replace if claim is None else claim.replaces,
            claim,
        )

    cdef bint insert(self, key, value, double lifetime, int level, note, bint replace, Claim claim) except -1:
        """Convert, make room, put; whether it was put. What had to leave is dropped at the end."""
        cdef Fresh fresh
        cdef Gone old
        cdef uint32_t slot, grave = NIL
        fresh.hash = mixed(hash_of(key))
        fresh.size = self.weigh(value)
        if fresh.size > self.bound or self.most == 0:
            self.rejections += 1
            if claim is not None:
                return False
            raise ValueError(f"value too large: {fresh.size}, where the bound is {self.bound if self.most else 0}")
        fresh.key, fresh.value = <PyObject *>key, <PyObject *>value
        fresh.note = NULL if note is None else <PyObject *>note
        fresh.claim = NULL if claim is None else <PyObject *>claim
        fresh.lifetime, fresh.level = lifetime, <int16_t>level
        fresh.untracked = self.fixing == ALL or self.fixing == LASTING and lifetime == INFINITY
        fresh.now = self.now() if self.ttls or lifetime != INFINITY else 0
        if not self.order.has(level):
            self.open(level)
        if claim is None and self.is_loading():
            self.tell_of_write(&fresh, replace)
        slot = self.seek_room(&fresh, &grave)
        old.value = old.note = NULL
        cdef int done = self.place(&slot, &fresh, replace, &old, &grave)
        if done > 0 and self.tellings is not NULL:
            self.recall(<PyObject *>value)
        table_unlock(&self.mutex)
        try:
            if old.value is not NULL:
                self.part(&old)
        finally:
            if grave != NIL:
                self.bury(grave)
        if self.pins is not None and self.pins.total:
            if done > 0:
                self.pins.welcome(<PyObject *>value)
            settle(self, slot, <PyObject *>value)
        if done < 0:
            if claim is None:
                self.refuse()
            self.rejections += 1
            return False
        return done

    cdef int refuse(self) except -1:
        """Nothing may go for what was to be put."""
        self.rejections += 1
        raise CacheFull(f"the cache is full: none of its {self.store.count} entries may be evicted")

    cdef int open(self, int level) except -1:
        """See that there is a policy of this priority."""
        made, others = self.order.another(), [None] * LEVELS
        while not self.order.has(level):
            self.charge(0, False, made)
            table_lock(&self.mutex)
            try:
                if self.is_paid(self.store.capacity, False, made):
                    self.order.adopt(level, made, others)
            finally:
                table_unlock(&self.mutex)
                self.charge(0, False, None)
        return 0

    cdef int place(self, uint32_t *slot, Fresh *fresh, bint replace, Gone *old, uint32_t *grave) noexcept:
        """Under the lock: 1 if it was put, 0 if it must not replace, -1 if nothing may go for it."""
        if slot[0] != NIL and not replace and not self.is_over(slot[0], fresh.now) and not self.is_stale(slot[0], fresh):
            return 0
        if fresh.claim is not NULL and (<Claim>fresh.claim).lapsed:
            return 0
        if not self.fits(slot[0], fresh):
            return -1
        if slot[0] == NIL:
            slot[0] = self.fill(fresh)
        else:
            self.swap(slot[0], fresh, old)
        self.insertions += 1
        self.evict(slot[0], EVICTED, grave)
        return 1

    cdef inline bint is_stale(self, uint32_t slot, Fresh *fresh) noexcept:
        """Whether a load brings another version than is there. It began later than that, or its claim had lapsed."""
        if fresh.claim is NULL or fresh.note is NULL or type(<object>fresh.note) is not Note:
            return False
        version = (<Note><object>fresh.note).version
        return version is not None and same_version(self.note_at(slot), version) <= 0

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
            due = heap_soonest(&self.store, slot)
            while due != NIL and self.is_over(due, fresh.now):
                self.unlink(due, EXPIRED, grave)
                due = heap_soonest(&self.store, slot)
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
        index_add(store, fresh.hash, slot)
        if store.extras is NULL:
            self.order.plain.added(slot)
        else:
            self.describe(slot, fresh)
            self.enrol(slot)
        return slot

    cdef void swap(self, uint32_t slot, Fresh *fresh, Gone *old) noexcept:
        """Another value in its slot; the key that was there first stays, but for one whose time was over."""
        cdef Store *store = &self.store
        cdef Entry *entry = &store.entries[slot]
        cdef uint64_t before = size_of(store, slot)
        cdef bint moves = store.extras is not NULL and (
            store.extras[slot].untracked != fresh.untracked or store.extras[slot].level != fresh.level
        )
        old.cause = EXPIRED if self.is_over(slot, fresh.now) else REPLACED
        old.key, old.value, old.size = entry.key, entry.value, before
        if old.cause == EXPIRED:
            entry.key = fresh.key
            self.changes += 1
        keep_alive(entry.key)
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
            note_placed(fresh.note)
        extra.level, extra.untracked, extra.lifetime = fresh.level, fresh.untracked, fresh.lifetime
        if fresh.lifetime != INFINITY or extra.place:
            heap_set(&self.store, slot, fresh.now + fresh.lifetime)
            self.ttls = True
        else:
            extra.deadline = INFINITY

    # ---- removal ----

    def __delitem__(self, key):
        value = self.remove(key, NULL, DELETED)
        if value is missing:
            raise KeyError(key)
        values.adopt(<PyObject *>value)

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

    def _revoke(self, note, cause):
        """Remove the entry that has this very note; whether it was there."""
        return self.remove((<Note?>note).key, NULL, cause, <PyObject *>note) is not missing

    cdef object remove(self, key, PyObject *expected, int cause, PyObject *note = NULL):
        cdef Py_hash_t full = hash_of(key)
        # What died goes now or never, so no clock that raises is asked for it.
        cdef double now = self.now() if self.ttls and cause != COLLECTED else -INFINITY
        if expected is NULL:
            self.tell_loads(key)
        cdef uint32_t slot = self.seek(<PyObject *>key, mixed(full))
        cdef uint32_t grave = NIL
        cdef PyObject *value = NULL
        if slot != NIL and self.is_over(slot, now):
            self.unlink(slot, EXPIRED, &grave)
        elif (
            slot != NIL
            and (expected is NULL or self.store.entries[slot].value == expected)
            and (note is NULL or self.note_at(slot) == note)
        ):
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
        while True:
            slot = self.order.victim(NIL)
            if slot == NIL:
                slot = store_any(&self.store)
            if slot == NIL:
                table_unlock(&self.mutex)
                raise KeyError(f"{type(self).__name__} is empty")
            key, value = <object>self.store.entries[slot].key, <object>self.store.entries[slot].value
            if not self.is_loading():
                break
            table_unlock(&self.mutex)
            self.tell_loads(key)
            table_lock(&self.mutex)
            if self.has_still(slot, <PyObject *>key, <PyObject *>value):
                break
        self.unlink(slot, DELETED, &grave)
        table_unlock(&self.mutex)
        self.bury(grave)
        return key, value

    cdef bint has_still(self, uint32_t slot, PyObject *key, PyObject *value) noexcept:
        """Under the lock: whether that is what is in this slot."""
        cdef Store *store = &self.store
        return (
            slot <= store.fresh and is_entry(store, slot)
            and store.entries[slot].key is key and store.entries[slot].value is value
        )

    def clear(self):
        """Remove all entries."""
        cdef uint32_t slot, grave = NIL
        if self.is_loading():
            self.loads.forget_all()
        table_lock(&self.mutex)
        for slot in range(1, self.store.fresh + 1):
            if is_entry(&self.store, slot):
                values.adopt(self.store.entries[slot].value)
                self.unlink(slot, DELETED, &grave)
        self.order.clear()
        table_unlock(&self.mutex)
        self.bury(grave)
        self.rest()

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
        settle(self, NIL, NULL)
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

    def _counts(self):
        """Return hits, misses, insertions, rejections, listener errors, removals by cause, entries, sizes, allowance, own bytes."""
        left = [0] * CAUSES
        cdef Store *store = &self.store
        for cause in range(CAUSES):
            left[cause] = self.left[cause]
        return (
            self.hits, self.misses, self.insertions, self.rejections, self.listener_errors, left, store.count, store.total,
            self.allowed,
            self.own_bytes(),
        )

    @property
    def pinned(self):
        """Bytes of entries that were evicted or expired, under `max_bytes`, whose memory somebody still views."""
        return 0 if self.pins is None else self.pins.total

    def _bounds(self, bound, most):
        """Change the bounds; what is beyond them leaves. `CacheFull`, and nothing changed, if that may not."""
        cdef uint32_t grave = NIL
        cdef uint64_t total = min(bound, UNBOUNDED), count = min(most, UNBOUNDED)
        table_lock(&self.mutex)
        cdef uint64_t fixed = self.fixed, fixed_count = self.fixed_count
        if fixed <= total and fixed_count <= count:
            self.allowed = min(self.pressed, total)  # it is a monitor that gives it back
            self.bound, self.most = total, count
            self.order.limit(self.allowed)
            self.evict(NIL, EVICTED, &grave)
        table_unlock(&self.mutex)
        if fixed > total or fixed_count > count:
            wanted = total if fixed > total else f"{count} entries"
            raise CacheFull(
                f"the cache has {fixed_count} entries of size {fixed} that may not be evicted, where the bound would be {wanted}"
            )
        self.bury(grave)
        settle(self, NIL, NULL)

    # ---- pressure ----

    def _limits(self):
        """Return the sum of sizes, what is allowed of it now, and its bound."""
        return self.store.total, self.allowed, self.bound

    def _allow(self, total):
        """Allow less than the bound for a while; what is beyond that leaves."""
        cdef uint32_t grave = NIL
        cdef uint64_t wanted = min(max(total, 0), UNBOUNDED)
        table_lock(&self.mutex)
        self.pressed = wanted if wanted < self.bound else UNBOUNDED
        self.allowed = min(wanted, self.bound)
        self.order.limit(self.allowed)
        self.evict(NIL, PRESSURE, &grave)
        table_unlock(&self.mutex)
        self.bury(grave)

    def _shrink(self, size):
        """Have entries of this size leave, those first that can be spared most; the sum of their sizes.

        Entries whose memory somebody else keeps stay: their going frees nothing.
        """
        cdef uint32_t slot, grave = NIL
        cdef uint64_t gone, total, wanted = min(max(size, 0), UNBOUNDED)
        self.expire()
        table_lock(&self.mutex)
        total = self.store.total
        cdef uint64_t goal = total - min(wanted, total)
        while self.store.total > goal:
            slot = self.order.victim(NIL)
            if slot == NIL:
                break
            if is_passed(self, slot):
                shrink_unseen(self, goal, &grave)
                break
            self.unlink(slot, PRESSURE, &grave)
        gone = total - self.store.total
        table_unlock(&self.mutex)
        if grave != NIL:
            self.bury(grave)
            self.rest()
        return gone

    def _sample(self, uint32_t most):
        """Return some of the values, at most so many, from all over the table."""
        cdef uint32_t slot = 1, step = self.store.fresh // most | 1  # odd: values may alternate
        cdef PyObject *value
        found = []
        while len(found) < most:
            table_lock(&self.mutex)
            while slot <= self.store.fresh and not is_entry(&self.store, slot):
                slot += 1
            if slot > self.store.fresh:
                table_unlock(&self.mutex)
                break
            value = self.store.entries[slot].value
            keep_alive(value)
            slot += step
            table_unlock(&self.mutex)
            found.append(taken(value))
        return found

    def __dealloc__(self):
        empty(self)
        self.charge(0, False, None)
