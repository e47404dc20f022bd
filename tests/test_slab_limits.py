"""What a slab takes from the OS: never more than limits and accounts allow, all of it shown, and all of it given back."""

import os
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import mempool
from mempool import Account, AccountLimitExceeded, BufferPool, PoolExhausted, SlabAllocator, SlabStats
from support import KIB, MIB

PAGE = 4 * KIB


def books(slab: SlabAllocator, *accounts: Account) -> tuple[object, ...]:
    """All that a failed call must leave as it was."""
    charged = [(account.used, account.peak) for account in (slab.account, *accounts)]
    return slab.stats(), charged, slab.handles().tolist(), slab.compacted().tobytes()


@contextmanager
def nothing_changes(slab: SlabAllocator, *accounts: Account) -> Iterator[None]:
    before = books(slab, *accounts)
    yield
    assert books(slab, *accounts) == before


def check(slab: SlabAllocator) -> SlabStats:
    """What holds in every state and at every moment."""
    stats = slab.stats()
    assert stats.live == len(slab) == len(slab.handles()) == stats.allocs - stats.frees
    assert stats.live + stats.retired + stats.exhausted <= stats.slots <= stats.max_items
    assert stats.reserved == slab.account.used <= stats.peak == slab.account.peak
    assert stats.live * stats.item_size <= stats.reserved <= stats.address_space
    assert stats.limit is None or stats.peak <= stats.limit
    assert stats.reserved % PAGE == 0
    assert len(slab.array) == stats.slots
    return stats


def whole_cost(item: Any, count: int) -> int:
    """Bytes that a slab of so many items takes when it is full."""
    slab = SlabAllocator(item, max_items=count)
    slab.alloc_many(count)
    return slab.stats().reserved


# ---- how many


@pytest.mark.parametrize("most", [1, 2, 63, 64, 65, 1000, 4096, 100_000])
@pytest.mark.parametrize("item", [1, 24, 5000])
def test_max_items_is_exact(most: int, item: int) -> None:
    if item * most > 64 * MIB:
        most = 64 * MIB // item
    slab = SlabAllocator(item, max_items=most, name="full")
    with pytest.raises(PoolExhausted):
        slab.alloc_many(most + 1)
    handles = slab.alloc_many(most)
    for count, call in ((1, slab.alloc), (1, lambda: slab.alloc_many(1)), (5, lambda: slab.alloc_many(5))):
        with nothing_changes(slab), pytest.raises(PoolExhausted) as caught:
            call()
        error = caught.value
        assert (error.requested, error.in_use, error.limit) == (count * item, most * item, most * item)
        for word in ("'full'", f"{count} more items of {item} bytes", f"{most} are used", f"max_items is {most}"):
            assert word in str(error)
    slab.free(handles[-1])
    assert slab.alloc() in slab
    assert check(slab).slots == most


def test_items_alone_fill_a_slab_as_many_at_once_do() -> None:
    slab = SlabAllocator(24, max_items=3000)
    handles = [slab.alloc() for _ in range(3000)]
    with nothing_changes(slab), pytest.raises(PoolExhausted):
        slab.alloc()
    assert check(slab).reserved == whole_cost(24, 3000)
    assert len(set(handles)) == 3000


@pytest.mark.parametrize("count", [100, 5000, 100_000])
@pytest.mark.parametrize("item", [1, 24, 300])
def test_a_limit_is_exact(item: int, count: int) -> None:
    cost = whole_cost(item, count)
    assert count * item <= cost <= count * item + 8.2 * count + 8 * PAGE
    enough = SlabAllocator(item, max_items=count, limit=cost)
    enough.alloc_many(count)
    assert check(enough).reserved == cost
    slab = SlabAllocator(item, max_items=count, limit=cost - 1, name="tight")
    with nothing_changes(slab), pytest.raises(PoolExhausted) as caught:
        slab.alloc_many(count)
    error = caught.value
    assert (error.requested, error.in_use, error.limit) == (count * item, 0, cost - 1)
    for word in ("'tight'", f"{count} more items of {item} bytes", "0 bytes reserved", f"limit {cost - 1}"):
        assert word in str(error)


def fill(slab: SlabAllocator) -> int:
    """Allocate until it is refused; how many there are."""
    with pytest.raises(MemoryError):
        while True:
            slab.alloc()
    return len(slab)


def test_a_limit_is_used_up_item_by_item() -> None:
    slab = SlabAllocator(100, limit="1MiB", name="tight")
    count = fill(slab)
    stats = check(slab)
    assert MIB - 3 * PAGE < stats.reserved <= MIB
    assert count * 100 > MIB * 0.9
    with nothing_changes(slab), pytest.raises(PoolExhausted, match=f"limit {MIB}") as caught:
        slab.alloc()
    assert (caught.value.requested, caught.value.in_use, caught.value.limit) == (100, stats.reserved, MIB)
    for handle in list(slab)[::2]:
        slab.free(handle)
    assert fill(slab) == count


@pytest.mark.parametrize("limit", [1, 100, PAGE, 4 * PAGE])
def test_limits_too_small_for_anything(limit: int) -> None:
    slab = SlabAllocator(8, limit=limit)
    with nothing_changes(slab), pytest.raises(PoolExhausted, match=f"limit {limit}"):
        slab.alloc()
    with nothing_changes(slab), pytest.raises(PoolExhausted):
        slab.alloc_many(1000)
    assert slab.alloc_many(0).shape == (0,)
    assert slab.array.shape == (0, 8)


@pytest.mark.parametrize("n", [2**33, 2**40, 2**60, 2**63 - 1])
@pytest.mark.parametrize("arguments", [{}, {"limit": "1MiB"}, {"max_items": 100}, {"max_items": 2**62}], ids=repr)
def test_what_no_machine_has(n: int, arguments: dict[str, Any]) -> None:
    slab = SlabAllocator(1 << 20, **arguments)
    slab.alloc_many(0)
    with nothing_changes(slab), pytest.raises(PoolExhausted, match=str(n)) as caught:
        slab.alloc_many(n)
    assert caught.value.requested == n << 20


# ---- accounts


def test_an_account_is_charged_what_is_taken() -> None:
    above = Account("above")
    slab, other = SlabAllocator(100, account=above), SlabAllocator("f8", account=above)
    for count in (1, 10, 1000, 100_000):
        slab.alloc_many(count)
        other.alloc_many(count)
        assert above.used == slab.stats().reserved + other.stats().reserved
        check(slab)
        check(other)
    other.close()
    assert above.used == slab.stats().reserved > 0
    del slab
    assert above.used == 0
    assert above.peak > 0


def test_reports_show_whose_memory_a_view_holds() -> None:
    above = Account("above")
    slab = SlabAllocator(100, account=above, name="gone")
    view = slab[slab.alloc()]
    del slab
    assert [(below.name, below.used) for below in above.children] == [("gone", above.used)]
    assert above.used > 0
    del view
    assert (above.children, above.used) == ((), 0)


def test_an_account_limit_is_exact() -> None:
    cost = whole_cost(24, 10_000)
    above = Account("above", limit=cost)
    SlabAllocator(24, max_items=10_000, account=above).alloc_many(10_000)
    above.limit = cost - 1
    slab = SlabAllocator(24, max_items=10_000, account=above, name="short")
    with nothing_changes(slab, above), pytest.raises(AccountLimitExceeded) as caught:
        slab.alloc_many(10_000)
    error = caught.value
    assert (error.account, error.requested, error.used, error.limit) == ("above", 240_000, 0, cost - 1)
    for word in ("'above'", "240000", f"limit {cost - 1}"):
        assert word in str(error)
    assert len(slab.alloc_many(9000)) == 9000


def test_an_account_limit_is_used_up_item_by_item() -> None:
    top = Account("top", limit="1MiB")
    slab = SlabAllocator(100, account=Account("middle", parent=top))
    slab.alloc_many(0)
    fill(slab)
    stats = check(slab)
    assert MIB - 3 * PAGE < stats.reserved == top.used <= MIB
    with nothing_changes(slab, top), pytest.raises(AccountLimitExceeded) as caught:
        slab.alloc()
    error = caught.value
    assert (error.account, error.requested, error.used, error.limit) == ("top", 100, stats.reserved, MIB)
    with nothing_changes(slab, top), pytest.raises(AccountLimitExceeded, match="'top'"):
        slab.alloc_many(100)


def test_the_idle_tail_goes_when_an_account_is_short() -> None:
    above = Account("above", limit="4MiB")
    slab, other = SlabAllocator(1000, account=above), SlabAllocator(1000, account=above)
    handles = slab.alloc_many(3000)
    slab.array[:] = 9
    slab.free_many(handles[10:])
    assert slab.stats().reserved > 3_000_000
    other.alloc_many(3000)
    assert slab.stats().reserved < MIB // 4
    assert slab.array[:10].all()
    assert not slab.array[100:].any()
    assert above.used == check(slab).reserved + check(other).reserved <= 4 * MIB
    with nothing_changes(slab, above), pytest.raises(AccountLimitExceeded):
        slab.alloc_many(2990)
    slab.alloc_many(100)


def test_slabs_and_pools_give_way_to_each_other() -> None:
    above = Account("above", limit="4MiB")
    slab, pool = SlabAllocator(1000, account=above), BufferPool(account=above, leak_detection="off", idle_timeout=None)
    slab.free_many(slab.alloc_many(3000))
    pool.acquire("3MiB").release()
    assert slab.stats().reserved < MIB
    assert pool.stats().idle == 3 * MIB
    kept = slab.alloc_many(3000)
    assert pool.stats().idle == 0
    with pytest.raises(AccountLimitExceeded):
        pool.acquire("3MiB")
    slab.free_many(kept)
    with above.charged("3MiB"):
        assert slab.stats().reserved < MIB


def test_a_viewed_tail_is_not_taken() -> None:
    above = Account("above", limit="4MiB")
    slab = SlabAllocator(1000, account=above)
    handles = slab.alloc_many(3000)
    view = slab[int(handles[-1])]
    view[:] = b"v" * 1000
    slab.free_many(handles)
    with nothing_changes(slab), pytest.raises(AccountLimitExceeded):
        above.charge("3MiB")
    assert bytes(view) == b"v" * 1000
    del view
    with above.charged("3MiB"):
        pass


# ---- trim


def test_trim_gives_the_tail_back() -> None:
    slab = SlabAllocator(1000)
    handles = slab.alloc_many(10_000)
    array = slab.array
    array[:] = 7
    assert slab.trim() <= 64 * KIB
    assert slab.trim() == 0
    slab.free_many(handles[5000:])
    before = slab.stats()
    freed = slab.trim()
    after = check(slab)
    assert 5_000_000 - PAGE <= freed == before.reserved - after.reserved
    assert (after.peak, after.slots, after.live) == (before.peak, 10_000, 5000)
    assert (array[:5000] == 7).all()
    assert not array[5100:].any()
    assert slab.trim() == 0


def test_a_live_item_at_the_end_holds_all() -> None:
    slab = SlabAllocator(1000)
    handles = slab.alloc_many(1000)
    slab.trim()
    slab.free_many(handles[:-1])
    with nothing_changes(slab):
        assert slab.trim() == 0
    slab.free(handles[-1])
    assert slab.trim() >= 1_000_000
    assert slab.stats().reserved < 64 * KIB


def test_a_slab_grows_again_after_a_trim() -> None:
    slab = SlabAllocator("i8")
    array = slab.array
    for round_ in range(1, 20):
        handles = slab.alloc_many(10_000 * round_)
        assert not slab[handles].any() or round_ > 1
        slab[handles] = np.arange(len(handles))
        assert (slab.array == np.arange(len(handles))).all()
        slab.free_many(handles)
        check(slab)
        assert slab.trim() > 0
        assert not slab.array.any()
        check(slab)
        with pytest.raises(mempool.StaleHandle):
            slab.free_many(handles[:5])
    assert array.__array_interface__["data"] == slab.array.__array_interface__["data"]


def test_what_is_written_to_a_trimmed_slot_harms_nobody() -> None:
    slab = SlabAllocator(1000)
    handles = slab.alloc_many(1000)
    slab.free_many(handles[1:])
    slab.trim()
    slab.array[:] = 5
    more = slab.alloc_many(999)
    assert slab[handles[0]].tolist() == [5] * 1000
    slab[more] = 6
    assert slab.array[1:].min() == 6
    check(slab)


def test_trim_of_an_empty_slab() -> None:
    slab = SlabAllocator(8)
    assert (slab.trim(), slab.stats().reserved) == (0, 0)


# ---- the figures, step by step


def test_figures_add_up_after_each_step() -> None:
    slab, views, dice = SlabAllocator(200, limit="2MiB"), list[memoryview](), np.random.default_rng(3)
    live: list[int] = []
    for step in range(600):
        before = slab.stats()
        kind = int(dice.integers(6))
        if kind <= 1 and before.live < 4000:
            live += slab.alloc_many(int(dice.integers(200))).tolist()
        elif kind == 2 and live:
            slab.free(live.pop(int(dice.integers(len(live)))))
        elif kind == 3:
            gone = live[: len(live) // 3]
            slab.free_many(gone)
            del live[: len(gone)]
        elif kind == 4 and live:
            views.append(slab[live[step % len(live)]])
        else:
            views.clear()
            slab.trim()
        stats = check(slab)
        assert stats.live == len(live)
        assert stats.retired <= len(views)
        assert stats.peak >= before.peak
        assert stats.address_space == before.address_space


@pytest.mark.parametrize("item", [1, 3, 8, 100, 4096, 1 << 20])
def test_reserved_is_what_items_and_books_need(item: int) -> None:
    slab = SlabAllocator(item)
    assert slab.stats().reserved == 0
    for count in (1, 100, 30_000):
        if count * item <= 64 * MIB:
            slab.alloc_many(count)
            stats = check(slab)
            a_step_more = max(stats.live * 9 / 8, stats.live + 64 * KIB / item + 1)
            upper_levels = stats.max_items / 64**3 * 8.2
            assert stats.reserved <= a_step_more * (item + 8.2) + upper_levels + 8 * PAGE


# ---- many


def test_millions_of_items() -> None:
    slab = SlabAllocator("u1")
    handles = slab.alloc_many(2_000_000)
    assert np.diff(np.sort(handles)).all()
    assert len(slab) == 2_000_000
    slab[handles] = np.arange(2_000_000) % 251
    slab.free_many(handles[::2])
    assert (slab.compacted() == (np.arange(2_000_000) % 251)[1::2]).all()
    assert (slab.indices(handles[1::2]) == np.arange(1, 2_000_000, 2)).all()
    more = slab.alloc_many(1_500_000)
    assert slab.stats().slots == 2_500_000
    assert np.diff(np.sort(np.concatenate([handles, more]))).all()
    assert check(slab).reserved < 2_500_000 * (1 + 8.2) * 9 / 8 + MIB
    slab.free_many(slab.handles())
    assert slab.trim() > 2_400_000


@pytest.mark.slow
@pytest.mark.nosan
def test_a_hundred_million_items() -> None:
    if not hasattr(os, "sysconf") or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE") < 4 << 30:
        pytest.skip("takes two gigabytes")
    if (mempool.memory_usage().available or 0) < 4 << 30:
        pytest.skip("takes two gigabytes, and a container may have less than its machine")
    slab = SlabAllocator("u1", max_items=100_000_000)
    for piece in range(100):
        handles = slab.alloc_many(1_000_000)
        slab.array[-1_000_000:] = piece
    with pytest.raises(PoolExhausted):
        slab.alloc()
    assert slab.indices(handles[[0, -1]]).tolist() == [99_000_000, 99_999_999]
    assert (slab[handles[::1000]] == 99).all()
    view = slab[int(handles[0])]
    assert slab.array[::1_000_000].tolist() == list(range(100))
    slab.free_many(slab.handles())
    assert (len(slab), slab.stats().retired, int(view)) == (0, 1, 99)


def test_many_slabs() -> None:
    above = Account("above")
    slabs = [SlabAllocator(number % 64 + 1, account=above) for number in range(200)]
    handles = [slab.alloc() for slab in slabs]
    assert all(handle in slab for slab, handle in zip(slabs, handles, strict=True))
    assert above.used == sum(slab.stats().reserved for slab in slabs)
    slabs.clear()
    assert above.used == 0


# ---- tracemalloc


def traced() -> list[tracemalloc.Trace]:
    snapshot = tracemalloc.take_snapshot()
    return list(snapshot.filter_traces([tracemalloc.DomainFilter(True, mempool.TRACEMALLOC_DOMAIN)]).traces)


@pytest.fixture
def tracing() -> Iterator[None]:
    tracemalloc.start(5)
    yield
    tracemalloc.stop()


def sizes() -> list[int]:
    return [trace.size for trace in traced() if trace.size]


@pytest.mark.usefixtures("tracing")
def test_tracemalloc_shows_what_is_reserved() -> None:
    slab = SlabAllocator(100)
    assert sizes() == []
    handles, line = slab.alloc_many(10_000), sys._getframe().f_lineno
    (trace,) = traced()
    assert (trace.domain, trace.size) == (mempool.TRACEMALLOC_DOMAIN, slab.stats().reserved)
    assert (trace.traceback[-1].filename, trace.traceback[-1].lineno) == (__file__, line)
    for _ in range(5000):
        slab.alloc()
    assert sizes() == [slab.stats().reserved]
    slab.free_many(handles)
    slab.trim()
    assert sizes() == [slab.stats().reserved]
    slab.close()
    assert traced() == []


@pytest.mark.usefixtures("tracing")
@pytest.mark.parametrize(
    "view", [lambda slab, handle: slab.array, lambda slab, handle: slab[handle]], ids=["array", "item"]
)
@pytest.mark.parametrize("close", [False, True], ids=["dropped", "closed"])
def test_tracemalloc_shows_it_as_long_as_a_view_lives(view: Callable[..., Any], close: bool) -> None:
    slab = SlabAllocator(100)
    seen, reserved = view(slab, slab.alloc()), slab.stats().reserved
    if close:
        slab.close()
    del slab
    assert sizes() == [reserved]
    del seen
    assert traced() == []


@pytest.mark.usefixtures("tracing")
def test_a_failed_call_is_not_traced() -> None:
    slab = SlabAllocator(100, limit="1MiB")
    with pytest.raises(PoolExhausted):
        slab.alloc_many(100_000)
    assert sizes() == []


# ---- what the OS refuses


@pytest.mark.nosan
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the address space is read from /proc")
def test_addresses_are_scarce(run_python: Callable[..., Any]) -> None:
    """Under an address-space limit there is room for fewer items, for other things too, and the error says so."""
    pytest.importorskip("resource")
    run_python("""
        import mempool, numpy, resource
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20),) * 2)
        slab = mempool.SlabAllocator(1024, max_items=10_000_000, name="scarce")
        stats = slab.stats()
        assert 100 < stats.max_items < 500_000 and stats.address_space <= 256 << 20, stats
        other = bytearray(100 << 20)
        slab.alloc_many(stats.max_items)
        before = slab.stats()
        try:
            slab.alloc()
        except mempool.PoolExhausted as error:
            assert f"addresses are reserved for {stats.max_items}" in str(error), error
            assert (error.requested, error.limit) == (1024, stats.max_items * 1024), vars(error)
        else:
            raise AssertionError("more than there is room for")
        assert slab.stats() == before
        slab.array[:] = 1
        more = [mempool.SlabAllocator(1024) for _ in range(3)]
        assert all(one.alloc() in one for one in more)
    """)


@pytest.mark.nosan
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the address space is read from /proc")
def test_no_addresses_at_all(run_python: Callable[..., Any]) -> None:
    pytest.importorskip("resource")
    run_python("""
        import mempool, numpy, resource
        account = mempool.Account("a")
        slab = mempool.SlabAllocator(8, account=account)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), resource.RLIM_INFINITY))
        try:
            mempool.SlabAllocator(1 << 20, account=account, name="none")
        except MemoryError as error:
            assert "'none'" in str(error), error
        else:
            raise AssertionError("made of nothing")
        assert slab.alloc_many(10_000).size == len(slab) == 10_000
        assert account.used == slab.stats().reserved
    """)


@pytest.mark.nosan
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_memory_is_resident_only_while_it_is_used(run_python: Callable[..., Any]) -> None:
    run_python("""
        import mempool, numpy
        def rss():
            return int(open("/proc/self/statm").read().split()[1]) * 4096

        slab = mempool.SlabAllocator(1000)
        slab.array, slab.alloc_many(0)
        start = rss()
        handles = slab.alloc_many(100_000)
        assert rss() - start < 8 << 20, "items that nobody wrote to take no memory"
        slab.array[:] = 1
        assert rss() - start > 90 << 20
        slab.free_many(handles)
        slab.trim()
        assert rss() - start < 8 << 20
        slab.alloc_many(100_000)
        slab.array[:] = 1
        slab.close()
        assert rss() - start < 8 << 20
    """)
