# Lookup: where a key is, in one step if its code need not be asked.
#
#     seek            compares by identity, and what is int or str itself; the lock is held when it returns
#     seek_slowly     where `__eq__` must be asked: unlocked, and if the table changed meanwhile, all begins again
#     find            the value, with the policy told and counts kept


cdef class Lookup(Contents):
    """How entries are found."""

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
        """Where `__eq__` must be asked."""
        cdef Asked asked
        cdef uint32_t slot, changes
        cdef uint64_t insertions
        asked.key = NULL
        table_lock(&self.mutex)
        while True:
            slot = self.seek_asking(key, hash, &asked)
            if asked.key is NULL:
                return slot
            changes, insertions = self.changes, self.insertions
            table_unlock(&self.mutex)
            drop(asked.key)  # the last reference, if the key left meanwhile
            asked.key = NULL
            table_lock(&self.mutex)
            if self.changes == changes and (slot != NIL or self.insertions == insertions):  # else it may have come
                return slot

    cdef uint32_t seek_asking(self, PyObject *key, uint32_t hash, Asked *asked) except? 0xFFFFFFFF:
        """Foreign code runs unlocked. If entries moved meanwhile, all begins again, but the one just asked is not asked again."""
        cdef Store *store = &self.store
        cdef uint32_t slot, changes = self.changes, begun = 0
        cdef uint32_t at = hash & store.mask
        cdef int same
        while store.cells is not NULL and store.cells[at].slot != NIL:
            slot = store.cells[at].slot
            same = 0
            if store.cells[at].hash == hash:
                same = table_same(store.entries[slot].key, key)
                if same < 0:
                    same = self.ask(store.entries[slot].key, key, asked)
            if self.changes != changes:
                begun += 1
                if begun == MOST_TRIES:
                    self.give_up(asked)
                changes = self.changes
                at = hash & store.mask
            elif same:
                return slot
            else:
                at = (at + 1) & store.mask
        return NIL

    cdef int ask(self, PyObject *stored, PyObject *key, Asked *asked) except -1:
        """Whether they are equal, by their own code."""
        cdef PyObject *former = asked.key
        if stored is former:
            return asked.same
        asked.key = stored
        keep_alive(stored)
        table_unlock(&self.mutex)
        try:
            Py_XDECREF(former)
            asked.same = same_by_code(stored, key, 2)  # Py_EQ
        except BaseException:
            asked.key = NULL
            drop(stored)
            raise
        table_lock(&self.mutex)
        return asked.same

    cdef int give_up(self, Asked *asked) except -1:
        table_unlock(&self.mutex)
        drop(asked.key)
        raise RuntimeError(f"the cache changed at each of {MOST_TRIES} comparisons of a key")

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

    cdef object find_version(self, key, version):
        cdef uint32_t slot, grave = NIL, hash = mixed(hash_of(key))
        cdef int same = 0, verdict = 0
        cdef double now
        cdef PyObject *value = NULL
        cdef PyObject *note
        judged = None
        while True:
            now = self.now() if self.ttls else 0
            slot = self.seek(<PyObject *>key, hash)
            if slot == NIL or self.is_over(slot, now):
                break
            note = self.note_at(slot)
            same = verdict if judged is not None and note == <PyObject *>judged else same_version(note, version)
            if same >= 0:
                break
            keep_alive(note)
            table_unlock(&self.mutex)
            judged = taken(note)
            verdict = bool((<Note>judged).version == version)
        if same > 0:
            value = self.store.entries[slot].value
            keep_alive(value)
            self.hits += 1
            self.tell_hit(slot)
        else:
            self.misses += 1
            self.order.plain.missed(hash)
            if slot != NIL:
                self.unlink(slot, EXPIRED if self.is_over(slot, now) else INVALIDATED, &grave)
        table_unlock(&self.mutex)
        self.bury(grave)
        return missing if value is NULL else taken(value)

    cdef inline PyObject *note_at(self, uint32_t slot) noexcept:
        return NULL if self.store.extras is NULL else self.store.extras[slot].note

    cdef inline void tell_hit(self, uint32_t slot) noexcept:
        if self.store.extras is NULL:
            self.order.plain.hit(slot)
        elif not self.store.extras[slot].untracked:
            self.order.of(slot).hit(slot)
