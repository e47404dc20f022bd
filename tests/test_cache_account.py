"""The memory of the table itself: all of it is charged to the cache's account, and given back when the cache is empty."""

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from mempool import Account
from mempool.accounting import register_reclaimer
from mempool.cache import Cache
from mempool.errors import AccountLimitExceeded

POLICIES = ["lru", "fifo", "random", "lfu", "sieve", "s3fifo", "tinylfu"]


def books(cache: Cache[Any, Any]) -> int:
    """Bytes that the account has, which are those that the cache says."""
    assert cache.account.used == cache.stats().own_bytes
    return cache.account.used


@pytest.mark.parametrize("policy", [*POLICIES, "volatile-ttl"])
def test_an_empty_cache_has_no_memory(policy: str) -> None:
    cache: Cache[int, int] = Cache(100_000, policy=policy, ttl=60 if policy == "volatile-ttl" else None)
    for number in range(20_000):
        cache.put(number, number, priority=number % 2)
    full = books(cache)
    cache.clear()
    assert books(cache) == 0
    cache[1] = 1
    assert books(cache) < 20_000 < full
    for number in range(20_000):  # what the policy had is made anew
        cache.put(number, number, priority=number % 2)
    cache.resize(1_000)
    assert len(list(cache)) == 1_000
    assert books(cache) == full


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_for_each_priority_is_charged(policy: str) -> None:
    cache: Cache[int, int] = Cache(20_000, policy=policy)
    for number in range(20_000):
        cache.put(number, number, priority=1)
    one = books(cache)
    for level in range(2, 12):
        cache.put(level, level, priority=level)
        books(cache)
    if policy == "tinylfu":
        assert cache.account.used - one > 10 * 20_000 * 8


def test_a_priority_for_which_there_is_no_room_is_refused() -> None:
    cache: Cache[int, int] = Cache(20_000)
    for number in range(20_000):
        cache.put(number, number, priority=1)
    cache.account.limit = books(cache) + 1_000
    for _ in range(3):
        with pytest.raises(AccountLimitExceeded):
            cache.put(1, -1, priority=2)
        assert cache[1] == 1
        books(cache)
    cache.put(1, 2, priority=1)
    cache.account.limit = None
    cache.put(1, 3, priority=2)
    assert books(cache)
    assert cache[1] == 3


MEDDLING: dict[str, Callable[[Cache[Any, Any]], object]] = {
    "clear": lambda cache: cache.clear(),
    "clear and put": lambda cache: (cache.clear(), cache.update({-1: 1})),
    "priority": lambda cache: cache.put(-2, 2, priority=5),
}


@pytest.mark.parametrize("meddling", MEDDLING)
@pytest.mark.parametrize("policy", ["lru", "tinylfu"])
def test_the_books_are_right_when_a_reclaimer_changes_the_cache(
    monkeypatch: pytest.MonkeyPatch, policy: str, meddling: str
) -> None:
    parent, asked = Account("caches of this test"), 0  # others' caches are collected where a limit refuses
    monkeypatch.setattr(sys.modules["mempool.cache.cache"], "caches_account", parent)
    cache: Cache[int, int] = Cache(100_000, policy=policy)

    def give(needed: int) -> int:
        nonlocal asked
        asked += 1
        had = cache.stats().own_bytes
        with suppress(AccountLimitExceeded):
            MEDDLING[meddling](cache)
        return max(had - cache.stats().own_bytes, 0)

    registration = register_reclaimer(give, account=cache.account)
    cache.account.limit = 60_000
    refused = False
    for number in range(5_000):
        try:
            cache[number] = number
        except AccountLimitExceeded:
            refused = True
        assert books(cache) == parent.used <= 60_000
    assert asked
    assert registration.errors == 0
    assert refused == (meddling == "priority")
    registration.cancel()
    cache.clear()
    assert books(cache) == 0
    assert parent.used == 0


def test_the_index_of_tags_is_charged_and_given_back() -> None:
    cache: Cache[int, None] = Cache(10_000, policy="lru")
    for number in range(10_000):
        cache.put(number, None, tags=("same",))
    shared = books(cache)
    for number in range(10_000):
        cache.put(number, None, tags=(number,))
    assert books(cache) > shared + 10_000 * 30
    cache.clear()
    assert books(cache) == 0
    cache.put(1, None, tags=(1,))
    assert cache.invalidate_tag(1) == 1
    cache.clear()
    assert books(cache) == 0


def test_no_room_for_a_tag_changes_nothing() -> None:
    cache: Cache[int, int] = Cache(10_000, policy="lru")
    for number in range(3):
        cache.put(number, number, tags=(number,))
    cache.account.limit = books(cache)
    number = 3
    with pytest.raises(AccountLimitExceeded):
        while True:
            cache.put(number, number, tags=(number,))
            number += 1
    assert len(list(cache)) == number
    books(cache)
    assert cache.invalidate_tag(number) == 0
    assert cache.invalidate_tag(0) == 1
