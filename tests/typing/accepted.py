"""What a type checker must accept, with the types that it must see. Checked, never run."""

import asyncio
import csv
import ctypes
import io
import pickle
import shutil
import socket
import sys
import zipfile
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Literal, assert_type

import numpy as np
from numpy.typing import NDArray

import mempool
from mempool import (
    Account,
    Arena,
    Buffer,
    BufferPool,
    MappedArray,
    PoolStats,
    RingBuffer,
    SizeClassStats,
    SlabAllocator,
    SlabStats,
    anonymous_array,
    create_array,
    guard_truncation,
    open_array,
)
from mempool.accounting import (
    LeakDetector,
    LeakReport,
    MemoryDelta,
    MemoryGuard,
    MemoryUsage,
    Pattern,
    ReclaimerStats,
    Tracker,
    detect_leaks,
    gc_pressure,
    measure,
    memory_limit,
    reclaimers,
    register_reclaimer,
    root_account,
)
from mempool.accounting import (
    Registration as ReclaimerRegistration,
)
from mempool.aio import PooledReader, PooledWriter, open_connection, open_unix_connection, start_server
from mempool.io import BytesStream, ChunkIterator, copy, iter_chunks, read, write
from mempool.numpy import install, installed, uninstall, use_pool
from mempool.pressure import (
    CallbackStats,
    CleanupReport,
    CleanupSchedule,
    CleanupStep,
    Forecast,
    ItemStats,
    Level,
    MonitorStats,
    PressureEvent,
    PressureMonitor,
    Registration,
    Shrinkable,
    Shrinker,
    Simulation,
    SourceStatus,
    Thresholds,
    default_monitor,
    process_schedule,
    register,
    unregister,
)
from mempool.pressure.sources import (
    AccountUsage,
    CallableSource,
    CgroupMemory,
    EventSource,
    PressureStall,
    ProcessMemory,
    Reading,
    Rlimits,
    Source,
    SystemdPressure,
    SystemMemory,
    default_sources,
)
from mempool.shared import SharedBuffer, SharedPool, SharedStats


def growth(tracker: Tracker, detector: LeakDetector) -> None:
    assert_type(detect_leaks(lambda: None, warmup=1, iterations=20, tolerance="1KiB"), LeakReport)
    with measure("block") as block:
        assert_type(block.delta, MemoryDelta | None)

    @measure(report=lambda delta: delta.lent)
    def load(path: str) -> bytes:
        return path.encode()

    assert_type(load("x"), bytes)
    assert_type(tracker.delta("before", -1), MemoryDelta)
    assert_type(tracker.pattern("lent", noise="4MiB"), Pattern)
    with detector.start("5m"):
        assert_type(detector.check().leaking, bool)


def pools(pool: BufferPool, account: Account, nbytes: np.int64) -> None:
    BufferPool()
    BufferPool("1GiB")
    BufferPool(1 << 30, max_idle="64MiB", idle_timeout="10s", alignment=4096, huge_pages=True, zero_on_release=True)
    BufferPool(None, max_idle=0, idle_timeout=None, leak_detection="sampled", account=account, name="reader")
    assert_type(pool.acquire("64KiB"), Buffer)
    assert_type(pool.acquire(10, zero=True, timeout=None), Buffer)
    assert_type(pool.acquire(nbytes, timeout="500ms"), Buffer)
    assert_type(pool.limit, int | None)
    pool.limit = "1MiB"
    pool.limit = None
    assert_type(pool.leak_detection, Literal["off", "sampled", "full"])
    pool.leak_detection = "full"
    pool.leak_detection = None
    assert_type(pool.trim(), int)
    assert_type(pool.trim("1MiB"), int)
    pool.reserve("1MiB", 4)
    assert_type(pool.name, str)
    assert_type(pool.account, Account)
    assert_type(pool.closed, bool)
    with pool as same:
        assert_type(same, BufferPool)
    assert_type(mempool.default_pool(), BufferPool)
    assert_type(mempool.acquire("1KiB", zero=True), Buffer)
    assert_type(mempool.TRACEMALLOC_DOMAIN, int)
    mempool.configure(limit="1GiB", leak_detection="off")


def buffers(b: Buffer, pool: BufferPool) -> None:
    assert_type(len(b), int)
    assert_type(b.nbytes, int)
    assert_type(b.capacity, int)
    assert_type(b.address, int)
    assert_type(b.released, bool)
    assert_type(b.pool, BufferPool)
    assert_type(b[0], int)
    assert_type(b[np.int8(0)], int)
    assert_type(b[1:2], memoryview)
    b[0] = 5
    b[0:3] = b"abc"
    b[0:3] = memoryview(b"abc")
    b[:] = b
    b.resize("1KiB")
    assert_type(b.readonly(), memoryview)
    assert_type(b.tobytes(), bytes)
    assert_type(b == b"abc", bool)
    with b as same:
        assert_type(same, Buffer)
    with pool.acquire(10) as made:
        assert_type(made, Buffer)


def arrays(b: Buffer) -> None:
    assert_type(b.array(), NDArray[np.uint8])
    assert_type(b.array(shape=(2, 3), offset=1, order="F"), NDArray[np.uint8])
    assert_type(b.array(np.float32), NDArray[np.float32])
    assert_type(b.array(np.dtype(np.int64), 5), NDArray[np.int64])
    assert_type(b.array("f8", (2, 2)), NDArray[Any])


def bytes_like(b: Buffer) -> None:
    assert_type(memoryview(b), memoryview[int])
    assert_type(bytes(b), bytes)
    bytearray(b)
    b"".join([b])
    if sys.version_info >= (3, 12):  # before, NumPy's stubs know no other buffers than those of the library
        b[0:3] = np.zeros(3, "u1")
        np.frombuffer(b, np.uint8)
        np.ndarray(5, np.uint8, buffer=b)
    np.from_dlpack(b)
    (ctypes.c_char * 5).from_buffer(b)
    with open("/dev/null", "r+b", buffering=0) as file:
        file.readinto(b)
        file.write(b)


async def tasks(pool: BufferPool) -> None:
    assert_type(await pool.acquire_async("64KiB"), Buffer)
    async with pool.acquire_async(64, zero=True, timeout="1s") as b:
        assert_type(b, Buffer)
    assert_type(asyncio.create_task(pool.acquire_async(64)), asyncio.Task[Buffer])
    assert_type(await asyncio.wait_for(pool.acquire_async(64), 1), Buffer)
    awaited: Coroutine[Any, Any, Buffer] = pool.acquire_async(64)
    await awaited


def figures(pool: BufferPool) -> None:
    stats = pool.stats()
    assert_type(stats, PoolStats)
    assert_type(stats.in_use, int)
    assert_type(stats.limit, int | None)
    assert_type(stats.hit_rate, float)
    assert_type(stats.fragmentation, float)
    assert_type(stats.size_classes, tuple[SizeClassStats, ...])
    assert_type(stats.size_classes[0].idle, int)


def accounts(thing: object) -> None:
    account = Account("io", limit="1MiB", parent=root_account())
    account.charge("1KiB")
    account.discharge(1024)
    assert_type(account.charged(5), AbstractContextManager[Account, None])
    with account.charged("1KiB") as same:
        assert_type(same, Account)
    account.track(thing, 100)
    assert_type(account.used, int)
    assert_type(account.peak, int)
    assert_type(account.limit, int | None)
    account.limit = "2MiB"
    account.limit = None
    assert_type(account.children, tuple[Account, ...])
    assert_type(account.parent, Account | None)
    tree = account.tree()
    assert_type(tree["used"], int)
    assert_type(tree["limit"], int | None)
    assert_type(tree["children"][0]["name"], str)


@memory_limit("64MiB", what="external", account=Account("job"))
def guarded(rows: int, *, name: str = "") -> list[int]:
    return [rows]


@memory_limit(1 << 20)
async def guarded_task(rows: int) -> str:
    return str(rows)


async def usage() -> None:
    found = mempool.memory_usage(uss=True)
    assert_type(found, MemoryUsage)
    assert_type(found.rss, int)
    assert_type(found.lent, int)
    assert_type(found.uss, int | None)
    assert_type(found.python_heap, int | None)
    assert_type(found.available, int | None)
    assert_type(found.limit_source, str | None)
    assert_type(found.accounts["children"][0]["used"], int)
    assert_type(found.unread, tuple[str, ...])
    with memory_limit("1MiB", what="rss") as guard:
        assert_type(guard, MemoryGuard)
        assert_type(guard.check(), int)
        assert_type(guard.what, Literal["rss", "external", "python_heap"])
    assert_type(guarded(1, name="a"), list[int])
    assert_type(await guarded_task(1), str)


def reclaiming(account: Account, cache: list[bytes]) -> None:
    registration = register_reclaimer(lambda needed: len(cache.pop()), account=account, priority=5, weak=False)
    assert_type(registration, ReclaimerRegistration)
    assert_type(registration.active, bool)
    registration.cancel()
    register_reclaimer(lambda needed: None)
    assert_type(reclaimers(), list[ReclaimerStats])
    assert_type(reclaimers()[0].freed, int)
    gc_pressure()
    gc_pressure(True, "1MiB")
    gc_pressure(enabled=False, threshold=1 << 20)


def failures(work: Callable[[], None]) -> None:
    try:
        work()
    except mempool.PoolExhausted as error:
        assert_type(error.requested, int)
        assert_type(error.in_use, int)
        assert_type(error.limit, int)
    except mempool.AccountLimitExceeded as error:
        assert_type(error.account, str)
    except mempool.MemoryLimitExceeded as error:
        assert_type(error.what, str)
        assert_type(error.grown, int)


def slabs(handle: np.int64) -> None:
    records = SlabAllocator([("x", "f8"), ("y", "f8")], max_items=10, limit="1MiB", name="records")
    assert_type(records.alloc(), int)
    records[handle] = (1.0, 2.0)
    many = records.alloc_many(3)
    assert_type(records.indices(many), NDArray[np.intp])
    records.free_many([1, 2])
    records.free(handle)
    assert_type(records.stats(), SlabStats)
    assert_type(records.trim(), int)
    assert_type(list(records), list[int])
    assert_type(handle in records, bool)
    with SlabAllocator(16, account=Account("a")) as raw:
        assert_type(memoryview(raw), memoryview)


def mappings(path: Path) -> None:
    with create_array(path, (0, 3), np.float32, overwrite=True) as log:
        log.append([[1, 2, 3]])
        log.flush(0, 1, wait=False)
    with open_array(str(path), "r+", dtype="f4", shape=(1, 3), order="F", offset=128) as again:
        for block in again.iter_blocks(100, drop_behind=False):
            assert_type(block, NDArray[Any])
        again.advise("sequential")
        again.close(revoke=True)
    memory = anonymous_array(3, "i4", max_rows=10, shared=True)
    assert_type(memory, MappedArray)
    memory.resize(5)
    assert_type(memory.resident(), float)
    assert_type(memory.max_rows, int | None)
    np.asarray(memory)
    guard_truncation()


def rings(data: bytearray) -> None:
    with RingBuffer("64KiB", account=Account("a"), name="r") as ring:
        assert_type(ring.write(data), int)
        assert_type(ring.find(memoryview(b"x"), 5), int)
        assert_type(ring.read(), bytes)
        assert_type(ring.writable(), memoryview)
        ring.commit(0)
        ring.consume("0")
        assert_type(ring.account.used, int)


def arenas(pool: BufferPool) -> None:
    arena = Arena(4096, pool=pool)
    assert_type(arena.alloc(10, align=8), memoryview)
    assert_type(arena.array((2, 3)), NDArray[np.float64])
    assert_type(arena.array(2, np.float32, order="F"), NDArray[np.float32])
    assert_type(arena.array(2, "i4"), NDArray[Any])
    with arena.scope() as same:
        assert_type(same, Arena)
    arena.reset()
    assert_type(arena.retired, int)


def shared(account: Account) -> None:
    pool = SharedPool("1GiB", account=account, name="frames", transit_timeout=None, linger="500ms")
    with pool as same, pool.acquire("1MiB", zero=True) as b:
        assert_type(same, SharedPool)
        assert_type(b, SharedBuffer)
        assert_type(b.pool, SharedPool | None)
        assert_type(b.lost, bool)
        assert_type(b[0], int)
        assert_type(b[1:2], memoryview)
        b[0:3] = b"abc"
        assert_type(b.array(np.float32, (2, 2)), NDArray[np.float32])
        assert_type(memoryview(b), memoryview[int])
    assert_type(pool.stats(), SharedStats)
    assert_type(pool.stats().limit, int | None)
    assert_type(pool.trim(), int)


def files(path: Path, pool: BufferPool, peer: socket.socket, b: Buffer) -> None:
    assert_type(read(path), Buffer)
    assert_type(read(0, pool=pool, offset="1KiB", size=None, direct=True), Buffer)
    read(b"name", size=10)
    read(peer)
    read(io.BytesIO())
    with path.open("rb") as file, iter_chunks(file, "64KiB", pool=pool, readahead=0, direct=False) as chunks:
        assert_type(chunks, ChunkIterator)
        for chunk in chunks:
            assert_type(chunk, Buffer)
        read(file)
        copy(file, peer)
    assert_type(write(str(path), b), int)
    write(1, [b"x", bytearray(1), memoryview(b)], offset=5)
    write(peer, b"x", direct=False)
    with path.open("wb") as target:
        write(target, b)
        assert_type(copy(path, target, size="1 MiB"), int)
    copy(0, 1)


def streams(pool: BufferPool, data: bytearray, array: NDArray[np.uint8]) -> None:
    BytesStream()
    BytesStream(None)
    stream = BytesStream(data, pool=pool)
    assert_type(stream.read(10), bytes)
    assert_type(stream.readline(), bytes)
    assert_type(stream.write(data), int)
    assert_type(stream.buffers(), list[memoryview])
    assert_type(stream.getbuffer(), memoryview)
    assert_type(stream.pool, BufferPool)
    file: BinaryIO = stream
    base: io.BufferedIOBase = stream
    shutil.copyfileobj(file, base)
    with BytesStream(b"") as inner:
        assert_type(inner, BytesStream)
        assert_type([line for line in inner], list[bytes])  # noqa: C416
    zipfile.ZipFile(stream, "w").close()
    csv.writer(io.TextIOWrapper(stream))
    pickle.dump(data, stream)
    np.save(stream, array)


def numpy_arrays(pool: BufferPool) -> None:
    with use_pool(pool) as entered:
        assert_type(entered, BufferPool)
    install(pool)
    assert_type(installed(), BufferPool | None)
    uninstall()


async def asyncio_streams(pool: BufferPool, path: Path) -> None:
    async def served(reader: PooledReader, writer: PooledWriter) -> None:
        assert_type(await reader.readexactly("64KiB"), Buffer)
        assert_type(await reader.readuntil((b"\r\n", bytearray(b"\n"))), Buffer)
        assert_type(await reader.readinto(bytearray(10)), int)
        assert_type([line async for line in reader], list[Buffer])

    server = await start_server(served, "127.0.0.1", 0, pool=pool, limit="1MiB", max_message=None, backlog=5)
    assert_type(server, asyncio.Server)
    await start_server(lambda reader, writer: writer.close(), port=8888)
    assert_type(await open_connection("localhost", 80, ssl=True), tuple[PooledReader, PooledWriter])
    reader, writer = await open_unix_connection(path, pool=None, max_message="1MiB")
    plain: asyncio.StreamWriter = writer
    plain.write(b"")
    writer.write(await reader.read())
    assert_type(reader.exception(), BaseException | None)


def pressure_sources(account: Account, path: Path) -> None:
    for source in default_sources(path, environ={"MEMORY_PRESSURE_WATCH": "/dev/null"}):
        assert_type(source, Source)
        assert_type(source.read(), Reading)
        assert_type(source.scope, Literal["own", "shared"])
    sources: list[Source] = [
        SystemdPressure(level=Level.ELEVATED, hold="2s"),
        CgroupMemory(root=path),
        PressureStall(path, kind="full", averages=(5, 10, 20)),
        Rlimits("data"),
        SystemMemory(),
        ProcessMemory("2 GiB"),
        AccountUsage(account),
        CallableSource(lambda: (1, None), "one", scope="shared"),
    ]
    events: list[EventSource] = [SystemdPressure(), CgroupMemory(), PressureStall()]
    assert_type(events[0].handle(events[0].poll_events), bool)
    reading = sources[0].read()
    assert_type(reading.used, int | None)
    assert_type(reading.level, Level | None)


class Thumbnails:
    name = "thumbnails"

    @property
    def nbytes(self) -> int:
        return 0

    def shrink(self, nbytes: int) -> int:
        return nbytes


def cleanups(pool: BufferPool, slab: SlabAllocator, event: PressureEvent, cache: Thumbnails) -> None:
    assert_type(mempool.cleanup(), CleanupReport)
    report = mempool.cleanup("aggressive", background=True)
    assert_type(report.wait(1.0), bool)
    assert_type(report.steps, tuple[CleanupStep, ...])
    assert_type(report.freed, int)
    assert_type(report.steps[0].error, str | None)
    shrinkable: Shrinkable = cache
    register(shrinkable)
    unregister(cache)
    shrinker = Shrinker([pool, slab, cache, lambda needed: needed, lambda needed: None], floor="8 MiB")
    assert_type(shrinker(event), int)
    assert_type(Shrinker.of_process(floor=0).stats(), tuple[ItemStats, ...])
    with CleanupSchedule("10m", "light") as schedule:
        schedule.interval = 5
        assert_type(schedule.last, CleanupReport | None)
    assert_type(process_schedule(), CleanupSchedule | None)


async def monitors(pool: BufferPool, event: PressureEvent) -> None:
    monitor = PressureMonitor(
        Thresholds("1GB", critical="1.2GB", preventive=0.7),
        sources=[lambda: (1, None), AccountUsage()],
        interval="250ms",
        hysteresis=0.1,
        min_dwell=2,
        reclaim=[pool],
        reminder="10s",
    )
    assert_type(Thresholds.fractions(high=0.9), Thresholds)

    @monitor.on(Level.HIGH, priority=5)
    def make_room(event: PressureEvent) -> int:
        return event.used or 0

    assert_type(make_room, Registration)

    @monitor.on_relief
    async def relieved(event: PressureEvent) -> None:
        await monitor.relief(Level.ELEVATED, timeout="1s")

    assert_type(relieved, Registration)
    assert_type(monitor.on(Level.CRITICAL, print, weak=False), Registration)
    make_room.cancel()
    assert_type(event.ratio, float | None)
    assert_type(monitor.poll(), Level)
    assert_type(monitor.level, Level)
    assert_type(monitor.wait_for_relief(timeout=0), bool)
    assert_type(await monitor.relief(), bool)
    assert_type(monitor.forecast(), Forecast | None)
    assert_type(monitor.history(), tuple[PressureEvent, ...])
    assert_type(monitor.sources, tuple[SourceStatus, ...])
    assert_type(monitor.stats(), MonitorStats)
    assert_type(monitor.stats().callbacks, tuple[CallbackStats, ...])
    assert_type(monitor.simulate(Level.HIGH), Simulation)
    with monitor.suppressed(), monitor.simulate(Level.ELEVATED) as simulation:
        simulation.end()
    with monitor as same:
        assert_type(same, PressureMonitor)
    async with monitor as same:
        assert_type(same.running, bool)
    monitor.thresholds = None
    monitor.interval = None
    assert_type(default_monitor().start(), PressureMonitor)
    default_monitor().stop()
