"""Limits: never more than the limit is reserved, idle memory goes first, and what is refused has changed nothing."""

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mempool
from mempool import Account, Buffer, BufferPool, PoolExhausted
from support import KIB, MIB, check_identities, nothing_changes

Run = Callable[..., subprocess.CompletedProcess[str]]


def idle_after(pool: BufferPool, *sizes: int) -> None:
    """Leave one idle block for each size."""
    for buffer in [pool.acquire(size) for size in sizes]:
        buffer.release()


def fill(pool: BufferPool, nbytes: int) -> Iterator[Buffer]:
    """Leases until the pool has no more."""
    while True:
        try:
            buffer = pool.acquire(nbytes)
        except PoolExhausted:
            return
        yield buffer


@pytest.mark.parametrize("nbytes", [64, 100, 1000, 4096, 5000, 70_000, MIB])
def test_never_more_than_the_limit(nbytes: int) -> None:
    pool = BufferPool(limit=2 * MIB)
    buffers = list(fill(pool, nbytes))
    stats = pool.stats()
    check_identities(stats)
    assert stats.peak <= 2 * MIB
    assert stats.live == len(buffers) == 2 * MIB // buffers[0].capacity
    assert stats.exhausted == 1


@pytest.mark.parametrize("limit", [64, 100, 4096, 12345, MIB])
def test_the_limit_itself_can_be_lent(limit: int) -> None:
    pool = BufferPool(limit=limit)
    blocks = list(fill(pool, 64))
    assert len(blocks) == limit // 64
    assert pool.stats().reserved <= limit


def test_a_limit_too_small_for_anything() -> None:
    pool = BufferPool(limit=63)
    with nothing_changes(pool), pytest.raises(PoolExhausted):
        pool.acquire(1)


def test_exhaustion_tells_what_stands_in_the_way() -> None:
    pool = BufferPool(limit="1MiB", name="small")
    live, viewed, idle = (pool.acquire(256 * KIB) for _ in range(3))
    view = memoryview(viewed)
    viewed.release()
    idle.release()
    with nothing_changes(pool), pytest.raises(PoolExhausted) as caught:
        pool.acquire("513KiB")
    error = caught.value
    assert (error.requested, error.in_use, error.limit) == (513 * KIB, 512 * KIB, MIB)
    for word in ("'small'", str(513 * KIB), str(512 * KIB), str(MIB)):
        assert word in str(error)
    assert pool.stats().exhausted == 1
    assert (len(live), len(view)) == (256 * KIB, 256 * KIB)


@pytest.mark.parametrize("timeout", [0, None, "1h", 3600, float("inf")])
@pytest.mark.parametrize("busy", [False, True])
def test_what_can_never_fit_fails_at_once(timeout: float | str | None, busy: bool) -> None:
    pool = BufferPool(limit="64KiB")
    held = pool.acquire("32KiB") if busy else None
    with nothing_changes(pool), pytest.raises(PoolExhausted):
        pool.acquire(64 * KIB + 1, timeout=timeout)
    assert pool.stats().waits == 0
    assert pool.stats().exhausted == 1
    del held


def test_timeout_zero_waits_for_nobody() -> None:
    pool = BufferPool(limit="64KiB")
    with pool.acquire("64KiB"), pytest.raises(PoolExhausted):
        pool.acquire(1, timeout=0.0)
    assert pool.stats().waits == 0


# ---- idle memory goes first


@pytest.mark.parametrize("wanted", [64, 4096, 100_000, 900_000, MIB])
def test_idle_memory_of_other_classes_is_given_up(wanted: int) -> None:
    pool = BufferPool(limit="1MiB")
    idle_after(pool, 8 * KIB, 32 * KIB, 128 * KIB, 256 * KIB, 512 * KIB)
    pool.acquire(wanted).release()
    stats = pool.stats()
    check_identities(stats)
    assert stats.peak <= MIB


def test_no_more_idle_memory_is_given_up_than_needed() -> None:
    pool = BufferPool(limit="1MiB")
    idle_after(pool, *[4 * KIB] * 128)
    with pool.acquire(512 * KIB):
        assert pool.stats().idle == 512 * KIB
    with pool.acquire(8 * KIB):
        assert pool.stats().idle >= MIB - 520 * KIB


def test_a_refused_request_costs_no_idle_memory() -> None:
    pool = BufferPool(limit="1MiB")
    held = pool.acquire(512 * KIB)
    idle_after(pool, 128 * KIB, 64 * KIB)
    with nothing_changes(pool), pytest.raises(PoolExhausted):
        pool.acquire(600 * KIB)
    with nothing_changes(pool), pytest.raises(PoolExhausted):
        pool.reserve(300 * KIB, 2)
    held.release()


def test_an_idle_block_of_a_class_nearby_serves() -> None:
    pool = BufferPool()
    idle_after(pool, 1088 * KIB)
    with pool.acquire(1024 * KIB) as buffer:
        assert buffer.capacity <= 1024 * KIB * 9 // 8
    assert pool.stats().hits == 1


# ---- limits that change


def test_raising_and_lifting_the_limit() -> None:
    pool = BufferPool(limit="64KiB")
    first = pool.acquire("64KiB")
    pool.limit = "128KiB"
    assert pool.limit == pool.stats().limit == 128 * KIB
    second = pool.acquire("64KiB")
    pool.limit = None
    assert pool.limit is None
    assert pool.stats().limit is None
    third = pool.acquire("1MiB")
    assert [len(buffer) for buffer in (first, second, third)] == [64 * KIB, 64 * KIB, MIB]


def test_lowering_the_limit_gives_idle_memory_back() -> None:
    pool = BufferPool()
    held = pool.acquire(256 * KIB)
    idle_after(pool, *[64 * KIB] * 8)
    pool.limit = 512 * KIB
    stats = pool.stats()
    assert (stats.in_use, stats.idle, stats.limit) == (256 * KIB, 256 * KIB, 512 * KIB)
    pool.limit = 256 * KIB
    assert (pool.stats().idle, pool.account.used) == (0, 256 * KIB)
    held.release()


@pytest.mark.parametrize("how", ["live", "retired"])
def test_no_limit_below_what_is_lent(how: str) -> None:
    pool = BufferPool(limit="1MiB")
    buffer = pool.acquire(256 * KIB)
    view = memoryview(buffer)
    if how == "retired":
        buffer.release()
    idle_after(pool, 64 * KIB, 32 * KIB)
    with nothing_changes(pool), pytest.raises(ValueError, match=f"(?s){256 * KIB - 1}.*{256 * KIB}"):
        pool.limit = 256 * KIB - 1
    pool.limit = 256 * KIB
    assert (len(view), pool.stats().reserved) == (256 * KIB, 256 * KIB)


# ---- reserve


@pytest.mark.parametrize(("nbytes", "count"), [(64, 1), (64, 500), (5000, 7), (MIB, 3), (0, 3), (3 * MIB, 1)])
def test_what_is_reserved_needs_nothing_from_the_os(nbytes: int, count: int) -> None:
    pool = BufferPool()
    pool.reserve(nbytes, count)
    with nothing_changes(pool):
        pool.reserve(nbytes, count)
    reserved = pool.stats().reserved
    assert pool.stats().idle == reserved == pool.account.used
    buffers = [pool.acquire(nbytes) for _ in range(count)]
    stats = pool.stats()
    assert (stats.hits, stats.misses, stats.reserved) == (count, 0, reserved)
    assert len({buffer.address for buffer in buffers}) == count


def test_reserving_nothing() -> None:
    pool = BufferPool()
    with nothing_changes(pool):
        pool.reserve("1GiB", 0)


def test_reserve_gives_up_idle_memory_of_other_classes() -> None:
    pool = BufferPool(limit="1MiB")
    idle_after(pool, *[128 * KIB] * 8)
    pool.reserve(64 * KIB, 16)
    with nothing_changes(pool):
        pool.reserve(64 * KIB, 16)
    assert pool.stats().idle == MIB


@pytest.mark.parametrize(("nbytes", "count"), [(64 * KIB, 13), (64, 13 * KIB), (MIB, 1), (4096, 10**12)])
def test_reserve_is_all_or_nothing_under_the_limit(nbytes: int, count: int) -> None:
    pool = BufferPool(limit="1MiB")
    held = pool.acquire(256 * KIB)
    idle_after(pool, 64 * KIB)
    with nothing_changes(pool), pytest.raises(PoolExhausted) as caught:
        pool.reserve(nbytes, count)
    assert (caught.value.in_use, caught.value.limit) == (256 * KIB, MIB)
    assert caught.value.requested == nbytes * count
    held.release()


def test_reserve_is_all_or_nothing_under_an_account() -> None:
    account = Account("io", limit="1MiB")
    pool = BufferPool(account=account)
    held = pool.acquire(256 * KIB)
    with nothing_changes(pool, account), pytest.raises(mempool.AccountLimitExceeded):
        pool.reserve(64 * KIB, 13)
    assert account.used == 256 * KIB
    held.release()


def test_what_reserve_takes_back_is_what_it_took() -> None:
    account = Account("io", limit="1MiB")
    pool = BufferPool(account=account)
    idle_after(pool, 256 * KIB)
    with nothing_changes(pool, account), pytest.raises(mempool.AccountLimitExceeded):
        pool.reserve(64 * KIB, 100)


@pytest.mark.nosan
def test_reserve_beyond_all_addresses_takes_nothing(run_python: Run) -> None:
    code = """
        import resource, mempool
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        for nbytes, count in [("1MiB", 2**40), (64, 2**62), ("1GiB", 2**50)]:
            pool = mempool.BufferPool()
            try:
                pool.reserve(nbytes, count)
            except (MemoryError, OverflowError):
                pass
            else:
                raise SystemExit("reserved")
            assert pool.stats().peak == 0, pool.stats()
    """
    run_python(code)


# ---- max_idle, idle_timeout=0, trim


@given(st.lists(st.sampled_from([4 * KIB, 20 * KIB, 64 * KIB, 300 * KIB]), max_size=20), st.integers(0, MIB))
def test_no_more_than_max_idle_stays(sizes: list[int], max_idle: int) -> None:
    pool = BufferPool(max_idle=max_idle)
    for buffer in [pool.acquire(size) for size in sizes]:
        buffer.release()
        assert pool.stats().idle <= max_idle
    check_identities(pool.stats())
    for size in sizes:
        pool.acquire(size).release()
        assert pool.stats().idle <= max_idle


def test_max_idle_keeps_what_it_allows() -> None:
    pool = BufferPool(max_idle="256KiB")
    idle_after(pool, *[64 * KIB] * 8)
    assert pool.stats().idle == 256 * KIB
    pool.acquire(64 * KIB).release()
    assert pool.stats().hits == 1


@pytest.mark.parametrize("arguments", [{"max_idle": 0}, {"idle_timeout": 0}, {"idle_timeout": "0s"}])
@pytest.mark.parametrize("nbytes", [64, 4096, MIB, 3 * MIB])
def test_nothing_stays_idle(arguments: dict[str, int], nbytes: int) -> None:
    pool = BufferPool(**arguments)  # type: ignore[arg-type]
    for _ in range(3):
        pool.acquire(nbytes).release()
        assert pool.stats().reserved == pool.account.used == 0


def test_trim_gives_back_what_is_idle() -> None:
    pool = BufferPool()
    held = pool.acquire(256 * KIB)
    held[:4] = b"here"
    idle_after(pool, 64 * KIB, MIB, 100, 3 * MIB)
    idle = pool.stats().idle
    assert pool.trim() == idle
    assert pool.trim() == 0
    stats = pool.stats()
    assert (stats.idle, stats.reserved, pool.account.used) == (0, 256 * KIB, 256 * KIB)
    assert bytes(held[:4]) == b"here"


@pytest.mark.parametrize(
    "arguments", [{"max_idle": 0}, {"idle_timeout": 0}, {}], ids=["max_idle=0", "idle_timeout=0", "closed"]
)
@pytest.mark.parametrize("step", [1, 2, 7])
def test_many_small_blocks_go_as_the_last_of_them_comes_back(arguments: dict[str, int], step: int) -> None:
    pool = BufferPool(**arguments)  # type: ignore[arg-type]
    buffers = [pool.acquire(64) for _ in range(20_000)]
    if not arguments:
        pool.close()
    for start in range(step):
        for buffer in buffers[start::step]:
            buffer.release()
        check_identities(pool.stats())
    assert (pool.stats().idle, pool.stats().reserved, pool.account.used) == (0, 0, 0)


@given(st.integers(0, 3 * MIB))
def test_trim_down_to_a_target(target: int) -> None:
    pool = BufferPool()
    idle_after(pool, *[64 * KIB] * 8, *[256 * KIB] * 4, MIB)
    before = pool.stats().idle
    freed = pool.trim(target)
    after = pool.stats().idle
    assert after == before - freed <= max(target, 0)
    assert freed == 0 or target < before
    assert before <= target or after + MIB > target
    check_identities(pool.stats())


def test_small_blocks_go_once_no_neighbour_is_lent() -> None:
    pool = BufferPool()
    buffers = [pool.acquire(64) for _ in range(5000)]
    for buffer in buffers[1:]:
        buffer.release()
    pool.trim()
    assert pool.stats().idle < 128 * KIB
    buffers[0].release()
    pool.trim()
    assert pool.stats().reserved == 0


# ---- what the process has


@pytest.mark.nosan
@pytest.mark.skipif(not os.path.isfile("/proc/self/statm"), reason="memory is read from /proc")
@pytest.mark.parametrize("huge_pages", [True, False, None])
def test_the_process_takes_no_more_than_the_limit(run_python: Run, huge_pages: bool | None) -> None:
    """Nor more than is reserved: huge pages must not make memory resident that no figure shows."""
    code = f"""
        import resource, mempool

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize()

        pool = mempool.BufferPool(limit="4MiB", huge_pages={huge_pages})
        before = resident()
        buffers = []
        try:
            for nbytes in range(64, 4096, 64):
                buffers.append(pool.acquire(nbytes))
                buffers[-1][0] = 1
        except mempool.PoolExhausted:
            assert {huge_pages}, "small pages have room for all"
        taken, stats = resident() - before, pool.stats()
        assert stats.reserved == pool.account.used <= 4 << 20, stats
        assert taken <= stats.reserved + (4 << 20), (taken, stats)
    """
    run_python(code)


# ---- the OS has no more


@pytest.mark.nosan
def test_the_pool_works_on_after_the_os_refused(run_python: Run) -> None:
    code = """
        import resource, mempool
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20),) * 2)
        pool = mempool.BufferPool()
        first = pool.acquire("1MiB", zero=True)

        def refused(nbytes):
            try:
                return pool.acquire(nbytes, timeout=None)
            except mempool.PoolExhausted:
                raise SystemExit("not the pool's limit")
            except MemoryError as error:
                assert "pool" in str(error), error

        before = pool.stats()
        assert refused("1GiB") is None
        held = []
        while (buffer := refused("8MiB")) is not None:
            held.append(buffer)
        assert 5 < len(held) < 33, len(held)
        stats = pool.stats()
        assert stats.in_use == stats.reserved == pool.account.used == (1 << 20) + (len(held) * 8 << 20)
        assert stats.acquires == len(held) + 1
        for buffer in held:
            buffer.release()
        with pool.acquire("40MiB") as large:  # what is idle goes first, also when the OS is out of memory
            large[-1] = 1
        assert first.tobytes() == bytes(1 << 20)
        first.release()
        pool.trim()
        assert pool.stats().reserved == pool.account.used == 0
    """
    run_python(code)


@pytest.mark.nosan
def test_idle_memory_of_other_pools_goes_before_the_os_refuses(run_python: Run) -> None:
    code = """
        import resource, mempool
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20),) * 2)
        idle, busy = mempool.BufferPool(), mempool.BufferPool()
        idle.reserve("128MiB")
        with busy.acquire("160MiB"):
            assert idle.stats().idle == 0
    """
    run_python(code)
