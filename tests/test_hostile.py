"""Objects that release, resize or drop the buffer from the middle of a call on it."""

import contextlib
import gc
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mempool
from lease_views import lend, lend_to_strangers, pattern

SIZE = 4096
needs_python_buffers = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="classes export buffers from Python 3.12 on"
)


@pytest.fixture
def pool() -> mempool.BufferPool:
    return mempool.BufferPool(idle_timeout=None)


class Hostile:
    """Runs an action whenever somebody asks what it is."""

    def __init__(self, action: Callable[[], object], value: Any) -> None:
        self.action, self.value = action, value

    def __index__(self) -> int:
        self.action()
        return int(self.value)

    def __buffer__(self, flags: int) -> memoryview:
        self.action()
        return memoryview(self.value)

    def __eq__(self, other: object) -> bool:
        self.action()
        return False

    def __ge__(self, other: object) -> bool:
        self.action()
        return True

    __hash__ = object.__hash__

    @property
    def dtype(self) -> np.dtype[Any]:
        self.action()
        return np.dtype(self.value)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        self.action()
        raise AttributeError


class HostileList(list[int]):
    """Runs an action when it is iterated."""

    action: Callable[[], object]

    def __iter__(self) -> Iterator[int]:
        self.action()
        return super().__iter__()


def hostile_list(action: Callable[[], object], *items: int) -> HostileList:
    made = HostileList(items)
    made.action = action
    return made


def released_and_lent_on(pool: mempool.BufferPool, buffer: mempool.Buffer) -> Callable[[], None]:
    def act() -> None:
        buffer.release()
        act.strangers = [lend(pool, SIZE) for _ in range(3)]  # type: ignore[attr-defined]

    return act


def set_item(buffer: mempool.Buffer, index: Any, value: Any) -> None:
    buffer[index] = value


Call = Callable[[mempool.Buffer, Callable[[], None]], Any]
CALLS: dict[str, Call] = {
    "b[i]": lambda b, act: b[Hostile(act, 3)],
    "b[i:j]": lambda b, act: bytes(b[Hostile(act, 3) : 9]),
    "b[i] = 0": lambda b, act: set_item(b, Hostile(act, 3), 0),
    "b[0] = x": lambda b, act: set_item(b, 0, Hostile(act, 0)),
    "b[i:j] = data": lambda b, act: set_item(b, slice(Hostile(act, 3), 9), bytes(6)),
    "resize(n)": lambda b, act: b.resize(Hostile(act, 5)),
    "array(offset=)": lambda b, act: b.array(offset=Hostile(act, 8)),
    "array(shape=) iterated": lambda b, act: b.array(shape=hostile_list(act, 8, 8)),
    "array(shape=) indexed": lambda b, act: b.array(shape=Hostile(act, 64)),
    "array(shape=) item": lambda b, act: b.array(shape=(4, Hostile(act, 8))),
    "array(dtype=)": lambda b, act: b.array(Hostile(act, "u4")),
    "dlpack max_version": lambda b, act: b.__dlpack__(max_version=(Hostile(act, 1), 0)),
    "dlpack device": lambda b, act: b.__dlpack__(dl_device=hostile_list(act, 1, 0)),
    "dlpack copy": lambda b, act: b.__dlpack__(dl_device=hostile_list(act, 1, 0), copy=True),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("kept", [False, True], ids=["free", "kept by an ndarray"])
def test_released_in_the_middle(pool: mempool.BufferPool, call: Call, kept: bool) -> None:
    buffer = lend(pool, SIZE)
    array = np.ndarray(3, "u1", buffer=buffer) if kept else None
    act = released_and_lent_on(pool, buffer)
    result: Any = None
    with contextlib.suppress(ValueError):  # none, where a view was there already when it was released
        result = call(buffer, act)
    assert result is None or isinstance(result, bytes)
    assert buffer.released
    assert all(stranger.tobytes() == pattern(SIZE) for stranger in act.strangers)  # type: ignore[attr-defined]
    assert (pool.stats().live, pool.stats().retired) == (3, SIZE if kept else 0)
    del array


@pytest.mark.parametrize("call", [c for name, c in CALLS.items() if name != "resize(n)"])
def test_resized_in_the_middle(pool: mempool.BufferPool, call: Call) -> None:
    """What the call sees is the old length or the new one, never beyond."""
    buffer = lend(pool, SIZE)

    def shrink() -> None:
        try:
            buffer.resize(2)
        except BufferError:
            refused.append(True)

    refused: list[bool] = []
    with contextlib.suppress(IndexError, ValueError):
        call(buffer, shrink)
    assert len(buffer) == (SIZE if refused else 2)


@needs_python_buffers
@pytest.mark.parametrize("call", ["b[i:j] = data", "b == data", "b != data", "data == b"])
def test_data_that_releases(pool: mempool.BufferPool, call: str) -> None:
    buffer = lend(pool, SIZE)
    act = released_and_lent_on(pool, buffer)
    data = Hostile(act, bytes(SIZE))
    if call == "b[i:j] = data":
        buffer[:] = data  # a view was made before the data was asked for
    else:
        assert eval(call, {"b": buffer, "data": data}) is (call == "b != data")
    assert all(stranger.tobytes() == pattern(SIZE) for stranger in act.strangers)  # type: ignore[attr-defined]
    assert pool.stats().retired == 0


@needs_python_buffers
def test_data_that_fails(pool: mempool.BufferPool) -> None:
    def fail() -> None:
        raise RuntimeError("no data")

    buffer = lend(pool, SIZE)
    with pytest.raises(RuntimeError, match="no data"):
        buffer[:] = Hostile(fail, b"")
    with pytest.raises(RuntimeError, match="no data"):
        assert buffer == Hostile(fail, b"")
    assert buffer.tobytes() == pattern(SIZE)
    buffer.resize(5)


@pytest.mark.parametrize("error", [KeyError, RecursionError, KeyboardInterrupt])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_failing_argument_changes_nothing(pool: mempool.BufferPool, call: Call, error: type[BaseException]) -> None:
    def fail() -> None:
        raise error("from within")

    buffer = lend(pool, SIZE)
    with pytest.raises((error, TypeError)):
        call(buffer, fail)
    gc.collect()
    assert buffer.tobytes() == pattern(SIZE)
    assert pool.stats().live == pool.stats().acquires == 1
    buffer.resize(SIZE)


def test_pickler_that_releases(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    views: list[pickle.PickleBuffer] = []

    def release(view: pickle.PickleBuffer) -> None:
        views.append(view)
        buffer.release()
        lend_to_strangers(pool, SIZE)

    frame = pickle.dumps(buffer, protocol=5, buffer_callback=release)
    lend_to_strangers(pool, SIZE)
    with pickle.loads(frame, buffers=views) as copy:
        assert copy.tobytes() == pattern(SIZE)


def test_persistent_id_that_releases(pool: mempool.BufferPool, tmp_path: Any) -> None:
    buffer = lend(pool, SIZE)

    class Releasing(pickle.Pickler):
        def persistent_id(self, obj: object) -> None:
            buffer.release()

    with (tmp_path / "frame").open("wb") as file, pytest.raises(ValueError, match="released"):
        Releasing(file, protocol=5).dump(buffer)
    assert pool.stats().live == 0


def test_file_that_releases_while_it_reads(pool: mempool.BufferPool) -> None:
    """`readinto` of a Python class holds a view; what it writes after the release goes nowhere else."""
    import io

    class Raw(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, target: Any) -> int:
            act()
            target[:5] = b"hello"
            return 5

    buffer = lend(pool, SIZE)
    act = released_and_lent_on(pool, buffer)
    view = memoryview(buffer)
    Raw().readinto(view)
    assert all(stranger.tobytes() == pattern(SIZE) for stranger in act.strangers)  # type: ignore[attr-defined]
    assert bytes(view[:5]) == b"hello"


def test_destructor_of_the_old_value_in_a_swap(pool: mempool.BufferPool) -> None:
    """The last reference to a buffer goes while a call on it is running."""
    buffers = [lend(pool, SIZE)]
    buffers[0][Hostile(buffers.clear, 3)]
    assert pool.stats().live == 0


def test_types_are_closed(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    holder = memoryview(buffer).obj
    with pytest.raises(TypeError):
        mempool.Buffer()
    with pytest.raises(TypeError):
        type("Sub", (mempool.Buffer,), {})
    with pytest.raises(TypeError):
        type("Sub", (type(holder),), {})
    with pytest.raises((TypeError, BufferError, ValueError)):
        memoryview(type(holder)())
    with pytest.raises(TypeError):
        buffer.__init__()  # type: ignore[misc]
    assert buffer.tobytes() == pattern(SIZE)


def test_empty_shell_of_a_buffer() -> None:
    shell = mempool.Buffer.__new__(mempool.Buffer)
    attempts: list[Callable[[], object]] = [
        lambda: shell[0], lambda: shell[:], lambda: len(shell), lambda: memoryview(shell), lambda: shell.array(),
        lambda: shell.tobytes(), lambda: shell.resize(1), lambda: shell.__dlpack__(), lambda: shell.address,
        lambda: pickle.dumps(shell), shell.__enter__,
    ]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(ValueError, match="released"):
            attempt()
    shell.release()
    assert shell.released
    assert repr(shell)
    assert shell == shell
    assert shell != b""


def test_empty_shell_of_a_pool() -> None:
    shell = mempool.BufferPool.__new__(mempool.BufferPool)
    attempts: list[Callable[[], object]] = [
        lambda: shell.acquire(1), lambda: shell.acquire("1KiB"), lambda: shell.acquire_async(1), lambda: shell.reserve(1),
        lambda: shell.trim(), lambda: shell.stats(), lambda: shell.limit, lambda: setattr(shell, "limit", 5), shell.close,
        shell.__enter__,
    ]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(ValueError, match="never initialised"):
            attempt()
    assert repr(shell)
