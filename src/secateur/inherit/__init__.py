"""Inheritune (arXiv 2404.08634): small models from a model's first blocks."""
