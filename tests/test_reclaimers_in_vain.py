"""Reclaimers that are asked and make no room where it is needed."""

from collections.abc import Iterator

import pytest

from mempool import Account, AccountLimitExceeded, BufferPool, PoolExhausted, _reclaim
from mempool._reclaim import Registration, relieve
from mempool.accounting import register_reclaimer
from reclaim_kit import Hoard, no_reclaimers
from support import KIB, MIB


@pytest.fixture(autouse=True)
def nobody_else() -> Iterator[None]:
    with no_reclaimers():
        yield


def test_who_makes_no_room_for_a_limit_sits_out() -> None:
    """A pool whose limit is met all the time must not empty the caches of everybody."""
    elsewhere = BufferPool()
    hoard = Hoard(MIB)
    hoard.kept = [elsewhere.acquire(MIB) for _ in range(64)]
    register_reclaimer(hoard.give_up)
    pool = BufferPool(limit=MIB)
    with pool.acquire(MIB):
        for _ in range(200):
            with pytest.raises(PoolExhausted):
                pool.acquire(MIB)
    assert 1 <= len(hoard.asked) <= 12
    assert relieve(MIB) == MIB


def test_who_sits_out_for_one_limit_is_asked_for_another() -> None:
    tight, images = Account("tight", limit=100), Account("images", limit=100)
    tight.charge(100)
    images.charge(100)

    def cache(needed: int) -> int:
        if sits_out:
            images.discharge(needed)
        return needed

    sits_out = False
    register_reclaimer(cache)
    for _ in range(8):
        with pytest.raises(AccountLimitExceeded):
            tight.charge(50)
    sits_out = True
    images.charge(50)
    tight.discharge(100)
    images.discharge(100)


def test_who_can_only_free_below_a_limit_never_sits_out() -> None:
    account, calls = Account("a", limit=100), 0
    account.charge(100)

    def cache(needed: int) -> int:
        nonlocal calls
        calls += 1
        if helps:
            account.discharge(needed)
        return needed

    helps = False
    registration = register_reclaimer(cache, account=account)
    for _ in range(100):
        with pytest.raises(AccountLimitExceeded):
            account.charge(50)
    assert 100 <= calls <= 100 + 16
    helps = True
    account.charge(50)
    registration.cancel()
    assert registration._number not in _reclaim._collector_of(account).doubts._vain
    account.discharge(100)


def test_a_limit_that_was_raised_is_room_though_nothing_was_freed() -> None:
    account = Account("a", limit=100)
    account.charge(100)
    pool = BufferPool(limit=MIB)

    def raise_limits(needed: int) -> int:
        account.limit = 150
        pool.limit = 2 * MIB
        return 0

    register_reclaimer(raise_limits)
    account.charge(50)
    with pool.acquire(MIB), pool.acquire(MIB):
        pass
    with pytest.raises(AccountLimitExceeded, match="50 bytes: 150 used, limit 150"):
        account.charge(50)
    account.discharge(150)


def test_a_liar_ends() -> None:
    account = Account("a", limit=MIB)
    account.charge(MIB)
    calls: list[int] = []
    register_reclaimer(lambda needed: calls.append(needed) or needed)  # type: ignore[func-returns-value]
    with pytest.raises(AccountLimitExceeded):
        account.charge(KIB)
    assert len(calls) <= 3
    account.discharge(MIB)


def test_who_cancels_itself_in_vain_is_forgotten() -> None:
    """A program that makes a new one for each piece of work would keep a note of all of them."""
    account = Account("a", limit=MIB)
    account.charge(MIB)
    made: list[Registration] = []

    def once(needed: int) -> int:
        made[-1].cancel()
        return needed

    for _ in range(3):
        made.append(register_reclaimer(once))
        with pytest.raises(AccountLimitExceeded):
            account.charge(KIB)
    doubts = _reclaim._collector_of(account).doubts
    assert not doubts._vain
    assert not doubts._pauses
    account.discharge(MIB)
