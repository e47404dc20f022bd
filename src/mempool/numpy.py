"""NumPy's own arrays, over a pool: what `a * b`, `copy` and `concatenate` allocate comes from memory that is used again.

Arrays of 32 KiB and more take their memory from the pool; smaller ones stay with NumPy's own cache. An array keeps its memory, not
the pool: it outlives the block, `uninstall`, and the closing of the pool.
"""

from contextlib import AbstractContextManager

from mempool._core import BufferPool, _install_pool, _installed_pool, _uninstall_pool, _use_pool

__all__ = ["install", "installed", "uninstall", "use_pool"]


def use_pool(pool: BufferPool) -> AbstractContextManager[BufferPool, None]:
    """Have arrays that NumPy makes inside a ``with`` block take their memory from a pool.

    Parameters
    ----------
    pool : BufferPool
        Closed later, it lends no more: new arrays then take NumPy's own memory.

    Returns
    -------
    context manager
        ``with use_pool(pool) as pool``. It holds for the current context: this thread, or this asyncio task and the tasks
        that it starts inside the block. It may be entered again after it was left.

    Raises
    ------
    TypeError
        `pool` is no `BufferPool`.
    ValueError
        The pool is closed.
    RuntimeError
        Entered twice at a time, or left in a context that knows nothing of it. In a task or context that began inside the block it
        can be left, but ends there alone.

    Notes
    -----
    At the limit of the pool, or of an account, NumPy raises `MemoryError`. Blocks may be nested; the innermost counts. The memory
    goes back to the pool when the array, and all its views, are gone.

    Examples
    --------
    >>> import numpy as np
    >>> import mempool
    >>> from mempool.numpy import use_pool
    >>> pool = mempool.BufferPool(name="arrays")
    >>> with use_pool(pool):
    ...     total = (np.ones(1_000_000) * 2.0 + 1.0).sum()
    >>> float(total), pool.stats().live, pool.stats().acquires > 0
    (3000000.0, 0, True)
    """
    return _use_pool(pool)


def install(pool: BufferPool) -> None:
    """Have arrays in all threads, those that run and those started later, take their memory from a pool.

    Parameters
    ----------
    pool : BufferPool
        It is kept until `uninstall`, or until another is installed in its place.

    Raises
    ------
    TypeError
        `pool` is no `BufferPool`.
    ValueError
        The pool is closed.

    Notes
    -----
    A block of `use_pool`, or an allocator that was set through NumPy's C interface, counts more than this. NumPy goes on to name
    its handler ``"default_allocator"``.

    Examples
    --------
    >>> import numpy as np
    >>> import mempool, mempool.numpy
    >>> pool = mempool.BufferPool(name="arrays")
    >>> mempool.numpy.install(pool)
    >>> a = np.zeros((512, 512))
    >>> mempool.numpy.uninstall()
    >>> a.nbytes, pool.stats().live, mempool.numpy.installed()
    (2097152, 1, None)
    """
    _install_pool(pool)


def uninstall() -> None:
    """Undo `install`: new arrays take NumPy's own memory again. Arrays that are there stay valid. Idempotent."""
    _uninstall_pool()


def installed() -> BufferPool | None:
    """Return the pool that `install` was last given, or None."""
    return _installed_pool()
