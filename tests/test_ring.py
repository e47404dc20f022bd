"""A ring buffer: what is committed is read, in one piece; bad calls are refused; and what it costs. In both ways to map it."""

import gc
import io
import os
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mempool
from mempool import Account, AccountLimitExceeded, RingBuffer
from mempool.accounting import root_account
from support import KIB, copying_ring

PAGE = 4096
Make = Callable[..., RingBuffer]


@pytest.fixture(params=["mirrored", "copying"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Rings of a kind, closed at the end."""
    made = []

    def one(capacity: Any = PAGE, **options: Any) -> RingBuffer:
        ring = copying_ring(capacity, **options) if request.param == "copying" else RingBuffer(capacity, **options)
        assert ring.mirrored == (request.param == "mirrored" and sys.platform != "win32")
        made.append(ring)
        return ring

    yield one
    for ring in made:
        ring.close()


@pytest.fixture
def ring(make: Make) -> RingBuffer:
    return make()


# ---- bytes


def test_the_example_of_the_contract(ring: RingBuffer) -> None:
    ring.writable()[:11] = b"one\ntwo\nthr"
    ring.commit(11)
    lines = []
    while (end := ring.find(b"\n")) >= 0:
        lines.append(bytes(ring.readable()[:end]))
        ring.consume(end + 1)
    assert lines == [b"one", b"two"]
    assert bytes(ring.readable()) == b"thr"


def test_views_are_contiguous_wherever_they_begin(ring: RingBuffer) -> None:
    for step in range(50):
        content = os.urandom(ring.capacity)
        view = ring.writable()
        assert (view.nbytes, view.readonly, view.format, view.contiguous) == (ring.capacity, False, "B", True)
        view[:] = content
        ring.commit(ring.capacity)
        assert ring.writable().nbytes == ring.free == 0
        seen = ring.readable()
        assert seen.readonly
        assert seen == content
        ring.consume(ring.capacity)
        assert (len(ring), ring.readable().nbytes, bool(ring)) == (0, 0, False)
        ring.commit(step * 37)
        ring.consume(step * 37)


def test_a_view_is_committed_in_parts(ring: RingBuffer) -> None:
    for _ in range(20):
        view = ring.writable()
        content = os.urandom(3000)
        view[:3000] = content
        got = b""
        for part in (1000, 500, 0, 1500):
            ring.commit(part)
            got += ring.read()
        assert got == content


def test_write_and_read(ring: RingBuffer) -> None:
    assert ring.write(b"hello") == 5
    assert ring.write(bytearray(b" world")) == 6
    assert ring.write(np.arange(3, dtype="<u2")) == 6
    assert ring.write(b"") == 0
    assert ring.read(0) == b""
    assert ring.read(5) == b"hello"
    assert ring.read(100) == b" world" + bytes([0, 0, 1, 0, 2, 0])
    assert ring.read() == ring.read(-1) == ring.read(None) == b""
    assert ring.write(b"x" * (ring.capacity - 1)) == ring.capacity - 1
    assert ring.write(b"yz") == 1
    assert ring.write(b"z") == 0
    assert ring.read(None) == b"x" * (ring.capacity - 1) + b"y"


def test_a_large_ring_copies_without_the_lock(make: Make) -> None:
    ring = make("3MiB")
    content = os.urandom(2_500_000) + b"\n"
    for _ in range(3):
        assert ring.write(content) == len(content)
        assert ring.find(b"\n") == content.index(b"\n")
        assert ring.find(b"\xff\xfe\xfd\xfc\xfb\xfa") == content.find(b"\xff\xfe\xfd\xfc\xfb\xfa")
        assert ring.read() == content


def test_written_from_its_own_views(ring: RingBuffer) -> None:
    ring.write(b"abcdef")
    assert ring.write(ring.readable()) == 6
    assert ring.read() == b"abcdefabcdef"


@pytest.mark.parametrize(
    ("capacity", "real"), [(1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE), ("64KiB", 64 * KIB), (np.int64(9), PAGE)]
)
def test_capacity_is_whole_pages(make: Make, capacity: Any, real: int) -> None:
    assert make(capacity).capacity == make(capacity).free == real


# ---- find


def test_find(ring: RingBuffer) -> None:
    ring.write(b"a,b,,c")
    assert [ring.find(b",", start) for start in range(8)] == [1, 1, 3, 3, 4, -1, -1, -1]
    assert ring.find(b",,") == 3
    assert ring.find(bytearray(b",c")) == ring.find(memoryview(b",c")) == ring.find(np.array([44, 99], "u1")) == 4
    assert ring.find(b"a,b,,c") == 0
    assert ring.find(b"a,b,,c,") == ring.find(b"x") == -1
    assert ring.find(b",", start=np.int64(2)) == 3
    assert ring.find(b"a", 2**70) == -1


def test_find_goes_on_where_it_stopped(ring: RingBuffer) -> None:
    """What was searched is not looked at again: change it behind its back, and it is not seen."""
    view = ring.writable()
    view[:6] = b"aaaaaa"
    ring.commit(6)
    assert ring.find(b"\r\n") == -1
    view[0:2] = b"\r\n"
    assert ring.find(b"\r\n") == -1
    assert ring.find(b"\n") == 1  # another separator looks at all
    assert ring.find(b"\r\n") == 0
    view[0:2] = b"aa"
    assert ring.find(b"\r\n") == -1
    view[5:7] = b"\r\n"  # half of it was there
    ring.commit(1)
    assert ring.find(b"\r\n") == ring.find(bytes(bytearray(b"\r\n"))) == 5


def test_what_was_searched_is_remembered_across_consume(ring: RingBuffer) -> None:
    view = ring.writable()
    view[:10] = b"abcdefghij"
    ring.commit(10)
    assert ring.find(b"\n") == -1
    view[4] = view[8] = ord("\n")
    ring.consume(3)
    assert ring.find(b"\n") == ring.find(b"\n", 2) == -1
    ring.write(b"k\n")
    assert ring.find(b"\n") == 8
    ring.read(9)
    ring.write(b"\n")
    assert ring.find(b"\n") == 0
    assert ring.find(b"\n", 1) == -1


def test_an_earlier_start_is_searched_again(ring: RingBuffer) -> None:
    ring.write(b"\n.....\n...")
    assert ring.find(b"\n", 3) == 6
    assert ring.find(b"\n") == 0
    assert ring.find(b"\n", 1) == ring.find(b"\n", 6) == 6
    assert ring.find(b"\n", 7) == -1
    assert ring.find(b"\n") == 0


def test_find_across_the_end(ring: RingBuffer) -> None:
    for at in range(ring.capacity - 20, ring.capacity + 1):
        ring.commit(at)
        ring.consume(at)
        ring.write(b"12345678\r\n\r\nrest")
        assert ring.find(b"\r\n\r\n") == 8
        ring.read()


# ---- what is refused


def test_too_much_changes_nothing(ring: RingBuffer) -> None:
    ring.write(b"abc")
    for n in (ring.capacity, 2**63, 2**200, "1GiB"):
        with pytest.raises(
            ValueError, match=rf"cannot commit .* bytes: {ring.capacity - 3} of {ring.capacity} are free"
        ):
            ring.commit(n)
    for n in (4, 2**64 - 1, "1KiB"):
        with pytest.raises(ValueError, match=rf"cannot consume .* bytes: 3 of {ring.capacity} are there"):
            ring.consume(n)
    assert (len(ring), ring.free, bytes(ring.readable())) == (3, ring.capacity - 3, b"abc")


@pytest.mark.parametrize("n", [True, 1.0, None, [], b"1"])
def test_counts_are_ints(ring: RingBuffer, n: Any) -> None:
    for call in (ring.commit, ring.consume, lambda n: ring.find(b"x", n)):
        with pytest.raises(TypeError, match=r"must be|n "):
            call(n)
    if n is not None:
        with pytest.raises(TypeError):
            ring.read(n)
    assert len(ring) == 0


def test_counts_are_not_negative(ring: RingBuffer) -> None:
    for call in (ring.commit, ring.consume, lambda n: ring.find(b"x", n)):
        with pytest.raises(ValueError, match="-1"):
            call(-1)
        with pytest.raises(ValueError, match=str(-(2**70))):
            call(-(2**70))


def test_separators_have_bytes(ring: RingBuffer) -> None:
    for empty in (b"", bytearray(), memoryview(b"")):
        with pytest.raises(ValueError, match="empty"):
            ring.find(empty)
    for sep in ("\n", 10, None, [10]):
        with pytest.raises(TypeError, match="bytes-like"):
            ring.find(sep)  # type: ignore[arg-type]
    for data in ("text", 5, None):
        with pytest.raises(TypeError):
            ring.write(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("capacity", [True, 1.5, None, []])
def test_a_capacity_is_a_size(capacity: Any) -> None:
    with pytest.raises(TypeError, match="capacity"):
        RingBuffer(capacity)


def test_bad_arguments() -> None:
    for capacity in (0, -1, "0", "5 parsecs", "-1KiB"):
        with pytest.raises(ValueError, match=r"capacity"):
            RingBuffer(capacity)
    with pytest.raises(OverflowError, match="capacity"):
        RingBuffer(2**64)
    for capacity in (2**62, 2**50):
        with pytest.raises(MemoryError):
            RingBuffer(capacity)
    with pytest.raises(TypeError, match="account"):
        RingBuffer(1, account="a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name"):
        RingBuffer(1, name=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        RingBuffer()  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="never initialised"):
        RingBuffer(1, account=Account.__new__(Account))


def test_read_only_bytes_are_not_written(ring: RingBuffer) -> None:
    ring.write(b"abc")
    view = ring.readable()
    with pytest.raises(TypeError, match="read-only"):
        view[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        np.frombuffer(view, "u1")[0] = 1
    for readonly in (view, view.obj):
        with pytest.raises(TypeError, match="read-write"):
            io.BytesIO(b"xyz").readinto(readonly)
    assert bytes(view) == b"abc"


# ---- the end


def test_closed(make: Make) -> None:
    ring = make(name="mine")
    assert ring.name == "mine"
    ring.write(b"abc")
    assert "3 of 4096" in repr(ring)
    ring.close()
    ring.close()
    assert ring.closed
    assert repr(ring) == "<mempool.RingBuffer 'mine', closed>"
    assert ring.capacity == PAGE
    calls: list[Callable[[], Any]] = [
        ring.writable,
        ring.readable,
        ring.read,
        ring.__enter__,
        lambda: ring.commit(0),
        lambda: ring.consume(0),
        lambda: ring.find(b"x"),
        lambda: ring.write(b""),
        lambda: len(ring),
        lambda: ring.free,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="'mine' is closed"):
            call()


def test_with(make: Make) -> None:
    with make() as ring:
        assert not ring.closed
    assert ring.closed


def test_names_differ(make: Make) -> None:
    assert make().name != make().name


def test_views_outlive_everything(make: Make) -> None:
    ring = make(account=Account("views"))
    books = ring.account
    taken = books.used
    ring.write(b"abc" * 100)
    views = [ring.readable(), ring.writable(), np.frombuffer(ring.readable(), "u1"), ring.readable()[5:7]]
    assert weakref.ref(ring)() is ring
    ring.close()
    assert books.used == taken > 0
    views[1][:] = b"z" * views[1].nbytes
    assert bytes(views[0]) == bytes(views[2]) == b"abc" * 100
    while views:
        assert books.used == taken
        views.pop()
    assert books.used == 0


def test_a_ring_dies_before_its_views() -> None:
    ring = RingBuffer(1, account=Account("dying"))
    books, ref = ring.account, weakref.ref(ring)
    view = ring.writable()
    ring.write(b"q")
    del ring
    assert ref() is None
    assert (books.used, view[0]) == (PAGE, ord("q"))
    del view
    assert books.used == 0


# ---- what it costs


def test_what_it_takes_is_charged(make: Make) -> None:
    account = Account("io")
    ring = make("64KiB", account=account, name="r")
    whole = 64 * KIB if ring.mirrored else 128 * KIB
    assert (account.used, ring.account.used, ring.account.name, ring.account.parent) == (whole, whole, "r", account)
    ring.close()
    assert account.used == 0


def test_rings_share_an_account_below_the_root(make: Make) -> None:
    first, second = make(), make()
    shared = first.account
    assert second.account is shared
    assert shared in root_account().children
    assert shared.name == "ring buffers"
    before = shared.used
    first.close()
    assert 0 < shared.used < before


def test_a_limit_holds(make: Make) -> None:
    account = Account("tight", limit="12KiB")
    with pytest.raises(AccountLimitExceeded, match="tight"):
        make("16KiB", account=account)
    assert account.used == 0
    ring = make(PAGE, account=account)
    with pytest.raises(AccountLimitExceeded, match="tight"):
        make("12KiB", account=account)
    ring.close()
    assert account.used == 0


def test_tracemalloc_sees_it(make: Make) -> None:
    def traced() -> int:
        shot = tracemalloc.take_snapshot()
        return sum(trace.size for trace in shot.traces if trace.domain == mempool.TRACEMALLOC_DOMAIN)

    tracemalloc.start()
    try:
        before = traced()
        ring = make("64KiB")
        whole = 64 * KIB if ring.mirrored else 128 * KIB
        assert traced() == before + whole
        view = ring.readable()
        ring.close()
        assert traced() == before + whole
        del view
        assert traced() == before
    finally:
        tracemalloc.stop()


def test_nothing_is_left_behind() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0

    gc.collect()
    shared, files = RingBuffer(1).account, descriptors()
    before = shared.used
    for _ in range(500):
        with RingBuffer("1MiB") as ring:
            ring.write(b"x" * 1000)
            ring.find(b"y")
            view = ring.readable()
    del view
    assert (shared.used, descriptors()) == (before, files)
