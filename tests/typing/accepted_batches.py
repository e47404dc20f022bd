"""What a type checker must accept of batches, health, alerts and settings. Checked, never run."""

import logging
from collections.abc import AsyncIterator
from typing import Literal, assert_type

import mempool
from mempool import pressure
from mempool.accounting import MemoryUsage, Tracker
from mempool.pressure import (
    Alerts,
    AsyncBatches,
    Batches,
    BatchSizer,
    Health,
    HealthCheck,
    Level,
    PressureMonitor,
    Settings,
)


def batches(monitor: PressureMonitor, blobs: list[bytes], lines: AsyncIterator[str]) -> None:
    made = pressure.adaptive_batches(blobs, 10, min_size=2, max_size=20, monitor=monitor, weigher=len, max_wait="500ms")
    assert_type(made, Batches[bytes])
    assert_type(next(made), list[bytes])
    assert_type(made.waited, float)
    assert_type(made.size, int)
    for batch in pressure.adaptive_batches(range(10), max_bytes="1MiB", weigher=lambda _: 8, cleanup=False):
        assert_type(batch, list[int])
    assert_type(pressure.adaptive_batches(lines), AsyncBatches[str])


async def tasks(lines: AsyncIterator[str]) -> None:
    made = pressure.adaptive_batches(lines, weigher=len)
    async for batch in made:
        assert_type(batch, list[str])
    await made.aclose()


def sizers() -> None:
    sizer = BatchSizer(100, min_size=1, max_size=200, max_bytes="1MiB", room=lambda: None)
    assert_type(sizer.next(Level.NORMAL), int)
    sizer.record(100, 4096)
    assert_type(sizer.bytes_per_item, float | None)
    assert_type(sizer.budget, int | None)


def health(monitor: PressureMonitor, tracker: Tracker) -> None:
    found = mempool.health()
    assert_type(found, Health)
    assert_type(found.status, Literal["healthy", "strained", "degraded", "critical"])
    assert_type(found.usage, MemoryUsage)
    assert_type(found.issues[0].severity, Literal["medium", "high", "critical"])
    assert_type(HealthCheck(monitor, tracker).check(), Health)
    alerts = pressure.alerts(monitor, logger=logging.getLogger("app"), interval="5min")
    assert_type(alerts, Alerts)
    alerts.report(found)
    alerts.cancel()


def settings() -> None:
    assert_type(pressure.recommend(), Settings)
    assert_type(pressure.recommend("8GB").environment(), dict[str, str])
    pressure.recommend(8 << 30).apply()
    assert_type(pressure.profile("testing").leak_detection, str | None)
    mempool.configure(
        threshold_mb=1500, critical_threshold_mb=2000.5, gc_interval_seconds="5min", batch_size=10, profile=None
    )
