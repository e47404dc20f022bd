"""Cleanups in the background: queued, or at an interval."""
