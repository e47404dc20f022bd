"""Large memory to another process and back: as a descriptor, by name, and pickled."""

from __future__ import annotations

import multiprocessing as mp
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from benchmarks.harness import KIB, MIB, Plan, Report, Row, Side, compare, row, size_text

NAME = "shared"
LARGE = 64 * MIB
PICKLED = "pickled NumPy array"
NAMED = "shared_memory, sent by name"
THERE_AND_BACK = """\
x[0] = 41
put(x)
back = get()
if back[0] != 42 or back[n - 1] != 7:
    raise AssertionError("not what was sent")
del back
"""
BY_NAME = """\
x.buf[0] = 41
put((x.name, n))
get()
if x.buf[0] != 42 or x.buf[n - 1] != 7:
    raise AssertionError("not what was sent")
"""
# What a stage of a pipeline does: new data each time, all of it read over there.
WAYS = {
    "mempool": "b = pool.acquire(n)\nb.array(np.uint64)[:] = 3\nput(b)\ndel b\n",
    PICKLED: "b = np.full(n // 8, 3, np.uint64)\nput(b)\ndel b\n",
}
CHECKED = "if get() != 3 * (n // 8):\n    raise AssertionError('not what was sent')\n"


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "Memory to another process and back, through two multiprocessing queues")
    try:
        from mempool.shared import SharedPool

        pool = SharedPool(name="benchmark-shared")
    except OSError as error:
        report.rows.append(Row("64 MiB there and back", PICKLED, True, note=str(error)))
        return report
    context = mp.get_context("spawn")
    inbox, outbox = context.SimpleQueue(), context.SimpleQueue()
    worker = context.Process(target=work, args=(inbox, outbox), daemon=True)
    worker.start()
    with pool:
        for size in (4 * KIB, 64 * KIB, MIB, LARGE):
            there_and_back(plan, report, pool, size, inbox, outbox)
        pipeline(plan, report, pool, inbox, outbox)
    inbox.put(None)
    worker.join()
    return report


def work(inbox: Any, outbox: Any) -> None:
    """Run the other process: change what comes and send it back, or sum what is an array of words."""
    while (thing := inbox.get()) is not None:
        if isinstance(thing, tuple):
            outbox.put(change_by_name(*thing))
        elif is_words(thing):
            outbox.put(int(words(thing).sum()))
        else:
            thing[0] += 1
            outbox.put(thing)
        del thing


def change_by_name(name: str, nbytes: int) -> bool:
    """Attach a named segment, as its users do for each message."""
    segment = SharedMemory(name)
    view: Any = segment.buf
    seen = bool(view[nbytes - 1] == 7)
    view[0] += 1
    del view
    segment.close()
    return seen


def is_words(thing: Any) -> bool:
    """Whether the other side wants a sum: the first byte says so for both kinds."""
    return bool(thing.dtype == np.uint64) if isinstance(thing, np.ndarray) else bool(thing[0] == 3)


def words(thing: Any) -> Any:
    """Return an array of words over what came."""
    return thing if isinstance(thing, np.ndarray) else thing.array(np.uint64)


def there_and_back(plan: Plan, report: Report, pool: Any, size: int, inbox: Any, outbox: Any) -> None:
    """Send one buffer, which the other side looks at, changes, and sends back."""
    given = {"put": inbox.put, "get": outbox.get, "n": size}
    buffer, segment = pool.acquire(size), SharedMemory(create=True, size=size)
    array, named = np.empty(size, np.uint8), np.ndarray(size, np.uint8, buffer=segment.buf)
    for view in (buffer.array(), array, named):
        view[:] = 7
    del view, named
    sides = [
        Side("mempool", THERE_AND_BACK, given | {"x": buffer}),
        Side(PICKLED, THERE_AND_BACK, given | {"x": array}),
        Side(NAMED, BY_NAME, given | {"x": segment}),
    ]
    figure = f"{size_text(size)} there and back"
    large = size == LARGE
    samples = compare(sides, rounds=plan.rounds(9 if large else 21), number=2 if large else 20, budget=8, label=figure)
    must, aim = (300, 1000) if large else (None, None)
    report.rows.append(row(samples, figure, PICKLED, "mempool", plain=True, must=must, aim=aim))
    report.rows.append(row(samples, figure, NAMED, "mempool"))
    for side in sides:
        report.point("there and back", side.name, size, samples.typical(side.name))
    buffer.release()
    segment.close()
    segment.unlink()


def pipeline(plan: Plan, report: Report, pool: Any, inbox: Any, outbox: Any) -> None:
    """Fill new memory here, sum it there: mostly the work itself."""
    given = {"put": inbox.put, "get": outbox.get, "n": LARGE, "np": np, "pool": pool}
    sides = [Side(name, code + CHECKED, given) for name, code in WAYS.items()]
    figure = "64 MiB filled here, summed there"
    samples = compare(sides, rounds=plan.rounds(9), number=1, budget=6, label=figure)
    report.rows.append(row(samples, figure, PICKLED, "mempool", plain=True))
