"""Sizes and durations as people write them: ``"64KiB"``, ``"1.5 GB"``, ``"500ms"``."""

__all__ = ["parse_duration", "parse_size"]

_SIZES = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtp", start=1):
    _SIZES[_letter + "b"] = 1000**_power
    _SIZES[_letter + "ib"] = 1024**_power

_MOST_DIGITS = 1000  # Python itself refuses to read a few thousand

_DURATIONS = {
    "": 1.0,
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
}


def shown(number: int) -> int | str:
    """Return what an error may show of a number: Python refuses to write out thousands of digits."""
    return number if number.bit_length() <= 4096 else f"a number of {number.bit_length()} bits"


def _split(text: str) -> tuple[str, str, str]:
    """Split ``"1.5 GiB"`` into whole digits, fraction digits and unit; empty digits if malformed."""
    text = text.strip().lower()
    end = 0
    while end < len(text) and (text[end] in "0123456789."):
        end += 1
    whole, dot, fraction = text[:end].partition(".")
    if "." in fraction or not (whole or fraction) or (dot and not fraction):
        return "", "", ""
    return whole or "0", fraction, text[end:].strip()


def parse_size(value: object, name: str = "size") -> int:
    """Return a size in bytes.

    Parameters
    ----------
    value : int or str
        Bytes, anything with ``__index__``, or text with a decimal (``KB``) or binary (``KiB``) unit, in any case. A
        fraction of a byte is dropped.
    name : str
        What the value is called in errors.

    Raises
    ------
    TypeError
        For other types; ``bool`` and ``float`` are not sizes.
    ValueError
        If the size is negative, or the text or its unit makes no sense.

    Examples
    --------
    >>> parse_size("64KiB"), parse_size("1.5 GB"), parse_size(10)
    (65536, 1500000000, 10)
    """
    if isinstance(value, str):
        whole, fraction, unit = _split(value)
        if not whole or unit not in _SIZES:
            raise ValueError(f"{name} must be a size such as 4096 or '64KiB', not {value!r}")
        if len(whole) + len(fraction) > _MOST_DIGITS:
            raise OverflowError(f"{name} of {value!r} cannot be addressed")
        return int(whole + fraction) * _SIZES[unit] // int(10 ** len(fraction))
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be an int of bytes or a string such as '64KiB', not {value!r}")
    size = int(value.__index__())  # type: ignore[attr-defined]
    if size < 0:
        raise ValueError(f"{name} must not be negative, got {shown(size)}")
    return size


def parse_duration(value: object, name: str = "duration") -> float:
    """Return a duration in seconds.

    Parameters
    ----------
    value : float, int or str
        Seconds, or text with one of the units ``ns us ms s m min h d w``. Infinity means for ever.
    name : str
        What the value is called in errors.

    Raises
    ------
    TypeError
        For other types, ``bool`` and ``None`` among them.
    ValueError
        If the duration is negative or NaN, or the text or its unit makes no sense.

    Examples
    --------
    >>> parse_duration("500ms"), parse_duration("24h"), parse_duration(2)
    (0.5, 86400.0, 2.0)
    """
    if isinstance(value, str):
        whole, fraction, unit = _split(value)
        if not whole or unit not in _DURATIONS:
            raise ValueError(f"{name} must be a duration such as 1.5 or '500ms', not {value!r}")
        return float(f"{whole}.{fraction or 0}") * _DURATIONS[unit]
    if isinstance(value, bool) or not (isinstance(value, float) or hasattr(type(value), "__index__")):
        raise TypeError(f"{name} must be seconds or a string such as '500ms', not {value!r}")
    try:
        seconds = float(value)  # type: ignore[arg-type]
    except OverflowError:
        raise ValueError(f"{name} must fit a float, got {shown(int(value))}") from None  # type: ignore[call-overload]
    if not seconds >= 0:
        raise ValueError(f"{name} must not be negative or NaN, got {value!r}")
    return seconds
