"""Sizes and durations as people write them."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mempool import units
from mempool.units import parse_duration, parse_size
from support import may_raise

BYTES = {"": 1, "B": 1} | {f"{p}B": 1000**i for i, p in enumerate("KMGTP", 1)}
BYTES |= {f"{p}iB": 1024**i for i, p in enumerate("KMGTP", 1)}
SECONDS = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


class Index:
    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (4096, 4096),
        (2**70, 2**70),
        (Index(7), 7),
        (np.int64(9), 9),
        (np.uint8(255), 255),
        ("0", 0),
        ("1024", 1024),
        ("10 B", 10),
        ("64KiB", 65536),
        ("64kib", 65536),
        ("64KIB", 65536),
        (" 64  KiB ", 65536),
        ("5GB", 5 * 10**9),
        ("1.5 GiB", 3 << 29),
        (".5 MiB", 1 << 19),
        ("0.1GB", 10**8),
        ("0.3KB", 300),
        ("1.0000001MB", 1000000),
        ("8PiB", 1 << 53),
    ],
)
def test_sizes(value: object, size: int) -> None:
    parsed = parse_size(value)
    assert parsed == size
    assert type(parsed) is int


@given(st.integers(0, 10**6), st.sampled_from(sorted(BYTES)), st.sampled_from(["", " "]), st.data())
def test_every_unit_in_every_case(number: int, unit: str, gap: str, data: st.DataObject) -> None:
    written = "".join(data.draw(st.sampled_from([letter.lower(), letter.upper()])) for letter in unit)
    assert parse_size(f"{number}{gap}{written}") == number * BYTES[unit]


@given(st.integers(0, 2**60), st.sampled_from(["KiB", "MiB", "TB"]))
def test_fractions_of_sizes_are_exact(number: int, unit: str) -> None:
    whole, rest = divmod(number, 1000)
    assert parse_size(f"{whole}.{rest:03}{unit}") == number * BYTES[unit] // 1000


@pytest.mark.parametrize("value", [True, False, 1.0, math.nan, None, [1], (1,), b"1KiB", object(), 1j, {}])
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(TypeError, match=re.escape(repr(value))) as caught:
        parse_size(value, "max_idle")
    assert "max_idle" in str(caught.value)


NONSENSE = [
    *("", " ", "KiB", "B", ".", "1.", "1.2.3KB", "1,5KB", "½KB", "٣KB"),
    *("-1", "-5KB", "+5", "nan", "inf", "1e3", "0x10", "1_000", "1 2"),
    *("1K", "1M", "3 G", "1kb/s", "1 XB", "1 EiB", "5 K iB"),
]


@pytest.mark.parametrize("value", NONSENSE)
def test_nonsense_sizes(value: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(value))) as caught:
        parse_size(value, "limit")
    assert "limit" in str(caught.value)


@pytest.mark.parametrize("value", [-1, -(2**80), Index(-3), np.int32(-7)])
def test_negative_sizes(value: object) -> None:
    number = value.value if isinstance(value, Index) else value
    with pytest.raises(ValueError, match=f"size must not be negative, got {number}"):
        parse_size(value)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused_by_name(text: str) -> None:
    with may_raise(ValueError, repr(text)):
        assert parse_size(text) >= 0


@pytest.mark.parametrize("parse", [parse_size, parse_duration])
def test_digits_without_end(parse: object) -> None:
    assert callable(parse)
    with may_raise((ValueError, OverflowError), "9" * 100):
        assert parse("9" * 5000) > 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (2, 2.0),
        (0.25, 0.25),
        (math.inf, math.inf),
        (np.float64(1.5), 1.5),
        ("1.5", 1.5),
        ("500ms", 0.5),
        ("500 MS", 0.5),
        ("24h", 86400.0),
        ("7d", 604800.0),
        ("2w", 1209600.0),
        ("5min", 300.0),
        ("5m", 300.0),
        ("10s", 10.0),
        (".5s", 0.5),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    parsed = parse_duration(value)
    assert parsed == seconds
    assert type(parsed) is float


@given(st.integers(0, 10**6), st.sampled_from(sorted(SECONDS)), st.sampled_from(["", " "]))
def test_every_unit_of_time(number: int, unit: str, gap: str) -> None:
    assert parse_duration(f"{number}{gap}{unit}") == pytest.approx(number * SECONDS[unit])


@pytest.mark.parametrize("value", [True, False, None, [1], b"1s", object(), 1j])
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(TypeError, match=re.escape(repr(value))) as caught:
        parse_duration(value, "timeout")
    assert "timeout" in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [-1, -0.5, math.nan, -math.inf, 10**400, "", "s", "-1s", "nan", "inf", "1 parsec", "1.2.3s", "5.", "1e3s", "1h30m"],
)
def test_nonsense_durations(value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(value))) as caught:
        parse_duration(value, "idle_timeout")
    assert "idle_timeout" in str(caught.value)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_refused_by_name(text: str) -> None:
    with may_raise(ValueError, repr(text)):
        assert parse_duration(text) >= 0


@given(st.floats())
def test_any_float_is_a_duration_or_refused_by_name(value: float) -> None:
    if value >= 0:
        assert parse_duration(value) == value
    else:
        with pytest.raises(ValueError, match=re.escape(repr(value))):
            parse_duration(value)


def test_what_the_module_gives() -> None:
    assert sorted(units.__all__) == ["parse_duration", "parse_size"]
