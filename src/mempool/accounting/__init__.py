"""Who holds native memory: a tree of accounts, charged with what is taken from the OS."""

from mempool._core import Account, root_account
from mempool._reclaim import ReclaimerStats, Registration, reclaimers, register_reclaimer
from mempool.accounting.gc_bridge import gc_pressure

__all__ = [
    "Account",
    "ReclaimerStats",
    "Registration",
    "gc_pressure",
    "reclaimers",
    "register_reclaimer",
    "root_account",
]
