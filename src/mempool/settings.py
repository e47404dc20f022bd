"""Settings of the process. Keyword arguments come first, then `configure`, then the environment, then the profile.

The variables are ``MEMPOOL_LIMIT``, ``MEMPOOL_LEAK_DETECTION``, ``MEMPOOL_THRESHOLD_MB``, ``MEMPOOL_CRITICAL_THRESHOLD_MB``,
``MEMPOOL_GC_INTERVAL_SECONDS``, ``MEMPOOL_BATCH_SIZE`` and ``MEMPOOL_PROFILE``.
"""

import os
import sys
from _thread import TIMEOUT_MAX, RLock  # `threading` would have to be imported

from mempool.units import parse_duration, parse_size, shown

TYPE_CHECKING = False  # `typing` would cost a third of the time that importing this package takes
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["configure"]

LEAK_MODES = ("off", "sampled", "full")
MEGABYTE = 1_000_000  # as "MB" in a size

# What a profile says where nobody says otherwise; every profile names the same settings.
PROFILES: "dict[str, dict[str, object]]" = {
    "development": {"leak_detection": "full", "gc_interval_seconds": None, "batch_size": 100},
    "testing": {"leak_detection": "full", "gc_interval_seconds": None, "batch_size": 10},
    "production": {"leak_detection": "sampled", "gc_interval_seconds": 300.0, "batch_size": 100},
}

_configured: dict[str, object] = {}
_configuring = RLock()  # a signal handler or a listener may configure too
_listeners: "list[Callable[[Mapping[str, object]], None]]" = []  # may refuse
_followers: "list[Callable[[Mapping[str, object]], None]]" = []  # are told when it is done


def _one_of(choices: "tuple[str, ...]", value: object, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    return value


def parse_leak_mode(value: object, name: str = "leak_detection") -> str:
    """Return one of ``LEAK_MODES``; `TypeError` or `ValueError` names anything else."""
    return _one_of(LEAK_MODES, value, name)


def parse_profile(value: object, name: str = "profile") -> str | None:
    """Return the name of a profile, or None for none; `TypeError` or `ValueError` names anything else."""
    return None if value is None else _one_of(tuple(PROFILES), value, name)


def parse_limit(value: object, name: str = "limit") -> int | None:
    """Return bytes, or None for no limit; `ValueError` for zero."""
    if value is None:
        return None
    size = parse_size(value, name)
    if size > sys.maxsize:
        raise OverflowError(f"{name} of {shown(size)} bytes cannot be addressed")
    if size == 0:
        raise ValueError(f"{name} must be more than 0 bytes, got {value!r}")
    return size


def _number(value: object, name: str, wanted: str, whole: bool) -> float | int:
    """Return an int or, unless it must be `whole`, a float; both also from text."""
    if isinstance(value, str):
        try:
            return int(value) if whole or value.strip().isdecimal() else float(value)
        except ValueError:
            raise ValueError(f"{name} must be {wanted}, not {value!r}") from None
    if isinstance(value, float) and not whole:
        return value
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be {wanted}, not {value!r}")
    return int(value.__index__())  # type: ignore[attr-defined]


def _shown(number: float | int) -> object:
    return shown(number) if isinstance(number, int) else number


def parse_megabytes(value: object, name: str = "megabytes") -> float | int | None:
    """Return megabytes of 1 000 000 bytes, or None; `ValueError` for what is not above zero or beyond all addresses."""
    if value is None:
        return None
    number = _number(value, name, "a number of megabytes", whole=False)
    if not 0 < number <= sys.maxsize // MEGABYTE:
        raise ValueError(f"{name} must be more than 0 and within what can be addressed, got {_shown(number)}")
    return number


def parse_interval(value: object, name: str = "interval") -> float | None:
    """Return seconds; None for none, which zero and infinity mean too. `ValueError` for more than a thread can sleep."""
    if value is None:
        return None
    seconds = parse_duration(value, name)
    if TIMEOUT_MAX < seconds < float("inf"):
        raise ValueError(f"{name} must be at most {TIMEOUT_MAX:.0f} seconds, or infinite for never, got {value!r}")
    return seconds if 0 < seconds < float("inf") else None


def parse_count(value: object, name: str = "count") -> int | None:
    """Return a count of at least 1, or None for none; `TypeError` or `ValueError` names anything else."""
    if value is None:
        return None
    count = int(_number(value, name, "a whole number", whole=True))
    if not 1 <= count <= sys.maxsize:
        raise ValueError(f"{name} must be at least 1 and fit a machine word, got {shown(count)}")
    return count


_PARSERS = {
    "limit": parse_limit,
    "leak_detection": parse_leak_mode,
    "threshold_mb": parse_megabytes,
    "critical_threshold_mb": parse_megabytes,
    "gc_interval_seconds": parse_interval,
    "batch_size": parse_count,
    "profile": parse_profile,
}


def configure(**settings: object) -> None:
    """Set defaults for the whole process; what runs already follows at once.

    Parameters
    ----------
    limit : int, str or None
        Most bytes that `default_pool` may reserve.
    leak_detection : {"off", "sampled", "full"}
        For every pool that is made without one.
    threshold_mb, critical_threshold_mb : float or None
        Megabytes (of 1 000 000 bytes) of the process at which pressure is high, and critical. None: fractions of the
        limit that binds.
    gc_interval_seconds : float, str or None
        How often a cleanup runs in the background; None or 0: never.
    batch_size : int or None
        Items of a batch of `mempool.pressure.adaptive_batches`; None: 100.
    profile : {"development", "testing", "production"} or None
        Defaults for what neither `configure` nor the environment names.

    Raises
    ------
    TypeError, ValueError
        For an unknown setting or a value that makes no sense. Then nothing has changed.
    """
    parsed: dict[str, object] = {}
    for name, value in settings.items():
        if name not in _PARSERS:
            raise TypeError(f"configure() has no setting {name!r}; there are {', '.join(_PARSERS)}")
        parsed[name] = _PARSERS[name](value, name)
    with _configuring:  # or what is undone might be what another thread has set meanwhile
        changed = _change(parsed)
    for follower in list(_followers):
        follower(changed)


def _change(parsed: "dict[str, object]") -> "dict[str, object]":
    """Set what was parsed, or nothing if it is refused; what changed by that."""
    before = {name: _configured[name] for name in parsed if name in _configured}
    try:
        _configured.update(parsed)
        changed = _with_profile(parsed)
        if "threshold_mb" in parsed or "critical_threshold_mb" in parsed:
            thresholds()
        for listener in _listeners:
            listener(changed)
    except BaseException:
        for name in parsed:
            _configured.pop(name, None)
        _configured.update(before)
        raise
    return changed


def follow(follower: "Callable[[Mapping[str, object]], None]") -> None:
    """Call `follower` with the settings that changed, by name, after each `configure`; what it raises comes out there."""
    _followers.append(follower)


def unfollow(follower: "Callable[[Mapping[str, object]], None]") -> None:
    """Undo `follow`; nothing happens if it was undone."""
    if follower in _followers:
        _followers.remove(follower)


def lookup(name: str) -> object:
    """Return what `configure`, the environment or the profile says of a setting, None if none does."""
    if name in _configured:
        return _configured[name]
    variable = "MEMPOOL_" + name.upper()
    text = os.environ.get(variable)
    if text:
        return _PARSERS[name](text, variable)
    if name == "profile":
        return None
    profile = lookup("profile")
    return None if profile is None else PROFILES[str(profile)].get(name)


def _with_profile(parsed: "dict[str, object]") -> "dict[str, object]":
    """Add what changes because another profile speaks for what nobody named."""
    if "profile" not in parsed:
        return parsed
    spoken_for = next(iter(PROFILES.values()))
    return {name: lookup(name) for name in spoken_for if name not in _configured} | parsed


def thresholds() -> tuple[int | None, int | None]:
    """Return the bytes that ``threshold_mb`` and ``critical_threshold_mb`` stand for; `ValueError` if they fall."""
    main, critical = _bytes_of("threshold_mb"), _bytes_of("critical_threshold_mb")
    if main is not None and critical is not None and critical < main:
        upper, lower = _origin("critical_threshold_mb"), _origin("threshold_mb")
        raise ValueError(f"{upper} of {lookup('critical_threshold_mb')} is below {lower} of {lookup('threshold_mb')}")
    return main, critical


def _bytes_of(name: str) -> int | None:
    megabytes = lookup(name)
    return max(1, int(megabytes * MEGABYTE)) if isinstance(megabytes, int | float) else None


def _origin(name: str) -> str:
    return name if name in _configured else "MEMPOOL_" + name.upper()


def _after_fork() -> None:
    global _configuring
    _configuring = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
