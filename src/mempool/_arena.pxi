# Many small pieces of memory that end together.
