"""One source as a monitor sees it: its last reading or why there is none, its latch, its trend."""

import errno
import logging
from dataclasses import dataclass

from mempool.pressure.levels import Level, Thresholds
from mempool.pressure.machine import Latch, Verdict, judge
from mempool.pressure.sources.base import EventSource, Reading, Source, checked_scope
from mempool.pressure.sources.custom import CallableSource
from mempool.pressure.trend import Forecast, Trend
from mempool.units import shown

__all__ = ["SourceStatus", "Watched", "as_source"]

_MOST = 1 << 64
_WANT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

log = logging.getLogger("mempool.pressure")


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """What a monitor watches, or why it does not.

    Attributes
    ----------
    name : str
        Of the source.
    watched : bool
        Whether its last reading took part in the level.
    why : str
        Why not; empty if it does. Where the program is out of descriptors or memory, `used` and `level` are those of the reading
        before.
    events : str
        ``"watched"``, or why the source cannot wake the monitor.
    used, limit : int or None
        Bytes, as last read.
    level : Level
        That this source alone stands for.
    reads, errors : int
        How often it was read, and how often that failed.
    """

    name: str
    watched: bool
    why: str
    events: str
    used: int | None
    limit: int | None
    level: Level
    reads: int
    errors: int


def as_source(given: object) -> Source:
    """Return a source as it is, and a callable as one; `TypeError` for anything else, `ValueError` for a scope that is none."""
    if isinstance(given, type):
        raise TypeError(f"a pressure source must be an instance, not the class {given.__qualname__}")
    if isinstance(given, Source):
        checked_scope(given.scope)
        return given
    if callable(given):
        return CallableSource(given)
    raise TypeError(
        f"a pressure source must have name, scope and read(), or return (used, limit) when called, not {given!r}"
    )


def checked(reading: object) -> Reading:
    """Refuse what is no reading, and figures that are no bytes."""
    if not isinstance(reading, Reading):
        raise ValueError(f"a source must return a Reading, not {reading!r}")
    figures: tuple[object, ...] = (reading.used, reading.limit)
    for figure in figures:
        if figure is None:
            continue
        if isinstance(figure, bool) or not isinstance(figure, int):
            raise ValueError(f"a reading must be bytes or None, not {figure!r}")
        if not 0 <= figure < _MOST:
            raise ValueError(f"a reading must be what memory can have of bytes, not {shown(figure)}")
    return reading


def text_of(error: BaseException) -> str:
    """Return what an error says; it may be broken itself."""
    try:
        return str(error)
    except Exception as broken:
        return f"no text ({type(broken).__name__})"


def _is_want(error: BaseException) -> bool:
    """Whether it says that the program is out of descriptors or memory, and nothing of the source."""
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return True
    return isinstance(error, OSError) and error.errno in _WANT


class Watched:
    """One source, and what is known of it. Who reads, judges or shows it holds its monitor's lock, except in `read`."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name = source.name
        self.latch, self.trend = Latch(), Trend()
        self.reading: Reading | None = None
        self.why = "not read yet"
        self.events = "not started" if isinstance(source, EventSource) else "has none"
        self.figure: float | None = None
        self.reads = self.errors = 0
        self._odd = self._wanting = False

    def read(self) -> Reading | Exception:
        """Ask it, changing nothing that others read; the error if it failed."""
        try:
            return checked(self.source.read())
        except Exception as error:
            self._log(error)
            return error

    def take(self, now: float, answer: Reading | Exception) -> None:
        """Take in what `read` gave; a failure is kept as the reason why it is not watched.

        Where the program is out of descriptors or memory, the last reading stands: that nothing can be read is no relief.
        """
        self.reads += 1
        if isinstance(answer, Exception):
            self.errors += 1
            self.why = f"{type(answer).__name__}: {text_of(answer)}"
            if self.reading is None or not _is_want(answer):
                self.reading, self.figure = None, None
                self.trend.clear()
            return
        self.reading, self.why, self._wanting = answer, "", False
        if answer.used is not None:
            self.trend.add(now, answer.used)

    def _log(self, error: Exception) -> None:
        """Log what went away while it was watched, or breaks a source's contract."""
        if _is_want(error):
            if not self._wanting:
                self._wanting = True
                log.warning(
                    "pressure source %s cannot be read now, and stays at its level: %s", self.name, text_of(error)
                )
        elif not isinstance(error, OSError | ValueError) and not self._odd:
            self._odd = True
            log.error("pressure source %s raised; later errors of it are only counted", self.name, exc_info=error)
        elif self.reading is not None:
            log.warning(
                "pressure source %s can no longer be read: %s", self.name, f"{type(error).__name__}: {text_of(error)}"
            )

    def verdict(self, thresholds: Thresholds, hysteresis: float) -> Verdict:
        """Judge the last reading; what could not be read says nothing."""
        reading = self.reading
        if reading is None:
            return judge(thresholds, hysteresis, None, None)
        self.figure = thresholds.figure(reading.used, reading.limit, self.source.scope)
        if self.figure is None and reading.level is None:
            self.why = self._unjudged(thresholds)
        return judge(thresholds, hysteresis, self.figure, reading.level)

    def _unjudged(self, thresholds: Thresholds) -> str:
        assert self.reading is not None
        if thresholds.absolute and self.source.scope == "shared":
            return "thresholds in bytes judge what this program took alone"
        if self.reading.used is None:
            return "tells no figures"
        return "no limit" if self.reading.limit is None else "nothing of nothing is used"

    def rank(self, thresholds: Thresholds) -> tuple[Level, float]:
        """Return what is compared to find the source that decides."""
        return self.latch.level, -1.0 if self.figure is None else self.figure / thresholds.points[2]

    def limit(self, thresholds: Thresholds) -> float | None:
        """Return the bytes at which all is over: the source's limit, or the highest threshold if that comes first."""
        assert self.reading is not None
        limits = [] if self.reading.limit is None else [float(self.reading.limit)]
        if thresholds.absolute and self.source.scope == "own":
            limits.append(thresholds.points[2])
        return min(limits, default=None)

    def forecast(self, thresholds: Thresholds) -> Forecast | None:
        """Return seconds to the limit, if it grows towards one."""
        if self.reading is None or self.reading.used is None:
            return None
        limit = self.limit(thresholds)
        return None if limit is None else self.trend.seconds_until(limit, self.reading.used, self.name)

    def headroom(self, thresholds: Thresholds) -> float | None:
        """Return bytes to the next threshold, above the last one to the limit; None where none binds."""
        reading = self.reading
        if reading is None or reading.used is None or self.figure is None:
            return None
        goal = self.limit(thresholds)
        if self.latch.level < Level.CRITICAL:
            goal = thresholds.bytes_at(Level(self.latch.level + 1), reading.limit)
        return None if goal is None else max(0.0, goal - reading.used)

    def soon(self, thresholds: Thresholds) -> float | None:
        """Return seconds to the next threshold, as the last readings have it; None if it does not grow."""
        rate = max(self.trend.quick(), 0.0)
        if not rate:
            return None
        room = self.headroom(thresholds)
        return None if room is None else room / rate

    def status(self) -> SourceStatus:
        """Return what is known, as one record."""
        used, limit = (None, None) if self.reading is None else (self.reading.used, self.reading.limit)
        return SourceStatus(
            self.name, not self.why, self.why, self.events, used, limit, self.latch.level, self.reads, self.errors
        )
