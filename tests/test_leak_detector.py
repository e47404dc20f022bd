"""Growth against a baseline: asked for, again and again, beside threads, after a fork, at exit."""

import gc
import logging
import os
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mempool
from mempool.accounting import Account, GrowthReport, LeakDetector, Snapshot
from support import DEADLINE, KIB, MIB, until


def scripted(*rows: tuple[int, int, int | None]) -> Callable[[str | None, Callable[[], float]], Snapshot]:
    """Readings of resident, lent and Python's own traced bytes that were written down before; one a second."""
    feed = iter(enumerate(rows))

    def read(label: str | None, clock: Callable[[], float]) -> Snapshot:
        second, (rss, lent, traced) = next(feed)
        return Snapshot(label, float(second), rss, lent, 0, traced, 0, python_heap=traced)

    return read


def based(*rows: tuple[int, int, int | None], **options: Any) -> LeakDetector:
    detector = LeakDetector(100, read=scripted(*rows), **options)
    detector.set_baseline()
    return detector


@pytest.fixture(autouse=True)
def nothing_of_others() -> None:
    """Neither garbage nor idle memory that could go while growth is measured."""
    mempool.cleanup("aggressive")


def ignore(report: GrowthReport) -> None:
    """Instead of the warning."""


def test_growth_that_is_lent() -> None:
    account = Account("images")
    pool = mempool.BufferPool(account=account, name="decoder", idle_timeout=None)
    detector = LeakDetector("3MiB", on_leak=ignore)
    detector.set_baseline()
    kept = [pool.acquire(MIB) for _ in range(2)]
    assert not detector.check().leaking
    kept.append(pool.acquire(MIB))
    report = detector.check()
    assert (report.leaking, report.external) == (True, 3 * MIB)
    assert report.accounts == (("root > images > decoder", 3 * MIB),)
    assert "decoder +3,145,728" in str(report)
    for buffer in kept:
        buffer.release()
    after = detector.check()
    assert (after.leaking, after.external, after.accounts) == (False, 0, ())


@pytest.mark.parametrize(
    ("after", "leaking", "heap", "external"),
    [
        ((1100, 0, None), True, 100, 0),
        ((1099, 0, None), False, 99, 0),
        ((1100, 100, None), True, 0, 100),
        ((1090, 50, None), False, 40, 50),
        ((500, 0, None), False, 0, 0),
        ((1000, 99, None), False, 0, 99),
    ],
)
def test_heap_and_external_growth_are_told_apart(after: Any, leaking: bool, heap: int, external: int) -> None:
    report = based((1000, 0, None), after, on_leak=ignore).check()
    assert (report.leaking, report.heap, report.external) == (leaking, heap, external)


def test_traced_growth_counts_rather_than_resident() -> None:
    report = based((1000, 0, 50), (9000, 60, 200), on_leak=ignore).check()
    assert (report.leaking, report.heap, report.external) == (True, 150, 60)


def test_each_further_threshold_is_told_once() -> None:
    told: list[int] = []
    rows = [(1000 + growth, 0, None) for growth in (0, 90, 110, 150, 199, 200, 250, 130, 90, 10, 120)]
    detector = based(*rows, on_leak=lambda report: told.append(report.heap))
    for _ in rows[1:]:
        detector.check()
    assert told == [110, 200, 120]


def test_growth_that_comes_back_is_told_again_but_not_for_every_tremble() -> None:
    told: list[int] = []
    rows = [(1000 + growth, 0, None) for growth in (0, 100, 0, 110, 99, 101, 91, 120, 89, 130, 230, 150, 240)]
    detector = based(*rows, on_leak=lambda report: told.append(report.heap))
    for _ in rows[1:]:
        detector.check()
    assert told == [100, 110, 130, 230, 240]


def snapshots(*changes: dict[str, int]) -> Callable[[str | None, Callable[[], float]], Snapshot]:
    nothing = {"rss": 1000, "external": 0, "idle": 0, "mapped": 0, "shared": 0}
    feed = [Snapshot(None, 0.0, traced=None, blocks=0, **{**nothing, **change}) for change in changes]
    return lambda label, clock: feed.pop(0)


@pytest.mark.parametrize(
    ("after", "heap", "external"),
    [
        ({"rss": 1300, "external": 300, "idle": 300}, 0, 0),  # touched, and idle again
        ({"rss": 1300, "external": 300, "idle": 100}, 0, 200),
        ({"rss": 1400, "external": 300, "idle": 300}, 100, 0),
        ({"rss": 1000, "external": 300, "mapped": 300}, 0, 0),  # a file that was opened,
        ({"rss": 1300, "external": 300, "mapped": 300, "shared": 300}, 0, 0),  # and read,
        ({"rss": 1300, "external": 300, "mapped": 300}, 300, 0),  # or not, while something else grew,
        ({"rss": 1500, "external": 500, "mapped": 300, "shared": 300}, 0, 200),  # or a lease was taken
        ({"rss": 1300, "shared": 300}, 300, 0),
    ],
)
def test_idle_memory_and_mapped_files_are_no_leak_and_hide_none(
    after: dict[str, int], heap: int, external: int
) -> None:
    detector = LeakDetector(10_000, read=snapshots({}, after))
    detector.set_baseline()
    report = detector.check()
    assert (report.heap, report.external) == (heap, external)


RESIDENT = {
    "idle": """
        pool = mempool.BufferPool(idle_timeout=None)
        detector.set_baseline()
        with pool.acquire("64MiB") as buffer:
            buffer[:] = bytes(64 * MIB)
        report = detector.check()
        assert report.delta.rss > 60 * MIB
        assert (report.leaking, report.delta.idle) == (False, 64 * MIB)
    """,
    "a mapped file": """
        detector.set_baseline()
        array = mempool.open_array(sys.argv[1], dtype="u1")
        report = detector.check()
        assert (report.leaking, report.external, report.accounts, report.delta.mapped) == (False, 0, (), 64 * MIB)
        assert not array.array[::4096].any()
        report = detector.check()
        assert report.delta.rss > 60 * MIB
        assert not report.leaking
    """,
}


@pytest.mark.nosan
@pytest.mark.parametrize("what", RESIDENT)
def test_resident_memory_that_is_no_leak(run_python: Callable[..., Any], tmp_path: Path, what: str) -> None:
    """In a process of its own, where no other memory comes or goes."""
    with (tmp_path / "big").open("wb") as file:
        file.truncate(64 * MIB)
    prelude = """
        import sys
        import numpy as np
        import mempool
        from mempool.accounting import LeakDetector

        MIB = 1 << 20
        detector = LeakDetector("32MiB", on_leak=lambda report: None)
    """
    run_python(prelude + RESIDENT[what], tmp_path / "big")


def test_charges_by_hand_hide_no_traced_growth() -> None:
    account = Account("gpu")
    tracemalloc.start()
    try:
        detector = LeakDetector("1MiB", on_leak=ignore)
        detector.set_baseline()
        kept = bytearray(MIB)
        account.charge(8 * MIB)
        lent = mempool.acquire(4 * MIB)
        report = detector.check()
    finally:
        tracemalloc.stop()
    assert MIB - 64 * KIB < report.heap < MIB + 64 * KIB
    assert report.external == 12 * MIB
    account.discharge(8 * MIB)
    lent.release()
    del kept


def test_accounts_below_each_other_without_end() -> None:
    chain = Account("deep")
    for _ in range(2000):
        chain = Account("deep", parent=chain)
    detector = LeakDetector(on_leak=ignore)
    detector.set_baseline()
    with chain.charged(MIB):
        report = detector.check()
    assert [nbytes for _, nbytes in report.accounts] == [MIB]


def test_by_default_a_warning_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    based((0, 0, None), (500, 0, None)).check()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "heap +500" in caplog.text


def test_a_callback_that_raises_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    detector = based((0, 0, None), (500, 0, None), on_leak=lambda report: 1 // 0)
    assert detector.check().leaking
    assert detector.errors == 1
    assert "ZeroDivisionError" in caplog.text


def test_a_new_baseline_forgets_the_growth() -> None:
    detector = based((0, 0, None), (500, 0, None), (500, 0, None), (520, 0, None), on_leak=ignore)
    assert detector.check().leaking
    detector.set_baseline()
    assert detector.check().heap == 20
    assert detector.baseline is not None
    assert detector.baseline.rss == 500


def test_the_pattern_comes_with_the_report() -> None:
    rows = [(at * 2 * MIB, 0, None) for at in range(20)]
    detector = based(*rows, on_leak=ignore)
    reports = [detector.check() for _ in rows[1:]]
    assert reports[-1].pattern == "leak"


def test_no_baseline() -> None:
    with pytest.raises(ValueError, match="set_baseline"):
        LeakDetector().check()
    assert LeakDetector().baseline is None


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"threshold": 0}, ValueError),
        ({"threshold": 1.5}, TypeError),
        ({"on_leak": 5}, TypeError),
        ({"capacity": 0}, ValueError),
    ],
)
def test_nonsense_is_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        LeakDetector(**arguments)


# ---- again and again ----


def test_a_thread_checks() -> None:
    checked = threading.Event()
    detector = LeakDetector(1, on_leak=lambda report: checked.set())
    with detector.start(0.001):
        kept = mempool.acquire(MIB)
        assert checked.wait(DEADLINE)
        assert detector.running
        with pytest.raises(RuntimeError, match="already"):
            detector.start()
    assert not detector.running
    detector.stop()
    kept.release()


def test_started_again_it_keeps_its_baseline() -> None:
    detector = LeakDetector("1GiB")
    baseline = detector.set_baseline()
    for _ in range(2):
        with detector.start("1h"):
            assert detector.baseline is baseline


@pytest.mark.parametrize("interval", [0, -1, float("nan"), "soon", float("inf")])
def test_intervals_that_make_no_sense(interval: Any) -> None:
    detector = LeakDetector()
    with pytest.raises(ValueError, match="interval"):
        detector.start(interval)
    assert not detector.running


def test_a_check_that_raises_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    detector = based((0, 0, None))
    with detector.start(0.001):
        until(lambda: detector.errors >= 3, "an error of a check")
        assert detector.running
    assert "StopIteration" in caplog.text


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_nothing_ends_the_thread(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    plain = scripted((0, 0, None))

    def read(label: str | None, clock: Callable[[], float]) -> Snapshot:
        if label == "baseline":
            return plain(label, clock)
        raise error

    detector = LeakDetector(100, read=read)
    with detector.start(0.001):
        until(lambda: detector.errors >= 3, "an error of a check")
        assert detector.running
    assert error.__name__ in caplog.text


def test_stop_from_inside_a_callback() -> None:
    stopped = threading.Event()
    detector = LeakDetector(1, on_leak=lambda report: (detector.stop(), stopped.set()))
    detector.start(0.001)
    kept = mempool.acquire(MIB)
    assert stopped.wait(DEADLINE)
    until(lambda: not detector.running, "the end of the thread")
    kept.release()


def test_starting_again_and_again_leaves_nothing_behind() -> None:
    detector = LeakDetector("1GiB")
    for _ in range(5):
        detector.start("1h").stop()  # which does not wait for ever
    until(lambda: weakref.getweakrefcount(detector) == 0, "the end of the last thread")


def test_a_forgotten_detector_ends_its_thread() -> None:
    detector = LeakDetector("1GiB").start("1h")
    thread = detector._watch._thread  # type: ignore[union-attr]
    gone = weakref.ref(detector)
    del detector
    gc.collect()
    assert gone() is None
    thread.join(DEADLINE)
    assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_none_until_it_starts_one(run_python: Callable[..., Any]) -> None:
    run_python("""
        import os, warnings
        from mempool.accounting import LeakDetector
        warnings.simplefilter("ignore", DeprecationWarning)
        detector = LeakDetector("1GiB").start(0.001)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                assert not detector.running
                detector.stop()
                with detector.start(0.001):
                    assert detector.running
                detector.check()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert detector.running
        detector.stop()
    """)


def test_the_interpreter_exits_with_a_running_detector(run_python: Callable[..., Any]) -> None:
    done = run_python("""
        from mempool.accounting import LeakDetector
        detector = LeakDetector(1, on_leak=lambda report: None).start(0.0001)
        kept = [bytearray(100_000) for _ in range(100)]
        print("over")
    """)
    assert (done.stdout, done.stderr) == ("over\n", "")
