"""Settings for development, testing and production, and `recommend`."""

from dataclasses import asdict, dataclass

from mempool import settings
from mempool._system import limits
from mempool.units import parse_size, shown

__all__ = ["Settings", "profile", "recommend"]

_GB = 1_000_000_000
_LEAST = 16_000_000  # less than an interpreter with this package takes


@dataclass(frozen=True, slots=True)
class Settings:
    """What `mempool.configure` may be told. None: not said, so that others have the word.

    Attributes
    ----------
    profile : str or None
        Whose values hold for what nobody says.
    limit : int or None
        Bytes that the default pool may reserve.
    leak_detection : str or None
        ``"off"``, ``"sampled"`` or ``"full"``.
    threshold_mb, critical_threshold_mb : float or None
        Megabytes of the process at which pressure is high, and critical.
    gc_interval_seconds : float or None
        How often a cleanup runs in the background.
    batch_size : int or None
        Items of a batch.
    """

    profile: str | None = None
    limit: int | None = None
    leak_detection: str | None = None
    threshold_mb: float | None = None
    critical_threshold_mb: float | None = None
    gc_interval_seconds: float | None = None
    batch_size: int | None = None

    @classmethod
    def current(cls) -> "Settings":
        """Return what holds now, as `configure`, the environment and the profile say it.

        Raises
        ------
        TypeError, ValueError
            For a value in the environment that makes no sense; the message names the variable.
        """
        return cls(**{name: settings.lookup(name) for name in cls.__slots__})  # type: ignore[arg-type]

    def said(self) -> dict[str, object]:
        """Return what is not None, by name: the arguments of `configure`."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def apply(self) -> None:
        """Configure the process so.

        Raises
        ------
        TypeError, ValueError
            As `configure`; then nothing has changed.
        """
        settings.configure(**self.said())

    def environment(self) -> dict[str, str]:
        """Return the variables that say the same to another process.

        Examples
        --------
        >>> from mempool.pressure import Settings
        >>> Settings(profile="testing", batch_size=5).environment()
        {'MEMPOOL_PROFILE': 'testing', 'MEMPOOL_BATCH_SIZE': '5'}
        """
        return {"MEMPOOL_" + name.upper(): _text(value) for name, value in self.said().items()}


def _text(value: object) -> str:
    """Return a value as `lookup` reads it: no exponents, and no infinity, which means never."""
    text = str(value)
    if not isinstance(value, float) or "e" not in text:
        return "0" if value == float("inf") else text
    from decimal import Decimal

    return format(Decimal(text), "f")


def profile(name: str) -> Settings:
    """Return what a profile says: ``"development"``, ``"testing"`` or ``"production"``.

    Raises
    ------
    TypeError, ValueError
        For another.

    Examples
    --------
    >>> from mempool.pressure import profile
    >>> profile("testing").leak_detection
    'full'
    """
    checked = settings.parse_profile(name)
    if checked is None:
        raise TypeError(f"profile must be one of {', '.join(settings.PROFILES)}, not None")
    return Settings(profile=checked, **settings.PROFILES[checked])  # type: ignore[arg-type]


def recommend(total_or_target: int | str | None = None) -> Settings:
    """Return settings for a program that may take so much memory; nothing is applied.

    Parameters
    ----------
    total_or_target : int or str, optional
        Bytes for the whole program: the RAM of a machine that it has to itself, the limit of its container, or what it should stay
        within. None: the smallest limit that is found here.

    Returns
    -------
    Settings
        For production: high from 70 % on, critical from 85 % on, half for the default pool, a cleanup every 15 seconds for each GB
        (from 30 to 300), and 12.5 items to a batch for each GB (from 10 to 1000).

    Raises
    ------
    TypeError, ValueError
        For what is no size, or less than 16 MB.
    OSError
        If it is None, and nothing tells how much memory there is.

    Examples
    --------
    >>> from mempool.pressure import recommend
    >>> settings = recommend("8GB")
    >>> settings.threshold_mb, settings.critical_threshold_mb, settings.batch_size
    (5600, 6800, 100)
    """
    total = _found() if total_or_target is None else parse_size(total_or_target, "total_or_target")
    if total < _LEAST:
        raise ValueError(f"total_or_target must be at least 16 MB, got {shown(total)} bytes")
    return Settings(
        profile="production",
        limit=settings.parse_limit(total // 2, "total_or_target"),
        leak_detection="sampled",
        threshold_mb=total * 70 // 100 // settings.MEGABYTE,
        critical_threshold_mb=total * 85 // 100 // settings.MEGABYTE,
        gc_interval_seconds=float(min(300, max(30, 15 * total // _GB))),
        batch_size=min(1000, max(10, 25 * total // (2 * _GB))),
    )


def _found() -> int:
    survey = limits.survey()
    if survey.smallest is None:
        raise survey.errors[0] if survey.errors else OSError("nothing tells how much memory there is")
    return survey.smallest.limit
