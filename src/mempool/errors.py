"""The exceptions of mempool. What has an equal among the builtins is raised as that."""

__all__ = [
    "AccountLimitExceeded",
    "MappingError",
    "MemoryLimitExceeded",
    "MempoolError",
    "PoolExhausted",
    "StaleHandle",
]


class MempoolError(Exception):
    """Root of the errors that have no builtin equal."""


class PoolExhausted(MempoolError, MemoryError):
    """A lease would take the pool past its limit.

    Attributes
    ----------
    requested : int
        Bytes asked for.
    in_use : int
        Bytes that could not be given up at that moment: lent, or released but still viewed.
    limit : int
        The pool's limit in bytes.
    """

    requested: int
    in_use: int
    limit: int

    def __init__(self, message: str, requested: int = 0, in_use: int = 0, limit: int = 0) -> None:
        super().__init__(message, requested, in_use, limit)
        self.requested, self.in_use, self.limit = requested, in_use, limit

    def __str__(self) -> str:
        return str(self.args[0])


class AccountLimitExceeded(MempoolError, MemoryError):
    """A charge would take an account past its limit.

    Attributes
    ----------
    account : str
        Name of the account whose limit stands in the way.
    requested, used, limit : int
        Bytes asked for, bytes charged at that moment, and the limit.
    """

    account: str
    requested: int
    used: int
    limit: int

    def __init__(self, message: str, account: str = "", requested: int = 0, used: int = 0, limit: int = 0) -> None:
        super().__init__(message, account, requested, used, limit)
        self.account, self.requested, self.used, self.limit = account, requested, used, limit

    def __str__(self) -> str:
        return str(self.args[0])


class MemoryLimitExceeded(MempoolError, MemoryError):
    """A piece of work took more than its `memory_limit`.

    Attributes
    ----------
    what : str
        What was limited: ``"rss"``, ``"external"`` or ``"python_heap"``.
    grown, limit : int
        Bytes that it had grown by, or would have, and the bytes it might.
    """

    what: str
    grown: int
    limit: int

    def __init__(self, message: str, what: str = "", grown: int = 0, limit: int = 0) -> None:
        super().__init__(message, what, grown, limit)
        self.what, self.grown, self.limit = what, grown, limit

    def __str__(self) -> str:
        return str(self.args[0])


class StaleHandle(MempoolError, LookupError):
    """A slab handle was freed, or belongs to another slab, or was made up."""


class MappingError(MempoolError, OSError):
    """The file under a mapping is too short, was truncated, or is not what its header says."""
