"""What makes room: idle memory first, then caches by twentieths, never below a floor, and no cache is emptied for nothing."""

import gc
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mempool
from mempool.pressure import Level, PressureEvent, Shrinkable, Shrinker, register, unregister
from monitor_kit import records
from support import DEADLINE, MIB, Strange, start, together

LEVELS = [Level.ELEVATED, Level.HIGH, Level.CRITICAL]


def event(level: Level, used: int | None = None, limit: int | None = None) -> PressureEvent:
    return PressureEvent(level, Level.NORMAL, "test", used, limit, None, None, 0.0)


class Process:
    """Resident memory as a plain number, which falls by what really goes."""

    def __init__(self, resident: int = 1000 * MIB) -> None:
        self.resident = resident

    def __call__(self) -> int:
        return self.resident


class Cache:
    """Holds bytes. Of what it lets go of, `kept` parts of 100 stay in the process."""

    def __init__(self, nbytes: int, process: Process, *, kept: int = 0, name: str = "cache") -> None:
        self.nbytes, self.process, self.kept, self.name = nbytes, process, kept, name
        self.asked: list[int] = []

    def shrink(self, nbytes: int) -> int:
        self.asked.append(nbytes)
        freed = min(nbytes, self.nbytes)
        self.nbytes -= freed
        self.process.resident -= freed * (100 - self.kept) // 100
        return freed


def idle_pool(*sizes: int) -> mempool.BufferPool:
    pool = mempool.BufferPool(idle_timeout=None)
    for lease in [pool.acquire(nbytes) for nbytes in sizes]:
        lease.release()
    return pool


# ---- what each level takes


@pytest.mark.parametrize("level", LEVELS)
def test_idle_memory_goes_at_every_level(level: Level) -> None:
    pools = [idle_pool(MIB, 4 * MIB), idle_pool(2 * MIB)]
    assert Shrinker(pools, resident=Process())(event(level)) == 7 * MIB
    assert [pool.stats().idle for pool in pools] == [0, 0]


def test_a_normal_level_takes_nothing() -> None:
    process = Process()
    pool, cache = idle_pool(MIB), Cache(8 * MIB, process)
    assert Shrinker([pool, cache], resident=process)(event(Level.NORMAL)) == 0
    assert (pool.stats().idle, cache.asked) == (MIB, [])


def shares(nbytes: int, steps: int) -> list[int]:
    """What is asked of one that gives all it is asked: a twentieth of what it has each time."""
    asked = []
    while nbytes and len(asked) < steps:
        asked.append(-(-nbytes // 20))
        nbytes -= asked[-1]
    return asked


@pytest.mark.parametrize(("level", "steps"), [(Level.ELEVATED, 0), (Level.HIGH, 5), (Level.CRITICAL, 1000)])
@pytest.mark.parametrize("size", [64 * MIB, MIB - 1, 100, 1])
def test_caches_give_a_twentieth_at_a_time(size: int, level: Level, steps: int) -> None:
    process = Process()
    cache = Cache(size, process)
    freed = Shrinker([cache], resident=process)(event(level))
    assert cache.asked == shares(size, steps)
    assert freed == sum(cache.asked) == size - cache.nbytes
    assert (cache.nbytes == 0) == (level == Level.CRITICAL or size == 1 <= steps)


def test_slabs_give_free_slots() -> None:
    slab = mempool.SlabAllocator(4096)
    slab.free_many(slab.alloc_many(2000))
    used = slab.account.used
    assert Shrinker([slab], resident=Process())(event(Level.ELEVATED)) == used - slab.account.used > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="shared pools are for Linux")
def test_shared_pools_give_segments_back() -> None:
    for make_room in (lambda pool: Shrinker([pool], resident=Process()), lambda pool: Shrinker.of_process()):
        with mempool.shared.SharedPool() as pool:
            pool.acquire(4 * MIB).release()
            reserved = pool.stats().reserved
            assert make_room(pool)(event(Level.ELEVATED)) >= reserved > 0
            assert pool.stats().reserved == 0


def test_memory_in_use_stays() -> None:
    pool = mempool.BufferPool(idle_timeout=None)
    with pool.acquire(MIB) as lease:
        lease[:] = b"x" * MIB
        view = np.frombuffer(lease, "u1")
        assert Shrinker([pool], resident=Process())(event(Level.CRITICAL)) == 0
        assert (view == ord("x")).all()


@pytest.mark.parametrize(
    ("level", "used", "limit", "needed"),
    [
        (Level.HIGH, 900, 1000, [200]),
        (Level.CRITICAL, 990, 1000, [990]),
        (Level.HIGH, 500, 1000, [50]),  # the level came from elsewhere
        (Level.HIGH, 500, None, [50]),
        (Level.HIGH, None, None, [700]),  # a tenth of what is resident
        (Level.CRITICAL, None, None, [7000]),
        (Level.ELEVATED, 900, 1000, []),
    ],
)
def test_callables_are_told_how_much(level: Level, used: int | None, limit: int | None, needed: list[int]) -> None:
    asked: list[int] = []
    Shrinker([asked.append], resident=Process(7000))(event(level, used, limit))
    assert asked == needed


def test_what_a_cache_left_in_a_pool_goes_too() -> None:
    pool = mempool.BufferPool(idle_timeout=None)
    leases = [pool.acquire(MIB) for _ in range(8)]

    class Buffers:
        name = "buffers"

        @property
        def nbytes(self) -> int:
            return len(leases) * MIB

        def shrink(self, nbytes: int) -> int:
            del leases[: -(-nbytes // MIB)]
            return nbytes

    shrinker = Shrinker([Buffers(), pool], resident=Process())
    assert shrinker(event(Level.HIGH)) == 5 * MIB
    assert pool.stats().reserved == 3 * MIB
    assert shrinker(event(Level.CRITICAL)) == 3 * MIB
    assert pool.stats().reserved == 0


def test_a_cache_may_have_a_trim_of_its_own() -> None:
    process = Process()

    class Trimmed(Cache):
        def trim(self, nbytes: int) -> int:
            raise AssertionError("it is a cache")

    cache = Trimmed(64 * MIB, process)
    shrinker = Shrinker([cache], resident=process)
    assert shrinker(event(Level.ELEVATED)) == 0
    assert shrinker(event(Level.CRITICAL)) == 64 * MIB
    assert (cache.nbytes, shrinker.stats()[0].kind) == (0, "cache")
    register(cache)
    unregister(cache)


def test_a_function_may_have_a_trim_that_is_none() -> None:
    class Asked:
        trim = None

        def __call__(self, needed: int) -> int:
            return needed

    assert Shrinker([Asked()]).stats()[0].kind == "asked"


def test_pools_and_slabs_are_no_caches() -> None:
    class Pool(mempool.BufferPool):
        nbytes = 0

        def shrink(self, nbytes: int) -> int:
            raise AssertionError("it is a pool")

    class Slab(mempool.SlabAllocator):
        nbytes = 0

        def shrink(self, nbytes: int) -> int:
            raise AssertionError("it is a slab")

    shrinker = Shrinker([Pool(idle_timeout=None), Slab(64)], resident=Process())
    shrinker(event(Level.CRITICAL))
    assert [(row.kind, row.errors) for row in shrinker.stats()] == [("idle", 0), ("idle", 0)]


def test_what_a_cache_discharges_counts() -> None:
    """Memory of others, which is charged to an account; where it lies nobody knows."""
    account = mempool.Account("others")
    account.charge(40 * MIB)

    class Foreign:
        name = "foreign"

        @property
        def nbytes(self) -> int:
            return account.used

        def shrink(self, nbytes: int) -> int:
            account.discharge(nbytes)
            return nbytes

    assert Shrinker([Foreign()], resident=Process())(event(Level.CRITICAL)) == 40 * MIB
    assert account.used == 0


# ---- where it stops


@pytest.mark.parametrize("level", LEVELS)
def test_a_floor_is_kept(level: Level) -> None:
    process = Process()
    pool, cache = idle_pool(*[MIB] * 8), Cache(40 * MIB, process)
    shrinker = Shrinker([pool, cache], floor="3 MiB", resident=process)
    for _ in range(50):
        shrinker(event(level))
    assert pool.stats().idle == 3 * MIB
    assert cache.nbytes == {Level.ELEVATED: 40 * MIB}.get(level, 3 * MIB)


@pytest.mark.parametrize(
    ("sizes", "left"), [([16], 16), ([5] * 4, 10), ([1] * 20, 8), ([16, 1, 1], None), ([4], 4), ([8], 8)]
)
def test_blocks_go_whole_and_the_floor_is_kept(sizes: list[int], left: int | None) -> None:
    pool = idle_pool(*[size * MIB for size in sizes])
    for shrinker in (Shrinker([pool], floor="8 MiB", resident=Process()), Shrinker.of_process(floor="8 MiB")):
        shrinker(event(Level.CRITICAL))
        assert left is None or pool.stats().idle == left * MIB
        assert pool.stats().idle >= min(8, sum(sizes)) * MIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="shared pools are for Linux")
@pytest.mark.parametrize(("sizes", "left"), [([16], 16), ([4] * 4, 8), ([4], 4), ([16, 4, 4], 8)])
def test_shared_pools_keep_a_floor(sizes: list[int], left: int) -> None:
    for make in (lambda pool: Shrinker([pool], floor="8 MiB"), lambda pool: Shrinker.of_process(floor="8 MiB")):
        with mempool.shared.SharedPool() as pool:
            leases = [pool.acquire(size * MIB) for size in sizes]
            for lease in leases:
                lease.release()
            make(pool)(event(Level.CRITICAL))
            assert pool.stats().idle == left * MIB


class Lumps(Cache):
    """Entries of one size, which go whole."""

    lump = 10 * MIB

    def shrink(self, nbytes: int) -> int:
        return super().shrink(-(-nbytes // self.lump) * self.lump)


@pytest.mark.parametrize("entries", [3, 10])
def test_a_cache_of_large_entries_keeps_its_floor(entries: int) -> None:
    process = Process()
    cache = Lumps(entries * Lumps.lump, process)
    shrinker = Shrinker([cache], floor="8 MiB", resident=process)
    for _ in range(5):
        shrinker(event(Level.CRITICAL))
        assert cache.nbytes >= 8 * MIB
    assert cache.nbytes <= 2 * Lumps.lump
    assert Shrinker([cache], resident=process)(event(Level.CRITICAL)) > 0
    assert cache.nbytes == 0


def test_a_small_step_that_is_only_claimed_is_the_last() -> None:
    class Liar(Cache):
        def shrink(self, nbytes: int) -> int:
            self.asked.append(nbytes)
            return 1 << 60

    cache = Liar(40_000, Process())
    assert Shrinker([cache], resident=Process())(event(Level.CRITICAL)) == 0
    assert len(cache.asked) == 1


def test_a_cache_below_its_floor_is_not_asked() -> None:
    process = Process()
    cache = Cache(2 * MIB, process)
    assert Shrinker([cache], floor=2 * MIB, resident=process)(event(Level.CRITICAL)) == 0
    assert cache.asked == []


@pytest.mark.parametrize(("kept", "left"), [(100, 95), (90, 95), (50, 0)])
def test_a_cache_is_not_emptied_for_nothing(kept: int, left: int) -> None:
    """Its entries are still held by others, or lie in half-used pages: one step shows it."""
    process = Process()
    stubborn, willing = Cache(64 * MIB, process, kept=kept), Cache(64 * MIB, process)
    freed = Shrinker([stubborn, willing], resident=process)(event(Level.CRITICAL))
    assert (stubborn.nbytes, willing.nbytes) == (64 * MIB * left // 100, 0)
    assert 0 <= freed - (1000 * MIB - process.resident) < MIB  # the last steps are too small to be seen


def test_one_of_small_steps_is_judged_by_some_of_them() -> None:
    process = Process()
    stubborn = Cache(2 * MIB, process, kept=100)
    assert Shrinker([stubborn], resident=process)(event(Level.CRITICAL)) == 0
    assert sum(stubborn.asked[:-1]) < MIB <= sum(stubborn.asked)
    assert stubborn.nbytes > 0


@pytest.mark.parametrize("kept", [0, 100])
def test_small_steps_are_taken_at_their_word(kept: int) -> None:
    process = Process()
    cache = Cache(40_000, process, kept=kept)
    assert Shrinker([cache], resident=process)(event(Level.CRITICAL)) == 40_000
    assert cache.nbytes == 0


def test_a_cache_that_lets_go_of_nothing_is_asked_once() -> None:
    class Full(Cache):
        def shrink(self, nbytes: int) -> int:
            self.asked.append(nbytes)
            return 0

    cache = Full(40_000, Process())
    assert Shrinker([cache], resident=Process())(event(Level.CRITICAL)) == 0
    assert len(cache.asked) == 1


def test_where_memory_cannot_be_read_accounts_tell() -> None:
    def unreadable() -> int:
        raise OSError("no /proc here")

    pool, process = idle_pool(4 * MIB), Process()
    shrinker = Shrinker([pool, Cache(8 * MIB, process)], resident=unreadable)
    assert shrinker(event(Level.ELEVATED)) == 4 * MIB
    assert shrinker(event(Level.HIGH)) == 0  # and what cannot be seen is not claimed


@given(
    sizes=st.lists(st.integers(0, 50 * MIB), max_size=4),
    kept=st.sampled_from([0, 30, 100]),
    floor=st.sampled_from([0, 1, MIB, 20 * MIB]),
    levels=st.lists(st.sampled_from(list(Level)), max_size=6),
)
def test_any_caches(sizes: list[int], kept: int, floor: int, levels: list[Level]) -> None:
    """No more is taken than the level allows; what is reported is what the process has less."""
    process = Process()
    caches = [Cache(nbytes, process, kept=kept) for nbytes in sizes]
    shrinker = Shrinker(caches, floor=floor, resident=process)
    for level in levels:
        before, resident = [cache.nbytes for cache in caches], process.resident
        freed = shrinker(event(level))
        for cache, had in zip(caches, before, strict=True):
            most = {Level.HIGH: sum(shares(had, 5)), Level.CRITICAL: had}.get(level, 0)
            assert had - cache.nbytes <= most
            assert cache.nbytes >= min(had, floor)
        gone = sum(before) - sum(cache.nbytes for cache in caches)
        assert resident - process.resident <= freed <= gone


# ---- all of the process


class Registered(Cache):
    """Compares equal to its like, as a dict does."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Registered)

    __hash__ = None  # type: ignore[assignment]


def test_all_of_the_process() -> None:
    process = Process()
    pool, slab = idle_pool(3 * MIB), mempool.SlabAllocator(4096)
    slab.free_many(slab.alloc_many(2000))
    caches = [Registered(4096, process, name="like"), Registered(4096, process, name="like")]
    shrinker = Shrinker.of_process()
    for cache in caches:
        register(cache)
        register(cache)
    used = slab.account.used
    assert shrinker(event(Level.HIGH)) >= 3 * MIB
    assert (pool.stats().idle, [cache.asked for cache in caches]) == (0, [shares(4096, 5)] * 2)
    assert slab.account.used < used
    register(caches[0])
    assert [row.asks for row in shrinker.stats() if row.name == "like"] == [5, 5]
    unregister(caches[0])
    unregister(caches[0])
    shrinker(event(Level.CRITICAL))
    assert [cache.nbytes for cache in caches] == [4096 - sum(shares(4096, 5)), 0]
    assert [row.name for row in shrinker.stats()].count("like") == 1
    del caches, cache
    gc.collect()
    assert "like" not in [row.name for row in shrinker.stats()]


def test_what_comes_later_is_found() -> None:
    shrinker = Shrinker.of_process()
    shrinker(event(Level.ELEVATED))
    pool = idle_pool(5 * MIB)
    assert shrinker(event(Level.ELEVATED)) >= 5 * MIB
    assert pool.stats().idle == 0


def test_named_items_are_kept_alive() -> None:
    pool = idle_pool(MIB)
    shrinker = Shrinker([pool], resident=Process())
    del pool
    assert shrinker(event(Level.ELEVATED)) == MIB


# ---- errors


def test_an_error_keeps_nobody_else_from_shrinking(caplog: pytest.LogCaptureFixture) -> None:
    process = Process()

    class Broken(Cache):
        def shrink(self, nbytes: int) -> int:
            raise MemoryError("no memory to free memory")

    def lies(needed: int) -> int:
        return -needed

    broken, cache, pool = Broken(8 * MIB, process, name="broken"), Cache(8 * MIB, process), idle_pool(MIB)
    shrinker = Shrinker([broken, lies, cache, pool], resident=process)
    with caplog.at_level(logging.ERROR, "mempool.pressure"):
        assert shrinker(event(Level.CRITICAL)) == 9 * MIB
        shrinker(event(Level.CRITICAL))
    stats = {row.name: row for row in shrinker.stats()}
    assert (stats["broken"].asks, stats["broken"].errors, stats["broken"].freed) == (2, 2, 0)
    assert (cache.nbytes, stats["cache"].freed, stats["cache"].errors) == (0, 8 * MIB, 0)
    told = [record for record in records(caplog) if record.exc_info]
    assert len(told) == len(records(caplog)) == 2  # once for each, with the traceback
    assert "no memory to free memory" in caplog.text
    assert "bytes freed must not be negative" in caplog.text


def test_a_size_that_cannot_be_told(caplog: pytest.LogCaptureFixture) -> None:
    class Mute:
        name, broken = "mute", False

        @property
        def nbytes(self) -> int:
            if self.broken:
                raise LookupError("gone")
            return 100

        def shrink(self, nbytes: int) -> int:
            return nbytes

    mute = Mute()
    shrinker = Shrinker([mute], resident=Process())
    mute.broken = True
    assert shrinker(event(Level.HIGH)) == shrinker(event(Level.HIGH)) == 0
    assert (shrinker.stats()[0].errors, len(records(caplog))) == (2, 1)


@pytest.mark.parametrize("item", [None, 3, "pool", Strange(), dict, Cache, mempool.Account("a"), [idle_pool(64)]])
def test_what_cannot_make_room_is_refused(item: Any) -> None:
    with pytest.raises(TypeError, match=r"make room, not "):
        Shrinker([item])


@pytest.mark.parametrize("item", [None, 3, print, mempool.BufferPool(), Cache])
def test_what_cannot_register_is_refused(item: Any) -> None:
    with pytest.raises(TypeError, match=r"only .*, not "):
        register(item)


@pytest.mark.parametrize(
    ("floor", "kind"), [(-1, ValueError), (1.5, TypeError), (None, TypeError), ("3 apples", ValueError)]
)
def test_floors_are_sizes(floor: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="floor"):
        Shrinker([], floor=floor)


def test_a_cache_is_shrinkable() -> None:
    assert isinstance(Cache(1, Process()), Shrinkable)
    assert not isinstance(idle_pool(64), Shrinkable)


# ---- threads, forks, and itself


def test_it_does_not_run_within_itself() -> None:
    answers: list[int] = []

    def again(needed: int) -> int:
        answers.append(shrinker(event(Level.CRITICAL)))
        return 0

    shrinker = Shrinker([again], resident=Process())
    shrinker(event(Level.CRITICAL))
    shrinker(event(Level.CRITICAL))
    assert answers == [0, 0]


def blocked_shrinker() -> tuple[Shrinker, threading.Event, Callable[[], None]]:
    """One that another thread is in the middle of."""
    inside, go = threading.Event(), threading.Event()

    def wait(needed: int) -> int:
        inside.set()
        go.wait(DEADLINE)
        return 0

    shrinker = Shrinker([wait], resident=Process())
    thread = start(shrinker, event(Level.HIGH))
    assert inside.wait(DEADLINE)

    def finish() -> None:
        go.set()
        thread.result()

    return shrinker, inside, finish


def test_another_thread_does_not_wait() -> None:
    shrinker, inside, finish = blocked_shrinker()
    inside.clear()
    assert shrinker(event(Level.HIGH)) == 0
    assert not inside.is_set()
    finish()
    shrinker(event(Level.HIGH))
    assert inside.is_set()


def test_many_threads() -> None:
    process = Process(1 << 40)
    pool, cache = idle_pool(MIB), Cache(1 << 36, process)
    shrinker = Shrinker([pool, cache], resident=process)

    def work() -> None:
        for _ in range(50):
            pool.acquire(MIB).release()
            shrinker(event(Level.HIGH))
            register(cache)
            unregister(cache)

    together([work] * 8)
    shrinker(event(Level.ELEVATED))
    assert pool.stats().reserved == 0


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
def test_a_child_of_fork_is_not_busy_with_what_its_parent_does(run_python: Callable[..., Any]) -> None:
    run_python(
        """
        import os, threading, warnings
        from mempool.pressure import Level, PressureEvent, Shrinker
        warnings.simplefilter("ignore")
        inside, go, asked = threading.Event(), threading.Event(), []
        def ask(needed):
            asked.append(os.getpid())
            inside.set()
            if len(asked) == 1:
                go.wait(100)
        shrinker = Shrinker([ask])
        event = PressureEvent(Level.HIGH, Level.NORMAL, "test", 1, 1, 1.0, None, 0.0)
        thread = threading.Thread(target=shrinker, args=(event,))
        thread.start()
        assert inside.wait(100)
        child = os.fork()
        if not child:
            shrinker(event)
            os._exit(len(asked))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
        go.set()
        thread.join()
        """
    )
