"""Zero-copy buffer pools with native speed: memory that is lent, taken back, bounded and accounted for."""

from mempool import _reclaim as _reclaim
from mempool._core import (
    TRACEMALLOC_DOMAIN,
    Account,
    Arena,
    Buffer,
    BufferPool,
    MappedArray,
    RingBuffer,
    SlabAllocator,
    acquire,
    anonymous_array,
    create_array,
    default_pool,
    guard_truncation,
    open_array,
)
from mempool._records import PoolStats, SizeClassStats, SlabStats
from mempool.errors import (
    AccountLimitExceeded,
    MappingError,
    MemoryLimitExceeded,
    MempoolError,
    PoolExhausted,
    StaleHandle,
)
from mempool.settings import configure
from mempool.settings import follow as _follow
from mempool.settings import lookup as _lookup

TYPE_CHECKING = False  # as in typing, whose import costs more than all of this
if TYPE_CHECKING:
    from collections.abc import Mapping

    from mempool import accounting as accounting
    from mempool import aio as aio
    from mempool import cache as cache
    from mempool import errors as errors
    from mempool import io as io
    from mempool import numpy as numpy
    from mempool import pickle as pickle
    from mempool import pressure as pressure
    from mempool import settings as settings
    from mempool import shared as shared
    from mempool import units as units
    from mempool.accounting.usage import memory_usage as memory_usage
    from mempool.pressure.cleanup import cleanup as cleanup
    from mempool.pressure.health import health as health

__version__ = "0.1.0"

__all__ = [
    "TRACEMALLOC_DOMAIN",
    "Account",
    "AccountLimitExceeded",
    "Arena",
    "Buffer",
    "BufferPool",
    "MappedArray",
    "MappingError",
    "MemoryLimitExceeded",
    "MempoolError",
    "PoolExhausted",
    "PoolStats",
    "RingBuffer",
    "SizeClassStats",
    "SlabAllocator",
    "SlabStats",
    "StaleHandle",
    "__version__",
    "acquire",
    "anonymous_array",
    "cleanup",
    "configure",
    "create_array",
    "default_pool",
    "guard_truncation",
    "health",
    "memory_usage",
    "open_array",
]

_SUBMODULES = (
    "accounting",
    "aio",
    "cache",
    "errors",
    "io",
    "numpy",
    "pickle",
    "pressure",
    "settings",
    "shared",
    "units",
)

_LAZY = {  # functions that load with their first use
    "cleanup": "mempool.pressure.cleanup",
    "health": "mempool.pressure.health",
    "memory_usage": "mempool.accounting.usage",
}


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        import importlib

        return importlib.import_module(f"mempool.{name}")
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mempool' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES})


def _follow_settings(changed: "Mapping[str, object]") -> None:
    """Have cleanups at an interval, which load when the settings ask for them."""
    if "gc_interval_seconds" in changed:
        from mempool.pressure.schedule import follow_settings

        follow_settings()


_follow(_follow_settings)
if _lookup("gc_interval_seconds") is not None:
    _follow_settings({"gc_interval_seconds": None})
