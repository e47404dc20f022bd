"""What makes no sense for a slab is refused by value, and changes nothing."""

import copy
import enum
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mempool import Account, MempoolError, PoolExhausted, SlabAllocator, StaleHandle
from support import MIB, may_raise

Bad = tuple[object, type[Exception], str]
MOST = 1 << 20

BAD_ITEMS: list[Bad] = [
    (0, ValueError, "0"),
    (-1, ValueError, "-1"),
    (-(2**80), ValueError, str(-(2**80))),
    (MOST + 1, ValueError, str(MOST + 1)),
    (1 << 62, ValueError, str(1 << 62)),
    (1 << 63, OverflowError, str(1 << 63)),
    (10**30, OverflowError, str(10**30)),
    (True, TypeError, "True"),
    (None, TypeError, "None"),
    (1.5, TypeError, "1.5"),
    (object, ValueError, "dtype object holds objects"),
    ("O", ValueError, "dtype object holds objects"),
    ([("a", "f8"), ("b", "O")], ValueError, "holds objects"),
    ([("a", [("b", "O", (2,))])], ValueError, "holds objects"),
    (np.dtypes.StringDType(), ValueError, "StringDType"),
    ("V0", ValueError, "V"),
    ("S0", ValueError, "S"),
    ("S", ValueError, "S"),
    ("U", ValueError, "U"),
    ([], ValueError, "[]"),
    (("f8", (0,)), ValueError, "f8"),
    (f"S{MOST + 1}", ValueError, str(MOST + 1)),
    (("u1", (1024, 1025)), ValueError, str(1024 * 1025)),
    ("nonsense", TypeError, "nonsense"),
]
NEVER_A_LIMIT: list[Bad] = [
    (0, ValueError, "0"),
    ("0KiB", ValueError, "'0KiB'"),
    (-1, ValueError, "-1"),
    (1.5, TypeError, "1.5"),
    (True, TypeError, "True"),
    ([1], TypeError, "[1]"),
    ("64 furlongs", ValueError, "'64 furlongs'"),
    (2**63, OverflowError, str(2**63)),
]
NEVER_A_COUNT: list[Bad] = [
    (-1, ValueError, "-1"),
    (-(2**70), ValueError, str(-(2**70))),
    (2**63, (ValueError, OverflowError), str(2**63)),  # type: ignore[list-item]
    (1.5, TypeError, "1.5"),
    (True, TypeError, "True"),
    ("5", TypeError, "'5'"),
    ([1], TypeError, "[1]"),
]
Call = Callable[[Account, Any], object]
CALLS: dict[str, tuple[Call, list[Bad]]] = {
    "item": (lambda account, value: SlabAllocator(value, account=account), BAD_ITEMS),
    "limit": (lambda account, value: SlabAllocator(8, limit=value, account=account), NEVER_A_LIMIT),
    "max_items": (
        lambda account, value: SlabAllocator(8, max_items=value, account=account),
        [*NEVER_A_COUNT, (0, ValueError, "0")],
    ),
    "account": (
        lambda account, value: SlabAllocator(8, account=value),
        [(5, TypeError, "5"), ("io", TypeError, "'io'"), (SlabAllocator, TypeError, "SlabAllocator")],
    ),
    "name": (
        lambda account, value: SlabAllocator(8, name=value, account=account),
        [(5, TypeError, "5"), (b"x", TypeError, "b'x'")],
    ),
    "n": (
        lambda account, value: SlabAllocator(8, account=account).alloc_many(value),
        [*NEVER_A_COUNT, (None, TypeError, "None")],
    ),
}
ROWS = [pytest.param(name, *bad, id=f"{name}: {bad[2]}") for name, (_, table) in CALLS.items() for bad in table]


@pytest.mark.parametrize(("call", "value", "error", "named"), ROWS)
def test_bad_input(call: str, value: object, error: type[Exception], named: str) -> None:
    account = Account("a", limit="1MiB")
    with pytest.raises(error) as caught:
        CALLS[call][0](account, value)
    assert named in str(caught.value)
    caught.value.__traceback__ = None  # which keeps the slab
    assert (account.used, account.peak, account.children) == (0, 0, ())


HUGE = 10**5000  # more digits than Python prints
HUGE_CALLS: dict[str, Callable[[SlabAllocator], object]] = {
    "item": lambda slab: SlabAllocator(HUGE),
    "-item": lambda slab: SlabAllocator(-HUGE),
    "limit": lambda slab: SlabAllocator(8, limit=HUGE),
    "max_items": lambda slab: SlabAllocator(8, max_items=HUGE),
    "-max_items": lambda slab: SlabAllocator(8, max_items=-HUGE),
    "n": lambda slab: slab.alloc_many(HUGE),
    "-n": lambda slab: slab.alloc_many(-HUGE),
    "free": lambda slab: slab.free(HUGE),
    "get": lambda slab: slab[-HUGE],
    "set": lambda slab: slab.__setitem__(HUGE, b""),
}


@pytest.mark.parametrize("call", HUGE_CALLS.values(), ids=HUGE_CALLS.keys())
def test_numbers_too_long_to_print(call: Callable[[SlabAllocator], object]) -> None:
    slab = SlabAllocator(8)
    slab.alloc()
    with pytest.raises((ValueError, OverflowError, LookupError)) as caught:
        call(slab)
    assert "Exceeds the limit" not in str(caught.value)
    assert (len(slab), slab.stats().allocs) == (1, 1)


@pytest.mark.parametrize("arguments", [(), (8, 100), (8, 100, 200)])
def test_switches_are_named(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        SlabAllocator(*arguments)
    with pytest.raises(TypeError, match="nonsense"):
        SlabAllocator(8, nonsense=1)  # type: ignore[call-arg]


class Number:
    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def test_sizes_and_counts_are_whatever_has_an_index() -> None:
    slab = SlabAllocator(Number(24), max_items=Number(100), limit=Number(MIB))
    stats = slab.stats()
    assert (slab.dtype, stats.item_size, stats.max_items, stats.limit) == (None, 24, 100, MIB)
    assert len(slab.alloc_many(Number(7))) == len(slab.alloc_many(np.int32(7))) == 7
    assert SlabAllocator(np.int64(8)).stats().item_size == 8
    assert SlabAllocator(8, limit="1MiB").stats().limit == MIB


@pytest.mark.parametrize("item", [float, "f8", np.float64, np.dtype("f8"), "<f8"])
def test_dtypes_are_whatever_numpy_takes(item: Any) -> None:
    slab = SlabAllocator(item)
    assert (slab.dtype, slab.stats().item_size) == (np.dtype("f8"), 8)


class Text(str):
    __slots__ = ()


class Letter(enum.StrEnum):
    X = "x"


@pytest.mark.parametrize("name", [Text("x"), Letter.X], ids=["subclass", "StrEnum"])
def test_names_may_be_of_a_subclass_of_str(name: str) -> None:
    slab = SlabAllocator(8, name=name, max_items=1)
    assert [slab.name, slab.account.name] == ["x"] * 2
    assert type(slab.name) is str
    with pytest.raises(PoolExhausted, match="'x'"):
        slab.alloc_many(2)


def test_an_account_that_was_never_initialised() -> None:
    slab = SlabAllocator.__new__(SlabAllocator)
    with pytest.raises(ValueError, match="never initialised"):
        slab.__init__(8, account=Account.__new__(Account))  # type: ignore[misc]
    slab.__init__(8)  # type: ignore[misc]
    assert slab.alloc() in slab


def failing(error: Exception) -> Any:
    class Failing:
        def __index__(self) -> int:
            raise error

    return Failing()


@pytest.mark.parametrize(
    "call",
    [
        SlabAllocator,
        lambda value: SlabAllocator(8, max_items=value),
        lambda value: SlabAllocator(8, limit=value),
        lambda value: SlabAllocator(8).alloc_many(value),
        lambda value: SlabAllocator(8).free(value),
        lambda value: SlabAllocator(8)[value],
        lambda value: SlabAllocator(8).__setitem__(value, b""),
        lambda value: value in SlabAllocator(8),
    ],
)
def test_errors_of_an_argument_go_through(call: Callable[[Any], object]) -> None:
    with pytest.raises(ZeroDivisionError, match="mine"):
        call(failing(ZeroDivisionError("mine")))


@pytest.mark.parametrize("use", ["free", "get", "set", "in", "n"])
def test_an_argument_that_closes_the_slab(use: str) -> None:
    slab = SlabAllocator(8, name="gone")
    handle = slab.alloc()

    class Sly:
        def __index__(self) -> int:
            slab.close()
            return 5 if use == "n" else handle

        __int__ = __index__

    calls: dict[str, Callable[[Any], object]] = {
        "free": slab.free,
        "get": slab.__getitem__,
        "set": lambda value: slab.__setitem__(value, bytes(8)),
        "n": slab.alloc_many,
        "in": lambda value: value in slab,
    }
    try:
        assert calls[use](Sly()) is False
    except ValueError as error:
        assert "'gone' is closed" in str(error)  # noqa: PT017
    assert slab.stats().reserved == 0


def test_a_value_that_frees_the_item_it_is_written_to() -> None:
    """The item is pinned while it is written to."""
    slab = SlabAllocator("f8", max_items=1)
    handle = slab.alloc()

    class Sly:
        def __float__(self) -> float:
            slab.free(handle)
            with pytest.raises(PoolExhausted):
                slab.alloc()
            return 5.0

    slab[handle] = Sly()
    assert (slab.stats().retired, len(slab)) == (0, 0)
    slab.alloc()


def test_a_value_that_closes_the_slab_it_is_written_to() -> None:
    slab = SlabAllocator("f8")
    handle = slab.alloc()

    class Sly:
        def __float__(self) -> float:
            slab.close()
            return 5.0

    slab[handle] = Sly()
    assert slab.stats().reserved == 0


def test_a_value_that_frees_the_items_it_is_written_to() -> None:
    """It is never written to what came after them."""
    slab = SlabAllocator("f8", max_items=1)
    handle = slab.alloc()

    class Sly:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            if handle in slab:
                slab.free(handle)
                slab.alloc()
            return np.full(1, 9.0)

    with may_raise(StaleHandle):
        slab[[handle]] = Sly()
    assert slab.compacted().tolist() == [0.0]


def test_handles_in_arrays_before_anything_else_needed_numpy(run_python: Callable[..., Any]) -> None:
    run_python("""
        import numpy as np, mempool
        slab = mempool.SlabAllocator(2)
        handles = np.array([slab.alloc(), slab.alloc()])
        assert (handles in slab) is False
        slab[handles] = 5
        assert slab[handles].tolist() == [[5, 5]] * 2
    """)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize(
    "kind", [np.matrix, lambda rows: np.ma.array(rows), lambda rows: np.array(rows).view(np.recarray)]
)
def test_handles_in_arrays_of_a_subclass(kind: Callable[[Any], Any]) -> None:
    slab = SlabAllocator("f8")
    handles = slab.alloc_many(6)
    given = kind(handles.reshape(2, 3).tolist())
    assert slab.indices(given).tolist() == [[0, 1, 2], [3, 4, 5]]
    given[1, 1] = 5
    with pytest.raises(StaleHandle, match="handle 5, number 4 of 6"):
        slab.indices(given)
    with pytest.raises(StaleHandle, match="handle 5, number 4 of 6"):
        slab.free_many(given)
    assert len(slab) == 6


@pytest.mark.parametrize("act", [pickle.dumps, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("item", [8, "f8"])
def test_slabs_are_not_pickled_or_copied(act: Callable[[Any], object], item: Any) -> None:
    slab = SlabAllocator(item)
    slab.alloc()
    with pytest.raises(TypeError, match="SlabAllocator"):
        act(slab)


@pytest.mark.parametrize("protocol", range(6))
def test_items_are_pickled_as_copies(protocol: int) -> None:
    slab = SlabAllocator([("x", "f8"), ("y", "i4", (2,))])
    handle = slab.alloc()
    slab[handle] = (1.5, (2, 3))
    again = pickle.loads(pickle.dumps(slab[handle], protocol))
    slab.free(handle)
    assert slab.stats().retired == 0
    assert (again["x"], again["y"].tolist()) == (1.5, [2, 3])


def test_slabs_are_compared_by_identity() -> None:
    slab = SlabAllocator(8)
    assert slab == slab
    assert slab != SlabAllocator(8)
    assert len({slab, slab}) == 1


def test_errors_are_of_the_package() -> None:
    slab = SlabAllocator(8, max_items=1)
    with pytest.raises(MempoolError):
        slab.alloc_many(2)
    with pytest.raises(MempoolError):
        slab.free(5)
