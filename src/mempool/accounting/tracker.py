"""`Tracker`: labelled snapshots in a ring, with deltas and statistics."""
