"""Who is told, in which order, and what becomes of what they raise."""
