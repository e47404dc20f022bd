"""Growth of native memory triggers the garbage collector, once that was asked for."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mempool
from mempool import Account, BufferPool, _core
from mempool.accounting import gc_pressure, register_reclaimer, root_account
from mempool.accounting.gc_bridge import Bridge
from support import KIB, MIB, together


@pytest.fixture(autouse=True)
def off_again() -> Iterator[None]:
    """Nothing else collects: the collector is on, and objects are too few for it."""
    thresholds = gc.get_threshold()
    gc.set_threshold(0)
    gc.collect()
    yield
    gc_pressure(False)
    gc.set_threshold(*thresholds)
    gc.collect()


def cycle(thing: Any) -> None:
    made: list[Any] = [thing]
    made.append(made)


@pytest.mark.parametrize("nbytes", [8 * MIB, MIB, 48 * KIB])
def test_cyclic_garbage_of_leases_stays_small(nbytes: int) -> None:
    pool = BufferPool()
    gc_pressure(threshold="32MiB")
    for _ in range(400 * MIB // min(nbytes, MIB)):
        cycle(pool.acquire(nbytes))
    assert pool.stats().peak < 80 * MIB


TAKERS: dict[str, Callable[[Account], object]] = {
    "account": lambda account: Charged(account),
    "array": lambda account: mempool.anonymous_array(4 * MIB, "u1"),
    "ring": lambda account: mempool.RingBuffer(4 * MIB, account=account),
    "arena": lambda account: mempool.Arena(4 * MIB, account=account),
    "stream": lambda account: mempool.io.BytesStream(bytes(4 * MIB), pool=BufferPool(account=account)),
}


class Charged:
    """Memory of another library."""

    def __init__(self, account: Account) -> None:
        self.account = account
        account.charge(4 * MIB)

    def __del__(self) -> None:
        self.account.discharge(4 * MIB)


@pytest.mark.parametrize("name", TAKERS)
def test_whoever_takes_memory(name: str) -> None:
    account = Account("takers")
    root = root_account()
    before = root.used
    most = 0
    gc_pressure(threshold="16MiB")
    for _ in range(60):
        cycle(TAKERS[name](account))
        most = max(most, root.used - before)
    assert most < 60 * MIB


def test_slabs_too() -> None:
    root = root_account()
    before, most = root.used, 0
    gc_pressure(threshold="16MiB")
    for _ in range(60):
        slab = mempool.SlabAllocator(MIB)
        for _ in range(4):
            slab.alloc()
        cycle(slab)
        most = max(most, root.used - before)
    assert most < 60 * MIB


def test_off_until_called_and_off_again() -> None:
    lent = []
    for on in (None, True, False):
        if on is not None:
            gc_pressure(on, "8MiB")
        pool = BufferPool()
        gc.collect()
        for _ in range(64):
            cycle(pool.acquire(MIB))
        lent.append(pool.stats().in_use)
    assert lent[0] == lent[2] == 64 * MIB
    assert lent[1] < 24 * MIB


def test_not_under_gc_disable() -> None:
    pool = BufferPool()
    gc_pressure(threshold="4MiB")
    gc.disable()
    try:
        for _ in range(32):
            cycle(pool.acquire(MIB))
        assert pool.stats().in_use == 32 * MIB
    finally:
        gc.enable()
    cycle(pool.acquire(16 * MIB))
    assert pool.stats().in_use < 32 * MIB


def test_live_memory_makes_it_wait_longer_and_garbage_brings_it_back() -> None:
    held, runs = 0, []
    bridge = Bridge(100, lambda: held, runs.append)
    seen = []
    for _ in range(7):
        held += bridge.current
        assert bridge.on_growth(bridge.current) == 0
        seen.append(bridge.current)
    assert seen == [200, 400, 800, 1600, 1600, 1600, 1600]

    def collect(generation: int) -> None:
        nonlocal held
        held -= 1000

    bridge._collect = collect
    bridge.on_growth(1600)
    assert bridge.current == 100


def test_the_young_go_first_and_what_they_leave_is_bounded() -> None:
    held, old, runs = 1000, 0, []

    def collect(generation: int) -> None:
        nonlocal held, old
        runs.append(generation)
        held = 1000 + old if generation == 1 else 1000
        old = old + 10 if generation == 1 else 0

    bridge = Bridge(100, lambda: held, collect)
    for _ in range(50):
        held += 100
        bridge.on_growth(100)
        assert held <= 1050
    assert runs.count(2) < 10
    assert runs.count(1) == 50


def test_never_within_a_reclaimer() -> None:
    account = Account("a", limit=MIB)
    account.charge(MIB)
    pool = BufferPool()
    collections: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        collections.append(phase)

    def take(needed: int) -> int:
        before = len(collections)
        kept.append(pool.acquire(8 * MIB))
        account.discharge(needed)
        assert len(collections) == before
        return needed

    kept: list[Any] = []
    registration = register_reclaimer(take)
    gc_pressure(threshold="1MiB")
    gc.callbacks.append(note)
    try:
        account.charge(KIB)
    finally:
        gc.callbacks.remove(note)
        registration.cancel()
        account.discharge(MIB)
    assert len(kept) == 1


def test_threads() -> None:
    pool = BufferPool()
    gc_pressure(threshold="16MiB")

    def work() -> None:
        for _ in range(200):
            cycle(pool.acquire(MIB))

    together([work] * 4)
    assert pool.stats().peak < 120 * MIB


def test_ctrl_c_comes_when_the_charge_is_done() -> None:
    def interrupted(grown: int) -> None:
        raise KeyboardInterrupt

    account = Account("a")
    _core._add_growth_hook(interrupted, 1 * MIB)
    try:
        with pytest.raises(KeyboardInterrupt):
            account.charge(4 * MIB)
            for _ in range(1000):
                pass
    finally:
        _core._remove_growth_hook(interrupted)
    assert account.used == 4 * MIB
    account.discharge(4 * MIB)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((1,), TypeError),
        ((None,), TypeError),
        ((True, 1.5), TypeError),
        ((True, "x"), ValueError),
        ((True, 0), ValueError),
        ((True, -1), ValueError),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        gc_pressure(*arguments)
