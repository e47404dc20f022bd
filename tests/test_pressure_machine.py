"""The state machine against plain models, and the cases that they were written for."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from mempool.pressure import Level, Thresholds
from mempool.pressure.machine import Latch, Machine, Verdict, judge
from monitor_kit import BYTES, CRITICAL, ELEVATED, HIGH, NORMAL

figures = st.one_of(
    st.integers(0, 1500), st.sampled_from([0, 760, 761, 799, 800, 950, 951, 999, 1000, 1140, 1141, 1199, 1200])
)
pauses = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 60.0, -0.25, -60.0])
steps = st.lists(st.tuples(figures, pauses), min_size=1, max_size=40)


@dataclass
class Plain:
    """What the contract says of one source, in as many words."""

    level: int = 0
    since: float = 0.0

    def step(self, used: int, now: float, dwell: float) -> int:
        starts, ends = (0, 800, 1000, 1200), (0, 760, 950, 1140)
        if now < self.since:
            self.since = now  # the clock went back: the dwell begins anew
        level = self.level
        while level < 3 and used >= starts[level + 1]:
            level += 1
        if level == self.level and now - self.since >= dwell:
            while level > 0 and used <= ends[level]:
                level -= 1
        if level != self.level:
            self.level, self.since = level, now
        return self.level


@given(steps, st.sampled_from([0.0, 1.0]))
def test_one_source_is_as_the_plain_model(taken: list[tuple[int, float]], dwell: float) -> None:
    plain, latch, machine, now = Plain(), Latch(), Machine(), 100.0
    for used, pause in taken:
        now += pause
        verdict = judge(BYTES, 0.05, used, None)
        level = machine.step([(latch, verdict)], now, dwell).level
        assert level == latch.level == plain.step(used, now, dwell)


@given(st.lists(st.tuples(figures, figures, pauses), min_size=1, max_size=40), st.sampled_from([0.0, 1.0]))
def test_two_sources_are_as_the_higher_one(taken: list[tuple[int, int, float]], dwell: float) -> None:
    """The whole is as high as the highest of them, or held by its own dwell; never below."""
    plains, latches, machine = (Plain(), Plain()), (Latch(), Latch()), Machine()
    now, level, since = 100.0, 0, 0.0
    for first, second, pause in taken:
        now += pause
        highest = max(plain.step(used, now, dwell) for plain, used in zip(plains, (first, second), strict=True))
        verdicts = [judge(BYTES, 0.05, used, None) for used in (first, second)]
        decision = machine.step(zip(latches, verdicts, strict=True), now, dwell)
        since = min(since, now)
        assert decision.previous == level
        if highest > level or (highest < level and now - since >= dwell):
            level, since = highest, now
        assert decision.level == level
        assert decision.entered == max(verdict.entered for verdict in verdicts)
        assert decision.entered <= decision.settled <= decision.level


@given(steps)
def test_a_level_lasts_its_dwell(taken: list[tuple[int, float]]) -> None:
    latch, machine, now, entered_at = Latch(), Machine(), 100.0, 0.0
    for used, pause in taken:
        now += abs(pause)
        decision = machine.step([(latch, judge(BYTES, 0.05, used, None))], now, 1.0)
        if decision.level < decision.previous:
            assert now - entered_at >= 1.0
        if decision.level != decision.previous:
            entered_at = now


@given(steps, steps)
def test_a_clock_that_jumps_holds_no_level_longer_than_a_dwell(
    before: list[tuple[int, float]], jumps: list[tuple[int, float]]
) -> None:
    latch, machine, now = Latch(), Machine(), 0.0
    for used, pause in before + jumps:
        now += pause * 1e6
        machine.step([(latch, judge(BYTES, 0.05, used, None))], now, 1.0)
    machine.step([(latch, judge(BYTES, 0.05, 0, None))], now, 1.0)
    machine.step([(latch, judge(BYTES, 0.05, 0, None))], now + 1.0, 1.0)
    assert machine.step([(latch, judge(BYTES, 0.05, 0, None))], now + 2.0, 1.0).level == NORMAL


def test_a_level_that_a_source_tells() -> None:
    assert judge(BYTES, 0.05, None, HIGH) == Verdict(HIGH, HIGH)
    assert judge(BYTES, 0.05, 0, ELEVATED) == Verdict(ELEVATED, ELEVATED)
    assert judge(BYTES, 0.05, 5000, ELEVATED) == Verdict(CRITICAL, CRITICAL)
    assert judge(BYTES, 0.05, None, None) == Verdict(NORMAL, NORMAL)


def test_a_figure_between_two_thresholds_holds_no_level_of_another_source() -> None:
    """900 is below where HIGH begins, and above where it ends at a hysteresis of a fifth."""
    latches, machine = (Latch(), Latch()), Machine()

    def step(first: int, second: int, now: float) -> Level:
        verdicts = [judge(BYTES, 0.2, used, None) for used in (first, second)]
        return machine.step(zip(latches, verdicts, strict=True), now, 1.0).level

    assert step(1100, 900, 0.0) == HIGH
    assert step(100, 900, 5.0) == ELEVATED


def test_without_hysteresis_a_level_ends_where_it_begins() -> None:
    latch = Latch()
    shares = Thresholds.fractions()
    for number, (figure, level) in enumerate([(0.85, HIGH), (0.8499, ELEVATED), (0.85, HIGH), (0.5, NORMAL)]):
        assert latch.step(judge(shares, 0.0, figure, None), float(number), 0.0) == level
