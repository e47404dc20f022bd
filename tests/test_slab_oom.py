"""Python runs out of memory at each allocation of a call on a slab, and nothing is lost; and loops that must not grow."""

import os
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

PRELUDE = """
    import _testcapi, gc, sys, warnings
    import numpy as np
    from mempool import Account, AccountLimitExceeded, PoolExhausted, SlabAllocator, StaleHandle

    account = Account("a", limit="1MiB")
    plain = SlabAllocator(64, account=account, name="plain")
    records = SlabAllocator([("x", "f8"), ("y", "i4", (3,))], account=account, name="records")
    slabs = (plain, records)
    kept = [slab.alloc_many(100) for slab in slabs]
    one = [int(handles[0]) for handles in kept]
    foreign = np.array([5, 6])
    small = SlabAllocator(8, max_items=1)
    gc.disable()
    sys.unraisablehook = lambda unraisable: None
    warnings.simplefilter("ignore")

    def books():
        stats = [slab.stats() for slab in slabs]
        rows = [(s.live, s.retired, s.allocs - s.frees) for s in stats]
        return rows, [slab.handles().tolist() for slab in slabs], account.used - sum(s.reserved for s in stats)

    def attempt(function, nth):
        '''True if it ran through before the nth allocation. Not all of Python and NumPy says MemoryError when it has none.'''
        _testcapi.set_nomemory(nth - 1, nth)
        try:
            function()
        except Exception as error:
            return isinstance(error, (PoolExhausted, AccountLimitExceeded, StaleHandle))
        finally:
            _testcapi.remove_mem_hooks()
        return True

    def each_allocation(function, most=400):
        function()
        gc.collect()
        before, nth, clean = books(), 1, 0
        while clean < 5:
            done = attempt(function, nth)
            gc.collect()
            after = books()
            assert after == before, (nth, done, [(a, b) for a, b in zip(before, after) if a != b][:1])
            clean = clean + 1 if done else 0
            nth += 1
            assert nth < most, "it never ran through"
"""

# Not here: fields of a record, and reads and writes of many, where NumPy itself crashes or forgets to set an error.
CALLS = {
    "alloc": "plain.free(plain.alloc())",
    "alloc and grow": "s = SlabAllocator(4096, account=account); s.alloc(); assert len(s) == 1",
    "alloc_many": "plain.free_many(plain.alloc_many(50))",
    "alloc_many and grow": "s = SlabAllocator('f8', account=account); s.alloc_many(5000)",
    "alloc too many": """
        try: plain.alloc_many(1_000_000)
        except AccountLimitExceeded: pass
        """,
    "alloc when full": """
        try: small.alloc_many(2)
        except PoolExhausted: pass
        """,
    "free": """
        try: plain.free(5)
        except StaleHandle: pass
        """,
    "free_many": """
        try: plain.free_many([one[0], 5])
        except StaleHandle: pass
        """,
    "indices": "plain.indices(kept[0]); plain.indices(one[0]); plain.indices([[one[0]] * 3] * 4)",
    "indices stale": """
        try: plain.indices(foreign)
        except StaleHandle: pass
        """,
    "item": "v = plain[one[0]]; v[3:5]; bytes(v)",
    "record": "r = records[one[1]]; s = records[one[1]]; np.asarray(r)",
    "set": "plain[one[0]] = bytes(64); plain[one[0]] = np.zeros(8)",
    "set record": "records[one[1]] = (1.0, (2, 3, 4)); records[one[1]] = records[one[1]]",
    "set wrong": """
        try: plain[one[0]] = b"too short"
        except ValueError: pass
        """,
    "array": "a = plain.array; b = records.array[3:]; memoryview(plain); memoryview(records); np.asarray(plain)",
    "whole": "plain.handles(); records.compacted(); list(plain); one[0] in plain; 5 in records; len(plain)",
    "stats": "plain.stats(); repr(plain); plain.trim()",
    "pinned": "h = 0\\ntry:\\n    h = plain.alloc(); v = plain[h]\\nfinally:\\n    if h: plain.free(h)",
    "make": "s = SlabAllocator(8, account=account, limit='1MiB', name='new'); s.array; s.close()",
    "make by dtype": "SlabAllocator('f8', account=account, max_items=10)",
    "make in vain": """
        try: SlabAllocator(object, account=account)
        except ValueError: pass
        """,
}


@pytest.mark.parametrize("name", CALLS)
def test_each_allocation_fails_once(run_python: Callable[..., Any], name: str) -> None:
    testcapi = pytest.importorskip("_testcapi")
    if not hasattr(testcapi, "set_nomemory"):
        pytest.skip("this interpreter cannot fail allocations")
    body = textwrap.indent(textwrap.dedent(CALLS[name].replace("\\n", "\n")), "    ")
    run_python(textwrap.dedent(PRELUDE) + f"\ndef call():\n{body}\neach_allocation(call)\n", timeout=120)


# ---- loops that must not grow

LOOP = """
    import gc, sys, weakref
    import numpy as np
    from mempool import Account, PoolExhausted, SlabAllocator, StaleHandle

    def raises(error, function, *args):
        try:
            function(*args)
        except error:
            return
        raise AssertionError(f"no {{error}}")

    def rss():
        try:
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096
        except OSError:
            return 0

    plain, records, numbers = SlabAllocator(64), SlabAllocator([("x", "f8"), ("y", "i4", (3,))]), SlabAllocator("f8")
    full, closed = SlabAllocator(8, max_items=1), SlabAllocator(8)
    full.alloc()
    closed.close()
    plain.alloc_many(0)

    def once():
{body}

    def many(count):
        for _ in range(count):
            once()
        gc.collect()

    def measure():
        shared = (plain.dtype, records.dtype, numbers.dtype, None, np.dtype("u1"), np.dtype("i8"), plain.account, plain)
        return len(gc.get_objects()), sys.getallocatedblocks(), sum(min(sys.getrefcount(one), 1 << 40) for one in shared), rss()

    many({count} // 2)
    before = measure()
    many({count})
    grown = [after - then for after, then in zip(measure(), before)]
    assert all(slab.stats().retired == 0 for slab in (plain, records, numbers))
    assert grown[0] <= 20, f"objects: {{grown}}"
    assert max(grown[1:3]) <= {count} // 2, f"blocks, references: {{grown}}"
    assert grown[3] <= {rss_bound}, f"RSS: {{grown}}"
"""

ROUNDS = {
    "items": "h = plain.alloc(); plain[h] = bytes(64); bytes(plain[h]); h in plain; plain.free(h); plain.free(plain.alloc())",
    "views": """
        h = plain.alloc()
        v = plain[h]
        w, x = v[3:5], np.frombuffer(v, "u4")
        plain.free(h)
        del v, w, x
        h = records.alloc()
        r = records[h]; f = r["y"]; records[h] = (1.0, 2); r["x"] = 5
        records.free(h)
        h = numbers.alloc(); numbers[h] = 5; a = numbers[h]; numbers.free(h)
        """,
    "many": """
        h = numbers.alloc_many(5); g = numbers.alloc_many(0)
        numbers[h] = 5; numbers[h.tolist()]; numbers.indices(h); numbers.indices(h.reshape(5, 1))
        numbers.handles(); numbers.compacted(); list(numbers); numbers.free_many(h)
        p = plain.alloc_many(3); plain[p]; plain.compacted(); plain.free_many(p.tolist())
        """,
    "whole": """
        a, b, m = plain.array, records.array, memoryview(numbers)
        np.asarray(plain); repr(plain); plain.stats(); len(plain); plain.trim(); iter(plain); hash(plain)
        """,
    "errors": """
        raises(StaleHandle, plain.free, 5); raises(StaleHandle, plain.free, 1 << 70); raises(StaleHandle, plain.__getitem__, 5)
        raises(StaleHandle, plain.free_many, [5]); raises(StaleHandle, plain.indices, [5]); raises(TypeError, plain.free, "x")
        raises(TypeError, plain.indices, "x"); raises(TypeError, plain.indices, [None]); raises(PoolExhausted, full.alloc)
        raises(PoolExhausted, full.alloc_many, 5); raises(ValueError, plain.alloc_many, -1); raises(ValueError, closed.alloc)
        raises(ValueError, closed.free_many, [5]); raises(TypeError, plain.__setitem__, 5.0, b"")
        h = plain.alloc(); raises(ValueError, plain.__setitem__, h, b"short"); raises(TypeError, plain.__setitem__, h, 5)
        plain.free(h)
        """,
    "slabs": """
        s = SlabAllocator("f8", max_items=1000); s.alloc_many(10); k = s.array; v = s[s.alloc()]
        del s
        t = SlabAllocator(16, account=plain.account); t.alloc(); t.close(); weakref.ref(t)
        c = [SlabAllocator([("x", "f8")], max_items=100)]; c.append(c)
        raises(ValueError, SlabAllocator, object); raises(TypeError, SlabAllocator, None); raises(ValueError, SlabAllocator, "V0")
        raises(ValueError, SlabAllocator, "S2000000")
        """,
}


@pytest.mark.nosan
@pytest.mark.parametrize("name", ROUNDS)
def test_nothing_grows(run_python: Callable[..., Any], name: str) -> None:
    body = textwrap.indent(textwrap.dedent(ROUNDS[name]).strip(), " " * 8)
    count = 1000 if name == "slabs" else 10_000
    run_python(LOOP.format(body=body, count=count, rss_bound=1 << 20), timeout=120)


@pytest.mark.nosan
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_freed_items_are_used_again(run_python: Callable[..., Any]) -> None:
    """A gigabyte in items that come and go, through one megabyte."""
    run_python("""
        from mempool import SlabAllocator
        slab = SlabAllocator(1 << 20)
        for number in range(1000):
            handle = slab.alloc()
            slab[handle][::4096] = bytes(256)
            view = slab[handle]
            slab.free(handle)
        assert slab.stats().slots <= 2
        with open("/proc/self/statm") as file:
            assert int(file.read().split()[1]) * 4096 < 200 << 20
    """)
