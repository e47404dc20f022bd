"""Shared memory where a signal handler, a fork or an end comes at the worst moment. A trace function stands for the handler."""

import pickle
from typing import Any

import pytest

from mempool.shared import SharedPool
from mempool.shared.registry import here
from shared_kit import child, linux, nothing_left, settle

pytestmark = [linux, pytest.mark.nosan]

MIB = 1 << 20

# Runs `action` once, before the n-th line that `work` executes in the package; returns whether there was one.
AT_LINE = """
import gc, os, pickle, sys, warnings
from mempool.shared import SharedPool
import mempool.shared
gc.freeze()  # collections have little to look at, forks little to copy
warnings.simplefilter("ignore", DeprecationWarning)
home = os.path.dirname(mempool.shared.__file__)

def at_line(n, work, action, skipped=()):
    seen = 0
    def trace(frame, event, argument):
        nonlocal seen
        if not frame.f_code.co_filename.startswith(home) or frame.f_code.co_name in skipped:
            return None
        if event == "line":
            seen += 1
            if seen == n:
                sys.settrace(None)
                action()
        return trace
    sys.settrace(trace)
    try:
        result = work()
    finally:
        sys.settrace(None)
    return seen >= n, result
"""


def test_a_fork_in_the_middle_of_acquire(run_python: Any) -> None:
    """Parent and child get different memory from a call that both finish, whatever line the fork came at."""
    run_python(
        AT_LINE
        + """
def attempt(n, zero, warm):
    pool = SharedPool()
    if warm:
        old = pool.acquire(100); old[:5] = b"dirty"; old.release()
    child = None
    ready, told = os.pipe()
    finished, finish = os.pipe()
    def fork():
        nonlocal child
        child = os.fork()
    try:
        reached, got = at_line(n, lambda: pool.acquire(100, zero=zero), fork)
    except BaseException:
        if child == 0:
            os._exit(3)
        raise
    if child == 0:
        os.close(told)  # a parent that fails ends the wait below
        got[:5] = b"child"
        mine = pool.acquire(100); mine[:5] = b"child"
        os.write(finish, b"x")
        os.read(ready, 1)
        os._exit(0 if got[:5] == mine[:5] == b"child" else 2)
    os.close(finish)
    if child:
        os.read(finished, 1)
    # The child wrote nothing into what it saw being made: what is sent comes home.
    assert pickle.loads(pickle.dumps(got)).pool is pool, (n, zero, warm)
    others = [got] + [pool.acquire(100) for _ in range(70)]
    for other in others:
        other[:6] = b"parent"
    if child:
        os.write(told, b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, (n, zero, warm)
    assert all(other[:6] == b"parent" for other in others), n
    os.close(ready), os.close(told), os.close(finished)
    return reached

for zero, warm in ((False, False), (True, True)):
    n = 1
    while attempt(n, zero, warm):
        n += 1
    assert n > 30, n
"""
    )


def test_an_error_in_the_middle_of_a_fork(run_python: Any) -> None:
    """Python forks also if its hooks were interrupted. What the child sees is not lent to others; no descriptor or lock stays."""
    run_python(
        AT_LINE
        + """
import threading
sys.unraisablehook = lambda error: None

def attempt(n, kind):
    pool = SharedPool()
    leases = [pool.acquire("64KiB") for _ in range(3)]
    for lease in leases:
        lease[:5] = b"lease"
    ready, told = os.pipe()
    files = len(os.listdir("/proc/self/fd"))
    def fail():
        raise kind("in a hook")
    reached, child = at_line(n, os.fork, fail)
    if child == 0:
        os.close(told)
        os.read(ready, 1)
        own = pool.acquire("64KiB")
        os._exit(0 if own.nbytes and all(lease[:5] == b"lease" for lease in leases) else 2)
    assert len(os.listdir("/proc/self/fd")) == files, n
    done = []
    thread = threading.Thread(target=lambda: done.append(pool.acquire(1)), daemon=True)
    thread.start(); thread.join(100)
    assert done, "a lock was left"
    for lease in leases:
        lease.release()
    for other in [pool.acquire("64KiB") for _ in range(3)]:
        other[:5] = b"other"
    os.write(told, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, n
    os.close(ready), os.close(told)
    return reached

for kind in (KeyboardInterrupt, TimeoutError):
    n = 1
    while attempt(n, kind):
        n += 1
    assert n > 20, n
"""
    )


def test_a_pool_made_within_a_call_while_another_thread_forks(run_python: Any) -> None:
    """A handler that runs within a pool's call makes a pool and ends one; a fork that waits for that call stops neither."""
    run_python(
        """
        import faulthandler, os, sys, threading, warnings
        from mempool.shared import SharedPool
        warnings.simplefilter("ignore", DeprecationWarning)
        faulthandler.dump_traceback_later(100, exit=True)
        pools = [SharedPool() for _ in range(4)]
        def fork():
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        thread = threading.Thread(target=fork)
        with pools[1]._books.lock:
            thread.start()
            while True:
                frame = sys._current_frames().get(thread.ident)
                if frame is not None and frame.f_code.co_filename.endswith(os.path.join("shared", "fork.py")):
                    break
            SharedPool().acquire(1)
            for pool in pools:
                pool.acquire(1)
                pool.close()
        thread.join()
        """
    )


def reply_when_told(wire: Any) -> None:
    """Hold a buffer, and send it back only when the word comes; then let go."""
    buffer = wire.recv()
    wire.send("got it")
    wire.recv()
    buffer[:5] = b"reply"
    wire.send(buffer)
    buffer.release()
    wire.send("gone")
    wire.recv()


@pytest.mark.parametrize("sent", ["before", "after"])
def test_a_reply_after_the_owner_closed_its_pool(sent: str) -> None:
    """What another process holds when a pool ends may be sent on, and arrives; then nothing is left."""
    with nothing_left(), child(reply_when_told) as worker:
        with SharedPool(linger=0) as pool:
            buffer = pool.acquire(MIB)
            if sent == "before":
                worker.wire.send(buffer)
        if sent == "after":
            worker.wire.send(buffer)
        assert worker.wire.recv() == "got it"
        del buffer
        assert pool.stats().reserved > MIB
        worker.wire.send("now")
        message = worker.wire.recv_bytes()
        assert worker.wire.recv() == "gone"
        back = pickle.loads(message)
        assert not back.lost
        assert back[:5] == b"reply"
        del back
        assert pool.stats().reserved == 0
        worker.wire.send("end")


def test_many_messages_of_a_closed_pool_are_one_parcel() -> None:
    settle()
    before = set(here.parcels)  # messages of other tests, which nobody received
    with child(reply_when_told) as worker:
        with SharedPool() as pool:
            buffer = pool.acquire(MIB)
            worker.wire.send(buffer)
        assert worker.wire.recv() == "got it"
        for _ in range(10):
            pickle.loads(pickle.dumps(buffer))
        assert len(set(here.parcels) - before) == 1
        worker.wire.send("now")
        buffer = worker.wire.recv()
        assert worker.wire.recv() == "gone"
        del buffer
        assert pool.stats().reserved == 0
        assert not set(here.parcels) - before
        worker.wire.send("end")


def test_an_interrupted_call_loses_no_block(run_python: Any) -> None:
    """Whatever line of a call an error comes at: figures add up, all memory can be had again, and none of it twice."""
    run_python(
        AT_LINE
        + """
import gc, pickle
def attempt(n, call):
    pool = SharedPool(limit="1MiB")
    old = [pool.acquire(40000) for _ in range(5)]
    pickle.loads(pickle.dumps(old[0]))
    kept = old.pop()
    kept[:4] = b"kept"
    del old
    def fail():
        raise KeyboardInterrupt
    try:
        reached, _ = at_line(n, lambda: call(pool), fail, ["once"])  # no handler runs between its lines
    except KeyboardInterrupt:
        reached = True
    stats = pool.stats()
    assert stats.in_use == 40960 and stats.in_flight == stats.held == stats.retired == 0, (n, stats)
    assert stats.reserved == stats.idle + stats.in_use + 4096 * stats.segments, (n, stats)
    new = [pool.acquire(40000) for _ in range(22)]
    assert len({b.address for b in [kept, *new]}) == 23 and kept[:4] == b"kept"
    del new
    pool.trim()
    stats = pool.stats()
    assert (stats.reserved, stats.segments) == (45056, 1), (n, stats)
    gc.collect()  # a segment that was being made may be in a circle
    assert pool.account.used == 45056
    return reached

calls = [lambda pool: pool.acquire(40000) and None, lambda pool: pool.acquire(900000) and None, SharedPool.trim, SharedPool.stats]
for call in calls:
    n = 1
    while attempt(n, call):
        n += 1
    assert n > 20, n
"""
    )


def test_a_child_that_finishes_a_call_after_its_parent(run_python: Any) -> None:
    """Whatever line of `acquire` the fork came at: what the parent sent before the child went on comes home."""
    run_python(
        AT_LINE
        + """
def attempt(n):
    pool = SharedPool()  # a segment for each block, so that the same is lent again
    old = pool.acquire(40960)
    pickle.loads(pickle.dumps(old)).release()  # others may have seen it: it has to be taken back
    old.release()
    child = None
    ready, told = os.pipe()
    def fork():
        nonlocal child
        child = os.fork()
        if child == 0:
            os.close(told)
            os.read(ready, 1)
    try:
        reached, got = at_line(n, lambda: pool.acquire(40960), fork)
        if child == 0:
            os._exit(0)
    except BaseException:
        if child == 0:
            os._exit(3)
        raise
    sent = pickle.dumps(got)
    os.close(told)
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, n
    assert pool.stats().in_use == 40960 and pickle.loads(sent).pool is pool, n
    os.close(ready)
    return reached

n = 1
while attempt(n):
    n += 1
assert n > 30, n
"""
    )
