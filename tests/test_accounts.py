"""The tree of accounts."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from functools import partial
from operator import methodcaller
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mempool import Account, AccountLimitExceeded, BufferPool
from mempool.accounting import root_account
from support import KIB, MIB, chain, nothing_changes, start, start_waiter, used


class Thing:
    pass


def test_a_fresh_account() -> None:
    account = Account("io", limit="1MiB")
    assert (account.name, account.used, account.peak, account.limit, account.children) == ("io", 0, 0, MIB, ())
    assert account.parent is root_account()
    assert account in root_account().children
    for word in ("'io'", "0 bytes", str(MIB)):
        assert word in repr(account)


@pytest.mark.parametrize("name", ["used", "peak", "children", "name", "parent"])
def test_figures_are_read_only(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(Account("x"), name, None)


def test_the_root() -> None:
    root = root_account()
    assert root is root_account()
    assert (root.name, root.parent, root.limit) == ("root", None, None)


def test_a_charge_counts_for_every_ancestor() -> None:
    accounts = chain(None, None, None)
    accounts[2].charge("1KiB")
    accounts[1].charge(10)
    assert used(accounts) == [1034, 1034, 1024]
    accounts[2].discharge(1024)
    accounts[1].discharge("10B")
    assert used(accounts) == [0, 0, 0]
    assert [account.peak for account in accounts] == [1034, 1034, 1024]


def test_a_charge_counts_for_the_root(run_python: Callable[..., Any]) -> None:
    """In a process of its own: pools of other tests give idle memory back at any moment."""
    run_python("""
        import mempool
        root, account = mempool.accounting.root_account(), mempool.Account("top")
        below = mempool.Account("below", parent=account)
        before = root.used
        below.charge(1024)
        account.charge(10)
        assert root.used == before + 1034
        below.discharge(1024)
        assert root.used == before + 10
        account.discharge(10)
        assert root.used == before
    """)


@pytest.mark.parametrize("binding", range(3))
def test_a_charge_counts_everywhere_or_nowhere(binding: int) -> None:
    accounts = chain(*[1000 if number == binding else None for number in range(3)])
    accounts[2].charge(600)
    before = [(account.used, account.peak) for account in accounts]
    with pytest.raises(AccountLimitExceeded) as caught:
        accounts[2].charge(401)
    error = caught.value
    assert (error.account, error.requested, error.used, error.limit) == (str(binding), 401, 600, 1000)
    assert [(account.used, account.peak) for account in accounts] == before
    accounts[2].charge(400)
    accounts[2].discharge(1000)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), max_size=30))
def test_accounts_against_a_plain_model(steps: list[tuple[int, int]]) -> None:
    limits = [200, None, 120, 60]
    accounts, own, peaks = chain(*limits), [0, 0, 0, 0], [0, 0, 0, 0]
    for at, nbytes in steps:
        sums = [sum(own[number:]) + (nbytes if number <= at else 0) for number in range(4)]
        fits = all(limit is None or total <= limit for total, limit in zip(sums, limits, strict=True))
        try:
            accounts[at].charge(nbytes)
        except AccountLimitExceeded:
            assert not fits
        else:
            assert fits
            own[at] += nbytes
            peaks = [max(peak, total) for peak, total in zip(peaks, sums, strict=True)]
        assert used(accounts) == [sum(own[number:]) for number in range(4)]
        assert [account.peak for account in accounts] == peaks
    for account, nbytes in zip(accounts, own, strict=True):
        account.discharge(nbytes)
    assert used(accounts) == [0, 0, 0, 0]


def test_no_more_is_discharged_than_was_charged_here() -> None:
    parent, child = chain(None, None)
    parent.charge(100)
    child.charge(50)
    for account, nbytes in [(child, 51), (parent, 101), (root_account(), 1)]:
        with pytest.raises(ValueError, match=rf"(?s){nbytes}.*'{account.name}'"):
            account.discharge(nbytes)
    assert used([parent, child]) == [150, 50]
    child.discharge(50)
    parent.discharge(100)


def test_what_a_pool_holds_cannot_be_discharged_by_hand() -> None:
    pool = BufferPool()
    with pool.acquire(5000), nothing_changes(pool), pytest.raises(ValueError, match="1"):
        pool.account.discharge(1)


def test_charged() -> None:
    parent, child = chain(1000, None)
    with child.charged("600B") as account:
        assert account is child
        assert used([parent, child]) == [600, 600]
        with pytest.raises(AccountLimitExceeded), child.charged(401):
            raise AssertionError("not reached")
        assert used([parent, child]) == [600, 600]
    assert used([parent, child]) == [0, 0]
    with pytest.raises(KeyError), child.charged(5):
        raise KeyError
    assert child.used == 0


def test_charged_is_one_of_a_kind() -> None:
    """A copy would discharge once more what was charged once."""
    account = Account("x")
    manager = account.charged(100)
    ways: list[Callable[[Any], object]] = [copy.copy, copy.deepcopy]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        ways += [partial(pickle.dumps, protocol=protocol), methodcaller("__reduce_ex__", protocol)]
    with manager:
        for way in ways:
            with pytest.raises(TypeError):
                way(manager)
        assert account.used == 100
    assert account.used == 0


def test_track_until_the_object_dies() -> None:
    parent, child = chain(None, None)
    thing = Thing()
    child.track(thing, "1KiB")
    child.track(thing, 10)
    assert used([parent, child]) == [1034, 1034]
    del thing
    assert used([parent, child]) == [0, 0]


def test_track_sees_through_cycles() -> None:
    account = Account("cycles")
    thing = Thing()
    thing.me = thing  # type: ignore[attr-defined]
    account.track(thing, 100)
    del thing
    gc.collect()
    assert account.used == 0


def test_track_outlives_the_account_object() -> None:
    (parent,) = chain(None)
    child = Account("child", parent=parent)
    thing = Thing()
    child.track(thing, 100)
    del child
    gc.collect()
    assert [account.name for account in parent.children] == ["child"]
    del thing
    assert (parent.used, parent.children) == (0, ())


def test_what_is_tracked_ends_once() -> None:
    """Anybody can find the weak reference and call its callback."""
    account, thing = Account("x"), Thing()
    account.charge(1000)
    account.track(thing, 100)
    (ref,) = weakref.getweakrefs(thing)
    assert ref.__callback__ is not None
    for _ in range(3):
        ref.__callback__(ref)
        assert account.used == 1000
    del thing
    assert account.used == 1000
    account.discharge(1000)
    assert account.used == 0


@pytest.mark.parametrize("thing", [5, "text", (), None])
def test_track_takes_what_can_be_weakly_referenced(thing: object) -> None:
    account = Account("x", limit=1000)
    with pytest.raises(TypeError):
        account.track(thing, 10)
    assert (account.used, account.peak) == (0, 0)


def test_track_beyond_the_limit() -> None:
    account, thing = Account("x", limit=100), Thing()
    with pytest.raises(AccountLimitExceeded):
        account.track(thing, 101)
    del thing
    assert account.used == 0


def test_what_is_tracked_cannot_be_discharged_by_hand() -> None:
    account, thing = Account("x"), Thing()
    account.track(thing, 100)
    with pytest.raises(ValueError, match="100"):
        account.discharge(100)
    assert account.used == 100
    del thing
    assert account.used == 0


# ---- the tree


def test_children_oldest_first_while_they_live() -> None:
    (parent,) = chain(None)
    children = [Account(name, parent=parent) for name in "abc"]
    assert parent.children == tuple(children)
    ref = weakref.ref(children.pop(1))
    gc.collect()
    assert ref() is None
    assert [child.name for child in parent.children] == ["a", "c"]


def test_a_child_keeps_its_parent() -> None:
    child = Account("child", parent=Account("parent"))
    gc.collect()
    child.charge(10)
    assert child.parent is not None
    assert (child.parent.name, child.parent.used) == ("parent", 10)
    child.discharge(10)


def test_a_charged_account_stays_in_the_tree() -> None:
    (parent,) = chain(None)
    Account("forgotten", parent=parent).charge(10)
    gc.collect()
    (child,) = parent.children
    assert (child.name, child.used) == ("forgotten", 10)
    child.discharge(10)
    del child
    assert (parent.children, parent.used) == ((), 0)


def test_deep_trees_die(run_python: Callable[..., Any]) -> None:
    """In a process of its own, as it would be the stack that overflows; with a charge and a pool at the bottom, too."""
    code = """
        import mempool
        from mempool.accounting import root_account
        for end in (lambda account: None, lambda account: mempool.BufferPool(account=account)):
            account = mempool.Account("top")
            for _ in range(300_000):
                account = mempool.Account("below", parent=account)
            kept = end(account)
            del account, kept
            assert root_account().children == (), root_account().children
    """
    run_python(code, timeout=600)  # under a sanitizer it takes long


def test_tree() -> None:
    top, middle = chain("1MiB", None)
    pool = BufferPool(account=middle, name="reader")
    with pool.acquire(5000) as buffer, top.charged(7):
        leaf = {"name": "reader", "used": buffer.capacity, "peak": buffer.capacity, "limit": None, "children": []}
        below = {**leaf, "name": "1", "children": [leaf]}
        assert middle.tree() == below
        assert top.tree() == {
            "name": "0",
            "used": buffer.capacity + 7,
            "peak": buffer.capacity + 7,
            "limit": MIB,
            "children": [below],
        }
        assert top.tree() in root_account().tree()["children"]


# ---- limits


def test_limits_that_change() -> None:
    parent, child = chain(1000, None)
    child.charge(600)
    child.limit = "700B"
    assert child.limit == 700
    with pytest.raises(AccountLimitExceeded):
        child.charge(101)
    for account in (parent, child):
        with pytest.raises(ValueError, match=r"(?s)599.*600"):
            account.limit = 599
    assert (parent.limit, child.limit) == (1000, 700)
    child.limit = None
    parent.limit = None
    child.charge(10**6)
    child.discharge(10**6 + 600)


def test_a_lower_limit_takes_idle_memory_of_all_pools_below() -> None:
    account = Account("io")
    pools = [BufferPool(account=account) for _ in range(3)]
    held = pools[0].acquire(64 * KIB)
    for pool in pools:
        pool.reserve(64 * KIB, 4)
    account.limit = 128 * KIB
    assert 64 * KIB <= account.used <= 128 * KIB
    with nothing_changes(pools[0], account), pytest.raises(ValueError, match=str(64 * KIB - 1)):
        account.limit = 64 * KIB - 1
    assert account.limit == 128 * KIB
    account.limit = 64 * KIB
    assert [pool.stats().idle for pool in pools] == [0, 0, 0]
    held.release()


@pytest.mark.parametrize("timeout", [0, 3600, None])
def test_an_account_that_binds_is_said_at_once(timeout: float | None) -> None:
    account = Account("io", limit="1MiB")
    pool, other = BufferPool("8MiB", account=account), BufferPool(account=account)
    held = other.acquire("512KiB")
    with nothing_changes(pool, account), pytest.raises(AccountLimitExceeded) as caught:
        pool.acquire("600KiB", timeout=timeout)
    error = caught.value
    assert (error.account, error.requested, error.used, error.limit) == ("io", 600 * KIB, 512 * KIB, MIB)
    assert pool.stats().waits == 0
    held.release()


def test_what_an_account_can_never_grant_does_not_queue() -> None:
    pool = BufferPool("768KiB", account=Account("io", limit="640KiB"))
    held = pool.acquire("512KiB")
    waiter = start_waiter(pool, lambda: pool.acquire("512KiB", timeout=None))
    with pytest.raises(AccountLimitExceeded):
        start(lambda: pool.acquire("700KiB", timeout=None)).result()
    assert pool.stats().waits == 1
    held.release()
    waiter.result().release()


Charge = Callable[[Account, BufferPool], object]


@pytest.mark.parametrize(
    "charge",
    [
        lambda account, pool: pool.acquire(900 * KIB),
        lambda account, pool: pool.reserve(128 * KIB, 7),
        lambda account, pool: account.charge(900 * KIB),
    ],
    ids=["acquire", "reserve", "charge"],
)
def test_idle_memory_of_all_pools_under_the_account_goes_first(charge: Charge) -> None:
    account = Account("io", limit="1MiB")
    below = Account("below", parent=account)
    pools = [BufferPool(account=below), BufferPool(account=account), BufferPool(account=below)]
    for pool in pools:
        pool.reserve(256 * KIB)
    stranger = BufferPool()
    stranger.reserve(256 * KIB)
    kept = charge(account, pools[2])
    assert account.used <= MIB
    assert stranger.stats().idle == 256 * KIB
    if kept is None and pools[2].stats().idle < 896 * KIB:
        account.discharge(900 * KIB)


def test_no_more_idle_memory_of_others_goes_than_needed() -> None:
    account = Account("io", limit="1MiB")
    pool, other = BufferPool(account=account), BufferPool(account=account)
    other.reserve(64 * KIB, 16)
    with pool.acquire(128 * KIB):
        assert other.stats().idle == 896 * KIB


def test_a_hopeless_request_costs_nobody_idle_memory() -> None:
    account = Account("io", limit="1MiB")
    pool, other = BufferPool(account=account), BufferPool(account=account)
    other.reserve(64 * KIB, 4)
    pool.reserve(64 * KIB, 2)
    for call in (lambda: pool.acquire("2MiB"), lambda: account.charge("2MiB"), lambda: pool.reserve("512KiB", 4)):
        with nothing_changes(pool, account), nothing_changes(other), pytest.raises(AccountLimitExceeded):
            call()


def test_accounts_are_charged_what_pools_reserve() -> None:
    account = Account("io")
    pools = [BufferPool(account=account) for _ in range(2)]
    buffers = [pool.acquire(nbytes) for pool in pools for nbytes in (1, 64, 5000, 100_000, 3 * MIB)]

    def check() -> None:
        for pool in pools:
            assert pool.stats().reserved == pool.account.used
            assert pool.stats().peak == pool.account.peak
        assert account.used == sum(pool.stats().reserved for pool in pools)

    for buffer in buffers:
        check()
        buffer.release()
    pools[0].trim("64KiB")
    check()
    pools[0].close()
    check()
    view = memoryview(pools[1].acquire(MIB))
    pools[1].close()
    check()
    assert account.used == MIB
    del view
    assert account.used == 0


def test_a_collected_pool_leaves_nothing_in_the_books() -> None:
    account = Account("io")
    buffer = BufferPool(account=account).acquire(5000)
    view = buffer[:10]
    del buffer
    gc.collect()
    assert account.used == 8192
    del view
    gc.collect()
    assert (account.used, account.children) == (0, ())
