"""Memory pressure: watched, judged, answered before the process is killed."""

from mempool.pressure.callbacks import Registration
from mempool.pressure.levels import Level, PressureEvent, Thresholds
from mempool.pressure.monitor import PressureMonitor, Simulation
from mempool.pressure.records import CallbackStats, MonitorStats
from mempool.pressure.trend import Forecast
from mempool.pressure.watching import SourceStatus

__all__ = [
    "CallbackStats",
    "Forecast",
    "Level",
    "MonitorStats",
    "PressureEvent",
    "PressureMonitor",
    "Registration",
    "Simulation",
    "SourceStatus",
    "Thresholds",
]
