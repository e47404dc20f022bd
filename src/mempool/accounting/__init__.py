"""Who holds native memory: a tree of accounts, charged with what is taken from the OS."""

from mempool._core import Account, root_account
from mempool._reclaim import ReclaimerStats, reclaimers, register_reclaimer
from mempool.accounting.guard import MemoryGuard, memory_limit
from mempool.accounting.usage import MemoryUsage, memory_usage

__all__ = [
    "Account",
    "MemoryGuard",
    "MemoryUsage",
    "ReclaimerStats",
    "memory_limit",
    "memory_usage",
    "reclaimers",
    "register_reclaimer",
    "root_account",
]
