"""asyncio streams whose bytes arrive in pooled memory; on every event loop of asyncio's kind, uvloop among them.

As `asyncio.open_connection` and `asyncio.start_server`, but what is read are leases (`mempool.Buffer`), received by the kernel
where they stay if they are long, and cut from one pooled block if they are short.
"""

from mempool.aio.reader import PooledReader
from mempool.aio.streams import open_connection, start_server
from mempool.aio.writer import PooledWriter

__all__ = ["PooledReader", "PooledWriter", "open_connection", "start_server"]

try:
    from mempool.aio.streams import open_unix_connection, start_unix_server
except ImportError:  # no such sockets here
    pass
else:
    __all__ += ["open_unix_connection", "start_unix_server"]
