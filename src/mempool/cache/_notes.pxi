# What an entry may carry beside its value: a version, tags. And the names of namespaces.
#
#     tag index, a Table    tag -> Tagged, the notes of the entries that have it
#     entry                 -> Note: its key, version, and the Tagged of each of its tags, weakly: so they are no circle
#
# A note is in the index before its entry is in the table, and leaves after it: so whoever takes a tag back misses no entry. A
# `Tagged` that became empty is over for good and goes out of the index; who meets it there makes another.


@cython.final
cdef class Note:
    """What one entry carries."""

    cdef readonly object key, version
    cdef readonly bint placed   # with an entry, which will say when it goes
    cdef list ties              # weak references to `Tagged`; None: none

    def __init__(self, key, version):
        self.key, self.version = key, version

    def gone(self):
        """The entry has left."""
        ties, self.ties = self.ties, None
        if ties is None:
            return
        for reference in ties:
            tagged = reference()
            if tagged is None:
                continue
            try:
                (<Tagged>tagged).lose(self)
            except Exception as error:
                report(error, self)  # of the tag's own code: the entry has left, and that much is certain


cdef inline void note_placed(PyObject *note) noexcept:
    if type(<object>note) is Note:
        (<Note><object>note).placed = True


cdef inline int same_version(PyObject *note, version) noexcept:
    """Whether an entry with this note is of this version: 1 or 0; -1: only their own code can tell."""
    if note is NULL or type(<object>note) is not Note:
        return 0
    return table_same(<PyObject *>(<Note><object>note).version, <PyObject *>version)


@cython.final
cdef class Tagged:
    """The notes that have one tag."""

    cdef set notes
    cdef bint over
    cdef readonly object reference  # to itself, weak
    cdef object tag, index          # a weak one
    cdef object __weakref__

    def __init__(self, tag, index):
        self.tag, self.index, self.notes = tag, index, set()
        self.reference = weak_reference(self)

    def add(self, Note note not None):
        """Take a note in, which leaves this when it goes; False: this is over."""
        with cython.critical_section(self):
            if not self.over:
                if note.ties is None:
                    note.ties = []
                note.ties.append(self.reference)
                self.notes.add(note)
            return not self.over

    def all(self):
        """Return the notes of this moment."""
        with cython.critical_section(self):
            return list(self.notes)

    cdef int lose(self, Note note) except -1:
        cdef bint empty
        with cython.critical_section(self):
            self.notes.discard(note)
            empty = self.over = len(self.notes) == 0
        if empty:
            index = self.index()
            if index is not None:
                index._remove(self.tag, self, DELETED)
                if (<Contents?>index).store.count == 0:
                    (<Contents>index).rest()
        return 0


@cython.final
cdef class Name:
    """The first half of the keys of a namespace: equal to nothing but the same name of another `Namespace`."""

    cdef readonly str name
    cdef Py_hash_t hash

    def __init__(self, str name not None):
        self.name = name
        self.hash = hash_of(("mempool.cache", name))

    def __hash__(self):
        return self.hash

    def __eq__(self, other):
        return self.name == (<Name>other).name if type(other) is Name else NotImplemented

    def __repr__(self):
        return repr(self.name)
