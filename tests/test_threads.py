"""Many threads on one pool: memory is never lent twice, and the books are right in the end."""

import queue
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mempool import Account, Buffer, BufferPool, PoolExhausted
from support import DEADLINE, KIB, MIB, check_identities, may_raise, together, until

SIZES = [64, 100, 1000, 4096, 5000, 20_000, 70_000]


def mark(buffer: Buffer, tag: int) -> None:
    buffer.array()[:] = tag


def is_marked(buffer: Buffer, tag: int) -> bool:
    seen = buffer.array()
    return bool((seen == tag).all())


def settled(pool: BufferPool) -> None:
    stats = pool.stats()
    check_identities(stats)
    assert (stats.live, stats.retired, stats.in_use, stats.requested) == (0, 0, 0, 0)
    pool.trim()
    assert pool.stats().reserved == pool.account.used == 0


@pytest.mark.parametrize("arguments", [{}, {"max_idle": "64KiB"}, {"limit": "1MiB"}, {"idle_timeout": 0}])
def test_memory_is_never_lent_twice(arguments: dict[str, Any]) -> None:
    pool = BufferPool(**arguments)

    def work(number: int) -> None:
        dice, held = random.Random(number), list[tuple[Buffer, int]]()
        for round_ in range(1500):
            tag = (number * 37 + round_) % 256
            try:
                held.append((pool.acquire(dice.choice(SIZES)), tag))
            except PoolExhausted:
                pass
            else:
                mark(*held[-1])
            while held and (len(held) > 6 or dice.random() < 0.5):
                buffer, tag = held.pop(dice.randrange(len(held)))
                assert is_marked(buffer, tag)
                buffer.release()
        for buffer, tag in held:
            assert is_marked(buffer, tag)
            buffer.release()

    together([lambda number=number: work(number) for number in range(6)])  # type: ignore[misc]
    settled(pool)


def test_one_thread_acquires_another_releases() -> None:
    pool = BufferPool()
    pipe: queue.Queue[tuple[Buffer, memoryview | None, int] | None] = queue.Queue(50)

    def produce() -> None:
        dice = random.Random(1)
        for number in range(3000):
            buffer = pool.acquire(dice.choice(SIZES))
            mark(buffer, number % 256)
            pipe.put((buffer, buffer[:] if number % 3 == 0 else None, number % 256), timeout=DEADLINE)
        for _ in range(3):
            pipe.put(None, timeout=DEADLINE)

    def consume() -> None:
        while (item := pipe.get(timeout=DEADLINE)) is not None:
            buffer, view, tag = item
            assert is_marked(buffer, tag)
            buffer.release()
            assert view is None or set(view) == {tag}
            del buffer, view, item

    together([produce, consume, consume, consume])
    settled(pool)
    assert pool.stats().acquires == pool.stats().releases == 3000


def test_a_retired_block_is_not_lent_while_a_view_lives() -> None:
    pool = BufferPool("1MiB")

    def work(number: int) -> None:
        for round_ in range(1000):
            tag = (number * 50 + round_) % 256
            try:
                buffer = pool.acquire(20_000)
            except PoolExhausted:
                continue
            view = buffer.array()
            view[:] = tag
            buffer.release()
            assert (view == tag).all()

    together([lambda number=number: work(number) for number in range(5)])  # type: ignore[misc]
    settled(pool)


Use = Callable[[Buffer], object]


@pytest.mark.parametrize("nbytes", [64, 100_000])
def test_one_buffer_released_by_many(nbytes: int) -> None:
    pool = BufferPool()
    for _ in range(200):
        buffer = pool.acquire(nbytes)
        together([buffer.release] * 4)
        assert buffer.released
    assert pool.stats().releases == 200
    settled(pool)


USES: list[Use] = [
    memoryview,
    np.frombuffer,
    Buffer.array,
    Buffer.readonly,
    Buffer.tobytes,
    bytes,
    lambda b: b[5:10],
    lambda b: b[7],
]


def look(buffer: Buffer, use: Use) -> object:
    with may_raise(ValueError, "released"):
        return use(buffer)
    return None


def look_and_release(buffer: Buffer, use: Use) -> list[object]:
    return together([lambda: look(buffer, use), buffer.release, lambda: look(buffer, use)])


@pytest.mark.parametrize("use", USES)
def test_export_and_release_at_once(use: Use) -> None:
    pool = BufferPool()
    for number in range(150):
        buffer = pool.acquire(1000)
        mark(buffer, number % 256)
        views = look_and_release(buffer, use)
        with pool.acquire(1000) as other:
            mark(other, 255 - number % 256)
            seen = {byte for view in views if isinstance(view, (memoryview, np.ndarray)) for byte in bytes(view)}
        assert seen <= {number % 256}
        del views
    settled(pool)


def resize(buffer: Buffer) -> None:
    for nbytes in (1000, 10, 1024):
        with may_raise(BufferError, "view"):
            buffer.resize(nbytes)


def resize_and_export(buffer: Buffer) -> list[Any]:
    return together([lambda: resize(buffer), lambda: memoryview(buffer), lambda: buffer.array()])


def test_resize_and_export_at_once() -> None:
    pool = BufferPool()
    for _ in range(150):
        buffer = pool.acquire(1000)
        views = resize_and_export(buffer)
        assert {len(view) for view in views if view is not None} <= {1000, 10, 1024}
        assert pool.stats().requested == len(buffer)
        del views
        buffer.release()
    settled(pool)


class Disturbances:
    """What others may do to a pool while leases come and go. Each is called again and again, with a number."""

    def __init__(self) -> None:
        self.account = Account("all", limit="6MiB")
        self.pool = BufferPool("4MiB", max_idle="2MiB", account=self.account, leak_detection="off")

    def trim(self, number: int) -> None:
        self.pool.trim(64 * KIB * (number % 2))

    def change_limit(self, number: int) -> None:
        with may_raise(ValueError, "lent"):
            self.pool.limit = (1 + number % 4) * MIB

    def change_account_limit(self, number: int) -> None:
        with may_raise(ValueError, "holds"):
            self.account.limit = (5 + number % 2) * MIB

    def reserve(self, number: int) -> None:
        with may_raise(PoolExhausted, "limit"):
            self.pool.reserve(SIZES[number % len(SIZES)], 4)

    def look(self, number: int) -> None:
        check_identities(self.pool.stats())

    def switch_leak_detection(self, number: int) -> None:
        self.pool.leak_detection = ("off", "sampled", "full")[number % 3]


def lease_and_check(pool: BufferPool, seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(1500):
        with pool.acquire(dice.choice(SIZES), timeout=None) as buffer:
            tag = dice.randrange(256)
            mark(buffer, tag)
            assert is_marked(buffer, tag)


def test_everything_at_once() -> None:
    others = Disturbances()
    ended = threading.Event()

    def disturb(call: Callable[[int], None]) -> None:
        number = 0
        while not ended.is_set():
            call(number)
            number += 1

    def all_leases() -> None:
        try:
            together([lambda seed=seed: lease_and_check(others.pool, seed) for seed in range(4)])  # type: ignore[misc]
        finally:
            ended.set()

    calls = [others.trim, others.change_limit, others.change_account_limit, others.reserve, others.look]
    calls.append(others.switch_leak_detection)
    together([all_leases, *(lambda call=call: disturb(call) for call in calls)])  # type: ignore[misc]
    settled(others.pool)
    assert others.account.used == 0


def lease_until_closed(pool: BufferPool) -> None:
    with may_raise(ValueError, "closed"):
        for number in range(100_000):
            pool.acquire(SIZES[number % len(SIZES)]).release()


def close_when_busy(pool: BufferPool) -> None:
    until(lambda: pool.stats().acquires >= 200, "use of the pool")
    pool.close()


def test_close_while_threads_acquire() -> None:
    for _ in range(20):
        pool = BufferPool(leak_detection="off")
        work = [lease_until_closed, lease_until_closed, close_when_busy]
        together([lambda call=call, pool=pool: call(pool) for call in work])  # type: ignore[misc]
        stats = pool.stats()
        check_identities(stats)
        assert stats.reserved == pool.account.used == 0


def test_pools_made_and_collected_by_many_threads() -> None:
    account = Account("many")

    def work() -> None:
        views = []
        for number in range(300):
            pool = BufferPool("1MiB", account=account, leak_detection="off")
            views.append(pool.acquire(SIZES[number % len(SIZES)])[:1])
            del pool
            if number % 10 == 0:
                views.clear()

    together([work] * 4)
    assert account.used == 0


def test_a_default_pool_is_made_once() -> None:
    from mempool import default_pool

    assert len({id(pool) for pool in together([default_pool] * 8)}) == 1


def test_threads_that_come_and_go_leave_nothing_behind() -> None:
    pool = BufferPool()
    for _ in range(50):
        together([lambda: pool.acquire(5000).release()] * 4)
    assert pool.stats().reserved <= 4 * 8192
    settled(pool)
