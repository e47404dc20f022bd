# Who is asked before an error for want of room is raised, and told when native memory grew. Both are Python, so that
# they are called with no lock held, and never while memory is on its way back.
cdef object _sys
import sys as _sys

from cpython.exc cimport PyErr_WriteUnraisable

cdef extern from "Python.h":
    int Py_AddPendingCall(int (*)(void *) noexcept, void *) nogil
    int PyThreadState_SetAsyncExc(unsigned long, object)

# limit: func(account or None, pool or slab or None, needed) -> bool, try again; growth: a tuple of `_Listener`. In a dict, so that
# they can be replaced while others read them.
cdef dict _hooks = {"limit": None, "growth": ()}
cdef dict _busy = {}  # the threads in which one of them runs: there they are not called again
cdef unsigned int _busy_generation = 0
cdef unsigned long _main_thread = (
    _sys.modules["threading"].main_thread().ident if "threading" in _sys.modules else _get_ident()
)

# A hook that says "try again" again and again, while others take what it frees, shall not do so for ever.
cdef enum:
    MOST_TRIES = 8

# Bytes that come into use between two looks at all that is held, as a share of the threshold.
cdef enum:
    LOOKS = 16

cdef uint64_t _growth_step = 0   # the least of all listeners; 0: there is none
cdef uint64_t _grown = 0         # since a look at any of them


@cython.final
cdef class _Listener:
    """Who is told of growth: of what is lent, since the least that it was; or of what is held, idle or not, since the last call."""
    cdef object func
    cdef bint reserved
    cdef size_t threshold, base
    cdef uint64_t step, grown

    cdef int aim(self, size_t threshold) except -1:
        self.threshold = threshold
        self.step = threshold // LOOKS + 1
        return 0

    cdef size_t reading(self) except? 0:
        return mp_account_used((<Account>_root)._ready()) if self.reserved else lent_now()

    cdef int notice(self, uint64_t grown, size_t coming) except -1:
        """So many bytes came into use, in one thread or another, and `coming` ones are about to."""
        cdef size_t now
        self.grown += grown
        if self.grown < self.step:
            return 0
        self.grown = 0
        now = self.reading()
        if not self.reserved:
            self.base = min(self.base, now)
            coming = 0
        if now + coming < self.base or now + coming - self.base < self.threshold or _sys.is_finalizing() or not _enter_hook():
            return 0
        try:
            self.func(now + coming - self.base)
        except BaseException as error:
            hand_on(error, self.func)
        finally:
            _leave_hook()
            self.base = self.reading()
            if not self.reserved:  # idle memory is lent without a word: look again when it is used up
                self.grown = self.step
                mp_word_set(&_grown, _growth_step)
        return 0


def _set_limit_hook(func):
    """Have `func(account, holder, needed) -> bool` asked before a limit's error; one of the first two is None. None: nobody."""
    _hooks["limit"] = func


def _add_growth_hook(func, threshold, *, bint reserved=False):
    """Have `func(grown)` called whenever `threshold` more bytes are lent than at the least since the last call.

    With `reserved`: whenever so many more are held than at the last call, idle memory too, those included that are about to be.
    """
    cdef _Listener made = _Listener.__new__(_Listener)
    cdef tuple before, after
    made.func = func
    made.reserved = reserved
    made.aim(_threshold(threshold))
    made.base = made.reading()
    while True:
        before = _hooks["growth"]
        after = before + (made,)
        if _hooks["growth"] is before:
            _hooks["growth"] = after
            break
    _find_step()


def _remove_growth_hook(func):
    """Have it called no more. What was not added is fine."""
    cdef _Listener one
    cdef tuple before, after
    while True:
        before = _hooks["growth"]
        kept = []
        for one in before:
            if one.func is not func:
                kept.append(one)
        after = tuple(kept)
        if _hooks["growth"] is before:
            _hooks["growth"] = after
            break
    _find_step()


def _adjust_growth_hook(func, threshold, *, bint anew=False):
    """Another threshold for the hook, unless it has been removed meanwhile; `anew`: counted from now."""
    cdef size_t bound = _threshold(threshold)
    cdef _Listener one
    for one in <tuple>_hooks["growth"]:
        if one.func is func:
            one.aim(bound)
            if anew:
                one.base = one.reading()
    _find_step()


cdef size_t _threshold(object given) except 0:
    cdef size_t bound = _size_to_c(given, "threshold")
    if bound == 0:
        raise ValueError(f"threshold must be more than 0 bytes, got {given!r}")
    return bound


cdef int _find_step() except -1:
    cdef _Listener one
    cdef uint64_t least = 0
    for one in <tuple>_hooks["growth"]:
        least = one.step if least == 0 else min(least, one.step)
    mp_word_set(&_growth_step, least)
    return 0


def _after_fork():
    """In the child, before another thread is started: it may get the identity of one that only the parent has."""
    global _busy_generation, _main_thread
    _busy_generation = mp_fork_generation()
    _main_thread = _get_ident()
    for other in list(_busy):
        if other != _main_thread:
            _busy.pop(other, None)


cdef bint _enter_hook() except -1:
    """From now on this thread is not asked to make room, or told of growth; False if that was so before."""
    me = _get_ident()
    if _busy_generation != mp_fork_generation():
        _after_fork()
    return _busy.setdefault(me, token := object()) is token


cdef int _leave_hook() except -1:
    """After `_enter_hook` returned True."""
    _busy.pop(_get_ident(), None)
    return 0


def _as_hook(func):
    """Call `func()` as a hook is called, which Ctrl-C cannot come before or after; None, and no call, within another one."""
    if not _enter_hook():
        return None
    try:
        return func()
    finally:
        _leave_hook()


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
    """Native memory is about to come into use. May run Python.

    Pools say so before they ask the OS: what a collection frees then is there to lend, or each round of garbage would find the
    pool a little larger.
    """
    if mp_word_get(&_growth_step) != 0:
        note_growth(size, size)


cdef inline void grew(size_t size) noexcept:
    """The same, for what has come into use and is counted already."""
    if mp_word_get(&_growth_step) != 0:
        note_growth(size, 0)


cdef void note_growth(size_t size, size_t coming) noexcept:
    cdef uint64_t grown = mp_word_get(&_grown) + size  # a thread that comes in between delays a look, no more
    if grown < mp_word_get(&_growth_step):
        mp_word_set(&_grown, grown)
        return
    mp_word_set(&_grown, 0)
    try:
        tell_growth(grown, coming)
    except BaseException as error:
        hand_on(error, None)


def _grew(size_t size):
    """The same for what was charged in silence, as a lock was held."""
    grew(size)


cdef int tell_growth(uint64_t grown, size_t coming) except -1:
    cdef _Listener one
    for one in <tuple>_hooks["growth"]:
        one.notice(grown, coming)
    return 0
