"""A slab against a plain model: a dict of what lives, the views of what was freed, and what the books say."""

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mempool import Account, AccountLimitExceeded, PoolExhausted, SlabAllocator, StaleHandle
from support import MIB, may_raise

SIZE = 504
RECORD = np.dtype([("n", "<i8"), ("tag", "u1"), ("rest", "u1", (SIZE - 9,))])
ITEMS: list[Any] = [SIZE, RECORD, f"S{SIZE}"]
MOST = 300
AT = st.integers(0, 10_000)


def content(number: int) -> bytes:
    """An item, without a zero at the end, which NumPy would strip from a string."""
    return ((number * 7919 + 1).to_bytes(8, "little") + bytes([number % 255 + 1])) * (SIZE // 9)


def as_value(slab: SlabAllocator, number: int) -> Any:
    return np.frombuffer(content(number), RECORD)[0] if slab.dtype == RECORD else content(number)


class SlabMachine(RuleBasedStateMachine):
    @initialize(item=st.sampled_from(ITEMS))
    def make(self, item: Any) -> None:
        self.account = Account("model", limit=MIB)
        self.slab = SlabAllocator(item, max_items=MOST, account=self.account)
        self.live: dict[int, bytes] = {}
        self.dead: list[int] = []
        self.pins: list[tuple[int, Any]] = []
        self.frozen: dict[int, bytes] = {}  # freed but viewed
        self.allocs = self.frees = self.number = 0
        self.array = self.slab.array

    def room(self) -> int:
        return MOST - len(self.live) - len(self.frozen)

    def pick(self, at: int) -> int:
        return list(self.live)[at % len(self.live)]

    def born(self, handle: int) -> None:
        assert 0 < handle < 2**63
        assert handle not in self.live
        assert handle not in self.dead
        self.allocs += 1
        self.number += 1
        self.slab[handle] = as_value(self.slab, self.number)
        self.live[handle] = content(self.number)

    def died(self, handle: int) -> None:
        held = self.live.pop(handle)
        if any(pinned == handle for pinned, _ in self.pins):
            self.frozen[handle] = held
        self.dead.append(handle)
        self.frees += 1

    # ---- one item

    @rule()
    def alloc(self) -> None:
        if self.room():
            self.born(self.slab.alloc())
        else:
            with pytest.raises(PoolExhausted, match=f"max_items is {MOST}"):
                self.slab.alloc()

    @precondition(lambda self: self.live)
    @rule(at=AT)
    def free(self, at: int) -> None:
        handle = self.pick(at)
        self.slab.free(handle)
        self.died(handle)

    @precondition(lambda self: self.live)
    @rule(at=AT)
    def write(self, at: int) -> None:
        handle = self.pick(at)
        self.number += 1
        self.slab[handle] = as_value(self.slab, self.number)
        self.live[handle] = content(self.number)

    @precondition(lambda self: self.live)
    @rule(at=AT)
    def read(self, at: int) -> None:
        handle = self.pick(at)
        assert handle in self.slab
        assert np.asarray(self.slab[handle]).tobytes() == self.live[handle]

    @precondition(lambda self: self.live)
    @rule(at=AT)
    def pin(self, at: int) -> None:
        handle = self.pick(at)
        self.pins.append((handle, self.slab[handle]))

    @precondition(lambda self: self.pins)
    @rule(at=AT)
    def drop_pin(self, at: int) -> None:
        handle, view = self.pins.pop(at % len(self.pins))
        del view
        if all(pinned != handle for pinned, _ in self.pins):
            self.frozen.pop(handle, None)

    @precondition(lambda self: self.pins)
    @rule(at=AT)
    def write_through_a_pin(self, at: int) -> None:
        handle, view = self.pins[at % len(self.pins)]
        self.number += 1
        np.asarray(view).reshape(-1).view("u1")[:] = np.frombuffer(content(self.number), "u1")
        (self.live if handle in self.live else self.frozen)[handle] = content(self.number)

    # ---- many items

    @rule(n=st.integers(0, MOST + 10))
    def alloc_many(self, n: int) -> None:
        if n <= self.room():
            for handle in self.slab.alloc_many(n).tolist():
                self.born(handle)
        else:
            with pytest.raises(PoolExhausted, match=str(n)):
                self.slab.alloc_many(n)

    @rule(start=AT, step=st.integers(1, 5), count=st.integers(0, 200))
    def free_many(self, start: int, step: int, count: int) -> None:
        handles = list(self.live)[start % (len(self.live) + 1) :: step][:count]
        self.slab.free_many(handles)
        for handle in handles:
            self.died(handle)

    @precondition(lambda self: self.live)
    @rule(start=AT, count=st.integers(1, 200), at=AT, how=st.sampled_from(["dead", "twice", "zero"]))
    def free_many_in_vain(self, start: int, count: int, at: int, how: str) -> None:
        handles = list(self.live)[start % len(self.live) :][:count]
        bad = {"dead": self.dead[-1] if self.dead else 0, "twice": handles[0], "zero": 0}[how]
        at = 1 + at % len(handles)
        handles.insert(at, bad)
        with pytest.raises(StaleHandle, match=f"handle {bad}, number {at} of {len(handles)}"):
            self.slab.free_many(handles)

    @precondition(lambda self: self.live)
    @rule(start=AT, step=st.integers(1, 5))
    def many_at_once(self, start: int, step: int) -> None:
        handles = list(self.live)[start % len(self.live) :: step]
        assert self.slab[handles].tobytes() == b"".join(self.live[handle] for handle in handles)
        assert self.slab.array[self.slab.indices(handles)].tobytes() == self.slab[handles].tobytes()
        self.slab[handles[::-1]] = self.slab[handles[::-1]]

    # ---- stale handles, and the whole

    @precondition(lambda self: self.dead)
    @rule(at=AT)
    def use_the_dead(self, at: int) -> None:
        handle = self.dead[at % len(self.dead)]
        assert handle not in self.slab
        for call in (self.slab.free, self.slab.__getitem__, lambda dead: self.slab.indices([dead])):
            with pytest.raises(StaleHandle, match=str(handle)):
                call(handle)
        with pytest.raises(StaleHandle):
            self.slab[handle] = as_value(self.slab, 1)

    @rule()
    def trim(self) -> None:
        before = self.slab.stats().reserved
        freed = self.slab.trim()
        assert before - self.slab.stats().reserved == freed
        assert self.slab.trim() == 0

    @rule()
    def short_of_memory(self) -> None:
        """What an account asks for takes the tail and nothing else."""
        with may_raise(AccountLimitExceeded, "model"), self.account.charged(MIB - self.account.used + 4096):
            assert self.account.used <= MIB
        assert self.slab.trim() == 0

    @precondition(lambda self: self.allocs > 50)
    @rule()
    def free_all(self) -> None:
        for handle in list(self.live):
            self.died(handle)
        self.slab.free_many(self.slab.handles())

    # ---- what always holds

    @invariant()
    def live_items_are_whole(self) -> None:
        if not hasattr(self, "slab"):
            return
        handles = self.slab.handles().tolist()
        assert set(handles) == set(self.live) == set(self.slab)
        assert self.slab.compacted().tobytes() == b"".join(self.live[handle] for handle in handles)
        assert sorted(self.slab.indices(handles).tolist()) == self.slab.indices(handles).tolist()

    @invariant()
    def views_see_their_own_bytes(self) -> None:
        for handle, view in getattr(self, "pins", []):
            assert np.asarray(view).tobytes() == self.live.get(handle, self.frozen.get(handle))

    @invariant()
    def the_books_are_right(self) -> None:
        if not hasattr(self, "slab"):
            return
        stats = self.slab.stats()
        assert (stats.live, stats.retired, stats.exhausted) == (len(self.live), len(self.frozen), 0)
        assert (stats.allocs, stats.frees, len(self.slab)) == (self.allocs, self.frees, len(self.live))
        assert stats.live + stats.retired <= stats.slots <= stats.max_items == MOST
        assert stats.reserved == self.slab.account.used == self.account.used <= stats.peak
        array = self.slab.array
        assert len(array) == stats.slots
        assert array.__array_interface__["data"][0] == self.array.__array_interface__["data"][0]

    def teardown(self) -> None:
        if hasattr(self, "slab"):
            self.pins.clear()
            del self.array
            assert self.slab.stats().retired == 0
            self.slab.close()
            assert self.account.used == 0


TestSlab = SlabMachine.TestCase
TestSlab.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
