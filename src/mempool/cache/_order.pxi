# Policies by name, and by priority: one of a kind for each priority in use, and the lowest that has any entry gives up one first.

cdef enum:
    LOWEST = -100
    LEVELS = 201  # priorities from the lowest on


cdef dict POLICIES = {
    "none": Policy,
    "lru": Lru,
    "fifo": Fifo,
    "random": Random,
    "lfu": Lfu,
    "sieve": Sieve,
    "soonest": Soonest,
    "s3fifo": S3Fifo,
    "tinylfu": TinyLfu,
}


@cython.final
@cython.no_gc  # it is part of no cycle; a collector that saw it would clear its list before the table is done with it
cdef class Order:
    """The policies of one table. Nearly every table has one: that of priority 0."""

    cdef Store *store
    cdef Policy plain
    cdef list others       # [LEVELS] None or a Policy; None as long as there is only the plain one
    cdef object kind
    cdef uint64_t total    # the sum of sizes that is allowed

    cdef int begin(self, Store *store, name) except -1:
        self.store = store
        self.kind = POLICIES[name]
        self.plain = self.another()
        self.plain.limit(self.total)
        return 0

    cdef Policy another(self):
        """A policy that knows no slots yet."""
        cdef Policy made = self.kind()
        made.store = self.store
        return made

    cdef inline Policy of(self, uint32_t slot):
        """The policy that has this entry."""
        if self.others is None or self.store.extras is NULL:
            return self.plain
        return <Policy>self.others[self.store.extras[slot].level - LOWEST]

    cdef inline bint has(self, int level) noexcept:
        return level == 0 if self.others is None else self.others[level - LOWEST] is not None

    cdef int adopt(self, int level, Policy made, list others) except -1:
        """Under the lock: have a policy of this priority, if there is none yet. The list serves if there is none yet either."""
        if self.has(level):
            return 0
        made.ready(self.store.capacity)
        made.limit(self.total)
        if self.others is None:
            others[-LOWEST] = self.plain
            self.others = others
        self.others[level - LOWEST] = made
        return 0

    cdef uint32_t victim(self, uint32_t keep):
        """Who goes next: the choice of the lowest priority that has one."""
        cdef uint32_t slot
        if self.others is None:
            return self.plain.victim(keep)
        for policy in self.others:
            if policy is not None:
                slot = (<Policy>policy).victim(keep)
                if slot != NIL:
                    return slot
        return NIL

    cdef int ready(self, uint32_t capacity) except -1:
        self.plain.ready(capacity)
        if self.others is not None:
            for policy in self.others:
                if policy is not None:
                    (<Policy>policy).ready(capacity)
        return 0

    cdef void limit(self, uint64_t total) noexcept:
        self.total = total
        self.plain.limit(total)
        if self.others is not None:
            for policy in self.others:
                if policy is not None:
                    (<Policy>policy).limit(total)

    cdef void clear(self) noexcept:
        self.plain.clear()
        if self.others is not None:
            for policy in self.others:
                if policy is not None:
                    (<Policy>policy).clear()

    cdef uint64_t nbytes(self, uint64_t capacity) noexcept:
        cdef uint64_t total = 0
        if self.others is None:
            return self.plain.nbytes(capacity)
        for policy in self.others:
            if policy is not None:
                total += (<Policy>policy).nbytes(capacity)
        return total
