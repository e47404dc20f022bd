"""What the tests of pressure monitors share: a clock that stands still, memory that is what a test says, monitors over both."""

from collections.abc import Callable
from typing import Any, Literal

from mempool.pressure import Level, PressureEvent, PressureMonitor, Thresholds
from mempool.pressure.sources import Reading

NORMAL, ELEVATED, HIGH, CRITICAL = Level
BYTES = Thresholds(main=1000, critical=1200)  # ELEVATED at 800


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Memory:
    """A source that says what the test wrote into it; an exception is raised."""

    scope: Literal["own", "shared"] = "own"

    def __init__(self, used: int | None = 0, limit: int | None = None, name: str = "memory") -> None:
        self.used, self.limit, self.name = used, limit, name
        self.level: Level | None = None
        self.error: BaseException | None = None
        self.reads = 0

    def read(self) -> Reading:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return Reading(self.used, self.limit, self.level)


class Bench:
    """A monitor over memory and time of its own."""

    def __init__(self, thresholds: Thresholds = BYTES, *more: Any, **options: Any) -> None:
        self.clock, self.memory = Clock(), Memory()
        self.events: list[PressureEvent] = []
        options = {"clock": self.clock, "min_dwell": 1.0} | options
        self.monitor = PressureMonitor(thresholds, sources=[self.memory, *more], **options)

    def at(self, used: int, seconds: float = 0.0) -> Level:
        """So much is used, so many seconds later."""
        self.memory.used = used
        self.clock.now += seconds
        return self.monitor.poll()

    def note(self, event: PressureEvent) -> None:
        self.events.append(event)

    def levels(self) -> list[tuple[Level, Level]]:
        """What was told: previous and level of each event."""
        return [(event.previous, event.level) for event in self.events]


def logged(caplog: Any) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def frees(memory: Memory, nbytes: int) -> Callable[[PressureEvent], int]:
    """A callback that makes so much room."""

    def free(_: PressureEvent) -> int:
        assert memory.used is not None
        memory.used -= nbytes
        return nbytes

    return free
