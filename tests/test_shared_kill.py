"""Producers and consumers are killed at random points: no data is torn, nothing stays, nobody waits for the dead."""

import os
import random
import signal
import time
from contextlib import suppress
from typing import Any

from mempool import PoolExhausted
from mempool.shared import SharedPool
from shared_kit import Child, check, is_idle, linux, nothing_left, stamp
from support import until

pytestmark = linux

SIZE = 8192
ROUNDS = 100  # of each kind
GONE = (EOFError, ConnectionResetError, BrokenPipeError)


def consume(wire: Any, seed: int) -> None:
    """Receive, look, keep some, write anew, send some back; until killed."""
    rng = random.Random(seed)
    kept: list[tuple[int, Any]] = []
    while True:
        token, buffer = wire.recv()
        assert not buffer.lost
        assert check(buffer, token), "torn on arrival"
        if rng.random() < 0.3:
            kept.append((token, buffer))
        if rng.random() < 0.5:
            token = rng.getrandbits(63)
            stamp(buffer, token)
            kept = [(old, other) for old, other in kept if other is not buffer]
        del kept[3:]
        assert all(check(other, old) for old, other in kept), "torn while kept"
        wire.send((token, buffer))
        del buffer


def produce(wire: Any, seed: int) -> None:
    """Send stamped blocks of a small pool as fast as they come back; until killed."""
    rng = random.Random(seed)
    pool = SharedPool(limit=5 * SIZE, transit_timeout=None)
    while True:
        with suppress(PoolExhausted):
            buffer = pool.acquire(SIZE)
            token = rng.getrandbits(63)
            stamp(buffer, token)
            wire.send((token, buffer))
        while wire.poll():
            token, buffer = wire.recv()
            assert buffer.pool is pool
            assert check(buffer, token), "torn at home"
        buffer = None


def spin(seconds: float) -> None:
    """Let a moment pass that ends at no particular point of the other process."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def assert_alive(child: Child) -> None:
    """A child that found torn data has ended by itself."""
    assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None, "the child failed"


def feed_and_kill(pool: SharedPool, seed: int) -> None:
    rng = random.Random(seed)
    child = Child(consume, seed)
    out = 0
    for _ in range(rng.randrange(1, 12)):
        token = rng.getrandbits(63)
        buffer = pool.acquire(SIZE)
        stamp(buffer, token)
        child.wire.send((token, buffer))
        del buffer
        out += 1
        if rng.random() < 0.6:
            token, buffer = child.wire.recv()
            assert buffer.pool is pool
            assert check(buffer, token), "torn at home"
            del buffer
            out -= 1
    spin(rng.random() * 0.002)
    assert_alive(child)
    os.kill(child.pid, signal.SIGKILL)
    with suppress(*GONE):
        while True:
            token, buffer = child.wire.recv()
            assert buffer.lost or check(buffer, token), "torn after its sender died"
    child.kill()


def drain_and_kill(seed: int) -> None:
    rng = random.Random(seed)
    child = Child(produce, seed)
    kept: list[tuple[int, Any]] = []
    killed = False
    turns = rng.randrange(1, 25)
    with suppress(*GONE):
        while True:
            token, buffer = child.wire.recv()
            assert killed or not buffer.lost
            assert buffer.lost or check(buffer, token), "torn on arrival"
            kept += [(token, buffer)] * (not buffer.lost)
            assert all(check(other, old) for old, other in kept), "torn while kept"
            del kept[: len(kept) - 2]
            turns -= 1
            if not killed and rng.random() < 0.5:
                child.wire.send((token, buffer))
            buffer = None
            if turns <= 0 and not killed:
                spin(rng.random() * 0.001)
                assert_alive(child)
                os.kill(child.pid, signal.SIGKILL)
                killed = True
    assert all(check(other, old) for old, other in kept), "torn when the owner died"
    child.kill()


def test_killed_consumers() -> None:
    """All blocks come home: what they held at once, what was on its way to them after the time for that."""
    pool = SharedPool(transit_timeout=0.003)
    with nothing_left():
        for seed in range(ROUNDS):
            with nothing_left():
                feed_and_kill(pool, seed)
                until(lambda: is_idle(pool), "the return of all blocks")
                pool.trim()
                assert pool.stats().reserved == 0
                assert pool.account.used == 0


def test_killed_producers() -> None:
    """What arrived stays whole when its owner is gone; what did not arrive is lost, and says so."""
    for seed in range(ROUNDS):
        with nothing_left():
            drain_and_kill(seed)
