"""What a monitor reports of itself."""

from dataclasses import dataclass

from mempool.pressure.levels import Level

__all__ = ["CallbackStats", "MonitorStats"]


@dataclass(frozen=True, slots=True)
class CallbackStats:
    """One registration.

    Attributes
    ----------
    name : str
        Of the function.
    level : Level or None
        From which level on it is told; None: of relief.
    calls, errors, freed : int
        How often it ran, how often that raised, and the bytes that it said it freed.
    seconds : float
        That its calls took.
    """

    name: str
    level: Level | None
    calls: int
    errors: int
    freed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MonitorStats:
    """A monitor, at one moment.

    Attributes
    ----------
    level : Level
        As `PressureMonitor.level`.
    running : bool
        Whether it polls on its own.
    interval : float
        Seconds to the next poll, if it does.
    polls, events : int
        Rounds of readings, and how many of them an event began.
    rises, reliefs, reminders : int
        How often callbacks were told of each.
    calls, errors, freed : int
        Sums over all callbacks, those that were cancelled too; `freed` in bytes.
    waiting : int
        Threads and tasks that wait for relief.
    callbacks : tuple of CallbackStats
        In the order in which they run.
    """

    level: Level
    running: bool
    interval: float
    polls: int
    events: int
    rises: int
    reliefs: int
    reminders: int
    calls: int
    errors: int
    freed: int
    waiting: int
    callbacks: tuple[CallbackStats, ...]
