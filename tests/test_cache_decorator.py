"""`cached`: what it keeps, of what kind of function, and what the decorated function tells of itself."""

import asyncio
import gc
import inspect
import pickle
import threading
import weakref
from typing import Any

import pytest

from loading_kit import Gate, Oops, check_idle, wait_for_waiters, without_collector
from mempool.cache import Cache, CacheFull, CacheInfo, cached, hashkey, methodkey, typedkey, typedmethodkey
from support import DEADLINE, start


@pytest.fixture
def cache() -> Cache[Any, Any]:
    return Cache(100)


# ---- functions ----


def test_a_function_is_called_once_for_the_same_arguments(cache: Cache[Any, Any]) -> None:
    calls = []

    @cached(cache)
    def add(a: int, b: int = 1, *, c: int = 0) -> int:
        """Add."""
        calls.append((a, b, c))
        return a + b + c

    assert [add(1), add(1), add(1, 2), add(1, c=3), add(1, b=2, c=3), add(1, c=3, b=2)] == [2, 2, 3, 5, 6, 6]
    assert calls == [(1, 1, 0), (1, 2, 0), (1, 1, 3), (1, 2, 3)]
    assert (add.__name__, add.__doc__, inspect.signature(add)) == ("add", "Add.", inspect.signature(add.__wrapped__))
    assert add.__wrapped__(1) == 2
    assert add.cache is cache
    assert add.cache_key is hashkey
    assert hashkey(1) in cache
    check_idle(cache)


def test_none_is_a_value(cache: Cache[Any, Any]) -> None:
    calls = []

    @cached(cache)
    def nothing(key: object) -> None:
        calls.append(key)

    assert (nothing(1), nothing(1)) == (None, None)
    assert calls == [1]


def test_what_it_counted(cache: Cache[Any, Any]) -> None:
    @cached(cache)
    def same(key: Any) -> Any:
        return key

    for key in (1, 1, 2, 1):
        same(key)
    assert same.cache_info() == CacheInfo(hits=2, misses=2, maxsize=100, currsize=2)
    assert same.cache_info() == (2, 2, 100, 2)
    cache["other"] = 1
    same.cache_clear()
    assert same.cache_info() == CacheInfo(0, 0, 100, 0)
    assert len(cache) == 0


def test_an_exception_is_not_kept(cache: Cache[Any, Any]) -> None:
    gate = Gate(Oops())

    @cached(cache)
    def load(key: str) -> Any:
        return gate(key)

    threads = [start(load, "k") for _ in range(3)]
    wait_for_waiters(cache, 2)
    gate.go.set()
    for thread in threads:
        with pytest.raises(Oops):
            thread.result()
    assert load("k") == "kk"
    assert gate.runs == 2
    check_idle(cache)


def test_threads_call_once(cache: Cache[Any, Any]) -> None:
    gate = Gate()
    load = cached(cache)(gate.__call__)
    threads = [start(load, 2) for _ in range(5)]
    wait_for_waiters(cache, 4)
    gate.go.set()
    assert [thread.result() for thread in threads] == [4] * 5
    assert gate.runs == 1


def test_a_function_may_call_itself(cache: Cache[Any, Any]) -> None:
    @cached(cache)
    def fibonacci(number: int) -> int:
        return number if number < 2 else fibonacci(number - 1) + fibonacci(number - 2)

    assert fibonacci(90) == 2880067194370816120
    assert fibonacci.cache_info().misses == 91


@pytest.mark.parametrize("options", [{"maxsize": 3, "getsizeof": len}, {"maxsize": 1, "policy": "noeviction"}])
def test_a_result_that_the_cache_refuses_is_returned(options: dict[str, Any]) -> None:
    cache: Cache[Any, Any] = Cache(**options)
    cache["a"] = "x"

    @cached(cache)
    def large(key: str) -> str:
        return "too large"

    assert (large("k"), large("k")) == ("too large", "too large")
    assert cache.stats().rejections == 2
    assert dict(cache) == {"a": "x"}


def test_results_have_an_end() -> None:
    now = [0.0]
    cache: Cache[Any, Any] = Cache(10, clock=lambda: now[0])
    calls = []

    @cached(cache, ttl="5m")
    def load(key: str) -> str:
        calls.append(key)
        return key

    for now[0] in (0.0, 299.0, 300.0, 301.0):
        assert load("k") == "k"
    assert len(calls) == 2


def test_what_is_no_cache_is_refused() -> None:
    with pytest.raises(TypeError, match="cache"):
        cached(len)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ttl"):
        cached({}, ttl=3)
    with pytest.raises(TypeError, match="unhashable"):
        cached(Cache(3))(len)([])


# ---- methods ----


class Service:
    shared: Cache[Any, Any] = Cache(100)

    def __init__(self, factor: int) -> None:
        self.factor, self.calls = factor, 0

    @cached(Cache(100))
    def times(self, number: int) -> int:
        """Multiply."""
        self.calls += 1
        return self.factor * number

    @cached(shared, key=methodkey)
    def common(self, number: int) -> int:
        self.calls += 1
        return self.factor * number

    @classmethod
    @cached(Cache(100))
    def of_class(cls, number: int) -> int:
        return number

    @staticmethod
    @cached(Cache(100))
    def static(number: int) -> int:
        return number

    @cached(Cache(100))
    async def later(self, number: int) -> int:
        self.calls += 1
        await asyncio.sleep(0)
        return self.factor * number


def test_methods_have_results_of_their_own() -> None:
    one, two = Service(1), Service(2)
    assert [one.times(3), two.times(3), one.times(3), two.times(number=3)] == [3, 6, 3, 6]
    assert (one.calls, two.calls) == (1, 2)
    assert Service.times(one, 3) == 3
    assert (Service.of_class(1), Service.static(2), one.of_class(1), one.static(2)) == (1, 2, 1, 2)
    assert asyncio.run(one.later(3)) == asyncio.run(one.later(3)) == 3
    assert one.calls == 2


def test_methods_may_share_results() -> None:
    with without_collector():
        one, two = Service(1), Service(2)
        assert [one.common(3), two.common(3)] == [3, 3]
        dead = weakref.ref(one)
        del one
        assert dead() is None


# ---- coroutine functions ----


def test_a_coroutine_function_runs_once(cache: Cache[Any, Any]) -> None:
    calls = []

    @cached(cache)
    async def load(key: Any) -> Any:
        calls.append(key)
        await asyncio.sleep(0)
        return key

    async def main() -> None:
        assert await asyncio.gather(*(load(1) for _ in range(5))) == [1] * 5
        assert await load(1) == 1

    assert inspect.iscoroutinefunction(load)
    asyncio.run(main())
    assert calls == [1]
    assert load.cache_info() == CacheInfo(1, 5, 100, 1)
    check_idle(cache)


def test_a_plain_function_that_returns_an_awaitable_is_refused(cache: Cache[Any, Any]) -> None:
    async def load(key: Any) -> Any:
        return key

    @cached(cache)
    def forgot(key: Any) -> Any:
        return load(key)

    with pytest.raises(TypeError, match="coroutine"):
        forgot(1)


# ---- caches of all kinds ----


class Small(dict[Any, Any]):
    """Refuses as caches do."""

    maxsize, currsize = 3, 0

    def setdefault(self, key: Any, value: Any = None) -> Any:
        if len(str(value)) > self.maxsize:
            raise ValueError("value too large")
        return super().setdefault(key, value)


@pytest.mark.parametrize("make", [dict, lambda: Cache(10).namespace("of one function")])
def test_any_mapping(make: Any) -> None:
    mapping = make()
    gate = Gate(None)
    load = cached(mapping)(gate.__call__)
    barrier = threading.Barrier(4)

    def ask() -> Any:
        barrier.wait(DEADLINE)
        return load(1)

    threads = [start(ask) for _ in range(4)]
    assert gate.entered.wait(DEADLINE)
    gate.go.set()
    assert [thread.result() for thread in threads] == [None] * 4
    assert gate.runs == 1
    assert len(mapping) == 1
    load.cache_clear()
    assert len(mapping) == 0


def test_a_foreign_cache_that_refuses() -> None:
    load = cached(Small())(str)
    assert (load(1000), load(1)) == ("1000", "1")
    assert load.cache_info() == CacheInfo(0, 2, 3, 0)


class Full(dict[Any, Any]):
    """A mapping that keeps nothing."""

    error: Exception = CacheFull("full")

    def setdefault(self, key: Any, value: Any = None) -> Any:
        raise self.error


def test_a_foreign_cache_that_is_full() -> None:
    assert cached(Full())(str)(1) == "1"


def test_an_error_of_a_foreign_cache_is_raised() -> None:
    broken = Full()
    broken.error = ValueError("I/O operation on closed file")
    with pytest.raises(ValueError, match="closed file"):
        cached(broken)(str)(1)


@pytest.mark.parametrize("key", [5, "id", (1, 2)])
def test_what_makes_no_keys_is_refused(key: Any) -> None:
    with pytest.raises(TypeError, match="key must be callable"):
        cached(Cache(3), key=key)


def test_a_key_function_that_is_false() -> None:
    class One:
        def __call__(self, *args: Any) -> str:
            return "one key"

        def __len__(self) -> int:
            return 0

    function = cached(Cache(3), key=One())(lambda number: number)
    assert (function(1), function(2)) == (1, 1)


def test_a_namespace_keeps_and_forgets() -> None:
    """What is invalidated during a call is not kept there either."""
    users = Cache[Any, Any](10).namespace("users")

    @cached(users)
    def load(key: int) -> int:
        users.invalidate(hashkey(key))
        return key

    assert load(1) == 1
    assert len(users) == 0


def test_a_decorated_function_keeps_its_cache_and_no_more() -> None:
    with without_collector():
        cache: Cache[Any, Any] = Cache(10)
        load = cached(cache)(lambda key: key)
        load(1)
        dead = weakref.ref(cache)
        del cache
        assert dead() is not None
        del load
        assert dead() is None
    gc.collect()


# ---- keys ----


def test_keys() -> None:
    assert hashkey(1, 2) == hashkey(1, 2) == hashkey(1.0, 2)
    assert hashkey(1, b=2, c=3) == hashkey(1, c=3, b=2)
    assert len({hashkey(1, b=2), hashkey(1, ("b", 2)), hashkey(1, "b", 2), hashkey(b=2), hashkey(1), hashkey()}) == 6
    assert typedkey(1) == typedkey(1)
    assert len({typedkey(1), typedkey(1.0), typedkey(True), typedkey(a=1), typedkey(a=1.0), hashkey(1)}) == 6
    assert typedkey(1, 2.0) != typedkey(1.0, 2)
    assert methodkey(object(), 1, a=2) == hashkey(1, a=2)
    assert typedmethodkey(object(), 1, a=2) == typedkey(1, a=2)
    assert hashkey(self=1) == hashkey(self=1)
    assert methodkey(object(), self=1) == hashkey(self=1)


def test_keys_can_be_pickled() -> None:
    key = typedkey(1, a="b")
    assert pickle.loads(pickle.dumps(key)) == key
