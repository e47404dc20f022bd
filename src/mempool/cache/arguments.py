"""What caches accept, and how they refuse the rest: by name and value."""

import math
import operator
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypedDict

from mempool.cache.policies import DEFAULT, POLICIES, Policy
from mempool.units import parse_duration, shown

__all__ = [
    "UNBOUNDED",
    "LoadOptions",
    "PutOptions",
    "as_callable",
    "as_count",
    "as_int",
    "as_lifetime",
    "as_name",
    "as_policy",
    "as_priority",
]

UNBOUNDED = (1 << 63) - 1
HIGHEST = 100


class PutOptions(TypedDict, total=False):
    """What `Cache.put` accepts by name, for who passes it on."""

    ttl: float | str | None
    priority: int
    tags: Iterable[Hashable]
    version: Any


class LoadOptions(PutOptions, total=False):
    """What `Cache.get_or_load` accepts by name."""

    refresh_ahead: float | None


def as_int(value: object, name: str, kind: str) -> int:
    """Return an int; what it should be is for the message."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be {kind}, not {value!r}")
    return operator.index(value)  # type: ignore[arg-type]


def as_count(value: object, name: str, sized: str = "max_bytes") -> int:
    """Return a bound of a count; infinity is as good as none. A text is perhaps meant for the bound in bytes, by its name."""
    if isinstance(value, str):
        raise TypeError(f"{name} must be an int or inf, not {value!r}; a bound in bytes is {sized}")
    if isinstance(value, float) and value == math.inf:
        return UNBOUNDED
    count = as_int(value, name, "an int or inf")
    if count < 0:
        raise ValueError(f"{name} must not be negative, got {shown(count)}")
    return count


def as_lifetime(value: object) -> float:
    """Return a ttl in seconds; infinity: for ever."""
    if type(value) is float and value > 0:  # most often: each write may have one
        return value
    seconds = parse_duration(value, "ttl")
    if seconds == 0:
        raise ValueError(f"ttl must be more than 0, got {value!r}")
    return seconds


def as_priority(value: object) -> int:
    """Return a priority, which is one of some hundred."""
    if type(value) is int and -HIGHEST <= value <= HIGHEST:
        return value
    level = as_int(value, "priority", "an int")
    if not -HIGHEST <= level <= HIGHEST:
        raise ValueError(f"priority must be from {-HIGHEST} to {HIGHEST}, got {shown(level)}")
    return level


def as_policy(value: object) -> tuple[str, Policy]:
    """Return the name of a policy, and what it stands for."""
    if value is None:
        return DEFAULT, POLICIES[DEFAULT]
    if not isinstance(value, str):
        raise TypeError(f"policy must be a name or None, not {value!r}")
    if value not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, not {value!r}")
    return value, POLICIES[value]


def as_callable(value: Any, name: str) -> Callable[..., Any] | None:
    """Return what can be called, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable or None, not {value!r}")
    return value  # type: ignore[no-any-return]


def as_name(value: object) -> str:
    """Return a text as it is."""
    if not isinstance(value, str):
        raise TypeError(f"name must be a str, not {value!r}")
    return value
