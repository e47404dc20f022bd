"""Where readings come from. Each source says what it reads, or why it cannot."""

import os
from collections.abc import Mapping

from mempool._system.cgroup import find
from mempool._system.files import joined
from mempool.pressure.levels import Level
from mempool.pressure.sources.account import AccountUsage
from mempool.pressure.sources.base import EventSource, Reading, Source
from mempool.pressure.sources.cgroup import CgroupMemory
from mempool.pressure.sources.custom import CallableSource
from mempool.pressure.sources.process import ProcessMemory, Rlimits
from mempool.pressure.sources.stall import PressureStall
from mempool.pressure.sources.system import SystemMemory
from mempool.pressure.sources.systemd import OFF, WATCH, SystemdPressure

__all__ = [
    "AccountUsage",
    "CallableSource",
    "CgroupMemory",
    "EventSource",
    "PressureStall",
    "ProcessMemory",
    "Reading",
    "Rlimits",
    "Source",
    "SystemMemory",
    "SystemdPressure",
    "default_sources",
]


def default_sources(root: str | os.PathLike[str] = "/", *, environ: Mapping[str, str] | None = None) -> list[Source]:
    """Return all that can be watched here, those that tell soonest first.

    What is not there is among them: reading it says why.

    Parameters
    ----------
    root : str or path
        Directory that stands for ``/``.
    environ : mapping, optional
        In place of `os.environ`.

    Examples
    --------
    >>> from mempool.pressure.sources import default_sources
    >>> [source.name for source in default_sources(environ={})][:2]
    ['systemd', 'cgroup']
    """
    environ = os.environ if environ is None else environ
    return [
        SystemdPressure(environ=environ),
        CgroupMemory(root=root),
        *_stalls(root, environ),
        Rlimits("address_space", root=root),
        Rlimits("data", root=root),
        SystemMemory(root=root),
        ProcessMemory(root=root),
        AccountUsage(),
    ]


def _stalls(root: str | os.PathLike[str], environ: Mapping[str, str]) -> list[Source]:
    """Return the group's, which is about this program, and the machine's, which may be about others: it asks for idle memory."""
    if environ.get(WATCH) == OFF:
        return []
    machine = PressureStall(joined(root, "/proc/pressure/memory"), level=Level.ELEVATED, name="psi:machine")
    try:
        group = find(root)
    except (OSError, ValueError):  # which the cgroup source tells
        group = None
    path = group.pressure_path() if group is not None else None
    return [machine] if path is None else [PressureStall(path, name="psi:cgroup"), machine]
