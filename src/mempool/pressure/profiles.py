"""Settings for development, testing and production, and `recommend`."""
