"""`PressureMonitor`: sources are read, levels decided, callbacks run.

    sources --read--> watched --State.update--> level --Callbacks--> bytes freed
       |                                          |
       +-- events: poll now                       +-- Waiters: relief

One round of reading runs at a time (`_reading`), and one round of callbacks (`_telling`), which no lock covers: a thread that
polls while another one's callbacks run decides the level and leaves what is to be told to that one. A thread that is inside a
round already (a callback or a source that polls) gets the level as it is. Rejected: one lock around it all. A callback that waits
for a thread that polls would stop both.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Self, cast, overload

from mempool.pressure.callbacks import Callback, Callbacks, Registration
from mempool.pressure.levels import Level, PressureEvent, Thresholds
from mempool.pressure.options import Options, clock_of, positive
from mempool.pressure.reclaim import Item, Shrinkable, Shrinker, Trimmable
from mempool.pressure.records import CallbackStats, MonitorStats
from mempool.pressure.regrowth import Regrowth, asking
from mempool.pressure.running import LoopRunner, ThreadRunner, watch_forks
from mempool.pressure.simulation import Simulation
from mempool.pressure.sources import default_sources
from mempool.pressure.state import Kind, State
from mempool.pressure.trend import IN_A_HURRY, Forecast, next_interval
from mempool.pressure.waiting import TaskWaiter, ThreadWaiter, Waiters
from mempool.pressure.watching import SourceStatus, Watched, as_source
from mempool.units import parse_duration

__all__ = ["PressureMonitor", "Simulation"]

log = logging.getLogger("mempool.pressure")

_LONGEST_NAP = 5.0  # of a waiter that will be woken: a loop that runs the monitor may be closed without a word
_MOST_ROUNDS = 8  # of callbacks in one poll; callbacks that simulate levels could go on for ever


def _level(value: object, lowest: Level = Level.NORMAL) -> Level:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"level must be a Level, not {value!r}")
    level = Level(value)
    if level < lowest:
        raise ValueError(f"level must be {lowest.name} or higher, not {level.name}")
    return level


class PressureMonitor(Options):
    """Watches how near memory is to its limits, and calls for room before it is reached.

    Parameters
    ----------
    thresholds : Thresholds, optional
        Where levels begin. None: the settings ``threshold_mb`` and ``critical_threshold_mb`` if they are set, as they are at each
        poll, else ``Thresholds.fractions()``.
    sources : iterable, optional
        What to watch: sources of `mempool.pressure.sources`, or callables that return ``(used, limit)`` in bytes. None: all that
        there is.
    interval : float or str, optional
        Seconds between the polls of a started monitor. None: as often as memory grows towards the next threshold, and at rest so
        seldom that a poll costs less than a thousandth of a core.
    clock : callable, optional
        Returns seconds; `time.monotonic` if not given. Real waiting is in real time all the same.
    hysteresis : float
        A level is left at its threshold x (1 - hysteresis).
    min_dwell : float or str
        Seconds that a level lasts at least.
    reclaim : iterable or callable
        What is shrunk first, as for `Shrinker`: pools, slabs, caches, or one of these. Or a callback that makes room by itself.
    reminder : float or str
        Callbacks are told again after so many seconds in which a level lasted, then after twice as many, up to five minutes.

    Examples
    --------
    >>> from mempool.pressure import Level, PressureMonitor, Thresholds
    >>> memory = [10]
    >>> monitor = PressureMonitor(Thresholds(main=100, critical=120), sources=[lambda: (memory[0], 200)])
    >>> @monitor.on(Level.HIGH)
    ... def make_room(event):
    ...     print(event.level.name, event.used)
    >>> monitor.poll()
    <Level.NORMAL: 0>
    >>> memory[0] = 110
    >>> monitor.poll()
    HIGH 110
    <Level.HIGH: 2>
    """

    _runner: ThreadRunner | LoopRunner | None = None

    def __init__(
        self,
        thresholds: Thresholds | None = None,
        *,
        sources: Iterable[object] | None = None,
        interval: float | str | None = None,
        clock: Callable[[], float] | None = None,
        hysteresis: float = 0.05,
        min_dwell: float | str = 1.0,
        reclaim: Iterable[Item] | Trimmable | Shrinkable | Callback = (),
        reminder: float | str = 5.0,
    ) -> None:
        super().__init__(thresholds, interval, hysteresis, min_dwell)
        self._clock = clock_of(clock)
        self._watched = tuple(Watched(as_source(one)) for one in (default_sources() if sources is None else sources))
        self._callbacks, self._waiters, self._regrowth = Callbacks(), Waiters(), Regrowth(self)
        self._state = State(positive(reminder, "reminder"))
        self._locks()
        self._muted = self._callbacks.muted
        self._simulations: set[Simulation] = set()
        self._lost_thread = self._kept = False
        self._polls = self._polls_before = self._events = self._holders = 0
        self._cost, self._polled_at = 0.0, float("-inf")
        self._good, self._complaint = self.thresholds, ""
        self._ahead = next_interval(None, 0.0, raised=False)
        self._register_reclaim(reclaim)
        watch_forks(self)

    def _locks(self) -> None:
        self._reading, self._lock, self._switching = threading.RLock(), threading.RLock(), threading.RLock()
        self._inside: set[int] = set()
        self._telling, self._more = 0, False  # the thread that runs callbacks; 0: none

    def _register_reclaim(self, reclaim: Iterable[Item] | Trimmable | Shrinkable | Callback) -> None:
        if callable(reclaim):
            make_room: Callback = reclaim
        else:
            alone = hasattr(reclaim, "shrink") or hasattr(
                reclaim, "trim"
            )  # a cache is a container too, and may be empty
            items = (cast(Item, reclaim),) if alone else tuple(cast(Iterable[Item], reclaim))
            if not items:
                return
            make_room = Shrinker(items)
        self._callbacks.add(make_room, Level.ELEVATED, 0, weak=False, first=True)  # idle memory costs nobody anything

    # ---- callbacks ----

    @overload
    def on(self, level: Level, callback: Callback, *, priority: int = 0, weak: bool = True) -> Registration: ...
    @overload
    def on(
        self, level: Level, callback: None = None, *, priority: int = 0, weak: bool = True
    ) -> Callable[[Callback], Registration]: ...
    def on(
        self, level: Level, callback: Callback | None = None, *, priority: int = 0, weak: bool = True
    ) -> Registration | Callable[[Callback], Registration]:
        """Call `callback(event)` when the level rises to `level` or past it, and at reminders while that lasts. Also a decorator.

        Parameters
        ----------
        level : Level
            ELEVATED, HIGH or CRITICAL.
        callback : callable
            Takes a `PressureEvent`, and returns the bytes that it freed, or None. A coroutine function runs on the loop that it was
            registered on, and nobody waits for it.
        priority : int
            Higher ones run first. Once a callback has freed so much that the level has sunk, those registered for higher levels
            than that are spared.
        weak : bool
            Whether a bound method goes with its object.

        Returns
        -------
        Registration
            With `cancel()`.
        """
        lowest = _level(level, Level.ELEVATED)
        if callback is None:
            return lambda function: self._callbacks.add(function, lowest, priority, weak=weak)
        return self._callbacks.add(callback, lowest, priority, weak=weak)

    @overload
    def on_relief(self, callback: Callback, *, priority: int = 0, weak: bool = True) -> Registration: ...
    @overload
    def on_relief(
        self, callback: None = None, *, priority: int = 0, weak: bool = True
    ) -> Callable[[Callback], Registration]: ...
    def on_relief(
        self, callback: Callback | None = None, *, priority: int = 0, weak: bool = True
    ) -> Registration | Callable[[Callback], Registration]:
        """Call `callback(event)` each time the level has fallen. Also a decorator; parameters as for `on`."""
        if callback is None:
            return lambda function: self._callbacks.add(function, None, priority, weak=weak)
        return self._callbacks.add(callback, None, priority, weak=weak)

    def suppressed(self) -> AbstractContextManager[object]:
        """Begin no callback inside; what they missed, they are told at the first poll after it, if it still holds."""
        return self._muted.one()

    # ---- rounds ----

    @property
    def level(self) -> Level:
        """The level after the last poll."""
        if self._lost_thread:
            self._restart()
        return self._state.level

    def poll(self) -> Level:
        """Read every source, decide, and run the callbacks; the level after that.

        Inside a callback it returns the level as it is. While another thread runs callbacks, they are left to that one.
        """
        if self._lost_thread:
            self._restart()
        self._round(self._look, self._tell, partial(self._regrowth.step, self))
        return self._state.level

    def _round(self, *steps: Callable[[], object]) -> bool:
        """Do the steps inside a round; False if this thread is in one, or under the lock that others wait for in theirs.

        What is set here and in `_tell` is set inside the `try` and taken back first thing in the `finally`: Ctrl-C may raise
        after any call, and what is set must not stay.
        """
        me = threading.get_ident()
        if self._is_inside():
            return False
        try:
            self._inside.add(me)
            self._take(steps)
        finally:
            self._inside.discard(me)
        return True

    def _take(self, steps: Iterable[Callable[[], object]]) -> None:
        for step in steps:  # not in the `try` itself: some interpreters leave the jump of a loop there uncovered
            step()

    def _look(self) -> Level:
        """Read and decide; the level that memory is at, dwell aside."""
        with self._reading:
            began = time.thread_time()
            now = self._clock()
            answers = [(one, one.read()) for one in self._watched]
            thresholds = self._judging()
            with self._lock:
                for one, answer in answers:
                    one.take(now, answer)
                before = self._state.level
                self._state.update(self._watched, thresholds, self._hysteresis, self._min_dwell, now)
                after, settled = self._state.level, self._state.settled
                self._polls += 1
                self._polled_at = time.monotonic()
                self._cost += (time.thread_time() - began - self._cost) / min(self._polls, 8)
                soon = [found for one in self._watched if (found := one.soon(thresholds)) is not None]
                self._ahead = next_interval(min(soon, default=None), self._cost, raised=after > Level.NORMAL)
        if after < before:
            self._waiters.wake(after)
        return settled

    def _judging(self) -> Thresholds:
        """Return the thresholds; the last good ones while a setting makes no sense."""
        try:
            self._good, self._complaint = self.thresholds, ""
        except (TypeError, ValueError) as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.error("a pressure monitor goes on with the thresholds that it had: %s", error)
        return self._good

    def _tell(self) -> None:
        """Run the callbacks that are due, and those that other threads found due meanwhile."""
        me = threading.get_ident()
        try:
            with self._lock:
                self._more = self._telling in self._inside and self._telling != me
                if self._more:
                    return
                self._telling = me
            self._tell_all()
        finally:
            if self._telling == me:
                self._telling = 0

    def _tell_all(self) -> None:
        for _ in range(_MOST_ROUNDS):
            for _ in range(3):  # what was freed may be a relief at once
                if self._tell_one() is None:
                    break
            if not self._begin_round():
                return

    def _begin_round(self) -> bool:
        """Whether others found something due while callbacks ran; else the next to find something runs them."""
        with self._lock:
            more, self._more = self._more, False
            if not more:
                self._telling = 0
            return more

    def _tell_one(self) -> Kind | None:
        with self._lock:
            due = None if self._callbacks.muted else self._state.next_event()
        if due is None:
            self._callbacks.tell_late(self._state.level)
            return None
        kind, event = due
        self._callbacks.missed = False
        if kind == "relief":
            self._callbacks.relieve(event)
        else:
            freed, level = asking(self, lambda: self._callbacks.answer(event, self._look))
            if freed:
                with self._lock:
                    self._state.answered(level)
        if self._callbacks.missed:
            with self._lock:
                self._state.missed(event)
        return kind

    def simulate(self, level: Level) -> Simulation:
        """Behave from now on as if memory stood at least at `level`: callbacks run before this returns.

        Returns
        -------
        Simulation
            Ends it, by `end()` or as a context manager. Of several the highest counts; `simulate(Level.NORMAL)` ends them all. Then
            the level is that of the last readings, at once.
        """
        made = Simulation(self, _level(level))
        self._simulate(made)
        return made

    def _simulate(self, made: Simulation | None = None, *, ended: Simulation | None = None) -> None:
        now = self._clock()
        with self._lock:
            if ended is not None:
                self._simulations.discard(ended)
            elif made is None or made.level == Level.NORMAL:
                self._simulations.clear()
            else:
                self._simulations.add(made)
            before = self._state.level
            self._state.simulate(max((one.level for one in tuple(self._simulations)), default=Level.NORMAL), now)
            after = self._state.level
        if after < before:
            self._waiters.wake(after)
        if not self._round(self._tell):
            self._more = True  # this thread tells it when its callback, or the source, has returned

    # ---- waiting ----

    def wait_for_relief(self, level: Level = Level.HIGH, timeout: float | str | None = None) -> bool:
        """Wait until the level is below `level`; whether it is.

        A monitor that does not run is polled meanwhile, by this call. Inside a callback of this monitor nothing is waited for.

        Parameters
        ----------
        level : Level
            To be below.
        timeout : float or str, optional
            Most seconds to wait, of real time.
        """
        goal = _level(level, Level.ELEVATED)
        end = None if timeout is None else time.monotonic() + parse_duration(timeout, "timeout")
        waiter = ThreadWaiter(goal)
        try:
            self._waiters.add(waiter)  # in here: Ctrl-C may raise as it returns
            while not self._relieved(goal):
                left = None if end is None else end - time.monotonic()
                if self._is_inside() or (left is not None and left <= 0):
                    return False
                waiter.sleep(self._nap(left, polled=self._polled()))
            return True
        finally:
            self._waiters.remove(waiter)

    async def relief(self, level: Level = Level.HIGH, timeout: float | str | None = None) -> bool:
        """Wait as `wait_for_relief` does, without holding up the event loop."""
        import asyncio

        goal = _level(level, Level.ELEVATED)
        end = None if timeout is None else time.monotonic() + parse_duration(timeout, "timeout")
        waiter = TaskWaiter(goal, asyncio.get_running_loop())
        try:
            self._waiters.add(waiter)
            while not self._relieved(goal, here=True):
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return False
                await waiter.sleep(self._nap(left, polled=self._polled(here=True)))
            return True
        finally:
            self._waiters.remove(waiter)

    def _relieved(self, goal: Level, *, here: bool = False) -> bool:
        return (self.level if self._polled(here=here) else self.poll()) < goal

    def _polled(self, *, here: bool = False) -> bool:
        """Whether a runner polls, in another thread or (`here`) in any, and has polled since it was started."""
        if not self.running or self._polls == self._polls_before:
            return False
        runner = self._runner
        return runner is not None and (runner.polls if here else runner.elsewhere)

    def _nap(self, left: float | None, *, polled: bool) -> float:
        """Return how long a waiter may sleep: until woken where others poll, else until the next poll."""
        longest = _LONGEST_NAP if polled else self._next_interval()
        return longest if left is None else min(left, longest)

    # ---- running ----

    @property
    def running(self) -> bool:
        """Whether it polls on its own, in a thread or in an event loop."""
        if self._lost_thread:
            self._restart()
        runner = self._runner
        return runner is not None and runner.alive

    def start(self) -> Self:
        """Poll in a thread from now on; idempotent. In a child of `fork` the thread starts again at the first use."""
        with self._switching:
            self._start(lambda: ThreadRunner(self))
            self._kept = True
        return self

    def stop(self) -> None:
        """Poll no more, and wait for callbacks that run; idempotent. From inside a callback or a source nothing is waited for."""
        with self._switching:
            self._holders, self._kept = 0, False
            runner = self._take_runner()
        self._end(runner)

    def _take_runner(self) -> ThreadRunner | LoopRunner | None:
        self._lost_thread, runner, self._runner = False, self._runner, None
        return runner

    def _end(self, runner: ThreadRunner | LoopRunner | None) -> None:
        try:
            if runner is not None:
                runner.stop(0.0 if self._is_inside() else None)
        finally:  # also if Ctrl-C ends the wait
            self._regrowth.release()
            self._waiters.wake()

    def _start(self, make: Callable[[], ThreadRunner | LoopRunner]) -> None:
        self._lost_thread = False
        with self._switching:
            if self._runner is not None:
                if self._runner.alive:
                    return
                self._runner.stop(0.0)  # its loop was closed over it
                self._holders, self._kept = 0, False
            self._polls_before = self._polls
            self._runner = make()
        self._waiters.wake()

    def _hold(self, make: Callable[[], ThreadRunner | LoopRunner]) -> None:
        """Begin a `with`."""
        with self._switching:
            self._start(make)
            self._holders += 1

    def _let_go(self) -> None:
        """End a `with`: the last one stops what none but a `with` has started."""
        with self._switching:
            self._holders = max(0, self._holders - 1)
            if self._holders or self._kept:
                return
            runner = self._take_runner()
        self._end(runner)

    def _restart(self) -> None:
        """Start anew in the child of a fork; at its exit, or without resources, it is polled by who uses it."""
        try:
            self._start(lambda: ThreadRunner(self))
        except (OSError, RuntimeError) as error:
            log.warning("a pressure monitor could not start again after a fork: %s", error)

    def _changed(self) -> None:
        runner = self._runner
        if runner is not None:
            runner.wake()

    def __enter__(self) -> Self:
        """Poll in a thread until the end of the block; a monitor that ran before it runs on after it."""
        self._hold(lambda: ThreadRunner(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    async def __aenter__(self) -> Self:
        """Poll in the running event loop, whose thread then runs the callbacks."""
        import asyncio

        loop = asyncio.get_running_loop()
        self._callbacks.bind(loop)
        self._hold(lambda: LoopRunner(self, loop))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    def _next_interval(self) -> float:
        """Return seconds until a started monitor polls again."""
        return self._ahead if self._interval is None else self._interval

    def _headroom(self) -> float | None:
        """Return the bytes to the next threshold of the source that is nearest to one; None if none has any."""
        with self._lock:
            rooms = [found for one in self._watched if (found := one.headroom(self._good)) is not None]
        return min(rooms, default=None)

    def _is_inside(self) -> bool:  # a round, or a step under the lock that a signal handler or a finalizer came into
        return threading.get_ident() in self._inside or self._lock._is_owned()  # type: ignore[attr-defined]

    def _catch_up(self, age: float) -> None:
        """Have the sources read unless they were in so many seconds: a running monitor is asked to, another one polled."""
        if 0 <= time.monotonic() - self._polled_at < max(age, IN_A_HURRY * self._cost) or self._is_inside():
            return
        runner = self._runner
        if self.running and runner is not None:
            runner.ask()
        else:
            self.poll()

    def _count_event(self) -> None:
        """Count a round that an event began."""
        with self._lock:
            self._events += 1

    def _after_fork(self) -> None:
        """In the child: no thread, no waiters, locks that nobody holds; a round that this thread is in goes on."""
        me = threading.get_ident()
        inside = me in self._inside
        self._locks()
        if inside:
            self._inside.add(me)
        self._muted.after_fork()
        self._callbacks.after_fork()
        self._waiters.after_fork()
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.abandon()
            self._lost_thread = isinstance(runner, ThreadRunner)

    # ---- what is shown ----

    @property
    def sources(self) -> tuple[SourceStatus, ...]:
        """What is watched, what is not, and why."""
        with self._lock:
            return tuple(one.status() for one in self._watched)

    def history(self) -> tuple[PressureEvent, ...]:
        """Return the last rounds and the last changes of the level, oldest first."""
        with self._lock:
            return self._state.history()

    def forecast(self) -> Forecast | None:
        """Return the seconds until a limit is reached if memory goes on growing as it does; None if it does not grow.

        How sure that is says `.confidence`, from 0 to 1, and `.source` which source it is about.
        """
        with self._lock:
            return self._state.forecast

    def stats(self) -> MonitorStats:
        """Return counts and sums of one moment."""
        running, interval = self.running, self._next_interval()
        calls, errors, freed = self._callbacks.sums.totals()
        rows = tuple(
            CallbackStats(one.name, one.level, one.calls, one.errors, one.freed, one.seconds)
            for one in self._callbacks.all()
        )
        with self._lock:
            state = self._state
            return MonitorStats(
                level=state.level,
                running=running,
                interval=interval,
                polls=self._polls,
                events=self._events,
                rises=state.rises,
                reliefs=state.reliefs,
                reminders=state.reminders,
                calls=calls,
                errors=errors,
                freed=freed,
                waiting=len(self._waiters),
                callbacks=rows,
            )

    def __repr__(self) -> str:
        return f"<PressureMonitor {self._state.level.name}, {len(self._watched)} sources>"
