"""`BatchSizer`: how many items the next batch may have."""
