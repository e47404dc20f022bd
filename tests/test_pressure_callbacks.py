"""Callbacks: who is told, in which order, what they free, what they raise, and what they do to the monitor that runs them."""

import asyncio
import collections
import functools
import gc
import logging
import threading
import weakref
from typing import Any

import pytest

from mempool.pressure import Level, PressureEvent, Registration
from monitor_kit import CRITICAL, ELEVATED, HIGH, NORMAL, Bench, frees, records
from support import DEADLINE, Strange, start, together


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ---- who is told ----


def test_each_rise_to_a_level_or_past_it(bench: Bench) -> None:
    told: dict[Level, list[Level]] = {level: [] for level in (ELEVATED, HIGH, CRITICAL)}
    for level, seen in told.items():
        bench.monitor.on(level, lambda event, seen=seen: seen.append(event.level))  # type: ignore[misc]
    for used in (800, 1000, 1000, 1200):
        bench.at(used)
    bench.at(0, 5.0)
    bench.at(1200, 5.0)
    assert told == {
        ELEVATED: [ELEVATED, HIGH, CRITICAL, CRITICAL],
        HIGH: [HIGH, CRITICAL, CRITICAL],
        CRITICAL: [CRITICAL, CRITICAL],
    }


def test_relief_is_told_at_each_fall(bench: Bench) -> None:
    bench.monitor.on_relief(bench.note)
    for used in (1200, 1000, 0):
        bench.at(used, 5.0)
    assert bench.levels() == [(CRITICAL, HIGH), (HIGH, NORMAL)]
    assert bench.monitor.stats().reliefs == 2


def test_priority_then_order_of_registration(bench: Bench) -> None:
    order: list[str] = []
    for name, priority in (("b", 0), ("d", -5), ("c", 0), ("a", 7)):
        bench.monitor.on(HIGH, lambda _, name=name: order.append(name), priority=priority)  # type: ignore[misc]
    bench.at(1000)
    assert order == ["a", "b", "c", "d"]


def test_what_is_reclaimed_comes_before_every_priority() -> None:
    order: list[str] = []
    bench = Bench(reclaim=lambda _: order.append("reclaim"))
    bench.monitor.on(HIGH, lambda _: order.append("callback"), priority=1 << 70)
    bench.at(1000)
    assert order == ["reclaim", "callback"]


def test_a_priority_of_any_kind_of_int(bench: Bench) -> None:
    class Backwards(int):
        def __neg__(self) -> int:
            raise ZeroDivisionError

    assert bench.monitor.on(HIGH, print, priority=Backwards(3)).priority == 3


def test_decorators(bench: Bench) -> None:
    @bench.monitor.on(HIGH, priority=3)
    def make_room(event: PressureEvent) -> int:
        """Make some."""
        return 5

    @bench.monitor.on_relief
    def relieved(event: PressureEvent) -> None:
        bench.note(event)

    @bench.monitor.on_relief(priority=1)
    def first(event: PressureEvent) -> None:
        bench.note(event)

    assert isinstance(make_room, Registration)
    assert (make_room.__name__, make_room.__doc__, make_room.priority) == ("make_room", "Make some.", 3)
    assert make_room(None) == 5  # type: ignore[arg-type]
    assert (make_room.calls, make_room.freed) == (0, 0)
    bench.at(1000)
    bench.at(0, 5.0)
    assert (make_room.calls, make_room.freed, relieved.calls, first.calls) == (1, 5, 1, 1)
    assert "make_room" in repr(make_room)
    assert "HIGH" in repr(make_room)


@pytest.mark.parametrize("bad", [5, "print", Strange()])
def test_what_is_no_callback(bench: Bench, bad: Any) -> None:
    for register in (functools.partial(bench.monitor.on, HIGH), bench.monitor.on_relief):
        with pytest.raises(TypeError, match="callable"):
            register(bad)
    for priority in (1.5, "1", True, None):
        with pytest.raises(TypeError, match="priority"):
            bench.monitor.on(HIGH, print, priority=priority)  # type: ignore[arg-type]


# ---- weak and strong ----


class Owner:
    def __init__(self) -> None:
        self.calls = 0

    def shrink(self, _: PressureEvent) -> None:
        self.calls += 1


def test_bound_methods_are_held_weakly(bench: Bench) -> None:
    owner = Owner()
    bench.monitor.on(HIGH, owner.shrink)
    bench.at(1000)
    assert owner.calls == 1
    del owner
    gc.collect()
    assert bench.monitor.stats().callbacks == ()
    assert bench.monitor.stats().calls == 1  # the sums stay


class Kept(list[object]):
    pass


class Own(list[object]):
    def append(self, _: object) -> None:
        raise AssertionError


@pytest.mark.parametrize(("kind", "name"), [(Kept, "append"), (Kept, "__contains__"), (collections.deque, "append")])
def test_bound_methods_of_compiled_types_are_held_weakly(bench: Bench, kind: Any, name: str) -> None:
    owner = kind()
    registration = bench.monitor.on(HIGH, getattr(owner, name))
    bench.at(1000)
    assert (registration.calls, len(owner)) == (1, name == "append")
    died = weakref.ref(owner)
    del owner
    gc.collect()
    assert died() is None
    assert registration.cancelled
    assert bench.monitor.stats().callbacks == ()


def test_what_cannot_be_held_weakly_is_held(bench: Bench) -> None:
    """A list itself has no weak references, the `append` of `Own` is another one, and a module is not its functions' owner."""
    held = [bench.monitor.on(HIGH, one) for one in ([].append, list.append.__get__(Own()), callable)]
    gc.collect()
    bench.at(1000)
    assert [(one.calls, one.errors, one.cancelled) for one in held] == [(1, 0, False)] * 3


def test_bound_methods_are_held_if_told(bench: Bench) -> None:
    registration = bench.monitor.on(HIGH, Owner().shrink, weak=False)
    gc.collect()
    bench.at(1000)
    assert registration.calls == 1


def test_functions_and_callable_objects_are_held(bench: Bench) -> None:
    class Shrink:
        def __call__(self, event: PressureEvent) -> None:
            bench.note(event)

    bench.monitor.on(HIGH, Shrink())
    bench.monitor.on(HIGH, lambda event: bench.note(event))
    bench.monitor.on(HIGH, functools.partial(bench.note))
    gc.collect()
    bench.at(1000)
    assert len(bench.events) == 3


# ---- what they raise ----


def test_errors_are_isolated_logged_once_and_counted(bench: Bench, caplog: Any) -> None:
    def broken(_: PressureEvent) -> None:
        raise ZeroDivisionError("in a callback")

    registration = bench.monitor.on(HIGH, broken, priority=1)
    bench.monitor.on(HIGH, bench.note)
    for _ in range(3):
        bench.at(1000, 5.0)
        bench.at(0, 5.0)
    assert len(bench.events) == registration.errors == bench.monitor.stats().errors == 3
    (record,) = records(caplog)
    assert record.levelno == logging.ERROR
    assert record.exc_info[0] is ZeroDivisionError
    assert "broken" in record.getMessage()


@pytest.mark.parametrize("value", ["5", 1.5, -1, [], Strange()])
def test_a_result_that_is_no_bytes_is_an_error(bench: Bench, value: Any, caplog: Any) -> None:
    registration = bench.monitor.on(HIGH, lambda _: value)
    bench.at(1000)
    assert (registration.errors, registration.freed) == (1, 0)
    assert len(records(caplog)) == 1


def test_what_asks_a_cancelled_future_has_failed(bench: Bench) -> None:
    """`asyncio.CancelledError` is no `Exception`, and it ends nothing here."""

    def ask(_: PressureEvent) -> None:
        raise asyncio.CancelledError

    registration = bench.monitor.on(HIGH, ask, priority=1)
    bench.monitor.on(HIGH, bench.note)
    bench.at(1000)
    assert (registration.errors, bench.monitor.stats().errors, len(bench.events)) == (1, 1, 1)


def test_what_ends_programs_comes_out_of_poll_and_breaks_nothing(bench: Bench) -> None:
    raised = [KeyboardInterrupt()]

    def interrupt(_: PressureEvent) -> None:
        if raised:
            raise raised.pop()

    bench.monitor.on(HIGH, interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.at(1000)
    bench.monitor.on(HIGH, bench.note)
    bench.at(1200)
    assert bench.levels() == [(HIGH, CRITICAL)]


# ---- what they free ----


def test_callbacks_stop_when_relieved(bench: Bench) -> None:
    first = bench.monitor.on(HIGH, frees(bench.memory, 100), priority=2)
    second = bench.monitor.on(HIGH, frees(bench.memory, 900), priority=1)
    third = bench.monitor.on(HIGH, bench.note)
    bench.at(1200)
    assert (first.calls, second.calls, third.calls) == (1, 1, 0)
    stats = bench.monitor.stats()
    assert (stats.freed, stats.callbacks[0].freed, stats.callbacks[1].freed) == (1000, 100, 900)


def test_callbacks_of_lower_levels_go_on_until_those_are_left_too(bench: Bench) -> None:
    bench.monitor.on(CRITICAL, frees(bench.memory, 100), priority=2)
    spared = bench.monitor.on(CRITICAL, bench.note, priority=1)
    asked = bench.monitor.on(HIGH, bench.note)
    bench.at(1200)
    assert (spared.calls, asked.calls) == (0, 1)


def test_what_is_short_again_within_the_dwell_is_a_new_rise(bench: Bench) -> None:
    """The level is held by its dwell, yet who made room is called again, and so are those who were spared."""
    bench.monitor.on(HIGH, frees(bench.memory, 900), priority=1)
    spared = bench.monitor.on(CRITICAL, bench.note)
    bench.at(1000)
    assert bench.monitor.level == HIGH
    bench.at(1000, 0.1)
    assert bench.memory.used == 100
    assert bench.at(100, 0.1) == HIGH
    bench.at(2500, 0.1)
    assert (spared.calls, bench.memory.used) == (1, 1600)


def test_what_is_a_little_short_within_the_dwell_asks_for_a_little(bench: Bench) -> None:
    """CRITICAL was answered and is only held by its dwell: who was registered for it has nothing to do with 850 bytes."""
    drop_all = bench.monitor.on(CRITICAL, frees(bench.memory, 1200), priority=1)
    bench.monitor.on(ELEVATED, bench.note)
    bench.monitor.on_relief(bench.note)
    assert bench.at(1300) == CRITICAL
    assert bench.at(850, 0.3) == CRITICAL
    assert drop_all.calls == 1
    assert bench.levels() == [(NORMAL, ELEVATED)]
    bench.at(960, 5.0)  # in the band of HIGH
    assert bench.levels()[1:] == [(CRITICAL, HIGH)]
    bench.at(1000)
    assert bench.levels()[2:] == [(ELEVATED, HIGH)]
    bench.at(1300)
    assert drop_all.calls == 2


def test_relief_follows_in_the_same_poll() -> None:
    bench = Bench(min_dwell=0)
    bench.monitor.on(HIGH, frees(bench.memory, 900))
    bench.monitor.on_relief(bench.note)
    assert bench.at(1000) == NORMAL
    assert bench.levels() == [(HIGH, NORMAL)]


def test_a_claim_that_nothing_bears_out_stops_nobody(bench: Bench) -> None:
    bench.monitor.on(HIGH, lambda _: 10**9, priority=1)
    bench.monitor.on(HIGH, bench.note)
    bench.at(1000)
    assert len(bench.events) == 1


def test_simulated_pressure_is_not_relieved(bench: Bench) -> None:
    bench.monitor.on(HIGH, lambda _: 5, priority=1)
    bench.monitor.on(HIGH, bench.note)
    bench.monitor.simulate(HIGH)
    assert len(bench.events) == 1


# ---- what they do to the monitor ----


def test_poll_inside_a_callback_returns_the_level(bench: Bench) -> None:
    levels: list[Level] = []
    bench.monitor.on(HIGH, lambda _: levels.append(bench.monitor.poll()))
    bench.at(1000)
    assert levels == [HIGH]
    assert bench.memory.reads == 1


def test_a_wait_inside_a_callback_does_not_wait_for_itself(bench: Bench) -> None:
    waited: list[bool] = []
    bench.monitor.on(HIGH, lambda _: waited.append(bench.monitor.wait_for_relief()))
    bench.monitor.on(HIGH, lambda _: waited.append(bench.monitor.wait_for_relief(CRITICAL)))
    bench.at(1000)
    assert waited == [False, True]


def test_cancel_itself_and_others_from_inside(bench: Bench) -> None:
    def once(event: PressureEvent) -> None:
        registrations[0].cancel()
        registrations[1].cancel()
        registrations[0].cancel()

    registrations = [bench.monitor.on(HIGH, once), bench.monitor.on(HIGH, bench.note)]
    last = bench.monitor.on(HIGH, bench.note)
    bench.at(1000)
    bench.at(0, 5.0)
    bench.at(1000, 5.0)
    assert [one.calls for one in registrations] == [1, 0]
    assert all(one.cancelled for one in registrations)
    assert last.calls == len(bench.events) == 2
    assert bench.monitor.stats().calls == 3


def test_register_from_inside(bench: Bench) -> None:
    bench.monitor.on(HIGH, lambda _: bench.monitor.on(HIGH, bench.note) and None)
    bench.at(1000)
    assert bench.events == []
    bench.at(1200)
    assert len(bench.events) == 1


def test_what_a_callback_frees_that_cancels_itself_counts(bench: Bench) -> None:
    def once(_: PressureEvent) -> int:
        registration.cancel()
        return 10

    registration = bench.monitor.on(HIGH, once)
    bench.at(1000)
    stats = bench.monitor.stats()
    assert (stats.calls, stats.freed, stats.callbacks) == (1, 10, ())


class Meddling(tuple[Registration, ...]):
    """A list that runs something while another one is made of it: what the collector may do there."""

    meddle: Any = None

    def __iter__(self) -> Any:
        meddle, self.meddle = self.meddle, None
        listed = list(super().__iter__())
        if meddle is not None:
            meddle()
        return iter(listed)


def list_that(bench: Bench, meddle: Any) -> None:
    callbacks = bench.monitor._callbacks
    callbacks._all = Meddling(callbacks._all)
    callbacks._all.meddle = meddle


@pytest.mark.parametrize("change", ["add", "remove", "remove the same"])
def test_what_is_cancelled_while_the_list_is_made_anew_stays_away(bench: Bench, change: str) -> None:
    gone, other = bench.monitor.on(HIGH, lambda _: 10), bench.monitor.on(HIGH, lambda _: 1)
    bench.at(1000)
    list_that(bench, gone.cancel)
    if change == "add":
        bench.monitor.on(HIGH, lambda _: 1)
    else:
        (other if change == "remove" else gone).cancel()
    listed = bench.monitor._callbacks.all()
    assert gone not in listed
    assert len(listed) == {"add": 2, "remove": 0, "remove the same": 1}[change]
    stats = bench.monitor.stats()
    assert (stats.calls, stats.freed) == (2, 11)


def test_what_is_registered_while_the_list_is_made_anew_stays(bench: Bench) -> None:
    bench.monitor.on(HIGH, bench.note)
    list_that(bench, lambda: bench.monitor.on(HIGH, bench.note, priority=1))
    bench.monitor.on(HIGH, bench.note)
    bench.at(1000)
    assert len(bench.events) == 3


def test_simulate_from_inside_ends(bench: Bench) -> None:
    """Two callbacks that call each other: a poll ends all the same."""
    bench.monitor.on(HIGH, lambda _: bench.monitor.simulate(NORMAL).end())
    bench.monitor.on_relief(lambda _: bench.monitor.simulate(HIGH) and None)
    bench.monitor.simulate(HIGH)
    assert bench.monitor.stats().rises < 100


def test_allocation_in_a_callback(bench: Bench) -> None:
    kept: list[bytes] = []
    bench.monitor.on(HIGH, lambda _: kept.append(bytes(1 << 20)))
    bench.at(1000)
    assert bench.monitor.stats().errors == 0


def test_a_finalizer_that_cancels_and_polls(bench: Bench) -> None:
    """Finalizers run anywhere, also while the monitor holds its own locks."""

    class Last:
        def __init__(self) -> None:
            self.me = self
            self.registration = bench.monitor.on(HIGH, bench.note)

        def __del__(self) -> None:
            self.registration.cancel()
            bench.monitor.poll()

    threshold = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(50):
            Last()
            bench.at(1300, 5.0)
            bench.at(0, 5.0)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert bench.monitor.stats().callbacks == ()


# ---- threads ----


def test_a_poll_of_another_thread_waits_for_no_callback(bench: Bench) -> None:
    """A callback that waits for a thread that polls."""
    inside, polled = threading.Event(), threading.Event()

    def block(_: PressureEvent) -> None:
        inside.set()
        assert polled.wait(DEADLINE)

    bench.monitor.on(HIGH, block)
    bench.monitor.on(CRITICAL, bench.note)
    thread = start(bench.at, 1000)
    assert inside.wait(DEADLINE)
    bench.memory.used = 1200
    assert bench.monitor.poll() == CRITICAL
    assert bench.events == []  # left to the thread that runs callbacks
    polled.set()
    thread.result()
    assert bench.levels() == [(HIGH, CRITICAL)]


def test_callbacks_of_many_threads_that_poll_never_overlap(bench: Bench) -> None:
    running: list[int] = []
    most: list[int] = []

    def count(_: PressureEvent) -> None:
        running.append(1)
        most.append(len(running))
        running.pop()

    bench.monitor.on(ELEVATED, count)

    def work() -> None:
        for number in range(300):
            bench.at((number * 397) % 1300, 0.5)

    together([work] * 8)
    assert set(most) == {1}
    assert bench.monitor.stats().polls >= 2400
    assert bench.monitor.stats().calls == len(most)


def test_registrations_come_and_go_while_others_poll(bench: Bench) -> None:
    done = threading.Event()

    def poll() -> None:
        while not done.is_set():
            bench.at(1300, 5.0)
            bench.at(0, 5.0)

    def register() -> None:
        for _ in range(500):
            bench.monitor.on(HIGH, lambda _: 1).cancel()

    pollers = [start(poll) for _ in range(2)]
    together([register] * 4)
    done.set()
    for poller in pollers:
        poller.result()
    assert bench.monitor.stats().callbacks == ()
    assert bench.monitor.stats().errors == 0
