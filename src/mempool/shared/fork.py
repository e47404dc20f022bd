"""What a fork does to shared memory.

A child of fork sees what its parent had lent here at that moment. Blocks that the parent received carry a lock of their own, which
the child inherits with the mapping. Blocks of the parent's own pools do not: all would pay for locks, also those who never fork. So
each gets a descriptor with a lock now, which the child keeps as long as it sees the block. The child's pools begin empty.

Python forks also if a hook was interrupted. So the hooks are compiled, where no signal handler runs; what they call may be called
again, and goes on where it stopped.
"""

import functools
import os
import threading

from mempool._core import (
    _after_fork_in_child,
    _after_fork_in_parent,
    _before_fork,
    _give_locks,
    _SharedGuard,
    _take_lock,
)
from mempool.shared.registry import here
from mempool.shared.segment import Ref

__all__: list[str] = []

_Guards = dict[int, tuple[Ref, _SharedGuard | None]]

_forks: list[tuple[int, list[threading.RLock], _Guards]] = []  # thread, locks, guards; a handler may fork within a fork


def _before() -> None:
    me = threading.get_ident()
    locks, guards = next((locks, guards) for thread, locks, guards in reversed(_forks) if thread == me)
    _lock_all(locks)
    for books in list(here.books):
        for ref in list(books.refs.values()):
            if id(ref) not in guards and ref() is not None:
                _guard(ref, guards)


def _lock_all(locks: list[threading.RLock]) -> None:
    """Have all locks at once. Nobody waits while having some: who has the missing one may wait for one of these."""
    while True:
        missing = None if here.lock in locks or _take_lock(here.lock, locks) else here.lock
        for books in list(here.books) if missing is None else ():
            if books.lock not in locks and not _take_lock(books.lock, locks):
                missing = books.lock
                break
        if missing is None:
            return
        _give_locks(locks)
        with missing:
            pass


def _guard(ref: Ref, guards: _Guards) -> None:
    block = ref.block
    block.forked = True
    try:
        guards[id(ref)] = ref, _SharedGuard(block.segment.memory, block.index)
    except OSError:
        block.spoiled = True  # as good as a lock: this block is never lent again
        guards[id(ref)] = ref, None


def _in_child(guards: _Guards) -> None:
    for ref, guard in list(guards.values()):
        hold = ref()
        if hold is not None and guard is not None:
            hold.keep(guard)
    here.begin({books.current() for books in list(here.books)})


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=functools.partial(_before_fork, _forks, _before),
        after_in_parent=functools.partial(_after_fork_in_parent, _forks),
        after_in_child=functools.partial(_after_fork_in_child, _forks, _in_child),
    )
