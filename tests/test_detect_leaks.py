"""A leak of 1 KiB a call is found and named each time, beside noise; where nothing leaks, nothing is reported."""

import functools
import gc
import itertools
import random
import sys
import threading
import tracemalloc
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mempool
from mempool._system import heap
from mempool.accounting import Account, LeakReport, detect_leaks
from support import KIB, Strange, start

pytestmark = pytest.mark.nosan  # whose allocator keeps what is freed, so that resident memory grows

RUNS = 20
HERE = __file__


class Node:
    """A cycle of one object."""

    def __init__(self, nbytes: int) -> None:
        self.me, self.load = self, bytearray(nbytes)


class Noise:
    """What programs do that is no leak: garbage, cycles, leases that come and go, a cache that fills, a dict that is cleared."""

    def __init__(self, seed: int, pool: mempool.BufferPool) -> None:
        self.random, self.pool = random.Random(seed), pool
        self.slots: list[Any] = [None] * 6
        self.cache: dict[int, bytearray] = {}
        self.table: dict[int, int] = {}
        self.leases: list[mempool.Buffer] = []

    def __call__(self) -> None:
        draw = self.random.randrange
        [bytearray(draw(4000)) for _ in range(draw(8))]
        Node(draw(20_000))
        self.slots[draw(6)] = [bytearray(draw(400)) for _ in range(draw(5))]
        if len(self.cache) < 40:
            self.cache[len(self.cache)] = bytearray(2000)
        self.table[len(self.table)] = draw(1 << 40)
        if len(self.table) > draw(100):
            self.table.clear()
        self.pool.acquire(draw(100_000)).release()
        self.leases.append(self.pool.acquire(draw(3000)))
        if len(self.leases) > draw(16):
            self.leases.clear()


def planted(kind: str, kept: list[Any], pool: mempool.BufferPool) -> tuple[Callable[[], object], int]:
    """A function that leaks 1 KiB, and the line that does so."""
    if kind == "heap":
        return lambda: kept.append(bytearray(KIB)), sys._getframe().f_lineno
    if kind == "pool":
        return lambda: kept.append(pool.acquire(KIB)), sys._getframe().f_lineno
    return lambda: kept.append(mempool.anonymous_array(KIB, "u1")), sys._getframe().f_lineno


ACCOUNTS = {"heap": None, "pool": "root > leaking", "mapping": "root > anonymous arrays"}


def in_a_process_of_its_own(run_python: Callable[..., Any], call: str) -> None:
    """Where nobody else's thousands of accounts are read at every call."""
    run_python(f"import test_detect_leaks; test_detect_leaks.{call}", cwd=Path(HERE).parent, timeout=300)


def find_planted(kind: str) -> None:
    for run in range(RUNS):
        kept: list[Any] = []
        pool = mempool.BufferPool(name="leaking")
        leak, line = planted(kind, kept, pool)
        noise = Noise(run, mempool.BufferPool(name="noise"))
        report = detect_leaks(lambda: (noise(), leak()), iterations=12, rounds=3)  # noqa: B023
        where = {culprit.where for culprit in report.culprits}
        assert report.leaked, (run, str(report))
        assert f"{HERE}:{line}" in where, (run, str(report))
        assert ACCOUNTS[kind] is None or ACCOUNTS[kind] in where, (run, str(report))
        assert 0.9 * KIB < report.bytes_per_call < 8 * KIB, (run, str(report))


@pytest.mark.parametrize("kind", ACCOUNTS)
def test_a_planted_leak_is_found_and_named_each_time(kind: str, run_python: Callable[..., Any]) -> None:
    in_a_process_of_its_own(run_python, f"find_planted({kind!r})")


def find_nothing() -> None:
    for run in range(RUNS):
        noise = Noise(run, mempool.BufferPool(name="noise"))
        report = detect_leaks(noise, iterations=24)
        assert (report.leaked, report.bytes_per_call, report.culprits) == (False, 0.0, ()), (run, str(report))


def test_nothing_is_found_where_nothing_leaks(run_python: Callable[..., Any]) -> None:
    in_a_process_of_its_own(run_python, "find_nothing()")


@pytest.mark.parametrize("counters", [("malloc_counter",), ("object_counter",), ("malloc_counter", "object_counter")])
def test_where_allocators_do_not_count(counters: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As with musl, on macOS, under a sanitizer."""
    for name in counters:
        monkeypatch.setattr(heap, name, lambda: None)
    kept: list[Any] = []
    for kind in ACCOUNTS:
        leak, line = planted(kind, kept, mempool.BufferPool(name="leaking"))
        assert f"{HERE}:{line}" in {culprit.where for culprit in detect_leaks(leak, iterations=12).culprits}
    assert not detect_leaks(lambda: bytearray(100), iterations=12).leaked


# ---- what is no leak ----


def full_cache() -> Callable[[], object]:
    """Full before anything is traced: new entries are seen to come, and old ones are not seen to go."""
    cache = OrderedDict((key, bytes(1000)) for key in range(1000, 3000))
    keys = iter(range(10_000, 1 << 30))

    def replace() -> None:
        cache[next(keys)] = bytes(1000)
        cache.popitem(last=False)

    return replace


def full_queue_of_objects() -> Callable[[], object]:
    queue = deque((object() for _ in range(2000)), 2000)
    return lambda: queue.append(object())


def full_queue_of_leases() -> Callable[[], object]:
    pool = mempool.BufferPool(name="queue")
    queue = deque((pool.acquire(KIB) for _ in range(1000)), 1000)
    return lambda: queue.append(pool.acquire(KIB))


def filling_cache(keys: int) -> Callable[[], object]:
    cache: dict[int, bytes] = {}
    draw = random.Random(keys).randrange

    def put() -> None:
        cache[draw(keys)] = bytes(1000)

    return put


def turning_slab() -> Callable[[], object]:
    slab = mempool.SlabAllocator(500, name="turning")
    handles = deque(slab.alloc() for _ in range(50))

    def turn() -> None:
        handles.append(slab.alloc())
        slab.free(handles.popleft())

    return turn


def random_walk() -> Callable[[], object]:
    kept = [bytearray(1000) for _ in range(200)]
    draw = random.Random(7).random
    return lambda: kept.append(bytearray(1000)) if draw() < 0.5 else kept.pop()


def reserving() -> Callable[[], object]:
    """More idle memory with each call is not lent, so it is no leak."""
    pool = mempool.BufferPool(name="reserving", idle_timeout=None)
    sizes = iter(range(1, 1 << 20))
    return lambda: pool.reserve(KIB, next(sizes))


CLEAN = {
    "full cache": full_cache,
    "full queue of objects": full_queue_of_objects,
    "full queue of leases": full_queue_of_leases,
    "cache of 64 random keys": functools.partial(filling_cache, 64),
    "cache of 150 random keys": functools.partial(filling_cache, 150),
    "slab that turns over": turning_slab,
    "random walk": random_walk,
    "idle memory": reserving,
}


@pytest.mark.parametrize("name", CLEAN)
def test_what_is_no_leak(name: str) -> None:
    if name == "full cache" and heap.malloc_counter() is None:
        pytest.skip("malloc tells nothing here")
    report = detect_leaks(CLEAN[name]())
    assert not report.leaked, str(report)


# ---- what else is found ----


def only(report: LeakReport, kind: str) -> Any:
    (culprit,) = [culprit for culprit in report.culprits if culprit.kind == kind]
    return culprit


def test_charges_of_third_parties_are_named() -> None:
    account = Account("decoder")
    report = detect_leaks(lambda: account.charge(KIB), iterations=24)
    assert (only(report, "account").where, report.bytes_per_call) == ("root > decoder", KIB)
    account.discharge(account.used)


def test_charges_of_ever_new_accounts_are_named_by_what_is_above() -> None:
    above, numbers = Account("requests"), iter(range(1000))
    charged: list[Account] = []

    def handle() -> None:
        charged.append(Account(f"request {next(numbers)}", parent=above))
        charged[-1].charge(8 * KIB)

    report = detect_leaks(handle, iterations=24)
    assert (only(report, "account").where, only(report, "account").bytes_per_call) == (
        "root > requests > (new accounts)",
        8 * KIB,
    )
    for account in charged:
        account.discharge(8 * KIB)


def test_charges_of_many_accounts_count_together() -> None:
    accounts = [Account(f"tenant {number}") for number in range(40)]
    turns = itertools.cycle(accounts)
    report = detect_leaks(lambda: next(turns).charge(8 * KIB), iterations=24)
    assert (only(report, "account").where, only(report, "account").bytes_per_call) == (
        "root > (many accounts)",
        8 * KIB,
    )
    for account in accounts:
        account.discharge(account.used)


def test_accounts_that_come_and_go_are_no_leak() -> None:
    numbers = iter(range(1000))

    def handle() -> None:
        with Account(f"request {next(numbers)}").charged(8 * KIB):
            pass

    assert not detect_leaks(handle, iterations=24).leaked


def test_a_leak_of_code_from_ever_new_lines_is_their_sum() -> None:
    kept: list[bytearray] = []
    numbers = iter(range(1000))

    def handle() -> None:
        exec(compile("\n" * next(numbers) + "kept.append(bytearray(1000))", "<generated>", "exec"), {"kept": kept})

    report = detect_leaks(handle, iterations=24)
    assert only(report, "heap").where == "many lines, most of it in <generated>"
    assert 1000 < report.bytes_per_call < 1300


@pytest.mark.parametrize("nbytes", [60 * KIB, 20 * KIB, 4 * KIB])
def test_what_gets_larger_in_rare_steps_leaks_or_is_noted(nbytes: int) -> None:
    grown, more = bytearray(KIB * KIB), bytes(nbytes)
    report = detect_leaks(lambda: grown.extend(more), iterations=24)
    line = f"{HERE}:{sys._getframe().f_lineno - 1}"
    assert any(line in text for text in [*report.notes, *(culprit.where for culprit in report.culprits)]), str(report)


def test_slab_items_count_one_by_one() -> None:
    slab = mempool.SlabAllocator(KIB, name="items")
    report = detect_leaks(slab.alloc, iterations=24)
    assert only(report, "account").bytes_per_call == KIB
    slab.close()


def test_rows_of_a_growing_array_count() -> None:
    array = mempool.anonymous_array((0, KIB), "u1", max_rows=10_000)
    row = np.zeros((1, KIB), "u1")
    report = detect_leaks(lambda: array.append(row), iterations=24)
    assert only(report, "lent").bytes_per_call == pytest.approx(KIB, rel=0.05)
    array.close()


def test_a_leak_of_c_code_is_blamed_on_the_function() -> None:
    kept: list[float] = []
    report = detect_leaks(functools.partial(kept.extend, range(1000, 1040)), iterations=24)
    assert "kept" not in str(report)
    assert "built-in method extend" in only(report, "heap").where
    assert only(report, "heap").objects_per_call == pytest.approx(40, rel=0.1)


def test_a_leak_of_numpy_is_traced() -> None:
    kept: list[Any] = []
    report = detect_leaks(lambda: kept.append(np.ones(128)), iterations=24)
    assert only(report, "heap").bytes_per_call > KIB
    assert any(frame.startswith(HERE) for frame in only(report, "heap").stack)


def test_a_leak_now_and_then_is_found() -> None:
    kept: list[bytearray] = []
    draw = random.Random(3).random
    report = detect_leaks(lambda: kept.append(bytearray(KIB)) if draw() < 0.3 else None)
    assert report.leaked
    assert 0.15 * KIB < report.bytes_per_call < 0.5 * KIB


@pytest.mark.skipif(heap.malloc_counter() is None, reason="malloc tells nothing here")
def test_a_leak_of_malloc_itself_is_found(run_python: Callable[..., Any]) -> None:
    """In a process of its own: here threads of other tests may allocate and free."""
    run_python(
        """
        import ctypes
        from mempool.accounting import detect_leaks

        malloc = ctypes.CDLL(None).malloc
        malloc.restype, malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
        report = detect_leaks(lambda: malloc(1024), iterations=24)
        (culprit,) = [culprit for culprit in report.culprits if culprit.kind == "native"]
        assert 1024 <= culprit.bytes_per_call < 1.1 * 1024
        """
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RSS of other systems is not so exact")
def test_a_leaked_mapping_of_others_shows_in_resident_memory(run_python: Callable[..., Any]) -> None:
    """In a process of its own: here idle memory of other tests' pools may go back."""
    run_python(
        """
        import mmap
        from mempool.accounting import detect_leaks

        kept = []

        def leak():
            kept.append(mmap.mmap(-1, 256 << 10))
            kept[-1].write(b"x" * (256 << 10))

        report = detect_leaks(leak, iterations=24)
        (culprit,) = [culprit for culprit in report.culprits if culprit.kind == "native"]
        assert 0.9 < culprit.bytes_per_call / (256 << 10) < 1.1
        """
    )


def test_the_report_explains_itself() -> None:
    kept: list[bytearray] = []
    report = detect_leaks(lambda: kept.append(bytearray(KIB)), warmup=1, iterations=24)
    assert report.calls == len(kept) == 1 + 24 * 5
    assert str(report).startswith("leaks 1,0")
    assert HERE in str(report)
    assert str(detect_leaks(int, iterations=8)).startswith("no leak (")


# ---- what is left as it was ----


@pytest.fixture
def thawed() -> Iterator[None]:
    """Nothing is frozen but the few immortal objects that 3.12 freezes itself. The tests freeze what was collected."""
    gc.unfreeze()
    gc.collect()
    yield
    gc.freeze()


def is_frozen() -> bool:
    """Whether most is frozen. The count is not exact: what dies leaves it, and what is immortal joins it."""
    return gc.get_freeze_count() > len(gc.get_objects())


@pytest.mark.parametrize("freezing", [False, True])
@pytest.mark.parametrize("tracing", [False, True])
def test_tracing_and_freezing_are_left_as_they_were(thawed: None, tracing: bool, freezing: bool) -> None:
    if freezing:
        gc.freeze()
    assert is_frozen() == freezing
    if tracing:
        tracemalloc.start()
    try:
        detect_leaks(int, iterations=8)
        assert (tracemalloc.is_tracing(), is_frozen()) == (tracing, freezing)
        with pytest.raises(ZeroDivisionError):
            detect_leaks(lambda: 1 // 0, warmup=0)
        assert (tracemalloc.is_tracing(), is_frozen()) == (tracing, freezing)
    finally:
        tracemalloc.stop()


def test_what_was_there_takes_no_part_in_collections(thawed: None) -> None:
    seen = []
    detect_leaks(lambda: seen.append(is_frozen()), iterations=8)
    assert seen[-1]
    assert not is_frozen()


def test_stopping_the_tracing_is_refused(thawed: None) -> None:
    with pytest.raises(RuntimeError, match="must leave it alone"):
        detect_leaks(tracemalloc.stop, iterations=8)
    assert not is_frozen()


def test_two_runs_at_once_take_turns() -> None:
    inside = threading.Semaphore(1)

    def alone() -> None:
        assert inside.acquire(blocking=False)
        inside.release()

    threads = [start(functools.partial(detect_leaks, alone, iterations=8)) for _ in range(3)]
    assert [thread.result().leaked for thread in threads] == [False] * 3


def test_a_run_within_a_run() -> None:
    """The tracemalloc of CPython 3.11 itself leaves some malloc behind for each stack when it is stopped, so that may show."""
    report = detect_leaks(lambda: detect_leaks(int, warmup=0, iterations=8), warmup=0, iterations=8, rounds=2)
    assert {culprit.kind for culprit in report.culprits} <= {"native"}


async def coroutine() -> None: ...


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (TypeError, {"func": 5}),
        (TypeError, {"func": coroutine}),
        (TypeError, {"func": int, "warmup": 1.5}),
        (TypeError, {"func": int, "iterations": True}),
        (TypeError, {"func": int, "iterations": Strange()}),
        (ValueError, {"func": int, "iterations": 7}),
        (ValueError, {"func": int, "warmup": -1}),
        (ValueError, {"func": int, "rounds": 1}),
        (ValueError, {"func": int, "tolerance": -1}),
        (TypeError, {"func": int, "tolerance": 1.5}),
    ],
)
def test_nonsense_is_refused(error: type[Exception], arguments: dict[str, Any]) -> None:
    with pytest.raises(error):
        detect_leaks(**arguments)
