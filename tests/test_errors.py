"""The tree of errors."""

import copy
import pickle

import pytest

import mempool
from mempool import errors

BASES = {
    "MempoolError": (Exception,),
    "PoolExhausted": (errors.MempoolError, MemoryError),
    "AccountLimitExceeded": (errors.MempoolError, MemoryError),
    "MemoryLimitExceeded": (errors.MempoolError, MemoryError),
    "StaleHandle": (errors.MempoolError, LookupError),
    "MappingError": (errors.MempoolError, OSError),
}


@pytest.mark.parametrize("name", BASES)
def test_bases(name: str) -> None:
    assert getattr(errors, name).__bases__ == BASES[name]


@pytest.mark.parametrize("name", BASES)
def test_reexported_at_the_top(name: str) -> None:
    assert getattr(mempool, name) is getattr(errors, name)
    assert name in mempool.__all__
    assert getattr(errors, name).__module__ == "mempool.errors"


def test_nothing_else_is_public() -> None:
    assert sorted(errors.__all__) == sorted(BASES)


def exhausted() -> errors.PoolExhausted:
    pool = mempool.BufferPool(limit="8KiB", name="small")
    with pool.acquire("4KiB"), pytest.raises(errors.PoolExhausted) as caught:
        pool.acquire(12345)
    return caught.value


def over_account() -> errors.AccountLimitExceeded:
    account = mempool.Account("io", limit=1000)
    with account.charged(700), pytest.raises(errors.AccountLimitExceeded) as caught:
        mempool.Account("reader", parent=account).charge(400)
    return caught.value


def over_guard() -> errors.MemoryLimitExceeded:
    account = mempool.Account("job")
    guard = mempool.accounting.memory_limit(1000, what="external", account=account)
    with pytest.raises(errors.MemoryLimitExceeded) as caught, guard:
        account.charge(1500)
    return caught.value


def test_pool_exhausted_tells_what_and_why() -> None:
    error = exhausted()
    assert (error.requested, error.in_use, error.limit) == (12345, 4096, 8192)
    for word in ("small", "12345", "4096", "8192"):
        assert word in str(error)


def test_account_limit_exceeded_tells_which_account() -> None:
    error = over_account()
    assert (error.account, error.requested, error.used, error.limit) == ("io", 400, 700, 1000)
    for word in ("'io'", "400", "700", "1000"):
        assert word in str(error)


def test_memory_limit_exceeded_tells_of_what() -> None:
    error = over_guard()
    assert (error.what, error.grown, error.limit) == ("external", 1500, 1000)
    for word in ("external", "1500", "1000"):
        assert word in str(error)


@pytest.mark.parametrize("make", [exhausted, over_account, over_guard])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_they_travel_between_processes(make: object, protocol: int) -> None:
    assert callable(make)
    error = make()
    again = pickle.loads(pickle.dumps(error, protocol))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    assert str(copy.copy(error)) == str(error)


def test_one_handler_catches_all_shortages() -> None:
    assert isinstance(exhausted(), MemoryError)
    assert isinstance(over_account(), MemoryError)
    assert isinstance(over_guard(), MemoryError)


def test_a_mapping_error_keeps_what_an_os_error_has() -> None:
    error = mempool.MappingError(5, "too short", "x.npy")
    assert (error.errno, error.strerror, error.filename) == (5, "too short", "x.npy")
