"""`measure`: what a piece of code did to memory."""
