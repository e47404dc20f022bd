"""Plain models of the policies of caches: a few lines each, slow, and plain to see. Queues have the oldest first."""

from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Any

__all__ = ["EXACT", "Fifo", "Lfu", "Lru", "Model", "S3Fifo", "Sieve"]

WAYS = 16  # ghosts of a bucket


def mixed(key: Hashable) -> int:
    """The 32 bits of a key's hash that the table works with."""
    bits = hash(key) * 0x9E3779B97F4A7C15 % 2**64
    bits ^= bits >> 32
    return bits * 0xD6E8FEB86659FD93 % 2**64 >> 32


class Model:
    """A cache of sizes. A policy adds `enter`, `use`, `leave` and `choose`."""

    def __init__(self, bound: int, counted: bool = True) -> None:
        self.bound, self.counted = bound, counted
        self.sizes: dict[Any, int] = {}
        self.evicted: list[Any] = []
        self.slots = 0  # that the table has, of which ghosts depend
        self.hits = 0
        self.buckets = 1  # of ghosts: these stay

    def get(self, key: Hashable) -> bool:
        if key in self.sizes:
            self.hits += 1
            self.use(key)
        return key in self.sizes

    def put(self, key: Hashable, size: int = 1) -> None:
        if key in self.sizes:
            self.sizes[key] = size
            self.use(key)
        else:
            self.grow()
            self.sizes[key] = size
            self.enter(key)
        self.evict(key)

    def pop(self, key: Hashable, evicted: bool = False) -> None:
        self.leave(key, evicted)
        del self.sizes[key]

    def resize(self, bound: int) -> None:
        self.bound = bound
        self.evict(None)

    def clear(self) -> None:
        hits, buckets, evicted = self.hits, self.buckets, self.evicted
        self.__init__(self.bound, self.counted)  # type: ignore[misc]
        self.hits, self.buckets, self.evicted = hits, buckets, evicted

    def evict(self, keep: Hashable) -> None:
        while sum(self.sizes.values()) > self.bound:
            victim = self.choose(keep)
            self.pop(victim, evicted=True)
            self.evicted.append(victim)

    def grow(self) -> None:
        if len(self.sizes) == self.slots:
            self.slots = max(2 * self.slots, 8)
            if self.counted:
                self.slots = min(self.slots, max(self.bound, len(self.sizes)) + 1)

    def run(self, keys: Iterable[Hashable]) -> int:
        """Get or put each; how many were there."""
        before = self.hits
        for key in keys:
            if not self.get(key):
                self.put(key)
        return self.hits - before

    def enter(self, key: Hashable) -> None: ...
    def use(self, key: Hashable) -> None: ...
    def leave(self, key: Hashable, evicted: bool) -> None: ...
    def choose(self, keep: Hashable) -> Any: ...


class Fifo(Model):
    def __init__(self, bound: int, counted: bool = True) -> None:
        super().__init__(bound, counted)
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
    def __init__(self, bound: int, counted: bool = True) -> None:
        super().__init__(bound, counted)
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
    def __init__(self, bound: int, counted: bool = True) -> None:
        super().__init__(bound, counted)
        self.visited: set[Any] = set()
        self.hand: Any = None

    def use(self, key: Hashable) -> None:
        self.visited.add(key)

    def following(self, key: Hashable) -> Any:
        return next(iter(self.queue[self.queue.index(key) + 1 :]), None)

    def leave(self, key: Hashable, evicted: bool) -> None:
        if self.hand == key:
            self.hand = self.following(key)
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
                    return self.hand
                self.visited.remove(self.hand)
            self.hand = self.following(self.hand)


class S3Fifo(Model):
    def __init__(self, bound: int, counted: bool = True) -> None:
        super().__init__(bound, counted)
        self.small: list[Any] = []
        self.main: list[Any] = []
        self.uses: dict[Any, int] = {}
        self.ghosts: dict[int, list[int]] = defaultdict(list)

    def grow(self) -> None:
        super().grow()
        while self.buckets * WAYS < self.slots:
            self.buckets *= 2
            old, self.ghosts = self.ghosts, defaultdict(list)
            for hash in (hash for ghosts in old.values() for hash in ghosts):
                self.ghosts[hash % self.buckets].append(hash)

    def enter(self, key: Hashable) -> None:
        ghosts, hash = self.ghosts[mixed(key) % self.buckets], mixed(key)
        ways = (len(self.small) + len(self.main)) // self.buckets + 1
        if hash in ghosts[-min(ways, WAYS) :]:
            ghosts.remove(hash)
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


EXACT: dict[str, type[Model]] = {"fifo": Fifo, "lru": Lru, "lfu": Lfu, "sieve": Sieve, "s3fifo": S3Fifo}
