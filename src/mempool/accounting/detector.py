"""`LeakDetector`: heap and external growth against a baseline."""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from mempool.accounting import _lent
from mempool.accounting._locks import ProcessLock
from mempool.accounting.measuring import MemoryDelta, Snapshot, take_snapshot
from mempool.accounting.patterns import Pattern
from mempool.accounting.tracker import Tracker
from mempool.units import parse_duration, parse_size

__all__ = ["GrowthReport", "LeakDetector"]

_log = logging.getLogger("mempool.accounting")
_STOP_PATIENCE = 5.0  # seconds that stop() waits for a callback to end
_READ = partial(take_snapshot, heap=True)
_HYSTERESIS = 10  # a threshold can be passed again after growth fell below it by this part of the threshold


@dataclass(frozen=True, slots=True)
class GrowthReport:
    """How far memory has grown since the baseline.

    Attributes
    ----------
    leaking : bool
        Whether heap or external growth passed the threshold.
    heap : int
        Bytes by which memory outside this package grew at least: Python's heap while `tracemalloc` runs, else what is resident,
        without the growth of what accounts hold (lent or idle) and without pages of mapped files.
    external : int
        Bytes of native memory that are lent, above the baseline: neither idle nor mapped files, as in `MemoryUsage.lent`.
    accounts : tuple of (str, int)
        Accounts that lend more than at the baseline, and how much; most first.
    pattern : Pattern
        What the readings since the baseline look like.
    delta : MemoryDelta
        From the baseline to now.
    threshold : int
        Bytes.
    """

    leaking: bool
    heap: int
    external: int
    accounts: tuple[tuple[str, int], ...]
    pattern: Pattern
    delta: MemoryDelta
    threshold: int

    def __str__(self) -> str:
        grown = ", ".join(f"{name} {nbytes:+,}" for name, nbytes in self.accounts[:5]) or "none"
        return (
            f"heap {self.heap:+,}, external {self.external:+,} bytes in {self.delta.seconds:,.0f} s, threshold {self.threshold:,}; "
            f"accounts that grew: {grown}; {self.pattern}: {self.pattern.evidence}"
        )


class LeakDetector:
    """Compares what the process holds with a baseline, when asked or again and again. Safe from any thread, and after a fork.

    Parameters
    ----------
    threshold : int or str
        Bytes of growth, of the heap or of native memory, from which on it counts as a leak.
    on_leak : callable, optional
        Called with the `GrowthReport` when the threshold is passed, and again for each further threshold of growth. A threshold can
        be passed again once growth fell below it by a tenth of the threshold. By default a warning is logged to
        ``mempool.accounting``.
    capacity : int
        Most readings that are kept for the pattern.
    clock, read : callable
        Seconds; a snapshot of a label and a clock.

    Notes
    -----
    Native memory counts as it is lent: idle memory of pools is no leak, and neither are mapped files, whose pages the kernel can
    take back. While `tracemalloc` runs each check looks at all traces, some 0.3 s for a million of them. Without it heap growth is
    resident memory less what accounts took; other libraries, and freed memory that malloc keeps, are part of it, and memory of
    accounts that nobody touched, as well as charges by hand for memory that is not resident, hide as much of it.

    Examples
    --------
    >>> import mempool
    >>> detector = LeakDetector("10MB")
    >>> baseline = detector.set_baseline()
    >>> kept = [mempool.acquire("4MiB") for _ in range(3)]
    >>> report = detector.check()
    >>> report.leaking, report.external
    (True, 12582912)
    >>> report.accounts
    (('root > default', 12582912),)
    """

    def __init__(
        self,
        threshold: int | str = "100MB",
        *,
        on_leak: Callable[[GrowthReport], object] | None = None,
        capacity: int = 100,
        clock: Callable[[], float] = time.monotonic,
        read: Callable[[str | None, Callable[[], float]], Snapshot] = _READ,
    ) -> None:
        self._threshold = parse_size(threshold, "threshold")
        if self._threshold == 0:
            raise ValueError(f"threshold must be more than 0 bytes, got {threshold!r}")
        if on_leak is not None and not callable(on_leak):
            raise TypeError(f"on_leak must be callable, not {on_leak!r}")
        self._on_leak = on_leak if on_leak is not None else _warn
        self._tracker = Tracker(capacity, clock=clock, read=read)
        self._make_tracker = partial(Tracker, capacity, clock=clock, read=read)
        self._baseline: tuple[Snapshot, dict[tuple[str, ...], int]] | None = None
        self._told = 0  # thresholds of growth that were reported
        self._lock = ProcessLock()
        self._watch: _Watch | None = None
        self.errors = 0
        """Checks of the thread, and calls of `on_leak`, that raised; each is logged with its traceback."""

    @property
    def threshold(self) -> int:
        """Bytes."""
        return self._threshold

    @property
    def baseline(self) -> Snapshot | None:
        """What is compared with; None before `set_baseline`."""
        found = self._baseline
        return None if found is None else found[0]

    def set_baseline(self) -> Snapshot:
        """Compare with this moment from now on."""
        with self._lock():
            tracker = self._make_tracker()
            baseline = tracker.snapshot("baseline")
            self._baseline = baseline, _lent.lent_by_account(mapped=False)
            self._tracker, self._told = tracker, 0
        return baseline

    def check(self) -> GrowthReport:
        """Compare now with the baseline, and call `on_leak` if the threshold is passed.

        Raises
        ------
        ValueError
            Without a baseline.
        """
        with self._lock():
            if self._baseline is None:
                raise ValueError("LeakDetector has no baseline; call set_baseline() first")
            report = self._compare(*self._baseline)
            tell = self._passes(max(report.heap, report.external))
        if tell:
            self._tell(report)
        return report

    def _compare(self, baseline: Snapshot, lent: dict[tuple[str, ...], int]) -> GrowthReport:
        delta = MemoryDelta("growth", baseline, self._tracker.snapshot())
        heap = max(0, _resident_growth(delta) if delta.python_heap is None else delta.python_heap)
        pattern = self._tracker.pattern(
            "lent" if delta.lent > heap else "rss" if delta.python_heap is None else "python_heap"
        )
        grown = {path: nbytes - lent.get(path, 0) for path, nbytes in _lent.lent_by_account(mapped=False).items()}
        rows = sorted(
            ((" > ".join(path), nbytes) for path, nbytes in grown.items() if nbytes > 0), key=lambda row: -row[1]
        )
        leaking = max(heap, delta.lent) >= self._threshold
        return GrowthReport(leaking, heap, delta.lent, tuple(rows), pattern, delta, self._threshold)

    def _passes(self, growth: int) -> bool:
        """Return whether a threshold was passed that is not told; one that growth fell well below can be passed again."""
        below = max(0, growth + self._threshold // _HYSTERESIS) // self._threshold
        passed = max(0, growth) // self._threshold
        tell = passed > self._told
        self._told = passed if tell else min(self._told, below)
        return tell

    def _tell(self, report: GrowthReport) -> None:
        try:
            self._on_leak(report)
        except Exception:
            self.errors += 1
            _log.exception("on_leak of a LeakDetector raised")

    # ---- again and again ----

    @property
    def running(self) -> bool:
        """Whether a thread of this process checks; a forked child has none until `start` is called there."""
        watch = self._watch
        return watch is not None and watch.runs()

    def start(self, interval: float | str = "60s") -> Self:
        """Check in a daemon thread, every so often, against the baseline there is, or else this moment.

        The thread ends with `stop`, or when the detector is collected. It keeps no interpreter alive.

        Parameters
        ----------
        interval : float or str
            Seconds, or text such as ``"5m"``.

        Raises
        ------
        RuntimeError
            If it runs already.
        """
        seconds = parse_duration(interval, "interval")
        if not 0 < seconds <= threading.TIMEOUT_MAX:
            raise ValueError(
                f"interval must be more than 0 seconds and less than {threading.TIMEOUT_MAX:.0f}, got {interval!r}"
            )
        with self._lock():
            if self.running:
                raise RuntimeError("this LeakDetector runs already")
            if self._baseline is None:
                self.set_baseline()
            self._watch = watch = _Watch(self, seconds)
            try:
                watch.begin()
            except BaseException:  # Ctrl-C too, while it waited for the thread to begin
                self._watch = None
                watch.forget()
                raise
        return self

    def stop(self) -> None:
        """End the thread, and wait for a check that is under way; may be called from anywhere, and again."""
        with self._lock():
            watch, self._watch = self._watch, None
        if watch is not None:
            watch.end()

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _tick(self) -> None:
        try:
            self.check()
        except BaseException:  # SystemExit of `on_leak` too: nobody else would go on
            self.errors += 1
            _log.exception("a check of a LeakDetector raised")


def _resident_growth(delta: MemoryDelta) -> int:
    """Return how far resident memory grew without accounts and mapped files.

    Nobody tells cheaply how many resident pages are those of mapped files: at most as many as are mapped, and as shared pages came.
    """
    held = max(0, delta.external - delta.mapped)
    files = min(delta.after.mapped, max(0, delta.after.shared - delta.before.shared))
    return delta.rss - held - files


class _Watch:
    """The thread of one `start`. It holds its detector weakly: a forgotten detector ends it."""

    def __init__(self, detector: LeakDetector, seconds: float) -> None:
        self._process = os.getpid()
        self._over = threading.Event()
        forgotten = partial(_Watch._forgotten, self._over, self._process)
        self._thread = threading.Thread(
            target=_Watch._run,
            args=(weakref.ref(detector, forgotten), seconds, self._over),  # whose end is that of the thread
            name="mempool-leak-detector",
            daemon=True,
        )

    def begin(self) -> None:
        self._thread.start()

    def forget(self) -> None:
        """End it without a wait."""
        self._over.set()

    @staticmethod
    def _forgotten(over: threading.Event, process: int, detector: object) -> None:
        if process == os.getpid():
            over.set()

    @staticmethod
    def _run(detector: "weakref.ref[LeakDetector]", seconds: float, over: threading.Event) -> None:
        while not over.wait(seconds):
            alive = detector()
            if alive is None:
                return
            alive._tick()
            del alive

    def runs(self) -> bool:
        return self._process == os.getpid() and self._thread.is_alive()

    def end(self) -> None:
        if self._process != os.getpid():  # the thread is not here, and its event may be locked for ever
            return
        self._over.set()
        if self._thread is not threading.current_thread():
            self._thread.join(_STOP_PATIENCE)


def _warn(report: GrowthReport) -> None:
    _log.warning("memory grows: %s", report)
