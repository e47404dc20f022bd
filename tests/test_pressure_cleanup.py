"""Cleanups: what each mode takes and what it says of it, and what becomes of errors."""

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import mempool
from cleanup_kit import Acting, Cache, by_name, idle_pool
from mempool.pressure import CleanupReport
from monitor_kit import records
from support import DEADLINE, MIB, Strange

RunPython = Callable[..., subprocess.CompletedProcess[str]]


class Node:
    """Garbage that only the collector finds."""

    def __init__(self, held: object = None) -> None:
        self.held, self.me = held, self


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


def fail() -> None:
    raise ValueError("no, today not")


def test_an_error_is_told_and_the_other_steps_run(caplog: pytest.LogCaptureFixture) -> None:
    acting, later = Acting(fail), Cache(4, 1000, "later")
    with caplog.at_level(logging.ERROR, "mempool.pressure"):
        report = mempool.cleanup("aggressive")
    assert by_name(report)["acting"].error == "ValueError: no, today not"
    assert (len(acting.entries), later.entries) == (4, [])
    assert report.steps[-1].name == "pages"
    (record,) = [record for record in records(caplog) if record.exc_info]
    assert "acting failed" in record.getMessage()


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


def test_an_error_without_a_text_is_told_by_its_name() -> None:
    def fail() -> None:
        raise Mute

    acting = Acting(fail)
    report = mempool.cleanup("aggressive")
    assert (by_name(report)["acting"].error, report.steps[-1].name) == ("Mute", "pages")
    del acting


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_would_end_the_program_is_for_who_called(error: type[BaseException]) -> None:
    """At once it comes out of the call; in the background, where nobody could take it, it is an error of the step."""

    def fail() -> None:
        raise error("enough")

    acting = Acting(fail)
    with pytest.raises(error):
        mempool.cleanup("aggressive")
    assert mempool.cleanup("light").steps
    report = mempool.cleanup("standard")
    assert (by_name(report)["acting"].error, report.steps[-1].name) == (f"{error.__name__}: enough", "malloc")
    del acting


@pytest.mark.parametrize("mode", ["light", "standard", "aggressive"])
@pytest.mark.parametrize("outer", ["standard", "aggressive"])
def test_a_cleanup_within_a_cleanup_is_the_same(mode: Any, outer: Any) -> None:
    within: list[CleanupReport] = []
    acting = Acting(lambda: within.append(mempool.cleanup(mode)))
    assert mempool.cleanup(outer).wait(DEADLINE)
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


def test_importing_mempool_loads_none_of_this(run_python: RunPython) -> None:
    done = run_python(
        "import mempool, sys; print([name for name in sys.modules if 'pressure' in name or name in ('threading', 'logging')])",
        env={"MEMPOOL_GC_INTERVAL_SECONDS": None, "MEMPOOL_PROFILE": None},
    )
    assert done.stdout == "[]\n"
