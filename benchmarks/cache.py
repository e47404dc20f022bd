"""What a cache costs: time of gets and puts, memory of a million small entries, bytes, loads, weak values.

The loop that must not be slow is get, and put what was missing, over Zipf 1.1 with 100 000 keys and caches of a
hundredth, a tenth and all of them. ``lru-dict`` is an LRU in C that counts entries and knows no sizes and no
deadlines; cachetools is pure Python, and leaves locking to its users.
"""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped,unused-ignore]

from benchmarks import traces
from benchmarks.environment import version_of
from benchmarks.harness import MIB, Plan, Report, Row, Samples, Side, Spread, compare, peer, progress, row
from benchmarks.worker import apart
from mempool.cache import Cache, WeakCache

NAME = "cache"
KEYS = 100_000
REQUESTS = 100_000
SIZES = (1_000, 10_000, 100_000)
# The size at which targets are asked: a tenth of the keys.
TENTH = 10_000
MILLION, QUICK_COUNT = 1_000_000, 200_000
LRU_DICT, CACHETOOLS, THEINE, DICT = "lru-dict", "cachetools.LRUCache", "theine", "dict"
MODULES = {LRU_DICT: "lru", CACHETOOLS: "cachetools", THEINE: "theine"}
ASKED = ("lru", "s3fifo")
OWN = {"lru": "lru", "s3fifo": "s3fifo", "default": None}

GET_OR_PUT = """\
for key in keys:
    if cache.get(key) is None:
        cache[key] = key
"""
THEINE_GET_OR_PUT = """\
for key in keys:
    if not cache.get(key)[1]:
        cache.set(key, key)
"""
HIT = """\
for key in keys:
    cache[key]
"""
PUT_NEW = """\
first = next(firsts)
for key in range(first, first + count):
    cache[key] = key
"""
PUT_PAIRS = """\
for key, value in pairs:
    cache[key] = value
"""


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "Caches")
    get_or_put(plan, report)
    hits_and_puts(plan, report)
    memory(plan, report, QUICK_COUNT if plan.quick else MILLION)
    bounded_by_bytes(plan, report)
    loads(plan, report)
    weak(plan, report)
    versions = ", ".join(f"{name} {version_of(name)}" for name in ("lru-dict", "cachetools", "theine"))
    report.notes.append(f"Caches: {versions}. Memory is that of the container: keys and values are there before.")
    return report


def rivals(size: int) -> dict[str, Any]:
    """A cache of each rival that is installed."""
    makers: dict[str, Callable[[Any], Any]] = {
        LRU_DICT: lambda module: module.LRU(size),
        CACHETOOLS: lambda module: module.LRUCache(size),
        THEINE: lambda module: module.Cache(size),
    }
    modules = {name: peer(module) for name, module in MODULES.items()}
    return {name: makers[name](module) for name, module in modules.items() if module is not None}


def own_caches(size: int) -> dict[str, Any]:
    """A cache of each of mempool's policies that are measured."""
    return {name: Cache(size, policy=policy) for name, policy in OWN.items()}


def timed(plan: Plan, label: str, loops: Mapping[str, tuple[str, Mapping[str, Any]]], count: int) -> Samples:
    """Time loops over the same `count` keys against each other.

    Returns
    -------
    Samples
        Seconds and faults of one key.
    """
    sides = [Side(name, code, given) for name, (code, given) in loops.items()]
    samples = compare(sides, rounds=plan.rounds(9), number=1, warmup=1, budget=2.0, label=f"{NAME} {label}")
    for values in [*samples.seconds.values(), *samples.faults.values()]:
        values[:] = [value / count for value in values]
    return samples


def against(samples: Samples, figure: str, own: str, *, asked: bool = False) -> list[Row]:
    """Make the rows of one of our policies against each rival, with targets if they are asked."""
    if not asked:
        return [compared(samples, figure, rival, own) for rival in (LRU_DICT, CACHETOOLS)]
    first = compared(samples, figure, LRU_DICT, own, sense="cost", must=1.2, aim=1.0)
    return [first, compared(samples, figure, CACHETOOLS, own, must=4.0)]


def compared(samples: Samples, figure: str, rival: str, own: str, **targets: Any) -> Row:
    """Make one row; one that says so where the rival is not installed."""
    if rival not in samples.seconds:
        return Row(figure, rival, must=targets.get("must"), note=f"{rival.partition('.')[0]} is not installed")
    return row(samples, figure, rival, own, **targets)


# ---- time ----


def get_or_put(plan: Plan, report: Report) -> None:
    """The loop of a cache, at several sizes; targets at one of them."""
    keys = traces.zipf(1.1, keys=KEYS, requests=REQUESTS).keys
    for size in SIZES:
        caches = own_caches(size) | rivals(size)
        codes = {name: THEINE_GET_OR_PUT if name == THEINE else GET_OR_PUT for name in caches}
        loops = {name: (codes[name], {"cache": cache, "keys": keys}) for name, cache in caches.items()}
        samples = timed(plan, f"of {size:,}", loops, len(keys))
        for policy in OWN:
            figure = f"get or put, Zipf 1.1, cache of {size:,} of {KEYS:,} keys: {policy}"
            report.rows += against(samples, figure, policy, asked=size == TENTH and policy in ASKED)
        if THEINE in samples.seconds:
            figure = f"get or put, Zipf 1.1, cache of {size:,} of {KEYS:,} keys: default"
            report.rows.append(compared(samples, figure, THEINE, "default"))
        for name in loops:
            report.point("get or put, Zipf 1.1", name, size, samples.typical(name))


def hits_and_puts(plan: Plan, report: Report) -> None:
    """Gets of what is there, in random order; puts of new keys, each of which evicts."""
    random = np.random.default_rng(5)
    there = random.permutation(TENTH).tolist()
    caches = own_caches(TENTH) | rivals(TENTH)
    caches.pop(THEINE, None)
    plain = dict.fromkeys(there, 1)
    for cache in caches.values():
        for key in there:
            cache[key] = key
    hits = {name: (HIT, {"cache": cache, "keys": there}) for name, cache in {**caches, DICT: plain}.items()}
    samples = timed(plan, "hit", hits, len(there))
    for policy in OWN:
        figure = f"get what is there, {TENTH:,} keys: {policy}"
        report.rows += against(samples, figure, policy)
        report.rows.append(row(samples, figure, DICT, policy, plain=True))
    # Each side counts on from round to round: a key that came before may still be held by who is no LRU.
    puts = {
        name: (PUT_NEW, {"cache": cache, "firsts": itertools.count(MILLION, TENTH), "count": TENTH})
        for name, cache in caches.items()
    }
    samples = timed(plan, "put", puts, TENTH)
    for policy in OWN:
        report.rows += against(samples, f"put a new key, {TENTH:,} held: {policy}", policy)


# ---- memory ----


def container(kind: str, size: int) -> Any:
    """One empty container of a kind."""
    if kind == DICT:
        return {}
    return Cache(size, policy=OWN[kind]) if kind in OWN else rivals(size)[kind]


def grown(kind: str, count: int) -> float:
    """Fill a container with ints, and say by how many bytes this process grew. Runs in a process of its own.

    The ints are there before: what grows is the container alone.
    """
    numbers = list(range(10**9, 10**9 + count))
    fill(container(kind, 1000), numbers[:2000])
    process = psutil.Process()
    before = process.memory_full_info().uss
    held = container(kind, count)
    fill(held, numbers)
    after = process.memory_full_info().uss
    if len(held) != count or any(held[number] != number for number in numbers):
        raise ValueError(f"{kind} does not hold what was put: {len(held)} of {count} entries")
    return float(after - before)


def fill(held: Any, numbers: list[int]) -> None:
    """Put every number, under itself."""
    for number in numbers:
        held[number] = number


def memory(plan: Plan, report: Report, count: int) -> None:
    """Memory of small entries by USS, each container in fresh processes."""
    kinds = [DICT, *OWN, *(name for name in (LRU_DICT, CACHETOOLS) if peer(MODULES[name]) is not None)]
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(1 if plan.quick else 2):
        progress(f"{NAME} memory: round {turn + 1}")
        for kind, sizes in found.items():
            sizes.append(apart(grown, kind, count))
    for policy in OWN:
        figure = f"{count:,} ints to ints, memory: {policy}"
        report.rows.append(memory_row(figure, found, DICT, policy, must=2.0, aim=1.6))
        report.rows.append(memory_row(figure, found, CACHETOOLS, policy, must=0.5))
        report.rows.append(memory_row(figure, found, LRU_DICT, policy))
    for kind, sizes in found.items():
        report.point("memory of an entry", kind, 0, Spread.of(sizes).median / count)


def memory_row(
    figure: str,
    found: Mapping[str, list[float]],
    rival: str,
    own: str,
    must: float | None = None,
    aim: float | None = None,
) -> Row:
    """Make the row of our memory over the rival's."""
    if rival not in found:
        return Row(figure, rival, must=must, note=f"{rival.partition('.')[0]} is not installed")
    ratio = Spread.of([a / b for a, b in zip(found[own], found[rival], strict=True)])
    values = Spread.of(found[rival]).median, Spread.of(found[own]).median
    return Row(figure, rival, rival == DICT, *values, unit="B", ratio=ratio, sense="cost", must=must, aim=aim)


# ---- what else there is ----


def bounded_by_bytes(plan: Plan, report: Report) -> None:
    """Puts of bytes of many sizes into a cache of 16 MiB: each is weighed, and evicts as much as it needs."""
    random = np.random.default_rng(6)
    pairs = [(key, bytes(int(size))) for key, size in enumerate(random.integers(64, 8192, 8_000))]
    caches: dict[str, Any] = {name: Cache(max_bytes=16 * MIB, policy=policy) for name, policy in OWN.items()}
    cachetools = peer(MODULES[CACHETOOLS])
    if cachetools is not None:
        caches[CACHETOOLS] = cachetools.LRUCache(16 * MIB, getsizeof=len)
    loops = {name: (PUT_PAIRS, {"cache": cache, "pairs": pairs}) for name, cache in caches.items()}
    samples = timed(plan, "bytes", loops, len(pairs))
    for policy in OWN:
        report.rows.append(compared(samples, f"put bytes, bound of 16 MiB: {policy}", CACHETOOLS, policy))


def load(key: int) -> int:
    """What is costly elsewhere."""
    return key


def loads(plan: Plan, report: Report) -> None:
    """A hit of `get_or_load`, against functions that keep their results."""
    figure, rival = "get_or_load, a hit", "functools.lru_cache, a hit"
    cache: Cache[int, int] = Cache(TENTH)
    sides = [
        Side(rival, "load(7)", {"load": functools.lru_cache(TENTH)(load)}),
        Side("mempool", "cache.get_or_load(7, load)", {"cache": cache, "load": load}),
    ]
    cachetools = peer(MODULES[CACHETOOLS])
    if cachetools is not None:
        kept = cachetools.cached(cachetools.LRUCache(TENTH), lock=threading.Lock())(load)
        sides.append(Side("cachetools.cached with a lock", "load(7)", {"load": kept}))
    samples = compare(sides, rounds=plan.rounds(31), seconds=plan.slice(0.002), warmup=1, budget=1, label=NAME)
    for side in sides:
        if side.name != "mempool":
            report.rows.append(row(samples, figure, side.name, "mempool", plain=side.name == rival))


class Thing:
    """What can be referenced weakly."""


def weak(plan: Plan, report: Report) -> None:
    """Weak values that somebody holds: found, and put anew."""
    things = {number: Thing() for number in range(1000)}
    caches: dict[str, Any] = {
        "weakref.WeakValueDictionary": weakref.WeakValueDictionary(things),
        "WeakCache()": WeakCache(),
        "WeakCache(keep_items=500)": WeakCache(keep_items=500),
    }
    rival, *own = caches
    for name in own:
        caches[name].update(things)
    for figure, code in {"get": "cache[7]", "put again": "cache[7] = thing"}.items():
        sides = [Side(name, code, {"cache": cache, "thing": things[7]}) for name, cache in caches.items()]
        samples = compare(sides, rounds=plan.rounds(31), seconds=plan.slice(0.002), budget=1, label=f"{NAME} weak")
        for name in own:
            report.rows.append(row(samples, f"{name}, {figure}", rival, name, plain=True))
