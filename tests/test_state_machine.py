"""A pool against a plain model: what is lent, who sees it, and what the books say."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from mempool import Buffer, BufferPool, PoolExhausted
from support import KIB, MIB, check_identities

LIMIT = 512 * KIB
SIZES = st.one_of(st.integers(0, 9000), st.sampled_from([4096, 4097, 20_000, 65_536, 65_537, 100_000, 200_000, LIMIT]))
PAGE = 4096

VIEWS: dict[str, Callable[[Buffer], Any]] = {
    "memoryview": memoryview,
    "slice": lambda b: b[:],
    "readonly": lambda b: b.readonly(),
    "array": lambda b: b.array(),
    "slice of an array": lambda b: b.array()[:],
    "frombuffer": lambda b: np.frombuffer(b, "u1") if len(b) else b[:],
    "ndarray": lambda b: np.ndarray(len(b), "u1", buffer=b),
}


class Lease:
    """What the model knows of one lease. `kept`: numpy.ndarray(buffer=) may hold the `Buffer` itself."""

    def __init__(self, buffer: Buffer, content: bytes) -> None:
        self.buffer: Buffer | None = buffer
        self.capacity = buffer.capacity
        self.content = bytearray(content)
        self.views: list[Any] = []
        self.keepers: list[Any] = []
        self.kept = False
        self.state = "live"

    @property
    def has_buffer(self) -> bool:
        return self.buffer is not None or bool(self.keepers)

    def settle(self, ended: dict[str, int]) -> None:
        """Follow what a lost reference means."""
        if self.state == "live" and not self.has_buffer:
            ended["handed_over" if self.views or self.kept else "dropped"] += 1
            self.state = "retired"
        if self.state == "retired" and not self.views and not (self.kept and self.has_buffer):
            self.state = "gone"


class PoolMachine(RuleBasedStateMachine):
    leases = Bundle("leases")

    @initialize(zero=st.booleans(), max_idle=st.sampled_from([None, 0, 64 * KIB]))
    def make(self, zero: bool, max_idle: int | None) -> None:
        options: dict[str, Any] = {"idle_timeout": None, "leak_detection": "off", "name": "model"}
        self.pool = BufferPool(LIMIT, max_idle=max_idle, zero_on_release=zero, **options)
        self.limit = LIMIT
        self.all: list[Lease] = []
        self.ended = {"releases": 0, "dropped": 0, "handed_over": 0}
        self.acquires = self.exhausted = self.tag = 0
        self.closed = False

    def lent(self) -> int:
        return sum(lease.capacity for lease in self.all if lease.state != "gone")

    def stuck(self) -> int:
        """Idle blocks under a page, which cannot always go."""
        return sum(row.idle * row.size for row in self.pool.stats().size_classes if row.size < PAGE)

    def settle(self) -> None:
        for lease in self.all:
            lease.settle(self.ended)
        self.all = [lease for lease in self.all if lease.state != "gone" or lease.has_buffer]

    # ---- leases

    @rule(target=leases, nbytes=SIZES, zero=st.booleans(), timeout=st.sampled_from([0, 0, 0, 0.001]))
    def acquire(self, nbytes: int, zero: bool, timeout: float) -> Lease | None:
        if self.closed:
            with pytest.raises(ValueError, match="closed"):
                self.pool.acquire(nbytes, zero=zero, timeout=timeout)
            return None
        try:
            buffer = self.pool.acquire(nbytes, zero=zero, timeout=timeout)
        except PoolExhausted:
            self.exhausted += 1
            assert self.lent() + self.stuck() + BufferPool().acquire(nbytes).capacity > self.limit
            return None
        assert not zero or buffer.tobytes() == bytes(nbytes)
        self.acquires += 1
        self.tag = self.tag % 251 + 1
        buffer[:] = bytes([self.tag]) * nbytes
        self.all.append(Lease(buffer, bytes([self.tag]) * nbytes))
        assert buffer.capacity >= nbytes
        return self.all[-1]

    @rule(lease=leases, kind=st.sampled_from(sorted(VIEWS)))
    def view(self, lease: Lease | None, kind: str) -> None:
        if lease is None or lease.buffer is None:
            return
        if lease.buffer.released:
            with pytest.raises(ValueError, match="released"):
                VIEWS[kind](lease.buffer)
            return
        seen = VIEWS[kind](lease.buffer)
        if kind == "ndarray":
            lease.kept = True
            lease.keepers.append(seen)
        else:
            lease.views.append(seen)

    @rule(lease=leases, at=st.integers(0, 200_000), byte=st.integers(0, 255), by=st.integers(0, 5))
    def write(self, lease: Lease | None, at: int, byte: int, by: int) -> None:
        if lease is None or not lease.content:
            return
        writers = [view for view in lease.views + lease.keepers if isinstance(view, np.ndarray) or not view.readonly]
        if lease.buffer is not None and not lease.buffer.released:
            writers.append(lease.buffer)
        if writers:
            writers[by % len(writers)][at % len(lease.content)] = byte
            lease.content[at % len(lease.content)] = byte

    @rule(lease=leases, nbytes=SIZES)
    def resize(self, lease: Lease | None, nbytes: int) -> None:
        if lease is None or lease.buffer is None or lease.buffer.released:
            return
        if nbytes > lease.capacity or lease.views or lease.kept:
            with pytest.raises(ValueError if nbytes > lease.capacity else BufferError):
                lease.buffer.resize(nbytes)
            return
        old = len(lease.content)
        lease.buffer.resize(nbytes)
        lease.buffer[old:] = bytes(max(nbytes - old, 0))
        lease.content = (lease.content + bytes(max(nbytes - old, 0)))[:nbytes]

    @rule(lease=leases, with_block=st.booleans())
    def release(self, lease: Lease | None, with_block: bool) -> None:
        if lease is None or lease.buffer is None:
            return
        if with_block and not lease.buffer.released:
            with lease.buffer:
                pass
        else:
            lease.buffer.release()
        if lease.state == "live":
            self.ended["releases"] += 1
            lease.state = "retired"
        self.settle()

    @rule(lease=leases)
    def drop(self, lease: Lease | None) -> None:
        if lease is not None:
            lease.buffer = None
            self.settle()

    @rule(lease=leases, which=st.integers(0, 5), keepers=st.booleans())
    def drop_view(self, lease: Lease | None, which: int, keepers: bool) -> None:
        views = [] if lease is None else lease.keepers if keepers else lease.views
        if views:
            views.pop(which % len(views))
            self.settle()

    @rule(lease=consumes(leases))
    def drop_all(self, lease: Lease | None) -> None:
        if lease is not None:
            for last in (lease.views, lease.keepers):
                self.drop(lease)
                last.clear()
            self.settle()

    # ---- the pool

    @rule(target_=st.integers(0, LIMIT))
    def trim(self, target_: int) -> None:
        before = self.pool.stats().idle
        freed = self.pool.trim(target_)
        after = self.pool.stats().idle
        assert after == before - freed
        assert after <= max(target_, self.stuck())

    @rule(limit=st.sampled_from([64 * KIB, 128 * KIB, 256 * KIB, LIMIT, MIB]))
    def change_limit(self, limit: int) -> None:
        try:
            self.pool.limit = limit
        except ValueError:
            assert limit < self.lent() + self.stuck()
        else:
            assert limit >= self.lent()
            self.limit = limit
        assert self.pool.limit == self.limit

    @rule(nbytes=SIZES, count=st.integers(0, 4))
    def reserve(self, nbytes: int, count: int) -> None:
        before = self.pool.stats()
        try:
            self.pool.reserve(nbytes, count)
        except PoolExhausted:
            self.exhausted += 1
            assert self.lent() + self.stuck() + count * BufferPool().acquire(nbytes).capacity > self.limit
            after = self.pool.stats()
            assert (after.idle, after.reserved) == (before.idle, before.reserved)
        except ValueError:
            assert self.closed

    @precondition(lambda self: not self.closed and self.acquires > 10)
    @rule()
    def close(self) -> None:
        self.pool.close()
        self.closed = True

    # ---- what always holds

    @invariant()
    def everybody_sees_its_own_bytes(self) -> None:
        for lease in getattr(self, "all", []):
            seen = [*lease.views, *lease.keepers]
            if lease.buffer is not None and lease.state == "live":
                seen.append(lease.buffer)
            assert all(bytes(view) == lease.content for view in seen)

    @invariant()
    def the_books_are_right(self) -> None:
        if not hasattr(self, "pool"):
            return
        stats = self.pool.stats()
        check_identities(stats)
        live = [lease for lease in self.all if lease.state == "live"]
        retired = [lease for lease in self.all if lease.state == "retired"]
        assert stats.in_use == sum(lease.capacity for lease in live)
        assert stats.requested == sum(len(lease.content) for lease in live)
        assert stats.retired == sum(lease.capacity for lease in retired)
        assert (stats.live, stats.acquires, stats.exhausted) == (len(live), self.acquires, self.exhausted)
        assert (stats.releases, stats.dropped, stats.handed_over) == tuple(self.ended.values())
        assert stats.reserved == self.pool.account.used
        assert stats.limit == self.limit
        assert not self.closed or stats.idle == self.stuck()

    def teardown(self) -> None:
        for lease in getattr(self, "all", []):
            lease.buffer = None
            lease.views.clear()
            lease.keepers.clear()
        gc.collect()
        if hasattr(self, "pool"):
            self.pool.trim()
            assert self.pool.stats().reserved == self.pool.account.used == 0


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
