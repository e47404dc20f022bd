"""The reading half of a connection.

Every method first asks the compiled inbox for what waits already (`_core._Inbox`), which is the fast path and no wait at all. The
slow path is one loop: look, wait, look again. Bytes leave the inbox only in the step that returns them, so a cancelled read has
taken nothing.
"""

from __future__ import annotations

from asyncio import IncompleteReadError, LimitOverrunError
from typing import TYPE_CHECKING, Self

from mempool._core import Buffer, BufferPool, _Inbox
from mempool.units import parse_size, shown

if TYPE_CHECKING:
    from typing import SupportsIndex

    from typing_extensions import Buffer as BytesLike

NO_END = (1 << 63) - 1
LEAST_GROWTH = 4096  # bytes; a wait for memory asks for as little as it can go on with


class PooledReader:
    """Reads a connection into leases of a pool; made by `open_connection` and `start_server`.

    The methods are those of `asyncio.StreamReader`, and return a `mempool.Buffer` where that returns bytes. The caller owns it:
    ``with``, `Buffer.release`, or dropping it gives its memory back. One coroutine reads at a time. A cancelled read takes nothing
    from the connection.

    Where the pool's limit leaves no memory, a read waits for it; if it can never fit, or an account's limit is in the way, the
    read raises `PoolExhausted` or `AccountLimitExceeded`. What arrived stays, and the next read has it. An empty result takes no
    memory: it never waits for any, and is no lease in the pool's figures.
    """

    __slots__ = ("__weakref__", "_inbox")

    def __init__(self, inbox: _Inbox) -> None:
        self._inbox = inbox

    def __repr__(self) -> str:
        inbox = self._inbox
        state = f"{len(inbox)} bytes, limit {inbox.limit}, pool {inbox.pool.name!r}"
        state += ", eof" if inbox.eof else ""
        return f"<mempool.aio.PooledReader: {state}{f', {inbox.error!r}' if inbox.error else ''}>"

    @property
    def pool(self) -> BufferPool:
        """Where the memory comes from."""
        return self._inbox.pool

    def at_eof(self) -> bool:
        """Return whether the peer has said all and all of it was read."""
        return self._inbox.eof and not len(self._inbox)

    def exception(self) -> BaseException | None:
        """Return what broke the connection, which every read raises; None while it is sound."""
        return self._inbox.error

    def set_exception(self, exc: BaseException) -> None:
        """Make every read raise this, but for one that has what it waited for."""
        self._inbox.fail(exc)

    # ---- by length ----

    async def readexactly(self, n: int | str | SupportsIndex) -> Buffer:
        """Read a message of `n` bytes.

        A long one is received where it stays: each byte is copied by the kernel only, but for what came together with the message
        before it.

        Parameters
        ----------
        n : int or str
            Length in bytes.

        Returns
        -------
        Buffer
            Exactly `n` bytes.

        Raises
        ------
        asyncio.IncompleteReadError
            The connection ended before; its `partial` has what came, as bytes.
        asyncio.LimitOverrunError
            `n` is more than the connection's `max_message`. Nothing was acquired or taken.
        PoolExhausted, AccountLimitExceeded
            There can be no memory for it. Nothing was taken.
        OverflowError
            No address can reach so far.
        """
        buffer = self._inbox.take(n)
        return await self._readexactly(parse_size(n, "n")) if buffer is None else buffer

    async def _readexactly(self, n: int) -> Buffer:
        inbox = self._inbox
        self._check_length(n)
        while len(inbox) < n:
            if inbox.eof:
                raise IncompleteReadError(inbox.take_bytes(), n)
            if inbox.fits(n):
                await self._arrival("readexactly", n, n)
            else:
                inbox.widen(await self._lease("readexactly", n))
        return await self._taken("readexactly", n)

    async def read(self, n: int | str | SupportsIndex = -1) -> Buffer:
        """Read up to `n` bytes, as soon as there is one; by default all up to the end.

        Parameters
        ----------
        n : int or str
            Most bytes to return; -1: all that comes until the peer ends, but never more than the connection's `max_message`.

        Returns
        -------
        Buffer
            Empty at the end of the stream, or for ``n=0``.

        Raises
        ------
        asyncio.LimitOverrunError
            For -1: more came than `max_message`. It is still there to be read.
        PoolExhausted, AccountLimitExceeded
            There can be no memory for it. Nothing was taken.
        """
        inbox = self._inbox
        most = -1 if n == -1 else min(parse_size(n, "n"), NO_END)
        self._check()
        if most < 0:
            return await self._read_all()
        if most and not len(inbox) and not inbox.eof:
            await self._arrival("read", 1, 0)
        return await self._taken("read", most)

    async def _read_all(self) -> Buffer:
        inbox = self._inbox
        most = NO_END if inbox.max_message is None else inbox.max_message
        while not inbox.eof and len(inbox) <= most:
            await self._grown("read")
            await self._arrival("read", most + 1, 0)
        if len(inbox) > most:
            raise LimitOverrunError(f"more than the {most} bytes of max_message came before the end", 0)
        return await self._taken("read", len(inbox))

    async def readinto(self, buf: BytesLike) -> int:
        """Read into memory of the caller, as soon as there is a byte.

        Where nothing waits, a long `buf` receives from the kernel directly.

        Parameters
        ----------
        buf : writable bytes-like
            A `Buffer`, a `bytearray`, an array...

        Returns
        -------
        int
            Bytes read; 0 at the end of the stream, or if `buf` is empty.

        Raises
        ------
        BufferError, TypeError
            `buf` is read-only, not contiguous, or no memory at all.
        """
        with memoryview(buf) as whole:
            if whole.readonly:
                raise TypeError("readinto() needs writable memory")
            self._check()
            return await self._readinto(whole) if whole.nbytes else 0

    async def _readinto(self, whole: memoryview) -> int:
        inbox = self._inbox
        with whole.cast("B") as view:
            if len(inbox) or inbox.eof:
                return inbox.take_into(view)
            if len(view) >= inbox.block_size:
                return await self._aimed(view)
            await self._arrival("readinto", 1, 0)
            return inbox.take_into(view)

    async def _aimed(self, view: memoryview) -> int:
        """Wait with the loop receiving into the caller's memory; what a cancelled read has there waits for the next one."""
        inbox = self._inbox
        inbox.aim(view)
        try:
            await self._arrival("readinto", 1, 0)
        except BaseException:
            inbox.end_aim(True)
            raise
        return inbox.end_aim(False)

    # ---- by separator ----

    async def readline(self) -> Buffer:
        r"""Read up to and with the next ``\n``.

        Returns
        -------
        Buffer
            Without ``\n`` if the stream ended before, then perhaps empty.

        Raises
        ------
        ValueError
            The line is longer than the connection's `limit`. As in asyncio, it is forgotten as far as it came.
        PoolExhausted, AccountLimitExceeded
            There can be no memory for it. Nothing was taken.
        """
        line = self._inbox.take_until(b"\n")
        return await self._readline(False) if line is None else line

    async def _readline(self, ours: bool) -> Buffer:
        inbox = self._inbox
        try:
            size = await self._find("readline", (b"\n",))
        except IncompleteReadError:
            size = len(inbox)
        except LimitOverrunError as error:
            found = inbox.find((b"\n",), error.consumed)
            inbox.discard(found[1] if found is not None and found[0] == error.consumed else len(inbox))
            raise ValueError(error.args[0]) from None
        return await self._taken("readline", size, ours)

    async def readuntil(self, separator: BytesLike | tuple[BytesLike, ...] = b"\n") -> Buffer:
        """Read up to and with the next separator.

        Parameters
        ----------
        separator : bytes-like or tuple of bytes-like
            Of several, the one that ends first.

        Returns
        -------
        Buffer
            With the separator.

        Raises
        ------
        asyncio.IncompleteReadError
            The connection ended before; its `partial` has what came, as bytes.
        asyncio.LimitOverrunError
            What stands before the separator is longer than the connection's `limit`. It is still there to be read.
        PoolExhausted, AccountLimitExceeded
            There can be no memory for it. Nothing was taken.
        """
        inbox = self._inbox
        if type(separator) is bytes and separator:
            buffer = inbox.take_until(separator)
            if buffer is not None:
                return buffer
        try:
            size = await self._find("readuntil", separators_of(separator))
        except IncompleteReadError as error:
            error.partial = inbox.take_bytes()
            raise
        return await self._taken("readuntil", size)

    async def _find(self, who: str, separators: tuple[bytes, ...]) -> int:
        """Wait until a separator is there; how many bytes end with it."""
        inbox = self._inbox
        longest = max(map(len, separators))
        begin = 0  # no separator begins before
        self._check()
        while True:
            found = inbox.find(separators, begin)
            if found is not None:
                self._check_line(found[0], "Separator is found, but chunk is longer than limit")
                return found[1]
            begin = max(begin, len(inbox) + 1 - longest)
            self._check_line(begin, "Separator is not found, and chunk exceed the limit")
            if inbox.eof:
                raise IncompleteReadError(b"", None)
            await self._grown(who)
            await self._arrival(who, len(inbox) + 1, 0)

    def __aiter__(self) -> Self:
        """Iterate over lines; these may be dropped without `release()`, whatever leak detection says."""
        return self

    async def __anext__(self) -> Buffer:
        line = self._inbox.take_until(b"\n", True)
        if line is None:
            line = await self._readline(True)
            if not len(line):
                raise StopAsyncIteration
        return line

    # ---- waiting ----

    async def _arrival(self, who: str, needed: int, wish: int) -> None:
        """Wait until `needed` bytes are there, or none will come, or there is no memory for more.

        An error raises only if it came before them, and before the end.
        """
        inbox = self._inbox
        if inbox.eof:
            return
        self._check()
        waiter = inbox.begin_wait(who, needed, wish)
        try:
            await waiter
        finally:
            inbox.end_wait(waiter)
        if len(inbox) + inbox.filled < needed and not inbox.eof:
            self._check()

    async def _taken(self, who: str, n: int, ours: bool = False) -> Buffer:
        """Take up to `n` bytes, as soon as the pool has memory for them."""
        inbox = self._inbox
        try:
            return inbox.take_some(n, ours)
        except MemoryError:
            buffer = await self._lease(who, min(n, len(inbox)))
        inbox.fill(buffer, ours)
        return buffer

    async def _grown(self, who: str) -> None:
        """Where the pool had no memory for what comes, wait until it has."""
        inbox = self._inbox
        if inbox.starved:
            inbox.check_alone(who)
            if not inbox.grow():
                inbox.widen(await self._lease(who, len(inbox) + LEAST_GROWTH))

    async def _lease(self, who: str, n: int) -> Buffer:
        """Acquire `n` bytes, waiting for them if need be; nobody else reads meanwhile."""
        inbox = self._inbox
        inbox.check_alone(who)
        inbox.step_back()
        inbox.busy = True
        try:
            return await inbox.pool.acquire_async(n)
        finally:
            inbox.busy = False

    def _check(self) -> None:
        if self._inbox.error is not None:
            raise self._inbox.error

    def _check_length(self, n: int) -> None:
        self._check()
        most = self._inbox.max_message
        if most is not None and n > most:
            raise LimitOverrunError(f"a message of {shown(n)} bytes is longer than the {most} of max_message", 0)
        if n > NO_END:
            raise OverflowError(f"n of {shown(n)} bytes cannot be addressed")

    def _check_line(self, size: int, complaint: str) -> None:
        if size > self._inbox.limit:
            raise LimitOverrunError(complaint, size)


def separators_of(separator: BytesLike | tuple[BytesLike, ...]) -> tuple[bytes, ...]:
    """Return the separators as bytes, the shortest first."""
    given = separator if isinstance(separator, tuple) else (separator,)
    separators = tuple(sorted(map(separator_of, given), key=len))
    if not separators:
        raise ValueError("Separator should contain at least one element")
    if not separators[0]:
        raise ValueError("Separator should be at least one-byte string")
    return separators


def separator_of(given: BytesLike) -> bytes:
    """Return one separator as bytes."""
    try:
        return bytes(memoryview(given))
    except TypeError:
        raise TypeError(f"a separator must be bytes-like, not {given!r}") from None
