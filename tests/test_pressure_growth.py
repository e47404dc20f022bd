"""Growth of native memory: several who are told of it, and monitors that it wakes."""

import asyncio
import gc
import subprocess
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mempool import Account, BufferPool, _core
from mempool.accounting import gc_pressure, root_account
from mempool.pressure import (
    Level,
    PressureEvent,
    PressureMonitor,
    Thresholds,
    adaptive_batches,
    growth,
    monitor,
    running,
)
from mempool.pressure.growth import step_for
from monitor_kit import Memory
from support import DEADLINE, MIB, start, together, until

HOURS = 3600.0
HIGH = Level.HIGH

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def account() -> Iterator[Account]:
    made = Account("growth")
    yield made
    gc.collect()  # leases in cycles
    made.discharge(made.used)


@pytest.fixture
def hooks() -> Iterator[Callable[..., list[int]]]:
    """Add a hook; what it was told."""
    added: list[Callable[[int], object]] = []

    def add(threshold: int, **options: Any) -> list[int]:
        told: list[int] = []
        added.append(told.append)
        _core._add_growth_hook(added[-1], threshold, **options)
        return told

    yield add
    for hook in added:
        _core._remove_growth_hook(hook)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait as long as it takes, and poll only when told: so tests do not depend on time."""
    monkeypatch.setattr(growth, "PATIENCE", DEADLINE)
    monkeypatch.setattr(running, "AGAIN", HOURS)
    gc.collect()


def over(account: Account, main: int = 40 * MIB, **options: Any) -> PressureMonitor:
    """A monitor of what an account holds, at rest for hours."""
    return PressureMonitor(
        Thresholds(main=main), sources=[lambda: (account.used, None)], interval=HOURS, min_dwell=0, **options
    )


def settled(one: PressureMonitor) -> int:
    """Polls, once growth is armed, and a turn that came after that has ended."""
    until(lambda: one._runner is not None and one._runner._growth._armed)
    assert one._runner is not None
    assert one._runner.ask()
    return one.stats().polls


# ---- who is told


def test_each_has_a_step_of_its_own(hooks: Callable[..., list[int]], account: Account) -> None:
    often, seldom = hooks(2 * MIB), hooks(16 * MIB)
    for _ in range(33):
        account.charge(MIB)
    assert 8 <= len(often) <= 16
    assert 1 <= len(seldom) <= 2
    assert min(often) >= 2 * MIB
    assert min(seldom) >= 16 * MIB


def test_one_goes_and_the_others_stay(account: Account) -> None:
    first: list[int] = []
    second: list[int] = []
    one, two = first.append, second.append
    _core._add_growth_hook(one, MIB)
    _core._add_growth_hook(two, MIB)
    try:
        _core._remove_growth_hook(one)
        _core._remove_growth_hook(one)
        account.charge(4 * MIB)
    finally:
        _core._remove_growth_hook(two)
    account.charge(4 * MIB)
    assert (len(first), len(second)) == (0, 1)


def test_another_threshold_counted_anew(account: Account) -> None:
    told: list[int] = []
    hook = told.append
    _core._add_growth_hook(hook, 32 * MIB, reserved=True)
    try:
        account.charge(20 * MIB)
        _core._adjust_growth_hook(hook, 8 * MIB, anew=True)
        account.charge(4 * MIB)
        assert told == []
        account.charge(4 * MIB)
        assert told == [8 * MIB]
        _core._adjust_growth_hook(hook, 1 << 60)
        account.charge(64 * MIB)
        assert len(told) == 1
    finally:
        _core._remove_growth_hook(hook)


def test_idle_memory_counts_where_it_shall_and_what_is_about_to_come(hooks: Callable[..., list[int]]) -> None:
    lent, held = hooks(8 * MIB), hooks(8 * MIB, reserved=True)
    pools = [BufferPool(idle_timeout=None) for _ in range(8)]
    for pool in pools:
        pool.acquire(4 * MIB).release()
    assert lent == []
    assert len(held) >= 3
    assert sum(pool.account.used for pool in pools) == 32 * MIB
    del held[:]
    with BufferPool().acquire(64 * MIB):
        assert held == [64 * MIB + held[0] % (64 * MIB)]


@pytest.mark.parametrize("threshold", [0, -1, 1.5, None, "x"])
def test_bad_thresholds(threshold: Any) -> None:
    hook = print
    for call in (_core._add_growth_hook, _core._adjust_growth_hook):
        with pytest.raises((TypeError, ValueError), match="threshold"):
            call(hook, threshold)


def test_threads_that_come_and_go(account: Account) -> None:
    def work() -> int:
        told: list[int] = []
        hook = told.append
        for _ in range(200):
            _core._add_growth_hook(hook, MIB, reserved=True)
            account.charge(2 * MIB)
            account.discharge(2 * MIB)
            _core._remove_growth_hook(hook)
        return len(told)

    together([work] * 4)
    told: list[int] = []
    account.charge(64 * MIB)
    assert told == []


def test_the_collector_and_a_monitor_at_once(account: Account) -> None:
    pool = BufferPool(account=account)
    with over(account, 200 * MIB) as one:
        settled(one)
        gc_pressure(threshold="16MiB")
        try:
            for _ in range(300):
                cycle: list[Any] = [pool.acquire(MIB)]
                cycle.append(cycle)
        finally:
            gc_pressure(False)
        assert pool.stats().peak < 60 * MIB
        account.charge(200 * MIB)
        assert one.level >= HIGH
    gc.collect()


# ---- monitors


@pytest.mark.parametrize(
    ("headroom", "step"), [(0.0, MIB), (-5.0, MIB), (8.0 * MIB, MIB), (80.0 * MIB, 10 * MIB), (float("inf"), 1 << 57)]
)
def test_a_share_of_the_headroom(headroom: float, step: int) -> None:
    assert step_for(headroom) == step


def test_the_headroom_is_that_of_the_nearest_source() -> None:
    near, far, none = Memory(700, 1000, "near"), Memory(10, 1000, "far"), Memory(5, None, "none")
    one = PressureMonitor(Thresholds.fractions(), sources=[far, near, none], min_dwell=0)
    assert one._headroom() is None
    for used, room in ((700, 50), (760, 90), (900, 50), (960, 40), (1100, 0)):
        near.used = used
        one.poll()
        assert one._headroom() == pytest.approx(room)
    assert PressureMonitor(Thresholds.fractions(), sources=[none])._headroom() is None


def test_a_monitor_at_rest_knows_before_the_charge_returns(account: Account) -> None:
    told: list[Level] = []
    with over(account) as one:
        one.on(HIGH, lambda event: told.append(event.level))
        settled(one)
        account.charge(45 * MIB)
        assert one.level == HIGH
        assert told == [HIGH]


def test_a_fill_is_seen_step_by_step_and_the_callback_runs_elsewhere(account: Account) -> None:
    threads: list[int] = []

    def drop(event: PressureEvent) -> int:
        threads.append(threading.get_ident())
        held.clear()
        return 1

    held: list[Any] = []
    pool = BufferPool(account=account, max_idle=0)
    with over(account) as one:
        one.on(Level.ELEVATED, drop)
        settled(one)
        for _ in range(200):
            held.append(pool.acquire(MIB))
            assert len(held) < 40
    assert len(threads) >= 4
    assert threading.get_ident() not in threads


def test_idle_memory_wakes() -> None:
    root = root_account()
    before = root.used
    source = [lambda: (max(0, root.used - before), None)]
    pools = [BufferPool(idle_timeout=None) for _ in range(16)]
    with PressureMonitor(Thresholds(main=40 * MIB), sources=source, interval=HOURS) as one:
        settled(one)
        for pool in pools:
            pool.acquire(4 * MIB).release()
        assert one.level >= HIGH


def test_growth_counts_from_the_last_poll(account: Account) -> None:
    with over(account, 800 * MIB) as one:
        settled(one)
        account.charge(70 * MIB)
        assert one._runner is not None
        one._runner.ask()
        polls = one.stats().polls
        account.charge(60 * MIB)
        assert one.stats().polls == polls
        account.charge(20 * MIB)
        assert one.stats().polls == polls + 1


def test_small_growth_wakes_nobody(account: Account) -> None:
    with over(account, 800 * MIB) as one:
        polls = settled(one)
        for _ in range(500):
            account.charge(8 * MIB)
            account.discharge(8 * MIB)
        assert one.stats().polls == polls


def test_without_a_threshold_nobody_is_woken(account: Account) -> None:
    with PressureMonitor(sources=[], interval=HOURS) as one:
        until(lambda: one.stats().polls)
        account.charge(500 * MIB)
        assert one.stats().polls == 1


def test_within_a_callback_nobody_is_woken(account: Account) -> None:
    with over(account) as one:
        before = settled(one)
        one.on(HIGH, lambda event: account.charge(100 * MIB))
        with one.simulate(HIGH):
            polls = one.stats().polls
        assert account.used == 100 * MIB
        assert polls == before


def test_a_lock_that_the_caller_holds_and_a_callback_needs(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = threading.Lock()
    told: list[Level] = []

    def locked(event: PressureEvent) -> None:
        with lock:
            told.append(event.level)

    with over(account) as one:
        one.on(HIGH, locked)
        settled(one)
        monkeypatch.setattr(growth, "PATIENCE", 0.01)
        with lock:
            account.charge(45 * MIB)
            assert told == []
            monkeypatch.setattr(growth, "PATIENCE", 1e6)
            account.charge(20 * MIB)
        until(lambda: HIGH in told)


def test_an_event_loop_polls_at_its_next_turn(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "PATIENCE", 0.01)

    async def main() -> tuple[int, int, Level]:
        async with over(account) as one:
            while not one.stats().polls:
                await asyncio.sleep(0)
            polls = one.stats().polls
            account.charge(45 * MIB)
            account.charge(20 * MIB)
            at_once = one.stats().polls - polls
            assert one._runner is not None
            assert one._runner._growth._patient  # it did not wait for itself
            while one.level < HIGH:
                await asyncio.sleep(0)
            return at_once, one.stats().polls - polls, one.level

    assert asyncio.run(asyncio.wait_for(main(), DEADLINE)) == (0, 1, Level.CRITICAL)


def test_another_thread_waits_for_the_loop(account: Account) -> None:
    def work(one: PressureMonitor) -> Level:
        account.charge(45 * MIB)
        return one.level

    async def main() -> Level:
        async with over(account) as one:
            while not one.stats().polls:
                await asyncio.sleep(0)
            return await asyncio.to_thread(work, one)

    assert asyncio.run(asyncio.wait_for(main(), DEADLINE)) == HIGH


def test_what_was_stopped_is_told_nothing_and_not_kept(account: Account) -> None:
    one = over(account)
    for _ in range(2):
        with one:
            settled(one)
    account.charge(100 * MIB)
    assert one.level == Level.NORMAL
    gone = weakref.ref(one)
    del one
    gc.collect()
    assert gone() is None


def test_a_thread_that_waits_while_it_is_stopped(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "PATIENCE", 1e6)
    entered, leave = threading.Event(), threading.Event()

    def block(event: PressureEvent) -> None:
        entered.set()
        leave.wait(DEADLINE)

    one = over(account)
    one.on(HIGH, block)
    with one:
        settled(one)
        waits = start(account.charge, 45 * MIB)
        assert entered.wait(DEADLINE)
        stops = start(one.stop)
        waits.result()
        leave.set()
        stops.result()


# ---- batches


@pytest.mark.parametrize("how", ["thread", "loop"])
def test_batches_have_a_running_monitor_look(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr("mempool.pressure.batches.LOOK_EVERY", 0.0)
    monkeypatch.setattr(monitor, "IN_A_HURRY", 0)
    memory = Memory(10, 200)
    one = PressureMonitor(Thresholds(main=100, critical=120), sources=[memory], interval=HOURS, min_dwell=0)

    def sizes() -> list[int]:
        batches = adaptive_batches(range(300), 100, monitor=one, max_wait=0, cleanup=False)
        found = [len(next(batches))]
        memory.used = 130
        return [*found, len(next(batches))]

    async def main() -> list[int]:
        async with one:
            return sizes()

    if how == "loop":
        assert asyncio.run(main()) == [100, 1]
    else:
        with one:
            assert sizes() == [100, 1]


def test_a_fresh_look_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mempool.pressure.batches.LOOK_EVERY", HOURS)
    with PressureMonitor(sources=[Memory(1, 2)], interval=HOURS) as one:
        until(lambda: one.stats().polls)
        for _ in adaptive_batches(range(1000), 10, monitor=one):
            pass
        assert one.stats().polls == 1


# ---- processes


def test_fork_and_exit(run_python: Run) -> None:
    code = """
        import atexit, os, warnings
        warnings.simplefilter("ignore")
        import mempool
        from mempool.pressure import Level, PressureMonitor, Thresholds, growth
        growth.PATIENCE = 100.0
        account = mempool.Account("a")
        monitor = PressureMonitor(Thresholds("40MiB"), sources=[lambda: (account.used, None)], interval="1h", min_dwell=0)

        def wait():
            while not (monitor.running and monitor._runner._growth._armed):
                pass

        def grow():
            account.charge("45MiB")
            level = monitor.level
            account.discharge("45MiB")
            return level

        class Late:
            def __del__(self, take=account.charge):
                take(1 << 30)

        atexit.register(account.charge, 1 << 30)  # after the monitor ended
        monitor.start()
        wait()
        child = os.fork()
        if not child:
            account.charge("100MiB")  # nobody is there to be woken
            account.discharge("100MiB")
            wait()
            assert grow() == Level.HIGH
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        monitor.poll()
        assert grow() == Level.HIGH
        late = Late()
        late.me = late
    """
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("", "")
