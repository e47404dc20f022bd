"""Slabs in many threads at once, after a fork, and when the interpreter ends."""

import gc
import os
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mempool import Account, AccountLimitExceeded, PoolExhausted, SlabAllocator, StaleHandle
from support import MIB, may_raise, together


def settled(slab: SlabAllocator) -> None:
    stats = slab.stats()
    assert (stats.live, stats.retired, len(slab), stats.allocs) == (0, 0, 0, stats.frees)
    assert slab.handles().size == 0
    slab.trim()
    assert slab.stats().reserved == slab.account.used
    slab.close()
    assert slab.account.used == 0


def by_number(work: Callable[[int], Any], count: int) -> list[Any]:
    return together([lambda number=number: work(number) for number in range(count)])  # type: ignore[misc]


def test_no_handle_is_given_out_twice() -> None:
    slab = SlabAllocator(8)
    handles = [handle for some in by_number(lambda number: [slab.alloc() for _ in range(20_000)], 4) for handle in some]
    assert len(set(handles)) == len(slab) == slab.stats().slots == 80_000
    assert slab.handles().tolist() == sorted(handles, key=dict(zip(slab, range(80_000), strict=True)).get)  # type: ignore[arg-type]
    by_number(lambda number: [slab.free(handle) for handle in handles[number::4]], 4)
    settled(slab)


def test_items_belong_to_one_thread_at_a_time() -> None:
    slab = SlabAllocator("i8", max_items=5000)

    def work(number: int) -> None:
        dice, held = random.Random(number), dict[int, int]()
        for round_ in range(6000):
            if held and dice.random() < 0.5:
                handle, tag = held.popitem()
                assert int(slab[handle]) == tag
                slab.free(handle)
            else:
                handle, tag = slab.alloc(), number * 10_000 + round_
                assert handle not in held
                slab[handle] = held[handle] = tag
        assert all(slab.array[slab.indices(list(held))] == list(held.values()))
        slab.free_many(list(held))

    by_number(work, 5)
    settled(slab)


def test_many_from_many_threads() -> None:
    slab = SlabAllocator("i8")

    def work(number: int) -> None:
        dice, held = random.Random(number), list[Any]()
        for round_ in range(150):
            handles = slab.alloc_many(dice.randrange(3000))
            slab[handles] = tag = number * 1000 + round_
            held.append((handles, tag))
            if len(held) > 5:
                handles, tag = held.pop(dice.randrange(len(held)))
                assert (slab[handles] == tag).all()
                slab.free_many(handles)
        for handles, tag in held:
            assert (slab[handles] == tag).all()
            slab.free_many(handles)

    by_number(work, 4)
    settled(slab)


def test_one_by_one_while_others_take_many() -> None:
    slab, ended = SlabAllocator("i8"), threading.Event()
    before = set(slab.alloc_many(1000).tolist())

    def one_by_one(number: int) -> None:
        for _ in range(100):
            handles = [slab.alloc() for _ in range(500)]
            assert len(set(handles) - before) == 500
            slab[handles] = number
            assert (slab[handles] == number).all()
            for handle in handles:
                slab.free(handle)

    def all_singles() -> None:
        try:
            by_number(one_by_one, 2)
        finally:
            ended.set()

    def many() -> None:
        while not ended.is_set():
            handles = slab.alloc_many(200_000)
            slab[handles] = -1
            assert (slab[handles] == -1).all()
            slab.free_many(handles)

    together([all_singles, many, many])
    assert set(slab) == before
    slab.free_many(list(before))
    settled(slab)


def test_an_item_is_freed_by_one_of_many() -> None:
    slab = SlabAllocator(8)
    handles = slab.alloc_many(20_000).tolist()

    def free_all(number: int) -> int:
        freed = 0
        for handle in handles:
            try:
                slab.free(handle)
            except StaleHandle:
                continue
            freed += 1
        return freed

    assert sum(by_number(free_all, 4)) == slab.stats().frees == 20_000
    settled(slab)


def test_many_are_freed_by_one_of_many() -> None:
    slab = SlabAllocator(8)

    def free_all(handles: Any) -> bool:
        try:
            slab.free_many(handles)
        except StaleHandle:
            return False
        return True

    for _ in range(30):
        handles = slab.alloc_many(5000)
        orders = [handles, handles[::-1], np.roll(handles, 2500)]
        assert sum(together([lambda order=order: free_all(order) for order in orders])) == 1  # type: ignore[misc]
    settled(slab)


@pytest.mark.parametrize("arguments", [{"limit": "1MiB"}, {"max_items": 3000}, {"account": 0}], ids=repr)
def test_limits_hold_for_all_threads_together(arguments: dict[str, Any]) -> None:
    above = Account("above", limit="1MiB")
    slab = SlabAllocator(300, **(arguments | ({"account": above} if "account" in arguments else {})))

    def work(number: int) -> None:
        dice = random.Random(number)
        for _ in range(300):
            try:
                handles = slab.alloc_many(dice.randrange(900))
            except (PoolExhausted, AccountLimitExceeded):
                continue
            assert len(slab) <= slab.stats().max_items
            slab.free_many(handles)
            slab.trim()

    by_number(work, 4)
    assert slab.stats().peak <= MIB
    assert slab.stats().slots <= slab.stats().max_items
    settled(slab)


def test_slabs_take_from_each_other_in_many_threads() -> None:
    above = Account("above", limit="3MiB")
    slabs = [SlabAllocator(1000, account=above) for _ in range(4)]

    def work(number: int) -> None:
        dice = random.Random(number)
        for _ in range(200):
            with may_raise(AccountLimitExceeded, "above"):
                handles = slabs[number].alloc_many(dice.randrange(1500))
                slabs[number][handles] = np.full((len(handles), 1000), number, "u1")
                assert (slabs[number][handles] == number).all()
                slabs[number].free_many(handles)

    by_number(work, 4)
    assert above.used == sum(slab.stats().reserved for slab in slabs) <= above.peak <= 3 * MIB
    for slab in slabs:
        settled(slab)


def test_views_come_and_go_while_items_do() -> None:
    slab = SlabAllocator(64, max_items=200)

    def work(number: int) -> None:
        views: list[tuple[memoryview, int]] = []
        for round_ in range(4000):
            with may_raise(PoolExhausted, "max_items"):
                handle, tag = slab.alloc(), (number * 50 + round_) % 256
                view = slab[handle]
                view[:] = bytes([tag]) * 64
                slab.free(handle)
                views.append((view[3:], tag))
                del view
            if len(views) > 30:
                assert all(set(seen) == {tag} for seen, tag in views)
                views.clear()

    by_number(work, 5)
    settled(slab)


def test_one_item_is_viewed_by_all() -> None:
    slab = SlabAllocator([("x", "i8")], max_items=1)
    for _ in range(200):
        handle = slab.alloc()

        def look(handle: int = handle) -> Any:
            with may_raise(StaleHandle, str(handle)):
                return slab[handle]["x"], slab[handle]

        seen = together([look, look, lambda handle=handle: slab.free(handle), look])  # type: ignore[misc]
        assert slab.stats().retired == any(seen)
        del seen
    settled(slab)


def disturb(slab: SlabAllocator, ended: threading.Event) -> None:
    """All that looks at the whole, again and again."""
    while not ended.is_set():
        stats = slab.stats()
        assert stats.live + stats.retired <= stats.slots
        assert stats.allocs - stats.frees == stats.live
        handles = slab.handles()
        assert len(np.unique(handles)) == len(handles)
        assert len(slab.compacted()) <= stats.max_items
        assert len(slab.array) >= stats.slots
        slab.trim()


def test_everything_at_once() -> None:
    slab, ended = SlabAllocator("i8"), threading.Event()
    keep = slab.alloc()
    slab[keep] = -1

    def work(number: int) -> None:
        for round_ in range(200):
            handles = slab.alloc_many(round_ * 7)
            slab[handles] = number
            view = slab[handles[0]] if round_ and round_ % 3 else None
            assert (slab[handles] == number).all()
            slab.free_many(handles)
            assert view is None or (view == number).all()

    def all_work() -> None:
        try:
            by_number(work, 3)
        finally:
            ended.set()

    together([all_work, lambda: disturb(slab, ended)])
    assert (int(slab[keep]), len(slab)) == (-1, 1)
    slab.free(keep)
    settled(slab)


def use_until_closed(slab: SlabAllocator) -> None:
    with may_raise(ValueError, "closed"):
        while True:
            handles = slab.alloc_many(100)
            view = slab[int(handles[0])]
            slab.free_many(handles)
            assert len(slab.array) >= 100
            slab.trim()
            del view


def close_when_busy(slab: SlabAllocator) -> None:
    while slab.stats().allocs < 2000:
        pass
    slab.close()


def test_close_while_threads_use_it() -> None:
    for _ in range(20):
        slab = SlabAllocator(64)
        work = [use_until_closed, use_until_closed, close_when_busy]
        together([lambda call=call, slab=slab: call(slab) for call in work])  # type: ignore[misc]
        gc.collect()  # the errors that ended the threads have frames, and those the last views
        assert slab.stats().reserved == slab.account.used == 0


def test_slabs_made_and_collected_by_many_threads() -> None:
    account = Account("many")

    def work(number: int) -> None:
        views: list[Any] = []
        for round_ in range(200):
            slab = SlabAllocator(16, max_items=10_000, account=account)
            views.append(slab[slab.alloc()])
            views.append(slab.array)
            del slab
            if round_ % 10 == 0:
                views.clear()

    by_number(work, 4)
    gc.collect()
    assert account.used == 0


# ---- handles that another thread changes while they are looked at


def test_handles_changed_by_another_thread(run_python: Callable[..., Any]) -> None:
    """What was freed is a matter of luck; that the slab is whole is not."""
    run_python("""
        import threading
        import numpy as np
        from mempool import SlabAllocator, StaleHandle
        slab = SlabAllocator(8)
        good = slab.alloc_many(300_000)
        given = good.copy()
        ended = threading.Event()

        def change():
            while not ended.is_set():
                given[:-1] = -(1 << 62)
                given[:-1] = good[:-1]

        def free():
            try:
                given[-1] = 0
                slab.free_many(given)
            except StaleHandle:
                pass

        thread = threading.Thread(target=change)
        thread.start()
        for _ in range(200):
            free()
        ended.set()
        thread.join()
        live = slab.handles()
        assert len(slab) == len(live) and np.isin(live, good).all(), (len(slab), len(live))
        slab.free_many(live)
        assert len(slab) == 0 and len(slab.alloc_many(300_000)) == slab.stats().slots
    """)


# ---- fork


FORK = """
    import gc, os, sys, threading
    import numpy as np
    import mempool
    from mempool import SlabAllocator, StaleHandle

    def in_child(function):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                function()
                code = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == 0, f"the child ended with {code}"
"""


def silent(
    run_python: Callable[..., Any], code: str, options: Sequence[str] = ("-X", "dev"), prelude: str = ""
) -> None:
    import textwrap

    done = run_python(textwrap.dedent(prelude) + textwrap.dedent(code), options=options)
    assert (done.stdout, done.stderr) == ("", "")


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the OS has no fork")


@needs_fork
def test_a_child_has_items_of_its_own(run_python: Callable[..., Any]) -> None:
    silent(
        run_python,
        """
        account = mempool.Account("a", limit="8MiB")
        slab = SlabAllocator("i8", account=account)
        handles = slab.alloc_many(10_000)
        slab[handles] = np.arange(10_000)
        view, whole, before = slab[int(handles[7])], slab.array, slab.stats()

        def child():
            assert slab.stats() == before and account.used == before.reserved
            assert (slab[handles] == np.arange(10_000)).all()
            slab[handles] = -1
            assert view == -1 and (whole == -1).all()
            slab.free_many(handles)
            assert slab.stats().retired == 1
            new = slab.alloc_many(100_000)
            assert not np.isin(new, handles).any()
            try:
                slab.alloc_many(1_000_000)
            except mempool.AccountLimitExceeded:
                pass
            else:
                raise AssertionError("the limit was forgotten")
            slab.free_many(new)
            slab.close()

        in_child(child)
        assert slab.stats() == before
        assert view == 7 and (whole == np.arange(10_000)).all()
        slab.free(int(handles[0]))
        in_child(lambda: slab.alloc())
        assert len(slab) == 9_999
        """,
        prelude=FORK,
    )


@needs_fork
def test_fork_while_threads_are_busy(run_python: Callable[..., Any]) -> None:
    """No lock is held for ever in the child."""
    silent(
        run_python,
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        slab, ended = SlabAllocator(64), threading.Event()

        def work():
            while not ended.is_set():
                handles = slab.alloc_many(5000)
                slab.free_many(handles)
                slab.trim()
                slab.compacted()

        def child():
            before = len(slab)
            handle = slab.alloc()
            slab[handle] = bytes(64)
            more = slab.alloc_many(20_000)
            assert len(slab) == before + 20_001
            slab.free_many(more)
            slab.free(handle)
            slab.trim()
            assert len(slab) == len(slab.handles()) == before
            slab.close()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(30):
                in_child(child)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert len(slab) == 0
        """,
        options=("-W", "ignore"),
        prelude=FORK,
    )


# ---- the end of the interpreter

LEFTOVERS = {
    "items": "slab = mempool.SlabAllocator(8); keep = slab.alloc_many(1000)",
    "views": "slab = mempool.SlabAllocator(8); keep = [slab[slab.alloc()][2:], slab.array, memoryview(slab)]",
    "records": "slab = mempool.SlabAllocator([('x', 'f8')]); keep = [slab[slab.alloc()], slab[slab.alloc()]['x']]",
    "views of a dropped slab": "keep = (lambda slab: (slab[slab.alloc()], slab.array))(mempool.SlabAllocator('f8'))",
    "views of a closed slab": "slab = mempool.SlabAllocator(8); keep = slab[slab.alloc()], slab.array; slab.close()",
    "retired": "slab = mempool.SlabAllocator(8); h = slab.alloc(); keep = slab[h]; slab.free(h)",
    "cycle": "keep = [mempool.SlabAllocator('f8')]; keep += [keep, keep[0].array]; keep[0].alloc()",
    "in sys": "sys.slab = mempool.SlabAllocator('f8'); sys.keep = sys.slab[sys.slab.alloc()]",
    "in the package": "mempool.keep = mempool.SlabAllocator('f8'); mempool.view = mempool.keep[mempool.keep.alloc()]",
    "in builtins": "import builtins; builtins.keep = s = mempool.SlabAllocator(8); builtins.view = s[s.alloc()]",
    "iterator": "slab = mempool.SlabAllocator(8); slab.alloc_many(10); keep = iter(slab); next(keep)",
    "weak reference": "import weakref; s = mempool.SlabAllocator(8); weakref.finalize(s, mempool.SlabAllocator, 16)",
    "finalizer": "class Late:\n    def __del__(self):\n        self.s.free(self.s.alloc()); self.s.close()\n"
    "late = Late(); late.s = mempool.SlabAllocator(8); sys.late = late",
    "atexit": "import atexit; s = mempool.SlabAllocator('f8'); k = s.array; atexit.register(lambda: (s.alloc(), s.close()))",
    "thread": "import threading; s = mempool.SlabAllocator(8)\n"
    "def work():\n    while True:\n        s.free_many(s.alloc_many(1000))\n"
    "threading.Thread(target=work, daemon=True).start()\nwhile not s.stats().frees:\n    pass",
}


@pytest.mark.parametrize("code", LEFTOVERS.values(), ids=LEFTOVERS.keys())
def test_alive_at_exit(run_python: Callable[..., Any], code: str) -> None:
    silent(run_python, "import sys, mempool\n" + code)
