"""`memory_limit`: work that stays inside goes on untouched, work that does not is told, and nothing of the guard remains."""

import asyncio
import gc
import re
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, get_args

import pytest

import mempool
from mempool import Account, AccountLimitExceeded, BufferPool, MemoryLimitExceeded
from mempool.accounting import guard, memory_limit, root_account
from mempool.accounting.guard import _What
from support import KIB, MIB, Strange, start, together, until

KINDS: tuple[_What, ...] = get_args(_What)


@pytest.fixture(autouse=True)
def nothing_remains() -> Iterator[None]:
    gc.collect()  # what other tests left would make room
    before = root_account().limit
    yield
    assert root_account().limit == before
    assert guard._shared == {}


@pytest.fixture
def tracing() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.fixture
def account() -> Account:
    return Account("work")


@pytest.fixture
def pool(account: Account) -> BufferPool:
    return BufferPool(account=account, idle_timeout=None)


def external(size: int | str, account: Account | None = None) -> guard.MemoryGuard:
    return memory_limit(size, what="external", account=account)


# ---- external


def test_growth_within_the_limit(pool: BufferPool, account: Account) -> None:
    before = pool.acquire(4 * MIB)
    with external("2MiB", account) as work:
        assert account.limit == 6 * MIB
        kept = pool.acquire(2 * MIB)
        assert work.grown == work.check() == 2 * MIB
        before.release()
        assert work.grown == -2 * MIB
    assert [account.limit] == [None]
    assert len(kept) == 2 * MIB


def test_growth_beyond_it_fails_at_the_lease(pool: BufferPool, account: Account) -> None:
    with (
        pytest.raises(MemoryLimitExceeded, match=f"external grew by {3 * MIB} bytes.* is {2 * MIB}") as caught,
        external("2MiB", account),
    ):
        kept = pool.acquire(MIB)
        with pytest.raises(AccountLimitExceeded):
            pool.acquire(2 * MIB)
        assert account.used == MIB
        pool.acquire(2 * MIB)
    error = caught.value
    assert (error.what, error.grown, error.limit) == ("external", 3 * MIB, 2 * MIB)
    assert isinstance(error.__cause__, AccountLimitExceeded)
    assert isinstance(error, MemoryError)
    assert len(kept) == MIB
    pool.acquire(16 * MIB).release()


def test_work_that_copes_with_the_refusal_goes_on(pool: BufferPool, account: Account) -> None:
    with external(MIB, account):
        with suppress(MemoryError):
            pool.acquire(2 * MIB)
        pool.acquire(MIB).release()


@pytest.mark.parametrize("take", ["charge", "track", "slab", "array", "arena", "ring", "default"])
def test_whatever_takes_native_memory(take: str) -> None:
    account = Account("third party")
    thing = Account("thing")
    takers: dict[str, Callable[[], object]] = {
        "charge": lambda: account.charge(8 * MIB),
        "track": lambda: account.track(thing, 8 * MIB),
        "slab": lambda: mempool.SlabAllocator(KIB, account=account).alloc_many(8 * KIB),
        "array": lambda: mempool.anonymous_array((8 * MIB,), "u1"),
        "arena": lambda: mempool.Arena(8 * MIB),
        "ring": lambda: mempool.RingBuffer(8 * MIB),
        "default": lambda: mempool.acquire(8 * MIB),
    }
    with pytest.raises(MemoryLimitExceeded), external("1MiB"):
        takers[take]()


def test_idle_memory_is_no_way_around(pool: BufferPool, account: Account) -> None:
    """It is held already: to lend it would charge nothing."""
    pool.reserve(MIB, 16)
    with pytest.raises(MemoryLimitExceeded), external("4MiB", account) as work:
        kept = [pool.acquire(MIB) for _ in range(4)]
        assert work.grown == 4 * MIB
        kept.append(pool.acquire(MIB))
    kept.clear()
    pool.reserve(MIB, 16)
    with pytest.raises(MemoryLimitExceeded), external("4MiB") as work:
        kept.extend(pool.acquire(MIB) for _ in range(5))


def test_idle_memory_that_fits_is_kept(pool: BufferPool, account: Account) -> None:
    pool.reserve(MIB, 4)
    with external("4MiB", account):
        assert pool.stats().idle == 4 * MIB


def test_limits_of_others_still_bind(pool: BufferPool, account: Account) -> None:
    account.limit = MIB
    with pytest.raises(AccountLimitExceeded, match=f"limit {MIB}"), external("8MiB", account):
        pool.acquire(2 * MIB)
    assert account.limit == MIB
    pool.limit = MIB
    with pytest.raises(mempool.PoolExhausted), external("8MiB", account):
        pool.acquire(2 * MIB)


def test_nested_guards(pool: BufferPool, account: Account) -> None:
    with external("4MiB", account):
        with pytest.raises(MemoryLimitExceeded, match=str(MIB)), external("1MiB", account):
            pool.acquire(2 * MIB)
        kept = pool.acquire(2 * MIB)
        with external("8MiB", account):
            assert account.limit == 4 * MIB
        assert account.limit == 4 * MIB
    with pytest.raises(MemoryLimitExceeded) as caught, external("4MiB", account), external("8MiB", account):
        kept = pool.acquire(5 * MIB)
    assert caught.value.limit == 4 * MIB
    assert len(kept) == 2 * MIB


def test_guards_that_end_in_another_order(account: Account) -> None:
    account.limit = 100
    first, second, third = external(50, account), external(30, account), external(70, account)
    limits = []
    for step in (first.__enter__, second.__enter__, third.__enter__):
        step()
        limits.append(account.limit)
    for ending in (second, first, third):
        ending.__exit__(None, None, None)
        limits.append(account.limit)
    assert limits == [50, 30, 30, 50, 70, 100]


def test_a_limit_set_meanwhile_stays(account: Account) -> None:
    with external(50, account):
        account.limit = 20
        with external(30, account):
            assert account.limit == 20
        assert account.limit == 20
    assert account.limit == 20
    with external(10, account):
        account.limit = None
    assert account.limit is None


def test_growth_beyond_a_limit_that_was_lifted_is_told_at_the_end(account: Account) -> None:
    with pytest.raises(MemoryLimitExceeded, match="grew by 60 bytes"), external(50, account) as work:
        account.limit = None
        account.charge(60)
        with pytest.raises(MemoryLimitExceeded):
            work.check()
    account.discharge(60)


def test_threads_enter_and_leave_while_others_take_memory(pool: BufferPool, account: Account) -> None:
    stop = threading.Event()

    def take() -> None:
        while not stop.is_set():
            with suppress(AccountLimitExceeded), pool.acquire(64 * KIB), pool.acquire(MIB):
                pass

    def work() -> None:
        for _ in range(100):
            with external("512KiB", account):
                assert account.limit is not None

    takers = [start(take) for _ in range(2)]
    together([work] * 4)
    stop.set()
    for taker in takers:
        taker.result()
    assert account.limit is None


def test_an_account_that_outgrows_every_allowance(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read as lent is always less than what is: the guard gives up and leaves nothing behind."""
    account.charge(100)
    monkeypatch.setattr(guard, "_lent", lambda account: 10)
    with pytest.raises(RuntimeError, match="'work' grows faster"):
        external(20, account).__enter__()
    assert [account.limit] == [None]
    monkeypatch.undo()
    with external(500, account):
        monkeypatch.setattr(guard, "_lent", lambda account: 10)
        with pytest.raises(RuntimeError, match="'work' grows faster"):
            external(20, account).__enter__()
        monkeypatch.undo()
        with external(400, account):
            assert account.limit == 500
    account.discharge(100)


def test_idle_memory_of_others_is_none_of_the_work(pool: BufferPool, account: Account) -> None:
    other = BufferPool(idle_timeout=None)
    other.reserve(MIB, 16)
    kept = pool.acquire(8 * MIB)
    with external(MIB, account) as work:
        assert account.limit == 9 * MIB
        assert work.grown == 0
    assert other.stats().idle == 16 * MIB
    assert len(kept) == 8 * MIB


# ---- rss and the heap


RESIDENT = {
    "at the end": """
        try:
            with memory_limit("16MiB"):
                kept = bytearray(b"x") * (64 * MIB)
        except MemoryLimitExceeded as error:
            assert "rss grew by" in str(error) and error.grown > 48 * MIB
        else:
            raise AssertionError
        with memory_limit("64MiB", what="rss") as work:
            kept += b"x" * (8 * MIB)
            assert work.check() < 64 * MIB
    """,
    "a peak that passed": """
        size = max(64 * MIB, process.peak_rss() - process.rss() + 64 * MIB)
        try:
            with memory_limit(size // 2, what="rss"):
                del [bytearray(b"x") * size][:]
        except MemoryLimitExceeded as error:
            assert "rss grew by" in str(error) and error.grown > size // 2
        else:
            raise AssertionError
        with memory_limit(size // 2, what="rss"):
            pass
    """,
    "a check in the middle": """
        kept = []
        try:
            with memory_limit("32MiB") as work:
                for _ in range(100):
                    kept.append(bytearray(b"x") * (4 * MIB))
                    work.check()
        except MemoryLimitExceeded:
            pass
        assert 7 <= len(kept) <= 16, len(kept)
    """,
}


@pytest.mark.nosan
@pytest.mark.parametrize("when", RESIDENT)
def test_resident_growth(run_python: Callable[..., object], when: str) -> None:
    """In a process of its own: malloc may have resident memory left of other tests, and give some back."""
    if when == "a peak that passed" and sys.platform != "linux":
        pytest.skip("needs /proc")
    prelude = """
        from mempool import MemoryLimitExceeded
        from mempool._system import process
        from mempool.accounting import memory_limit

        MIB = 1 << 20
    """
    run_python(prelude + RESIDENT[when])


def test_heap_growth(tracing: None) -> None:
    with (
        pytest.raises(MemoryLimitExceeded, match="python_heap grew by 1") as caught,
        memory_limit("500KiB", what="python_heap"),
    ):
        kept = [bytearray(KIB) for _ in range(1000)]
    assert 1000 * KIB < caught.value.grown < 1200 * KIB
    with memory_limit("500KiB", what="python_heap") as work:
        kept += [bytearray(KIB) for _ in range(100)]
        assert 100 * KIB < work.check() < 200 * KIB


def test_a_heap_peak_that_passed(run_python: Callable[..., object]) -> None:
    """In a process of its own: what was ever external must be small."""
    code = """
        import tracemalloc
        from mempool.accounting import MemoryGuard, memory_limit
        from mempool import MemoryLimitExceeded
        tracemalloc.start()
        try:
            with memory_limit("1MB", what="python_heap"):
                del [bytearray(5_000_000)][:]
        except MemoryLimitExceeded as error:
            assert 5_000_000 < error.grown < 5_100_000
        else:
            raise AssertionError
        with memory_limit("1MB", what="python_heap"):
            pass
    """
    run_python(code)


def test_external_memory_is_no_heap(tracing: None) -> None:
    with memory_limit("500KiB", what="python_heap"):
        lease = mempool.acquire(8 * MIB)
    with memory_limit("500KiB", what="python_heap"):
        lease.release()
        lease = mempool.acquire(16 * MIB)
        lease.release()


def test_the_heap_needs_tracemalloc() -> None:
    work = memory_limit("1MiB", what="python_heap")
    with pytest.raises(ValueError, match=r"tracemalloc\.start"):
        work.__enter__()
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"tracemalloc\.start"), work:
        tracemalloc.stop()
    tracemalloc.start()
    with work:
        pass
    tracemalloc.stop()


# ---- every kind


@pytest.mark.parametrize("what", KINDS)
def test_errors_of_the_work_go_first(what: _What, tracing: None) -> None:
    kept = []
    with pytest.raises(KeyError), memory_limit("100KiB", what=what):
        kept.append(bytearray(MIB))
        raise KeyError("own")


@pytest.mark.parametrize("what", KINDS)
def test_a_guard_may_be_used_again_but_not_twice_at_once(what: _What, tracing: None) -> None:
    work = memory_limit("64MiB", what=what)
    for _ in range(2):
        with work as entered:
            assert entered is work
            with pytest.raises(RuntimeError, match="once at a time"):
                work.__enter__()
            assert work.check() <= 64 * MIB
    for call in (work.check, lambda: work.grown, lambda: work.__exit__(None, None, None)):
        with pytest.raises(RuntimeError, match="not entered"):
            call()
    assert (work.what, work.limit) == (what, 64 * MIB)
    assert what in repr(work)


@pytest.mark.parametrize("size", [0, -1, "0B", "12 parsecs", ""])
def test_sizes_that_make_no_sense(size: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(size))):
        memory_limit(size)


@pytest.mark.parametrize("size", [None, 1.5, True, [1], Strange()])
def test_sizes_of_the_wrong_type(size: Any) -> None:
    with pytest.raises(TypeError, match="size"):
        memory_limit(size)


def test_other_bad_arguments(account: Account) -> None:
    for what in ("uss", "RSS", None, 3):
        with pytest.raises(ValueError, match=f"not {what!r}"):
            memory_limit(1, what=what)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'work'"):
        memory_limit(1, what="external", account="work")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="external"):
        memory_limit(1, what="rss", account=account)


# ---- decorators


def test_a_function(pool: BufferPool, account: Account) -> None:
    @external("2MiB", account)
    def work(nbytes: int, *, depth: int = 0) -> int:
        """Work."""
        with pool.acquire(nbytes):
            return work(nbytes, depth=depth - 1) if depth else nbytes

    assert work.__name__ == "work"
    assert work.__doc__ == "Work."
    assert work(MIB) == MIB
    assert work(MIB, depth=1) == MIB
    for nbytes, depth in ((3 * MIB, 0), (MIB, 2)):
        with pytest.raises(MemoryLimitExceeded):
            work(nbytes, depth=depth)
    assert set(together([lambda: work(64 * KIB)] * 8)) == {64 * KIB}


def test_a_coroutine_function(pool: BufferPool, account: Account) -> None:
    @external("2MiB", account)
    async def work(nbytes: int) -> int:
        async with pool.acquire_async(nbytes) as lease:
            await asyncio.sleep(0)
            return len(lease)

    assert asyncio.run(work(MIB)) == MIB
    with pytest.raises(MemoryLimitExceeded):
        asyncio.run(work(3 * MIB))


def test_a_cancelled_task_leaves_nothing(pool: BufferPool, account: Account) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        @external("2MiB", account)
        async def work() -> None:
            begun.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await begun.wait()
        assert account.limit == 2 * MIB
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert account.limit is None


def test_a_generator_function_until_it_is_used_up(pool: BufferPool, account: Account) -> None:
    @external("2MiB", account)
    def work(count: int) -> Iterator[int]:
        kept = []
        for number in range(count):
            kept.append(pool.acquire(MIB))
            yield number

    assert list(work(2)) == [0, 1]
    with pytest.raises(MemoryLimitExceeded):
        list(work(3))
    some = work(2)
    assert next(some) == 0
    assert account.limit == 2 * MIB
    del some
    gc.collect()
    assert account.limit is None


def test_an_async_generator_is_refused() -> None:
    async def work() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match="async generator"):
        memory_limit(1)(work)


# ---- processes


def test_fork_inside_a_block(run_python: Callable[..., object]) -> None:
    pytest.importorskip("resource")
    code = """
        import os, threading, mempool
        from mempool.accounting import guard, memory_limit, root_account
        held, go = threading.Event(), threading.Event()

        def hold():
            with guard._lock:
                held.set()
                go.wait(0.2)

        thread = threading.Thread(target=hold)
        with memory_limit("4MiB", what="external"):
            thread.start()
            held.wait()
            child = os.fork()
            if child == 0:
                try:
                    with memory_limit("1MiB", what="external"):
                        mempool.acquire("2MiB")
                except mempool.MemoryLimitExceeded:
                    os._exit(7)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert root_account().limit is None
    """
    run_python(code, options=["-W", "ignore"])


def test_an_exit_inside_a_block(run_python: Callable[..., object]) -> None:
    code = """
        import sys
        from mempool.accounting import memory_limit
        memory_limit("1MiB", what="external").__enter__()
        with memory_limit("1MiB"):
            sys.exit(0)
    """
    assert run_python(code).stderr == ""  # type: ignore[attr-defined]


def test_a_thread_may_leave_what_another_entered(account: Account) -> None:
    work = external(100, account)
    start(work.__enter__).result()
    until(lambda: account.limit == 100, "the limit")
    start(work.__exit__, None, None, None).result()
    assert account.limit is None


def test_an_allowance_beyond_all_addresses_is_refused_at_its_own_entry() -> None:
    account = Account("a")
    with memory_limit(MIB, what="external", account=account):
        with pytest.raises(OverflowError), memory_limit(1 << 63, what="external", account=account):
            pass
        assert account.limit == MIB
    assert account.limit is None


def test_a_limit_that_cannot_be_put_back_is_no_error_of_an_innocent_guard() -> None:
    account = Account("a")
    first = memory_limit(MIB, what="external", account=account)
    second = memory_limit(2 * MIB, what="external", account=account)
    with ExitStack() as outer, ExitStack() as inner:
        outer.enter_context(pytest.raises(MemoryLimitExceeded, match="limit of this work is 2097152"))
        outer.enter_context(second)
        inner.enter_context(pytest.raises(MemoryLimitExceeded, match="limit of this work is 1048576"))
        inner.enter_context(first)
        account.limit = None
        account.charge(4 * MIB)
    assert account.limit is None
    account.discharge(4 * MIB)
