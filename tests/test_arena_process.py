"""An arena between threads, across fork, at exit, and when Python has no memory."""

import gc
import os
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mempool import Arena, BufferPool, PoolExhausted
from support import may_raise, together, until


@pytest.fixture
def pool() -> Iterator[BufferPool]:
    with BufferPool(idle_timeout=None, name="under") as pool:
        yield pool


def leased(pool: BufferPool) -> tuple[int, int]:
    stats = pool.stats()
    return stats.live, stats.retired


# ---- threads, fork, exit


def test_threads_get_bytes_of_their_own(pool: BufferPool) -> None:
    arena = Arena("4MiB", pool=pool)

    def work(mark: int) -> None:
        views = []
        for i in range(500):
            views.append(arena.alloc(100 + i))
            views[-1][:] = bytes([mark]) * (100 + i)
        assert all(bytes(view) == bytes([mark]) * len(view) for view in views)

    together([lambda mark=mark: work(mark) for mark in range(4)])
    assert arena.used >= 4 * 500 * 100


def test_threads_among_resets_and_scopes(pool: BufferPool) -> None:
    arena = Arena("256KiB", pool=pool)

    def fill(mark: int) -> None:
        for i in range(2000):
            try:
                view = arena.alloc(1 + i % 300)
            except PoolExhausted:
                continue
            view[:] = bytes([mark]) * len(view)
            held = arena.alloc(0)
            assert bytes(view) == bytes([mark]) * len(view)
            del held

    def scopes() -> None:
        for _ in range(2000):
            with arena.scope():
                pass

    def resets() -> None:
        for _ in range(2000):
            with may_raise(RuntimeError, "inside a scope"):
                arena.reset()

    together([lambda: fill(1), lambda: fill(2), scopes, resets, lambda: [arena.retired for _ in range(2000)]])
    arena.close()
    until(lambda: leased(pool) == (0, 0), "the end of all blocks")
    assert arena.retired == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the OS has no fork")
def test_fork(run_python: Callable[..., Any]) -> None:
    code = """
        import os
        from mempool import Arena, BufferPool

        pool = BufferPool()
        arena = Arena(10000, pool=pool)
        view = arena.alloc(100)
        view[:] = b"p" * 100
        child = os.fork()
        if child == 0:
            assert bytes(view) == b"p" * 100
            view[:] = b"c" * 100
            with arena.scope():
                arena.alloc(1000)[:] = b"c" * 1000
            arena.reset()
            assert arena.retired == 10000
            arena.alloc(10)
            arena.close()
            del view
            os._exit(pool.stats().live + pool.stats().retired)
        assert os.waitpid(child, 0)[1] == 0
        assert bytes(view) == b"p" * 100 and arena.used == 100
    """
    run_python(code)


@pytest.mark.parametrize("keep", ["arena", "view", "arena, view, scope", "Cycle(arena, view, scope)"])
def test_at_exit(run_python: Callable[..., Any], keep: str) -> None:
    code = f"""
        import sys
        from mempool import Account, Arena

        class Cycle:
            def __init__(self, *kept): self.kept, self.me = kept, self
            def __del__(self): self.kept[0].alloc(1); self.kept[2].__exit__(None, None, None)

        arena = Arena(1000, account=Account("a"))
        scope = arena.scope()
        scope.__enter__()
        view = arena.alloc(10)
        sys.kept = {keep}
        del arena, view, scope
    """
    assert run_python(code, options=["-X", "dev"]).stderr == ""


def test_views_that_follow_each_other_end_one_by_one(run_python: Callable[..., Any]) -> None:
    """However many scopes ended while the next view lived: what they left is not freed one inside the other."""
    code = """
        from mempool import Arena

        for end in ("reset", "close"):
            arena = Arena("1MiB")
            for _ in range(400_000):
                with arena.scope():
                    view = arena.alloc(1, 1)
            assert arena.used == arena.retired == 400_000
            getattr(arena, end)()
            assert arena.retired == 2**20
            del view
            assert arena.retired == 0
    """
    run_python(code)


OOM = """
import _testcapi, gc, sys
import numpy as np
from mempool import Account, Arena, BufferPool, PoolExhausted

pool = BufferPool(idle_timeout=None)
arena = Arena(10000, pool=pool)
kept = arena.alloc(100)
gc.disable()
sys.unraisablehook = lambda unraisable: None

def attempt(function, nth):
    _testcapi.set_nomemory(nth, nth + 1)
    try:
        function()
    except AssertionError:
        raise
    except Exception:  # not all of Python says MemoryError when it has none
        return False
    finally:
        _testcapi.remove_mem_hooks()
    return True

def each_allocation(function):
    function()
    nth, clean = 1, 0
    while clean < 5:
        done = attempt(function, nth)
        gc.collect()
        assert (arena.used, arena.retired) == (100, 0), (nth, arena)
        stats = pool.stats()
        assert (stats.live, stats.retired) == (1, 0), nth
        clean = clean + 1 if done else 0
        nth += 1
        assert nth < 500
"""

CALLS = {
    "make": "Arena(5000, pool=pool)",
    "make with an account": "Arena(5000, account=Account('a')).close()",
    "alloc": """
        with arena.scope():
            used = arena.used
            try: arena.alloc(10)
            except MemoryError:
                assert arena.used == used
                raise
        """,
    "array": """
        with arena.scope():
            used = arena.used
            try: arena.array((2, 3), 'f4')
            except MemoryError:
                assert arena.used == used
                raise
        """,
    "scopes": """
        with arena.scope():
            with arena.scope():
                view = arena.alloc(10)
        """,
    "reset": "a = Arena(5000, pool=pool); v = a.alloc(5); a.reset(); w = a.alloc(5); repr(a)",
    "refused": """
        for refused, args in ((arena.alloc, (99999,)), (arena.alloc, (1, 3)), (Arena, (0,))):
            try: refused(*args)
            except (ValueError, PoolExhausted): pass
        """,
}


@pytest.mark.parametrize("name", CALLS)
def test_each_allocation_fails_once(run_python: Callable[..., Any], name: str) -> None:
    testcapi = pytest.importorskip("_testcapi")
    if not hasattr(testcapi, "set_nomemory"):
        pytest.skip("this interpreter cannot fail allocations")
    body = textwrap.indent(textwrap.dedent(CALLS[name]), "    ")
    run_python(f"{OOM}\ndef call():\n{body}\neach_allocation(call)\n")


def test_finalisers_run_inside_calls(pool: BufferPool) -> None:
    """The collector may run Python in any allocation: what it allocates, ends or resets is not lent twice."""
    arena = Arena("256KiB", pool=pool)
    views: list[tuple[memoryview, bytes]] = []

    def lend(mark: bytes) -> None:
        view = arena.alloc(10)
        view[:] = mark * 10
        views.append((view, mark * 10))

    class Meddler:
        def __init__(self, act: Callable[[], None]) -> None:
            self.me, self.act = self, act

        def __del__(self) -> None:
            self.act()

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for i in range(300):
            Meddler(lambda: lend(b"m"))
            Meddler(arena.reset if i % 50 == 0 else lambda: None)
            lend(b"a")
            assert all(bytes(view) == mark for view, mark in views)
            if i % 50 == 49:
                views.clear()
    finally:
        gc.set_threshold(*before)
    gc.collect()  # the last of them need an open arena
    views.clear()
    arena.close()
    assert leased(pool) == (0, 0)
