"""What becomes of a key while it is loaded, keys that misbehave, and what is refused."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from loading_kit import Gate, Named, Oops, check_idle, wait_for_waiters
from mempool import AccountLimitExceeded
from mempool.cache import Cache, CacheFull
from mempool.cache.loading import Options
from support import DEADLINE, start, together, until


@pytest.fixture
def cache() -> Cache[Any, Any]:
    return Cache(100)


def oops(_: object) -> Any:
    raise Oops


# ---- what becomes of the key meanwhile ----

CHANGES: dict[str, Callable[[Cache[Any, Any]], object]] = {
    "pop": lambda cache: cache.pop("k", None),
    "clear": lambda cache: cache.clear(),
    "forget": lambda cache: cache._loads.forget("k"),
    "tag": lambda cache: cache._loads.forget_tag("t"),
    "version": lambda cache: cache._loads.forget_version(4),
    "where": lambda cache: cache._loads.forget_where(lambda key: key == "k"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_invalidated_during_a_load_is_not_kept(change: Callable[[Cache[Any, Any]], object]) -> None:
    cache: Cache[Any, Any] = Cache(100)
    gate = Gate("old")
    options = Options(None, 0, ("t",), 3)
    first = start(cache._loads.load, cache, "k", lambda: gate("k"), options)
    second = start(cache._loads.load, cache, "k", lambda: gate("k"), options)
    wait_for_waiters(cache, 1)
    change(cache)
    assert cache._loads.active == {}
    assert cache.get_or_load("other", lambda key: 1) == 1
    gate.go.set()
    assert (first.result(), second.result()) == ("old", "old")
    assert "k" not in cache
    assert cache.get_or_load("k", gate) == "kk"
    check_idle(cache)


@pytest.mark.parametrize("change", ["tag", "version", "where"])
def test_other_loads_are_kept(change: str) -> None:
    cache: Cache[Any, Any] = Cache(100)
    gate = Gate("new")
    thread = start(cache._loads.load, cache, "other", lambda: gate("other"), Options(None, 0, ("u",), 4))
    assert gate.entered.wait(DEADLINE)
    CHANGES[change](cache)
    gate.go.set()
    thread.result()
    assert cache["other"] == "new"


def test_who_comes_after_an_invalidation_loads_anew(cache: Cache[Any, Any]) -> None:
    gate = Gate("old", "new")
    first = start(cache.get_or_load, "k", gate)
    until(lambda: gate.runs == 1)
    cache.pop("k", None)
    second = start(cache.get_or_load, "k", gate)
    until(lambda: gate.runs == 2)
    gate.go.set()
    assert {first.result(), second.result()} == {"old", "new"}
    assert cache["k"] == second.result()
    check_idle(cache)


def test_what_is_written_during_a_load_stays(cache: Cache[Any, Any]) -> None:
    def loader(key: str) -> str:
        cache[key] = "written"
        return "loaded"

    assert cache.get_or_load("k", loader) == "loaded"
    assert cache["k"] == "written"


def test_what_is_written_and_lost_again_during_a_load_is_newer(cache: Cache[Any, Any]) -> None:
    def loader(key: str) -> str:
        cache[key] = "written"
        cache.popitem()
        return "older"

    assert cache.get_or_load("k", loader) == "older"
    assert "k" not in cache


def test_loads_of_two_versions_are_two(cache: Cache[Any, Any]) -> None:
    gate = Gate("old", "new")
    loads = cache._loads
    first = start(loads.load, cache, "k", lambda: gate("k"), Options(version=1))
    until(lambda: gate.runs == 1)
    second = start(loads.load, cache, "k", lambda: gate("k"), Options(version=2))
    until(lambda: gate.runs == 2)
    gate.go.set()
    assert (first.result(), second.result()) == ("old", "new")


@pytest.mark.parametrize("versions", [(1, 2), ((1, 0), (2, 0))])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_versions_the_one_asked_for_last_stays(
    cache: Cache[Any, Any], versions: tuple[Any, Any], order: tuple[int, int]
) -> None:
    gates, threads = (Gate("first"), Gate("second")), []
    for gate, version in zip(gates, versions, strict=True):
        threads.append(start(partial(cache.get_or_load, "k", gate, version=version)))
        assert gate.entered.wait(DEADLINE)
    for number in order:
        gates[number].go.set()
        threads[number].result()
    assert cache["k"] == "second"
    assert cache.get_or_load("k", oops, version=versions[1]) == "second"


def test_a_load_of_a_version_replaces_one_without(cache: Cache[Any, Any]) -> None:
    def loader(key: str) -> str:
        assert start(cache.get_or_load, key, lambda key: "any").result() == "any"
        return "of version 2"

    assert cache.get_or_load("k", loader, version=2) == cache["k"] == "of version 2"


# ---- keys ----


def test_keys_whose_equality_raises() -> None:
    class Hostile(Named):
        def __eq__(self, other: object) -> bool:
            raise Oops

        __hash__ = Named.__hash__

    cache: Cache[Any, Any] = Cache(100)
    gate = Gate("v")
    first = start(cache.get_or_load, Hostile(1), gate)
    assert gate.entered.wait(DEADLINE)
    for change in (lambda: cache.get_or_load(Hostile(1), gate), lambda: cache.pop(Hostile(1), None)):
        with pytest.raises(Oops):
            change()
    gate.go.set()
    assert first.result() == "v"
    check_idle(cache)


def test_keys_whose_equality_loads() -> None:
    cache: Cache[Any, Any] = Cache(100)

    class Asking(Named):
        def __eq__(self, other: object) -> bool:
            return super().__eq__(other) and bool(cache.get_or_load("inner", lambda key: True))

        __hash__ = Named.__hash__

    gate = Gate("v")
    threads = [start(cache.get_or_load, Asking(1), gate) for _ in range(4)]
    wait_for_waiters(cache, 3)
    gate.go.set()
    assert [thread.result() for thread in threads] == ["v"] * 4
    assert gate.runs == 1
    check_idle(cache)


def test_keys_that_become_different(cache: Cache[Any, Any]) -> None:
    """A load is found again by itself, not by its key."""
    key = Named(1)

    def loader(found: Named) -> str:
        found.name = 2
        return "v"

    assert cache.get_or_load(key, loader) == "v"
    check_idle(cache)


def test_an_unhashable_key_is_refused(cache: Cache[Any, Any]) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        cache.get_or_load([], len)
    check_idle(cache)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ttl": -1}, ValueError),
        ({"ttl": "soon"}, ValueError),
        ({"ttl": []}, TypeError),
        ({"priority": 0.5}, TypeError),
        ({"priority": 1000}, ValueError),
        ({"tags": 3}, TypeError),
        ({"tags": [[]]}, TypeError),
    ],
)
def test_options_that_make_no_sense_are_refused_before_the_load(
    cache: Cache[Any, Any], options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(options)).rstrip("s")):
        cache.get_or_load("k", oops, **options)
    assert cache.stats().loads == cache.stats().load_errors == 0


@pytest.mark.parametrize("loader", [3, None, "str"])
def test_what_is_no_loader_is_refused(cache: Cache[Any, Any], loader: Any) -> None:
    for _ in range(2):
        with pytest.raises(TypeError, match="callable"):
            cache.get_or_load("k", loader)
        cache["k"] = "a hit"


@pytest.mark.parametrize("refresh_ahead", [None, 0.0])
def test_nobody_finds_what_was_loaded_before_the_last_change(refresh_ahead: float | None) -> None:
    """Four sources change, each in a thread that says so, and then finds nothing older; others load and refresh beside them."""
    cache: Cache[int, int] = Cache(100, ttl=1000)
    source = [0] * 4
    done = threading.Event()

    def ask(key: int) -> int:
        return cache.get_or_load(key, source.__getitem__, tags=[key], refresh_ahead=refresh_ahead)

    def change(key: int) -> None:
        ways: list[Callable[[], object]] = [
            lambda: cache.invalidate(key),
            lambda: cache.put(key, source[key], tags=[key]),
            lambda: cache.pop(key, None),
            lambda: cache.invalidate_tag(key),
        ]
        for number in range(400):
            source[key] += 1
            ways[number % 4]()
            assert ask(key) == source[key]

    def read() -> None:
        while not done.is_set():
            for key in range(4):
                ask(key)

    readers = [start(read) for _ in range(2)]
    try:
        together([partial(change, key) for key in range(4)])
    finally:
        done.set()
    for reader in readers:
        reader.result()
    until(lambda: not cache._refresher._wanted and not cache._loads.active)
    check_idle(cache)


# ---- writes that were refused ----


def test_a_write_that_is_refused_leaves_the_load_alone() -> None:
    def weigh(value: Any) -> int:
        if value is None:
            raise Oops
        return len(value)

    cache: Cache[Any, Any] = Cache(10, getsizeof=weigh)

    def loader(key: str) -> str:
        with pytest.raises(ValueError, match="too large"):
            cache[key] = "x" * 100
        with pytest.raises(Oops):
            cache[key] = None
        return "loaded"

    assert cache.get_or_load("k", loader) == cache["k"] == "loaded"


def test_a_write_for_which_nothing_may_go_leaves_the_load_alone() -> None:
    cache: Cache[Any, Any] = Cache(10, policy="noeviction", getsizeof=len)
    cache["other"] = "x" * 8

    def loader(key: str) -> str:
        with pytest.raises(CacheFull):
            cache[key] = "x" * 3
        return "ok"

    assert cache.get_or_load("k", loader) == cache["k"] == "ok"
    assert cache.stats().rejections == 1


def test_a_write_that_the_account_refuses_leaves_the_load_alone() -> None:
    cache: Cache[Any, Any] = Cache(1000)
    for number in range(8):
        cache[number] = number
    cache.account.limit = cache.account.used

    def loader(key: str) -> str:
        with pytest.raises(AccountLimitExceeded):
            cache[key] = "new"
        with pytest.raises(AccountLimitExceeded):
            cache.setdefault(key, "new")
        cache.account.limit = None
        return "loaded"

    assert cache.get_or_load("k", loader) == cache["k"] == "loaded"


@pytest.mark.parametrize("act", [Cache.__delitem__, Cache.invalidate, lambda cache, key: cache.put(key, 1)])
def test_a_clock_that_raises_leaves_the_load_alone(act: Callable[[Cache[Any, Any], str], object]) -> None:
    broken = False

    def clock() -> float:
        if broken:
            raise Oops
        return 0.0

    cache: Cache[Any, Any] = Cache(10, ttl=1, clock=clock)
    cache["other"] = 1

    def loader(key: str) -> str:
        nonlocal broken
        broken = True
        with pytest.raises(Oops):
            act(cache, key)
        broken = False
        return "loaded"

    assert cache.get_or_load("k", loader) == cache["k"] == "loaded"
