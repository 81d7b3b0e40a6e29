"""Benchmarks. Ratios within one run; records with their machine go to bench/results."""
