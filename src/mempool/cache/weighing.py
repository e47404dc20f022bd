"""Real bytes of a value."""

import sys

__all__ = ["real_bytes"]


def real_bytes(value: object) -> int:
    """Return the bytes that a value keeps in memory."""
    return sys.getsizeof(value)
