"""`AccountUsage`: an account against its limit."""
