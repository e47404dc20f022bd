"""Any callable that returns (used, limit)."""
