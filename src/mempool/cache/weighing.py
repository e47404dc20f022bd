"""What a value keeps in memory: how many bytes, and whose death frees them."""

from mempool.cache._policies import anchor, real_bytes

__all__ = ["anchor", "real_bytes"]
