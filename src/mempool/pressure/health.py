"""`health`: one score, and what to do about it.

    usage, level, pools, reclaimers, waits, pattern --Readings--> judges --> issues --> score and status

What is counted since the process began (exhausted waits, errors) is judged by what a window of five minutes added, or an old
trouble would be told for ever. So a `HealthCheck` keeps what it read; the one of the process is behind `health()`, and sees leaks
and thrashing if it is called regularly.
"""

import os
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from mempool import _core, _reclaim
from mempool._records import PoolStats
from mempool.accounting._locks import ProcessLock
from mempool.accounting.tracker import Tracker
from mempool.accounting.usage import MemoryUsage, memory_usage
from mempool.pressure.alerts import SEVERITIES, _Severity
from mempool.pressure.batches import Waits, tally
from mempool.pressure.default import default_monitor
from mempool.pressure.levels import Level, Thresholds
from mempool.pressure.monitor import PressureMonitor

__all__ = ["Health", "HealthCheck", "Issue", "health"]

_Status = Literal["healthy", "strained", "degraded", "critical"]

WINDOW = 300.0  # seconds
MIB = 1 << 20
PENALTIES: dict[str, int] = {"medium": 15, "high": 35, "critical": 60}
STATUSES: dict[str, _Status] = {"medium": "strained", "high": "degraded", "critical": "critical"}
SLOW = 0.5  # seconds for one call that makes room
LEAST_CHANGE = 8 * MIB  # of what is resident; or a twentieth of it
LEAST_WASTE = 16 * MIB  # less than this is not worth a word


@dataclass(frozen=True, slots=True)
class Issue:
    """Something to do about memory.

    Attributes
    ----------
    kind : str
        ``"threshold"``, ``"leak"``, ``"thrashing"``, ``"fragmentation"``, ``"slow reclaim"``, ``"failing reclaim"`` or
        ``"exhausted waits"``.
    severity : {"medium", "high", "critical"}
    figure, limit : float or None
        What was measured, and what it should stay below. Bytes, seconds or counts, as the message says.
    message, advice : str
        What is wrong, with the figure, and what to do.
    subject : str
        The pool, reclaimer or source that it is about; empty for the process.
    """

    kind: str
    severity: _Severity
    figure: float | None
    limit: float | None
    message: str
    advice: str
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """How well a process is with its memory.

    Attributes
    ----------
    score : int
        100 without an issue; 15, 35 or 60 less for each medium, high or critical one; 0 at least.
    status : {"healthy", "strained", "degraded", "critical"}
        As the worst issue says.
    usage : MemoryUsage
        What it was judged by.
    issues : tuple of Issue
        The worst first.
    """

    score: int
    status: _Status
    usage: MemoryUsage
    issues: tuple[Issue, ...]

    def __str__(self) -> str:
        rows = [f"{issue.severity:<8} {issue.message}\n         {issue.advice}" for issue in self.issues]
        return "\n".join([f"{self.status}, {self.score} of 100", *rows])


@runtime_checkable
class Tracked(Protocol):
    """What is asked of a `Tracker`."""

    def snapshot(self) -> object:
        """Keep what memory is now."""

    def pattern(self, *, noise: int) -> str:
        """Return what the snapshots look like, smaller changes apart."""


@dataclass(frozen=True, slots=True)
class Done:
    """What something that makes room did: a callback of a monitor, or what nobody waits for: a reclaimer, a coroutine function."""

    name: str
    calls: int = 0
    errors: int = 0
    freed: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Readings:
    """All that is judged.

    The figures are those of the source that decided; with `by_bytes` the limit is a threshold. Counts are those of the window,
    whose name is `span`.
    """

    usage: MemoryUsage
    level: Level = Level.NORMAL
    source: str = ""
    used: float | None = None
    limit: float | None = None
    by_bytes: bool = False
    pools: Sequence[tuple[str, PoolStats]] = ()
    exhausted: dict[str, int] = field(default_factory=dict)
    work: Sequence[Done] = ()
    waits: Waits = field(default_factory=Waits)
    span: str = "since the program began"
    pattern: str = "steady"
    evidence: str = ""


# ---- the judges


def _mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:.1f} MB"


def _threshold(readings: Readings) -> Iterator[Issue]:
    severity = SEVERITIES.get(readings.level)
    if severity is None:
        return
    used, limit, what = readings.used, readings.limit, "limit"
    if used is None:
        used, limit = readings.usage.rss, None
        figures = f"{readings.source} says so, and {_mb(used)} are resident"
    elif readings.by_bytes and limit is not None:
        figures, what = f"{readings.source} has {_mb(used)}, and the threshold is {_mb(limit)}", "threshold"
    else:
        figures = f"{readings.source} has {_mb(used)}" + ("" if limit is None else f" of {_mb(limit)}")
    yield Issue(
        "threshold",
        severity,
        used,
        limit,
        f"memory pressure is {readings.level.name}: {figures}",
        f"call mempool.cleanup('aggressive'), shrink caches and batches, or raise the {what}",
        readings.source,
    )


def _leak(readings: Readings) -> Iterator[Issue]:
    if readings.pattern == "leak":
        message = f"memory grows from one look to the next: {readings.evidence}"
        advice = "find the line with mempool.accounting.detect_leaks, or with leak_detection='full'"
        yield Issue("leak", "high", readings.usage.rss, None, message, advice)


def _thrashing(readings: Readings) -> Iterator[Issue]:
    if readings.pattern == "thrashing":
        message = f"memory is taken and given back again and again: {readings.evidence}"
        advice = "keep more memory idle (idle_timeout, max_idle), make caches larger or batches smaller"
        yield Issue("thrashing", "medium", readings.usage.rss, None, message, advice)


def _fragmentation(readings: Readings) -> Iterator[Issue]:
    for name, stats in readings.pools:
        unused = stats.reserved - stats.requested
        if unused >= LEAST_WASTE and unused > stats.reserved // 2:
            kept = f"{_mb(stats.idle)} idle, {_mb(stats.retired)} released but still viewed"
            message = f"pool {name!r} holds {_mb(stats.reserved)} for {_mb(stats.requested)} in use: {kept}"
            advice = "call trim(), or set max_idle or a shorter idle_timeout; drop views of released buffers"
            yield Issue("fragmentation", "medium", unused, stats.reserved // 2, message, advice, name)


def _slow(readings: Readings) -> Iterator[Issue]:
    for work in readings.work:
        if work.calls and work.seconds / work.calls > SLOW:
            each = work.seconds / work.calls
            message = f"{work.name} takes {each:.2f} s to make room, {work.calls} times {readings.span}"
            advice = "free less at a time, or move the work to a thread and return at once"
            yield Issue("slow reclaim", "medium", each, SLOW, message, advice, work.name)


def _failing(readings: Readings) -> Iterator[Issue]:
    for work in readings.work:
        if work.errors:
            message = f"{work.name} raised {work.errors} times {readings.span} when it was asked to make room"
            yield Issue("failing reclaim", "high", work.errors, 0, message, "see the log for the traceback", work.name)


def _exhausted(readings: Readings) -> Iterator[Issue]:
    if readings.waits.exhausted:
        count = readings.waits.exhausted
        message = (
            f"batches waited {readings.waits.seconds:.1f} s for relief, and {count} times in vain, {readings.span}"
        )
        advice = "make batches smaller, or give callbacks something to free; see max_wait"
        yield Issue("exhausted waits", "medium", count, 0, message, advice)
    for name, count in readings.exhausted.items():
        if count:
            message = f"pool {name!r} was exhausted {count} times {readings.span}"
            advice = "raise its limit, release buffers earlier, or wait with a timeout"
            yield Issue("exhausted waits", "medium", count, 0, message, advice, name)


JUDGES = (_threshold, _leak, _thrashing, _fragmentation, _slow, _failing, _exhausted)


def judge(readings: Readings) -> Health:
    """Say what is wrong with what was read, the worst first."""
    issues = [issue for judged in JUDGES for issue in judged(readings)]
    issues.sort(key=lambda issue: -PENALTIES[issue.severity])
    score = max(0, 100 - sum(PENALTIES[issue.severity] for issue in issues))
    return Health(score, STATUSES[issues[0].severity] if issues else "healthy", readings.usage, tuple(issues))


# ---- what is read


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters at one moment, of each pool and each callable for itself: names may be shared, and those who bear them go."""

    time: float
    pools: Mapping[Hashable, tuple[str, int]]
    work: Mapping[Hashable, Done]
    waits: Waits
    first: bool = False


class HealthCheck:
    """Judges the process, again and again, by what changed in the last five minutes.

    Parameters
    ----------
    monitor : PressureMonitor, optional
        Whose level and callbacks are judged. None: `default_monitor`. Where it does not run, its thresholds judge what is used
        now, whatever it said when it was polled last, and nothing is called; a level that it simulates counts.
    tracker : Tracker, optional
        Whose pattern tells of leaks and thrashing. It gets a snapshot at each check, at most one in a second. None: one of its own.
    usage, clock : callable
        Where readings and seconds come from.

    Raises
    ------
    TypeError
        For what is no monitor or no tracker.
    """

    def __init__(
        self,
        monitor: PressureMonitor | None = None,
        tracker: Tracked | None = None,
        *,
        usage: Callable[[], MemoryUsage] = memory_usage,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if monitor is not None and not isinstance(monitor, PressureMonitor):
            raise TypeError(f"monitor must be a PressureMonitor or None, not {monitor!r}")
        if tracker is not None and not isinstance(tracker, Tracked):
            raise TypeError(f"tracker must have snapshot() and pattern(), or be None, not {tracker!r}")
        self._monitor, self._usage, self._clock = monitor, usage, clock
        self._tracker: Tracked = Tracker() if tracker is None else tracker
        self._lock = ProcessLock()
        self._window: tuple[Counts, ...] = ()

    def check(self) -> Health:
        """Return the health of the process now.

        Raises
        ------
        OSError, ValueError
            If the system does not say how much memory is resident.
        """
        usage, now = self._usage(), self._clock()
        monitor = default_monitor() if self._monitor is None else self._monitor
        known = [(weakref.ref(pool), pool.name, pool.stats()) for pool in _core._pools()]
        exhausted: dict[Hashable, tuple[str, int]] = {pool: (name, stats.exhausted) for pool, name, stats in known}
        pools = [(name, stats) for _, name, stats in known]
        counts = Counts(now, exhausted, _work_of(monitor), tally.read())
        before, fresh = self._slide(counts)
        if fresh:
            self._tracker.snapshot()
        decided = _level(monitor, usage)
        pattern = self._tracker.pattern(noise=max(LEAST_CHANGE, usage.rss // 20))
        evidence = str(getattr(pattern, "evidence", ""))
        return judge(_readings(before, counts, usage, decided, pools, str(pattern), evidence))

    def _slide(self, counts: Counts) -> tuple[Counts, bool]:
        """Return the counts at the begin of the window, and whether a second went by.

        It begins five minutes ago, or at the last check if that is longer ago. At the first check it begins with nothing, so
        that what happened before is told for five minutes.
        """
        with self._lock():
            window = self._window or (Counts(counts.time, {}, {}, Waits(), first=True),)
            if counts.time < window[-1].time:  # a clock that was set back
                window = (counts,)
            while len(window) > 1 and window[0].time < counts.time - WINDOW:
                window = window[1:]
            fresh = not self._window or window[-1] is counts or counts.time - window[-1].time >= 1.0
            self._window = (*window, counts) if fresh else window
            return window[0], fresh


def _work_of(monitor: PressureMonitor) -> dict[Hashable, Done]:
    """Return what each callback and each reclaimer did."""
    found: dict[Hashable, Done] = {}
    for one in monitor._callbacks.all():
        found[weakref.ref(one)] = Done(
            one.name, one.calls, one.errors, one.freed, 0.0 if one._is_async else one.seconds
        )
    for other in _reclaim._in_order():
        found[other._number] = Done(other.name, other.calls, other.errors, other.freed)
    return found


def _since(one: Done, before: Done | None) -> Done:
    if before is None:
        return one
    calls, errors, freed = one.calls - before.calls, one.errors - before.errors, one.freed - before.freed
    return Done(one.name, calls, errors, freed, one.seconds - before.seconds)


class Decided(NamedTuple):
    """A level, and who decided it by which figures."""

    level: Level
    source: str = ""
    used: float | None = None
    limit: float | None = None
    by_bytes: bool = False


def _level(monitor: PressureMonitor, usage: MemoryUsage) -> Decided:
    """Return what the monitor says; of one that does not run, whose level may be long over, only what it simulates counts."""
    told = _told(monitor)
    if monitor.running:
        return told
    judged = _judged(monitor.thresholds, usage)
    return told if told.source == "simulated" and told.level > judged.level else judged


def _told(monitor: PressureMonitor) -> Decided:
    level, thresholds = monitor.level, monitor.thresholds
    event = next((event for event in reversed(monitor.history()) if event.level == level), None)
    if event is None:
        return Decided(level, "monitor")
    used = event.used
    if level and used is not None and thresholds.absolute and used >= thresholds.points[0]:
        return Decided(level, event.source, used, thresholds.bytes_at(level, None), by_bytes=True)
    return Decided(level, event.source, used, event.limit)


def _judged(thresholds: Thresholds, usage: MemoryUsage) -> Decided:
    """Hold thresholds against what is used now: those in bytes against what is resident, shares against the limit that binds."""
    used: int | None = usage.rss
    limit, source = usage.limit, "process"
    if not thresholds.absolute:
        source = usage.limit_source or "memory_usage"
        used = None if limit is None or usage.available is None else limit - usage.available
    figure = thresholds.figure(used, limit, "own")
    level = Level.NORMAL if figure is None else thresholds.entered(figure)
    if level and thresholds.absolute:
        return Decided(level, source, used, thresholds.bytes_at(level, None), by_bytes=True)
    return Decided(level, source, used, limit)


def _readings(
    before: Counts,
    now: Counts,
    usage: MemoryUsage,
    decided: Decided,
    pools: Sequence[tuple[str, PoolStats]],
    pattern: str,
    evidence: str,
) -> Readings:
    """Return what is judged: of counts what came since `before`."""
    exhausted: dict[str, int] = {}
    for pool, (name, count) in now.pools.items():
        exhausted[name] = exhausted.get(name, 0) + count - before.pools.get(pool, (name, 0))[1]
    work = [_since(one, before.work.get(key)) for key, one in now.work.items()]
    span = "since the program began" if before.first else f"in the last {now.time - before.time:.0f} s"
    waits = now.waits.since(before.waits)
    return Readings(usage, *decided, pools, exhausted, work, waits, span, pattern, evidence)


_of_process: dict[str, HealthCheck] = {}  # setdefault is atomic


def health() -> Health:
    """Return how well this process is with its memory: a score, its usage, and what is wrong, each with a figure and what to do.

    Call it regularly: leaks, thrashing and what is counted are judged by what changed between calls. It polls no monitor and frees
    nothing.

    Raises
    ------
    OSError, ValueError
        If the system does not say how much memory is resident.

    Examples
    --------
    >>> import mempool
    >>> health = mempool.health()
    >>> 0 <= health.score <= 100, health.usage.rss > 0
    (True, True)
    """
    return (_of_process.get("check") or _of_process.setdefault("check", HealthCheck())).check()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_of_process.clear)
