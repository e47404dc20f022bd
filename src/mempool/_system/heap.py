"""What the allocators below Python say is in use: exact counters that tracing does not disturb, where there are any."""

import sys
from collections.abc import Callable
from functools import cache

__all__ = ["malloc_counter", "object_counter"]

_PROBES = 64
_LARGE = 4096  # beyond what Python's own allocator serves, below what gets a mapping of its own


def object_counter() -> Callable[[], int] | None:
    """Return a function that counts the blocks in use by Python's own allocator; None where it serves nothing.

    Notes
    -----
    Blocks of up to 512 bytes are counted, on free-threaded builds those of any size. With ``PYTHONMALLOC=malloc`` there are none.
    """
    read = sys.getallocatedblocks
    before = read()
    probes = [object() for _ in range(_PROBES)]
    return read if read() - before >= len(probes) // 2 else None


def malloc_counter() -> Callable[[], int] | None:
    """Return a function that tells the bytes lent by the C library's ``malloc``; None where that cannot be told.

    Notes
    -----
    glibc 2.33 and later (``mallinfo2``). Another allocator that was loaded before it is found out by a trial, and None is returned.
    """
    read = _mallinfo()
    if read is None:
        return None
    before = read()
    probes = [bytearray(_LARGE) for _ in range(_PROBES)]
    return read if read() - before >= _LARGE * len(probes) // 2 else None


@cache
def _mallinfo() -> Callable[[], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        import ctypes

        names = (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
        info = type("Info", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in names]})
        function = ctypes.CDLL(None).mallinfo2
    except (ImportError, OSError, AttributeError):
        return None
    function.restype, function.argtypes = info, ()

    def read() -> int:
        found = function()
        return int(found.uordblks + found.hblkhd)

    return read
