"""Memory pressure: watched, judged, answered before the process is killed."""

from mempool.pressure.batches import AsyncBatches, Batches, adaptive_batches
from mempool.pressure.levels import Level, PressureEvent, Thresholds
from mempool.pressure.sizing import BatchSizer

__all__ = ["AsyncBatches", "BatchSizer", "Batches", "Level", "PressureEvent", "Thresholds", "adaptive_batches"]
