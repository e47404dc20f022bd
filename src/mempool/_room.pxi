# Who is asked before an error for want of room is raised, and told when native memory grew. Both are Python, so that
# they are called with no lock held, and never while memory is on its way back.
from cpython.exc cimport PyErr_WriteUnraisable

cdef object _limit_hook = None   # func(account or None, pool or slab or None, needed) -> bool: try again
cdef object _growth_hook = None  # func(bytes)
cdef dict _busy = {}             # the threads in which one of them runs: there they are not called again
cdef unsigned int _busy_generation = 0

# A hook that says "try again" again and again, while others take what it frees, shall not do so for ever.
cdef enum:
    MOST_TRIES = 8

# Bytes that come into use between two looks at all that is lent, as a share of the threshold.
cdef enum:
    LOOKS = 8

cdef size_t _growth_threshold = 0
cdef size_t _growth_base = 0     # bytes lent, the least since the hook was last called
cdef uint64_t _growth_step = 0   # 0: there is no hook
cdef uint64_t _grown = 0


def _set_limit_hook(func):
    """Have `func(account, holder, needed) -> bool` asked before a limit's error; one of the first two is None. None: nobody."""
    global _limit_hook
    _limit_hook = func


def _set_growth_hook(func, threshold=0):
    """Have `func(grown)` called whenever `threshold` more bytes are lent than at the least since the last call. None: nobody."""
    global _growth_hook, _growth_threshold, _growth_step, _growth_base
    cdef size_t bound = _size_to_c(threshold, "threshold")
    if func is not None and bound == 0:
        raise ValueError(f"threshold must be more than 0 bytes, got {threshold!r}")
    if _growth_hook is None:
        _growth_base = lent_now()
    _growth_hook, _growth_threshold = func, bound
    _growth_step = 0 if func is None else bound // LOOKS + 1


def _enter_hook():
    """From now on this thread is not asked to make room, or told of growth; False if that was so before."""
    global _busy_generation
    me = _get_ident()
    if _busy_generation != mp_fork_generation():  # the threads of the parent are not here
        _busy_generation = mp_fork_generation()
        for other in list(_busy):
            if other != me:
                _busy.pop(other, None)
    return _busy.setdefault(me, token := object()) is token


def _leave_hook():
    """After `_enter_hook` returned True."""
    _busy.pop(_get_ident(), None)


def _held(account, holder):
    """Return the bytes that are in use, idle ones left out, below an account, or of a pool or a slab."""
    cdef mp_pool_stats pool
    cdef mp_slab_stats slab
    cdef mp_account *c
    cdef size_t used, idle
    if isinstance(holder, BufferPool):
        mp_pool_stats_read((<BufferPool>holder)._ready(), &pool, NULL, 0)
        return pool.in_use + pool.retired
    if isinstance(holder, SlabAllocator):
        mp_slab_stats_read((<SlabAllocator>holder)._ready(), &slab)
        return (slab.live + slab.retired) * (<SlabAllocator>holder)._item_size
    if not isinstance(account, Account):
        raise TypeError(f"account must be an Account, not {account!r}")
    c = (<Account>account)._ready()
    idle = idle_under(c)
    used = mp_account_used(c)
    return used - min(idle, used)


cdef size_t lent_now() except? 0:
    return _held(_root, None)


cdef void report(object error, object where) noexcept:
    """As what was raised in the place of a hook that nobody could catch."""
    kind, traceback = type(error), error.__traceback__
    Py_INCREF(kind)
    Py_INCREF(error)
    Py_INCREF(traceback)
    PyErr_Restore(<PyObject *>kind, <PyObject *>error, <PyObject *>traceback)
    PyErr_WriteUnraisable(where)


cdef bint make_room(object account, object holder, size_t needed, int *tries) except -1:
    """With no lock held: True if it is worth to try again, for one of the two that has `needed` bytes too few."""
    hook = _limit_hook
    if hook is None or tries[0] >= MOST_TRIES or not _enter_hook():
        return False
    tries[0] += 1
    try:
        return bool(hook(account, holder, needed))
    except Exception as error:
        report(error, hook)
        return False
    finally:
        _leave_hook()


cdef bint room_in_account(Account account, mp_account *binding, size_t size, int *tries) except -1:
    """The same for an account or one above it that refused a charge of `size`."""
    cdef size_t limit = mp_account_limit(binding), used = mp_account_used(binding), room
    if size > limit:
        return False
    room = limit - used if used < limit else 0
    return make_room(account_at(account, binding), None, size - room if size > room else 1, tries)


cdef Account account_at(Account account, mp_account *binding):
    """The account that is `binding`: this one, or one above it."""
    while account._c is not binding and account.parent is not None:
        account = account.parent
    return account


cdef inline void grew(size_t size) noexcept:
    """Native memory came into use. May run Python."""
    if mp_word_get(&_growth_step) != 0:
        note_growth(size)


cdef void note_growth(size_t size) noexcept:
    cdef uint64_t grown = mp_word_get(&_grown) + size  # a thread that comes in between delays a look, no more
    if grown < mp_word_get(&_growth_step):
        mp_word_set(&_grown, grown)
        return
    mp_word_set(&_grown, 0)
    try:
        look_at_growth()
    except KeyboardInterrupt:  # came to the wrong place: the memory has been taken
        PyErr_SetInterrupt()


cdef int look_at_growth() except -1:
    global _growth_base
    cdef size_t lent = lent_now()
    hook = _growth_hook
    _growth_base = min(_growth_base, lent)
    if hook is None or lent - _growth_base < _growth_threshold or not _enter_hook():
        return 0
    try:
        hook(lent - _growth_base)
    except Exception as error:
        report(error, hook)
    finally:
        _leave_hook()
        _growth_base = lent_now()
    return 0
