"""A monitor that says what a test tells it, and a clock that moves when it waits."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any

from mempool.pressure import AsyncBatches, Batches, BatchSizer, Level, batches
from mempool.pressure.batches import start
from support import with_ctrl_c

Levels = Iterable[Level]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TickingSizer(BatchSizer):
    """A second goes by with each batch, so that the monitor is asked again before the next."""

    clock = Clock()

    def record(self, items: int, nbytes: int | None = None) -> None:
        super().record(items, nbytes)
        self.clock.now += 1.0


class FakeMonitor:
    """Levels come from a script, one for each look before a batch; a wait ends when the script says so, or takes its whole time."""

    def __init__(self, levels: Levels = (), *, relieves: bool = False, takes: float = 0.25) -> None:
        self._levels = iter(levels)
        self.level = Level.NORMAL
        self.clock = Clock()
        self.timeouts: list[float | None] = []
        self.waited_for: list[Level] = []
        self.relieves, self.takes = relieves, takes
        self.running = False
        self.polls = 0

    def poll(self) -> Level:
        self.polls += 1
        self.level = next(self._levels, self.level)
        return self.level

    def wait_for_relief(self, level: Level = Level.HIGH, timeout: float | None = None) -> bool:
        self.timeouts.append(timeout)
        self.waited_for.append(level)
        if self.relieves:
            self.clock.now += self.takes
            self.level = Level.ELEVATED
        else:
            self.clock.now += timeout or 0.0
        return self.relieves

    async def relief(self, level: Level = Level.HIGH, timeout: float | None = None) -> bool:
        return self.wait_for_relief(level, timeout)


def run(
    iterable: Iterable[Any],
    size: int | None = 10,
    monitor: Any = None,
    *,
    weigher: Callable[[Any], int] | None = None,
    max_wait: float = 0.0,
    cleanup: Callable[[Any], object] | None = None,
    **options: Any,
) -> Batches[Any]:
    monitor = FakeMonitor() if monitor is None else monitor
    clock = getattr(monitor, "clock", Clock())
    sizer = TickingSizer(size, **options)
    sizer.clock = clock
    made = start(iterable, sizer, monitor, weigher, max_wait, cleanup, clock)
    assert isinstance(made, Batches)
    return made


def run_async(
    iterable: AsyncIterable[Any],
    size: int | None = 10,
    monitor: Any = None,
    *,
    weigher: Callable[[Any], int] | None = None,
    max_wait: float = 0.0,
    cleanup: Callable[[Any], object] | None = None,
    **options: Any,
) -> AsyncBatches[Any]:
    monitor = FakeMonitor() if monitor is None else monitor
    clock = getattr(monitor, "clock", Clock())
    sizer = TickingSizer(size, **options)
    sizer.clock = clock
    made = start(iterable, sizer, monitor, weigher, max_wait, cleanup, clock)
    assert isinstance(made, AsyncBatches)
    return made


async def as_async(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


def flat(batches: Iterable[list[Any]]) -> list[Any]:
    return [item for batch in batches for item in batch]


def interrupted(step: int, produce: Callable[[], list[Any]]) -> tuple[list[Any], bool]:
    """Take all batches, with one Ctrl-C where Python lets one come: after a call, the one after `step` others; whether it came."""
    found: list[Any] = []

    def take_all() -> None:
        nonlocal found
        while True:
            try:
                found += produce()
            except KeyboardInterrupt:
                continue
            except (StopIteration, StopAsyncIteration):
                return

    came = with_ctrl_c(take_all, step, batches.__file__)
    return found, came
