"""`health`: one score, and what to do about it."""
