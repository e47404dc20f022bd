"""Several threads on one stream: each call as a whole, and nothing breaks."""

import gc
import random
from collections.abc import Callable
from itertools import chain

import mempool
from mempool.io import BytesStream
from tests.support import KIB, MIB, may_raise, together

RECORD = 64


def test_appends_of_several_threads_are_whole() -> None:
    stream = BytesStream(pool=mempool.BufferPool())

    def append(mark: int) -> None:
        for _ in range(3000):
            assert stream.write(bytes([mark]) * RECORD) == RECORD

    together([lambda mark=mark: append(mark) for mark in range(1, 5)])  # type: ignore[misc]
    content = stream.getvalue()
    assert len(content) == 4 * 3000 * RECORD
    for start in range(0, len(content), RECORD):
        assert len(set(content[start : start + RECORD])) == 1


def test_each_byte_is_read_once() -> None:
    stream = BytesStream(b"".join(i.to_bytes(4, "big") for i in range(40_000)))

    def read() -> list[bytes]:
        return list(iter(lambda: stream.read(4), b""))

    parts = together([read] * 4)
    assert sorted(chain.from_iterable(parts)) == [i.to_bytes(4, "big") for i in range(40_000)]


def test_copies_without_the_gil_see_one_moment() -> None:
    """A long copy, while others overwrite, cut off and append: each copy is of one state, all of one byte."""
    size = 3 * MIB
    stream = BytesStream(bytes(size), pool=mempool.BufferPool())

    def change() -> None:
        for mark in range(1, 25):
            stream.__setstate__((bytes([mark]) * size, 0, None))

    def look() -> None:
        for _ in range(25):
            content = stream.getvalue()
            assert content.count(content[:1]) == len(content)

    together([change, look, look])


class Player:
    """Calls drawn by lot, and snapshots that must stay what they were."""

    def __init__(self, stream: BytesStream, seed: int) -> None:
        self.stream, self.mark, self.dice = stream, bytes([seed]), random.Random(seed)
        self.held: list[tuple[list[memoryview], bytes]] = []

    def size(self) -> int:
        return self.dice.randrange(300 * KIB)

    def snapshot(self) -> None:
        views = self.stream.buffers()
        self.held = [*self.held[-3:], (views, b"".join(views))]

    def again(self) -> None:
        if self.dice.random() < 0.05:
            self.stream.__init__(bytes(1000), pool=self.stream.pool)  # type: ignore[misc]

    def calls(self) -> list[Callable[[], object]]:
        stream = self.stream
        return [
            *[lambda: stream.write(self.mark * self.dice.choice([1, 100, 5000]))] * 3,
            lambda: stream.seek(self.size()),
            lambda: stream.truncate(self.size()),
            lambda: stream.getbuffer().release(),
            lambda: stream.readinto(bytearray(self.size() // 6)),
            lambda: stream.read(self.size() // 3),
            stream.readline,
            self.snapshot,
            self.again,
            self.held.clear,
        ]

    def play(self) -> None:
        for _ in range(1200):
            with may_raise((BufferError, ValueError)):
                self.dice.choice(self.calls())()
            for views, content in self.held:
                assert b"".join(views) == content


def test_whatever_they_do_nothing_breaks() -> None:
    pool = mempool.BufferPool()
    stream = BytesStream(bytes(200 * KIB), pool=pool)
    players = [Player(stream, seed) for seed in range(1, 4)]
    together([player.play for player in players])
    stream.close()
    del players
    gc.collect()  # what was raised may lie in cycles with frames that held a player
    assert pool.stats().in_use == pool.stats().retired == 0


def test_a_stream_is_closed_under_readers_and_writers() -> None:
    for _ in range(30):
        stream = BytesStream(bytes(2 * MIB), pool=mempool.BufferPool())

        def use(stream: BytesStream = stream) -> None:
            with may_raise(ValueError, "closed"):
                while True:
                    stream.seek(0)
                    stream.getvalue()
                    stream.write(bytes(100))

        together([use, use, stream.close])
