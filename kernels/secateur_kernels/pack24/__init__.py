"""Score, select and pack 2:4 weights in one pass."""
