"""Who is told, in which order, and what becomes of what they raise.

Callbacks run highest priority first, those of one priority in the order in which they came, outside every lock, each in its own
try. What one raises is counted, and logged with its traceback the first time; the others run all the same. One round runs at a
time, so no callback is entered again while it runs; a coroutine function that has not finished is passed over.

The list is a tuple that is replaced, never changed: a round goes on over the one it began with, and skips who was cancelled
meanwhile.
"""

import functools
import inspect
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from operator import index
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
        self, owner: "Callbacks", function: Callback, level: Level | None, priority: int, *, weak: bool
    ) -> None:
        self.level, self.priority = level, priority
        self.calls = self.errors = self.freed = 0
        self.seconds = 0.0
        self._owner = weakref.ref(owner)
        self._is_async = is_async(function)
        self._loop = current_loop() if self._is_async else None
        self._task: object = None
        self._cancelled = False
        self._logged = False
        self._function: Callable[[], Callback | None]
        if weak and inspect.ismethod(function):
            self._function = weakref.WeakMethod(function, lambda _: self.cancel())
        else:
            self._function = lambda: function
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
        """Give a coroutine function that was registered outside every loop the one that it runs on."""
        if self._is_async and self._loop is None:
            self._loop = loop

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
            self.calls += 1
            return self._count(function(event))
        except Exception as error:
            self._failed(error)
            return 0
        finally:
            self.seconds += time.perf_counter() - start

    def _is_muted(self) -> bool:
        owner = self._owner()
        if owner is None or not owner.muted:
            return False
        owner.missed = True
        return True

    def _count(self, value: object) -> int:
        freed = freed_bytes(value)
        self.freed += freed
        return freed

    def _failed(self, error: BaseException) -> None:
        self.errors += 1
        if not self._logged:
            self._logged = True
            log.error("pressure callback %s raised; later errors of it are only counted", self.name, exc_info=error)

    # ---- coroutine functions ----

    def _send(self, function: Callback, event: PressureEvent) -> None:
        """Start it on its loop; one that has not finished is left alone."""
        if self._task is not None:
            return
        loop = self._loop or current_loop()
        if loop is None:
            raise RuntimeError(
                f"async callback {self.name} was registered outside a running event loop, and none runs here"
            )
        self._task = loop
        try:
            loop.call_soon_threadsafe(self._begin, loop, function, event)
        except RuntimeError:
            self._task = None
            log.warning("pressure callback %s is dropped: its event loop is closed", self.name)
            self.cancel()

    def _begin(self, loop: "asyncio.AbstractEventLoop", function: Callback, event: PressureEvent) -> None:
        self.calls += 1
        self._task = loop.create_task(self._await(function, event))

    async def _await(self, function: Callback, event: PressureEvent) -> None:
        start = time.perf_counter()
        try:
            coroutine = function(event)
            assert isinstance(coroutine, Coroutine)
            self._count(await coroutine)
        except Exception as error:
            self._failed(error)
        finally:
            self.seconds += time.perf_counter() - start
            self._task = None

    def _forget_task(self) -> None:
        """In the child of a fork its loop is that of the parent."""
        self._task = None

    def __repr__(self) -> str:
        what = "relief" if self.level is None else self.level.name
        return f"<Registration of {self.name} for {what}{', cancelled' if self._cancelled else ''}>"


class Callbacks:
    """All registrations of one monitor."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer that runs inside may cancel
        self._all: tuple[Registration, ...] = ()
        self.freed = self.calls = self.errors = 0
        self.muted = Mutes()
        self.missed = False  # whether one did not begin therefore

    def add(self, function: Callback, level: Level | None, priority: int, *, weak: bool) -> Registration:
        """Register a callback."""
        if not callable(function):
            raise TypeError(f"a pressure callback must be callable, not {function!r}")
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise TypeError(f"priority must be an int, not {priority!r}")
        made = Registration(self, function, level, priority, weak=weak)
        with self._lock:
            self._all = tuple(sorted((*self._all, made), key=lambda one: -one.priority))
        return made

    def remove(self, registration: Registration) -> None:
        """Take one out; its counts stay in the sums."""
        with self._lock:
            if registration in self._all:
                self._all = tuple(one for one in self._all if one is not registration)
                self.freed += registration.freed
                self.calls += registration.calls
                self.errors += registration.errors

    def bind(self, loop: "asyncio.AbstractEventLoop") -> None:
        """Give every coroutine function without a loop this one."""
        for one in self._all:
            one._bind(loop)

    def all(self) -> tuple[Registration, ...]:
        """Return all, in the order in which they run."""
        return self._all

    def totals(self) -> tuple[int, int, int]:
        """Return calls, errors and bytes freed, of those that are gone too."""
        with self._lock:
            return (
                self.calls + sum(one.calls for one in self._all),
                self.errors + sum(one.errors for one in self._all),
                self.freed + sum(one.freed for one in self._all),
            )

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
        for one in self._all:
            one._forget_task()
