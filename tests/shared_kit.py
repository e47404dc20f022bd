"""What the tests of shared memory have in common: children of fork, what a process has open, bytes that show a tear."""

import gc
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from typing import Any

import pytest

from mempool.shared import SharedPool

linux = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="shared memory needs Linux")


def stamp(buffer: Any, token: int) -> None:
    """Fill a buffer, whose length is a multiple of 8, with one word."""
    buffer.array("u8")[:] = token


def check(buffer: Any, token: int) -> bool:
    """Whether all of a buffer is that word."""
    return bool((buffer.array("u8") == token).all())


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def mappings() -> int:
    """How many mappings of shared segments this process has."""
    with open("/proc/self/maps") as maps:
        return sum("memfd:mempool " in line for line in maps)  # not those of rings


def named_segments() -> set[str]:
    """What of ours lies in /dev/shm: other processes make and remove what they need meanwhile."""
    names = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    return {name for name in names if "mempool" in name}


@contextmanager
def nothing_left() -> Iterator[None]:
    """Descriptors, mappings and /dev/shm are afterwards as they were."""
    settle()  # what other tests left goes before, not meanwhile
    files, mapped, names = open_files(), mappings(), named_segments()
    yield
    # What others let go of meanwhile is no fault.
    assert open_files() <= files
    assert mappings() <= mapped
    assert named_segments() <= names


def settle() -> None:
    """Let go of garbage, and of messages that nobody can receive any more, as each call of a pool does."""
    gc.collect()
    with SharedPool() as pool:
        pool.acquire(1).release()
    gc.collect()


class Child:
    """A child of fork that runs `function(wire, *args)`, with our end of the wire."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.wire, theirs = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self.wire.close()
                function(theirs, *args)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        theirs.close()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.wire.close()

    def end(self) -> None:
        """Wait for its good end."""
        _, status = os.waitpid(self.pid, 0)
        self.wire.close()
        assert os.waitstatus_to_exitcode(status) == 0


@contextmanager
def child(function: Callable[..., Any], *args: Any) -> Iterator[Child]:
    """A child that must end well; killed if the test fails first."""
    made = Child(function, *args)
    try:
        yield made
    except BaseException:
        made.kill()
        raise
    made.end()


def is_idle(pool: SharedPool) -> bool:
    """Whether every block of a pool can be lent again."""
    stats = pool.stats()
    return stats.in_use == stats.retired == stats.in_flight == stats.held == 0
