"""`AccountUsage`: an account against its limit."""

from mempool.accounting import Account, root_account
from mempool.pressure.sources.base import Reading, Scope

__all__ = ["AccountUsage"]


class AccountUsage:
    """What is charged to an account: reserved bytes, lent or idle.

    Parameters
    ----------
    account : Account, optional
        None: the root account, which counts all native memory of mempool.

    Examples
    --------
    >>> from mempool import Account
    >>> from mempool.pressure.sources import AccountUsage
    >>> images = Account("images", limit="1 MiB")
    >>> with images.charged("256 KiB"):
    ...     AccountUsage(images).read()
    Reading(used=262144, limit=1048576, level=None)
    """

    def __init__(self, account: Account | None = None) -> None:
        if not isinstance(account, Account | None):
            raise TypeError(f"account must be an Account or None, not {account!r}")
        self._account = root_account() if account is None else account

    @property
    def name(self) -> str:
        """``"account:"`` and the name of the account."""
        return f"account:{self._account.name}"

    @property
    def scope(self) -> Scope:
        """``"own"``."""
        return "own"

    def read(self) -> Reading:
        """Bytes charged, and the limit of this very account."""
        return Reading(self._account.used, self._account.limit)

    def __repr__(self) -> str:
        return f"AccountUsage({self._account.name!r})"
