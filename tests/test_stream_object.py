"""What a BytesStream is as an object: a type, its attributes, subclasses, copies, its end."""

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest

import mempool
import mempool.io
from mempool.io import BytesStream


class Remembering(BytesStream):
    """On module level, for pickle."""

    def __init__(self, content: bytes, note: str) -> None:
        super().__init__(content)
        self.note = note


def test_it_is_a_file() -> None:
    stream = BytesStream()
    assert isinstance(stream, io.BufferedIOBase)
    assert isinstance(stream, io.IOBase)
    assert not isinstance(stream, io.RawIOBase | io.TextIOBase)


def test_its_name_is_where_it_is_imported_from() -> None:
    assert BytesStream.__module__ == "mempool.io"
    assert BytesStream.__qualname__ == "BytesStream"
    assert repr(BytesStream()).startswith("<mempool.io.BytesStream object at ")
    assert mempool.io.BytesStream is BytesStream


def test_it_has_what_a_real_one_has() -> None:
    real = {name for name in dir(io.BytesIO) if not name.startswith("_")}
    assert real - {"peek"} <= set(dir(BytesStream))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(protocol: int) -> None:
    stream = BytesStream(b"content", pool=mempool.BufferPool())
    stream.seek(3)
    stream.note = "x"  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(stream, protocol))
    assert (type(again), again.getvalue(), again.tell(), again.note) == (BytesStream, b"content", 3, "x")
    assert again.pool is mempool.default_pool()
    other = pickle.loads(pickle.dumps(Remembering(b"abc", "note"), protocol))
    assert (type(other), other.getvalue(), other.note) == (Remembering, b"abc", "note")


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
def test_copy(how: Any) -> None:
    stream = BytesStream(b"content")
    stream.seek(3)
    again = how(stream)
    again.write(b"!!!!")
    assert (stream.getvalue(), again.getvalue(), again.tell()) == (b"content", b"con!!!!", 7)


def test_a_closed_one_is_not_pickled() -> None:
    stream = BytesStream()
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        pickle.dumps(stream)


def test_attributes_outlive_as_a_dict_does() -> None:
    stream = BytesStream(b"x")
    stream.note = "kept"  # type: ignore[attr-defined]
    attributes = vars(stream)
    del stream
    assert attributes == {"note": "kept"}


def test_attributes_of_a_subclass_outlive() -> None:
    stream = Remembering(b"x", "kept")
    attributes = vars(stream)
    del stream
    gc.collect()
    assert attributes["note"] == "kept"


def test_a_subclass_with_slots() -> None:
    class Slotted(BytesStream):
        __slots__ = ("extra",)

    stream = Slotted(b"x")
    stream.extra = stream  # type: ignore[attr-defined]
    gone = weakref.ref(stream)
    del stream
    gc.collect()
    assert gone() is None


def test_an_overridden_close_is_called_on_garbage() -> None:
    closed: list[bytes] = []

    class Closing(BytesStream):
        def close(self) -> None:
            if not self.closed:
                closed.append(self.getvalue())
            super().close()

    Closing(b"dropped")
    assert closed == [b"dropped"]
    cycle = Closing(b"cycle")
    cycle.me = cycle  # type: ignore[attr-defined]
    del cycle
    gc.collect()
    assert closed == [b"dropped", b"cycle"]
    with Closing(b"with"):
        pass
    assert closed == [b"dropped", b"cycle", b"with"]


def test_a_finaliser_may_bring_it_back() -> None:
    saved: list[Any] = []

    class Phoenix(BytesStream):
        def __del__(self) -> None:
            saved.append(self)

    Phoenix(b"content").note = 1  # type: ignore[attr-defined]
    gc.collect()
    assert saved[0].getvalue() == b"content"
    assert saved[0].note == 1
    saved[0].write(b"C")
    assert saved.pop().getvalue() == b"Content"


def test_leaving_calls_an_overridden_close() -> None:
    class Other(BytesStream):
        def close(self) -> None:
            self.left = True

    with Other() as stream:
        pass
    assert stream.left
    assert not stream.closed


def test_init_again() -> None:
    pool = mempool.BufferPool()
    stream = BytesStream(b"one", pool=pool)
    stream.seek(2)
    stream.__init__(b"second")  # type: ignore[misc]
    assert (stream.getvalue(), stream.tell()) == (b"second", 0)
    assert pool.stats().in_use == 0
    with pytest.raises(TypeError):
        stream.__init__("text")  # type: ignore[misc]
    assert stream.getvalue() == b"second"


def test_never_initialised() -> None:
    stream = BytesStream.__new__(BytesStream)
    assert stream.read() == b""
    assert stream.write(b"works") == 5
    assert stream.getvalue() == b"works"


def test_a_mutable_source_is_copied() -> None:
    source = bytearray(b"content")
    stream = BytesStream(source)
    source[:] = b"changed"
    assert stream.getvalue() == b"content"
    source.clear()


@pytest.mark.parametrize("name", ["fileno", "detach"])
def test_unsupported(name: str) -> None:
    with pytest.raises(io.UnsupportedOperation, match=name):
        getattr(BytesStream(), name)()
