"""A level that is simulated: a drill for callbacks and for tests."""

from typing import TYPE_CHECKING, Self

from mempool.pressure.levels import Level

if TYPE_CHECKING:
    from mempool.pressure.monitor import PressureMonitor

__all__ = ["Simulation"]


class Simulation:
    """A level that is simulated, until `end` or the end of a `with`."""

    def __init__(self, monitor: "PressureMonitor", level: Level) -> None:
        self.level = level
        self._monitor = monitor

    def end(self) -> None:
        """Let the level be that of the sources, or of the simulations that are left; idempotent."""
        self._monitor._simulate(ended=self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
