"""What a type checker must accept of caches, with the types that it must see. Checked, never run."""

import math
from collections.abc import MutableMapping
from typing import Any, assert_type

from mempool import Account
from mempool.cache import Cache, CacheFull, CacheStats, Cause, Namespace, NamespaceKey
from mempool.pressure import Shrinkable, register


class Pages(Cache[str, bytes]):
    def getsizeof(self, value: bytes) -> int:
        return len(value)

    def __missing__(self, key: str) -> bytes:
        self[key] = key.encode()
        return self[key]


def making() -> None:
    def gone(key: str, value: bytes, cause: Cause) -> None:
        print(key, len(value), cause.name)

    cache: Cache[str, bytes] = Cache(100, ttl="5m", policy="lru", on_evict=gone, name="pages")
    cache = Cache(max_bytes="64 MiB", getsizeof=len, clock=lambda: 0.0)
    cache = Cache(math.inf, max_bytes=1 << 20, ttl=2.5)
    assert_type(Cache[str, int](5), Cache[str, int])
    pages = Pages(max_bytes=1000)
    assert_type(pages["/"], bytes)
    mapping: MutableMapping[str, bytes] = cache
    shrinkable: Shrinkable = cache
    register(cache)
    print(mapping, shrinkable)


def using(cache: Cache[str, bytes]) -> None:
    cache["a"] = b""
    assert_type(cache["a"], bytes)
    assert_type(cache.get("a"), bytes | None)
    assert_type(cache.get("a", b""), bytes)
    assert_type(cache.get("a", 5), bytes | int)
    assert_type(cache.pop("a"), bytes)
    assert_type(cache.pop("a", None), bytes | None)
    assert_type(cache.popitem(), tuple[str, bytes])
    assert_type(list(cache), list[str])
    assert_type(list(cache.keys()), list[str])
    assert_type(list(cache.values()), list[bytes])
    assert_type(list(cache.items()), list[tuple[str, bytes]])
    assert_type("a" in cache, bool)
    assert_type(len(cache), int)
    cache.put("a", b"", ttl="5m", priority=5, tags=("t", 1, None), version=(1, 2))
    assert_type(cache.invalidate("a"), bool)
    assert_type(cache.invalidate_tag("t"), int)
    assert_type(cache.invalidate_version(3), int)
    assert_type(cache.expire(), int)
    assert_type(cache.shrink(1000), int)
    cache.resize(5)
    cache.resize(max_bytes="1 MiB")
    cache.update(a=b"")
    cache.clear()


def looking(cache: Cache[str, bytes]) -> None:
    assert_type(cache.maxsize, float)
    assert_type(cache.max_bytes, int | None)
    assert_type(cache.currsize, int)
    assert_type(cache.nbytes, int)
    assert_type(cache.pinned, int)
    assert_type(cache.policy, str)
    assert_type(cache.ttl, float | None)
    assert_type(cache.name, str)
    assert_type(cache.account, Account)
    stats = cache.stats()
    assert_type(stats, CacheStats)
    assert_type(stats.hit_ratio, float)
    assert_type(stats.evictions, int)
    error: MemoryError = CacheFull()
    print(error)


def namespaces(cache: Cache[Any, bytes], key: NamespaceKey) -> None:
    users = cache.namespace("users")
    assert_type(users, Namespace[Any, bytes])
    typed: Namespace[int, bytes] = cache.namespace("users")
    assert_type(typed[1], bytes)
    assert_type(typed.get(1), bytes | None)
    assert_type(list(typed), list[int])
    typed.put(1, b"", tags="t")
    assert_type(typed.get_or_load(1, lambda number: bytes(number)), bytes)
    assert_type(typed.invalidate(1), bool)
    assert_type(typed.cache, Cache[Any, bytes])
    assert_type(key.namespace, str)
