"""Progress of long work: a bar with block, layer, error and time left, quiet when not watched."""

import sys
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.progress import Progress as RichBars
from rich.table import Column
from rich.text import Text

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


class _Times(ProgressColumn):
    """What has passed, and while a task runs what is left of it."""

    def render(self, task: Task) -> Text:
        """Such as `1:40, 2:10 left`."""
        passed = task.finished_time if task.finished else task.elapsed
        shown = _clock(passed or 0.0)
        if not task.finished and task.time_remaining is not None:
            shown += f", {_clock(task.time_remaining)} left"
        return Text(shown, style="progress.elapsed")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# What is left of a line beside task, count, times and detail, and what a bar needs to be one.
_BESIDE_BAR, _LEAST_BAR, _WIDEST_BAR = 84, 6, 28


def _columns(width: int) -> list[ProgressColumn]:
    """Times are never cut: on a short line the bar goes first, then the end of the detail."""
    whole = Column(no_wrap=True)
    rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    room = min(_WIDEST_BAR, width - _BESIDE_BAR)
    return [
        TextColumn("{task.description:<24}", markup=False, table_column=whole),
        *([BarColumn(bar_width=room, table_column=whole)] if room >= _LEAST_BAR else []),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        _Times(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[detail]}", style="dim", markup=False, table_column=rest),
    ]


class TerminalProgress:
    """Rich bars on standard error, so that standard output stays clean."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bars = RichBars(*_columns(console.width), console=console, expand=True)
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
