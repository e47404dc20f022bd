"""Mapped arrays through DLPack: the read-only flag, devices and copies."""

from pathlib import Path

import numpy as np
import pytest

import mempool


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with mempool.create_array(tmp_path / "x.npy", (5, 3), "<f8") as array:
        array[:] = np.arange(15.0).reshape(5, 3)
    return tmp_path / "x.npy"


def test_read_only_says_so(path: Path) -> None:
    with mempool.open_array(path) as array:
        seen = np.from_dlpack(array)
        assert not seen.flags.writeable
        assert (seen == array.array).all()
        assert seen.ctypes.data == array.array.ctypes.data
        with pytest.raises(BufferError):
            array.__dlpack__()  # the capsule of old has no such flag


def test_writable_is_writable(path: Path) -> None:
    with mempool.open_array(path, "r+") as array:
        np.from_dlpack(array)[1, 1] = 99.0
        assert array[1, 1] == 99.0


def test_a_copy_is_a_copy(path: Path) -> None:
    with mempool.open_array(path) as array:
        copy = np.from_dlpack(array, copy=True)
        copy[0, 0] = 5.0
        assert array[0, 0] == 0.0


def test_the_device_is_the_cpu(path: Path) -> None:
    with mempool.open_array(path) as array:
        assert array.__dlpack_device__() == (1, 0)
        with pytest.raises((BufferError, ValueError)):
            array.__dlpack__(dl_device=(2, 0))


def test_the_view_keeps_the_memory(path: Path) -> None:
    array = mempool.open_array(path)
    seen = np.from_dlpack(array)
    array.close()
    assert seen[4, 2] == 14.0
    with pytest.raises(ValueError, match="closed"):
        array.__dlpack__()
    with pytest.raises(ValueError, match="closed"):
        array.__dlpack_device__()
