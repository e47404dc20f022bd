"""Who can make room: asked before a limit's error is raised, and by whoever wants memory back.

    a limit refuses -> reclaimers, highest priority first, until enough is free -> one throttled collection -> again, or the error

A reclaimer of account X is asked when X is the account whose limit binds, or below it (what it frees is room there), or above it
(some of what it frees may be). What was freed is measured, too: who is above, claims much and makes no room for this limit sits out
its next failures, or a pool whose limit is met all the time would empty every cache of the process. Who can only free below the
limit is always asked; what it claims in vain again and again is not worth another try.

Rejected: asking in the order of what was freed last time (a priority is a promise to the user); a lock around the calls (reclaimers
run user code, and take locks themselves).
"""

import gc
import os
from _weakref import ref
from time import monotonic

from mempool import _core
from mempool._records import _Record

TYPE_CHECKING = False  # as in typing, whose import costs more than all of this
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from mempool._core import Account, BufferPool, SlabAllocator

__all__ = ["ReclaimerStats", "Registration", "reclaimers", "register_reclaimer", "relieve"]

_MOST_SAT_OUT = 6  # powers of two: 63 failures are sat out, and not more
_PATIENCE = 2  # calls in vain before any is; one may be another thread's doing, who took what was freed
_PATIENCE_BELOW = 8  # for a reclaimer of the very account or below it
_LEAST_PAUSE = 0.05  # seconds
_MOST_PAUSE = 1.0  # seconds, or more by the next: longer, and garbage that a program makes meanwhile would be an error
_SHARE = 20  # fruitless collections take at most a twentieth of the time


class ReclaimerStats(_Record):
    """What a reclaimer has done. Sizes are bytes.

    Attributes
    ----------
    name : str
        Of the function.
    account : str
        Name of the account below which it frees.
    priority : int
        The highest is asked first.
    calls, errors : int
        How often it was asked, and raised or returned nonsense.
    freed : int
        What it said it freed.
    """

    __slots__ = ("name", "account", "priority", "calls", "errors", "freed")

    name: str
    account: str
    priority: int
    calls: int
    errors: int
    freed: int


class Registration:
    """What `register_reclaimer` returns. The reclaimer is asked until `cancel`, whether or not this object is kept."""

    __slots__ = (
        "_function",
        "_number",
        "_owner",
        "account",
        "calls",
        "errors",
        "freed",
        "name",
        "priority",
    )

    def __init__(
        self, func: "Callable[[int], int | None]", account: "Account", priority: int, weak: bool, number: int
    ) -> None:
        owner = getattr(func, "__self__", None) if weak else None
        method = getattr(func, "__func__", None) or _method_of(func)
        if owner is None or method is None:
            self._owner, self._function = None, func
        else:
            self._owner, self._function = ref(owner, self._forget), method
        self.name = str(getattr(func, "__qualname__", None) or repr(func))
        self.account, self.priority, self._number = account, priority, number
        self.calls = self.errors = self.freed = 0

    def _forget(self, _: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Ask it no more. Idempotent, and fine from inside."""
        _registered.pop(self._number, None)
        for collector in list(_collectors.values()):
            collector.doubts.forget(self._number)

    @property
    def active(self) -> bool:
        """False once cancelled, or its object died."""
        return self._number in _registered

    def __repr__(self) -> str:
        state = "" if self.active else ", cancelled"
        return f"<mempool reclaimer {self.name}, priority {self.priority}, account {self.account.name!r}{state}>"

    def _bound(self) -> "Callable[[int], int | None] | None":
        if self._owner is None:
            return self._function
        owner = self._owner()
        return None if owner is None else self._function.__get__(owner)

    def _ask(self, needed: int) -> int:
        """Bytes it says it freed; its errors stay here."""
        try:
            function = self._bound()
            if function is None or not self.active:
                return 0
            self.calls += 1
            freed = _as_bytes(function(needed), self.name)
        except Exception as error:
            self._note_error(error)
            return 0
        self.freed += freed
        return freed

    def _note_error(self, error: Exception) -> None:
        self.errors += 1
        if self.errors > 1:
            return
        try:
            import logging

            logging.getLogger("mempool.accounting").error(
                "reclaimer %s failed; further errors are counted only", self.name, exc_info=error
            )
        except Exception as failure:  # of a handler of the program; `error` is its context
            _core._report(failure, self)

    def _may_help(self, account: "Account") -> bool:
        return _is_under(self.account, account) or _is_under(account, self.account)


def _method_of(func: "Any") -> "Any":
    """Return what a bound method of a C type was bound from; None for others, and if its object cannot be weakly referenced."""
    if not isinstance(func, type(len)):
        return None
    owner = getattr(func, "__self__", None)
    for cls in type(owner).__mro__:
        method: Any = cls.__dict__.get(func.__name__)
        if type(method) is type(str.join) and method.__get__(owner) == func:
            return method if type(owner).__weakrefoffset__ else None
    return None


def _as_bytes(freed: object, name: str) -> int:
    if freed is None:
        return 0
    if isinstance(freed, bool) or not hasattr(freed, "__index__"):
        raise TypeError(f"reclaimer {name} must return the bytes it freed, not {freed!r}")
    size = int(freed.__index__())
    if size < 0:
        raise ValueError(f"reclaimer {name} must return the bytes it freed, not {size}")
    return size


def _is_under(account: "Account | None", ancestor: "Account") -> bool:
    while account is not None and account is not ancestor:
        account = account.parent
    return account is ancestor


_registered: "dict[int, Registration]" = {}
_numbers = iter(range(1 << 62))


def register_reclaimer(
    func: "Callable[[int], int | None]", *, account: "Account | None" = None, priority: int = 0, weak: bool = True
) -> Registration:
    """Have a function asked for memory before the error of a limit is raised.

    Parameters
    ----------
    func : callable
        ``func(needed) -> bytes freed``; None counts as 0. Called in the thread that needs the memory, with no lock of this package
        held, from several threads at a time if several need some. While it runs, this thread asks nobody: a limit that it meets
        itself raises at once. What it raises is logged the first time, counted, and never reaches who needed the memory.
    account : Account or None
        Where it frees: it is asked when a limit binds there, below, or above. None: the root account, so for every limit.
    priority : int
        The highest is asked first; among equals, who came first. Asking ends when enough is free.
    weak : bool
        Hold the object of a bound method weakly: it can die, and then it is not asked any more. Plain functions are always kept,
        and so are objects of C types that cannot be weakly referenced, such as a list.

    Returns
    -------
    Registration
        With ``cancel()``.

    Raises
    ------
    TypeError
        If `func` cannot be called, or an argument is of the wrong type.

    Notes
    -----
    Asked before `AccountLimitExceeded` and `PoolExhausted`, whoever would raise them: `Account.charge`, pools (also before a call
    begins to wait), slabs, mapped arrays, rings and arenas; and before the `MemoryError` of a pool that the OS refused. Then, at
    most as often as it is worthwhile and not under ``gc.disable()``, the garbage collector runs. A reclaimer of an account above
    that says it freed memory, but made no room for the limit in question, is left out of some of the next failures of that limit.
    Arrays that NumPy makes in a pool (`mempool.numpy.use_pool`) ask nobody: they take what room there is.

    Examples
    --------
    >>> from mempool.accounting import Account, register_reclaimer
    >>> images = Account("images", limit="1MiB")
    >>> kept = [images.charge("256KiB") or "256KiB" for _ in range(4)]
    >>> def drop(needed):
    ...     images.discharge(kept.pop())
    ...     return 256 << 10
    >>> registration = register_reclaimer(drop, account=images)
    >>> images.charge("256KiB")
    >>> len(kept), images.used == images.limit
    (3, True)
    >>> registration.cancel()
    >>> images.discharge("1MiB")
    """
    if not callable(func):
        raise TypeError(f"func must be callable, not {func!r}")
    if account is not None and not isinstance(account, _core.Account):
        raise TypeError(f"account must be an Account or None, not {account!r}")
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(f"priority must be an int, not {priority!r}")
    if not isinstance(weak, bool):
        raise TypeError(f"weak must be True or False, not {weak!r}")
    number = next(_numbers)
    registration = Registration(func, account or _core.root_account(), priority, weak, number)
    _registered[number] = registration
    return registration


def _in_order() -> list[Registration]:
    return sorted(_registered.values(), key=lambda one: (-one.priority, one._number))


def reclaimers() -> list[ReclaimerStats]:
    """Return what each reclaimer has done, in the order in which they are asked."""
    return [
        ReclaimerStats(one.name, one.account.name, one.priority, one.calls, one.errors, one.freed)
        for one in _in_order()
    ]


def relieve(needed: int) -> int:
    """Ask all reclaimers, whatever their account, until so many bytes are free.

    Returns
    -------
    int
        Bytes that they say they freed; 0 from inside a reclaimer.
    """
    return _core._as_hook(lambda: _ask_all(needed)) or 0


def _ask_all(needed: int) -> int:
    freed = 0
    for one in _in_order():
        if freed >= needed:
            break
        freed += one._ask(needed - freed)
    return freed


class Doubts:
    """Who was asked in vain for the room of one account, pool or slab."""

    __slots__ = ("_pauses", "_vain")

    def __init__(self) -> None:
        self._vain: dict[int, int] = {}
        self._pauses: dict[int, int] = {}

    def sits_out(self, number: int) -> bool:
        """Whether this failure is one that a reclaimer sits out."""
        left = self._pauses.get(number, 0)
        if left > 0:
            self._pauses[number] = left - 1
        return left > 0

    def judge(self, number: int, patience: int, claimed: int, made: int) -> bool:
        """Note what came of asking: `made` is the room that was measured. Whether the claim is worth another try."""
        if made > 0:
            self.forget(number)
        elif claimed > 0:
            vain = self._vain[number] = self._vain.get(number, 0) + 1
            self._pauses[number] = (1 << min(max(0, vain - patience), _MOST_SAT_OUT)) - 1
            return vain <= patience
        return claimed > 0

    def forget(self, number: int) -> None:
        """Trust it again."""
        self._vain.pop(number, None)
        self._pauses.pop(number, None)


class Collector:
    """Collects garbage for one account or pool, not more often than it pays.

    Parameters
    ----------
    held : callable
        Bytes in use there.
    clock : callable
        Seconds.
    """

    __slots__ = ("_clock", "_collect", "_next", "_pause", "doubts", "target")

    def __init__(
        self,
        target: object = None,
        clock: "Callable[[], float]" = monotonic,
        collect: "Callable[[], object]" = gc.collect,
    ) -> None:
        self.target = None if target is None else ref(target, _forget_collector(id(target)))
        self._clock, self._collect = clock, collect
        self.doubts = Doubts()
        self._next = self._pause = 0.0

    @property
    def is_due(self) -> bool:
        """Whether a collection may be tried now."""
        return gc.isenabled() and self._clock() >= self._next

    def collect(self, held: "Callable[[], int]", needed: int = 1) -> int:
        """Bytes that a collection freed, 0 if it is not due. After one that freed too little the next is due later and later."""
        start = self._clock()
        if not gc.isenabled() or start < self._next:
            return 0
        before = held()
        self._collect()
        freed = max(0, before - held())
        took = max(0.0, self._clock() - start)
        self._pause = 0.0 if freed >= needed else max(min(2 * self._pause, _MOST_PAUSE), _SHARE * took, _LEAST_PAUSE)
        self._next = start + took + self._pause
        return freed


_collectors: dict[int, Collector] = {}


def _forget_collector(key: int) -> "Callable[[object], object]":
    return lambda _: _collectors.pop(key, None)


def _collector_of(target: object) -> Collector:
    found = _collectors.get(id(target))
    if found is None or found.target is None or found.target() is not target:
        found = _collectors[id(target)] = Collector(target)
    return found


def _on_limit(account: "Account | None", holder: "BufferPool | SlabAllocator | None", needed: int) -> bool:
    """Answer `_core` before the error of a limit: True if it should try again."""
    collector = _collector_of(account if holder is None else holder)
    if not _registered and not collector.is_due:
        return False
    where = account if holder is None else holder.account
    made, claims = 0, False
    if where is not None and _registered:
        made, claims = _ask_for(where, lambda: _core._held(account, holder), needed, collector.doubts)
    if made < needed:
        made += collector.collect(lambda: _core._held(account, holder), needed - made)
    return made > 0 or claims


def _ask_for(where: "Account", held: "Callable[[], int]", needed: int, doubts: Doubts) -> tuple[int, bool]:
    """Room that was made, as measured, and whether somebody claims to have made any."""
    made, claims, before = 0, False, held()
    for one in _in_order():
        if made >= needed:
            break
        below = _is_under(one.account, where)
        if not below and (not one._may_help(where) or doubts.sits_out(one._number)):
            continue
        claimed = one._ask(needed - made)
        after = held()
        claims |= doubts.judge(one._number, _PATIENCE_BELOW if below else _PATIENCE, claimed, before - after)
        if not one.active:  # cancelled from inside: nobody else would forget it
            doubts.forget(one._number)
        made, before = made + max(0, before - after), after
    return made, claims


_core._set_limit_hook(_on_limit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_core._after_fork)
