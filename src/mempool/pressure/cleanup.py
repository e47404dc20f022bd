"""`cleanup`: garbage, idle memory, caches, malloc, pages; each step says what it freed."""
