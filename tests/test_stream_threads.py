"""Several threads on one stream: each call as a whole, and nothing breaks."""

import random
from typing import Any

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
    assert sorted(sum(parts, [])) == [i.to_bytes(4, "big") for i in range(40_000)]


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


def test_whatever_they_do_nothing_breaks() -> None:
    pool = mempool.BufferPool()
    stream = BytesStream(bytes(200 * KIB), pool=pool)

    def play(seed: int) -> None:
        dice = random.Random(seed)
        held: list[tuple[Any, bytes]] = []
        for _ in range(1500):
            kind = dice.randrange(12)
            with may_raise((BufferError, ValueError)):
                if kind < 3:
                    stream.write(bytes([seed]) * dice.choice([1, 100, 5000]))
                elif kind == 3:
                    stream.seek(dice.randrange(300 * KIB))
                elif kind == 4:
                    stream.truncate(dice.randrange(300 * KIB))
                elif kind == 5:
                    views = stream.buffers()
                    held.append((views, b"".join(views)))
                elif kind == 6:
                    stream.getbuffer().release()
                elif kind == 7:
                    stream.readline()
                elif kind == 8:
                    stream.read(dice.randrange(100 * KIB))
                elif kind == 9 and dice.random() < 0.05:
                    stream.__init__(bytes(1000), pool=pool)  # type: ignore[misc]
                elif kind == 10:
                    stream.readinto(bytearray(dice.randrange(50 * KIB)))
                else:
                    held[:1] = []
            for views, content in held:
                assert b"".join(views) == content

    together([lambda seed=seed: play(seed) for seed in range(1, 4)])  # type: ignore[misc]
    stream.close()
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
