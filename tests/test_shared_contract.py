"""A shared pool and its buffers within one process: what they promise, and what they refuse."""

import copy
import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest

import mempool
from mempool import Account, AccountLimitExceeded, PoolExhausted
from mempool.accounting import register_reclaimer
from mempool.shared import SegmentLost, SharedBuffer, SharedPool
from shared_kit import is_idle, linux, nothing_left
from support import MIB, start

pytestmark = linux


# ---- buffers


def test_a_buffer_is_bytes() -> None:
    with SharedPool() as pool, pool.acquire(10, zero=True) as b:
        assert (len(b), b.nbytes, b.released, b.lost) == (10, 10, False, False)
        assert b.capacity >= 10
        assert b.address % 4096 == 0
        assert b.pool is pool
        b[0], b[-1] = 7, 255
        b[1:3] = b"ab"
        assert b.tobytes() == b"\x07ab" + bytes(6) + b"\xff"
        assert b == b.tobytes()
        assert b != b"x"
        assert b == b
        assert b[1:3].obj is not b
        assert bytes(b[1:3]) == b"ab"
        assert b.readonly().readonly
        assert not memoryview(b).readonly
        with pytest.raises(TypeError):
            hash(b)
        with pytest.raises(IndexError, match="index 10 is out of range for a buffer of 10 bytes"):
            b[10]
        with pytest.raises(IndexError, match="index -11"):
            b[-11] = 0
        with pytest.raises(TypeError, match="cannot be deleted"):
            del b[0]


def test_arrays_lie_in_it() -> None:
    with SharedPool() as pool, pool.acquire(64, zero=True) as b:
        b.array("u4", (2, 3), offset=8, order="F")[1, 2] = 5
        assert b.array("u4")[2 + 5] == 5
        assert b.array().ctypes.data == b.address
        for wrong in (
            {"shape": 17, "dtype": "u4"},
            {"offset": 65},
            {"dtype": "O"},
            {"order": "K"},
            {"dtype": "u8", "offset": 1},
        ):
            with pytest.raises(ValueError):  # noqa: PT011
                b.array(**wrong)  # type: ignore[arg-type]


def test_nothing_is_fine() -> None:
    with SharedPool() as pool, pool.acquire(0) as b:
        assert len(b) == 0
        assert b.tobytes() == b""
        assert b == b""
        assert len(pickle.loads(pickle.dumps(b))) == 0


@pytest.mark.parametrize(
    "use",
    [
        len,
        bytes,
        memoryview,
        pickle.dumps,
        lambda b: b[0],
        lambda b: b[0:1],
        lambda b: b.array(),
        lambda b: b.tobytes(),
        lambda b: b.nbytes,
        lambda b: b.address,
        lambda b: b.capacity,
        lambda b: b.readonly(),
        lambda b: b.__enter__(),
        lambda b: b.__setitem__(0, 1),
    ],
)
def test_a_released_buffer_refuses(use: Any) -> None:
    with SharedPool() as pool:
        b = pool.acquire(8)
        b.release()
        b.release()
        assert b.released
        assert b.pool is pool
        assert b == b
        assert b != bytes(8)
        with pytest.raises(ValueError, match="buffer is released"):
            use(b)


def test_made_by_pools_only() -> None:
    with pytest.raises(TypeError, match="acquire"):
        SharedBuffer()
    with SharedPool() as pool:
        b = pool.acquire(8)
        for function in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be copied"):
                function(b)
        assert weakref.ref(b)() is b
        assert "8 bytes" in repr(b)
        assert pool.name in repr(b)
        b.release()
        assert "released" in repr(b)


# ---- pools


@pytest.mark.parametrize("wrong", [1.5, None, True, [1], b"1"])
def test_wrong_types(wrong: Any) -> None:
    with SharedPool() as pool, pytest.raises(TypeError):
        pool.acquire(wrong)
    if wrong is not None:
        for name in ("limit", "account", "name"):
            with pytest.raises(TypeError, match=name):
                SharedPool(**{name: wrong})
    if wrong != 1.5:
        with pytest.raises(TypeError, match="linger"):
            SharedPool(linger=wrong)


def test_nonsense() -> None:
    with SharedPool() as pool:
        for size in (-1, "many", "-5KiB"):
            with pytest.raises(ValueError, match="nbytes"):
                pool.acquire(size)
        with pytest.raises(OverflowError, match="nbytes"):
            pool.acquire(1 << 64)
        with pytest.raises(MemoryError):
            pool.acquire(1 << 61)
        with pytest.raises(TypeError, match="zero"):
            pool.acquire(1, zero=1)  # type: ignore[arg-type]
        assert pool.stats().reserved == 0
        assert pool.account.used == 0
        assert pool.stats().acquires == 0
    for name, value in (("limit", 0), ("transit_timeout", -1), ("linger", "soon")):
        with pytest.raises(ValueError, match=name):
            SharedPool(**{name: value})


def test_names_and_settings() -> None:
    pool = SharedPool("1MiB", name="frames")
    assert (pool.name, pool.limit, pool.closed, pool.account.name) == ("frames", MIB, False, "frames")
    assert "frames" in repr(pool)
    assert SharedPool().name != SharedPool().name


def test_blocks_are_used_again_and_zeroed_when_asked() -> None:
    with SharedPool() as pool:
        b = pool.acquire(MIB)
        address = b.address
        b[:] = b"x" * MIB
        b.release()
        b = pool.acquire(MIB - 5, zero=True)
        assert b.address == address
        assert not any(b)
        assert (pool.stats().acquires, pool.stats().hits) == (2, 1)


@pytest.mark.parametrize("nbytes", [1, 4096, 5000, 32768, 32769, 100_000, MIB, 5 * MIB + 1])
def test_a_block_wastes_little(nbytes: int) -> None:
    with SharedPool() as pool, pool.acquire(nbytes) as b:
        assert nbytes <= b.capacity <= max(nbytes + 4095, nbytes * 1.125)


def test_small_blocks_share_descriptors() -> None:
    with SharedPool() as pool:
        kept = [pool.acquire(100) for _ in range(64)]
        assert pool.stats().segments == 1
        assert len({b.address for b in kept}) == 64


def test_figures_add_up() -> None:
    with SharedPool() as pool:
        live, viewed, sent = pool.acquire(MIB), pool.acquire(MIB), pool.acquire(MIB)
        view = viewed.array()
        viewed.release()
        message = pickle.dumps(sent)
        sent.release()
        pool.acquire(MIB).release()
        s = pool.stats()
        assert (s.in_use, s.retired, s.in_flight, s.held, s.idle) == (MIB, MIB, MIB, 0, MIB)
        assert s.reserved == 4 * MIB + s.overhead == s.peak == pool.account.used
        assert (s.live, s.segments, s.acquires) == (1, 4, 4)
        assert pickle.loads(message).pool is pool
        del view, live
        assert is_idle(pool)
        assert pool.trim() == s.reserved
        assert pool.stats().reserved == 0


# ---- limits


def test_the_limit_holds_and_idle_memory_goes_first() -> None:
    pool = SharedPool(limit=3 * MIB)
    first, second = pool.acquire(MIB), pool.acquire(MIB)
    with pytest.raises(PoolExhausted) as caught:
        pool.acquire(MIB)
    assert (caught.value.requested, caught.value.limit) == (MIB, 3 * MIB)
    assert caught.value.in_use == pool.stats().reserved == 2 * MIB + 8192
    assert pool.stats().exhausted == 1
    first.release()
    second.release()
    assert pool.acquire(2 * MIB).nbytes == 2 * MIB
    assert pool.stats().peak <= 3 * MIB


def test_a_small_limit_makes_small_segments() -> None:
    pool = SharedPool(limit=5 * 4096)
    kept = [pool.acquire(1) for _ in range(4)]
    with pytest.raises(PoolExhausted):
        pool.acquire(1)
    assert len(kept) == 4


def test_an_account_without_room_for_a_whole_segment() -> None:
    """Small blocks are cut from fewer bytes then."""
    pool = SharedPool(account=Account("tight", limit=6 * 4096))
    kept = [pool.acquire(1) for _ in range(4)]
    with pytest.raises(AccountLimitExceeded):
        pool.acquire(1)
    assert len({buffer.address for buffer in kept}) == 4
    assert pool.account.used == pool.stats().reserved == 5 * 4096


def test_a_reclaimer_may_use_the_pool() -> None:
    """It is asked with no lock of the pool held: it calls the pool, and waits for another thread that does."""
    above = Account("above", limit=2 * MIB + 8192)
    pool = SharedPool(account=above)
    held = [pool.acquire(MIB), pool.acquire(MIB - 4096)]
    asked: list[int] = []

    def reclaim(needed: int) -> int:
        asked.append(start(lambda: pool.stats().live).result())
        held.pop(0).release()
        return pool.trim()

    registration = register_reclaimer(reclaim, account=above)
    try:
        assert pool.acquire(MIB).nbytes == MIB
        assert asked == [2]
    finally:
        registration.cancel()


def test_accounts_bind() -> None:
    above = Account("above", limit=2 * MIB)
    pool = SharedPool(account=above)
    assert pool.account.parent is above
    kept = pool.acquire(MIB)
    with pytest.raises(AccountLimitExceeded):
        pool.acquire(MIB)
    kept.release()
    bigger = pool.acquire(MIB + 500_000)
    assert above.used == pool.stats().reserved
    bigger.release()
    pool.close()
    assert above.used == 0


def test_tracemalloc_sees_segments(run_python: Any) -> None:
    run_python(
        """
        import tracemalloc, mempool
        from mempool.shared import SharedPool
        tracemalloc.start()
        def traced():
            wanted = tracemalloc.DomainFilter(True, mempool.TRACEMALLOC_DOMAIN)
            return sum(t.size for t in tracemalloc.take_snapshot().filter_traces([wanted]).traces)
        pool = SharedPool()
        b = pool.acquire("1MiB")
        assert traced() == pool.stats().reserved
        b.release(); pool.close()
        assert traced() == 0
        """
    )


def test_a_call_within_a_call_is_refused() -> None:
    """A finaliser runs wherever the collector does; it must not find a block half lent."""
    pool = SharedPool()
    first = pool.acquire(10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool._books, "_grow", lambda *_: pool.acquire(10))
        with pytest.raises(RuntimeError, match="within one of its own calls"):
            pool.acquire(MIB)
    assert pool.acquire(MIB).nbytes == MIB
    assert first.nbytes == 10


# ---- closing


def test_a_closed_pool_refuses_and_keeps_what_is_lent() -> None:
    with nothing_left():
        pool = SharedPool()
        b, idle = pool.acquire(MIB), pool.acquire(MIB)
        idle.release()
        pool.close()
        pool.close()
        with pytest.raises(ValueError, match="is closed"):
            pool.acquire(1)
        with pytest.raises(ValueError, match="is closed"):
            pool.__enter__()
        b[:3] = b"abc"
        assert pool.closed
        assert pool.stats().reserved == MIB + 4096 == pool.account.used
        again = pickle.loads(pickle.dumps(b))
        b.release()
        assert again[:3] == b"abc"
        assert again.pool is None
        again.release()
        assert pool.stats().reserved == 0 == pool.account.used


@pytest.mark.parametrize("first", ["send", "close"])
def test_a_message_outlives_buffer_and_pool(first: str) -> None:
    with nothing_left():
        pool = SharedPool()
        b = pool.acquire(8)
        b[:] = b"a letter"
        message = pickle.dumps(b) if first == "send" else b""
        pool.close()
        message = message or pickle.dumps(b)
        del b, pool
        assert pickle.loads(message).tobytes() == b"a letter"
        assert SharedPool().stats().reserved == 0  # any call of the module lets go of what has arrived


def test_a_pool_is_collected_without_close() -> None:
    gc.collect()
    with nothing_left():
        pool = SharedPool()
        pool.acquire(MIB)
        kept = pool.acquire(10).array()
        del pool
        kept[:] = 1
        del kept


# ---- messages


def test_a_message_that_is_too_old_is_lost() -> None:
    """It names a lease that is over: never the bytes of the next."""
    pool = SharedPool(limit=8192, transit_timeout=0)  # one block
    b = pool.acquire(8)
    message = pickle.dumps(b)
    b.release()
    stranger = pool.acquire(8)
    stranger[:] = b"stranger"
    late = pickle.loads(message)
    assert late.lost
    assert late.released
    assert late.pool is None
    assert "too late" in repr(late)
    for use in (len, bytes, memoryview, pickle.dumps, lambda x: x[0], lambda x: x.array()):
        with pytest.raises(SegmentLost, match="came too late"):
            use(late)
    late.release()
    assert isinstance(SegmentLost("x"), OSError)
    assert issubclass(SegmentLost, mempool.MempoolError)


def test_a_message_in_flight_keeps_its_block() -> None:
    pool = SharedPool(transit_timeout=None)
    b = pool.acquire(8)
    b[:] = b"a letter"
    message = pickle.dumps(b)
    b.release()
    assert not is_idle(pool)
    other = pool.acquire(8)
    other[:] = b"stranger"
    assert pickle.loads(message).tobytes() == b"a letter"
    assert pool.stats().in_flight == 0


def test_a_message_may_be_read_twice() -> None:
    pool = SharedPool()
    b = pool.acquire(8)
    message = pickle.dumps(b)
    first, second = pickle.loads(message), pickle.loads(message)
    b[:] = b"the same"
    assert first == second == b
    assert first is not second
    del first, second
    b.release()
    assert is_idle(pool)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_messages_are_short(protocol: int) -> None:
    with SharedPool() as pool, pool.acquire(MIB) as b:
        message = pickle.dumps(b, protocol)
        assert len(message) < 400
        assert pickle.loads(message).address == b.address


def test_no_descriptors_left(run_python: Any) -> None:
    """A failed call changes nothing; a buffer that cannot be opened on arrival says why."""
    run_python(
        """
        import os, pickle, resource
        from mempool.shared import SharedPool, SegmentLost
        pool = SharedPool()
        b = pool.acquire("1MiB")
        pool.close()                    # so that it does not come home but is opened
        message = pickle.dumps(b)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        other = SharedPool()
        kept = []
        try:
            while True:
                kept.append(other.acquire("1MiB"))
        except OSError as error:
            assert error.errno == 24, error
        before = other.stats()
        try:
            other.acquire("1MiB")
        except OSError:
            pass
        assert other.stats() == before and before.live == len(kept)
        late = pickle.loads(message)
        assert late.lost and "Too many open files" in repr(late), late
        kept.clear()
        other.trim()
        assert pickle.loads(message) == b
        """
    )


@pytest.mark.nosan
def test_no_address_space(run_python: Any) -> None:
    run_python(
        """
        import os, resource
        from mempool.shared import SharedPool
        pool = SharedPool()
        before = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        try:
            pool.acquire("2GiB")
        except MemoryError as error:
            assert "2147487744" in str(error), error
        else:
            raise AssertionError("lent")
        assert len(os.listdir("/proc/self/fd")) == before and pool.account.used == 0 and pool.stats().reserved == 0
        assert pool.acquire("1MiB").nbytes
        """
    )


def test_import_is_light(run_python: Any) -> None:
    run_python(
        """
        import sys, mempool
        assert not {"multiprocessing", "mmap", "fcntl", "numpy"} & set(sys.modules)
        mempool.shared.SharedPool
        assert not {"multiprocessing", "numpy"} & set(sys.modules)
        """
    )


def test_numpy_sizes() -> None:
    with SharedPool() as pool:
        assert pool.acquire(np.int64(100)).nbytes == 100
