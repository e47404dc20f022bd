"""Who is told, in which order, and what becomes of what they raise.

Callbacks run highest priority first, those of one priority in the order in which they came, outside every lock, each in its own
try. What one raises is counted, and logged with its traceback the first time; the others run all the same. One round runs at a
time, so no callback is entered again while it runs; a coroutine function that has not finished is passed over.

The list is a tuple that is replaced, never changed: a round goes on over the one it began with, and skips who was cancelled
meanwhile. While a new one is made the collector may run, finalizers in it, and those may cancel: what is stored was made of what
still is there, else it is made again.
"""

import functools
import inspect
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import replace
from operator import index
from types import BuiltinMethodType, MethodWrapperType, ModuleType
from typing import TYPE_CHECKING

from mempool.pressure.levels import Level, PressureEvent
from mempool.pressure.muting import Mutes

if TYPE_CHECKING:
    import asyncio

__all__ = ["Callback", "Callbacks", "Registration"]

Callback = Callable[[PressureEvent], object]

log = logging.getLogger("mempool.pressure")


def name_of(function: object) -> str:
    """Return what logs and statistics call a callback."""
    return str(getattr(function, "__qualname__", None) or repr(function))


def is_async(function: object) -> bool:
    """Whether calling it makes a coroutine."""
    call = getattr(type(function), "__call__", None)  # noqa: B004 - what calling it would run, not whether it can be called
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def freed_bytes(value: object) -> int:
    """Return what a callback says it freed; None is nothing."""
    if value is None or isinstance(value, bool):
        return 0
    try:
        freed = index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"a pressure callback must return the bytes it freed or None, not {value!r}") from None
    if freed < 0:
        raise ValueError(f"a pressure callback must not free less than nothing, got {freed}")
    return freed


def current_loop() -> "asyncio.AbstractEventLoop | None":
    """Return the loop that runs in this thread; asyncio is not imported to find that there is none."""
    if "asyncio" not in sys.modules:
        return None
    import asyncio

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def was_cancelled(error: BaseException) -> bool:
    """Whether it is what a cancelled future says to who asks it; outside a task that ends nothing."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and isinstance(error, asyncio.CancelledError)


def weak_builtin(function: Callback, gone: Callable[[object], None]) -> Callable[[], Callback | None] | None:
    """Return for a bound method of a compiled type what `weakref.WeakMethod` is of others; None where only holding it keeps it."""
    if not isinstance(function, BuiltinMethodType | MethodWrapperType) or isinstance(function.__self__, ModuleType):
        return None
    name = function.__name__
    if getattr(function.__self__, name, None) != function:
        return None
    try:
        alive = weakref.ref(function.__self__, gone)
    except TypeError:  # lists, dicts
        return None

    def bound() -> Callback | None:
        owner = alive()
        return None if owner is None else getattr(owner, name, None)

    return bound


class Sums:
    """Counts over all registrations of a monitor, those that are gone too."""

    def __init__(self) -> None:
        self.calls = self.errors = self.freed = 0
        self._lock = threading.RLock()  # a finalizer that runs inside may poll

    def add(self, *, calls: int = 0, errors: int = 0, freed: int = 0) -> None:
        """Count; from the loops of coroutine functions too."""
        with self._lock:
            self.calls += calls
            self.errors += errors
            self.freed += freed

    def totals(self) -> tuple[int, int, int]:
        """Return calls, errors and bytes freed."""
        with self._lock:
            return self.calls, self.errors, self.freed

    def after_fork(self) -> None:
        """Begin again with a lock that nobody holds."""
        self._lock = threading.RLock()


class _Errand:
    """One call of a coroutine function, from when it is sent to a loop until it has ended there."""

    __slots__ = ("event", "function", "loop", "task")

    def __init__(self, loop: "asyncio.AbstractEventLoop", function: Callback, event: PressureEvent) -> None:
        self.loop, self.function, self.event = loop, function, event
        self.task: asyncio.Task[None] | None = None  # loops refer to their tasks weakly


class Registration:
    """One callback of a monitor. Calling it calls the callback.

    Attributes
    ----------
    level : Level or None
        From which level on it is told; None: of relief.
    priority : int
        Higher ones run first.
    calls, errors, freed : int
        How often it ran, how often that raised, and the bytes that it said it freed.
    seconds : float
        That its calls took.
    """

    def __init__(
        self, owner: "Callbacks", function: Callback, level: Level | None, priority: int, *, weak: bool, first: bool
    ) -> None:
        self.level, self.priority = level, priority
        self.calls = self.errors = self.freed = 0
        self.seconds = 0.0
        self._first = first
        self._owner, self._sums = weakref.ref(owner), owner.sums
        self._is_async = is_async(function)
        self._loop = current_loop() if self._is_async else None
        self._lent = False
        self._errand: _Errand | None = None
        self._late: PressureEvent | None = None
        self._cancelled = False
        self._logged = False
        self._function: Callable[[], Callback | None]
        if weak and inspect.ismethod(function):
            self._function = weakref.WeakMethod(function, lambda _: self.cancel())
        else:
            builtin = weak_builtin(function, lambda _: self.cancel()) if weak else None
            self._function = builtin or (lambda: function)
        functools.update_wrapper(self, function, updated=())
        del self.__wrapped__  # type: ignore[attr-defined]  # it would keep what is held weakly
        self.name = name_of(function)

    def __call__(self, event: PressureEvent) -> object:
        """Call the callback as it is, counting nothing."""
        function = self._function()
        return None if function is None else function(event)

    @property
    def cancelled(self) -> bool:
        """Whether it runs no more."""
        return self._cancelled

    def cancel(self) -> None:
        """Run no more; idempotent, also from inside a callback."""
        self._cancelled = True
        owner = self._owner()
        if owner is not None:
            owner.remove(self)

    def _bind(self, loop: "asyncio.AbstractEventLoop") -> None:
        """Give a coroutine function that was registered outside every loop this one, until that stands and another is lent."""
        if self._is_async and (self._loop is None or (self._lent and not self._loop.is_running())):
            self._loop, self._lent = loop, True

    def _run(self, event: PressureEvent) -> int:
        """Call it in its own try; the bytes that it freed."""
        function = self._function()
        if function is None or self._cancelled or self._is_muted():
            return 0
        start = time.perf_counter()
        try:
            if self._is_async:
                self._send(function, event)
                return 0
            self._called()
            return self._count(function(event))
        except BaseException as error:
            if not isinstance(error, Exception) and not was_cancelled(error):
                raise
            self._failed(error)
            return 0
        finally:
            self.seconds += time.perf_counter() - start

    def _called(self) -> None:
        self.calls += 1
        self._sums.add(calls=1)

    def _is_muted(self) -> bool:
        owner = self._owner()
        if owner is None or not owner.muted:
            return False
        owner.missed = True
        return True

    def _count(self, value: object) -> int:
        freed = freed_bytes(value)
        self.freed += freed
        self._sums.add(freed=freed)
        return freed

    def _failed(self, error: BaseException) -> None:
        self.errors += 1
        self._sums.add(errors=1)
        if not self._logged:
            self._logged = True
            log.error("pressure callback %s raised; later errors of it are only counted", self.name, exc_info=error)

    # ---- coroutine functions ----

    def _send(self, function: Callback, event: PressureEvent) -> None:
        """Start it on its loop; one that has not finished is left alone, unless its loop was closed over it."""
        under_way = self._errand  # the loop's thread may end it now
        if under_way is not None and not under_way.loop.is_closed():
            return
        self._errand = self._late = None
        if self._lent and self._loop is not None and self._loop.is_closed():
            self._loop, self._lent = None, False
        loop = self._loop or current_loop()
        if loop is None:
            raise RuntimeError(
                f"async callback {self.name} was registered outside a running event loop, or before a fork, and none runs here"
            )
        errand = self._errand = _Errand(loop, function, event)
        try:
            loop.call_soon_threadsafe(self._begin, errand)
        except RuntimeError:
            self._errand = None
            log.warning("pressure callback %s is dropped: its event loop is closed", self.name)
            self.cancel()

    def _begin(self, errand: _Errand) -> None:
        """On the loop: make it a task, if it is still wanted."""
        if not self._still_wanted(errand):
            self._ended(errand)
            return
        coroutine = self._await(errand)
        try:
            errand.task = errand.loop.create_task(coroutine)
        except Exception as error:  # of a task factory
            coroutine.close()
            self._ended(errand)
            self._failed(error)
            return
        errand.task.add_done_callback(lambda _: self._ended(errand))  # one that is cancelled at once never runs

    def _still_wanted(self, errand: _Errand) -> bool:
        """Whether to go on with one on its way; what is suppressed since is kept for later."""
        if self._cancelled or self._errand is not errand:
            return False
        owner = self._owner()
        if owner is not None and owner.muted:
            self._ended(errand)
            self._late = errand.event  # last: a poll in another thread sends it at once
            return False
        return True

    def _tell_late(self, level: Level) -> None:
        """Run it for what was suppressed on its way, as far as that holds at this level."""
        event = self._late
        if event is None:
            return
        self._late = None
        if self.level is None:
            if level <= event.level:
                self._run(event)
        elif level >= self.level:
            self._run(replace(event, level=min(event.level, level)))

    def _ended(self, errand: _Errand) -> None:
        if self._errand is errand:
            self._errand = None

    async def _await(self, errand: _Errand) -> None:
        import asyncio

        start = time.perf_counter()
        try:
            if not self._still_wanted(errand):
                return
            self._called()
            coroutine = errand.function(errand.event)
            assert isinstance(coroutine, Coroutine)
            self._count(await coroutine)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._failed(error)  # nobody cancelled it: it asked what was cancelled
        except Exception as error:
            self._failed(error)
        finally:
            self.seconds += time.perf_counter() - start
            self._ended(errand)

    def _after_fork(self) -> None:
        """In the child its loop is a copy of the parent's that nobody runs; it is as if registered outside every loop."""
        self._errand = self._loop = self._late = None
        self._lent = False

    def __repr__(self) -> str:
        what = "relief" if self.level is None else self.level.name
        return f"<Registration of {self.name} for {what}{', cancelled' if self._cancelled else ''}>"


class Callbacks:
    """All registrations of one monitor."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer that runs inside may cancel
        self._all: tuple[Registration, ...] = ()
        self.sums = Sums()
        self.muted = Mutes()
        self.missed = False  # whether one did not begin therefore

    def add(
        self, function: Callback, level: Level | None, priority: int, *, weak: bool, first: bool = False
    ) -> Registration:
        """Register a callback; `first` puts it before every priority."""
        if not callable(function):
            raise TypeError(f"a pressure callback must be callable, not {function!r}")
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise TypeError(f"priority must be an int, not {priority!r}")
        made = Registration(self, function, level, int.__index__(priority), weak=weak, first=first)
        with self._lock:
            while True:
                before = self._all
                after = tuple(sorted((*before, made), key=lambda one: (not one._first, -one.priority)))
                if self._all is before:
                    self._all = after
                    break
        return made

    def remove(self, registration: Registration) -> None:
        """Take one out."""
        with self._lock:
            while registration in (before := self._all):
                after = tuple(one for one in before if one is not registration)
                if self._all is before:
                    self._all = after

    def bind(self, loop: "asyncio.AbstractEventLoop") -> None:
        """Lend every coroutine function without a loop this one."""
        for one in self._all:
            one._bind(loop)

    def all(self) -> tuple[Registration, ...]:
        """Return all, in the order in which they run."""
        return self._all

    def tell_late(self, level: Level) -> None:
        """Tell coroutine functions what they did not begin because callbacks were suppressed meanwhile."""
        if not self.muted:
            for one in self._all:
                one._tell_late(level)

    def relieve(self, event: PressureEvent) -> None:
        """Tell those who wait for relief."""
        for one in self._all:
            if one.level is None:
                one._run(event)

    def answer(self, event: PressureEvent, look: Callable[[], Level]) -> tuple[int, Level]:
        """Ask for memory until there is enough.

        Parameters
        ----------
        event : PressureEvent
            What is to be answered; those registered for its level or a lower one are told.
        look : callable
            Returns the level that memory is at now; asked after each callback that freed something.

        Returns
        -------
        int, Level
            Bytes freed, and the level after that: that of the event if nothing was freed.
        """
        total, level = 0, event.level
        for one in self._all:
            if one.level is None or one.level > level:
                continue
            freed = one._run(event)
            if freed:
                total += freed
                level = min(level, look())
        return total, level

    def after_fork(self) -> None:
        """Begin again with a lock that nobody holds."""
        self._lock = threading.RLock()
        self.sums.after_fork()
        for one in self._all:
            one._after_fork()
