"""The machine, from ``/proc/meminfo``: total and available bytes."""

import os
from dataclasses import dataclass

from mempool import _core
from mempool._system.files import joined, kilobytes, read

__all__ = ["MachineMemory", "memory"]


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """RAM in bytes: all of it, and what could be had without swapping."""

    total: int
    available: int


def memory(root: str | os.PathLike[str] = "/") -> MachineMemory:
    """Return the RAM of the machine.

    Available is the kernel's own estimate, which counts page cache that it can drop. In a container it is the host's, unless the
    container has a ``/proc/meminfo`` of its own.

    Raises
    ------
    OSError, ValueError
        If the system does not say, or says nothing that makes sense.

    Examples
    --------
    >>> machine = memory()
    >>> 0 <= machine.available <= machine.total
    True
    """
    path = joined(root, "/proc/meminfo")
    try:
        content = read(path)
    except FileNotFoundError:
        if os.fspath(root) != "/":
            raise
        total, available = _core._machine_memory()
    else:
        total, available = (kilobytes(content, name, path) for name in (b"MemTotal", b"MemAvailable"))
    if not total:
        raise ValueError(f"{path}: a machine without memory")
    return MachineMemory(total, min(total, available))
