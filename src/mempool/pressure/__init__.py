"""Memory pressure: watched, judged, answered before the process is killed."""

from mempool.pressure.batches import AsyncBatches, Batches, adaptive_batches
from mempool.pressure.cleanup import CleanupReport, CleanupStep, cleanup
from mempool.pressure.levels import Level, PressureEvent, Thresholds
from mempool.pressure.reclaim import ItemStats, Shrinkable, Shrinker, register, unregister
from mempool.pressure.schedule import CleanupSchedule, process_schedule
from mempool.pressure.sizing import BatchSizer

__all__ = [
    "AsyncBatches",
    "BatchSizer",
    "Batches",
    "CleanupReport",
    "CleanupSchedule",
    "CleanupStep",
    "ItemStats",
    "Level",
    "PressureEvent",
    "Shrinkable",
    "Shrinker",
    "Thresholds",
    "adaptive_batches",
    "cleanup",
    "process_schedule",
    "register",
    "unregister",
]
