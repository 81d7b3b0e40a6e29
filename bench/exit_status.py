"""What a command's exit status says beyond success and failure."""

AGAIN = 75
"""The budget ended it before all was done: run it again, it goes on where it ended (EX_TEMPFAIL of
sysexits.h; tests/gpu uses the same)."""

BROKEN = 76
"""The process cannot go on, others can: start it again without what it died of (EX_PROTOCOL;
secateur_kernels/testing/attempts.py has the same)."""
