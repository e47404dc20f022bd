"""Immutable records that the compiled layer reports. Plain slotted classes: they keep ``import mempool`` light."""

__all__ = ["PoolStats", "SizeClassStats", "SlabStats"]


class _Record:
    __slots__: tuple[str, ...] = ()

    def __init__(self, *values: object) -> None:
        for name, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is read-only, cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is read-only, cannot delete {name!r}")

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), self._values()

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"


class SizeClassStats(_Record):
    """One size class of a pool.

    Attributes
    ----------
    size : int
        Bytes of a block.
    live, idle, acquires : int
        Blocks lent now, blocks ready to lend, and leases so far.
    """

    __slots__ = ("size", "live", "idle", "acquires")

    size: int
    live: int
    idle: int
    acquires: int


class PoolStats(_Record):
    """A consistent snapshot of a pool. Sizes are bytes.

    Attributes
    ----------
    in_use, requested : int
        Lent now: by class size, and as asked for.
    retired : int
        Released, or the `Buffer` is gone, but a view lives.
    idle : int
        Ready to lend.
    reserved, peak : int
        Taken from the OS (``in_use + retired + idle``), and the most that it ever was.
    limit : int or None
        Most that may be reserved.
    acquires, live, releases, dropped, handed_over : int
        Leases so far (the sum of the next four); lent now; ended by `release()` or ``with``; ended because the `Buffer` died;
        ended so while a view took the memory over.
    hits, misses : int
        Leases served from idle memory, and those that took memory from the OS.
    waits, exhausted : int
        Calls that began to wait, and `PoolExhausted` raised.
    size_classes : tuple of SizeClassStats
        The classes that were ever used, smallest first.
    """

    __slots__ = (
        "in_use",
        "requested",
        "retired",
        "idle",
        "reserved",
        "peak",
        "limit",
        "acquires",
        "live",
        "releases",
        "dropped",
        "handed_over",
        "hits",
        "misses",
        "waits",
        "exhausted",
        "size_classes",
    )

    in_use: int
    requested: int
    retired: int
    idle: int
    reserved: int
    peak: int
    limit: int | None
    acquires: int
    live: int
    releases: int
    dropped: int
    handed_over: int
    hits: int
    misses: int
    waits: int
    exhausted: int
    size_classes: tuple[SizeClassStats, ...]

    @property
    def hit_rate(self) -> float:
        """Share of the leases that were served from idle memory; 0.0 before the first."""
        return self.hits / self.acquires if self.acquires else 0.0

    @property
    def fragmentation(self) -> float:
        """Share of the lent bytes that nobody asked for (rounding up to size classes); 0.0 if nothing is lent."""
        return 1.0 - self.requested / self.in_use if self.in_use else 0.0


class SlabStats(_Record):
    """A consistent snapshot of a slab. Sizes are bytes.

    Attributes
    ----------
    item_size : int
        Bytes of an item.
    live, retired : int
        Items allocated now; items freed while something views them.
    exhausted : int
        Slots that had all their generations and are not used again.
    slots, max_items : int
        Slots ever used, and how many there can be.
    reserved, peak : int
        Taken from the OS, with the bookkeeping of each slot, and the most that it ever was.
    limit : int or None
        Most that may be reserved.
    address_space : int
        Addresses that were set aside, so that nothing has to move; they take no memory.
    allocs, frees : int
        Items allocated and freed so far.
    """

    __slots__ = (
        "item_size",
        "live",
        "retired",
        "exhausted",
        "slots",
        "max_items",
        "reserved",
        "peak",
        "limit",
        "address_space",
        "allocs",
        "frees",
    )

    item_size: int
    live: int
    retired: int
    exhausted: int
    slots: int
    max_items: int
    reserved: int
    peak: int
    limit: int | None
    address_space: int
    allocs: int
    frees: int
