"""Who holds native memory: a tree of accounts, charged with what is taken from the OS."""

from mempool._core import Account, root_account

__all__ = ["Account", "root_account"]
