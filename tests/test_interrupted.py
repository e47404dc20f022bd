"""Ctrl-C where Python lets it come, and what else cuts a step in two: what was begun is taken back, and nobody waits for it."""

import asyncio
import contextlib
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mempool
from mempool import _reclaim
from mempool.accounting import Account, LeakDetector, Tracker, gc_pressure, guard, memory_limit, register_reclaimer
from mempool.pressure import Alerts, PressureEvent, PressureMonitor
from mempool.pressure.muting import Mutes
from mempool.pressure.reclaim import Shrinker
from mempool.pressure.regrowth import is_asked
from mempool.pressure.waiting import ThreadWaiter, Waiters
from monitor_kit import BYTES, HIGH, NORMAL, Bench, Memory
from reclaim_kit import no_reclaimers
from support import DEADLINE, start, with_ctrl_c

_OURS = str(Path(mempool.__file__).parent), contextlib.__file__
EVENT = PressureEvent(HIGH, NORMAL, "test", 80, 100, 0.8, None, 0.0)


def interrupts(work: Callable[[], object]) -> Iterator[None]:
    """Do the work with Ctrl-C at its first moment, its second, and so on: Python lets it come as a function begins or a call ends.

    After each it is looked at what is left of it, while the error is alive, and its traceback with it.
    """
    collected = gc.isenabled()
    gc.disable()  # what others have the collector call is not ours to interrupt
    try:
        for step in range(10_000):
            try:
                with_ctrl_c(work, step, *_OURS)
            except KeyboardInterrupt:
                yield
            else:
                assert step
                return
    finally:
        if collected:
            gc.enable()


# ---- at any moment


def quiet_alerts() -> Alerts:
    logger = logging.Logger("nobody's")
    logger.addHandler(logging.NullHandler())
    return Alerts(logger)


@pytest.mark.parametrize("kind", ["tracker", "alerts"])
def test_a_lock_is_let_go(kind: str) -> None:
    alerts, tracker = quiet_alerts(), Tracker(3)
    work: Callable[[], object] = tracker.snapshot if kind == "tracker" else lambda: alerts(EVENT)
    lock = tracker._lock if kind == "tracker" else alerts._lock
    free: list[bool] = []

    def look() -> None:
        free.append(lock._lock.acquire(blocking=False))
        if free[-1]:
            lock._lock.release()

    for _ in interrupts(work):
        start(look).join(DEADLINE)
    assert free
    assert all(free)


def test_a_shrinker_is_not_busy_for_ever() -> None:
    asked: list[int] = []
    make_room = Shrinker([asked.append])
    for _ in interrupts(lambda: make_room(EVENT)):
        before = len(asked)
        make_room(EVENT)
        assert len(asked) == before + 1


def test_reclaimers_are_asked_again() -> None:
    asked: list[int] = []
    with no_reclaimers():
        register_reclaimer(asked.append)
        for _ in interrupts(lambda: _reclaim.relieve(1)):
            before = len(asked)
            _reclaim.relieve(1)
            assert len(asked) == before + 1


def test_a_limit_of_a_piece_of_work_goes_with_it() -> None:
    account = Account("work", limit="1 GiB")

    def work() -> None:
        with memory_limit("1 MiB", what="external", account=account):
            pass

    for _ in interrupts(work):
        pass  # what holds the guard goes with the error
    assert account.limit == 1 << 30
    assert id(account) not in guard._shared


def test_the_bridge_to_the_collector_can_be_turned_off_again() -> None:
    """Each time that native memory grew the collector would run, whatever was said."""
    me, runs = threading.get_ident(), list[str]()

    def count(phase: str, info: dict[str, int]) -> None:
        if threading.get_ident() == me:
            runs.append(phase)

    gc_pressure(threshold="1 MiB")
    for _ in interrupts(lambda: gc_pressure(threshold="1 MiB")):
        pass
    gc_pressure(False)
    before, account = gc.get_threshold(), Account("grows")
    gc.callbacks.append(count)
    try:
        gc.set_threshold(0)
        with account.charged("64 MiB"):
            pass
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(count)
    assert not runs


def test_nobody_is_taken_for_one_who_asks() -> None:
    """A cache shrunk by hand would be promised to grow back."""
    bench = Bench()
    bench.monitor.on(HIGH, bench.note)
    used = [0]

    def work() -> None:
        used[0] = 1000 if used[0] == 0 else 0
        bench.at(used[0], 10)

    for _ in interrupts(work):
        assert not is_asked()


# ---- while a thread or a loop is begun or left


class Heard(Memory):
    """A source with a descriptor that never reports anything; what opens it may be interrupted."""

    poll_events = 1

    def __init__(self) -> None:
        super().__init__(name="heard")
        self.interrupt = False
        self.pipe: tuple[int, int] | None = None

    def open(self) -> None:
        self.pipe = os.pipe()
        if self.interrupt:
            raise KeyboardInterrupt

    def close(self) -> None:
        pipe, self.pipe = self.pipe, None
        for end in pipe or ():
            os.close(end)

    def fileno(self) -> int:
        return -1 if self.pipe is None else self.pipe[0]

    def handle(self, events: int) -> bool:
        return False


def can_be_watched(source: Heard) -> bool:
    with PressureMonitor(BYTES, sources=[source]) as monitor:
        return monitor.sources[0].events == "watched"


@pytest.mark.skipif(sys.platform == "win32", reason="no descriptors are polled there")
def test_a_source_that_was_being_opened_is_free_again() -> None:
    source = Heard()
    monitor = PressureMonitor(BYTES, sources=[source])
    source.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        monitor.start()
    assert source.pipe is None
    source.interrupt = False
    assert not monitor.running
    assert can_be_watched(source)


@pytest.mark.skipif(sys.platform == "win32", reason="no descriptors are polled there")
def test_a_loop_that_refuses_keeps_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Heard()
    monitor = PressureMonitor(BYTES, sources=[source])

    def refuse(*_: object) -> None:
        raise RuntimeError("not here")

    async def run() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", refuse)
        async with monitor:
            pytest.fail("it runs")

    with pytest.raises(RuntimeError, match="not here"):
        asyncio.run(run())
    assert source.pipe is None
    assert not monitor.running
    assert can_be_watched(source)


def interrupt_the_start(monkeypatch: pytest.MonkeyPatch, name: str) -> list[threading.Thread]:
    """Have Ctrl-C come while a thread of this name is waited for to begin; those that it hit."""
    hit: list[threading.Thread] = []
    plain = threading.Thread.start

    def begin(thread: threading.Thread) -> None:
        plain(thread)
        if thread.name == name and not hit:
            hit.append(thread)
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", begin)
    return hit


def test_a_monitor_that_could_not_start_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = PressureMonitor(BYTES, sources=[Memory()], interval=3600)
    hit = interrupt_the_start(monkeypatch, "mempool-pressure")
    with pytest.raises(KeyboardInterrupt):
        monitor.start()
    assert not monitor.running
    hit[0].join(DEADLINE)
    assert not hit[0].is_alive()
    with monitor:
        assert monitor.running


def test_a_detector_that_could_not_start_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = LeakDetector()
    hit = interrupt_the_start(monkeypatch, "mempool-leak-detector")
    with pytest.raises(KeyboardInterrupt):
        detector.start(3600)
    assert not detector.running
    hit[0].join(DEADLINE)
    assert not hit[0].is_alive()
    with detector.start(3600):
        assert detector.running


class Lowered:
    """A cache that holds less than it may."""

    whole = False

    def _grow(self, whole: bool = False, /) -> bool:
        self.whole = whole
        return whole


def test_a_stop_that_is_interrupted_gives_back_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor, cache = PressureMonitor(BYTES, sources=[Memory()], interval=3600).start(), Lowered()
    monitor._regrowth.add(cache)
    runner: Any = monitor._runner
    plain = runner._thread.join

    def interrupted(timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner._thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        monitor.stop()
    plain(DEADLINE)
    assert cache.whole


# ---- while others are told


def test_who_comes_while_others_are_woken_disturbs_nobody() -> None:
    """A signal handler, or a finalizer, that waits too."""
    waiters = Waiters()

    class Late(ThreadWaiter):
        @property
        def level(self) -> Any:
            waiters.add(ThreadWaiter(HIGH))
            return HIGH

        @level.setter
        def level(self, value: object) -> None:
            pass

    for _ in range(3):
        waiters.add(Late(HIGH))
    waiters.wake(NORMAL)
    assert len(waiters) >= 6


def test_a_mute_that_is_collected_while_all_are_looked_at_disturbs_nobody() -> None:
    mutes = Mutes()
    held: list[Any] = []

    def drop(phase: str, info: dict[str, int]) -> None:
        del held[-2:]

    before, used = gc.get_threshold(), [(number, [number]) for number in range(3000)]  # no pairs are left over
    gc.callbacks.append(drop)
    try:
        for _ in range(20):
            held += [mutes.one() for _ in range(100)]
            gc.set_threshold(1)
            assert not mutes
            gc.set_threshold(*before)
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(drop)
    assert used
