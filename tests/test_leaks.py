"""Leak detection: who is warned, of what, and where; and loops over every path that must not let the process grow."""

import gc
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mempool
from lease_views import VIEWS, View, lend

SIZE = 4096


@pytest.fixture
def pool() -> mempool.BufferPool:
    return mempool.BufferPool(leak_detection="full", name="leaky")


def caught(act: Callable[[], object]) -> list[warnings.WarningMessage]:
    """What is warned of meanwhile, without what other tests left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        act()
        gc.collect()
    return seen


def test_dropped_buffer_is_reported(pool: mempool.BufferPool) -> None:
    line = sys._getframe().f_lineno + 1
    (warning,) = caught(lambda: pool.acquire(SIZE))
    assert warning.category is ResourceWarning
    assert (warning.filename, warning.lineno) == (__file__, line)
    text = str(warning.message)
    assert text.startswith(f"Buffer of {SIZE} bytes from pool 'leaky' was never released; acquired at:\n")
    assert f'File "{__file__}", line {line}, in <lambda>' in text.splitlines()[-1]
    assert pool.stats().dropped == 1


def test_stack_is_in_the_order_of_tracebacks(pool: mempool.BufferPool) -> None:
    def inner() -> None:
        pool.acquire(SIZE)

    def outer() -> None:
        inner()

    (warning,) = caught(outer)
    functions = [line.rpartition(" in ")[2] for line in str(warning.message).splitlines()[1:]]
    assert functions[-2:] == ["outer", "inner"]
    assert functions[-3] == "caught"


@pytest.mark.parametrize(
    "acquire",
    [
        lambda pool: pool.acquire("4KiB"),
        lambda pool: pool.acquire(SIZE, zero=True),
        lambda pool: pool.acquire(SIZE, timeout=None),
        lambda pool: pool.acquire(SIZE, timeout=1.5),
        lambda pool: [pool.acquire(SIZE).release(), pool.acquire(SIZE)],
        lambda pool: pool.acquire(SIZE).array()[:0].size,
        lambda pool: pool.acquire(SIZE)[3],
    ],
    ids=["string", "zero", "wait", "timeout", "warm", "once viewed", "item"],
)
def test_every_way_to_lease_is_watched(pool: mempool.BufferPool, acquire: Callable[[mempool.BufferPool], Any]) -> None:
    messages = caught(lambda: acquire(pool))
    expected = 0 if pool.stats().handed_over else 1
    assert len(messages) == expected
    assert pool.stats().dropped == expected


def test_dropped_after_its_views_died(pool: mempool.BufferPool) -> None:
    def leak() -> None:
        buffer = pool.acquire(SIZE)
        buffer.array(), buffer[:5], buffer.__dlpack__()
        del buffer

    assert len(caught(leak)) == 1


def test_async_leases_are_watched(pool: mempool.BufferPool) -> None:
    import asyncio

    async def leak() -> None:
        await pool.acquire_async(SIZE)

    messages = [str(warning.message) for warning in caught(lambda: asyncio.run(leak()))]
    assert len(messages) == 1
    assert "in leak" in messages[0]


def test_buffer_in_a_cycle_is_reported(pool: mempool.BufferPool) -> None:
    def leak() -> None:
        cycle: list[Any] = [pool.acquire(SIZE)]
        cycle.append(cycle)

    assert len(caught(leak)) == 1


def used_in_with(pool: mempool.BufferPool) -> None:
    with pool.acquire(SIZE) as buffer:
        view = buffer[:5]
    del buffer, view


@pytest.mark.parametrize("end", [lambda pool: pool.acquire(SIZE).release(), used_in_with], ids=["release()", "with"])
def test_released_buffers_are_not_reported(pool: mempool.BufferPool, end: Callable[[mempool.BufferPool], None]) -> None:
    assert caught(lambda: end(pool)) == []


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_handed_over_memory_is_not_reported(pool: mempool.BufferPool, view: View) -> None:
    assert caught(lambda: view.make(lend(pool, SIZE))) == []
    assert (pool.stats().handed_over, pool.stats().dropped) == (1, 0)


def test_buffer_kept_by_an_ndarray_is_not_reported(pool: mempool.BufferPool) -> None:
    def leave() -> None:
        array: Any = np.ndarray(SIZE, "u1", buffer=pool.acquire(SIZE))
        del array

    assert caught(leave) == []
    assert pool.stats().handed_over == 1


def test_modes(pool: mempool.BufferPool) -> None:
    pool.leak_detection = "off"
    assert caught(lambda: pool.acquire(SIZE)) == []
    pool.leak_detection = "full"
    assert len(caught(lambda: pool.acquire(SIZE))) == 1
    kept = [pool.acquire(SIZE)]
    pool.leak_detection = "off"
    assert len(caught(kept.clear)) == 1  # it was drawn when it was lent


def test_sampled_draws_one_in_128(pool: mempool.BufferPool) -> None:
    pool.leak_detection = "sampled"

    def leak(count: int) -> None:
        for _ in range(count):
            pool.acquire(SIZE)

    assert len(caught(lambda: leak(128 * 10))) == 10
    assert pool.stats().dropped == 1280


@pytest.mark.parametrize(("options", "mode"), [((), "off"), (("-X", "dev"), "full")])
def test_default_mode(run_python: Callable[..., Any], options: tuple[str, ...], mode: str) -> None:
    run_python(
        f"import mempool; assert mempool.BufferPool().leak_detection == mempool.default_pool().leak_detection == {mode!r}",
        options=options,
        env={"MEMPOOL_LEAK_DETECTION": None},
    )


def test_warning_reaches_stderr(run_python: Callable[..., Any], tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text("import mempool\ndef leak():\n    mempool.acquire(100)\nleak()\nleak()\n")
    done = run_python(f"import runpy; runpy.run_path({str(script)!r})", options=("-X", "dev"))
    assert done.stderr.count("ResourceWarning: Buffer of 100 bytes from pool 'default' was never released") == 2
    assert f"{script}:3: ResourceWarning" in done.stderr


def test_warnings_can_be_filtered_by_module(pool: mempool.BufferPool) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module=".*test_leaks")
        pool.acquire(SIZE)
    assert seen == []


def test_warning_as_an_error_loses_nothing(pool: mempool.BufferPool, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)
    pool.limit = SIZE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            pool.acquire(SIZE)
    assert [type(unraisable.exc_value) for unraisable in raised] == [ResourceWarning] * 5
    raised.clear()
    assert (pool.stats().dropped, pool.stats().live, pool.stats().idle) == (5, 0, SIZE)


def test_memory_is_back_before_the_warning(pool: mempool.BufferPool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def show(*details: object, **more: object) -> None:
        seen.append(pool.stats().idle)
        with pool.acquire(SIZE):
            pass

    pool.limit = SIZE
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show)
        pool.acquire(SIZE)
    assert seen == [SIZE]


def test_warning_during_an_exception(pool: mempool.BufferPool) -> None:
    """The exception that is under way arrives unchanged."""

    def fail() -> None:
        buffer = pool.acquire(SIZE)
        raise KeyError(len(buffer))

    def run() -> None:
        with pytest.raises(KeyError, match=str(SIZE)) as info:
            fail()
        del info

    assert len(caught(run)) == 1


def test_deep_stacks_are_cut(pool: mempool.BufferPool) -> None:
    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        else:
            pool.acquire(SIZE)

    (warning,) = caught(lambda: deep(200))
    assert 2 < len(str(warning.message).splitlines()) < 100


# ---- loops that must not grow ----

LOOP = """
    import asyncio, copy, gc, pickle, sys, threading, warnings, weakref
    import numpy as np
    import mempool
    from mempool import Account, BufferPool, PoolExhausted

    def raises(error, function, *args, **kwargs):
        try:
            function(*args, **kwargs)
        except error:
            return
        raise AssertionError(f"no {{error}}")

    def rss():
        try:
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096
        except OSError:
            return 0

    pool = BufferPool(limit="16MiB")
    loop = asyncio.new_event_loop()

    def once():
{body}

    def many(count):
        for _ in range(count):
            once()
        gc.collect()

    def measure():
        return len(gc.get_objects()), sys.getallocatedblocks(), rss()

    gc.collect()
    gc.freeze()  # an error for want of memory collects first: of what the loops make, not of what was imported
    many({warm})
    before = measure()
    many({count})
    grown = [after - then for after, then in zip(measure(), before)]
    stats = pool.stats()
    assert stats.live == stats.retired == 0, stats
    assert grown[0] <= 20, f"objects: {{grown}}"
    assert grown[1] <= {count} // 2, f"blocks: {{grown}}"
    assert {rss_bound} is None or grown[2] <= {rss_bound}, f"RSS: {{grown}}"
    loop.close()
"""

ROUNDS = {
    "lease": """
        for n in (0, 1, 100, 5000, 3 << 20):
            with pool.acquire(n, zero=True):
                pass
            pool.acquire(n)
        pool.acquire("4KiB", timeout=1)
        pool.stats(); pool.trim("1MiB"); pool.reserve(5000, 3); repr(pool)
    """,
    "views": """
        buffer = pool.acquire(4096)
        v, r, s = memoryview(buffer), buffer.readonly(), buffer[5:50]
        a, b, c = buffer.array("f8"), buffer.array("u1", (8, 8), order="F"), buffer.array([("a", "u4")], 3, offset=8)
        d, e, f = np.frombuffer(buffer), np.asarray(buffer), np.ndarray(64, "u1", buffer=buffer)
        g, h = np.from_dlpack(buffer), [buffer.__dlpack__(), buffer.__dlpack__(max_version=(1, 0), copy=True)]
        buffer[0] = buffer[1]; buffer[:5] = b"hello"; buffer == b"x"; repr(buffer); buffer.tobytes()
        buffer.release()
    """,
    "pickle": """
        with pool.acquire(4096) as buffer:
            for protocol in range(6):
                pickle.loads(pickle.dumps(buffer, protocol))
            views = []
            frame = pickle.dumps(buffer, 5, buffer_callback=views.append)
            pickle.loads(frame, buffers=views)
            copy.deepcopy(buffer)
    """,
    "errors of a buffer": """
        buffer = pool.acquire(4096)
        view = buffer[:]
        raises(BufferError, buffer.resize, 5)
        del view
        raises(ValueError, buffer.resize, 1 << 30)
        raises(IndexError, lambda: buffer[5000])
        raises(TypeError, lambda: buffer["x"])
        raises(ValueError, buffer.__setitem__, slice(0, 3), b"four")
        raises(ValueError, buffer.__setitem__, 0, 300)
        raises(TypeError, buffer.__setitem__, 0, "x")
        raises(TypeError, buffer.__delitem__, 0)
        raises(ValueError, buffer.array, "f8", 1000)
        raises(ValueError, buffer.array, "O")
        raises(ValueError, buffer.array, [("a", "u4"), ("b", "O")])
        raises(TypeError, buffer.array, "nonsense")
        raises(TypeError, buffer.array, "f8", (1, 2.5))
        raises(ValueError, buffer.array, "f8", offset=-1)
        raises(ValueError, buffer.array, order="K")
        raises(BufferError, buffer.__dlpack__, dl_device=(2, 0))
        raises(BufferError, buffer.__dlpack__, stream=1)
        raises(TypeError, hash, buffer)
        raises(TypeError, mempool.Buffer)
        buffer.release()
        raises(ValueError, memoryview, buffer)
        raises(ValueError, buffer.array)
        raises(ValueError, buffer.__dlpack__)
        raises(ValueError, buffer.__enter__)
        raises(ValueError, pickle.dumps, buffer)
    """,
    "errors of a pool": """
        kept = pool.acquire("10MiB")
        raises(PoolExhausted, pool.acquire, "10MiB")
        raises(PoolExhausted, pool.acquire, "10MiB", timeout=0.0001)
        raises(PoolExhausted, pool.acquire, "100MiB", timeout=None)
        raises(PoolExhausted, pool.reserve, "10MiB", 3)
        raises(ValueError, setattr, pool, "limit", 5)
        for nonsense in (-1, "5 XB", "", "-5KB"):
            raises(ValueError, pool.acquire, nonsense)
        for nonsense in (1.5, None, True, [], b"5"):
            raises(TypeError, pool.acquire, nonsense)
        raises(OverflowError, pool.acquire, 1 << 70)
        raises(ValueError, pool.acquire, 5, timeout=-1)
        raises((MemoryError, OverflowError), BufferPool().acquire, 1 << 62)
        raises(ValueError, BufferPool, alignment=3)
        raises(ValueError, BufferPool, leak_detection="x")
        raises(TypeError, BufferPool, account=5)
    """,
    "pools and accounts": """
        account = Account("a", limit="1MiB")
        child = Account("b", parent=account)
        with child.charged(5000):
            raises(mempool.AccountLimitExceeded, child.charge, "1MiB")
        raises(ValueError, child.discharge, 5)
        class Thing: pass
        thing = Thing()
        child.track(thing, 100)
        with BufferPool(account=child, name="x") as some:
            raises(mempool.AccountLimitExceeded, some.acquire, "2MiB")
            lease, dropped, view = some.acquire(10), some.acquire(20), some.acquire(30)[:]
            lease.release()
        raises(ValueError, some.acquire, 5)
        raises(ValueError, some.__enter__)
        account.tree(); repr(account); account.children
    """,
    "waits in threads": """
        kept = pool.acquire("16MiB")
        def wait():
            pool.acquire(4096, timeout=120).release()
        threads = [threading.Thread(target=wait) for _ in range(2)]
        waits = pool.stats().waits + 2
        for thread in threads: thread.start()
        while pool.stats().waits < waits: pass
        kept.release()
        for thread in threads: thread.join()
    """,
    "waits in tasks": """
        async def main():
            kept = pool.acquire("16MiB")
            waits = pool.stats().waits + 3
            tasks = [asyncio.create_task(pool.acquire_async(4096)) for _ in range(3)]
            while pool.stats().waits < waits: await asyncio.sleep(0)
            tasks[1].cancel()
            try:
                await pool.acquire_async(4096, timeout=0.0001)
            except PoolExhausted:
                pass
            kept.release()
            await asyncio.gather(*tasks, return_exceptions=True)
            async with pool.acquire_async(100) as buffer:
                buffer[0] = 1
            pool.acquire_async(5).close()
        loop.run_until_complete(main())
    """,
    "leak warnings": """
        pool.leak_detection = "full"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pool.acquire(100)
            pool.acquire(100)[:]
        pool.leak_detection = "sampled"
        pool.acquire(100)
        pool.leak_detection = "off"
    """,
    "cycles": """
        class Sub(BufferPool): pass
        some = Sub()
        some.itself, some.buffer = some, some.acquire(100)
        some.view = some.buffer[:]
        weakref.finalize(some.buffer, int)
        async def forever():
            await some.acquire_async(100)
        some.coroutine = some.acquire_async(100)
    """,
}  # fmt: skip

NATIVE = {"views", "pools and accounts", "cycles", "errors of a buffer"}
COUNTS = {"waits in threads": 400, "waits in tasks": 400, "cycles": 400, "pools and accounts": 400}


def grow_loop(name: str, rss_bound: int | None) -> str:
    import textwrap

    body = textwrap.indent(textwrap.dedent(ROUNDS[name]), " " * 8)
    count = COUNTS.get(name, 600)
    return LOOP.format(body=body, warm=count // 2, count=count, rss_bound=rss_bound)


@pytest.mark.parametrize("name", ROUNDS)
def test_objects_do_not_grow(run_python: Callable[..., Any], name: str) -> None:
    """Nor does native memory where pools, accounts, capsules and waiters come and go, but for what a sanitizer keeps."""
    bound = 3 << 20 if name in NATIVE and "libasan" not in os.environ.get("LD_PRELOAD", "") else None
    run_python(grow_loop(name, bound), options=("-W", "ignore"), timeout=120)


@pytest.mark.nosan
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_dropped_memory_is_used_again(run_python: Callable[..., Any]) -> None:
    """A gigabyte in leases that nobody released, through a few megabytes."""
    run_python("""
        import mempool
        pool = mempool.BufferPool()
        for i in range(256):
            buffer = pool.acquire("4MiB")
            buffer.array()[::4096] = 1
            view = buffer[:]
        assert pool.stats().reserved <= 64 << 20, pool.stats()
        with open("/proc/self/statm") as file:
            assert int(file.read().split()[1]) * 4096 < 300 << 20
    """)
