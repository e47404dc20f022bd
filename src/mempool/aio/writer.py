"""The writing half of a connection: asyncio's own, which takes a `Buffer` too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mempool._core import Buffer
from mempool.aio.reader import PooledReader

if TYPE_CHECKING:
    import ssl

    from mempool.aio.protocol import PooledProtocol


class PooledWriter(asyncio.StreamWriter):
    """`asyncio.StreamWriter` that also writes a `mempool.Buffer`, without a copy.

    A lease that was written may be released at once, by `Buffer.release` or the end of its ``with``: its memory stays as it is
    until the last byte is sent, and goes back to the pool then. What must not happen before is that its content is changed, as
    for a `bytearray` or a `memoryview`: acquire a new lease for the next message instead.
    """

    _protocol: PooledProtocol
    _loop: Any
    _transport: Any

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        protocol: PooledProtocol,
        reader: PooledReader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(transport, protocol, None, loop)
        self._reader: Any = reader  # of no type that asyncio knows; drain() asks it for its exception

    def write(self, data: Any) -> None:
        """Send data, or keep it until it can be sent."""
        super().write(memoryview(data) if isinstance(data, Buffer) else data)

    def writelines(self, data: Iterable[Any]) -> None:
        """Send several pieces of data."""
        super().writelines([memoryview(piece) if isinstance(piece, Buffer) else piece for piece in data])

    async def start_tls(self, sslcontext: ssl.SSLContext, **options: Any) -> None:
        """Continue the connection under TLS, with the options of `asyncio.StreamWriter.start_tls`.

        Raises
        ------
        RuntimeError
            Bytes that came without TLS wait to be read, before the call or while it waits for what was written to leave. Whoever
            sits between the peers could have sent them, and read later they would look as if they came under TLS; so read up to
            the agreement first.
        """
        protocol = self._protocol
        protocol.check_nothing_waits()
        await self.drain()
        # Not asyncio's own start_tls, which would drain after the check: from here on nothing runs but us, until the loop's has
        # stopped reading.
        protocol.check_nothing_waits()
        server_side = protocol.serves()
        transport = await self._loop.start_tls(
            self._transport, protocol, sslcontext, server_side=server_side, **options
        )
        self._transport = transport
        protocol.replace_transport(transport)
