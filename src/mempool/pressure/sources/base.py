"""What a source is."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from mempool.pressure.levels import Level

__all__ = ["EventSource", "Reading", "Scope", "Source", "checked_scope"]

Scope = Literal["own", "shared"]


def checked_scope(scope: object) -> Scope:
    """Refuse what is no scope."""
    if scope == "own" or scope == "shared":
        return scope
    raise ValueError(f"scope must be 'own' or 'shared', not {scope!r}")


@dataclass(frozen=True, slots=True)
class Reading:
    """What one source said at one moment.

    Attributes
    ----------
    used, limit : int or None
        Bytes. A limit of None is not limited; `used` of None is for a source that tells a level alone.
    level : Level or None
        A level that the source tells by itself, whatever the figures: an event of the kernel, say.
    """

    used: int | None = None
    limit: int | None = None
    level: Level | None = None

    def __post_init__(self) -> None:
        """Take a level by its number too; `TypeError` or `ValueError` for what is none."""
        level: object = self.level
        if level is None or isinstance(level, Level):
            return
        if isinstance(level, bool) or not isinstance(level, int):
            raise TypeError(f"level must be a Level or None, not {level!r}")
        object.__setattr__(self, "level", Level(level))


@runtime_checkable
class Source(Protocol):
    """Anything that can be read."""

    @property
    def name(self) -> str:
        """What it is called in events, in `PressureMonitor.sources` and in errors."""

    @property
    def scope(self) -> Scope:
        """Which thresholds judge it.

        ``"own"``: what this program took (process, account, custom), judged by absolute thresholds too. ``"shared"``: by fractions
        alone.
        """

    def read(self) -> Reading:
        """Read afresh.

        Raises
        ------
        OSError, ValueError
            For what is not there, or makes no sense. A monitor goes on with its other sources and shows the error.
        """


@runtime_checkable
class EventSource(Source, Protocol):
    """A source that can wake a monitor.

    The monitor opens it when it starts and after a fork, polls its descriptor, tells it of events, and closes it when it stops.
    What cannot be opened is read at each poll like any other source.
    """

    def open(self) -> None:
        """Begin to watch, anew if it watched already; `OSError` where there is nothing to watch."""

    def close(self) -> None:
        """Stop watching; idempotent."""

    def fileno(self) -> int:
        """Return the descriptor to poll; -1: none just now. It may change with every `handle`."""

    @property
    def poll_events(self) -> int:
        """As for `select.poll`: ``POLLPRI``, ``POLLIN``. asyncio's ``add_reader`` does not see the former."""

    def handle(self, events: int) -> bool:
        """Take in what the descriptor reported. True: memory is short, read now. `OSError`: the watch is dead, call `close`.

        It closes no descriptor that its caller may have in an epoll: if a child of `fork` has a copy of it, the kernel goes on to
        report it, and nothing can take it out any more.
        """
