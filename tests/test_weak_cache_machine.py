"""A weak cache against a plain model: any steps, with values that others hold and let go of."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mempool.cache import Cause, WeakCache
from monitor_kit import Clock

KEYS = st.integers(0, 6)
BAND = 3
TTL = 10.0


class Value:
    """A number that can be held weakly."""

    def __init__(self, number: int) -> None:
        self.number = number


class WeakValues(RuleBasedStateMachine):
    """The model knows each value by its number: what has which key, what is held outside, and what is in the band."""

    @initialize(timed=st.booleans())
    def begin(self, timed: bool) -> None:
        self.clock = Clock()
        self.told: list[tuple[int, int | None, Cause]] = []
        self.expected: list[tuple[int, int | None, Cause]] = []
        self.cache: WeakCache[int, Value] = WeakCache(
            keep_items=BAND, ttl=TTL if timed else None, on_evict=self.note, clock=self.clock
        )
        self.ttl = TTL if timed else float("inf")
        self.entries: dict[int, tuple[int, float]] = {}  # key -> number, deadline
        self.held: dict[int, Value] = {}
        self.band: list[int] = []  # numbers, the least recent first
        self.number = 0

    def note(self, key: int, value: Value | None, cause: Cause) -> None:
        self.told.append((key, None if value is None else value.number, cause))

    # ---- the model

    def live(self, key: int) -> int | None:
        number, deadline = self.entries.get(key, (None, 0.0))
        return None if number is None or deadline <= self.clock.now else number

    def leave(self, key: int, cause: Cause) -> None:
        number, deadline = self.entries.pop(key)
        if deadline <= self.clock.now:
            cause = Cause.EXPIRED
        self.expected.append((key, number, cause))
        if number in self.band:
            self.band.remove(number)

    def use(self, number: int) -> None:
        """It is the most recent one of the band now; what falls out of that and is not held otherwise dies."""
        if number in self.band:
            self.band.remove(number)
        self.band.append(number)
        while len(self.band) > BAND:
            self.weaken(self.band.pop(0))

    def weaken(self, number: int) -> None:
        if number not in self.held:
            (key,) = [key for key, entry in self.entries.items() if entry[0] == number]
            del self.entries[key]
            self.expected.append((key, None, Cause.COLLECTED))

    def expire(self) -> None:
        for key in [key for key, (_, deadline) in self.entries.items() if deadline <= self.clock.now]:
            self.leave(key, Cause.EXPIRED)

    def made(self, hold: bool) -> Value:
        self.number += 1
        value = Value(self.number)
        if hold:
            self.held[self.number] = value
        return value

    def put(self, key: int, number: int) -> None:
        self.expire()
        if key in self.entries:
            self.leave(key, Cause.REPLACED)
        self.entries[key] = number, self.clock.now + self.ttl
        self.use(number)

    # ---- steps

    @rule(key=KEYS, hold=st.booleans())
    def set(self, key: int, hold: bool) -> None:
        value = self.made(hold)
        self.cache[key] = value
        self.put(key, value.number)

    @rule(key=KEYS, hold=st.booleans())
    def setdefault(self, key: int, hold: bool) -> None:
        before = self.live(key)
        value = self.made(hold)
        found = self.cache.setdefault(key, value)
        if before is None:
            assert found is value
            self.put(key, value.number)
        else:
            assert found.number == before
            self.use(before)

    @rule(key=KEYS)
    def get(self, key: int) -> None:
        found = self.cache.get(key)
        before = self.live(key)
        assert (None if found is None else found.number) == before
        if before is not None:
            self.use(before)
        elif key in self.entries:
            self.leave(key, Cause.EXPIRED)

    @rule(key=KEYS)
    def pop(self, key: int) -> None:
        before = self.live(key)
        found = self.cache.pop(key, None)
        assert (None if found is None else found.number) == before
        if before is not None:
            self.leave(key, Cause.DELETED)

    @rule(key=KEYS)
    def look(self, key: int) -> None:
        assert (key in self.cache) == (self.live(key) is not None)

    @rule(data=st.data())
    def let_go(self, data: Any) -> None:
        if self.held:
            number = data.draw(st.sampled_from(sorted(self.held)))
            del self.held[number]
            if number not in self.band and any(entry[0] == number for entry in self.entries.values()):
                self.weaken(number)

    @rule(seconds=st.sampled_from([1.0, 5.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def shrink(self) -> None:
        freed = self.cache.shrink(1 << 30)
        assert (freed > 0) == bool(self.band)
        if self.band:
            self.weaken(self.band.pop(0))

    @rule()
    def clear(self) -> None:
        self.expire()
        self.cache.expire()
        self.cache.clear()
        for key in list(self.entries):
            self.leave(key, Cause.DELETED)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "cache"):
            return
        alive = {key: number for key in self.entries if (number := self.live(key)) is not None}
        assert {key: value.number for key, value in self.cache.items()} == alive

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.expire()
        assert len(self.cache) == len(self.entries)
        assert self.cache.stats().kept == len(self.band)
        assert sorted(self.told, key=repr) == sorted(self.expected, key=repr)


WeakValues.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_any_steps = WeakValues.TestCase
