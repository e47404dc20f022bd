"""It saves the program: a child under a hard limit whose pools, cache and batches would take twice that if nobody looked.

The child reads records through pools (one for each stage, which keep what they had), keeps what it made of them in a cache, and
works on them in batches. Whatever it has to make again it makes again; what it prints does not depend on memory.
"""

import hashlib
import subprocess
import sys
from collections.abc import Callable

import pytest

from support import MIB

pytestmark = [
    pytest.mark.nosan,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of address space that hold: Linux"),
]

ROOM = 256 * MIB  # beyond what the interpreter has when the load begins
RECORDS, STAGES, RAW, MADE, BATCH = 120, 32, 4 * MIB, 4 * MIB, 16

LOAD = """
import contextlib, hashlib, itertools, resource, sys
import mempool
from mempool._system import process
from mempool.pressure import adaptive_batches, default_monitor, growth, register

growth.PATIENCE = 30  # who allocates waits for the monitor's thread, even where other processes keep it from running

how, begin = sys.argv[1:3]
room, records, stages, raw, made, batch = map(int, sys.argv[3:])

class Cache:
    name = "made"

    def __init__(self):
        self.items = {}

    @property
    def nbytes(self):
        return len(self.items) * made

    def shrink(self, nbytes):
        freed = 0
        while self.items and freed < nbytes:
            freed += len(self.items.pop(next(iter(self.items))))
        return freed

cache = Cache()
register(cache)
pools = [mempool.BufferPool(idle_timeout=None) for _ in range(stages)]

def make(number):
    found = cache.items.get(number)
    if found is None:
        with pools[number % stages].acquire(raw) as lease:
            lease[:] = bytes([number]) * raw
            found = cache.items[number] = hashlib.sha256(lease).digest() * (made // 32)
    return found

def batches(monitor):
    numbers = iter(range(records))
    if how == "adaptive":
        yield from adaptive_batches(numbers, batch, monitor=monitor)
    else:
        while numbers_of_one := list(itertools.islice(numbers, batch)):
            yield numbers_of_one

limit = process.address_space() + room
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print("limit", limit)
monitor = default_monitor()
started = contextlib.nullcontext()
if begin == "with":
    started = default_monitor()
elif begin == "start":
    default_monitor().start()
started.__enter__()
answer, done, most = hashlib.sha256(), 0, 0
for numbers in batches(monitor):
    rows = [make(number) for number in numbers]
    most = max(most, len(rows))
    for row in rows:
        answer.update(row)
        done += 1
    print("done", done, flush=True)
started.__exit__(None, None, None)
print("peak", process.peak_rss(), monitor.stats().freed)
print("answer", answer.hexdigest())
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run_load(run_python: Run, how: str, begin: str, batch: int) -> tuple[int, dict[str, list[str]], str]:
    done = run_python(LOAD, how, begin, ROOM, RECORDS, STAGES, RAW, MADE, batch, check=False, timeout=120)
    said = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    limit = int(said["limit"][0])
    assert STAGES * RAW + RECORDS * MADE + batch * RAW >= 2 * limit
    return done.returncode, said, done.stderr


@pytest.fixture(scope="module")
def answer() -> str:
    whole = hashlib.sha256()
    for number in range(RECORDS):
        whole.update(hashlib.sha256(bytes([number]) * RAW).digest() * (MADE // 32))
    return whole.hexdigest()


@pytest.mark.parametrize("batch", [4, BATCH])
def test_without_a_monitor_it_dies(run_python: Run, batch: int) -> None:
    code, said, errors = run_load(run_python, "fixed", "without", batch)
    assert code == 1
    assert errors.splitlines()[-1].startswith(("MemoryError", "mempool.errors."))
    assert "answer" not in said
    assert 0 < int(said["done"][0]) < RECORDS


@pytest.mark.parametrize("begin", ["start", "with"])
@pytest.mark.parametrize(("how", "batch"), [("fixed", 4), ("adaptive", BATCH)])
def test_with_a_monitor_it_ends_with_the_right_answer(
    run_python: Run, answer: str, how: str, batch: int, begin: str
) -> None:
    code, said, errors = run_load(run_python, how, begin, batch)
    assert (code, errors) == (0, "")
    assert said["answer"] == [answer]
    assert int(said["done"][0]) == RECORDS
    assert int(said["peak"][1]) > STAGES * RAW
