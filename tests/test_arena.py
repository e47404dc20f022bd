"""An arena: allocations end together, and what is still viewed is never lent again."""

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mempool
from mempool import Account, AccountLimitExceeded, Arena, BufferPool, PoolExhausted
from support import DEADLINE, KIB, MIB, start_waiter


@pytest.fixture
def pool() -> Iterator[BufferPool]:
    with BufferPool(idle_timeout=None, name="under") as pool:
        yield pool


@pytest.fixture
def arena(pool: BufferPool) -> Arena:
    return Arena("64KiB", pool=pool, name="mine")


def address(view: Any) -> int:
    return int(np.frombuffer(view, "u1").__array_interface__["data"][0]) if len(view) else 0


def leased(pool: BufferPool) -> tuple[int, int]:
    stats = pool.stats()
    return stats.live, stats.retired


# ---- allocations


def test_allocations_lie_side_by_side(arena: Arena) -> None:
    first, second, third = arena.alloc(10), arena.alloc(100), arena.alloc(0)
    assert [view.nbytes for view in (first, second, third)] == [10, 100, 0]
    assert (first.readonly, first.format, first.contiguous) == (False, "B", True)
    assert address(second) == address(first) + 64
    assert arena.used == 64 + 128
    first[:] = b"x" * 10
    second[:] = b"y" * 100
    assert bytes(first) == b"x" * 10
    assert (arena.size, arena.free, arena.retired, arena.name) == (64 * KIB, 64 * KIB - 192, 0, "mine")


@pytest.mark.parametrize("align", [1, 2, 64, 4096, 65536, 2 * MIB])
def test_alignment(pool: BufferPool, align: int) -> None:
    arena = Arena("8MiB", pool=pool)
    for _ in range(2):
        arena.alloc(1)
        assert address(arena.alloc(3, align)) % align == 0
    assert address(arena.alloc(3, align=np.int64(align))) % align == 0


def test_without_alignment_no_byte_is_lost(arena: Arena) -> None:
    views = [arena.alloc(n, 1) for n in (1, 2, 3, 5)]
    assert arena.used == 11
    assert [address(view) - address(views[0]) for view in views] == [0, 1, 3, 6]


def test_the_whole_and_no_more(arena: Arena) -> None:
    whole = arena.alloc("64KiB")
    assert (len(whole), arena.free) == (64 * KIB, 0)
    with pytest.raises(
        PoolExhausted, match=r"arena 'mine' cannot lend 1 bytes at a multiple of 64: 65536 of 65536"
    ) as caught:
        arena.alloc(1)
    assert (caught.value.requested, caught.value.in_use, caught.value.limit) == (1, 65536, 65536)
    assert len(arena.alloc(0)) == 0
    assert isinstance(caught.value, MemoryError)


@pytest.mark.parametrize("n", [64 * KIB + 1, 2**62, 2**63 - 1, 2**63, 2**64, 2**200, "1TiB"])
def test_too_much_changes_nothing(arena: Arena, n: Any) -> None:
    arena.alloc(10)
    with pytest.raises(PoolExhausted, match="mine"):
        arena.alloc(n)
    with pytest.raises(PoolExhausted, match="mine"):
        arena.alloc(64 * KIB - 5, 4096)
    assert arena.used == 10


def test_arrays(arena: Arena) -> None:
    plain = arena.array((10, 3))
    assert (plain.dtype, plain.shape, plain.flags.c_contiguous, plain.flags.writeable) == (
        np.float64,
        (10, 3),
        True,
        True,
    )
    other = arena.array(7, "<i2", order="F")
    record = arena.array((2,), [("a", "u1"), ("b", "f8")], order="F")
    turned = arena.array([2, 3], "f4", order="F")
    assert turned.flags.f_contiguous
    assert turned.__array_interface__["data"][0] % 64 == 0
    for array in (plain, other, turned):
        array[...] = 1
    record["b"] = 2.5
    assert (plain.sum(), other.sum(), record["b"].sum(), turned.sum()) == (30, 7, 5, 6)
    assert arena.array((0, 2**50)).shape == (0, 2**50)
    assert arena.array(()).shape == ()


def test_bad_arrays(arena: Arena) -> None:
    for shape, dtype, error in (
        ((2**40, 2**40), "f8", ValueError),
        ((2**20,), "f8", PoolExhausted),
        (-1, "f8", ValueError),
        (None, "f8", TypeError),
        (5, "O", ValueError),
        (5, "V0", ValueError),
        (5, "no type", TypeError),
        (5, "(2,)f4", ValueError),
        ((1,) * 65, "f8", ValueError),
    ):
        with pytest.raises(error):
            arena.array(shape, dtype)
    with pytest.raises(ValueError, match="order"):
        arena.array(1, order="K")  # type: ignore[call-overload]
    assert arena.used == 0


# ---- what is refused


@pytest.mark.parametrize("n", [True, 1.0, None, [], b"1"])
def test_sizes_are_ints(arena: Arena, n: Any) -> None:
    with pytest.raises(TypeError):
        arena.alloc(n)
    with pytest.raises(TypeError):
        arena.alloc(1, n)
    with pytest.raises(TypeError):
        Arena(n)
    assert arena.used == 0


def test_bad_arguments(arena: Arena, pool: BufferPool) -> None:
    for align in (0, 3, -64, 4 * MIB, 2**70):
        with pytest.raises(ValueError, match="alignment must be a power of two"):
            arena.alloc(1, align)
    with pytest.raises(ValueError, match="-5"):
        arena.alloc(-5)
    for size in (0, -1, "0", "some"):
        with pytest.raises(ValueError, match="size"):
            Arena(size)
    for kind in ({"pool": 5}, {"account": 5}, {"name": 5}):
        with pytest.raises(TypeError, match=next(iter(kind))):
            Arena(1, **kind)
    with pytest.raises(ValueError, match="'under' has an account already"):
        Arena(1, pool=pool, account=Account("a"))
    with pytest.raises(OverflowError):
        Arena(2**70)
    with pytest.raises(MemoryError):
        Arena(2**60, pool=pool)
    with pytest.raises(ValueError, match="never initialised"):
        Arena(1, pool=BufferPool.__new__(BufferPool))


def test_a_scope_is_made_by_its_arena(arena: Arena) -> None:
    for scope in (type(arena.scope())(), type(arena.scope()).__new__(type(arena.scope()))):
        for call in (scope.__enter__, lambda scope=scope: scope.__exit__(None, None, None)):
            with pytest.raises(ValueError, match="made by"):
                call()


def test_closed(arena: Arena, pool: BufferPool) -> None:
    scope = arena.scope()
    arena.close()
    arena.close()
    assert arena.closed
    assert repr(arena) == "<mempool.Arena 'mine', closed>"
    for call in (lambda: arena.alloc(1), lambda: arena.array(1), arena.reset, arena.__enter__, scope.__enter__):
        with pytest.raises(ValueError, match="'mine' is closed"):
            call()
    assert leased(pool) == (0, 0)


# ---- reset


def test_reset_takes_it_back(arena: Arena, pool: BufferPool) -> None:
    view = arena.alloc(1000)
    where = address(view)
    del view
    arena.reset()
    assert (arena.used, arena.retired) == (0, 0)
    assert address(arena.alloc(1000)) == where
    assert pool.stats().acquires == 1


def test_what_is_viewed_is_retired(arena: Arena, pool: BufferPool) -> None:
    view = arena.alloc(1000)
    view[:] = b"a" * 1000
    gone = arena.alloc(1000)
    del gone
    arena.reset()
    assert (arena.used, arena.retired) == (0, 64 * KIB)
    assert (pool.stats().retired, pool.stats().live) == (64 * KIB, 0)
    other = arena.alloc(64 * KIB)
    other[:] = b"b" * 64 * KIB
    assert bytes(view) == b"a" * 1000
    assert (pool.stats().retired, pool.stats().live) == (64 * KIB, 1)
    del view
    assert arena.retired == pool.stats().retired == 0


@pytest.mark.parametrize(
    "hold",
    [
        lambda view: view[3:5],
        lambda view: memoryview(view),
        lambda view: np.frombuffer(view, "u1"),
        lambda view: np.ndarray((5,), "u1", buffer=view),
        lambda view: np.asarray(view)[::2],
        lambda view: view.obj,
        lambda view: view.cast("H"),
        lambda view: view.toreadonly(),
    ],
)
def test_whatever_is_kept_of_it(arena: Arena, pool: BufferPool, hold: Callable[[memoryview], Any]) -> None:
    with arena.scope():
        kept = hold(arena.alloc(100))
    before = bytes(memoryview(kept))
    arena.alloc(1000)[:] = b"z" * 1000
    arena.reset()
    for _ in range(3):
        arena.alloc(64 * KIB)[:] = b"y" * 64 * KIB
        arena.reset()
    assert bytes(memoryview(kept)) == before
    assert pool.stats().retired == arena.retired == 64 * KIB
    del kept
    assert pool.stats().retired == arena.retired == 0


def test_a_limit_counts_what_is_retired() -> None:
    with BufferPool(limit="64KiB", idle_timeout=None) as pool:
        arena = Arena("64KiB", pool=pool)
        view = arena.alloc(1)
        arena.reset()
        with pytest.raises(PoolExhausted, match="limit 65536"):
            arena.alloc(1)
        del view
        assert len(arena.alloc(1)) == 1


def test_reset_is_not_for_scopes(arena: Arena) -> None:
    with arena.scope():
        arena.alloc(5)
        with pytest.raises(RuntimeError, match="'mine' cannot be reset inside a scope"):
            arena.reset()
        assert arena.used == 5
    arena.reset()


# ---- scopes


def test_scopes_take_back_what_is_inside(arena: Arena) -> None:
    kept = arena.alloc(10)
    kept[:] = b"0123456789"
    for _ in range(1000):
        with arena.scope() as same:
            assert same is arena
            arena.alloc(10_000)
            with arena.scope():
                arena.alloc(10_000)
                assert arena.used > 20_000
            assert 10_000 < arena.used < 11_000
        assert arena.used == 10
    assert bytes(kept) == b"0123456789"


def test_what_a_scope_leaves_viewed_stays(arena: Arena) -> None:
    with arena.scope():
        arena.alloc(100)
        view = arena.alloc(100)
        view[:] = b"v" * 100
    assert (arena.used, arena.retired) == (228, 228)
    other = arena.alloc(1000)
    other[:] = b"o" * 1000
    assert address(other) > address(view)
    assert bytes(view) == b"v" * 100
    del view
    assert (arena.used, arena.retired) == (1256, 228)  # something lies above it
    del other
    arena.reset()
    assert (arena.used, arena.retired) == (0, 0)


def test_space_comes_back_with_the_last_view(arena: Arena) -> None:
    views = []
    for _ in range(5):
        with arena.scope():
            views.append(arena.alloc(1000))
    assert (arena.used, arena.retired) == (4 * 1024 + 1000, 4 * 1024 + 1000)
    del views[2]
    assert arena.used == 4 * 1024 + 1000
    views.pop()
    assert (arena.used, arena.retired) == (3 * 1024 + 1000, 3 * 1024 + 1000)
    views.pop()
    assert (arena.used, arena.retired) == (1024 + 1000, 1024 + 1000)
    views.clear()
    assert (arena.used, arena.retired) == (0, 0)


def test_work_in_a_function_uses_the_same_space(arena: Arena) -> None:
    def work() -> int:
        with arena.scope():
            scratch = arena.alloc(50_000)
            scratch[:3] = b"abc"
        return address(scratch)

    assert len({work() for _ in range(20)}) == 1


def test_an_inner_view_holds_what_is_around_it(arena: Arena) -> None:
    with arena.scope():
        outer = arena.alloc(1000)
        with arena.scope():
            inner = arena.alloc(1000)
            inner[:] = b"i" * 1000
        del outer
    assert arena.used == arena.retired == 2024
    with arena.scope():
        arena.alloc(10_000)[:] = b"x" * 10_000
    assert bytes(inner) == b"i" * 1000
    del inner
    assert arena.used == arena.retired == 0


def test_an_older_one_is_not_held_by_a_newer(arena: Arena) -> None:
    with arena.scope():
        old = arena.alloc(10)
    with arena.scope():
        with arena.scope():
            new = arena.alloc(10)
        fill = arena.alloc(1)
    assert arena.used == 129
    del old
    del fill
    assert arena.used == 129
    del new
    assert arena.used == arena.retired == 0


def test_a_scope_does_not_reach_below_itself(arena: Arena) -> None:
    with arena.scope():
        before = arena.alloc(100)
    with arena.scope():
        del before
        assert (arena.used, arena.retired) == (100, 100)
        inside = arena.alloc(100)
        assert arena.used == 228
    assert (arena.used, arena.retired) == (228, 228)
    del inside
    assert (arena.used, arena.retired) == (0, 0)


def test_scopes_end_in_order(arena: Arena) -> None:
    outer, inner = arena.scope(), arena.scope()
    outer.__enter__()
    arena.alloc(100)
    inner.__enter__()
    arena.alloc(100)
    with pytest.raises(RuntimeError, match="'mine' ends that is not the innermost"):
        outer.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="'mine' was entered already"):
        inner.__enter__()
    assert arena.used == 228
    inner.__exit__(None, None, None)
    assert arena.used == 100
    outer.__exit__(None, None, None)
    assert arena.used == 0
    for scope in (outer, inner, arena.scope()):
        with pytest.raises(RuntimeError, match="innermost"):
            scope.__exit__(None, None, None)


def test_errors_end_scopes(arena: Arena) -> None:
    with pytest.raises(KeyError), arena.scope():
        arena.alloc(10)
        raise KeyError
    assert arena.used == 0


def test_scopes_are_not_too_deep(arena: Arena) -> None:
    scopes = [arena.scope() for _ in range(1000)]
    for scope in scopes:
        scope.__enter__()
    view = arena.alloc(1)
    with pytest.raises(RuntimeError, match="1000 scopes"):
        arena.scope().__enter__()
    arena.close()
    for scope in reversed(scopes):
        scope.__exit__(None, None, None)
    view[0] = 5
    del view


def test_close_inside_a_scope(pool: BufferPool) -> None:
    with Arena(100, pool=pool) as arena, arena.scope():
        view = arena.alloc(10)
        arena.close()
        view[:] = b"still here"
    assert bytes(view) == b"still here"
    assert leased(pool)[0] == 0
    del view
    assert leased(pool) == (0, 0)


# ---- lifetimes


@pytest.mark.parametrize("end", ["close", "drop"])
def test_views_outlive_the_arena(pool: BufferPool, end: str) -> None:
    arena = Arena(5000, pool=pool)
    ref = weakref.ref(arena)
    with arena.scope():
        views: list[Any] = [arena.alloc(10), arena.array(10, "i4")]
    views.append(arena.alloc(10))
    for view in views:
        view[:] = bytes(range(10)) if isinstance(view, memoryview) else range(10)
    if end == "close":
        arena.close()
        assert arena.retired == 5000
    del arena
    assert ref() is None
    with pool.acquire(5000) as other:
        other[:] = b"x" * 5000
    assert [list(view) for view in views] == [list(range(10))] * 3
    assert pool.stats().live == 0
    while views:
        assert pool.stats().retired == pool.stats().reserved - pool.stats().idle > 0
        del view
        view = views.pop()
    del view
    assert leased(pool) == (0, 0)


def test_dropping_an_arena_is_no_leak(recwarn: pytest.WarningsRecorder) -> None:
    gc.collect()
    recwarn.clear()  # garbage of earlier tests may warn
    with BufferPool(leak_detection="full") as pool:
        arena = Arena(5000, pool=pool)
        view = arena.alloc(5)
        del arena, view
        gc.collect()
        assert leased(pool) == (0, 0)
    assert not [w for w in recwarn.list if w.category is ResourceWarning]


def test_who_waits_for_the_block_gets_it() -> None:
    with BufferPool(limit="64KiB", idle_timeout=None) as pool:
        for how in ("close", "drop", "view"):
            arena: Arena | None = Arena("64KiB", pool=pool)
            assert arena is not None
            view = arena.alloc(1) if how == "view" else None
            waiter = start_waiter(pool, lambda pool=pool: pool.acquire("64KiB", timeout=DEADLINE).release())
            if how != "drop":
                arena.close()
            arena = None
            view = None
            waiter.result()
        assert view is None
        assert arena is None


def test_a_pool_of_its_own() -> None:
    account = Account("mine")
    arena = Arena("64KiB", account=account, name="a")
    assert (account.used, arena.pool.name, arena.pool.account.parent) == (64 * KIB, "a", account)
    view = arena.alloc(5)
    arena.close()
    assert account.used == 64 * KIB
    del view
    assert account.used == 0
    with pytest.raises(AccountLimitExceeded, match="tight"):
        Arena("64KiB", account=Account("tight", limit="8KiB"))


def test_the_default_pool(run_python: Callable[..., Any]) -> None:
    """In a process of its own: leases that other tests dropped end at any moment."""
    run_python("""
        import mempool
        with mempool.Arena(100) as arena:
            assert arena.pool is mempool.default_pool()
            assert arena.pool.stats().live == 1
            assert arena.name.startswith("arena-")
        assert mempool.default_pool().stats().live == 0
    """)


def test_it_says_how_much_is_used() -> None:
    with BufferPool() as other, Arena(100, pool=other) as arena:
        assert "0 of 100" in repr(arena)
    assert other.stats().live == 0


def test_a_closed_pool_lends_no_second_block(pool: BufferPool, arena: Arena) -> None:
    view = arena.alloc(1)
    pool.close()
    assert len(arena.alloc(1)) == 1
    arena.reset()
    with pytest.raises(ValueError, match="'under' is closed"):
        arena.alloc(1)
    with pytest.raises(ValueError, match="'under' is closed"), arena.scope():
        pass
    del view


def test_tracemalloc_sees_the_block() -> None:
    tracemalloc.start()
    try:
        with BufferPool() as pool, Arena(MIB, pool=pool):
            traces = tracemalloc.take_snapshot().traces
            assert MIB in [trace.size for trace in traces if trace.domain == mempool.TRACEMALLOC_DOMAIN]
    finally:
        tracemalloc.stop()
