"""Progress of long work: a bar with block, layer, error and time left, quiet when not watched."""

import sys
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBars

from secateur.settings import read_settings


class Progress(Protocol):
    """Who is told how far the work is. One task at a time."""

    def begin(self, task: str, total: int) -> None:
        """A task of `total` steps starts; the one before it, if any, is over."""

    def advance(self, detail: str = "") -> None:
        """One more step is done; `detail` says which or how well."""

    def close(self) -> None:
        """No more tasks follow."""


class SilentProgress:
    """Tells nobody."""

    def begin(self, task: str, total: int) -> None:
        """Ignore."""

    def advance(self, detail: str = "") -> None:
        """Ignore."""

    def close(self) -> None:
        """Ignore."""


class TerminalProgress:
    """Rich bars on standard error, so that standard output stays clean."""

    def __init__(self) -> None:
        self._bars = RichBars(
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def begin(self, task: str, total: int) -> None:
        """Show a new bar below the finished ones."""
        self._bars.start()
        self._task = self._bars.add_task(task, total=total, detail="")

    def advance(self, detail: str = "") -> None:
        """Move the bar by one step."""
        if self._task is not None:
            self._bars.update(self._task, advance=1, detail=detail)

    def close(self) -> None:
        """Leave the bars as they are and give the terminal back."""
        self._bars.stop()

    def __enter__(self) -> "TerminalProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def default_progress() -> Progress:
    """Bars if standard error is a terminal and they were not switched off, else silence.

    Of several processes only the first one shows any.
    """
    settings = read_settings()
    if sys.stderr.isatty() and not settings.no_progress and settings.rank == 0:
        return TerminalProgress()
    return SilentProgress()
