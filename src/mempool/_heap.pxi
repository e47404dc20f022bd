# NumPy's own arrays, over a pool.
