"""Who holds native memory: a tree of accounts, charged with what is taken from the OS."""

from mempool._core import Account, root_account
from mempool._reclaim import ReclaimerStats, Registration, reclaimers, register_reclaimer
from mempool.accounting.detector import GrowthReport, LeakDetector
from mempool.accounting.gc_bridge import gc_pressure
from mempool.accounting.guard import MemoryGuard, memory_limit
from mempool.accounting.leaks import Culprit, LeakReport, detect_leaks
from mempool.accounting.measuring import MemoryDelta, Snapshot, measure, take_snapshot
from mempool.accounting.patterns import Pattern
from mempool.accounting.tracker import Figures, Tracker, TrackerStats
from mempool.accounting.usage import MemoryUsage, memory_usage

__all__ = [
    "Account",
    "Culprit",
    "Figures",
    "GrowthReport",
    "LeakDetector",
    "LeakReport",
    "MemoryDelta",
    "MemoryGuard",
    "MemoryUsage",
    "Pattern",
    "ReclaimerStats",
    "Registration",
    "Snapshot",
    "Tracker",
    "TrackerStats",
    "detect_leaks",
    "gc_pressure",
    "measure",
    "memory_limit",
    "memory_usage",
    "reclaimers",
    "register_reclaimer",
    "root_account",
    "take_snapshot",
]
