"""Memory pressure: watched, judged, answered before the process is killed."""

from mempool.pressure.batches import AsyncBatches, Batches, adaptive_batches
from mempool.pressure.callbacks import Registration
from mempool.pressure.cleanup import CleanupReport, CleanupStep, cleanup
from mempool.pressure.default import default_monitor
from mempool.pressure.levels import Level, PressureEvent, Thresholds
from mempool.pressure.monitor import PressureMonitor, Simulation
from mempool.pressure.reclaim import ItemStats, Shrinkable, Shrinker, register, unregister
from mempool.pressure.records import CallbackStats, MonitorStats
from mempool.pressure.schedule import CleanupSchedule, process_schedule
from mempool.pressure.sizing import BatchSizer
from mempool.pressure.trend import Forecast
from mempool.pressure.watching import SourceStatus

__all__ = [
    "AsyncBatches",
    "BatchSizer",
    "Batches",
    "CallbackStats",
    "CleanupReport",
    "CleanupSchedule",
    "CleanupStep",
    "Forecast",
    "ItemStats",
    "Level",
    "MonitorStats",
    "PressureEvent",
    "PressureMonitor",
    "Registration",
    "Shrinkable",
    "Shrinker",
    "Simulation",
    "SourceStatus",
    "Thresholds",
    "adaptive_batches",
    "cleanup",
    "default_monitor",
    "process_schedule",
    "register",
    "unregister",
]
