"""Files in memory, over blocks of a pool."""

from mempool._core import BytesStream

__all__ = ["BytesStream"]
