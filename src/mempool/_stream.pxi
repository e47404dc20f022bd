# A file in memory, over a chain of leases.
