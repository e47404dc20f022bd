"""Memory pressure: watched, judged, answered before the process is killed."""

from mempool.pressure.levels import Level, PressureEvent, Thresholds
from mempool.pressure.reclaim import Shrinkable, Shrinker, register, unregister

__all__ = ["Level", "PressureEvent", "Shrinkable", "Shrinker", "Thresholds", "register", "unregister"]
