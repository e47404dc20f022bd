"""How connections begin: asyncio's four functions, with a pool."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, SupportsIndex, TypeAlias

from mempool._core import BufferPool, default_pool
from mempool.aio.protocol import Connected, PooledProtocol
from mempool.aio.reader import NO_END, PooledReader
from mempool.aio.writer import PooledWriter
from mempool.units import parse_size, shown

Size: TypeAlias = int | str | SupportsIndex
Path: TypeAlias = str | bytes | os.PathLike[str]

LIMIT = 64 << 10


async def open_connection(
    host: str | None = None,
    port: int | str | None = None,
    *,
    pool: BufferPool | None = None,
    limit: Size = LIMIT,
    max_message: Size | None = None,
    **kwds: Any,
) -> tuple[PooledReader, PooledWriter]:
    """Connect as `asyncio.open_connection` does.

    Parameters
    ----------
    host, port, **kwds
        Those of `asyncio.loop.create_connection`: `ssl`, `sock`, `family`...
    pool : BufferPool or None
        Where received bytes stand. None: the default pool.
    limit : int or str
        Most bytes before a separator; when twice as many wait to be read, nothing more is received.
    max_message : int, str or None
        Most bytes of one `readexactly` and of ``read(-1)``, so that a length a peer has sent cannot ask for more. None: no bound
        but the pool's.

    Returns
    -------
    PooledReader, PooledWriter
        To be closed by ``writer.close()``.
    """
    make = factory(pool, limit, max_message, None)
    loop: Any = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(make, host, port, **kwds)
    return pair(transport, protocol)


async def start_server(
    client_connected_cb: Connected,
    host: Any = None,
    port: int | str | None = None,
    *,
    pool: BufferPool | None = None,
    limit: Size = LIMIT,
    max_message: Size | None = None,
    **kwds: Any,
) -> asyncio.Server:
    """Listen as `asyncio.start_server` does.

    Parameters
    ----------
    client_connected_cb : callable
        Called with a `PooledReader` and a `PooledWriter` for each client; a coroutine function runs as a task. If it fails, the
        loop's exception handler is told and the connection closed.
    host, port, **kwds
        Those of `asyncio.loop.create_server`: `ssl`, `sock`, `backlog`...
    pool, limit, max_message
        As in `open_connection`; of each connection.

    Returns
    -------
    asyncio.Server
        To be closed by ``server.close()`` or ``async with``.
    """
    make = factory(pool, limit, max_message, checked(client_connected_cb))
    loop: Any = asyncio.get_running_loop()
    server: asyncio.Server = await loop.create_server(make, host, port, **kwds)
    return server


if hasattr(socket, "AF_UNIX"):

    async def open_unix_connection(
        path: Path | None = None,
        *,
        pool: BufferPool | None = None,
        limit: Size = LIMIT,
        max_message: Size | None = None,
        **kwds: Any,
    ) -> tuple[PooledReader, PooledWriter]:
        """Connect to a Unix socket as `asyncio.open_unix_connection` does; see `open_connection`."""
        make = factory(pool, limit, max_message, None)
        loop: Any = asyncio.get_running_loop()
        transport, protocol = await loop.create_unix_connection(make, path, **kwds)
        return pair(transport, protocol)

    async def start_unix_server(
        client_connected_cb: Connected,
        path: Path | None = None,
        *,
        pool: BufferPool | None = None,
        limit: Size = LIMIT,
        max_message: Size | None = None,
        **kwds: Any,
    ) -> asyncio.Server:
        """Listen on a Unix socket as `asyncio.start_unix_server` does; see `start_server`."""
        make = factory(pool, limit, max_message, checked(client_connected_cb))
        loop: Any = asyncio.get_running_loop()
        server: asyncio.Server = await loop.create_unix_server(make, path, **kwds)
        return server


def factory(
    pool: BufferPool | None, limit: Size, max_message: Size | None, connected: Connected | None
) -> Callable[[], PooledProtocol]:
    """Return what makes the protocol of a connection; bad arguments fail here, before there is one."""
    if pool is not None and not isinstance(pool, BufferPool):
        raise TypeError(f"pool must be a BufferPool or None, not {pool!r}")
    line = addressable(limit, "limit")
    if line == 0:
        raise ValueError("limit must be more than 0 bytes, got 0")
    message = None if max_message is None else addressable(max_message, "max_message")
    loop, chosen = asyncio.get_running_loop(), pool or default_pool()
    return lambda: PooledProtocol(loop, chosen, line, message, connected)


def addressable(size: Size, name: str) -> int:
    """Return a size that an inbox can count to."""
    parsed = parse_size(size, name)
    if parsed > NO_END:
        raise OverflowError(f"{name} of {shown(parsed)} bytes cannot be addressed")
    return parsed


def checked(connected: Connected) -> Connected:
    """Return the callback, if it is one."""
    if not callable(connected):
        raise TypeError(f"client_connected_cb must be callable, not {connected!r}")
    return connected


def pair(transport: Any, protocol: PooledProtocol) -> tuple[PooledReader, PooledWriter]:
    """Return both halves of a client's connection."""
    reader = PooledReader(protocol)
    return reader, PooledWriter(transport, protocol, reader, protocol.loop)
