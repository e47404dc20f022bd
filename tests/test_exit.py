"""The interpreter ends in any order: exit code 0, not a word on stderr, no matter what is alive."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

LEFTOVERS = {
    "leases": "keep = [mempool.acquire(n) for n in (0, 1, 5000, 4 << 20)]",
    "dropped pool": "keep = mempool.BufferPool().acquire(100)",
    "memoryviews": "keep = [mempool.acquire(100)[:5], mempool.acquire(100).readonly()]",
    "arrays": "keep = [mempool.acquire(100).array(), numpy.frombuffer(mempool.acquire(64), 'u1')]",
    "ndarray(buffer=b)": "keep = numpy.ndarray(64, 'u1', buffer=mempool.acquire(64))",
    "capsules": "keep = [mempool.acquire(9).__dlpack__(), mempool.acquire(9).__dlpack__(max_version=(1, 0), copy=True)]",
    "from_dlpack": "keep = numpy.from_dlpack(mempool.acquire(100))",
    "pickle buffers": "import pickle; keep = pickle.PickleBuffer(mempool.acquire(100))",
    "ctypes": "import ctypes; keep = (ctypes.c_char * 50).from_buffer(mempool.acquire(50))",
    "closed pool": "pool = mempool.BufferPool(); keep = pool.acquire(100)[:3]; pool.close()",
    "idle memory": "pool = mempool.BufferPool(idle_timeout=0.01); pool.acquire('8MiB').release()",
    "idle memory for ever": "pool = mempool.BufferPool(idle_timeout=None); pool.acquire('8MiB').release()",
    "cycle": "keep = [mempool.acquire(100)]; keep.append(keep); keep.append(keep[0][:])",
    "in sys": "sys.keep = mempool.acquire(100).array(); sys.pool = sys.keep.base",
    "in a module": "import types; sys.modules['kept'] = m = types.ModuleType('kept'); m.b = mempool.acquire(9); m.v = m.b[:]",
    "in builtins": "import builtins; builtins.keep = [mempool.acquire(100), mempool.BufferPool().acquire(1)[:]]",
    "in the package": "mempool.keep = mempool.acquire(100).array()",
    "default argument": "def f(keep=mempool.acquire(100)): pass",
    "tracked account": "a = mempool.Account('a'); class_ = type('T', (), {}); keep = class_(); a.track(keep, 100); a.charge(5)",
    "weak references": "import weakref; b = mempool.acquire(9); weakref.finalize(b, mempool.acquire, 100)",
    "awaitable": "keep = mempool.default_pool().acquire_async(100)",
    "thread local": "import threading; local = threading.local(); local.b = mempool.acquire(100)",
    "context variable": "import contextvars; v = contextvars.ContextVar('v'); v.set(mempool.acquire(100))",
    "traceback": "def f():\n    b = mempool.acquire(100); 1 / 0\ntry:\n    f()\nexcept Exception as error:\n    keep = error",
    "generator": "def g():\n    with mempool.acquire(100) as b:\n        yield b[:]\nkeep = g(); v = next(keep)",
}


@pytest.mark.parametrize("options", [(), ("-X", "dev", "-W", "ignore::ResourceWarning")], ids=["plain", "dev"])
@pytest.mark.parametrize("code", LEFTOVERS.values(), ids=LEFTOVERS.keys())
def test_alive_at_exit(run_python: Callable[..., Any], code: str, options: tuple[str, ...]) -> None:
    done = run_python(f"import sys, mempool\n{'import numpy' if 'numpy' in code else ''}\n{code}\n", options=options)
    assert (done.returncode, done.stderr) == (0, "")


def clean(run_python: Callable[..., Any], code: str, returncode: int = 0, **options: Any) -> None:
    done = run_python(code, check=False, **options)
    assert (done.returncode, done.stderr) == (returncode, "")


def test_handlers_at_exit_use_the_pool(run_python: Callable[..., Any]) -> None:
    clean(
        run_python,
        """
        import atexit, mempool, weakref
        pool = mempool.BufferPool(limit=8192)
        kept = pool.acquire(100)

        def last():
            with pool.acquire(100) as buffer:
                buffer[:] = bytes(100)
            kept.release()
            pool.close()
            mempool.acquire(5000).array()

        atexit.register(last)

        class Late:
            def __del__(self, acquire=mempool.acquire):
                acquire(100).release()

        late = Late()
        weakref.finalize(late, mempool.acquire, 10)
        """,
    )


def test_finalizers_after_the_modules_are_gone(run_python: Callable[..., Any]) -> None:
    clean(
        run_python,
        """
        import sys, mempool

        class Late:
            def __init__(self):
                self.pool, self.buffer = mempool.BufferPool(limit=8192), mempool.acquire(100)

            def __del__(self):
                self.buffer[:] = bytes(100)
                self.buffer.release()
                self.pool.acquire(5000)[:10]
                self.pool.stats()
                self.pool.close()

        sys.late = Late()
        mempool.late = Late()
        late = Late()
        late.itself = late
        """,
    )


LATE_CALLS = {
    "acquire": "late.pool.acquire(4096)",
    "acquire with a timeout": "late.pool.acquire(4096, timeout=1)",
    "acquire with a timeout for ever": "late.pool.acquire(4096, zero=True, timeout=None)",
    "with": "with late.pool.acquire(4096) as b: b[:3] = b'abc'",
    "release": "late.buffer.release()",
    "slice": "late.buffer[:10]",
    "compare": "late.buffer == b'abc'",
    "stats": "late.pool.stats()",
    "size classes": "late.pool.stats().size_classes[0].size",
    "reserve": "late.pool.reserve(4096, 2)",
    "trim": "late.pool.trim(0)",
    "limit": "late.pool.limit = 8192",
    "account": "late.pool.account.tree()",
    "close": "late.pool.close()",
}


@pytest.mark.parametrize("place", ["sys.late", "mempool._core.late", "builtins.late"])
@pytest.mark.parametrize("call", LATE_CALLS.values(), ids=LATE_CALLS.keys())
def test_what_finalizers_may_call_at_the_very_end(run_python: Callable[..., Any], place: str, call: str) -> None:
    """Whatever the interpreter took apart before: a pool and its leases work to the end. By then it no longer reports errors."""
    done = run_python(
        f"""
        import builtins, os, sys, mempool

        class Late:
            def __init__(self):
                self.error, self.repr, self.write = BaseException, repr, os.write
                self.pool = mempool.BufferPool(limit=16384)
                self.buffer = self.pool.acquire(100)

            def __del__(late):
                try:
                    {call}
                except late.error as error:
                    late.write(2, late.repr(error).encode())
                late.write(1, b"done")

        {place} = Late()
        """
    )
    assert (done.stdout, done.stderr) == ("done", "")


@pytest.mark.parametrize("how", ["acquire(4096, timeout=None)", "acquire(4096, timeout=1000)"])
def test_daemon_threads_that_wait(run_python: Callable[..., Any], how: str) -> None:
    clean(
        run_python,
        f"""
        import mempool, threading
        pool = mempool.BufferPool(limit=4096)
        lease = pool.acquire(4096)
        for _ in range(3):
            threading.Thread(target=lambda: pool.{how}, daemon=True).start()
        while pool.stats().waits < 3:
            pass
        """,
    )


def test_daemon_threads_that_lease(run_python: Callable[..., Any]) -> None:
    clean(
        run_python,
        """
        import mempool, threading
        pool = mempool.BufferPool(limit="1MiB", idle_timeout=0.001)
        begun = threading.Barrier(4)

        def work():
            begun.wait()
            while True:
                with pool.acquire(10_000) as buffer:
                    view = buffer[:10]

        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        begun.wait()
        """,
    )


def test_other_threads_end_after_the_main_one(run_python: Callable[..., Any]) -> None:
    clean(
        run_python,
        """
        import mempool, threading
        pool = mempool.BufferPool(limit=4096)
        lease, ended = pool.acquire(4096), threading.Event()

        def work():
            ended.wait()
            with pool.acquire(4096, timeout=60) as buffer:
                buffer[:] = bytes(4096)

        threading.Thread(target=work).start()

        class Ending:
            def __del__(self):
                pass

        threading._register_atexit(lambda: (lease.release(), ended.set()))
        """,
    )


def test_waiting_task_of_a_loop_that_is_never_run_again(run_python: Callable[..., Any]) -> None:
    clean(
        run_python,
        """
        import asyncio, mempool, os
        pool = mempool.BufferPool(limit=4096)
        lease = pool.acquire(4096)

        async def main():
            task = asyncio.create_task(pool.acquire_async(4096))
            while not pool.stats().waits:
                await asyncio.sleep(0)

        asyncio.run(main())
        lease.release()
        keep = pool.acquire(100)
        """,
    )


@pytest.mark.parametrize("ending", ["sys.exit(3)", "os._exit(3)", "raise SystemExit(3)", "exit(3)"])
def test_ways_to_exit(run_python: Callable[..., Any], ending: str) -> None:
    clean(
        run_python,
        f"""
        import os, sys, mempool
        pool = mempool.BufferPool(idle_timeout=0.001)
        for _ in range(5):
            pool.acquire("4MiB").release()
        keep = pool.acquire(100)[:]
        with pool.acquire(5000) as buffer:
            {ending}
        """,
        returncode=3,
    )


def test_exit_in_a_thread(run_python: Callable[..., Any]) -> None:
    clean(
        run_python,
        """
        import sys, mempool, threading
        pool = mempool.BufferPool()

        def work():
            with pool.acquire(100) as buffer:
                sys.exit(3)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert pool.stats().releases == 1
        """,
    )


def test_exit_while_memory_is_purged(run_python: Callable[..., Any]) -> None:
    """Housekeeping is somewhere in its round when the process ends."""
    for size in (100, 5000, 4 << 20):
        clean(
            run_python,
            f"""
            import mempool
            pools = [mempool.BufferPool(idle_timeout=0.001) for _ in range(5)]
            for _ in range(300):
                for pool in pools:
                    pool.acquire({size}).release()
            keep = pools[0].acquire({size})
            """,
        )


def test_package_removed_before_exit(run_python: Callable[..., Any]) -> None:
    clean(
        run_python,
        """
        import gc, sys, mempool
        keep = mempool.acquire(100)
        view = keep.array()
        for name in [name for name in sys.modules if name.startswith("mempool")]:
            del sys.modules[name]
        del mempool
        gc.collect()
        keep.release()
        """,
    )


def test_leak_warnings_at_exit_are_whole_or_absent(run_python: Callable[..., Any]) -> None:
    """What lives until the interpreter goes may be reported or not, but no finalizer fails."""
    done = run_python("""
        import sys, mempool
        pool = mempool.BufferPool(leak_detection="full")
        keep = pool.acquire(100)
        sys.keep = pool.acquire(200)
        cycle = [pool.acquire(300)]
        cycle.append(cycle)
    """)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_interrupted_wait_at_exit(run_python: Callable[..., Any]) -> None:
    """The signal comes to another thread, so that no system call of the waiting one is interrupted."""
    done = run_python(
        """
        import mempool, signal, threading
        pool = mempool.BufferPool(limit=4096)
        lease = pool.acquire(4096)

        def interrupt():
            while not pool.stats().waits:
                pass
            signal.raise_signal(signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            pool.acquire(4096, timeout=None)
        except KeyboardInterrupt:
            thread.join()
            raise SystemExit(5) from None
        """,
        check=False,
    )
    assert (done.returncode, done.stderr) == (5, "")


def test_subinterpreters_are_refused_cleanly(run_python: Callable[..., Any]) -> None:
    """One interpreter per process: others get `ImportError`, and the first goes on."""
    module = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    pytest.importorskip(module)
    clean(
        run_python,
        f"""
        import sys, {module} as interpreters
        import mempool
        kept = mempool.acquire(100).array()
        made = interpreters.create()
        code = f"import sys\\nsys.path[:] = {{sys.path!r}}\\ntry:\\n    import mempool\\nexcept ImportError:\\n    pass\\n"
        code += "else:\\n    raise SystemError('imported')"
        assert interpreters.run_string(made, code) is None
        interpreters.destroy(made)
        kept[:] = 5
        with mempool.acquire(5000) as buffer:
            assert len(buffer) == 5000
        """,
    )
