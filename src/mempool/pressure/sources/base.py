"""What a source is."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from mempool.pressure.levels import Level

__all__ = ["EventSource", "Reading", "Source"]


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


@runtime_checkable
class Source(Protocol):
    """Anything that can be read. `read` raises `OSError` or `ValueError` for what is not there or makes no sense; the monitor goes on with
    the other sources and shows the error in `PressureMonitor.sources`."""

    @property
    def name(self) -> str: ...

    @property
    def scope(self) -> Literal["own", "shared"]:
        """Own: what this program took (process, account, custom), judged by absolute thresholds too. Shared: by fractions alone."""

    def read(self) -> Reading: ...


@runtime_checkable
class EventSource(Source, Protocol):
    """A source that can wake the monitor.

    The monitor opens it when it starts and after a fork, polls its descriptor, tells it of events, and closes it when it stops. `open` raises
    `OSError` where there is nothing to watch; then the source is read at each poll like any other."""

    def open(self) -> None: ...

    def close(self) -> None:
        """Idempotent."""

    def fileno(self) -> int:
        """The descriptor to poll. It may change after `handle`, -1: none just now."""

    @property
    def poll_events(self) -> int:
        """As for `select.poll`: POLLPRI, POLLIN..."""

    def handle(self, events: int) -> bool:
        """Take in what the descriptor reported. True: memory is short, poll now. Raises `OSError` if the watch is dead."""
