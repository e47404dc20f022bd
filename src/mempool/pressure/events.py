"""The descriptors of event sources, polled together with one that wakes the monitor.

    source.fileno() --+
    source.fileno() --+--> one epoll (or poll) --> wait(), take()
    wake pipe --------+

An epoll instance is a descriptor itself, readable when any of those in it has what it waits for: so an event loop, which knows
readable and writable only, watches POLLPRI of the kernel's pressure files too. Where there is no epoll, a thread uses
`select.poll`, and where there is neither, the monitor is woken by a lock and polls at its interval.

A source whose watch breaks is closed, named with the reason, and opened again after a while; one that reports again and again
without end is left out until the next poll that is due by time.
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
_MOST_EVENTS = 100
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


class Events:
    """All that can wake one monitor. One thread waits; any thread wakes."""

    def __init__(self, watched: Sequence[Watched]) -> None:
        self._sources = [(one, one.source) for one in watched if isinstance(one.source, EventSource)]
        self._fds: dict[int, tuple[Watched, EventSource]] = {}
        self._broken: dict[Watched, float] = {}
        self._noisy: dict[Watched, int] = {}
        self._lock = threading.Lock()
        self._lock.acquire()
        self._guard = threading.RLock()  # of the pipe: its number must not become another file's while it is written to
        self._poller = _make_poller()
        self._pipe: tuple[int, int] | None = None
        try:
            self._open_pipe()
        except BaseException:
            self.close()
            raise
        for watched_one, source in self._sources:
            self._open(watched_one, source)

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
            source.open()
            self._register(watched, source)
        except Exception as error:
            self._drop(watched, source, error)
        else:
            watched.events = "watched"

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
        with suppress(Exception):  # it is broken already, and what broke it is shown
            source.close()
        watched.events = f"{type(error).__name__}: {error}"
        self._broken[watched] = time.monotonic() + _REOPEN

    # ---- waiting ----

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until an event says that memory is short (True), or until woken."""
        if self._poller is None:
            self._lock.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))
            return False
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            short, woken = self._take(self._poller.poll(min(left, _LONGEST)))
            if short or woken:
                return short
        self.calm()
        return False

    def take(self) -> bool:
        """Take in what there is, without waiting; whether memory is short."""
        return self._take(self._poller.poll(0) if self._poller is not None else [])[0]

    def calm(self) -> None:
        """Listen again to what reported too often, and open again what broke long ago: a poll is due by time."""
        self._noisy.clear()
        now = time.monotonic()
        for watched, source in self._sources:
            if watched in self._broken and now >= self._broken[watched]:
                del self._broken[watched]
                self._open(watched, source)
            elif watched not in self._broken and not any(one is watched for one, _ in self._fds.values()):
                self._again(watched, source)

    def _again(self, watched: Watched, source: EventSource) -> None:
        try:
            self._register(watched, source)
        except Exception as error:
            self._drop(watched, source, error)

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
        self._noisy[watched] = self._noisy.get(watched, 0) + 1
        if self._noisy[watched] > _MOST_EVENTS:
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

    def wake(self) -> None:
        """Let `wait` return."""
        if self._poller is None:
            with suppress(RuntimeError):
                self._lock.release()
            return
        with self._guard, suppress(BlockingIOError):  # full: it is awake
            if self._pipe is not None:
                os.write(self._pipe[1], b"\0")

    def close(self) -> None:
        """Close all; idempotent."""
        for watched, source in self._sources:
            with suppress(Exception):  # nothing follows that could suffer
                source.close()
            watched.events = "not started"
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
