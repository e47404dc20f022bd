"""What a shared pool reports of itself."""

from dataclasses import dataclass

__all__ = ["SharedStats"]


@dataclass(frozen=True, slots=True)
class SharedStats:
    """A consistent snapshot of a shared pool. Sizes are bytes, each lease as its whole block.

    Attributes
    ----------
    in_use : int
        Lent in this process.
    retired : int
        Released here, or the `SharedBuffer` is gone, but a view in this process lives.
    in_flight : int
        Nothing here sees it, but a message is on its way.
    held : int
        Nothing here sees it and nothing is on its way: other processes have it.
    idle : int
        Ready to lend.
    overhead : int
        Headers of segments, and blocks that cannot be lent again.
    reserved, peak : int
        All segments together (the sum of the above), and the most that it ever was.
    limit : int or None
        Most that may be reserved.
    segments, live : int
        Segments, and buffers lent in this process.
    acquires, hits, exhausted : int
        Leases so far, those served from memory that was there, and `PoolExhausted` raised.
    """

    in_use: int
    retired: int
    in_flight: int
    held: int
    idle: int
    overhead: int
    reserved: int
    peak: int
    limit: int | None
    segments: int
    live: int
    acquires: int
    hits: int
    exhausted: int
