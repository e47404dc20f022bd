"""Pinned bytes under threads, collections, finalisers, exits, forks; and against a model, whatever is done in whatever order."""

import contextlib
import gc
import os
import random
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import mempool
from mempool.cache import Cache, CacheFull
from mempool.cache._policies import Pins, anchor
from mempool.cache.policies import POLICIES
from support import together

BLOCK = 4096
EVICTING = sorted(name for name, policy in POLICIES.items() if policy.fixing == 0)


def lent(pool: mempool.BufferPool) -> int:
    stats = pool.stats()
    return stats.in_use + stats.retired


# ---- threads ----


def test_views_that_die_in_other_threads() -> None:
    pool, pins = mempool.BufferPool(), Pins()
    shares: list[list[Any]] = [[] for _ in range(4)]
    for number in range(2000):
        buffer = pool.acquire(64)
        shares[number % 4].append(buffer[:])
        pins.add(buffer, 10 + number % 7)
    del buffer
    assert pins.count == 2000
    together([share.clear for share in shares])
    assert (pins.nbytes, pins.count) == (0, 0)
    assert lent(pool) == 0


def test_threads_that_add_and_drop_the_same_memory() -> None:
    pool, pins = mempool.BufferPool(), Pins()
    buffers = [pool.acquire(64) for _ in range(50)]

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(3000):
            buffer = draw.choice(buffers)
            if draw.random() < 0.5:
                pins.add(buffer[draw.randrange(9) :], draw.randrange(100))
            else:
                pins.forget(buffer)
            del buffer

    together([lambda seed=seed: work(seed) for seed in range(4)])
    assert pins.count <= 50
    buffers.clear()
    assert (pins.nbytes, pins.count) == (0, 0)


@pytest.mark.parametrize("policy", EVICTING)
def test_threads_that_share_a_cache_and_view_what_is_in_it(policy: str) -> None:
    pool = mempool.BufferPool()
    cache: Cache[int, Any] = Cache(max_bytes=20 * BLOCK, policy=policy)
    stop = threading.Event()

    def work(seed: int) -> None:
        draw, held = random.Random(seed), []
        try:
            for _ in range(1500):
                key = draw.randrange(40)
                value = cache.get(key)
                if value is None:
                    value = pool.acquire(BLOCK)
                    value[:4] = key.to_bytes(4, "little")  # before others can see it
                    cache[key] = value
                held.append((key, value[:8], value.array()[:4] if draw.random() < 0.3 else None))
                if len(held) > 5:
                    key, view, _ = held.pop(draw.randrange(5))
                    assert int.from_bytes(view[:4], "little") == key
                del value
        finally:
            stop.set()

    def watch() -> None:
        while not stop.wait(0.001):
            assert cache.currsize <= cache.maxsize
            assert cache.pinned <= 30 * BLOCK

    together([watch, *(lambda seed=seed: work(seed) for seed in range(3))])
    gc.collect()
    assert cache.pinned == 0
    assert lent(pool) == cache.currsize


# ---- collections and finalisers ----


class Node:
    """Garbage for the collector, with a view."""

    def __init__(self, view: Any) -> None:
        self.me, self.view = self, view


def test_views_that_die_in_a_collection() -> None:
    pool = mempool.BufferPool()
    cache: Cache[int, Any] = Cache(max_bytes=4 * BLOCK, policy="lru")
    for key in range(4):
        cache[key] = pool.acquire(BLOCK)
        Node(cache[key][:])
        Node(cache[key].array()[3:])
    cache._bounds(0, 1 << 63)
    gc.collect()
    assert cache.pinned == lent(pool) == 0


def test_collections_at_every_step() -> None:
    """On 3.11 any allocation may run one, and that the callbacks of what it finds."""
    pool = mempool.BufferPool()
    cache: Cache[int, Any] = Cache(max_bytes=4 * BLOCK, policy="lru")
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for number in range(1500):
            cache[number] = pool.acquire(BLOCK)
            view = cache[number][:]
            Node(view)
            if number % 3:
                Node(cache.get(number - 2))
            del view
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert cache.pinned == 0
    assert lent(pool) == cache.currsize


def test_a_finaliser_that_brings_a_view_back_brings_no_wrong_count() -> None:
    pool, pins = mempool.BufferPool(), Pins()
    risen: list[Any] = []

    class Phoenix(Node):
        def __del__(self) -> None:
            risen.append(self.view)

    for _ in range(3):
        buffer = pool.acquire(BLOCK)
        pins.add(buffer, BLOCK)
        Phoenix(buffer[:])
        del buffer
    gc.collect()
    assert len(risen) == 3
    assert pins.nbytes == 3 * BLOCK == lent(pool)
    risen.clear()
    assert pins.nbytes == lent(pool) == 0


def test_a_callback_that_uses_the_cache_in_the_middle_of_an_eviction() -> None:
    pool = mempool.BufferPool()
    cache: Cache[Any, Any] = Cache(max_bytes=4 * BLOCK, policy="lru")
    watches, calls = [], []

    def again(_: object) -> None:
        calls.append(cache.pinned)
        if len(calls) < 50:
            cache["again", len(calls)] = pool.acquire(BLOCK)
            assert cache.currsize <= cache.maxsize

    for key in range(60):
        buffer = pool.acquire(BLOCK)
        watches.append(weakref.ref(buffer, again))
        cache[key] = buffer
        if key % 3 == 0:
            view = buffer[:]
        del buffer
    del view
    assert len(calls) > 50
    assert cache.pinned == 0
    assert lent(pool) == cache.currsize


def test_values_that_are_freed_by_their_own_callback() -> None:
    """The last view is let go by a callback that the drop of the cache's reference runs."""
    pool = mempool.BufferPool()
    cache: Cache[int, Any] = Cache(max_bytes=BLOCK, policy="lru")
    views: list[Any] = []
    watches = []
    for key in range(20):
        buffer = pool.acquire(BLOCK)
        views.append(buffer[:])
        watches.append(weakref.ref(buffer, lambda _: views.clear()))
        cache[key] = buffer
        del buffer
        assert cache.pinned == 0
    assert len(views) == 0
    assert lent(pool) == BLOCK


def test_an_exporter_whose_attributes_raise_leaves_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: said.append(event.exc_value))

    class Interface:
        """What NumPy keeps as the base of an array, and is no exporter."""

        good = True

        def __init__(self) -> None:
            self.memory = np.zeros(1000)
            self.__array_interface__ = self.memory.__array_interface__

        @property
        def base(self) -> Any:
            if self.good:
                return self.memory
            raise LookupError("no base")

    cache: Cache[int, Any] = Cache(max_bytes=1 << 20, policy="lru")
    cache[0] = np.asarray(Interface())
    assert cache.currsize >= 8000
    held = cache[0]
    monkeypatch.setattr(Interface, "good", False)
    with pytest.raises(LookupError):
        cache[1] = np.asarray(Interface())
    cache._bounds(0, 1 << 63)
    assert len(cache) == 0
    assert [str(error) for error in said] == ["no base"]
    assert cache.pinned == 0
    del held


def test_a_circle_of_bases_ends() -> None:
    class Circle:
        def __init__(self) -> None:
            self.memory = np.zeros(1000)
            self.__array_interface__ = self.memory.__array_interface__
            self.base: Any = None

    circle = Circle()
    value = np.asarray(circle)
    circle.base = value
    cache: Cache[int, Any] = Cache(max_bytes=1 << 20, policy="lru")
    cache[0] = value
    cache._bounds(0, 1 << 63)
    assert cache.pinned > 0
    circle.base = None  # arrays are no garbage to the collector
    del value, circle
    assert cache.pinned == 0


@pytest.mark.parametrize("order", ["view first", "cache first"])
def test_a_cache_that_is_garbage_together_with_the_views_of_what_it_pinned(order: str) -> None:
    pool = mempool.BufferPool()
    for _ in range(20):
        cache: Cache[int, Any] = Cache(max_bytes=4 * BLOCK, policy="lru")
        nodes = [Node(None) for _ in range(4)]
        for key in range(4):
            cache[key] = pool.acquire(BLOCK)
        views = [cache[key][:] for key in range(4)]
        for node, view in zip(nodes, views, strict=True):
            node.view = [view, cache] if order == "view first" else [cache, view]
        cache[9] = nodes
        cache._bounds(100, 1 << 63)
        assert cache.pinned == 4 * BLOCK
        del cache, nodes, views, node, view
    gc.collect()
    assert lent(pool) == 0


# ---- the end ----


def test_exit_with_pinned_bytes(run_python: Callable[..., Any]) -> None:
    done = run_python("""
        import atexit, sys, threading
        import mempool, numpy
        from mempool.cache import Cache, CacheFull
        pool = mempool.BufferPool()
        cache = Cache(max_bytes=8192, policy="lru")
        kept = []
        for key in range(50):
            cache[key] = numpy.zeros(4000, "u1") if key % 2 else pool.acquire(4096)
            kept.append(memoryview(cache[key]))
        assert cache.pinned > 0
        class Late:
            views = kept[:20]
            def __del__(self):
                self.views.clear()
        late = Late()
        late.me = late
        sys.late = Late()
        atexit.register(lambda: kept.pop(7))
        threading.Thread(target=lambda: kept.pop(9)).start()
    """)
    assert done.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_fork_counts_on_its_own(run_python: Callable[..., Any]) -> None:
    run_python("""
        import os
        import mempool
        from mempool.cache import Cache, CacheFull
        pool = mempool.BufferPool()
        cache = Cache(max_bytes=4096, policy="lru")
        cache[0] = pool.acquire(4096)
        view = cache[0][:]
        cache[1] = pool.acquire(4096)
        assert cache.pinned == 4096
        child = os.fork()
        if child == 0:
            del view
            os._exit(0 if cache.pinned == 0 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert cache.pinned == 4096
        del view
        assert cache.pinned == 0
    """)


# ---- against a model ----

KEYS = st.integers(0, 12)


def share(one: Any, other: Any) -> bool:
    return not isinstance(one, bytes) and not isinstance(other, bytes) and np.shares_memory(*map(whole, (one, other)))


def whole(value: Any) -> Any:
    """All of the block that a value is of."""
    view = value if isinstance(value, mempool.Buffer) else anchor(value)
    return np.frombuffer(view, "u1")


class CacheAndViews(RuleBasedStateMachine):
    """A cache of blocks and plain values, and whoever looks at them. What is pinned is what was evicted and is still lent."""

    @initialize(policy=st.sampled_from(EVICTING), most=st.integers(1, 8))
    def begin(self, policy: str, most: int) -> None:
        self.pool = mempool.BufferPool()
        self.clock = 0.0
        self.cache: Cache[int, Any] = Cache(max_bytes=most * BLOCK, policy=policy, clock=lambda: self.clock)
        self.views: list[Any] = []
        self.doubled = False  # a block may be in the cache twice

    def write(self, key: int, value: Any, seconds: float | None = None) -> None:
        old = self.cache.pop(key, None)
        if old is not None:
            self.views = [view for view in self.views if not share(view, old)]
        del old
        with contextlib.suppress(CacheFull):
            self.cache._insert(key, value, seconds, 0, None, True)
        if self.cache.currsize + self.cache.pinned > self.cache.maxsize:
            for other, entry in self.cache.items():
                held = [*self.views, *(self.cache[near] for near in self.cache if near != other)]
                assert other == key or any(share(entry, one) for one in held)

    @rule(key=KEYS, how=st.sampled_from(["buffer", "view", "array", "bytes"]), view=st.booleans())
    def put(self, key: int, how: str, view: bool) -> None:
        value: Any = bytes(3000)  # of its own: a constant of the code would be kept by that
        if how != "bytes":
            value = self.pool.acquire(BLOCK)
            value = value[:] if how == "view" else value.array() if how == "array" else value
        self.write(key, value)
        if view and how != "bytes" and key in self.cache:
            self.views.append(memoryview(value)[1:])

    @rule(key=KEYS)
    def look(self, key: int) -> None:
        value = self.cache.get(key)
        if value is not None and not isinstance(value, bytes):
            self.views.append(np.frombuffer(value, "u1")[:9])

    @rule(key=KEYS, seconds=st.floats(0.1, 5))
    def put_for_a_while(self, key: int, seconds: float) -> None:
        self.write(key, self.pool.acquire(BLOCK), seconds)

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.clock += seconds
        self.cache.expire()

    @rule(data=st.data())
    def drop_a_view(self, data: st.DataObject) -> None:
        if self.views:
            self.views.pop(data.draw(st.integers(0, len(self.views) - 1)))

    @rule(key=KEYS)
    def put_back(self, key: int) -> None:
        if self.views and key not in self.cache:
            self.doubled = True
            self.write(key, self.views[-1])

    @rule()
    def drop_all_views(self) -> None:
        self.views.clear()

    @invariant()
    def books_are_right(self) -> None:
        assert self.cache.currsize <= self.cache.maxsize
        blocks = {whole(value).ctypes.data for value in self.cache.values() if not isinstance(value, bytes)}
        known = len(blocks) * BLOCK + self.cache.pinned
        if self.doubled:
            assert self.cache.pinned <= lent(self.pool) <= known
        else:
            assert lent(self.pool) == known

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.views.clear()
            assert self.doubled or self.cache.pinned == 0
            self.cache.clear()
            assert self.cache.pinned == 0
            assert lent(self.pool) == 0


TestCacheAndViews = CacheAndViews.TestCase
TestCacheAndViews.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
