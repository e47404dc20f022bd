"""A file, chunk by chunk, with the next ones read ahead while the caller works.

Who comes straight back is served on his own thread: the block that he just dropped is warm, and a hand-over would only cost. Who
takes his time gets a thread that reads ahead; if the chunks do not come faster by it, because the caller's work keeps the GIL, or
the disk is what both wait for, the thread ends again, and is tried again ever more rarely.
"""

from collections.abc import Generator
from time import perf_counter_ns
from types import GeneratorType, TracebackType
from typing import TYPE_CHECKING, Self

from mempool._core import Buffer, BufferPool
from mempool.io._ahead import Ahead
from mempool.io._arguments import lender
from mempool.io._direct import directly
from mempool.io._sources import Object, open_source
from mempool.units import parse_size

if TYPE_CHECKING:
    from mempool.io._arguments import Readable, Size

__all__ = ["ChunkIterator", "iter_chunks"]

_SLOW = 3  # chunks in a row after which the caller is known to take his time
_SHORTEST = 20_000  # ns; a hand-over costs as much
_WINDOW = 16  # chunks over which reading ahead is judged
_GAIN = 0.93  # of the time without it that it has to be below
_PATIENCE = 32  # chunks until the next try, doubled each time


class _Judge:
    """Whether reading ahead pays, by what it is told of each chunk. Times are ns."""

    __slots__ = ("patience", "pause", "serial", "served", "since", "slow")

    def __init__(self) -> None:
        self.slow = 0  # chunks in a row before which the caller took his time
        self.serial = 0  # a chunk, work and read, without reading ahead
        self.served = self.since = 0  # chunks of this window, and when it began
        self.pause, self.patience = 0, _PATIENCE

    def wants_ahead(self, gap: int, took: int) -> bool:
        """Whether to read ahead, after a caller who was away for `gap` and a read that took `took`."""
        if self.pause:
            self.pause -= 1
            return False
        if gap * 4 < took or gap < _SHORTEST:
            self.slow = 0
            return False
        self.serial = (self.serial + gap + took) // 2 if self.slow else gap + took
        self.slow += 1
        return self.slow > _SLOW

    def begin(self, now: int) -> None:
        """Note that a thread reads ahead from now on."""
        self.slow, self.served = 0, -2  # the first chunks wait for the thread to begin

    def is_vain(self, now: int) -> bool:
        """Whether chunks come no faster by reading ahead, as known at the end of a window."""
        self.served += 1
        if not self.served:
            self.since = now
        if self.served < _WINDOW:
            return False
        vain = now - self.since > self.serial * _WINDOW * _GAIN
        self.served, self.since = 0, now
        if vain:
            self.pause, self.patience = self.patience, self.patience * 2
        else:
            self.patience = _PATIENCE
        return vain


def _serve(ahead: Ahead) -> Generator[Buffer, None, None]:
    """Yield the chunks; the end of the generator, whatever its reason, ends the thread without waiting for it."""
    clock, judge, seek = perf_counter_ns, _Judge(), ahead.seek
    hand: list[Buffer] = []
    returned = clock()
    try:
        while True:
            began = clock()
            buffer = ahead.take() if ahead.started else None
            if buffer is not None:
                returned = clock()
                if judge.is_vain(returned):
                    ahead.pause()
            else:
                buffer = ahead.read()
                if buffer is None:
                    return
                now = clock()
                if ahead.depth and judge.wants_ahead(began - returned, now - began) and ahead.start():
                    judge.begin(now)
                returned = now
            if seek is not None:
                ahead.place += len(buffer)
                seek(ahead.place)
            hand.append(buffer)
            buffer = None  # a generator that waits keeps its variables, and so would keep the chunk
            yield hand.pop()
    finally:
        ahead.pause()


def _started(ahead: Ahead) -> "GeneratorType[Buffer, None, None]":
    chunks = _serve(ahead)
    assert isinstance(chunks, GeneratorType)
    return chunks


class ChunkIterator:
    """What `iter_chunks` returns: an iterator of `Buffer`, and a context manager that closes it."""

    # A generator does the work: it costs a third of what a `__next__` with attributes costs, and refuses to run twice at once.

    def __init__(self, ahead: Ahead) -> None:
        self._ahead = ahead
        self._chunks = _started(ahead)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Buffer:
        try:
            return next(self._chunks)
        except MemoryError:
            self._chunks = _started(self._ahead)  # the pool has no room now: nothing was read, it may go on
            raise
        except BaseException:
            if not self._chunks.gi_running:  # not the error of a second caller
                self._ahead.close()
            raise

    def close(self) -> None:
        """End reading, and give back what was read ahead. Idempotent; chunks that were handed out stay valid."""
        self._chunks.close()
        self._ahead.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def iter_chunks(
    path_or_file: "Readable",
    chunk_size: "Size" = "1MiB",
    *,
    pool: BufferPool | None = None,
    readahead: int = 2,
    direct: bool = False,
) -> ChunkIterator:
    """Iterate over the content of a file, pipe or socket in buffers of one size.

    Parameters
    ----------
    path_or_file : path, int, or binary file or socket
        A path is read from its beginning, anything else from where it stands. A descriptor, or that of a plain file or socket, is
        duplicated: it may be closed meanwhile.
    chunk_size : int or str
        Bytes of each buffer but the last, which is what was left.
    pool : BufferPool or None
        Where the memory comes from; None: `default_pool()`.
    readahead : int
        How many chunks may be ready before they are asked for. A thread reads them while the caller works, once he is seen to work
        for longer than a hand-over takes; where the pool's limit leaves no room, fewer are ready. 0: never a thread. Objects that
        are not plain files, pipes or sockets are read on the caller's thread only, and so are named pipes, terminals, and before
        Linux 6.5 all pipes and sockets.
    direct : bool
        Go past the page cache (O_DIRECT). Where the file system refuses, a `RuntimeWarning` says so and the page cache is used.

    Returns
    -------
    ChunkIterator
        An iterator of `Buffer`, with `close()`, and a context manager. To drop a chunk gives its memory back, and is no leak: a
        loop that keeps none reads into the same few blocks. The position of a file or descriptor is that of the chunks handed out;
        of a pipe or socket, up to `readahead` chunks more are consumed, and lost if the iterator is closed before.

    Raises
    ------
    OSError
        As `open` raises it; while iterating as `read` does, after the chunks before it. Then the iterator is closed.
    PoolExhausted, AccountLimitExceeded, MemoryError
        While iterating, if the pool has no room for one chunk. The iterator goes on when asked again.
    TypeError, ValueError
        For a text file, a bool, or an argument that makes no sense; for `direct` with what is no file.

    Examples
    --------
    >>> import tempfile, zlib
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(bytes(2_500_000))
    ...     file.flush()
    ...     [len(chunk) for chunk in iter_chunks(file.name)]
    [1048576, 1048576, 402848]
    """
    size = parse_size(chunk_size, "chunk_size")
    if not size:
        raise ValueError(f"chunk_size must be more than 0 bytes, got {chunk_size!r}")
    if isinstance(readahead, (bool, str)):
        raise TypeError(f"readahead must be an int, not {readahead!r}")
    depth = parse_size(readahead, "readahead")
    lend = lender(pool)
    source = open_source(path_or_file, "path_or_file", own=True)
    try:
        source = directly(source) if direct else source
        return ChunkIterator(Ahead(source, lend, size, 0 if isinstance(source, Object) else depth))
    except BaseException:
        source.close()
        raise
