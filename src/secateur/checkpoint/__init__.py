"""Checkpoints on disk: what is accepted, what is written, and proof that they are the same."""
