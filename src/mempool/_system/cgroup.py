"""The control group that this process is in, v2 or v1: usage, limits, events."""
