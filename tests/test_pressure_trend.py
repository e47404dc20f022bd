"""Trend, forecast, and how often to look."""

import math
import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mempool.pressure import Forecast
from mempool.pressure.trend import Trend, next_interval


def trend_of(*samples: tuple[float, int]) -> Trend:
    trend = Trend()
    for now, used in samples:
        trend.add(now, used)
    return trend


@pytest.mark.parametrize("samples", [[], [(0, 5)], [(0, 5), (1, 5), (2, 5)], [(1, 5), (1, 50)]])
def test_no_trend(samples: list[tuple[float, int]]) -> None:
    trend = trend_of(*samples)
    assert trend.slope() == (0.0, 0.0)
    assert trend.seconds_until(100, 50, "x") is None


def test_a_steady_trend_is_sure() -> None:
    trend = trend_of(*((second, 10 * second) for second in range(8)))
    assert trend.slope() == (10.0, 1.0)
    assert trend.quick() == 10.0
    forecast = trend.seconds_until(170, 70, "memory")
    assert forecast == 10.0
    assert (forecast.confidence, forecast.rate, forecast.source) == (1.0, 10.0, "memory")


def test_few_readings_are_less_sure() -> None:
    assert trend_of((0, 0), (1, 10)).slope() == (10.0, pytest.approx(1 / 3))


def test_one_large_array_does_not_turn_it() -> None:
    points = [(second, 10 * second) for second in range(10)]
    points[5] = (5, 10**9)
    rate, confidence = trend_of(*points).slope()
    assert rate == pytest.approx(10, rel=0.5)
    assert 0.5 < confidence < 1


def test_falling_memory_reaches_no_limit() -> None:
    assert trend_of(*((second, 100 - second) for second in range(8))).seconds_until(200, 92, "x") is None


def test_what_is_beyond_the_limit_is_there_now() -> None:
    assert trend_of((0, 0), (1, 100)).seconds_until(50, 100, "x") == 0.0


def test_a_clock_that_goes_back_makes_earlier_readings_worthless() -> None:
    trend = trend_of((10, 5), (11, 50), (3, 60))
    assert trend.slope() == (0.0, 0.0)
    trend.add(4, 70)
    assert trend.slope()[0] == 10.0


@pytest.mark.parametrize("now", [1.0, 2.0**24, 1.7e9, 2.0**60])
def test_of_readings_of_one_moment_the_last_counts(now: float) -> None:
    trend = trend_of((now - 1024, 5), (now, 10), (now, 1029))
    assert trend.quick() == trend.slope()[0] == 1.0


@given(st.lists(st.tuples(st.floats(), st.integers(0, 2**60)), max_size=30))
def test_no_clock_makes_an_error(samples: list[tuple[float, int]]) -> None:
    trend = trend_of(*samples)
    trend.quick()
    trend.slope()


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 2**60)), max_size=30))
@example([(0.0, 2**59), (5e-324, 2**60), (1e-323, 2**58), (1.5e-323, 2**59 + 2**58)])  # slopes without end, up and down
def test_any_readings_give_a_finite_trend(samples: list[tuple[float, int]]) -> None:
    trend = trend_of(*samples)
    rate, confidence = trend.slope()
    assert not math.isnan(rate)
    assert 0.0 <= confidence <= 1.0
    found = trend.seconds_until(2**61, samples[-1][1] if samples else 0, "x")
    assert found is None or found >= 0


def test_a_forecast_is_a_float() -> None:
    forecast = Forecast(2.5, 0.5, 10.0, "memory")
    assert forecast + 1 == 3.5
    assert repr(forecast) == "Forecast(2.5, confidence=0.50, rate=10, source='memory')"
    assert pickle.loads(pickle.dumps(forecast)) == 2.5
    assert pickle.loads(pickle.dumps(forecast)).source == "memory"


@given(st.none() | st.floats(0, 1e9), st.floats(0, 10), st.booleans())
def test_an_interval_is_within_its_bounds(seconds: float | None, cost: float, raised: bool) -> None:
    interval = next_interval(seconds, cost, raised=raised)
    assert 0.01 <= interval <= (0.5 if raised else 5.0)
    assert interval <= next_interval(None, cost, raised=raised)


def test_the_nearer_the_next_threshold_the_oftener() -> None:
    assert next_interval(4.0, 1e-3, raised=False) == 1.0
    assert next_interval(0.4, 1e-3, raised=False) == pytest.approx(0.1)
    assert next_interval(0.0, 1e-3, raised=False) == pytest.approx(0.02)
    assert next_interval(0.0, 1e-6, raised=False) == 0.01
