"""A block is lent again when nothing sees it any more, in any process, and never before."""

import gc
import os
import pickle
import sys
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from lease_views import VIEWS, View, pattern
from mempool.shared import SharedPool
from shared_kit import Child, child, is_idle, linux, mappings, nothing_left
from support import MIB, together, until

pytestmark = linux

KINDS = [
    view
    for view in VIEWS
    if "DLPack" not in view.name and "dlpack" not in view.name and "PickleBuffer" not in view.name
]
each_view = pytest.mark.parametrize("view", KINDS, ids=lambda view: view.name)
SIZE = 4096


def one_block() -> SharedPool:
    return SharedPool(limit=SIZE + 4096)


def is_full(pool: SharedPool) -> bool:
    try:
        pool.acquire(SIZE)
    except MemoryError:
        return True
    return False


# ---- views


@each_view
@pytest.mark.parametrize("end", ["release", "del", "with"])
def test_a_view_keeps_the_block(view: View, end: str) -> None:
    pool = one_block()
    b = pool.acquire(SIZE)
    b[:] = pattern(SIZE)
    seen: Any = view.make(b)
    expected = view.read(seen)
    if end == "release":
        b.release()
    elif end == "with":
        with b:
            pass
    del b
    assert is_full(pool)
    assert view.read(seen) == expected
    assert (pool.stats().retired or pool.stats().in_use) == SIZE
    del seen
    assert not is_full(pool)


def test_numpy_keeps_the_buffer_itself() -> None:
    pool = one_block()
    b = pool.acquire(SIZE)
    array = np.ndarray(8, "u1", buffer=b)
    b.release()
    assert is_full(pool)
    del b, array
    assert not is_full(pool)


def test_a_finaliser_brings_a_view_back() -> None:
    """The collector clears weak references before finalisers run; the block must not believe it."""
    pool = one_block()
    saved: list[memoryview] = []

    class Phoenix:
        def __init__(self, view: memoryview) -> None:
            self.view, self.myself = view, self

        def __del__(self) -> None:
            saved.append(self.view)

    b = pool.acquire(SIZE)
    b[:] = pattern(SIZE)
    Phoenix(memoryview(b))
    b.release()
    gc.collect()
    assert saved
    assert is_full(pool)
    assert saved.pop().tobytes() == pattern(SIZE)
    gc.collect()
    assert not is_full(pool)


def test_a_buffer_in_a_circle_is_collected() -> None:
    pool = one_block()
    circle: list[Any] = [pool.acquire(SIZE)]
    circle.append(circle)
    del circle
    gc.collect()
    assert not is_full(pool)


def test_each_arrival_at_home_keeps_the_block() -> None:
    pool = one_block()
    b = pool.acquire(SIZE)
    again = pickle.loads(pickle.dumps(b))
    b.release()
    assert is_full(pool)
    view = again.array()
    again.release()
    assert is_full(pool)
    del view
    assert not is_full(pool)


def test_a_block_that_comes_home_is_lent_again() -> None:
    """To who received it, and to nobody else, although it had ended here."""
    pool = one_block()
    b = pool.acquire(SIZE)
    message = pickle.dumps(b)
    b.release()
    assert is_full(pool)
    again = pickle.loads(message)
    assert is_full(pool)
    assert pool.stats().in_use == SIZE
    again.release()
    assert not is_full(pool)


# ---- other processes


def hold(wire: Any) -> None:
    """Keep what comes until told to drop it."""
    buffer = wire.recv()
    view = buffer.array()
    wire.send(int(view[0]))
    wire.recv()
    buffer.release()
    wire.send("released")
    wire.recv()
    del view
    wire.send("dropped")
    wire.recv()


def test_another_process_keeps_the_block() -> None:
    pool = one_block()
    with nothing_left(), child(hold) as holder:
        b = pool.acquire(SIZE)
        b[0] = 77
        holder.wire.send(b)
        b.release()
        assert is_full(pool)
        stats = pool.stats()  # one: the message may arrive between two
        assert stats.in_flight + stats.held == SIZE
        assert holder.wire.recv() == 77
        assert pool.stats().held == SIZE
        holder.wire.send(None)
        assert holder.wire.recv() == "released"
        assert is_full(pool)
        holder.wire.send(None)
        assert holder.wire.recv() == "dropped"
        assert not is_full(pool)
        holder.wire.send(None)
        pool.trim()


def test_a_killed_process_keeps_nothing() -> None:
    pool = one_block()
    with nothing_left():
        holder = Child(hold)
        b = pool.acquire(SIZE)
        holder.wire.send(b)
        b.release()
        holder.wire.recv()
        assert is_full(pool)
        holder.kill()
        assert not is_full(pool)
        pool.trim()


def relay(wire: Any, onward: Any) -> None:
    """Hand on what comes, and drop it at once."""
    onward.send(wire.recv())
    wire.send("sent")
    wire.recv()


def test_a_message_is_handed_on_by_one_who_dropped_it() -> None:
    """The third process opens the segment with its owner."""
    pool = one_block()
    with nothing_left(), child(hold) as last, child(relay, last.wire) as middle:
        b = pool.acquire(SIZE)
        b[0] = 5
        middle.wire.send(b)
        b.release()
        assert middle.wire.recv() == "sent"
        assert last.wire.recv() == 5
        assert is_full(pool)
        for word in ("released", "dropped"):
            last.wire.send(None)
            assert last.wire.recv() == word
        assert not is_full(pool)
        last.wire.send(None)
        middle.wire.send(None)
        pool.trim()


def owner_dies(wire: Any) -> None:
    pool = SharedPool(linger=0)
    b = pool.acquire(8)
    b[:] = b"survives"
    wire.send(b)
    wire.recv()


def test_what_arrived_survives_its_owner() -> None:
    with nothing_left():
        with child(owner_dies) as owner:
            b = owner.wire.recv()
            owner.wire.send(None)
        assert b.tobytes() == b"survives"
        assert b.pool is None
        again = pickle.loads(pickle.dumps(b))  # this process still has it
        assert again == b
        b.release()
        again.release()


def test_what_did_not_arrive_is_lost_with_its_owner() -> None:
    owner = Child(owner_dies)
    until(lambda: owner.wire.poll(), "a message")
    os.kill(owner.pid, 9)
    os.waitpid(owner.pid, 0)
    b = owner.wire.recv()
    owner.wire.close()
    assert b.lost
    assert "gone" in repr(b)


# ---- fork


def inherit(wire: Any, b: Any) -> None:
    wire.send(b.tobytes())
    b[:4] = b"mine"
    wire.recv()
    b.release()
    wire.send("released")
    wire.recv()


def test_a_child_of_fork_keeps_what_it_sees() -> None:
    pool = one_block()
    b = pool.acquire(8)
    b[:] = b"at birth"
    with child(inherit, b) as heir:
        assert heir.wire.recv() == b"at birth"
        b.release()
        assert is_full(pool)
        heir.wire.send(None)
        assert heir.wire.recv() == "released"
        assert not is_full(pool)
        heir.wire.send(None)


def test_a_child_of_fork_takes_it_along() -> None:
    pool = one_block()
    b = pool.acquire(8)
    heir = Child(inherit, b)
    heir.wire.recv()
    b.release()
    assert is_full(pool)
    heir.kill()
    assert not is_full(pool)


def test_a_child_of_fork_sees_what_the_parent_writes() -> None:
    pool = one_block()
    b = pool.acquire(8)
    b[:] = b"at birth"
    with child(inherit, b) as heir:
        heir.wire.recv()
        heir.wire.send(None)
        assert heir.wire.recv() == "released"
        assert b.tobytes() == b"mineirth"
        heir.wire.send(None)


def start_empty(wire: Any, pool: SharedPool, mapped: int) -> None:
    assert mappings() == mapped
    stats = pool.stats()
    assert (stats.reserved, stats.live, pool.account.used <= 8192) == (0, 0, True)
    b = pool.acquire(SIZE)
    b[:] = b"c" * SIZE
    wire.send(b)
    wire.recv()


def test_a_childs_pool_is_its_own() -> None:
    """It lends nothing of its parent's, and has the whole limit for itself."""
    with nothing_left():
        pool, other = one_block(), SharedPool()
        other.acquire(MIB).release()  # idle: the child has no use for it
        mine = pool.acquire(SIZE)
        mine[:] = b"p" * SIZE
        with child(start_empty, pool, 1) as heir:  # what others left on its way is not for the child
            b = heir.wire.recv()
            assert b.tobytes() == b"c" * SIZE
            assert mine.tobytes() == b"p" * SIZE
            assert b.pool is None
            heir.wire.send(None)
        del b
        mine.release()
        pool.trim()
        other.close()
        assert pool.stats().reserved == 0


def pass_on(wire: Any, b: Any) -> None:
    wire.send(b)
    wire.recv()


def test_a_child_sends_what_it_inherited() -> None:
    pool = one_block()
    b = pool.acquire(8)
    b[:] = b"returned"
    with child(pass_on, b) as heir:
        back = heir.wire.recv()
        assert back.pool is pool
        assert back.address == b.address
        heir.wire.send(None)


def test_received_memory_is_inherited_too() -> None:
    """A process that received a block forks: its child keeps the block from the owner."""
    pool = one_block()

    def receive_and_fork(wire: Any) -> None:
        b = wire.recv()
        with child(inherit, b) as grandchild:
            grandchild.wire.recv()
            b.release()
            wire.send("released")
            wire.recv()
            grandchild.wire.send(None)
            grandchild.wire.recv()
            grandchild.wire.send(None)
        wire.send("gone")
        wire.recv()

    with child(receive_and_fork) as middle:
        b = pool.acquire(8)
        middle.wire.send(b)
        b.release()
        assert middle.wire.recv() == "released"
        assert is_full(pool)
        middle.wire.send(None)
        assert middle.wire.recv() == "gone"
        middle.wire.send(None)
    assert not is_full(pool)


def test_no_descriptor_for_a_child(run_python: Any) -> None:
    """A block that a child sees and that could not be locked for it is never lent again."""
    run_python(
        """
        import os, resource
        from mempool.shared import SharedPool
        pool = SharedPool()
        b = pool.acquire("64KiB")
        address = b.address
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        ready, told = os.pipe()
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
        pid = os.fork()
        if pid == 0:
            os.read(ready, 1)
            os._exit(0 if b[0] == 1 else 1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        b[0] = 1
        b.release()
        for _ in range(3):
            other = pool.acquire("64KiB")
            other[0] = 2
            other.release()
        os.write(told, b"x")
        assert os.waitpid(pid, 0)[1] == 0
        assert pool.stats().segments == 1, pool.stats()
        """
    )


# ---- threads


def test_threads_lend_send_and_drop() -> None:
    pool = SharedPool(limit=16 * (MIB + 4096))

    def work(number: int) -> None:
        for turn in range(100):
            b = pool.acquire(MIB)
            b.array()[::4096] = number
            message = pickle.dumps(b)
            if turn % 2:
                b.release()
            again = pickle.loads(message)
            assert (again.array()[::4096] == number).all()

    together([lambda number=number: work(number) for number in range(6)])  # type: ignore[misc]
    assert is_idle(pool)
    assert pool.stats().acquires == 600


def test_threads_and_forks() -> None:
    """A fork in the middle of other threads' leases: the child's pools work, the parent's blocks return."""
    pool = SharedPool()
    stop = False

    def lend() -> None:
        while not stop:
            pool.acquire(SIZE).release()

    def fork() -> None:
        nonlocal stop
        try:
            for _ in range(20):
                pid = os.fork()
                if pid == 0:
                    os._exit(0 if pool.acquire(SIZE).nbytes == SIZE else 1)
                assert os.waitpid(pid, 0)[1] == 0
        finally:
            stop = True

    with pytest.warns(DeprecationWarning, match="fork") if sys.version_info >= (3, 12) else nullcontext():
        together([lend, fork])
    assert is_idle(pool)


def test_a_pool_that_outlives_its_module_goes_without_a_word(run_python: Any) -> None:
    done = run_python(
        """
        import functools
        from mempool.shared import SharedPool
        functools.kept = SharedPool()  # modules are emptied in the order in which they came
        functools.lent = functools.kept.acquire(100)
        """
    )
    assert done.stderr == ""
