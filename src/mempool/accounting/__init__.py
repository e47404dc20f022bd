"""Who holds native memory: a tree of accounts, charged with what is taken from the OS."""

from mempool._core import Account, root_account
from mempool._reclaim import ReclaimerStats, reclaimers, register_reclaimer

__all__ = ["Account", "ReclaimerStats", "reclaimers", "register_reclaimer", "root_account"]
