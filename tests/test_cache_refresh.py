"""Refresh ahead: an old value is returned while its key is loaded anew in the background, once."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from loading_kit import Gate, Oops, check_idle, wait_for_waiters
from mempool.cache import Cache, refreshing, waiting
from support import DEADLINE, start, until


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> Iterator[Cache[Any, Any]]:
    until(lambda: not refresh_threads(), "the end of other tests' threads")
    cache: Cache[Any, Any] = Cache(100, ttl=10, clock=clock)
    yield cache
    until(lambda: not refresh_threads(), "the end of the threads")
    check_idle(cache)


def refresh_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("mempool-refresh")]


def old(cache: Cache[Any, Any], key: Any = "k") -> None:
    """Put an entry."""
    cache[key] = "old"


def test_the_old_value_is_returned_and_one_load_begins(cache: Cache[Any, Any], clock: Clock) -> None:
    old(cache)
    gate = Gate("new")
    clock.now = 8
    assert [cache.get_or_load("k", gate, refresh_ahead=0.8) for _ in range(5)] == ["old"] * 5
    gate.go.set()
    until(lambda: cache.get_or_load("k", gate, refresh_ahead=0.8) == "new")
    assert gate.runs == 1
    clock.now = 17
    assert cache["k"] == "new"


@pytest.mark.parametrize(("now", "fraction"), [(7.9, 0.8), (9.9, 1), (0, 0.1)])
def test_a_young_entry_is_left_alone(cache: Cache[Any, Any], clock: Clock, now: float, fraction: float) -> None:
    old(cache)
    clock.now = now
    assert cache.get_or_load("k", Gate(), refresh_ahead=fraction) == "old"
    assert refresh_threads() == []


def test_an_entry_without_an_end_is_left_alone(cache: Cache[Any, Any], clock: Clock) -> None:
    cache.put("k", "old", ttl=float("inf"))
    clock.now = 1e6
    assert cache.get_or_load("k", Gate(), refresh_ahead=0) == "old"
    assert refresh_threads() == []


def test_the_new_entry_is_kept_as_asked(cache: Cache[Any, Any], clock: Clock) -> None:
    cache.put("k", "old", ttl=2)
    clock.now = 1
    options: dict[str, Any] = {"ttl": 100, "tags": ("t",), "version": 3, "priority": 1, "refresh_ahead": 0}
    cache.put("k", "old", ttl=2, version=3)
    assert cache.get_or_load("k", lambda key: "new", **options) == "old"
    until(lambda: cache["k"] == "new")
    clock.now = 100
    assert cache["k"] == "new"
    assert cache.invalidate_tag("t") == 1


def test_who_comes_when_the_old_value_is_over_waits_for_the_load(cache: Cache[Any, Any], clock: Clock) -> None:
    old(cache)
    gate = Gate("new")
    clock.now = 9
    assert cache.get_or_load("k", gate, refresh_ahead=0.5) == "old"
    assert gate.entered.wait(DEADLINE)
    clock.now = 11
    threads = [start(partial(cache.get_or_load, "k", gate, refresh_ahead=0.5)) for _ in range(3)]
    wait_for_waiters(cache, 3)
    gate.go.set()
    assert [thread.result() for thread in threads] == ["new"] * 3
    assert gate.runs == 1
    assert cache["k"] == "new"


def test_a_namespace_refreshes_its_own_keys(cache: Cache[Any, Any], clock: Clock) -> None:
    users = cache.namespace("users")
    users["k"] = "old"
    clock.now = 9
    seen = []
    assert users.get_or_load("k", lambda key: seen.append(key) or "new", refresh_ahead=0) == "old"  # type: ignore[func-returns-value]
    until(lambda: users["k"] == "new")
    assert seen == ["k"]


# ---- errors ----


def test_a_failure_leaves_the_old_value(cache: Cache[Any, Any], clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    old(cache)
    clock.now = 9
    for number in range(1, 4):
        assert cache.get_or_load("k", fail, refresh_ahead=0) == "old"
        until(lambda number=number: cache._refresher.failures == number)  # type: ignore[misc]
        until(lambda: not refresh_threads())
    assert cache["k"] == "old"
    assert cache.stats().load_errors == 3
    (record,) = [record for record in caplog.records if record.name == "mempool.cache"]
    assert record.levelno == logging.WARNING
    assert record.exc_info is not None
    assert record.exc_info[0] is Oops
    clock.now = 10
    with pytest.raises(Oops):
        cache.get_or_load("k", fail, refresh_ahead=0)


def fail(key: object) -> Any:
    raise Oops


def test_ctrl_c_as_a_refresh_begins_does_not_end_refreshing(cache: Cache[Any, Any], clock: Clock) -> None:
    class Interrupted(dict[Any, Any]):
        def setdefault(self, *args: Any) -> Any:
            super().setdefault(*args)
            raise KeyboardInterrupt

    old(cache)
    clock.now = 9
    wanted = cache._refresher._wanted = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        cache.get_or_load("k", lambda _: "new", refresh_ahead=0.5)
    assert wanted == {}


def test_ctrl_c_as_a_thread_starts_makes_no_more_of_them(
    cache: Cache[Any, Any], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(threading.Thread):
        def start(self) -> None:
            super().start()
            raise KeyboardInterrupt

    old(cache)
    clock.now = 9
    monkeypatch.setattr(refreshing, "Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.get_or_load("k", lambda _: "new", refresh_ahead=0.5)
    until(lambda: not refresh_threads())
    assert sorted(refreshing._threads._free) == list(range(refreshing.THREADS))


class Fussy:
    """A key of one hash, that is compared where the test lets it."""

    compares = True

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        if not self.compares and threading.current_thread() is not threading.main_thread():
            raise Oops
        return self is other


def test_a_key_that_could_not_be_compared_is_refreshed_at_the_next_hit(
    cache: Cache[Any, Any], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, gate = Fussy(), Gate()
    old(cache, key)
    other = start(partial(cache.get_or_load, Fussy(), lambda _: gate(1)))
    assert gate.entered.wait(DEADLINE)
    clock.now = 9
    monkeypatch.setattr(Fussy, "compares", False)
    assert cache.get_or_load(key, lambda _: "new", refresh_ahead=0.5) == "old"
    until(lambda: cache._refresher.failures == 1)
    until(lambda: not refresh_threads())
    monkeypatch.undo()
    assert cache.get_or_load(key, lambda _: "new", refresh_ahead=0.5) == "old"
    until(lambda: cache[key] == "new")
    gate.go.set()
    other.result()


def test_a_thread_that_cannot_be_started(cache: Cache[Any, Any], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    old(cache)
    clock.now = 9
    with monkeypatch.context() as patch:
        patch.setattr(refreshing.Thread, "start", start)
        assert cache.get_or_load("k", str, refresh_ahead=0) == "old"
    assert cache._refresher.failures == cache.stats().load_errors == 1
    assert cache.get_or_load("k", str, refresh_ahead=0) == "old"
    until(lambda: cache["k"] == "k")


def test_what_ends_a_thread_ends_no_refreshing(
    cache: Cache[Any, Any], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """And it is told of and counted, as all that fails there."""

    def leave(key: object) -> Any:
        raise SystemExit

    old(cache)
    clock.now = 9
    for _ in range(2 * refreshing.THREADS):
        assert cache.get_or_load("k", leave, refresh_ahead=0) == "old"
        until(lambda: not refresh_threads())
    assert cache.stats().load_errors == cache._refresher.failures == 2 * refreshing.THREADS
    assert "SystemExit" in caplog.text
    assert cache.get_or_load("k", str, refresh_ahead=0) == "old"
    until(lambda: cache["k"] == "k")


def test_what_ends_all_threads_leaves_the_queue_to_others(cache: Cache[Any, Any], clock: Clock) -> None:
    count = refreshing.THREADS
    leaving = Gate(*[SystemExit] * count)
    for key in range(count + 1):
        old(cache, key)
    clock.now = 9
    for key in range(count):
        cache.get_or_load(key, leaving, refresh_ahead=0)
    until(lambda: leaving.runs == count)
    cache.get_or_load(count, str, refresh_ahead=0)
    leaving.go.set()
    until(lambda: cache[count] == str(count))


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_what_is_no_fraction_is_refused(cache: Cache[Any, Any], fraction: float) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="refresh_ahead"):
            cache.get_or_load("k", str, refresh_ahead=fraction)
        old(cache)


@pytest.mark.parametrize("fraction", ["1", True, [1]])
def test_what_is_no_number_is_refused(cache: Cache[Any, Any], fraction: Any) -> None:
    with pytest.raises(TypeError, match="refresh_ahead"):
        cache.get_or_load("k", str, refresh_ahead=fraction)


# ---- what becomes of the key meanwhile ----

CHANGES: dict[str, tuple[Callable[[Cache[Any, Any]], object], Any]] = {
    "invalidated": (lambda cache: cache.invalidate("k"), None),
    "deleted": (lambda cache: cache.pop("k"), None),
    "popped": (lambda cache: [cache.popitem() for _ in range(len(cache))], None),
    "cleared": (lambda cache: cache.clear(), None),
    "by tag": (lambda cache: cache.invalidate_tag("t"), None),
    "written": (lambda cache: cache.put("k", "written"), "written"),
}


@pytest.mark.parametrize(("change", "left"), CHANGES.values(), ids=CHANGES)
def test_a_changed_key_is_not_overwritten(
    cache: Cache[Any, Any], clock: Clock, change: Callable[[Cache[Any, Any]], object], left: Any
) -> None:
    cache.put("k", "old", tags=("t",))
    gate = Gate("new")
    clock.now = 9
    assert cache.get_or_load("k", gate, refresh_ahead=0, tags=("t",)) == "old"
    assert gate.entered.wait(DEADLINE)
    change(cache)
    gate.go.set()
    until(lambda: not refresh_threads())
    assert cache.get("k") == left


def test_a_newer_version_is_not_overwritten(cache: Cache[Any, Any], clock: Clock) -> None:
    cache.put("k", "old", version=1)
    gate = Gate("of version 1")
    clock.now = 9
    assert cache.get_or_load("k", gate, version=1, refresh_ahead=0) == "old"
    assert gate.entered.wait(DEADLINE)
    assert cache.get_or_load("k", lambda key: "of version 2", version=2) == "of version 2"
    gate.go.set()
    until(lambda: not refresh_threads())
    assert cache["k"] == "of version 2"


@pytest.mark.parametrize(("change", "left"), CHANGES.values(), ids=CHANGES)
def test_a_key_that_changed_before_its_turn_is_not_loaded(
    cache: Cache[Any, Any], clock: Clock, change: Callable[[Cache[Any, Any]], object], left: Any
) -> None:
    """All threads are at work, the load waits for one of them, and is not needed any more when its turn comes."""
    busy, late = Gate(), Gate("new")
    for key in range(refreshing.THREADS):
        old(cache, key)
    cache.put("k", "old", tags=("t",))
    clock.now = 9
    for key in range(refreshing.THREADS):
        cache.get_or_load(key, busy, refresh_ahead=0)
    until(lambda: busy.runs == refreshing.THREADS)
    assert cache.get_or_load("k", late, refresh_ahead=0.5, tags=("t",)) == "old"
    assert len(refresh_threads()) == refreshing.THREADS
    change(cache)
    busy.go.set()
    until(lambda: not refresh_threads())
    assert cache.get("k") == left
    assert late.runs == 0


def test_what_waits_for_a_thread_is_nobodys_wait(cache: Cache[Any, Any], clock: Clock) -> None:
    """Loads that hold all threads ask for keys whose refreshing waits for a thread: they load them themselves."""
    count = refreshing.THREADS
    for key in range(2 * count):
        old(cache, key)
    clock.now = 9
    all_run, queued = threading.Barrier(count), threading.Event()

    def asking(key: int) -> Any:
        all_run.wait(DEADLINE)
        assert queued.wait(DEADLINE)
        return cache.get_or_load(key + count, str)

    for key in range(count):
        cache.get_or_load(key, asking, refresh_ahead=0)
    for key in range(count, 2 * count):
        cache.get_or_load(key, str, refresh_ahead=0)
    clock.now = 11
    queued.set()
    until(lambda: not refresh_threads())
    assert [cache[key] for key in range(count)] == [str(key) for key in range(count, 2 * count)]


def test_many_keys_are_worked_off(cache: Cache[Any, Any], clock: Clock) -> None:
    for key in range(100):
        old(cache, key)
    clock.now = 9
    for key in range(100):
        assert cache.get_or_load(key, str, refresh_ahead=0.5) in ("old", str(key))
    until(lambda: all(cache[key] == str(key) for key in range(100)))


# ---- asyncio ----


def test_a_task_loads_anew(cache: Cache[Any, Any], clock: Clock) -> None:
    async def main() -> None:
        go, runs = asyncio.Event(), []

        async def loader(key: str) -> str:
            runs.append(key)
            await go.wait()
            return "new"

        old(cache)
        clock.now = 9
        for _ in range(5):
            assert await cache.get_or_load("k", loader, refresh_ahead=0.5) == "old"
            await asyncio.sleep(0)
        assert runs == ["k"]
        assert refresh_threads() == []
        go.set()
        while cache._refresher._tasks:
            await asyncio.sleep(0)
        assert cache["k"] == "new"

    asyncio.run(main())


def test_a_coroutine_that_is_made_before_its_loop(cache: Cache[Any, Any], clock: Clock) -> None:
    """What is refreshed is decided where it is awaited."""

    async def main(asked: Any) -> None:
        assert await asked == "old"
        while cache["k"] == "old":
            await asyncio.sleep(0)

    old(cache)
    clock.now = 9
    asyncio.run(main(cache.get_or_load("k", str_of, refresh_ahead=0.5)))
    assert (cache["k"], cache._refresher.failures) == ("k", 0)


def test_refreshing_is_in_no_other_load(cache: Cache[Any, Any], clock: Clock) -> None:
    """What a load begins in the background is not a part of it."""
    inside = []

    def refresh(key: str) -> str:
        inside.append(len(waiting._scopes.get()))
        return "new"

    def loader(key: str) -> Any:
        assert cache.get_or_load("k", refresh, refresh_ahead=0.5) == "old"
        until(lambda: inside)
        return "loaded"

    old(cache)
    clock.now = 9
    assert cache.get_or_load("around", loader) == "loaded"
    assert inside == [1]


def test_a_loop_that_ends_takes_its_tasks_along(cache: Cache[Any, Any], clock: Clock) -> None:
    """Cancelled before they ran, and while they ran: the next loop begins afresh."""

    async def never(key: str) -> str:
        await asyncio.get_running_loop().create_future()
        return "never"

    async def main(steps: int) -> None:
        assert await cache.get_or_load("k", never, refresh_ahead=0.5) == "old"
        for _ in range(steps):
            await asyncio.sleep(0)

    old(cache)
    clock.now = 9
    for steps in (0, 1, 3):
        asyncio.run(main(steps))
        check_idle(cache)
    assert cache._refresher.failures == 0


def test_a_task_that_was_cancelled_before_it_ran(cache: Cache[Any, Any], clock: Clock) -> None:
    async def main() -> None:
        assert await cache.get_or_load("k", str_of, refresh_ahead=0.5) == "old"
        (task,) = cache._refresher._tasks
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert cache["k"] == "old"
        check_idle(cache)

    old(cache)
    clock.now = 9
    asyncio.run(main())


def test_a_loop_that_was_closed_before_its_task_ran(cache: Cache[Any, Any], clock: Clock) -> None:
    async def stopped() -> None:
        assert await cache.get_or_load("k", str_of, refresh_ahead=0.5) == "old"
        asyncio.get_running_loop().stop()

    old(cache)
    clock.now = 9
    loop = asyncio.new_event_loop()
    begun = loop.create_task(stopped())
    loop.run_forever()
    (task,) = cache._refresher._tasks
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    task.get_coro().close()  # type: ignore[union-attr]
    loop.close()
    assert begun.done()
    assert len(cache._refresher._wanted) == 1

    async def main() -> None:
        for _ in range(2):
            await cache.get_or_load("k", str_of, refresh_ahead=0.5)
        while cache["k"] == "old":
            await asyncio.sleep(0)

    asyncio.run(main())


async def str_of(key: object) -> str:
    return str(key)


def test_a_failing_task_is_told_of(cache: Cache[Any, Any], clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    async def failing(key: str) -> str:
        raise Oops

    async def main() -> None:
        assert await cache.get_or_load("k", failing, refresh_ahead=0.5) == "old"
        while not cache._refresher.failures:
            await asyncio.sleep(0)

    old(cache)
    clock.now = 9
    asyncio.run(main())
    assert "refreshing" in caplog.text
    assert cache["k"] == "old"


# ---- a child process ----


def test_a_child_refreshes_too(run_python: Callable[..., Any]) -> None:
    """Also what its parent was refreshing as it was made."""
    done = run_python(
        """
        import os, threading, time
        from mempool.cache import Cache
        now = 0.0
        cache = Cache(10, ttl=10, clock=lambda: now)
        entered, go = threading.Event(), threading.Event()

        def loader(key):
            entered.set()
            go.wait()
            return "parent's"

        for key in range(6):
            cache[key] = "old"
        now = 9.0
        for key in range(6):
            cache.get_or_load(key, loader, refresh_ahead=0.5)
        entered.wait()
        child = os.fork()
        if not child:
            for key in range(6):
                cache.get_or_load(key, lambda key: "child's", refresh_ahead=0.5)
            while set(cache.values()) != {"child's"}:
                time.sleep(0.001)
            print("refreshed", flush=True)
            os._exit(0)
        go.set()
        print(os.waitpid(child, 0)[1])
        """,
        options=["-W", "ignore"],
    )
    assert done.stdout.split("\n") == ["refreshed", "0", ""]
