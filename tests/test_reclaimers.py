"""Before a limit's error is raised, those who can make room are asked."""

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mempool
from mempool import Account, AccountLimitExceeded, BufferPool, PoolExhausted, _reclaim
from mempool._reclaim import relieve
from mempool.accounting import reclaimers, register_reclaimer, root_account
from reclaim_kit import Hoard, full_pool, no_reclaimers
from support import KIB, MIB, chain, start_waiter, together


@pytest.fixture(autouse=True)
def nobody_else() -> Iterator[None]:
    with no_reclaimers():
        yield


def test_a_pool_asks_before_it_is_exhausted() -> None:
    hoard = Hoard(MIB)
    pool = full_pool(hoard)
    register_reclaimer(hoard.give_up, account=pool.account)
    with pool.acquire(MIB):
        assert hoard.asked == [MIB]
        assert len(hoard.kept) == 3
    assert pool.stats().exhausted == 0


def test_only_what_is_missing_is_asked_for() -> None:
    hoard = Hoard(MIB)
    pool = full_pool(hoard, 4)
    hoard.kept.pop()
    register_reclaimer(hoard.give_up)
    pool.acquire(3 * MIB).release()
    assert hoard.asked == [2 * MIB]


def test_what_can_never_fit_asks_nobody() -> None:
    hoard = Hoard(MIB)
    pool = full_pool(hoard)
    account = Account("small", limit=MIB)
    slab = mempool.SlabAllocator(1024, max_items=10)
    register_reclaimer(hoard.give_up)
    for call in (
        lambda: pool.acquire(5 * MIB),
        lambda: pool.acquire(5 * MIB, timeout=None),
        lambda: pool.reserve(MIB, 5),
        lambda: account.charge(2 * MIB),
        lambda: slab.alloc_many(11),
    ):
        with pytest.raises((PoolExhausted, AccountLimitExceeded)):
            call()
    assert hoard.asked == []


def test_reserve_asks_for_what_is_missing() -> None:
    hoard = Hoard(MIB)
    pool = full_pool(hoard)
    hoard.kept.pop()
    register_reclaimer(hoard.give_up)
    with pytest.raises(PoolExhausted):
        pool.reserve(MIB, 5)  # more than the limit, though one of them is idle
    assert hoard.asked == []
    pool.reserve(MIB, 3)
    assert hoard.asked == [2 * MIB]
    assert pool.stats().idle == 3 * MIB


def test_a_waiter_asks_before_it_waits() -> None:
    hoard = Hoard(MIB)
    pool = full_pool(hoard)
    register_reclaimer(hoard.give_up)
    pool.acquire(MIB, timeout=None).release()
    assert hoard.asked == [MIB]
    assert pool.stats().waits == 0


def test_who_comes_to_a_queue_asks_when_it_is_first() -> None:
    hoard = Hoard(MIB)
    pool = full_pool(hoard)
    first = start_waiter(pool, lambda: pool.acquire(MIB, timeout=None))
    second = start_waiter(pool, lambda: pool.acquire(MIB, timeout=None))
    register_reclaimer(hoard.give_up)
    hoard.kept.pop().release()
    with first.result(), second.result():
        assert hoard.asked == [MIB]


def test_a_wait_asks_once_more_at_its_end() -> None:
    hoard = Hoard(MIB)
    pool = full_pool(hoard)
    answers = iter([0, 1])
    register_reclaimer(lambda needed: hoard.give_up(needed) if next(answers) else 0)
    pool.acquire(MIB, timeout=0.01).release()
    assert hoard.asked == [MIB]


async def in_a_task(pool: BufferPool) -> None:
    async with pool.acquire_async(MIB, timeout=0):
        pass


def test_tasks_ask_too() -> None:
    import asyncio

    hoard = Hoard(MIB)
    pool = full_pool(hoard)
    register_reclaimer(hoard.give_up)
    asyncio.run(in_a_task(pool))
    assert hoard.asked == [MIB]


def charging(account: Account) -> Callable[[], object]:
    return lambda: account.charge(MIB)


def writing(account: Account) -> Callable[[], object]:
    def run() -> None:
        with mempool.io.BytesStream(pool=BufferPool(account=account)) as stream:
            stream.write(bytes(MIB // 2))

    return run


TAKERS: dict[str, Callable[[Account], Callable[[], object]]] = {
    "charge": charging,
    "charged": lambda account: lambda: account.charged(MIB).__enter__(),
    "track": lambda account: lambda: account.track(Hoard(1), MIB),
    "pool": lambda account: lambda: BufferPool(account=account).acquire(MIB),
    "wait": lambda account: lambda: BufferPool(account=account).acquire(MIB, timeout=None),
    "reserve": lambda account: lambda: BufferPool(account=account).reserve(MIB),
    "slab": lambda account: lambda: mempool.SlabAllocator(MIB // 2, account=account).alloc(),
    "slab, many": lambda account: lambda: mempool.SlabAllocator(KIB, account=account).alloc_many(512),
    "ring": lambda account: lambda: mempool.RingBuffer(MIB, account=account),
    "arena": lambda account: lambda: mempool.Arena(MIB, account=account),
    "stream": writing,
}


@pytest.mark.parametrize("name", TAKERS)
def test_everybody_asks_before_an_account_refuses(name: str) -> None:
    account = Account("full", limit=4 * MIB)
    pool = BufferPool(account=account)
    hoard = Hoard(MIB)
    hoard.kept = [pool.acquire(MIB) for _ in range(4)]
    take = TAKERS[name](account)
    with pytest.raises(AccountLimitExceeded):
        take()
    register_reclaimer(hoard.give_up, account=account)
    take()
    assert hoard.asked


def test_mapped_arrays_ask_the_root(run_python: Callable[..., Any]) -> None:
    """In a process of its own: what others left would be room."""
    run_python(
        """
        import sys, tempfile, mempool
        from mempool import BufferPool
        from mempool.accounting import register_reclaimer, root_account
        sys.path.insert(0, sys.argv[1])
        from reclaim_kit import Hoard
        from support import KIB, MIB

        hoard, pool = Hoard(MIB), BufferPool()
        hoard.kept = [pool.acquire(MIB) for _ in range(4)]
        array = mempool.anonymous_array((1 << 16,), "u1", max_rows=1 << 23)
        root = root_account()
        register_reclaimer(hoard.give_up)
        root.limit = root.used + 64 * KIB
        array.resize(1 << 20)
        array.append(bytearray(1 << 20))
        assert len(hoard.asked) == 2, hoard.asked
        mempool.anonymous_array((1 << 20,), "u1").close()
        with tempfile.TemporaryDirectory() as folder:
            mempool.create_array(f"{folder}/x.npy", (3 << 18,), "u1").close()
        assert len(hoard.kept) < 4
        """,
        os.path.dirname(__file__),
    )


def test_a_slab_that_is_full_asks() -> None:
    slab = mempool.SlabAllocator(64, max_items=100)
    handles = slab.alloc_many(100).tolist()

    def free_one(needed: int) -> int:
        slab.free(handles.pop())
        return 64

    with pytest.raises(PoolExhausted):
        slab.alloc()
    register_reclaimer(free_one, account=slab.account)
    slab.alloc()
    slab.alloc_many(5)
    assert len(handles) == 94


def test_the_highest_priority_comes_first_and_enough_is_enough() -> None:
    order: list[str] = []
    account = Account("a", limit=MIB)

    def says(name: str, nbytes: int) -> Callable[[int], int]:
        def free(needed: int) -> int:
            order.append(f"{name} {needed // KIB}")
            account.discharge(nbytes)
            return nbytes

        return free

    account.charge(MIB)
    register_reclaimer(says("low", MIB // 4), priority=-1)
    register_reclaimer(says("second", MIB // 4))
    register_reclaimer(says("third", MIB // 4))
    register_reclaimer(says("high", MIB // 4), priority=7)
    account.charge(MIB // 2)
    assert order == ["high 512", "second 256"]


@pytest.mark.parametrize(("where", "asked"), [(0, True), (1, True), (2, True), (3, True), (4, False)])
def test_only_who_can_help_is_asked(where: int, asked: bool) -> None:
    top, middle, low = chain(None, MIB, None)
    aside = Account("aside", parent=top)
    accounts = [root_account(), top, middle, low, aside]
    calls: list[int] = []
    register_reclaimer(calls.append, account=accounts[where])  # type: ignore[arg-type]
    low.charge(MIB)
    with pytest.raises(AccountLimitExceeded):
        low.charge(1)
    assert bool(calls) is asked
    low.discharge(MIB)


def test_bound_methods_are_held_weakly_unless_told() -> None:
    hoard, other = Hoard(MIB), Hoard(MIB)
    weak, strong = register_reclaimer(hoard.give_up), register_reclaimer(other.give_up, weak=False)
    assert weak.active
    assert strong.active
    del hoard, other
    gc.collect()
    assert not weak.active
    assert strong.active
    assert [one.name for one in reclaimers()] == ["Hoard.give_up"]
    function = register_reclaimer(lambda needed: 0)
    gc.collect()
    assert function.active


def test_errors_stay_here_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    account = Account("a", limit=MIB)
    account.charge(MIB)

    def broken(needed: int) -> int:
        raise RuntimeError("no idea how")

    def helpful(needed: int) -> int:
        account.discharge(needed)
        return needed

    register_reclaimer(broken, priority=1)
    register_reclaimer(helpful)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            account.charge(KIB)
    assert account.used == MIB
    assert [(one.calls, one.errors, one.freed) for one in reclaimers()] == [(3, 3, 0), (3, 0, 3 * KIB)]
    (record,) = [record for record in caplog.records if record.name == "mempool.accounting"]
    assert "broken" in record.message
    assert record.exc_info is not None
    account.discharge(account.used)


@pytest.mark.parametrize("answer", [True, 1.5, "1KiB", -1, [1]])
def test_nonsense_is_an_error_of_the_reclaimer(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    account = Account("a", limit=MIB)
    account.charge(MIB)
    register_reclaimer(lambda needed: answer)
    with caplog.at_level(logging.ERROR), pytest.raises(AccountLimitExceeded):
        account.charge(1)
    assert reclaimers()[0].errors == 1
    assert repr(answer) in caplog.text
    account.discharge(MIB)


def test_a_reclaimer_asks_nobody_itself() -> None:
    account = Account("a", limit=MIB)
    account.charge(MIB)
    raised: list[BaseException] = []

    def greedy(needed: int) -> int:
        try:
            account.charge(needed)
        except AccountLimitExceeded as error:
            raised.append(error)
        assert relieve(needed) == 0
        account.discharge(needed)
        return needed

    register_reclaimer(greedy)
    account.charge(KIB)
    assert len(raised) == 1
    account.discharge(MIB)


def test_it_may_cancel_itself_and_others() -> None:
    account = Account("a", limit=MIB)
    account.charge(MIB)
    calls: list[str] = []

    def first(needed: int) -> int:
        calls.append("first")
        one.cancel()
        two.cancel()
        one.cancel()
        return 0

    one = register_reclaimer(first, priority=1)
    two = register_reclaimer(lambda needed: calls.append("second"), priority=0)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(AccountLimitExceeded):
            account.charge(1)
    assert calls == ["first"]
    assert not one.active
    assert "cancelled" in repr(one)
    account.discharge(MIB)


def test_ctrl_c_passes() -> None:
    pool = BufferPool(limit=MIB)

    def interrupted(needed: int) -> int:
        raise KeyboardInterrupt

    register_reclaimer(interrupted)
    with pool.acquire(MIB), pytest.raises(KeyboardInterrupt):
        pool.acquire(MIB)
    assert pool.stats().live == 0


def test_a_pool_closed_meanwhile_says_so() -> None:
    pool = BufferPool(limit=MIB)
    kept = pool.acquire(MIB)

    def close(needed: int) -> int:
        pool.close()
        return needed

    register_reclaimer(close)
    with pytest.raises(ValueError, match="closed"):
        pool.acquire(MIB)
    kept.release()


def test_garbage_is_collected_before_a_limit_fails() -> None:
    pool = BufferPool(limit=8 * MIB)
    gc.collect()
    for _ in range(40):
        cycle: list[Any] = [pool.acquire(MIB)]
        cycle.append(cycle)
    assert pool.stats().exhausted == 0
    del cycle
    gc.collect()


@pytest.mark.parametrize("kind", ["pool", "slab"])
def test_garbage_that_goes_by_itself_before_anybody_looks_is_room(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The collector may come in any allocation, also between a refusal and the question what there is to collect."""
    looks = _reclaim._collector_of

    def collected_meanwhile(target: object) -> _reclaim.Collector:
        gc.collect()
        return looks(target)

    class Item:
        def __init__(self) -> None:
            self.me, self.handle = self, slab.alloc()

        def __del__(self) -> None:
            slab.free(self.handle)

    monkeypatch.setattr(_reclaim, "_collector_of", collected_meanwhile)
    pool, slab = BufferPool(limit=MIB), mempool.SlabAllocator(64, max_items=1)
    if kind == "pool":
        cycle: list[Any] = [pool.acquire(MIB)]
        cycle.append(cycle)
        del cycle
        pool.acquire(MIB).release()
        assert pool.stats().exhausted == 0
    else:
        Item()
        slab.alloc()
        with pytest.raises(PoolExhausted):
            slab.alloc()


def test_garbage_is_left_alone_where_the_collector_is_off() -> None:
    pool = BufferPool(limit=MIB)
    cycle: list[Any] = [pool.acquire(MIB)]
    cycle.append(cycle)
    gc.disable()
    try:
        del cycle
        with pytest.raises(PoolExhausted):
            pool.acquire(MIB)
    finally:
        gc.enable()
    pool.acquire(MIB).release()


def test_a_hot_loop_does_not_collect_each_time() -> None:
    now, collections, held = 100.0, 0, 1000

    def collect() -> int:
        nonlocal now, collections
        now += 0.01
        collections += 1
        return 0

    collector = _reclaim.Collector(None, lambda: now, collect)
    for _ in range(10_000):
        assert collector.collect(lambda: held) == 0
        now += 0.001
    assert collections < 20
    now += 100
    values = iter([1000, 400])
    assert collector.collect(lambda: next(values)) == 600
    assert collector.is_due


def test_threads_ask_each_for_itself() -> None:
    account = Account("a", limit=8 * MIB)
    account.charge(8 * MIB)
    register_reclaimer(lambda needed: account.discharge(KIB) or KIB)  # type: ignore[func-returns-value]

    def work() -> None:
        for _ in range(200):
            account.charge(KIB)

    together([work] * 8)
    assert account.used == 8 * MIB
    assert sum(one.errors for one in reclaimers()) == 0
    account.discharge(account.used)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_forked_within_a_reclaimer_asks_again(run_python: Callable[..., Any]) -> None:
    done = run_python(
        """
        import os, threading, mempool
        from mempool.accounting import Account, register_reclaimer

        a = Account("a", limit=1000)
        a.charge(1000)
        inside, children = threading.Event(), []

        def free(needed):
            if not children:
                children.append(os.fork())
            a.discharge(needed)
            return needed

        register_reclaimer(free)
        a.charge(10)
        a.charge(10)
        if children[0] == 0:
            thread = threading.Thread(target=a.charge, args=(5,))
            thread.start()
            thread.join()
            os._exit(0 if a.used == 1000 else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]), a.used)
        """
    )
    assert done.stdout.split() == ["0", "1000"]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((1,), {}),
        ((print,), {"account": "x"}),
        ((print,), {"priority": 1.0}),
        ((print,), {"priority": True}),
        ((print,), {"weak": 1}),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        register_reclaimer(*arguments, **options)
    assert reclaimers() == []


def test_a_hook_that_always_says_again_is_asked_some_times_only() -> None:
    from mempool import _core

    calls: list[int] = []
    account = Account("a", limit=10)
    _core._set_limit_hook(lambda account, holder, needed: not calls.append(needed))  # type: ignore[func-returns-value]
    try:
        with pytest.raises(AccountLimitExceeded):
            account.charge(5) or account.charge(6)
    finally:
        _core._set_limit_hook(_reclaim._on_limit)
    assert calls == [1] * 8
    account.discharge(5)


@pytest.mark.nosan
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS")
def test_what_the_os_refuses_is_asked_for_too(run_python: Callable[..., Any]) -> None:
    done = run_python(
        """
        import resource, mempool
        from mempool.accounting import register_reclaimer

        pool, kept, asked = mempool.BufferPool(), [], []
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)

        def give_up(needed):
            asked.append(needed)
            if kept:
                kept.pop()
                return 16 << 20

        registration = register_reclaimer(give_up)
        for _ in range(64):
            kept.append(pool.acquire(16 << 20))
        assert asked and len(kept) >= 4, (asked, kept)
        before = len(asked)
        try:
            pool.acquire(1 << 46)
        except MemoryError:
            assert len(asked) == before
        registration.cancel()
        try:
            while True:
                kept.append(pool.acquire(16 << 20))
        except MemoryError as error:
            print(type(error).__name__)
        """
    )
    assert done.stdout.split() == ["MemoryError"]


def test_nobody_is_asked_at_exit(run_python: Callable[..., Any]) -> None:
    done = run_python(
        """
        import mempool, sys
        from mempool.accounting import gc_pressure, register_reclaimer

        class Late:
            def __init__(self):
                self.pool, self.error = mempool.BufferPool(limit=1 << 20), mempool.PoolExhausted
                self.kept = self.pool.acquire(1 << 20)
            def __del__(self):
                try:
                    self.pool.acquire(1 << 20)
                except self.error:
                    self.write("refused")
            write = sys.stdout.write

        gc_pressure(threshold=1)
        register_reclaimer(lambda needed: print("asked") or 0)
        sys.late = Late()
        """,
        options=("-X", "dev"),
    )
    assert "Exception ignored" not in done.stderr
    assert "asked" not in done.stdout


def test_methods_of_compiled_types_are_held_weakly_too() -> None:
    pool, other, kept = BufferPool(), BufferPool(), [0]
    weak, told = register_reclaimer(pool.trim), register_reclaimer(other.trim, weak=False)
    pool.acquire(2 * MIB).release()
    assert relieve(MIB) == 2 * MIB
    strong, function = register_reclaimer(kept.pop), register_reclaimer(abs)
    del pool, other, kept
    gc.collect()
    assert [one.active for one in (weak, told, strong, function)] == [False, True, True, True]
