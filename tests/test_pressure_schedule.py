"""What a scheduled cleanup takes: what costs nobody anything always, content of caches only while memory is short."""

from collections.abc import Iterator
from typing import Any

import pytest

import mempool
from mempool.accounting import register_reclaimer
from mempool.pressure import CleanupSchedule, Level, PressureMonitor, Thresholds, register, schedule
from support import KIB, MIB, until

MODES = ["standard", "aggressive"]


class Cache:
    """Entries of a kibibyte."""

    name = "entries"

    def __init__(self) -> None:
        self.nbytes, self.asked = 64 * KIB, 0
        register(self)

    def shrink(self, nbytes: int) -> int:
        self.asked += 1
        freed = min(nbytes, self.nbytes)
        self.nbytes -= freed
        return freed


class Default:
    """The default monitor of a test: it calls for nothing by itself."""

    def __init__(self) -> None:
        self.used = 10
        self.monitor = PressureMonitor(Thresholds(main=100), sources=[lambda: (self.used, 200)], min_dwell=0)


@pytest.fixture
def default(monkeypatch: pytest.MonkeyPatch) -> Iterator[Default]:
    made = Default()
    monkeypatch.setattr(schedule, "default_monitor", lambda: made.monitor)
    yield made
    made.monitor.stop()


def rounds(mode: Any, count: int = 3) -> CleanupSchedule:
    """Run a schedule for some cleanups at least."""
    with CleanupSchedule("1ms", mode) as made:
        until(lambda: made.runs >= count)
    return made


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("running", [False, True])
def test_caches_keep_what_they_have_while_there_is_room(default: Default, mode: str, running: bool) -> None:
    if running:
        default.monitor.start()
    cache = Cache()
    asked: list[int] = []
    registration = register_reclaimer(lambda needed: asked.append(needed) or 0)
    pool = mempool.BufferPool(idle_timeout=None)
    pool.acquire(MIB).release()
    try:
        made = rounds(mode)
    finally:
        registration.cancel()
    assert (cache.asked, asked) == (0, [])
    assert pool.stats().idle == 0
    assert made.last is not None
    assert {"garbage", "pools", "slabs", "shared", "malloc"} <= {step.name for step in made.last.steps}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("running", [False, True])
def test_they_give_while_memory_is_short(default: Default, mode: str, running: bool) -> None:
    default.used = 90
    if running:
        default.monitor.start()
        until(lambda: default.monitor.level == Level.ELEVATED)
    cache = Cache()
    rounds(mode)
    assert cache.asked > 0
    assert cache.nbytes < 64 * KIB


def test_a_monitor_that_does_not_run_is_polled_for_each(default: Default) -> None:
    cache = Cache()
    with CleanupSchedule("1ms") as made:
        until(lambda: made.runs > 1)
        assert cache.asked == 0
        default.used = 110
        until(lambda: cache.asked > 0)
    assert default.monitor.stats().polls > 1


def test_a_light_one_asks_nobody(default: Default) -> None:
    rounds("light")
    assert default.monitor.stats().polls == 0


def test_where_the_level_cannot_be_told_the_rest_is_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> PressureMonitor:
        raise ValueError("no thresholds")

    monkeypatch.setattr(schedule, "default_monitor", broken)
    cache = Cache()
    pool = mempool.BufferPool(idle_timeout=None)
    pool.acquire(MIB).release()
    rounds("standard", 1)
    assert (cache.asked, pool.stats().idle) == (0, 0)
    assert "caches are left alone" in caplog.text


def test_a_cleanup_that_is_called_still_takes_its_quarter() -> None:
    cache = Cache()
    mempool.cleanup("standard", background=False)
    assert cache.nbytes == 48 * KIB
