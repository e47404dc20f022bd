"""Thresholds: what they take, what they refuse, and at which figure a level begins and ends."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mempool.pressure import Level, Thresholds
from monitor_kit import CRITICAL, ELEVATED, HIGH, NORMAL
from support import Strange


def test_levels_are_ordered() -> None:
    assert list(Level) == [NORMAL, ELEVATED, HIGH, CRITICAL] == sorted(Level)


def test_bytes() -> None:
    thresholds = Thresholds(main="1 KiB", critical="2 KiB", preventive=0.5)
    assert thresholds.points == (512, 1024, 2048)
    assert thresholds == Thresholds(1024, 2048, 0.5)
    assert hash(thresholds) == hash(Thresholds(1024, 2048, 0.5))
    assert thresholds != Thresholds(1024, 2049, 0.5)
    assert thresholds != 5


def test_defaults() -> None:
    assert Thresholds(1000).points == (800, 1000, 1250)
    assert Thresholds.fractions().points == (0.75, 0.85, 0.95)


def test_what_is_shown_makes_an_equal_one() -> None:
    for thresholds in (Thresholds(1000), Thresholds(1, 1, 1), Thresholds.fractions(0.5, 0.5, 1)):
        assert eval(repr(thresholds)) == thresholds


@pytest.mark.parametrize("bad", [True, 1.5, None, [], Strange()])
def test_wrong_types(bad: Any) -> None:
    with pytest.raises(TypeError, match="main"):
        Thresholds(bad)
    for name in ("elevated", "high", "critical"):
        if isinstance(bad, float):
            continue
        with pytest.raises(TypeError, match=name):
            Thresholds.fractions(**{name: bad})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"main": 0}, "main"),
        ({"main": -1}, "-1"),
        ({"main": "5 parsecs"}, "parsecs"),
        ({"main": 10, "critical": 9}, "9 and 10"),
        ({"main": 10, "preventive": 0}, "preventive"),
        ({"main": 10, "preventive": 1.01}, "1.01"),
        ({"main": 10, "preventive": math.nan}, "nan"),
    ],
)
def test_nonsense_in_bytes(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Thresholds(**given)


@pytest.mark.parametrize("bad", [1 << 64, pytest.param(10**400, id="digits"), pytest.param(10**6000, id="more digits")])
def test_what_no_memory_has(bad: int) -> None:
    with pytest.raises(OverflowError, match="main"):
        Thresholds(bad)
    with pytest.raises(OverflowError, match="critical"):
        Thresholds(1000, critical=bad)


@pytest.mark.parametrize("bad", [0, -0.5, 1.5, math.nan, math.inf, 2, pytest.param(10**400, id="huge")])
def test_nonsense_in_shares(bad: float) -> None:
    with pytest.raises(ValueError, match="high"):
        Thresholds.fractions(high=bad)


def test_shares_that_fall() -> None:
    with pytest.raises(ValueError, match=r"0\.9, 0\.85"):
        Thresholds.fractions(elevated=0.9)


@pytest.mark.parametrize(
    ("used", "level"), [(0, 0), (799, 0), (800, 1), (999, 1), (1000, 2), (1199, 2), (1200, 3), (10**18, 3)]
)
def test_a_level_begins_at_its_threshold(used: int, level: int) -> None:
    assert Thresholds(1000, 1200).entered(used) == level
    assert Thresholds.fractions(0.8, 1.0, 1.0).entered(used / 1000) in {level, 3}


@pytest.mark.parametrize(("used", "level"), [(760, 0), (761, 1), (950, 1), (951, 2), (1140, 2), (1141, 3)])
def test_a_level_ends_at_its_threshold_less_the_hysteresis(used: int, level: int) -> None:
    assert Thresholds(1000, 1200).kept(used, 0.05) == level


@given(st.integers(1, 10**13), st.sampled_from([0.0, 0.05, 0.5]), st.integers(0, 10**14))
def test_what_is_entered_is_kept(main: int, hysteresis: float, used: int) -> None:
    thresholds = Thresholds(main)
    entered = thresholds.entered(used)
    assert thresholds.kept(used, hysteresis) >= entered
    if not hysteresis:
        assert thresholds.kept(used, hysteresis) == entered


def test_what_is_judged() -> None:
    in_bytes, shares = Thresholds(1000), Thresholds.fractions()
    assert in_bytes.figure(500, None, "own") == 500
    assert in_bytes.figure(500, 1000, "shared") is None
    assert shares.figure(500, 1000, "shared") == shares.figure(500, 1000, "own") == 0.5
    assert shares.figure(500, None, "own") is None
    assert shares.figure(None, 1000, "own") is in_bytes.figure(None, 1000, "own") is None
    assert shares.figure(1, 0, "own") == 1.0
    assert shares.figure(0, 0, "own") is None  # of what is not there


def test_bytes_at() -> None:
    assert Thresholds(1000).bytes_at(HIGH, None) == 1000
    assert Thresholds.fractions().bytes_at(HIGH, 1000) == 850
    assert Thresholds.fractions().bytes_at(HIGH, None) is None
