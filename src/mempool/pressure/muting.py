"""Who wants no callback to begin.

What a `with` holds is a lock, and nothing else is written down: it is taken and let go in C, where Ctrl-C cannot come in between. A
function in Python may be interrupted before its first line, and then what it was to take back stays for ever.
"""

import threading
import weakref
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _thread import LockType

__all__ = ["Mutes"]


class Mutes:
    """All who are inside `suppressed`; true while anybody is."""

    def __init__(self) -> None:
        self._all: dict[weakref.ref[LockType], int | None] = {}  # and in which thread; None: in one of a parent

    def one(self) -> AbstractContextManager[object]:
        """Return what mutes while it is held; once it is gone, nothing is left of it."""
        lock = threading.Lock()
        self._all[weakref.ref(lock, self._all.pop)] = (
            threading.get_ident()
        )  # `pop` is C: an interrupt in it would be lost
        return lock

    def __bool__(self) -> bool:
        for mute in list(self._all):  # not its items: to make pairs may call the collector, and that drop one
            thread, lock = self._all.get(mute), mute()
            if thread is not None and lock is not None and lock.locked():
                return True
        return False

    def after_fork(self) -> None:
        """In the child the others' threads are not there to leave it."""
        for mute in list(self._all):
            if self._all.get(mute) != threading.get_ident():
                self._all[mute] = None
