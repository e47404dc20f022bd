# Who is asked before an error for want of room is raised, and told when native memory grew. Both are Python, so that
# they are called with no lock held, and never while memory is on its way back.
cdef object _sys
import sys as _sys

from cpython.exc cimport PyErr_WriteUnraisable

cdef extern from "Python.h":
    int Py_AddPendingCall(int (*)(void *) noexcept, void *)
    int PyThreadState_SetAsyncExc(unsigned long, object)

# limit: func(account or None, pool or slab or None, needed) -> bool, try again; growth: func(bytes). In a dict, so that they can be
# replaced while others read them.
cdef dict _hooks = {"limit": None, "growth": None}
cdef dict _busy = {}  # the threads in which one of them runs: there they are not called again
cdef unsigned int _busy_generation = 0
cdef unsigned long _main_thread = (
    _sys.modules["threading"].main_thread().ident if "threading" in _sys.modules else _get_ident()
)

# A hook that says "try again" again and again, while others take what it frees, shall not do so for ever.
cdef enum:
    MOST_TRIES = 8

# Bytes that come into use between two looks at all that is lent, as a share of the threshold.
cdef enum:
    LOOKS = 16

cdef size_t _growth_threshold = 0
cdef size_t _growth_base = 0     # bytes lent, the least since the hook was last called
cdef uint64_t _growth_step = 0   # 0: there is no hook
cdef uint64_t _grown = 0


def _set_limit_hook(func):
    """Have `func(account, holder, needed) -> bool` asked before a limit's error; one of the first two is None. None: nobody."""
    _hooks["limit"] = func


def _set_growth_hook(func, threshold=0):
    """Have `func(grown)` called whenever `threshold` more bytes are lent than at the least since the last call. None: nobody."""
    global _growth_threshold, _growth_step, _growth_base
    cdef size_t bound = _size_to_c(threshold, "threshold")
    if func is not None and bound == 0:
        raise ValueError(f"threshold must be more than 0 bytes, got {threshold!r}")
    if _hooks["growth"] is None:
        _growth_base = lent_now()
    _hooks["growth"] = func
    _growth_threshold = bound
    mp_word_set(&_growth_step, 0 if func is None else bound // LOOKS + 1)


def _adjust_growth_hook(func, threshold):
    """Another threshold for the hook, unless it has been replaced meanwhile."""
    global _growth_threshold
    cdef size_t bound = _size_to_c(threshold, "threshold")
    if _hooks["growth"] is func:
        _growth_threshold = bound
        mp_word_set(&_growth_step, bound // LOOKS + 1)


def _after_fork():
    """In the child, before another thread is started: it may get the identity of one that only the parent has."""
    global _busy_generation, _main_thread
    _busy_generation = mp_fork_generation()
    _main_thread = _get_ident()
    for other in list(_busy):
        if other != _main_thread:
            _busy.pop(other, None)


def _enter_hook():
    """From now on this thread is not asked to make room, or told of growth; False if that was so before."""
    me = _get_ident()
    if _busy_generation != mp_fork_generation():
        _after_fork()
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


cdef void set_error(object error) noexcept:
    kind, traceback = type(error), error.__traceback__
    Py_INCREF(kind)
    Py_INCREF(error)
    Py_INCREF(traceback)
    PyErr_Restore(<PyObject *>kind, <PyObject *>error, <PyObject *>traceback)


cdef void report(object error, object where) noexcept:
    """As what was raised in the place of a hook that nobody could catch."""
    set_error(error)
    PyErr_WriteUnraisable(where)


def _report(error, where):
    """The same, for Python that looks after hooks."""
    report(error, where)


cdef int raise_late(void *error) noexcept:
    """In the main thread, between two steps of the program."""
    set_error(<object>error)
    Py_DECREF(<object>error)  # the reference that `hand_on` took
    return -1


cdef void hand_on(object error, object where) noexcept:
    """Have the program see what was raised in the wrong place, as the memory has been taken: at the next step of this thread.

    In the main thread that mostly is what a signal handler raised. To other threads only classes can be sent, so only those come
    from outside; what says more is an error of the hook.
    """
    me = _get_ident()
    if me == _main_thread:
        Py_INCREF(error)
        if Py_AddPendingCall(raise_late, <PyObject *>error) == 0:
            return
        Py_DECREF(error)
    elif not error.args and PyThreadState_SetAsyncExc(me, type(error)) == 1:
        return
    report(error, where)


cdef bint make_room(object account, object holder, size_t needed, int *tries) except -1:
    """With no lock held: True if it is worth to try again, for one of the two that has `needed` bytes too few."""
    hook = _hooks["limit"]
    if hook is None or tries[0] >= MOST_TRIES or _sys.is_finalizing() or not _enter_hook():
        return False
    tries[0] += 1
    try:
        return bool(hook(account, holder, needed))
    finally:
        _leave_hook()


cdef bint room_in_account(Account account, mp_account *binding, size_t size, int *tries, size_t asked=0) except -1:
    """The same for an account or one above it that refused a charge of `size`; raises its error, for the bytes `asked`."""
    cdef size_t limit = mp_account_limit(binding), used = mp_account_used(binding), room = limit - min(used, limit)
    if size <= room and tries[0] < MOST_TRIES // 2:  # there is room by now, or whole pages were wanted
        tries[0] += 1
        return True
    account = account_at(account, binding)
    if size <= limit and make_room(account, None, size - room if size > room else 1, tries):
        return True
    limit, used = mp_account_limit(binding), mp_account_used(binding)
    if limit - min(used, limit) > room and tries[0] < MOST_TRIES:  # made without a word: the limit is another, say
        tries[0] += 1
        return True
    raise account_error(account, asked or size, used, limit)


cdef bint room_in_machine(size_t size, int *tries) except -1:
    """The same where the OS refused `size` bytes. For what the machine could never have nobody gives anything up."""
    cdef size_t total = 0, available = 0
    if size == 0 or mp_machine_memory(&total, &available) != MP_OK or size > total:
        return False
    return make_room(_root, None, size, tries)


cdef Account account_at(Account account, mp_account *binding):
    """The account that is `binding`: this one, or one above it."""
    while account._c is not binding and account.parent is not None:
        account = account.parent
    return account


cdef inline void grows(size_t size) noexcept:
    """Native memory comes into use, or just has. May run Python.

    Pools say so before they ask the OS: what a collection frees then is there to lend, or each round of garbage would find the
    pool a little larger.
    """
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
    except BaseException as error:
        hand_on(error, None)


cdef int look_at_growth() except -1:
    global _growth_base
    cdef size_t lent = lent_now()
    hook = _hooks["growth"]
    _growth_base = min(_growth_base, lent)
    if hook is None or lent - _growth_base < _growth_threshold or _sys.is_finalizing() or not _enter_hook():
        return 0
    try:
        hook(lent - _growth_base)
    except BaseException as error:
        hand_on(error, hook)
    finally:
        _leave_hook()
        _growth_base = lent_now()
        mp_word_set(&_grown, _growth_step)  # idle memory is lent without a word: look again when it is used up
    return 0
