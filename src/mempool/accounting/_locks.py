"""A lock that a forked child finds open: whichever thread held it is not there."""

import os
import threading
from contextlib import AbstractContextManager

__all__ = ["ProcessLock"]


class ProcessLock:
    """A reentrant lock of one process: ``with lock():``.

    What the `with` holds is a lock itself, taken and let go in C. A method in Python may be interrupted by Ctrl-C just after it
    took the lock, or before it let go; then no other thread would have it ever again.

    A hook at fork was not taken: it would have to know all locks there are.
    """

    __slots__ = ("_lock", "_process")

    def __init__(self) -> None:
        self._lock, self._process = threading.RLock(), os.getpid()

    def __call__(self) -> AbstractContextManager[object]:
        """Return the lock of this process."""
        if self._process != os.getpid():  # nobody else is here yet: a child begins with one thread
            self._lock, self._process = threading.RLock(), os.getpid()
        return self._lock
