"""A sign of life while a command waits for something that has no steps."""

from collections.abc import Iterator
from contextlib import contextmanager

from secateur.progress import default_progress


@contextmanager
def waiting_for(task: str) -> Iterator[None]:
    """Show `task` as one step of progress while this is open."""
    progress = default_progress()
    progress.begin(task, 1)
    try:
        yield
        progress.advance()
    finally:
        progress.close()
