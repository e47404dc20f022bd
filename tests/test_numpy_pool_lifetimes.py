"""Arrays over a pool outlive everything: the block, the pool, `uninstall`, a fork, the interpreter."""

import contextvars
import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mempool
from mempool import BufferPool
from mempool.numpy import install, installed, uninstall, use_pool
from support import check_identities

N = 40_000

Ending = Callable[[BufferPool], None]


def leave_it(pool: BufferPool) -> None:
    pass


ENDINGS: list[Ending] = [leave_it, BufferPool.close, BufferPool.trim]


@pytest.mark.parametrize("end", ENDINGS)
@pytest.mark.parametrize("view", [False, True])
def test_an_array_outlives_block_and_pool(end: Ending, view: bool) -> None:
    pool = BufferPool()
    with use_pool(pool):
        array = np.arange(N)
    install(pool)
    other = np.arange(N)
    uninstall()
    account = pool.account
    end(pool)
    seen = weakref.ref(pool)
    del pool
    gc.collect()
    assert seen() is None
    assert account.used > 0
    if view:
        array, other = array[::3], other[::3]
    for some in (array, other):
        assert some.sum() == np.arange(N)[:: 3 if view else 1].sum()
        some += 1
    if not view:
        array.resize(10, refcheck=False)
        other.resize(3 * N, refcheck=False)
        assert np.array_equal(array, np.arange(10) + 1)
        assert np.array_equal(other[:N], np.arange(N) + 1)
    del array, other, some
    assert account.used == 0


def test_a_pool_that_reaches_its_own_arrays_is_garbage() -> None:
    class Own(BufferPool):
        arrays: list[Any]

    def make() -> tuple[Any, mempool.Account]:
        pool = Own()
        pool.arrays = []
        with use_pool(pool):
            pool.arrays.append(np.zeros(N))
        install(pool)
        pool.arrays.append(np.zeros(N))
        uninstall()
        return weakref.ref(pool), pool.account

    seen, account = make()
    gc.collect()
    assert seen() is None
    assert account.used == 0


def test_blocks_and_installs_leave_nothing_behind(run_python: Callable[..., Any]) -> None:
    """Counted in a process of its own, where no other thread allocates."""
    run_python("""
        import gc, sys
        import numpy as np
        from mempool import BufferPool
        from mempool.numpy import install, uninstall, use_pool

        def rounds(count):
            for _ in range(count):
                pool = BufferPool()
                with use_pool(pool), use_pool(pool):
                    np.zeros(40_000)
                install(pool)
                np.zeros(40_000)
                uninstall()

        rounds(20)
        gc.collect()
        before = sys.getallocatedblocks()
        rounds(500)
        gc.collect()
        assert sys.getallocatedblocks() - before < 200
    """)


def test_blocks_that_are_never_left(run_python: Callable[..., Any]) -> None:
    """The context keeps them, and nothing else does; however many there are, they end one by one, also on a small stack."""
    run_python("""
        import contextvars, threading
        import numpy as np
        import mempool
        from mempool.numpy import use_pool

        pool = mempool.BufferPool()

        def enter():
            for _ in range(100_000):
                use_pool(pool).__enter__()
            assert not np.zeros(40_000).any()
            assert pool.stats().acquires == 1

        threading.stack_size(256 << 10)
        thread = threading.Thread(target=lambda: contextvars.copy_context().run(enter))
        thread.start()
        thread.join()
        np.zeros(40_000)
        assert pool.stats().acquires == 1
    """)


def test_contexts_that_begin_in_one_another_do_not_pile_up(run_python: Callable[..., Any]) -> None:
    run_python("""
        import contextvars, sys
        import numpy as np
        from mempool import BufferPool
        from mempool.numpy import use_pool

        def rounds(count):
            context = contextvars.copy_context()
            before = sys.getallocatedblocks()
            for _ in range(count):
                block = use_pool(pool)
                context.run(block.__enter__)
                inner = context.copy()
                context.run(block.__exit__, None, None, None)
                context = inner
            assert sys.getallocatedblocks() - before < 300
            acquires = pool.stats().acquires
            context.run(np.zeros, 40_000)  # it began inside the last block
            assert pool.stats().acquires == acquires + 1

        pool = BufferPool()
        rounds(10)
        rounds(1000)
    """)


def test_left_in_another_context() -> None:
    pool = BufferPool()
    block = use_pool(pool)
    here = contextvars.copy_context()
    here.run(block.__enter__)
    with pytest.raises(RuntimeError, match="entered in another context"):
        block.__exit__(None, None, None)
    np.zeros(N)
    assert pool.stats().acquires == 0
    here.run(np.zeros, N)
    assert pool.stats().acquires == 1


def test_installed_pools_replace_each_other_while_arrays_live() -> None:
    pools = [BufferPool(name=str(i)) for i in range(5)]
    arrays = []
    try:
        for pool in pools:
            install(pool)
            assert installed() is pool
            arrays.append(np.full(N, float(pool.name)))
    finally:
        uninstall()
    assert [pool.stats().live for pool in pools] == [1] * 5
    for i, array in enumerate(arrays):
        array.resize(5 * N, refcheck=False)  # it stays with its pool
        assert (array[:N] == i).all()
        assert pools[i].stats().live == 1
    del array
    arrays.clear()
    for pool in pools:
        assert pool.stats().live == 0
        check_identities(pool.stats())


# ---- the end of the interpreter ----

MADE = """
    import atexit, gc, sys, threading
    import numpy as np
    import mempool
    from mempool.numpy import install, uninstall, use_pool

    clears = sys.argv[2:] == ["clears"]
    pool = mempool.BufferPool(zero_on_release=clears)
    if sys.argv[1] == "use_pool":
        block = use_pool(pool)
        block.__enter__()
    else:
        install(pool)
    a = np.ones(1_000_000)
"""

LEFT = {
    "in globals": "b = a * 2",
    "in a module": "sys.modules['kept'] = a; sys.array = a * 2; del a",
    "in a cycle": "c = [a]; c.append(c); d = np.array([a, None], dtype=object); d[1] = d; del a, c, d",
    "in a cycle with the pool": """
class Own(mempool.BufferPool):
    pass
own = Own()
with use_pool(own):
    own.array = np.ones(100_000)
install(own)
own.second = np.ones(100_000)
""",
    "in atexit": "atexit.register(lambda array: array.resize(5_000_000, refcheck=False), a); atexit.register(np.ones, 1_000_000)",
    "in a finaliser": """
class Late:
    def __init__(self):
        self.array, self.np = np.ones(100_000), np
    def __del__(self):
        assert self.array.sum() == 100_000
        self.array = self.np.ones(200_000)
        self.np.zeros(300_000)
late = Late()
cycle = [Late()]
cycle.append(cycle)
sys.late = Late()
""",
    "closed": "pool.close()",
    "uninstalled": "uninstall(); del pool",
    "in a daemon thread": """
def work(ready):
    with use_pool(pool):
        while True:
            array = np.ones(200_000)
            ready.set()
            array = array * 2
            array.resize(300_000, refcheck=False)
for _ in range(2):
    ready = threading.Event()
    threading.Thread(target=work, args=(ready,), daemon=True).start()
    ready.wait()
""",
    "with a waiter": """
pool.limit = pool.stats().reserved
threading.Thread(target=pool.acquire, args=(8_000_000,), kwargs={"timeout": None}, daemon=True).start()
while not pool.stats().waits:
    pass
""",
}


@pytest.mark.parametrize("way", ["use_pool", "install"])
@pytest.mark.parametrize("left", LEFT)
def test_the_interpreter_ends(run_python: Callable[..., Any], way: str, left: str) -> None:
    import textwrap

    for clears in ([], ["clears"]) if left in ("in globals", "in a daemon thread") else ([],):
        done = run_python(textwrap.dedent(MADE) + LEFT[left], way, *clears)
        assert done.stderr == ""


# ---- fork ----

FORKING = pytest.mark.skipif(sys.platform == "win32", reason="the OS has no fork")


@FORKING
@pytest.mark.parametrize("way", ["use_pool", "install"])
def test_fork(run_python: Callable[..., Any], way: str) -> None:
    """The child frees, resizes and makes arrays of its own; the parent's stay as they are."""
    import textwrap

    code = """
    import os

    def change():
        global a
        assert a.sum() == 1_000_000
        a += 1
        a.resize(2_000_000, refcheck=False)
        assert a.sum() == 2_000_000
        a = None
        assert pool.stats().live == 0
        b = np.zeros(1_000_000)
        assert pool.stats().live == 1 and not b.any()
        uninstall()
        install(pool)
        np.ones(1_000_000)

    for _ in range(3):
        child = os.fork()
        if not child:
            change()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert a.sum() == 1_000_000 and pool.stats().live == 1
    """
    assert run_python(textwrap.dedent(MADE) + textwrap.dedent(code), way).stderr == ""


@FORKING
def test_fork_while_threads_make_arrays(run_python: Callable[..., Any]) -> None:
    import textwrap

    code = """
    import os, warnings
    warnings.simplefilter("ignore")
    stop = threading.Event()

    def work():
        while not stop.is_set():
            b = np.ones(100_000)
            b.resize(200_000, refcheck=False)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        child = os.fork()
        if not child:
            c = np.ones(500_000) * 2.0
            uninstall()
            install(pool)
            assert c.sum() == 1_000_000
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    stop.set()
    for thread in threads:
        thread.join()
    assert pool.stats().live == 1
    """
    run_python(textwrap.dedent(MADE) + textwrap.dedent(code), "install")


def test_a_scope_that_dies_with_its_context_leaves_the_error_on_its_way() -> None:
    pool = BufferPool()

    def enter() -> None:
        use_pool(pool).__enter__()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        contextvars.copy_context().run(enter)


def test_no_memory_to_enter_is_said_so(run_python: Callable[..., Any]) -> None:
    """In a process of its own: allocations of any thread fail."""
    testcapi = pytest.importorskip("_testcapi")
    if not hasattr(testcapi, "set_nomemory"):
        pytest.skip("this interpreter cannot fail allocations")
    run_python("""
        import _testcapi
        from mempool import BufferPool
        from mempool.numpy import installed, use_pool

        refused = 0
        for nth in range(1, 12):
            scope = use_pool(BufferPool())
            error = None
            _testcapi.set_nomemory(nth - 1, nth)
            try:
                scope.__enter__()
            except BaseException as caught:
                error = caught
            _testcapi.remove_mem_hooks()
            assert error is None or type(error) is MemoryError, (nth, error)
            if error is None:
                scope.__exit__(None, None, None)
            else:
                refused += 1
            assert installed() is None
        assert refused
    """)
