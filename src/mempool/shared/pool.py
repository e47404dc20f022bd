"""Where leases of shared memory come from."""

import itertools
import weakref
from contextlib import suppress
from types import TracebackType
from typing import Self, SupportsIndex

from mempool._core import Account, _grew, _SharedHold
from mempool.errors import AccountLimitExceeded
from mempool.settings import parse_limit
from mempool.shared import fork as fork  # registers its handlers
from mempool.shared.books import Books
from mempool.shared.buffer import SharedBuffer, make
from mempool.shared.layout import HEADER, block_size
from mempool.shared.registry import Terms, here
from mempool.shared.segment import check_platform
from mempool.shared.stats import SharedStats
from mempool.units import parse_duration, parse_size, shown

__all__ = ["SharedPool"]

_numbers = itertools.count(1)
_MOST = (1 << 62) - 1
_TRIES = 8  # others may be quicker to take the room that was made


class SharedPool:
    """Lends memory that other processes can see, and takes it back when the last of them has dropped it.

    Parameters
    ----------
    limit : int, str or None
        Most bytes that the pool takes from the OS.
    account : Account or None
        Charged with what is taken from the OS, through an account of the pool's own. None: the root account.
    name : str or None
        Shown in errors and reports.
    transit_timeout : float, str or None
        Seconds that a message may be on its way. A block that was sent and not received for so long may be lent again; who
        receives it later gets a buffer that is `lost`. None: never.
    linger : float, str
        Seconds that the exit of this process waits for messages that it sent and nobody received yet: a process that is gone
        has nothing that could be opened.

    Raises
    ------
    OSError
        Where the OS has no anonymous segments (`errno.ENOSYS`): Linux has them.
    TypeError, ValueError
        For arguments that make no sense; the value is named.

    Notes
    -----
    Segments are anonymous: they have no name, nothing is left in ``/dev/shm`` however processes end, and other users of the
    machine cannot open them. Every call is safe from any thread and after a fork. A child of fork begins with an empty pool.

    Examples
    --------
    >>> from mempool.shared import SharedPool
    >>> with SharedPool(limit="64MiB", name="frames") as pool:
    ...     b = pool.acquire("1MiB")
    ...     pool.stats().in_use
    1048576
    """

    def __init__(
        self,
        limit: int | str | SupportsIndex | None = None,
        *,
        account: Account | None = None,
        name: str | None = None,
        transit_timeout: float | str | None = "5min",
        linger: float | str = 1.0,
    ) -> None:
        if account is not None and not isinstance(account, Account):
            raise TypeError(f"account must be an Account or None, not {account!r}")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str, not {name!r}")
        most = parse_limit(limit)
        patience = float("inf") if transit_timeout is None else parse_duration(transit_timeout, "transit_timeout") * 1e9
        terms = Terms(patience, parse_duration(linger, "linger"))
        check_platform()
        name = f"shared-{next(_numbers)}" if name is None else name
        self._books = books = Books(name, most, Account(name, parent=account), terms)
        # No `weakref.finalize`, which does nothing late in an exit, when a queue may just have sent its last message.
        books.pool = weakref.ref(self, books.abandon)
        with here.lock:
            here.books.add(books)

    @property
    def name(self) -> str:
        """Its name in errors and reports."""
        return self._books.name

    @property
    def account(self) -> Account:
        """The account of this pool alone, below the one it was given."""
        return self._books.account

    @property
    def limit(self) -> int | None:
        """Most bytes that the pool may take from the OS, None for no limit."""
        return self._books.limit

    @property
    def closed(self) -> bool:
        """True after `close()`."""
        return self._books.closed

    def acquire(self, nbytes: int | str | SupportsIndex, *, zero: bool = False) -> SharedBuffer:
        """Lend memory.

        Parameters
        ----------
        nbytes : int or str
            Length of the buffer in bytes; 0 is fine.
        zero : bool
            Bytes are zero. Otherwise they are uninitialised.

        Returns
        -------
        SharedBuffer
            To be released by the caller, and by every process that receives it: ``with``, `release()`, or by dropping it and all
            its views.

        Raises
        ------
        PoolExhausted
            The limit leaves no room, also after what others dropped was taken back and idle memory was given up.
        AccountLimitExceeded
            An account's limit leaves no room.
        MemoryError, OSError
            The OS has no more memory, or this process no more descriptors.
        ValueError
            The pool is closed, or an argument makes no sense.
        """
        size = parse_size(nbytes, "nbytes")
        if not isinstance(zero, bool):
            raise TypeError(f"zero must be True or False, not {zero!r}")
        if size > _MOST:
            raise OverflowError(f"nbytes of {shown(size)} bytes cannot be addressed")
        here.at_exit()
        here.sweep()
        hold, fresh, grown = self._lend(size)
        if grown:
            _grew(grown)
        if zero and not fresh:
            hold.clear()
        buffer = make(hold, self)
        # A signal handler may have forked in here: then the block is the parent's.
        return self.acquire(size, zero=zero) if hold.memory.inherited else buffer

    def _lend(self, size: int) -> tuple[_SharedHold, bool, int]:
        """Lend; reclaimers are asked between the calls of the books, as they may call this pool, or wait for who does."""
        for _ in range(_TRIES):
            with suppress(AccountLimitExceeded):
                return self._books.lend(size)
            with self.account.charged(block_size(size) + HEADER):
                pass  # there is room now
        return self._books.lend(size)

    def trim(self) -> int:
        """Give segments of which no block is used back to the OS; returns their bytes."""
        return self._trim(0)

    def _trim(self, floor: int) -> int:
        here.sweep()
        return self._books.trim(floor)

    def stats(self) -> SharedStats:
        """Return a `SharedStats`: figures that belong to one moment. Works after `close()` too."""
        here.sweep()
        return self._books.report()

    def close(self) -> None:
        """Refuse new leases and give idle memory back. What is lent, held elsewhere or on its way stays valid. Idempotent."""
        self._books.close()

    def __enter__(self) -> Self:
        if self._books.closed:
            raise ValueError(f"pool {self.name!r} is closed")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        stats = self.stats()
        state = ", closed" if self.closed else ""
        used = stats.in_use + stats.retired + stats.in_flight + stats.held
        return f"<mempool.shared.SharedPool {self.name!r}: {used} bytes in use, {stats.idle} idle, limit {stats.limit}{state}>"
