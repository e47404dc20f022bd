"""What the tests of mempool.io share: content that tells its place, descriptors that are counted, pools that must have all back."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mempool import BufferPool
from support import check_identities, until

DATA = np.random.default_rng(0).bytes(1_000_003)

posix = pytest.mark.skipif(os.name == "nt", reason="pipes, signals and /dev of POSIX")
linux = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="/proc of Linux")


def make(folder: Path, content: bytes = DATA, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()


@contextmanager
def all_back(pool: BufferPool) -> Iterator[None]:
    """Afterwards nothing is lent, and no descriptor more is open. What other tests left as garbage goes before."""
    gc.collect()
    before, dropped = descriptors(), pool.stats().dropped
    yield
    until(lambda: descriptors() <= before, "the end of a descriptor")
    until(lambda: not pool.stats().live, "the end of a lease")
    stats = pool.stats()
    assert (stats.live, stats.in_use, stats.retired, stats.dropped) == (0, 0, 0, dropped)
    check_identities(stats)


class Alarm(Exception):
    """Raised by a signal handler."""


@contextmanager
def alarms(action: Callable[[], object] | None = None, seconds: float = 0.01) -> Iterator[None]:
    """Signals that arrive again and again, each some time after the last was handled; the handler does something, or raises
    `Alarm` where it finds the program at one place twice: there it waits. On its way to the wait a slow machine may be for long.

    One that comes just before a call of the OS ends no wait in it, and Python is not told: so another follows a second later.
    """
    over, place = False, (None, -1)

    def handler(number: int, frame: Any) -> None:
        nonlocal over, place
        if over:
            return
        if action is not None:
            action()
        elif place == (frame, frame.f_lasti):
            over = True
            raise Alarm
        else:
            place = frame, frame.f_lasti
        if not over:
            signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)

    old = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
        yield
    finally:
        over, place = True, (None, -1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            try:
                os.close(end)
            except OSError:
                continue


def feed(fd: int, content: bytes, step: int = 30_000) -> None:
    """Write in pieces, then close."""
    for start in range(0, len(content), step):
        piece = content[start : start + step]
        while piece:
            piece = piece[os.write(fd, piece) :]
    os.close(fd)
