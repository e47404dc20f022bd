"""What is pickled of a shared buffer, and how the other side finds the memory.

    sender                                     receiver
    count the message as in flight             open /proc/<pid>/fd/<n>: a file description of its own
    pickle the names of the block   ------->   compare inode and nonce
                                               lock the block's byte, shared
                                               compare the generation: the block may be lent to others by now
                                               count the message as arrived

The lock comes before the look at the generation, and the owner changes the generation under a lock of its own: so either the
receiver sees the new generation, or the owner sees the receiver. `/proc` lets only the same user open a descriptor. The rejected
alternative, sending descriptors over a Unix socket, needs a server thread in each sender.
"""

import os
import time
from typing import NamedTuple

from mempool._core import _SharedHold, _SharedMemory
from mempool.shared.layout import (
    CAPACITY_WORD,
    FD_WORD,
    GENERATION,
    IN_FLIGHT,
    MAGIC,
    MAGIC_WORD,
    NONCE_WORD,
    PID_WORD,
    SENDS,
    SENT_AT,
    word,
)
from mempool.shared.registry import here
from mempool.shared.segment import check_platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mempool.shared.pool import SharedPool

__all__: list[str] = []

# An owner holds its lock for microseconds. One that was stopped just then, or whose child inherited the lock, must stop nobody.
_OWNER_PATIENCE = 1.0


class Lost(Exception):
    """Why the memory of a message could not be had."""


class Message(NamedTuple):
    """Names of a block. `places` are processes and their descriptors; `device` and `inode` tell whether they are still the same."""

    places: tuple[tuple[int, int], ...]
    device: int
    inode: int
    nonce: bytes
    block: int
    generation: int
    nbytes: int


def send(hold: _SharedHold) -> Message:
    """Count a message as in flight and return it."""
    memory, index = hold.memory, hold.index
    status = os.fstat(memory.fd)
    places = [(os.getpid(), memory.fd), (memory.get(PID_WORD), memory.get(FD_WORD))]
    sent = Message(
        tuple(dict.fromkeys(places)),
        status.st_dev,
        status.st_ino,
        _nonce(memory),
        index,
        memory.get(word(index, GENERATION)),
        memoryview(hold).nbytes,
    )
    # The time first: a count with an old time would look as if it had waited long.
    memory.set(word(index, SENT_AT), time.monotonic_ns())
    memory.add(word(index, SENDS))
    memory.add(word(index, IN_FLIGHT))
    terms = here.closed.get(memory)
    if terms is not None:
        here.sweep()
        here.keep(memory, index, terms)
    return sent


def receive(message: Message) -> "tuple[_SharedHold, SharedPool | None]":
    """Return a hold of the block, and its pool if it came home; raises `Lost`."""
    here.sweep()
    try:
        check_platform()
        return _come_home(message) or (_attach(message), None)
    except (OSError, ValueError, IndexError) as error:
        raise Lost(f"shared buffer of {message.nbytes} bytes cannot be opened: {error}") from error


def _come_home(message: Message) -> "tuple[_SharedHold, SharedPool] | None":
    """Return what this process owns; None if it is another's."""
    owner = here.owned.get(message.nonce)
    pool = owner[0]() if owner is not None else None
    if owner is None or pool is None:
        return None
    hold = pool._books.again(owner[1], message.block, message.generation, message.nbytes)
    if hold is not None:
        return hold, pool
    if pool.closed or here.owned.get(message.nonce) is not owner:  # a child of fork does not own it any more
        return None
    raise Lost(_too_old(message))


def _attach(message: Message) -> _SharedHold:
    memory = _map(_open(message), message)
    _share(memory, message.block)
    if memory.get(word(message.block, GENERATION)) != message.generation:
        raise Lost(_too_old(message))
    hold = _SharedHold(memory, message.block, memory.get(CAPACITY_WORD), message.nbytes)
    memory.drop(word(message.block, IN_FLIGHT))
    return hold


def _open(message: Message) -> int:
    """Open the segment at the first place that still has it."""
    refused: OSError | None = None
    for pid, fd in message.places:
        path = f"/proc/{pid}/fd/{fd}"
        try:
            # Compared before it is opened: opening what another descriptor stands for may have effects.
            if _same(os.stat(path), message):
                return _checked(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY), message)
        except (FileNotFoundError, ProcessLookupError):
            pass
        except OSError as error:
            refused = error
    if refused is not None:
        raise refused
    pids = " and ".join(str(pid) for pid, _ in message.places)
    raise Lost(
        f"shared buffer of {message.nbytes} bytes is lost: process {pids}, which had it, is gone or has dropped it"
    )


def _same(status: os.stat_result, message: Message) -> bool:
    return (status.st_dev, status.st_ino) == (message.device, message.inode)


def _checked(fd: int, message: Message) -> int:
    if not _same(os.fstat(fd), message):
        os.close(fd)
        raise Lost("shared buffer is lost: its descriptor is another file by now")
    return fd


def _map(fd: int, message: Message) -> _SharedMemory:
    try:
        memory = _SharedMemory(fd, os.fstat(fd).st_size)
    except BaseException:
        os.close(fd)
        raise
    if memory.get(MAGIC_WORD) != MAGIC or _nonce(memory) != message.nonce:
        raise Lost("shared buffer is lost: its descriptor is another segment by now")
    return memory


def _share(memory: _SharedMemory, index: int) -> None:
    end = time.monotonic() + _OWNER_PATIENCE
    while not memory.share(index):
        if time.monotonic() > end:
            raise Lost("shared buffer is lost: its owner stopped while it took the block back")
        time.sleep(0.0001)


def _nonce(memory: _SharedMemory) -> bytes:
    return b"".join(memory.get(NONCE_WORD + half).to_bytes(8, "little") for half in range(2))


def _too_old(message: Message) -> str:
    return f"shared buffer of {message.nbytes} bytes came too late: its block was taken back and may be another lease's by now"
