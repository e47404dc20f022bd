"""Caches that give memory back: bounded by bytes, weak, aware of views and of pressure."""

from mempool.cache.cache import Cache
from mempool.cache.records import CacheFull, CacheStats, Cause

__all__ = ["Cache", "CacheFull", "CacheStats", "Cause"]
