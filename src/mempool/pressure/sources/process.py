"""`ProcessMemory`: what this process has resident, against thresholds or the limits of the process."""
