"""Settings of the process. Keyword arguments come first, then `configure`, then the environment.

The variables are ``MEMPOOL_LIMIT`` and ``MEMPOOL_LEAK_DETECTION``.
"""

import os
import sys

from mempool.units import parse_size, shown

TYPE_CHECKING = False  # `typing` would cost a third of the time that importing this package takes
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["configure"]

LEAK_MODES = ("off", "sampled", "full")

_configured: dict[str, object] = {}
_listeners: "list[Callable[[Mapping[str, object]], None]]" = []


def parse_leak_mode(value: object, name: str = "leak_detection") -> str:
    """Return one of ``LEAK_MODES``; `TypeError` or `ValueError` names anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(LEAK_MODES)}, not {value!r}")
    if value not in LEAK_MODES:
        raise ValueError(f"{name} must be one of {', '.join(LEAK_MODES)}, not {value!r}")
    return value


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


_PARSERS = {"limit": parse_limit, "leak_detection": parse_leak_mode}


def configure(**settings: object) -> None:
    """Set defaults for the whole process; the default pool follows at once.

    Parameters
    ----------
    limit : int, str or None
        Most bytes that `default_pool` may reserve.
    leak_detection : {"off", "sampled", "full"}
        For every pool that is made without one.

    Raises
    ------
    TypeError, ValueError
        For an unknown setting or a value that makes no sense. Then nothing has changed.
    """
    parsed: dict[str, object] = {}
    for name, value in settings.items():
        if name not in _PARSERS:
            raise TypeError(f"configure() has no setting {name!r}; there are {', '.join(_PARSERS)}")
        parsed[name] = _PARSERS[name](value)
    for listener in _listeners:
        listener(parsed)
    _configured.update(parsed)


def lookup(name: str) -> object:
    """Return what `configure` or the environment says of a setting, None if neither does."""
    if name in _configured:
        return _configured[name]
    variable = "MEMPOOL_" + name.upper()
    text = os.environ.get(variable)
    return None if not text else _PARSERS[name](text, variable)
