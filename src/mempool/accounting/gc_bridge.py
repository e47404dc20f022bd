"""The bridge to the garbage collector: external growth triggers a collection, as growth of Python's heap does.

    lent bytes          collection       collection, little freed
        |                   v  |             v
        |                 .-'  |           .-'    next time after twice the growth
        |   threshold  .-'     '--------.-'
        +------------------------------------> leases and charges that had to grow

CPython's collector counts objects, not bytes, so a cycle that holds a gigabyte looks small to it. A collection is worth what it
frees: one that freed little doubles the growth that the next one takes, up to a bound, and one that freed much brings it back. The
young generations go first, as most garbage is young and a full collection costs as much as there are objects; what they leave adds
up to half a threshold at most.

Rejected: a timer (collects where nothing grew, and not where much did); tuning ``gc.set_threshold`` (which belongs to the program).
"""

import gc
from collections.abc import Callable

from mempool import _core
from mempool.units import parse_size

__all__ = ["Bridge", "gc_pressure"]

_MOST_DOUBLINGS = 4
_WORTHWHILE = 8  # a collection that frees less than this part of the threshold was not

_hooks: dict[Callable[[int], None], None] = {}  # one at most; single steps of a dict need no lock


class Bridge:
    """Decides when to collect, and after how much more growth to be called again.

    Parameters
    ----------
    threshold : int
        Bytes of growth before the first collection.
    held : callable
        Bytes in use now.
    collect : callable
        As ``gc.collect``, with the generation.
    """

    __slots__ = ("_collect", "_floor", "_held", "current", "threshold")

    def __init__(self, threshold: int, held: Callable[[], int], collect: Callable[[int], object] = gc.collect) -> None:
        self.threshold = self.current = threshold
        self._held, self._collect = held, collect
        self._floor = held()  # after the last full collection

    def on_growth(self, grown: int) -> int:
        """Collect, if the program lets the collector run. Bytes that came back."""
        if not gc.isenabled():
            return 0
        before = self._held()
        self._collect(1)
        held = self._held()
        self._floor = min(self._floor, held)
        if held > self._floor + self.threshold // 2:
            self._collect(2)
            held = self._floor = self._held()
        freed = max(0, before - held)
        worthwhile = freed >= min(grown, self.threshold) // _WORTHWHILE
        self.current = self.threshold if worthwhile else min(2 * self.current, self.threshold << _MOST_DOUBLINGS)
        return freed


def _held() -> int:
    return _core._held(_core.root_account(), None)


def gc_pressure(enabled: bool = True, threshold: int | str = "64MiB") -> None:
    """Have growth of native memory trigger the garbage collector. Off until it is called.

    CPython collects after so many new objects, whatever they hold: a loop that makes cyclic garbage of 8 MiB a piece takes
    gigabytes before the collector comes. With this it takes about `threshold`.

    Parameters
    ----------
    enabled : bool
        False: off again.
    threshold : int or str
        Bytes by which lent memory (pools, slabs, arrays, rings, and what `Account.charge` was told of) must have grown since the
        least that it was after the last collection. After a collection that freed little it is doubled, up to 16 times, until one
        frees something again.

    Raises
    ------
    TypeError, ValueError
        For arguments that make no sense; the value is named.

    Notes
    -----
    The collector runs in the thread whose lease or charge had to grow, after it has its memory; never when memory comes back, never
    within a reclaimer, and never under ``gc.disable()``. A lease from idle memory costs nothing more.

    Examples
    --------
    >>> import mempool
    >>> from mempool.accounting import gc_pressure
    >>> pool = mempool.BufferPool()
    >>> gc_pressure(threshold="16MiB")
    >>> for _ in range(100):
    ...     cycle = [pool.acquire("1MiB")]
    ...     cycle.append(cycle)
    >>> pool.stats().peak < 40 << 20
    True
    >>> gc_pressure(False)
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"enabled must be True or False, not {enabled!r}")
    size = parse_size(threshold, "threshold")
    if size == 0:
        raise ValueError(f"threshold must be more than 0 bytes, got {threshold!r}")
    for hook in list(_hooks):
        _core._remove_growth_hook(hook)  # first: Ctrl-C may come in between
        _hooks.pop(hook, None)
    if not enabled:
        return
    bridge = Bridge(size, _held)

    def on_growth(grown: int) -> None:
        bridge.on_growth(grown)
        _core._adjust_growth_hook(on_growth, bridge.current)

    _hooks[on_growth] = None
    _core._add_growth_hook(on_growth, size)
