"""History of readings, their trend, the forecast, and how often to look."""
