"""A mapped array against a plain list of rows, and `open_array` against NumPy on whatever dtype, shape, order and offset."""

import gc
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import mempool
from mapping_kit import charged

PAGE = 4096
WIDTH = 100
ROW = WIDTH * 4
COUNTS = st.one_of(st.integers(0, 3), st.integers(0, 60), st.sampled_from([10, 11, 205, 1025]))


@pytest.fixture(autouse=True, scope="module")
def no_garbage_of_others() -> None:
    gc.collect()


class View:
    """An array held by somebody: the model's rows that it shows, zeros where rows went."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.lowest = len(array)  # rows that never went since


class ArrayMachine(RuleBasedStateMachine):
    @initialize(kind=st.sampled_from(["npy", "raw", "anonymous", "shared"]), offset=st.sampled_from([0, 7, PAGE]))
    def make(self, kind: str, offset: int) -> None:
        self.folder, self.kind, self.offset = Path(tempfile.mkdtemp()), kind, offset
        self.path = self.folder / "a.npy"
        self.model: list[int] = []
        self.told = 0  # rows that the header has to tell of, at least
        self.views: list[View] = []
        self.start = charged()
        self.tag = 0
        if kind == "npy":
            self.array = mempool.create_array(self.path, (0, WIDTH), "<i4")
        elif kind == "raw":
            self.array = mempool.open_array(self.path, "w+", dtype="<i4", shape=(0, WIDTH), offset=offset)
        else:
            self.array = mempool.anonymous_array((0, WIDTH), "<i4", max_rows=3000, shared=kind == "shared")
        self.address = 0

    def next_tag(self) -> int:
        self.tag += 1
        return self.tag

    @rule(count=COUNTS)
    def append(self, count: int) -> None:
        tag = self.next_tag()
        if len(self.model) + count > (self.array.max_rows or 0):
            with pytest.raises(ValueError, match="rows only"):
                self.array.append(np.full((count, WIDTH), tag, "<i4"))
            return
        self.array.append(np.full((count, WIDTH), tag, "<i4"))
        self.model += [tag] * count

    @rule(count=st.one_of(COUNTS, st.integers(0, 2000)))
    def resize(self, count: int) -> None:
        self.array.resize(count)
        self.model = self.model[:count] + [0] * (count - len(self.model))
        self.told = min(self.told, count)
        for view in self.views:
            view.lowest = min(view.lowest, count)

    @precondition(lambda self: self.model)
    @rule(at=st.integers(0, 5000), view=st.booleans())
    def write(self, at: int, view: bool) -> None:
        at %= len(self.model)
        tag = self.next_tag()
        held = [one.array for one in self.views if len(one.array) > at and one.lowest > at]
        (held[-1] if view and held else self.array)[at] = tag
        self.model[at] = tag

    @rule()
    def hold(self) -> None:
        self.views.append(View(self.array.array))

    @precondition(lambda self: self.views)
    @rule(which=st.integers(0, 9))
    def let_go(self, which: int) -> None:
        self.views.pop(which % len(self.views))

    @rule(wait=st.booleans(), start=st.none() | st.integers(-5, 50), stop=st.none() | st.integers(-5, 50))
    def flush(self, wait: bool, start: int | None, stop: int | None) -> None:
        self.array.flush(start, stop, wait=wait)
        if wait:
            self.told = len(self.model)

    @rule(step=st.integers(1, 700), drop=st.booleans())
    def stream(self, step: int, drop: bool) -> None:
        blocks = self.array.iter_blocks(step, drop_behind=drop)
        assert [tag for block in blocks for tag in block[:, 0].tolist()] == self.model

    @rule()
    def refuse(self) -> None:
        for call in (lambda: self.array.append(np.zeros((1, WIDTH + 1), "<i4")), lambda: self.array.resize(-1)):
            with pytest.raises(ValueError, match=r"shape|negative"):
                call()

    @precondition(lambda self: self.kind in ("npy", "raw"))
    @rule(mode=st.sampled_from(["r", "c", "r+"]))
    def look_by_another(self, mode: Any) -> None:
        wanted = self.model
        if self.kind == "npy":
            with mempool.open_array(self.path, mode) as other:
                assert self.told <= len(other) <= len(self.model)
                wanted = wanted[: len(other)]
                assert other[:, 0].tolist() == wanted
        else:
            with mempool.open_array(
                self.path, mode, dtype="<i4", shape=(len(wanted), WIDTH), offset=self.offset
            ) as other:
                assert other[:, 0].tolist() == wanted

    @precondition(lambda self: self.kind in ("npy", "raw"))
    @rule(revoke=st.booleans())
    def reopen(self, revoke: bool) -> None:
        self.array.close(revoke=revoke)
        for view in self.views:
            assert not revoke or not view.array.any()
        self.views.clear()
        if self.kind == "npy":
            self.array = mempool.open_array(self.path, "r+")
        else:
            self.array = mempool.open_array(
                self.path, "r+", dtype="<i4", shape=(len(self.model), WIDTH), offset=self.offset
            )
        self.told, self.address = len(self.model), 0

    @invariant()
    def it_is_the_model(self) -> None:
        if not hasattr(self, "array"):
            return
        seen = self.array.array
        assert self.array.shape == seen.shape == (len(self.model), WIDTH)
        assert seen[:, 0].tolist() == seen[:, -1].tolist() == self.model
        address = seen.ctypes.data if len(seen) else self.address
        assert self.address in (0, address)
        self.address = address

    @invariant()
    def held_views_are_the_model_too(self) -> None:
        for view in getattr(self, "views", []):
            for column in (0, -1):
                shown, rows = view.array[:, column].tolist(), len(view.array)
                assert shown[: len(self.model)] == self.model[:rows]
                assert not any(shown[len(self.model) :][PAGE // ROW + 1 :]), "rows that went read zeros"

    @invariant()
    def the_books_are_right(self) -> None:
        if hasattr(self, "array"):
            assert charged() - self.start == -(-len(self.model) * ROW // PAGE) * PAGE

    def teardown(self) -> None:
        if not hasattr(self, "array"):
            return
        self.array.close()
        assert self.kind != "npy" or np.load(self.path)[:, 0].tolist() == self.model
        self.views.clear()
        assert charged() == self.start
        shutil.rmtree(self.folder)


TestArray = ArrayMachine.TestCase
TestArray.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


DTYPES = st.one_of(
    of_numpy.scalar_dtypes(),
    of_numpy.byte_string_dtypes(min_len=1),
    of_numpy.unicode_string_dtypes(min_len=1),
    of_numpy.array_dtypes(of_numpy.scalar_dtypes(), max_size=4),
    of_numpy.nested_dtypes(max_itemsize=400),
).filter(lambda dtype: dtype.itemsize > 0 and dtype.subdtype is None)
SHAPES = of_numpy.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=5)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("opened") / "a.npy"


@settings(max_examples=150)
@given(
    dtype=DTYPES,
    shape=SHAPES,
    order=st.sampled_from(["C", "F"]),
    offset=st.integers(0, 9000),
    mode=st.sampled_from(["r", "r+", "c"]),
)
def test_raw_content(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any, offset: int, mode: Any
) -> None:
    nbytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    content = bytes(range(1, 252)) * (nbytes // 251 + 1)
    path.write_bytes(b"x" * offset + content[:nbytes])
    wanted = np.ndarray(shape, dtype, bytearray(content), order=order)  # type: ignore[call-overload]
    with mempool.open_array(path, mode, dtype=dtype, shape=shape, offset=offset, order=order) as array:
        seen = array.array
        assert (seen.dtype, seen.shape, seen.nbytes) == (wanted.dtype, wanted.shape, wanted.nbytes)
        assert array.strides == seen.strides
        assert seen.strides == wanted.strides or not nbytes
        assert seen.tobytes("A") == wanted.tobytes("A") or dtype.names is not None
        assert array.readonly == (mode == "r")


@settings(max_examples=150)
@given(dtype=DTYPES, shape=SHAPES, order=st.sampled_from(["C", "F"]))
def test_headers_round_trip(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> None:
    with mempool.create_array(path, shape, dtype, order=order, overwrite=True) as array:
        assert (array.dtype, array.shape) == (dtype, shape)
    read = np.load(path, max_header_size=1 << 24)
    with mempool.open_array(path) as array:
        assert (array.dtype, array.shape) == (read.dtype, read.shape) == (dtype, shape)
        assert array.array.flags.f_contiguous == read.flags.f_contiguous


@settings(max_examples=300)
@given(
    text=st.text("{}[](),:'\"uLbNoneTrueFals_0123456789 <>if|$\\\n\tdescrfortran_ordershape", max_size=60),
    at=st.integers(0, 60),
    cut=st.integers(0, 20),
)
def test_headers_with_noise(path: Path, text: str, at: int, cut: int) -> None:
    """An array of what is there, or a `MappingError`; nothing else ever."""
    plain = "{'descr': '<i4', 'fortran_order': False, 'shape': (3, 2), }"
    content = (plain[:at] + text + plain[at + cut :]).encode()
    path.write_bytes(b"\x93NUMPY\1\0" + len(content).to_bytes(2, "little") + content + bytes(24))
    try:
        array = mempool.open_array(path)
    except mempool.MappingError:
        return
    with array:
        assert array.nbytes <= 24
        assert not array.array.tobytes().strip(b"\0")
