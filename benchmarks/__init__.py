"""Benchmarks of mempool: one harness, one module per table, the pure-Python rivals."""
