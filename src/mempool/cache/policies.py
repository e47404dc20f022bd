"""Names of policies, Redis' among them, and what they stand for."""

from typing import NamedTuple

__all__ = ["POLICIES", "Policy"]

DEFAULT = "tinylfu"


class Policy(NamedTuple):
    """What a name stands for.

    Attributes
    ----------
    order : str
        The compiled policy that orders entries.
    fixing : int
        0: any entry may be evicted; 1: those with a ttl; 2: none.
    """

    order: str
    fixing: int = 0


POLICIES = {
    "lru": Policy("lru"),
    "fifo": Policy("fifo"),
    "random": Policy("random"),
    "lfu": Policy("lfu"),
    "sieve": Policy("sieve"),
    "s3fifo": Policy("s3fifo"),
    "tinylfu": Policy("tinylfu"),
    "noeviction": Policy("none", fixing=2),
    "allkeys-lru": Policy("lru"),
    "allkeys-lfu": Policy("lfu"),
    "allkeys-random": Policy("random"),
    "volatile-lru": Policy("lru", fixing=1),
    "volatile-lfu": Policy("lfu", fixing=1),
    "volatile-random": Policy("random", fixing=1),
    "volatile-ttl": Policy("soonest", fixing=1),
}
