"""`health`: what is an issue, what it costs, and what is forgotten again."""

import asyncio
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mempool
from batch_kit import Clock
from mempool import _core
from mempool.accounting import MemoryUsage, Tracker, register_reclaimer, take_snapshot
from mempool.pressure import Health, HealthCheck, Level, PressureMonitor, Thresholds
from mempool.pressure.batches import Waits, tally
from mempool.pressure.health import Done, Readings, judge
from mempool.pressure.sources import CallableSource
from support import KIB, MIB, start, together

GB = 1_000_000_000


def usage(rss: int = GB // 10, limit: int | None = GB, available: int | None = GB // 2) -> MemoryUsage:
    return MemoryUsage(
        rss=rss,
        uss=None,
        peak_rss=rss,
        python_heap=None,
        external=0,
        mapped=0,
        idle=0,
        limit=limit,
        limit_source=None if limit is None else "machine",
        available=available,
        accounts={},  # type: ignore[typeddict-item]
    )


class Pattern(str):
    evidence = "from 1 MB to 9 MB in 10 looks"


class FakeTracker:
    def __init__(self) -> None:
        self.snapshots, self.found, self.noise = 0, "steady", 0

    def snapshot(self) -> None:
        self.snapshots += 1

    def pattern(self, *, noise: int) -> str:
        self.noise = noise
        return self.found


class Running(PressureMonitor):
    """Polled by the test alone, and believed all the same."""

    @property
    def running(self) -> bool:
        return True


class Bench:
    """A check whose world is made by hand."""

    def __init__(self, thresholds: Thresholds | None = None, kind: type[PressureMonitor] = PressureMonitor) -> None:
        self.clock, self.tracker, self.usage = Clock(), FakeTracker(), usage()
        self.memory = [0]
        source = CallableSource(lambda: (self.memory[0], 100), name="cells")
        self.monitor = kind(thresholds, sources=[source], clock=self.clock, min_dwell=0)
        self.begin()
        self.check()  # what other tests left in the counters is not of this one
        self.check(301.0)

    def begin(self) -> None:
        self.checker = HealthCheck(self.monitor, self.tracker, usage=lambda: self.usage, clock=self.clock)

    def check(self, later: float = 10.0) -> Health:
        self.clock.now += later
        return self.checker.check()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of other tests are not judged: they may hold idle memory, and go at any moment."""
    of_process, others = _core._pools, {id(pool): pool for pool in _core._pools()}
    monkeypatch.setattr(_core, "_pools", lambda: [pool for pool in of_process() if id(pool) not in others])


@pytest.fixture
def bench() -> Bench:
    return Bench()


def kinds(health: Health) -> list[tuple[str, str]]:
    return [(issue.kind, issue.severity) for issue in health.issues]


def test_nothing_wrong(bench: Bench) -> None:
    found = bench.check()
    assert (found.score, found.status, found.issues) == (100, "healthy", ())
    assert found.usage is bench.usage
    assert str(found) == "healthy, 100 of 100"


# ---- thresholds


@pytest.mark.parametrize(
    ("used", "severity", "score", "status"),
    [(75, "medium", 85, "strained"), (85, "high", 65, "degraded"), (95, "critical", 40, "critical")],
)
def test_the_level_of_the_monitor(used: int, severity: str, score: int, status: str) -> None:
    bench = Bench(kind=Running)
    bench.memory[0] = used
    bench.monitor.poll()
    found = bench.check()
    assert kinds(found) == [("threshold", severity)]
    assert (found.score, found.status) == (score, status)
    (issue,) = found.issues
    assert (issue.figure, issue.limit, issue.subject) == (used, 100, "cells")
    assert "cells has 0.0 MB of 0.0 MB" in issue.message
    assert issue.advice


def test_figures_are_those_of_whoever_decided() -> None:
    bench = Bench(Thresholds(main=50), Running)
    bench.memory[0] = 55
    bench.monitor.poll()
    (issue,) = bench.check().issues
    assert (issue.figure, issue.limit, issue.subject) == (55, 50, "cells")
    bench = Bench(Thresholds(main="80MB", critical="2GB"))
    (issue,) = bench.check().issues
    assert (issue.figure, issue.limit, issue.subject) == (GB // 10, 80_000_000, "process")
    assert "100.0 MB, and the threshold is 80.0 MB" in issue.message
    bench = Bench()
    bench.usage = usage(available=GB // 10)
    (issue,) = bench.check().issues
    assert (issue.figure, issue.limit, issue.subject) == (GB * 9 // 10, GB, "machine")
    assert "machine has 900.0 MB of 1000.0 MB" in issue.message


def test_what_a_monitor_said_when_it_was_polled_last_is_not_told(bench: Bench) -> None:
    bench.memory[0] = 90
    assert bench.monitor.poll() == Level.HIGH
    assert bench.check().issues == ()
    with bench.monitor.simulate(Level.CRITICAL):
        assert bench.check().status == "critical"
    assert bench.monitor.level == Level.HIGH
    assert bench.check().issues == ()


def test_without_a_running_monitor_its_thresholds_judge_what_is_used(bench: Bench) -> None:
    bench.usage = usage(available=GB // 10)
    assert kinds(bench.check()) == [("threshold", "high")]
    assert bench.monitor.stats().polls == 0
    bench.usage = usage(limit=None, available=None)
    assert bench.check().issues == ()


def test_a_running_monitor_is_believed(bench: Bench) -> None:
    bench.usage = usage(available=GB // 10)
    with bench.monitor:
        assert bench.check().issues == ()


def test_absolute_thresholds_judge_the_process() -> None:
    bench = Bench(Thresholds(main="800MB"))
    bench.usage = usage(rss=GB, available=GB // 2)
    assert kinds(bench.check()) == [("threshold", "critical")]
    bench.usage = usage(rss=GB // 10, available=0)
    assert bench.check().issues == ()
    bench.usage = usage(rss=GB, limit=None, available=None)
    assert kinds(bench.check()) == [("threshold", "critical")]


def test_a_simulated_level_counts(bench: Bench) -> None:
    with bench.monitor.simulate(Level.CRITICAL):
        assert bench.check().status == "critical"
    assert bench.check().status == "healthy"


def test_a_level_without_a_limit(bench: Bench) -> None:
    bench.usage = usage(rss=GB // 10, limit=None, available=None)
    with bench.monitor.simulate(Level.HIGH):
        (issue,) = bench.check().issues
    assert (issue.figure, issue.limit) == (GB // 10, None)


# ---- patterns


def test_patterns(bench: Bench) -> None:
    for pattern, expected in (("leak", [("leak", "high")]), ("thrashing", [("thrashing", "medium")]), ("spike", [])):
        bench.tracker.found = Pattern(pattern)
        found = bench.check()
        assert kinds(found) == expected
        assert all("from 1 MB to 9 MB" in issue.message for issue in found.issues)


def test_small_changes_are_noise(bench: Bench) -> None:
    noise = []
    for bench.usage in (usage(rss=100 * MIB), usage(rss=1000 * MIB)):
        bench.check()
        noise.append(bench.tracker.noise)
    assert noise == [8 * MIB, 50 * MIB]


def test_a_process_that_grows_is_found() -> None:
    snapshots = []

    def read(label: str | None, clock: Callable[[], float]) -> Any:
        snapshots.append(None)
        kept = take_snapshot(label, clock)
        return replace(kept, rss=(100 + 4 * len(snapshots)) * MIB)

    clock = Clock()
    checker = HealthCheck(PressureMonitor(sources=[]), Tracker(clock=clock, read=read), usage=usage, clock=clock)
    found = []
    for _ in range(30):
        clock.now += 10.0
        found.append([issue.kind for issue in checker.check().issues if issue.kind == "leak"])
    assert found[-1] == ["leak"]
    assert found[0] == []


def test_one_snapshot_in_a_second(bench: Bench) -> None:
    for _ in range(10):
        bench.check(0.25)
    assert bench.tracker.snapshots == 2 + 2


# ---- pools, reclaimers, waits


def test_a_pool_that_holds_more_than_it_lends(bench: Bench) -> None:
    pool = mempool.BufferPool(name="hoard", idle_timeout=None)
    pool.reserve("8MiB", 4)
    buffer = pool.acquire("8MiB")
    (issue,) = (issue for issue in bench.check().issues if issue.subject == "hoard")
    assert (issue.kind, issue.severity) == ("fragmentation", "medium")
    assert (issue.figure, issue.limit) == (24 * MIB, 16 * MIB)
    assert "trim" in issue.advice
    with pool.acquire("8MiB"), pool.acquire("8MiB"):
        pool.reserve("8MiB", 2)
        assert (pool.stats().idle, pool.stats().in_use) == (16 * MIB, 24 * MIB)
        assert not [issue for issue in bench.check().issues if issue.subject == "hoard"]
    pool.trim()
    assert not [issue for issue in bench.check().issues if issue.subject == "hoard"]
    buffer.release()
    pool.close()


def exhaust(pool: mempool.BufferPool) -> None:
    with pytest.raises(mempool.PoolExhausted):
        pool.acquire(2 * MIB)


def test_an_exhausted_pool_is_an_issue_for_five_minutes(bench: Bench) -> None:
    pool = mempool.BufferPool(MIB, name="small")
    for _ in range(3):
        exhaust(pool)
    (issue,) = bench.check().issues
    assert (issue.kind, issue.subject, issue.figure) == ("exhausted waits", "small", 3)
    for _ in range(29):
        assert [issue.figure for issue in bench.check().issues] == [3]
    assert bench.check(301.0).issues == ()
    exhaust(pool)
    assert [issue.figure for issue in bench.check().issues] == [1]
    pool.close()


def test_waits_in_vain(bench: Bench) -> None:
    tally.add(True, 1.5)
    tally.add(False, 0.5)
    (issue,) = bench.check().issues
    assert (issue.kind, issue.figure, issue.subject) == ("exhausted waits", 1, "")
    assert "2.0 s" in issue.message
    assert "in the last 10 s" in issue.message
    assert bench.check(301.0).issues == ()


def test_a_callback_that_is_slow_or_fails(bench: Bench) -> None:
    def broken(event: object) -> None:
        raise LookupError

    bench.monitor.on(Level.HIGH, broken)
    with bench.monitor.simulate(Level.HIGH):
        bench.monitor.poll()
    found = [issue for issue in bench.check().issues if issue.kind != "slow reclaim"]  # as a machine may be
    assert [(issue.kind, issue.severity, issue.figure) for issue in found] == [("failing reclaim", "high", 1)]
    assert "broken" in found[0].subject
    assert bench.check(301.0).issues == ()


def test_a_reclaimer_that_fails(bench: Bench) -> None:
    def broken_reclaimer(needed: int) -> int:
        raise LookupError

    registration = register_reclaimer(broken_reclaimer)
    pool = mempool.BufferPool(MIB, name="asks")
    with pool.acquire(MIB), pytest.raises(mempool.PoolExhausted):
        pool.acquire(MIB)
    found = {(issue.kind, issue.subject) for issue in bench.check().issues}
    registration.cancel()
    pool.close()
    assert {kind for kind, subject in found} == {"failing reclaim", "exhausted waits"}
    assert any("broken_reclaimer" in subject for _, subject in found)


def test_slow_reclaim() -> None:
    found = judge(Readings(usage(), work=[Done("slow", 4, 0, 0, 3.0), Done("quick", 4, 0, 0, 1.9), Done("idle")]))
    (issue,) = found.issues
    assert (issue.kind, issue.subject, issue.figure, issue.limit) == ("slow reclaim", "slow", 0.75, 0.5)


def test_one_that_goes_hides_nothing_of_another_of_its_name(bench: Bench) -> None:
    old, new = mempool.BufferPool(MIB, name="work"), mempool.BufferPool(MIB, name="work")
    for _ in range(5):
        exhaust(old)
    lines = [bench.monitor.on(Level.HIGH, lambda event: 1 // 0) for _ in range(2)]
    with bench.monitor.simulate(Level.HIGH):
        pass
    bench.check()
    bench.check(301.0)
    del old
    lines[0].cancel()
    exhaust(new)
    with bench.monitor.simulate(Level.HIGH):
        pass
    found = [(issue.kind, issue.figure) for issue in bench.check().issues if issue.kind != "slow reclaim"]
    assert found == [("failing reclaim", 1), ("exhausted waits", 1)]
    new.close()


def test_what_came_before_the_first_check_is_told_for_five_minutes(bench: Bench) -> None:
    bench.begin()
    pool = mempool.BufferPool(MIB, name="ahead")
    exhaust(pool)
    for later in (0.0, 0.5, 10.0, 280.0):
        assert "ahead" in [issue.subject for issue in bench.check(later).issues]
    assert bench.check(20.0).issues == ()
    pool.close()


def test_after_a_long_pause_only_five_minutes_count(bench: Bench) -> None:
    pool = mempool.BufferPool(MIB, name="paused")
    bench.check()
    exhaust(pool)
    (issue,) = bench.check(1200.0).issues  # nobody looked between
    assert "in the last 1200 s" in issue.message
    assert bench.check(290.0).issues == ()
    pool.close()


def test_a_coroutine_that_takes_its_time_is_no_slow_reclaim() -> None:
    async def main() -> Health:
        bench, went = Bench(), asyncio.Event()

        @bench.monitor.on(Level.HIGH)
        async def flush(event: object) -> None:
            went.set()

        with bench.monitor.simulate(Level.HIGH):
            await went.wait()
        flush.seconds = 1.2  # type: ignore[attr-defined]
        return bench.check()

    assert "slow reclaim" not in [issue.kind for issue in asyncio.run(main()).issues]


def test_a_check_may_be_made_inside_a_check(bench: Bench) -> None:
    def work() -> Health:
        with bench.checker._lock():  # as a signal handler finds it
            return bench.check()

    assert start(work).result().status == "healthy"


@pytest.mark.parametrize("wrong", [{"monitor": 5}, {"tracker": 5}])
def test_what_is_no_monitor_or_tracker_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(wrong))} .*5"):
        HealthCheck(**wrong)


def test_a_clock_that_is_set_back_starts_over(bench: Bench) -> None:
    pool = mempool.BufferPool(MIB, name="early")
    exhaust(pool)
    bench.check(-1000.0)
    assert [issue.subject for issue in bench.check().issues] == []
    exhaust(pool)
    assert [(issue.subject, issue.figure) for issue in bench.check().issues] == [("early", 1)]
    pool.close()


# ---- the score


READINGS = st.builds(
    Readings,
    usage=st.just(usage()),
    level=st.sampled_from(list(Level)),
    exhausted=st.dictionaries(st.text(max_size=3), st.integers(0, 5), max_size=4),
    work=st.lists(
        st.builds(Done, st.text(max_size=3), st.integers(0, 3), st.integers(0, 3), st.just(0), st.floats(0, 9))
    ),
    waits=st.builds(Waits, st.integers(0, 3), st.integers(0, 3), st.floats(0, 9)),
    pattern=st.sampled_from(["steady", "spike", "leak", "thrashing"]),
)


@given(READINGS)
def test_score_and_status_follow_the_issues(readings: Readings) -> None:
    found = judge(readings)
    costs = {"medium": 15, "high": 35, "critical": 60}
    severities = [issue.severity for issue in found.issues]
    assert found.score == max(0, 100 - sum(costs[severity] for severity in severities))
    assert severities == sorted(severities, key=["critical", "high", "medium"].index)
    worst = {"medium": "strained", "high": "degraded", "critical": "critical"}
    assert found.status == (worst[severities[0]] if severities else "healthy")
    assert (found.score == 100) == (not found.issues)
    for issue in found.issues:
        assert issue.message
        assert issue.advice
        assert issue.figure is not None
        assert issue.message in str(found)


# ---- of this process


def test_the_process() -> None:
    found = mempool.health()
    assert 0 <= found.score <= 100
    assert found.usage.rss > 10 * MIB
    assert isinstance(found, Health)


def test_threads_check_together() -> None:
    assert all(found.usage.rss > 64 * KIB for found in together([mempool.health] * 4))


def test_memory_that_cannot_be_read_is_an_error() -> None:
    def unreadable() -> MemoryUsage:
        raise OSError("no /proc")

    with pytest.raises(OSError, match="no /proc"):
        HealthCheck(PressureMonitor(sources=[]), FakeTracker(), usage=unreadable).check()


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_has_a_check_of_its_own(run_python: Run) -> None:
    code = """
        import os, mempool
        from mempool.pressure import health as _
        from mempool.pressure.batches import tally
        import sys
        module = sys.modules["mempool.pressure.health"]
        tally.add(True, 1.0)
        assert len(mempool.health().issues) >= 1
        child = os.fork()
        if not child:
            assert not module._of_process
            kinds = {issue.kind for issue in mempool.health().issues}
            os._exit("exhausted waits" in kinds)
        assert os.waitpid(child, 0)[1] == 0
    """
    run_python(code)


def test_importing_mempool_does_not_load_it(run_python: Run) -> None:
    code = "import mempool, sys; assert 'mempool.pressure' not in sys.modules; assert 'health' in dir(mempool)"
    run_python(code, env={"MEMPOOL_GC_INTERVAL_SECONDS": None})
