"""Each policy against a plain model of it: who is there, who leaves, in what order."""

import random
from math import inf
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cache_kit import hits
from cache_models import EXACT, Levels, Soonest
from mempool.cache import Cache, CacheFull, Cause
from mempool.cache.policies import POLICIES

KEYS = st.integers(0, 24)
VOLATILE = {
    "volatile-lru": EXACT["lru"],
    "volatile-lfu": EXACT["lfu"],
    "volatile-ttl": None,
    "noeviction": EXACT["fifo"],
}
INEXACT = sorted({policy.order for policy in POLICIES.values()} - set(EXACT) - {"none", "soonest"})


class PolicyMachine(RuleBasedStateMachine):
    """Values are `(number, size)`. What leaves is heard by a listener, and all of it must be heard."""

    policy = ""

    @initialize(weighed=st.booleans(), levelled=st.booleans(), bound=st.integers(0, 24), wide=st.booleans())
    def make(self, weighed: bool, levelled: bool, bound: int, wide: bool) -> None:
        self.weighed, self.levelled, self.bound = weighed, levelled, bound * (7 if wide else 1)
        self.left: list[tuple[int, tuple[int, int], Cause]] = []
        self.cache: Cache[int, tuple[int, int]] = Cache(
            self.bound,
            policy=self.policy,
            getsizeof=(lambda value: value[1]) if weighed else None,
            on_evict=lambda key, value, cause: self.left.append((key, value, cause)),
            clock=lambda: 0,
        )
        self.held: dict[int, tuple[int, int]] = {}
        self.fixed: set[int] = set()
        self.deadlines: dict[int, float] = {}
        self.model = self.model_of()
        self.number = 0

    def model_of(self) -> Levels | None:
        if self.policy == "volatile-ttl":
            return Levels(lambda: Soonest(self.deadlines), self.bound, not self.weighed)  # type: ignore[arg-type, return-value]
        order = EXACT.get(self.policy) or VOLATILE.get(self.policy)
        return order and Levels(order, self.bound, not self.weighed)

    def settle(self, *expected: Cause) -> list[int]:
        """What has just left is what was held; those of the cause expected first, then evicted ones."""
        causes = [cause for _, _, cause in self.left]
        assert causes == [*expected, *[Cause.EVICTED] * (len(causes) - len(expected))]
        for key, value, cause in self.left:
            assert self.held[key] == value
            if cause is not Cause.REPLACED:
                del self.held[key]
        evicted = [key for key, _, cause in self.left if cause is Cause.EVICTED]
        self.left.clear()
        return evicted

    @rule(
        key=KEYS, size=st.one_of(st.integers(0, 4), st.integers(0, 180)), level=st.integers(-1, 1), lasts=st.booleans()
    )
    def put(self, key: int, size: int, level: int = 0, lasts: bool = False) -> None:
        size, level = size if self.weighed else 1, level if self.levelled else 0
        self.number += 1
        value, fixed = (self.number, size), self.policy == "noeviction" or (self.policy in VOLATILE and lasts)
        deadline = inf if self.policy not in VOLATILE or fixed else 1.0 + self.number * 7919 % 10007
        if size > self.bound:
            with pytest.raises(ValueError, match="value too large"):
                self.cache.put(key, value, ttl=deadline, priority=level)
        elif sum(self.held[other][1] for other in self.fixed - {key}) + size > self.bound:
            with pytest.raises(CacheFull):
                self.cache.put(key, value, ttl=deadline, priority=level)
            assert self.model is None or not self.model.put(key, size, level, fixed)
        else:
            self.deadlines[key] = deadline
            self.cache.put(key, value, ttl=deadline, priority=level)
            self.was_put(key, value, level, fixed)
        assert not self.left

    def was_put(self, key: int, value: tuple[int, int], level: int, fixed: bool) -> None:
        evicted = self.settle(*[Cause.REPLACED] * (key in self.held))
        assert key not in evicted
        assert self.fixed.isdisjoint(evicted)
        self.held[key] = value
        (self.fixed.add if fixed else self.fixed.discard)(key)
        if self.model:
            self.model.evicted.clear()
            assert self.model.put(key, value[1], level, fixed)
            assert self.model.evicted == evicted

    @rule(key=KEYS)
    def get(self, key: int) -> None:
        assert self.cache.get(key) == self.held.get(key)
        if self.model:
            self.model.get(key)

    @rule(key=KEYS, times=st.integers(1, 5))
    def get_or_put(self, key: int, times: int) -> None:
        for _ in range(times):
            if self.cache.get(key) is None:
                self.put(key, 1)
            elif self.model:
                self.model.get(key)

    @rule(key=KEYS)
    def look(self, key: int) -> None:
        assert (key in self.cache) == (key in self.held)

    @rule(key=KEYS)
    def delete(self, key: int) -> None:
        if key not in self.held:
            with pytest.raises(KeyError):
                del self.cache[key]
            return
        del self.cache[key]
        self.settle(Cause.DELETED)
        self.fixed.discard(key)
        if self.model:
            self.model.pop(key)

    @rule()
    def popitem(self) -> None:
        if not self.held:
            with pytest.raises(KeyError):
                self.cache.popitem()
            return
        expected = self.model.choose(None) if self.model else None
        key, value = self.cache.popitem()
        assert self.held[key] == value
        self.settle(Cause.DELETED)
        assert key not in self.fixed or len(self.fixed) == len(self.held) + 1
        self.fixed.discard(key)
        if self.model:
            assert key == expected or expected is None
            self.model.pop(key)

    @rule(bound=st.integers(0, 24), wide=st.booleans())
    def resize(self, bound: int, wide: bool) -> None:
        bound *= 7 if wide else 1
        if sum(self.held[key][1] for key in self.fixed) > bound:
            with pytest.raises(CacheFull):
                self.cache.resize(bound)
            assert self.cache.maxsize == self.bound
            return
        self.bound = bound
        self.cache.resize(self.bound)
        evicted = self.settle()
        assert self.fixed.isdisjoint(evicted)
        if self.model:
            self.model.evicted.clear()
            self.model.resize(self.bound)
            assert self.model.evicted == evicted

    @rule(chance=st.integers(0, 4))
    def clear(self, chance: int) -> None:
        if chance:
            return
        self.cache.clear()
        self.settle(*[Cause.DELETED] * len(self.held))
        self.fixed.clear()
        if self.model:
            self.model.clear()

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "cache"):
            return
        assert dict(self.cache.items()) == self.held
        assert len(self.cache) == len(self.held)
        assert self.cache.currsize == sum(size for _, size in self.held.values())
        assert self.cache.currsize <= self.bound or self.fixed == self.held.keys()
        if self.model:
            assert self.held.keys() == self.model.places.keys()


def machine(policy: str) -> Any:
    case = type(f"{policy.title()}Machine", (PolicyMachine,), {"policy": policy}).TestCase
    case.settings = settings(max_examples=40, stateful_step_count=50)
    return case


for name in [*EXACT, *VOLATILE, *INEXACT]:
    globals()[f"Test{name.title().replace('-', '')}"] = machine(name)


def trace(kind: str, length: int = 6_000) -> list[int]:
    """Seeded: popular keys, a scan every thousand of them, or a loop that is longer than the cache."""
    draw = random.Random(kind).random
    if kind == "loop":
        return [number % 150 for number in range(length)]
    popular = [int(1000 ** draw()) for _ in range(length)]
    if kind == "scan":
        for start in range(0, length, 1_000):
            popular[start : start + 300] = range(10_000 + start, 10_300 + start)
    return popular


@pytest.mark.parametrize("size", [1, 2, 3, 10, 100, 400])
@pytest.mark.parametrize("kind", ["zipf", "scan", "loop"])
@pytest.mark.parametrize("policy", EXACT)
def test_hits_are_those_of_the_model(policy: str, kind: str, size: int) -> None:
    keys = trace(kind)
    cache: Cache[int, int] = Cache(size, policy=policy)
    model = Levels(EXACT[policy], size)
    assert hits(cache, keys) == model.run(keys)
    assert set(cache) == model.places.keys()


@pytest.mark.parametrize("policy", ["sieve", "s3fifo", "lfu"])
def test_what_is_popular_outlives_a_scan(policy: str) -> None:
    cache: Cache[int, int] = Cache(100, policy=policy)
    for _ in range(4):
        for key in range(50):
            if cache.get(key) is None:
                cache[key] = key
    for key in range(1_000, 1_060):  # an lru of 100 would forget ten of them
        cache[key] = key
    assert sum(key in cache for key in range(50)) == 50
