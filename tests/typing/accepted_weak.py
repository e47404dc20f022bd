"""Weak caches as programs use them; mypy --strict accepts each line."""

from typing import assert_type
from weakref import ref

from mempool.cache import Cause, WeakCache, WeakCacheStats, WeakKeyCache


class Page:
    """A value that can be held weakly."""


def listen(key: str, page: Page | None, cause: Cause) -> None:
    """Hear of what left."""


pages: WeakCache[str, Page] = WeakCache(keep_bytes="64 MiB", keep_items=100, ttl="5m", on_evict=listen, name="pages")
pages["front"] = Page()
assert_type(pages["front"], Page)
assert_type(pages.copy(), WeakCache[str, Page])
assert_type(pages | {"back": Page()}, WeakCache[str, Page])
assert_type(pages.popitem(), tuple[str, Page])
assert_type(pages.shrink(1 << 20), int)
assert_type(pages.nbytes, int)
assert_type(pages.stats(), WeakCacheStats)

sizes: WeakKeyCache[Page, int] = WeakKeyCache(maxsize=1000, policy="lru")
page = Page()
sizes[page] = 3
assert_type(sizes[page], int)
assert_type(sizes.keyrefs(), list[ref[Page]])
for one, size in sizes.items():
    assert_type(one, Page)
    assert_type(size, int)
