"""Plain models of the policies of caches: a few lines each, slow, and plain to see. Queues have the oldest first."""

from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Any

__all__ = ["EXACT", "Levels", "Model", "Soonest"]

WAYS = 16  # ghosts of a bucket


def mixed(key: Hashable) -> int:
    """The 32 bits of a key's hash that the table works with."""
    bits = hash(key) * 0x9E3779B97F4A7C15 % 2**64
    bits ^= bits >> 32
    return bits * 0xD6E8FEB86659FD93 % 2**64 >> 32


class Model:
    """The order among some entries. A policy adds `enter`, `use`, `leave` and `choose`."""

    def __init__(self) -> None:
        self.sizes: dict[Any, int] = {}

    def ready(self, slots: int) -> None:
        """The table has so many slots."""

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]

    def enter(self, key: Hashable) -> None: ...
    def use(self, key: Hashable) -> None: ...
    def leave(self, key: Hashable, evicted: bool) -> None: ...
    def choose(self, keep: Hashable) -> Any: ...


class Levels:
    """A cache: an order for each priority, and entries that may not go (None: their order)."""

    def __init__(self, order: type[Model], bound: int, counted: bool = True) -> None:
        self.order, self.bound, self.counted = order, bound, counted
        self.slots = 0  # that the table has
        self.orders: dict[int, Model] = {}
        self.places: dict[Any, Model | None] = {}
        self.fixed: dict[Any, int] = {}
        self.evicted: list[Any] = []
        self.hits = 0

    def get(self, key: Hashable) -> bool:
        place = self.places.get(key)
        self.hits += key in self.places
        if place is not None:
            place.use(key)
        return key in self.places

    def put(self, key: Hashable, size: int = 1, level: int = 0, fixed: bool = False) -> bool:
        """Whether there is room beside what may not go."""
        place = self.of(level)
        if sum(self.fixed.values()) - self.fixed.get(key, 0) + size > self.bound:
            return False
        if key not in self.places:
            self.grow()
        elif not fixed and self.places[key] is place:
            place.sizes[key] = size
            place.use(key)
            self.evict(key)
            return True
        else:
            self.pop(key)
        (self.fixed if fixed else place.sizes)[key] = size
        self.places[key] = None if fixed else place
        if not fixed:
            place.enter(key)
        self.evict(key)
        return True

    def pop(self, key: Hashable, evicted: bool = False) -> None:
        place = self.places.pop(key)
        if place is None:
            del self.fixed[key]
        else:
            place.leave(key, evicted)
            del place.sizes[key]

    def resize(self, bound: int) -> None:
        self.bound = bound
        self.evict(None)

    def clear(self) -> None:
        for order in self.orders.values():
            order.clear()
        self.fixed.clear()
        self.places.clear()
        self.slots = 0

    def choose(self, keep: Hashable) -> Any:
        chosen = (self.orders[level].choose(keep) for level in sorted(self.orders))
        return next((key for key in chosen if key is not None), None)

    def evict(self, keep: Hashable) -> None:
        while self.size() > self.bound and (victim := self.choose(keep)) is not None:
            self.pop(victim, evicted=True)
            self.evicted.append(victim)

    def size(self) -> int:
        return sum(self.fixed.values()) + sum(sum(order.sizes.values()) for order in self.orders.values())

    def of(self, level: int) -> Model:
        if level not in self.orders:
            self.orders[level] = self.order()
            self.orders[level].ready(self.slots)
        return self.orders[level]

    def grow(self) -> None:
        if len(self.places) == self.slots:
            self.slots = max(2 * self.slots, 8)
            if self.counted:
                self.slots = min(self.slots, max(self.bound, len(self.places)) + 1)
            for order in self.orders.values():
                order.ready(self.slots)

    def run(self, keys: Iterable[Hashable]) -> int:
        """Get or put each; how many were there."""
        before = self.hits
        for key in keys:
            if not self.get(key):
                self.put(key)
        return self.hits - before


class Fifo(Model):
    def __init__(self) -> None:
        super().__init__()
        self.queue: list[Any] = []

    def enter(self, key: Hashable) -> None:
        self.queue.append(key)

    def leave(self, key: Hashable, evicted: bool) -> None:
        self.queue.remove(key)

    def choose(self, keep: Hashable) -> Any:
        return next((key for key in self.queue if key != keep), None)


class Lru(Fifo):
    def use(self, key: Hashable) -> None:
        self.queue.remove(key)
        self.queue.append(key)


class Lfu(Lru):
    def __init__(self) -> None:
        super().__init__()
        self.uses: dict[Any, int] = {}

    def enter(self, key: Hashable) -> None:
        super().enter(key)
        self.uses[key] = 1

    def use(self, key: Hashable) -> None:
        super().use(key)
        self.uses[key] += 1

    def choose(self, keep: Hashable) -> Any:
        return min((key for key in self.queue if key != keep), key=self.uses.__getitem__, default=None)


class Sieve(Fifo):
    def __init__(self) -> None:
        super().__init__()
        self.visited: set[Any] = set()
        self.hand: Any = None
        self.spared: Any = None

    def use(self, key: Hashable) -> None:
        self.visited.add(key)

    def following(self, key: Hashable) -> Any:
        return next(iter(self.queue[self.queue.index(key) + 1 :]), None)

    def leave(self, key: Hashable, evicted: bool) -> None:
        if self.hand == key:
            self.hand = self.following(key)
            if evicted and self.hand is not None and self.hand == self.spared:
                self.hand = self.following(self.hand)
        self.visited.discard(key)
        super().leave(key, evicted)

    def choose(self, keep: Hashable) -> Any:
        if super().choose(keep) is None:
            return None
        while True:
            if self.hand is None:
                self.hand = self.queue[0]
            if self.hand != keep:
                if self.hand not in self.visited:
                    self.spared = keep
                    return self.hand
                self.visited.remove(self.hand)
            self.hand = self.following(self.hand)


class S3Fifo(Model):
    def __init__(self) -> None:
        super().__init__()
        self.small: list[Any] = []
        self.main: list[Any] = []
        self.uses: dict[Any, int] = {}
        self.ghosts: dict[int, list[int]] = defaultdict(list)
        self.buckets = 1

    def clear(self) -> None:
        buckets = self.buckets
        super().clear()
        self.buckets = buckets

    def ready(self, slots: int) -> None:
        while self.buckets * WAYS < slots:
            self.buckets *= 2
            old, self.ghosts = self.ghosts, defaultdict(list)
            for hash in (hash for ghosts in old.values() for hash in ghosts):
                self.ghosts[hash % self.buckets].append(hash)

    def enter(self, key: Hashable) -> None:
        ghosts, hash = self.ghosts[mixed(key) % self.buckets], mixed(key)
        ways = (len(self.small) + len(self.main)) // self.buckets + 1
        if hash in ghosts[-min(ways, WAYS) :]:
            del ghosts[-1 - ghosts[::-1].index(hash)]  # it may be there twice: once beyond what counts
            self.main.append(key)
        else:
            self.small.append(key)
        self.uses[key] = 0

    def use(self, key: Hashable) -> None:
        self.uses[key] = min(self.uses[key] + 1, 3)

    def leave(self, key: Hashable, evicted: bool) -> None:
        if evicted and key in self.small:
            ghosts = self.ghosts[mixed(key) % self.buckets]
            ghosts[:] = [*ghosts, mixed(key)][-WAYS:]
        (self.small if key in self.small else self.main).remove(key)

    def choose(self, keep: Hashable) -> Any:
        while True:
            young = next((key for key in self.small if key != keep), None)
            old = next((key for key in self.main if key != keep), None)
            if young is None and old is None:
                return None
            share = sum(self.sizes[key] for key in self.small) > sum(self.sizes.values()) // 10
            if old is None or (young is not None and share):
                if self.uses[young] < 2:
                    return young
                self.small.remove(young)
                self.main.append(young)
                self.uses[young] = 0
            elif self.uses[old] == 0:
                return old
            else:
                self.uses[old] -= 1
                self.main.remove(old)
                self.main.append(old)


class Soonest(Model):
    """All have a deadline, and the next one goes; values are said to know it."""

    def __init__(self, deadlines: dict[Any, float]) -> None:
        super().__init__()
        self.deadlines = deadlines

    def clear(self) -> None:
        self.sizes.clear()

    def choose(self, keep: Hashable) -> Any:
        return min((key for key in self.sizes if key != keep), key=self.deadlines.__getitem__, default=None)


EXACT: dict[str, type[Model]] = {"fifo": Fifo, "lru": Lru, "lfu": Lfu, "sieve": Sieve, "s3fifo": S3Fifo}
