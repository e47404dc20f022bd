"""A lease of shared memory."""

from typing import Any, NoReturn, final

from mempool._core import _SharedBase, _SharedHold
from mempool.errors import MempoolError
from mempool.shared import message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mempool.shared.pool import SharedPool

__all__ = ["SegmentLost", "SharedBuffer"]


class SegmentLost(MempoolError, OSError):
    """A shared buffer arrived, but its memory could not be had: its owner is gone, or has lent it to others meanwhile."""


@final
class SharedBuffer(_SharedBase):
    """A lease of memory that other processes can see: writable, contiguous bytes. Made by `SharedPool.acquire`.

    It is pickled as a place where its memory can be found, never as bytes: so it goes through the queues, pipes and pools of
    `multiprocessing` and `concurrent.futures` at the same price whatever its size. Both sides then see the same bytes.

    The block returns to its pool when nothing sees it any more: no buffer and no view (a memoryview, an array) in any process,
    and no message on its way. A process that ends, however it ends, sees nothing any more.

    Using a released buffer raises `ValueError`; using one whose memory could not be had on arrival raises `SegmentLost`.

    Notes
    -----
    A `multiprocessing.Queue` pickles in a thread of its own, later: drop a buffer after ``put``, do not release it.

    Examples
    --------
    >>> from mempool.shared import SharedPool
    >>> with SharedPool() as pool, pool.acquire("1MiB") as b:
    ...     b[:5] = b"hello"
    ...     bytes(b[:5]), len(b)
    (b'hello', 1048576)
    """

    __slots__ = ("_lost", "_pool")
    _pool: "SharedPool | None"
    _lost: str

    def __init__(self) -> None:
        raise TypeError("a SharedBuffer is made by SharedPool.acquire()")

    @property
    def pool(self) -> "SharedPool | None":
        """The pool it came from, also after release; None in processes that received it."""
        return self._pool

    @property
    def lost(self) -> bool:
        """True if its memory could not be had when it arrived."""
        return bool(self._lost)

    def _why_released(self) -> Exception:
        return SegmentLost(self._lost) if self._lost else super()._why_released()

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return receive, tuple(message.send(self._held()))  # plain, as it is half as long

    def __copy__(self) -> NoReturn:
        raise TypeError("a SharedBuffer cannot be copied: use another name for it, or tobytes()")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("a SharedBuffer cannot be copied: use another name for it, or tobytes()")

    def __repr__(self) -> str:
        if self._lost:
            return f"<mempool.shared.SharedBuffer, lost: {self._lost}>"
        if self.released:
            return "<mempool.shared.SharedBuffer, released>"
        origin = "of another process" if self._pool is None else f"of pool {self._pool.name!r}"
        return f"<mempool.shared.SharedBuffer of {self.nbytes} bytes at {self.address:#x}, {origin}>"


def make(hold: _SharedHold | None, pool: "SharedPool | None", lost: str = "") -> SharedBuffer:
    """Return a buffer over what a hold keeps."""
    buffer = SharedBuffer.__new__(SharedBuffer)
    buffer._pool, buffer._lost = pool, lost
    if hold is not None:
        buffer._attach(hold)
    return buffer


def receive(*arguments: Any) -> SharedBuffer:
    """Unpickle. Never fails for want of the memory: an error here would end the threads that pools read their results with."""
    try:
        hold, pool = message.receive(message.Message(*arguments))
    except message.Lost as error:
        return make(None, None, str(error))
    return make(hold, pool)
