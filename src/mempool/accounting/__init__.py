"""Who holds native memory: a tree of accounts, charged with what is taken from the OS."""

from mempool._core import Account, root_account
from mempool._reclaim import ReclaimerStats, reclaimers, register_reclaimer
from mempool.accounting.detector import GrowthReport, LeakDetector
from mempool.accounting.leaks import Culprit, LeakReport, detect_leaks
from mempool.accounting.measuring import MemoryDelta, Snapshot, measure, take_snapshot
from mempool.accounting.patterns import Pattern
from mempool.accounting.tracker import Figures, Tracker, TrackerStats

__all__ = [
    "Account",
    "Culprit",
    "Figures",
    "GrowthReport",
    "LeakDetector",
    "LeakReport",
    "MemoryDelta",
    "Pattern",
    "ReclaimerStats",
    "Snapshot",
    "Tracker",
    "TrackerStats",
    "detect_leaks",
    "measure",
    "reclaimers",
    "register_reclaimer",
    "root_account",
    "take_snapshot",
]
