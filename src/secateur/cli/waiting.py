"""Signs of life while a command works."""

from collections.abc import Iterator
from contextlib import contextmanager

from secateur.progress import Progress, default_progress


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """Progress that is closed however the work ends."""
    progress = default_progress()
    try:
        yield progress
    finally:
        progress.close()


@contextmanager
def waiting_for(task: str) -> Iterator[None]:
    """Show `task`, which has no steps of its own, as one step while this is open."""
    with shown_progress() as progress:
        progress.begin(task, 1)
        yield
        progress.advance()
