"""What a cache holds lives and dies: finalisers and listeners that use the cache, cycles, threads, forks, no memory."""

import copy
import gc
import os
import pickle
import random
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cache_attackers import Key, Mortal, check
from mempool.cache import Cache, CacheFull, Cause
from mempool.cache._policies import Table
from support import may_raise, together

POLICIES = ["lru", "fifo", "random", "lfu", "sieve", "s3fifo"]

# Of a process of its own: what tests share can be imported there too.
WITH_KITS = {
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
}

# How an entry of key 1 goes.
WAYS_OUT: dict[str, Callable[[Cache[Any, Any]], object]] = {
    "del": lambda cache: cache.__delitem__(1),
    "pop": lambda cache: cache.pop(1) and None,
    "popitem": lambda cache: all(1 in cache and cache.popitem() for _ in range(3)),
    "clear": lambda cache: cache.clear(),
    "overwritten": lambda cache: cache.__setitem__(1, None),
    "evicted": lambda cache: all(1 in cache and cache.put(number, None) is None for number in range(10, 1_000)),
    "shrunk": lambda cache: cache.resize(0),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", WAYS_OUT)
def test_finalisers_may_use_the_cache(policy: str, way: str) -> None:
    cache: Cache[Any, Any] = Cache(3, policy=policy)
    seen: list[dict[Any, Any]] = []

    def dies() -> None:
        seen.append(check(cache))
        cache.pop(2, None)
        for number in range(30, 40):
            with may_raise(ValueError, "too large"):  # it may have been shrunk to nothing
                cache[number] = "late" if len(cache) < 3 else Mortal(lambda: cache.get(30))
        check(cache)

    cache[1] = Mortal(dies)
    cache[2] = 2
    WAYS_OUT[way](cache)
    assert len(seen) == 1
    assert not isinstance(seen[0].get(1), Mortal)
    check(cache)


@pytest.mark.parametrize("way", ["evicted", "overwritten", "del", "clear"])
def test_finalisers_of_keys_may_use_the_cache(way: str) -> None:
    class Dying(int):
        def __del__(self) -> None:
            check(cache)
            cache.clear()
            late.append(len(cache))
            cache["late"] = 1

    late: list[int] = []
    cache: Cache[Any, Any] = Cache(3, policy="fifo")
    cache[Dying(1)] = 1
    cache[2] = 2
    WAYS_OUT[way](cache)
    if way == "overwritten":
        cache.clear()
    assert late == [0]
    check(cache)


@pytest.mark.parametrize("action", ["clear", "insert", "delete", "shrink", "grow", "recurse", "rest"])
@pytest.mark.parametrize("policy", POLICIES)
def test_listeners_may_change_the_cache(policy: str, action: str) -> None:
    left: list[Any] = []
    actions: dict[str, Callable[[Any], object]] = {
        "clear": lambda key: cache.clear(),
        "insert": lambda key: cache.setdefault(("late", key), 1) if not isinstance(key, tuple) else None,
        "delete": lambda key: cache.pop(key + 1, None),
        "shrink": lambda key: cache.resize(1),
        "grow": lambda key: cache.resize(1_000),
        "recurse": lambda key: cache.__setitem__(key, None) if len(left) < 50 else None,
        "rest": lambda key: (cache.clear(), cache.__setitem__(7, 7)),
    }

    def listen(key: Any, value: Any, cause: Cause) -> None:
        left.append(value)
        check(cache)
        actions[action](key)

    cache: Cache[Any, Any] = Cache(5, policy=policy, on_evict=listen)
    values = [object() for _ in range(40)]
    for number, value in enumerate(values):
        cache[number] = value
    held = list(check(cache).values())
    for value in values:
        assert (left + held).count(value) == 1  # each is here, or was heard of once


def test_listeners_that_raise_are_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[Any] = []

    def listen(key: Any, value: Any, cause: Cause) -> None:
        calls.append((key, cause))
        raise ValueError(key)

    cache: Cache[int, int] = Cache(2, on_evict=listen, policy="fifo")
    for number in range(10):
        cache[number] = number
    cache.clear()
    assert calls[:8] == [(number, Cause.EVICTED) for number in range(8)]
    assert sorted(calls[8:]) == [(8, Cause.DELETED), (9, Cause.DELETED)]
    (record,) = [record for record in caplog.records if record.name == "mempool.cache"]
    assert "ValueError: 0" in (record.exc_text or "")


@pytest.mark.parametrize("way", WAYS_OUT)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_programs_goes_on_to_the_caller(way: str, kind: type[BaseException]) -> None:
    heard: list[int] = []

    def listen(key: int, value: int, cause: Cause) -> None:
        heard.append(key)
        raise kind

    cache: Cache[Any, Any] = Cache(3, policy="fifo", on_evict=listen)
    value = object()
    cache[1] = value
    cache[2] = 2
    count = sys.getrefcount(value)
    with pytest.raises(kind):
        WAYS_OUT[way](cache)
    assert 1 in heard
    assert cache.get(1) is not value
    gc.collect()
    assert sys.getrefcount(value) == count - 1
    check(cache)


class Node:
    pass


CYCLES: dict[str, Callable[[Cache[Any, Any], Any], object]] = {
    "value": lambda cache, node: cache.__setitem__(1, cache),
    "key": lambda cache, node: (setattr(node, "cache", cache), cache.__setitem__(node, 1)),
    "inner": lambda cache, node: (setattr(node, "cache", cache), cache.__setitem__(1, [node])),
    "timed": lambda cache, node: cache.put(cache, cache, ttl=1000, priority=4),
    "iterator": lambda cache, node: cache.update({1: iter(cache), 2: cache.items()}),
    "attribute": lambda cache, node: setattr(cache, "me", cache),
    "listener": lambda cache, node: setattr(node, "cache", Cyclic(5, on_evict=lambda *_: (cache, node))),
    "clock": lambda cache, node: setattr(node, "cache", Cyclic(5, clock=lambda: node and 0)),
    "weigher": lambda cache, node: setattr(cache, "getsizeof", cache.__getitem__),
}


class Cyclic(Cache[Any, Any]):
    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.mark.parametrize("cycle", CYCLES)
def test_cycles_through_a_cache_are_found(cycle: str) -> None:
    cache, node = Cyclic(5), Node()
    CYCLES[cycle](cache, node)
    cache[8] = node
    cache[9] = value = Node()
    dead = weakref.ref(cache), weakref.ref(value)
    del cache, node, value
    gc.collect()
    assert [ref() for ref in dead] == [None, None]


def test_a_cache_in_use_is_no_garbage() -> None:
    cache, node = Cyclic(5), Node()
    for cycle in ("value", "key", "inner", "timed"):
        CYCLES[cycle](cache, node)
    held = len(cache)
    gc.collect()
    assert len(check(cache)) == held


def test_garbage_may_still_use_its_cache() -> None:
    seen: list[Any] = []

    class Last:
        def __init__(self, cache: Any) -> None:
            self.cache = cache

        def __del__(self) -> None:
            seen.append(len(self.cache))
            self.cache[1] = 1
            self.cache.get(2)
            self.cache.clear()
            self.cache[2] = [self.cache]

    for _ in range(10):
        cache = Cyclic(5, on_evict=lambda *_: None)
        cache[0] = Last(cache)
        cache.put(5, Last(cache), ttl=10, priority=1)
    del cache
    gc.collect()
    assert len(seen) == 20


def test_nobody_gets_hold_of_a_cache_that_dies() -> None:
    got: list[Any] = []
    cache: Cache[int, Any] = Cache(5)
    reference = weakref.ref(cache)
    for number in range(3):
        cache[number] = Mortal(lambda: got.append(reference()))
    del cache
    assert got == [None] * 3


def test_a_callback_of_a_dying_cache_runs_before_its_values_die() -> None:
    order: list[str] = []
    cache: Cache[int, Any] = Cache(5)
    cache[1] = Mortal(lambda: order.append("value"))
    reference = weakref.ref(cache, lambda _: order.append("cache"))
    del cache
    assert order == ["cache", "value"]
    assert reference() is None


def test_a_long_chain_of_caches_dies() -> None:
    first = cache = Cache[int, Any](1)
    for _ in range(20_000):
        cache = cache.setdefault(0, Cache(1))
    del cache, first


def test_a_cache_that_was_never_set_up_says_so() -> None:
    cache: Cache[Any, Any] = Cache.__new__(Cache)
    assert len(cache) == 0
    assert list(cache) == []
    assert 1 not in cache
    assert cache.get(1) is None
    assert cache.pop(1, None) is None
    cache.clear()
    assert cache.expire() == 0
    for fails in (lambda: cache.popitem(), lambda: cache[1]):
        with pytest.raises(KeyError):
            fails()
    with pytest.raises(ValueError, match="too large"):
        cache[1] = 1
    gc.collect()


def test_it_is_set_up_once() -> None:
    cache: Cache[Any, Any] = Cache(3, policy="fifo")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="set up again"):
            cache.__init__(100, policy="lru")  # type: ignore[misc]
        cache[1] = 1
    cache.update({2: 2, 3: 3, 4: 4})
    assert cache.maxsize == 3
    assert sorted(check(cache)) == [2, 3, 4]


@pytest.mark.parametrize("attempt", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_is_not_copied(attempt: Callable[[Any], object]) -> None:
    cache: Cache[int, int] = Cache(3)
    cache[1] = 1
    with pytest.raises(TypeError, match="Cache"):
        attempt(cache)


def test_iteration_goes_on_whatever_changes() -> None:
    rng = random.Random(7)
    for _ in range(100):
        cache: Cache[int, int] = Cache(20, policy=rng.choice(POLICIES))
        cache.update((number, number) for number in range(20))
        stays = cache.get(7)
        given: list[int] = []
        for key in cache:
            given.append(key)
            other = rng.choice([number for number in range(40) if number != 7])
            action = rng.randrange(4)
            if action == 0:
                cache.pop(other, None)
            elif action == 1 and len(cache) < 20:
                cache[other] = other
            elif action == 2:
                cache.resize(40)
            if len(given) > 200:
                break
        assert given.count(7) == 1 == (stays == 7)


@pytest.mark.parametrize("change", ["clear", "clear and fill", "forget"])
def test_iterators_outlive_their_entries(change: str) -> None:
    cache: Cache[int, int] = Cache(20)
    cache.update((number, number) for number in range(20))
    iterators = [iter(cache), iter(cache.items()), iter(cache.values())]
    for iterator in iterators:
        next(iterator)
    if change == "forget":
        del cache
        assert [len(list(iterator)) for iterator in iterators] == [19, 19, 19]
        return
    cache.clear()
    if change == "clear and fill":
        cache.update((number, number) for number in range(3))
    for iterator in iterators:
        assert len(list(iterator)) <= 3
        assert list(iterator) == []


@contextmanager
def switching_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("policy", POLICIES)
def test_threads_hammer_one_cache(policy: str) -> None:
    heard: list[int] = []
    cache: Cache[Any, Any] = Cache(50, policy=policy, on_evict=lambda key, value, cause: heard.append(value))
    put_in: list[int] = []
    numbers = iter(range(10**9))

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(3_000):
            key: Any = rng.randrange(120)
            if key % 3 == 0:
                key = Key(key, hash=key % 5)
            action = rng.randrange(8)
            if action < 3:
                number = next(numbers)
                put_in.append(number)
                cache.put(
                    key, number, ttl=None if action else 1e-5, priority=key.name % 2 if isinstance(key, Key) else 0
                )
            elif action < 6:
                cache.get(key)
            elif action == 6:
                cache.pop(key, None)
            else:
                list(cache)
        cache.resize(rng.choice([20, 50]))

    with switching_often():
        together([partial(work, seed) for seed in range(4)])
    cache.resize(50)
    cache.expire()
    assert sorted(heard + list(check(cache).values())) == sorted(put_in)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_a_cache_of_its_own(run_python: Callable[..., Any]) -> None:
    code = """
    import os
    from cache_attackers import check
    from mempool.cache import Cache

    cache = Cache(10, policy="s3fifo")
    cache.update((number, number) for number in range(10))
    child = os.fork()
    if child == 0:
        cache.update((number, number) for number in range(100, 130))
        check(cache)
        os._exit(0 if len(cache) == 10 else 1)
    cache[5] = 6
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(check(cache)) == list(range(10))
    """
    run_python(code, env=WITH_KITS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_another_thread_compares(run_python: Callable[..., Any]) -> None:
    code = """
    import os, threading
    from cache_attackers import Key
    from mempool.cache import Cache

    cache = Cache(10)
    began, go_on = threading.Event(), threading.Event()
    cache[Key("a", on_eq=lambda: (began.set(), go_on.wait()))] = 1
    thread = threading.Thread(target=lambda: cache.get(Key("b")))
    thread.start()
    began.wait()
    child = os.fork()
    if child == 0:
        cache["c"] = 1
        os._exit(0 if cache.get("c") == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    go_on.set()
    thread.join()
    assert len(cache) == 1
    """
    run_python(code, env=WITH_KITS, options=["-W", "ignore"])  # from 3.12 on Python warns of threads


def test_an_account_may_use_the_table_that_asks_it_for_room() -> None:
    """Accounts have others make room, and those are anybody: columns that came meanwhile grow with the rest."""

    class Meddling:
        busy = False

        def charge(self, nbytes: int) -> None:
            if not self.busy and len(table) == 8:
                self.busy = True
                table.pop(0, None)  # it may be asked twice
                table._insert("timed", 1, 1e6, 3, None, True)
                self.busy = False

        def discharge(self, nbytes: int) -> None:
            pass

    table: Any = Table()
    table._begin("lru", 10**6, 10**6, 0, float("inf"), None, None, Meddling(), None)
    for number in range(5_000):
        table[number] = number
    assert len(table) == 5_000
    assert table["timed"] == 1
    assert all(table[number] == number for number in range(1, 5_000))


@pytest.mark.nosan
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is Linux' own")
@pytest.mark.parametrize("policy", POLICIES)
def test_no_memory_for_more_changes_nothing(policy: str, run_python: Callable[..., Any]) -> None:
    """An allocation of the table fails: the cache is as it was, and goes on when there is memory again."""
    code = """
    import resource, sys
    from mempool.cache import Cache

    cache = Cache(float("inf"), policy=sys.argv[1])
    number, failed = 0, 0
    for _ in range(50_000):
        cache[number] = None
        number += 1
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    for room in range(0, 40 << 20, 2 << 20):
        resource.setrlimit(resource.RLIMIT_AS, (used + room, hard))
        try:
            while number < 200_000:
                cache[number] = None
                number += 1
        except MemoryError:
            failed += 1
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        number = len(cache)  # the last number may not have found memory itself
        assert list(cache) == list(range(number))
    assert failed, "it was never refused"
    cache._bounds(1000, 1000)
    assert len(cache) == 1000 == len(list(cache))
    cache.clear()
    cache[1] = 1
    assert dict(cache) == {1: 1}
    """
    run_python(code, policy)


def test_full_is_said_and_nothing_changed() -> None:
    heard: list[Any] = []
    cache: Cache[Any, Any] = Cache(2, policy="noeviction", on_evict=lambda *args: heard.append(args))
    cache[1] = 1
    cache[(2, "b")] = 2
    for key in (3, "c", (4, 5), None, Key("x")):
        with pytest.raises(CacheFull, match="none of its 2 entries"):
            cache[key] = 1
    assert check(cache) == {1: 1, (2, "b"): 2}
    assert not heard
    cache[1] = 3
    assert check(cache) == {1: 3, (2, "b"): 2}


@pytest.mark.parametrize("kind", ["Cache(10, policy='lru')", "Cache(10)", "Table()"])
def test_a_collection_while_a_cache_dies_leaves_it_alone(kind: str, run_python: Callable[..., Any]) -> None:
    """The callback of a weak reference to it runs Python, so that the collector may come in between."""
    code = f"""
    import gc, weakref
    from mempool.cache import Cache
    from mempool.cache._policies import Table

    told = []
    gc.collect()  # what the imports left
    for _ in range(20):
        cache = {kind}
        reference = weakref.ref(cache, lambda _: told.append(gc.collect()))
        del cache
    assert len(told) == 20 and not any(told), told
    """
    run_python(code)


def test_no_memory_for_a_cache_is_a_memory_error(run_python: Callable[..., Any]) -> None:
    """A whole one only before 3.12: later ones crash where they have no memory for a function of Python's."""
    pytest.importorskip("_testcapi")
    code = """
    import sys
    import _testcapi
    from mempool.cache import Cache
    from mempool.cache._policies import Table

    def failures(make, steps):
        make()
        failed = 0
        for start in range(steps):
            _testcapi.set_nomemory(start, start + 1)
            try:
                make()
            except MemoryError:
                failed += 1
            finally:
                _testcapi.remove_mem_hooks()
        return failed

    assert failures(Table, 10) > 2
    if sys.version_info < (3, 12):
        assert failures(lambda: Cache(5), 60) > 5
    """
    run_python(code)
