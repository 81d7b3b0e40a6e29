"""Exact unstructured masks: the largest scores of every row, without sorting."""
