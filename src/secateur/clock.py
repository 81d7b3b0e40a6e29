"""Wall time by step."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from secateur.progress import Progress, SilentProgress


class StepClock:
    """Adds up the seconds of named steps, in the order in which they first came."""

    def __init__(self, progress: Progress | None = None) -> None:
        """Start with no steps; `progress` is told of those that say nothing themselves."""
        self.progress = progress or SilentProgress()
        self._seconds: dict[str, float] = {}
        self._running: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`, and show it as one step of progress."""
        self.progress.begin(name, 1)
        with self.measured(name):
            yield
        self.progress.advance()

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`; the work shows its own progress."""
        started = perf_counter()
        self._seconds.setdefault(name, 0.0)
        self._running[name] = started
        try:
            yield
        finally:
            self._running.pop(name, None)
            self._seconds[name] += perf_counter() - started

    def seconds(self) -> dict[str, float]:
        """By step; one that is still running counts up to now."""
        now = perf_counter()
        running = {name: now - started for name, started in self._running.items()}
        return {name: spent + running.get(name, 0.0) for name, spent in self._seconds.items()}
