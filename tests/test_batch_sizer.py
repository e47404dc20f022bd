"""How many items the next batch may have: levels, weights, room, settings, and nonsense."""

import logging
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mempool
from mempool.pressure import BatchSizer, Level

NORMAL, ELEVATED, HIGH, CRITICAL = Level
LEVELS = st.sampled_from(list(Level))


def sizes(sizer: BatchSizer, *levels: Level) -> list[int]:
    found = []
    for level in levels:
        found.append(sizer.next(level))
        sizer.record(found[-1])
    return found


def test_without_pressure_batches_have_the_size_that_was_asked_for() -> None:
    assert sizes(BatchSizer(100), *[NORMAL] * 4) == [100] * 4


def test_growth_is_slow_and_ends_at_the_most() -> None:
    assert sizes(BatchSizer(16, max_size=24), *[NORMAL] * 6) == [16, 18, 20, 22, 24, 24]
    assert sizes(BatchSizer(1, max_size=4), *[NORMAL] * 5) == [1, 2, 3, 4, 4]


def test_shrinking_is_fast() -> None:
    assert sizes(BatchSizer(100), *[HIGH] * 5) == [50, 25, 12, 12, 12]
    assert sizes(BatchSizer(100), CRITICAL, HIGH) == [1, 1]
    assert sizes(BatchSizer(100, min_size=20), HIGH, HIGH, HIGH, HIGH) == [50, 25, 20, 20]
    assert sizes(BatchSizer(100, min_size=7), CRITICAL, CRITICAL) == [7, 7]


def test_an_elevated_level_takes_half_at_most() -> None:
    assert sizes(BatchSizer(100), *[ELEVATED] * 4) == [75, 56, 50, 50]
    assert sizes(BatchSizer(100), CRITICAL, ELEVATED, ELEVATED) == [1, 1, 1]


def test_a_size_grows_only_after_a_batch() -> None:
    sizer = BatchSizer(10, max_size=100)
    assert [sizer.next(NORMAL), sizer.next(NORMAL)] == [10, 10]
    sizer.record(10)
    assert sizer.next(NORMAL) == 11
    assert sizer.size == 11


def test_heavier_items_count_at_once_and_lighter_ones_slowly() -> None:
    sizer = BatchSizer(100, max_bytes=10_000)
    assert sizer.bytes_per_item is None
    assert sizer.next(NORMAL) == 100
    sizer.record(10, 10_000)
    assert sizer.bytes_per_item == 1000
    assert sizer.next(NORMAL) == 10
    sizer.record(10, 1000)
    assert sizer.bytes_per_item == 775
    sizer.record(10, 20_000)
    assert sizer.bytes_per_item == 2000
    assert sizer.next(NORMAL) == 5


def test_items_without_weight_are_no_division_by_zero() -> None:
    sizer = BatchSizer(100, max_bytes=10)
    sizer.record(5, 0)
    sizer.record(0, 0)
    assert sizer.next(NORMAL) == 100


def test_a_batch_takes_a_quarter_of_the_room() -> None:
    room = [8000]
    sizer = BatchSizer(100, max_bytes="1KB", room=lambda: room[0])
    assert sizer.budget is None
    sizer.next(NORMAL)
    assert sizer.budget == 1000
    room[0] = 2000
    sizer.record(1, 100)
    assert (sizer.next(NORMAL), sizer.budget) == (5, 500)
    room[0] = 0
    assert (sizer.next(NORMAL), sizer.budget) == (1, 0)


def test_no_limit_is_no_bound() -> None:
    sizer = BatchSizer(100, room=lambda: None)
    sizer.record(1, 1 << 40)
    assert (sizer.next(NORMAL), sizer.budget) == (100, None)


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("garbage")])
def test_room_that_cannot_be_read_is_told_once(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def room() -> int:
        raise error

    sizer = BatchSizer(100, max_bytes=50, room=room)
    with caplog.at_level(logging.WARNING, "mempool.pressure"):
        sizer.next(NORMAL)
        sizer.next(NORMAL)
    assert sizer.budget == 50
    (record,) = [record for record in caplog.records if record.name == "mempool.pressure"]
    assert str(error) in record.getMessage()


def test_room_that_can_be_read_again_counts_again() -> None:
    answers: list[int | None] = [400, None, 800]

    def room() -> int:
        answer = answers.pop(0)
        if answer is None:
            raise OSError("too many open files")
        return answer

    sizer = BatchSizer(100, room=room)
    budgets = []
    for _ in range(3):
        sizer.next(NORMAL)
        budgets.append(sizer.budget)
    assert budgets == [100, None, 200]


def test_items_that_became_almost_weightless_are_no_overflow() -> None:
    sizer = BatchSizer(100, max_bytes=10**400)
    sizer.record(1, 1)
    for _ in range(4000):
        sizer.record(1, 0)
        assert sizer.next(NORMAL) == 100
    sizer.record(1, 10**400)
    assert sizer.next(NORMAL) == 100


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ((float("nan"), 5), TypeError, "items.*nan"),
        (("5", 5), TypeError, "items.*'5'"),
        ((-1, 5), ValueError, "items.*-1"),
        ((True, 5), TypeError, "items.*True"),
        ((5, float("nan")), TypeError, "nbytes.*nan"),
        ((5, "5"), TypeError, "nbytes.*'5'"),
        ((5, -7), ValueError, "nbytes.*-7"),
    ],
)
def test_what_is_recorded_is_checked_before_it_counts(
    arguments: tuple[Any, Any], error: type[Exception], named: str
) -> None:
    sizer = BatchSizer(10, max_size=20)
    with pytest.raises(error, match=named):
        sizer.record(*arguments)
    assert (sizer.bytes_per_item, sizer.next(NORMAL)) == (None, 10)


def test_what_else_a_room_raises_is_not_hidden() -> None:
    def room() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        BatchSizer(room=room).next(NORMAL)


class Model:
    """The same decisions from the words of the documentation."""

    def __init__(self, size: int, least: int, most: int) -> None:
        self.size, self.first, self.least, self.most, self.grown = size, size, least, most, False

    def next(self, level: Level) -> int:
        if level is CRITICAL:
            wanted = self.least
        elif level is HIGH:
            wanted = self.size if self.size <= self.first // 8 else max(self.first // 8, self.size // 2)
        elif level is ELEVATED:
            wanted = self.size if self.size <= self.first // 2 else max(self.first // 2, self.size * 3 // 4)
        else:
            wanted = min(self.most, self.size + max(1, self.size // 8)) if self.grown else self.size
        self.grown = False
        self.size = max(self.least, wanted)
        return self.size


@given(st.data(), st.integers(1, 50), st.integers(0, 200), st.integers(0, 1000))
def test_it_decides_as_a_plain_model(data: st.DataObject, least: int, above: int, further: int) -> None:
    size = least + above
    sizer = BatchSizer(size, min_size=least, max_size=size + further)
    model = Model(size, least, size + further)
    for level, recorded in data.draw(st.lists(st.tuples(LEVELS, st.booleans()), max_size=60)):
        assert sizer.next(level) == model.next(level)
        assert least <= sizer.size <= size + further
        if recorded:
            sizer.record(sizer.size)
            model.grown = True


@given(st.lists(st.tuples(LEVELS, st.integers(0, 10**6), st.integers(0, 10**9)), max_size=40), st.integers(1, 20))
def test_with_weights_a_batch_never_promises_more_than_the_room(
    steps: list[tuple[Level, int, int]], least: int
) -> None:
    room = [0]
    sizer = BatchSizer(200, min_size=least, max_size=400, room=lambda: room[0])
    for level, weight, room[0] in steps:
        size = sizer.next(level)
        assert least <= size <= 400
        if sizer.bytes_per_item is not None:
            assert size == least or size * sizer.bytes_per_item <= room[0] / 4
        sizer.record(size, weight * size)


Run = Callable[..., subprocess.CompletedProcess[str]]


def test_the_size_follows_the_setting_while_it_runs(run_python: Run) -> None:
    code = """
        import mempool
        from mempool.pressure import BatchSizer, Level
        sizer, fixed, small = BatchSizer(), BatchSizer(100), BatchSizer(max_size=5)
        assert (sizer.next(Level.NORMAL), small.next(Level.NORMAL)) == (40, 5)
        mempool.configure(batch_size=20)
        assert (sizer.next(Level.NORMAL), fixed.next(Level.NORMAL)) == (20, 100)
        mempool.configure(batch_size=22)
        sizes = []
        for _ in range(3):
            sizer.record(1)
            sizes.append(sizer.next(Level.NORMAL))
        assert sizes == [22, 22, 22], sizes
        mempool.configure(batch_size=None)
        assert BatchSizer().size == 100
        mempool.configure(batch_size=3)
        assert BatchSizer(min_size=10).size == 10
    """
    run_python(code, env={"MEMPOOL_BATCH_SIZE": "40", "MEMPOOL_PROFILE": None})


def test_without_a_setting_it_is_a_hundred(run_python: Run) -> None:
    code = "from mempool.pressure import BatchSizer; assert BatchSizer().size == 100"
    run_python(code, env={"MEMPOOL_BATCH_SIZE": None, "MEMPOOL_PROFILE": None})


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"size": 0}, ValueError, "size"),
        ({"size": -1}, ValueError, "-1"),
        ({"size": True}, TypeError, "True"),
        ({"size": 1.5}, TypeError, "1.5"),
        ({"size": "ten"}, ValueError, "'ten'"),
        ({"size": [1]}, TypeError, "[1]"),
        ({"size": 10**30}, ValueError, str(10**30)),
        ({"min_size": None}, TypeError, "None"),
        ({"min_size": 0}, ValueError, "min_size"),
        ({"size": 5, "min_size": 6}, ValueError, "5"),
        ({"size": 7, "max_size": 6}, ValueError, "7"),
        ({"min_size": 7, "max_size": 6}, ValueError, "7"),
        ({"max_bytes": -1}, ValueError, "-1"),
        ({"max_bytes": 1.5}, TypeError, "1.5"),
    ],
)
def test_nonsense_is_named(arguments: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error) as caught:
        BatchSizer(**arguments)
    assert type(caught.value) is error
    assert named in str(caught.value)


def test_a_sizer_is_public() -> None:
    assert mempool.pressure.BatchSizer is BatchSizer
