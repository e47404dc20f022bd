"""Reading ahead: a thread that is a few chunks before the one who takes them.

    consumer   take() <--- ready (a deque, at most `depth` chunks) <--- run() in the thread   source.fill
                    sleeps on `fed`                                       sleeps on `room`

A sleeper says so (`hungry`, `full`), looks once more, and waits on a lock that is always locked; the other side releases it. So a
hand-over that nobody sleeps on costs a deque operation, and no wake-up can be lost. `queue.Queue` takes three locks each way.

The thread keeps this object and never the iterator, so a dropped iterator is collected, and tells the thread to end. It ends before
every fork: what it had read is in `ready` or with the source, so parent and child go on where they were. It holds no lock of
anybody while it reads, so an interpreter may exit without it.

A pipe or socket may have other readers, who take what a poll has seen. So the thread waits in polls only, which `Waker` ends, and
reads with RWF_NOWAIT; where the OS has no such read for a descriptor there is no reading ahead. O_NONBLOCK would bind everybody who
shares the descriptor.
"""

import _thread
import errno
import os
import select
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from mempool._core import Buffer, BufferPool, _lease_ahead, _lease_of_ours
from mempool.io._sources import Descriptor, Placed, Source

__all__ = ["Ahead"]


# Of descriptors that cannot be read without the risk of a wait: terminals, named pipes, and all but files before Linux 6.5.
_NO_SUCH_READ = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class CalledOff(Exception):
    """The thread was to end while it waited for bytes."""


class Waker:
    """A pipe that ends a wait for a descriptor. It closes when nobody has it any more: until then its numbers are its own."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def wait(self, fd: int, timeout: float | None) -> None:
        """Return when `fd` can be read; `CalledOff` when somebody called `wake`."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._reader, select.POLLIN)
        events = poll.poll(None if timeout is None else timeout * 1000)
        if any(found == self._reader for found, _ in events):
            raise CalledOff
        if not events:
            raise TimeoutError("timed out")

    def wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def __del__(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


class Ahead:
    """What the thread and the iterator share."""

    def __init__(self, source: Source, pool: BufferPool, size: int, depth: int) -> None:
        self.source, self.pool, self.size, self.depth = source, pool, size, depth
        self._fill, self._room_for_one = source.fill, source.room(size)
        self._larger = self._room_for_one > size
        self.ready: deque[Buffer] = deque()
        self.error: BaseException | None = None
        self.ended = False  # nothing comes after what is ready
        self.running = False
        self.started = False  # and not yet drained: `take` has to be asked
        self.seek = source.seek if isinstance(source, Placed) else None
        self.place = source.offset if isinstance(source, Placed) else 0  # of the consumer
        self.quit = self.hungry = self.full = False
        self.thread_id = self.native_id = 0
        self._waker: Waker | None = None
        self._fed, self._room, self._over = (_thread.allocate_lock() for _ in range(3))
        self._fed.acquire()
        self._room.acquire()

    # ---- the iterator's side ----

    def start(self) -> bool:
        """Start the thread; False if there can be none, or nothing for it to do."""
        if self.ended:
            return False
        if isinstance(self.source, Descriptor) and not self._arm(self.source):
            self.depth = 0
            return False
        claim = [True]
        try:
            self._over.acquire()
            self.running = self.started = True
            self.quit = False
            _running.add(self)
            self.thread_id = _thread.start_new_thread(self._run, (claim,))
        except BaseException as error:
            with suppress(IndexError):
                claim.pop()  # it did not begin, and will not: a signal came before, or there are no more threads
                self._leave()
            if not isinstance(error, RuntimeError):
                raise
            self.depth = 0
            return False
        return True

    def _arm(self, source: Descriptor) -> bool:
        """Make the waits of a flow such that `pause` ends them."""
        if not hasattr(os, "RWF_NOWAIT"):
            return False
        try:
            self._waker = Waker()
        except (OSError, AttributeError):  # no more descriptors, or no poll
            return False
        source.instead = self._read_now
        return True

    def read(self, lease: Callable[[BufferPool, int], Buffer | None] = _lease_of_ours) -> Buffer | None:
        """Read the next chunk, in the one thread that reads now; None at the end. What stopped the thread is raised here."""
        if self.ended:
            error, self.error = self.error, None
            if error is not None:
                raise error
            self.source.check()
            return None
        size = self.size
        buffer = lease(self.pool, self._room_for_one)
        if buffer is None:
            return None
        try:
            got = self._fill(buffer, size)
            if got == size and not self._larger:
                return buffer
            buffer.resize(got)
        except BaseException:
            buffer.release()
            raise
        self.ended = got < size
        if got:
            return buffer
        buffer.release()
        return None

    def take(self) -> Buffer | None:
        """Return the next chunk; None if the thread has ended and left none."""
        while True:
            if self.ready:
                buffer = self.ready.popleft()
                if self.full:
                    _signal(self._room)
                return buffer
            if not self.running:
                if self.ready:
                    continue
                self.started = False
                return None
            self.hungry = True
            if not self.ready and self.running:
                self._fed.acquire()

    def pause(self) -> None:
        """Tell the thread to end after the chunk that it reads. Does not wait, needs no lock, may run in a finaliser."""
        self.quit = True
        _signal(self._room)
        waker = self._waker
        if waker is not None:
            waker.wake()

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self.running and self.thread_id != _thread.get_ident():
            self._over.acquire()
            self._over.release()

    def close(self) -> None:
        """End the thread, give everything back."""
        self.pause()
        self.join()
        self.ended, self.error = True, None
        while self.ready:
            self.ready.popleft().release()
        self.source.close()

    def __del__(self) -> None:
        self.source.close()

    def lose_thread(self) -> None:
        """In the child of a fork that has no thread."""
        self._over = _thread.allocate_lock()
        self.running, self.ended = False, True
        self.error = RuntimeError(
            "the process was forked while a thread began to read ahead; the chunk that it read is lost here"
        )

    # ---- the thread's side ----

    def _run(self, claim: list[bool]) -> None:
        try:
            claim.pop()
        except IndexError:
            return
        try:
            self.native_id, self.thread_id = _thread.get_native_id(), _thread.get_ident()
            while not self.quit and self._wait_for_room():
                if not self._read_one():
                    break
        finally:
            self._leave()

    def _wait_for_room(self) -> bool:
        while len(self.ready) >= self.depth:
            self.full = True
            if len(self.ready) >= self.depth and not self.quit:
                self._room.acquire()
            self.full = False
            if self.quit:
                return False
        return True

    def _read_one(self) -> bool:
        """Put the next chunk where the consumer finds it; False if there is none, for whatever reason."""
        try:
            buffer = self.read(_lease_ahead)
        except (
            MemoryError,
            ValueError,
        ):  # no room to read ahead: the consumer asks for himself, and hears of it if he must
            return False
        except CalledOff:
            return False
        except Exception as error:  # for the consumer, when he comes to this place
            self.error, self.ended = error.with_traceback(None), True
            return False
        if buffer is None:
            return False
        self.ready.append(buffer)
        if self.hungry:
            self.hungry = False
            _signal(self._fed)
        return not self.ended

    def _read_now(self, part: memoryview) -> int:
        """Read what is there; wait for it in polls only."""
        assert self._waker is not None
        assert isinstance(self.source, Descriptor)
        while not self.quit:
            try:
                self._waker.wait(self.source.fd, self.source.timeout)
            except TimeoutError:  # nobody has waited so long but us: who comes for a chunk waits himself
                break
            try:
                return os.preadv(self.source.fd, (part,), -1, os.RWF_NOWAIT)
            except BlockingIOError:  # another reader was quicker
                continue
            except OSError as error:
                if error.errno not in _NO_SUCH_READ:
                    raise
                self.depth = 0
                break
        raise CalledOff

    def _leave(self) -> None:
        if isinstance(self.source, Descriptor):
            self.source.instead = None
        self._waker = None
        _leaving.append((self.native_id, time.monotonic()))
        _running.discard(self)
        self.running = False
        _signal(self._over)
        _signal(self._fed)


def _signal(lock: "_thread.LockType") -> None:
    """Wake who sleeps on it, or who will next."""
    with suppress(RuntimeError):
        lock.release()


# ---- fork ----

_running: set[Ahead] = set()
_leaving: deque[tuple[int, float]] = deque(maxlen=256)  # native ids of those that left last, and when
_GRACE = 5.0  # seconds; the OS ends a thread a little after Python does, and a machine may stand still


def _before_fork() -> None:
    """End the threads: the child would have none of them, and Python warns of forks with threads running."""
    for ahead in list(_running):
        ahead.pause()
        ahead.join()
    while _leaving:
        with suppress(IndexError):  # another thread forks too
            _wait_for_the_os(*_leaving.popleft())


def _wait_for_the_os(native_id: int, since: float) -> None:
    """Return when the thread is gone for the OS too, by which Python counts threads."""
    end = since + _GRACE  # what has the id later is another
    while time.monotonic() < end and os.path.exists(f"/proc/self/task/{native_id}"):
        time.sleep(0)


def _after_fork() -> None:
    """Forget threads that began while the fork did: they are not here, nor are the chunks that they had in their hands."""
    for ahead in _running:
        ahead.lose_thread()
    _running.clear()
    _leaving.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
