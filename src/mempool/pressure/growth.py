"""Growth of native memory wakes a monitor that sleeps between two polls.

    allocating thread                          the monitor's thread, or loop
    lease, charge: grown by an eighth   -----> wakes, polls, runs callbacks
    of the headroom since the last poll        |
      waits, at most `PATIENCE`         <------+ arms it anew with the headroom that is left

The thread that takes memory does not poll itself: callbacks would run in the middle of its work, under whatever locks it holds.
It waits for the monitor instead, without the GIL, and only so long: a callback that needs such a lock, or blocks, costs that time
once and no deadlock. Rejected: only to wake. A thread that fills memory keeps the GIL for milliseconds, and may be past the limit
before the monitor has run at all.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from mempool import _core

__all__ = ["GrowthWatch", "step_for"]

PATIENCE = 0.05  # seconds
AGAIN = 0.05  # seconds from a poll that growth began to the next: what was just lent is written to later

_SHARE = 8  # of the headroom
_LEAST = 1 << 20  # bytes; less is not worth a poll


def step_for(headroom: float) -> int:
    """Return the bytes of growth after which a monitor looks again that has so many left."""
    return max(_LEAST, int(min(headroom, 1 << 60)) // _SHARE)


class Runner(Protocol):
    """What wakes a monitor, in a thread or a loop."""

    @property
    def elsewhere(self) -> bool: ...
    def wake(self) -> None: ...


class GrowthWatch:
    """Has one runner woken. Any thread asks; the runner's says when it has polled.

    Parameters
    ----------
    runner : Runner
        Who is woken; waited for only where it polls in another thread.
    inside : callable
        Whether this thread is in a round of the monitor: then nobody is woken.
    """

    def __init__(self, runner: Runner, inside: Callable[[], bool]) -> None:
        self._runner, self._inside = runner, inside
        self._hook = self._on_growth  # one object, by which it is found again
        self._turns: deque[threading.Lock] = deque()
        self._armed = self._asked = self._closed = False
        self._patient = True

    def arm(self, headroom: float | None) -> None:
        """From now on a share of so many bytes is the growth that wakes; None: none does."""
        if headroom is None:
            self._disarm()
        elif self._armed:
            _core._adjust_growth_hook(self._hook, step_for(headroom), anew=True)
        else:
            self._armed = True
            _core._add_growth_hook(self._hook, step_for(headroom), reserved=True)
        if self._closed:  # perhaps meanwhile, by another thread
            self._disarm()

    def _disarm(self) -> None:
        self._armed = False
        _core._remove_growth_hook(self._hook)

    def _on_growth(self, grown: int) -> None:
        """In the thread that takes memory, which holds no lock of this package."""
        if not self._inside():
            self.ask()

    def ask(self) -> bool:
        """Have the runner poll, and wait a little for it; whether it has."""
        if not self._runner.elsewhere or not self._patient:
            if not self._asked:
                self._asked = True
                self._runner.wake()
            return False
        turn = threading.Lock()
        turn.acquire()
        self._turns.append(turn)
        self._asked = True
        self._runner.wake()
        polled = turn.acquire(timeout=PATIENCE)
        if not polled:
            self._patient = False  # until it has polled: nobody else need wait for a callback that blocks
        return polled

    def begin(self) -> tuple[int, bool]:
        """Return, before a poll, how many wait for it, and whether growth began it."""
        asked, self._asked = self._asked, False
        return len(self._turns), asked

    def end(self, count: int) -> None:
        """Let so many go on: it has polled."""
        self._patient = True
        for _ in range(count):
            self._let_go()

    def close(self) -> None:
        """Wake nobody any more, and let all go on; idempotent."""
        self._closed = True
        self._disarm()
        while self._let_go():
            pass

    def _let_go(self) -> bool:
        try:
            self._turns.popleft().release()
        except IndexError:  # by `close`, meanwhile
            return False
        return True
