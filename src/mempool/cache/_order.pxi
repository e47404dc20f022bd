# Policies by name, and by priority: one of a kind for each priority in use, and the lowest that has any entry gives up one first.

cdef enum:
    LOWEST = -100
    LEVELS = 201  # priorities from the lowest on


cdef dict POLICIES = {
    "none": Policy,
    "lru": Lru,
    "fifo": Fifo,
    "random": Random,
}


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
        return 0

    cdef Policy another(self):
        cdef Policy made = self.kind()
        made.store = self.store
        made.ready(self.store.capacity)
        made.limit(self.total)
        return made

    cdef inline Policy of(self, uint32_t slot):
        """The policy that has this entry."""
        if self.others is None:
            return self.plain
        return <Policy>self.others[self.store.extras[slot].level - LOWEST]

    cdef int open(self, int level) except -1:
        """See that there is a policy of this priority."""
        if level == 0 and self.others is None:
            return 0
        if self.others is None:
            others = [None] * LEVELS
            others[-LOWEST] = self.plain
            self.others = others
        if self.others[level - LOWEST] is None:
            made = self.another()
            if self.others[level - LOWEST] is None:  # the allocation may have run the collector, and that anything
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

    cdef uint64_t nbytes(self) noexcept:
        cdef uint64_t total = 0
        if self.others is None:
            return self.plain.nbytes()
        for policy in self.others:
            if policy is not None:
                total += (<Policy>policy).nbytes()
        return total
