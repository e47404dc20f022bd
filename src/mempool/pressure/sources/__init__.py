"""Where readings come from. Each source says what it reads, or why it cannot."""
