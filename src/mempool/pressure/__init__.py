"""Memory pressure: watched, judged, answered before the process is killed."""

from mempool.pressure.levels import Level, PressureEvent, Thresholds

__all__ = ["Level", "PressureEvent", "Thresholds"]
