"""What a value keeps in memory: how many bytes, and whose death frees them."""

from mempool import _core

__all__ = ["anchor", "real_bytes"]


def real_bytes(value: object) -> int:
    """Return the bytes that a value keeps in memory.

    Parameters
    ----------
    value : object
        For a `mempool.Buffer` or `mempool.shared.SharedBuffer` the block that it has; for a view (a memoryview, a NumPy array without
        data of its own) all of what it keeps, be it one byte of a large block; for what exports a buffer at least that; for all else
        what `sys.getsizeof` says, so for a container not what is in it. NumPy is not imported.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    TypeError, ValueError
        If its ``__sizeof__`` says what is no number of bytes; what it raises itself comes through, too.

    Examples
    --------
    >>> import mempool
    >>> buffer = mempool.acquire(5000)
    >>> real_bytes(buffer), real_bytes(buffer[:10])
    (8192, 8192)
    """
    return _core._real_bytes(value)


def anchor(value: object) -> object:
    """Return the object whose death frees the memory of a value, to be watched with a weak reference.

    Parameters
    ----------
    value : object
        What exports a buffer, or a `mempool.io.BytesStream`.

    Returns
    -------
    object
        For a buffer of this package what all its views keep; for a view the owner of the memory, or the last object on the way to
        it that can be watched. None if there is none, if the value is no such thing, or if its lease has ended.

    Examples
    --------
    >>> import mempool, weakref
    >>> buffer = mempool.acquire(5000)
    >>> watch = weakref.ref(anchor(buffer))
    >>> view = buffer[:10]
    >>> del buffer
    >>> watch() is None
    False
    >>> del view
    >>> watch() is None
    True
    """
    return _core._anchor(value)
