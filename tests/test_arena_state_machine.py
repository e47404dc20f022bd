"""An arena against a plain model: marks on a stack, the views that live, and what is retired because of them."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mempool import Arena, BufferPool, PoolExhausted

SIZE = 4096
AT = st.integers(0, 10_000)


class Piece:
    """What was allocated: its view, its content, and in which block and scopes."""

    def __init__(self, view: memoryview, content: bytes, block: int) -> None:
        self.view, self.content, self.block = view, content, block
        self.start = int(np.frombuffer(view, "u1").__array_interface__["data"][0])


class ArenaMachine(RuleBasedStateMachine):
    @initialize()
    def make(self) -> None:
        self.pool = BufferPool(idle_timeout=None)
        self.arena = Arena(SIZE, pool=self.pool)
        self.pieces: list[Piece] = []
        self.scopes: list[tuple[Any, int, int]] = []
        self.block = self.number = 0

    def add(self, n: int, align: int) -> None:
        before = self.arena.used
        try:
            view = self.arena.alloc(n, align)
        except PoolExhausted:
            assert n + align > SIZE - before
            assert self.arena.used == before
            return
        self.number += 1
        content = (self.number.to_bytes(4, "big") * (n // 4 + 1))[:n]
        view[:] = content
        piece = Piece(view, content, self.block)
        assert piece.start % align == 0
        self.pieces.append(piece)

    @rule(n=st.integers(1, 900), align=st.sampled_from([1, 8, 64, 256]))
    def alloc(self, n: int, align: int) -> None:
        self.add(n, align)

    @rule(n=st.integers(1, 900))
    def alloc_and_drop(self, n: int) -> None:
        count = len(self.pieces)
        self.add(n, 64)
        del self.pieces[count:]

    @precondition(lambda self: self.pieces)
    @rule(at=AT)
    def drop(self, at: int) -> None:
        del self.pieces[at % len(self.pieces)]

    @precondition(lambda self: self.pieces)
    @rule(at=AT)
    def keep_a_part(self, at: int) -> None:
        """The view itself goes, something made of it stays."""
        piece = self.pieces[at % len(self.pieces)]
        piece.view = memoryview(np.frombuffer(piece.view, "u1"))

    @precondition(lambda self: len(self.scopes) < 6)
    @rule()
    def begin(self) -> None:
        scope = self.arena.scope()
        used, retired = self.arena.used, self.arena.retired
        scope.__enter__()
        assert (self.arena.used, self.arena.retired) == (used, retired)
        self.scopes.append((scope, used, retired))

    @precondition(lambda self: self.scopes)
    @rule()
    def end(self) -> None:
        scope, used, retired = self.scopes.pop()
        before = self.arena.used
        scope.__exit__(None, None, None)
        assert used - retired <= self.arena.used <= before

    @precondition(lambda self: len(self.scopes) > 1)
    @rule()
    def end_out_of_order(self) -> None:
        with pytest.raises(RuntimeError):
            self.scopes[0][0].__exit__(None, None, None)

    @rule()
    def reset(self) -> None:
        if self.scopes:
            with pytest.raises(RuntimeError):
                self.arena.reset()
            return
        self.arena.reset()
        self.block += any(piece.block == self.block for piece in self.pieces)
        assert self.arena.used == 0

    @invariant()
    def views_see_their_own_bytes(self) -> None:
        for piece in getattr(self, "pieces", []):
            assert piece.view == piece.content
        spans = sorted((piece.start, piece.start + len(piece.content)) for piece in getattr(self, "pieces", []))
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))

    @invariant()
    def the_books_are_right(self) -> None:
        if not hasattr(self, "arena"):
            return
        old = len({piece.block for piece in self.pieces if piece.block != self.block})
        stats = self.pool.stats()
        assert stats.retired == old * SIZE
        assert stats.live <= 1
        assert old * SIZE <= self.arena.retired <= old * SIZE + self.arena.used
        if not self.pieces and not self.scopes:
            assert self.arena.retired <= self.arena.used
        assert all(self.arena.used >= used for _, used, _ in self.scopes)
        assert sum(len(piece.content) for piece in self.pieces if piece.block == self.block) <= self.arena.used <= SIZE

    def teardown(self) -> None:
        if hasattr(self, "arena"):
            self.pieces.clear()
            self.arena.close()
            assert (self.pool.stats().live, self.pool.stats().retired, self.arena.retired) == (0, 0, 0)


TestArena = ArenaMachine.TestCase
TestArena.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
