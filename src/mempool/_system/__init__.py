"""What the operating system says of memory: read afresh at each call, from a root directory that tests may put elsewhere."""
