"""Pickles whose large parts are never copied: frames of protocol 5.

`dumps` gives ``[pickle, buffer, buffer, ...]``: the buffers are views of the memory that the object has. Any transport may carry
them. `loads` uses the buffers as they came, or puts them into leases of a pool.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from mempool._core import Buffer, BufferPool, _lease_of_ours

if TYPE_CHECKING:
    from typing_extensions import Buffer as _BytesLike

__all__ = ["dumps", "loads"]

_PROTOCOL = 5


def dumps(obj: object) -> list[bytes | memoryview]:
    """Pickle an object; what supports protocol 5 (arrays, `Buffer`, Arrow, pandas) leaves its bytes where they are.

    Parameters
    ----------
    obj : object
        Anything that can be pickled.

    Returns
    -------
    list of bytes and memoryview
        The pickle itself, as `bytes`, then a flat memoryview for each buffer, in order. The views keep the memory of the object:
        what changes it before the frames are sent changes them too. Ready for ``socket.sendmsg``, ``os.writev`` or
        ``writer.writelines``; the other side has to know the length of each.

    Raises
    ------
    pickle.PicklingError, TypeError, AttributeError
        The object cannot be pickled.

    Examples
    --------
    >>> import mempool, numpy
    >>> frames = mempool.pickle.dumps({"weights": numpy.arange(1000.0)})
    >>> [memoryview(frame).nbytes > 1000 for frame in frames]
    [False, True]
    >>> mempool.pickle.loads(frames)["weights"].sum()
    np.float64(499500.0)
    """
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(obj, _PROTOCOL, buffer_callback=buffers.append)
    return [head, *(buffer.raw() for buffer in buffers)]


def loads(frames: Iterable[_BytesLike], *, pool: BufferPool | None = None) -> Any:
    """Make the object that `dumps` took apart.

    A pickle may run any code while it is loaded: load none that you do not trust.

    Parameters
    ----------
    frames : iterable of bytes-like
        The pickle, then its buffers, in order, as `dumps` gave them.
    pool : BufferPool, optional
        None: the object uses the frames themselves, without a copy (a frame of `bytes` makes a read-only array). Otherwise each
        buffer is copied into a lease of this pool, writable, which ends with the object that uses it.

    Returns
    -------
    object
        It keeps the frames, or the leases, as long as it needs them.

    Raises
    ------
    ValueError
        There is no frame, or there are more than the pickle asks for.
    pickle.UnpicklingError, EOFError
        There are too few, or the first is no pickle, or cut off.
    BufferError
        A frame is not contiguous.
    PoolExhausted, AccountLimitExceeded
        The pool has no room; nothing stays lent.
    """
    if pool is not None and not isinstance(pool, BufferPool):
        raise TypeError(f"pool must be a BufferPool or None, not {pool!r}")
    rest = iter(frames)
    try:
        head = next(rest)
    except StopIteration:
        raise ValueError("there are no frames: the first has to be the pickle") from None
    obj = pickle.loads(head, buffers=rest if pool is None else _lent(rest, pool))
    for surplus in rest:
        raise ValueError(
            f"more frames than the pickle asks for: one of {memoryview(surplus).nbytes} bytes is left over"
        )
    return obj


def _lent(frames: Iterator[_BytesLike], pool: BufferPool) -> Iterator[Buffer]:
    """Copy each frame into a lease. No name keeps one: an error that comes with a later frame would keep it, too."""
    for frame in frames:
        yield _copied(frame, pool)


def _copied(frame: _BytesLike, pool: BufferPool) -> Buffer:
    with pickle.PickleBuffer(frame).raw() as data:
        buffer = _lease_of_ours(pool, data.nbytes)
        buffer[:] = data
    return buffer
