"""A monitor and a plain model of it, driven together: levels, what callbacks are told, reminders, simulation, suppression."""

from contextlib import ExitStack

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mempool.pressure import Level, PressureEvent
from mempool.pressure.monitor import Simulation
from monitor_kit import Bench

STARTS, ENDS = (0, 800, 1000, 1200), (0, 760, 950, 1140)
REMINDER = 5.0

used_bytes = st.sampled_from([0, 500, 760, 761, 800, 950, 951, 1000, 1140, 1141, 1200, 5000])
levels = st.sampled_from(list(Level))


class Model(RuleBasedStateMachine):
    """Callbacks are to know of each rise, each fall, and of what lasts.

    What they know is `told`. A level that they were told of and that was left since, if only while they were suppressed, is not
    `answered` any more: to enter it again is a new rise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(reminder=REMINDER)
        self.stack = ExitStack()
        self.real, self.since = 0, 100.0
        self.simulated = self.told = self.muted = 0
        self.simulations: list[Simulation] = []
        self.last_entered = self.answered = 0
        self.told_at, self.gap = 0.0, REMINDER
        self.expected: list[tuple[str, int, int]] = []
        self.seen: list[tuple[str, int, int]] = []
        for level in (Level.ELEVATED, Level.HIGH, Level.CRITICAL):
            self.bench.monitor.on(level, lambda event, level=level: self.note(level.name, event))  # type: ignore[misc]
        self.bench.monitor.on_relief(lambda event: self.note("relief", event))

    def note(self, name: str, event: PressureEvent) -> None:
        self.seen.append((name, event.previous, event.level))

    @property
    def level(self) -> int:
        return max(self.real, self.simulated)

    def read(self) -> None:
        used = self.bench.memory.used or 0
        before = self.real
        while self.real < 3 and used >= STARTS[self.real + 1]:
            self.real += 1
        if self.real == before and self.bench.clock.now - self.since >= 1.0:
            while self.real and used <= ENDS[self.real]:
                self.real -= 1
        if self.real != before:
            self.since = self.bench.clock.now

    def tell(self) -> None:
        self.answered = min(self.answered, self.level)
        if self.muted:
            return
        now, used = self.bench.clock.now, self.bench.memory.used or 0
        if self.entered > self.answered:
            self.announce("rise", self.told if self.entered > self.told else self.answered, self.entered)
            self.answered = self.entered
            self.gap = REMINDER
        elif self.level < self.told:
            self.announce("relief", self.told, self.level)
            self.gap = REMINDER
        elif self.level and now - self.told_at >= self.gap and (used > ENDS[self.real] or self.simulated == self.level):
            self.announce("reminder", self.told, self.level)
            self.answered = self.level
            self.gap = min(2 * self.gap, 300.0)

    def announce(self, kind: str, previous: int, now: int) -> None:
        if kind == "relief":
            self.expected.append(("relief", previous, now))
        else:
            for level in (Level.ELEVATED, Level.HIGH, Level.CRITICAL):
                if level <= now:
                    self.expected.append((level.name, previous, now))
        self.told = self.level
        self.told_at = self.bench.clock.now

    @property
    def entered(self) -> int:
        """What the last reading enters; a level in the band between its thresholds is told once it is entered again."""
        return max(self.simulated, self.last_entered)

    @rule(used=used_bytes, seconds=st.sampled_from([0.0, 0.5, 1.0, 7.0, 400.0]))
    def poll(self, used: int, seconds: float) -> None:
        level = self.bench.at(used, seconds)
        self.read()
        self.last_entered = sum(used >= start for start in STARTS[1:])
        self.tell()
        assert level == self.level

    @rule(level=levels)
    def simulate(self, level: Level) -> None:
        simulation = self.bench.monitor.simulate(level)
        self.simulations = [*self.simulations, simulation] if level else []
        self.simulated = max((one.level for one in self.simulations), default=0)
        self.tell()

    @rule(index=st.integers(0, 3), again=st.booleans())
    def end(self, index: int, again: bool) -> None:
        if index < len(self.simulations):
            ended = self.simulations.pop(index)
            for _ in range(1 + again):
                ended.end()
            self.simulated = max((one.level for one in self.simulations), default=0)
            self.tell()

    @rule()
    def suppress(self) -> None:
        self.stack.enter_context(self.bench.monitor.suppressed())
        self.muted += 1

    @rule()
    def allow(self) -> None:
        self.stack.close()
        self.muted = 0

    @invariant()
    def same(self) -> None:
        assert self.bench.monitor.level == self.level
        assert self.seen == self.expected
        assert self.bench.monitor.stats().calls == len(self.seen)

    def teardown(self) -> None:
        self.stack.close()


TestMonitor = Model.TestCase
TestMonitor.settings = settings(max_examples=40, stateful_step_count=30)
