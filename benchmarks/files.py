"""The main job: the files of this machine through pooled buffers into NumPy, all of them checked.

Every file is read the plain way and through the pool, and the two contents are compared in full;
arrays outlive their leases by some files, so that a block that is lent too early shows as a wrong
content. Then the ways are timed against each other, batch by batch of files of about one size.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import sysconfig
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import mempool
from benchmarks.harness import FEWEST_ROUNDS, GIB, KIB, MIB, Plan, Report, Samples, progress, row, shuffled, size_text
from benchmarks.rivals import PurePool

NAME = "files"
LARGE_FILES = (24 * MIB + 1, 64 * MIB, 96 * MIB + 12345)
BUCKETS = (4 * KIB, 64 * KIB, MIB, 16 * MIB, GIB)
BATCH_FILES, BATCH_BYTES = 64, 64 * MIB
OUTLIVING = 12
BUDGET, QUICK_BUDGET = 15.0, 3.0
QUICK_STEP = 8

Bytes = npt.NDArray[Any]


class ContentMismatch(Exception):
    """A file's content is not what the plain way reads: the one thing that must never be."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file to read, and its size when it was found."""

    path: str
    size: int


@dataclass(slots=True)
class Tally:
    """What the check saw."""

    files: int = 0
    nbytes: int = 0
    unreadable: int = 0
    changed: int = 0


def run(plan: Plan) -> Report:
    """Find the files, check each content, then time the ways against each other."""
    report = Report(NAME, "The main job: files of this machine into NumPy")
    make_large_files(plan)
    found = collect(plan)
    with mempool.BufferPool(name="benchmark-files") as pool:
        start = time.perf_counter()
        tally = check_all(found, pool)
        seconds = time.perf_counter() - start
        report.notes.append(describe(tally, seconds, pool))
        time_all(plan, [item for item in found if item.size], pool, report)
    if plan.quick:
        report.notes.append(f"quick: one file of {QUICK_STEP} was read.")
    return report


def describe(tally: Tally, seconds: float, pool: mempool.BufferPool) -> str:
    """Say what was checked, and what was left out."""
    stats = pool.stats()
    return (
        f"{tally.files} files, {size_text(tally.nbytes)}, checked in full in {seconds:.1f} s: "
        f"every content through the pool equals the plain one ({tally.unreadable} unreadable, "
        f"{tally.changed} changed meanwhile); {stats.acquires} leases, "
        f"{stats.hit_rate:.1%} from idle memory, peak {size_text(stats.peak)}."
    )


def make_large_files(plan: Plan) -> None:
    """Write a few large files of random bytes; their odd sizes end inside a page."""
    random = np.random.default_rng(64)
    for size in LARGE_FILES:
        with (plan.scratch / f"large-{size}.bin").open("wb") as file:
            for start in range(0, size, 16 * MIB):
                file.write(random.bytes(min(16 * MIB, size - start)))


def collect(plan: Plan) -> list[Found]:
    """List the files: library tree, shared libraries, the large ones; each once."""
    small = unique(itertools.chain(library_tree(), shared_libraries()))
    if plan.quick:
        small = small[::QUICK_STEP]
    return small + unique(str(path) for path in sorted(plan.scratch.glob("large-*.bin")))


def library_tree() -> Iterator[str]:
    """The interpreter's own library, without what others installed into it."""
    for root, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = sorted(name for name in folders if name != "site-packages")
        yield from (os.path.join(root, name) for name in sorted(names))


def shared_libraries() -> Iterator[str]:
    """Shared libraries that this process has loaded, or that lie beside those it uses."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    loaded = {line.split(maxsplit=5)[-1] for line in lines if ".so" in line}
    yield from sorted(path for path in loaded if path.startswith("/"))
    places = [sysconfig.get_config_var("LIBDIR"), *package_folders()]
    for place in (Path(folder) for folder in places if folder):
        for pattern in ("*.so", "*.so.*", "*.dylib", "*.dll", "*.pyd"):
            yield from (str(path) for path in sorted(place.rglob(pattern)))


def package_folders() -> Iterator[str]:
    """Folders of the peers with compiled parts, as far as they are installed."""
    for name in ("numpy", "pyarrow"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            folder = Path(spec.origin).parent
            yield str(folder)
            yield str(folder.with_name(f"{name}.libs"))


def unique(paths: Iterable[str]) -> list[Found]:
    """Keep regular files, each once by device and number."""
    seen = set()
    found = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue
        key = (status.st_dev, status.st_ino)
        if os.path.isfile(path) and key not in seen:
            seen.add(key)
            found.append(Found(path, status.st_size))
    return found


def check_all(found: Sequence[Found], pool: mempool.BufferPool) -> Tally:
    """Compare each content through the pool with the plain one.

    Raises
    ------
    ContentMismatch
        If one differs; the path and the first wrong offset are in the message.
    """
    tally = Tally()
    alive: deque[tuple[str, Bytes, bytes]] = deque()
    for index, item in enumerate(found):
        if index % 64 == 0:
            progress(f"{NAME}: {index} of {len(found)} checked, {size_text(tally.nbytes)}")
        try:
            plain, array = stable_pair(item.path, pool, by_preadv=index % 2 == 0)
        except OSError:
            tally.unreadable += 1
            continue
        if plain is None:
            tally.changed += 1
            continue
        expect_equal(item.path, array, plain)
        alive.append((item.path, array, plain))
        if len(alive) > OUTLIVING:
            expect_equal(*alive.popleft(), when="after its lease")
        tally.files += 1
        tally.nbytes += len(plain)
    for kept in alive:
        expect_equal(*kept, when="after its lease")
    return tally


def stable_pair(path: str, pool: mempool.BufferPool, *, by_preadv: bool) -> tuple[bytes | None, Bytes]:
    """Read a file both ways; no plain content if the file itself changed in between."""
    plain = Path(path).read_bytes()
    array = through_pool(path, pool, by_preadv=by_preadv)
    if len(array) != len(plain) or not same(array, plain):
        again = Path(path).read_bytes()
        if again != plain:
            return None, array
    return plain, array


def same(array: Bytes, plain: bytes) -> bool:
    """Whether all bytes are equal."""
    return np.array_equal(array, np.frombuffer(plain, np.uint8))


def expect_equal(path: str, array: Bytes, plain: bytes, when: str = "while leased") -> None:
    """Refuse a content that is not the plain one."""
    if len(array) != len(plain):
        raise ContentMismatch(f"{path}: {len(array)} bytes {when}, plain {len(plain)}")
    if not same(array, plain):
        wrong = np.flatnonzero(array != np.frombuffer(plain, np.uint8))
        raise ContentMismatch(f"{path}: {len(wrong)} of {len(plain)} bytes differ {when}, first at {wrong[0]}")


def through_pool(path: str, pool: mempool.BufferPool, *, by_preadv: bool) -> Bytes:
    """Read a whole file into a lease and return its array, which outlives the lease."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        with pool.acquire(size) as lease:
            array = lease.array()
            if by_preadv and hasattr(os, "preadv"):
                fd = file.fileno()
                fill(lambda part, done: os.preadv(fd, [part], done), lease, size)
            else:
                fill(lambda part, _: file.readinto(part), lease, size)
    return array


def fill(read: Callable[[memoryview, int], int], lease: mempool.Buffer, size: int) -> None:
    """Call `read` until `size` bytes have come, as a read may be short."""
    done = 0
    while done < size:
        got = read(lease[done:size], done)
        if not got:
            raise OSError(f"file ended after {done} of {size} bytes")
        done += got


def plain_way(paths: Sequence[str]) -> None:
    """``f.read()``, then an array over the bytes."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            np.frombuffer(file.read(), np.uint8)


def bytearray_way(paths: Sequence[str]) -> None:
    """``readinto`` a new bytearray."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            target = bytearray(os.fstat(file.fileno()).st_size)
            file.readinto(target)
            np.frombuffer(target, np.uint8)


def empty_way(paths: Sequence[str]) -> None:
    """``readinto`` a new array."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            target: Any = np.empty(os.fstat(file.fileno()).st_size, np.uint8)
            file.readinto(target)


def fromfile_way(paths: Sequence[str]) -> None:
    """NumPy's own reader."""
    for path in paths:
        np.fromfile(path, np.uint8)


def pure_way(pool: PurePool) -> Callable[[Sequence[str]], None]:
    """The pure-Python pool."""

    def read(paths: Sequence[str]) -> None:
        for path in paths:
            with open(path, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                with pool.acquire(size) as lease:
                    target: Any = lease.array()
                    file.readinto(target)
                    del target

    return read


def pooled_way(pool: mempool.BufferPool) -> Callable[[Sequence[str]], None]:
    """``readinto`` a lease, then its array."""

    def read(paths: Sequence[str]) -> None:
        for path in paths:
            with open(path, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                with pool.acquire(size) as lease:
                    file.readinto(lease)
                    lease.array()

    return read


def time_all(plan: Plan, found: Sequence[Found], pool: mempool.BufferPool, report: Report) -> None:
    """Time each way over each batch, all ways of a batch before the next; then make the rows."""
    ways = {
        "f.read()": plain_way,
        "bytearray": bytearray_way,
        "np.empty": empty_way,
        "np.fromfile": fromfile_way,
        "pure-Python pool": pure_way(PurePool()),
        "mempool": pooled_way(pool),
    }
    readable = [item for item in found if os.access(item.path, os.R_OK)]
    buckets = [Samples(list(ways)) for _ in BUCKETS]
    whole = Samples(list(ways))
    rounds = plan.rounds(5)
    budget = QUICK_BUDGET if plan.quick else BUDGET
    start = time.perf_counter()
    for turn in range(rounds):
        if turn >= FEWEST_ROUNDS and time.perf_counter() - start > budget:
            break
        progress(f"{NAME}: timing, round {turn + 1} of {rounds}")
        time_round(by_bucket(readable), ways, turn, buckets, whole)
    add_rows(report, readable, buckets, whole)


def time_round(
    groups: Sequence[Sequence[Found]],
    ways: Mapping[str, Callable[[Sequence[str]], None]],
    turn: int,
    buckets: Sequence[Samples],
    whole: Samples,
) -> None:
    """Read all files once each way; seconds per file go to the samples of each group and of all."""
    totals = dict.fromkeys(ways, 0.0)
    for group, samples in zip(groups, buckets, strict=True):
        for name, seconds in time_bucket(group, ways, turn).items():
            totals[name] += seconds
            if group:
                samples.seconds[name].append(seconds / len(group))
    for name, seconds in totals.items():
        whole.seconds[name].append(seconds / sum(map(len, groups)))


def by_bucket(found: Sequence[Found]) -> list[list[Found]]:
    """Group the files by size."""
    groups: list[list[Found]] = [[] for _ in BUCKETS]
    for item in found:
        index = next(i for i, end in enumerate(BUCKETS) if item.size < end or end == BUCKETS[-1])
        groups[index].append(item)
    return groups


def batches(group: Sequence[Found]) -> Iterator[list[str]]:
    """Cut a group into batches short enough that drift hits all ways of a batch alike."""
    batch: list[str] = []
    nbytes = 0
    for item in group:
        batch.append(item.path)
        nbytes += item.size
        if len(batch) == BATCH_FILES or nbytes >= BATCH_BYTES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def time_bucket(
    group: Sequence[Found], ways: Mapping[str, Callable[[Sequence[str]], None]], turn: int
) -> dict[str, float]:
    """Seconds that each way spends on one group; who begins changes from batch to batch."""
    spent = dict.fromkeys(ways, 0.0)
    for index, batch in enumerate(batches(group)):
        for name in shuffled(list(ways), 1000 * turn + index):
            start = time.perf_counter()
            ways[name](batch)
            spent[name] += time.perf_counter() - start
    return spent


def add_rows(report: Report, found: Sequence[Found], buckets: Sequence[Samples], whole: Samples) -> None:
    """Make the rows: the whole walk against each rival, then plain Python by size."""
    for rival in whole.seconds:
        if rival != "mempool":
            plain = rival in ("f.read()", "bytearray")
            report.rows.append(row(whole, "whole walk, per file", rival, "mempool", plain=plain))
    start = 0
    for end, group, samples in zip(BUCKETS, by_bucket(found), buckets, strict=True):
        if group:
            top = f"to {size_text(end)}" if end != BUCKETS[-1] else "and more"
            figure = f"{len(group)} files, {size_text(start)} {top}"
            for rival in ("f.read()", "np.empty"):
                report.rows.append(row(samples, figure, rival, "mempool", plain=rival == "f.read()"))
            mean = sum(item.size for item in group) / len(group)
            for name in samples.seconds:
                report.point("files", name, mean, mean / samples.typical(name))
        start = end
