"""fork: parent and child go on with pools, leases and waiting calls of their own. Everything runs in processes of its own."""

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the OS has no fork")

PRELUDE = """
    import gc, os, sys, threading, time, warnings
    warnings.simplefilter("error")
    import mempool

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

    def until(condition):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, "it never happened"
            time.sleep(0.001)

    def tasks():
        return len(os.listdir("/proc/self/task"))
"""


@pytest.fixture
def script(run_python: Callable[..., Any]) -> Callable[..., None]:
    """Run a snippet after the prelude; neither process may print a word of complaint."""

    def run(code: str, *args: object, **options: Any) -> None:
        import textwrap

        done = run_python(textwrap.dedent(PRELUDE) + textwrap.dedent(code), *args, **options)
        assert done.stderr == ""

    return run


def test_leases_of_the_child_are_copies(script: Callable[..., None]) -> None:
    script("""
        pool = mempool.BufferPool(limit="16MiB")
        small, large = pool.acquire(100), pool.acquire("4MiB")
        small[:], large[:] = b"p" * 100, b"P" * (4 << 20)
        view, array = small[:], large.array()

        def child():
            assert bytes(view) == b"p" * 100 and array[-1] == ord("P")
            small[:], large[:] = b"c" * 100, b"C" * (4 << 20)
            assert array[0] == ord("C")
            small.release()
            assert bytes(view) == b"c" * 100
            assert pool.stats().live == 1 and pool.stats().retired > 0
            with pool.acquire(100) as other:
                other[:] = b"x" * 100
                assert bytes(view) == b"c" * 100

        in_child(child)
        assert small.tobytes() == b"p" * 100 and bytes(large[:4]) == b"PPPP"
        assert pool.stats().live == 2 and pool.stats().releases == 0
        large.release()
        assert pool.stats().retired > 0
    """)


def test_books_of_the_child_are_its_own(script: Callable[..., None]) -> None:
    script("""
        account = mempool.Account("a", limit="8MiB")
        pool = mempool.BufferPool(limit="8MiB", account=account)
        kept = pool.acquire("2MiB")

        def child():
            assert account.used == pool.stats().reserved == 2 << 20
            with pool.acquire("4MiB"):
                assert account.used == 6 << 20
                try:
                    pool.acquire("4MiB")
                except mempool.PoolExhausted:
                    pass
                else:
                    raise AssertionError("the limit was forgotten")
            kept.release()
            pool.trim()
            assert account.used == 0

        in_child(child)
        assert account.used == pool.stats().reserved == 2 << 20
        assert pool.stats().exhausted == 0
    """)


def test_idle_memory_goes_back_first(script: Callable[..., None]) -> None:
    script("""
        pools = [mempool.BufferPool(idle_timeout=timeout) for timeout in (None, 60)]
        for pool in pools:
            for n in (100, 5000, 3 << 20):
                pool.acquire(n).release()
            assert pool.stats().idle > 3 << 20

        def child():
            assert [pool.stats().idle for pool in pools] == [0, 0]
            for pool in pools:
                pool.acquire(5000).release()
                assert pool.stats().idle > 0

        in_child(child)
        assert [pool.stats().idle for pool in pools] == [0, 0]
        assert [pool.stats().reserved for pool in pools] == [0, 0]
    """)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_no_thread_of_ours_runs_while_python_forks(script: Callable[..., None]) -> None:
    """From 3.12 on Python warns of a fork with threads, and warnings are errors here."""
    script("""
        pool = mempool.BufferPool(idle_timeout=60)
        pool.acquire(5000).release()
        assert tasks() == 2
        seen = []
        os.register_at_fork(after_in_parent=lambda: seen.append(tasks()))
        for _ in range(3):
            in_child(lambda: seen.append(tasks()))
        assert seen == [1, 1, 1], seen
        pool.acquire(5000).release()
        assert tasks() == 2
    """)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_a_thread_that_read_ahead_and_has_just_ended_is_waited_for(script: Callable[..., None], tmp_path: Any) -> None:
    """The OS may still count it, and Python goes by that when it warns."""
    (tmp_path / "file").write_bytes(bytes(1000))
    script(
        """
        from mempool.io import _ahead, iter_chunks
        waited, wait, run = threading.Event(), _ahead._wait_for_the_os, _ahead.Ahead._run

        def linger(*arguments):
            run(*arguments)
            waited.wait()
            time.sleep(0.05)

        def tell(*arguments):
            waited.set()
            wait(*arguments)

        _ahead._GRACE, _ahead._wait_for_the_os, _ahead.Ahead._run = 100, tell, linger
        chunks = iter_chunks(sys.argv[1], pool=mempool.BufferPool(idle_timeout=None))
        assert chunks._ahead.start()
        assert sum(map(len, chunks)) == 1000
        chunks.close()
        assert (chunks._ahead.running, tasks()) == (False, 2)
        in_child(lambda: None)
        assert tasks() == 1
        """,
        tmp_path / "file",
    )


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_child_purges_its_own_idle_memory(script: Callable[..., None]) -> None:
    script("""
        pool, lasting = mempool.BufferPool(idle_timeout=0.05), mempool.BufferPool(idle_timeout=3600)
        pool.acquire("4MiB").release()

        def child():
            assert tasks() == 1
            lasting.acquire("4MiB").release()
            assert tasks() == 2
            pool.acquire("4MiB").release()
            until(lambda: pool.stats().idle == 0)
            lasting.trim()
            until(lambda: tasks() == 1)

        in_child(child)
        pool.acquire("4MiB").release()
        until(lambda: pool.stats().idle == 0)
    """)


def test_child_starts_with_no_waiters(script: Callable[..., None]) -> None:
    script("""
        pool = mempool.BufferPool(limit=4096)
        lease = pool.acquire(4096)
        got = []
        waiter = threading.Thread(target=lambda: got.append(pool.acquire(4096, timeout=60)))
        waiter.start()
        until(lambda: pool.stats().waits == 1)

        def child():
            lease.release()
            with pool.acquire(4096, timeout=0.01):  # nobody is before us
                pass
            mine = pool.acquire(4096)
            second = threading.Thread(target=lambda: got.append(pool.acquire(4096, timeout=60)))
            second.start()
            until(lambda: pool.stats().waits == 2)
            mine.release()
            second.join()
            assert len(got) == 1
            mine = None
            try:
                pool.acquire(4096, timeout=0.01)
            except mempool.PoolExhausted:
                pass
            else:
                raise AssertionError("lent twice")

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the waiter's thread, which is not ours
            in_child(child)
        assert not got
        lease.release()
        waiter.join()
        assert len(got) == 1
    """)


def test_child_of_a_waiting_task(script: Callable[..., None]) -> None:
    script("""
        import asyncio
        pool = mempool.BufferPool(limit=4096)

        async def main():
            lease = pool.acquire(4096)
            task = asyncio.create_task(pool.acquire_async(4096))
            while not pool.stats().waits:
                await asyncio.sleep(0)

            def child():
                lease.release()
                with pool.acquire(4096, timeout=0.01) as mine:
                    mine[:] = bytes(4096)

            in_child(child)
            lease.release()
            (await task).release()

        asyncio.run(main())
    """)


@pytest.mark.parametrize("place", ["head", "behind"])
@pytest.mark.parametrize("thread", [False, True], ids=["released at once", "released in a thread"])
def test_fork_in_a_signal_handler_while_a_call_waits(script: Callable[..., None], place: str, thread: bool) -> None:
    """The call goes on in the child, which has a queue of its own: it must stand in it."""
    script(
        """
        import signal
        pool = mempool.BufferPool(limit=4096)
        lease, children = pool.acquire(4096), []
        first = threading.Thread(target=lambda: pool.acquire(4096, timeout=60).release())
        if sys.argv[1] == "behind":
            first.start()
            until(lambda: pool.stats().waits == 1)
        before = pool.stats().waits

        def fork(*_):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other threads
                children.append(os.fork())
            if children == [0]:
                signal.alarm(100)
            if sys.argv[2] == "True" and children == [0]:
                threading.Thread(target=lease.release).start()
            else:
                lease.release()

        def interrupt():
            until(lambda: pool.stats().waits == before + 1)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

        signal.signal(signal.SIGUSR1, fork)
        threading.Thread(target=interrupt).start()
        got = pool.acquire(4096, timeout=None)
        assert pool.stats().live == 1
        if children == [0]:
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
        """,
        place,
        thread,
    )


def test_fork_while_threads_lease(script: Callable[..., None]) -> None:
    """Whatever lock a thread holds at that moment, the child finds none held."""
    script(
        """
        pool = mempool.BufferPool(limit="64MiB", idle_timeout=0.01)
        account = mempool.Account("a", limit="32MiB")
        tight = mempool.BufferPool(limit="1MiB", account=account)
        stop = threading.Event()

        def lease(seed):
            n = seed
            while not stop.is_set():
                n = n * 69069 % 65521
                try:
                    with pool.acquire(n * 40 + 1) as buffer, tight.acquire(n * 4 + 1):
                        view = buffer[:1]
                except mempool.PoolExhausted:
                    pass
                if n % 50 == 0:
                    pool.trim()
                    mempool.BufferPool().acquire(n)

        threads = [threading.Thread(target=lease, args=(seed,)) for seed in range(1, 5)]
        for thread in threads:
            thread.start()

        def child():
            for n in (1, 5000, 100_000, 1 << 20):
                for some in (pool, mempool.default_pool()):
                    with some.acquire(n) as buffer:
                        buffer[:] = bytes(n)
            pool.trim()
            pool.stats()
            with account.charged(10):
                pass

        warnings.simplefilter("ignore")
        for _ in range(25):
            in_child(child)
        stop.set()
        for thread in threads:
            thread.join()
        assert pool.stats().live == tight.stats().live == 0
        """,
        timeout=120,
    )


def test_fork_in_a_loop(script: Callable[..., None]) -> None:
    script("""
        pool = mempool.BufferPool(idle_timeout=30)
        view = None
        for i in range(50):
            with pool.acquire(10_000) as buffer:
                buffer[:5] = b"%05d" % i
                view = buffer[:5]

            def child():
                assert bytes(view) == b"%05d" % i
                with pool.acquire(20_000) as mine:
                    mine[:] = bytes(20_000)

            in_child(child)
        del view
        assert pool.stats().releases == 50 and pool.stats().retired == 0
    """)


def test_children_of_children(script: Callable[..., None]) -> None:
    script("""
        pool = mempool.BufferPool()
        lease = pool.acquire(5000)

        def generation(depth):
            lease[:4] = b"%04d" % depth
            pool.acquire(5000).release()
            if depth:
                in_child(lambda: generation(depth - 1))
            assert bytes(lease[:4]) == b"%04d" % depth

        generation(6)
    """)


def test_fork_from_a_thread(script: Callable[..., None]) -> None:
    script("""
        pool = mempool.BufferPool()
        lease = pool.acquire(5000)

        def child():
            lease.release()
            pool.acquire(5000)

        warnings.simplefilter("ignore")
        errors = []

        def run():
            try:
                in_child(child)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
    """)


def test_closed_pool_and_default_pool_in_the_child(script: Callable[..., None]) -> None:
    script("""
        pool = mempool.BufferPool()
        lease = pool.acquire(5000)
        pool.close()
        mempool.acquire(100).release()

        def child():
            lease[:] = bytes(5000)
            lease.release()
            assert pool.stats().reserved == 0
            assert mempool.acquire(100).pool is mempool.default_pool()

        in_child(child)
        assert pool.stats().live == 1
    """)


def test_child_that_ends_normally(script: Callable[..., None]) -> None:
    """The child runs every exit handler and finalizer."""
    script("""
        pool = mempool.BufferPool(limit=4096, leak_detection="off")
        lease, keep = pool.acquire(100), []
        keep.append(lease.array())
        pid = os.fork()
        if pid == 0:
            lease.release()
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    """)


MULTIPROCESSING = """
import multiprocessing, sys, mempool

def work(buffer):
    assert buffer.tobytes() == b"abc" * 100
    buffer[:3] = b"xyz"
    with mempool.acquire(1 << 20) as mine:
        mine[:] = bytes(1 << 20)
    return buffer

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    sent = mempool.acquire(300)
    sent[:] = b"abc" * 100
    mempool.acquire("4MiB").release()
    with context.Pool(2) as workers:
        for returned in workers.map(work, [sent] * 4):
            assert returned.tobytes() == b"xyz" + b"abc" * 99
    assert sent.tobytes() == b"abc" * 100
    process = context.Process(target=work, args=(sent,))
    process.start()
    process.join()
    assert process.exitcode == 0
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method: str, tmp_path: Any) -> None:
    """Pickled through the pipe; what the worker writes stays there."""
    import subprocess

    (tmp_path / "main.py").write_text(MULTIPROCESSING)
    quiet = [] if method == "fork" else ["-W", "error"]  # multiprocessing's own threads make Python warn
    done = subprocess.run(
        [sys.executable, *quiet, str(tmp_path / "main.py"), method], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
