"""PyTorch as a consumer of leases, mapped arrays and what NumPy makes of them; DLPack's flags as other consumers see them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mempool
from lease_views import lend, lend_to_strangers, pattern

torch = pytest.importorskip("torch")

SIZE = 4096


@pytest.fixture
def pool() -> mempool.BufferPool:
    return mempool.BufferPool(idle_timeout=None)


def held(pool: mempool.BufferPool) -> int:
    stats = pool.stats()
    return stats.in_use + stats.retired


WAYS: dict[str, Callable[[mempool.Buffer], Any]] = {
    "from_dlpack": lambda b: torch.from_dlpack(b),
    "frombuffer": lambda b: torch.frombuffer(b, dtype=torch.uint8),
    "frombuffer of a view": lambda b: torch.frombuffer(memoryview(b), dtype=torch.uint8),
    "from_numpy": lambda b: torch.from_numpy(b.array()),
    "as_tensor": lambda b: torch.as_tensor(b.array()),
    "asarray": lambda b: torch.asarray(b.array()),
    "a slice": lambda b: torch.from_dlpack(b)[1:].view(-1),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_tensor_sees_the_memory_and_keeps_it(pool: mempool.BufferPool, way: str) -> None:
    buffer = lend(pool, SIZE)
    tensor = WAYS[way](buffer)
    shift = SIZE - tensor.numel()
    assert tensor.data_ptr() == buffer.address + shift
    buffer[SIZE - 1] = 99
    assert int(tensor[-1]) == 99
    tensor[-1] = pattern(SIZE)[-1]
    buffer.release()
    assert pool.stats().retired > 0
    lend_to_strangers(pool, SIZE)
    assert bytes(tensor.tolist()) == pattern(SIZE)[shift:]
    del tensor
    assert held(pool) == 0


def test_a_copy_is_a_lease_of_its_own(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    tensor = torch.from_dlpack(buffer, copy=True)
    assert tensor.data_ptr() != buffer.address
    tensor[:] = 0
    assert buffer.tobytes() == pattern(SIZE)
    buffer.release()
    del tensor
    assert held(pool) == 0


def test_through_numpy_and_back(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    array = np.from_dlpack(torch.from_dlpack(buffer.array("<f4", (SIZE // 16, 4))))
    assert array.ctypes.data == buffer.address
    assert array.shape == (SIZE // 16, 4)
    buffer.release()
    lend_to_strangers(pool, SIZE)
    assert array.tobytes() == pattern(SIZE)
    del array
    assert held(pool) == 0


def test_a_released_buffer(pool: mempool.BufferPool) -> None:
    buffer = lend(pool, SIZE)
    buffer.release()
    with pytest.raises(ValueError, match="released"):
        torch.from_dlpack(buffer)


def test_a_mapped_array(tmp_path: Path) -> None:
    array = mempool.create_array(tmp_path / "x.npy", (5, 3), "f4")
    tensor = torch.from_dlpack(array)
    tensor[2, 1] = 7.0
    assert tensor.shape == (5, 3)
    assert array[2, 1] == 7.0
    array.close()
    assert float(tensor[2, 1]) == 7.0
    with pytest.raises(ValueError, match="closed"):
        torch.from_dlpack(array)
