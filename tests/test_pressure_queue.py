"""Cleanups in the background: queued, run once for many, and at the end of a process."""

import gc
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mempool
from cleanup_kit import Acting, Cache, idle_pool
from mempool.pressure import CleanupReport
from monitor_kit import quiet
from support import DEADLINE, MIB, start, together

RunPython = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def held_up() -> Iterator[tuple[Acting, threading.Event, threading.Event]]:
    """A cache that keeps a cleanup waiting until told to go on."""
    inside, go = threading.Event(), threading.Event()

    def act() -> None:
        inside.set()
        go.wait(DEADLINE)

    acting = Acting(act)
    yield acting, inside, go
    go.set()
    acting.name = "done"


@pytest.fixture(autouse=True)
def nothing_under_way() -> Iterator[None]:
    yield
    quiet("mempool cleanup")


def test_standard_is_queued(held_up: tuple[Acting, threading.Event, threading.Event]) -> None:
    acting, inside, go = held_up
    report = mempool.cleanup("standard")
    assert inside.wait(DEADLINE)
    assert (report.done, report.wait(0.001), repr(report)) == (False, False, "<CleanupReport standard, running>")
    go.set()
    assert report.wait(DEADLINE)
    assert (len(acting.entries), report.done) == (3, True)


@pytest.mark.parametrize("timeout", [0, 5, 0.5, "1ms", "2h", float("inf"), 1e300, None])
def test_a_wait_is_a_duration(timeout: Any) -> None:
    assert mempool.cleanup("light").wait(timeout)


def test_a_wait_ends(held_up: tuple[Acting, threading.Event, threading.Event]) -> None:
    _, inside, _ = held_up
    report = mempool.cleanup("standard")
    assert inside.wait(DEADLINE)
    assert not report.wait("1ms")


@pytest.mark.parametrize(
    ("timeout", "kind"),
    [(float("nan"), ValueError), (-1, ValueError), ("soon", ValueError), (True, TypeError), ([], TypeError)],
)
def test_a_wait_that_is_no_duration(timeout: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="timeout") as raised:
        CleanupReport("light").wait(timeout)
    assert repr(timeout) in str(raised.value)


def test_of_several_that_wait_one_runs(held_up: tuple[Acting, threading.Event, threading.Event]) -> None:
    acting, inside, go = held_up
    first = mempool.cleanup("standard")
    assert inside.wait(DEADLINE)
    waiting = together([lambda: mempool.cleanup("standard")] * 20)
    assert len({id(report) for report in waiting}) == 1
    assert waiting[0] is not first
    assert [thread.name for thread in threading.enumerate()].count("mempool cleanup") == 2
    go.set()
    assert waiting[0].wait(DEADLINE)
    assert len(acting.entries) == 2


def test_reading_a_report_waits(held_up: tuple[Acting, threading.Event, threading.Event]) -> None:
    _, inside, go = held_up
    report = mempool.cleanup("standard")
    assert inside.wait(DEADLINE)
    reader = start(lambda: report.steps)
    go.set()
    assert [step.name for step in reader.result()][-1] == "malloc"


@pytest.mark.parametrize(("mode", "background"), [("light", True), ("aggressive", True), ("standard", False)])
def test_where_it_runs_can_be_said(mode: Any, background: bool) -> None:
    threads: list[threading.Thread] = []
    callbacks = lambda phase, info: threads.append(threading.current_thread())  # noqa: E731
    gc.disable()  # or it may also come by itself, here
    gc.callbacks.append(callbacks)
    try:
        assert mempool.cleanup(mode, background=background).wait(DEADLINE)
    finally:
        gc.callbacks.remove(callbacks)
        gc.enable()
    assert (threading.current_thread() not in threads) == background


def test_no_thread_is_left(run_python: RunPython) -> None:
    run_python(
        """
        import mempool, threading
        report = mempool.cleanup("standard")
        report.wait()
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                thread.join(100)
        assert threading.active_count() == 1
        """
    )


def test_a_step_that_waits_for_its_own_cleanup_does_not() -> None:
    reports: list[CleanupReport] = []
    answers: list[object] = []
    known = threading.Event()

    def act() -> None:
        known.wait(DEADLINE)
        answers.extend([reports[0].wait(), reports[0].done, len(reports[0].steps) > 2])

    acting = Acting(act)
    reports.append(mempool.cleanup("standard"))
    known.set()
    assert reports[0].wait(DEADLINE)
    assert answers == [False, False, True]
    acting.name = "done"


def test_where_no_thread_can_be_had_it_runs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    pool = idle_pool(MIB)
    assert mempool.cleanup("standard").done
    assert pool.stats().idle == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError])
@pytest.mark.parametrize("started", [False, True])
def test_an_error_while_it_is_queued_leaves_no_report_behind(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException], started: bool
) -> None:
    """Ctrl-C comes before the thread runs, or just after. Who joined the report meanwhile waits for it."""
    start_thread = threading.Thread.start
    joined: list[CleanupReport] = []

    def fail_once(thread: threading.Thread) -> None:
        if thread.name != "mempool cleanup":
            return start_thread(thread)
        monkeypatch.setattr(threading.Thread, "start", start_thread)
        if started:
            start_thread(thread)
        else:
            joined.append(start(mempool.cleanup, "standard").result())
        raise error

    cache = Cache(4, 1000)
    monkeypatch.setattr(threading.Thread, "start", fail_once)
    with pytest.raises(error):
        mempool.cleanup("standard")
    assert [report.wait(DEADLINE) for report in joined] == [True] * len(joined)
    report = mempool.cleanup("standard")
    assert report.wait(DEADLINE)
    assert report.steps[-1].name == "malloc"
    assert len(cache.entries) < 4


@pytest.mark.parametrize("where", ["Thread", "Lock"])
def test_a_finalizer_that_runs_while_it_is_queued_does_not_wait(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """The collector runs in any allocation: before the thread that it would wait for has begun, or while this has the turn."""
    original, answers = getattr(threading, where), []

    def collecting(*arguments: Any, **options: Any) -> Any:
        made = original(*arguments, **options)
        if where == "Thread" or threading.current_thread().name == "mempool cleanup":
            monkeypatch.setattr(threading, where, original)
            answers.append(mempool.cleanup("standard").wait())
        return made

    monkeypatch.setattr(threading, where, collecting)
    report = start(mempool.cleanup, "standard").result()
    assert (report.wait(DEADLINE), answers) == (True, [True])


def test_many_calls_from_many_threads_all_end() -> None:
    pool = mempool.BufferPool(idle_timeout=None)
    cache, reports = Cache(256, 1000), []

    def work() -> None:
        for _ in range(100):
            pool.acquire(MIB).release()
            reports.append(mempool.cleanup("standard"))

    together([work] * 8)
    assert len(reports) == 800
    assert all(report.wait(DEADLINE) and report.steps[-1].name == "malloc" for report in reports)
    assert (len(cache.entries) < 256, pool.stats().reserved) == (True, 0)


def test_from_many_threads() -> None:
    pool = idle_pool(MIB)

    def work() -> None:
        for mode in ("light", "standard", "aggressive") * 3:
            pool.acquire(MIB).release()
            assert mempool.cleanup(mode).wait(DEADLINE)  # type: ignore[arg-type]

    together([work] * 6)
    assert pool.stats().reserved == 0


FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@FORK
def test_a_child_of_fork_waits_for_no_cleanup_of_its_parent(run_python: RunPython) -> None:
    """It has not the thread that was at it, and finds the lock of queued ones held."""
    run_python(
        """
        import mempool, os, threading, warnings
        warnings.simplefilter("ignore")
        inside, go = threading.Event(), threading.Event()
        class Cache:
            name, nbytes, parent = "cache", 8, os.getpid()
            def shrink(self, nbytes):
                if os.getpid() == self.parent:
                    inside.set()
                    go.wait(100)
                return 0
        cache = Cache()
        mempool.pressure.register(cache)
        first = mempool.cleanup("standard")
        inside.wait(100)
        second = mempool.cleanup("standard")
        child = os.fork()
        if not child:
            own = mempool.cleanup("standard")
            good = first.wait() and second.wait() and own is not second and own.wait(100) and len(own.steps) > 4
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        go.set()
        assert second.wait(100) and len(second.steps) > 4
        """
    )


def test_an_exit_does_not_wait(run_python: RunPython) -> None:
    run_python(
        """
        import mempool, threading
        inside = threading.Event()
        class Cache:
            name, nbytes = "cache", 8
            def shrink(self, nbytes):
                inside.set()
                threading.Event().wait()
        cache = Cache()
        mempool.pressure.register(cache)
        mempool.cleanup("standard")
        inside.wait(100)
        """
    )


def test_at_exit(run_python: RunPython) -> None:
    """No thread can be had any more."""
    done = run_python(
        """
        import atexit, mempool
        atexit.register(lambda: print(mempool.cleanup("standard").wait(100)))
        """
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


LATE = """
import mempool, sys, threading

class Last:
    def __del__(self, cleanup=mempool.cleanup, write=sys.stdout.write):
        for mode in ("standard", "aggressive"):
            report = cleanup(mode)
            write(f"{report.wait()} {report.done} {[step.name for step in report.steps][:3]} {report.freed >= 0}\\n")
        write(str(queued and queued[0].wait(None)))
queued = []
"""


@pytest.mark.parametrize("under_way", [False, True])
def test_in_a_finalizer_when_the_interpreter_ends(run_python: RunPython, under_way: bool) -> None:
    """Threads are frozen by then, one of them in the middle of a cleanup, with a lock of a cache."""
    busy = """
class Cache:
    name, nbytes, lock, inside = "cache", 8, threading.Lock(), threading.Event()
    def shrink(self, nbytes):
        with self.lock:
            self.inside.set()
            threading.Event().wait()
cache = sys.modules["cache"] = Cache()
mempool.pressure.register(cache)
queued.append(mempool.cleanup("standard"))
cache.inside.wait(100)
"""
    done = run_python(LATE + (busy if under_way else "") + 'sys.modules["last"] = Last()')
    line = "True True ['garbage', 'pools', 'slabs'] True\n"
    assert (done.stdout, done.stderr) == (line * 2 + ("False" if under_way else "[]"), "")


def test_an_atexit_that_has_no_thread_waits_for_none(run_python: RunPython) -> None:
    """A cleanup is under way for ever, and no thread can be had for another."""
    done = run_python(
        """
        import atexit, mempool, threading
        inside = threading.Event()
        class Cache:
            name, nbytes, stuck = "cache", 8, False
            def shrink(self, nbytes):
                if not self.stuck:
                    self.stuck = True
                    inside.set()
                    threading.Event().wait()
                return 0
        cache = Cache()
        mempool.pressure.register(cache)
        mempool.cleanup("standard")
        inside.wait(100)
        def refuse(thread):
            raise RuntimeError("can't create new thread at interpreter shutdown")
        threading.Thread.start = refuse
        atexit.register(lambda: print(mempool.cleanup("standard").done))
        """
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
