"""Settings of pressure: thresholds, interval, batches, profiles; who is told when they change."""

import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import mempool
from mempool import settings
from mempool.pressure import PressureMonitor
from mempool.settings import lookup
from support import start

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


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Settings that nobody made, and that are forgotten afterwards."""
    for name in NAMES:
        monkeypatch.delenv(f"MEMPOOL_{name}", raising=False)
    monkeypatch.setattr(settings, "_configured", {})
    monkeypatch.setattr(settings, "_followers", [])
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("threshold_mb", "1500", 1500),
        ("threshold_mb", "1.5", 1.5),
        ("critical_threshold_mb", " 2000 ", 2000),
        ("gc_interval_seconds", "30", 30.0),
        ("gc_interval_seconds", "5min", 300.0),
        ("gc_interval_seconds", "0", None),
        ("batch_size", "64", 64),
        ("profile", "testing", "testing"),
    ],
)
def test_the_environment(clean: pytest.MonkeyPatch, name: str, text: str, value: object) -> None:
    assert lookup(name) is None
    clean.setenv("MEMPOOL_" + name.upper(), text)
    found = lookup(name)
    assert (found, type(found)) == (value, type(value))
    mempool.configure(**{name: None})
    assert lookup(name) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("THRESHOLD_MB", "much"),
        ("THRESHOLD_MB", "0"),
        ("THRESHOLD_MB", "-5"),
        ("THRESHOLD_MB", "nan"),
        ("THRESHOLD_MB", "inf"),
        ("THRESHOLD_MB", "2GB"),
        ("CRITICAL_THRESHOLD_MB", "1e300"),
        ("GC_INTERVAL_SECONDS", "often"),
        ("GC_INTERVAL_SECONDS", "-1"),
        ("GC_INTERVAL_SECONDS", "20000w"),
        ("BATCH_SIZE", "1.5"),
        ("BATCH_SIZE", "0"),
        ("BATCH_SIZE", "9" * 40),
        ("PROFILE", "prod"),
        ("PROFILE", "PRODUCTION"),
    ],
)
def test_nonsense_in_the_environment_names_variable_and_value(clean: pytest.MonkeyPatch, name: str, text: str) -> None:
    clean.setenv(f"MEMPOOL_{name}", text)
    with pytest.raises(ValueError, match=f"MEMPOOL_{name} ") as caught:
        lookup(name.lower())
    assert (text if text != "1e300" else "1e+300") in str(caught.value)


@pytest.mark.parametrize(
    ("values", "error", "named"),
    [
        ({"threshold_mb": True}, TypeError, "True"),
        ({"threshold_mb": [1]}, TypeError, "[1]"),
        ({"threshold_mb": 10**5000}, ValueError, "bits"),
        ({"critical_threshold_mb": -1.5}, ValueError, "-1.5"),
        ({"threshold_mb": 100, "critical_threshold_mb": 99}, ValueError, "99"),
        ({"gc_interval_seconds": True}, TypeError, "True"),
        ({"batch_size": 5, "gc_interval_seconds": "20000w"}, ValueError, "'20000w'"),
        ({"gc_interval_seconds": float("nan")}, ValueError, "nan"),
        ({"batch_size": 10.0}, TypeError, "10.0"),
        ({"batch_size": 0}, ValueError, "0"),
        ({"profile": 3}, TypeError, "3"),
        ({"profile": "prod"}, ValueError, "'prod'"),
        ({"batch_size": 5, "nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_what_is_refused_changes_nothing(
    clean: pytest.MonkeyPatch, values: dict[str, Any], error: type[Exception], named: str
) -> None:
    mempool.configure(batch_size=7, threshold_mb=50)
    told: list[object] = []
    settings.follow(told.append)
    with pytest.raises(error) as caught:
        mempool.configure(**values)
    assert named in str(caught.value)
    assert settings._configured == {"batch_size": 7, "threshold_mb": 50}
    assert told == []


def test_thresholds_are_compared_with_what_holds_already(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("MEMPOOL_CRITICAL_THRESHOLD_MB", "100")
    mempool.configure(threshold_mb=100)
    with pytest.raises(ValueError, match="101"):
        mempool.configure(threshold_mb=101)
    assert lookup("threshold_mb") == 100
    mempool.configure(threshold_mb=200, critical_threshold_mb=None)
    assert lookup("critical_threshold_mb") is None


def test_thresholds_that_fall_name_where_they_come_from(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("MEMPOOL_THRESHOLD_MB", "2000")
    clean.setenv("MEMPOOL_CRITICAL_THRESHOLD_MB", "1000")
    with pytest.raises(ValueError, match=r"MEMPOOL_CRITICAL_THRESHOLD_MB of 1000 .* MEMPOOL_THRESHOLD_MB of 2000"):
        PressureMonitor(sources=[])
    with pytest.raises(ValueError, match=r"critical_threshold_mb of 1500 .* MEMPOOL_THRESHOLD_MB of 2000"):
        mempool.configure(critical_threshold_mb=1500)


@pytest.mark.parametrize(
    "values",
    [{"critical_threshold_mb": 1e-7}, {"threshold_mb": 1e-7}, {"threshold_mb": 1e-7, "critical_threshold_mb": 1e-7}],
)
def test_what_configure_takes_a_monitor_takes_too(clean: pytest.MonkeyPatch, values: dict[str, Any]) -> None:
    mempool.configure(**values)
    assert PressureMonitor(sources=[]).thresholds.points[1:] == (1, 1)


def test_what_is_refused_undoes_nothing_of_another_thread(clean: pytest.MonkeyPatch) -> None:
    inside, others = threading.Event(), []

    def refuse(changed: Mapping[str, object]) -> None:
        if changed.get("batch_size") != 9:
            return
        others.append(start(lambda: mempool.configure(batch_size=11)))
        inside.wait(0.2)  # the other one gets there, if it may
        raise LookupError("no")

    def told(changed: Mapping[str, object]) -> None:
        inside.set()

    settings.follow(told)
    clean.setattr(settings, "_listeners", [refuse])
    with pytest.raises(LookupError):
        mempool.configure(batch_size=9)
    others[0].result()
    assert lookup("batch_size") == 11


def test_a_listener_that_refuses_undoes_what_was_told(clean: pytest.MonkeyPatch) -> None:
    def refuse(changed: Mapping[str, object]) -> None:
        assert lookup("batch_size") == 9
        raise LookupError("no")

    mempool.configure(batch_size=7)
    clean.setattr(settings, "_listeners", [refuse])
    with pytest.raises(LookupError):
        mempool.configure(batch_size=9, profile="testing")
    assert settings._configured == {"batch_size": 7}


def test_followers_are_told_of_what_changed_when_it_holds(clean: pytest.MonkeyPatch) -> None:
    told: list[tuple[dict[str, object], object]] = []

    def follower(changed: Mapping[str, object]) -> None:
        told.append((dict(changed), lookup("batch_size")))

    settings.follow(follower)
    mempool.configure(batch_size="12")
    settings.unfollow(follower)
    settings.unfollow(follower)
    mempool.configure(batch_size=13)
    assert told == [({"batch_size": 12}, 12)]


def test_a_profile_speaks_for_what_nobody_names(clean: pytest.MonkeyPatch) -> None:
    mempool.configure(profile="testing")
    assert (lookup("leak_detection"), lookup("batch_size"), lookup("limit")) == ("full", 10, None)
    clean.setenv("MEMPOOL_BATCH_SIZE", "20")
    assert lookup("batch_size") == 20
    mempool.configure(batch_size=30)
    assert lookup("batch_size") == 30
    clean.setenv("MEMPOOL_PROFILE", "production")
    assert lookup("leak_detection") == "full"
    mempool.configure(profile=None)
    assert lookup("leak_detection") is None


def test_another_profile_changes_only_what_nobody_names(clean: pytest.MonkeyPatch) -> None:
    told: list[dict[str, object]] = []
    mempool.configure(batch_size=30)
    settings.follow(lambda changed: told.append(dict(changed)))
    mempool.configure(profile="development")
    mempool.configure(profile="production", leak_detection="off")
    assert told == [
        {"profile": "development", "leak_detection": "full", "gc_interval_seconds": None},
        {"profile": "production", "leak_detection": "off", "gc_interval_seconds": 300.0},
    ]


def test_profiles_name_the_same_settings() -> None:
    assert len({frozenset(values) for values in settings.PROFILES.values()}) == 1


def test_the_default_pool_follows_the_profile(run_python: Run) -> None:
    code = """
        import mempool
        pool = mempool.default_pool()
        assert (pool.leak_detection, mempool.BufferPool().leak_detection) == ("sampled", "sampled")
        mempool.configure(profile="development")
        assert (pool.leak_detection, mempool.BufferPool().leak_detection) == ("full", "full")
        mempool.configure(profile=None)
        assert (pool.leak_detection, mempool.BufferPool().leak_detection) == ("off", "off")
        mempool.configure(leak_detection="sampled")
        mempool.configure(profile="testing")
        assert pool.leak_detection == "sampled"
    """
    run_python(code, env={**CLEAN, "MEMPOOL_PROFILE": "production"})


def test_production_cleans_up_every_five_minutes(run_python: Run) -> None:
    code = """
        import mempool
        assert mempool.pressure.process_schedule() is None
        mempool.configure(profile="production")
        assert mempool.pressure.process_schedule().interval == 300
        mempool.configure(gc_interval_seconds=0)
        assert mempool.pressure.process_schedule() is None
        mempool.configure(gc_interval_seconds="1h")
        mempool.configure(profile="testing")
        assert mempool.pressure.process_schedule().interval == 3600
    """
    run_python(code, env=CLEAN)
    code = "import mempool; assert mempool.pressure.process_schedule().interval == 300"
    run_python(code, env={**CLEAN, "MEMPOOL_PROFILE": "production"})


def test_nonsense_for_a_profile_is_named(run_python: Run) -> None:
    done = run_python("import mempool; mempool.BufferPool()", env={**CLEAN, "MEMPOOL_PROFILE": "prod"}, check=False)
    assert done.returncode == 1
    assert "MEMPOOL_PROFILE" in done.stderr.splitlines()[-1]
    assert "'prod'" in done.stderr.splitlines()[-1]
