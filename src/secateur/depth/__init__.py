"""Depth pruning: which blocks change the hidden states least, and how to take blocks out."""
