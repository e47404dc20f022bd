# Memory that other processes see too.
