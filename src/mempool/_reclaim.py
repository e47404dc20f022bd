"""What is asked for memory before a limit raises: reclaimers by priority, then one throttled garbage collection."""
