"""Sequences of requests to a cache: read from a file, or made up here from a seed.

A trace file is text, gzip or not, one request a line: ``key`` or ``key size``, the key any word, the size whole bytes.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

GZIP_MAGIC = b"\x1f\x8b"
# The sizes at which caches are compared, in percent of the keys that a trace has.
PERCENTS = (1, 2, 5, 10, 20)


class Trace(NamedTuple):
    """What was asked for, in order.

    Parameters
    ----------
    name
        What tables and plots call it.
    keys
        One number a request. Keys of a file are numbered as they first appear: the hash of a word changes from one
        process to the next, and with it what a cache does that looks at hashes.
    sizes
        Bytes of what each request asks for; None where the trace has none.
    """

    name: str
    keys: list[int]
    sizes: list[int] | None = None

    def requests(self) -> Iterator[tuple[int, int]]:
        """Each request's key and size, 1 where there are no sizes."""
        return zip(self.keys, repeat(1) if self.sizes is None else self.sizes, strict=False)

    def unique(self) -> int:
        """How many keys there are."""
        return len(set(self.keys))

    def unique_bytes(self) -> int:
        """Bytes of all keys, each as large as it was when first asked for."""
        first: dict[int, int] = {}
        for key, size in self.requests():
            first.setdefault(key, size)
        return sum(first.values())

    def bound(self, percent: float, *, by_bytes: bool = False) -> int:
        """The size of a cache that holds so many percent of the keys, or of their bytes; at least 1."""
        whole = self.unique_bytes() if by_bytes else self.unique()
        return max(1, round(whole * percent / 100))


def read(path: Path) -> Trace:
    """Read a trace file, gzip or plain, whatever its name.

    Raises
    ------
    ValueError
        If a line has more than two words, or a size that is no number of bytes, or if the file has no requests.
    """
    with path.open("rb") as file:
        packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        words, sizes = parse(gzip.GzipFile(fileobj=file) if packed else file, path)
    if not words:
        raise ValueError(f"{path} has no requests")
    numbers: dict[bytes, int] = {}
    keys = [numbers.setdefault(word, len(numbers)) for word in words]
    name = path.name.removesuffix(".gz").removesuffix(".txt")
    return Trace(name, keys, None if set(sizes) == {1} else sizes)


def parse(lines: gzip.GzipFile | BinaryIO, path: Path) -> tuple[list[bytes], list[int]]:
    """Split the lines into keys and sizes; empty lines are none."""
    words, sizes = [], []
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) > 2 or not (len(parts) == 1 or parts[1].isdigit()):
            raise ValueError(f"{path}, line {number}: a request is 'key' or 'key size', got {line!r}")
        words.append(parts[0])
        sizes.append(int(parts[1]) if len(parts) == 2 else 1)
    return words, sizes


# ---- made here ----


def popular(exponent: float, keys: int, requests: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw requests to keys whose popularity is that of their rank to the power of ``-exponent``; ranks are shuffled."""
    random = np.random.default_rng(seed)
    shares = np.cumsum(np.arange(1, keys + 1, dtype=float) ** -exponent)
    ranks = np.searchsorted(shares, random.random(requests) * shares[-1])
    drawn: npt.NDArray[np.int64] = random.permutation(keys)[ranks]
    return drawn


def zipf(exponent: float, *, keys: int = 100_000, requests: int = 100_000, seed: int = 1) -> Trace:
    """Requests that know no time: each key keeps its popularity."""
    return Trace(f"Zipf {exponent:g}", popular(exponent, keys, requests, seed).tolist())


def scans(
    *, keys: int = 25_000, requests: int = 100_000, scan: int = 4_000, share: float = 0.4, seed: int = 2
) -> Trace:
    """Zipf 0.9, interrupted by scans that ask for `scan` keys, each once and never again.

    Parameters
    ----------
    keys
        How many keys the Zipf part has.
    scan
        Requests of one scan.
    share
        The part of all requests that belongs to scans.
    """
    count = round(requests * share / scan)
    usual = popular(0.9, keys, requests - count * scan, seed)
    parts: list[npt.NDArray[np.int64]] = []
    for number, part in enumerate(np.array_split(usual, count)):
        begin = keys + number * scan
        parts += [part, np.arange(begin, begin + scan)]
    return Trace("Zipf 0.9 with scans", np.concatenate(parts).tolist())


def moving(*, keys: int = 25_000, requests: int = 100_000, moves: int = 10, seed: int = 3) -> Trace:
    """Zipf 1 in which, now and then, all keys change places: what was popular is so no more."""
    parts = [popular(1.0, keys, requests // moves, seed + number) for number in range(moves)]
    return Trace("Zipf 1, moving on", np.concatenate(parts).tolist())


def loop(*, keys: int = 10_000, requests: int = 100_000) -> Trace:
    """All keys in turn, again and again."""
    return Trace("loop", (np.arange(requests) % keys).tolist())


def synthetic(scale: float = 1.0) -> list[Trace]:
    """The traces that need no file; with `scale` below 1 smaller in keys and requests alike."""

    def of(number: int) -> int:
        return round(number * scale)

    made: list[Callable[[], Trace]] = [
        lambda: zipf(0.8, keys=of(100_000), requests=of(100_000)),
        lambda: zipf(1.1, keys=of(100_000), requests=of(100_000)),
        lambda: scans(keys=of(25_000), requests=of(100_000), scan=of(4_000)),
        lambda: moving(keys=of(25_000), requests=of(100_000)),
        lambda: loop(keys=of(10_000), requests=of(100_000)),
    ]
    return [make() for make in made]
