"""External growth makes Python collect garbage: its collector counts objects, not the bytes that they hold."""
