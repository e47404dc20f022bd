"""What the process knows of itself: the pools and slabs that live, what they hold, and what the OS says."""

import gc
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mempool
from mempool import Account, BufferPool, SlabAllocator, _core
from mempool.accounting import root_account
from support import KIB, MIB, together, until

LINUX = sys.platform.startswith("linux")


def test_pools_and_slabs_that_live_are_listed() -> None:
    gc.collect()
    before = _core._pools(), _core._slabs()
    pools, slabs = [BufferPool(), BufferPool()], [SlabAllocator(8), SlabAllocator(16)]
    assert _core._pools() == before[0] + pools
    assert _core._slabs() == before[1] + slabs
    pools.pop(0).close()
    slabs.pop(0).close()
    gc.collect()
    assert _core._pools() == before[0] + pools
    assert _core._slabs() == before[1] + slabs


def test_idle_memory_is_told_pool_by_pool() -> None:
    busy, idle = BufferPool(idle_timeout=None), BufferPool(idle_timeout=None)
    lease = busy.acquire(MIB)
    idle.acquire(MIB).release()
    found = dict(_core._idle_of_pools())
    assert found[idle.account] == idle.stats().idle >= MIB
    assert found.get(busy.account, 0) == busy.stats().idle
    lease.release()
    assert dict(_core._idle_of_pools())[busy.account] == busy.stats().idle >= MIB


def test_a_closed_pool_is_listed_while_it_lives() -> None:
    pool, slab = BufferPool(), SlabAllocator(8)
    pool.close()
    slab.close()
    assert pool in _core._pools()
    assert slab in _core._slabs()


def test_what_never_came_to_be_is_not_listed() -> None:
    before = _core._pools(), _core._slabs()
    unborn = BufferPool.__new__(BufferPool), SlabAllocator.__new__(SlabAllocator)
    with pytest.raises(ValueError, match="alignment"):
        BufferPool(alignment=3)
    with pytest.raises(ValueError, match="item"):
        SlabAllocator(0)
    assert (_core._pools(), _core._slabs()) == before
    del unborn


def test_listed_pools_die_as_others_do() -> None:
    pool = BufferPool()
    cycle: list[Any] = [pool, pool.acquire(10)]
    cycle.append(cycle)
    gone = weakref.ref(pool)
    del pool, cycle
    gc.collect()
    assert gone() is None


def test_threads_make_list_and_drop() -> None:
    gc.collect()
    before = _core._pools()

    def make() -> None:
        for _ in range(200):
            with BufferPool() as pool:
                pool.acquire(100).release()
                assert pool in _core._pools()

    def look() -> None:
        for _ in range(400):
            reserved, idle, mapped = _core._external()
            assert reserved >= idle
            assert reserved >= mapped
            for pool in _core._pools():
                assert pool.name

    together([make, look, make, look])
    gc.collect()
    assert _core._pools() == before


def test_external_memory(tmp_path: Path) -> None:
    gc.collect()
    for other_pool in _core._pools():
        other_pool.trim()  # or it goes while we count
    reserved, idle, mapped = _core._external()
    pool = BufferPool(idle_timeout=None)
    kept, other = pool.acquire(MIB), pool.acquire(2 * MIB)
    assert _core._external() == (reserved + 3 * MIB, idle, mapped)
    other.release()
    assert _core._external() == (reserved + 3 * MIB, idle + 2 * MIB, mapped)
    account = Account("other library")
    account.charge(MIB)
    array = mempool.create_array(tmp_path / "x.npy", (MIB,), "u1")
    assert _core._external()[0] >= reserved + 5 * MIB
    assert _core._external()[2] - mapped in {MIB, MIB + 4 * KIB}
    array.close()
    account.discharge(MIB)
    kept.release()
    pool.trim()
    assert _core._external() == (reserved, idle, mapped)


def test_held_leaves_idle_memory_out() -> None:
    top = Account("top")
    pool, slab = BufferPool(account=top, idle_timeout=None), SlabAllocator(KIB, account=top)
    kept = pool.acquire(MIB)
    pool.acquire(MIB).release()
    view = memoryview(kept)
    kept.release()
    handle = slab.alloc()
    assert _core._held(None, pool) == MIB
    assert _core._held(None, slab) == KIB
    assert _core._held(top, None) == MIB + slab.stats().reserved
    slab.free(handle)
    assert _core._held(None, slab) == 0
    view.release()
    assert _core._held(pool.account, None) == 0
    with pytest.raises(TypeError):
        _core._held(None, None)


def test_the_process_and_the_machine() -> None:
    rss, peak = _core._process_memory()
    total, available = _core._machine_memory()
    assert MIB < rss <= peak
    assert rss < total
    assert 0 < available <= total
    if LINUX:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        assert abs(pages * os.sysconf("SC_PAGESIZE") - _core._process_memory()[0]) < 8 * MIB


def test_memory_in_use_shows() -> None:
    before = _core._process_memory()[0]
    block = bytearray(b"x") * (64 * MIB)
    assert _core._process_memory()[0] > before + 48 * MIB
    del block
    assert _core._process_memory()[1] > before + 48 * MIB


def test_malloc_trim() -> None:
    assert isinstance(_core._malloc_trim(), bool)


@pytest.mark.nosan
@pytest.mark.skipif(not LINUX, reason="malloc_trim of glibc")
def test_malloc_trim_gives_back(run_python: Callable[..., Any]) -> None:
    if "glibc" not in os.confstr("CS_GNU_LIBC_VERSION" if hasattr(os, "confstr") else ""):  # type: ignore[operator]
        pytest.skip("not glibc")
    done = run_python(
        """
        import ctypes
        from mempool import _core
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        libc.malloc.argtypes = [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        blocks = [libc.malloc(100_000) for _ in range(1000)]
        for block in blocks:
            ctypes.memset(block, 1, 100_000)
        before = _core._process_memory()[0]
        top = libc.malloc(1000)
        for block in blocks:
            libc.free(block)
        assert _core._malloc_trim()
        print(before - _core._process_memory()[0])
        """
    )
    assert int(done.stdout) > 50_000_000


def paged_out() -> int:
    """What is asked for arrays in files that other tests still have."""
    gc.collect()
    return _core._page_out()


@pytest.mark.parametrize("mode", ["r", "r+", "w+"])
def test_page_out_keeps_what_is_written(tmp_path: Path, mode: str) -> None:
    others = paged_out()
    path = tmp_path / "x.npy"
    with mempool.create_array(path, (MIB,), "u1") as array:
        array.array[:] = 7
    array = mempool.open_array(path, mode, dtype=None if mode != "w+" else "u1", shape=None if mode != "w+" else (MIB,))
    view = array.array
    if mode != "r":
        view[: MIB // 2] = 9
    asked = _core._page_out()
    assert asked >= others + MIB or not LINUX
    assert view[: MIB // 2].tolist() == [7 if mode == "r" else 9] * (MIB // 2)
    array.close()
    assert _core._page_out() == others  # a closed one is left alone
    assert int(view[0]) == (7 if mode == "r" else 9)


def test_page_out_spares_what_has_no_file(tmp_path: Path) -> None:
    others = paged_out()
    path = tmp_path / "x.npy"
    mempool.create_array(path, (MIB,), "u1").close()
    copy = mempool.open_array(path, "c")
    copy.array[:] = 5
    anonymous = mempool.anonymous_array((MIB,), "u1")
    pool = BufferPool()
    with pool.acquire(MIB) as lent:
        lent[:] = b"x" * MIB
        assert _core._page_out() == others
        assert lent[MIB - 1] == ord("x")
    assert int(copy.array.sum()) == 5 * MIB
    copy.close()
    anonymous.close()


def test_page_out_while_arrays_come_and_go(tmp_path: Path) -> None:
    others = paged_out()

    def make(number: int) -> Callable[[], None]:
        def run() -> None:
            for turn in range(50):
                path = tmp_path / f"{number}.npy"
                with mempool.create_array(path, (64 * KIB,), "u1", overwrite=True) as array:
                    array.array[:] = turn
                    assert int(array.array.sum()) == turn * 64 * KIB

        return run

    def page_out() -> None:
        for _ in range(100):
            _core._page_out()

    together([make(0), make(1), page_out])
    until(lambda: _core._page_out() == others)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_has_the_listing(run_python: Callable[..., Any]) -> None:
    done = run_python(
        """
        import os, mempool
        from mempool import _core
        pool, slab = mempool.BufferPool(), mempool.SlabAllocator(8)
        child = os.fork()
        if child == 0:
            own = mempool.BufferPool()
            os._exit(0 if _core._pools() == [pool, own] and _core._slabs() == [slab] else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(_core._pools()))
        """
    )
    assert done.stdout.split() == ["0", "1"]


def test_accounts_that_were_charged_by_hand_stay() -> None:
    account = Account("by hand")
    account.charge(100)
    account.charge(0)
    gone = weakref.ref(account)
    del account
    gc.collect()
    kept = gone()
    assert kept in root_account().children
    kept.discharge(60)
    kept.discharge(0)
    assert kept.used == 40
    del kept
    gc.collect()
    account = gone()
    account.discharge(40)
    account.discharge(0)
    del account
    gc.collect()
    assert gone() is None
