"""What the event loop calls: the inbox with a connection around it.

    transport --get_buffer, buffer_updated--> PooledProtocol, which is an inbox <---- PooledReader
        ^ ----pause_writing, resume_writing--------^  ^--drain, wait_closed---------- PooledWriter
        |______________________write_________________________________________________________|

The protocol knows neither reader nor writer, but for the task of a server's callback: who drops both drops the connection, as in
asyncio.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from mempool._core import BufferPool, _Inbox
from mempool.aio.reader import PooledReader
from mempool.aio.writer import PooledWriter

Connected: TypeAlias = Callable[[PooledReader, PooledWriter], Awaitable[None] | None]


class PooledProtocol(_Inbox, asyncio.BufferedProtocol):
    """One connection, of a server if there is a callback."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        pool: BufferPool,
        limit: int,
        max_message: int | None,
        connected: Connected | None = None,
    ) -> None:
        super().__init__(loop, pool, limit, max_message)
        self._connected = connected
        self._over_tls = False
        self._task: asyncio.Task[None] | None = None
        self._write_paused = False
        self._lost = False
        self._drains: set[asyncio.Future[None]] = set()
        self._closed = loop.create_future()

    # ---- what the loop calls; get_buffer and buffer_updated are compiled ----

    def connection_made(self, transport: Any) -> None:
        """Begin; on a server, run the callback."""
        self.replace_transport(transport)
        if self._connected is not None:
            reader = PooledReader(self)
            self._serve(self._connected, reader, PooledWriter(transport, self, reader, self.loop))

    def _serve(self, connected: Connected, reader: PooledReader, writer: PooledWriter) -> None:
        result = connected(reader, writer)
        if asyncio.iscoroutine(result):
            transport = writer.transport
            self._task = self.loop.create_task(result)
            self._task.add_done_callback(lambda task: self._served(task, transport))

    def _served(self, task: asyncio.Task[None], transport: asyncio.WriteTransport) -> None:
        """Close the connection of a callback that failed, and tell the loop's exception handler."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            message = "Unhandled exception in client_connected_cb"
            self.loop.call_exception_handler({"message": message, "exception": error, "transport": transport})
        if error is not None or task.cancelled():
            transport.close()

    def eof_received(self) -> bool:
        """Keep the connection open for writing, where it can be half open."""
        self.end_of_stream(None)
        return not self._over_tls

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake whoever waits."""
        self._lost = True
        self.end_of_stream(exc)
        self.attach(None)
        self._task = None
        if not self._closed.done():
            if exc is None:
                self._closed.set_result(None)
            else:
                self._closed.set_exception(exc)
                self._closed.exception()  # it need not be asked for
        self._release_drains(exc)

    def pause_writing(self) -> None:
        """Too much waits to be sent."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """Little enough waits to be sent."""
        self._write_paused = False
        self._release_drains(None)

    # ---- what StreamWriter calls ----

    async def _drain_helper(self) -> None:
        if self._lost:
            raise ConnectionResetError("Connection lost")
        if self._write_paused:
            waiter = self.loop.create_future()
            self._drains.add(waiter)
            try:
                await waiter
            finally:
                self._drains.discard(waiter)

    def _release_drains(self, error: Exception | None) -> None:
        for waiter in self._drains:
            if not waiter.done():
                if error is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(error)

    def _get_close_waiter(self, writer: asyncio.StreamWriter) -> asyncio.Future[None]:
        return self._closed

    # ---- what PooledWriter calls, to turn to TLS ----

    def serves(self) -> bool:
        """Return whether this is the server's end."""
        return self._connected is not None

    def replace_transport(self, transport: Any) -> None:
        """Continue over this transport."""
        self._over_tls = transport.get_extra_info("sslcontext") is not None
        self.attach(transport)

    def check_nothing_waits(self) -> None:
        """Raise if bytes wait that came without TLS."""
        unread = len(self) + self.filled
        if unread:
            raise RuntimeError(f"start_tls() with {unread} bytes that came without TLS and were not read")
