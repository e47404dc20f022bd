"""Steady, spike, leak, thrashing: what each looks like, whatever the noise."""

import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mempool.accounting.patterns import Pattern, classify, robust_slope
from support import MIB

TIMES = range(60)


def noisy(values: list[float], seed: object) -> list[float]:
    """Always the same, whatever ran before."""
    noise = random.Random(repr(seed))
    return [value + noise.uniform(-0.2, 0.2) * MIB for value in values]


SERIES = {
    "level": ("steady", [50.0 * MIB for _ in TIMES]),
    "step up": ("steady", [50.0 * MIB if at < 20 else 90.0 * MIB for at in TIMES]),
    "step down": ("steady", [90.0 * MIB if at < 20 else 50.0 * MIB for at in TIMES]),
    "warm-up": ("steady", [50 * MIB + 40 * MIB * min(at, 10) / 10 for at in TIMES]),
    "shrinks": ("steady", [(90 - at) * 1.0 * MIB for at in TIMES]),
    "spike": ("spike", [(90.0 if 20 <= at < 25 else 50.0) * MIB for at in TIMES]),
    "dip": ("steady", [(20.0 if 20 <= at < 25 else 50.0) * MIB for at in TIMES]),
    "ramp": ("leak", [(50 + at) * 1.0 * MIB for at in TIMES]),
    "slow ramp": ("leak", [(50 + at / 10) * 1.0 * MIB for at in TIMES]),
    "sawtooth that rises": ("leak", [(50 + at // 10 * 8 + at % 10 * 3) * 1.0 * MIB for at in TIMES]),
    "sawtooth": ("thrashing", [(50 + at % 10 * 3) * 1.0 * MIB for at in TIMES]),
    "up and down": ("thrashing", [(50 if at % 2 else 90) * 1.0 * MIB for at in TIMES]),
}


@pytest.mark.parametrize("name", SERIES)
def test_each_looks_like_itself(name: str) -> None:
    expected, values = SERIES[name]
    for seed in range(50):
        found = classify(TIMES, noisy(values, (name, seed)), noise=MIB)
        assert found == expected, found.evidence
        assert any(digit.isdigit() for digit in found.evidence)


@pytest.mark.parametrize("height", [2, 10, 400])
def test_a_step_is_steady_wherever_it_is(height: int) -> None:
    """Also from one third of the readings to the next, where the noise of all three may grow alike."""
    for at in range(1, 60):
        for seed in range(5):
            levels = [(50.0 + height * (time >= at)) * MIB for time in TIMES]
            found = classify(TIMES, noisy(levels, (at, seed)), noise=MIB)
            assert found == "steady", (at, seed, found.evidence)


@pytest.mark.parametrize("count", [6, 9, 20, 100])
def test_even_growth_is_a_leak_however_many_readings_there_are(count: int) -> None:
    for seed in range(5):
        values = noisy([at * 10.0 * MIB for at in range(count)], seed)
        assert classify(range(count), values, noise=MIB) == "leak"


@given(st.lists(st.floats(0, MIB), max_size=80))
def test_noise_is_steady(values: list[float]) -> None:
    assert classify(range(len(values)), values, noise=MIB + 1) == "steady"


@given(st.lists(st.integers(0, 1 << 40), max_size=60), st.integers(0, 1 << 30))
def test_anything_gets_one_of_four_names(values: list[int], noise: int) -> None:
    found = classify(range(len(values)), values, noise=noise)
    assert found in {"steady", "spike", "leak", "thrashing"}
    assert found.evidence


@given(st.floats(-1e6, 1e6), st.integers(5, 60), st.data())
def test_a_quarter_of_outliers_does_not_move_the_slope(slope: float, count: int, data: st.DataObject) -> None:
    values = [slope * at for at in range(count)]
    spoiled = data.draw(st.lists(st.integers(0, count - 1), max_size=count // 8, unique=True))
    for at in spoiled:
        values[at] = data.draw(st.floats(-1e12, 1e12))
    assert robust_slope(range(count), values) == pytest.approx(slope, rel=1e-6, abs=1e-6)


def test_slopes_of_next_to_nothing() -> None:
    assert robust_slope([], []) == robust_slope([1], [5]) == robust_slope([1, 1], [5, 9]) == 0.0


def test_thousands_of_readings_take_no_time_at_all() -> None:
    assert robust_slope(range(20_000), range(20_000)) == 1.0


def test_growth_is_told_whatever_the_pace_of_the_readings() -> None:
    """One after each piece of work, of which one took long."""
    times = [float(at) if at < 3 else at + 1000.0 for at in range(12)]
    assert classify(times, [at * MIB for at in range(12)], noise=MIB) == "leak"


def test_a_pattern_is_its_word_and_survives_pickling() -> None:
    found = pickle.loads(pickle.dumps(Pattern("leak", "why")))
    assert (found, found.evidence, {found: 1}["leak"]) == ("leak", "why", 1)
