"""A monitor that polls on its own: in a thread, woken by events."""
