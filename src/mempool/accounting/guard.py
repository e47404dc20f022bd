"""`memory_limit`: a guard around a piece of work."""
