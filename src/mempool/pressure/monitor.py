"""`PressureMonitor`: sources are read, levels decided, callbacks run."""
