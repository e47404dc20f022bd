"""From memory running short to a callback that knows of it, and what a monitor at rest costs.

Events arrive as they do from systemd (a FIFO, a socket) and from the kernel (``POLLPRI``, which urgent
data on a TCP connection raises as well: real stalls would take the machine down with them). Each is
fired just after a poll, when a monitor without events would have to wait longest.
"""

from __future__ import annotations

import os
import random
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import Plan, Report, Row, Spread, progress
from mempool.pressure import Level, PressureEvent, PressureMonitor
from mempool.pressure.sources import CallableSource, PressureStall, Source, SystemdPressure

NAME = "pressure"
INTERVAL = 0.1
EVENTS = 30
REST = 10.0
CALM, SHORT = (1, 100), (99, 100)

Fire = Callable[[], float]  # makes an event, and returns when
Setting = Callable[[Path, "Clock"], Iterator[tuple[Source, Fire]]]


class Clock:
    """Seconds that leap, so that an event is over when the next one comes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "Pressure")
    for figure, setting in (("FIFO", fifo), ("socket", unix_socket), ("PSI trigger (urgent data)", stall)):
        text = f"event to callback, {figure}"
        if hasattr(select, "epoll"):
            report.rows.append(latency(plan, text, setting, must=0.1, aim=0.01))
        else:
            report.rows.append(Row(text, "poll interval", must=0.1, note="this OS has no epoll"))
    report.rows.append(latency(plan, "crossing to callback, polled", figures, must=1.0, anytime=True))
    report.rows.append(rest(plan))
    return report


def latency(
    plan: Plan, figure: str, setting: Setting, *, must: float, aim: float | None = None, anytime: bool = False
) -> Row:
    """Time from an event to the callback, as a share of the poll interval."""
    clock, dice = Clock(), random.Random(5)
    told: list[float] = []
    arrived, relieved = threading.Event(), threading.Event()

    def call(event: PressureEvent) -> None:
        told.append(time.perf_counter())
        arrived.set()

    shares = []
    with (
        tempfile.TemporaryDirectory(dir=plan.scratch) as folder,
        contextmanager(setting)(Path(folder), clock) as (source, fire),
        PressureMonitor(sources=[source], interval=INTERVAL, min_dwell=0, reminder="1h") as monitor,
    ):
        monitor.on(Level.HIGH, call, weak=False)
        monitor.on_relief(lambda event: relieved.set(), weak=False)
        for number in range(plan.rounds(EVENTS)):
            progress(f"{NAME}: {figure}, {number + 1}")
            if anytime:
                time.sleep(dice.uniform(0, INTERVAL))
            start = fire()
            check(arrived.wait(30), f"{figure}: the callback never came")
            shares.append((told[-1] - start) / INTERVAL)
            clock.now += 1000
            check(relieved.wait(30), f"{figure}: relief never came")
            arrived.clear()
            relieved.clear()
        check(len(told) == len(shares), f"{figure}: {len(told)} calls for {len(shares)} events")
    ratio = Spread.of(shares)
    note = f"worst {max(shares):.3f}x"
    return Row(
        figure,
        "poll interval",
        False,
        INTERVAL,
        ratio.median * INTERVAL,
        ratio=ratio,
        sense="cost",
        must=must,
        aim=aim,
        note=note,
    )


def check(right: bool, what: str) -> None:
    """Stop the table if something did not happen as it must."""
    if not right:
        raise AssertionError(what)


def fifo(folder: Path, clock: Clock) -> Iterator[tuple[Source, Fire]]:
    """A service manager that writes into a FIFO."""
    path = folder / "fifo"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)

    def fire() -> float:
        start = time.perf_counter()
        os.write(fd, b"!")
        return start

    try:
        yield SystemdPressure(environ={"MEMORY_PRESSURE_WATCH": str(path)}, clock=clock), fire
    finally:
        os.close(fd)


def unix_socket(folder: Path, clock: Clock) -> Iterator[tuple[Source, Fire]]:
    """A service manager that is connected to."""
    peers: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()

        def fire() -> float:
            if not peers:
                peers.append(listener.accept()[0])
            start = time.perf_counter()
            peers[0].sendall(b"!")
            return start

        yield SystemdPressure(environ={"MEMORY_PRESSURE_WATCH": listener.getsockname()}, clock=clock), fire
    for peer in peers:
        peer.close()


class UrgentStall(PressureStall):
    """A trigger whose descriptor is a connection with urgent data instead of the kernel's file."""

    def __init__(self, path: Path, clock: Clock, connection: socket.socket) -> None:
        super().__init__(path, clock=clock)
        self._connection = connection

    def fileno(self) -> int:
        """Return that of the connection."""
        return self._connection.fileno()

    def handle(self, events: int) -> bool:
        """Take the urgent byte, and go on as always."""
        self._connection.recv(1, socket.MSG_OOB)
        return super().handle(events)


def stall(folder: Path, clock: Clock) -> Iterator[tuple[Source, Fire]]:
    """A trigger of the kernel: each event with another second lost."""
    file = folder / "memory.pressure"

    def lose(microseconds: int) -> None:
        fresh = file.with_suffix(".new")
        fresh.write_text(f"some avg10=0.00 avg60=0.00 avg300=0.00 total={microseconds}\n")
        fresh.replace(file)

    lose(0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
    with sender, receiver:
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lost = iter(range(10**6, 10**9, 10**6))

        def fire() -> float:
            lose(next(lost))
            start = time.perf_counter()
            sender.send(b"!", socket.MSG_OOB)
            return start

        yield UrgentStall(file, clock, receiver), fire


def figures(folder: Path, clock: Clock) -> Iterator[tuple[Source, Fire]]:
    """No event: bytes that cross a threshold, and are back below it when the clock leaps."""
    short_at = [-1.0]

    def fire() -> float:
        short_at[0] = clock.now
        return time.perf_counter()

    yield CallableSource(lambda: SHORT if short_at[0] == clock.now else CALM, "figures"), fire


def rest(plan: Plan) -> Row:
    """Share of one core that a monitor of all default sources takes while nothing happens."""
    seconds = REST / 3 if plan.quick else REST
    with PressureMonitor() as monitor:
        time.sleep(0.5)
        before, began = time.process_time(), time.perf_counter()
        progress(f"{NAME}: at rest")
        time.sleep(seconds)
        share = (time.process_time() - before) / (time.perf_counter() - began)
        stats = monitor.stats()
    note = f"{stats.polls} polls, one each {stats.interval:.2g} s"
    return Row("monitor at rest, share of a core", "", own_value=share, unit="x", sense="below", must=0.001, note=note)
