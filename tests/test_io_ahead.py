"""The thread that reads ahead: what it must not do in the place of the one it reads for."""

import threading
from pathlib import Path

from io_support import DATA, all_back, make, posix
from mempool import BufferPool
from mempool.accounting import Account, register_reclaimer
from mempool.io import iter_chunks
from support import until

SIZE = 64 << 10


@posix
def test_nobody_is_asked_for_room_to_read_ahead(tmp_path: Path) -> None:
    """A reclaimer may want a lock that is held by the very thread that waits for the next chunk."""
    account = Account("chunks", limit=3 * SIZE)
    askers: list[int] = []

    def reclaim(needed: int) -> int:
        askers.append(threading.get_ident())
        held.pop().release()
        return SIZE

    with BufferPool(account=account) as pool, all_back(pool):
        held = [pool.acquire(SIZE), pool.acquire(SIZE)]
        registration = register_reclaimer(reclaim, account=account)
        with iter_chunks(make(tmp_path), SIZE, pool=pool) as chunks:
            assert chunks._ahead.start()
            until(lambda: askers or not chunks._ahead.running)
            assert not askers
            first = next(chunks)
            assert next(chunks) == DATA[SIZE : 2 * SIZE]
            assert first == DATA[:SIZE]
            assert askers == [threading.get_ident()]
            del first
        registration.cancel()
        held.pop().release()
