"""`SystemMemory`: the machine."""
