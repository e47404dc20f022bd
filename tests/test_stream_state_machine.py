"""Random programs on a BytesStream and on an io.BytesIO side by side: the same results, the same errors."""

import io
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import mempool
from mempool.io import BytesStream

# Lines, and pieces long enough for streams of many blocks.
SHORT = st.lists(st.sampled_from([b"", b"a", b"line\n", b"\n", b"\x00\xff", bytes(range(256))]), max_size=4).map(
    b"".join
)
LONG = st.tuples(st.sampled_from([b"x", b"0123456789\n", b"\n"]), st.integers(1, 700)).map(
    lambda pair: pair[0] * pair[1]
)
DATA = st.one_of(SHORT, LONG)
FORMS: list[Callable[[bytes], Any]] = [
    bytes,
    bytearray,
    memoryview,
    lambda data: memoryview(data)[::-1],
    lambda data: data.decode("latin-1"),
]
SIZES = st.one_of(st.none(), st.integers(-2, 40), st.integers(0, 20_000))
MOST = 100_000


def outcome(function: Callable[[], Any]) -> tuple[Any, ...]:
    """What a call returns; or the error with its text."""
    try:
        return "returned", function()
    except (ValueError, TypeError, OverflowError, BufferError, io.UnsupportedOperation) as error:
        text = str(error).replace("BytesStream", "BytesIO").replace("mempool.io.", "").replace("_io.", "")
        return "raised", type(error), text


class Files(RuleBasedStateMachine):
    """Two files that must not be told apart, and the snapshots that were taken of one."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = mempool.BufferPool(name="machine")
        self.views: list[tuple[memoryview, memoryview]] = []
        self.snapshots: list[tuple[list[memoryview], bytes]] = []

    @initialize(data=st.one_of(st.none(), DATA))
    def begin(self, data: bytes | None) -> None:
        self.real: io.BytesIO = io.BytesIO(data)  # type: ignore[arg-type,unused-ignore]
        self.stream = BytesStream(data, pool=self.pool)

    def both(self, call: Callable[[Any], Any]) -> Any:
        expected, got = outcome(lambda: call(self.real)), outcome(lambda: call(self.stream))
        assert got == expected
        return got[1]

    @rule(data=DATA, form=st.sampled_from(FORMS))
    def write(self, data: bytes, form: Callable[[bytes], Any]) -> None:
        self.both(lambda file: file.write(form(data)))

    @rule(lines=st.lists(DATA, max_size=3), bad=st.booleans())
    def writelines(self, lines: list[bytes], bad: bool) -> None:
        self.both(lambda file: file.writelines([*lines, "text"] if bad else iter(lines)))

    @rule(name=st.sampled_from(["read", "read1", "readline", "readlines"]), size=SIZES)
    def read(self, name: str, size: int | None) -> None:
        self.both(lambda file: getattr(file, name)(size))

    @rule(name=st.sampled_from(["read", "read1", "readline", "readlines", "truncate"]))
    def without_size(self, name: str) -> None:
        self.both(lambda file: getattr(file, name)())

    @rule(
        name=st.sampled_from(["readinto", "readinto1"]),
        size=st.integers(0, 9000),
        form=st.sampled_from([bytearray, bytes]),
    )
    def readinto(self, name: str, size: int, form: type[Any]) -> None:
        def call(file: Any) -> Any:
            target = form(size)
            return getattr(file, name)(target), bytes(target)

        # The sizes of errors are those of BytesIO's own function, which has another name for readinto1.
        if form is bytearray or name == "readinto":
            self.both(call)

    @rule(most=st.integers(1, 30))
    def iterate(self, most: int) -> None:
        self.both(lambda file: [line for line, _ in zip(file, range(most), strict=False)])

    @rule(
        pos=st.one_of(st.integers(-3, 60), st.integers(0, MOST), st.just(1 << 70)),
        whence=st.sampled_from([0, 0, 1, 2, 3, -1, None, "0"]),
    )
    def seek(self, pos: int, whence: Any) -> None:
        self.both(lambda file: file.seek(pos, whence))
        self.both(lambda file: file.seek(min(file.tell(), MOST)))

    @rule()
    def seek_end(self) -> None:
        self.both(lambda file: file.seek(0, 2))

    @rule(size=SIZES)
    def truncate(self, size: int | None) -> None:
        self.both(lambda file: file.truncate(size))

    @rule(
        bad=st.sampled_from(["1", 1.5, b"", [], 1 << 70]),
        name=st.sampled_from(["read", "readline", "truncate", "read1", "seek", "write"]),
    )
    def bad_argument(self, bad: Any, name: str) -> None:
        if not (name == "write" and isinstance(bad, bytes)):
            self.both(lambda file: getattr(file, name)(bad))

    @rule()
    def questions(self) -> None:
        for name in ("tell", "readable", "writable", "seekable", "isatty", "flush", "fileno", "detach", "getvalue"):
            self.both(lambda file, name=name: getattr(file, name)())  # type: ignore[misc]
        self.both(lambda file: file.closed)
        self.both(lambda file: bool(iter(file)))

    # A real one with a view loses its content when it refuses a state.
    @precondition(lambda self: not self.views)
    @rule()
    def state(self) -> None:
        state = self.both(lambda file: file.__getstate__())
        if isinstance(state, tuple):
            self.both(lambda file: file.__setstate__(state))

    @precondition(lambda self: not self.views)
    @rule(
        state=st.sampled_from([(b"",), 0, (b"no", -1, None), (b"no", 0, 0), (b"no", "0", None), (b"yes", 2, {"a": 1})])
    )
    def setstate(self, state: Any) -> None:
        before = None if self.real.closed else self.real.__getstate__()
        failed = self.both(lambda file: file.__setstate__(state)) is not None
        if failed and before is not None:
            assert self.stream.__getstate__() == before
            self.real.__setstate__(before)  # which has changed

    @precondition(lambda self: len(self.views) < 3)
    @rule()
    def getbuffer(self) -> None:
        kinds = [outcome(lambda file=file: file.getbuffer()) for file in (self.real, self.stream)]  # type: ignore[misc]
        assert kinds[0][0] == kinds[1][0]
        if kinds[0][0] == "returned":
            real, ours = kinds[0][1], kinds[1][1]
            assert real == ours
            assert (real.readonly, real.format, real.shape) == (ours.readonly, ours.format, ours.shape)
            self.views.append((real, ours))

    @precondition(lambda self: self.views)
    @rule(byte=st.integers(0, 255))
    def write_through_view(self, byte: int) -> None:
        for view in self.views[-1]:
            view[len(view) // 2 :] = bytes([byte]) * (len(view) - len(view) // 2)

    @precondition(lambda self: self.views)
    @rule()
    def release_view(self) -> None:
        for view in self.views.pop():
            view.release()

    @precondition(lambda self: len(self.snapshots) < 4)
    @rule()
    def snapshot(self) -> None:
        if self.stream.closed:
            return
        self.snapshots.append((self.stream.buffers(), self.real.getvalue()))

    @precondition(lambda self: self.snapshots)
    @rule(which=st.integers(0, 3), one=st.booleans())
    def drop_snapshot(self, which: int, one: bool) -> None:
        views, _ = self.snapshots.pop(which % len(self.snapshots))
        if one and views:
            rest = views[len(views) // 2]
            self.snapshots.append(([rest], bytes(rest)))

    @rule(sure=st.integers(0, 5))
    def close(self, sure: int) -> None:
        if sure == 0:
            self.both(lambda file: file.close())

    @precondition(lambda self: not self.views)
    @rule(data=DATA)
    def begin_again(self, data: bytes) -> None:
        self.both(lambda file: file.__init__(bytearray(data) if data and not file.closed else data + b"!"))
        self.stream.__init__(self.real.getvalue(), pool=self.pool)  # type: ignore[misc]

    @invariant()
    def snapshots_stay(self) -> None:
        for views, content in self.snapshots:
            assert b"".join(views) == content

    @invariant()
    def same_content(self) -> None:
        if hasattr(self, "real") and not self.real.closed:
            assert self.stream.getvalue() == self.real.getvalue()
            assert self.stream.tell() == self.real.tell()

    def teardown(self) -> None:
        self.views.clear()
        self.snapshots.clear()
        self.stream.close()
        assert self.pool.stats().in_use == self.pool.stats().retired == 0


TestFiles = Files.TestCase
TestFiles.settings = settings(max_examples=300, stateful_step_count=40)
