"""How a mapped array ends: views outlive it or read zeros, calls are refused, and no descriptor stays behind."""

import copy
import gc
import os
import pickle
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mempool
from mapping_kit import descriptors, no_descriptor_stays

KINDS = ["r", "r+", "w+", "c", "anonymous", "shared"]
OF_KINDS = pytest.mark.parametrize("kind", KINDS)
ON_LINUX = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts descriptors in /proc")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", np.arange(5000))
    return tmp_path / "a.npy"


def opened(kind: str, path: Path) -> mempool.MappedArray:
    """5000 numbers from 0 on."""
    if kind in ("anonymous", "shared"):
        array = mempool.anonymous_array(5000, "i8", max_rows=9000, shared=kind == "shared")
    elif kind == "w+":
        array = mempool.create_array(path, 5000, "i8", overwrite=True)
    else:
        return mempool.open_array(path, kind)  # type: ignore[arg-type]
    array[:] = np.arange(5000)
    return array


def maps(path: Path) -> int:
    with open("/proc/self/maps") as file:
        return sum(str(path) in line for line in file)


CALLS: dict[str, Callable[[Any], object]] = {
    "array": lambda a: a.array,
    "memoryview": memoryview,
    "asarray": lambda a: a.__array__(),
    "getitem": lambda a: a[0],
    "setitem": lambda a: a.__setitem__(0, 1),
    "flush": lambda a: a.flush(),
    "flush some": lambda a: a.flush(0, 1, wait=False),
    "advise": lambda a: a.advise("normal"),
    "prefetch": lambda a: a.prefetch(),
    "resident": lambda a: a.resident(),
    "lock": lambda a: a.lock(),
    "unlock": lambda a: a.unlock(),
    "iter_blocks": lambda a: a.iter_blocks(10),
    "enter": lambda a: a.__enter__(),
}
GROWING: dict[str, Callable[[Any], object]] = {
    "append": lambda a: a.append([1]),
    "append nothing": lambda a: a.append(np.zeros(0, "i8")),
    "resize": lambda a: a.resize(6000),
    "resize to the same": lambda a: a.resize(5000),
    "shrink": lambda a: a.resize(1),
}


@OF_KINDS
@pytest.mark.parametrize("revoke", [False, True])
def test_everything_after_close(path: Path, kind: str, revoke: bool) -> None:
    array = opened(kind, path)
    blocks = array.iter_blocks(10)
    next(blocks)
    content = path.read_bytes()
    array.close(revoke=revoke)
    for name, call in (CALLS | (GROWING if array.max_rows is not None else {})).items():
        with pytest.raises(ValueError, match="closed"):
            call(array)
            pytest.fail(name)
    with pytest.raises(ValueError, match="closed"):
        next(blocks)
    for _ in range(2):
        array.close()
        array.close(revoke=True)
    assert array.closed
    assert "closed" in repr(array)
    assert (array.shape, array.nbytes, array.strides, len(array), array.dtype) == ((5000,), 40_000, (8,), 5000, "i8")
    assert path.read_bytes() == content


@OF_KINDS
def test_views_outlive_it(path: Path, kind: str) -> None:
    array = opened(kind, path)
    whole, part, view = array.array, array[100:200], memoryview(array)
    weak = weakref.ref(array)
    array.close()
    del array
    assert weak() is None
    assert np.array_equal(whole, np.arange(5000))
    assert (part.tolist(), view[4999]) == (list(range(100, 200)), 4999)
    if whole.flags.writeable:
        whole[150] = -1
        assert (part[50], view[150]) == (-1, -1)
    del whole, view
    assert part[0] == 100


@OF_KINDS
def test_revoked_views_read_zeros(path: Path, kind: str) -> None:
    array = opened(kind, path)
    whole, part, view = array.array, array[100:200], memoryview(array)
    before = path.read_bytes()
    array.close(revoke=True)
    assert not whole.any()
    assert (part.tolist(), view[4999]) == ([0] * 100, 0)
    if kind != "r":
        whole[:] = 7
        view[0] = 8
        assert part[0] == 7
    else:
        with pytest.raises(ValueError, match="read-only"):
            whole[0] = 7
    assert path.read_bytes() == before
    del array
    gc.collect()
    assert whole[0] == (8 if kind != "r" else 0)


@OF_KINDS
def test_revoked_after_close(path: Path, kind: str) -> None:
    array = opened(kind, path)
    view = array.array
    array.close()
    assert view[4999] == 4999
    array.close(revoke=True)
    assert not view.any()


def test_revoke_beyond_the_rows(path: Path) -> None:
    """Views of rows that had gone, and of all that ever was."""
    array = mempool.open_array(path, "r+")
    array.append(np.arange(5000, 50_000))
    view = array.array
    array.resize(10)
    array.close(revoke=True)
    assert not view.any()
    view[:] = 1
    assert np.load(path).tolist() == list(range(10))


@ON_LINUX
@pytest.mark.parametrize("kind", ["r", "r+", "c"])
def test_when_file_and_memory_go(path: Path, kind: str) -> None:
    with no_descriptor_stays(path.parent):
        array = opened(kind, path)
        view = array.array
        assert maps(path) > 0
        assert descriptors(path.parent)[str(path)] == 1
        array.close()
        assert descriptors(path.parent)[str(path)] == 0
        assert maps(path) > 0
        assert view[3] == 3
        del view
        assert maps(path) == 0
    with no_descriptor_stays(path.parent):
        array = opened(kind, path)
        view = array.array
        array.close(revoke=True)
        assert maps(path) == 0
        assert view[3] == 0


@OF_KINDS
def test_context_manager(path: Path, kind: str) -> None:
    array = opened(kind, path)
    with array as same:
        assert same is array
        view = array.array
    assert array.closed
    assert view[7] == 7
    with pytest.raises(ZeroDivisionError), opened(kind, path) as array:
        raise ZeroDivisionError
    assert array.closed
    with opened(kind, path) as array:
        array.close()
    with pytest.raises(ValueError, match="closed"), array:
        pass


def test_file_goes_while_it_is_mapped(path: Path) -> None:
    with mempool.open_array(path, "r+") as array:
        os.unlink(path)
        array.append([5000])
        array.flush()
        assert array.array[-1] == 5000


def test_wrong_flags(path: Path) -> None:
    with mempool.open_array(path, "r+") as array:
        for wrong in (None, 1, "yes"):
            for call in (array.close, array.__class__.close.__get__(array)):
                with pytest.raises(TypeError, match="revoke"):
                    call(revoke=wrong)
            with pytest.raises(TypeError, match="wait"):
                array.flush(wait=wrong)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="drop_behind"):
                array.iter_blocks(5, drop_behind=wrong)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="overwrite"):
                mempool.create_array(path, 5, "u1", overwrite=wrong)  # type: ignore[arg-type]
        assert not array.closed


@OF_KINDS
def test_no_copies_of_it(path: Path, kind: str) -> None:
    array = opened(kind, path)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="MappedArray"):
            attempt(array)
    assert np.array_equal(pickle.loads(pickle.dumps(array.array)), np.arange(5000))
    assert np.array_equal(copy.deepcopy(array.array), np.arange(5000))


def test_it_is_made_by_functions_only() -> None:
    with pytest.raises(TypeError, match="open_array"):
        mempool.MappedArray()
    with pytest.raises(TypeError):
        mempool.MappedArray("a", "r")  # type: ignore[call-arg]


SAFE_BARE = ["array", "closed", "truncated", "max_rows", *CALLS]


@pytest.mark.parametrize("name", SAFE_BARE)
def test_never_opened(name: str) -> None:
    bare = mempool.MappedArray.__new__(mempool.MappedArray)
    call = CALLS.get(name, lambda a: getattr(a, name))
    with pytest.raises(ValueError, match=r"never opened|0-dim"):
        call(bare)
    assert "never opened" in repr(bare)


@pytest.mark.parametrize(
    "call", ["bare.itemsize", "bare.strides", "bare.nbytes", "bare.shape", "bare.resize(1)", "bare.append([1])"]
)
def test_never_opened_tells_nothing_made_up(run_python: Callable[..., Any], call: str) -> None:
    run_python(f"""
        import mempool
        bare = mempool.MappedArray.__new__(mempool.MappedArray)
        try:
            value = {call}
        except (ValueError, TypeError):
            pass
        else:
            assert value in (0, (), None), value
        """)


def test_garbage_of_cycles(path: Path) -> None:
    array = mempool.open_array(path, "r+")
    array.append([1])
    cycle: list[Any] = [array]
    cycle.append(cycle)
    weak = weakref.ref(array)
    del array, cycle
    gc.collect()
    assert weak() is None
    assert len(np.load(path)) == 5001


def test_finalizers_may_use_it(path: Path) -> None:
    seen: list[Any] = []
    array = mempool.open_array(path)
    view = array.array
    weakref.finalize(view, lambda: seen.append(array.closed))
    del view
    assert seen == [False]
    array.close()


BAD: dict[str, Callable[[Path], object]] = {
    "missing": lambda p: mempool.open_array(p.with_name("none")),
    "directory": lambda p: mempool.open_array(p.parent),
    "directory w+": lambda p: mempool.open_array(p.parent, "w+", dtype="u1", shape=5),
    "no header": lambda p: (p.write_bytes(b"x" * 500), mempool.open_array(p)),
    "empty": lambda p: (p.write_bytes(b""), mempool.open_array(p)),
    "cut": lambda p: (os.truncate(p, 1000), mempool.open_array(p)),
    "cut header": lambda p: (os.truncate(p, 50), mempool.open_array(p, "r+")),
    "disagrees": lambda p: mempool.open_array(p, dtype="f4"),
    "too short": lambda p: (p.write_bytes(b"x" * 9), mempool.open_array(p, "r+", dtype="u1", shape=10)),
    "offset": lambda p: (p.write_bytes(b"x" * 9), mempool.open_array(p, "c", dtype="u1", offset=10)),
    "no multiple": lambda p: (p.write_bytes(b"x" * 9), mempool.open_array(p, dtype="f8")),
    "device": lambda p: mempool.open_array("/dev/null", "r+", dtype="u1", shape=0),
    "device w+": lambda p: mempool.open_array("/dev/null", "w+", dtype="u1", shape=5),
    "there": lambda p: mempool.create_array(p, 5, "u1"),
    "no folder": lambda p: mempool.create_array(p.parent / "none" / "a", 5, "u1"),
    "over a directory": lambda p: mempool.create_array(p.parent, 5, "u1", overwrite=True),
}


@ON_LINUX
@pytest.mark.parametrize("name", BAD)
def test_errors_leave_no_descriptor(path: Path, name: str) -> None:
    with suppress(OSError, ValueError):
        BAD[name](path)
    before = sorted(os.listdir(path.parent))
    with no_descriptor_stays(path.parent):
        for _ in range(3):
            with pytest.raises((OSError, ValueError)):
                BAD[name](path)
    assert sorted(os.listdir(path.parent)) == before
    assert maps(path) == 0


@ON_LINUX
def test_calls_leave_no_descriptor(path: Path) -> None:
    with no_descriptor_stays(path.parent):
        for kind in KINDS:
            opened(kind, path).close()
            opened(kind, path).close(revoke=True)
            opened(kind, path)
            view = opened(kind, path).array
            assert view[5] == 5
            del view
    assert maps(path) == 0


@ON_LINUX
def test_descriptors_are_not_inherited(path: Path) -> None:
    with mempool.open_array(path):
        with os.scandir("/proc/self/fd") as found:
            numbers = [int(entry.name) for entry in found if os.path.realpath(entry.path) == str(path)]
        assert [os.get_inheritable(number) for number in numbers] == [False]
