"""Prune a model block by block from disk to disk; it is never whole in memory."""
