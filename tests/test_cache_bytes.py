"""A bound in bytes holds, whatever the sizes."""

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_kit import Told
from mempool.cache import Cache, Cause

POLICIES = ["lru", "fifo", "random", None]


def test_bytes_are_real_ones() -> None:
    cache: Cache[str, Any] = Cache(max_bytes="1 MiB")
    values = {"bytes": bytes(1000), "text": "x" * 500, "number": 1 << 500, "tuple": (1, 2, 3)}
    cache.update(values)
    assert cache.currsize == sum(map(sys.getsizeof, values.values()))
    assert cache.getsizeof(values["bytes"]) == sys.getsizeof(values["bytes"])
    assert (cache.max_bytes, cache.maxsize) == (1 << 20, 1 << 20)


def test_it_evicts_as_many_as_it_takes() -> None:
    told = Told()
    cache: Cache[int, bytes] = Cache(max_bytes=10_000, on_evict=told, policy="fifo")
    for number in range(20):
        cache[number] = bytes(400)
    assert told.all == []
    cache[20] = bytes(5000)
    gone = told.take()
    assert [cause for *_, cause in gone] == [Cause.EVICTED] * len(gone)
    assert {key for key, *_ in gone} == set(range(len(gone)))
    assert cache.currsize <= 10_000 < cache.currsize + sys.getsizeof(bytes(400))


def test_a_replacement_that_grows_evicts_others() -> None:
    cache: Cache[int, bytes] = Cache(max_bytes=1000, policy="lru")
    cache[1], cache[2] = bytes(300), bytes(300)
    cache[1] = bytes(900)
    assert list(cache) == [1]
    assert cache.currsize == sys.getsizeof(bytes(900))
    with pytest.raises(ValueError, match="value too large: 1033, where the bound is 1000"):
        cache[1] = bytes(1000)
    assert cache[1] == bytes(900)
    cache[1] = b""
    assert cache.currsize == sys.getsizeof(b"")


def test_both_bounds_hold() -> None:
    cache: Cache[int, bytes] = Cache(3, max_bytes=1000, policy="fifo")
    for number in range(10):
        cache[number] = b"x"
    assert sorted(cache) == [7, 8, 9]
    cache[10] = bytes(900)
    assert cache.currsize <= 1000
    assert 10 in cache
    none: Cache[int, bytes] = Cache(0, max_bytes=1000)
    with pytest.raises(ValueError, match="value too large"):
        none[1] = b""


def test_getsizeof_counts_instead_of_real_bytes() -> None:
    cache: Cache[int, int] = Cache(max_bytes=100, getsizeof=lambda value: value)
    cache[1], cache[2] = 60, 40
    assert cache.currsize == 100
    cache[3] = 1
    assert cache.currsize <= 100


def test_sizes_that_are_nothing() -> None:
    cache: Cache[int, int] = Cache(max_bytes=10, getsizeof=lambda value: value, policy="lru")
    for number in range(100):
        cache[number] = 0
    assert (len(cache), cache.currsize) == (100, 0)
    cache[0] = 10
    assert cache.currsize == 10
    cache[1] = 1
    assert cache.currsize <= 10
    assert cache[1] == 1


def test_a_size_is_taken_when_it_is_put() -> None:
    grown = bytearray(10)
    cache: Cache[int, bytearray] = Cache(max_bytes=10_000)
    cache[1] = grown
    before = cache.currsize
    grown.extend(bytes(5000))
    assert cache.currsize == before
    del cache[1]
    assert cache.currsize == 0


programs = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "get", "pop", "popitem", "resize", "priority", "clear"]),
        st.integers(0, 12),
        st.one_of(st.integers(0, 40), st.sampled_from([0, 1, 99, 100, 101, 1 << 40, (1 << 64) - 1, 1 << 64])),
    ),
    max_size=60,
)


@given(st.sampled_from(POLICIES), st.integers(0, 100), st.one_of(st.none(), st.integers(0, 8)), programs)
def test_the_bound_holds_after_every_call(
    policy: str | None, bound: int, most: int | None, program: list[tuple[str, int, int]]
) -> None:
    """And what was just written is there, and the sum is that of what is there."""
    told = Told()
    cache: Cache[int, int] = Cache(most, max_bytes=bound, policy=policy, getsizeof=lambda value: value, on_evict=told)
    for what, key, size in program:
        before = dict(cache.items())
        if what in ("put", "priority"):
            try:
                cache.put(key, size, priority=size % 3 if what == "priority" else 0)
            except ValueError:
                assert size > bound or most == 0
                assert dict(cache.items()) == before
            else:
                assert cache._peek(key)[0] == size <= bound
        elif what == "get":
            assert cache.get(key) == before.get(key)
        elif what == "pop":
            assert cache.pop(key, None) == before.get(key)
        elif what == "popitem" and before:
            found, value = cache.popitem()
            assert before.pop(found) == value
        elif what == "resize":
            bound = min(size, 1 << 62)
            cache.resize(max_bytes=bound)
        elif what == "clear":
            cache.clear()
        assert cache.currsize == sum(cache.values()) <= bound
        assert len(cache) == len(dict(cache.items())) <= (1 << 60 if most is None else most)
        assert set(cache.items()) <= set(before.items()) | {(key, size)}
