"""A ring buffer between threads, across fork, over sockets and pipes, at exit, and when Python has no memory."""

import asyncio
import gc
import hashlib
import os
import socket
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from mempool import RingBuffer
from support import MIB, copying_ring, may_raise, start, together, until

KINDS: list[Callable[..., RingBuffer]] = [RingBuffer, copying_ring]
each_kind = pytest.mark.parametrize("make", KINDS, ids=["mirrored", "copying"])
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the OS has no fork")


def content(size: int) -> bytes:
    return hashlib.shake_128(b"ring").digest(size)


# ---- threads


@each_kind
def test_one_producer_and_one_consumer(make: Callable[..., RingBuffer]) -> None:
    ring, whole = make("16KiB"), content(MIB)

    def produce() -> None:
        sent = 0
        while sent < len(whole):
            view = ring.writable()
            n = min(len(view), len(whole) - sent, 1 + sent % 5000)
            view[:n] = whole[sent : sent + n]
            ring.commit(n)
            sent += n

    def consume() -> bytes:
        got = bytearray()
        while len(got) < len(whole):
            view = ring.readable()
            n = min(len(view), 1 + len(got) % 7000)
            got += view[:n]
            ring.consume(n)
        return bytes(got)

    assert together([produce, consume])[1] == whole
    assert len(ring) == 0


@each_kind
def test_lines_between_threads(make: Callable[..., RingBuffer]) -> None:
    ring = make(1)
    lines = [b"%d:%s" % (i, b"x" * (i % 300)) for i in range(1500)]

    def produce() -> None:
        for line in lines:
            rest = line + b"\r\n"
            while rest:
                rest = rest[ring.write(rest) :]

    def consume() -> list[bytes]:
        got: list[bytes] = []
        while len(got) < len(lines):
            end = ring.find(b"\r\n")
            if end >= 0:
                got.append(ring.read(end))
                ring.consume(2)
        return got

    assert together([produce, consume])[1] == lines


def use_until_closed(step: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="closed"):
        while True:
            step()


def close_once_used(ring: RingBuffer) -> None:
    until(lambda: len(ring) > 0, "a byte")
    ring.close()


def read_some(ring: RingBuffer) -> None:
    ring.find(b"\n")
    ring.readable().tobytes()


@each_kind
def test_closed_while_others_use_it(make: Callable[..., RingBuffer]) -> None:
    for _ in range(15):
        ring = make("16KiB")
        steps = [partial(ring.write, b"abc\n"), partial(read_some, ring), partial(getattr, ring, "free")]
        together([*(partial(use_until_closed, step) for step in steps), partial(close_once_used, ring)])


def test_many_on_one_side_break_nothing() -> None:
    """Who gets what is not promised then; that nobody gets what is not there is."""
    ring = RingBuffer(1)

    def act(step: Callable[[], Any]) -> None:
        for _ in range(3000):
            with may_raise(ValueError, "cannot"):
                step()

    steps: list[Callable[[], Any]] = [
        lambda: ring.write(b"x" * 1001),
        lambda: ring.commit(min(ring.free, 77)),
        lambda: ring.consume(min(len(ring), 501)),
        lambda: ring.read(700),
        lambda: (ring.find(b"y"), ring.find(b"x", 5), ring.readable().tobytes()),
    ]
    together([lambda step=step: act(step) for step in steps])
    assert 0 <= len(ring) <= ring.capacity
    assert len(ring) + ring.free == ring.capacity


# ---- sockets


def send_all(data: bytes, sink: socket.socket) -> None:
    with sink:
        sink.sendall(data)


@each_kind
def test_lines_from_a_socket(make: Callable[..., RingBuffer]) -> None:
    lines = [b"%d %s" % (i, b"y" * (i % 90)) for i in range(20_000)]
    source, sink = socket.socketpair()
    sender = start(send_all, b"".join(line + b"\n" for line in lines), sink)
    got = []
    with source, make("8KiB") as ring:
        while n := source.recv_into(ring.writable()):
            ring.commit(n)
            while (end := ring.find(b"\n")) >= 0:
                got.append(bytes(ring.readable()[:end]))
                ring.consume(end + 1)
        assert len(ring) == 0
    sender.result()
    assert got == lines


@each_kind
def test_from_socket_to_socket(make: Callable[..., RingBuffer]) -> None:
    whole = content(MIB)
    source, near = socket.socketpair()
    out, far = socket.socketpair()
    sender = start(send_all, whole, near)

    def pump() -> None:
        with source, out, make("32KiB") as ring:
            ended = False
            while not ended or len(ring):
                if not ended and ring.free:
                    n = source.recv_into(ring.writable())
                    ring.commit(n)
                    ended = n == 0
                if len(ring):
                    ring.consume(out.send(ring.readable()))

    pumping = start(pump)
    got = bytearray()
    with far:
        while piece := far.recv(10_000):
            got += piece
    sender.result()
    pumping.result()
    assert got == whole


def test_under_an_asyncio_protocol() -> None:
    lines = [b"%d" % i for i in range(20_000)]

    class Lines(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.ring = RingBuffer("16KiB")
            self.got: list[bytes] = []
            self.lost = asyncio.get_running_loop().create_future()

        def get_buffer(self, sizehint: int) -> memoryview:
            return self.ring.writable()

        def buffer_updated(self, nbytes: int) -> None:
            self.ring.commit(nbytes)
            while (end := self.ring.find(b"\n")) >= 0:
                self.got.append(self.ring.read(end))
                self.ring.consume(1)

        def connection_lost(self, error: Exception | None) -> None:
            self.lost.set_result(None)

    async def main() -> list[bytes]:
        source, sink = socket.socketpair()
        sender = start(send_all, b"".join(line + b"\n" for line in lines), sink)
        _, protocol = await asyncio.get_running_loop().create_connection(Lines, sock=source)
        await asyncio.wait_for(protocol.lost, 60)
        sender.result()
        return protocol.got

    assert asyncio.run(main()) == lines


# ---- fork

FORK = """
    import os, sys
    from mempool import RingBuffer
    from mempool.accounting import root_account

    sys.path.insert(0, sys.argv[1])
    from support import copying_ring
    ring = (copying_ring if sys.argv[2] == "copying" else RingBuffer)(1)
    ring.write(b"x" * 3000); ring.read()
    ring.write(bytes(range(200)) * 10)
    ring.find(b"\\xff")
    old, free = ring.readable(), ring.writable()
    used = root_account().used
    to_child, to_parent = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        assert os.read(to_child[0], 1) == b"!"  # by now the parent has written over all of its own
        assert old == bytes(range(200)) * 10, bytes(old[:9])
        assert ring.readable() == old and root_account().used == used
        assert ring.find(b"\\xff") == -1 and ring.find(b"\\xc7") == 199
        free[:5] = b"child"
        ring.commit(5)
        ring.consume(1999)
        assert ring.read() == b"\\xc7child"
        for size in range(0, 4096, 17):
            data = os.urandom(size)
            assert ring.write(data) == size and ring.readable() == data and ring.read() == data
        ring.close()
        assert old[0] is not None
        new = RingBuffer(1)
        assert new.mirrored == (sys.platform != "win32") and new.write(b"abc") == 3 and new.read() == b"abc"
        os.write(to_parent[1], b"?")
        os._exit(0)
    free[:] = b"p" * len(free)
    ring.commit(len(free))
    ring.read()
    ring.write(b"q" * 4096)
    os.write(to_child[1], b"!")
    os.close(to_parent[1])
    assert os.read(to_parent[0], 1) == b"?"
    assert ring.read() == b"q" * 4096
    assert os.waitpid(child, 0)[1] == 0
"""


@needs_fork
@pytest.mark.parametrize("kind", ["mirrored", "copying"])
def test_nothing_is_shared_with_a_child(run_python: Callable[..., Any], kind: str) -> None:
    run_python(FORK, os.path.dirname(__file__), kind)


@needs_fork
def test_a_child_without_descriptors_copies(run_python: Callable[..., Any]) -> None:
    code = """
        import os, resource
        from mempool import Account, RingBuffer

        account = Account("a")
        ring = RingBuffer(1, account=account)
        ring.commit(4000); ring.consume(4000)
        ring.write(b"abc" * 500)
        view = ring.readable()
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        child = os.fork()
        if child == 0:
            assert view == b"abc" * 500 and account.used == 8192
            assert ring.read(1000) + ring.read() == b"abc" * 500
            for size in range(0, 4096, 17):
                data = os.urandom(size)
                assert ring.write(data) == size and ring.read() == data
            ring.close()
            del view
            os._exit(account.used)
        assert os.waitpid(child, 0)[1] == 0
        assert ring.read() == b"abc" * 500
    """
    run_python(code)


@needs_fork
def test_fork_while_threads_use_it(run_python: Callable[..., Any]) -> None:
    code = """
        import os, threading
        from mempool import RingBuffer

        rings, stop = [RingBuffer(1) for _ in range(4)], False

        def work(ring):
            while not stop:
                if ring.free >= 500: ring.write(b"0123456789" * 50)
                assert ring.read(100) in (b"", b"0123456789" * 10)

        # Written and read in tens, so that what a child finds begins with 0.
        threads = [threading.Thread(target=work, args=(ring,)) for ring in rings]
        for thread in threads: thread.start()
        for _ in range(8):
            child = os.fork()
            if child == 0:
                for ring in rings:
                    assert ring.read() in [(b"0123456789" * 410)[:n] for n in range(4097)]
                    assert ring.write(b"x" * 4096) == 4096 and ring.read() == b"x" * 4096
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop = True
        for thread in threads: thread.join()
    """
    run_python(code, options=["-W", "ignore"])


# ---- exit, and no memory


@pytest.mark.parametrize("keep", ["ring", "view", "ring, view", "Cycle(ring, view)"])
def test_at_exit(run_python: Callable[..., Any], keep: str) -> None:
    code = f"""
        import atexit, sys
        from mempool import RingBuffer

        class Cycle:
            def __init__(self, *kept): self.kept, self.me = kept, self
            def __del__(self): self.kept[0].find(b"x")

        ring = RingBuffer(1)
        view = ring.writable()
        sys.kept = {keep}
        if "ring" not in {keep!r}: del ring
        atexit.register(lambda: view.tobytes())
    """
    done = run_python(code, options=["-X", "dev"])
    assert done.stderr == ""


OOM = """
import _testcapi, gc, os, sys
from mempool import Account, RingBuffer
from mempool.accounting import root_account

account, ring = Account("a"), RingBuffer("8KiB")
gc.disable()
sys.unraisablehook = lambda unraisable: None

def descriptors():
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0

def attempt(function, nth):
    _testcapi.set_nomemory(nth, nth + 1)
    try:
        function()
    except AssertionError:
        raise
    except Exception:  # not all of Python says MemoryError when it has none
        return False
    finally:
        _testcapi.remove_mem_hooks()
    return True

def each_allocation(function):
    function()
    gc.collect()
    used, files, length, free = root_account().used, descriptors(), len(ring), ring.free
    nth, clean = 1, 0
    while clean < 5:
        done = attempt(function, nth)
        gc.collect()
        account.children, root_account().children
        assert (root_account().used, descriptors()) == (used, files), nth
        ring.read()
        clean = clean + 1 if done else 0
        nth += 1
        assert nth < 500
"""

CALLS = {
    "make": "RingBuffer(5000)",
    "make under": "RingBuffer(5000, account=account, name='n').close()",
    "views": "v = ring.writable(); v[:3] = b'abc'; ring.commit(3); w = ring.readable(); bytes(w)",
    "write and read": "ring.write(b'abcd'); ring.read(2); ring.read()",
    "find": "ring.write(b'abcd'); ring.find(b'c'); ring.find(bytearray(b'cd'), 1)",
    "properties": "ring.free, len(ring), repr(ring), ring.capacity",
    "refused": """
        for refused, arg in ((ring.commit, 99999), (ring.consume, 10**30), (ring.find, b''), (RingBuffer, 0)):
            try: refused(arg)
            except ValueError: pass
        """,
}


@pytest.mark.parametrize("name", CALLS)
def test_each_allocation_fails_once(run_python: Callable[..., Any], name: str) -> None:
    testcapi = pytest.importorskip("_testcapi")
    if not hasattr(testcapi, "set_nomemory"):
        pytest.skip("this interpreter cannot fail allocations")
    body = textwrap.indent(textwrap.dedent(CALLS[name]), "    ")
    run_python(f"{OOM}\ndef call():\n{body}\neach_allocation(call)\n")


def test_finalisers_run_inside_calls() -> None:
    """The collector may run Python in any allocation; what that does to the ring must not break what is on its way."""
    ring = RingBuffer(1)

    class Meddler:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            if not ring.closed:
                ring.read()
                ring.write(b"from a finaliser\n")

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(300):
            Meddler()
            view = ring.writable()
            assert len(view) <= ring.capacity
            seen = ring.readable().tobytes()
            assert seen in (b"", b"from a finaliser\n")
            ring.find(b"\n")
        Meddler()
        ring.close()
    finally:
        gc.set_threshold(*before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names for what is mapped")
def test_its_pages_are_mapped_twice_and_go(run_python: Callable[..., Any]) -> None:
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    code = """
        from mempool import RingBuffer

        def mapped(): return sum("mempool-ring" in line for line in open("/proc/self/maps"))

        ring = RingBuffer("1MiB")
        assert mapped() == 2
        view = ring.readable()
        ring.close()
        assert mapped() == 2
        del view
        assert mapped() == 0
    """
    run_python(code)
