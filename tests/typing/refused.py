"""What a type checker must refuse: each line has an error that is expected, and mypy complains of any that is not there."""

import mempool
from mempool import Account, Buffer, BufferPool
from mempool.cache import Cache
from mempool.shared import SharedBuffer, SharedPool


def pools(pool: BufferPool) -> None:
    BufferPool(1.5)  # type: ignore[arg-type]
    BufferPool("1GiB", "1MiB")  # type: ignore[call-arg]
    BufferPool(alignment="64")  # type: ignore[arg-type]
    BufferPool(leak_detection="loud")  # type: ignore[arg-type]
    BufferPool(account="io")  # type: ignore[arg-type]
    pool.acquire()  # type: ignore[call-arg]
    pool.acquire(None)  # type: ignore[arg-type]
    pool.acquire(1.5)  # type: ignore[arg-type]
    pool.acquire(1, True)  # type: ignore[call-arg]
    pool.acquire(1, timeout=[1])  # type: ignore[arg-type]
    pool.leak_detection = "loud"  # type: ignore[assignment]
    pool.name = "other"  # type: ignore[misc]


def buffers(b: Buffer) -> None:
    b.nbytes = 5  # type: ignore[misc]
    _ = b["a"]  # type: ignore[call-overload]
    b[0] = "a"  # type: ignore[call-overload]
    b[0:1] = 5  # type: ignore[call-overload]
    b[0:1] = "a"  # type: ignore[call-overload]
    b.resize(1.5)  # type: ignore[arg-type]
    b.array("u1", order="K")  # type: ignore[call-overload]
    _ = b < b  # type: ignore[operator]

    class Mine(Buffer):  # type: ignore[misc]
        pass


async def tasks(pool: BufferPool) -> None:
    pool.acquire_async(64).array()  # type: ignore[attr-defined]
    with pool.acquire_async(64):  # type: ignore[attr-defined]
        pass


def accounts(account: Account) -> None:
    Account()  # type: ignore[call-arg]
    Account("io", parent="root")  # type: ignore[arg-type]
    account.charge(1.5)  # type: ignore[arg-type]
    account.used = 5  # type: ignore[misc]


def slabs(slab: mempool.SlabAllocator) -> None:
    mempool.SlabAllocator()  # type: ignore[call-arg]
    slab.free("handle")  # type: ignore[arg-type]
    slab.name = "other"  # type: ignore[misc]


def mappings(array: mempool.MappedArray) -> None:
    mempool.open_array(5)  # type: ignore[arg-type]
    mempool.open_array("a", "w")  # type: ignore[arg-type]
    array.advise("soon")  # type: ignore[arg-type]
    array.flush(0.5)  # type: ignore[arg-type]


def rings(ring: mempool.RingBuffer) -> None:
    mempool.RingBuffer()  # type: ignore[call-arg]
    ring.commit(1.5)  # type: ignore[arg-type]
    ring.write("text")  # type: ignore[arg-type]
    ring.capacity = 5  # type: ignore[misc]


def arenas(arena: mempool.Arena) -> None:
    mempool.Arena(1, pool="default")  # type: ignore[arg-type]
    arena.alloc(10, align="64")  # type: ignore[arg-type]
    arena.array("f8")  # type: ignore[call-overload]


def shared(pool: SharedPool, b: SharedBuffer) -> None:
    SharedPool(1.5)  # type: ignore[arg-type]
    SharedPool("1GiB", "frames")  # type: ignore[arg-type, call-arg]
    pool.acquire(None)  # type: ignore[arg-type]
    pool.limit = 5  # type: ignore[misc]
    b["a"] = 5  # type: ignore[call-overload]


def usage() -> None:
    mempool.memory_usage(True)  # type: ignore[call-arg]
    mempool.memory_usage().rss = 5  # type: ignore[misc]
    mempool.accounting.memory_limit(1.5)  # type: ignore[arg-type]
    mempool.accounting.memory_limit("1MiB", what="uss")  # type: ignore[arg-type]


def caches(cache: Cache[str, int]) -> None:
    Cache("10")  # type: ignore[arg-type]
    Cache(10, 20)  # type: ignore[call-arg]
    Cache(10, policy=5)  # type: ignore[arg-type]
    cache["a"] = "text"  # type: ignore[assignment]
    cache[5] = 5  # type: ignore[index]
    cache.put("a", 5, tags=5)  # type: ignore[arg-type]
    cache.put("a", 5, 10)  # type: ignore[call-arg]
    cache.maxsize = 5  # type: ignore[misc]
    cache.namespace(5)  # type: ignore[arg-type]
