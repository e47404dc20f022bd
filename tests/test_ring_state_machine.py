"""A ring buffer against a plain model: the bytes that are readable, in both ways to map it."""

import hashlib
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mempool import RingBuffer
from support import copying_ring

PAGE = 4096
COUNT = st.one_of(st.integers(0, 40), st.integers(0, 2 * PAGE + 10))
SEP = st.sampled_from([b"\x00", b"\n", b"\r\n", b"abc", b"\x07\x08", b"q" * 50])


class RingMachine(RuleBasedStateMachine):
    @initialize(make=st.sampled_from([RingBuffer, copying_ring]), capacity=st.sampled_from([1, PAGE + 1]))
    def make(self, make: Any, capacity: int) -> None:
        self.ring = make(capacity)
        self.model = bytearray()
        self.number = 0
        self.window: memoryview | None = None  # what the last writable() gave, from the next byte to commit on
        self.seen: list[tuple[memoryview, bytes]] = []  # until something is consumed

    def fresh(self, n: int) -> bytes:
        self.number += 1
        return hashlib.shake_128(self.number.to_bytes(4, "big")).digest(n)

    def room(self) -> int:
        return self.ring.capacity - len(self.model)

    @rule()
    def look_for_room(self) -> None:
        self.window = self.ring.writable()
        assert len(self.window) == self.room()

    @rule(n=COUNT, spread=st.integers(0, 3))
    def fill_and_commit(self, n: int, spread: int) -> None:
        if self.window is None or spread == 0:
            self.look_for_room()
        assert self.window is not None
        n = min(n, len(self.window))
        content = self.fresh(n)
        self.window[:n] = content
        self.ring.commit(n)
        self.model += content
        self.window = self.window[n:]

    @rule(n=COUNT)
    def write(self, n: int) -> None:
        content = self.fresh(n)
        written = self.ring.write(content)
        assert written == min(n, self.room())
        self.model += content[:written]
        self.window = None

    @rule(sep=SEP)
    def write_separator(self, sep: bytes) -> None:
        self.model += sep[: self.ring.write(sep)]
        self.window = None

    @rule(n=COUNT)
    def consume(self, n: int) -> None:
        if n > len(self.model):
            with pytest.raises(ValueError, match=f"consume {n} bytes: {len(self.model)} of"):
                self.ring.consume(n)
            return
        self.ring.consume(n)
        del self.model[:n]
        self.seen.clear()

    @rule(n=st.one_of(COUNT, st.none(), st.just(-1)))
    def read(self, n: int | None) -> None:
        n = len(self.model) if n is None or n < 0 else min(n, len(self.model))
        assert self.ring.read(n) == self.model[:n]
        del self.model[:n]
        self.seen.clear()

    @rule(more=st.integers(1, 100))
    def commit_too_much(self, more: int) -> None:
        with pytest.raises(ValueError, match=f": {self.room()} of"):
            self.ring.commit(self.room() + more)

    @rule(sep=SEP, start=st.one_of(st.just(0), COUNT))
    def find(self, sep: bytes, start: int) -> None:
        assert self.ring.find(sep, start) == self.model.find(sep, start)

    @rule()
    def look(self) -> None:
        self.seen.append((self.ring.readable(), bytes(self.model)))

    @invariant()
    def it_holds_what_it_should(self) -> None:
        if not hasattr(self, "ring"):
            return
        assert self.ring.readable() == self.model
        assert (len(self.ring), self.ring.free) == (len(self.model), self.room())
        for view, content in self.seen:
            assert view == content

    def teardown(self) -> None:
        if hasattr(self, "ring"):
            self.ring.close()


TestRing = RingMachine.TestCase
TestRing.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
