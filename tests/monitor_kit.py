"""What the tests of pressure monitors share: a clock that stands still, memory that is what a test says, monitors over both."""

import threading
from collections.abc import Callable
from typing import Any, Literal

from mempool.pressure import Level, PressureEvent, PressureMonitor, Thresholds
from mempool.pressure.sources import Reading
from support import DEADLINE

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


def records(caplog: Any) -> list[Any]:
    """What this package logged; what earlier tests left may be collected now, and other loggers complain of it."""
    return [record for record in caplog.records if record.name.startswith("mempool")]


def logged(caplog: Any) -> list[str]:
    return [record.getMessage() for record in records(caplog)]


def quiet(*names: str) -> None:
    """Wait for the end of threads of these names: they would act on what the next test makes."""
    for thread in threading.enumerate():
        if thread.name in names:
            thread.join(DEADLINE)
            assert not thread.is_alive(), f"a thread {thread.name!r} never ended"


def frees(memory: Memory, nbytes: int) -> Callable[[PressureEvent], int]:
    """A callback that makes so much room."""

    def free(_: PressureEvent) -> int:
        assert memory.used is not None
        memory.used -= nbytes
        return nbytes

    return free
