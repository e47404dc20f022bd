"""`PressureStall`: the kernel's pressure stall information, and its triggers."""
