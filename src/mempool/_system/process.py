"""What this process has, from ``/proc/self``: resident, own, peak and address-space bytes.

::

    statm         resident and address space, in pages: one quick read, for what is asked often
    status        the same and the peak, in kB and of one moment
    smaps_rollup  what would be free if the process ended; the kernel walks all page tables for it

Where there is no ``/proc`` (macOS, Windows) the compiled layer asks the system itself. `getrusage` was not taken for the peak: its
figure is inherited through fork and exec.
"""

import os
from dataclasses import dataclass

from mempool import _core
from mempool._system.files import joined, kilobytes, number, read

__all__ = ["ProcessMemory", "address_space", "data", "memory", "peak_rss", "rss", "rss_and_shared", "uss"]

_Root = str | os.PathLike[str]

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_COLUMNS = 7  # of statm, since Linux 2.6


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """What a process had at one moment, in bytes.

    Attributes
    ----------
    rss, peak_rss : int
        Resident now, and at most so far.
    address_space, data : int or None
        Addresses taken, and the private writable part of them: what ``RLIMIT_AS`` and ``RLIMIT_DATA`` limit. None off Linux.
    """

    rss: int
    peak_rss: int
    address_space: int | None
    data: int | None


def rss(root: _Root = "/") -> int:
    """Return the resident bytes of this process.

    The kernel keeps the figure per processor and may be late by some hundred KiB.

    Raises
    ------
    OSError, ValueError
        If the system does not say, or says nothing that makes sense.

    Examples
    --------
    >>> rss() > 1 << 20
    True
    """
    try:
        return _statm(root, 1)
    except FileNotFoundError:
        return _native(root)[0]


def rss_and_shared(root: _Root = "/") -> tuple[int, int]:
    """Return the resident bytes, and how many of them at most are pages of files and of shared memory; raises as `rss`.

    Off Linux nothing tells them apart: then they may be all.
    """
    try:
        words, path = _statm_words(root)
    except FileNotFoundError:
        resident = _native(root)[0]
        return resident, resident
    return number(words[1], path) * _PAGE, number(words[2], path) * _PAGE


def peak_rss(root: _Root = "/") -> int:
    """Return the most bytes that were resident at one time; raises as `rss`."""
    try:
        return _status(root, b"VmHWM")
    except FileNotFoundError:
        return _native(root)[1]


def uss(root: _Root = "/") -> int:
    """Return the bytes that nobody else shares: what ending the process would free.

    Takes milliseconds in a large process. Raises as `rss`; `FileNotFoundError` off Linux.
    """
    path = joined(root, "/proc/self/smaps_rollup")
    try:
        content = read(path)
    except FileNotFoundError:
        path = joined(root, "/proc/self/smaps")  # before Linux 4.14
        content = read(path)
    own = [line for line in content.splitlines() if line.startswith(b"Private_")]
    if not own:
        raise ValueError(f"{path}: there is no Private_Dirty")
    return sum(kilobytes(line, line.partition(b":")[0], path) for line in own)


def address_space(root: _Root = "/") -> int:
    """Return the bytes of address space in use, touched or not; raises as `rss`, `FileNotFoundError` off Linux."""
    return _statm(root, 0)


def data(root: _Root = "/") -> int:
    """Return the bytes of private writable mappings, as ``RLIMIT_DATA`` counts them; raises as `address_space`."""
    return _status(root, b"VmData")


def memory(root: _Root = "/") -> ProcessMemory:
    """Return resident, peak and address-space bytes of one moment; raises as `rss`."""
    path = joined(root, "/proc/self/status")
    try:
        content = read(path)
    except FileNotFoundError:
        resident, peak = _native(root)
        return ProcessMemory(resident, max(peak, resident), None, None)
    names = (b"VmRSS", b"VmHWM", b"VmSize", b"VmData")
    return ProcessMemory(*[kilobytes(content, name, path) for name in names])


def _statm(root: _Root, column: int) -> int:
    words, path = _statm_words(root)
    return number(words[column], path) * _PAGE


def _statm_words(root: _Root) -> tuple[list[bytes], str]:
    path = joined(root, "/proc/self/statm")
    words = read(path).split()
    if len(words) != _COLUMNS:
        raise ValueError(f"{path}: expected {_COLUMNS} numbers, found {words[:10]!r}")
    return words, path


def _status(root: _Root, name: bytes) -> int:
    path = joined(root, "/proc/self/status")
    return kilobytes(read(path), name, path)


def _native(root: _Root) -> tuple[int, int]:
    """Return what the system says without ``/proc``. For use in a handler: a tree without the file raises what it raised."""
    if os.fspath(root) != "/":
        raise
    return _core._process_memory()
