"""`CgroupMemory`: the control group, v2 or v1, and its events."""
