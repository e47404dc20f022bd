"""Who holds native memory: a tree of accounts, charged with what is taken from the OS."""

from mempool._core import Account, root_account
from mempool.accounting.guard import MemoryGuard, memory_limit
from mempool.accounting.usage import MemoryUsage, memory_usage

__all__ = ["Account", "MemoryGuard", "MemoryUsage", "memory_limit", "memory_usage", "root_account"]
