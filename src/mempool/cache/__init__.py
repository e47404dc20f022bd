"""Caches that give memory back: bounded by bytes, weak, aware of views and of pressure."""

from mempool.cache.cache import Cache
from mempool.cache.decorator import CacheInfo, cached
from mempool.cache.keys import hashkey, methodkey, typedkey, typedmethodkey
from mempool.cache.namespaces import Namespace, NamespaceKey
from mempool.cache.records import CacheFull, CacheStats, Cause
from mempool.cache.weak import WeakCache, WeakCacheStats
from mempool.cache.weak_keys import WeakKeyCache

__all__ = [
    "Cache",
    "CacheFull",
    "CacheInfo",
    "CacheStats",
    "Cause",
    "Namespace",
    "NamespaceKey",
    "WeakCache",
    "WeakCacheStats",
    "WeakKeyCache",
    "cached",
    "hashkey",
    "methodkey",
    "typedkey",
    "typedmethodkey",
]
