"""Limits of the process itself: ``RLIMIT_AS``, ``RLIMIT_DATA``, ``RLIMIT_RSS``."""
