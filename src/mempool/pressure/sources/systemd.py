"""`SystemdPressure`: the protocol of MEMORY_PRESSURE_WATCH."""
