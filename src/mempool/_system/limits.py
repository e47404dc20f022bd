"""The smallest limit that binds, and where it comes from."""
