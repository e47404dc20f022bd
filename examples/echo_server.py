"""An echo server over pooled memory: lines, and frames of any length.

Run ``python examples/echo_server.py --port 8888`` and the client beside it. Each request is a line: ``line TEXT`` is answered with
TEXT, ``frame N`` is followed by N bytes, which come back. A frame is received where it stays, sent from there, and its memory
goes back to the pool when the last byte has left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib

import mempool
from mempool import aio


async def serve(reader: aio.PooledReader, writer: aio.PooledWriter) -> None:
    """Answer one client until it ends."""
    try:
        async for request in reader:
            word, _, rest = request.tobytes().rstrip(b"\n").partition(b" ")
            if word == b"line":
                writer.write(rest + b"\n")
            elif word == b"frame":
                with await reader.readexactly(int(rest)) as frame:
                    writer.write(frame)
            else:
                writer.write(b"what?\n")
            await writer.drain()
    except (ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        writer.write(f"{error}\n".encode())
    finally:
        writer.close()


async def main() -> None:
    """Listen until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8888, help="0: any that is free")
    parser.add_argument("--memory", default="256MiB", help="most that all clients together may hold")
    options = parser.parse_args()
    pool = mempool.BufferPool(limit=options.memory, name="echo")
    server = await aio.start_server(serve, options.host, options.port, pool=pool, max_message="64MiB")
    print("listening on port", server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
