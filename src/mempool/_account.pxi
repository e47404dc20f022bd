# Accounts: a tree of counters with limits. The counters live in csrc/account.c; here are their names and their Python faces.
cdef object weak_reference
from _weakref import ref as weak_reference

# Accounts of pools that are gone, until the last memory of theirs is back.
cdef dict _lingering = {}
# The references of `track`, which must live as long as their objects.
cdef dict _tracked = {}


@cython.final
cdef class _Forget:
    """Weak reference callback: takes an entry out of a dict."""

    cdef dict entries
    cdef object key

    def __init__(self, dict entries, key):
        self.entries = entries
        self.key = key

    def __call__(self, ref):
        self.entries.pop(self.key, None)


@cython.trashcan(True)
cdef class Account:
    """Account(name, *, limit=None, parent=None)\n--\n
    Counts native bytes, for itself and for every ancestor.

    Parameters
    ----------
    name : str
        Shown in reports and errors.
    limit : int, str or None
        Most bytes that the account and all below it may hold.
    parent : Account or None
        None: below `root_account()`.

    Examples
    --------
    >>> from mempool.accounting import Account
    >>> io = Account("io", limit="1MiB")
    >>> with io.charged("64KiB"):
    ...     io.used
    65536
    >>> io.used, io.peak
    (0, 65536)
    """

    cdef mp_account *_c
    cdef readonly str name
    """The name it was given."""
    cdef readonly Account parent
    """The account above, None for the root."""
    cdef size_t _by_hand  # what `charge` added and `discharge` may take away; until all is, the account keeps itself alive
    cdef dict _children   # weak references by age: a child keeps its parent alive, not the other way round
    cdef size_t _born
    cdef object __weakref__

    def __init__(self, name, *, limit=None, parent=None):
        cdef size_t bound
        if self._c is not NULL:
            raise RuntimeError(f"Account {self.name!r} was initialised already")
        name = plain_str(name)
        if parent is not None and not isinstance(parent, Account):
            raise TypeError(f"parent must be an Account or None, not {parent!r}")
        bound = _limit_to_c(limit)  # may run Python, which may initialise this very account
        if self._c is not NULL:
            raise RuntimeError(f"Account {self.name!r} was initialised already")
        self._open(name, bound, parent if parent is not None else _root)

    cdef int _open(self, str name, size_t limit, Account parent) except -1:
        if mp_account_create(parent._ready() if parent is not None else NULL, limit, NULL, &self._c) != MP_OK:
            raise MemoryError(f"no memory for account {name!r}")
        self.name = name
        self.parent = parent
        self._children = {}
        if parent is not None:
            key = parent._born = parent._born + 1
            parent._children[key] = weak_reference(self, _Forget(parent._children, key))
        return 0

    def __dealloc__(self):
        if self._c is not NULL:
            mp_account_release(self._c)

    cdef mp_account *_ready(self) except NULL:
        if self._c is NULL:
            raise ValueError("account was never initialised")
        return self._c

    def charge(self, nbytes):
        """Add bytes here and in every ancestor, or nowhere.

        Parameters
        ----------
        nbytes : int or str
            Bytes of native memory that the caller took.

        Raises
        ------
        AccountLimitExceeded
            A limit here or above would be passed, also after idle memory of the pools below that account was given back.
        """
        cdef size_t size = plain_size(nbytes)
        self._take(size)
        with cython.critical_section(self):
            if self._by_hand == 0 and size > 0:  # somebody holds that memory, so reports must show it
                Py_INCREF(self)
            self._by_hand += size
        grew(size)  # last: whom it calls may discharge already

    cdef inline int _charge(self, size_t size) except -1:
        """Charge what is discharged by other means than `discharge`."""
        self._take(size)
        grew(size)
        return 0

    cdef inline int _take(self, size_t size) except -1:
        if self._c is NULL or not mp_account_charge_ready(self._c, size):
            self._charge_slowly(size)
        return 0

    cdef int _charge_slowly(self, size_t size) except -1:
        cdef mp_account *c = self._ready()
        cdef mp_account *binding = NULL
        cdef mp_status status
        cdef int tries = 0
        while True:
            with nogil:
                status = mp_account_charge(c, size, &binding)
            if status == MP_OK:
                return 0
            room_in_account(self, binding, size, &tries)

    def discharge(self, nbytes):
        """Take bytes away that `charge` added.

        Raises
        ------
        ValueError
            If `charge` did not add so many.
        """
        cdef size_t size = plain_size(nbytes), left
        cdef bint known
        self._ready()
        with cython.critical_section(self):
            known = size <= self._by_hand
            if known:
                self._by_hand -= size
            left = self._by_hand
        if not known:
            raise ValueError(f"cannot discharge {size} bytes from account {self.name!r}: {left} were charged to it")
        mp_account_discharge(self._c, size)
        if left == 0 and size > 0:
            Py_DECREF(self)

    def charged(self, nbytes):
        """Return a context manager that charges on entry and discharges on exit."""
        return _Charged(self, _size_to_c(nbytes, "nbytes"))

    def track(self, obj, nbytes):
        """Charge bytes until an object dies.

        Parameters
        ----------
        obj : object
            Anything that can be weakly referenced.
        nbytes : int or str
            Native bytes that the object holds.

        Raises
        ------
        TypeError
            If `obj` cannot be weakly referenced; then nothing was charged.
        AccountLimitExceeded
            As `charge`.
        """
        cdef _EndOfTracked end = _EndOfTracked(self, _size_to_c(nbytes, "nbytes"))
        ref = weak_reference(obj, end)
        key = id(ref)
        _tracked[key] = ref
        try:
            self._charge(end.size)
        except:
            del _tracked[key]
            raise
        end.key = key

    @property
    def used(self):
        """Bytes charged here and below, now."""
        return mp_account_used(self._ready())

    @property
    def peak(self):
        """The most that `used` ever was, in bytes."""
        return mp_account_peak(self._ready())

    @property
    def limit(self):
        """Most bytes that may be used, None for no limit. Setting it below what is used raises `ValueError`."""
        cdef size_t limit = mp_account_limit(self._ready())
        return None if limit == MP_NO_LIMIT else limit

    @limit.setter
    def limit(self, value):
        cdef size_t limit = _limit_to_c(value)
        cdef mp_status status
        self._ready()
        with nogil:
            status = mp_account_set_limit(self._c, limit)
        if status != MP_OK:
            raise ValueError(f"limit {limit} is below what account {self.name!r} holds: {self.used} bytes")

    @property
    def children(self):
        """The accounts directly below, oldest first."""
        self._ready()
        let_go()
        alive = []
        for ref in list(self._children.values()):
            child = ref()
            if child is not None:
                alive.append(child)
        return tuple(alive)

    def tree(self):
        """Return this account and all below as nested dicts of ``name, used, peak, limit, children``."""
        found = []
        pending = [(self, found)]  # a chain of accounts may be longer than calls may nest
        while pending:
            account, siblings = pending.pop()
            below = []
            siblings.append(
                {"name": account.name, "used": account.used, "peak": account.peak, "limit": account.limit, "children": below}
            )
            for child in reversed(account.children):
                pending.append((child, below))
        return found[0]

    def __repr__(self):
        if self._c is NULL:
            return "<mempool.Account, not initialised>"
        return f"<mempool.Account {self.name!r}: {self.used} bytes used, limit {self.limit}>"


@cython.final
cdef class _EndOfTracked:
    """Weak reference callback: the object of `Account.track` died."""

    cdef Account account
    cdef size_t size
    cdef object key

    def __init__(self, Account account, size_t size):
        self.account = account
        self.size = size

    def __call__(self, ref):
        if self.key is not None and _tracked.pop(self.key, None) is not None:
            mp_account_discharge(self.account._c, self.size)


@cython.final
cdef class _Charged:
    cdef Account account
    cdef size_t size

    cdef size_t entered

    def __init__(self, Account account not None, size_t size):
        self.account = account
        self.size = size

    def __enter__(self):
        self.account._charge(self.size)
        with cython.critical_section(self):
            self.entered += 1
        return self.account

    def __exit__(self, kind, error, traceback):
        with cython.critical_section(self):
            if self.entered == 0:
                raise RuntimeError("charged() was left before it was entered")
            self.entered -= 1
        mp_account_discharge(self.account._c, self.size)


cdef int linger(Account account) except -1:
    """The pool of this account is gone. While views still hold memory of it, reports shall show whose it was."""
    let_go()
    if account is not None and mp_account_used(account._c) > 0:
        _lingering[<uintptr_t><PyObject *>account] = account
    return 0


cdef int let_go() except -1:
    for key, account in list(_lingering.items()):
        if mp_account_used((<Account>account)._c) == 0:
            _lingering.pop(key, None)
    return 0


cdef inline size_t plain_size(object nbytes) except? 0:
    """`_size_to_c` for what mostly is an int."""
    cdef Py_ssize_t size
    if PyLong_CheckExact(nbytes):
        size = as_ssize(nbytes)
        if size >= 0:
            return <size_t>size
        PyErr_Clear()
    return _size_to_c(nbytes, "nbytes")


cdef size_t _size_to_c(object value, str name) except? 0:
    """Any size as C bytes: `OverflowError` for what no address can reach."""
    cdef Py_ssize_t size
    if not PyLong_CheckExact(value) or value < 0:
        value = parse_size(value, name)
    try:
        size = value
    except OverflowError:
        raise OverflowError(f"{name} of {shown(value)} bytes cannot be addressed") from None
    return <size_t> size


cdef str plain_str(object name):
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {name!r}")
    return str.__str__(name)  # of a subclass too


cdef size_t _limit_to_c(object value) except? 0:
    if value is None:
        return MP_NO_LIMIT
    cdef size_t limit = _size_to_c(value, "limit")
    if limit == 0:
        raise ValueError(f"limit must be more than 0 bytes, got {value!r}")
    return limit


cdef object account_error(Account account, size_t size, size_t used, size_t limit):
    """The error for a charge that was refused with so much used."""
    bound = None if limit == MP_NO_LIMIT else limit
    text = f"account {account.name!r} cannot take {size} bytes: {used} used, limit {bound}"
    return AccountLimitExceeded(text, account.name, size, used, bound)


cdef Account _root = Account.__new__(Account)
_root._open("root", MP_NO_LIMIT, None)


def root_account():
    """Return the account above all others."""
    return _root
