"""Alerts through `logging`, rate-limited."""
