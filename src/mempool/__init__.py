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
    MempoolError,
    PoolExhausted,
    StaleHandle,
)
from mempool.settings import configure

TYPE_CHECKING = False  # as in typing, whose import costs more than all of this
if TYPE_CHECKING:
    from mempool import accounting as accounting
    from mempool import aio as aio
    from mempool import errors as errors
    from mempool import io as io
    from mempool import numpy as numpy
    from mempool import pickle as pickle
    from mempool import pressure as pressure
    from mempool import settings as settings
    from mempool import shared as shared
    from mempool import units as units

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
    "configure",
    "create_array",
    "default_pool",
    "guard_truncation",
    "open_array",
]

_SUBMODULES = ("accounting", "aio", "errors", "io", "numpy", "pickle", "pressure", "settings", "shared", "units")


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        import importlib

        return importlib.import_module(f"mempool.{name}")
    raise AttributeError(f"module 'mempool' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES})
