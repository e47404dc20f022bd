"""Shared buffers through whatever `multiprocessing` and `concurrent.futures` have, with each start method."""

import errno
import multiprocessing as mp
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

import mempool.shared.segment
import shared_work as work
from mempool.shared import SharedPool
from shared_kit import Child, is_idle, linux, named_segments
from support import DEADLINE, MIB, together, until

pytestmark = linux

METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(params=METHODS)
def context(request: pytest.FixtureRequest) -> Any:
    return mp.get_context(request.param)


@pytest.fixture
def pool() -> Iterator[SharedPool]:
    before = named_segments()
    with SharedPool() as pool:
        yield pool
        until(lambda: is_idle(pool), "the return of all blocks")
    assert named_segments() == before


def finish(process: Any) -> None:
    process.join(DEADLINE)
    assert process.exitcode == 0
    process.close()


def filled(pool: SharedPool, value: int, nbytes: int = MIB) -> Any:
    buffer = pool.acquire(nbytes)
    buffer.array()[:] = value
    return buffer


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue", "JoinableQueue"])
def test_queues(context: Any, pool: SharedPool, kind: str) -> None:
    inbox, outbox = getattr(context, kind)(), getattr(context, kind)()
    process = context.Process(target=work.echo, args=(inbox, outbox))
    process.start()
    buffer = filled(pool, 1)
    address = buffer.address
    for turn in range(5):
        inbox.put(buffer)
        del buffer
        buffer = outbox.get()
        assert buffer.pool is pool
        assert buffer.address == address
        assert (buffer.array() == turn + 2).all()
    inbox.put(None)
    finish(process)


def test_pipes_and_arguments(context: Any, pool: SharedPool) -> None:
    ours, theirs = context.Pipe()
    argument = filled(pool, 0, 10)
    first, second = (
        context.Process(target=work.answer, args=(theirs,)),
        context.Process(target=work.change, args=(argument,)),
    )
    first.start()
    second.start()
    ours.send(filled(pool, 4))
    assert (ours.recv().array() == 5).all()
    finish(second)
    assert argument[:5] == b"child"
    finish(first)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue", "Pipe"])
def test_a_result_of_a_process_that_ends(context: Any, kind: str) -> None:
    """It waits with its end until the result was received; a `Queue` sends it while its process ends."""
    if kind == "Pipe":
        ours, theirs = context.Pipe()
        process = context.Process(target=work.send_and_leave, args=(theirs, 9))
        receive = ours.recv
    else:
        outbox = getattr(context, kind)()
        process = context.Process(target=work.make_and_leave, args=(outbox, 9))
        receive = outbox.get
    process.start()
    assert (receive().array() == 9).all()
    finish(process)


def test_pools_of_processes(context: Any, pool: SharedPool) -> None:
    with context.Pool(2, maxtasksperchild=2) as workers:
        back = workers.map(work.increment, [filled(pool, value, 5000) for value in range(6)], chunksize=1)
        assert [buffer[0] for buffer in back] == [1, 2, 3, 4, 5, 6]
        assert all(buffer.pool is pool for buffer in back)
        made = workers.map(work.make, range(6), chunksize=1)
        assert [buffer[-1] for buffer in made] == list(range(6))
    assert [buffer[-1] for buffer in made] == list(range(6))


def test_executors(context: Any, pool: SharedPool) -> None:
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        back = list(executor.map(work.increment, [filled(pool, value) for value in range(4)]))
        made = list(executor.map(work.make, range(4)))
    assert [buffer[0] for buffer in back] == [1, 2, 3, 4]
    assert [buffer[0] for buffer in made] == [0, 1, 2, 3]


def test_managers(context: Any, pool: SharedPool) -> None:
    with context.Manager() as manager:
        queue = manager.Queue()
        queue.put(filled(pool, 3))
        buffer = queue.get()
        assert buffer.pool is pool
        assert buffer[MIB - 1] == 3
        del buffer


def test_a_lost_argument_fails_its_task_only(context: Any) -> None:
    """An error while a worker reads its tasks would end the worker, and its pool would wait for ever."""
    pool = SharedPool(limit=8192, transit_timeout=0)
    buffer = pool.acquire(10)
    late = pickle.dumps(buffer)
    buffer.release()
    pool.acquire(10)
    lost = pickle.loads(late)
    assert lost.lost
    with context.Pool(1) as workers, pytest.raises(OSError, match="too late"):
        workers.apply(work.use, (lost,))


# ---- who may not


def refused(wire: Any) -> None:
    message, path = wire.recv()
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    try:
        os.open(path, os.O_RDWR)
    except OSError as error:
        wire.send(error.errno)
    buffer = pickle.loads(message)
    wire.send((buffer.lost, repr(buffer)))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_other_users_are_refused() -> None:
    pool = SharedPool()
    stranger = Child(refused)  # before the lease, which it would inherit
    buffer = pool.acquire(10)
    fd = buffer._held().memory.fd
    stranger.wire.send((pickle.dumps(buffer), f"/proc/{os.getpid()}/fd/{fd}"))
    assert stranger.wire.recv() in (errno.EACCES, errno.EPERM)
    is_lost, text = stranger.wire.recv()
    assert is_lost
    assert "ermission" in text or "ermitted" in text
    stranger.end()
    assert os.fstat(fd).st_mode & 0o777 == 0o600


def test_nobody_can_shrink_a_segment() -> None:
    with SharedPool() as pool, pool.acquire(10) as buffer, pytest.raises(PermissionError):
        os.ftruncate(buffer._held().memory.fd, 0)


def test_where_there_are_no_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempool.shared.segment, "_has_shared_memory", lambda: False)
    with pytest.raises(OSError, match="needs Linux") as caught:
        SharedPool()
    assert caught.value.errno == errno.ENOSYS


def test_another_file_behind_the_descriptor(tmp_path: Any) -> None:
    """A place whose process or descriptor is another's by now is not opened: that may have effects."""
    pool = SharedPool()
    buffer = pool.acquire(10)
    function, arguments = buffer.__reduce_ex__(4)
    pool.close()
    buffer.release()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    places = ((os.getpid(), reader), (os.getpid(), 999_999), (2**22 + 1, 3))
    late = function(places, *arguments[1:])
    os.close(reader)
    assert late.lost
    assert "gone or has dropped it" in repr(late)


@pytest.mark.parametrize(
    ("field", "value"),
    [(4, 1 << 40), (4, -1), (4, 200), (6, 1 << 40), (6, -1), (5, 99), (3, bytes(16))],
)
@pytest.mark.parametrize("home", [True, False])
def test_a_wrong_message_is_lost(field: int, value: Any, home: bool) -> None:
    pool = SharedPool()
    buffer = pool.acquire(10)
    function, arguments = buffer.__reduce_ex__(4)
    if not home:
        pool.close()  # so that it is opened, and does not come home
    assert function(*arguments) == buffer
    wrong = list(arguments)
    wrong[field] = value
    assert function(*wrong).lost


def test_an_idle_block_does_not_come_home() -> None:
    pool = SharedPool()
    function, arguments = pool.acquire(10).__reduce_ex__(4)
    assert function(*arguments[:4], 1, *arguments[5:]).lost
    assert not function(*arguments).lost


def test_exit_waits_for_messages_and_not_for_ever(run_python: Any) -> None:
    """`linger` bounds the wait for messages that nobody reads."""
    code = """
        import pickle, sys, time
        from mempool.shared import SharedPool
        pool = SharedPool(linger=float(sys.argv[1]))
        pickle.dumps(pool.acquire(10))
        import atexit
        from mempool.shared import registry
        start = time.monotonic()
        registry.wait_for_messages()
        print(time.monotonic() - start >= float(sys.argv[1]))
        pool._books.terms = pool._books.terms._replace(linger=0)
        """
    assert run_python(code, 0.05).stdout == "True\n"
    assert run_python(code, 0).stdout == "True\n"


def test_threads_receive_at_once() -> None:
    """Many threads open messages of a closed pool at the same time."""
    pool = SharedPool()
    buffer = filled(pool, 7)
    messages = [[pickle.dumps(buffer) for _ in range(10)] for _ in range(4)]
    pool.close()

    def receive(mine: list[bytes]) -> list[bool]:
        return [bool((pickle.loads(message).array() == 7).all()) for message in mine]

    found = together([lambda mine=mine: receive(mine) for mine in messages])  # type: ignore[misc]
    assert found == [[True] * 10] * 4
