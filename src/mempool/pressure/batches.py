"""`adaptive_batches`: an iterable in batches whose size follows memory."""
