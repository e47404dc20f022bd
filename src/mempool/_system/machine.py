"""The machine, from ``/proc/meminfo``: total and available bytes."""
