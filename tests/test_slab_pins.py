"""An item that is viewed keeps its slot, whoever views it and whatever became of item and slab; and the collector finds its way."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mempool import SlabAllocator

NESTED = np.dtype([("at", [("x", "f4"), ("y", "f4")]), ("inner", [("deep", [("z", "i8")]), ("n", "u1")], (2,))])
RECORD = np.dtype((np.record, [("x", "f8"), ("y", "i4")]))


def one(item: Any, value: Any = None) -> tuple[SlabAllocator, int]:
    """A slab that has room for one item, and that item."""
    slab = SlabAllocator(item, max_items=1)
    handle = slab.alloc()
    if value is not None:
        slab[handle] = value
    return slab, handle


BYTE_VIEWS: dict[str, Callable[[Any], Any]] = {
    "memoryview": lambda item: item,
    "slice": lambda item: item[2:5],
    "slice of a slice": lambda item: item[2:7][::2],
    "memoryview of it": lambda item: memoryview(item),
    "cast": lambda item: item.cast("Q"),
    "readonly": lambda item: item.toreadonly(),
    "frombuffer": lambda item: np.frombuffer(item, "u4"),
    "asarray": lambda item: np.asarray(item)[3:],
    "ndarray": lambda item: np.ndarray(8, "u1", buffer=item),
    "pickle buffer": lambda item: pickle.PickleBuffer(item),
}
RECORD_VIEWS: dict[str, Callable[[Any], Any]] = {
    "record": lambda item: item,
    "field of records": lambda item: item["at"],
    "field of a field": lambda item: item["inner"][1]["deep"],
    "sub-array": lambda item: item["inner"],
    "column of a sub-array": lambda item: item["inner"]["n"],
    "array": lambda item: np.asarray(item),
    "array of a field": lambda item: np.asarray(item)["at"]["x"],
    "memoryview": lambda item: memoryview(np.asarray(item)["at"]),
    "frombuffer": lambda item: np.frombuffer(item, "u1"),
    "view": lambda item: np.asarray(item).view("V26"),
}
PLAIN_VIEWS: dict[str, Callable[[Any], Any]] = {
    "array": lambda item: item,
    "view": lambda item: item.view("i8"),
    "reshaped": lambda item: item.reshape(1),
    "broadcast": lambda item: np.broadcast_to(item, (3, 3)),
    "real part": lambda item: item.real,
    "memoryview": lambda item: memoryview(item),
    "dlpack": lambda item: np.from_dlpack(item),
}
PINS = [
    pytest.param(item, make, id=f"{item if isinstance(item, (int, str)) else 'record'}-{name}")
    for item, table in ((8, BYTE_VIEWS), (NESTED, RECORD_VIEWS), ("f8", PLAIN_VIEWS))
    for name, make in table.items()
]


@pytest.mark.parametrize(("item", "make"), PINS)
def test_an_item_that_is_viewed_keeps_its_slot(item: Any, make: Callable[[Any], Any]) -> None:
    slab, handle = one(item)
    slab.array.view("u1")[:] = 0x41
    view = make(slab[handle])
    before = np.asarray(view).tobytes()
    slab.free(handle)
    stats = slab.stats()
    assert (stats.live, stats.retired, len(slab), stats.frees) == (0, 1, 0, 1)
    for call in (slab.alloc, lambda: slab.alloc_many(1), lambda: slab.alloc_many(2)):
        with pytest.raises(MemoryError):
            call()
    assert handle not in slab
    assert slab.handles().size == slab.compacted().size == slab.trim() == 0
    gc.collect()
    assert np.asarray(view).tobytes() == before
    del view
    assert (slab.stats().retired, slab.stats().frees) == (0, 1)
    assert slab.alloc() != handle


@pytest.mark.parametrize(("item", "make"), PINS)
def test_a_view_that_dies_before_the_item_pins_nothing(item: Any, make: Callable[[Any], Any]) -> None:
    slab, handle = one(item)
    view = make(slab[handle])
    del view
    slab.free(handle)
    assert slab.stats().retired == 0
    assert slab.alloc() != handle


COPIES: list[tuple[Any, Callable[[Any], Any]]] = [
    (8, bytes),
    (8, lambda item: item.tolist()),
    (8, lambda item: item[3]),
    (8, lambda item: np.array(item)),
    (NESTED, copy.copy),
    (NESTED, copy.deepcopy),
    (NESTED, lambda item: item.copy()),
    (RECORD, lambda item: item.item()),
    (NESTED, lambda item: item["at"]["x"]),
    (NESTED, lambda item: item["inner"].copy()),
    (NESTED, lambda item: pickle.loads(pickle.dumps(item))),
    ("f8", float),
    ("f8", lambda item: item[()]),
    ("f8", lambda item: item + 1),
    ("f8", lambda item: item.copy()),
    ("f8", copy.deepcopy),
]


@pytest.mark.parametrize(("item", "make"), COPIES)
def test_copies_pin_nothing(item: Any, make: Callable[[Any], Any]) -> None:
    slab, handle = one(item)
    kept = make(slab[handle])
    slab.free(handle)
    assert slab.stats().retired == 0
    assert slab.alloc() != handle
    del kept


def test_the_last_of_many_views_frees_the_slot() -> None:
    slab, handle = one(8)
    views = [slab[handle] for _ in range(100)]
    slab.free(handle)
    while views:
        assert slab.stats().retired == 1
        views.pop(len(views) // 2)
    assert slab.stats().retired == 0
    slab.alloc()


def test_released_by_hand() -> None:
    slab, handle = one(8)
    with slab[handle] as view:
        slab.free(handle)
        view[0] = 5
        assert slab.stats().retired == 1
    assert slab.stats().retired == 0


def test_a_retired_item_is_written_to_by_its_views_alone() -> None:
    slab = SlabAllocator(8)
    handles = slab.alloc_many(100)
    views = [slab[handle] for handle in handles]
    for number, view in enumerate(views):
        view[:] = bytes([number]) * 8
    slab.free_many(handles)
    assert slab.stats().retired == 100
    for handle in slab.alloc_many(100):
        slab[handle] = b"\xff" * 8
    assert (slab.stats().slots, slab.stats().live) == (200, 100)
    assert all(bytes(view) == bytes([number]) * 8 for number, view in enumerate(views))
    del view
    views.clear()
    assert slab.stats().retired == 0
    slab.alloc_many(100)
    assert slab.stats().slots == 200


def test_a_pinned_item_lives_on_unchanged() -> None:
    slab, handle = one(8, b"12345678")
    view = slab[handle]
    assert handle in slab
    assert slab.handles().tolist() == [handle]
    assert slab.compacted().tobytes() == b"12345678"
    del view
    slab[handle] = b"87654321"
    assert handle in slab


def test_a_new_item_has_what_the_last_one_left() -> None:
    slab, handle = one(8, b"12345678")
    slab.free(handle)
    assert bytes(slab[slab.alloc()]) == b"12345678"


def test_an_item_viewed_when_the_slab_ends() -> None:
    for freed in (False, True):
        slab, handle = one(8, b"12345678")
        account, view = slab.account, slab[handle][2:5]
        if freed:
            slab.free(handle)
        slab.close()
        assert (slab.stats().retired, account.used > 0) == (freed, True)
        del slab
        assert (bytes(view), account.used > 0) == (b"345", True)
        del view
        assert account.used == 0


# ---- the collector, weak references, subclasses


def test_slabs_in_cycles_are_collected() -> None:
    class Mine(SlabAllocator):
        pass

    slab = Mine("f8")
    slab.me, slab.view, slab.bound = slab, slab[slab.alloc()], slab.alloc
    gone, account = weakref.ref(slab), slab.account
    assert gc.is_tracked(slab)
    del slab
    gc.collect()
    assert gone() is None
    assert account.used == 0


def test_a_finalizer_uses_its_slab() -> None:
    seen: list[object] = []

    class Mine(SlabAllocator):
        def __del__(self) -> None:
            handle = self.alloc()
            self[handle] = b"12345678"
            seen.append(self[handle])
            seen.append(self.array.tobytes())
            self.close()

    slab: Any = Mine(8)
    account, slab.me = slab.account, slab
    del slab
    gc.collect()
    assert [bytes(one_) for one_ in seen] == [b"12345678"] * 2  # type: ignore[call-overload]
    assert account.used > 0
    seen.clear()
    assert account.used == 0


def test_weak_references() -> None:
    slab, ended = SlabAllocator(8), list[object]()
    slab.alloc()
    ref = weakref.ref(slab, ended.append)
    assert ref() is slab
    del slab
    assert ended == [ref]
    assert ref() is None
