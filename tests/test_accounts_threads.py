"""Accounts that several threads charge and limit at once. What is refused leaves no trace, not for a moment."""

import sys
from collections.abc import Callable, Iterator

import pytest

from mempool import Account, AccountLimitExceeded, BufferPool
from support import chain, start, together, used

ROUNDS = 10_000


@pytest.fixture(autouse=True)
def busy_process() -> Iterator[list[BufferPool]]:
    """Threads take turns often, and there are pools to look through before a limit is refused."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield [BufferPool() for _ in range(300)]
    sys.setswitchinterval(interval)


def refuse_limits(account: Account, limit: int) -> Callable[[], None]:
    """Work for a thread: ask again and again for a limit below what is used."""

    def work() -> None:
        for _ in range(ROUNDS):
            with pytest.raises(ValueError, match=f"limit {limit} is below"):
                account.limit = limit

    return work


def test_threads_charge_all_or_none() -> None:
    accounts = chain(1000, None, 700)
    refused = []

    def work() -> None:
        for number in range(2000):
            account = accounts[1 + number % 2]
            try:
                account.charge(300)
            except AccountLimitExceeded:
                refused.append(number)
                continue
            assert accounts[0].used <= 1000
            account.discharge(300)

    together([work] * 4)
    assert used(accounts) == [0, 0, 0]
    assert accounts[0].peak <= 1000
    assert accounts[2].peak <= 700


def test_refused_limits_never_stay() -> None:
    account = Account("io", limit=1000)
    account.charge(500)
    together([refuse_limits(account, 100 + number) for number in range(4)])
    assert account.limit == 1000
    account.charge(500)
    account.discharge(1000)


def test_a_refused_limit_undoes_no_other() -> None:
    account = Account("io", limit=1000)
    account.charge(500)
    lost = []

    def set_limits() -> None:
        for number in range(ROUNDS):
            account.limit = limit = 600 + number % 300
            for _ in range(10):
                if account.limit != limit:
                    lost.append((limit, account.limit))

    together([refuse_limits(account, 100), refuse_limits(account, 200), set_limits])
    assert lost == []
    assert account.limit == 600 + (ROUNDS - 1) % 300
    account.discharge(500)


def test_charges_are_not_refused_by_a_limit_that_is_refused() -> None:
    accounts = chain(1000, None, None)
    accounts[0].charge(500)

    def charge() -> None:
        for _ in range(5 * ROUNDS):
            accounts[2].charge(50)
            accounts[2].discharge(50)

    together([refuse_limits(accounts[0], 100), refuse_limits(accounts[0], 499), charge, charge])
    assert used(accounts) == [500, 0, 0]
    assert accounts[0].limit == 1000
    accounts[0].discharge(500)


def test_a_hopeless_charge_stands_in_nobodys_way() -> None:
    """What will be refused further up is not counted on the way there, where it would leave no room for a sibling."""
    top, *_, parent = chain(100, *[None] * 500, 100)  # a long way
    hopeless, modest = Account("hopeless", parent=parent), Account("modest", parent=parent)
    top.charge(60)
    modest_is_done = False

    def fail() -> None:
        while not modest_is_done:
            with pytest.raises(AccountLimitExceeded):
                hopeless.charge(80)

    failing = [start(fail), start(fail)]
    try:
        for _ in range(ROUNDS):
            modest.charge(30)
            modest.discharge(30)
    finally:
        modest_is_done = True
        for thread in failing:
            thread.result()
    assert (top.used, parent.used, parent.peak) == (60, 0, 30)
    top.discharge(60)
