# Who waits for memory: one queue for threads and tasks, in order of arrival.
#
# Only the head of the queue tries; whoever leaves wakes the next. A release wakes the head (csrc/pool.c tells that somebody
# waits). A thread
# waits on a locked lock, which Ctrl-C interrupts; a task is woken through its loop. A wake-up that finds its waiter busy is
# kept for it, so
# none is lost. No lock is held here: the queue is a deque, whose single operations are atomic.
cdef object _allocate_lock, _deque, _monotonic
from _thread import allocate_lock as _allocate_lock
from _collections import deque as _deque  # `collections` is a fifth of the time that importing this package takes
from time import monotonic as _monotonic

# Nobody says when a loop is closed after a task of it was woken, when another thread raises a signal, or (on Windows) when
# Ctrl-C is pressed;
# so whoever waits looks up from time to time.
cdef double LOOK_UP = 0.5


@cython.final
cdef class _Waiter:
    cdef object lock      # of a thread
    cdef object loop      # of a task
    cdef object future
    cdef bint signalled
    cdef bint asked       # others were asked for room

    def signal(self):
        """In the task's loop: let it look again."""
        self.signalled = True
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    cdef bint wake(self) except -1:
        """False if it can never run again."""
        if self.lock is not None:
            try:
                self.lock.release()
            except RuntimeError:
                pass  # it was awake already, and will look once more before it sleeps
            return True
        try:
            self.loop.call_soon_threadsafe(self.signal)
        except RuntimeError:  # a RecursionError is one, too: then the timer of the task looks up
            return not self.loop.is_closed()
        return True

    cdef bint is_dead(self) except -1:
        return self.loop is not None and self.loop.is_closed()


cdef void wake(BufferPool pool) noexcept:
    """Memory came back: let the head of the queue look. An error that its loop raises each time is reported as unraisable."""
    try:
        wake_head(pool)
    except BaseException as error:  # of a signal handler, it came to the wrong place: wake first
        wake_head(pool)
        hand_on(error, None)


cdef int wake_head(BufferPool pool) except -1:
    cdef _Waiter head
    queue = pool._queue()
    while queue:
        try:
            head = queue[0]
        except IndexError:
            return 0
        if head.wake():
            return 0
        forget(queue, head)
    return 0


cdef int forget(object queue, _Waiter waiter) except -1:
    try:
        queue.remove(waiter)
    except ValueError:
        pass  # another thread did it
    return 0


cdef int enter_queue(BufferPool pool, _Waiter waiter) except -1:
    pool._queue().append(waiter)
    mp_pool_set_waiters(pool._c, True)
    return 0


cdef int leave_queue(BufferPool pool, _Waiter waiter) except -1:
    queue = pool._queue()
    forget(queue, waiter)
    if not queue:
        mp_pool_set_waiters(pool._c, False)
    if queue:  # also if somebody came just before the flag fell
        mp_pool_set_waiters(pool._c, True)
        wake_head(pool)
    return 0


cdef bint is_head(BufferPool pool, _Waiter waiter) except -1:
    cdef _Waiter head
    queue = pool._queue()
    while queue:
        try:
            head = queue[0]
        except IndexError:
            break
        if head is waiter:
            return True
        if not head.is_dead():
            return False
        forget(queue, head)
    enter_queue(pool, waiter)  # in the child of a fork: the queue is new
    return queue[0] is waiter


cdef Buffer try_in_turn(BufferPool pool, _Waiter waiter, size_t size):
    """A lease if it is this waiter's turn and there is memory; None: wait on."""
    cdef bint ask = not waiter.asked
    pool._check_open()
    if not is_head(pool, waiter):
        return None
    waiter.asked = True
    return pool._try_acquire(size, ask)


cdef Buffer try_at_last(BufferPool pool, _Waiter waiter, size_t size):
    """The time is over: room may be made now that could not be when it began to wait."""
    cdef Buffer buffer
    waiter.asked = False
    buffer = try_in_turn(pool, waiter, size)
    if buffer is None:
        raise pool._exhausted(size)
    return buffer


cdef Buffer wait_in_thread(BufferPool pool, size_t size, double timeout):
    cdef _Waiter waiter = _Waiter.__new__(_Waiter)
    cdef double deadline = _monotonic() + timeout, left
    cdef Buffer buffer
    try:
        waiter.lock = _allocate_lock()
    except RuntimeError:
        raise MemoryError("no memory for a lock to wait on") from None
    waiter.lock.acquire()
    waiter.asked = not pool._queue()  # before it came here
    try:
        enter_queue(pool, waiter)
        mp_pool_note_wait(pool._c)
        while True:
            buffer = try_in_turn(pool, waiter, size)
            if buffer is not None:
                return buffer
            left = deadline - _monotonic()
            if left <= 0:
                return try_at_last(pool, waiter, size)
            PyErr_CheckSignals()
            waiter.lock.acquire(True, min(left, LOOK_UP))
    finally:
        leave_queue(pool, waiter)


async def _wait_in_task(BufferPool pool, size_t size, double timeout):
    import asyncio

    cdef _Waiter waiter = _Waiter.__new__(_Waiter)
    cdef double deadline = _monotonic() + timeout, left
    cdef Buffer buffer
    waiter.loop = asyncio.get_running_loop()
    waiter.asked = not pool._queue()  # before it came here
    try:
        enter_queue(pool, waiter)
        mp_pool_note_wait(pool._c)
        while True:
            waiter.signalled = False
            buffer = try_in_turn(pool, waiter, size)
            if buffer is not None:
                return buffer
            left = deadline - _monotonic()
            if left <= 0:
                return try_at_last(pool, waiter, size)
            waiter.future = waiter.loop.create_future()
            timer = waiter.loop.call_later(min(left, LOOK_UP), waiter.signal)
            try:
                await waiter.future
            finally:
                timer.cancel()
                waiter.future = None
    finally:
        leave_queue(pool, waiter)


async def _acquire_in_task(BufferPool pool, size_t size, bint zero, double timeout):
    cdef Buffer buffer = pool._first_try(size, timeout)
    if buffer is None:
        buffer = await _wait_in_task(pool, size, timeout)
    return pool._ready_to_use(buffer, zero)


@cython.final
cdef class _AsyncLease:
    """What `BufferPool.acquire_async` returns: awaitable, an asynchronous context manager, and good for `asyncio.create_task`."""

    cdef object _start
    cdef object _coroutine
    cdef Buffer _buffer

    def __init__(self, start):
        self._start = start

    cdef object _running(self):
        if self._coroutine is None:
            self._coroutine = self._start()
        return self._coroutine

    def __await__(self):
        return self._running().__await__()

    def send(self, value):
        return self._running().send(value)

    def throw(self, *error):
        return self._running().throw(*error)

    def close(self):
        if self._coroutine is not None:
            self._coroutine.close()

    async def __aenter__(self):
        self._buffer = await self._running()
        return self._buffer

    async def __aexit__(self, kind, error, traceback):
        self._buffer.release()
