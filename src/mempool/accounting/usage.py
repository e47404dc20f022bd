"""`memory_usage`: one record of what the process holds, and of how much it may."""
