"""What a command's exit status says beyond success and failure."""

AGAIN = 75
"""The budget ended it before all was done: run it again, it goes on where it ended (EX_TEMPFAIL of
sysexits.h; tests/gpu uses the same)."""
