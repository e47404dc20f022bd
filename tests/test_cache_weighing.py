"""What a value weighs and whose death frees it: for what this package makes, for views of it, for what others make, for liars."""

import array
import ctypes
import gc
import mmap
import pickle
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mempool
from lease_views import View, each_view
from mempool.cache import Cache, WeakCache
from mempool.cache._policies import anchor, real_bytes, seen
from mempool.io import BytesStream
from mempool.shared import SharedPool

UNSEEN, SEEN = 0, 1
# What hides its memory: a capsule, ctypes, and pyarrow's own objects.
OPAQUE = {
    "numpy.from_dlpack",
    "DLPack capsule",
    "DLPack capsule 1.0",
    "ctypes array",
    "ctypes structure",
    "field of a ctypes structure",
    "pyarrow.py_buffer",
    "pyarrow slice",
    "pyarrow array",
}


def look(box: list[Any], own: int | None = None) -> int:
    """Whether anybody but a list has the memory of what is in it."""
    return seen(box[0], OWN if own is None else own)


_probe: list[Any] = [bytearray()]
OWN = next(own for own in range(9) if look(_probe, own) == UNSEEN)  # the list's reference, and those of the call


class Sub(np.ndarray[Any, Any]):
    """An array of another type, between others."""


@pytest.fixture
def pool() -> mempool.BufferPool:
    return mempool.BufferPool()


def test_a_buffer_weighs_its_block(pool: mempool.BufferPool) -> None:
    for size in (1, 64, 100, 5000, 70_000, 3 << 20):
        buffer = pool.acquire(size)
        assert real_bytes(buffer) == buffer.capacity >= size
    buffer.resize(10)
    assert real_bytes(buffer) == buffer.capacity


@each_view
def test_a_view_weighs_all_that_it_keeps(pool: mempool.BufferPool, view: View) -> None:
    buffer = pool.acquire(4096)
    seen_by = view.make(buffer)
    weight = real_bytes(seen_by)
    if view.name in OPAQUE:
        assert weight >= sys.getsizeof(seen_by)
    else:
        assert weight == buffer.capacity


@each_view
def test_the_anchor_of_a_buffer_dies_with_its_last_view(pool: mempool.BufferPool, view: View) -> None:
    buffer = pool.acquire(4096)
    watch = weakref.ref(anchor(buffer))
    made = view.make(buffer)
    del buffer
    assert watch() is not None
    assert pool.stats().idle == 0
    del made
    gc.collect()
    assert watch() is None
    assert pool.stats().in_use == pool.stats().retired == 0


@each_view
def test_the_anchor_of_a_view_is_that_of_the_buffer(pool: mempool.BufferPool, view: View) -> None:
    buffer = pool.acquire(4096)
    made = view.make(buffer)
    if view.name not in OPAQUE:
        assert anchor(made) is anchor(buffer)


@each_view
def test_whoever_views_a_buffer_is_seen(pool: mempool.BufferPool, view: View) -> None:
    held = [pool.acquire(4096)]
    assert look(held) == UNSEEN
    made = view.make(held[0])
    assert look(held) == SEEN
    del made
    gc.collect()
    assert look(held) == UNSEEN


def test_the_memory_is_back_before_anybody_hears_of_it(pool: mempool.BufferPool) -> None:
    heard = []

    def tell(_: object) -> None:
        stats = pool.stats()
        heard.append((stats.in_use, stats.retired))

    for end in ("release", "drop", "view", "with"):
        buffer = pool.acquire(4096)
        watch = weakref.ref(anchor(buffer), tell)
        if end == "release":
            buffer.release()
        elif end == "with":
            with buffer:
                pass
        elif end == "view":
            view = buffer[3:]
            buffer.release()
            del view
        del buffer
        assert watch() is None, end
    assert heard == [(0, 0)] * 4


def test_an_exception_on_its_way_survives_the_death_of_a_view(pool: mempool.BufferPool) -> None:
    def fail() -> None:
        view = pool.acquire(2 << 20)[5:]
        watch.append(weakref.ref(view.obj, lambda _: gc.collect()))
        raise KeyError("kept")

    watch: list[Any] = []
    with pytest.raises(KeyError, match="kept"):
        fail()
    assert watch[0]() is None


def test_a_waiter_is_served_when_the_last_view_dies() -> None:
    pool = mempool.BufferPool(limit=4096)
    view = pool.acquire(4096)[1:]
    watch = weakref.ref(view.obj)
    with pytest.raises(mempool.PoolExhausted):
        pool.acquire(4096)
    del view
    assert watch() is None
    assert pool.acquire(4096).nbytes == 4096


def test_the_collector_does_not_know_what_views_keep(pool: mempool.BufferPool) -> None:
    """Else a weak reference could die before a finaliser brings the view back to life."""

    class Phoenix:
        def __init__(self) -> None:
            self.me, self.view = self, pool.acquire(4096)[:]

        def __del__(self) -> None:
            risen.append(self.view)

    risen: list[memoryview] = []
    watch = weakref.ref(anchor(Phoenix().view))
    gc.collect()
    assert watch() is not None
    assert len(risen) == 1
    risen.clear()
    assert watch() is None


def test_a_released_buffer_weighs_what_it_is_and_frees_nothing(pool: mempool.BufferPool) -> None:
    buffer = pool.acquire(1 << 20)
    view = buffer[:]
    buffer.release()
    assert real_bytes(buffer) == sys.getsizeof(buffer)
    assert anchor(buffer) is None
    held = [buffer]
    del buffer
    assert look(held) == UNSEEN
    assert real_bytes(view) == 1 << 20
    view.release()
    assert real_bytes(view) == sys.getsizeof(view)
    assert anchor(view) is None


def test_a_buffer_that_an_array_keeps_weighs_its_block_after_release(pool: mempool.BufferPool) -> None:
    buffer = pool.acquire(1 << 20)
    kept = np.ndarray(8, "u1", buffer=buffer)
    buffer.release()
    assert anchor(buffer) is anchor(kept) is not None
    assert real_bytes(kept) == 1 << 20


def test_an_empty_buffer_still_weighs_something() -> None:
    assert real_bytes(mempool.acquire(0)) > 0


class TestOthersOfOurs:
    def test_shared_buffers(self) -> None:
        with SharedPool() as pool:
            held = [pool.acquire(5000)]
            assert look(held) == UNSEEN
            view = held[0][2:9]
            assert look(held) == SEEN
            buffer = held.pop()
            assert real_bytes(view) == real_bytes(buffer) == buffer.capacity
            assert anchor(view) is anchor(buffer)
            watch = weakref.ref(anchor(buffer))
            buffer.release()
            assert anchor(buffer) is None
            assert watch() is not None
            del view
            assert watch() is None

    def test_a_shared_buffer_that_an_array_keeps(self) -> None:
        with SharedPool() as pool:
            held = [pool.acquire(5000)]
            kept = np.ndarray(8, "u1", buffer=held[0])
            assert look(held) == SEEN
            buffer = held.pop()
            buffer.release()
            assert anchor(kept) is anchor(buffer) is not None

    def test_streams(self, pool: mempool.BufferPool) -> None:
        stream = BytesStream(b"x" * 100_000, pool=pool)
        held = pool.stats().in_use
        assert held <= real_bytes(stream) == real_bytes(stream.getbuffer()) == sys.getsizeof(stream)
        assert anchor(stream) is anchor(stream.getbuffer()) is stream
        part = stream.buffers()[0]
        assert real_bytes(part) == held
        watch = weakref.ref(anchor(part))
        stream.close()
        assert watch() is not None
        del part
        assert watch() is None
        assert real_bytes(stream) == sys.getsizeof(stream)

    def test_slabs_and_items(self) -> None:
        slab = mempool.SlabAllocator(4096)
        item = slab[slab.alloc()]
        assert real_bytes(slab) == slab.stats().reserved
        assert real_bytes(item) == 4096
        assert anchor(slab) is slab
        watch = weakref.ref(anchor(item))
        view = item[5:]
        del item
        assert watch() is not None
        del view
        assert watch() is None

    def test_mapped_arrays(self) -> None:
        mapped = mempool.anonymous_array((1000, 10), "f8")
        assert real_bytes(mapped) == 80_000
        assert anchor(mapped) is mapped
        part = mapped.array[3:4, 2:]
        assert real_bytes(part) == 80_000
        watch = weakref.ref(anchor(part))
        del part
        assert watch() is None
        mapped.close()
        assert real_bytes(mapped) == sys.getsizeof(mapped)

    def test_rings_and_arenas(self) -> None:
        ring, arena = mempool.RingBuffer(1 << 16), mempool.Arena(1 << 16)
        assert real_bytes(ring) == real_bytes(arena) == 1 << 16
        assert real_bytes(arena.alloc(5000)) == 5000
        arena.close()
        ring.close()
        assert real_bytes(arena) == sys.getsizeof(arena)

    def test_arrays_of_a_numpy_pool(self, pool: mempool.BufferPool) -> None:
        with mempool.numpy.use_pool(pool):
            made = np.ones(100_000, "u1")
        assert real_bytes(made) >= 100_000
        watch = weakref.ref(anchor(made[5:]))
        del made
        assert watch() is None
        assert pool.stats().in_use == 0


class TestArrays:
    def test_own_data(self) -> None:
        made = np.zeros((100, 100))
        assert real_bytes(made) == sys.getsizeof(made) >= 80_000
        assert anchor(made) is made

    @pytest.mark.parametrize(
        "make",
        [
            lambda a: a[3:4],
            lambda a: a[::7][::-1][1:],
            lambda a: a.T[5],
            lambda a: a.view("u1")[9:],
            lambda a: a.reshape(10, 1000)[2],
            lambda a: memoryview(a)[2:3],
            lambda a: np.frombuffer(memoryview(a).cast("B"), "u1", 10),
            lambda a: np.broadcast_to(a[0], (1000, 100)),
            lambda a: np.lib.stride_tricks.sliding_window_view(a, (3, 3)),
            lambda a: a.view(Sub)[1:2],
            lambda a: np.asarray(a.view(Sub)[1:2])[:, 3],
        ],
    )
    def test_a_view_keeps_all_of_the_array(self, make: Callable[[Any], Any]) -> None:
        made = np.zeros((100, 100))
        view = make(made)
        assert real_bytes(view) == sys.getsizeof(made)
        assert anchor(view) is made
        watch = weakref.ref(made)
        del made
        assert watch() is not None
        del view
        assert watch() is None

    @pytest.mark.parametrize("dtype", ["M8[s]", "V7", "O", "U5", "?", "c16", [("a", "u1"), ("b", "f8")]])
    def test_what_cannot_be_exported_has_bytes_all_the_same(self, dtype: Any) -> None:
        made = np.zeros(5000, dtype)
        assert real_bytes(made) == real_bytes(made[7:9]) == sys.getsizeof(made)

    def test_a_subclass_that_says_nonsense_is_not_asked(self) -> None:
        class Liar(np.ndarray[Any, Any]):
            nbytes = base = "nonsense"  # type: ignore[assignment]

        made = np.zeros(5000).view(Liar)
        assert real_bytes(made[3:]) >= 40_000

    def test_memory_of_which_nobody_knows(self, pool: mempool.BufferPool) -> None:
        made = np.from_dlpack(pool.acquire(5000))  # type: ignore[arg-type]
        assert real_bytes(made[5:]) == 5000
        assert anchor(made[5:]) is made


OTHERS: list[Any] = [
    b"x" * 1000,
    bytearray(1000),
    array.array("d", range(100)),
    (ctypes.c_double * 100)(),
    mmap.mmap(-1, 8192),
    pickle.PickleBuffer(b"x" * 1000),
    memoryview(b"x" * 1000)[3:4],
    memoryview(bytearray(1000))[3:4],
    "text" * 100,
    "täxt" * 100,
    "\U0001f40d" * 100,
    7,
    1 << 5000,
    None,
    [1] * 100,
    {"a": 1},
    object(),
    len,
    np.float64(3),
    int,
]


@pytest.mark.parametrize("value", OTHERS, ids=lambda value: type(value).__name__)
def test_all_else_weighs_at_least_what_python_says(value: Any) -> None:
    weight = real_bytes(value)
    assert weight >= sys.getsizeof(value) - 16 * isinstance(value, memoryview)  # what the collector has before it
    try:
        exported = memoryview(value)
    except TypeError:
        assert weight == sys.getsizeof(value)
        assert anchor(value) is None
    else:
        assert weight >= exported.nbytes
        if isinstance(value, memoryview):
            assert weight >= 1000  # it keeps all of it
        watched = anchor(value)
        assert watched is None or weakref.ref(watched)


def test_bytes_that_nothing_can_watch_have_no_anchor() -> None:
    assert anchor(b"abc") is anchor(bytearray(9)) is anchor("abc") is anchor(None) is None


def test_a_view_is_watched_where_its_owner_cannot_be() -> None:
    view = memoryview(bytearray(9))
    assert anchor(view) is view


def said(value: object) -> type[Any]:
    return type("Liar", (), {"__sizeof__": lambda _: value})


@pytest.mark.parametrize("size", [-1, 1 << 70, -(1 << 70)])
def test_a_size_that_is_none_is_an_error_that_names_the_value(size: int) -> None:
    with pytest.raises(ValueError, match=r"cannot weigh <.*Liar object at 0x") as error:
        real_bytes(said(size)())
    assert error.value.__cause__ is not None


@pytest.mark.parametrize("size", [None, "7", 1.5, []])
def test_what_is_no_size_is_an_error_that_names_the_value(size: object) -> None:
    with pytest.raises(TypeError, match=r"cannot weigh <.*Liar object at 0x"):
        real_bytes(said(size)())


def test_what_a_value_raises_comes_through() -> None:
    class Broken:
        def __sizeof__(self) -> int:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        real_bytes(Broken())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="classes export buffers from Python 3.12 on")
def test_a_class_that_exports_what_it_likes(pool: mempool.BufferPool) -> None:
    class Exporter:
        def __init__(self, what: Any) -> None:
            self.what = what

        def __buffer__(self, flags: int) -> memoryview:
            if isinstance(self.what, Exception):
                raise self.what
            return memoryview(self.what)

    assert real_bytes(Exporter(bytes(5000))) >= 5000
    assert real_bytes(Exporter(BufferError("no"))) > 0
    assert anchor(Exporter(ValueError("no"))) is not None
    with pytest.raises(LookupError, match="mine"):
        real_bytes(Exporter(LookupError("mine")))
    made = Exporter(pool.acquire(5000))
    assert anchor(made) is made


def test_an_impostor_is_not_taken_for_an_array(run_python: Callable[..., Any]) -> None:
    run_python("""
        import sys, types
        fake = types.ModuleType("numpy")
        fake.ndarray = type("ndarray", (bytearray,), {"base": 7})
        sys.modules["numpy"] = fake
        from mempool.cache._policies import anchor, real_bytes
        assert real_bytes(fake.ndarray(1000)) >= 1000
        assert real_bytes(memoryview(bytearray(1000))) >= 1000
        fake.ndarray = 7
        assert real_bytes(memoryview(bytearray(1000))) >= 1000
    """)


def test_weighing_imports_no_numpy(run_python: Callable[..., Any]) -> None:
    run_python("""
        import sys, array, mmap
        import mempool
        from mempool.cache._policies import anchor, real_bytes
        for value in (b"x", bytearray(5), "x", 1, None, memoryview(b"x"), mempool.acquire(5), mempool.acquire(5)[:],
                      array.array("i"), mmap.mmap(-1, 5), mempool.SlabAllocator(8), mempool.io.BytesStream(b"x")):
            assert real_bytes(value) > 0
            anchor(value)
        assert "numpy" not in sys.modules
        value = memoryview(b"x")
        import numpy
        assert real_bytes(numpy.zeros(1000)[3:]) > 8000
    """)


# ---- what cannot be weighed ----


class Sized:
    """Can be held weakly."""


class Odd:
    """Says nothing of its size."""

    def __sizeof__(self) -> int:
        raise RuntimeError("no size")


def test_a_weak_cache_refuses_what_it_cannot_weigh() -> None:
    cache: WeakCache[str, Any] = WeakCache(keep_bytes=1 << 20)
    old = cache["a"] = Sized()
    odd = Odd()
    with pytest.raises(RuntimeError, match="no size"):
        cache["a"] = odd
    with pytest.raises(RuntimeError, match="no size"):
        cache.setdefault("b", odd)
    assert dict(cache) == {"a": old}
    assert cache.get("a") is old


def test_sizes_that_nobody_asked_for_are_estimated_nevertheless() -> None:
    cache: Cache[int, Any] = Cache(100, policy="lru")
    cache[0] = Odd()
    for key in range(1, 30):
        cache[key] = bytes(1000)
    assert 29 * 1000 < cache.nbytes < 31 * 1100
    assert cache.shrink(1 << 40) > 0
    assert 0 not in cache
    weak: WeakCache[str, Any] = WeakCache(keep_items=5)
    odd = weak["odd"] = Odd()
    assert weak.stats().kept_bytes == type(odd).__basicsize__
