"""`memory_limit`: a guard around a piece of work.

::

    what           how it is held                            a peak that passed
    external       a limit of an account: the lease fails    cannot happen
    rss            looked at by check() and at the end       is seen at the end if it was a record of the process
    python_heap    looked at by check() and at the end       is seen at the end if it was a record of tracemalloc, and by so much
                                                             as it was more than native memory ever was (see `_Heap.peak`)

Growth counts from the entry, and of the whole process: neither the kernel nor Python's allocators tell whose memory it is. Raising
in the guarded thread from another one was rejected: it would hit the work in the middle of a clean-up, or just after its end.

Guards of one account share its limit; the smallest allowance binds:

    limit of the account = min(limit that it had, lent at entry + size of each guard)
"""

import functools
import inspect
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable, Generator
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, ParamSpec, Protocol, Self, SupportsIndex, TypeVar, cast
from weakref import ref

from mempool._core import Account, _external, _pools, root_account
from mempool._system import process
from mempool.accounting.usage import python_heap
from mempool.errors import AccountLimitExceeded, MemoryLimitExceeded
from mempool.units import parse_size

__all__ = ["MemoryGuard", "memory_limit"]

_What = Literal["rss", "external", "python_heap"]
_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Meter(Protocol):
    """Measures one kind of memory from the moment when it was made."""

    def grown(self) -> int:
        """Return the bytes more than at the start; negative if there are fewer."""

    def peak(self) -> int:
        """Return the most that it is known to have grown by."""

    def end(self) -> None:
        """Take back what was set."""


class _Resident:
    def __init__(self) -> None:
        before = process.memory()
        self._start, self._record = before.rss, before.peak_rss

    def grown(self) -> int:
        return process.rss() - self._start

    def peak(self) -> int:
        now = process.memory()
        return (now.peak_rss if now.peak_rss > self._record else now.rss) - self._start

    def end(self) -> None:
        pass


class _Heap:
    def __init__(self) -> None:
        self._start = self._now()
        self._record = tracemalloc.get_traced_memory()[1]

    def grown(self) -> int:
        return self._now() - self._start

    def peak(self) -> int:
        """Return the growth at the record, or now: all that was traced then, less all that was ever external.

        How much of the record was ours nobody knows any more. It was no more than that, so no peak is made up; where native
        memory once was large, one may be missed.
        """
        record = tracemalloc.get_traced_memory()[1]
        passed = record - root_account().peak - self._start if record > self._record else 0
        return max(passed, self.grown())

    def end(self) -> None:
        pass

    @staticmethod
    def _now() -> int:
        heap = python_heap()
        if heap is None:
            raise ValueError("a limit of python_heap needs tracemalloc: call tracemalloc.start() first")
        return heap


class _External:
    """A limit of an account while it lasts."""

    def __init__(self, account: Account, size: int) -> None:
        self._account = account
        self._key: ref[_External] | None = ref(self, _lost)
        with _lock:
            self._start = _lent(account)
            for _ in range(_ATTEMPTS):
                try:
                    _set(account, self._key, self._start + size)
                    break
                except ValueError:  # other threads took memory since it was read
                    self._start = _lent(account)
            else:
                raise RuntimeError(f"account {account.name!r} grows faster than it can be limited")
        self.bound = self._start + size

    def grown(self) -> int:
        return _lent(self._account) - self._start

    def peak(self) -> int:
        return self.grown()

    def end(self) -> None:
        with _lock:
            _take_back(self._account, self._key)
            self._key = None  # nobody need be told of its end

    def growth_refused(self, error: BaseException | None) -> int | None:
        """Return the growth that this limit refused; None if the error is of another limit."""
        if not isinstance(error, AccountLimitExceeded):
            return None
        if (error.account, error.limit) != (self._account.name, self.bound):
            return None
        return error.used + error.requested - self._start


_ATTEMPTS = 1000


class _Shared:
    """An account whose limit guards have set: what it was, what they set, and the allowance of each."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.own = self.set = account.limit
        self.allowances: dict[ref[_External], int] = {}

    def apply(self) -> None:
        if self.account.limit != self.set:  # somebody gave it another limit meanwhile: that is its own now
            self.own = self.account.limit
        bounds = [*self.allowances.values()] if self.own is None else [self.own, *self.allowances.values()]
        before, self.set = self.set, min(bounds, default=None)
        try:
            self.account.limit = self.set
        except BaseException:
            self.set = before
            raise


_lock = threading.RLock()  # a collection while it is held may end a guard
_shared: dict[int, _Shared] = {}

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def _set(account: Account, guard: "ref[_External]", allowance: int) -> None:
    """Give a guard its allowance. `ValueError`, and nothing changed, if more is lent already."""
    if allowance > sys.maxsize:  # also where another binds: it would be an error of that one's end
        raise OverflowError(f"limit of {allowance} bytes cannot be addressed")
    shared = _shared.setdefault(id(account), _Shared(account))
    try:
        shared.allowances[guard] = allowance
        shared.apply()
    except BaseException:
        _take_back(account, guard)
        raise


def _take_back(account: Account, guard: "ref[_External] | None") -> None:
    """Take a guard's allowance away; again, if that was interrupted."""
    shared = _shared.get(id(account))
    if shared is None:
        return
    for one in [one for one in shared.allowances if one is guard]:  # which may be dead, and have no hash
        del shared.allowances[one]
    with suppress(ValueError):  # who lifted the limit let others grow past their allowances: they say so themselves
        shared.apply()
    if not shared.allowances:
        _shared.pop(id(account), None)


def _lost(guard: "ref[_External]", is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
    """Take away what a guard has whose end never came: Ctrl-C may come before anybody has it, or before its end begins."""
    if not is_finalizing():
        with _lock:
            for shared in list(_shared.values()):
                _take_back(shared.account, guard)


def _lent(account: Account) -> int:
    """Return what an account holds without what pools below it have idle."""
    if account is root_account():
        reserved, idle, _ = _external()
        return reserved - idle
    idle = sum(pool.stats().idle for pool in _pools() if _is_under(pool.account, account))
    return max(0, account.used - idle)


def _is_under(account: Account | None, ancestor: Account) -> bool:
    while account is not None and account is not ancestor:
        account = account.parent
    return account is not None


class MemoryGuard:
    """What `memory_limit` returns: a context manager and a decorator.

    A guard is entered once at a time; a decorated function has a guard of its own in each call.
    """

    def __init__(self, size: int, what: _What, account: Account | None) -> None:
        self._size, self._what, self._account = size, what, account
        self._meter: _Meter | None = None

    @property
    def limit(self) -> int:
        """Bytes that the work may grow by."""
        return self._size

    @property
    def what(self) -> _What:
        """What is limited."""
        return self._what

    @property
    def grown(self) -> int:
        """Bytes that there are more than at the entry; negative if there are fewer. `RuntimeError` outside the block."""
        return self._running().grown()

    def check(self) -> int:
        """Return `grown`.

        Raises
        ------
        MemoryLimitExceeded
            It is more than the limit.
        RuntimeError
            The guard is not entered.
        """
        grown = self.grown
        if grown > self._size:
            raise self._error(grown)
        return grown

    def __enter__(self) -> Self:
        if self._meter is not None:
            raise RuntimeError("a memory_limit is entered once at a time; make one for each block")
        if self._what == "external":
            self._meter = _External(self._account or root_account(), self._size)
        else:
            self._meter = _Resident() if self._what == "rss" else _Heap()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        meter, self._meter = self._running(), None
        try:
            refused = meter.growth_refused(error) if isinstance(meter, _External) else None
            peak = meter.peak() if error is None else 0
        finally:
            meter.end()
        if refused is not None:
            raise self._error(refused) from error
        if peak > self._size:
            raise self._error(peak)

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """Guard each call of a function, of a coroutine function until it is done, of a generator function until it is used up."""
        if inspect.isasyncgenfunction(function):
            raise TypeError(f"memory_limit cannot guard the async generator {function!r}; use it as a block inside")
        if inspect.iscoroutinefunction(function):
            wrapper = self._guarded_coroutine(function)
        elif inspect.isgeneratorfunction(function):
            wrapper = self._guarded_generator(function)
        else:
            wrapper = self._guarded(function)
        return cast("Callable[_P, _R]", functools.wraps(function)(wrapper))

    def __repr__(self) -> str:
        return f"<mempool.accounting.MemoryGuard: {self._what} may grow by {self._size} bytes>"

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._another():
                return function(*args, **kwargs)

        return call

    def _guarded_coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            with self._another():
                return await function(*args, **kwargs)

        return call

    def _guarded_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            with self._another():
                return (yield from function(*args, **kwargs))

        return call

    def _another(self) -> "MemoryGuard":
        return MemoryGuard(self._size, self._what, self._account)

    def _running(self) -> _Meter:
        if self._meter is None:
            raise RuntimeError("this memory_limit is not entered")
        return self._meter

    def _error(self, grown: int) -> MemoryLimitExceeded:
        text = f"{self._what} grew by {grown} bytes, and the limit of this work is {self._size}"
        return MemoryLimitExceeded(text, self._what, grown, self._size)


def memory_limit(
    size: int | str | SupportsIndex, *, what: _What = "rss", account: Account | None = None
) -> MemoryGuard:
    """Return a guard around a piece of work that may grow memory by so much.

    Parameters
    ----------
    size : int or str
        Bytes that the process may grow by from the entry.
    what : str
        ``"external"``: native memory that is lent. It is a limit of an account meanwhile: a lease or charge beyond it raises
        `AccountLimitExceeded` after all that is tried before a limit raises, whichever thread asks, and leaves the block as
        `MemoryLimitExceeded`. At the entry idle memory goes back as far as it could be lent beyond the limit.

        ``"rss"``: resident memory. ``"python_heap"``: what `tracemalloc` counts, without our own. Nothing stops these in the
        middle: call `MemoryGuard.check` where the work can be left. At the end growth counts, and a peak that was a record; one
        of the heap only as far as it is beyond the most that `root_account` ever held, which may have been part of it.
    account : Account or None
        For ``"external"``: the account that is limited, with all below it. None: all, `root_account`.

    Returns
    -------
    MemoryGuard
        A context manager, and a decorator of functions, coroutine functions and generator functions.

    Raises
    ------
    MemoryLimitExceeded
        From the block, at its end or from `MemoryGuard.check`. An error of the work itself goes first.
    ValueError
        For nonsense; at the entry, if the heap is to be limited and `tracemalloc` is not running.

    Examples
    --------
    >>> import mempool
    >>> job = mempool.Account("job")
    >>> pool = mempool.BufferPool(account=job)
    >>> with mempool.accounting.memory_limit("1MiB", what="external", account=job):
    ...     pool.acquire("2MiB")
    Traceback (most recent call last):
        ...
    mempool.errors.MemoryLimitExceeded: external grew by 2097152 bytes, and the limit of this work is 1048576
    """
    nbytes = parse_size(size)
    if nbytes == 0:
        raise ValueError(f"size must be more than 0 bytes, got {size!r}")
    if what not in ("rss", "external", "python_heap"):
        raise ValueError(f"what must be 'rss', 'external' or 'python_heap', not {what!r}")
    if account is not None and not isinstance(account, Account):
        raise TypeError(f"account must be an Account or None, not {account!r}")
    if account is not None and what != "external":
        raise ValueError(f"an account counts external memory, not {what!r}")
    return MemoryGuard(nbytes, what, account)
