"""Which layers stay dense, are cut to a rank, become 2:4 or go, under a measured budget.

Every choice has a time measured on this machine and a loss measured on calibration text; the best
choices for a budget are found exactly, built, and measured again (`make_plan`).
"""
