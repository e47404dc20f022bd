"""A slab by its contract: handles that name one life of an item, calls for many that do all or nothing, arrays that never move."""

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import mempool
from mempool import Account, SlabAllocator, SlabStats, StaleHandle, accounting
from support import MIB, Strange

SIGNATURES = {
    SlabAllocator: "(item, *, max_items=None, limit=None, account=None, name=None)",
    SlabAllocator.alloc: "()",
    SlabAllocator.free: "(handle)",
    SlabAllocator.alloc_many: "(n)",
    SlabAllocator.free_many: "(handles)",
    SlabAllocator.indices: "(handles)",
    SlabAllocator.handles: "()",
    SlabAllocator.compacted: "()",
    SlabAllocator.stats: "()",
    SlabAllocator.trim: "()",
    SlabAllocator.close: "()",
}
RECORD = [("x", "f8"), ("tag", "u1")]
ITEMS: list[Any] = [1, 16, 100, "f8", "u1", RECORD, ("i4", (3,)), "S5", "M8[ns]"]


def books(slab: SlabAllocator) -> tuple[object, ...]:
    """All that a failed call must leave as it was."""
    return slab.stats(), slab.account.used, slab.handles().tolist(), slab.compacted().tobytes()


@contextmanager
def nothing_changes(slab: SlabAllocator) -> Iterator[None]:
    before = books(slab)
    yield
    assert books(slab) == before


def bare_signature(function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    shown = [one for one in signature.parameters.values() if one.name != "self"]
    return str(signature.replace(parameters=shown, return_annotation=signature.empty))


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signatures(function: Callable[..., Any]) -> None:
    assert bare_signature(function) == SIGNATURES[function]


def test_everything_public_is_documented() -> None:
    assert mempool.SlabAllocator is SlabAllocator
    assert SlabAllocator.__doc__
    for name, member in vars(SlabAllocator).items():
        if not name.startswith("_"):
            assert inspect.getdoc(member), name


def test_the_slab_knows_itself() -> None:
    parent = Account("above")
    slab = SlabAllocator(RECORD, name="mine", account=parent, limit="1MiB", max_items=50)
    assert (slab.name, slab.account.name, slab.dtype, slab.closed) == ("mine", "mine", np.dtype(RECORD), False)
    assert slab.account.parent is parent
    assert (slab.stats().limit, slab.stats().max_items, slab.stats().item_size) == (MIB, 50, 9)
    assert "'mine'" in repr(slab)
    plain = SlabAllocator(16)
    assert plain.dtype is None
    assert plain.account.parent is accounting.root_account()
    assert plain.name != SlabAllocator(16).name
    assert plain.stats().limit is None


@pytest.mark.parametrize("name", ["name", "account", "dtype", "closed", "array"])
def test_what_the_slab_says_of_itself_is_read_only(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(SlabAllocator(8), name, None)


# ---- handles


@pytest.mark.parametrize("item", ITEMS, ids=str)
def test_handles_are_positive_ints_of_64_bits(item: Any) -> None:
    slab = SlabAllocator(item)
    handles = [slab.alloc() for _ in range(300)]
    many = slab.alloc_many(300)
    assert {type(handle) for handle in handles} == {int}
    assert (many.dtype, many.shape) == (np.int64, (300,))
    every = handles + many.tolist()
    assert all(0 < handle < 2**63 for handle in every)
    assert len(set(every)) == len(slab) == 600


def test_a_handle_is_never_that_of_another_life() -> None:
    slab, dice = SlabAllocator(8), random.Random(1)
    live, seen = list[int](), set[int]()
    for _ in range(20_000):
        if live and dice.random() < 0.5:
            slab.free(live.pop(dice.randrange(len(live))))
        else:
            live.append(slab.alloc())
            assert live[-1] not in seen
            seen.add(live[-1])
    assert slab.stats().slots < 1000
    assert sorted(slab) == sorted(live)
    assert all((handle in slab) == (handle in set(live)) for handle in dice.sample(sorted(seen), 500))


def test_one_slot_has_many_lives() -> None:
    slab, seen = SlabAllocator(8, max_items=1), set[int]()
    for _ in range(10_000):
        seen.add(handle := slab.alloc())
        slab.free(handle)
    assert len(seen) == 10_000
    assert (slab.stats().slots, slab.stats().allocs, slab.stats().frees) == (1, 10_000, 10_000)
    assert not any(handle in slab for handle in seen)


USES: dict[str, Callable[[SlabAllocator, Any], object]] = {
    "free": lambda slab, handle: slab.free(handle),
    "get": lambda slab, handle: slab[handle],
    "set": lambda slab, handle: slab.__setitem__(handle, bytes(8)),
    "free_many": lambda slab, handle: slab.free_many([handle]),
    "indices": lambda slab, handle: slab.indices([handle]),
    "get many": lambda slab, handle: slab[[handle]],
    "set many": lambda slab, handle: slab.__setitem__([handle], bytes(8)),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_freed_handle_is_stale(use: Callable[[SlabAllocator, Any], object]) -> None:
    slab = SlabAllocator(8, name="mine")
    kept, gone = slab.alloc(), slab.alloc()
    slab.free(gone)
    for _ in range(2):  # the second time another item is in the slot
        assert gone not in slab
        with nothing_changes(slab), pytest.raises(StaleHandle) as caught:
            use(slab, gone)
        assert isinstance(caught.value, LookupError)
        assert str(gone) in str(caught.value)
        assert "'mine'" in str(caught.value)
        slab.alloc()
    assert kept in slab


FORGED = [
    0,
    1,
    -1,
    5,
    2**33,
    2**62,
    2**63 - 1,
    -(2**63),
    2**63,
    2**64 + 5,
    -(2**64),
    10**30,
    10**5000,
    -(10**5000),
    True,
]


@pytest.mark.parametrize("handle", FORGED, ids=lambda handle: f"{handle:.3e}" if abs(handle) < 1e300 else "huge")
@pytest.mark.parametrize("use", ["free", "get", "set"])
def test_what_was_never_a_handle_is_stale(use: str, handle: int) -> None:
    slab = SlabAllocator(8)
    slab.alloc_many(1000)
    assert handle not in slab
    with nothing_changes(slab), pytest.raises(StaleHandle, match=r"no item of slab") as caught:
        USES[use](slab, handle)
    assert "Exceeds the limit" not in str(caught.value)


@pytest.mark.parametrize("handle", [0, 1, -1, 2**62, 2**63 - 1, -(2**63), 2**63, 2**64 - 1])
@pytest.mark.parametrize("use", ["free_many", "indices", "get many", "set many"])
def test_what_was_never_a_handle_is_stale_among_many(use: str, handle: int) -> None:
    slab = SlabAllocator(8)
    slab.alloc_many(1000)
    with nothing_changes(slab), pytest.raises(StaleHandle) as caught:
        USES[use](slab, handle)
    assert f"handle {handle}, number 0 of 1" in str(caught.value)


def test_forgeries_near_a_handle_are_stale() -> None:
    """Of a live handle each bit is changed, the sign too."""
    slab = SlabAllocator(8)
    handles = slab.alloc_many(64)
    live = set(handles.tolist())
    for handle in live:
        for bit in range(64):
            forged = handle ^ 1 << bit if bit < 63 else handle - 2**63
            assert (forged in slab) == (forged in live)


def test_foreign_handles_are_stale() -> None:
    ours, other = SlabAllocator("f8"), SlabAllocator("f8")
    mine, theirs = ours.alloc_many(10_000), other.alloc_many(10_000)
    with nothing_changes(ours):
        assert not any(handle in ours for handle in theirs.tolist())
        for handle in theirs[::100].tolist():
            with pytest.raises(StaleHandle):
                ours.free(handle)
            with pytest.raises(StaleHandle):
                ours[handle]
        with pytest.raises(StaleHandle):
            ours.free_many(theirs)
    assert len(ours) == len(other) == len(mine)


NO_INTS: list[Any] = [1.0, "5", b"5", None, Strange(), 1j, float("nan")]


@pytest.mark.parametrize("value", NO_INTS, ids=repr)
@pytest.mark.parametrize("use", USES)
def test_other_types_are_no_handles(use: str, value: Any) -> None:
    slab = SlabAllocator(8)
    slab.alloc_many(10)
    assert value not in slab
    with nothing_changes(slab), pytest.raises(TypeError):
        USES[use](slab, value)


@pytest.mark.parametrize("value", [[], [1], (1,), np.zeros(3, "i8"), slice(None), ...], ids=repr)
def test_one_item_is_freed_by_one_handle(value: Any) -> None:
    slab = SlabAllocator(8)
    slab.alloc_many(10)
    with nothing_changes(slab), pytest.raises(TypeError):
        slab.free(value)


class Number:
    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


class Odd(Number):
    def __int__(self) -> int:
        return 5


@pytest.mark.parametrize("kind", [np.int64, np.uint64, Number, Odd], ids=["i8", "u8", "__index__", "__int__ too"])
def test_handles_are_whatever_has_an_index(kind: Callable[[int], Any]) -> None:
    slab = SlabAllocator(8)
    handle = slab.alloc()
    slab[kind(handle)] = b"12345678"
    assert bytes(slab[kind(handle)]) == b"12345678"
    assert kind(handle) in slab
    slab.free(kind(handle))
    assert handle not in slab


def test_an_array_without_dimensions_is_many_handles() -> None:
    slab = SlabAllocator("f8")
    handle = slab.alloc()
    slab[np.array(handle)] = 5.0
    assert (slab[np.array(handle)], slab.indices(np.array(handle)), slab.indices(handle).shape) == (5.0, 0, ())
    slab.free(np.array(handle))
    assert len(slab) == 0


def test_items_are_not_deleted_by_del() -> None:
    slab = SlabAllocator(8)
    handle = slab.alloc()
    with nothing_changes(slab), pytest.raises(TypeError, match="free"):
        del slab[handle]


# ---- many at once


@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 1000, 100_000])
def test_many_come_and_go(n: int) -> None:
    slab = SlabAllocator(8)
    handles = slab.alloc_many(n)
    assert (handles.shape, len(slab), slab.stats().allocs) == ((n,), n, n)
    assert slab.handles().tolist() == handles.tolist()
    slab.free_many(handles)
    assert (len(slab), slab.stats().frees) == (0, n)


def test_many_fill_the_gaps() -> None:
    slab = SlabAllocator("i8")
    handles = slab.alloc_many(1000)
    slab[handles] = np.arange(1000)
    slab.free_many(handles[::3])
    slab.free_many(handles[601::6])
    freed = 1000 - len(slab)
    more = slab.alloc_many(freed)
    assert (slab.stats().slots, len(slab)) == (1000, 1000)
    kept = np.isin(handles, slab.handles())
    assert (slab[handles[kept]] == np.arange(1000)[kept]).all()
    assert sorted(slab.indices(more).tolist() + slab.indices(handles[kept]).tolist()) == list(range(1000))


WAYS: dict[str, Callable[[Any], Any]] = {
    "array": lambda handles: handles,
    "list": lambda handles: handles.tolist(),
    "tuple": lambda handles: tuple(handles.tolist()),
    "two dimensions": lambda handles: handles.reshape(10, -1),
    "Fortran order": lambda handles: np.asfortranarray(handles.reshape(10, -1)),
    "reversed": lambda handles: handles[::-1],
    "every other": lambda handles: np.repeat(handles, 2)[::2],
    "unsigned": lambda handles: handles.astype("u8"),
    "big endian": lambda handles: handles.astype(">i8"),
    "read-only": lambda handles: np.frombuffer(handles.tobytes(), "i8"),
    "unaligned": lambda handles: np.frombuffer(b"x" + handles.tobytes(), "i8", offset=1),
    "memoryview": lambda handles: memoryview(handles),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_handles_of_any_layout(way: Callable[[Any], Any]) -> None:
    slab = SlabAllocator("i8")
    handles = slab.alloc_many(200)
    slab[handles] = np.arange(200)
    given = way(handles)
    shape = np.asarray(given).shape
    found = slab.indices(given)
    assert (found.dtype, found.shape) == (np.intp, shape)
    assert sorted(slab[given].reshape(-1).tolist()) == list(range(200))
    assert (slab.array[found] == slab[given]).all()
    slab.free_many(given)
    assert len(slab) == 0


@pytest.mark.parametrize("bad", ["stale", "twice", "foreign", "zero", "negative"])
@pytest.mark.parametrize("at", [0, 1, 63, 64, 500, 999])
def test_free_many_frees_all_or_none(bad: str, at: int) -> None:
    slab, other = SlabAllocator("i8", name="mine"), SlabAllocator("i8")
    handles = slab.alloc_many(1001)
    slab[handles] = np.arange(1001)
    views = [slab[handle] for handle in handles[5:15].tolist()]
    given, gone = handles[:1000].copy(), handles[1000]
    slab.free(gone)
    twice = given[at - 1] if at else given[1]
    given[at] = {"stale": gone, "twice": twice, "foreign": other.alloc(), "zero": 0, "negative": -5}[bad]
    at = 1 if bad == "twice" and at == 0 else at
    with nothing_changes(slab), pytest.raises(StaleHandle) as caught:
        slab.free_many(given)
    for word in (str(given[at]), f"number {at} of 1000", "'mine'"):
        assert word in str(caught.value)
    del views
    assert slab.stats().retired == 0
    slab.free_many(handles[:1000])
    assert len(slab) == 0


def test_free_many_of_an_item_shared_by_two_views() -> None:
    """A failed call leaves pinned items pinned."""
    slab = SlabAllocator(8, max_items=2)
    handle, other = slab.alloc(), slab.alloc()
    view, again = slab[handle], slab[handle]
    for _ in range(3):
        with nothing_changes(slab), pytest.raises(StaleHandle, match="number 2 of 3"):
            slab.free_many([handle, other, handle])
    slab.free_many([other, handle])
    del view
    assert slab.stats().retired == 1
    del again
    assert slab.stats().retired == 0


@pytest.mark.parametrize(
    "value", [[1.5], [None], ["5"], [True, False], [Strange()], [1j], np.zeros(2, "M8[s]"), [[1.0]]], ids=repr
)
@pytest.mark.parametrize("use", ["free_many", "indices"])
def test_what_holds_no_integers_holds_no_handles(use: str, value: Any) -> None:
    slab = SlabAllocator(8)
    slab.alloc_many(10)
    with nothing_changes(slab), pytest.raises(TypeError):
        getattr(slab, use)(value)


@pytest.mark.parametrize(
    "nothing", [[], (), np.zeros(0, "i8"), np.zeros((0, 5), "i8"), np.zeros((5, 0)), [[], []]], ids=repr
)
def test_no_handles(nothing: Any) -> None:
    slab = SlabAllocator("f8")
    slab.alloc_many(10)
    with nothing_changes(slab):
        slab.free_many(nothing)
        assert slab.indices(nothing).shape == slab[nothing].shape == np.asarray(nothing).shape
        slab[nothing] = 5


# ---- the whole


def test_length_iteration_and_membership() -> None:
    slab = SlabAllocator(8)
    assert (len(slab), list(slab), slab.handles().shape) == (0, [], (0,))
    handles = slab.alloc_many(200).tolist()
    slab.free_many(handles[::2])
    assert list(slab) == slab.handles().tolist() == handles[1::2]
    assert {type(handle) for handle in slab} == {int}
    assert all(handle in slab for handle in handles[1::2])
    assert not any(handle in slab for handle in handles[::2])
    assert slab.handles().dtype == np.int64


def test_iteration_goes_over_what_lives_when_it_begins() -> None:
    slab = SlabAllocator(8)
    first = slab.alloc_many(10).tolist()
    for handle in slab:
        slab.free(handle)
        slab.alloc_many(3)
    assert not any(handle in slab for handle in first)
    assert len(slab) == 30


def test_live_items_in_one_piece() -> None:
    slab = SlabAllocator("i4")
    handles = slab.alloc_many(1000)
    slab[handles] = np.arange(1000)
    view = slab[int(handles[4])]
    gone = np.arange(1000) % 7 == 4
    slab.free_many(handles[gone])
    copied = slab.compacted()
    assert (slab.stats().retired, int(view)) == (1, 4)
    assert (copied == np.arange(1000)[~gone]).all()
    assert (copied == slab[slab.handles()]).all()
    assert copied.base is None
    copied[:] = 0
    assert slab[handles[0]] == 0
    assert slab[handles[999]] == 999
    assert SlabAllocator(3).compacted().shape == (0, 3)


def test_stats_are_an_immutable_record() -> None:
    stats = SlabAllocator(8).stats()
    assert isinstance(stats, SlabStats)
    with pytest.raises(AttributeError):
        stats.live = 5
    assert stats == SlabAllocator(8).stats()
    assert "item_size=8" in repr(stats)


# ---- the end, the beginning, and other classes


CALLS: dict[str, Callable[[SlabAllocator, int], object]] = {
    "alloc": lambda slab, handle: slab.alloc(),
    "alloc_many": lambda slab, handle: slab.alloc_many(3),
    "alloc_many of none": lambda slab, handle: slab.alloc_many(0),
    "alloc_many of too many": lambda slab, handle: slab.alloc_many(2**60),
    "free": lambda slab, handle: slab.free(handle),
    "free stale": lambda slab, handle: slab.free(7),
    "free_many": lambda slab, handle: slab.free_many([handle]),
    "free_many of none": lambda slab, handle: slab.free_many([]),
    "indices": lambda slab, handle: slab.indices([handle]),
    "get": lambda slab, handle: slab[handle],
    "get many": lambda slab, handle: slab[[handle]],
    "set": lambda slab, handle: slab.__setitem__(handle, bytes(8)),
    "set many": lambda slab, handle: slab.__setitem__([handle], 0),
    "in": lambda slab, handle: handle in slab,
    "len": lambda slab, handle: len(slab),
    "iter": lambda slab, handle: iter(slab),
    "array": lambda slab, handle: slab.array,
    "memoryview": lambda slab, handle: memoryview(slab),
    "handles": lambda slab, handle: slab.handles(),
    "compacted": lambda slab, handle: slab.compacted(),
    "trim": lambda slab, handle: slab.trim(),
    "with": lambda slab, handle: slab.__enter__(),
}


@pytest.mark.parametrize("viewed", [False, True], ids=["", "viewed"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_closed_slab_refuses_by_name(call: Callable[[SlabAllocator, int], object], viewed: bool) -> None:
    slab = SlabAllocator(8, name="gone")
    handle = slab.alloc()
    views = (slab.array, slab[handle]) if viewed else ()
    slab.close()
    before = slab.stats()
    with pytest.raises(ValueError, match=r"slab 'gone' is closed"):
        call(slab, handle)
    assert slab.stats() == before
    del views


def test_close_gives_everything_back() -> None:
    account = Account("a")
    slab = SlabAllocator(100, account=account, name="s")
    slab.alloc_many(10_000)
    assert account.used == slab.stats().reserved > 1_000_000
    slab.close()
    slab.close()
    assert (account.used, slab.stats().reserved, slab.stats().address_space) == (0, 0, 0)
    assert slab.closed
    assert "closed" in repr(slab)


def test_views_outlive_close() -> None:
    account = Account("a")
    slab = SlabAllocator(100, account=account)
    handle = slab.alloc()
    slab[handle] = b"x" * 100
    whole, item = slab.array, slab[handle]
    slab.close()
    assert (account.used, whole[0, 99], bytes(item)) == (slab.stats().reserved, ord("x"), b"x" * 100)
    item[5] = 7
    assert (whole[0, 5], account.used > 0) == (7, True)
    del whole
    assert (item[5], account.used > 0) == (7, True)
    del item
    assert account.used == slab.stats().reserved == 0


def test_with_closes() -> None:
    with SlabAllocator(8) as slab:
        slab.alloc()
    assert slab.closed
    with pytest.raises(ZeroDivisionError), SlabAllocator(8) as slab:
        _ = 1 / 0
    assert slab.closed


def test_a_slab_that_was_never_initialised() -> None:
    slab = SlabAllocator.__new__(SlabAllocator)
    for call in [*CALLS.values(), lambda slab, handle: slab.stats(), lambda slab, handle: slab.close()]:
        with pytest.raises(ValueError, match="never initialised"):
            call(slab, 5)
    assert "not initialised" in repr(slab)
    slab.__init__(8)  # type: ignore[misc]
    assert slab.alloc() in slab


def test_nothing_is_initialised_twice() -> None:
    slab = SlabAllocator(8, name="once")
    slab.alloc()
    with nothing_changes(slab), pytest.raises(RuntimeError, match="once"):
        slab.__init__(16, name="twice")  # type: ignore[misc]
    slab.close()
    with pytest.raises(RuntimeError, match="once"):
        slab.__init__(16)  # type: ignore[misc]


def test_a_failed_initialisation_may_be_repeated() -> None:
    slab = SlabAllocator.__new__(SlabAllocator)
    with pytest.raises(ValueError, match="0"):
        slab.__init__(0)  # type: ignore[misc]
    slab.__init__("f8")  # type: ignore[misc]
    assert slab.alloc() in slab


@pytest.mark.parametrize("argument", ["item", "max_items", "limit"])
def test_a_slab_is_initialised_once_even_by_its_arguments(argument: str) -> None:
    class Sly:
        def __index__(self) -> int:
            slab.__init__(8, name="inner", account=parent)  # type: ignore[misc]
            handles.append(slab.alloc())
            return 1 << 20

    parent, handles = Account("parent"), list[int]()
    slab = SlabAllocator.__new__(SlabAllocator)
    with pytest.raises(RuntimeError, match="inner"):
        slab.__init__(**({"item": 4, "name": "outer", "account": parent} | {argument: Sly()}))  # type: ignore[misc]
    assert (slab.name, slab.account.name, list(slab)) == ("inner", "inner", handles)
    assert parent.children == (slab.account,)
    assert parent.used == slab.stats().reserved


def test_slabs_can_be_subclassed() -> None:
    class Mine(SlabAllocator):
        def alloc(self) -> int:
            handle = super().alloc()
            self[handle] = b"new!"
            return handle

    slab = Mine(4, max_items=3)
    slab.extra = 5
    assert bytes(slab[slab.alloc()]) == b"new!"
    assert type(slab).__name__ in type(slab).__qualname__
