"""What the tests of pools and accounts share: threads that start together, polls with a deadline, books that must not change."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mempool import Account, BufferPool, PoolStats, RingBuffer

KIB = 1 << 10
MIB = 1 << 20
DEADLINE = 120.0  # a machine may be busy with other things


def until(condition: Callable[[], object], what: str = "it") -> None:
    """Poll for what no event tells; gives up after `DEADLINE`."""
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what} never happened")
        time.sleep(0.0005)


class Strange:
    """An object that is of no use anywhere, with a name that is the same in each process: test ids are made of it."""

    def __repr__(self) -> str:
        return "Strange()"


class Thread(threading.Thread):
    """A thread whose result, or exception, `result()` hands over."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self._function, self._args = function, args
        self._value: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._value = self._function(*self._args)
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(DEADLINE)
        if self.is_alive():
            raise AssertionError("a thread never ended")
        if self._error is not None:
            raise self._error
        return self._value


def start(function: Callable[..., Any], *args: Any) -> Thread:
    thread = Thread(function, *args)
    thread.start()
    return thread


def together(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run each in a thread of its own, all from one barrier; what they returned."""
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], Any]) -> Any:
        barrier.wait(DEADLINE)
        return function()

    threads = [start(run, function) for function in functions]
    return [thread.result() for thread in threads]


def start_waiter(pool: BufferPool, function: Callable[..., Any], *args: Any) -> Thread:
    """Start a thread that will wait for memory of the pool, and return once it does."""
    before = pool.stats().waits
    thread = start(function, *args)
    until(lambda: pool.stats().waits > before, "a wait")
    return thread


@contextmanager
def may_raise(kind: type[Exception] | tuple[type[Exception], ...], *words: str) -> Iterator[None]:
    """What is refused is refused in these words."""
    try:
        yield
    except kind as error:
        if not all(word in str(error) for word in words):
            raise


def chain(*limits: int | None) -> list[Account]:
    """Accounts, each below the one before."""
    accounts = [Account("0", limit=limits[0])]
    for number, limit in enumerate(limits[1:], 1):
        accounts.append(Account(str(number), limit=limit, parent=accounts[-1]))
    return accounts


def used(accounts: Sequence[Account]) -> list[int]:
    return [account.used for account in accounts]


def figures(stats: PoolStats) -> dict[str, object]:
    return {name: getattr(stats, name) for name in stats.__slots__}


def books(pool: BufferPool, *accounts: Account) -> dict[str, object]:
    """All that a failed call must leave as it was; failures and waits themselves are counted."""
    kept = {name: value for name, value in figures(pool.stats()).items() if name not in {"exhausted", "waits"}}
    kept["size_classes"] = [row for row in pool.stats().size_classes if row.acquires or row.idle]
    for account in (pool.account, *accounts):
        kept[account.name] = (account.used, account.peak, account.limit, account.children)
    return kept | {"closed": pool.closed, "leaks": pool.leak_detection}


@contextmanager
def nothing_changes(pool: BufferPool, *accounts: Account) -> Iterator[None]:
    before = books(pool, *accounts)
    yield
    after = books(pool, *accounts)
    changed = {name: (value, after[name]) for name, value in before.items() if value != after[name]}
    assert not changed, changed


def check_identities(stats: PoolStats) -> None:
    """What holds in every state and at every moment."""
    assert stats.reserved == stats.in_use + stats.retired + stats.idle
    assert stats.acquires == stats.live + stats.releases + stats.dropped + stats.handed_over
    assert stats.acquires == stats.hits + stats.misses
    assert stats.requested <= stats.in_use
    assert stats.reserved <= stats.peak
    assert stats.limit is None or stats.reserved <= stats.limit
    rows = stats.size_classes
    assert [row.size for row in rows] == sorted(row.size for row in rows)
    assert sum(row.live for row in rows) == stats.live
    assert sum(row.acquires for row in rows) == stats.acquires
    assert sum(row.live * row.size for row in rows) == stats.in_use
    assert sum(row.idle * row.size for row in rows) == stats.idle
    assert 0.0 <= stats.hit_rate <= 1.0
    assert 0.0 <= stats.fragmentation <= 1.0


def copying_ring(capacity: Any, **options: Any) -> RingBuffer:
    """A ring as it is where the OS cannot map pages twice: for want of a descriptor."""
    try:
        import resource
    except ImportError:  # Windows, where every ring is so
        return RingBuffer(capacity, **options)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        return RingBuffer(capacity, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def with_ctrl_c(work: Callable[[], object], step: int, *where: str) -> bool:
    """Do the work with one Ctrl-C where Python lets one come in files of these names or folders: as a function begins or a call of
    C ends, the one after `step` others. Whether it came."""
    left = step

    def profile(frame: Any, event: str, _: object) -> None:
        nonlocal left
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(where):
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return left < 0
