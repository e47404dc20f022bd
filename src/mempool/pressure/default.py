"""`default_monitor`: the one that pools and caches register with."""
