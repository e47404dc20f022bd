"""A monitor that polls on its own: in a thread or in an event loop, woken by events, and by growth of native memory.

The thread is a daemon, and ends in good order before the interpreter does. In the child of a `fork` there is none: the monitor
starts one again at its first use there. The parent's goes on; Python 3.12 and later warn of a fork with threads running, and they
are right to.
"""

import atexit
import logging
import os
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from mempool.pressure import events
from mempool.pressure.events import Events
from mempool.pressure.growth import AGAIN, GrowthWatch

if TYPE_CHECKING:
    import asyncio

    from mempool.pressure.monitor import PressureMonitor

__all__ = ["LoopRunner", "ThreadRunner", "watch_forks"]

log = logging.getLogger("mempool.pressure")

_GRACE = 1.0  # seconds that the end of the interpreter waits for a callback
_AFTER_ERROR = 1.0  # seconds from a poll that failed to the next, where no interval is given


def log_new(error: BaseException, last: str) -> str:
    """Log an error, unless it is as the last one was; what to compare the next with."""
    text = repr(error)
    if text != last:
        log.error("a pressure monitor could not poll; it tries again", exc_info=error)
    return text


class ThreadRunner:
    """A thread that polls and waits in turn."""

    def __init__(self, monitor: "PressureMonitor") -> None:
        self._monitor = monitor
        self._quit = False
        self._last = ""
        self._events = Events(monitor._watched)
        self._growth = GrowthWatch(self, monitor._is_inside)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mempool-pressure", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # Ctrl-C too, while it waited for the thread to begin
            self._end()
            if self._thread.ident is None:  # else the thread does so
                self._events.close()
            raise
        _running.add(self)

    @property
    def alive(self) -> bool:
        """Whether it polls."""
        return not self._quit

    @property
    def polls(self) -> bool:
        """Whether nothing keeps it from polling."""
        return not self._quit

    @property
    def elsewhere(self) -> bool:
        """Whether it polls while this thread sleeps."""
        return not self._quit and threading.current_thread() is not self._thread

    def _run(self) -> None:
        try:
            while not self._quit:
                self._turn()
        finally:
            self._quit = True
            self._growth.close()
            self._events.close()

    def _turn(self) -> None:
        try:
            seconds = self._poll()
            if not self._quit and self._events.wait(seconds):  # a callback that forked returns in the child as well
                self._monitor._count_event()
        except BaseException as error:  # nobody else would poll
            self._last = log_new(error, self._last)
            self._ended.wait(_AFTER_ERROR)

    def _poll(self) -> float:
        """Return the seconds to the next poll."""
        waiting, grew = self._growth.begin()
        try:
            self._monitor.poll()
            self._growth.arm(self._monitor._headroom())
            seconds = self._monitor._next_interval()
        except BaseException as error:  # SystemExit of a callback too
            self._last = log_new(error, self._last)
            seconds = self._monitor.interval or _AFTER_ERROR
        finally:
            self._growth.end(waiting)
        return min(seconds, AGAIN) if grew else seconds

    def wake(self) -> None:
        """Poll now."""
        self._events.wake()

    def ask(self) -> bool:
        """Poll now, for a thread that waits a little for it; whether it has."""
        return self._growth.ask()

    def _end(self) -> None:
        self._quit = True
        self._growth.close()
        self._events.retire()
        self._ended.set()
        self._events.wake()

    def stop(self, timeout: float | None = None) -> None:
        """End the thread, and wait until it has; from inside it only the former."""
        self._end()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        _running.discard(self)

    def abandon(self) -> None:
        """In the child: the thread is not here; what it had open is."""
        self._quit = True
        self._growth.close()
        self._events.abandon()
        _running.discard(self)


class LoopRunner:
    """An event loop that polls at its turns."""

    def __init__(self, monitor: "PressureMonitor", loop: "asyncio.AbstractEventLoop") -> None:
        self._monitor, self._loop = monitor, loop
        self._thread = threading.get_ident()
        self._quit = False
        self._turning = threading.Lock()  # held while it polls
        self._last = ""
        self._timer: asyncio.TimerHandle | None = None
        self._events = Events(monitor._watched)
        self._growth = GrowthWatch(self, monitor._is_inside)
        self._fd = self._events.fileno()
        try:
            self._watch()
            loop.call_soon(self._turn)
        except BaseException:
            self._quit = True
            try:
                self._end()
            finally:
                self._events.close()
            raise

    def _watch(self) -> None:
        if self._fd >= 0:
            try:
                self._loop.add_reader(self._fd, self._event)
            except NotImplementedError:  # Windows' proactor
                self._fd = -1

    @property
    def alive(self) -> bool:
        """Whether it polls."""
        return not self._quit and not self._loop.is_closed()

    @property
    def polls(self) -> bool:
        """Whether nothing keeps it from polling; the loop may stand."""
        return not self._quit and self._loop.is_running()

    @property
    def elsewhere(self) -> bool:
        """Whether it polls while this thread sleeps."""
        return self.polls and threading.get_ident() != self._thread

    def _turn(self) -> None:
        with self._turning:
            if not self._quit:
                self._poll()

    def _event(self) -> None:
        with self._turning:
            if not self._quit and self._events.take():
                self._monitor._count_event()
                self._poll()

    def _poll(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        waiting, grew = self._growth.begin()
        seconds = self._monitor.interval or _AFTER_ERROR
        try:
            self._events.calm()
            self._monitor.poll()
            self._growth.arm(self._monitor._headroom())
            seconds = self._monitor._next_interval()
        except Exception as error:
            self._last = log_new(error, self._last)
        finally:
            self._growth.end(waiting)
            if not self._quit:
                seconds = self._events.nap(min(seconds, AGAIN) if grew else seconds)
                self._timer = self._loop.call_later(seconds, self._turn)

    def wake(self) -> None:
        """Poll soon."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._turn)

    def ask(self) -> bool:
        """Poll for a thread that waits a little for it; at once if it is the loop's own. Whether it has."""
        if self.elsewhere:
            return self._growth.ask()
        self._monitor.poll()
        return True

    def stop(self, timeout: float | None = None) -> None:
        """Poll no more, and wait for a poll that another thread is in."""
        self._quit = True
        self._growth.close()
        self._events.retire()
        if threading.get_ident() == self._thread or self._loop.is_closed():
            self._end()
            return
        try:
            self._loop.call_soon_threadsafe(self._end)
        except RuntimeError:  # closed meanwhile
            self._end()
        if self._turning.acquire(timeout=-1 if timeout is None else timeout):
            self._turning.release()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._fd >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        self._fd = -1
        self._events.close()

    def abandon(self) -> None:
        """In the child: the loop is the parent's."""
        self._quit = True
        self._growth.close()
        self._fd = -1
        self._events.abandon()


# ---- fork and exit ----

_monitors: "weakref.WeakSet[PressureMonitor]" = weakref.WeakSet()
_running: set[ThreadRunner] = set()


def watch_forks(monitor: "PressureMonitor") -> None:
    """From now on a fork finds it."""
    _monitors.add(monitor)


def _after_fork() -> None:
    events.after_fork()
    for monitor in list(_monitors):
        monitor._after_fork()


def _at_exit() -> None:
    end = time.monotonic() + _GRACE
    for runner in list(_running):
        runner.stop(max(0.0, end - time.monotonic()))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
