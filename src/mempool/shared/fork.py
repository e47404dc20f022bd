"""What a fork does to shared memory.

A child of fork sees what its parent had lent here at that moment. Blocks that the parent received carry a lock of their own, which
the child inherits with the mapping. Blocks of the parent's own pools do not: all would pay for locks, also those who never fork. So
each gets a descriptor with a lock now, which the child keeps as long as it sees the block. The child's pools begin empty.
"""

import os

from mempool._core import _share_block
from mempool.shared.books import Books
from mempool.shared.registry import here
from mempool.shared.segment import Ref, reopen

__all__: list[str] = []

_frozen: list[Books] = []
_guards: list[tuple[Ref, int]] = []


def _before() -> None:
    here.lock.acquire()
    for books in list(here.books):
        books.lock.acquire()
        _frozen.append(books)
    for books in _frozen:
        for ref in list(books.refs.values()):
            if ref() is not None:
                ref.block.forked = True
                _guard(ref)


def _guard(ref: Ref) -> None:
    block = ref.block
    try:
        fd = reopen(block.segment.memory.fd)
    except OSError:
        block.spoiled = True  # as good as a lock: this block is never lent again
        return
    if _share_block(fd, block.index):
        _guards.append((ref, fd))
    else:
        os.close(fd)
        block.spoiled = True


def _after_in_parent() -> None:
    while _guards:
        os.close(_guards.pop()[1])
    while _frozen:
        _frozen.pop().lock.release()
    here.lock.release()


def _after_in_child() -> None:
    while _guards:
        ref, fd = _guards.pop()
        hold = ref()
        if hold is None:
            os.close(fd)
        else:
            hold.keep(fd)
    books = _frozen[:]
    _frozen.clear()
    here.__init__()  # type: ignore[misc]
    for one in books:
        for segment in one.segments.values():
            segment.blocks = []  # so that what is idle goes now, and not with the collector
        one.clear()
    here.books.update(books)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
