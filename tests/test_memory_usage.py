"""`memory_usage`: each figure against what is known to be there."""

import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

import mempool
import system_tree as tree
from mempool import Account, BufferPool, memory_usage
from mempool._system import rlimits
from mempool.accounting import MemoryUsage
from mempool.accounting.usage import python_heap, read_usage
from support import KIB, MIB, together
from system_tree import GIB


@pytest.fixture
def tracing() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rlimits, "address_space", lambda: None)
    monkeypatch.setattr(rlimits, "data", lambda: None)
    tree.process(tmp_path, rss=100 * MIB, peak=120 * MIB)
    tree.machine(tmp_path, 16 * GIB, 12 * GIB)
    return tree.member_v2(tree.group_v2(tmp_path, limit=512 * MIB))


def test_what_the_system_says(root: Path) -> None:
    usage = read_usage(root)
    assert (usage.rss, usage.peak_rss, usage.uss) == (100 * MIB, 120 * MIB, None)
    assert (usage.limit, usage.available) == (512 * MIB, 432 * MIB)
    assert usage.limit_source == f"cgroup {root}/sys/fs/cgroup"
    assert usage.unread == ()
    assert read_usage(root, uss=True).uss == 152 * KIB


def test_a_limit_that_cannot_be_read_is_told(root: Path) -> None:
    tree.plant(root, {"sys/fs/cgroup/memory.max": "plenty\n"})
    usage = read_usage(root)
    assert (usage.limit, usage.limit_source, usage.available) == (16 * GIB, "machine", 12 * GIB)
    (problem,) = usage.unread
    assert "ValueError" in problem
    assert "memory.max" in problem


def test_no_limit_at_all(tmp_path: Path, root: Path) -> None:
    (root / "proc/meminfo").unlink()
    tree.group_v2(root)
    usage = read_usage(root)
    assert (usage.limit, usage.limit_source, usage.available) == (None, None, None)
    assert "meminfo" in usage.unread[0]


def test_without_resident_memory_there_is_no_record(root: Path) -> None:
    (root / "proc/self/status").unlink()
    with pytest.raises(FileNotFoundError, match="status"):
        read_usage(root)


def test_a_peak_is_never_below_the_present(root: Path) -> None:
    tree.process(root, rss=130 * MIB, peak=120 * MIB)
    assert read_usage(root).peak_rss == 130 * MIB


def test_external_memory_and_its_parts(run_python: Callable[..., object], tmp_path: Path) -> None:
    """In a process of its own: any other pool may give idle memory back meanwhile."""
    code = """
        import sys
        import numpy as np
        import mempool
        from mempool import Account, BufferPool, memory_usage

        KIB, MIB = 1 << 10, 1 << 20
        before = memory_usage()
        pool, account = BufferPool(idle_timeout=None), Account("third party")
        lent, back = pool.acquire(8 * MIB), pool.acquire(4 * MIB)
        back.release()
        np.save(sys.argv[1], np.zeros(MIB))
        with mempool.open_array(sys.argv[1]) as array, account.charged(3 * MIB):
            after = memory_usage()
            stats = pool.stats()
            assert after.idle - before.idle == stats.idle == 4 * MIB
            assert 8 * MIB <= after.mapped - before.mapped <= 8 * MIB + 64 * KIB
            assert after.external - before.external == stats.reserved + (after.mapped - before.mapped) + 3 * MIB
            assert after.lent - before.lent == 11 * MIB
            assert array.nbytes == 8 * MIB
        lent.release()
        pool.close()
        assert (memory_usage().external, memory_usage().idle) == (before.external, before.idle)
    """
    run_python(code, tmp_path / "x.npy")


def test_the_tree_of_accounts() -> None:
    account = Account("of the test")
    with account.charged("1MiB"):
        mempool.cleanup("aggressive")  # nothing idles that could go between one figure and the next
        usage = memory_usage()
        assert usage.accounts["name"] == "root"
        assert {"name": "of the test", "used": MIB, "peak": MIB, "limit": None, "children": []} in usage.accounts[
            "children"
        ]
        assert usage.external == usage.accounts["used"]


def test_resident_memory_of_a_lease_is_resident(run_python: Callable[..., object]) -> None:
    code = """
        import sys
        from mempool import BufferPool, memory_usage

        MIB = 1 << 20
        before = memory_usage()
        lease = BufferPool().acquire(64 * MIB)
        lease[:] = b"x" * (64 * MIB)
        after = memory_usage(uss=True)
        assert after.rss - before.rss > 48 * MIB
        assert after.peak_rss >= after.rss
        if sys.platform == "linux":
            assert 64 * MIB < after.uss < after.rss + MIB
    """
    run_python(code)


def test_the_heap_is_unknown_without_tracemalloc() -> None:
    assert not tracemalloc.is_tracing()
    assert memory_usage().python_heap is None


def test_the_heap_is_without_what_is_external(tracing: None, tmp_path: Path) -> None:
    def hold() -> list[object]:
        pool, slab = BufferPool(), mempool.SlabAllocator(1 << 16)
        held = [pool.acquire(MIB), slab.alloc_many(100), mempool.Arena(MIB), mempool.RingBuffer(MIB)]
        return [*held, mempool.create_array(tmp_path / "x.npy", (MIB,), "u1", overwrite=True)]

    assert len(hold()) == 5  # modules that are imported by a first call
    memory_usage()
    gc.collect()
    before = python_heap()
    kept = [bytearray(100 * KIB) for _ in range(10)]
    after = python_heap()
    assert before is not None
    assert after is not None
    assert 1000 * KIB <= after - before < 1100 * KIB
    held = hold()
    usage = memory_usage()
    assert usage.python_heap is not None
    assert abs(usage.python_heap - after) < 256 * KIB
    assert len(held) == 5
    assert len(kept) == 10


def test_the_record_is_frozen_and_plain() -> None:
    usage = memory_usage()
    assert isinstance(usage, MemoryUsage)
    with pytest.raises(FrozenInstanceError):
        usage.rss = 1  # type: ignore[misc]
    assert not hasattr(usage, "__dict__")


def test_bad_arguments() -> None:
    with pytest.raises(TypeError):
        memory_usage(True)  # type: ignore[call-arg]


def test_from_many_threads() -> None:
    pool = BufferPool()

    def work() -> None:
        for _ in range(20):
            with pool.acquire(MIB):
                usage = memory_usage()
            assert 0 < usage.rss <= usage.peak_rss
            assert usage.limit is None or usage.limit > 0

    together([work] * 8)


def test_top_level_names_load_when_asked_for(run_python: Callable[..., object]) -> None:
    code = """
        import sys
        import mempool
        assert not {"mempool.accounting", "tracemalloc", "dataclasses"} & set(sys.modules)
        assert "memory_usage" in dir(mempool)
        usage = mempool.memory_usage()
        assert usage.rss > 0 and "numpy" not in sys.modules
        assert mempool.memory_usage is mempool.accounting.memory_usage
    """
    run_python(code)


def test_after_fork_and_at_exit(run_python: Callable[..., object]) -> None:
    pytest.importorskip("resource")
    code = """
        import atexit, os, mempool
        lease = mempool.acquire("1MiB")
        before = mempool.memory_usage()
        if (child := os.fork()) == 0:
            os._exit(mempool.memory_usage().external != before.external)
        assert os.waitpid(child, 0)[1] == 0
        atexit.register(lambda: print(mempool.memory_usage().external >= 1 << 20))
    """
    done = run_python(code)
    assert done.stdout == "True\n"  # type: ignore[attr-defined]


def test_accounts_may_be_chained_deeper_than_calls_nest() -> None:
    from mempool.accounting._lent import lent_by_account

    deepest = None
    for _ in range(2 * sys.getrecursionlimit()):
        deepest = mempool.Account("link", parent=deepest)
    assert deepest is not None
    deepest.charge(5)
    node, depth = mempool.memory_usage().accounts, 0
    while node["children"]:
        node, depth = node["children"][-1], depth + 1
    assert depth == 2 * sys.getrecursionlimit()
    assert (node["name"], node["used"], node["children"]) == ("link", 5, [])
    assert 5 in lent_by_account().values()
    deepest.discharge(5)
