"""Who waits for whose load: threads and tasks, and whether a wait could ever end.

    load --scope--> whose thread, whose loop       what code inside a load waits for --waits--> other loads

A *scope* is what a load is to others. Code that runs inside a load, in its thread, in tasks that it started or in
`asyncio.to_thread`, knows the scopes around it by a context variable; what such code waits for is an edge from each of these
scopes to the load waited for. A thread that sleeps stops its event loop too: an edge from each load of that loop. Who would
close a circle does not wait.

What never ends a load, without a word: a loop that is closed while its task loads, and the end of the interpreter, where daemon
threads run no more. So who waits for a task looks from time to time whether its loop is closed (there is nobody who would tell),
and who waits at the end of the interpreter does not.

There is no lock: whoever begins to wait first writes down what he waits for, then looks (at the outcome, and for a circle), and
whoever ends a load first writes down its outcome, then looks who waits. So one of both sees the other; of two that close a
circle at once both may see it, which costs a second load and hangs nobody. A lock was rejected: finalisers and signal handlers,
which may load, run between any two steps of who holds it.
"""

import os
import sys
from contextvars import ContextVar
from threading import Lock, get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio

__all__ = [
    "RETRY",
    "Outcome",
    "Scope",
    "Waitable",
    "inside",
    "is_lost",
    "running_loop",
    "sleep_in_task",
    "sleep_in_thread",
    "step_out",
]


class Outcome:
    """How a load ended: with a value, with an exception, or without either, so that who waited must try again."""

    __slots__ = ("context", "error", "trace", "value")

    def __init__(self, value: Any = None, error: Exception | None = None) -> None:
        self.value, self.error = value, error
        self.trace: TracebackType | None = None if error is None else error.__traceback__
        self.context: BaseException | None = None if error is None else error.__context__

    def result(self) -> Any:
        """Return the value or raise the exception, with the traceback and the context of the load and no other waiter's."""
        if self.error is None:
            return self.value
        try:
            raise self.error.with_traceback(self.trace)
        finally:
            self.error.__context__ = self.context  # to raise it put there what this waiter was handling
            del self  # the exception names this frame, which would name the exception


RETRY = Outcome()
GLANCE = 0.25  # seconds between two looks whether a loop was closed


class Scope:
    """Where a load runs: the thread, and the event loop if it is a task's (None: it is on the thread's stack)."""

    __slots__ = ("loop", "over", "thread", "waits")

    def __init__(self, loop: "asyncio.AbstractEventLoop | None") -> None:
        self.thread = get_ident()
        self.loop = loop
        self.over = False
        self.waits: dict[object, Waitable] = {}


class Waitable(Protocol):
    """What of a load its waiters see."""

    scope: Scope
    outcome: Outcome | None

    @property
    def waiters(self) -> "dict[ThreadWaiter | TaskWaiter, None]":
        """Who waits."""


class ThreadWaiter:
    """A thread that sleeps on a lock."""

    __slots__ = ("_lock", "wake")

    def __init__(self) -> None:
        self._lock = Lock()
        self._lock.acquire()
        self.wake = self._lock.release  # no function of Python, in which a signal's handler could run

    def sleep(self, seconds: float) -> bool:
        """Sleep until woken, or so long; whether it was woken. Ctrl-C interrupts."""
        return self._lock.acquire(timeout=seconds)


class TaskWaiter:
    """A task that sleeps on a future of its loop."""

    __slots__ = ("_loop", "future")

    def __init__(self, loop: "asyncio.AbstractEventLoop") -> None:
        self._loop = loop
        self.future = loop.create_future()

    def wake(self) -> None:
        """End its sleep; from any thread. `RuntimeError`: its loop is closed, and nobody waits there."""
        if running_loop() is self._loop:
            self._awake()
        else:
            self._loop.call_soon_threadsafe(self._awake)

    def _awake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


_scopes: ContextVar[tuple[Scope, ...]] = ContextVar("mempool.cache.scopes", default=())

# What each thread sleeps for; several loads where a signal's handler or a finaliser sleeps on top of another sleep.
_asleep: dict[int, tuple[Waitable, ...]] = {}

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_asleep.clear)


class inside:  # noqa: N801  (used as a function is)
    """Run code inside a load: `with inside(scope):`."""

    __slots__ = ("_scope", "_token")

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __enter__(self) -> None:
        self._token = _scopes.set((*_around(), self._scope))

    def __exit__(self, *details: object) -> None:
        self._scope.over = True
        self._scope.loop = None  # contexts of tasks that live on name this scope
        try:
            _scopes.reset(self._token)
        except ValueError:  # a coroutine that somebody drives from several contexts
            return


def step_out() -> None:
    """Be inside no load from here on: what was begun inside one, and goes on by itself."""
    _scopes.set(())


def _around() -> tuple[Scope, ...]:
    """Name the loads around what runs here. A task that a load left behind is in none any more."""
    return tuple([scope for scope in _scopes.get() if not scope.over])


def running_loop() -> "asyncio.AbstractEventLoop | None":
    """Return the event loop that runs in this thread; where nobody imported asyncio there is none."""
    asyncio = sys.modules.get("asyncio")
    return asyncio._get_running_loop() if asyncio is not None else None


def _never_ends(load: Waitable, scopes: tuple[Scope, ...], loop: "asyncio.AbstractEventLoop | None") -> bool:
    """Whether the load waits, over however many others, for who asks: these scopes, this thread, or a task of this loop."""
    thread = get_ident()
    todo, seen = [load], set()
    while todo:
        load = todo.pop()
        scope = load.scope
        if load.outcome is not None or scope in seen:
            continue
        seen.add(scope)
        if scope in scopes or (scope.thread == thread and (scope.loop is None or scope.loop is not loop)):
            return True
        todo += list(scope.waits.values())
        todo += _asleep.get(scope.thread, ())
    return False


def is_lost(load: Waitable) -> bool:
    """Whether its loop was closed before the load ended: nobody will end it."""
    loop = load.scope.loop
    return loop is not None and load.outcome is None and loop.is_closed()


class _Wait:
    """The edges of one wait, written down while it lasts."""

    __slots__ = ("_before", "_load", "_thread", "_waiter", "scopes")

    def __init__(self, load: Waitable, waiter: ThreadWaiter | TaskWaiter, thread: int) -> None:
        self.scopes = _around()
        self._load, self._waiter, self._thread = load, waiter, thread
        self._before = _asleep.get(thread, ())

    def begin(self) -> None:
        if self._thread:
            _asleep[self._thread] = (*self._before, self._load)
        for scope in self.scopes:
            scope.waits[self._waiter] = self._load
        self._load.waiters[self._waiter] = None

    def end(self) -> None:
        self._load.waiters.pop(self._waiter, None)
        for scope in self.scopes:
            scope.waits.pop(self._waiter, None)
        if self._before:
            _asleep[self._thread] = self._before
        elif self._thread:
            _asleep.pop(self._thread, None)


def sleep_in_thread(load: Waitable) -> Outcome | None:
    """Sleep until a load has ended; its outcome. None: it would never end, for it waits for this thread."""
    waiter = ThreadWaiter()
    wait = _Wait(load, waiter, get_ident())
    try:
        wait.begin()
        if load.outcome is None:
            if sys.is_finalizing() or _never_ends(load, wait.scopes, None):
                return None
            while not waiter.sleep(-1 if load.scope.loop is None else GLANCE):
                if is_lost(load):
                    return RETRY
        return load.outcome
    finally:
        wait.end()


async def sleep_in_task(load: Waitable) -> Outcome | None:
    """Sleep, as a task, until a load has ended; its outcome. None: it would never end, for it waits for this task."""
    import asyncio

    loop = asyncio.get_running_loop()
    waiter = TaskWaiter(loop)
    wait = _Wait(load, waiter, 0)
    try:
        wait.begin()
        if load.outcome is None:
            if _never_ends(load, wait.scopes, loop):
                return None
            if load.scope.loop is None or load.scope.loop is loop:
                await waiter.future
            while not waiter.future.done():
                await asyncio.wait((waiter.future,), timeout=GLANCE)
                if is_lost(load):
                    return RETRY
        return load.outcome
    finally:
        wait.end()
