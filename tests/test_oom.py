"""Python runs out of memory at each allocation in turn: an error at most, nothing lost, nothing half done."""

import gc
from collections.abc import Callable
from typing import Any

import pytest

import mempool

testcapi = pytest.importorskip("_testcapi")
if not hasattr(testcapi, "set_nomemory"):
    pytest.skip("this interpreter cannot fail allocations", allow_module_level=True)

PRELUDE = """
    import _testcapi, gc, pickle, sys, warnings
    import numpy as np
    import mempool
    from mempool import Account, AccountLimitExceeded, BufferPool, PoolExhausted

    pool = BufferPool(limit="1MiB", idle_timeout=None, name="tight")
    account = Account("a", limit="1MiB")
    gc.disable()

    class Thing:
        pass

    def attempt(function, nth):
        '''True if it ran through before the nth allocation. Not all of Python and NumPy says MemoryError when it has none.'''
        _testcapi.set_nomemory(nth - 1, nth)
        try:
            function()
        except Exception as error:
            return isinstance(error, PoolExhausted)
        finally:
            _testcapi.remove_mem_hooks()
        return True

    def each_allocation(function, most=400):
        function()
        nth, clean = 1, 0
        while clean < 5:
            done = attempt(function, nth)
            gc.collect()
            stats = pool.stats()
            assert stats.live == stats.retired == 0, (nth, stats)
            assert stats.acquires == stats.releases + stats.dropped + stats.handed_over, (nth, stats)
            assert account.used == 0, nth
            clean = clean + 1 if done else 0
            nth += 1
            assert nth < most, "it never ran through"
        with pool.acquire("512KiB") as buffer:
            buffer[:] = bytes(512 << 10)
"""

CALLS = {
    "acquire": "pool.acquire(5000)",
    "acquire cold": "pool.trim(); pool.acquire(5000)",
    "acquire a string": "pool.acquire('5KiB')",
    "acquire zero": "pool.acquire(5000, zero=True).release()",
    "acquire with a timeout": "pool.acquire(5000, timeout=1).release()",
    "with": "with pool.acquire(5000) as b: b[0] = 1",
    "exhausted": """
        try: pool.acquire("2MiB")
        except PoolExhausted: pass
        """,
    "exhausted after a wait": """
        kept = pool.acquire("1MiB")
        try: pool.acquire(5000, timeout=0.0001)
        except PoolExhausted: pass
        """,
    "memoryview": "b = pool.acquire(5000); v = memoryview(b); s = v[5:10]; b.release(); s.tobytes()",
    "slices": "b = pool.acquire(5000); b[3:9]; b[::2]; b[:5] = b'hello'; b[7]; b[8] = 200; b.release()",
    "readonly": "b = pool.acquire(5000); r = b.readonly(); b.release()",
    "views kept": "b = pool.acquire(5000); keep = [b[:3], b.array(), b.__dlpack__()]; del b; keep.clear()",
    "array": "b = pool.acquire(5000); a = b.array('f4', (10, 10), offset=4, order='F'); b.release()",
    "array of records": "b = pool.acquire(5000); a = b.array([('a', 'u4'), ('b', 'f8')], 5); b.release()",
    "array beyond the end": """
        b = pool.acquire(5000)
        try: b.array("f8", (1000, 1000))
        except ValueError: pass
        """,
    "ndarray": "b = pool.acquire(5000); a = np.ndarray(50, 'u1', buffer=b); b.release()",
    "frombuffer": "b = pool.acquire(5000); a = np.frombuffer(b); b.release()",
    "dlpack": "b = pool.acquire(5000); c = b.__dlpack__(); d = b.__dlpack__(max_version=(1, 0)); b.release()",
    "dlpack copy": "b = pool.acquire(5000); c = b.__dlpack__(copy=True); b.release()",
    "resize": "b = pool.acquire(5000); b.resize(100); b.resize('4KiB'); b.release()",
    "resize refused": """
        b = pool.acquire(5000)
        v = b[:]
        try: b.resize(10)
        except BufferError: pass
        """,
    "pickle": "b = pool.acquire(5000); pickle.dumps(b, 5); pickle.dumps(b, 2); b.release()",
    "unpickle": "pickle.loads(frame).release()",
    "compare": "b = pool.acquire(5000); b == bytes(5000); b != b'x'; b == 5; repr(b); b.tobytes(); b.release()",
    "stats": "pool.stats(); repr(pool); pool.limit; pool.trim(); pool.reserve(5000, 3)",
    "pools": "p = BufferPool(limit='1MiB', account=account); p.acquire(100); p.acquire(100)[:]; p.close()",
    "accounts": "c = Account('c', parent=account)\\nwith c.charged(100): c.tree()\\naccount.children",
    "charge refused": """
        try: account.charge("2MiB")
        except AccountLimitExceeded: pass
        """,
    "track": "account.track(Thing(), 100)",
    "leak warning": """
        pool.leak_detection = "full"
        try: pool.acquire(5000)
        finally: pool.leak_detection = "off"
        """,
    "leak noted": """
        pool.leak_detection = "full"
        try: pool.acquire(5000).release()
        finally: pool.leak_detection = "off"
        """,
    "waiting": """
        try: pool.acquire("1MiB", timeout=1).release()
        finally: gc.collect()
        """,
}


@pytest.mark.parametrize("name", CALLS)
def test_each_allocation_fails_once(run_python: Callable[..., Any], name: str) -> None:
    import textwrap

    body = textwrap.indent(textwrap.dedent(CALLS[name].replace("\\n", "\n")), "    ")
    code = textwrap.dedent(PRELUDE) + "\nframe = pickle.dumps(pool.acquire(5000))\n"
    code += "sys.unraisablehook = lambda unraisable: None\nwarnings.simplefilter('ignore')\n"
    code += f"def call():\n{body}\neach_allocation(call)\n"
    run_python(code, timeout=120)


def test_all_allocations_fail(run_python: Callable[..., Any]) -> None:
    """From some allocation on, none succeeds; releasing needs none."""
    run_python("""
        import _testcapi, mempool
        pool = mempool.BufferPool(limit="1MiB", idle_timeout=None)

        def use(kept):
            for _ in range(3):
                kept.append(pool.acquire(5000))
                kept.append(kept[-1][:5])

        for first in range(1, 40):
            kept = []
            _testcapi.set_nomemory(first)
            try:
                use(kept)
            except MemoryError:
                pass
            kept.clear()
            _testcapi.remove_mem_hooks()
            stats = pool.stats()
            assert stats.live == stats.retired == 0, (first, stats)
    """)


@pytest.mark.nosan
def test_the_os_has_no_more(run_python: Callable[..., Any]) -> None:
    """Under an address-space limit: `MemoryError`, and the pool goes on."""
    pytest.importorskip("resource")
    run_python("""
        import mempool, resource
        room = [bytes(200) for _ in range(50_000)][::500]  # Python itself lacks nothing then
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        pool, account = mempool.BufferPool(account=(a := mempool.Account("a"))), a
        resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), resource.RLIM_INFINITY))
        kept = []
        for nbytes in (1 << 30, 64 << 20, 3 << 20, 100_000):
            try:
                while True:
                    kept.append(pool.acquire(nbytes))
            except MemoryError as error:
                assert not isinstance(error, mempool.MempoolError), error
                assert str(nbytes) in str(error), error
        before = pool.stats()
        assert before.live == len(kept) > 3 and account.used == before.reserved
        try:
            pool.reserve("64MiB", 10)
        except MemoryError:
            pass
        assert account.used == pool.stats().reserved
        kept.clear()
        with pool.acquire("50MiB", zero=True) as buffer:
            buffer[0] = 1
        assert pool.stats().in_use == 0
    """)


def test_more_than_any_address_space() -> None:
    pool = mempool.BufferPool()
    for nbytes in (1 << 58, 1 << 60, (1 << 63) - 1):
        with pytest.raises(MemoryError, match=str(nbytes)):
            pool.acquire(nbytes)
        with pytest.raises(MemoryError):
            pool.reserve(nbytes, 2)
    with pytest.raises(OverflowError, match=str(1 << 63)):
        pool.acquire(1 << 63)
    gc.collect()
    assert (pool.stats().reserved, pool.account.used, pool.stats().live) == (0, 0, 0)
