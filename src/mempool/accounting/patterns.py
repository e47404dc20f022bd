"""Steady, spike, leak or thrashing: what a series of readings looks like, with the evidence."""
