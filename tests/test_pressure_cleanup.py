"""Cleanups: what each mode takes and what it says of it, at once and queued."""

import gc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mempool
from mempool.pressure import CleanupReport, register
from support import MIB, Strange, start, together

RunPython = Callable[..., subprocess.CompletedProcess[str]]


class Cache:
    """A cache of entries of one size, in Python's own memory."""

    def __init__(self, entries: int = 64, size: int = MIB, name: str = "entries") -> None:
        self.name, self.size = name, size
        self.entries = [bytearray(size) for _ in range(entries)]
        register(self)

    @property
    def nbytes(self) -> int:
        return len(self.entries) * self.size

    def shrink(self, nbytes: int) -> int:
        number = min(-(-nbytes // self.size), len(self.entries))
        del self.entries[:number]
        return number * self.size


class Node:
    """Garbage that only the collector finds."""

    def __init__(self, held: object = None) -> None:
        self.held, self.me = held, self


def idle_pool(*sizes: int) -> mempool.BufferPool:
    pool = mempool.BufferPool(idle_timeout=None)
    for lease in [pool.acquire(nbytes, zero=True) for nbytes in sizes]:
        lease.release()
    return pool


def by_name(report: CleanupReport) -> dict[str, Any]:
    return {step.name: step for step in report.steps}


# ---- the modes


@pytest.mark.parametrize(
    ("mode", "steps"),
    [
        ("light", ["garbage", "pools"]),
        ("standard", ["garbage", "pools", "slabs", "shared", "reclaimers", "entries", "malloc"]),
        ("aggressive", ["garbage", "pools", "slabs", "shared", "reclaimers", "entries", "malloc", "pages"]),
    ],
)
def test_steps_of_a_mode(mode: Any, steps: list[str]) -> None:
    cache = Cache(4, 1000)
    report = mempool.cleanup(mode)
    assert [step.name for step in report.steps if step.name in steps] == steps
    assert len(report.steps) == len(steps) + len([step for step in report.steps if step.name not in steps])
    assert len(cache.entries) == {"light": 4, "standard": 3, "aggressive": 0}[mode]
    assert (report.mode, report.done, report.wait(0)) == (mode, True, True)
    assert report.freed == sum(step.freed for step in report.steps)
    assert report.seconds == sum(step.seconds for step in report.steps)
    assert all(step.freed >= 0 and step.seconds >= 0 and step.error is None for step in report.steps)


def test_light_is_the_default() -> None:
    assert mempool.cleanup().mode == "light"


def test_a_light_one_leaves_as_much_idle_as_is_lent() -> None:
    pool = idle_pool(*[MIB] * 6)
    lent = [pool.acquire(MIB), pool.acquire(MIB)]
    report = mempool.cleanup("light")
    assert (pool.stats().idle, pool.stats().in_use) == (2 * MIB, 2 * MIB)
    assert by_name(report)["pools"].freed >= 2 * MIB
    del lent


@pytest.mark.parametrize("mode", ["standard", "aggressive"])
def test_the_others_empty_pools(mode: Any) -> None:
    pool = idle_pool(*[MIB] * 6)
    with pool.acquire(MIB):
        report = mempool.cleanup(mode)
        assert by_name(report)["pools"].freed >= 5 * MIB
        assert (pool.stats().idle, pool.stats().in_use) == (0, MIB)


@pytest.mark.parametrize("mode", ["standard", "aggressive"])
def test_garbage_goes_with_the_buffers_that_it_holds(mode: Any) -> None:
    pool = mempool.BufferPool(idle_timeout=None)
    old = Node(pool.acquire(8 * MIB))
    gc.collect()
    gc.collect()
    del old
    Node(pool.acquire(8 * MIB)).held = Node(pool.acquire(8 * MIB))
    report = mempool.cleanup(mode)
    assert report.freed >= 24 * MIB
    assert pool.stats().reserved == 0


def test_what_finalizers_make_is_collected_too() -> None:
    pool = mempool.BufferPool(idle_timeout=None)

    class Last(Node):
        def __del__(self) -> None:
            Node(pool.acquire(MIB))

    gc.collect()
    Last()
    mempool.cleanup("aggressive")
    assert pool.stats().reserved == 0


def test_what_a_cache_left_in_a_pool_goes_too() -> None:
    pool = mempool.BufferPool(idle_timeout=None)

    class Buffers(Cache):
        def shrink(self, nbytes: int) -> int:
            leases.clear()
            return super().shrink(nbytes)

    leases = [pool.acquire(MIB) for _ in range(4)]
    buffers = Buffers(4, 1000, "buffers")
    report = mempool.cleanup("aggressive")
    assert (buffers.entries, pool.stats().reserved) == ([], 0)
    assert by_name(report)["buffers"].freed >= 4 * MIB


def test_collecting_is_asked_for_even_where_it_is_disabled() -> None:
    gc.disable()
    try:
        Node()
        assert int(by_name(mempool.cleanup("aggressive"))["garbage"].detail.split()[0]) > 0
    finally:
        gc.enable()


@pytest.mark.nosan
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
def test_what_a_cache_let_go_of_has_left_the_process() -> None:
    cache = Cache(400, 100_000)  # below malloc's threshold for mappings of their own
    report = mempool.cleanup("aggressive")
    assert cache.entries == []
    assert report.freed > 20_000_000
    assert "40000000 of 40000000 bytes let go" in by_name(report)["entries"].detail


def test_slabs_give_free_slots() -> None:
    slab = mempool.SlabAllocator(4096)
    slab.free_many(slab.alloc_many(2000))
    before = slab.account.used
    report = mempool.cleanup("aggressive")
    assert by_name(report)["slabs"].freed >= before - slab.account.used > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="shared pools are for Linux")
def test_shared_pools_give_segments_back() -> None:
    with mempool.shared.SharedPool() as pool:
        pool.acquire(4 * MIB).release()
        report = mempool.cleanup("aggressive")
        assert by_name(report)["shared"].freed >= 4 * MIB
        assert pool.stats().reserved == 0


@pytest.mark.parametrize("mode", [None, 3, Strange(), b"light"])
def test_a_mode_is_a_name(mode: Any) -> None:
    with pytest.raises(TypeError, match="mode must be light, standard or aggressive, not "):
        mempool.cleanup(mode)


@pytest.mark.parametrize("mode", ["", "Light", "all"])
def test_an_unknown_mode(mode: Any) -> None:
    with pytest.raises(ValueError, match="mode must be light, standard or aggressive, not "):
        mempool.cleanup(mode)


def test_a_report_reads_well() -> None:
    pool = idle_pool(8 * MIB)
    report = mempool.cleanup("aggressive")
    assert pool.stats().idle == 0
    lines = str(report).splitlines()
    assert len(lines) == len(report.steps) + 1
    assert lines[-1].startswith("aggressive, in all")
    assert repr(report) == f"<CleanupReport aggressive, {report.freed} bytes freed in {len(report.steps)} steps>"


# ---- errors, and what steps do


class Acting(Cache):
    """Does something of its own when asked to shrink."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        super().__init__(4, 1000, "acting")

    def shrink(self, nbytes: int) -> int:
        self.act()
        return super().shrink(nbytes)


def fail() -> None:
    raise ValueError("no, today not")


def test_an_error_is_told_and_the_other_steps_run(caplog: pytest.LogCaptureFixture) -> None:
    acting, later = Acting(fail), Cache(4, 1000, "later")
    with caplog.at_level(logging.ERROR, "mempool.pressure"):
        report = mempool.cleanup("aggressive")
    assert by_name(report)["acting"].error == "ValueError: no, today not"
    assert (len(acting.entries), later.entries) == (4, [])
    assert report.steps[-1].name == "pages"
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "acting failed" in record.getMessage()


@pytest.mark.parametrize("mode", ["light", "standard", "aggressive"])
@pytest.mark.parametrize("outer", ["standard", "aggressive"])
def test_a_cleanup_within_a_cleanup_is_the_same(mode: Any, outer: Any) -> None:
    within: list[CleanupReport] = []
    acting = Acting(lambda: within.append(mempool.cleanup(mode)))
    assert mempool.cleanup(outer).wait(30)
    assert [(report.done, report.steps, report.freed) for report in within] == [(True, (), 0)]
    assert len(acting.entries) < 4


def test_a_finalizer_may_clean_up() -> None:
    answers: list[bool] = []

    class Last(Node):
        def __del__(self) -> None:
            answers.append(mempool.cleanup("standard").wait())

    gc.collect()
    Last()
    mempool.cleanup("aggressive")
    assert answers == [True]


def test_caches_may_come_and_go_meanwhile() -> None:
    later: list[Cache] = []

    def act() -> None:
        later.clear()
        later.append(Cache(4, 1000, "newer"))

    acting = Acting(act)
    later.append(Cache(4, 1000, "older"))
    assert mempool.cleanup("aggressive").done
    assert acting.entries == []


# ---- in the background


@pytest.fixture
def held_up() -> Iterator[tuple[Acting, threading.Event, threading.Event]]:
    """A cache that keeps a cleanup waiting until told to go on."""
    inside, go = threading.Event(), threading.Event()

    def act() -> None:
        inside.set()
        go.wait(30)

    acting = Acting(act)
    yield acting, inside, go
    go.set()
    acting.name = "done"


def test_standard_is_queued(held_up: tuple[Acting, threading.Event, threading.Event]) -> None:
    acting, inside, go = held_up
    report = mempool.cleanup("standard")
    assert inside.wait(30)
    assert (report.done, report.wait(0.001), repr(report)) == (False, False, "<CleanupReport standard, running>")
    go.set()
    assert report.wait(30)
    assert (len(acting.entries), report.done) == (3, True)


def test_of_several_that_wait_one_runs(held_up: tuple[Acting, threading.Event, threading.Event]) -> None:
    acting, inside, go = held_up
    first = mempool.cleanup("standard")
    assert inside.wait(30)
    threads = threading.active_count()
    waiting = together([lambda: mempool.cleanup("standard")] * 20)
    assert len({id(report) for report in waiting}) == 1
    assert waiting[0] is not first
    assert threading.active_count() <= threads + 1
    go.set()
    assert waiting[0].wait(30)
    assert len(acting.entries) == 2


def test_reading_a_report_waits(held_up: tuple[Acting, threading.Event, threading.Event]) -> None:
    _, inside, go = held_up
    report = mempool.cleanup("standard")
    assert inside.wait(30)
    reader = start(lambda: report.steps)
    go.set()
    assert [step.name for step in reader.result()][-1] == "malloc"


@pytest.mark.parametrize(("mode", "background"), [("light", True), ("aggressive", True), ("standard", False)])
def test_where_it_runs_can_be_said(mode: Any, background: bool) -> None:
    threads: list[threading.Thread] = []
    callbacks = lambda phase, info: threads.append(threading.current_thread())  # noqa: E731
    gc.callbacks.append(callbacks)
    try:
        assert mempool.cleanup(mode, background=background).wait(30)
    finally:
        gc.callbacks.remove(callbacks)
    assert (threading.current_thread() not in threads) == background


def test_no_thread_is_left(run_python: RunPython) -> None:
    run_python(
        """
        import mempool, threading
        report = mempool.cleanup("standard")
        report.wait()
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                thread.join(30)
        assert threading.active_count() == 1
        """
    )


def test_a_step_that_waits_for_its_own_cleanup_does_not() -> None:
    reports: list[CleanupReport] = []
    answers: list[object] = []
    known = threading.Event()

    def act() -> None:
        known.wait(30)
        answers.extend([reports[0].wait(), reports[0].done, len(reports[0].steps) > 2])

    acting = Acting(act)
    reports.append(mempool.cleanup("standard"))
    known.set()
    assert reports[0].wait(30)
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
    assert [report.wait(30) for report in joined] == [True] * len(joined)
    report = mempool.cleanup("standard")
    assert report.wait(30)
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
    assert (report.wait(30), answers) == (True, [True])


def test_many_calls_from_many_threads_all_end() -> None:
    pool = mempool.BufferPool(idle_timeout=None)
    cache, reports = Cache(256, 1000), []

    def work() -> None:
        for _ in range(100):
            pool.acquire(MIB).release()
            reports.append(mempool.cleanup("standard"))

    together([work] * 8)
    assert len(reports) == 800
    assert all(report.wait(30) and report.steps[-1].name == "malloc" for report in reports)
    assert (len(cache.entries) < 256, pool.stats().reserved) == (True, 0)


def test_from_many_threads() -> None:
    pool = idle_pool(MIB)

    def work() -> None:
        for mode in ("light", "standard", "aggressive") * 3:
            pool.acquire(MIB).release()
            assert mempool.cleanup(mode).wait(30)  # type: ignore[arg-type]

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
                    go.wait(30)
                return 0
        cache = Cache()
        mempool.pressure.register(cache)
        first = mempool.cleanup("standard")
        inside.wait(30)
        second = mempool.cleanup("standard")
        child = os.fork()
        if not child:
            own = mempool.cleanup("standard")
            good = first.wait() and second.wait() and own is not second and own.wait(30) and len(own.steps) > 4
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        go.set()
        assert second.wait(30) and len(second.steps) > 4
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
        inside.wait(30)
        """
    )


def test_at_exit(run_python: RunPython) -> None:
    """No thread can be had any more."""
    done = run_python(
        """
        import atexit, mempool
        atexit.register(lambda: print(mempool.cleanup("standard").wait(30)))
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
cache.inside.wait(30)
"""
    done = run_python(LATE + (busy if under_way else "") + 'sys.modules["last"] = Last()', timeout=30)
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
        inside.wait(30)
        def refuse(thread):
            raise RuntimeError("can't create new thread at interpreter shutdown")
        threading.Thread.start = refuse
        atexit.register(lambda: print(mempool.cleanup("standard").done))
        """,
        timeout=30,
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_importing_mempool_loads_none_of_this(run_python: RunPython) -> None:
    done = run_python(
        "import mempool, sys; print([name for name in sys.modules if 'pressure' in name or name in ('threading', 'logging')])",
        env={"MEMPOOL_GC_INTERVAL_SECONDS": None, "MEMPOOL_PROFILE": None},
    )
    assert done.stdout == "[]\n"
