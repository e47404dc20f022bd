"""`default_monitor`: the one that pools and caches register with."""

import os
import threading

from mempool.pressure.monitor import PressureMonitor
from mempool.pressure.reclaim import Shrinker

__all__ = ["default_monitor"]

_lock = threading.Lock()
_monitor: PressureMonitor | None = None


def default_monitor() -> PressureMonitor:
    """Return the one monitor of the process that all pools, slabs and registered caches make room for, made when first asked for.

    It watches all that there is, and runs once it was started.

    Examples
    --------
    >>> from mempool.pressure import default_monitor
    >>> default_monitor() is default_monitor()
    True
    >>> default_monitor().running
    False
    """
    global _monitor
    if _monitor is None:
        made = PressureMonitor(reclaim=Shrinker.of_process())  # outside the lock: it reads settings and the system
        with _lock:
            if _monitor is None:
                _monitor = made
    return _monitor


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
