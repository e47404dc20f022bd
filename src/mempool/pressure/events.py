"""The descriptors of event sources, polled together with one that wakes the monitor.

    source.fileno() --+
    source.fileno() --+--> one epoll (or poll) --> wait(), take()
    wake pipe --------+

An epoll instance is a descriptor itself, readable when any of those in it has what it waits for: so an event loop, which knows
readable and writable only, watches POLLPRI of the kernel's pressure files too. Where there is no epoll, a thread uses
`select.poll`, and where there is neither, the monitor is woken by a lock and polls at its interval.

A source whose watch breaks is closed, named with the reason, and opened again after a while; one that reports again and again
without end is left out for a while. Who waits, wakes for that.

A source is opened by one at a time, for it has one descriptor; the claim on it is that one's to close. What a monitor that was told
to stop still has open, the next takes over: a thread that ends late finds that its sources are no longer its own. The source of
another monitor is not watched, only read.
"""

import os
import select
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from math import ceil
from typing import Protocol

from mempool.pressure.sources.base import EventSource
from mempool.pressure.watching import Watched

__all__ = ["Events"]

_POLLIN = 1
_REOPEN = 30.0
_MOST_EVENTS = 100  # within a window
_WINDOW = 0.5
_QUIET = 5.0
_LONGEST = 3600.0


class Poller(Protocol):
    """What epoll and poll share, in seconds."""

    def register(self, fd: int, eventmask: int, /) -> None: ...
    def unregister(self, fd: int, /) -> None: ...
    def poll(self, timeout: float, /) -> list[tuple[int, int]]: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class _Poll:
    """`select.poll` with the face of an epoll."""

    def __init__(self) -> None:
        poll = select.poll()
        self.register, self.unregister, self._poll = poll.register, poll.unregister, poll.poll

    def poll(self, timeout: float, /) -> list[tuple[int, int]]:
        return self._poll(ceil(timeout * 1000))

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """There is nothing to close."""


def _make_poller() -> Poller | None:
    if hasattr(select, "epoll"):
        return select.epoll()
    return _Poll() if hasattr(select, "poll") else None


_claims: dict[int, tuple["Events", Watched]] = {}  # by the id of the source, which its Events keep alive
_claiming = threading.RLock()


def after_fork() -> None:
    """In the child: nobody holds the lock."""
    global _claiming
    _claiming = threading.RLock()


class Events:
    """All that can wake one monitor. One thread waits; any thread wakes."""

    def __init__(self, watched: Sequence[Watched]) -> None:
        self._sources = [(one, one.source) for one in watched if isinstance(one.source, EventSource)]
        self._fds: dict[int, tuple[Watched, EventSource]] = {}
        self._away: dict[Watched, float] = {}  # what is opened, or listened to, again, and when
        self._noise: dict[Watched, tuple[float, int]] = {}
        self._retired = False
        self._lock = threading.Lock()
        self._lock.acquire()
        self._guard = threading.RLock()  # of the pipe: its number must not become another file's while it is written to
        self._poller = _make_poller()
        self._pipe: tuple[int, int] | None = None
        try:
            self._open_pipe()
            for watched_one, source in self._sources:
                self._open(watched_one, source)
        except BaseException:  # or their sources would be another monitor's for ever
            self.close()
            raise

    def _open_pipe(self) -> None:
        if self._poller is None:
            return
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        self._poller.register(self._pipe[0], _POLLIN)

    def fileno(self) -> int:
        """Return the descriptor that is readable when `take` has something to take; -1: there is none."""
        return -1 if self._poller is None else self._poller.fileno()

    # ---- sources ----

    def _open(self, watched: Watched, source: EventSource) -> None:
        try:
            if self._poller is None:
                raise OSError("this system cannot poll descriptors")
            with _claiming:
                self._claim(watched, source)
                source.open()
            self._register(watched, source)
        except Exception as error:
            self._drop(watched, source, error)
        else:
            watched.events = "watched"

    def _claim(self, watched: Watched, source: EventSource) -> None:
        owner, by = _claims.get(id(source), (self, watched))
        if owner is self and by is not watched:
            raise OSError("this monitor watches it already")
        if owner is not self and not owner._retired:
            raise OSError("another monitor watches it")
        _claims[id(source)] = (self, watched)

    def _owns(self, watched: Watched, source: EventSource) -> bool:
        return _claims.get(id(source)) == (self, watched)

    def _close_own(self, watched: Watched, source: EventSource, state: str) -> None:
        """Close it and say so, unless it is another's."""
        with _claiming:
            if self._owns(watched, source):
                with suppress(Exception):  # what broke it is shown already, and nothing follows that could suffer
                    source.close()
                del _claims[id(source)]
                watched.events = state

    def _register(self, watched: Watched, source: EventSource) -> None:
        fd = source.fileno()
        if fd >= 0 and self._poller is not None:
            self._poller.register(fd, source.poll_events)
            self._fds[fd] = (watched, source)

    def _unregister(self, watched: Watched) -> None:
        for fd in [fd for fd, (one, _) in self._fds.items() if one is watched]:
            del self._fds[fd]
            with suppress(OSError, KeyError, ValueError):  # closed by its source, and so gone from the poller
                if self._poller is not None:
                    self._poller.unregister(fd)

    def _drop(self, watched: Watched, source: EventSource, error: Exception) -> None:
        self._unregister(watched)
        if not self._retired:
            watched.events = f"{type(error).__name__}: {error}"
        self._close_own(watched, source, watched.events)
        self._away[watched] = time.monotonic() + _REOPEN

    # ---- waiting ----

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until an event says that memory is short (True), or until woken."""
        if self._poller is None:
            self._lock.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))
            return False
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            short, woken = self._take(self._poller.poll(min(self.nap(left), _LONGEST)))
            if short or woken:
                return short
            self.calm()
        return False

    def nap(self, seconds: float) -> float:
        """Return how long of so many seconds to sleep until something is to be opened again."""
        if not self._away:
            return seconds
        return min(seconds, max(0.0, min(self._away.values()) - time.monotonic()))

    def take(self) -> bool:
        """Take in what there is, without waiting; whether memory is short."""
        return self._take(self._poller.poll(0) if self._poller is not None else [])[0]

    def calm(self) -> None:
        """Listen again to what reported too often a while ago, and open again what broke."""
        now = time.monotonic()
        for watched, source in self._sources:
            if now < self._away.get(watched, now):
                continue
            if self._away.pop(watched, None) is not None and not self._owns(watched, source):
                self._open(watched, source)
            elif self._owns(watched, source) and not any(one is watched for one, _ in self._fds.values()):
                self._again(watched, source)

    def _again(self, watched: Watched, source: EventSource) -> None:
        try:
            self._register(watched, source)
        except Exception as error:
            self._drop(watched, source, error)
        else:
            watched.events = "watched"

    def _take(self, ready: list[tuple[int, int]]) -> tuple[bool, bool]:
        short = woken = False
        for fd, mask in ready:
            if self._pipe is not None and fd == self._pipe[0]:
                woken = True
                with suppress(BlockingIOError):
                    os.read(fd, 4096)
            elif fd in self._fds:
                short |= self._handle(fd, mask)
        return short, woken

    def _handle(self, fd: int, mask: int) -> bool:
        watched, source = self._fds[fd]
        if not self._owns(watched, source) or self._is_noisy(watched):
            self._unregister(watched)
            return False
        try:
            short = source.handle(mask)
            if source.fileno() != fd:
                self._unregister(watched)
                self._register(watched, source)
        except Exception as error:
            self._drop(watched, source, error)
            return True
        return bool(short)

    def _is_noisy(self, watched: Watched) -> bool:
        """Count one event; whether that is one too many, so that it is left out."""
        now = time.monotonic()
        since, count = self._noise.get(watched, (now, 0))
        since, count = (since, count + 1) if now - since < _WINDOW else (now, 1)
        self._noise[watched] = since, count
        if count <= _MOST_EVENTS:
            return False
        del self._noise[watched]
        self._away[watched] = now + _QUIET
        watched.events = f"left out for {_QUIET:g} s: it reported {count} times within {_WINDOW:g} s"
        return True

    def wake(self) -> None:
        """Let `wait` return."""
        if self._poller is None:
            with suppress(RuntimeError):
                self._lock.release()
            return
        with self._guard, suppress(BlockingIOError):  # full: it is awake
            if self._pipe is not None:
                os.write(self._pipe[1], b"\0")

    def retire(self) -> None:
        """Leave the sources to whoever opens them next; what is still its own is closed by `close`."""
        self._retired = True

    def close(self) -> None:
        """Close all; idempotent."""
        self._retired = True
        for watched, source in self._sources:
            self._close_own(watched, source, "not started")
        self._fds.clear()
        with self._guard:
            pipe, self._pipe = self._pipe, None
            for end in pipe or ():
                os.close(end)
        if self._poller is not None:
            self._poller.close()

    def abandon(self) -> None:
        """Close all in the child of a fork, where a thread that is not here may hold the lock."""
        self._guard = threading.RLock()
        self.close()
