"""A client of `echo_server.py`: sends lines and frames, and checks what comes back."""

from __future__ import annotations

import argparse
import asyncio
import time

import mempool
from mempool import aio


async def echo_line(reader: aio.PooledReader, writer: aio.PooledWriter, text: str) -> None:
    """Send a line, and print the answer."""
    writer.write(f"line {text}\n".encode())
    with await reader.readline() as answer:
        print(answer.tobytes().decode().rstrip("\n"))


async def echo_frame(reader: aio.PooledReader, writer: aio.PooledWriter, size: int, value: int) -> None:
    """Send a frame of equal bytes from pooled memory, and check that it comes back."""
    with mempool.acquire(size) as frame:
        frame.array()[:] = value
        writer.write(b"frame %d\n" % size)
        writer.write(frame)
    with await reader.readexactly(size) as back:
        if not (back.array() == value).all():
            raise SystemExit("the frame came back changed")


async def main() -> None:
    """Talk to the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--size", type=int, default=1 << 20, help="bytes of a frame")
    options = parser.parse_args()
    reader, writer = await aio.open_connection(options.host, options.port)
    await echo_line(reader, writer, "hello")
    start = time.perf_counter()
    for number in range(options.frames):
        await echo_frame(reader, writer, options.size, number % 256)
    seconds = time.perf_counter() - start
    print(f"{options.frames} frames of {options.size} bytes there and back: {seconds:.3f} s")
    writer.close()
    await writer.wait_closed()


if __name__ == "__main__":
    asyncio.run(main())
