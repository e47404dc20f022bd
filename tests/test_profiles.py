"""Profiles and recommended settings."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

import mempool
from mempool._system import limits
from mempool.pressure import Settings, profile, recommend
from mempool.settings import PROFILES

Run = Callable[..., subprocess.CompletedProcess[str]]
NAMES = (
    "LIMIT",
    "LEAK_DETECTION",
    "THRESHOLD_MB",
    "CRITICAL_THRESHOLD_MB",
    "GC_INTERVAL_SECONDS",
    "BATCH_SIZE",
    "PROFILE",
)
CLEAN: dict[str, str | None] = {**{f"MEMPOOL_{name}": None for name in NAMES}, "PYTHONDEVMODE": None}


@pytest.mark.parametrize(
    ("total", "main", "critical", "limit", "interval", "batch"),
    [
        ("4GB", 2800, 3400, 2_000_000_000, 60.0, 50),
        ("8GB", 5600, 6800, 4_000_000_000, 120.0, 100),
        ("16GB", 11200, 13600, 8_000_000_000, 240.0, 200),
        (16 << 30, 12025, 14602, 8 << 30, 257.0, 214),
        ("16MB", 11, 13, 8_000_000, 30.0, 10),
        ("1PB", 700_000_000, 850_000_000, 500_000_000_000_000, 300.0, 1000),
    ],
)
def test_recommended(total: Any, main: int, critical: int, limit: int, interval: float, batch: int) -> None:
    found = recommend(total)
    assert found == Settings("production", limit, "sampled", main, critical, interval, batch)


def test_without_a_total_it_is_the_smallest_limit_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = (limits.Bound(8_000_000_000, "cgroup", 1), limits.Bound(64_000_000_000, "machine", 63_999_999_999))
    monkeypatch.setattr(limits, "survey", lambda: limits.Survey(bounds, ()))
    assert recommend() == recommend("8GB")


def test_what_this_machine_has_is_found() -> None:
    assert recommend().said().keys() == {*Settings.__slots__}


@pytest.mark.parametrize("errors", [(OSError("unreadable"),), ()])
def test_where_nothing_tells_it_is_an_error(errors: tuple[Exception, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "survey", lambda: limits.Survey((), errors))
    with pytest.raises(OSError, match="unreadable" if errors else "nothing tells"):
        recommend()


@pytest.mark.parametrize(
    ("total", "error"),
    [
        (0, ValueError),
        (15_999_999, ValueError),
        (-1, ValueError),
        ("much", ValueError),
        (1.5, TypeError),
        (True, TypeError),
    ],
)
def test_nonsense_is_named(total: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="total_or_target"):
        recommend(total)


def test_profiles_are_what_settings_say() -> None:
    for name in ("development", "testing", "production"):
        found = profile(name).said()
        assert found.pop("profile") == name
        assert found == {setting: value for setting, value in PROFILES[name].items() if value is not None}
    assert profile("development").leak_detection == "full"
    assert profile("production").leak_detection == "sampled"


@pytest.mark.parametrize(("name", "error"), [("prod", ValueError), (None, TypeError), (3, TypeError)])
def test_an_unknown_profile_is_named(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=repr(name)):
        profile(name)


def test_recommended_settings_are_accepted_as_they_are(run_python: Run) -> None:
    code = """
        import mempool
        from mempool.pressure import Settings, default_monitor, recommend
        wanted = recommend("8GB")
        wanted.apply()
        assert Settings.current() == wanted, Settings.current()
        assert mempool.default_pool().limit == wanted.limit
        assert default_monitor().thresholds.points[1:] == (5_600_000_000, 6_800_000_000)
        Settings().apply()
        assert Settings.current() == wanted
    """
    run_python(code, env=CLEAN)


def test_another_process_reads_them_from_its_environment(run_python: Run) -> None:
    wanted = recommend("16GB")
    code = "from mempool.pressure import Settings, recommend; assert Settings.current() == recommend('16GB')"
    run_python(code, env={**CLEAN, **wanted.environment()})


@pytest.mark.parametrize("seconds", [5e-05, 1e9, 120.0, 1 / 3, 1e-300, float("inf"), 7])
def test_an_interval_is_read_back_as_it_was(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempool.settings, "_configured", {})
    for name, text in Settings(gc_interval_seconds=seconds, threshold_mb=1e-05).environment().items():
        monkeypatch.setenv(name, text)
    found = Settings.current()
    assert found.gc_interval_seconds == (None if seconds == float("inf") else seconds)
    assert found.threshold_mb == 1e-05


def test_an_application_that_is_refused_changes_nothing() -> None:
    before = Settings.current()
    with pytest.raises(ValueError, match="batch_size"):
        Settings(threshold_mb=5, batch_size=0).apply()
    assert Settings.current() == before


def test_settings_are_those_of_configure() -> None:
    text = mempool.configure.__doc__ or ""
    assert all(name in text for name in Settings.__slots__)
    assert set(Settings.__slots__) == {name.lower() for name in NAMES}
