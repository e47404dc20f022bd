"""Any callable that returns (used, limit)."""

from collections.abc import Callable

from mempool.pressure.sources.base import Reading, Scope, checked_scope

__all__ = ["CallableSource"]


def _bytes(value: object, what: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{what} must be bytes or None, not {value!r}")
    number = value.__index__()
    if number < 0:
        raise ValueError(f"{what} must not be negative, got {number}")
    return int(number)


class CallableSource:
    """A function as a source.

    Parameters
    ----------
    func : callable
        Returns ``(used, limit)`` in bytes, either may be None, or a `Reading`. It runs in whichever thread polls.
    name : str, optional
        That of the function if not given.
    scope : {"own", "shared"}

    Examples
    --------
    >>> from mempool.pressure.sources import CallableSource
    >>> CallableSource(lambda: (3 << 20, 4 << 20), "graphics").read()
    Reading(used=3145728, limit=4194304, level=None)
    """

    def __init__(self, func: Callable[[], object], name: str | None = None, *, scope: Scope = "own") -> None:
        if not callable(func):
            raise TypeError(f"func must be callable, not {func!r}")
        self._func, self._scope = func, checked_scope(scope)
        self._name = name or str(getattr(func, "__qualname__", None) or type(func).__qualname__)

    @property
    def name(self) -> str:
        """As given, or that of the function."""
        return self._name

    @property
    def scope(self) -> Scope:
        """As given."""
        return self._scope

    def read(self) -> Reading:
        """Ask the function.

        Raises
        ------
        OSError, ValueError
            What the function raised of these; anything else becomes a `ValueError` with that as its cause. An answer that makes no
            sense is one too.
        """
        try:
            answer = self._func()
        except (OSError, ValueError):
            raise
        except Exception as error:
            raise ValueError(f"{self._name} raised {error!r}") from error
        if isinstance(answer, Reading):
            return Reading(_bytes(answer.used, "used"), _bytes(answer.limit, "limit"), answer.level)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise ValueError(f"{self._name} must return (used, limit), not {answer!r}")
        return Reading(_bytes(answer[0], "used"), _bytes(answer[1], "limit"))

    def __repr__(self) -> str:
        return f"CallableSource({self._name!r})"
