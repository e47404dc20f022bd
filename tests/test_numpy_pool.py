"""Arrays that NumPy itself makes, over a pool: every way to make one, what is refused, which block counts where."""

import ctypes
import gc
import io
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mempool.numpy
from mempool import Account, BufferPool
from mempool.numpy import install, installed, uninstall, use_pool
from support import KIB, MIB, check_identities, nothing_changes

N = 40_000  # float64: above what is small
SMALL = 32 * KIB

Array = NDArray[Any]


@pytest.fixture
def pool() -> Iterator[BufferPool]:
    pool = BufferPool(name="arrays", idle_timeout=None)
    yield pool
    uninstall()
    gc.collect()
    check_identities(pool.stats())
    assert pool.stats().live == 0


def entered_block(pool: BufferPool, function: Callable[[], Array]) -> Array:
    with use_pool(pool):
        return function()


def installed_pool(pool: BufferPool, function: Callable[[], Array]) -> Array:
    install(pool)
    try:
        return function()
    finally:
        uninstall()


WAYS = pytest.mark.parametrize("under", [entered_block, installed_pool])

Under = Callable[[BufferPool, Callable[[], Array]], Array]

A = np.arange(N, dtype="f8")
RECORD = np.dtype([("x", "f8"), ("name", "U20"), ("sub", "i4", (3,))])
SAVED = io.BytesIO()
np.save(SAVED, A)

MAKERS: dict[str, Callable[[], Array]] = {
    "empty": lambda: np.empty(N),
    "zeros": lambda: np.zeros(N),
    "full": lambda: np.full(N, 7.5),
    "ones, F": lambda: np.ones((200, 200), order="F"),
    "arange": lambda: np.arange(N),
    "linspace": lambda: np.linspace(0, 1, N),
    "array": lambda: np.array(list(range(N))),
    "copy": lambda: A.copy(),
    "copy, F": lambda: A.reshape(200, 200).copy(order="F"),
    "concatenate": lambda: np.concatenate((A, A)),
    "expression": lambda: (A * 2 + 1) / 3,
    "in place": lambda: np.add(A, 1, out=np.empty_like(A)),
    "astype": lambda: A.astype("f4"),
    "astype, strings": lambda: A[:5000].astype("U16"),
    "structured": lambda: np.zeros(2000, RECORD),
    "objects": lambda: np.array([str(i) for i in range(N)], dtype=object),
    "object zeros": lambda: np.zeros(N, dtype=object),
    "fancy": lambda: A[np.arange(N)[::-1]],
    "mask": lambda: A[A >= 0],
    "sort": lambda: np.sort(A[::-1]),
    "argsort": lambda: np.argsort(A[::-1]),
    "repeat": lambda: np.repeat(A, 3),
    "matmul": lambda: A.reshape(200, 200) @ A.reshape(200, 200),
    "cumsum": lambda: np.cumsum(A),
    "fromiter, counted": lambda: np.fromiter(iter(range(N)), "f8", count=N),
    "frombuffer copied": lambda: np.frombuffer(A.tobytes()).copy(),
    "load": lambda: np.load(io.BytesIO(SAVED.getvalue())),
    "where": lambda: np.where(A > 5, A, -A),
    "random": lambda: np.random.default_rng(1).random(N),
    "fft": lambda: np.fft.fft(A).real.copy(),
    "view": lambda: A.copy()[::2],
    "ufunc of strings": lambda: np.char.add(np.full(5000, "ab"), "cd"),
    "datetime": lambda: np.arange("2000", "2100", dtype="M8[D]"),
}


def same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.flags.f_contiguous == b.flags.f_contiguous


@WAYS
@pytest.mark.parametrize("name", MAKERS)
def test_each_way_to_make_an_array(pool: BufferPool, under: Under, name: str) -> None:
    """The memory is the pool's, the content is that of NumPy's own, and it goes back."""
    make = MAKERS[name]
    expected = make()
    array = under(pool, make)
    assert pool.stats().live >= 1
    assert same(array, expected)
    if name != "empty":
        assert np.array_equal(array, expected)
    array[...] = expected  # writable to the last byte
    kept = array.copy()
    del array
    assert pool.stats().live == 0
    assert pool.stats().releases == pool.stats().acquires
    if name != "empty":
        assert np.array_equal(kept, expected)


@WAYS
def test_recycled_memory_is_zero_where_zeros_were_asked_for(pool: BufferPool, under: Under) -> None:
    for nbytes in (SMALL, 100 * KIB, 3 * MIB, 40 * MIB):
        for _ in range(2):
            under(pool, lambda nbytes=nbytes: np.full(nbytes, 255, "u1"))
            array = under(pool, lambda nbytes=nbytes: np.zeros(nbytes, "u1"))
            assert not array.any()
            array.fill(255)
            del array
    assert pool.stats().hits > 0


@pytest.mark.nosan
def test_zeros_that_nobody_touches_take_no_memory(pool: BufferPool, run_python: Callable[..., Any]) -> None:
    run_python("""
        import numpy as np
        import mempool, psutil
        from mempool.numpy import use_pool

        pool = mempool.BufferPool(idle_timeout=None)
        rss = psutil.Process().memory_info
        with use_pool(pool):
            np.ones(128 << 20, "u1")
            before = rss().rss
            array = np.zeros(128 << 20, "u1")
            assert pool.stats().hits == 1
            assert rss().rss < before - (100 << 20)
            array[-1] = 1
            assert rss().rss < before - (100 << 20)
    """)


@WAYS
def test_small_arrays_stay_with_numpy(pool: BufferPool, under: Under) -> None:
    """0-size ones too."""
    for shape in ((), 0, (0, 5), 1, SMALL - 1):
        array = under(pool, lambda shape=shape: np.zeros(shape, "u1"))
        assert pool.stats().acquires == 0, shape
        del array
    array = under(pool, lambda: np.zeros(SMALL, "u1"))
    assert pool.stats().live == 1 == array.ndim


@WAYS
def test_memory_is_aligned(pool: BufferPool, under: Under) -> None:
    for nbytes in (SMALL, SMALL + 1, MIB, 5 * MIB):
        array = under(pool, lambda nbytes=nbytes: np.empty(nbytes, "u1"))
        assert array.ctypes.data % 4096 == 0
    assert (
        under(pool, lambda: np.empty(5 * MIB, "u1")).ctypes.data % (2 * MIB) == 0
    )  # a huge page, where the OS has them


@WAYS
def test_from_a_file(pool: BufferPool, under: Under, tmp_path: Path) -> None:
    A.tofile(tmp_path / "raw")
    np.save(tmp_path / "saved.npy", A)
    (tmp_path / "text").write_text(" ".join(map(str, range(N))))
    for read in (
        lambda: np.fromfile(tmp_path / "raw"),
        lambda: np.load(tmp_path / "saved.npy"),
        lambda: np.fromfile(tmp_path / "raw", count=2 * N),  # shortened to what there is
    ):
        array = under(pool, read)
        assert np.array_equal(array, A)
        assert pool.stats().live == 1
        del array
    assert np.array_equal(under(pool, lambda: np.fromfile(tmp_path / "text", sep=" ")), A)


@WAYS
def test_resize(pool: BufferPool, under: Under) -> None:
    """Longer and shorter, within a block and beyond; what is small goes to NumPy; what is new is zero."""
    array = under(pool, lambda: np.arange(N))
    length = N
    for shorter_or_longer in (N + 10, N - 10, 4 * N, 100 * N, 99 * N, N, 10, 20, N, 2 * N):
        array.resize(shorter_or_longer, refcheck=False)
        length = min(length, shorter_or_longer)
        assert np.array_equal(array[:length], np.arange(length))
        assert not array[length:].any()
        assert pool.stats().live == (1 if length > 10 else 0)  # grown from NumPy's own, it stays there
    del array
    assert pool.stats().live == 0


@WAYS
def test_growth_without_a_count(pool: BufferPool, under: Under) -> None:
    """It begins small, so it grows in NumPy's own memory."""
    array = under(pool, lambda: np.fromiter(iter(range(N)), "i8"))
    assert np.array_equal(array, np.arange(N))
    array.resize(10 * N, refcheck=False)
    assert np.array_equal(array[:N], np.arange(N))


def test_an_array_of_before_is_resized_and_freed_after_install(pool: BufferPool) -> None:
    before = [np.arange(n) for n in (10, N, 10 * N)]
    install(pool)
    for array in before:
        n = len(array)
        array.resize(2 * n, refcheck=False)
        assert np.array_equal(array[:n], np.arange(n))
    array = before[0]
    before.clear()
    acquires = pool.stats().acquires
    array.resize(5 * N, refcheck=False)
    del array
    assert pool.stats().acquires == acquires


@WAYS
@pytest.mark.parametrize("length", [10, 1, N // 2])
def test_an_array_that_is_made_shorter_behind_the_back_of_numpy(pool: BufferPool, under: Under, length: int) -> None:
    """As C extensions do, which write its extent: it is freed with a size that is not that of its memory."""
    array = under(pool, lambda: np.arange(N))
    extent = ctypes.c_void_p.from_address(id(array) + object.__basicsize__ + 16)  # behind data and ndim
    ctypes.c_ssize_t.from_address(extent.value or 0).value = length
    assert array.shape == (length,)
    del array
    assert pool.stats().live == 0
    kept = [np.zeros(n) for n in (length, 10, 1) for _ in range(10)]
    assert not any(some.any() for some in kept)


def test_blocks_nest(pool: BufferPool) -> None:
    with BufferPool(name="inner") as inner:
        with use_pool(pool) as entered:
            assert entered is pool
            a = np.empty(N)
            with use_pool(inner):
                b = np.empty(N)
                assert (pool.stats().live, inner.stats().live) == (1, 1)
            c = np.empty(N)
            assert (pool.stats().live, inner.stats().live) == (2, 1)
        d = np.empty(N)
        assert (pool.stats().live, inner.stats().live) == (2, 1)
        del a, b, c, d


def test_a_block_counts_more_than_what_is_installed(pool: BufferPool) -> None:
    other = BufferPool(name="other")
    install(other)
    with use_pool(pool):
        a = np.empty(N)
    b = np.empty(N)
    assert (pool.stats().live, other.stats().live) == (1, 1)
    assert installed() is other
    install(pool)
    c = np.empty(N)
    assert installed() is pool
    assert (pool.stats().live, other.stats().live) == (2, 1)
    uninstall()
    uninstall()
    assert installed() is None
    d = np.empty(N)
    assert (pool.stats().live, other.stats().live) == (2, 1)
    del a, b, c, d
    assert (pool.stats().live, other.stats().live) == (0, 0)


def test_a_block_ends_with_an_error(pool: BufferPool) -> None:
    with pytest.raises(ZeroDivisionError), use_pool(pool):
        1 / 0  # noqa: B018
    np.empty(N)
    assert pool.stats().acquires == 0


def test_a_block_is_entered_again_but_not_twice(pool: BufferPool) -> None:
    block = use_pool(pool)
    for _ in range(3):
        with block:
            np.empty(N)
            with pytest.raises(RuntimeError, match="entered already"):
                block.__enter__()
            np.empty(N)
    assert pool.stats().acquires == 6
    with pytest.raises(RuntimeError, match="was not entered"):
        block.__exit__(None, None, None)
    np.empty(N)
    assert pool.stats().acquires == 6


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_blocks_left_in_any_order(order: tuple[int, ...]) -> None:
    """The innermost that was not left counts; in the end none does."""
    pools = [BufferPool(name=str(i)) for i in range(3)]
    blocks = [use_pool(pool) for pool in pools]
    for block in blocks:
        block.__enter__()
    here = {0, 1, 2}
    for number in order:
        blocks[number].__exit__(None, None, None)
        here.remove(number)
        array = np.empty(N)
        assert [pool.stats().live for pool in pools] == [int(bool(here) and i == max(here)) for i in range(3)]
        del array


def test_generators_that_take_turns(pool: BufferPool) -> None:
    def generate(own: BufferPool) -> Iterator[Array]:
        with use_pool(own):
            while True:
                yield np.empty(N)

    first, second = generate(pool), generate(BufferPool())
    next(first), next(second)
    first.close()
    second.close()
    acquires = pool.stats().acquires
    np.empty(N)
    assert pool.stats().acquires == acquires


@pytest.mark.parametrize("bad", [None, 1, "pool", BufferPool, np.empty, object()])
def test_what_is_no_pool(bad: Any) -> None:
    for call in (use_pool, install):
        with pytest.raises(TypeError, match="pool must be a BufferPool, not "):
            call(bad)
    assert installed() is None


def test_a_closed_pool(pool: BufferPool) -> None:
    """It is refused; closed later, arrays are NumPy's again, also those that grow."""
    block = use_pool(pool)
    with block:
        array = np.arange(N)
        install(pool)
        pool.close()
        for make in MAKERS.values():
            make()
        assert pool.stats().live == 1
        array.resize(10 * N, refcheck=False)
        assert np.array_equal(array[:N], np.arange(N))
        assert pool.stats().live == 0
    assert not np.zeros(N).any()
    for call in (use_pool, install):
        with pytest.raises(ValueError, match="pool 'arrays' is closed"):
            call(pool)
    assert installed() is pool
    with pytest.raises(ValueError, match="is closed"), block:
        pass
    np.empty(N)


def test_a_pool_that_was_never_initialised() -> None:
    raw = BufferPool.__new__(BufferPool)
    for call in (use_pool, install):
        with pytest.raises(ValueError, match="never initialised"):
            call(raw)


@WAYS
def test_limits_hold(pool: BufferPool, under: Under) -> None:
    pool.limit = 4 * MIB
    array = under(pool, lambda: np.ones(3 * MIB, "u1"))
    with nothing_changes(pool):
        for make in (lambda: np.empty(2 * MIB, "u1"), lambda: np.zeros(2 * MIB, "u1"), lambda: np.empty(1 << 40, "u1")):
            with pytest.raises(MemoryError):
                under(pool, make)
        with pytest.raises(MemoryError):
            array.resize(4 * MIB, refcheck=False)
    assert pool.stats().exhausted == 4
    assert array.shape == (3 * MIB,)
    assert array.all()
    array.resize(MIB, refcheck=False)
    assert array.all()


def test_limits_of_accounts_hold() -> None:
    account = Account("tight", limit=4 * MIB)
    pool = BufferPool(account=account)
    with use_pool(pool):
        array = np.empty(3 * MIB, "u1")
        with pytest.raises(MemoryError):
            np.empty(2 * MIB, "u1")
        assert account.used == 3 * MIB
        del array
        np.empty(4 * MIB, "u1")


def test_sizes_that_overflow(pool: BufferPool) -> None:
    with use_pool(pool):
        for shape in ((1 << 62,), (1 << 33, 1 << 33), (1 << 46,)):
            with pytest.raises((MemoryError, ValueError)):
                np.zeros(shape)
    assert pool.stats().live == 0


def test_tracemalloc_counts_it_once(pool: BufferPool) -> None:
    tracemalloc.start()
    try:
        with use_pool(pool):
            before = tracemalloc.get_traced_memory()[0]
            array = np.empty(MIB, "u1")
            assert MIB <= tracemalloc.get_traced_memory()[0] - before < MIB + 100 * KIB
            array.resize(2 * MIB, refcheck=False)
            assert 2 * MIB <= tracemalloc.get_traced_memory()[0] - before < 2 * MIB + 100 * KIB
            del array
            assert tracemalloc.get_traced_memory()[0] - before < 100 * KIB
    finally:
        tracemalloc.stop()


def test_a_pool_that_clears(pool: BufferPool) -> None:
    clearing = BufferPool(zero_on_release=True, idle_timeout=None)
    with use_pool(clearing):
        for nbytes in (100 * KIB, 3 * MIB):
            np.full(nbytes, 255, "u1")
            assert not np.empty(nbytes, "u1").any()
    assert clearing.stats().hits == 2


def test_the_module_is_found_and_light(run_python: Callable[..., Any]) -> None:
    run_python("""
        import sys, mempool
        assert "numpy" not in sys.modules
        from mempool.numpy import use_pool
        assert sys.modules["mempool.numpy"] is mempool.numpy
        assert "mempool.numpy" in sys.modules and mempool.numpy.installed() is None
    """)


def test_names_of_handlers(pool: BufferPool) -> None:
    """What NumPy tells of each."""
    from numpy._core.multiarray import get_handler_name

    with use_pool(pool):
        assert get_handler_name() == get_handler_name(np.empty(10)) == "mempool"
    install(pool)
    assert get_handler_name() == get_handler_name(np.empty(N)) == "default_allocator"
    assert mempool.numpy.__all__ == ["install", "installed", "uninstall", "use_pool"]
