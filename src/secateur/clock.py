"""Wall time by step."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class StepClock:
    """Adds up the seconds of named steps, in the order in which they first came."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._running: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`."""
        self._running[name] = perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + (
                perf_counter() - self._running.pop(name)
            )

    def seconds(self) -> dict[str, float]:
        """By step; one that is still running counts up to now."""
        now = perf_counter()
        running = {name: now - started for name, started in self._running.items()}
        names = [*self._seconds, *(name for name in running if name not in self._seconds)]
        return {name: self._seconds.get(name, 0.0) + running.get(name, 0.0) for name in names}
