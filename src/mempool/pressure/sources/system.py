"""`SystemMemory`: the machine."""

import os

from mempool._system import machine
from mempool.pressure.sources.base import Reading, Scope

__all__ = ["SystemMemory"]


class SystemMemory:
    """RAM of the machine: what could not be had without swapping, against all.

    Parameters
    ----------
    root : str or path
        Directory that stands for ``/``.
    """

    def __init__(self, *, root: str | os.PathLike[str] = "/") -> None:
        self._root = root

    @property
    def name(self) -> str:
        """``"machine"``."""
        return "machine"

    @property
    def scope(self) -> Scope:
        """``"shared"``."""
        return "shared"

    def read(self) -> Reading:
        """Total less available bytes, and total."""
        memory = machine.memory(self._root)
        return Reading(memory.total - memory.available, memory.total)

    def __repr__(self) -> str:
        return "SystemMemory()"
