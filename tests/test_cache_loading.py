"""`get_or_load` among threads: one load of a key at a time, whatever becomes of it."""

import gc
import random
import threading
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from loading_kit import Gate, Named, Oops, check_idle, wait_for_waiters, without_collector
from mempool.cache import Cache, waiting
from support import DEADLINE, start, together, until


@pytest.fixture
def cache() -> Cache[Any, Any]:
    return Cache(100)


def oops(_: object) -> Any:
    raise Oops


def test_a_hit_is_not_loaded(cache: Cache[Any, Any]) -> None:
    cache["a"] = None
    assert cache.get_or_load("a", oops) is None
    assert cache.get_or_load("b", lambda key: None) is None
    assert cache.get_or_load("b", oops) is None
    assert (cache.stats().loads, cache.stats().load_errors) == (1, 0)


def test_many_threads_load_once(cache: Cache[Any, Any]) -> None:
    gate = Gate()
    threads = [start(cache.get_or_load, 21, gate) for _ in range(10)]
    wait_for_waiters(cache, 9)
    gate.go.set()
    assert [thread.result() for thread in threads] == [42] * 10
    assert gate.runs == 1
    assert cache[21] == 42
    check_idle(cache)


def test_who_comes_when_a_load_has_just_ended_finds_its_value(cache: Cache[Any, Any]) -> None:
    """A thread that missed before the value was put, and begins to load after: it looks again."""

    def late(key: int) -> int:
        raise AssertionError("loaded twice")

    missed, _ = cache.get(1), cache.get_or_load(1, lambda key: key + 1)
    assert missed is None
    assert cache._load(1, late, None, 0, ()) == 2


def test_threads_from_a_barrier_load_each_key_once(cache: Cache[Any, Any]) -> None:
    runs: list[int] = []

    def loader(key: int) -> int:
        runs.append(key)
        return -key

    def work() -> list[int]:
        return [cache.get_or_load(key, loader) for key in range(50)]

    assert together([work] * 8) == [[-key for key in range(50)]] * 8
    assert sorted(runs) == list(range(50))
    check_idle(cache)


# ---- errors ----


def test_an_exception_reaches_all_who_waited_and_nothing_is_kept(cache: Cache[Any, Any]) -> None:
    error = Oops("once")
    gate = Gate(error)
    threads = [start(cache.get_or_load, "k", gate) for _ in range(5)]
    wait_for_waiters(cache, 4)
    gate.go.set()
    raised = []
    for thread in threads:
        with pytest.raises(Oops) as info:
            thread.result()
        raised.append(info.value)
    assert all(each is error for each in raised)
    assert gate.runs == 1
    assert "k" not in cache
    assert (cache.stats().loads, cache.stats().load_errors) == (0, 1)
    check_idle(cache)
    assert cache.get_or_load("k", gate) == "kk"


def test_the_traceback_of_a_shared_exception_names_the_loader_and_does_not_grow(cache: Cache[Any, Any]) -> None:
    gate = Gate(Oops())

    def frames() -> list[str]:
        with pytest.raises(Oops) as info:
            cache.get_or_load("k", gate)
        return [frame.name for frame in traceback.extract_tb(info.value.__traceback__)]

    threads = [start(frames) for _ in range(20)]
    wait_for_waiters(cache, 19)
    gate.go.set()
    for thread in threads:
        names = thread.result()
        assert names[-1] == "__call__"
        assert len(names) < 10


def test_a_shared_exception_keeps_its_cause(cache: Cache[Any, Any]) -> None:
    """Who waited while he handled an error of his own leaves no trace of it in the others' exception."""
    gate = Gate()

    def loader(key: str) -> Any:
        try:
            gate(key)
            raise OSError("refused")
        except OSError:
            raise Oops  # noqa: B904  (its context is what this is about)

    def ask() -> None:
        try:
            raise KeyError("of another request")
        except KeyError:
            cache.get_or_load("k", loader)

    leader = start(cache.get_or_load, "k", loader)
    assert gate.entered.wait(DEADLINE)
    waiters = [start(ask) for _ in range(3)]
    wait_for_waiters(cache, 3)
    gate.go.set()
    for thread in (*waiters, leader):
        with pytest.raises(Oops) as caught:
            thread.result()
        assert isinstance(caught.value.__context__, OSError)


def test_an_exception_is_part_of_no_cycle(cache: Cache[Any, Any]) -> None:
    class Key(Named):
        pass

    def fail(key: Key) -> None:
        raise Oops

    with without_collector():
        key = Key("k")
        try:
            cache.get_or_load(key, fail)
        except Oops as error:
            dead = weakref.ref(error)
        of_key = weakref.ref(key)
        del key
        assert dead() is None
        assert of_key() is None


def test_an_exception_that_was_waited_for_is_part_of_no_cycle(cache: Cache[Any, Any]) -> None:
    died = []

    def wait(gate: Gate) -> None:
        try:
            cache.get_or_load(Named("k"), gate)
        except Oops as error:
            died.append(weakref.ref(error))

    with without_collector():
        gate = Gate(Oops)
        threads = [start(wait, gate) for _ in range(3)]
        wait_for_waiters(cache, 2)
        gate.go.set()
        for thread in threads:
            thread.result()
        assert [dead() for dead in died] == [None] * 3


def test_an_interrupted_leader_hands_over(cache: Cache[Any, Any]) -> None:
    gate = Gate(KeyboardInterrupt(), SystemExit())
    threads = [start(cache.get_or_load, 4, gate) for _ in range(5)]
    wait_for_waiters(cache, 4)
    gate.go.set()
    ends = []
    for thread in threads:
        try:
            ends.append(thread.result())
        except BaseException as error:
            ends.append(type(error))
    assert sorted(map(str, ends)) == sorted(map(str, [KeyboardInterrupt, SystemExit, 8, 8, 8]))
    assert (gate.runs, gate.most) == (3, 1)
    check_idle(cache)


def test_a_waiter_that_is_interrupted_leaves(run_python: Callable[..., Any]) -> None:
    done = run_python(
        """
        import os, signal, threading
        from mempool.cache import Cache, waiting
        cache, entered, go = Cache(10), threading.Event(), threading.Event()

        def loader(key):
            entered.set()
            go.wait()
            return key

        thread = threading.Thread(target=cache.get_or_load, args=(1, loader))
        thread.start()
        entered.wait()

        interrupted = threading.Event()

        def handler(*_):
            if not interrupted.is_set():
                interrupted.set()
                raise KeyboardInterrupt

        def interrupt():
            (load,) = cache._loads.active
            while not load.waiters:
                pass
            while not interrupted.is_set():  # one that comes just before the waiter sleeps does not wake it
                os.kill(os.getpid(), signal.SIGINT)
                interrupted.wait(0.1)

        signal.signal(signal.SIGINT, handler)
        threading.Thread(target=interrupt).start()
        try:
            cache.get_or_load(1, loader)
        except KeyboardInterrupt:
            (load,) = cache._loads.active
            print("left", len(load.waiters), waiting._asleep)
        go.set()
        thread.join()
        print(cache[1], cache._loads.active)
        """
    )
    assert done.stdout.split("\n")[:2] == ["left 0 {}", "1 {}"]


def test_a_handler_that_loads_what_its_thread_loads(run_python: Callable[..., Any]) -> None:
    """It runs on top of the load, in the same thread."""
    done = run_python(
        """
        import signal
        from mempool.cache import Cache, waiting
        cache = Cache(10)
        signal.signal(signal.SIGTERM, lambda *_: print("handler", cache.get_or_load(1, lambda key: "other")))

        def loader(key):
            signal.raise_signal(signal.SIGTERM)
            return "own"

        print(cache.get_or_load(1, loader), cache[1])
        """
    )
    assert done.stdout.split("\n")[:2] == ["handler other", "own other"]


def test_an_awaitable_of_a_plain_loader_is_refused(cache: Cache[Any, Any]) -> None:
    async def coroutine() -> None: ...

    with pytest.raises(TypeError, match="coroutine"):
        cache.get_or_load(1, lambda key: coroutine())
    assert 1 not in cache
    check_idle(cache)


def test_an_error_while_the_value_is_weighed_reaches_all() -> None:
    def getsizeof(value: object) -> int:
        raise Oops

    cache: Cache[Any, Any] = Cache(100, getsizeof=getsizeof)
    gate = Gate()
    threads = [start(cache.get_or_load, "k", gate) for _ in range(3)]
    wait_for_waiters(cache, 2)
    gate.go.set()
    for thread in threads:
        with pytest.raises(Oops):
            thread.result()
    check_idle(cache)


@pytest.mark.parametrize("options", [{"maxsize": 3, "getsizeof": len}, {"maxsize": 1, "policy": "noeviction"}])
def test_a_value_that_the_cache_refuses_is_returned(options: dict[str, Any]) -> None:
    cache: Cache[Any, Any] = Cache(**options)
    cache["a"] = "x"
    gate = Gate("too large")
    threads = [start(cache.get_or_load, "k", gate) for _ in range(3)]
    wait_for_waiters(cache, 2)
    gate.go.set()
    assert [thread.result() for thread in threads] == ["too large"] * 3
    assert cache.stats().rejections == 1
    assert dict(cache) == {"a": "x"}


# ---- who would wait for himself ----


def test_a_loader_may_ask_for_its_own_key(cache: Cache[Any, Any]) -> None:
    value = cache.get_or_load(1, lambda key: cache.get_or_load(key, lambda key: "inner") + " and outer")
    assert value == "inner and outer"
    assert cache[1] == "inner"
    check_idle(cache)


def test_a_loader_may_ask_for_other_keys(cache: Cache[int, int]) -> None:
    def fibonacci(number: int) -> int:
        return (
            number
            if number < 2
            else cache.get_or_load(number - 1, fibonacci) + cache.get_or_load(number - 2, fibonacci)
        )

    assert cache.get_or_load(80, fibonacci) == 23416728348467685
    assert cache.stats().loads == 81
    check_idle(cache)


def test_a_loader_that_has_waited_waits_for_nobody(cache: Cache[Any, Any]) -> None:
    gate = Gate()

    def loader(key: str) -> Any:
        value = cache.get_or_load("other", gate)
        (scope,) = waiting._scopes.get()
        assert scope.waits == {}
        return value

    threads = [start(cache.get_or_load, "other", gate), start(cache.get_or_load, "k", loader)]
    wait_for_waiters(cache, 1)
    gate.go.set()
    assert [thread.result() for thread in threads] == ["otherother"] * 2


@pytest.mark.parametrize("count", [2, 3, 7])
def test_threads_that_wait_in_a_circle(count: int) -> None:
    """Each loads its own key, of a cache of its own, and asks for the next one's."""
    caches = [Cache[int, str](10) for _ in range(count)]
    loading = threading.Barrier(count)

    def work(number: int) -> str:
        following = (number + 1) % count

        def loader(key: int) -> str:
            loading.wait(DEADLINE)
            return f"{key}<" + caches[following].get_or_load(following, lambda key: f"{key}")

        return caches[number].get_or_load(number, loader)

    for thread in [start(work, number) for number in range(count)]:
        assert thread.result()
    check_idle(*caches)


def test_a_recursion_without_end_leaves_nothing(cache: Cache[Any, Any]) -> None:
    """Wherever the stack ends, in a loader or in the midst of beginning a load."""

    def same(key: int) -> Any:
        return cache.get_or_load(key, same)

    def deeper(key: int) -> Any:
        return cache.get_or_load(key + 1, deeper)

    def around(depth: int, loader: Any) -> Any:
        return around(depth - 1, loader) if depth else cache.get_or_load(0, loader)

    for depth in range(12):
        for loader in (same, deeper):
            with pytest.raises(RecursionError):
                around(depth, loader)
            check_idle(cache)
    assert cache.get_or_load(0, str) == "0"


def test_circles_among_many_threads() -> None:
    """Loaders that ask for random other keys: whatever the circles, all end, and nothing is left."""
    cache: Cache[int, int] = Cache(4, policy="lru")

    def work(seed: int) -> None:
        dice = random.Random(seed)

        def loader(key: int, depth: int = 0) -> int:
            if depth < 3:
                cache.get_or_load(dice.randrange(8), lambda key: loader(key, depth + 1))
            if dice.random() < 0.1:
                raise Oops
            return key

        for _ in range(300):
            key = dice.randrange(8)
            with suppress(Oops):
                assert cache.get_or_load(key, loader) == key

    together([lambda seed=seed: work(seed) for seed in range(6)])  # type: ignore[misc]
    check_idle(cache)


# ---- lifetimes ----


def test_finalisers_that_load() -> None:
    """The collector runs in the midst of anything, and what it finds asks for keys that others load."""
    cache: Cache[int, int] = Cache(4, policy="lru")
    dice = random.Random(1)

    class Dying:
        def __init__(self) -> None:
            self.circle = self

        def __del__(self) -> None:
            cache.get_or_load(dice.randrange(8), lambda key: key)

    def loader(key: int) -> int:
        Dying()
        return key

    def work() -> None:
        for number in range(200):
            assert cache.get_or_load(number % 8, loader) == number % 8

    thresholds = gc.get_threshold()
    gc.set_threshold(5)
    try:
        together([work] * 4)
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    check_idle(cache)


def test_nothing_of_a_load_outlives_it() -> None:
    with without_collector():
        cache: Cache[Any, Any] = Cache(100)
        key, value = Named("k"), Named("v")
        dead = [weakref.ref(key), weakref.ref(value), weakref.ref(cache)]
        gate = Gate(value)
        threads = [start(cache.get_or_load, key, gate) for _ in range(3)]
        wait_for_waiters(cache, 2)
        gate.go.set()
        for thread in threads:
            thread.result()
        threads.clear()
        gate._ends.clear()
        cache.clear()
        del key, value, thread
        until(lambda: not any(each() for each in dead[:2]), "the end of key and value")
        del cache
        until(lambda: dead[2]() is None, "the end of the cache")


def test_a_fork_during_a_load(run_python: Callable[..., Any]) -> None:
    """The child has no thread that would end the loads of its parent: it loads itself; the parent's go on."""
    done = run_python(
        """
        import os, threading
        from mempool.cache import Cache, waiting
        cache, entered, go = Cache(10), threading.Event(), threading.Event()

        def loader(key):
            entered.set()
            go.wait()
            return "parent's"

        thread = threading.Thread(target=lambda: print(cache.get_or_load(1, loader), flush=True))
        thread.start()
        entered.wait()
        child = os.fork()
        if not child:
            others = [threading.Thread(target=cache.get_or_load, args=(1, lambda key: "child's")) for _ in range(3)]
            [other.start() for other in others]
            [other.join() for other in others]
            print(cache[1], cache._loads.active, flush=True)
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)
        go.set()
        thread.join()
        """,
        options=["-W", "ignore"],
    )
    assert done.stdout.split("\n") == ["child's {}", "0", "parent's", ""]


def test_a_fork_inside_a_load(run_python: Callable[..., Any]) -> None:
    """What the parent began and the child ends is not kept in the child, where nobody could invalidate it."""
    done = run_python(
        """
        import os
        from mempool.cache import Cache, waiting
        cache = Cache(10)

        def loader(key):
            if os.fork():
                os.wait()
                return "parent's"
            cache.get_or_load(1, lambda key: "child's")
            cache.pop(1)
            return "old"

        value = cache.get_or_load(1, loader)
        print(value, cache.get(1), flush=True)
        os._exit(0)
        """,
        options=["-W", "ignore"],
    )
    assert done.stdout.split("\n") == ["old None", "parent's parent's", ""]
