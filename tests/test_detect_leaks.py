"""A leak of 1 KiB a call is found and named each time, beside noise; where nothing leaks, nothing is reported."""

import ctypes
import functools
import gc
import random
import sys
import threading
import tracemalloc
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mempool
from mempool._system import heap
from mempool.accounting import Account, LeakReport, detect_leaks
from support import KIB, MIB, Strange, start

RUNS = 20
HERE = __file__


class Node:
    """A cycle of one object."""

    def __init__(self, nbytes: int) -> None:
        self.me, self.load = self, bytearray(nbytes)


class Noise:
    """What programs do that is no leak: garbage, cycles, leases that come and go, a cache that fills, a dict that is cleared."""

    def __init__(self, seed: int, pool: mempool.BufferPool) -> None:
        self.random, self.pool = random.Random(seed), pool
        self.slots: list[Any] = [None] * 20
        self.cache: dict[int, bytearray] = {}
        self.table: dict[int, int] = {}
        self.leases: list[mempool.Buffer] = []

    def __call__(self) -> None:
        draw = self.random.randrange
        [bytearray(draw(4000)) for _ in range(draw(8))]
        Node(draw(20_000))
        self.slots[draw(20)] = [bytearray(draw(400)) for _ in range(draw(10))]
        if len(self.cache) < 40:
            self.cache[len(self.cache)] = bytearray(2000)
        self.table[len(self.table)] = draw(1 << 40)
        if len(self.table) > draw(300):
            self.table.clear()
        self.pool.acquire(draw(100_000)).release()
        self.leases.append(self.pool.acquire(draw(3000)))
        if len(self.leases) > draw(40):
            self.leases.clear()


def planted(kind: str, kept: list[Any], pool: mempool.BufferPool) -> tuple[Callable[[], object], int]:
    """A function that leaks 1 KiB, and the line that does so."""
    if kind == "heap":
        return lambda: kept.append(bytearray(KIB)), sys._getframe().f_lineno
    if kind == "pool":
        return lambda: kept.append(pool.acquire(KIB)), sys._getframe().f_lineno
    return lambda: kept.append(mempool.anonymous_array(KIB, "u1")), sys._getframe().f_lineno


ACCOUNTS = {"heap": None, "pool": "root > leaking", "mapping": "root > anonymous arrays"}


@pytest.mark.parametrize("kind", ACCOUNTS)
def test_a_planted_leak_is_found_and_named_each_time(kind: str) -> None:
    for run in range(RUNS):
        kept: list[Any] = []
        pool = mempool.BufferPool(name="leaking")
        leak, line = planted(kind, kept, pool)
        noise = Noise(run, mempool.BufferPool(name="noise"))
        report = detect_leaks(lambda: (noise(), leak()), iterations=48)  # noqa: B023
        where = {culprit.where for culprit in report.culprits}
        assert report.leaked, (run, str(report))
        assert f"{HERE}:{line}" in where, (run, str(report))
        assert ACCOUNTS[kind] is None or ACCOUNTS[kind] in where, (run, str(report))
        assert 0.9 * KIB < report.bytes_per_call < 8 * KIB, (run, str(report))


@pytest.mark.parametrize("half", range(2))
def test_nothing_is_found_where_nothing_leaks(half: int) -> None:
    for run in range(half * RUNS // 2, (half + 1) * RUNS // 2):
        noise = Noise(run, mempool.BufferPool(name="noise"))
        report = detect_leaks(noise, iterations=48)
        assert (report.leaked, report.bytes_per_call, report.culprits) == (False, 0.0, ()), (run, str(report))
