"""One load of a key at a time: whoever comes first loads, the others wait for its outcome.

    found ------------------------------------------------------------------> value
    missing -> nobody loads it  -> lead: look again, loader(key), keep -----> value, exception
            -> somebody loads it -> wait; (circle: lead a load of one's own) -> value, the same exception, or begin again

`Loads.active` maps each load to itself: a load compares as its key (and version), so the first `setdefault` decides who leads.
A load that is over, or whose key was invalidated, is equal to nothing but itself: that one store takes it out of everybody's
sight, and it is removed from the dict without a call of foreign code.

What is invalidated or written during a load is not overwritten by it: the cache tells `forget` first and changes its table
then, and the table looks at the load's claim in the same step in which it would insert.
"""

import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable
from functools import partial
from time import perf_counter
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Protocol, cast

from mempool.cache._policies import MISSING, Claim, Ticket, end_load
from mempool.cache.arguments import as_lifetime, as_priority
from mempool.cache.tags import as_tags
from mempool.cache.waiting import (
    RETRY,
    Outcome,
    Scope,
    inside,
    is_lost,
    running_loop,
    sleep_in_task,
    sleep_in_thread,
)

__all__ = ["NO_OPTIONS", "Keeper", "Load", "Loader", "Loads", "Maker", "Options", "is_async"]

Loader = Callable[[Any], Any]
Maker = Callable[[], Any]


class Options:
    """How what is loaded will be kept. What makes no sense is refused here, before anything is loaded."""

    __slots__ = ("priority", "tags", "ttl", "version")

    def __init__(
        self,
        ttl: Any = None,
        priority: int = 0,
        tags: Iterable[Hashable] = (),
        version: Any = None,
    ) -> None:
        self.ttl = None if ttl is None else as_lifetime(ttl)
        self.priority = as_priority(priority)
        self.tags = as_tags(tags)
        self.version = version


class Keeper(Protocol):
    """What loads need of a cache."""

    def _look(self, key: Any, version: Any) -> Any:
        """Return the value or MISSING, as `_find` does, but count nothing."""

    def _keep(self, load: "Load", value: Any) -> bool:
        """Put what was loaded, if the load's claim lets it; whether it was.

        A value that the cache refuses ("too large", `CacheFull`) is counted, not raised.
        """

    def _age(self, key: Any) -> tuple[float, float] | None:
        """Return seconds since the entry was written, and its ttl."""


class Load(Ticket):
    """One load, and the ticket by which it is found."""

    __slots__ = ("began", "claim", "options", "scope")

    outcome: Outcome | None

    def __init__(self, key: Any, options: Options, *, refreshing: bool = False, loop: Any = None) -> None:
        super().__init__(key, options.version)
        self.options, self.claim = options, Claim(refreshing)
        self.scope = Scope(loop)
        self.began = 0.0  # of the loader, while it runs


NO_OPTIONS = Options()
_generation = 0


def _after_fork() -> None:
    global _generation
    _generation += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Loads:
    """The loads of one cache, which each call names: so cache and loads are no circle, and go together at once."""

    __slots__ = ("_generation", "active", "failed", "loaded", "seconds")

    def __init__(self) -> None:
        self.active: dict[Load, Load] = {}
        self.loaded = self.failed = 0
        self.seconds = 0.0
        self._generation = _generation

    # ---- loading ----

    def load(self, table: Keeper, key: Any, make: Maker, options: Options = NO_OPTIONS) -> Any:
        """Return the value of a key that was not found: made now, or from the load that goes on."""
        mine, found, outcome = Load(key, options), None, RETRY
        try:
            while outcome is RETRY:
                found = self.begin(mine)
                if found is mine:
                    return self.lead(table, mine, make)
                outcome = found.outcome or sleep_in_thread(found) or self._go_alone(mine)
            return outcome.result()
        finally:
            end_load(mine, self.active, RETRY)
            del mine, found, outcome  # an exception names this frame

    async def load_async(self, table: Keeper, key: Any, make: Maker, options: Options = NO_OPTIONS) -> Any:
        """Do as `load`, as a task, with what is awaited."""
        mine, found, outcome = Load(key, options, loop=running_loop()), None, RETRY
        try:
            while outcome is RETRY:
                found = self.begin(mine)
                if found is mine:
                    return await self.lead_async(table, mine, make)
                outcome = found.outcome or await sleep_in_task(found) or self._go_alone(mine)
            return outcome.result()
        finally:
            end_load(mine, self.active, RETRY)
            del mine, found, outcome

    def begin(self, mine: Load) -> Load:
        """Return the load of this key that goes on: this one, if there was none. `end_load` must follow, whatever happens."""
        self._mind_forks()
        while is_lost(found := self.active.setdefault(mine, mine)):
            found.claim.lapse()
            end_load(found, self.active, RETRY)
        return found

    def has(self, load: Load) -> bool:
        """Tell whether a load of this key goes on."""
        self._mind_forks()
        found = self.active.get(load)
        return found is not None and not is_lost(found)

    def lead(self, table: Keeper, mine: Load, make: Maker) -> Any:
        """Load and keep."""
        try:
            with inside(mine.scope):
                value = _seen(table, mine)
                if value is MISSING:
                    mine.began = perf_counter()
                    value = self._made(table, mine, _plain(make()))
            mine.outcome = Outcome(value)
            return value
        except Exception as error:
            self._failed(mine, error)
            raise
        finally:
            del mine

    async def lead_async(self, table: Keeper, mine: Load, make: Maker) -> Any:
        """Do as `lead`, with what is awaited."""
        try:
            with inside(mine.scope):
                value = _seen(table, mine)
                if value is MISSING:
                    mine.began = perf_counter()
                    value = self._made(table, mine, await make())
            mine.outcome = Outcome(value)
            return value
        except Exception as error:
            self._failed(mine, error)
            raise
        finally:
            del mine

    def _made(self, table: Keeper, mine: Load, value: Any) -> Any:
        """Keep and count what the loader made."""
        if mine.version is not None:
            self._overtake(mine)
        table._keep(mine, value)
        self._time(mine)
        self.loaded += 1
        return value

    def _overtake(self, mine: Load) -> None:
        """Have loads of this key that began earlier, for other versions, keep nothing: the version asked for last stays."""
        for load in list(self.active):  # in the order in which they began
            if load is mine or mine.claim.lapsed:
                return
            if (
                hash(load) == hash(mine)
                and load.version != mine.version
                and (load.key is mine.key or load.key == mine.key)
            ):
                load.claim.lapse()

    def _failed(self, mine: Load, error: Exception) -> None:
        """Tell who waits, and count: the loader raised, or the cache as it should have kept the value."""
        self._time(mine)
        self.failed += 1
        mine.outcome = Outcome(None, error)

    def _time(self, mine: Load) -> None:
        if mine.began:
            self.seconds += perf_counter() - mine.began
            mine.began = 0.0

    def _go_alone(self, mine: Load) -> Outcome:
        """Load beside the load that goes on, for to wait would never end."""
        mine.alone = True
        return RETRY

    def _mind_forks(self) -> None:
        """Leave the loads of a parent, whose threads are not here; what one of them may still bring is not kept."""
        if self._generation != _generation:
            self._generation = _generation
            self.forget_all()

    # ---- what became of keys meanwhile ----

    def _drop(self, load: Load) -> None:
        load.claim.lapse()
        load.gone = True
        self.active.pop(load, None)

    def forget(self, key: Any) -> None:
        """Have no load that goes on keep its value under this key. To be called before the table changes."""
        if not self.active:
            return
        probe = Ticket(key, None, True)
        while (load := self.active.get(cast(Load, probe))) is not None:
            self._drop(load)

    def forget_tag(self, tag: Hashable) -> None:
        """Do so for all loads whose entry will have this tag."""
        self._forget_where(lambda load: tag in load.options.tags)

    def forget_version(self, version: Any) -> None:
        """Do so for all loads of versions below this one."""
        self._forget_where(lambda load: load.options.version is not None and load.options.version < version)

    def forget_where(self, chosen: Callable[[Any], bool]) -> None:
        """Do so for all loads of keys that are chosen."""
        self._forget_where(lambda load: chosen(load.key))

    def forget_all(self) -> None:
        """Do so for all loads."""
        self._forget_where(lambda load: True)

    def _forget_where(self, chosen: Callable[[Load], bool]) -> None:
        for load in list(self.active):
            if chosen(load):
                self._drop(load)


def _seen(table: Keeper, mine: Load) -> Any:
    """Look once more: another load may have ended between the first look and the beginning of this one."""
    return MISSING if mine.claim.replaces else table._look(mine.key, mine.options.version)


def _plain(value: Any) -> Any:
    """Return what a plain loader made; an awaitable is refused: nobody would await it, and it can be awaited once only."""
    if not isinstance(value, Awaitable):
        return value
    if isinstance(value, Coroutine):
        value.close()
    raise TypeError(f"a loader that is no coroutine function returned an awaitable: {type(value).__name__}")


# ---- which loaders are awaited ----

_COROUTINE = 0x80  # inspect.CO_COROUTINE; inspect itself is 14 ms of imports
_PLAIN = (BuiltinFunctionType, type)


def is_async(loader: Loader) -> bool:
    """Tell whether a loader is a coroutine function: such a function, method, partial, object, or what is marked as one."""
    kind = type(loader)
    if kind is MethodType:
        loader = loader.__func__  # type: ignore[attr-defined]
        kind = type(loader)
    if kind is FunctionType:
        return bool(loader.__code__.co_flags & _COROUTINE) or (bool(loader.__dict__) and _is_marked(loader))
    if isinstance(loader, _PLAIN):
        return False
    if isinstance(loader, partial):
        return is_async(loader.func)
    return _is_async_object(loader)


def _is_async_object(loader: Loader) -> bool:
    """Ask the object, each time: of two of one type, such as compiled functions and wrappers, one may be marked."""
    if not callable(loader):
        raise TypeError(f"a loader must be callable, not {loader!r}")
    call = type(loader).__call__
    return (isinstance(call, FunctionType) and is_async(call)) or _is_marked(loader)


def _is_marked(loader: Loader) -> bool:
    """Whether it says so itself: marked by inspect or asyncio, a mock, a compiled function."""
    import inspect

    asyncio = sys.modules.get("asyncio")
    mark = asyncio and getattr(asyncio.coroutines, "_is_coroutine", None)
    return inspect.iscoroutinefunction(loader) or (mark is not None and getattr(loader, "_is_coroutine", None) is mark)
