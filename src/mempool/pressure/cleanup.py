"""`cleanup`: garbage, idle memory, caches, malloc, pages; each step says what it freed.

    light        young garbage; idle memory beyond what is lent
    standard     all garbage; idle memory; slabs; reclaimers and caches for a quarter; malloc
    aggressive   garbage until none is left; the same, for all they have; malloc; pages of mapped files

A monitor's `Shrinker` acts when memory is short, and collects no garbage: it runs in the middle of other work. A cleanup is called
where the program has time for it, or queued, and then has a thread for as long as it takes.
"""

import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from mempool import _core, _reclaim
from mempool._system import process
from mempool.pressure import reclaim
from mempool.pressure.regrowth import asking
from mempool.units import parse_duration

__all__ = ["CleanupReport", "CleanupStep", "cleanup"]

Mode: TypeAlias = Literal["light", "standard", "aggressive"]

_log = logging.getLogger("mempool.pressure")

_GC_PASSES = 3  # what finalizers bring back is garbage for the next pass


@dataclass(frozen=True, slots=True)
class CleanupStep:
    """What one step did.

    Attributes
    ----------
    name : str
        ``"garbage"``, ``"pools"``, ``"slabs"``, ``"shared"``, ``"reclaimers"``, ``"malloc"``, ``"pages"``, or the name of a cache.
    freed : int
        Bytes that the process has less: what pools and slabs gave back, for the other steps how far resident memory fell.
        What other threads take or give meanwhile is in it.
    seconds : float
        How long it took.
    detail : str
        What else there is to say: objects collected, bytes that a cache let go of.
    error : str or None
        What it raised; it is logged too, and the other steps ran.
    """

    name: str
    freed: int
    seconds: float
    detail: str
    error: str | None


class CleanupReport:
    """What a cleanup did. One that is queued may still be at it; `steps` and `freed` wait for its end.

    Attributes
    ----------
    mode : str
        As it was called.
    """

    def __init__(self, mode: Mode) -> None:
        self.mode: Mode = mode
        self._steps: list[CleanupStep] = []
        self._ended = threading.Event()
        self._begun = threading.Lock()  # whoever acquires it has it to run
        self._pid = os.getpid()

    @property
    def done(self) -> bool:
        """Whether it ended."""
        return self._here()._ended.is_set()

    def wait(self, timeout: float | str | None = None) -> bool:
        """Wait for its end, at most this many seconds, or a duration such as ``"500ms"`` (None: as long as it takes).

        Returns whether it ended. `TypeError` or `ValueError` names what is no duration.

        What is called by a step of a cleanup does not wait: it might be this one. Nor does what runs while the interpreter ends:
        threads are frozen then.
        """
        seconds = threading.TIMEOUT_MAX if timeout is None else parse_duration(timeout, "timeout")
        if _is_cleaning() or sys.is_finalizing():
            return self.done
        return self._here()._ended.wait(min(seconds, threading.TIMEOUT_MAX))

    @property
    def steps(self) -> tuple[CleanupStep, ...]:
        """What ran, in this order; empty for a cleanup that was called by a step of another."""
        self.wait()
        return tuple(self._steps)

    @property
    def freed(self) -> int:
        """Bytes that all steps together freed."""
        return sum(step.freed for step in self.steps)

    @property
    def seconds(self) -> float:
        """Time that all steps together took."""
        return sum(step.seconds for step in self.steps)

    def __repr__(self) -> str:
        if not self.done:
            return f"<CleanupReport {self.mode}, running>"
        return f"<CleanupReport {self.mode}, {self.freed} bytes freed in {len(self._steps)} steps>"

    def __str__(self) -> str:
        rows = [f"{step.name:<24} {step.freed:>14,} bytes {step.seconds:>9.4f} s  {step.detail}" for step in self.steps]
        return "\n".join([*rows, f"{self.mode + ', in all':<24} {self.freed:>14,} bytes {self.seconds:>9.4f} s"])

    def _here(self) -> "CleanupReport":
        """Return the report as it is in this process: a child of fork has not the thread that was at it, so it ended here."""
        if self._pid != os.getpid():
            self._pid, self._ended = os.getpid(), threading.Event()
            self._ended.set()
        return self


# ---- the steps

_Step: TypeAlias = Callable[[], tuple[int | None, str]]  # bytes freed, None: as measured; and the detail


def _collect(generation: int, passes: int) -> tuple[None, str]:
    found = 0
    for _ in range(passes):
        more = gc.collect(generation)
        found += more
        if not more:
            break
    return None, f"{found} objects"


def _trim_excess() -> tuple[int, str]:
    pools = reclaim.pools()
    return sum(pool.trim(pool.stats().in_use) for pool in pools), f"{len(pools)} pools"


def _trim_pools() -> tuple[int, str]:
    pools = reclaim.pools()
    return sum(pool.trim() for pool in pools), f"{len(pools)} pools"


def _trim_shared() -> tuple[int, str]:
    return reclaim.trim_shared(), ""


def _trim_slabs() -> tuple[int, str]:
    slabs = reclaim.slabs()
    return sum(slab.trim() for slab in slabs), f"{len(slabs)} slabs"


def _relieve(share: int) -> tuple[None, str]:
    now = reclaim.held(process.rss)
    return None, f"{_reclaim.relieve(max(now.resident or 0, now.external) // share)} bytes, as they say"


def _shrink(cache: reclaim.Shrinkable, share: int) -> tuple[None, str]:
    held = cache.nbytes
    asked = -(-held // share)
    said = 0
    for _ in range(reclaim.MOST_STEPS):
        if said >= asked:
            break
        gave = reclaim.counted(cache.shrink(asked - said))
        if not gave:
            break
        said += gave
    _trim_pools()  # where it kept buffers
    return None, f"{said} of {held} bytes let go"


def _trim_malloc() -> tuple[None, str]:
    return None, "" if reclaim.trim_malloc() else "had nothing to give"


def _page_out() -> tuple[None, str]:
    advised = _core._page_out()
    return None, f"{advised} bytes advised"


def _content(share: int) -> list[tuple[str, _Step]]:
    """Return the steps that cost misses."""
    caches = [(name, partial(_shrink, cache, share)) for name, cache in reclaim.registered()]
    return [("reclaimers", partial(_relieve, share)), *caches]


def _with_locks(share: int, content: bool) -> list[tuple[str, _Step]]:
    """Return the steps that take locks of Python: none while the interpreter ends, as a frozen thread may have one for ever."""
    if sys.is_finalizing():
        return []
    return [("shared", _trim_shared), *(_content(share) if content else [])]


def _steps_of(mode: Mode, content: bool) -> list[tuple[str, _Step]]:
    if mode == "light":
        return [("garbage", partial(_collect, 1, 1)), ("pools", _trim_excess)]
    return [
        ("garbage", partial(_collect, 2, 1 if mode == "standard" else _GC_PASSES)),
        ("pools", _trim_pools),
        ("slabs", _trim_slabs),
        *_with_locks(4 if mode == "standard" else 1, content),
        ("malloc", _trim_malloc),
        *([("pages", _page_out)] if mode == "aggressive" else []),
    ]


def _text_of(error: BaseException) -> str:
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"
    except Exception:  # its own text raises
        return kind


def _take(name: str, act: _Step, kind: type[BaseException]) -> CleanupStep:
    before, start = reclaim.held(process.rss), time.perf_counter()
    freed, detail, error = None, "", None
    try:
        freed, detail = act()
    except kind as raised:
        error = _text_of(raised)
        _log.exception("cleanup: %s failed", name)
    seconds = time.perf_counter() - start
    if freed is None:
        freed = before.less(reclaim.held(process.rss))
    return CleanupStep(name, freed, seconds, detail, error)


def _take_all(report: CleanupReport, steps: list[tuple[str, _Step]], kind: type[BaseException]) -> None:
    for name, act in steps:
        report._steps.append(_take(name, act, kind))


# ---- running them

_cleaning: dict[tuple[int, int], bool] = {}  # process and thread; single steps of a dict need no lock
_queued: dict[tuple[int, Mode], CleanupReport] = {}
_turns: dict[
    int, threading.Lock
] = {}  # by process: a child of fork finds its parent's lock as the thread it has not left it


def _is_cleaning() -> bool:
    return (os.getpid(), threading.get_ident()) in _cleaning


def run(report: CleanupReport, *, content: bool = True, ours: bool = False) -> None:
    """Do all of a cleanup in this thread.

    Without `content`, caches and reclaimers are left alone. In a thread of `ours` SystemExit and its like are errors of a step as
    others are: there is nobody to take them.
    """
    me = os.getpid(), threading.get_ident()
    outer = me in _cleaning
    _cleaning[me] = True
    try:
        steps, kind = _steps_of(report.mode, content), BaseException if ours else Exception
        # A callback may clean up, and nothing grows back from that.
        asking(None, lambda: _take_all(report, steps, kind))
    finally:
        if not outer:
            _cleaning.pop(me, None)
        report._ended.set()


def _claim(report: CleanupReport) -> bool:
    """Take it out of the queue; whether it is this thread's to run and to end."""
    _queued.pop((report._pid, report.mode), None)
    return report._begun.acquire(blocking=False)


def _run_queued(report: CleanupReport) -> None:
    me = os.getpid(), threading.get_ident()
    _cleaning[me] = True  # for as long as it has the turn: a finalizer here would wait for a thread that waits for it
    try:
        with _turns.setdefault(os.getpid(), threading.Lock()):
            if _claim(report):
                run(report, ours=True)
    finally:
        _cleaning.pop(me, None)


def _queue(report: CleanupReport) -> CleanupReport:
    """Give it a thread, unless one of its kind waits for its turn already: that will do.

    Until the thread runs, what a finalizer here calls is as from a step: it would wait for a report that nobody is at.
    """
    me = os.getpid(), threading.get_ident()
    _cleaning[me] = True
    try:
        waiting = _queued.setdefault((report._pid, report.mode), report)
        if waiting is report:
            _start(report)
        return waiting
    except BaseException:  # Ctrl-C too: others may have joined, and nobody will be at it
        if _claim(report):
            report._ended.set()
        raise
    finally:
        _cleaning.pop(me, None)


def _start(report: CleanupReport) -> None:
    try:
        threading.Thread(target=_run_queued, args=(report,), name="mempool cleanup", daemon=True).start()
    except (
        RuntimeError,
        MemoryError,
    ):  # no more threads, as may be where memory is short, and at exit: waits for no turn
        if _claim(report):
            run(report)


def checked_mode(mode: Mode) -> Mode:
    """Return the mode; `TypeError` or `ValueError` names what is none."""
    if not isinstance(mode, str):
        raise TypeError(f"mode must be light, standard or aggressive, not {mode!r}")
    if mode not in ("light", "standard", "aggressive"):
        raise ValueError(f"mode must be light, standard or aggressive, not {mode!r}")
    return mode


def cleanup(mode: Mode = "light", *, background: bool | None = None) -> CleanupReport:
    """Give back memory that is not needed now.

    Parameters
    ----------
    mode : {"light", "standard", "aggressive"}
        Light is quick: young garbage, and idle memory beyond what is lent. Standard collects all garbage, empties pools, has
        caches give up a quarter, and trims malloc. Aggressive leaves caches with nothing, and advises the OS to page out
        mapped files.
    background : bool, optional
        Whether it runs in a thread of its own while this call returns. None: standard does; light and aggressive run at once. Of
        several that are queued and have not begun one runs, for all.

    Returns
    -------
    CleanupReport
        Each step with what it freed. Reading it waits for the end.

    Raises
    ------
    TypeError, ValueError
        For another mode.

    Examples
    --------
    >>> report = cleanup("aggressive")
    >>> [step.name for step in report.steps][:2]
    ['garbage', 'pools']
    >>> report.freed >= 0
    True
    >>> cleanup("standard").wait(30)
    True
    """
    report = CleanupReport(checked_mode(mode))
    if _is_cleaning():  # a finalizer or a cache calls this: what is running will do
        report._ended.set()
        return report
    if (mode == "standard" if background is None else background) and not sys.is_finalizing():
        return _queue(report)
    run(report)
    return report
