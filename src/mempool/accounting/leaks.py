"""`detect_leaks`: does each call of a function leave something behind, and where."""
