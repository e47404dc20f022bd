"""What other processes do in the tests of shared memory: importable, as `spawn` and `forkserver` find functions by name."""

from typing import Any

from mempool.shared import SharedBuffer, SharedPool


def echo(inbox: Any, outbox: Any) -> None:
    """Add one to each byte of what comes, and send it back; until None."""
    while True:
        buffer = inbox.get()
        if buffer is None:
            return
        buffer.array()[:] += 1
        outbox.put(buffer)
        del buffer


def answer(wire: Any) -> None:
    buffer = wire.recv()
    buffer.array()[:] += 1
    wire.send(buffer)


def increment(buffer: SharedBuffer) -> SharedBuffer:
    buffer.array()[:] += 1
    return buffer


def use(buffer: SharedBuffer) -> int:
    return buffer[0]


def make(value: int) -> SharedBuffer:
    """Make a result in a pool of this very call. A process that ends waits for whoever receives it, also if that is slow."""
    with SharedPool(linger=120) as pool:
        buffer = pool.acquire(1000)
        buffer.array()[:] = value
        return buffer


def make_and_leave(outbox: Any, value: int) -> None:
    outbox.put(make(value))


def send_and_leave(wire: Any, value: int) -> None:
    wire.send(make(value))


def change(buffer: SharedBuffer) -> None:
    buffer[:5] = b"child"
