"""What the tests of pressure share."""

import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mempool.pressure.sources import EventSource, PressureStall


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@contextmanager
def armed_by_urgent_data(source: PressureStall) -> Iterator[Callable[[], None]]:
    """Open a source on a socket in the place of the kernel's file. What is handed out raises POLLPRI."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
    with sender, receiver:
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trigger = source._trigger
        arm, believed = trigger.open, trigger.happened

        def open_() -> None:
            arm()
            trigger._descriptor.hold(os.dup(receiver.fileno()))

        def happened(events: int) -> bool:
            receiver.recv(1, socket.MSG_OOB)
            return believed(events)

        def fire() -> None:
            sender.send(b"!", socket.MSG_OOB)

        trigger.open, trigger.happened = open_, happened  # type: ignore[method-assign]
        source.open()
        try:
            yield fire
        finally:
            source.close()
            del trigger.open, trigger.happened


def waiting_events(source: EventSource) -> int:
    """What `poll` says of a source at this moment."""
    poll = select.poll()
    poll.register(source.fileno(), source.poll_events)
    return sum(events for _, events in poll.poll(0))
